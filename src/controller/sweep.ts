// SPDX-License-Identifier: Apache-2.0
/*
 * One expiry pass. The kernel walks its tables, rechecks and deletes; we read the walks in pieces, so that no
 * call holds a processor for long, take turns between the tables, so that none waits for another, and rest
 * between pieces as the share of a processor says. Then what was found is published, and last hops that nobody
 * names any more are given back.
 */

import { currentTick, type StructValue, secondsToTicks } from "../abi/codec.ts";
import { openInstance, withLock } from "../kernel/instance.ts";
import { lockSweeps } from "../kernel/sweepLock.ts";
import { Tables } from "../tables/index.ts";
import { countEvictions } from "./evictions.ts";
import { releaseLastHops } from "./lastHopRelease.ts";
import { Pacer } from "./pacer.ts";
import { type Programs, TableWalk } from "./tableWalk.ts";
import { clockIsRight, readClock, repairClock } from "./tickClock.ts";
import { beginVmCount, releaseCells, setFlowCounts } from "./vmRefs.ts";
import { ensureZoneNumbers } from "./zoneNumbers.ts";

/** Pieces of a walk last so long in the kernel; the bound to keep is 10 ms. */
const PIECE_NS = 2_000_000;
const LAST_HOP_IDLE_SECONDS = 300;
const FEW = 64;
/** Number of all zones that have none. */
const OTHER_ZONES = 0;
/** Others wait for the lock meanwhile, so last hops are given back faster than tables are walked, and rest comes after. */
const RELEASE_SHARE = 0.5;
/** No flow is older than half of what 32 bits hold: with this for a timeout nothing expires. */
const NEVER_TICKS = 0xffff_ffff;
/** A CPU takes 128 free entries for itself at a time, and what it deletes comes back to it (bpf_lru_list.c). */
const LRU_ENTRIES_PER_CPU = 256;

type Locked = <T>(change: () => T | Promise<T>) => Promise<T>;

export interface SweepOptions {
  /** Expire what was idle for so long, instead of by the timeouts. */
  idleSeconds?: number;
  /** Count, and expire nothing. */
  countOnly?: boolean;
  pieceNs?: number;
  /** Of one processor, at most; asked anew at each rest. 100 if left out: no rest. */
  cpuPercent?: () => number;
  /** A table with fewer entries is not walked: they are looked at one by one. */
  few?: number;
  /** enum table of the one that comes first. */
  first?: number;
  /** Interrupts the pass between two pieces: it rejects, and nothing of it is published. */
  signal?: AbortSignal;
  /** Around each change of what others change too. */
  locked?: Locked;
}

export interface SweepResult {
  durationNs: number;
  /** Of that, in calls into the kernel that go over many entries. */
  busyNs: number;
  longestCallNs: number;
  calls: number;
  /** In the order of enum table. `evicted` counts since the tables were made. */
  tables: { name: string; maxEntries: number; report: StructValue<"sweep_report"> }[];
  /** Flows by state; zone null: all that have no number of their own. */
  zones: { zone: number | null; table: string; states: number[] }[];
  lastHopsReleased: number;
  /** The programs' clock was wrong and has been set right: nothing was expired. */
  clockRepaired: boolean;
}

export interface PassOptions extends Omit<SweepOptions, "locked"> {
  /** For another pass to end; then E_LOCKED. */
  waitMs?: number;
}

/** One pass over what is pinned. Throws what openInstance does, and E_LOCKED if another pass goes on. */
export async function sweepPinned(pinRoot: string, options: PassOptions = {}): Promise<SweepResult> {
  using instance = openInstance(pinRoot);
  using _lock = await lockSweeps(instance.path, options.waitMs ?? 0, options.signal);
  return await sweepInstance(instance, { ...options, locked: (change) => withLock(pinRoot, change) });
}

