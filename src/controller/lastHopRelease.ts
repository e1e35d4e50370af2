// SPDX-License-Identifier: Apache-2.0
/*
 * Gives indices of last hops back to the hot path.
 *
 * A record must not change while a program may still read it, and an index must never be free twice. The
 * programs find an index in three ways: by last_hop_index when they learn, by the reference in a flow, and by the
 * alias of another index. So:
 *
 *  1. Candidates have no flow that the sweep saw, no alias of another index, and no packet for long. One with a key
 *     was learned: those that the controller made for a device stay while a key leads there. One without a key is
 *     what another has taken the place of. The sweep may miss a flow: one that came behind its back, or a neighbour
 *     of one that it deleted.
 *  2. Their keys go. Whoever learns from now on takes another index.
 *  3. Grace: programs that found the key before have ended, so no further flow will name these indices. Now the
 *     flows are counted for good, and the aliases looked at again. A record with a flow or an alias, or one that a
 *     device has taken over meanwhile, gets its keys back and stays; if another index has the key by now it goes
 *     nevertheless, and the flow heals with its next request.
 *  4. The alias goes. A flow that still names the index is stale: its replies pass.
 *  5. Grace: programs that found the alias before have ended; nobody reads the record to send by it.
 *  6. The record's generation is bumped (the hot path counts on from it) and its kind cleared, in one write of
 *     bytes that are equal as far as programs read them: a request of a flow that names it now sees that it is not
 *     this flow's, and heals.
 *  7. The index goes to last_hop_free.
 *
 * Between 3 and 4, and for each index between the last look and the write, nothing waits: what else works in this
 * process comes before or after, and other processes wait for the lock. Killed between 4 and 6, an index is in
 * neither table, with no alias but a record: the next sweep finds it. While flows are copied to other tables,
 * nothing is given back: they are not all where they are counted.
 */

import { setTimeout as sleep } from "node:timers/promises";
import { joinLastHop, splitLastHop } from "../abi/codec.ts";
import { FLOW, FLOW_FLAG, LAST_HOP_KIND, ORIGIN } from "../abi/layout.gen.ts";
import { ownerOf, type Tables } from "../tables/index.ts";
import {
  aliasTargets,
  isInUse,
  keysOf,
  type LastHopKey,
  readAliases,
  type Survey,
  surveyLastHops,
} from "./lastHopSurvey.ts";
import { inPieces, type Pieces } from "./pieces.ts";

/** Programs run for microseconds; this is for one that an interrupt storm holds up. */
const GRACE_MS = 50;
/** Entries between two pauses, where each is looked up by itself. */
const LOOKUPS = 64;

/** Of one pass; the others have the next one. More at once would keep the garbage collector busy for long. */
const CANDIDATES_MAX = 8192;
/** Small things between two pauses. */
const PIECE = 2048;

interface Candidate {
  index: number;
  generation: number;
  /** Of a device's that nobody knows any more, or of the one that it was. */
  origin: number;
  owner: bigint;
  keys: LastHopKey[];
}

export interface ReleaseOptions {
  /** Of a processor that it may take, from 0 to 1. */
  share?: number;
}

/**
 * Returns how many were given back. `startedTick`: before the sweep that counted the references. The caller holds the
 * lock. Never keeps the event loop for more than a few milliseconds.
 */
export async function releaseLastHops(
  tables: Tables,
  startedTick: number,
  idleTicks: number,
  { share = 1 }: ReleaseOptions = {},
): Promise<number> {
  if (isMigrating(tables)) return 0;
  const run = <T>(work: Pieces<T>): Promise<T> => inPieces(work, share);
  const survey = await run(surveyLastHops(tables.lastHops));
  const lost = findLost(survey);
  const candidates = await run(findCandidates(tables, survey, startedTick, idleTicks));
  let released = 0;
  if (candidates.length + lost.length > 0) {
    await run(dropKeys(tables, candidates));
    await sleep(GRACE_MS);
    const idle = await run(clearIdle(tables, candidates));
    await sleep(GRACE_MS);
    const stillLost = lost.length > 0 ? await run(recheckLost(tables, lost)) : [];
    released = await run(giveBack(tables, [...idle, ...stillLost]));
  }
  await run(recountBudgets(tables));
  return released;
}

function isMigrating(tables: Tables): boolean {
  return tables.control.get().migrating !== 0;
}

function* findCandidates(
  tables: Tables,
  survey: Survey,
  startedTick: number,
  idleTicks: number,
): Pieces<Candidate[]> {
  const { lastHops } = tables;
  const aliased = aliasTargets(survey.aliases);
  const refs = tables.sweep.endedRefs();
  const found = new Map<number, Candidate>();
  let looked = 0;
  for (let index = 0; index < survey.used; index++) {
    if (!mayGo(survey, index) || aliased[index]) continue;
    if (++looked % LOOKUPS === 0) yield;
    if (lastHops.refs.get(refs + index) !== 0) continue;
    const lastSeen = lastHops.traffic(index).last_seen || survey.created[index]!;
    // Signed: ticks wrap.
    if (((startedTick - lastSeen) | 0) < Math.max(idleTicks, 2)) continue;
    const record = lastHops.records.get(index);
    if (!record || record.generation !== survey.generations[index]) continue;
    const { generation, origin } = record;
    found.set(index, { index, generation, origin, owner: ownerOf(record), keys: [] });
    if (found.size === CANDIDATES_MAX) break;
  }
  if (found.size === 0) return [];
  const keys = yield* keysOf(lastHops, (index) => found.has(index));
  const candidates: Candidate[] = [];
  for (const candidate of found.values()) {
    const own = keys.get(candidate.index) ?? [];
    // A key of a device's that came meanwhile.
    if (own.length === 0 || candidate.origin === ORIGIN.LEARNED) candidates.push({ ...candidate, keys: own });
    if (candidates.length % PIECE === 0) yield;
  }
  return candidates;
}

