// SPDX-License-Identifier: Apache-2.0
// When the next pass comes, how long it rests between pieces, which zones have numbers, and what the sweeper does
// with passes that end, fail, or are interrupted.

import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, describe, expect, it, vi } from "vitest";
import { TICK_SHIFT, ZONES_MAX } from "../../src/abi/layout.gen.ts";
import { Pacer, restMs } from "../../src/controller/pacer.ts";
import { type SweepResult, sweepPinned } from "../../src/controller/sweep.ts";
import { nextIntervalSeconds, type SweepBounds, Sweeper } from "../../src/controller/sweeper.ts";
import { clockError, clockIsRight } from "../../src/controller/tickClock.ts";
import { planZoneNumbers } from "../../src/controller/zoneNumbers.ts";
import { jiffiesClock } from "../../src/kernel/clock.ts";
import { createLogger } from "../../src/log.ts";

vi.mock("../../src/controller/sweep.ts", () => ({ sweepPinned: vi.fn() }));

const BOUNDS: SweepBounds = {
  interval_min_seconds: 5,
  interval_max_seconds: 60,
  cpu_percent: 4,
  piece_ms: 2,
};

describe("the interval to the next pass", () => {
  const of = (entries: number, expired: number, maxEntries = 1_000_000) => ({ entries, expired, maxEntries });
  it.each([
    { what: "nothing there", previous: 10, found: [of(0, 0)], next: 15 },
    { what: "no table at all", previous: 10, found: [], next: 15 },
    { what: "none expired", previous: 20, found: [of(1000, 0)], next: 30 },
    { what: "never beyond the longest", previous: 50, found: [of(1000, 0)], next: 60 },
    { what: "just below the few", previous: 20, found: [of(1000, 49)], next: 30 },
    { what: "some expired", previous: 20, found: [of(1000, 50)], next: 20 },
    { what: "up to a quarter", previous: 20, found: [of(1000, 250)], next: 20 },
    { what: "half expired", previous: 40, found: [of(1000, 500)], next: 20 },
    { what: "all expired: ten times sooner", previous: 60, found: [of(1000, 1000)], next: 6 },
    { what: "never below the shortest", previous: 20, found: [of(1000, 1000)], next: 5 },
    {
      what: "the table with the largest share decides",
      previous: 40,
      found: [of(1000, 0), of(10, 5)],
      next: 20,
    },
    { what: "a full table: as soon as may be", previous: 60, found: [of(900, 0, 1000)], next: 5 },
    { what: "one that was full before it was swept", previous: 40, found: [of(1000, 500, 1000)], next: 20 },
    { what: "bounds that have become narrower", previous: 600, found: [of(1000, 100)], next: 60 },
  ])("$what", ({ previous, found, next }) => {
    expect(nextIntervalSeconds(previous, found, BOUNDS)).toBeCloseTo(next, 9);
  });

  it("keeps to bounds that are one", () => {
    const one = { interval_min_seconds: 7, interval_max_seconds: 7 };
    for (const expired of [0, 100, 1000]) expect(nextIntervalSeconds(7, [of(1000, expired)], one)).toBe(7);
  });
});

/** Keeps a processor busy. */
function spend(ms: number): void {
  const before = process.cpuUsage();
  for (;;) {
    const { user, system } = process.cpuUsage(before);
    if (user + system >= ms * 1000) return;
  }
}

describe("rests", () => {
  it.each([
    { busy: 2, percent: 4, rest: 48 },
    { busy: 2, percent: 50, rest: 2 },
    { busy: 2, percent: 100, rest: 0 },
    { busy: 2, percent: 1000, rest: 0 },
    { busy: 0, percent: 4, rest: 0 },
    { busy: 1, percent: 0.1, rest: 999 },
  ])("of $rest ms after $busy ms at $percent %", ({ busy, percent, rest }) => {
    expect(restMs(busy, percent)).toBeCloseTo(rest, 9);
  });

  it("are saved up while they are too short for a timer, and taken by the share that is asked for then", async () => {
    let percent = 100;
    const pacer = new Pacer(() => percent);
    const took = async (ms: number) => {
      pacer.begin();
      const before = performance.now();
      spend(ms);
      await pacer.rest();
      return performance.now() - before;
    };
    await took(2);
    percent = 5;
    expect(await took(2)).toBeGreaterThanOrEqual(38);
    percent = 90;
    const before = performance.now();
    for (let count = 0; count < 20; count++) await took(1);
    expect(performance.now() - before).toBeGreaterThanOrEqual(20 / 0.9 - 1);
  });

  it("end when the signal says so", async () => {
    const stop = new AbortController();
    const pacer = new Pacer(() => 0.1, stop.signal);
    spend(5);
    const rest = pacer.rest();
    stop.abort();
    await expect(rest).rejects.toMatchObject({ name: "AbortError" });
    await expect(pacer.rest()).rejects.toMatchObject({ name: "AbortError" });
  });
});

