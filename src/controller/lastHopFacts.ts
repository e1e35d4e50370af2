// SPDX-License-Identifier: Apache-2.0
// What the last hops of each interface look like, for plans; and those that belong to no device, when their
// interface goes down or comes back. Those of a device follow the device.

import { sizeOf, splitLastHop } from "../abi/codec.ts";
import {
  ENCAPSULATION,
  ENCAPSULATION_FLAG,
  INTERFACES_MAX,
  LABELS_MAX,
  LAST_HOP,
  LAST_HOP_ROUTE,
} from "../abi/layout.gen.ts";
import { type LastHopTables, NOBODY, OWNER_OFFSET, SUCCESSOR_OFFSET } from "../tables/index.ts";
import { isInUse, readAliases, recordPieces } from "./lastHopSurvey.ts";
import { markRoute, markUp } from "./lastHops.ts";
import type { Encapsulated } from "./lastHopWay.ts";
import { atOnce } from "./pieces.ts";

const RECORD_BYTES = sizeOf("last_hop");
const { kind, generation, ifindex: ifindexField, slot: slotField } = LAST_HOP.fields;
const { source_mac, mark, encapsulated, encapsulation } = LAST_HOP.fields;
/** What a record says of the way back stands together. */
const WAY_OFFSET = source_mac.offset;
const WAY_BYTES = encapsulation.offset + encapsulation.size - WAY_OFFSET;
/** Keys of a step. */
const CHUNK = 2048;

export interface LastHopSource extends Encapsulated {
  slot: number;
  sourceMac: Buffer;
}

export interface InterfaceLastHops {
  /** That frames lead to. */
  count: number;
  /** What their records say of the way back, each once. */
  sources: LastHopSource[];
  /** Of no device, with flows' replies going there. */
  up: number[];
  /** Of no device, with flows' replies taking the VM's own route. */
  down: number[];
}

export interface LastHopFacts {
  of(ifindex: number): InterfaceLastHops;
  /** Slots that records name which frames lead to. */
  slots: ReadonlySet<number>;
}

const NONE: InterfaceLastHops = { count: 0, sources: [], up: [], down: [] };
export const NO_LAST_HOPS: LastHopFacts = { of: () => NONE, slots: new Set() };

export function lastHopFacts(tables: LastHopTables): LastHopFacts {
  const records = readRecords(tables);
  const found = new Map<number, InterfaceLastHops>();
  const slots = new Set<number>();
  const at = (ifindex: number): InterfaceLastHops => {
    const known = found.get(ifindex) ?? { count: 0, sources: [], up: [], down: [] };
    found.set(ifindex, known);
    return known;
  };
  for (const index of keyedIndices(tables, records.used)) {
    if (!isInUse(records.kinds[index])) continue;
    const slot = records.slots[index]!;
    if (slot > 0 && slot < INTERFACES_MAX) slots.add(slot);
    const known = at(records.ifindexes[index]!);
    known.count++;
    const source = records.sourceOf(index);
    if (!known.sources.some((other) => isSameSource(other, source))) known.sources.push(source);
  }
  for (let index = 0; index < records.used; index++) {
    const alias = splitLastHop(records.aliases[index]!);
    if (alias.generation === 0 || records.owned[index]) continue;
    if (alias.index === LAST_HOP_ROUTE) at(records.ifindexes[records.homeOf(index)]!).down.push(index);
    else if (isInUse(records.kinds[alias.index])) at(records.ifindexes[alias.index]!).up.push(index);
  }
  return { of: (ifindex) => found.get(ifindex) ?? NONE, slots };
}

/** By index. */
interface Records {
  used: number;
  kinds: Uint8Array;
  ifindexes: Uint32Array;
  slots: Uint32Array;
  aliases: Uint32Array;
  /** 1: of a device. */
  owned: Uint8Array;
  sourceOf(index: number): LastHopSource;
  /** What it stands for while nothing is down. */
  homeOf(index: number): number;
}

