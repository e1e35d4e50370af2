// SPDX-License-Identifier: Apache-2.0
// One expiry pass with the real programs: what goes, what stays, what is counted, and which last hops are
// given back.

import { setTimeout as sleep, setImmediate as turn } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import {
  currentTick,
  encode,
  joinLastHop,
  type StructInput,
  secondsToTicks,
  sizeOf,
  TICK_SECONDS,
} from "../../src/abi/codec.ts";
import {
  AGE_BUCKETS,
  FLOW_FLAG,
  FLOW_STATE,
  LAST_HOP_KIND,
  ORIGIN,
  TIMEOUT,
} from "../../src/abi/layout.gen.ts";
import { releaseLastHops } from "../../src/controller/lastHopRelease.ts";
import { type SweepOptions, sweepInstance } from "../../src/controller/sweep.ts";
import { jiffiesClock } from "../../src/kernel/clock.ts";
import { objectPath } from "../../src/kernel/instance.ts";
import { BpfObject } from "../../src/libbpf/index.ts";
import {
  encodeFlowKey,
  type FlowKey,
  NOBODY,
  ownerId,
  ownerOf,
  ownership,
  Tables,
  type Tier,
} from "../../src/tables/index.ts";

const ENTRIES = 16_384;
const LAST_HOPS = 64;
const SIZES = {
  flows4: ENTRIES,
  flows6: ENTRIES,
  embryos4: 1024,
  embryos6: 1024,
  fragments: 64,
  last_hops: LAST_HOPS,
  last_hop_alias: LAST_HOPS,
  last_hop_free: LAST_HOPS,
  last_hop_index: LAST_HOPS,
  last_hop_stats: LAST_HOPS,
};
const TIMEOUT_SECONDS: Record<keyof typeof TIMEOUT, number> = {
  SYN: 30,
  TCP: 7200,
  CLOSED: 10,
  UDP: 60,
  UDP_PROVISIONAL: 5,
  ICMP: 11,
  SCTP: 3600,
};
const UPLINK = 11;
const SLOT = 1;
const GENERATION = 3;

let object: BpfObject;
let tables: Tables;

beforeEach(() => {
  object = BpfObject.open(objectPath(), { mapMaxEntries: SIZES });
  object.load();
  tables = new Tables(object);
  const timeouts: number[] = [];
  for (const [name, index] of Object.entries(TIMEOUT)) {
    timeouts[index] = secondsToTicks(TIMEOUT_SECONDS[name as keyof typeof TIMEOUT]);
  }
  tables.control.set({ timeouts });
  tables.interfaces.set(UPLINK, { name: "uplink", slot: SLOT });
  tables.budgets.set(SLOT, { last_hops_max: 10, vms: 2, vms_max: 10 });
});

afterEach(() => object.close());

function ago(seconds: number): number {
  return (currentTick() - secondsToTicks(seconds)) >>> 0;
}

let port = 1;

function put(family: 4 | 6, proto: number, tier: Tier, value: StructInput<"flow">): FlowKey {
  const size = family === 4 ? 4 : 16;
  const ports = { remotePort: port++, localPort: 443 };
  const key = {
    family,
    local: Buffer.alloc(size, 1),
    remote: Buffer.alloc(size, 2),
    ...ports,
    zone: 0,
    proto,
  };
  const bytes = tier === "established" ? encode("flow", value) : encode("embryo", { flow: value });
  tables.flows.table(family, tier).map.update(encodeFlowKey(key), bytes);
  return key;
}

/** As the hot path makes one: with a key, and counted. */
function putLastHop(index: number, seenSecondsAgo: number, fields: StructInput<"last_hop"> = {}): void {
  const record = {
    kind: LAST_HOP_KIND.ETHERNET,
    generation: GENERATION,
    ifindex: UPLINK,
    slot: SLOT,
    mac: mac(index),
  };
  tables.lastHops.records.set(index, { ...record, created: ago(seenSecondsAgo), ...fields });
  tables.lastHops.setAlias(index, GENERATION, index);
  tables.lastHops.keys.set({ ifindex: UPLINK, mac: mac(index) }, index);
  touch(index, ago(seenSecondsAgo));
  const last_hops = Math.max(tables.allocations.get(0)!.last_hops, index + 1);
  tables.allocations.set(0, { last_hops });
}

