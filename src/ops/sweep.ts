// SPDX-License-Identifier: Apache-2.0

import { AGE_BUCKETS } from "../abi/layout.gen.ts";
import { sweepInstance } from "../controller/sweep.ts";
import { openInstance, withLock } from "../kernel/instance.ts";
import { stateName } from "./flowView.ts";
import type { OpContext, SweepReport } from "./types.ts";

export interface SweepOptions {
  /** Expire what was idle for so long, whatever its protocol and state. */
  idle_seconds?: number;
}

/** One expiry pass. Takes the lock: last hops are given back at the end. */
export async function sweep(context: OpContext, options: SweepOptions = {}): Promise<SweepReport> {
  const result = await withLock(context.pinRoot, async () => {
    const instance = openInstance(context.pinRoot);
    try {
      return await sweepInstance(
        instance,
        options.idle_seconds === undefined ? {} : { idleSeconds: options.idle_seconds },
      );
    } finally {
      instance.close();
    }
  });
  return {
    duration_seconds: result.durationNs / 1e9,
    longest_call_seconds: result.longestCallNs / 1e9,
    calls: result.calls,
    tables: result.tables.map(({ name, report }) => ({
      table: name,
      entries: report.entries,
      expired: report.expired,
      states: Object.fromEntries(report.states.map((count, state) => [stateName(state), count])),
      local_origin: report.local_origin,
      ages_seconds: ages(report.ages),
    })),
    last_hops_released: result.lastHopsReleased,
  };
}

/** Keys are upper bounds: "4" counts those idle for 2 up to 4 seconds. */
function ages(buckets: readonly number[]): Record<string, number> {
  return Object.fromEntries(
    buckets.map((count, bucket) => [bucket === AGE_BUCKETS - 1 ? "inf" : String(2 ** bucket), count]),
  );
}
