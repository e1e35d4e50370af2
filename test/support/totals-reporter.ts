// SPDX-License-Identifier: Apache-2.0
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import type { Reporter, SerializedError, TestCase, TestModule } from "vitest/node";

const TOTALS_FILE = "build/test-totals";

/** Ends a run with what was skipped and why, and the line `N passed, N failed, N skipped`. */
export default class TotalsReporter implements Reporter {
  onTestRunEnd(modules: readonly TestModule[], unhandledErrors: readonly SerializedError[]): void {
    let passed = 0;
    // An error outside any test fails the run, so it counts.
    let failed = unhandledErrors.length;
    const skipped: string[] = [];
    for (const module of modules) {
      let failedHere = 0;
      for (const test of module.children.allTests()) {
        const result = test.result();
        if (result.state === "passed") passed++;
        else if (result.state === "failed") failedHere++;
        else skipped.push(`${module.relativeModuleId} > ${test.fullName}: ${reason(test)}`);
      }
      // A file or a hook that failed may leave no test behind that did.
      failed += failedHere === 0 && module.state() === "failed" ? 1 : failedHere;
    }
    const totals = `${passed} passed, ${failed} failed, ${skipped.length} skipped`;
    mkdirSync("build", { recursive: true });
    // Left by root, it can be removed by the owner of the folder but not written.
    rmSync(TOTALS_FILE, { force: true });
    writeFileSync(TOTALS_FILE, `${totals}\n`);
    const lines = skipped.length === 0 ? [] : ["", "Skipped:", ...skipped.map((line) => `  ${line}`)];
    process.stdout.write(`${[...lines, "", totals].join("\n")}\n`);
  }
}

function reason(test: TestCase): string {
  const result = test.result();
  if ("note" in result && result.note !== undefined) return result.note;
  // A test that was to run did not, because its file or a hook failed.
  return test.options.mode === "run" || test.options.mode === undefined ? "not run" : "no reason given";
}
