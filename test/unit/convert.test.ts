// SPDX-License-Identifier: Apache-2.0

import { describe, expect, test } from "vitest";
import { decode, encode, sizeOf } from "../../src/abi/codec.ts";
import {
  convertStruct,
  entriesConverter,
  LAYOUT,
  type Layout,
  structConverter,
} from "../../src/abi/convert.ts";

/** Ours, with some structs lying otherwise. */
const former = (changes: Layout): Layout => ({ ...LAYOUT, ...changes });

const flow = {
  size: 20,
  fields: {
    formerly: { offset: 0, size: 4, kind: "u32" },
    state: { offset: 4, size: 2, kind: "u16" },
    vm: { offset: 6, size: 2, kind: "u16" },
    last_hop: { offset: 8, size: 4, kind: "u32" },
    last_seen: { offset: 12, size: 4, kind: "u32" },
  },
};

function formerFlow(state: number, vm: number, lastHop: number): Buffer {
  const bytes = Buffer.alloc(20, 0xee);
  bytes.writeUInt16LE(state, 4);
  bytes.writeUInt16LE(vm, 6);
  bytes.writeUInt32LE(lastHop, 8);
  bytes.writeUInt32LE(77, 12);
  return bytes;
}

describe("a struct of another version", () => {
  test("has its fields by name; they move, grow, shrink and vanish", () => {
    const converted = decode("flow", convertStruct(former({ flow }), "flow", formerFlow(4, 513, 0x12345678)));
    expect(converted).toEqual({ last_hop: 0x12345678, last_seen: 77, vm: 513, state: 4, flags: 0, moved: 0 });
  });

  test("may be part of another, and stand in an array", () => {
    const embryo = {
      size: 28,
      fields: {
        vm_isn: { offset: 0, size: 4, kind: "u32" },
        flow: { offset: 4, size: 20, kind: "struct", struct: "flow" },
      },
    };
    const bytes = Buffer.concat([Buffer.from("01000000", "hex"), formerFlow(1, 2, 3), Buffer.alloc(4)]);
    expect(decode("embryo", convertStruct(former({ flow, embryo }), "embryo", bytes))).toMatchObject({
      vm_isn: 1,
      vm_next: 0,
      flow: { state: 1, vm: 2, last_hop: 3 },
    });
    const tags = [
      { proto: 0x8100, vid: 7 },
      { proto: 0x88a8, vid: 9 },
    ];
    const record = encode("last_hop", { tags, ifindex: 5 });
    const one = former({
      last_hop: {
        ...LAYOUT.last_hop!,
        fields: {
          ...LAYOUT.last_hop!.fields,
          tags: { ...LAYOUT.last_hop!.fields.tags!, count: 1, size: 4 },
        },
      },
    });
    expect(decode("last_hop", convertStruct(one, "last_hop", record))).toMatchObject({
      ifindex: 5,
      tags: [tags[0], { proto: 0, vid: 0 }],
    });
  });

  test("that it did not have is zero", () => {
    const { flow: _flow, ...others } = LAYOUT;
    expect(convertStruct(others, "flow", Buffer.alloc(16, 0xff))).toEqual(Buffer.alloc(16));
  });

  test("is the same in the same layout, whichever struct", () => {
    for (const name of Object.keys(LAYOUT) as (keyof typeof LAYOUT & Parameters<typeof sizeOf>[0])[]) {
      const bytes = Buffer.from(Array.from({ length: sizeOf(name) }, (_, at) => (at * 7 + 1) & 0xff));
      const there = convertStruct(LAYOUT, name, bytes);
      const back = Buffer.alloc(bytes.length);
      structConverter(LAYOUT, LAYOUT, name)(there, 0, back, 0);
      expect(back).toEqual(there);
      // Every field is covered, so only padding may differ, and there is none.
      expect(there, name).toEqual(bytes);
    }
  });
});

test("the entries of a table are converted side by side", () => {
  const convert = entriesConverter(former({ flow }), {
    key: "u32",
    value: "flow",
    keySize: 4,
    valueSize: 20,
  });
  const keys = Buffer.from("0100000002000000ffffffff", "hex");
  const values = Buffer.concat([formerFlow(1, 1, 10), formerFlow(2, 2, 20), Buffer.alloc(20)]);
  const result = convert({ count: 2, keys, values });
  expect(result.keys).toEqual(keys.subarray(0, 8));
  expect(decode("flow", result.values, 16)).toMatchObject({ state: 2, vm: 2, last_hop: 20 });
  expect(result.values).toHaveLength(32);
});
