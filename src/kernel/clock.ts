// SPDX-License-Identifier: Apache-2.0
// How the kernel's jiffies and CLOCK_MONOTONIC go together, for programs that read the cheaper of the two.

import { TICK_SHIFT } from "../abi/layout.gen.ts";

/** Values of CONFIG_HZ on x86-64 and arm64 (kernel/Kconfig.hz). */
const FREQUENCIES_HZ = [100, 250, 300, 1000];
/** Jiffies start this long before 32 bits overflow (INITIAL_JIFFIES, include/linux/jiffies.h). */
const OVERFLOW_SECONDS = 300;
/** The first tick comes late by this much at most. */
const LATE_SECONDS = 2;

export interface JiffiesClock {
  /** Jiffies when the clock was 0. */
  jiffies_base: bigint;
  /** Ticks of 2^TICK_SHIFT ns in a jiffy, times 2^32. */
  jiffies_mult: number;
}

/**
 * From one reading of both. Null if more than one frequency fits, as it does about 300 s after boot: the
 * programs read the clock itself then.
 */
export function jiffiesClock(jiffies: bigint, timeNs: bigint): JiffiesClock | null {
  const seconds = Number(timeNs) / 1e9;
  const fitting = FREQUENCIES_HZ.filter((hz) => {
    const late = 2 ** 32 - OVERFLOW_SECONDS * hz + seconds * hz - Number(jiffies);
    return Math.abs(late) <= LATE_SECONDS * hz;
  });
  const [hz] = fitting;
  if (hz === undefined || fitting.length > 1) return null;
  return {
    jiffies_base: jiffies - (timeNs * BigInt(hz)) / 1_000_000_000n,
    jiffies_mult: Math.round((2 ** 32 * (1e9 / hz)) / 2 ** TICK_SHIFT),
  };
}