describe("numbers of zones", () => {
  const plan = (present: [number, number][], wanted: number[], withFlows: number[] = []) => {
    const { numbers, added, removed } = planZoneNumbers(new Map(present), wanted, (number) =>
      withFlows.includes(number),
    );
    return { numbers: [...numbers], added: [...added], removed };
  };
  it.each([
    { what: "nothing", present: [], wanted: [], numbers: [], added: [], removed: [] },
    {
      what: "the first ones",
      present: [],
      wanted: [7, 0, 7],
      numbers: [],
      added: [
        [0, 1],
        [7, 2],
      ],
      removed: [],
    },
    { what: "one more", present: [[0, 1]], wanted: [0, 9], numbers: [[0, 1]], added: [[9, 2]], removed: [] },
    {
      what: "a gap",
      present: [
        [0, 1],
        [4, 3],
      ],
      wanted: [0, 4, 5],
      numbers: [
        [0, 1],
        [4, 3],
      ],
      added: [[5, 2]],
      removed: [],
    },
    {
      what: "one that nobody has",
      present: [
        [0, 1],
        [4, 2],
      ],
      wanted: [0],
      numbers: [[0, 1]],
      added: [],
      removed: [4],
    },
    {
      what: "one that nobody has but flows",
      present: [
        [0, 1],
        [4, 2],
      ],
      wanted: [0],
      withFlows: [2],
      numbers: [
        [0, 1],
        [4, 2],
      ],
      added: [],
      removed: [],
    },
    {
      what: "a number that becomes free",
      present: [[4, 1]],
      wanted: [5],
      numbers: [],
      added: [[5, 1]],
      removed: [4],
    },
  ] as {
    what: string;
    present: [number, number][];
    wanted: number[];
    withFlows?: number[];
    numbers: [number, number][];
    added: [number, number][];
    removed: number[];
  }[])("$what", ({ present, wanted, withFlows, numbers, added, removed }) => {
    expect(plan(present, wanted, withFlows)).toEqual({ numbers, added, removed });
  });

  it("are no more than there are rows", () => {
    const { added } = plan(
      [],
      Array.from({ length: 2000 }, (_, zone) => zone),
    );
    expect(added).toHaveLength(ZONES_MAX - 1);
    expect(added.at(-1)).toEqual([ZONES_MAX - 2, ZONES_MAX - 1]);
  });
});

describe("the programs' clock", () => {
  const DAY = 86_400n * 1_000_000_000n;
  const jiffies = 2n ** 32n - 300n * 250n + 100n * 86_400n * 250n;
  const timeNs = 100n * DAY;
  const { jiffies_base, jiffies_mult } = jiffiesClock(jiffies, timeNs)!;
  const control = (shiftSeconds: number) => ({
    jiffies_base: Number(jiffies_base) + shiftSeconds * 250,
    jiffies_mult,
  });
  const tick = 1e9 / 2 ** TICK_SHIFT;
  it.each([
    { shift: 0, error: 0, right: true },
    { shift: 1, error: -tick, right: true },
    { shift: -1, error: tick, right: true },
    { shift: 10, error: -10 * tick, right: false },
    { shift: -10, error: 10 * tick, right: false },
    { shift: -86_400, error: 86_400 * tick, right: false },
    { shift: 86_400 * 365, error: -86_400 * 365 * tick, right: false },
  ])("$shift seconds off", ({ shift, error, right }) => {
    const found = clockError(control(shift), { jiffies, timeNs });
    expect(Math.abs(found - error)).toBeLessThanOrEqual(1.5);
    expect(clockIsRight(control(shift), { jiffies, timeNs })).toBe(right);
  });

  it("is right where programs read it themselves", () => {
    expect(clockIsRight({ jiffies_base: 12, jiffies_mult: 0 }, { jiffies, timeNs })).toBe(true);
  });
});

