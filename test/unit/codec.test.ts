// SPDX-License-Identifier: Apache-2.0

import { describe, expect, it } from "vitest";
import {
  currentTick,
  decode,
  encode,
  FLOW_STATE_NAMES,
  idleSeconds,
  joinLastHop,
  REASON_NAMES,
  type StructName,
  sizeOf,
  splitLastHop,
  TICK_SECONDS,
} from "../../src/abi/codec.ts";
import { FLOW_STATES, LAST_HOP_INDEX_MASK, REASON, REASONS, STRUCTS } from "../../src/abi/layout.gen.ts";

/** Bytes of which no two neighbours are alike, so that a field of the wrong place or order shows. */
function pattern(size: number): Buffer {
  return Buffer.from(Array.from({ length: size }, (_, index) => (index * 37 + 11) & 0x7f));
}

describe("codec", () => {
  for (const name of Object.keys(STRUCTS) as StructName[]) {
    it(`${name}: bytes → value → bytes`, () => {
      const bytes = pattern(sizeOf(name));
      // 64-bit fields are exact below 2^53 only, and a text ends with NUL.
      for (const field of Object.values(STRUCTS[name].fields)) {
        if (field.kind === "text") {
          const end = field.offset + field.size;
          bytes.fill("a".repeat(field.size - 1), field.offset, end - 1).fill(0, end - 1, end);
        }
        if (field.kind === "u64") bytes.fill(0, field.offset + 6, field.offset + 8);
        if (field.kind === "array" && field.element.kind === "u64") {
          for (let index = 0; index < field.count; index++)
            bytes.fill(0, field.offset + index * 8 + 6, field.offset + index * 8 + 8);
        }
      }
      expect(encode(name, decode(name, bytes) as never)).toEqual(bytes);
    });

    it(`${name}: fields lie one after the other`, () => {
      let end = 0;
      for (const field of Object.values(STRUCTS[name].fields)) {
        expect(field.offset).toBe(end);
        end += field.size;
      }
      expect(end).toBe(STRUCTS[name].size);
    });
  }

  it("keeps byte orders", () => {
    const key = encode("flow4_key", {
      local: 0x0a000001,
      remote: 0xc0000201,
      local_port: 443,
      zone: 258,
      proto: 6,
    });
    expect(key.toString("hex")).toBe("0a000001c000020101bb000002010600");
  });

  it("encodes at an offset, clearing what was there", () => {
    const buffer = Buffer.alloc(40, 0xff);
    encode("flow", { last_seen: 1 }, buffer, 8);
    expect(buffer.toString("hex")).toBe(
      `${"ff".repeat(8)}0000000001000000${"00".repeat(8)}${"ff".repeat(16)}`,
    );
    expect(decode("flow", buffer, 8)).toEqual({
      last_hop: 0,
      last_seen: 1,
      vm: 0,
      state: 0,
      flags: 0,
      moved: 0,
    });
  });

  it("nests structs and arrays", () => {
    const tags = [
      { proto: 0x88a8, vid: 100 },
      { proto: 0x8100, vid: 7 },
    ];
    const bytes = encode("last_hop", { mac: Buffer.from("020000000001", "hex"), tags });
    expect(bytes.toString("hex", 24, 32)).toBe("88a8640081000700");
    expect(decode("last_hop", bytes).tags).toEqual(tags);
    expect(decode("embryo", encode("embryo", { flow: { vm: 7 } })).flow.vm).toBe(7);
  });

  it("refuses what does not fit", () => {
    expect(() => encode("flow", { state: 256 })).toThrow(RangeError);
    expect(() => encode("flow4_key", { local_port: -1 })).toThrow(RangeError);
    expect(() => encode("vm_key", { mac: Buffer.alloc(7) })).toThrow(RangeError);
    expect(() => encode("interface", { name: "x".repeat(16) })).toThrow(RangeError);
    expect(() => encode("control", { timeouts: Array(8).fill(0) })).toThrow(RangeError);
    expect(() => encode("flow", { nonsense: 1 } as never)).toThrow(TypeError);
  });

  it("reads a text that lacks its NUL", () => {
    const bytes = encode("interface", {});
    bytes.fill("a", 28, 44);
    expect(decode("interface", bytes).name).toBe("a".repeat(16));
  });

  it("names every enumerator", () => {
    expect(FLOW_STATE_NAMES).toHaveLength(FLOW_STATES);
    expect(REASON_NAMES).toHaveLength(REASONS);
    expect(REASON_NAMES[REASON.VM_MISMATCH]).toBe("vm_mismatch");
  });

  it("splits and joins last hops", () => {
    expect(joinLastHop(4095, LAST_HOP_INDEX_MASK)).toBe(0xffff_ffff);
    expect(splitLastHop(0xffff_ffff)).toEqual({ generation: 4095, index: LAST_HOP_INDEX_MASK });
    expect(splitLastHop(joinLastHop(2049, 3))).toEqual({ generation: 2049, index: 3 });
  });

  it("counts idle time in ticks of the monotonic clock", () => {
    const uptime = Number(process.hrtime.bigint()) / 1e9;
    expect(Math.abs(currentTick() * TICK_SECONDS - uptime)).toBeLessThan(2);
    expect(idleSeconds(100, 110)).toBeCloseTo(10 * TICK_SECONDS);
    expect(idleSeconds(110, 100)).toBe(0);
    expect(idleSeconds(0xffff_fffe, 2)).toBeCloseTo(4 * TICK_SECONDS);
  });
});
