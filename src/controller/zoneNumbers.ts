// SPDX-License-Identifier: Apache-2.0
// Which zones are counted each by itself: those of attached interfaces, and those that still have flows.

import { TABLES, ZONES_MAX } from "../abi/layout.gen.ts";
import type { Tables } from "../tables/index.ts";

export interface ZoneNumbers {
  /** Zone → its number, for those that keep theirs. */
  numbers: Map<number, number>;
  /** Zones that get one, and which. */
  added: Map<number, number>;
  /** Zones that lose theirs. */
  removed: number[];
}

/**
 * `wanted`: zones of interfaces; `hasFlows`: whether the last pass found flows of the zone with this number. Numbers
 * are 1 to ZONES_MAX - 1; zones beyond that are counted together as number 0.
 */
export function planZoneNumbers(
  present: ReadonlyMap<number, number>,
  wanted: Iterable<number>,
  hasFlows: (number: number) => boolean,
): ZoneNumbers {
  const missing = new Set(wanted);
  const plan: ZoneNumbers = { numbers: new Map(), added: new Map(), removed: [] };
  for (const [zone, number] of present) {
    if (missing.delete(zone) || hasFlows(number)) plan.numbers.set(zone, number);
    else plan.removed.push(zone);
  }
  const taken = new Set(plan.numbers.values());
  let number = 1;
  for (const zone of [...missing].sort((a, b) => a - b)) {
    while (taken.has(number)) number++;
    if (number >= ZONES_MAX) break;
    plan.added.set(zone, number++);
  }
  return plan;
}

/** Brings the zones up to date; returns zone → number. The caller's `locked` keeps other writers away. */
export async function ensureZoneNumbers(
  tables: Tables,
  locked: <T>(change: () => T | Promise<T>) => Promise<T>,
): Promise<Map<number, number>> {
  const plan = planNow(tables);
  if (plan.added.size === 0 && plan.removed.length === 0) return plan.numbers;
  return await locked(() => {
    const { numbers, added, removed } = planNow(tables);
    for (const zone of removed) tables.zones.delete(zone);
    for (const [zone, number] of added) {
      tables.sweep.resetZone(number, "ended");
      tables.zones.set(zone, number);
      numbers.set(zone, number);
    }
    return numbers;
  });
}

function planNow(tables: Tables): ZoneNumbers {
  const zones = tables.interfaces.list().flatMap(({ slot, zone }) => (slot === 0 ? [] : [zone]));
  return planZoneNumbers(new Map(tables.zones.entries()), zones, (number) => {
    const counts = Array.from({ length: TABLES }, (_, table) =>
      tables.sweep.zoneStates(number, table, "ended"),
    );
    return counts.some((states) => states.some((count) => count > 0));
  });
}
