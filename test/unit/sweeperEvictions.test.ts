// SPDX-License-Identifier: Apache-2.0
// How many flows were evicted: exact when nothing else happens, and no false alarm when much does.

import { describe, expect, it } from "vitest";
import { countEvictions, type Piece, type Walk } from "../../src/controller/evictions.ts";

const NONE = [0, 0, 0];

/** One piece, or several between which nothing happens. */
function still(start: number[], states: number[], more: Partial<Walk> = {}): Walk {
  const found = states.reduce((sum, count) => sum + count);
  const piece = { found, expired: 0, before: start, after: start };
  return { start, states, pieces: [piece], roomy: 0, ...more };
}

describe("when nothing happens meanwhile", () => {
  it.each([
    { what: "an empty table", start: NONE, states: NONE, evicted: NONE },
    { what: "nothing evicted", start: [5, 3, 2], states: [5, 3, 2], evicted: NONE },
    { what: "some of each", start: [50, 30, 20], states: [40, 30, 5], evicted: [10, 0, 15] },
    { what: "all of them", start: [50, 30, 20], states: NONE, evicted: [50, 30, 20] },
  ])("$what", ({ start, states, evicted }) => {
    expect(countEvictions(still(start, states), NONE)).toEqual({ evicted, drift: NONE });
  });

  it("the same comes of many pieces, of which some find nothing", () => {
    const start = [100, 60, 40];
    const pieces = [10, 0, 70, 20, 0].map((found) => ({ found, expired: 0, before: start, after: start }));
    const walk = still(start, [50, 40, 10], { pieces });
    expect(countEvictions(walk, [20, 0, 0]).evicted).toEqual([50, 20, 30]);
  });

  it("what the walk expires was found before", () => {
    const start = [100, 0, 0];
    const pieces: Piece[] = [{ found: 80, expired: 30, before: start, after: [70, 0, 0] }];
    expect(countEvictions(still(start, [80, 0, 0], { pieces }), NONE).evicted).toEqual([20, 0, 0]);
  });

  it("counts never fall, and an error of the balance is taken off it", () => {
    const lost = countEvictions(still([90, 0, 0], [80, 0, 0]), [50, 0, 0]);
    expect(lost).toEqual({ evicted: [50, 0, 0], drift: [-40, 0, 0] });
  });

  it("a small error in a table with room is no eviction, a large one is", () => {
    const roomy = { roomy: 1000 };
    expect(countEvictions(still([100, 0, 0], [70, 0, 0], roomy), [7, 0, 0])).toEqual({
      evicted: [7, 0, 0],
      drift: [23, 0, 0],
    });
    // A burst that was over when the walk came.
    expect(countEvictions(still([500, 0, 0], [70, 0, 0], roomy), [7, 0, 0]).evicted).toEqual([430, 0, 0]);
  });
});

/** A table under traffic: flows come, change their state, and are evicted when it is full. */
class Traffic {
  readonly buckets: number[][];
  readonly size: number;
  readonly truth = [0, 0, 0];
  readonly balance = [0, 0, 0];
  entries = 0;
  #seed: number;

  constructor(buckets: number, size: number, seed: number) {
    this.buckets = Array.from({ length: buckets }, () => [0, 0, 0]);
    this.size = size;
    this.#seed = seed;
  }

