// SPDX-License-Identifier: Apache-2.0
// When to reconcile: soon after something changed, once for a burst of changes, again after a failure, and now
// and then in case a change went unnoticed. One at a time.

/** A burst is over when nothing came for so long… */
const QUIET_MS = 4;
/** …but nobody waits longer than this. */
const LONGEST_MS = 20;
/** After a run its duration times this is left to others: a storm costs a third of a core at most. */
const REST = 2;
const REST_MAX_MS = 500;
/** Changes that drip are taken together too, once there have been so many runs in a second. */
const MANY = 8;
const MANY_WITHIN_MS = 1000;
const MANY_REST_MS = 80;
const BACKOFF_FIRST_MS = 1000;
const BACKOFF_LONGEST_MS = 60_000;

/** What a run came to: `failed` is tried again, after longer and longer. */
export type Outcome = "done" | "failed";

export interface ReconcilerOptions {
  /** Must not throw. */
  run(): Promise<Outcome>;
  /** Between runs for which there is no occasion. */
  periodMs: number;
}

export class Reconciler {
  readonly #run: () => Promise<Outcome>;
  readonly #periodMs: number;
  #timer: NodeJS.Timeout | undefined;
  /** When the timer is due (performance.now()). */
  #dueMs = Number.POSITIVE_INFINITY;
  /** The first request that has not been met. */
  #requestedMs: number | undefined;
  #notBeforeMs = 0;
  /** When the last runs ended. */
  readonly #endedMs: number[] = [];
  #backoffMs = 0;
  #running: Promise<void> | undefined;
  #runningSinceMs: number | undefined;
  #stopped = false;

  constructor(options: ReconcilerOptions) {
    this.#run = options.run;
    this.#periodMs = options.periodMs;
  }

  /** Something changed. */
  request(): void {
    if (this.#stopped) return;
    const now = performance.now();
    this.#requestedMs ??= now;
    if (this.#running) return;
    const due = Math.min(now + QUIET_MS, this.#requestedMs + LONGEST_MS);
    this.#arm(Math.max(due, this.#notBeforeMs));
  }

  /** In so many ms, should nothing else bring it about sooner. */
  requestIn(milliseconds: number): void {
    if (this.#stopped || this.#running) return;
    this.#arm(Math.min(this.#dueMs, performance.now() + milliseconds));
  }

  /** Runs at once, after what is running; resolves when that is done. */
  async now(): Promise<void> {
    while (this.#running) await this.#running;
    if (!this.#stopped) await this.#start();
  }

  /** For how long the present run has been going on; 0 if none is. */
  get busyMs(): number {
    return this.#runningSinceMs === undefined ? 0 : performance.now() - this.#runningSinceMs;
  }

  /** No run begins any more; resolves when the present one is done. */
  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    await this.#running;
  }

  #arm(dueMs: number): void {
    // What comes while the timer waits for others to have their share does not move it.
    if (dueMs === this.#dueMs) return;
    clearTimeout(this.#timer);
    this.#dueMs = dueMs;
    this.#timer = setTimeout(() => void this.#start(), Math.max(0, dueMs - performance.now()));
  }

  #start(): Promise<void> {
    clearTimeout(this.#timer);
    this.#dueMs = Number.POSITIVE_INFINITY;
    this.#requestedMs = undefined;
    this.#running = this.#once();
    return this.#running;
  }

  #crowdedRest(nowMs: number): number {
    const times = this.#endedMs;
    times.push(nowMs);
    if (times.length > MANY) times.shift();
    return times.length === MANY && nowMs - times[0]! < MANY_WITHIN_MS ? MANY_REST_MS : 0;
  }

  async #once(): Promise<void> {
    const started = performance.now();
    this.#runningSinceMs = started;
    const outcome = await this.#run();
    const ended = performance.now();
    this.#running = undefined;
    this.#runningSinceMs = undefined;
    if (this.#stopped) return;
    this.#notBeforeMs =
      ended + Math.max(this.#crowdedRest(ended), Math.min(REST_MAX_MS, (ended - started) * REST));
    this.#backoffMs =
      outcome === "done" ? 0 : Math.min(BACKOFF_LONGEST_MS, Math.max(BACKOFF_FIRST_MS, this.#backoffMs * 2));
    this.requestIn(outcome === "done" ? this.#periodMs : Math.min(this.#backoffMs, this.#periodMs));
    // Requests that came meanwhile are about changes that it may not have seen.
    if (this.#requestedMs !== undefined) this.request();
  }
}