function mac(index: number): Buffer {
  return Buffer.from([2, 0, 0, 0, 0, index]);
}

function touch(index: number, tick: number): void {
  const map = object.map("last_hop_stats");
  const values = Buffer.alloc(map.valueBytes);
  encode("last_hop_stats", { request_packets: 1, last_seen: tick }, values);
  map.update(u32(index), values);
}

function u32(value: number): Buffer {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32LE(value);
  return buffer;
}

function freeIndices(): number[] {
  const free: number[] = [];
  for (let value = object.map("last_hop_free").pop(); value; value = object.map("last_hop_free").pop()) {
    free.push(value.readUInt32LE());
  }
  return free.sort((a, b) => a - b);
}

const TCP = 6;
const UDP = 17;
const SCTP = 132;

// One by one, and by the walk: both have to come to the same.
describe.each([{ few: 64 }, { few: 0 }])("expiry where $few entries are few", ({ few }) => {
  const pass = (options: SweepOptions = {}) => sweepInstance(object, { few, ...options });
  const S = FLOW_STATE;
  const cases: { state: number; protos: number[]; seconds: number }[] = [
    { state: S.NEW, protos: [TCP, SCTP], seconds: TIMEOUT_SECONDS.SYN },
    { state: S.SYN, protos: [TCP, SCTP], seconds: TIMEOUT_SECONDS.SYN },
    { state: S.SYN_ACK, protos: [TCP, SCTP], seconds: TIMEOUT_SECONDS.SYN },
    { state: S.ESTABLISHED, protos: [TCP], seconds: TIMEOUT_SECONDS.TCP },
    { state: S.HALF_CLOSED, protos: [TCP], seconds: TIMEOUT_SECONDS.TCP },
    { state: S.ESTABLISHED, protos: [SCTP], seconds: TIMEOUT_SECONDS.SCTP },
    { state: S.CLOSED, protos: [TCP, SCTP], seconds: TIMEOUT_SECONDS.CLOSED },
    { state: S.NEW, protos: [UDP], seconds: TIMEOUT_SECONDS.UDP },
    { state: S.ESTABLISHED, protos: [UDP], seconds: TIMEOUT_SECONDS.UDP },
    { state: S.PROVISIONAL, protos: [UDP], seconds: TIMEOUT_SECONDS.UDP_PROVISIONAL },
    { state: S.ESTABLISHED, protos: [1, 58], seconds: TIMEOUT_SECONDS.ICMP },
  ];

  it("goes by protocol and state, in both families and tiers", async () => {
    const kept: FlowKey[] = [];
    const gone: FlowKey[] = [];
    for (const { state, protos, seconds } of cases) {
      for (const proto of protos) {
        for (const family of [4, 6] as const) {
          for (const tier of ["established", "embryonic"] as const) {
            kept.push(put(family, proto, tier, { state, last_seen: ago(seconds - 2) }));
            gone.push(put(family, proto, tier, { state, last_seen: ago(seconds + 1) }));
          }
        }
      }
    }
    const result = await pass();
    expect(result.tables.reduce((sum, { report }) => sum + report.expired, 0)).toBe(gone.length);
    expect(result.tables.reduce((sum, { report }) => sum + report.entries, 0)).toBe(
      gone.length + kept.length,
    );
    for (const key of kept) expect(tables.flows.lookup(key)).toBeDefined();
    for (const key of gone) expect(tables.flows.lookup(key)).toBeUndefined();
  });

  it("goes by the given time alone if there is one", async () => {
    const fresh = put(4, TCP, "established", { state: FLOW_STATE.CLOSED, last_seen: ago(25) });
    const idle = put(4, TCP, "established", { state: FLOW_STATE.ESTABLISHED, last_seen: ago(32) });
    await pass({ idleSeconds: 30 });
    expect(tables.flows.lookup(fresh)).toBeDefined();
    expect(tables.flows.lookup(idle)).toBeUndefined();
    // Not even a tick ago, so it takes two passes at most.
    await pass({ idleSeconds: 0 });
    expect(tables.flows.lookup(fresh)).toBeUndefined();
  });

  it("counts by state, age and origin", async () => {
    for (const seconds of [0.2, 40, 100])
      put(4, TCP, "established", { state: FLOW_STATE.ESTABLISHED, last_seen: ago(seconds) });
    put(4, TCP, "established", {
      state: FLOW_STATE.SYN,
      flags: FLOW_FLAG.LOCAL_ORIGIN,
      last_seen: ago(100_000),
    });
    const { tables: reports } = await pass();
    const { name, report } = reports[0]!;
    expect(name).toBe("flows4");
    expect(report).toMatchObject({ entries: 4, expired: 1, local_origin: 1 });
    expect(report.states[FLOW_STATE.ESTABLISHED]).toBe(3);
    expect(report.states[FLOW_STATE.SYN]).toBe(1);
    expect(report.ages.reduce((sum, count) => sum + count)).toBe(4);
    expect(report.ages[6]).toBe(1); // idle for 32 up to 64 seconds
    expect(report.ages[7]).toBe(1); // 64 up to 128
    expect(report.ages[AGE_BUCKETS - 1]).toBe(1);
    // Another pass counts anew.
    expect((await pass()).tables[0]!.report).toMatchObject({ entries: 3, expired: 0 });
  });

  it("goes over a large table in pieces, and sees each entry once", async () => {
    const count = ENTRIES / 2;
    const keys = Buffer.alloc(count * sizeOf("flow6_key"));
    const values = Buffer.alloc(count * sizeOf("flow"));
    for (let index = 0; index < count; index++) {
      const last_seen = index % 4 === 0 ? ago(10_000) : currentTick();
      encode("flow6_key", { local: u32(index), proto: TCP }, keys, index * sizeOf("flow6_key"));
      encode("flow", { state: FLOW_STATE.ESTABLISHED, last_seen }, values, index * sizeOf("flow"));
    }
    object.map("flows6").updateBatch(keys, values, count);
    const result = await pass({ pieceNs: 20_000 });
    const { report } = result.tables[1]!;
    expect(result.calls).toBeGreaterThan(20);
    // A deletion can hide the next entry of its bucket from this pass, if a piece ends there; none comes twice.
    expect(report.entries).toBeLessThanOrEqual(count);
    expect(report.entries).toBeGreaterThan(count * 0.99);
    const again = (await pass()).tables[1]!.report;
    expect(report.expired + again.expired).toBe(count / 4);
    expect((await pass()).tables[1]!.report.entries).toBe((count / 4) * 3);
  });
});

