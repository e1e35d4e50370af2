// SPDX-License-Identifier: Apache-2.0
// A change of several steps, each of which knows how to take itself back.

export interface Step {
  /** What was done, for people; null for what would only be noise. */
  done: string | null;
  do(): void;
  undo(): void;
}

/** The change failed, and so did taking it back. */
export class UndoError extends AggregateError {
  constructor(cause: unknown, failures: readonly unknown[]) {
    super([cause, ...failures], "a change failed, and taking it back failed too");
    this.name = "UndoError";
  }
}

/** The steps, with `settle` after them; taken back, it is done last of all, when everything else is as it was. */
export function settled(steps: readonly Step[], settle: () => void): Step[] {
  const nothing = (): void => undefined;
  return [{ done: null, do: nothing, undo: settle }, ...steps, { done: null, do: settle, undo: nothing }];
}

/** Runs the steps in order; when one fails, undoes those before it in reverse and throws its error. */
export function runSteps(steps: readonly Step[]): string[] {
  const finished: Step[] = [];
  for (const step of steps) {
    try {
      step.do();
      finished.push(step);
    } catch (error) {
      const failures = undoAll(finished);
      throw failures.length === 0 ? error : new UndoError(error, failures);
    }
  }
  return steps.map((step) => step.done).filter((done) => done !== null);
}

function undoAll(steps: readonly Step[]): unknown[] {
  const failures: unknown[] = [];
  for (const step of steps.toReversed()) {
    try {
      step.undo();
    } catch (error) {
      failures.push(error);
    }
  }
  return failures;
}
