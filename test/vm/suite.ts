// SPDX-License-Identifier: Apache-2.0
// Each test that a guest ran becomes a test here, and so is counted; and one says that the guest ran all that it should.

import { describe, expect, test } from "vitest";
import { type GuestRun, runGuest, tailOf } from "./guest.ts";
import { Unavailable } from "./image.ts";
import { type GuestKernel, KERNELS, type Lane } from "./kernels.ts";
import { type GuestTest, type Selection, selectTests } from "./results.ts";

/** In no lane: `make test-matrix` names it. */
const MATRIX = "test/matrix/product.matrix.ts";

function laneOf(word: string): Lane {
  if (word === "default" || word === "full") return word;
  throw new Error(`LASTHOP_VM_LANE is ${JSON.stringify(word)}; it is default or full`);
}

/** LASTHOP_VM_TESTS names files (or beginnings of their names) to run instead of a lane, for whoever works on them. */
function selectionOf(kernel: GuestKernel, lane: Lane, only: string): Selection {
  if (only === "") return selectTests(kernel.tests, lane);
  return Object.fromEntries(only.split(/[ ,]+/).map((file) => [file, null]));
}

/** Runs the guest while tests are collected: only then is it known what to count. */
export async function defineGuestTests(series: string): Promise<void> {
  const kernel = KERNELS.find((item) => item.series === series)!;
  const lane = laneOf(process.env.LASTHOP_VM_LANE ?? "default");
  const selection = selectionOf(kernel, lane, process.env.LASTHOP_VM_TESTS ?? "");
  const files = Object.keys(selection);
  let guest: GuestRun;
  try {
    const isMatrix = files.includes(MATRIX);
    const limitMinutes = isMatrix ? kernel.matrix.limitMinutes : kernel.limitMinutes[lane];
    guest = await runGuest(kernel, selection, limitMinutes);
  } catch (error) {
    if (!(error instanceof Unavailable)) throw error;
    test(`Linux ${series}: ${files.length} test files`, ({ skip }) => skip(error.message));
    return;
  }
  describe(`Linux ${guest.release}`, () => {
    test(`runs ${files.length} test files to their end (${Math.round(guest.seconds)} s)`, () => {
      const report = incompleteness(guest, files);
      expect(report, tailOf(guest)).toEqual([]);
    });
    for (const file of files) {
      const ran = guest.events.filter((event) => event.event === "test" && event.file === file);
      describe(file, () => {
        for (const one of ran as GuestTest[]) replay(one);
      });
    }
  });
}

function replay({ name, state, note, secondTry, errors }: GuestTest): void {
  test(name, ({ skip, task }) => {
    if (state === "skipped") skip(note ?? "no reason given");
    if (secondTry) task.meta.secondTry = true;
    if (state === "passed") return;
    const error = new Error(errors.join("\n\n"));
    // Where it was thrown in the guest says more than this line.
    error.stack = errors[0] ?? "";
    throw error;
  });
}

/** What is missing from a run, and what went wrong outside any test. */
export function incompleteness({ events, ending, status }: GuestRun, files: readonly string[]): string[] {
  const failed = events.some((event) => event.event === "test" && event.state === "failed");
  const problems: string[] = [];
  for (const file of files) {
    const of = events.filter((event) => event.event !== "done" && event.file === file);
    const end = of.find((event) => event.event === "end");
    if (of.length === 0) problems.push(`${file} did not begin`);
    else if (end === undefined) problems.push(`${file} did not end`);
    else if (!of.some((event) => event.event === "test") && end.errors.length === 0)
      problems.push(`${file} ran no test`);
  }
  for (const event of events) {
    if (event.event === "end" || event.event === "done") problems.push(...event.errors);
  }
  if (!events.some((event) => event.event === "done")) problems.push("the tests' run did not end");
  // Whose tests failed ends with 1; that is told by those.
  if (status === undefined) problems.push(`the guest did not finish: ${ending}`);
  else if (status !== 0 && !failed && problems.length === 0)
    problems.push(`the command ended with ${status}`);
  return problems;
}