  random(below: number): number {
    this.#seed = (Math.imul(this.#seed, 1664525) + 1013904223) >>> 0;
    return Math.floor((this.#seed / 2 ** 32) * below);
  }

  add(state: number): void {
    if (this.entries >= this.size) this.remove(this.truth, undefined);
    this.buckets[this.random(this.buckets.length)]![state]!++;
    this.balance[state]!++;
    this.entries++;
  }

  /** Of some bucket, counted in `into` as one more. */
  remove(into: number[] | undefined, state: number | undefined): void {
    for (;;) {
      const bucket = this.buckets[this.random(this.buckets.length)]!;
      const from = state ?? this.random(3);
      if (bucket[from]! === 0) continue;
      bucket[from]!--;
      this.entries--;
      if (into) into[from]!++;
      else this.balance[from]!--;
      return;
    }
  }

  change(from: number, to: number): void {
    for (;;) {
      const bucket = this.buckets[this.random(this.buckets.length)]!;
      if (bucket[from]! === 0) continue;
      bucket[from]!--;
      bucket[to]!++;
      this.balance[from]!--;
      this.balance[to]!++;
      return;
    }
  }

  /** Over all buckets in so many pieces; flows in state 2 expire when they are met. */
  walk(pieces: number, between: () => void): Walk {
    const start = [...this.balance];
    const states = [0, 0, 0];
    const done: Piece[] = [];
    const each = this.buckets.length / pieces;
    for (let piece = 0; piece < pieces; piece++) {
      const before = [...this.balance];
      let found = 0;
      let expired = 0;
      for (const bucket of this.buckets.slice(piece * each, (piece + 1) * each)) {
        for (const [state, count] of bucket.entries()) {
          states[state]! += count;
          found += count;
        }
        expired += bucket[2]!;
        this.balance[2]! -= bucket[2]!;
        this.entries -= bucket[2]!;
        bucket[2] = 0;
      }
      done.push({ found, expired, before, after: [...this.balance] });
      between();
    }
    return { start, states, pieces: done, roomy: this.size * 0.9 };
  }
}

describe("under traffic", () => {
  it("a table that grows and churns but has room shows no eviction, pass after pass", () => {
    const traffic = new Traffic(1000, 100_000, 1);
    for (let count = 0; count < 20_000; count++) traffic.add(count % 2);
    let evicted = NONE;
    for (let pass = 0; pass < 60; pass++) {
      const walk = traffic.walk(20, () => {
        for (let count = 0; count < 40; count++) traffic.add(0);
        for (let count = 0; count < 38; count++) traffic.change(0, 1);
        for (let count = 0; count < 35; count++) traffic.change(1, 2);
      });
      evicted = countEvictions(walk, evicted).evicted;
    }
    expect(evicted).toEqual(NONE);
  });

  it("evictions of a full table are counted, and no more of them than there were", () => {
    const traffic = new Traffic(1000, 20_000, 2);
    for (let count = 0; count < 20_000; count++) traffic.add(0);
    let evicted = NONE;
    for (let pass = 0; pass < 30; pass++) {
      const walk = traffic.walk(20, () => {
        for (let count = 0; count < 300; count++) traffic.add(count % 8 === 0 ? 1 : 0);
      });
      const now = countEvictions(walk, evicted).evicted;
      for (const [state, count] of now.entries()) expect(count).toBeGreaterThanOrEqual(evicted[state]!);
      evicted = now;
    }
    const quiet = countEvictions(
      traffic.walk(1, () => undefined),
      evicted,
    );
    expect(quiet.evicted).toEqual(traffic.truth);
    // Before that it was behind by what two passes evict at most.
    for (const [state, count] of evicted.entries()) {
      expect(count).toBeLessThanOrEqual(traffic.truth[state]! * 1.02);
      expect(traffic.truth[state]! - count).toBeLessThanOrEqual(2 * 20 * 300);
    }
  });

  it("an error of the balance is taken off it in some passes", () => {
    const traffic = new Traffic(1000, 100_000, 3);
    for (let count = 0; count < 20_000; count++) traffic.add(0);
    traffic.balance[0]! -= 4000; // lost when somebody was killed
    let evicted = NONE;
    for (let pass = 0; pass < 60; pass++) {
      const walk = traffic.walk(20, () => {
        for (let count = 0; count < 5; count++) traffic.change(0, 1);
        for (let count = 0; count < 5; count++) traffic.change(1, 0);
      });
      const result = countEvictions(walk, evicted);
      evicted = result.evicted;
      for (const [state, count] of result.drift.entries()) traffic.balance[state]! -= count;
    }
    expect(evicted).toEqual(NONE);
    const missing = traffic.entries - traffic.balance.reduce((sum, count) => sum + count);
    expect(Math.abs(missing)).toBeLessThan(100);
  });
});
