// SPDX-License-Identifier: Apache-2.0
// What monitors have in common: work under the lock that may be asked for at any time, and errors that end nothing.

import { LasthopError } from "../errors.ts";
import { withLock } from "../kernel/instance.ts";
import type { Logger } from "../log.ts";

/** What goes wrong in a monitor must not end the daemon: the next tick tries again. Said once. */
export class Complaints {
  readonly #log: Logger;
  readonly #what: string;
  #told: string | null = null;

  /** `what` could not be done: "devices cannot be followed". */
  constructor(log: Logger, what: string) {
    this.#log = log;
    this.#what = what;
  }

  guard(work: () => void): void {
    try {
      work();
      this.#told = null;
    } catch (error) {
      this.tell(error);
    }
  }

  tell(error: unknown): void {
    const message = error instanceof Error ? error.message : String(error);
    if (message === this.#told) return;
    this.#told = message;
    const hint = error instanceof LasthopError && error.hint !== undefined ? { hint: error.hint } : {};
    this.#log.error(`${this.#what}: ${message}`, hint);
  }
}

export interface LockedWorkOptions {
  pinRoot: string;
  work(): Promise<void>;
  failed(error: unknown): void;
}

/** Is done soon after it was asked for, and once more if it was asked for meanwhile. */
export class LockedWork {
  readonly #options: LockedWorkOptions;
  #running: Promise<void> | undefined;
  #again = false;
  #stopped = false;

  constructor(options: LockedWorkOptions) {
    this.#options = options;
  }

  soon(): void {
    this.#again = true;
    if (this.#stopped) return;
    this.#running ??= this.#run().finally(() => {
      this.#running = undefined;
      if (this.#again) this.soon();
    });
  }

  /** Nothing begins any more; returns when what had begun has ended. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#running;
  }

  async #run(): Promise<void> {
    while (this.#again && !this.#stopped) {
      this.#again = false;
      try {
        await withLock(this.#options.pinRoot, () => this.#options.work());
      } catch (error) {
        // Somebody is changing things for long: the next tick comes back to it.
        if (!(error instanceof LasthopError && error.code === "E_LOCKED")) this.#options.failed(error);
        return;
      }
    }
  }
}
