// SPDX-License-Identifier: Apache-2.0
// Expiry that goes on by itself: paced passes, the next one sooner the more the last one found to expire.

import { setTimeout as sleep } from "node:timers/promises";
import type { Config } from "../config/schema.ts";
import type { Logger } from "../log.ts";
import { type SweepResult, sweepPinned } from "./sweep.ts";

export type SweepBounds = Config["sweep"];

export interface SweeperOptions {
  pinRoot: string;
  bounds: SweepBounds;
  log: Logger;
  onPass(result: SweepResult): void;
  /** A pass failed. Not again for the same reason until one has succeeded: they are tried on, at the longest interval. */
  onError(error: unknown): void;
}

/** Above this share of expired entries the next pass comes sooner, below the other one later. */
const MANY_EXPIRED = 0.25;
const FEW_EXPIRED = 0.05;
/** At most ten times sooner. */
const SHRINK_MAX = 0.9;
const GROWTH = 1.5;
/** A table so full is looked at as often as may be: idle flows should go before the LRU takes live ones. */
const PRESSURE = 0.9;

/** What a pass found of one table. */
export interface TableFound {
  entries: number;
  expired: number;
  maxEntries: number;
}

/** The interval to the next pass. As Cilium's connection tracking does it (pkg/maps/ctmap/gc). */
export function nextIntervalSeconds(
  previous: number,
  found: readonly TableFound[],
  bounds: Pick<SweepBounds, "interval_min_seconds" | "interval_max_seconds">,
): number {
  const { interval_min_seconds: shortest, interval_max_seconds: longest } = bounds;
  const within = (seconds: number) => Math.max(shortest, Math.min(seconds, longest));
  if (found.some(({ entries, expired, maxEntries }) => entries - expired >= PRESSURE * maxEntries)) {
    return within(shortest);
  }
  const share = Math.max(0, ...found.map(({ entries, expired }) => (entries === 0 ? 0 : expired / entries)));
  if (share > MANY_EXPIRED) return within(previous * (1 - Math.min(share, SHRINK_MAX)));
  return within(share < FEW_EXPIRED ? previous * GROWTH : previous);
}

/** A wait that took longer than it should by so much: the machine was suspended, or the process stopped. */
const STALL_MS = 10_000;
/** After that live flows get so long to show themselves before anything expires. */
const GRACE_MS = 60_000;
/** For a pass that was started by hand; it does not rest. */
const WAIT_MS = 30_000;

export class Sweeper {
  readonly #options: SweeperOptions;
  #bounds: SweepBounds;
  #running: { stop: AbortController; ended: Promise<void> } | undefined;
  /** Interrupts the wait for the next pass. */
  #changed = new AbortController();
  #first = 0;
  #countOnlyUntil = 0;
  #failing: string | undefined;

  constructor(options: SweeperOptions) {
    this.#options = options;
    this.#bounds = options.bounds;
  }

  start(): void {
    if (this.#running) return;
    const stop = new AbortController();
    this.#running = { stop, ended: this.#run(stop.signal) };
  }

  /** Interrupts a pass between two pieces, and returns when nothing of it goes on any more. */
  async stop(): Promise<void> {
    const running = this.#running;
    this.#running = undefined;
    running?.stop.abort();
    this.#changed.abort();
    await running?.ended;
  }

  /** Also for a pass that is under way, but for the length of its pieces. */
  configure(bounds: SweepBounds): void {
    this.#bounds = bounds;
    this.#changed.abort();
  }

  async #run(signal: AbortSignal): Promise<void> {
    let seconds = this.#bounds.interval_min_seconds;
    for (;;) {
      await this.#wait(seconds, signal);
      if (signal.aborted) return;
      const result = await this.#pass(signal);
      if (signal.aborted) return;
      seconds = result
        ? nextIntervalSeconds(seconds, tablesFound(result), this.#bounds)
        : this.#bounds.interval_max_seconds;
    }
  }

  /** Within the bounds, also when these change meanwhile. */
  async #wait(seconds: number, stop: AbortSignal): Promise<void> {
    const began = performance.now();
    for (;;) {
      const { interval_min_seconds: shortest, interval_max_seconds: longest } = this.#bounds;
      const due = began + Math.max(shortest, Math.min(seconds, longest)) * 1000;
      const before = performance.now();
      const left = due - before;
      if (left <= 0 || stop.aborted) return;
      // stop() interrupts this too.
      this.#changed = new AbortController();
      const { signal } = this.#changed;
      await sleep(left, undefined, { signal }).catch((error: unknown) => {
        if (!signal.aborted) throw error;
      });
      const late = performance.now() - before - left;
      if (late > STALL_MS) this.#stalled(late);
    }
  }

  #stalled(ms: number): void {
    this.#countOnlyUntil = performance.now() + GRACE_MS;
    this.#options.log.warning("expiry is held back: this process stood still, live flows may look idle", {
      stood_still_seconds: Math.round(ms / 1000),
      held_seconds: GRACE_MS / 1000,
    });
  }

  async #pass(signal: AbortSignal): Promise<SweepResult | undefined> {
    const { pinRoot, log, onPass, onError } = this.#options;
    try {
      const result = await sweepPinned(pinRoot, {
        pieceNs: this.#bounds.piece_ms * 1e6,
        cpuPercent: () => this.#bounds.cpu_percent,
        first: this.#first,
        waitMs: WAIT_MS,
        countOnly: performance.now() < this.#countOnlyUntil,
        signal,
      });
      this.#first = (this.#first + 1) % result.tables.length;
      if (result.clockRepaired) this.#clockRepaired();
      if (this.#failing !== undefined) log.info("expiry works again");
      this.#failing = undefined;
      log.debug("expiry pass", passFields(result));
      onPass(result);
      return result;
    } catch (error) {
      if (signal.aborted) return undefined;
      const message = error instanceof Error ? error.message : String(error);
      if (this.#failing !== message) onError(error);
      this.#failing = message;
      return undefined;
    }
  }

  #clockRepaired(): void {
    this.#countOnlyUntil = performance.now() + GRACE_MS;
    this.#options.log.warning("the programs' clock was wrong and has been set right; expiry is held back", {
      held_seconds: GRACE_MS / 1000,
    });
  }
}

function tablesFound(result: SweepResult): TableFound[] {
  return result.tables.map(({ report, maxEntries }) => ({ ...report, maxEntries }));
}

function passFields({ tables, lastHopsReleased, durationNs, busyNs, longestCallNs }: SweepResult) {
  const total = (key: "entries" | "expired") => tables.reduce((sum, { report }) => sum + report[key], 0);
  return {
    entries: total("entries"),
    expired: total("expired"),
    last_hops_released: lastHopsReleased,
    seconds: durationNs / 1e9,
    busy_seconds: busyNs / 1e9,
    longest_call_ms: longestCallNs / 1e6,
  };
}
