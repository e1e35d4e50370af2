// SPDX-License-Identifier: Apache-2.0
// Asks many things again and again, each at its own interval. None is asked anew before its last answer is in.

/** Those of many do not all go out at the same moment. */
const JITTER = 0.1;
/** The first comes soon, whatever the interval is. */
const FIRST_MS = 1_000;

export interface RoundsOptions<T> {
  ask(name: string): Promise<T>;
  /** Not called for what was stopped, or begun anew, while it was asked. */
  answered(name: string, answer: T): void;
  failed(error: unknown): void;
}

interface Round {
  intervalMs: number;
  timer: NodeJS.Timeout | undefined;
}

export class Rounds<T> {
  readonly #options: RoundsOptions<T>;
  readonly #rounds = new Map<string, Round>();
  /** Those that are being asked. */
  readonly #asked = new Map<string, Promise<void>>();

  constructor(options: RoundsOptions<T>) {
    this.#options = options;
  }

  /** Begins anew if it had begun. */
  start(name: string, intervalMs: number): void {
    this.stop(name);
    const round: Round = { intervalMs, timer: undefined };
    this.#rounds.set(name, round);
    this.#arm(name, round, Math.random() * Math.min(intervalMs, FIRST_MS));
  }

  stop(name: string): void {
    clearTimeout(this.#rounds.get(name)?.timer);
    this.#rounds.delete(name);
  }

  close(): void {
    for (const name of [...this.#rounds.keys()]) this.stop(name);
  }

  #arm(name: string, round: Round, ms: number): void {
    round.timer = setTimeout(() => void this.#run(name, round), ms);
  }

  async #run(name: string, round: Round): Promise<void> {
    // It was begun anew, and what was asked before has not been answered.
    await this.#asked.get(name);
    if (this.#rounds.get(name) !== round) return;
    const started = performance.now();
    const asked = this.#ask(name, round).finally(() => this.#asked.delete(name));
    this.#asked.set(name, asked);
    await asked;
    if (this.#rounds.get(name) !== round) return;
    const pause = round.intervalMs * (1 + (Math.random() * 2 - 1) * JITTER) - (performance.now() - started);
    this.#arm(name, round, Math.max(pause, 1));
  }

  async #ask(name: string, round: Round): Promise<void> {
    try {
      const answer = await this.#options.ask(name);
      if (this.#rounds.get(name) === round) this.#options.answered(name, answer);
    } catch (error) {
      this.#options.failed(error);
    }
  }
}