describe("what is published", () => {
  it("is what the last pass that ended found; one that is under way shows nothing", async () => {
    put(4, TCP, "established", { state: FLOW_STATE.ESTABLISHED, last_seen: ago(1) });
    put(6, UDP, "embryonic", { state: FLOW_STATE.NEW, last_seen: ago(100) });
    expect(tables.sweep.ended(0).finished_ns).toBe(0);
    const before = Number(process.hrtime.bigint());
    const result = await sweepInstance(object);
    for (const [table, { report }] of result.tables.entries()) {
      const ended = tables.sweep.ended(table);
      expect(ended).toEqual(report);
      expect(ended.started_ns).toBeGreaterThanOrEqual(before);
      expect(ended.finished_ns).toBeGreaterThan(ended.started_ns);
      expect(ended.busy_ns).toBeGreaterThan(0);
      expect(ended.busy_ns).toBeLessThan(ended.finished_ns - ended.started_ns);
    }
    expect(tables.sweep.ended(0)).toMatchObject({ entries: 1, expired: 0 });
    expect(tables.sweep.ended(3)).toMatchObject({ entries: 1, expired: 1 });
    expect(result.tables.map(({ name, maxEntries }) => [name, maxEntries])).toEqual([
      ["flows4", ENTRIES],
      ["flows6", ENTRIES],
      ["embryos4", 1024],
      ["embryos6", 1024],
    ]);
  });

  it("counts by zone, numbers given as interfaces come and go", async () => {
    const inZone = (zone: number, family: 4 | 6) => {
      const key = { ...put(family, TCP, "established", {}), zone };
      const value = encode("flow", { state: FLOW_STATE.ESTABLISHED, last_seen: ago(1) });
      tables.flows.table(family, "established").map.update(encodeFlowKey(key), value);
      return key;
    };
    const counts = async () => {
      const { zones } = await sweepInstance(object);
      return zones
        .map(({ zone, table, states }) => ({ zone, table, flows: states[FLOW_STATE.ESTABLISHED]! }))
        .filter(({ flows }) => flows > 0);
    };
    tables.interfaces.set(12, { name: "tap7", slot: 2, zone: 700 });
    tables.interfaces.set(13, { name: "bridge", slot: 0, zone: 800 }); // not attached
    const seven = [inZone(700, 4), inZone(700, 6), inZone(700, 6)];
    inZone(800, 4);
    expect(await counts()).toEqual([
      { zone: 700, table: "flows4", flows: 1 },
      { zone: 700, table: "flows6", flows: 2 },
      { zone: null, table: "flows4", flows: 1 },
    ]);
    expect(new Map(tables.zones.entries())).toEqual(
      new Map([
        [0, 1],
        [700, 2],
      ]),
    );
    expect(tables.sweep.zoneStates(2, 1, "ended")[FLOW_STATE.ESTABLISHED]).toBe(2);
    // The number stays while there are flows, and is another zone's afterwards.
    tables.interfaces.delete(12);
    await counts();
    expect(tables.zones.get(700)).toBe(2);
    for (const key of seven) tables.flows.table(key.family, "established").map.delete(encodeFlowKey(key));
    await counts();
    tables.interfaces.set(14, { name: "tap9", slot: 3, zone: 900 });
    expect(await counts()).toEqual([{ zone: null, table: "flows4", flows: 1 }]);
    expect(new Map(tables.zones.entries())).toEqual(
      new Map([
        [0, 1],
        [900, 2],
      ]),
    );
  });
});

