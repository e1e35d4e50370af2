// SPDX-License-Identifier: Apache-2.0
// The kernel's times as Prometheus has them.

import { TICK_SHIFT } from "../abi/layout.gen.ts";

/** Unix time of a time of CLOCK_MONOTONIC in nanoseconds. */
export function unixSeconds(monotonicNs: number): number {
  const ago = (Number(process.hrtime.bigint()) - monotonicNs) / 1e9;
  return round(Date.now() / 1000 - ago);
}

/** Unix time of a tick. Signed: ticks wrap. */
export function tickUnixSeconds(tick: number): number {
  const now = process.hrtime.bigint() >> BigInt(TICK_SHIFT);
  const ago = (Number(BigInt.asUintN(32, now)) - tick) | 0;
  return unixSeconds(Number((now - BigInt(ago)) << BigInt(TICK_SHIFT)));
}

/** The two clocks do not run alike to the microsecond: a time must not seem to change with each scrape. */
function round(seconds: number): number {
  return Math.round(seconds * 10) / 10;
}
