// SPDX-License-Identifier: Apache-2.0
// What the soak checks in the end: each kind of damage is noticed, and nothing else.

import { beforeEach, describe, expect, it } from "vitest";
import { encode, joinLastHop } from "../../src/abi/codec.ts";
import { FLOW_FLAG, LAST_HOP_KIND, ORIGIN } from "../../src/abi/layout.gen.ts";
import type { BpfMap } from "../../src/libbpf/index.ts";
import { encodeFlowKey, Tables } from "../../src/tables/index.ts";
import {
  checkBudgets,
  checkDescriptors,
  checkFlows,
  checkIndices,
  checkMemory,
  memoryOf,
} from "../soak/invariants.ts";
import { memorySource } from "../support/tableSource.ts";

const UPLINK = 11;
const USED = 4;
const GENERATION = 5;

let source: ReturnType<typeof memorySource>;
let tables: Tables;
const queue = () => source.map("last_hop_free") as unknown as BpfMap;
const indices = () => checkIndices(tables, queue());
const mac = (index: number) => Buffer.from([2, 0, 0, 0, 0, index]);

/** 0 and 1 in use, 2 and 3 free. */
beforeEach(() => {
  source = memorySource();
  tables = new Tables(source);
  tables.allocations.set(0, { last_hops: USED });
  tables.interfaces.set(UPLINK, { name: "up", slot: 1 });
  tables.budgets.set(1, { last_hops: 2 });
  for (const index of [0, 1, 2, 3]) {
    const kind = index < 2 ? LAST_HOP_KIND.ETHERNET : LAST_HOP_KIND.NONE;
    tables.lastHops.records.set(index, { kind, generation: GENERATION, ifindex: UPLINK, mac: mac(index) });
    if (index < 2) {
      tables.lastHops.setAlias(index, GENERATION, index);
      tables.lastHops.keys.set({ ifindex: UPLINK, mac: mac(index) }, index);
    } else queue().push(u32(index));
  }
});

function u32(value: number): Buffer {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32LE(value);
  return buffer;
}

function put(reference: number, flags = 0): void {
  const key = {
    family: 6 as const,
    local: Buffer.alloc(16, 1),
    remote: Buffer.alloc(16, 2),
    localPort: 443,
    remotePort: 5000,
    zone: 0,
    proto: 6,
  };
  const value = encode("flow", { last_hop: reference, flags });
  tables.flows.table(6, "established").map.update(encodeFlowKey(key), value);
}

describe("flows", () => {
  it.each([
    { what: "that name a record in use", reference: joinLastHop(GENERATION, 1), found: 0 },
    { what: "that name a released one", reference: joinLastHop(GENERATION, 2), found: 1 },
    { what: "that name an older generation", reference: joinLastHop(GENERATION - 1, 1), found: 1 },
    { what: "of local origin", reference: 0, flags: FLOW_FLAG.LOCAL_ORIGIN, found: 0 },
  ])("$what", ({ reference, flags, found }) => {
    put(reference, flags);
    expect(checkFlows(tables)).toHaveLength(found);
  });
});

describe("indices", () => {
  it("are each free or in use, and stay so when they are looked at", () => {
    expect(indices()).toEqual([]);
    expect(indices()).toEqual([]);
  });

  it.each([
    { what: "free twice", damage: () => queue().push(u32(2)), found: /free twice/ },
    { what: "free and in use", damage: () => queue().push(u32(0)), found: /neither|leads to last hop 0/ },
    { what: "neither", damage: () => queue().pop(), found: /last hop 2 is neither in use nor free/ },
    { what: "lost", damage: () => tables.lastHops.aliases.set(1, 0), found: /last hop 1 is neither/ },
    { what: "never given out", damage: () => queue().push(u32(9)), found: /only 4 were given out/ },
    {
      what: "free, with a key",
      damage: () => tables.lastHops.keys.set({ ifindex: UPLINK, mac: mac(7) }, 3),
      found: /02:00:00:00:00:07 on interface 11 leads to last hop 3/,
    },
  ])("$what", ({ damage, found }) => {
    damage();
    expect(indices().join("\n")).toMatch(found);
  });
});

describe("budgets", () => {
  it("are what was learned", () => {
    expect(checkBudgets(tables)).toEqual([]);
    tables.lastHops.records.set(1, { ...tables.lastHops.records.get(1)!, origin: ORIGIN.CONFIG });
    expect(checkBudgets(tables)).toEqual(["up has learned 1 last hops, and its budget counts 2"]);
  });
});

describe("memory", () => {
  const samples = (of: (second: number) => number) =>
    Array.from({ length: 101 }, (_, seconds) => ({ seconds, rssBytes: of(seconds) * 2 ** 20 }));
  it.each([
    { what: "that is flat", of: () => 100, grown: 0, held: true },
    { what: "that grew at first", of: (s: number) => Math.min(s, 40) + 100, grown: 0, held: true },
    { what: "that goes up and down", of: (s: number) => 100 + (s % 10), grown: 0.5, held: true },
    { what: "that leaks", of: (s: number) => 100 + s, grown: 60, held: false },
    { what: "that shrinks", of: (s: number) => 200 - s, grown: -60, held: true },
  ])("$what", ({ of, grown, held }) => {
    const memory = memoryOf(samples(of));
    expect(Math.abs(memory.growthBytes / 2 ** 20 - grown)).toBeLessThan(1);
    expect(memory.seconds).toBe(60);
    expect(checkMemory(memory)).toHaveLength(held ? 0 : 1);
  });

  it("that was hardly looked at is not judged", () => {
    expect(() => memoryOf([{ seconds: 1, rssBytes: 1 }])).toThrow(/looked at 1 times only/);
  });
});

describe("descriptors", () => {
  const fresh = new Map([
    ["anon_inode:bpf-map", 30],
    ["socket", 5],
  ]);
  it.each([
    { what: "as many", old: { "anon_inode:bpf-map": 30, socket: 5 }, found: 0 },
    { what: "a connection more", old: { "anon_inode:bpf-map": 30, socket: 7 }, found: 0 },
    { what: "a map more", old: { "anon_inode:bpf-map": 31 }, found: 1 },
    { what: "many connections more", old: { socket: 20 }, found: 1 },
    { what: "links that a fresh one does not have", old: { "anon_inode:bpf_link": 1 }, found: 1 },
  ])("$what", ({ old, found }) => {
    expect(checkDescriptors(new Map(Object.entries(old)), fresh)).toHaveLength(found);
  });
});
