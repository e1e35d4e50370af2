// SPDX-License-Identifier: Apache-2.0
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import type { Reporter, SerializedError, TestCase, TestModule } from "vitest/node";

declare module "vitest" {
  interface TaskMeta {
    secondTry?: boolean;
  }
}

const TOTALS_FILE = "build/test-totals";

/** So many may be the fault of a busy machine; with more the run fails. */
const SECOND_TRIES_MAX = 3;

/** Ends a run with what was skipped and why, what failed, and the line `N passed, N failed, N skipped`. */
export default class TotalsReporter implements Reporter {
  onTestRunEnd(modules: readonly TestModule[], unhandledErrors: readonly SerializedError[]): void {
    let passed = 0;
    // An error outside any test fails the run, so it counts.
    const failed = unhandledErrors.map((error) => `outside any test: ${firstLine(error.message)}`);
    const skipped: string[] = [];
    const tried: string[] = [];
    for (const module of modules) {
      const failedHere: string[] = [];
      for (const test of module.children.allTests()) {
        const result = test.result();
        if (result.state === "passed") {
          passed++;
          if (isSecondTry(test)) tried.push(`${module.relativeModuleId} > ${test.fullName}`);
        } else if (result.state === "failed") {
          failedHere.push(
            `${module.relativeModuleId} > ${test.fullName}: ${firstLine(result.errors[0]?.message)}`,
          );
        } else skipped.push(`${module.relativeModuleId} > ${test.fullName}: ${reason(test)}`);
      }
      // A file or a hook that failed may leave no test behind that did.
      if (failedHere.length === 0 && module.state() === "failed") {
        failedHere.push(`${module.relativeModuleId}: ${firstLine(module.errors()[0]?.message)}`);
      }
      failed.push(...failedHere);
    }
    if (tried.length > SECOND_TRIES_MAX) {
      failed.push(`${tried.length} tests passed at a second try only; ${SECOND_TRIES_MAX} may`);
      process.exitCode = 1;
    }
    const totals = `${passed} passed, ${failed.length} failed, ${skipped.length} skipped`;
    const failures = section("Failed:", failed);
    mkdirSync("build", { recursive: true });
    // Left by root, it can be removed by the owner of the folder but not written.
    rmSync(TOTALS_FILE, { force: true });
    writeFileSync(TOTALS_FILE, `${[...failures, totals].join("\n")}\n`);
    process.stdout.write(
      `${[...section("Skipped:", skipped), ...section("Passed at a second try:", tried), ...failures, "", totals].join("\n")}\n`,
    );
  }
}

/** In a guest (test/vm) the second try was there. */
function isSecondTry(test: TestCase): boolean {
  return test.diagnostic()?.flaky === true || test.meta().secondTry === true;
}

function section(title: string, lines: readonly string[]): string[] {
  return lines.length === 0 ? [] : ["", title, ...lines.map((line) => `  ${line}`)];
}

function firstLine(message: string | undefined): string {
  return message?.split("\n", 1)[0] ?? "no message";
}

function reason(test: TestCase): string {
  const result = test.result();
  if ("note" in result && result.note !== undefined) return result.note;
  // A test that was to run did not, because its file or a hook failed.
  return test.options.mode === "run" || test.options.mode === undefined ? "not run" : "no reason given";
}