describe("a pass", () => {
  /** Flows of both families, of which every fourth is idle. */
  function fill(count: number): void {
    for (const [name, key] of [
      ["flows4", "flow4_key"],
      ["flows6", "flow6_key"],
    ] as const) {
      const keys = Buffer.alloc(count * sizeOf(key));
      const values = Buffer.alloc(count * sizeOf("flow"));
      for (let index = 0; index < count; index++) {
        const last_seen = index % 4 === 0 ? ago(10_000) : currentTick();
        const fields = { remote_port: index & 0xffff, zone: index >> 16, proto: TCP };
        encode(key, fields, keys, index * sizeOf(key));
        encode("flow", { state: FLOW_STATE.ESTABLISHED, last_seen }, values, index * sizeOf("flow"));
      }
      object.map(name).updateBatch(keys, values, count);
    }
  }

  /** In which order the tables are looked at, a letter a piece. */
  async function order(first: number): Promise<string> {
    let pieces = "";
    const programs = {
      map: (name: string) => object.map(name),
      program(name: string) {
        const letter = { sweep_flows4: "4", sweep_flows6: "6" }[name];
        if (letter) pieces += letter;
        return object.program(name);
      },
    };
    await sweepInstance(programs, { first });
    return pieces;
  }

  it("goes over the tables in turns, so that no family waits for another", async () => {
    fill(ENTRIES / 2);
    expect(await order(0)).toBe("46");
    expect(await order(1)).toBe("64");
    const entered: number[][] = [];
    const controller = new AbortController();
    // Interrupted after some pieces, both families have been looked at.
    const slow = sweepInstance(object, {
      pieceNs: 10_000,
      cpuPercent: () => {
        entered.push([0, 1].map((table) => tables.sweep.report(table).entries));
        if (entered.length === 12) controller.abort();
        return 100;
      },
      signal: controller.signal,
    });
    await expect(slow).rejects.toMatchObject({ name: "AbortError" });
    const [flows4, flows6] = entered.at(-1)!;
    expect(Math.min(flows4!, flows6!)).toBeGreaterThan(0);
    expect(Math.max(flows4!, flows6!)).toBeLessThan(ENTRIES / 2);
  });

  it("that is interrupted anywhere publishes nothing, and the next one starts clean", async () => {
    const count = ENTRIES / 2;
    putLastHop(0, 10);
    fill(count);
    const shown = await sweepInstance(object, { countOnly: true });
    const refs = tables.lastHops.refs.get(tables.sweep.endedRefs());
    for (const after of [1, 2, 5, 9, 20]) {
      let rests = 0;
      const controller = new AbortController();
      const pass = sweepInstance(object, {
        countOnly: true,
        pieceNs: 20_000,
        cpuPercent: () => {
          if (++rests === after) controller.abort();
          return 100;
        },
        signal: controller.signal,
      });
      await expect(pass).rejects.toMatchObject({ name: "AbortError" });
      for (const [table, { report }] of shown.tables.entries()) {
        expect(tables.sweep.ended(table)).toEqual(report);
      }
      expect(tables.lastHops.refs.get(tables.sweep.endedRefs())).toBe(refs);
    }
    const clean = await sweepInstance(object, { countOnly: true, pieceNs: 20_000 });
    expect(clean.tables.map(({ report }) => report.entries)).toEqual([count, count, 0, 0]);
    expect(
      clean.zones.filter(({ zone }) => zone === 0).map(({ states }) => states[FLOW_STATE.ESTABLISHED]),
    ).toEqual([count, count, 0, 0]);
    expect(tables.lastHops.refs.get(tables.sweep.endedRefs())).toBe(refs);
    expect(refs).toBe(2 * count);
  });

  it("that counts only expires nothing, however old", async () => {
    for (const seconds of [100_000, 5_000_000]) {
      for (const family of [4, 6] as const) {
        put(family, TCP, "established", { state: FLOW_STATE.CLOSED, last_seen: ago(seconds) });
        put(family, UDP, "embryonic", { state: FLOW_STATE.PROVISIONAL, last_seen: ago(seconds) });
      }
    }
    for (const few of [0, 64]) {
      const counted = await sweepInstance(object, { countOnly: true, few });
      expect(counted.tables.map(({ report }) => [report.entries, report.expired])).toEqual(
        Array(4).fill([2, 0]),
      );
    }
    const { tables: swept } = await sweepInstance(object);
    expect(swept.map(({ report }) => report.expired)).toEqual([2, 2, 2, 2]);
  });

  it("rests as its share of a processor says", async () => {
    fill(ENTRIES / 2);
    await sweepInstance(object, { countOnly: true });
    const before = process.cpuUsage();
    const { durationNs } = await sweepInstance(object, { cpuPercent: () => 2, pieceNs: 100_000 });
    const { user, system } = process.cpuUsage(before);
    // Fifty times would be all; beside the pieces there is the beginning and the end.
    expect(durationNs / 1000).toBeGreaterThan((user + system) * 10);
  });
});