/** By what the record says alone. One in the making, or lost, has no alias of its generation. */
function mayGo(survey: Survey, index: number): boolean {
  const { generation } = splitLastHop(survey.aliases[index]!);
  if (!isInUse(survey.kinds[index]) || generation === 0) return false;
  if (generation !== survey.generations[index]) return false;
  return survey.keys[index] === 0 || survey.origins[index] === ORIGIN.LEARNED;
}

function* dropKeys(tables: Tables, candidates: readonly Candidate[]): Pieces<void> {
  let dropped = 0;
  for (const { keys } of candidates) {
    for (const key of keys) {
      tables.lastHops.keys.delete(key);
      if (++dropped % LOOKUPS === 0) yield;
    }
  }
}

/** Steps 3 and 4. Those that can go, their aliases cleared; the others have their keys again. */
function* clearIdle(tables: Tables, candidates: readonly Candidate[]): Pieces<Candidate[]> {
  if (candidates.length === 0) return [];
  const named = yield* referenced(tables, candidates);
  const aliases = new Uint32Array(tables.lastHops.used());
  yield* readAliases(tables.lastHops, aliases);
  const targets = aliasTargets(aliases);
  const migrating = isMigrating(tables);
  const idle: Candidate[] = [];
  let looked = 0;
  for (const candidate of candidates) {
    if (++looked % LOOKUPS === 0) yield;
    const { index, generation } = candidate;
    const stays =
      migrating ||
      named.has(joinLastHop(generation, index)) ||
      targets[index] === 1 ||
      !isUnchanged(tables, candidate);
    if (stays && restoreKeys(tables, candidate)) continue;
    tables.lastHops.aliases.set(index, 0);
    idle.push(candidate);
  }
  return idle;
}

/** Neither taken over by a device nor released by somebody else. */
function isUnchanged(tables: Tables, { index, generation, origin, owner }: Candidate): boolean {
  const record = tables.lastHops.records.get(index);
  return record?.generation === generation && record.origin === origin && ownerOf(record) === owner;
}

/** False if another index has one of its keys: then it goes nevertheless. */
function restoreKeys(tables: Tables, { index, keys }: Candidate): boolean {
  const missing = keys.filter((key) => !tables.lastHops.keys.insert(key, index));
  return missing.every((key) => tables.lastHops.keys.get(key) === index);
}

/** References of candidates that some flow has. Embryos come first, so that one which is promoted is not missed. */
function* referenced(tables: Tables, candidates: readonly Candidate[]): Pieces<Set<number>> {
  const asked = new Set<number>();
  for (const { index, generation } of candidates) {
    asked.add(joinLastHop(generation, index));
    if (asked.size % PIECE === 0) yield;
  }
  const found = new Set<number>();
  const { last_hop, flags } = FLOW.fields;
  for (const table of tables.flows.all.toReversed()) {
    for (const { count, values } of table.batches()) {
      for (let place = 0; place < count; place++) {
        const at = place * table.valueSize;
        if (values[at + flags.offset]! & FLOW_FLAG.LOCAL_ORIGIN) continue;
        const reference = values.readUInt32LE(at + last_hop.offset);
        if (asked.has(reference)) found.add(reference);
      }
      yield;
    }
  }
  return found;
}

/** Steps 6 and 7. */
function* giveBack(tables: Tables, indices: readonly { index: number }[]): Pieces<number> {
  let released = 0;
  let done = 0;
  for (const { index } of indices) {
    if (tables.lastHops.giveBack(index)) released++;
    if (++done % LOOKUPS === 0) yield;
  }
  return released;
}

type Lost = Pick<Candidate, "index" | "generation">;

/** Records that an interrupted release left: no key, no alias, but a kind. */
function findLost(survey: Survey): Lost[] {
  const lost: Lost[] = [];
  for (let index = 0; index < survey.used; index++) {
    if (isLost(survey, index)) lost.push({ index, generation: survey.generations[index]! });
  }
  return lost;
}

function isLost(survey: Survey, index: number): boolean {
  return (
    survey.kinds[index] !== LAST_HOP_KIND.NONE && survey.aliases[index] === 0 && survey.keys[index] === 0
  );
}

/** A record that was just being made has an alias or a key by now. */
function* recheckLost(tables: Tables, lost: readonly Lost[]): Pieces<Lost[]> {
  const survey = yield* surveyLastHops(tables.lastHops);
  return lost.filter(
    ({ index, generation }) => isLost(survey, index) && survey.generations[index] === generation,
  );
}

/**
 * Counts anew rather than down: an update from here can overwrite an increment by the hot path, and so every
 * such error ends with the next sweep.
 */
function* recountBudgets(tables: Tables): Pieces<void> {
  const survey = yield* surveyLastHops(tables.lastHops);
  const counts = new Map<number, number>();
  for (let index = 0; index < survey.used; index++) {
    const counted =
      isInUse(survey.kinds[index]) && survey.keys[index]! > 0 && survey.origins[index] === ORIGIN.LEARNED;
    const ifindex = survey.ifindexes[index]!;
    if (counted) counts.set(ifindex, (counts.get(ifindex) ?? 0) + 1);
  }
  for (const { ifindex, slot } of tables.interfaces.list()) {
    const budget = slot === 0 ? undefined : tables.budgets.get(slot);
    const last_hops = counts.get(ifindex) ?? 0;
    if (budget && budget.last_hops !== last_hops) tables.budgets.set(slot, { ...budget, last_hops });
  }
}