/** The caller sees to it that there is no other pass: two at once would share their counters. */
export async function sweepInstance(instance: Programs, options: SweepOptions = {}): Promise<SweepResult> {
  const { signal, locked = async (change) => await change() } = options;
  const tables = new Tables(instance);
  const pacer = new Pacer(options.cpuPercent, signal);
  const startedNs = process.hrtime.bigint();
  const startedTick = currentTick();
  const clockRepaired = await checkClock(tables, instance, locked);
  const zones = await ensureZoneNumbers(tables, locked);
  const result: SweepResult = {
    durationNs: 0,
    busyNs: 0,
    longestCallNs: 0,
    calls: 0,
    tables: [],
    zones: [],
    lastHopsReleased: 0,
    clockRepaired,
  };
  const idleTicks = clockRepaired || options.countOnly ? NEVER_TICKS : idleTicksOf(options.idleSeconds);
  const refs = tables.sweep.begin({ idleTicks, budgetNs: options.pieceNs ?? PIECE_NS });
  pacer.begin();
  for (const _piece of tables.lastHops.clearRefs(refs)) await pacer.rest();
  const vms = beginVmCount(tables, refs);
  await pacer.rest();
  for (const number of [OTHER_ZONES, ...zones.values()]) {
    tables.sweep.resetZone(number, "under way");
    await pacer.rest();
  }
  const walks = await walkTables(instance, tables, pacer, result, options);
  await publish(tables, walks, startedNs, result, locked);
  setFlowCounts(tables, vms);
  if (vms && vms.leaving.size > 0) await locked(() => releaseCells(tables, vms));
  // Not to be interrupted: all is published, or nothing.
  result.zones = await publishZones(tables, zones, new Pacer(options.cpuPercent));
  signal?.throwIfAborted();
  const lastHopIdle = secondsToTicks(options.idleSeconds ?? LAST_HOP_IDLE_SECONDS);
  const share = options.cpuPercent ? RELEASE_SHARE : 1;
  pacer.begin();
  result.lastHopsReleased = await locked(() => releaseLastHops(tables, startedTick, lastHopIdle, { share }));
  result.durationNs = Number(process.hrtime.bigint() - startedNs);
  await pacer.rest();
  return result;
}

/** 0 ticks mean the timeouts. */
function idleTicksOf(seconds: number | undefined): number {
  return seconds === undefined ? 0 : Math.max(1, secondsToTicks(seconds));
}

async function checkClock(tables: Tables, instance: Programs, locked: Locked): Promise<boolean> {
  const program = instance.program("read_clock");
  if (clockIsRight(tables.control.get(), readClock(program))) return false;
  await locked(() => repairClock(tables, readClock(program)));
  return true;
}

/** A piece of each table in turn. */
async function walkTables(
  instance: Programs,
  tables: Tables,
  pacer: Pacer,
  result: SweepResult,
  { few = FEW, first = 0, signal }: SweepOptions,
): Promise<TableWalk[]> {
  const called = (ns: number) => {
    result.calls++;
    result.longestCallNs = Math.max(result.longestCallNs, ns);
  };
  const walks: TableWalk[] = [];
  try {
    for (const table of tables.flows.all) {
      walks.push(new TableWalk(instance, tables.sweep, table, { few, called }));
    }
    let left = [...walks.slice(first), ...walks.slice(0, first)];
    while (left.length > 0) {
      const unfinished: TableWalk[] = [];
      for (const walk of left) {
        signal?.throwIfAborted();
        if (walk.step()) unfinished.push(walk);
        await pacer.rest();
      }
      left = unfinished;
    }
    return walks;
  } finally {
    for (const walk of walks) walk.close();
  }
}

/** What the pass counted becomes what is shown. */
async function publish(
  tables: Tables,
  walks: readonly TableWalk[],
  startedNs: bigint,
  result: SweepResult,
  locked: Locked,
): Promise<void> {
  const { sweep } = tables;
  const times = { started_ns: Number(startedNs), finished_ns: Number(process.hrtime.bigint()) };
  const drifts: { table: number; drift: number[] }[] = [];
  for (const { table: flowTable, report, pieces, start, busyNs } of walks) {
    const { table, name, map } = flowTable;
    const { maxEntries } = map.info();
    const roomy = maxEntries - LRU_ENTRIES_PER_CPU * sweep.balance.cpus;
    const walk = { start, pieces, states: report.states, roomy };
    const { evicted, drift } = countEvictions(walk, sweep.ended(table).evicted);
    const ended = { ...report, ...times, evicted, busy_ns: busyNs };
    sweep.publish(table, ended);
    result.tables.push({ name, maxEntries, report: ended });
    result.busyNs += busyNs;
    if (drift.some((count) => count !== 0)) drifts.push({ table, drift });
  }
  sweep.end();
  if (drifts.length === 0) return;
  await locked(() => {
    for (const { table, drift } of drifts) sweep.balance.remove(table, drift);
  });
}

/** A thousand zones have thousands of rows: the event loop has its turn after each zone. */
async function publishZones(
  tables: Tables,
  zones: ReadonlyMap<number, number>,
  pacer: Pacer,
): Promise<SweepResult["zones"]> {
  const { sweep, flows } = tables;
  const found: SweepResult["zones"] = [];
  for (const [zone, number] of [...[...zones].sort(([a], [b]) => a - b), [null, OTHER_ZONES] as const]) {
    sweep.publishZone(number);
    for (const { name, table } of flows.all) {
      const states = sweep.zoneStates(number, table, "ended");
      if (zone !== null || states.some((count) => count > 0)) found.push({ zone, table: name, states });
    }
    await pacer.rest();
  }
  return found;
}
