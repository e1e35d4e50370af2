// SPDX-License-Identifier: Apache-2.0

import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { type Outcome, Reconciler } from "../../src/daemon/reconciler.ts";
import { type Stage, StageError, startStages } from "../../src/daemon/stages.ts";
import { Standing } from "../../src/daemon/standing.ts";

const PERIOD_MS = 30_000;

/** `takesMs` is how long a run takes. */
function make(outcomes: Outcome[] = [], takesMs = 0) {
  const runs: number[] = [];
  const began = performance.now();
  const reconciler = new Reconciler({
    periodMs: PERIOD_MS,
    async run() {
      runs.push(Math.round(performance.now() - began));
      if (takesMs > 0) await new Promise((resolve) => setTimeout(resolve, takesMs));
      return outcomes.shift() ?? "done";
    },
  });
  return { reconciler, runs };
}

const pass = (ms: number) => vi.advanceTimersByTimeAsync(ms);

describe("a reconciler", () => {
  beforeEach(() => {
    vi.useFakeTimers();
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  test("waits for the end of a burst", async () => {
    const { reconciler, runs } = make();
    for (let count = 0; count < 3; count++) {
      reconciler.request();
      await pass(2);
    }
    await pass(10);
    expect(runs).toEqual([8]);
    await reconciler.stop();
  });

  test("does not wait for long: a storm is a few runs", async () => {
    const { reconciler, runs } = make([], 10);
    for (let ms = 0; ms < 1000; ms++) {
      reconciler.request();
      await pass(1);
    }
    expect(runs[0]).toBeLessThanOrEqual(20);
    // The first few take 10 ms each and leave 20 to others, then 80.
    expect(runs.length).toBeGreaterThan(10);
    expect(runs.length).toBeLessThanOrEqual(20);
    await pass(100);
    await reconciler.stop();
  });

  test("that drip on and on are taken together after a while, and a single one is prompt again", async () => {
    const { reconciler, runs } = make();
    for (let ms = 0; ms < 10_000; ms += 25) {
      reconciler.request();
      await pass(25);
    }
    expect(runs.length).toBeLessThan(150);
    await pass(2000);
    const before = runs.length;
    reconciler.request();
    await pass(5);
    expect(runs.length).toBe(before + 1);
    await reconciler.stop();
  });

  test("runs once more for what came while it ran", async () => {
    const { reconciler, runs } = make([], 50);
    reconciler.request();
    await pass(20);
    expect(runs).toHaveLength(1);
    reconciler.request();
    reconciler.request();
    expect(reconciler.busyMs).toBeGreaterThan(0);
    await pass(500);
    expect(runs).toHaveLength(2);
    expect(reconciler.busyMs).toBe(0);
    await reconciler.stop();
  });

  test("looks now and then without an occasion", async () => {
    const { reconciler, runs } = make();
    await reconciler.now();
    await pass(PERIOD_MS * 3 + 10);
    expect(runs).toHaveLength(4);
    await reconciler.stop();
    await pass(PERIOD_MS * 3);
    expect(runs).toHaveLength(4);
    expect(vi.getTimerCount()).toBe(0);
  });

  test("tries again after a failure, later and later, and a request comes before that", async () => {
    const failures = Array<Outcome>(7).fill("failed");
    const { reconciler, runs } = make(failures);
    await reconciler.now();
    await pass(1000 + 2000 + 4000 + 8000);
    expect(runs).toEqual([0, 1000, 3000, 7000, 15_000]);
    reconciler.request();
    await pass(10);
    expect(runs).toHaveLength(6);
    // Never later than without a failure.
    await pass(PERIOD_MS);
    expect(runs).toHaveLength(7);
    await pass(PERIOD_MS);
    expect(runs).toHaveLength(8);
    await reconciler.stop();
  });

  test("starts nothing after it was stopped, and waits for what runs", async () => {
    const { reconciler, runs } = make([], 50);
    reconciler.request();
    await pass(10);
    let stopped = false;
    const stopping = reconciler.stop().then(() => {
      stopped = true;
    });
    await pass(10);
    expect(stopped).toBe(false);
    await pass(50);
    await stopping;
    reconciler.request();
    reconciler.requestIn(5);
    await reconciler.now();
    await pass(100);
    expect(runs).toHaveLength(1);
  });

  test("asked to run now, does so after what runs, not instead", async () => {
    const { reconciler, runs } = make([], 50);
    reconciler.request();
    await pass(10);
    const now = reconciler.now();
    await pass(200);
    await now;
    expect(runs).toHaveLength(2);
    await reconciler.stop();
  });
});

test("a condition that stands is news once", () => {
  const standing = new Standing();
  expect(standing.news(["a", "b", "a"])).toEqual(["a", "b"]);
  expect(standing.news(["b", "a", "c"])).toEqual(["c"]);
  expect(standing.size).toBe(3);
  expect(standing.news([])).toEqual([]);
  expect(standing.news(["a"])).toEqual(["a"]);
});

describe("stages", () => {
  const log: string[] = [];
  const stage = (name: string, fails: "start" | "stop" | null = null): Stage => ({
    name,
    async start() {
      log.push(`start ${name}`);
      if (fails === "start") throw new Error(`${name} does not start`);
    },
    async stop() {
      log.push(`stop ${name}`);
      if (fails === "stop") throw new Error(`${name} does not stop`);
    },
  });
  beforeEach(() => {
    log.length = 0;
  });

  test("start in order and close in the reverse one", async () => {
    const running = await startStages([stage("a"), stage("b"), stage("c")]);
    await running.close();
    await running.close();
    expect(log).toEqual(["start a", "start b", "start c", "stop c", "stop b", "stop a"]);
  });

  test("before one that does not start are closed, and its error is thrown", async () => {
    await expect(startStages([stage("a"), stage("b"), stage("c", "start"), stage("d")])).rejects.toThrow(
      "c does not start",
    );
    expect(log).toEqual(["start a", "start b", "start c", "stop b", "stop a"]);
  });

  test("are closed though one of them cannot be", async () => {
    const running = await startStages([stage("a", "stop"), stage("b", "stop"), stage("c")]);
    const error = await running.close().catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(StageError);
    expect((error as Error).message).toBe("closing failed: b: b does not stop; a: a does not stop");
    expect(log.slice(3)).toEqual(["stop c", "stop b", "stop a"]);
  });

  test("tell of both when one does not start and one before it cannot be closed", async () => {
    const error = await startStages([stage("a", "stop"), stage("b", "start")]).catch(
      (thrown: unknown) => thrown,
    );
    expect((error as AggregateError).errors.map((one: Error) => one.message)).toEqual([
      "b does not start",
      "a does not stop",
    ]);
  });
});
