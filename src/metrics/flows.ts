// SPDX-License-Identifier: Apache-2.0
// What the last sweep found. No scrape walks the flows.

import { FLOW_STATE_NAMES, type StructValue } from "../abi/codec.ts";
import { AGE_BUCKETS } from "../abi/layout.gen.ts";
import type { FlowTable } from "../tables/index.ts";
import { Family, Labels } from "./family.ts";
import type { ScrapeSource } from "./source.ts";
import { unixSeconds } from "./time.ts";

export interface EndedPass {
  table: FlowTable;
  report: StructValue<"sweep_report">;
}

/** Of each flow table the last pass that ended, if there was one. */
export function endedPasses({ tables }: ScrapeSource): EndedPass[] {
  return tables.flows.all
    .map((table) => ({ table, report: tables.sweep.ended(table.table) }))
    .filter(({ report }) => report.finished_ns > 0);
}

const AGE_LABELS = Array.from(
  { length: AGE_BUCKETS },
  (_, bucket) => new Labels({ below_seconds: bucket === AGE_BUCKETS - 1 ? "+Inf" : 2 ** bucket }),
);

export function sweepFamilies(passes: readonly EndedPass[]): Family[] {
  const ended = new Family(
    "gauge",
    "lasthop_sweep_last_end_timestamp_seconds",
    "When the last sweep of a table ended.",
  );
  const duration = new Family(
    "gauge",
    "lasthop_sweep_last_duration_seconds",
    "How long the last sweep of a table took, its pauses included.",
  );
  const busy = new Family(
    "gauge",
    "lasthop_sweep_last_busy_seconds",
    "How long the kernel was at work in the last sweep of a table.",
  );
  const entries = new Family(
    "gauge",
    "lasthop_sweep_last_entries",
    "Entries that the last sweep of a table saw.",
  );
  const expired = new Family(
    "gauge",
    "lasthop_sweep_last_expired",
    "Entries that the last sweep of a table expired.",
  );
  const ages = new Family(
    "gauge",
    "lasthop_flows_by_idle_time",
    "Entries that had been idle for less than below_seconds, and not for less than the bucket before.",
  );
  const local = new Family(
    "gauge",
    "lasthop_local_origin_flows",
    "Flows that VMs opened themselves, as the last sweep found them.",
  );
  for (const { table, report } of passes) {
    const labels = new Labels({ table: table.name });
    ended.add(unixSeconds(report.finished_ns), labels);
    duration.add((report.finished_ns - report.started_ns) / 1e9, labels);
    busy.add(report.busy_ns / 1e9, labels);
    entries.add(report.entries, labels);
    expired.add(report.expired, labels);
    local.add(report.local_origin, familyAndTier(table));
    report.ages.forEach((count, bucket) => {
      ages.add(count, labels, AGE_LABELS[bucket]);
    });
  }
  return [ended, duration, busy, entries, expired, ages, local];
}

function familyAndTier({ family, tier }: FlowTable): { family: string; tier: string } {
  return { family: `ipv${family}`, tier };
}

/** Where the flows of zones that have no number of their own are counted. */
const OTHER_ZONES = { zone: "other", number: 0 };

export async function flowFamilies(
  { tables, pace }: ScrapeSource,
  passes: readonly EndedPass[],
): Promise<Family[]> {
  const flows = new Family(
    "gauge",
    "lasthop_flows",
    "Flows by zone and state, as the last sweep found them before it expired the idle ones.",
  );
  const zones = [...tables.zones.entries()].map(([zone, number]) => ({ zone: String(zone), number }));
  zones.sort((a, b) => Number(a.zone) - Number(b.zone));
  for (const { zone, number } of [...zones, OTHER_ZONES]) {
    for (const { table } of passes) {
      const states = tables.sweep.zoneStates(number, table.table, "ended");
      if (number === OTHER_ZONES.number && states.every((count) => count === 0)) continue;
      const labels = new Labels({ zone, ...familyAndTier(table) });
      states.forEach((count, state) => {
        flows.add(count, labels, STATE_LABELS[state]);
      });
    }
    await pace.rest();
  }
  return [flows];
}

export const STATE_LABELS = FLOW_STATE_NAMES.map((state) => new Labels({ state }));
