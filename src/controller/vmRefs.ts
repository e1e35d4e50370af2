// SPDX-License-Identifier: Apache-2.0
// What a pass of the sweep says of VMs: how many flows of services each has, and which that nobody names any more has
// none, so that its cell is free.

import { LAST_HOPS_MAX, VM_STATE, VMS_MAX } from "../abi/layout.gen.ts";
import type { Tables, VmCell } from "../tables/index.ts";

/** When a pass begins; null where there is no VM. */
export type VmCount = Counting | null;

interface Counting {
  /** First row of vm_refs that it counts in. */
  base: number;
  /** Open flows by cell. */
  flows: Int32Array;
  /** Nobody names them any more, by cell: what came to them came before this pass. */
  leaving: ReadonlyMap<number, VmCell>;
}

/** `refs`: the half of last_hop_refs that the pass counts in; its cells of vm_refs begin at 0. */
export function beginVmCount({ guests, control }: Tables, refs: number): VmCount {
  if (control.get().vm_cells === 0) return null;
  const base = refs === LAST_HOPS_MAX ? VMS_MAX : 0;
  guests.clearRefs(base);
  return { base, flows: guests.readFlows(), leaving: leavingCells(guests) };
}

function leavingCells(guests: Tables["guests"]): Map<number, VmCell> {
  const cells = guests.inUse();
  if (cells.size === 0) return cells;
  const named = guests.namedIds();
  return new Map(
    [...cells].filter(([, { id, state }]) => {
      return !named.has(id) && (state === VM_STATE.DRAIN || state === VM_STATE.DOWN);
    }),
  );
}

/**
 * After a complete pass: what programs count one by one is set right, since the LRU evicts without a word. The pass saw
 * each flow at some time of its own: what came and went meanwhile was seen half of the time.
 */
export function setFlowCounts({ guests }: Tables, count: VmCount): void {
  if (count === null) return;
  const { base, flows } = count;
  const cells = guests.inUse();
  const counted = guests.readRefs(base);
  const now = guests.readFlows();
  for (const cell of cells.keys()) {
    const right = Math.max(0, counted[cell]! + Math.round((now[cell]! - flows[cell]!) / 2));
    if (right !== now[cell]) guests.flows.set(cell, right);
  }
}

/** Frees the cells that nobody names and no flow does either. Returns how many. The caller holds the lock. */
export function releaseCells(tables: Tables, count: VmCount): number {
  if (count === null || count.leaving.size === 0) return 0;
  const { base, leaving } = count;
  const { guests, control } = tables;
  const still = leavingCells(guests);
  let released = 0;
  for (const [cell, { id }] of leaving) {
    const vm = still.get(cell);
    if (vm?.id !== id || guests.isReferred(base, cell)) continue;
    // All else stays for whoever is just reading it.
    guests.cells.set(cell, { ...vm, id: 0 });
    guests.flows.set(cell, 0);
    released++;
  }
  if (released > 0) control.set({ vm_cells: guests.inUse().size });
  return released;
}
