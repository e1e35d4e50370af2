// SPDX-License-Identifier: Apache-2.0
// What host and guest tell each other about tests.

import type { Lane, TestSelection } from "./kernels.ts";

/** One object a line, written when it is known, so that what was done before a guest hangs or crashes is not lost. */
export type GuestEvent =
  | { event: "begin"; file: string }
  | GuestTest
  /** `errors` are those outside any test. */
  | { event: "end"; file: string; errors: string[] }
  | { event: "done"; errors: string[] };

export interface GuestTest {
  event: "test";
  file: string;
  name: string;
  state: "passed" | "failed" | "skipped";
  duration_ms: number;
  /** Why it was skipped. */
  note?: string;
  /** It failed once before it passed. */
  secondTry?: boolean;
  errors: string[];
}

/** The files of a lane; of each which tests, as the source of a pattern, or null for all. */
export type Selection = Record<string, string | null>;

export function selectTests(tests: Readonly<Record<string, Lane | TestSelection>>, lane: Lane): Selection {
  const selected: Selection = {};
  for (const [file, which] of Object.entries(tests)) {
    const chosen = typeof which === "string" ? ofWhole(which, lane) : ofSome(which, lane);
    if (chosen !== undefined) selected[file] = chosen;
  }
  return selected;
}

function ofWhole(which: Lane, lane: Lane): null | undefined {
  return which === "default" || lane === "full" ? null : undefined;
}

function ofSome(which: TestSelection, lane: Lane): string | null | undefined {
  if (lane === "default") return which.default?.source;
  if (which.full === undefined) return null;
  return which.default === undefined ? which.full.source : `${which.default.source}|${which.full.source}`;
}