function readRecords(tables: LastHopTables): Records {
  const used = tables.used();
  const kinds = new Uint8Array(used);
  const generations = new Uint16Array(used);
  const ifindexes = new Uint32Array(used);
  const slots = new Uint32Array(used);
  const owned = new Uint8Array(used);
  const successors = new Uint32Array(used);
  // From the host's MAC to the labels.
  const ways = Buffer.alloc(used * WAY_BYTES);
  for (const { first, count, values } of recordPieces(tables)) {
    for (let place = 0; place < count; place++) {
      const at = place * RECORD_BYTES;
      const index = first + place;
      kinds[index] = values[at + kind.offset]!;
      generations[index] = values.readUInt16LE(at + generation.offset);
      ifindexes[index] = values.readUInt32LE(at + ifindexField.offset);
      slots[index] = values.readUInt32LE(at + slotField.offset);
      owned[index] = values.readBigUInt64LE(at + OWNER_OFFSET) === NOBODY ? 0 : 1;
      successors[index] = values.readUInt32LE(at + SUCCESSOR_OFFSET);
      const from = at + WAY_OFFSET;
      values.copy(ways, index * WAY_BYTES, from, from + WAY_BYTES);
    }
  }
  const aliases = new Uint32Array(used);
  atOnce(readAliases(tables, aliases));
  return {
    used,
    kinds,
    ifindexes,
    slots,
    aliases,
    owned,
    sourceOf: (index) => sourceAt(ways, index * WAY_BYTES - WAY_OFFSET, kinds[index]!, slots[index]!),
    homeOf(index) {
      const successor = splitLastHop(successors[index]!);
      const isLive =
        successor.generation !== 0 &&
        isInUse(kinds[successor.index]) &&
        generations[successor.index] === successor.generation;
      return isLive ? successor.index : index;
    },
  };
}

/** `at`: where in `ways` the record would begin. */
function sourceAt(ways: Buffer, at: number, kind: number, slot: number): LastHopSource {
  const flags = ways[at + encapsulated.offset]!;
  const isLabelled = (flags & ENCAPSULATION_FLAG.LABELS) !== 0;
  const labelsAt = at + encapsulation.offset + ENCAPSULATION.fields.labels.offset;
  return {
    slot,
    sourceMac: Buffer.from(ways.subarray(at + source_mac.offset, at + source_mac.offset + 6)),
    kind,
    mark: ways.readUInt32LE(at + mark.offset),
    encapsulated: flags,
    labels: Array.from({ length: isLabelled ? LABELS_MAX : 0 }, (_, place) =>
      ways.readUInt32LE(labelsAt + place * 4),
    ),
  };
}

function isSameSource(a: LastHopSource, b: LastHopSource): boolean {
  return (
    a.slot === b.slot &&
    a.sourceMac.equals(b.sourceMac) &&
    a.kind === b.kind &&
    a.mark === b.mark &&
    a.encapsulated === b.encapsulated &&
    a.labels.join() === b.labels.join()
  );
}

/** Each once: several keys may lead to one. */
function keyedIndices(tables: LastHopTables, used: number): Set<number> {
  const found = new Set<number>();
  for (const { count, values } of tables.keys.map.batches(CHUNK)) {
    for (let place = 0; place < count; place++) {
      const index = values.readUInt32LE(place * 4);
      if (index < used) found.add(index);
    }
  }
  return found;
}

/**
 * Those of no device: up, or by the VM's own route. Returns those that were changed, for `only` of which it can be
 * taken back.
 */
export function setState(
  tables: LastHopTables,
  ifindex: number,
  state: "up" | "down",
  only?: readonly number[],
): number[] {
  const facts = lastHopFacts(tables).of(ifindex);
  const there = state === "up" ? facts.down : facts.up;
  const wanted = only ? there.filter((index) => only.includes(index)) : there;
  if (wanted.length === 0) return [];
  return state === "up" ? markUp(tables, ifindex, wanted) : markRoute(tables, ifindex, wanted);
}
