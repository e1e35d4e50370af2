// SPDX-License-Identifier: Apache-2.0
/*
 * Makes what the hot path reads of services what their entries, and the VMs as they are now, ask for.
 *
 * VMs come first, so that nothing leads to one that programs cannot find. Then what is new: lines, pools, services,
 * associations and, at last, the keys by which requests find a service; then what is no longer wanted, in the opposite
 * order. Killed in between, some of it has no effect yet, and whoever comes next does the rest. Only what differs is
 * written.
 */

import { sizeOf } from "../abi/codec.ts";
import {
  AFFINITY_KEY,
  ASSOCIATION_KEY,
  ASSOCIATIONS_MAX,
  SERVICE,
  SERVICE_KEYS_MAX,
} from "../abi/layout.gen.ts";
import { linesOf, type TableMap, type Tables } from "../tables/index.ts";
import type { Surroundings } from "./observe.ts";
import { atOnce, type Pieces } from "./pieces.ts";
import {
  type ObservedPool,
  type ObservedServices,
  type RoomHints,
  type ServiceChanges,
  serviceChanges,
} from "./serviceChanges.ts";
import { type ModelService, type Row, type WantedService, wantedContents } from "./serviceModel.ts";
import { unreadText } from "./servicePlan.ts";
import { type KnownPools, poolDigest, poolLength } from "./servicePools.ts";
import { type NamedService, servicesInPieces, vmsInPieces } from "./serviceSpec.ts";
import { settleVms } from "./vmSettle.ts";

export interface Settled {
  /** What was done, for the log. */
  lines: string[];
  /** What stands in the way of something; the same the next time, unless it is repaired. */
  problems: string[];
}

/** Entries of some 30 bytes that are read at once. */
const BATCH = 1024;
/** Small things between two pauses. */
const SEVERAL = 64;
/** Services that are told one by one; when a VM goes it may be thousands. */
const TOLD_MAX = 16;
/** A service of which nothing is said. */
const NOTHING = Buffer.alloc(sizeOf("service"));

/** Of this process: where room was given out last, and contents that it has worked out. */
const hints: RoomHints = { pool: 1, line: 0 };
const known: KnownPools = new Map();

/** Idempotent. Returns what was done, for the log. The caller holds the lock. */
export function settleServices(around: Surroundings): string[] {
  return atOnce(settleServicesInPieces(around)).lines;
}

/** The same for who has other things to do meanwhile. */
export function* settleServicesInPieces(around: Surroundings): Pieces<Settled> {
  const { tables } = around;
  const specs = { vms: yield* vmsInPieces(tables), services: yield* servicesInPieces(tables) };
  const unread = [
    ...specs.vms.broken.map((broken) => unreadText("VM", broken)),
    ...specs.services.broken.map((broken) => unreadText("service", broken)),
  ];
  const vms = yield* settleVms(around, specs.vms.named, specs.vms.broken);
  const isNothing = unread.length + vms.vms.length + vms.cells + specs.services.named.length === 0;
  // As on every host without services. Keys are what is removed first: without any, the rest has been.
  if (isNothing && tables.control.get().vm_cells === 0 && isEmpty(tables.services.index.map)) {
    return { lines: [], problems: [] };
  }
  const observed = yield* observeServices(tables);
  const kept = new Set(specs.services.broken.map(({ number }) => number));
  const indexed = yield* giveIndices(tables, specs.services.named, observed, kept);
  const wanted = yield* wantedContents(indexed.services, vms.vms, known, observed.room.lines);
  const changes = yield* serviceChanges(wanted, observed, kept, hints);
  const changed = yield* write(tables, changes, observed);
  // Last of all: from here on programs look for services at all, or no longer.
  const isOther = tables.control.get().vm_cells !== vms.cells;
  if (isOther) tables.control.set({ vm_cells: vms.cells });
  if (changed || vms.changed || isOther) yield* forgetAffinities(tables, wanted.services, observed, kept);
  return {
    lines: [...vms.lines, ...servicesText(changes.moved)],
    problems: [...unread, ...vms.problems, ...indexed.problems, ...changes.problems],
  };
}

