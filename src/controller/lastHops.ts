// SPDX-License-Identifier: Apache-2.0
// The last hops of one interface, when it is attached or detached.

import { formatMac } from "../addresses.ts";
import { aliasState, type LastHopTables } from "../tables/index.ts";

interface OwnLastHop {
  index: number;
  key: Parameters<LastHopTables["keys"]["delete"]>[0];
  generation: number;
  slot: number;
  sourceMac: Buffer;
  state: ReturnType<typeof aliasState>["state"];
}

/** Those that frames of this interface lead to. */
function lastHopsOf(tables: LastHopTables, ifindex: number, only?: readonly number[]): OwnLastHop[] {
  const found: OwnLastHop[] = [];
  for (const [key, index] of tables.keys.entries()) {
    if (key.ifindex !== ifindex || (only && !only.includes(index))) continue;
    const record = tables.records.get(index);
    const alias = tables.aliases.get(index);
    if (!record || alias === undefined || record.ifindex !== ifindex) continue;
    const { state } = aliasState(index, alias);
    found.push({
      index,
      key,
      generation: record.generation,
      slot: record.slot,
      sourceMac: record.source_mac,
      state,
    });
  }
  return found;
}

/** The slot that the interface's records name, if it was attached before. */
export function formerSlot(tables: LastHopTables, ifindex: number): number | undefined {
  return lastHopsOf(tables, ifindex)[0]?.slot;
}

/** Every slot that a record names which frames can still lead to. */
export function slotsInUse(tables: LastHopTables): Set<number> {
  const slots = new Set<number>();
  for (const [, index] of tables.keys.entries()) {
    const slot = tables.records.get(index)?.slot;
    if (slot) slots.add(slot);
  }
  return slots;
}

/**
 * The replies of its flows take the VM's own route. Returns the indices that were up; `only` these are looked at.
 */
export function markRoute(tables: LastHopTables, ifindex: number, only?: readonly number[]): number[] {
  const up = lastHopsOf(tables, ifindex, only).filter((lastHop) => lastHop.state === "up");
  for (const { index, generation } of up) tables.setAlias(index, generation, "route");
  return up.map(({ index }) => index);
}

/** Takes markRoute back. Returns the indices that are up again. */
export function markUp(tables: LastHopTables, ifindex: number, only?: readonly number[]): number[] {
  const down = lastHopsOf(tables, ifindex, only).filter((lastHop) => lastHop.state === "route");
  for (const { index, generation } of down) tables.setAlias(index, generation, index);
  return down.map(({ index }) => index);
}

/**
 * Records never change, so those made when the interface had another slot or the host another MAC are let go:
 * frames find no key and make new ones, flows find no record and learn anew. Returns their indices, to be given
 * back when no packet can still be using the record.
 */
export function forgetOutdated(
  tables: LastHopTables,
  ifindex: number,
  slot: number,
  hostMac: string,
): number[] {
  const outdated = lastHopsOf(tables, ifindex).filter(
    (lastHop) => lastHop.slot !== slot || formatMac(lastHop.sourceMac) !== hostMac,
  );
  for (const { index, key } of outdated) {
    tables.keys.delete(key);
    tables.aliases.set(index, 0);
  }
  return outdated.map(({ index }) => index);
}

/** What counts against the interface's budget. */
export function countLastHops(tables: LastHopTables, ifindex: number): number {
  return lastHopsOf(tables, ifindex).length;
}
