// SPDX-License-Identifier: Apache-2.0
/*
 * Gives indices of last hops back to the hot path.
 *
 * A record must not change while a program may still read it, and an index must never be free twice. The
 * programs find an index in two ways: by last_hop_index when they learn, and by the reference in a flow. So:
 *
 *  1. Candidates were learned, have no flow that the sweep saw, no alias of another index, and no packet for
 *     long. The sweep may miss a flow: one that came behind its back, or a neighbour of one that it deleted.
 *  2. Their keys go. Whoever learns from now on takes another index.
 *  3. Grace: programs that found the key before have ended, so no further flow will name these indices. Now the
 *     flows are counted for good. A record with a flow gets its key back and stays; if another index has the key
 *     by now it goes nevertheless, and the flow heals with its next request.
 *  4. The alias goes. A flow that still names the index is stale: its replies pass.
 *  5. Grace: programs that found the alias before have ended; nobody reads the record to send by it.
 *  6. The record's generation is bumped (the hot path counts on from it) and its kind cleared, in one write of
 *     otherwise equal bytes: a request of a flow that names it now sees that it is not this flow's, and heals.
 *  7. The index goes to last_hop_free.
 *
 * Killed between 4 and 6, an index is in neither table, with no alias but a record: the next sweep finds it.
 */

import { setTimeout as sleep } from "node:timers/promises";
import { joinLastHop, type StructValue } from "../abi/codec.ts";
import { LAST_HOP_INDEX_MASK, LAST_HOP_KIND, ORIGIN } from "../abi/layout.gen.ts";
import { aliasState, type Tables } from "../tables/index.ts";

/** Programs run for microseconds; this is for one that an interrupt storm holds up. */
const GRACE_MS = 50;

interface Candidate {
  index: number;
  generation: number;
  keys: StructValue<"last_hop_key">[];
}

/** Returns how many were given back. `startedTick`: before the sweep that counted the references. */
export async function releaseLastHops(
  tables: Tables,
  startedTick: number,
  idleTicks: number,
): Promise<number> {
  const keys = keysByIndex(tables);
  const lost = findLost(tables, keys);
  const candidates = findCandidates(tables, keys, startedTick, idleTicks);
  let released = 0;
  if (candidates.length + lost.length > 0) {
    for (const { keys } of candidates) for (const key of keys) tables.lastHops.keys.delete(key);
    await sleep(GRACE_MS);
    const idle = candidates.length > 0 ? unreferenced(tables, candidates) : [];
    for (const { index } of idle) tables.lastHops.aliases.set(index, 0);
    await sleep(GRACE_MS);
    // A record that the hot path was just making has an alias or a key by now.
    const stillLost = lost.filter(({ index, generation }) =>
      isLost(tables, index, keysByIndex(tables), generation),
    );
    for (const { index } of [...idle, ...stillLost]) {
      if (tables.lastHops.giveBack(index)) released++;
    }
  }
  recountBudgets(tables);
  return released;
}

function keysByIndex(tables: Tables): Map<number, StructValue<"last_hop_key">[]> {
  const keys = new Map<number, StructValue<"last_hop_key">[]>();
  for (const [key, index] of tables.lastHops.keys.entries()) {
    const others = keys.get(index);
    if (others) others.push(key);
    else keys.set(index, [key]);
  }
  return keys;
}

function findCandidates(
  tables: Tables,
  keys: ReadonlyMap<number, StructValue<"last_hop_key">[]>,
  startedTick: number,
  idleTicks: number,
): Candidate[] {
  const { lastHops } = tables;
  const aliased = aliasTargets(tables);
  const refs = tables.sweep.endedRefs();
  const candidates: Candidate[] = [];
  for (const [index, own] of keys) {
    const record = lastHops.records.get(index);
    if (record?.kind !== LAST_HOP_KIND.ETHERNET || record.origin !== ORIGIN.LEARNED) continue;
    if (aliased.has(index) || lastHops.refs.get(refs + index) !== 0) continue;
    const lastSeen = lastHops.traffic(index).last_seen || record.created;
    // Signed: ticks wrap.
    if (((startedTick - lastSeen) | 0) < Math.max(idleTicks, 2)) continue;
    candidates.push({ index, generation: record.generation, keys: own });
  }
  return candidates;
}

/** Indices that the alias of another index names. */
function aliasTargets(tables: Tables): Set<number> {
  const targets = new Set<number>();
  for (const { count, keys, values } of tables.lastHops.aliases.map.batches(4096)) {
    for (let place = 0; place < count; place++) {
      const index = keys.readUInt32LE(place * 4);
      const alias = values.readUInt32LE(place * 4);
      if (alias !== 0 && (alias & LAST_HOP_INDEX_MASK) !== index)
        targets.add(aliasState(index, alias).target);
    }
  }
  return targets;
}

/** Those that can go. The others have their keys again. */
function unreferenced(tables: Tables, candidates: readonly Candidate[]): Candidate[] {
  const references = tables.flows.countReferences();
  return candidates.filter(({ index, generation, keys }) => {
    if (!references.has(joinLastHop(generation, index))) return true;
    return keys.filter((key) => tables.lastHops.keys.insert(key, index)).length === 0;
  });
}

/** Records that an interrupted release left: no key, no alias, but a kind. */
function findLost(
  tables: Tables,
  keys: ReadonlyMap<number, unknown>,
): { index: number; generation: number }[] {
  const used = Math.min(tables.allocations.get(0)!.last_hops, tables.lastHops.records.map.info().maxEntries);
  const lost = [];
  for (let index = 0; index < used; index++) {
    if (!isLost(tables, index, keys)) continue;
    lost.push({ index, generation: tables.lastHops.records.get(index)!.generation });
  }
  return lost;
}

function isLost(
  tables: Tables,
  index: number,
  keys: ReadonlyMap<number, unknown>,
  generation?: number,
): boolean {
  if (keys.has(index) || tables.lastHops.aliases.get(index) !== 0) return false;
  const record = tables.lastHops.records.get(index);
  if (record?.kind !== LAST_HOP_KIND.ETHERNET) return false;
  return generation === undefined || record.generation === generation;
}

/**
 * Counts anew rather than down: an update from here can overwrite an increment by the hot path, and so every
 * such error ends with the next sweep.
 */
function recountBudgets(tables: Tables): void {
  const counts = new Map<number, number>();
  for (const index of keysByIndex(tables).keys()) {
    const record = tables.lastHops.records.get(index);
    if (record?.origin !== ORIGIN.LEARNED) continue;
    counts.set(record.ifindex, (counts.get(record.ifindex) ?? 0) + 1);
  }
  for (const { ifindex, slot } of tables.interfaces.list()) {
    const budget = slot === 0 ? undefined : tables.budgets.get(slot);
    const last_hops = counts.get(ifindex) ?? 0;
    if (budget && budget.last_hops !== last_hops) tables.budgets.set(slot, { ...budget, last_hops });
  }
}
