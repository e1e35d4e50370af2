// SPDX-License-Identifier: Apache-2.0
// What all indices of last hops hold, as plain numbers: up to 65,536 of them, read in pieces.

import { decode, type StructValue, sizeOf, splitLastHop } from "../abi/codec.ts";
import { ENCAPSULATION_FLAG, LAST_HOP, LAST_HOP_KIND } from "../abi/layout.gen.ts";
import type { LastHopTables } from "../tables/index.ts";
import type { Pieces } from "./pieces.ts";

const RECORD_BYTES = sizeOf("last_hop");
const KEY_BYTES = sizeOf("last_hop_key");
/** Entries of a piece: half a millisecond. */
const PIECE_ENTRIES = 2048;
/** Of which so many are taken apart. */
const DECODED = 128;

const { fields } = LAST_HOP;

export type LastHopKey = StructValue<"last_hop_key">;

/** Of a frame that came in nothing else. */
export function frameKey(): LastHopKey {
  return decode("last_hop_key", Buffer.alloc(KEY_BYTES));
}

/** What a frame shows that comes from where this record's replies go. */
export function keyOfRecord(
  record: Pick<StructValue<"last_hop">, "ifindex" | "mac" | "tags" | "encapsulated" | "encapsulation">,
): LastHopKey {
  const { ifindex, mac, tags, encapsulated, encapsulation } = record;
  const { tunnel, labels } = encapsulation;
  return {
    ...frameKey(),
    ifindex,
    mac,
    tags,
    encapsulated,
    // Without the flag programs look at neither, and the remote is a note of the controller's.
    ...(isTunnelled(record) && { tunnel_remote: tunnel.remote, tunnel_id: tunnel.id }),
    labels,
  };
}

/** Whether a tunnel key came with its requests, and goes with its replies. */
export function isTunnelled({ encapsulated }: Pick<LastHopKey, "encapsulated">): boolean {
  return (encapsulated & ENCAPSULATION_FLAG.TUNNEL) !== 0;
}

/** By index. */
export interface Survey {
  /** Indices from here on were never given out. */
  used: number;
  kinds: Uint8Array;
  origins: Uint8Array;
  generations: Uint16Array;
  ifindexes: Uint32Array;
  /** Ticks. */
  created: Uint32Array;
  aliases: Uint32Array;
  /** How many keys lead there. */
  keys: Uint16Array;
}

/** Aliases before keys, and records first of all: what is being made meanwhile looks unfinished, not lost. */
export function* surveyLastHops(tables: LastHopTables): Pieces<Survey> {
  const used = tables.used();
  const survey: Survey = {
    used,
    kinds: new Uint8Array(used),
    origins: new Uint8Array(used),
    generations: new Uint16Array(used),
    ifindexes: new Uint32Array(used),
    created: new Uint32Array(used),
    aliases: new Uint32Array(used),
    keys: new Uint16Array(used),
  };
  for (const { first, count, values } of arrayPieces(tables.records.map, used)) {
    for (let place = 0; place < count; place++) {
      const at = place * RECORD_BYTES;
      const index = first + place;
      survey.kinds[index] = values[at + fields.kind.offset]!;
      survey.origins[index] = values[at + fields.origin.offset]!;
      survey.generations[index] = values.readUInt16LE(at + fields.generation.offset);
      survey.ifindexes[index] = values.readUInt32LE(at + fields.ifindex.offset);
      survey.created[index] = values.readUInt32LE(at + fields.created.offset);
    }
    yield;
  }
  yield* readAliases(tables, survey.aliases);
  for (const { count, values } of tables.keys.map.batches(PIECE_ENTRIES)) {
    for (let place = 0; place < count; place++) {
      const index = values.readUInt32LE(place * 4);
      if (index < used) survey.keys[index]!++;
    }
    yield;
  }
  return survey;
}

/** Into `aliases`, by index. */
export function* readAliases(tables: LastHopTables, aliases: Uint32Array): Pieces<void> {
  for (const { first, count, values } of arrayPieces(tables.aliases.map, aliases.length)) {
    for (let place = 0; place < count; place++) aliases[first + place] = values.readUInt32LE(place * 4);
    yield;
  }
}

/** 1 for each index that the alias of another one names. */
export function aliasTargets(aliases: Uint32Array): Uint8Array {
  const targets = new Uint8Array(aliases.length);
  for (let index = 0; index < aliases.length; index++) {
    const { generation, index: target } = splitLastHop(aliases[index]!);
    if (generation !== 0 && target !== index && target < targets.length) targets[target] = 1;
  }
  return targets;
}

/** The keys that lead to the wanted indices. */
export function* keysOf(
  tables: LastHopTables,
  wanted: (index: number) => boolean,
): Pieces<Map<number, LastHopKey[]>> {
  const found = new Map<number, LastHopKey[]>();
  let taken = 0;
  for (const { count, keys, values } of tables.keys.map.batches(PIECE_ENTRIES)) {
    for (let place = 0; place < count; place++) {
      const index = values.readUInt32LE(place * 4);
      if (!wanted(index)) continue;
      const key = decode("last_hop_key", keys, place * KEY_BYTES);
      const others = found.get(index);
      if (others) others.push(key);
      else found.set(index, [key]);
      if (++taken % DECODED === 0) yield;
    }
    yield;
  }
  return found;
}

/** Records as they lie in the table, those in use only. */
export function* recordPieces(
  tables: LastHopTables,
): Generator<{ first: number; count: number; values: Buffer }> {
  yield* arrayPieces(tables.records.map, tables.used());
}

function* arrayPieces(
  map: LastHopTables["records"]["map"],
  used: number,
): Generator<{ first: number; count: number; values: Buffer }> {
  if (used === 0) return;
  let first = 0;
  for (const { count, values } of map.batches(PIECE_ENTRIES)) {
    yield { first, count: Math.min(count, used - first), values };
    first += count;
    if (first >= used) return;
  }
}

export function isInUse(kind: number | undefined): boolean {
  return kind !== undefined && kind !== LAST_HOP_KIND.NONE;
}