describe("when the programs' clock jumps", () => {
  const HOUR = 3600;
  const jiffiesOf = () => {
    const ctx = Buffer.alloc(sizeOf("clock"));
    object.program("read_clock").testRun({ ctx });
    return jiffiesClock(ctx.readBigUInt64LE(0), ctx.readBigUInt64LE(8))!;
  };
  const jump = (seconds: number) => {
    const { jiffies_base, jiffies_mult } = jiffiesOf();
    const perSecond = 2 ** 32 / jiffies_mult / TICK_SECONDS;
    tables.control.set({
      jiffies_base: Number(jiffies_base) - Math.round(seconds * perSecond),
      jiffies_mult,
    });
  };

  it.each([-1000 * 24 * HOUR, -3 * HOUR, -60, 60, 3 * HOUR, 180 * 24 * HOUR])(
    "by %d seconds, no live flow goes, and the clock is set right",
    async (seconds) => {
      jump(seconds);
      // Live ones by the wrong clock and by the right one, seen just now.
      const wrong = (currentTick() + Math.sign(seconds) * secondsToTicks(Math.abs(seconds))) >>> 0;
      const alive = [4, 6].flatMap((family) =>
        [wrong, currentTick()].map((last_seen) =>
          put(family as 4 | 6, TCP, "established", { state: FLOW_STATE.ESTABLISHED, last_seen }),
        ),
      );
      const first = await sweepInstance(object);
      expect(first.clockRepaired).toBe(true);
      expect(first.tables.every(({ report }) => report.expired === 0)).toBe(true);
      for (const key of alive) expect(tables.flows.lookup(key)).toBeDefined();
      const { jiffies_base, jiffies_mult } = jiffiesOf();
      const now = tables.control.get();
      expect(now.jiffies_mult).toBe(jiffies_mult);
      expect(Math.abs(now.jiffies_base - Number(jiffies_base))).toBeLessThanOrEqual(1);
      // Refreshed meanwhile, they outlive the next pass too; what is idle by the right clock does not.
      for (const key of alive) {
        const value = encode("flow", { state: FLOW_STATE.ESTABLISHED, last_seen: currentTick() });
        tables.flows.table(key.family, "established").map.update(encodeFlowKey(key), value);
      }
      const idle = put(4, TCP, "established", { state: FLOW_STATE.ESTABLISHED, last_seen: ago(3 * HOUR) });
      const second = await sweepInstance(object);
      expect(second.clockRepaired).toBe(false);
      for (const key of alive) expect(tables.flows.lookup(key)).toBeDefined();
      expect(tables.flows.lookup(idle)).toBeUndefined();
    },
  );

  it("keeps flows of the future, however the tick counter stands", async () => {
    const keys = [1, 100, 100_000, 250_000_000].map((seconds) =>
      put(4, UDP, "established", { last_seen: (currentTick() + secondsToTicks(seconds)) >>> 0 }),
    );
    const { report } = (await sweepInstance(object)).tables[0]!;
    expect(report).toMatchObject({ entries: 4, expired: 0 });
    expect(report.ages[0]).toBe(4);
    for (const key of keys) expect(tables.flows.lookup(key)).toBeDefined();
  });
});