describe("the sweeper", () => {
  const quick: SweepBounds = { ...BOUNDS, interval_min_seconds: 0.01, interval_max_seconds: 0.02 };
  const pass = vi.mocked(sweepPinned);
  let sweeper: Sweeper;
  afterEach(async () => {
    await sweeper.stop();
    vi.resetAllMocks();
  });

  const result = (more: Partial<SweepResult> = {}) =>
    ({
      durationNs: 1,
      busyNs: 1,
      longestCallNs: 1,
      calls: 1,
      tables: Array.from({ length: 4 }, (_, table) => ({
        name: `table${table}`,
        maxEntries: 100,
        report: { entries: 10, expired: 0 },
      })),
      zones: [],
      lastHopsReleased: 0,
      clockRepaired: false,
      ...more,
    }) as unknown as SweepResult;

  function make(bounds: SweepBounds) {
    const lines: string[] = [];
    const log = createLogger({ level: "info", format: "text", write: (line) => lines.push(line) });
    const seen = { passes: 0, errors: [] as string[], lines };
    sweeper = new Sweeper({
      pinRoot: "/sys/fs/bpf/x",
      bounds,
      log,
      onPass: () => seen.passes++,
      onError: (error) => seen.errors.push((error as Error).message),
    });
    sweeper.start();
    return seen;
  }

  const until = async (is: () => boolean) => {
    for (let tries = 0; !is(); tries++) {
      if (tries > 400) throw new Error("waited for too long");
      await sleep(5);
    }
  };

  it("passes again and again, another table first each time, by its bounds", async () => {
    pass.mockImplementation(async () => result());
    const seen = make(quick);
    sweeper.start(); // once more changes nothing
    await until(() => seen.passes >= 6);
    await sweeper.stop();
    const calls = pass.mock.calls.length;
    expect(pass.mock.calls.slice(0, 6).map(([, options]) => options!.first)).toEqual([0, 1, 2, 3, 0, 1]);
    expect(pass.mock.calls[0]).toMatchObject(["/sys/fs/bpf/x", { pieceNs: 2e6, countOnly: false }]);
    expect(pass.mock.calls[0]![1]!.cpuPercent!()).toBe(4);
    await sleep(60);
    expect(pass.mock.calls.length).toBe(calls);
    expect(seen.lines).toEqual([]);
  });

  it("waits the shortest interval first, and sees bounds that change meanwhile", async () => {
    pass.mockImplementation(async () => result());
    const seen = make({ ...quick, interval_min_seconds: 3600, interval_max_seconds: 3600 });
    await sleep(40);
    expect(seen.passes).toBe(0);
    // Long after it would have been due by the new bounds: that is no stall.
    const now = performance.now.bind(performance);
    vi.spyOn(performance, "now").mockImplementation(() => now() + 3000_000);
    sweeper.configure({ ...quick, cpu_percent: 7, piece_ms: 1 });
    await until(() => seen.passes >= 2);
    vi.restoreAllMocks();
    expect(seen.lines).toEqual([]);
    expect(pass.mock.calls[0]![1]!.cpuPercent!()).toBe(7);
    expect(pass.mock.calls[0]![1]!.pieceNs).toBe(1e6);
  });

  it("tells of a failure once for each reason, goes on, and says when it works again", async () => {
    let reason: string | undefined = "first";
    pass.mockImplementation(async () => {
      if (reason !== undefined) throw new Error(reason);
      return result();
    });
    const seen = make(quick);
    await until(() => pass.mock.calls.length >= 3);
    expect(seen.errors).toEqual(["first"]);
    reason = "second";
    await until(() => seen.errors.length === 2);
    reason = undefined;
    await until(() => seen.passes >= 2);
    expect(seen.errors).toEqual(["first", "second"]);
    expect(seen.lines).toEqual(["lasthop: info: expiry works again\n"]);
  });

  it("stops in the middle of a pass, which is neither an error nor a result", async () => {
    const interrupted = vi.fn();
    pass.mockImplementation(async (_pinRoot, options) => {
      await sleep(60_000, undefined, { signal: options!.signal! }).catch((error) => {
        interrupted();
        throw error;
      });
      return result();
    });
    const seen = make(quick);
    await until(() => pass.mock.calls.length === 1);
    await sweeper.stop();
    expect(interrupted).toHaveBeenCalledOnce();
    expect([seen.passes, seen.errors]).toEqual([0, []]);
    await sweeper.stop();
    sweeper.start(); // and may be started again
    await until(() => pass.mock.calls.length === 2);
  });

  it("counts only, for a while, once the clock was wrong", async () => {
    pass.mockImplementationOnce(async () => result({ clockRepaired: true }));
    pass.mockImplementation(async () => result());
    const seen = make(quick);
    await until(() => seen.passes >= 2);
    expect(pass.mock.calls.slice(0, 2).map(([, options]) => options!.countOnly)).toEqual([false, true]);
    expect(seen.lines).toEqual([
      expect.stringMatching(/^lasthop: warning: the programs' clock was wrong .* held_seconds=60\n$/),
    ]);
  });

  it("counts only, for a while, after it stood still", async () => {
    pass.mockImplementation(async () => result());
    const now = vi.spyOn(performance, "now");
    let jump = 0;
    const real = process.hrtime.bigint();
    now.mockImplementation(() => Number(process.hrtime.bigint() - real) / 1e6 + jump);
    try {
      const seen = make(quick);
      await until(() => seen.passes === 1);
      jump = 7200_000;
      await until(() => seen.passes >= 4);
      expect(pass.mock.calls[0]![1]!.countOnly).toBe(false);
      expect(pass.mock.calls.at(-1)![1]!.countOnly).toBe(true);
      expect(seen.lines).toEqual([expect.stringMatching(/expiry is held back.* stood_still_seconds=7200 /)]);
      jump += 9_000;
      const passes = seen.passes;
      await until(() => seen.passes > passes + 1);
      expect(seen.lines).toHaveLength(1);
    } finally {
      now.mockRestore();
    }
  });
});
