// SPDX-License-Identifier: Apache-2.0
// By which id flows name a VM, and in which cell the hot path finds it by that. Pure.

import { cellsFor, type VmCell } from "../tables/index.ts";
import { vmKeyOf } from "./vmPlaces.ts";
import { freshId } from "./vms.ts";

export interface CellRequest {
  name: string;
  zone: number;
  mac: Buffer;
  /** It has a tap: without one it gets no id and no cell that it does not have. */
  hasTap: boolean;
  /** Under which its entry knows this MAC; 0 for none. */
  id: number;
}

export interface CellFacts {
  /** Ids that the hot path knows, by vmKeyOf. */
  known: ReadonlyMap<string, { id: number }>;
  /** Those in use. */
  cells: ReadonlyMap<number, VmCell>;
}

export interface CellPlan {
  id: number;
  /** Null: every cell that its id allows is another's. */
  cell: number | null;
  /** It was in no cell before. */
  isNew: boolean;
}

/** Of ids that are drawn for a new VM, until one has a free cell: the first nearly always has. */
const DRAWS = 1000;

/** By name; those that get nothing are left out. An id that flows may name stays, whatever cells are free. */
export function planCells(requests: readonly CellRequest[], facts: CellFacts): Map<string, CellPlan> {
  const plans = new Map<string, CellPlan>();
  const byId = new Map([...facts.cells].map(([cell, { id }]) => [id, cell]));
  const occupied = new Set(facts.cells.keys());
  const ids = new Set([...byId.keys(), ...[...facts.known.values()].map(({ id }) => id)]);
  for (const { id } of requests) if (id !== 0) ids.add(id);
  const given = new Set<number>();
  const later: CellRequest[] = [];
  for (const request of requests) {
    const { name, zone, mac, hasTap } = request;
    const wanted = facts.known.get(vmKeyOf(zone, mac))?.id ?? request.id;
    // Two of one id are what nobody of us has entered: the second gets another.
    const id = given.has(wanted) ? 0 : wanted;
    if (id !== 0) given.add(id);
    const own = id === 0 ? undefined : byId.get(id);
    if (own !== undefined) plans.set(name, { id, cell: own, isNew: false });
    else if (hasTap && id === 0) later.push(request);
    else if (hasTap) plans.set(name, { id, cell: take(id, occupied), isNew: true });
  }
  for (const { name } of later) {
    let id = freshId(ids);
    let cell = take(id, occupied);
    for (let draw = 1; draw < DRAWS && cell === null; draw++) {
      id = freshId(ids);
      cell = take(id, occupied);
    }
    ids.add(id);
    plans.set(name, { id, cell, isNew: true });
  }
  return plans;
}

function take(id: number, occupied: Set<number>): number | null {
  const free = cellsFor(id).find((cell) => !occupied.has(cell));
  if (free === undefined) return null;
  occupied.add(free);
  return free;
}
