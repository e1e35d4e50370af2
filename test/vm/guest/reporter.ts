// SPDX-License-Identifier: Apache-2.0
// Runs in the guest: writes down each test as it ends.

import { appendFileSync } from "node:fs";
import type { Reporter, SerializedError, TestCase, TestModule } from "vitest/node";
import type { GuestEvent, Selection } from "../results.ts";

const selection = JSON.parse(process.env.LASTHOP_GUEST_SELECTION!) as Selection;

export default class GuestReporter implements Reporter {
  readonly #path = process.env.LASTHOP_GUEST_RESULTS!;

  onTestModuleStart(module: TestModule): void {
    this.#write({ event: "begin", file: module.relativeModuleId });
  }

  onTestCaseResult(test: TestCase): void {
    const result = test.result();
    if (result.state === "pending" || !isChosen(test)) return;
    this.#write({
      event: "test",
      file: test.module.relativeModuleId,
      name: test.fullName,
      state: result.state,
      duration_ms: Math.round(test.diagnostic()?.duration ?? 0),
      ...("note" in result && result.note !== undefined ? { note: result.note } : {}),
      ...(test.diagnostic()?.flaky ? { secondTry: true } : {}),
      errors: (result.errors ?? []).map(textOf),
    });
  }

  onTestModuleEnd(module: TestModule): void {
    const suites = [...module.children.allSuites()].flatMap((suite) => suite.errors());
    const errors = [...module.errors(), ...suites].map(textOf);
    this.#write({ event: "end", file: module.relativeModuleId, errors });
  }

  onTestRunEnd(_modules: readonly TestModule[], unhandled: readonly SerializedError[]): void {
    this.#write({ event: "done", errors: unhandled.map(textOf) });
  }

  #write(event: GuestEvent): void {
    appendFileSync(this.#path, `${JSON.stringify(event)}\n`);
  }
}

/** Tests that the runner left out are skipped ones to vitest. The pattern is matched as vitest does it. */
function isChosen(test: TestCase): boolean {
  const pattern = selection[test.module.relativeModuleId];
  return typeof pattern !== "string" || new RegExp(pattern).test(test.fullName.replaceAll(" > ", " "));
}

function textOf(error: { message?: string; stack?: string; diff?: string }): string {
  const text = error.stack?.includes(error.message ?? "") ? error.stack : `${error.message}\n${error.stack}`;
  return error.diff === undefined ? text : `${text}\n${error.diff}`;
}
