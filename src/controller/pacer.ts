// SPDX-License-Identifier: Apache-2.0

import { setTimeout as sleep, setImmediate as turn } from "node:timers/promises";

/** Timers are no finer: shorter rests are saved up. */
const SHORTEST_REST_MS = 1;
/** What falling asleep and waking up costs at most; the rest of what happens meanwhile is the work of others. */
const WAKE_MS = 0.3;

/** How long work must rest after it was busy, so as to take no more of a processor than so many per cent. */
export function restMs(busyMs: number, cpuPercent: number): number {
  return busyMs * (100 / Math.min(Math.max(cpuPercent, 0.01), 100) - 1);
}

/** That this process was busy, in the kernel too; time in which others had the processor does not count. */
function processorMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

/** Keeps long work to a share of a processor, and lets others have the event loop. */
export class Pacer {
  readonly #cpuPercent: () => number;
  readonly #signal: AbortSignal | undefined;
  #sinceMs = processorMs();
  #owedMs = 0;

  /** `cpuPercent` is asked at each rest. */
  constructor(cpuPercent: () => number = () => 100, signal?: AbortSignal) {
    this.#cpuPercent = cpuPercent;
    this.#signal = signal;
  }

  /** Work begins that is not counted yet. */
  begin(): void {
    this.#sinceMs = processorMs();
  }

  /** After each piece of work. Rejects when the signal says so. */
  async rest(): Promise<void> {
    this.#owedMs += restMs(processorMs() - this.#sinceMs, this.#cpuPercent());
    if (this.#owedMs < SHORTEST_REST_MS) {
      await turn(undefined, { signal: this.#signal });
    } else {
      const began = performance.now();
      const before = processorMs();
      await sleep(Math.ceil(this.#owedMs), undefined, { signal: this.#signal });
      // A timer that comes late gives nothing in advance: that would be a burst.
      this.#owedMs = Math.max(0, this.#owedMs - (performance.now() - began));
      this.#owedMs += restMs(Math.min(processorMs() - before, WAKE_MS), this.#cpuPercent());
    }
    this.begin();
  }
}
