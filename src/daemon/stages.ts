// SPDX-License-Identifier: Apache-2.0
// What starts in an order and closes in the reverse one.

export interface Stage {
  /** For messages: "metrics". */
  name: string;
  start(): Promise<void> | void;
  stop(): Promise<void> | void;
}

/** Closing failed at several stages; all of them were closed nevertheless. */
export class StageError extends AggregateError {
  constructor(failures: readonly { name: string; error: unknown }[]) {
    const text = failures.map(({ name, error }) => `${name}: ${(error as Error).message}`).join("; ");
    super(
      failures.map(({ error }) => error),
      `closing failed: ${text}`,
    );
    this.name = "StageError";
  }
}

/** Starts in order. If one fails, those before it are stopped and its error is thrown. */
export async function startStages(stages: readonly Stage[]): Promise<{ close(): Promise<void> }> {
  const started: Stage[] = [];
  for (const stage of stages) {
    try {
      await stage.start();
      started.push(stage);
    } catch (error) {
      await stopAll(started).catch((closing: unknown) => {
        throw new AggregateError([error, closing], (error as Error).message);
      });
      throw error;
    }
  }
  return { close: () => stopAll(started.splice(0)) };
}

/** Every one is stopped, also when one before it could not be. Throws the error, or a StageError of several. */
async function stopAll(stages: readonly Stage[]): Promise<void> {
  const failures: { name: string; error: unknown }[] = [];
  for (const { name, stop } of stages.toReversed()) {
    try {
      await stop();
    } catch (error) {
      failures.push({ name, error });
    }
  }
  const [first, ...others] = failures;
  if (!first) return;
  throw others.length === 0 ? first.error : new StageError(failures);
}
