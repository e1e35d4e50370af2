// SPDX-License-Identifier: Apache-2.0
// The sweeper over pinned tables: it expires by itself, one pass at a time, and can be stopped anywhere.

import { rmdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, it } from "vitest";
import { currentTick, encode, secondsToTicks, sizeOf } from "../../src/abi/codec.ts";
import { FLOW_STATE } from "../../src/abi/layout.gen.ts";
import { type SweepResult, sweepPinned } from "../../src/controller/sweep.ts";
import { type SweepBounds, Sweeper } from "../../src/controller/sweeper.ts";
import { createInstance, type Instance, removeInstance, withLock } from "../../src/kernel/instance.ts";
import { makeDirectories } from "../../src/kernel/pinRoot.ts";
import { lockSweeps } from "../../src/kernel/sweepLock.ts";
import { createLogger } from "../../src/log.ts";
import { sweep } from "../../src/ops/sweep.ts";
import { Tables } from "../../src/tables/index.ts";

const PIN_ROOT = `/sys/fs/bpf/lasthop-sweeper-${process.pid}`;
const SIZE = 32_768;
const BOUNDS: SweepBounds = {
  interval_min_seconds: 0.05,
  interval_max_seconds: 0.1,
  cpu_percent: 50,
  piece_ms: 0.1,
};
const TCP = 6;

let instance: Instance;
let tables: Tables;
let sweeper: Sweeper | undefined;

beforeEach(() => {
  makeDirectories(PIN_ROOT);
  instance = createInstance(PIN_ROOT, {
    maxEntries: { flows4: SIZE, flows6: SIZE, embryos4: 1024, embryos6: 1024 },
  });
  tables = new Tables(instance);
});

afterEach(async () => {
  await sweeper?.stop();
  sweeper = undefined;
  instance.close();
  removeInstance(PIN_ROOT);
  rmdirSync(PIN_ROOT);
});

function put(name: "flows4" | "flows6", first: number, count: number, idleSeconds: number): void {
  const key = name === "flows4" ? "flow4_key" : "flow6_key";
  const keys = Buffer.alloc(count * sizeOf(key));
  const values = Buffer.alloc(count * sizeOf("flow"));
  const last_seen = (currentTick() - secondsToTicks(idleSeconds)) >>> 0;
  for (let index = 0; index < count; index++) {
    encode(key, { remote_port: first + index, proto: TCP }, keys, index * sizeOf(key));
    encode("flow", { state: FLOW_STATE.ESTABLISHED, last_seen }, values, index * sizeOf("flow"));
  }
  instance.map(name).updateBatch(keys, values, count);
}

function start(bounds: SweepBounds = BOUNDS) {
  const seen = { results: [] as SweepResult[], errors: [] as unknown[], lines: [] as string[] };
  const write = (line: string) => void seen.lines.push(line);
  sweeper = new Sweeper({
    pinRoot: PIN_ROOT,
    bounds,
    log: createLogger({ level: "info", format: "text", write }),
    onPass: (result) => void seen.results.push(result),
    onError: (error) => void seen.errors.push(error),
  });
  sweeper.start();
  return seen;
}

async function until(is: () => boolean): Promise<void> {
  for (let tries = 0; !is(); tries++) {
    if (tries > 2000) throw new Error("waited for too long");
    await sleep(5);
  }
}

const E_LOCKED = { code: "E_LOCKED", message: /^another expiry pass goes over the tables in / };
const locked = expect.objectContaining({
  code: E_LOCKED.code,
  message: expect.stringMatching(E_LOCKED.message),
});

it("expires by itself, both families, and goes on doing so", async () => {
  const seen = start();
  for (let round = 0; round < 3; round++) {
    put("flows4", 0, 200, 1);
    put("flows6", 0, 200, 1);
    put("flows4", 1000, 100, 8000);
    put("flows6", 1000, 100, 8000);
    const passes = seen.results.length;
    await until(() => seen.results.length >= passes + 3);
    for (const name of ["flows4", "flows6"]) {
      expect([...instance.map(name).batches()].reduce((sum, { count }) => sum + count, 0)).toBe(200);
    }
  }
  const total = (key: "entries" | "expired") =>
    seen.results.flatMap((result) => result.tables).reduce((sum, { report }) => sum + report[key], 0);
  expect(total("expired")).toBe(600);
  expect([seen.errors, seen.lines]).toEqual([[], []]);
});

