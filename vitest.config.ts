// SPDX-License-Identifier: Apache-2.0
import { defineConfig } from "vitest/config";

const OTHERS = ["test/unit/**", "test/net/**", "test/bench/**"];

export default defineConfig({
  test: {
    // ffi-napi crashes in worker threads, so processes.
    pool: "forks",
    reporters: ["default", "./test/support/totals-reporter.ts"],
    testTimeout: 60_000,
    hookTimeout: 60_000,
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
      // Whatever is neither unit nor net: kernel, ffi.
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
      // Real connections have timing: one file at a time, when nothing else runs.
      {
        extends: true,
        test: { name: "net", include: ["test/net/**/*.test.ts"], maxWorkers: 1, sequence: { groupOrder: 2 } },
      },
    ],
  },
});
