// SPDX-License-Identifier: Apache-2.0
import { readdirSync } from "node:fs";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { LasthopError } from "../../src/errors.ts";
import { type Ffi, loadFfi } from "../../src/ffi/index.ts";
import {
  BPF_EXIST,
  BPF_NOEXIST,
  BpfError,
  BpfLink,
  BpfMap,
  BpfObject,
  BpfProgram,
  clsact,
  isErrno,
  libbpfVersion,
  MAP_TYPE,
  possibleCpus,
  RingBuffer,
  tcxQuery,
  xdpQuery,
} from "../../src/libbpf/index.ts";
import { ERRNO, libc } from "../../src/libc/index.ts";
import { type Fixtures, interfaceIndex, makeFixtures, run } from "./fixtures.ts";

const NEEDS_TCX = "needs Linux 6.6 for TCX";

function hasTcx(): boolean {
  return tcxQuery(1, "ingress") !== undefined;
}

/** What both FFI backends must do. Each runs it in a process of its own. */
export function contract(backend: Ffi["backend"], options: { calls: number }): void {
  let fixtures: Fixtures;
  let object: BpfObject;

  beforeAll(() => {
    fixtures = makeFixtures();
    object = BpfObject.open(fixtures.fixture);
    object.load();
  });

  afterAll(() => {
    object?.close();
    fixtures?.remove();
  });

  describe("ffi", () => {
    it("is the backend under test", () => {
      expect(loadFfi().backend).toBe(backend);
    });

    it("passes numbers, strings and memory, and returns each type", () => {
      const c = libc();
      expect(c.function("abs", "i32", ["i32"])(-5)).toBe(5);
      expect(c.function("labs", "i64", ["i64"])(-(2n ** 40n))).toBe(2 ** 40);
      expect(c.function("strlen", "size_t", ["cstring"])("grüß")).toBe(6);
      expect(
        c.function("strtoull", "u64", ["cstring", "pointer", "i32"])("18446744073709551615", null, 10),
      ).toBe(2n ** 64n - 1n);
      expect(c.function("htonl", "u32", ["u32"])(0xff)).toBe(0xff00_0000);
      expect(c.function("strerror", "cstring", ["i32"])(2)).toBe("No such file or directory");
      expect(c.function("getenv", "cstring", ["cstring"])("LASTHOP_NO_SUCH_VARIABLE")).toBeNull();
      expect(c.function("memchr", "pointer", ["pointer", "i32", "size_t"])(Buffer.from("abc"), 0x7a, 3)).toBe(
        0n,
      );
      expect(c.function("srand", "void", ["u32"])(1)).toBeUndefined();
      const target = Buffer.alloc(8);
      c.function("memcpy", "pointer", ["pointer", "pointer", "size_t"])(target, Buffer.from("abcdefgh"), 5);
      expect(target.toString("latin1")).toBe("abcde\0\0\0");
    });

    it("knows where a buffer is, and shows the same memory again", () => {
      const bytes = Buffer.from("0123456789").subarray(3);
      const view = loadFfi().view(loadFfi().addressOf(bytes), 4);
      expect(view.toString()).toBe("3456");
      bytes[0] = 0x78;
      expect(view.toString()).toBe("x456");
    });

    it("reports errno of the call before", () => {
      const close = libc().function("close", "i32", ["i32"]);
      expect(close(-1)).toBe(-1);
      expect(loadFfi().errno()).toBe(ERRNO.EBADF);
    });

    it("calls on another thread", async () => {
      const access = libc().functionAsync("access", "i32", ["cstring", "i32"]);
      expect(await Promise.all([access("/proc", 0), access("/no/such/path", 0)])).toEqual([0, -1]);
    });

    it("lets C call back", () => {
      const numbers = Buffer.from([3, 1, 2, 9, 7]);
      const compare = loadFfi().callback("i32", ["pointer", "pointer"], (a, b) => {
        return loadFfi().view(a, 1)[0]! - loadFfi().view(b, 1)[0]!;
      });
      libc().function("qsort", "void", ["pointer", "size_t", "size_t", "pointer"])(
        numbers,
        5,
        1,
        compare.address,
      );
      compare.close();
      compare.close();
      expect([...numbers]).toEqual([1, 2, 3, 7, 9]);
    });

    it("polls a descriptor until closed", async () => {
      const pipe = Buffer.alloc(8);
      expect(libc().function("pipe", "i32", ["pointer"])(pipe)).toBe(0);
      const [reader, writer] = [pipe.readInt32LE(0), pipe.readInt32LE(4)];
      const write = libc().function("write", "i64", ["i32", "pointer", "size_t"]);
      const close = libc().function("close", "i32", ["i32"]);
      let calls = 0;
      await new Promise<void>((resolve) => {
        const handle = loadFfi().poll(reader, { readable: true }, (error, events) => {
          expect(error).toBe(0);
          expect(events.readable).toBe(true);
          calls += 1;
          if (calls < 2) return;
          handle.close();
          handle.close();
          resolve();
        });
        setTimeout(() => write(writer, Buffer.from("x"), 1), 20);
      });
      await new Promise((resolve) => setTimeout(resolve, 30));
      expect(calls).toBe(2);
      close(reader);
      close(writer);
    });

    it("refuses unknown libraries and functions", () => {
      expect(() => loadFfi().open("libno-such-library.so.9")).toThrow(/libno-such-library\.so\.9/);
      expect(() => libc().function("no_such_function", "i32", [])).toThrow(LasthopError);
    });
  });

  describe("object", () => {
    it("knows the library's version and the CPUs", () => {
      const version = libbpfVersion();
      expect(version.major).toBeGreaterThanOrEqual(1);
      expect(version.text).toContain(`${version.major}.${version.minor}`);
      expect(possibleCpus()).toBeGreaterThanOrEqual(1);
    });

    it("lists maps and programs and lends them", () => {
      expect(object.mapNames().sort()).toEqual(["events", "pairs", "per_cpu", "recent"]);
      expect(object.programNames().sort()).toEqual(["bump", "emit", "even_keys", "next", "other", "pass"]);
      expect(object.map("pairs")).toBe(object.map("pairs"));
      expect(() => object.map("no_such_map")).toThrow(/has no map no_such_map; it has .*pairs/);
    });

    it("applies sizes and disabled programs, and takes an existing map for its own", () => {
      const first = BpfObject.open(fixtures.fixture, {
        mapMaxEntries: { pairs: 100 },
        disabledPrograms: ["bump", "emit"],
      });
      first.load();
      expect(first.map("pairs").info().maxEntries).toBe(100);
      expect(() => first.program("bump")).toThrow(/bump .* was disabled/);
      const second = BpfObject.open(fixtures.fixture);
      second.reuseMap("pairs", first.map("pairs"));
      expect(() => second.reuseMap("none", first.map("pairs"))).toThrow(/has no map none/);
      second.load();
      expect(second.map("pairs").info()).toMatchObject({ id: first.map("pairs").info().id, maxEntries: 100 });
      first.close();
      // It has a descriptor of its own.
      second.map("pairs").update(key(1), value(1));
      second.close();
      expect(() => BpfObject.open(fixtures.fixture, { mapMaxEntries: { none: 1 } })).toThrow(
        /has no map none/,
      );
    });

    it("takes what it lent back when it closes", () => {
      const own = BpfObject.open(fixtures.fixture);
      expect(() => own.map("pairs")).toThrow(/not loaded yet/);
      own.load();
      const map = own.map("pairs");
      const program = own.program("pass");
      own.close();
      own.close();
      expect(() => map.lookup(key(1))).toThrow(/used after close/);
      expect(() => program.info()).toThrow(/used after close/);
      expect(() => own.map("pairs")).toThrow(/used after close/);
    });

    it("keeps the whole verifier log of a refused program", () => {
      const refused = BpfObject.open(fixtures.refused);
      const error = thrown(() => refused.load());
      refused.close();
      expect(error).toMatchObject({ code: "E_LOAD", errnoName: "EACCES" });
      expect(error.message).toMatch(/refused the program reads_too_far of .*outside of the packet/);
      expect(error.details).toMatch(/^libbpf: prog 'reads_too_far': BPF program load failed/);
      expect(error.details).toMatch(/^0: .*R1=ctx/m);
      expect(error.details).toMatch(/processed \d+ insns/);
      expect(error.details!.length).toBeGreaterThan(50_000);
    });

    it("says why a file cannot be opened, in libbpf's words", () => {
      const missing = thrown(() => BpfObject.open(`${fixtures.fixture}.none`));
      expect(missing).toMatchObject({ code: "E_BPF", errnoName: "ENOENT" });
      expect(missing.details).toContain("failed to open");
      const wrong = thrown(() => BpfObject.open("/etc/passwd"));
      expect(wrong).toMatchObject({ code: "E_BPF", errnoName: "LIBBPF_ERRNO__FORMAT" });
      expect(wrong.details).toContain("ELF");
    });

    it("names the capability that is missing", () => {
      process.seteuid!(65_534);
      try {
        const error = thrown(() => BpfMap.create({ ...HASH, name: "unprivileged" }));
        expect(error).toMatchObject({ code: "E_NOT_ROOT", errnoName: "EPERM" });
        expect(error.hint).toContain("CAP_BPF");
      } finally {
        process.seteuid!(0);
      }
    });
  });

  describe("map", () => {
    it("updates, looks up, walks and deletes", () => {
      using map = BpfMap.create(HASH);
      expect(map.lookup(key(1))).toBeUndefined();
      map.update(key(1), value(10));
      map.update(key(2), value(20), BPF_NOEXIST);
      expect(map.lookup(key(1))).toEqual(value(10));
      const into = Buffer.alloc(8);
      expect(map.lookupInto(key(2), into)).toBe(true);
      expect(into).toEqual(value(20));
      expect(map.lookupInto(key(3), into)).toBe(false);
      const first = map.nextKey(null)!;
      const second = map.nextKey(first)!;
      expect(new Set([first.readBigUInt64LE(), second.readBigUInt64LE()])).toEqual(new Set([1n, 2n]));
      expect(map.nextKey(second)).toBeUndefined();
      expect(map.delete(key(1))).toBe(true);
      expect(map.delete(key(1))).toBe(false);
    });

    it("reports errors by name and by number", () => {
      using map = BpfMap.create({ ...HASH, maxEntries: 1 });
      map.update(key(1), value(1));
      const exists = thrown(() => map.update(key(1), value(1), BPF_NOEXIST));
      expect(isErrno(exists, "EEXIST")).toBe(true);
      expect(exists.message).toBe(
        "cannot write key 0100000000000000 in the map hash: file already exists (EEXIST)",
      );
      expect(thrown(() => map.update(key(2), value(1), BPF_EXIST)).errno).toBe(ERRNO.ENOENT);
      expect(thrown(() => map.update(key(2), value(1))).errnoName).toBe("E2BIG");
      expect(thrown(() => BpfMap.create({ ...HASH, keySize: 0 })).message).toMatch(
        /cannot create the map hash .*\(EINVAL\)/,
      );
    });

    it("refuses buffers of a wrong size before the kernel sees them", () => {
      using map = BpfMap.create(HASH);
      expect(() => map.lookup(Buffer.alloc(4))).toThrow(/8 bytes, not 4/);
      expect(() => map.update(key(1), Buffer.alloc(9))).toThrow(/8 bytes, not 9/);
      expect(() => map.deleteBatch(Buffer.alloc(15), 2)).toThrow(/need 16 bytes, not 15/);
    });

    it("tells its info", () => {
      using map = BpfMap.create({ ...HASH, flags: 1 });
      expect(map.info()).toEqual({ ...HASH, flags: 1, id: expect.any(Number) });
      using again = BpfMap.fromId(map.info().id);
      expect(again.info()).toEqual(map.info());
    });

    it("reads one value a CPU", () => {
      const map = object.map("per_cpu");
      expect(map.valueBytes).toBe(8 * possibleCpus());
      object.program("bump").testRun({ data: Buffer.alloc(64), repeat: 5 });
      const counts = map.lookup(Buffer.alloc(4))!;
      let sum = 0;
      for (let cpu = 0; cpu < possibleCpus(); cpu++) sum += counts.readUInt32LE(cpu * 8);
      expect(sum).toBe(5);
    });

    it("is a queue", () => {
      using queue = BpfMap.create({
        ...HASH,
        type: MAP_TYPE.QUEUE,
        name: "queue",
        keySize: 0,
        maxEntries: 2,
      });
      queue.push(value(1));
      queue.push(value(2));
      expect(thrown(() => queue.push(value(3))).errnoName).toBe("E2BIG");
      expect(queue.pop()).toEqual(value(1));
      expect(queue.pop()).toEqual(value(2));
      expect(queue.pop()).toBeUndefined();
    });

    it("writes, walks and deletes in batches, whatever the chunk", () => {
      const count = 3000;
      using map = BpfMap.create({ ...HASH, maxEntries: count });
      const keys = Buffer.alloc(8 * count);
      const values = Buffer.alloc(8 * count);
      for (let i = 0; i < count; i++) {
        keys.writeBigUInt64LE(BigInt(i), 8 * i);
        values.writeBigUInt64LE(BigInt(2 * i), 8 * i);
      }
      expect(map.updateBatch(keys, values, count)).toBe(count);
      // One entry a time is less than a bucket holds: it must grow.
      for (const chunk of [1, 64, 1000, 100_000]) {
        const seen = new Set<bigint>();
        for (const batch of map.batches(chunk)) {
          for (let i = 0; i < batch.count; i++) {
            const k = batch.keys.readBigUInt64LE(8 * i);
            expect(batch.values.readBigUInt64LE(8 * i)).toBe(2n * k);
            expect(seen.has(k)).toBe(false);
            seen.add(k);
          }
        }
        expect(seen.size).toBe(count);
      }
      for (let i = 0; i < 10; i++) map.delete(key(i * 7));
      expect(map.deleteBatch(keys, count)).toBe(count - 10);
      expect([...map.batches()]).toEqual([]);
    });

    it("takes an entry: reads and removes it at once", () => {
      for (const type of [MAP_TYPE.HASH, MAP_TYPE.LRU_HASH]) {
        using map = BpfMap.create({ type, name: "t", keySize: 8, valueSize: 8, maxEntries: 8 });
        map.update(key(1), value(10));
        const read = Buffer.alloc(8);
        expect(map.takeInto(key(1), read)).toBe(true);
        expect(read).toEqual(value(10));
        expect(map.takeInto(key(1), read)).toBe(false);
        expect(map.lookup(key(1))).toBeUndefined();
        expect(() => map.takeInto(Buffer.alloc(4), read)).toThrow(/a key of the map .* has 8 bytes, not 4/);
      }
      using array = BpfMap.create({
        type: MAP_TYPE.ARRAY,
        name: "a",
        keySize: 4,
        valueSize: 8,
        maxEntries: 1,
      });
      expect(() => array.takeInto(Buffer.alloc(4), Buffer.alloc(8))).toThrow(
        /cannot take key 00000000 from the map a/,
      );
    });

    it("inserts what is not there yet", () => {
      using map = BpfMap.create({ type: MAP_TYPE.HASH, name: "t", keySize: 8, valueSize: 8, maxEntries: 8 });
      map.update(key(1), value(10));
      const keys = Buffer.concat([key(0), key(1), key(2)]);
      const values = Buffer.concat([value(20), value(21), value(22)]);
      expect(map.insertAll(keys, values, 3)).toBe(2);
      expect(map.lookup(key(1))).toEqual(value(10));
      expect(map.lookup(key(2))).toEqual(value(22));
      expect(map.insertAll(keys, values, 0)).toBe(0);
      expect(() => map.insertAll(keys, values, 4)).toThrow(/4 keys/);
      const many = Buffer.concat(Array.from({ length: 9 }, (_, index) => key(100 + index)));
      expect(() => map.insertAll(many, Buffer.alloc(72), 9)).toThrow(/E2BIG/);
    });

    it("walks arrays in batches", () => {
      using map = BpfMap.create({
        type: MAP_TYPE.ARRAY,
        name: "array",
        keySize: 4,
        valueSize: 4,
        maxEntries: 10,
      });
      const sizes: number[] = [];
      for (const batch of map.batches(4)) sizes.push(batch.count);
      expect(sizes).toEqual([4, 4, 2]);
      const cell = (number: number) => Buffer.from(Uint32Array.of(number).buffer);
      for (let index = 0; index < 10; index++) map.update(cell(index), cell(100 + index));
      const from = (first: number) => {
        const found: number[] = [];
        for (const { count, values } of map.batches(4, first)) {
          for (let place = 0; place < count; place++) found.push(values.readUInt32LE(place * 4));
        }
        return found;
      };
      expect(from(0)).toEqual([100, 101, 102, 103, 104, 105, 106, 107, 108, 109]);
      expect(from(7)).toEqual([107, 108, 109]);
      expect(from(9)).toEqual([109]);
      expect(from(10)).toEqual([]);
    });

    it("pins and opens again", () => {
      const path = `${fixtures.pins}/map`;
      using map = BpfMap.create(HASH);
      map.update(key(1), value(1));
      map.pin(path);
      expect(thrown(() => map.pin(path))).toMatchObject({ code: "E_BPF", errnoName: "EEXIST" });
      using again = BpfMap.openPinned(path);
      expect(again.lookup(key(1))).toEqual(value(1));
      expect(() => BpfLink.openPinned(path)).toThrow(/is not a link/);
      expect(thrown(() => BpfMap.openPinned(`${path}-none`)).errnoName).toBe("ENOENT");
      expect(thrown(() => map.pin("/tmp/lasthop-no-bpffs"))).toMatchObject({ code: "E_BPFFS" });
      expect(thrown(() => map.pin(`${path}.1`)).hint).toContain("dot");
    });

    it("has one owner for a descriptor", () => {
      const before = openDescriptors();
      const map = BpfMap.create(HASH);
      expect(openDescriptors()).toBe(before + 1);
      map.close();
      map.close();
      expect(openDescriptors()).toBe(before);
      expect(map.closed).toBe(true);
      expect(() => map.lookup(key(1))).toThrow(/map hash was used after close/);
    });
  });

  describe("program", () => {
    it("runs on a packet", () => {
      const data = Buffer.alloc(64, 0x41);
      const result = object.program("bump").testRun({ data, repeat: 1 });
      expect(result.retval).toBe(2);
      expect(result.dataOut.length).toBe(64);
      expect(result.dataOut[0]).toBe(0x42);
      expect(data[0]).toBe(0x41);
      expect(thrown(() => object.program("bump").testRun({ data, dataOutSize: 10 })).errnoName).toBe(
        "ENOSPC",
      );
    });

    it("runs on a context", () => {
      const skb = Buffer.alloc(192);
      const result = object.program("next").testRun({ data: Buffer.alloc(64), ctx: skb, ctxOutSize: 192 });
      expect(result.retval | 0).toBe(-1);
      expect(result.ctxOut.length).toBe(192);
      expect(result.ctxOut.readUInt32LE(8)).toBe(0x1234);
    });

    it("writes the argument of a SYSCALL program back", () => {
      const args = Buffer.alloc(8);
      args.writeUInt32LE(2);
      expect(object.program("emit").testRun({ ctx: args }).retval).toBe(7);
      expect(args.readUInt32LE(4)).toBe(1);
      drain(object.map("events"));
    });

    it("tells its info", () => {
      const info = object.program("bump").info();
      expect(info).toMatchObject({ type: 6, name: "bump", tag: expect.stringMatching(/^[0-9a-f]{16}$/) });
      expect(info.mapIds).toEqual([object.map("per_cpu").info().id]);
      expect(info.jitedBytes).toBeGreaterThan(0);
      expect(info.xlatedBytes).toBeGreaterThan(0);
      expect(info.verifiedInsns).toBeGreaterThan(10);
      expect(info.loadTime).toBeGreaterThan(0n);
    });

    it("pins and opens again, by path and by id", () => {
      const path = `${fixtures.pins}/program`;
      object.program("pass").pin(path);
      using pinned = BpfProgram.openPinned(path);
      using byId = BpfProgram.fromId(pinned.info().id);
      expect(byId.name).toBe("pass");
      expect(thrown(() => BpfProgram.fromId(0x7fff_ffff)).errnoName).toBe("ENOENT");
    });

    it("iterates over a map", () => {
      const pairs = object.map("pairs");
      for (let i = 0; i < 1000; i++) pairs.update(key(i), value(i));
      using link = BpfLink.attachIter(object.program("even_keys"), pairs);
      expect(link.info()).toMatchObject({ type: "iter", ifindex: null, direction: null });
      using walk = link.iter();
      const chunk = Buffer.alloc(800);
      const keys = new Set<number>();
      for (let bytes = walk.read(chunk); bytes > 0; bytes = walk.read(chunk)) {
        for (let at = 0; at < bytes; at += 8) keys.add(Number(chunk.readBigUInt64LE(at)));
      }
      expect(keys.size).toBe(500);
      expect([...keys].every((k) => k % 2 === 0)).toBe(true);
    });
  });

  describe("links", () => {
    it("attaches, updates, pins and detaches XDP", () => {
      const ifindex = interfaceIndex(fixtures.veth[0]);
      const [bump, pass] = [object.program("bump"), object.program("pass")];
      expect(xdpQuery(ifindex)).toEqual({ programId: null, mode: null });
      using link = BpfLink.attachXdp(pass, ifindex, "native");
      expect(xdpQuery(ifindex)).toEqual({ programId: pass.info().id, mode: "native" });
      expect(link.info()).toMatchObject({ type: "xdp", programId: pass.info().id, ifindex });
      expect(thrown(() => BpfLink.attachXdp(bump, ifindex, "native")).errnoName).toBe("EBUSY");
      expect(thrown(() => BpfLink.attachXdp(bump, ifindex, "generic")).errnoName).toBe("EEXIST");
      link.update(bump);
      expect(link.info().programId).toBe(bump.info().id);
      const path = `${fixtures.pins}/xdp-link`;
      link.pin(path);
      using pinned = BpfLink.openPinned(path);
      expect(pinned.info()).toEqual(link.info());
      using byId = BpfLink.fromId(link.info().id);
      byId.detach();
      expect(xdpQuery(ifindex)).toEqual({ programId: null, mode: null });
      expect(link.info().ifindex).toBe(0);
    });

    it("attaches generic XDP, which goes with the last descriptor", () => {
      const ifindex = interfaceIndex(fixtures.veth[0]);
      const link = BpfLink.attachXdp(object.program("pass"), ifindex, "generic");
      expect(xdpQuery(ifindex).mode).toBe("generic");
      link.close();
      expect(xdpQuery(ifindex).mode).toBeNull();
    });

    it("attaches TCX programs in order", (context) => {
      context.skip(!hasTcx(), NEEDS_TCX);
      const ifindex = interfaceIndex(fixtures.veth[0]);
      const [next, other] = [object.program("next"), object.program("other")];
      expect(tcxQuery(ifindex, "ingress")).toEqual([]);
      using first = BpfLink.attachTcx(next, ifindex, "ingress");
      using second = BpfLink.attachTcx(other, ifindex, "ingress");
      expect(tcxQuery(ifindex, "ingress")).toEqual([next.info().id, other.info().id]);
      expect(first.info()).toMatchObject({ type: "tcx", ifindex, attachType: 46, direction: "ingress" });
      using egress = BpfLink.attachTcx(next, ifindex, "egress");
      expect(egress.info()).toMatchObject({ attachType: 47, direction: "egress" });
      expect(thrown(() => first.update(other)).errnoName).toBe("EEXIST");
      second.close();
      first.update(other);
      expect(tcxQuery(ifindex, "ingress")).toEqual([other.info().id]);
      const path = `${fixtures.pins}/tcx-link`;
      first.pin(path);
      using pinned = BpfLink.openPinned(path);
      pinned.detach();
      expect(tcxQuery(ifindex, "ingress")).toEqual([]);
    });

    it("refuses interfaces that are not there", () => {
      const gone = 0x7ff_ffff;
      expect(thrown(() => BpfLink.attachXdp(object.program("pass"), gone, "native")).errnoName).toBe(
        "EINVAL",
      );
      expect(xdpQuery(gone)).toEqual({ programId: null, mode: null });
    });

    it("refuses TCX on interfaces that are not there", (context) => {
      context.skip(!hasTcx(), NEEDS_TCX);
      const gone = 0x7ff_ffff;
      expect(thrown(() => BpfLink.attachTcx(object.program("next"), gone, "ingress")).errnoName).toBe(
        "ENODEV",
      );
      expect(thrown(() => tcxQuery(gone, "ingress")).errnoName).toBe("ENODEV");
    });

    it("attaches by clsact", () => {
      const ifindex = interfaceIndex(fixtures.veth[1]);
      const [next, other] = [object.program("next"), object.program("other")];
      const filter = { ifindex, direction: "ingress", handle: 0x1a57, priority: 50 } as const;
      expect(clsact.query(filter)).toBeUndefined();
      expect(clsact.detach(filter)).toBe(false);
      const error = thrown(() => clsact.attach({ ...filter, program: next }));
      expect(error.message).toContain("by clsact to the ingress");
      expect(error.details).toMatch(/Kernel error message/);
      expect(clsact.create(ifindex)).toBe(true);
      expect(clsact.create(ifindex)).toBe(false);
      expect(clsact.query(filter)).toBeUndefined();
      clsact.attach({ ...filter, program: next });
      expect(clsact.query(filter)).toEqual({ programId: next.info().id });
      expect(thrown(() => clsact.attach({ ...filter, program: other })).errnoName).toBe("EEXIST");
      clsact.attach({ ...filter, program: other, replace: true });
      expect(clsact.query(filter)).toEqual({ programId: other.info().id });
      expect(clsact.query({ ...filter, direction: "egress" })).toBeUndefined();
      expect(clsact.detach(filter)).toBe(true);
      expect(clsact.detach(filter)).toBe(false);
      expect(clsact.destroy(ifindex)).toBe(true);
      expect(clsact.destroy(ifindex)).toBe(false);
    });

    const onVanishing = (attach: (ifindex: number) => BpfLink, update: string): void => {
      const name = `lhf${process.pid}c`;
      run("ip", "link", "add", name, "type", "veth", "peer", "name", `lhf${process.pid}d`);
      using link = attach(interfaceIndex(name));
      run("ip", "link", "del", name);
      expect(link.info().ifindex).toBe(0);
      expect(thrown(() => link.update(object.program(update))).errnoName).toBe("ENOLINK");
    };

    it("sees that an interface with XDP is gone", () => {
      onVanishing((ifindex) => BpfLink.attachXdp(object.program("pass"), ifindex, "native"), "bump");
    });

    it("sees that an interface with TCX is gone", (context) => {
      context.skip(!hasTcx(), NEEDS_TCX);
      onVanishing((ifindex) => BpfLink.attachTcx(object.program("next"), ifindex, "ingress"), "other");
    });
  });

  describe("ring buffer", () => {
    const emit = (count: number): number => {
      const args = Buffer.alloc(8);
      args.writeUInt32LE(count);
      object.program("emit").testRun({ ctx: args });
      return args.readUInt32LE(4);
    };

    it("hands over what was submitted, in order, also around its end", () => {
      using ring = new RingBuffer(object.map("events"));
      expect(ring.consume(() => expect.unreachable())).toBe(0);
      // 32 bytes a record in a ring of 4096: this goes around several times.
      for (let round = 0; round < 20; round++) {
        expect(emit(40)).toBe(20);
        const numbers: bigint[] = [];
        expect(ring.consume((record) => void numbers.push(record.readBigUInt64LE()))).toBe(20);
        expect(numbers).toEqual(Array.from({ length: 20 }, (_, i) => BigInt(2 * i)));
      }
    });

    it("frees the place of a record whose handler threw", () => {
      using ring = new RingBuffer(object.map("events"));
      emit(3);
      expect(() =>
        ring.consume(() => {
          throw new Error("handler");
        }),
      ).toThrow("handler");
      expect(ring.consume(() => {})).toBe(1);
    });

    it("gives records that stay as they are", () => {
      using ring = new RingBuffer(object.map("events"));
      const records: Buffer[] = [];
      for (let round = 0; round < 10; round++) {
        emit(40);
        ring.consume((record) => void records.push(record));
      }
      expect(
        records.filter((record) => record.length === 24 && record.readBigUInt64LE(8) === 2n ** 64n - 1n),
      ).toHaveLength(200);
    });

    it("waits for records, for the time to pass, and for its end", async () => {
      const ring = new RingBuffer(object.map("events"));
      expect(await ring.poll(20)).toBe(false);
      const woken = ring.poll(10_000);
      emit(1);
      expect(await woken).toBe(true);
      expect(ring.consume(() => {})).toBe(1);
      const ended = ring.poll(10_000);
      ring.close();
      ring.close();
      expect(await ended).toBe(false);
      expect(() => ring.consume(() => {})).toThrow(/used after close/);
      expect(() => new RingBuffer(object.map("pairs"))).toThrow(/not a ring buffer/);
    });
  });

  describe("resources", () => {
    it(`does not grow over ${options.calls} calls`, { timeout: 120_000 }, () => {
      const pairs = object.map("pairs");
      const into = Buffer.alloc(8);
      const round = (calls: number): void => {
        for (let i = 0; i < calls / 4; i++) {
          const k = key(i % 1000);
          pairs.update(k, value(i));
          pairs.lookup(k);
          pairs.lookupInto(k, into);
          pairs.lookupInto(key(5000), into);
        }
      };
      round(options.calls / 4);
      collectGarbage();
      const before = process.memoryUsage().rss;
      round(options.calls);
      collectGarbage();
      const grownBytes = process.memoryUsage().rss - before;
      // 16 bytes lost a call would be 16 MB after a million.
      expect(grownBytes).toBeLessThan(12 * 1024 * 1024);
    });

    it("leaves no descriptor and no mapping behind", () => {
      const cycle = (): void => {
        const own = BpfObject.open(fixtures.fixture);
        own.load();
        using ring = new RingBuffer(own.map("events"));
        using link = BpfLink.attachIter(own.program("even_keys"), own.map("pairs"));
        link.iter().close();
        ring.close();
        own.close();
        expect(() => BpfObject.open("/etc/passwd")).toThrow(BpfError);
      };
      cycle();
      const before = openDescriptors();
      for (let i = 0; i < 5; i++) cycle();
      expect(openDescriptors()).toBe(before);
    });
  });
}

const HASH = { type: MAP_TYPE.HASH, name: "hash", keySize: 8, valueSize: 8, maxEntries: 64, flags: 0 };

function key(n: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(n));
  return bytes;
}

const value = key;

function collectGarbage(): void {
  setFlagsFromString("--expose-gc");
  (runInNewContext("gc") as () => void)();
}

function drain(events: BpfMap): void {
  using ring = new RingBuffer(events);
  ring.consume(() => {});
}

function openDescriptors(): number {
  return readdirSync("/proc/self/fd").length;
}

/** The BpfError that it throws. */
function thrown(action: () => unknown): BpfError {
  try {
    action();
  } catch (error) {
    expect(error).toBeInstanceOf(BpfError);
    return error as BpfError;
  }
  return expect.unreachable("nothing was thrown");
}
