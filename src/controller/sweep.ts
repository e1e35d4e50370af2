// SPDX-License-Identifier: Apache-2.0
// One expiry pass. The kernel walks its tables, rechecks and deletes; we read the walk in pieces, so that
// no call holds a processor for long, and then give back the last hops that nobody names any more.

import { setImmediate as turn } from "node:timers/promises";
import { currentTick, encode, type StructValue, secondsToTicks, sizeOf } from "../abi/codec.ts";
import { BpfLink, type BpfMap, type BpfProgram } from "../libbpf/index.ts";
import { Tables } from "../tables/index.ts";
import { releaseLastHops } from "./lastHopRelease.ts";

/** Pieces of a walk last so long in the kernel; the bound to keep is 10 ms. */
const PIECE_NS = 2_000_000;
const LAST_HOP_IDLE_SECONDS = 300;
const FEW = 64;

export interface SweepOptions {
  /** Expire what was idle for so long, instead of by the timeouts. */
  idleSeconds?: number;
  pieceNs?: number;
  /** A table with fewer entries is not walked: they are looked at one by one. */
  few?: number;
}

export interface SweepResult {
  durationNs: number;
  longestCallNs: number;
  /** Calls into the kernel that go over many entries. */
  calls: number;
  tables: { name: string; report: StructValue<"sweep_report"> }[];
  lastHopsReleased: number;
}

interface Programs {
  map(name: string): BpfMap;
  program(name: string): BpfProgram;
}

/** The caller holds the lock: two passes at once would share their counters. */
export async function sweepInstance(instance: Programs, options: SweepOptions = {}): Promise<SweepResult> {
  const tables = new Tables(instance);
  const started = process.hrtime.bigint();
  const startedTick = currentTick();
  // 0 ticks would mean the timeouts.
  const idle = options.idleSeconds === undefined ? 0 : Math.max(1, secondsToTicks(options.idleSeconds));
  // The passes add to these.
  tables.lastHops.clearRefs(tables.sweep.begin({ idleTicks: idle, budgetNs: options.pieceNs ?? PIECE_NS }));
  const result: SweepResult = { durationNs: 0, longestCallNs: 0, calls: 0, tables: [], lastHopsReleased: 0 };
  for (const { name, table } of tables.flows.all) {
    tables.sweep.reset(table);
    const few = fewKeys(instance.map(name), options.few ?? FEW, result);
    if (few) sweepKeys(instance.program("sweep_key"), table, few, result);
    else await walk(instance.program(`sweep_${name}`), instance.map(name), result);
    result.tables.push({ name, report: tables.sweep.report(table) });
  }
  tables.sweep.end();
  const lastHopIdle = secondsToTicks(options.idleSeconds ?? LAST_HOP_IDLE_SECONDS);
  result.lastHopsReleased = await releaseLastHops(tables, startedTick, lastHopIdle);
  result.durationNs = Number(process.hrtime.bigint() - started);
  return result;
}

/**
 * An iterator cannot stop between buckets that hold nothing, and spends 20 ns on each: longer than a call may
 * take, for a large table with hardly an entry. This look takes a thirtieth of that. Null if there are many.
 */
function fewKeys(map: BpfMap, few: number, result: SweepResult): Buffer[] | null {
  const keys = new Map<string, Buffer>();
  let key: Buffer | null = null;
  // A key that vanishes makes the kernel begin anew, so steps are counted and not keys.
  for (let step = 0; step < few; step++) {
    const next: Buffer | undefined = timed(result, () => map.nextKey(key));
    if (next === undefined) return [...keys.values()];
    keys.set(next.toString("hex"), next);
    key = next;
  }
  return null;
}

function sweepKeys(program: BpfProgram, table: number, keys: readonly Buffer[], result: SweepResult): void {
  for (const key of keys) {
    timed(result, () => program.testRun({ ctx: encode("sweep_key", { table, key }) }));
  }
}

function timed<T>(result: SweepResult, call: () => T): T {
  const before = process.hrtime.bigint();
  const value = call();
  result.longestCallNs = Math.max(result.longestCallNs, Number(process.hrtime.bigint() - before));
  result.calls++;
  return value;
}

async function walk(program: BpfProgram, map: BpfMap, result: SweepResult): Promise<void> {
  const link = BpfLink.attachIter(program, map);
  try {
    const iter = link.iter();
    try {
      // Exactly one record: a larger buffer would let the kernel go on after the first.
      const record = Buffer.alloc(sizeOf("sweep_record"));
      while (timed(result, () => iter.read(record)) > 0) await turn();
    } finally {
      iter.close();
    }
  } finally {
    link.close();
  }
}
