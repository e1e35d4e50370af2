// SPDX-License-Identifier: Apache-2.0
// Runs in the guest: of files of which only some tests were chosen, leaves out the others.

import { relative } from "node:path";
import { TestRunner } from "vitest";
import type { Selection } from "../results.ts";

const selection = JSON.parse(process.env.LASTHOP_GUEST_SELECTION!) as Selection;

export default class GuestRunner extends TestRunner {
  override importFile(path: string, source: "collect" | "setup"): unknown {
    // One file after another: each is looked at right after it was imported.
    if (source === "collect") {
      const pattern = selection[relative(this.config.root, path)];
      this.config.testNamePattern = typeof pattern === "string" ? new RegExp(pattern) : undefined;
    }
    return super.importFile(path, source);
  }
}
