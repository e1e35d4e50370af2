// SPDX-License-Identifier: Apache-2.0

import { AGE_BUCKETS } from "../abi/layout.gen.ts";
import { sweepPinned } from "../controller/sweep.ts";
import { stateName } from "./flowView.ts";
import type { OpContext, SweepReport } from "./types.ts";

/** As long as other commands wait for each other. */
const WAIT_MS = 5000;

export interface SweepOptions {
  /** Expire what was idle for so long, whatever its protocol and state. */
  idle_seconds?: number;
}

/** One expiry pass, without rests. E_LOCKED if another goes on for longer than 5 seconds. */
export async function sweep(context: OpContext, options: SweepOptions = {}): Promise<SweepReport> {
  const { idle_seconds: idleSeconds } = options;
  const result = await sweepPinned(context.pinRoot, {
    waitMs: WAIT_MS,
    ...(idleSeconds !== undefined && { idleSeconds }),
  });
  return {
    duration_seconds: result.durationNs / 1e9,
    longest_call_seconds: result.longestCallNs / 1e9,
    calls: result.calls,
    tables: result.tables.map(({ name, report }) => ({
      table: name,
      entries: report.entries,
      expired: report.expired,
      states: byState(report.states),
      local_origin: report.local_origin,
      ages_seconds: ages(report.ages),
      evicted: byState(report.evicted),
    })),
    zones: result.zones.map(({ zone, table, states }) => ({ zone, table, states: byState(states) })),
    last_hops_released: result.lastHopsReleased,
    clock_repaired: result.clockRepaired,
  };
}

function byState(counts: readonly number[]): Record<string, number> {
  return Object.fromEntries(counts.map((count, state) => [stateName(state), count]));
}

/** Keys are upper bounds: "4" counts those idle for 2 up to 4 seconds. */
function ages(buckets: readonly number[]): Record<string, number> {
  return Object.fromEntries(
    buckets.map((count, bucket) => [bucket === AGE_BUCKETS - 1 ? "inf" : String(2 ** bucket), count]),
  );
}
