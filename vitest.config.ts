// SPDX-License-Identifier: Apache-2.0
import { defineConfig } from "vitest/config";

/** On a slow machine, such as an emulated one, everything may take this many times as long. */
const TIMEOUT_FACTOR = Number(process.env.LASTHOP_TIMEOUT_FACTOR ?? 1);

/**
 * Of what goes over the wire, on a machine that is busy with something else. The end of the run names those that needed
 * it, and the run fails if they are many.
 */
export const SECOND_TRY = { retry: 1 };

const OTHERS = ["test/unit/**", "test/net/**", "test/guests/**", "test/vm/**", "test/bench/**"];

/** Where time counts: load, timeouts, what happens while something else goes on. */
const TIMED = [
  ...["bulk", "comeAndGo", "daemon", "expiry", "flapping", "flood", "health", "live", "returning"],
  ...["serviceAffinity", "tunnels", "upgrade", "vmHealth", "vxlan-fdb"],
].map((name) => `test/net/${name}.test.ts`);

export default defineConfig({
  test: {
    // ffi-napi crashes in worker threads, so processes.
    pool: "forks",
    reporters: ["default", "./test/support/totals-reporter.ts"],
    testTimeout: 60_000 * TIMEOUT_FACTOR,
    hookTimeout: 60_000 * TIMEOUT_FACTOR,
    projects: [
      // No root, no kernel.
      {
        extends: true,
        test: {
          name: "unit",
          include: ["test/unit/**/*.test.ts"],
          maxWorkers: 2,
          sequence: { groupOrder: 0 },
        },
      },
      // Whatever is not in the others: kernel, ffi.
      {
        extends: true,
        test: {
          name: "kernel",
          include: ["test/**/*.test.ts"],
          exclude: OTHERS,
          maxWorkers: 2,
          sequence: { groupOrder: 1 },
        },
      },
      {
        extends: true,
        test: {
          name: "net",
          include: ["test/net/**/*.test.ts"],
          exclude: TIMED,
          ...SECOND_TRY,
          maxWorkers: 2,
          sequence: { groupOrder: 2 },
        },
      },
      // One file at a time, when nothing else runs.
      {
        extends: true,
        test: { name: "timed", include: TIMED, ...SECOND_TRY, maxWorkers: 1, sequence: { groupOrder: 3 } },
      },
      // Guests on taps of this host: one file at a time, when nothing else runs.
      {
        extends: true,
        test: {
          name: "guests",
          include: ["test/guests/**/*.test.ts"],
          maxWorkers: 1,
          sequence: { groupOrder: 4 },
        },
      },
      // Other kernels, in guests: one at a time, when nothing else runs.
      {
        extends: true,
        test: { name: "vm", include: ["test/vm/**/*.test.ts"], maxWorkers: 1, sequence: { groupOrder: 5 } },
      },
    ],
  },
});