function isEmpty(map: TableMap): boolean {
  for (const _batch of map.batches(1)) return false;
  return true;
}

function servicesText(moved: readonly WantedService[]): string[] {
  const told = moved.slice(0, TOLD_MAX).map(({ name, up, all }) => `service ${name}: ${up} of ${all} VMs`);
  const rest = moved.length - told.length;
  return rest > 0 ? [...told, `${rest} more services: other VMs than before`] : told;
}

// What is there

function* observeServices({ services }: Tables): Pieces<ObservedServices> {
  const entries = new Map<number, Buffer>();
  for (const { count, keys, values } of services.entries.map.batches(BATCH)) {
    for (let place = 0; place < count; place++) {
      const entry = values.subarray(place * NOTHING.length, (place + 1) * NOTHING.length);
      if (!entry.equals(NOTHING)) entries.set(keys.readUInt32LE(place * 4), Buffer.from(entry));
    }
    yield;
  }
  const keys = yield* readRows(services.index.map, sizeOf("service_key"));
  const associations = yield* readRows(services.associations.map, sizeOf("association_key"));
  const named = new Set([
    ...[...entries.values()].map((entry) => entry.readUInt32LE(SERVICE.fields.pool.offset)),
    ...[...associations.values()].map(({ value }) => value),
  ]);
  const room = {
    services: services.entries.map.info().maxEntries,
    pools: services.pools.map.info().maxEntries,
    lines: services.lines.map.info().maxEntries,
  };
  const pools = new Map<number, ObservedPool>();
  let count = 0;
  for (const index of named) {
    if (index === 0 || index >= room.pools) continue;
    pools.set(index, observePool(services, index, room.lines));
    if (++count % SEVERAL === 0) yield;
  }
  return { entries, keys, associations, pools, room };
}

function* readRows(map: TableMap, keyBytes: number): Pieces<Map<string, Row<number>>> {
  const rows = new Map<string, Row<number>>();
  for (const { count, keys, values } of map.batches(BATCH)) {
    for (let place = 0; place < count; place++) {
      const key = Buffer.from(keys.subarray(place * keyBytes, (place + 1) * keyBytes));
      rows.set(key.toString("hex"), { key, value: values.readUInt32LE(place * 4) });
    }
    yield;
  }
  return rows;
}

function observePool(services: Tables["services"], index: number, lines: number): ObservedPool {
  const { line, size, policy } = services.pools.get(index)!;
  const count = linesOf(poolLength(policy, size));
  // Nothing of ours.
  if (line + count > lines) return { line: 0, count: 0, digest: null };
  const cells = services.readCells(line, poolLength(policy, size));
  return { line, count, digest: poolDigest(policy, size, cells) };
}

// Indices

/** A service keeps the one that it has. One that was given up in this change is not given out in it. */
function* giveIndices(
  tables: Tables,
  named: readonly NamedService[],
  { entries, keys, associations, room }: ObservedServices,
  kept: ReadonlySet<number>,
): Pieces<{ services: ModelService[]; problems: string[] }> {
  const owners = new Map<number, string>([...kept].map((index) => [index, ""]));
  for (const { name, spec } of named) {
    const { index } = spec;
    if (index > 0 && index < room.services && !owners.has(index)) owners.set(index, name);
  }
  let taken: Set<number> | undefined;
  let next = 1;
  const services: ModelService[] = [];
  const without: string[] = [];
  for (const [count, { name, config, spec }] of named.entries()) {
    let { index } = spec;
    if (owners.get(index) !== name) {
      taken ??= new Set([
        ...owners.keys(),
        ...entries.keys(),
        ...[...keys.values()].map(({ value }) => value),
        ...[...associations.values()].map(({ key }) =>
          key.readUInt32LE(ASSOCIATION_KEY.fields.service.offset),
        ),
      ]);
      while (taken.has(next)) next++;
      if (next >= room.services) {
        without.push(name);
        continue;
      }
      index = next++;
      tables.services.clearStats(index);
      tables.services.specs.set({ name }, { ...spec, index });
    }
    services.push({ name, zone: spec.zone, index, config });
    if (count % SEVERAL === 0) yield;
  }
  const problems = without.map((name) => `service ${name}: there are too many services for it (E_SERVICE)`);
  return { services, problems };
}

