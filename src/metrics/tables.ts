// SPDX-License-Identifier: Apache-2.0
// How full the tables are.

import type { DaemonMetrics } from "./daemon.ts";
import { Family, Labels } from "./family.ts";
import { type EndedPass, STATE_LABELS } from "./flows.ts";
import type { ScrapeSource } from "./source.ts";

/** Hash tables that are not walked by sweeps; small, or as full as there are devices and VMs. */
const COUNTED = ["last_hop_index", "vms", "fragments", "interfaces", "devices", "zones"] as const;
const CHUNK = 4096;

/** `counted`: entries of tables that the scrape has read already. */
export async function tableFamilies(
  source: ScrapeSource,
  passes: readonly EndedPass[],
  counted: Readonly<Record<string, number>>,
  daemon: DaemonMetrics | undefined,
): Promise<Family[]> {
  const size = new Family("gauge", "lasthop_table_size", "Entries that a table has room for.");
  const entries = new Family(
    "gauge",
    "lasthop_table_entries",
    "Entries of a table; those of the flow tables as the last sweep left them.",
  );
  const fill = new Family(
    "gauge",
    "lasthop_table_fill_ratio",
    "Entries of a table, of those it has room for.",
  );
  const pressure = new Family(
    "gauge",
    "lasthop_table_pressure_ratio",
    "What a flow table would have to hold, of what it has room for: the flows that the last sweep left, and those evicted since the sweep before.",
  );
  const evictions = new Family(
    "counter",
    "lasthop_table_evictions_total",
    "Flows that a full table has evicted, by the state that they were in.",
  );
  const add = (table: string, count: number | undefined, room: number) => {
    const labels = new Labels({ table });
    size.add(room, labels);
    if (count === undefined) return;
    entries.add(count, labels);
    fill.add(count / room, labels);
  };
  const { instance, tables } = source;
  for (const { name, map } of tables.flows.all) {
    const report = passes.find(({ table }) => table.name === name)?.report;
    const left = report && Math.max(0, report.entries - report.expired);
    const room = map.info().maxEntries;
    add(name, left, room);
    if (!report || left === undefined) continue;
    const labels = new Labels({ table: name });
    report.evicted.forEach((count, state) => {
      evictions.add(count, labels, STATE_LABELS[state]);
    });
    const evicted = daemon?.evictedInLastPass(name);
    if (evicted !== undefined) pressure.add((left + evicted) / room, { table: name });
  }
  for (const [name, count] of Object.entries(counted)) add(name, count, instance.map(name).info().maxEntries);
  for (const name of COUNTED) {
    const map = instance.map(name);
    let count = 0;
    for (const batch of map.batches(CHUNK)) {
      count += batch.count;
      await source.pace.rest();
    }
    add(name, count, map.info().maxEntries);
  }
  return [size, entries, fill, pressure, evictions];
}
