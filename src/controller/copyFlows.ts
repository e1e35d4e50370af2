// SPDX-License-Identifier: Apache-2.0
// Fills a flow table from another one while programs use both.

import { setImmediate as turn } from "node:timers/promises";
import { currentTick } from "../abi/codec.ts";
import type { Entries } from "../abi/convert.ts";
import { FLOW } from "../abi/layout.gen.ts";
import type { BpfMap } from "../libbpf/index.ts";

/** Entries a step: some 2 ms. */
const CHUNK = 2048;
/** A smaller table is not filled up: the LRU would evict at random what is still to come. */
const FILL = 0.9;

/** Where a value has the tick of its last packet; embryos begin with a flow. */
const LAST_SEEN = FLOW.fields.last_seen.offset;

/**
 * Copies what is not there yet, the latest first where not all has room. Returns how many were copied.
 * `convert` brings entries into the form of the new table.
 */
export async function copyFlows(
  from: BpfMap,
  to: BpfMap,
  convert: (entries: Entries) => Entries = (entries) => entries,
  lastSeen: number = LAST_SEEN,
): Promise<number> {
  const now = currentTick();
  const oldest = await oldestAge(from, Math.floor(to.maxEntries * FILL), now, lastSeen);
  let copied = 0;
  for (const batch of from.batches(CHUNK)) {
    const kept = oldest === Number.POSITIVE_INFINITY ? batch : younger(from, batch, oldest, now, lastSeen);
    const { count, keys, values } = convert(kept);
    copied += to.insertAll(keys, values, count);
    await turn();
  }
  return copied;
}

/** Ticks of idleness up to which all entries have room; Infinity if all have. */
async function oldestAge(from: BpfMap, room: number, now: number, lastSeen: number): Promise<number> {
  if (from.maxEntries <= room) return Number.POSITIVE_INFINITY;
  const ages = new Map<number, number>();
  let total = 0;
  for (const { count, values } of from.batches(CHUNK)) {
    total += count;
    for (let index = 0; index < count; index++) {
      const age = ageOf(values, index * from.valueBytes + lastSeen, now);
      ages.set(age, (ages.get(age) ?? 0) + 1);
    }
    await turn();
  }
  if (total <= room) return Number.POSITIVE_INFINITY;
  let sum = 0;
  for (const age of [...ages.keys()].sort((a, b) => a - b)) {
    sum += ages.get(age)!;
    if (sum > room) return age - 1;
  }
  return Number.POSITIVE_INFINITY;
}

function younger(from: BpfMap, batch: Entries, oldest: number, now: number, lastSeen: number): Entries {
  const { keySize, valueBytes } = from;
  let count = 0;
  for (let index = 0; index < batch.count; index++) {
    if (ageOf(batch.values, index * valueBytes + lastSeen, now) > oldest) continue;
    batch.keys.copy(batch.keys, count * keySize, index * keySize, (index + 1) * keySize);
    batch.values.copy(batch.values, count * valueBytes, index * valueBytes, (index + 1) * valueBytes);
    count++;
  }
  return { count, keys: batch.keys, values: batch.values };
}

/** Signed: ticks wrap, and a packet may be newer than our look at the clock. */
function ageOf(values: Buffer, offset: number, now: number): number {
  return Math.max(0, (now - values.readUInt32LE(offset)) | 0);
}
