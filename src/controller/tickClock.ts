// SPDX-License-Identifier: Apache-2.0
// Whether the time that programs make of jiffies is CLOCK_MONOTONIC still. Were it to run away, live flows would
// look idle.

import { decode, type StructValue, sizeOf } from "../abi/codec.ts";
import { TICK_SHIFT } from "../abi/layout.gen.ts";
import { jiffiesClock } from "../kernel/clock.ts";
import type { BpfProgram } from "../libbpf/index.ts";
import type { Tables } from "../tables/index.ts";

/** Jiffies may lag behind by some of theirs, and the frequency is rounded. */
const TOLERANCE_TICKS = 8;

type Control = Pick<StructValue<"control">, "jiffies_base" | "jiffies_mult">;
type Reading = { jiffies: bigint; timeNs: bigint };

/** Ticks that the programs' time is ahead of CLOCK_MONOTONIC; negative when it is behind. As now_ticks in frame.h. */
export function clockError(control: Control, { jiffies, timeNs }: Reading): number {
  if (control.jiffies_mult === 0) return 0;
  const product = BigInt.asUintN(64, (jiffies - BigInt(control.jiffies_base)) * BigInt(control.jiffies_mult));
  // Signed: ticks wrap.
  return Number(BigInt.asIntN(32, (product >> 32n) - (timeNs >> BigInt(TICK_SHIFT))));
}

export function clockIsRight(control: Control, reading: Reading): boolean {
  return Math.abs(clockError(control, reading)) <= TOLERANCE_TICKS;
}

/** Both at the same moment. */
export function readClock(program: BpfProgram): Reading {
  const ctx = Buffer.alloc(sizeOf("clock"));
  program.testRun({ ctx });
  const { jiffies, time_ns } = decode("clock", ctx);
  return { jiffies: BigInt(jiffies), timeNs: BigInt(time_ns) };
}

/** Sets it right; where jiffies cannot be converted programs read the clock itself. The caller has the lock. */
export function repairClock(tables: Tables, { jiffies, timeNs }: Reading): void {
  const clock = jiffiesClock(jiffies, timeNs) ?? { jiffies_base: 0n, jiffies_mult: 0 };
  const { jiffies_base, jiffies_mult } = clock;
  tables.control.set({ jiffies_base: Number(jiffies_base), jiffies_mult });
}