// Writing

/** True if anything was. */
function* write(tables: Tables, changes: ServiceChanges, observed: ObservedServices): Pieces<boolean> {
  const { services } = tables;
  const { removed } = changes;
  const value = Buffer.alloc(4);
  function* each<T>(items: readonly T[], act: (item: T) => void): Pieces<void> {
    for (const [count, item] of items.entries()) {
      act(item);
      if (count % SEVERAL === 0) yield;
    }
  }
  const put = (map: TableMap) => (row: Row<number>) => {
    value.writeUInt32LE(row.value);
    map.update(row.key, value);
  };
  const take = (map: TableMap) => (key: Buffer) => void map.delete(key);
  // With so many, those that go have to make room.
  const isFull =
    observed.keys.size + changes.keys.length > SERVICE_KEYS_MAX ||
    observed.associations.size + changes.associations.length > ASSOCIATIONS_MAX;
  if (isFull) {
    yield* each(removed.keys, take(services.index.map));
    yield* each(removed.associations, take(services.associations.map));
  }
  yield* each(changes.lines, ({ line, cells }) => services.writeCells(line, cells));
  yield* each(changes.pools, ({ index, content, line }) =>
    services.pools.set(index, { line, size: content.size, policy: content.policy }),
  );
  yield* each(changes.services, ({ index, entry }) => services.entries.map.update(rowKey(index), entry));
  yield* each(changes.associations, put(services.associations.map));
  yield* each(changes.keys, put(services.index.map));
  if (!isFull) {
    yield* each(removed.keys, take(services.index.map));
    yield* each(removed.associations, take(services.associations.map));
  }
  yield* each(removed.services, (index) => services.entries.set(index, {}));
  const { lines, pools, services: entries, associations, keys } = changes;
  return [lines, pools, entries, associations, keys, ...Object.values(removed)].some(
    ({ length }) => length > 0,
  );
}

function rowKey(index: number): Buffer {
  const key = Buffer.alloc(4);
  key.writeUInt32LE(index);
  return key;
}

/** Those that lead a client to a VM that its service has no more, or that came to a service before this one. */
function* forgetAffinities(
  { services }: Tables,
  wanted: readonly WantedService[],
  { entries }: ObservedServices,
  kept: ReadonlySet<number>,
): Pieces<void> {
  const { affinity_ticks } = SERVICE.fields;
  const had = [...entries.values()].some((entry) => entry.readUInt32LE(affinity_ticks.offset) !== 0);
  const byIndex = new Map(
    wanted.filter(({ affinityTicks }) => affinityTicks !== 0).map((service) => [service.index, service]),
  );
  if (!had && byIndex.size === 0) return;
  const keyBytes = sizeOf("affinity_key");
  const valueBytes = sizeOf("affinity");
  const { map } = services.affinities;
  const left: Buffer[] = [];
  for (const { count, keys, values } of map.batches(BATCH)) {
    for (let place = 0; place < count; place++) {
      const key = keys.subarray(place * keyBytes, (place + 1) * keyBytes);
      const service = key.readUInt32LE(AFFINITY_KEY.fields.service.offset);
      const vm = values.readUInt32LE(place * valueBytes);
      if (!kept.has(service) && !byIndex.get(service)?.ids.has(vm)) left.push(Buffer.from(key));
    }
    yield;
  }
  for (const key of left) map.delete(key);
}