describe("last hops", () => {
  const idleTicks = secondsToTicks(300);
  const release = () => releaseLastHops(tables, currentTick(), idleTicks);
  const keyOf = (index: number) => tables.lastHops.keys.get({ ifindex: UPLINK, mac: mac(index) });
  /** Begins one, and returns in its first grace period: when the key of that index has gone. */
  const releaseUntilGrace = async (index: number): Promise<{ ended: Promise<number> }> => {
    const ended = release();
    while (keyOf(index) !== undefined) await turn();
    return { ended };
  };

  it("are given back if nobody names them, and only then", async () => {
    putLastHop(0, 1000);
    putLastHop(1, 1000); // a flow names it
    putLastHop(2, 100); // seen not long ago
    putLastHop(3, 1000, { origin: ORIGIN.MANUAL });
    putLastHop(4, 1000); // the alias of 5 names it
    putLastHop(5, 100);
    tables.lastHops.setAlias(5, GENERATION, 4);
    putLastHop(6, 1000); // down, and idle all the same
    tables.lastHops.setAlias(6, GENERATION, "route");
    const value = { state: FLOW_STATE.ESTABLISHED, last_seen: ago(10), last_hop: joinLastHop(GENERATION, 1) };
    put(6, TCP, "embryonic", value);
    const { lastHopsReleased } = await sweepInstance(object);
    expect(lastHopsReleased).toBe(2);
    expect(tables.lastHops.refs.get(tables.sweep.endedRefs() + 1)).toBe(1);
    for (const index of [0, 6]) {
      expect(tables.lastHops.keys.get({ ifindex: UPLINK, mac: mac(index) })).toBeUndefined();
      expect(tables.lastHops.resolve(joinLastHop(GENERATION, index)).state).toBe("stale");
      expect(tables.lastHops.records.get(index)).toMatchObject({
        kind: LAST_HOP_KIND.NONE,
        generation: GENERATION + 1,
      });
      expect(tables.lastHops.traffic(index).request_packets).toBe(0);
    }
    for (const index of [1, 2, 3, 4]) {
      expect(tables.lastHops.keys.get({ ifindex: UPLINK, mac: mac(index) })).toBe(index);
      expect(tables.lastHops.resolve(joinLastHop(GENERATION, index)).state).toBe("up");
    }
    expect(freeIndices()).toEqual([0, 6]);
    // Learned ones that still have a key, and nothing else of the record is touched.
    expect(tables.budgets.get(SLOT)).toEqual({ last_hops: 4, last_hops_max: 10, vms: 2, vms_max: 10 });
    expect(await release()).toBe(0);
  });

  it("stay if the sweep missed a flow, or one comes in the grace period", async () => {
    putLastHop(0, 1000);
    putLastHop(1, 1000);
    putLastHop(2, 1000);
    put(4, UDP, "established", { last_hop: joinLastHop(GENERATION, 0) });
    const { ended } = await releaseUntilGrace(2);
    put(6, UDP, "embryonic", { last_hop: joinLastHop(GENERATION, 2) });
    expect(await ended).toBe(1);
    for (const index of [0, 2]) {
      expect(tables.lastHops.keys.get({ ifindex: UPLINK, mac: mac(index) })).toBe(index);
      expect(tables.lastHops.resolve(joinLastHop(GENERATION, index)).state).toBe("up");
    }
    expect(freeIndices()).toEqual([1]);
  });

  it("go nevertheless if another index has the key by then", async () => {
    putLastHop(0, 1000);
    put(4, UDP, "established", { last_hop: joinLastHop(GENERATION, 0) });
    const { ended } = await releaseUntilGrace(0);
    tables.lastHops.keys.set({ ifindex: UPLINK, mac: mac(0) }, 9);
    expect(await ended).toBe(1);
    expect(tables.lastHops.keys.get({ ifindex: UPLINK, mac: mac(0) })).toBe(9);
    expect(freeIndices()).toEqual([0]);
  });

  it("that an interrupted release left are found again, but not those in the making", async () => {
    for (const index of [0, 1, 2]) {
      putLastHop(index, 1000);
      tables.lastHops.keys.delete({ ifindex: UPLINK, mac: mac(index) });
      tables.lastHops.aliases.set(index, 0);
    }
    const released = release();
    await sleep(20); // in the grace period
    tables.lastHops.setAlias(1, GENERATION, 1); // a program finishes this one
    tables.lastHops.keys.set({ ifindex: UPLINK, mac: mac(1) }, 1);
    touch(1, currentTick());
    tables.lastHops.records.set(2, { ...tables.lastHops.records.get(2)!, generation: GENERATION + 1 });
    expect(await released).toBe(1);
    expect(freeIndices()).toEqual([0]);
    expect(await release()).toBe(1);
    expect(freeIndices()).toEqual([2]);
    expect(await release()).toBe(0);
  });

  it("never seen in traffic count from when they were made", async () => {
    putLastHop(0, 1000);
    touch(0, 0);
    putLastHop(1, 10);
    touch(1, 0);
    expect(await release()).toBe(1);
    expect(freeIndices()).toEqual([0]);
  });

  const OWNER = ownerId("fw");

  it("that another has taken the place of go when no flow names them, whoever made them", async () => {
    for (const index of [0, 1, 2, 3]) putLastHop(index, 1000, { origin: ORIGIN.CONFIG, ...ownership(OWNER) });
    for (const index of [0, 1, 2]) {
      tables.lastHops.keys.delete({ ifindex: UPLINK, mac: mac(index) });
      tables.lastHops.setAlias(index, GENERATION, 3);
    }
    tables.lastHops.setAlias(2, GENERATION, "drop");
    put(4, TCP, "established", { state: FLOW_STATE.ESTABLISHED, last_hop: joinLastHop(GENERATION, 1) });
    expect(await release()).toBe(2);
    expect(freeIndices()).toEqual([0, 2]);
    // The programs write neither of these when they use the record again.
    for (const index of [0, 2]) expect(ownerOf(tables.lastHops.records.get(index)!)).toBe(NOBODY);
    expect(tables.lastHops.resolve(joinLastHop(GENERATION, 1))).toMatchObject({ state: "alias", target: 3 });
    expect(keyOf(3)).toBe(3);
  });

  it("that a device's MAC with other tags led to go as other learned ones do", async () => {
    putLastHop(0, 1000, { ...ownership(OWNER) });
    expect(await release()).toBe(1);
  });

  it("stay if a device takes them over in the grace period, or an alias comes to name them", async () => {
    for (const index of [0, 1, 2]) putLastHop(index, 1000);
    putLastHop(3, 10);
    const { ended } = await releaseUntilGrace(2);
    const record = tables.lastHops.records.get(0)!;
    tables.lastHops.records.set(0, { ...record, origin: ORIGIN.MANUAL, ...ownership(OWNER) });
    tables.lastHops.setAlias(3, GENERATION, 1);
    expect(await ended).toBe(1);
    expect(freeIndices()).toEqual([2]);
    for (const index of [0, 1]) {
      expect(keyOf(index)).toBe(index);
      expect(tables.lastHops.resolve(joinLastHop(GENERATION, index)).state).toBe("up");
    }
  });

  it("stay while flows are being copied to other tables", async () => {
    putLastHop(0, 1000);
    tables.control.set({ migrating: 1 });
    expect(await release()).toBe(0);
    tables.control.set({ migrating: 0 });
    const { ended } = await releaseUntilGrace(0);
    tables.control.set({ migrating: 1 });
    expect(await ended).toBe(0);
    expect(keyOf(0)).toBe(0);
  });
});
