// SPDX-License-Identifier: Apache-2.0
// vitest in a guest: the suite's own configuration, for the files of this run.

import { defineConfig } from "vitest/config";
import base, { SECOND_TRY } from "../../../vitest.config.ts";
import type { Selection } from "../results.ts";

const selection = JSON.parse(process.env.LASTHOP_GUEST_SELECTION!) as Selection;
const files = Object.keys(selection);
const { projects: _projects, ...test } = base.test!;

export default defineConfig({
  root: new URL("../../../", import.meta.url).pathname,
  test: {
    ...test,
    reporters: ["verbose", "./test/vm/guest/reporter.ts"],
    runner: "./test/vm/guest/runner.ts",
    projects: [
      {
        extends: true,
        test: {
          name: "kernel",
          include: files.filter((file) => !file.startsWith("test/net/")),
          maxWorkers: 2,
          sequence: { groupOrder: 0 },
        },
      },
      {
        extends: true,
        test: {
          name: "net",
          include: files.filter((file) => file.startsWith("test/net/")),
          ...SECOND_TRY,
          maxWorkers: 1,
          // These do not change their process, and another one takes seconds.
          isolate: false,
          sequence: { groupOrder: 1 },
        },
      },
    ],
  },
});