it("stops in the middle of a pass; nothing is half, and the lock is free", async () => {
  put("flows4", 0, 20_000, 1);
  put("flows6", 0, 20_000, 1);
  const seen = start({ ...BOUNDS, cpu_percent: 1 });
  await until(() => tables.sweep.report(0).entries > 100);
  await sweeper!.stop();
  expect(tables.sweep.report(0).entries).toBeLessThan(20_000);
  expect(seen.results).toEqual([]);
  expect(tables.sweep.ended(0).finished_ns).toBe(0);
  const { tables: found } = await sweepPinned(PIN_ROOT);
  expect(found.slice(0, 2).map(({ report }) => report.entries)).toEqual([20_000, 20_000]);
});

it("one pass at a time: another waits, or says why not", async () => {
  put("flows4", 0, 20_000, 1);
  put("flows6", 0, 20_000, 1);
  const controller = new AbortController();
  const slow = sweepPinned(PIN_ROOT, { cpuPercent: () => 1, pieceNs: 100_000, signal: controller.signal });
  await until(() => tables.sweep.report(0).entries > 0);
  await expect(sweepPinned(PIN_ROOT)).rejects.toEqual(locked);
  await expect(sweepPinned(PIN_ROOT, { waitMs: 100 })).rejects.toMatchObject({
    message: expect.stringContaining("has not ended within 0.1 s"),
    hint: expect.stringContaining("lasthop status"),
  });
  // Who is told to stop waiting stops.
  const impatient = new AbortController();
  const waiting = sweepPinned(PIN_ROOT, { waitMs: 60_000, signal: impatient.signal });
  impatient.abort();
  await expect(waiting).rejects.toMatchObject({ name: "AbortError" });
  const patient = sweep({ pinRoot: PIN_ROOT, warn: () => undefined });
  controller.abort();
  await expect(slow).rejects.toMatchObject({ name: "AbortError" });
  expect((await patient).tables[0]!.entries).toBe(20_000);
});

it("does not keep others from changing things while it goes over the tables", async () => {
  put("flows4", 0, 20_000, 1);
  const controller = new AbortController();
  const slow = sweepPinned(PIN_ROOT, { cpuPercent: () => 1, pieceNs: 100_000, signal: controller.signal });
  await until(() => tables.sweep.report(0).entries > 0);
  await withLock(PIN_ROOT, () => expect(tables.sweep.report(0).entries).toBeLessThan(20_000));
  controller.abort();
  await expect(slow).rejects.toMatchObject({ name: "AbortError" });
});

it("waits for a pass that was started by hand", async () => {
  const lock = await lockSweeps(instance.path, 0);
  const seen = start();
  await sleep(200);
  expect([seen.results, seen.errors]).toEqual([[], []]);
  lock[Symbol.dispose]();
  await until(() => seen.results.length > 0);
  expect(seen.errors).toEqual([]);
});

it("tells of tables that are gone once, and takes up those that come", async () => {
  const seen = start();
  await until(() => seen.results.length > 0);
  instance.close();
  rmSync(join(PIN_ROOT, instance.path.slice(PIN_ROOT.length + 1)), { recursive: true });
  await until(() => seen.errors.length > 0);
  await sleep(300);
  expect(seen.errors).toEqual([expect.objectContaining({ code: "E_NO_TABLES" })]);
  instance = createInstance(PIN_ROOT, { maxEntries: { flows4: 1024, flows6: 1024 } });
  tables = new Tables(instance);
  const passes = seen.results.length;
  await until(() => seen.results.length > passes);
  expect(tables.sweep.ended(0).finished_ns).toBeGreaterThan(0);
  expect(seen.lines).toEqual(["lasthop: info: expiry works again\n"]);
});
