// SPDX-License-Identifier: Apache-2.0
// The last hops of one interface: when it is attached, detached, or returns as another.

import { joinLastHop, splitLastHop } from "../abi/codec.ts";
import { LAST_HOP_DROP, LAST_HOP_ROUTE, ORIGIN } from "../abi/layout.gen.ts";
import { type LastHopRecord, type LastHopTables, NOBODY, ownerOf, ownership } from "../tables/index.ts";
import { isInUse, keysOf, type LastHopKey, type Survey, surveyLastHops } from "./lastHopSurvey.ts";
import { type Encapsulated, isSameWay, type WayOut, wayOf } from "./lastHopWay.ts";
import { atOnce } from "./pieces.ts";

/** Those of this interface that frames lead to, and what leads there. */
function keyedLastHops(
  tables: LastHopTables,
  ifindex: number,
  survey = atOnce(surveyLastHops(tables)),
): Map<number, LastHopKey[]> {
  return atOnce(keysOf(tables, (index) => isOf(survey, index, ifindex)));
}

function isOf(survey: Survey, index: number, ifindex: number): boolean {
  return isInUse(survey.kinds[index]) && survey.ifindexes[index] === ifindex;
}

/**
 * The replies of all flows that use a record of this interface take the VM's own route, whichever index they name.
 * Returns the indices that did not before; `only` these are looked at.
 */
export function markRoute(tables: LastHopTables, ifindex: number, only?: readonly number[]): number[] {
  const survey = atOnce(surveyLastHops(tables));
  const marked: number[] = [];
  for (const index of only ?? indices(survey)) {
    const { generation, index: target } = splitLastHop(survey.aliases[index] ?? 0);
    if (generation === 0 || !isOf(survey, target, ifindex)) continue;
    tables.setAlias(index, generation, "route");
    marked.push(index);
  }
  return marked;
}

/** Takes markRoute back. Returns the indices that are up again. */
export function markUp(tables: LastHopTables, ifindex: number, only?: readonly number[]): number[] {
  const survey = atOnce(surveyLastHops(tables));
  const marked: number[] = [];
  for (const index of only ?? indices(survey)) {
    const { generation, index: target } = splitLastHop(survey.aliases[index] ?? 0);
    if (generation === 0 || target !== LAST_HOP_ROUTE) continue;
    const home = homeOf(tables, index);
    if (!isOf(survey, home, ifindex)) continue;
    tables.setAlias(index, generation, home);
    marked.push(index);
  }
  return marked;
}

function* indices({ used }: Survey): Generator<number> {
  for (let index = 0; index < used; index++) yield index;
}

/** The record that an index stands for while nothing is down: itself, or what took its place. */
export function homeOf(tables: LastHopTables, index: number): number {
  const record = tables.records.get(index);
  const successor = record ? record.successor : 0;
  if (!isLive(tables, successor)) return index;
  return splitLastHop(successor).index;
}

/** Whether a reference is that of a record in use. */
export function isLive(tables: LastHopTables, reference: number): boolean {
  const { generation, index } = splitLastHop(reference);
  const record = generation === 0 ? undefined : tables.records.get(index);
  return record !== undefined && isInUse(record.kind) && record.generation === generation;
}

export interface RemapTarget {
  ifindex: number;
  slot: number;
  /** What the host's frames come from there. */
  sourceMac: Buffer;
  /** How its replies leave; as before if left out. */
  way?: WayOut;
}

/** Whether a record of these says what a new one would. */
export function isAsNew(
  { slot, sourceMac, ...record }: Omit<RemapTarget, "ifindex" | "way"> & Encapsulated,
  to: RemapTarget,
): boolean {
  const same = slot === to.slot && sourceMac.equals(to.sourceMac);
  return same && (to.way === undefined || isSameWay(record, wayOf(record, to.way)));
}

/**
 * An interface has returned under another index, or its slot or the host's MAC have changed. Records never change,
 * so each gets a new one; keys of the new index lead there, and the old index stands for it: all of its flows follow
 * by that one write. What stood for the old record is repointed too. Last hops of a device that is down stay so.
 * Returns how many there were. Those for which no index is left lose their keys: their flows heal with the next
 * request.
 */
export function remapLastHops(tables: LastHopTables, fromIfindex: number, to: RemapTarget): number {
  const survey = atOnce(surveyLastHops(tables));
  const successors = new Map<number, number>();
  for (const [index, keys] of keyedLastHops(tables, fromIfindex, survey)) {
    const record = tables.records.get(index);
    if (!record || isRecordOf(record, to)) continue;
    const made = tables.create(remapped(record, to));
    if (made && isDownByDevice(record, survey.aliases[index]!)) {
      tables.setAlias(made.index, made.generation, splitLastHop(survey.aliases[index]!).index);
    }
    for (const key of keys) {
      if (made) tables.keys.set({ ...key, ifindex: to.ifindex }, made.index);
      if (!made || to.ifindex !== fromIfindex) tables.keys.delete(key);
    }
    if (made) successors.set(index, joinLastHop(made.generation, made.index));
  }
  repoint(tables, survey, successors);
  return successors.size;
}

function isRecordOf(record: LastHopRecord, to: RemapTarget): boolean {
  const { slot, source_mac: sourceMac } = record;
  return record.ifindex === to.ifindex && isAsNew({ slot, sourceMac, ...encapsulated(record) }, to);
}

function encapsulated({ kind, mark, encapsulated, encapsulation }: LastHopRecord): Encapsulated {
  return { kind, mark, encapsulated, labels: encapsulation.labels };
}

function remapped(record: LastHopRecord, { ifindex, slot, sourceMac, way }: RemapTarget) {
  const leaves = way && wayOf(encapsulated(record), way);
  return { ...record, ...leaves, ifindex, slot, source_mac: sourceMac, ...ownership(ownerOf(record)) };
}

function isDownByDevice(record: LastHopRecord, alias: number): boolean {
  const { index } = splitLastHop(alias);
  return ownerOf(record) !== NOBODY && (index === LAST_HOP_ROUTE || index === LAST_HOP_DROP);
}

/** Whoever stands for, or only uses, a record with a successor. */
function repoint(tables: LastHopTables, survey: Survey, successors: ReadonlyMap<number, number>): void {
  if (successors.size === 0) return;
  for (const index of indices(survey)) {
    const { generation, index: target } = splitLastHop(survey.aliases[index]!);
    if (generation === 0) continue;
    const record = tables.records.get(index)!;
    const home = target === index ? index : homeOf(tables, index);
    const successor = successors.get(home);
    if (successor !== undefined) {
      tables.records.set(index, { ...record, ...ownership(ownerOf(record), successor) });
      const stays = target !== home && (target !== LAST_HOP_ROUTE || ownerOf(record) !== NOBODY);
      if (!stays) tables.setAlias(index, generation, splitLastHop(successor).index);
    }
    // That of a device that is down, on the record of another.
    const used = target === home ? undefined : successors.get(target);
    if (used !== undefined) tables.setAlias(index, generation, splitLastHop(used).index);
  }
}

/** What counts against the interface's budget: those that were learned. */
export function countLastHops(tables: LastHopTables, ifindex: number): number {
  const survey = atOnce(surveyLastHops(tables));
  let count = 0;
  for (const index of indices(survey)) {
    if (isOf(survey, index, ifindex) && survey.keys[index]! > 0 && survey.origins[index] === ORIGIN.LEARNED)
      count++;
  }
  return count;
}
