// SPDX-License-Identifier: Apache-2.0
// How long fuzzers run, and with which seed: see the head of each.

import { test } from "vitest";
import type { ReasonName } from "../../../src/abi/codec.ts";
import { UPLINK_PROGRAMS, type UplinkProgram } from "./world.ts";

export interface Fuzzer {
  /** Both unless the environment says otherwise. */
  seed: number;
  packets: number;
  /** Runs so many packets, and tells how often each reason was given. */
  run(program: UplinkProgram, seed: number, packets: number): Map<ReasonName, number>;
  /** Reasons that too few packets reached. `seen` is of one program, `packets` of all. */
  missed(seen: Map<ReasonName, number>, packets: number): ReasonName[];
}

/** One test for each uplink program; `%s` stands for it. A failure tells the seed. */
export function testFuzzer(name: string, { seed, packets, run, missed }: Fuzzer): void {
  const first = Number(process.env.LASTHOP_FUZZ_SEED ?? seed);
  const all = Number(process.env.LASTHOP_FUZZ_PACKETS ?? packets);
  test.each(UPLINK_PROGRAMS)(
    name,
    (program) => {
      try {
        const own = first + UPLINK_PROGRAMS.indexOf(program);
        const seen = run(program, own, Math.ceil(all / UPLINK_PROGRAMS.length));
        const few = missed(seen, all);
        if (few.length > 0) throw new Error(`hardly reached: ${few.join(", ")}`);
      } catch (error) {
        if (error instanceof Error) error.message = `LASTHOP_FUZZ_SEED=${first}: ${error.message}`;
        throw error;
      }
    },
    Math.max(60_000, all),
  );
}
