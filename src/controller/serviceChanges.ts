// SPDX-License-Identifier: Apache-2.0
/*
 * From what the tables of services hold to what they are to hold: which writes it takes. Pure, in pieces.
 *
 * A pool and its lines never change once something leads to them: a new content gets room that nothing leads to, and
 * then the service is led there. What nothing leads to any more is free – but not before the next change: a packet on
 * another processor may still be reading it. So that many changes in a row do not come back there either, room is given
 * out in turns (RoomHints).
 */

import { encode } from "../abi/codec.ts";
import { ASSOCIATION_KEY, SERVICE } from "../abi/layout.gen.ts";
import { linesOf } from "../tables/index.ts";
import type { Pieces } from "./pieces.ts";
import type { Row, Wanted, WantedService } from "./serviceModel.ts";
import type { PoolContent } from "./servicePools.ts";

export interface ObservedPool {
  line: number;
  /** Of lines. */
  count: number;
  /** As poolDigest; null if it is none that can be. */
  digest: string | null;
}

export interface ObservedServices {
  /** Index → struct service, those that are not all zeros. */
  entries: ReadonlyMap<number, Buffer>;
  /** By key, in hex. */
  keys: ReadonlyMap<string, Row<number>>;
  associations: ReadonlyMap<string, Row<number>>;
  /** Those to which a service or an association leads. */
  pools: ReadonlyMap<number, ObservedPool>;
  /** How much the tables hold. */
  room: { services: number; pools: number; lines: number };
}

export interface ServiceChanges {
  lines: { line: number; cells: Uint16Array }[];
  pools: { index: number; content: PoolContent; line: number }[];
  services: { index: number; entry: Buffer }[];
  associations: Row<number>[];
  keys: Row<number>[];
  /** In the order in which they are to be done, after all else. */
  removed: { keys: Buffer[]; associations: Buffer[]; services: number[] };
  /** Services that distribute to others than before, or are new. */
  moved: WantedService[];
  problems: string[];
}

/** Where to look for room first. */
export interface RoomHints {
  pool: number;
  line: number;
}

/** Services between two pauses. */
const SEVERAL = 64;
const { pool: POOL } = SERVICE.fields;

/** `kept`: indices of services that nobody can read, which stay as they are. Moves the hints on. */
export function* serviceChanges(
  wanted: Wanted,
  observed: ObservedServices,
  kept: ReadonlySet<number>,
  hints: RoomHints,
): Pieces<ServiceChanges> {
  const changes: ServiceChanges = {
    lines: [],
    pools: [],
    services: [],
    associations: [],
    keys: [],
    removed: { keys: [], associations: [], services: [] },
    moved: [],
    problems: [...wanted.problems],
  };
  const places = new PoolPlaces(observed, hints, changes);
  yield* changeServices(wanted, observed, places, changes);
  changeAssociations(wanted, observed, places, changes);
  yield;
  for (const [hex, row] of wanted.keys) {
    if (observed.keys.get(hex)?.value !== row.value) changes.keys.push(row);
  }
  yield;
  addRemovals(wanted, observed, kept, changes);
  return changes;
}

function* changeServices(
  { services }: Wanted,
  observed: ObservedServices,
  places: PoolPlaces,
  changes: ServiceChanges,
): Pieces<void> {
  for (const [count, service] of services.entries()) {
    if (count % SEVERAL === 0) yield;
    const before = observed.entries.get(service.index);
    const old = before?.readUInt32LE(POOL.offset) ?? 0;
    let pool = service.pool === null ? 0 : places.of(service.pool);
    if (pool === undefined) {
      changes.problems.push(`service ${service.name}: there is no room for its pool (E_SERVICE)`);
      pool = old;
    }
    const entry = encode("service", {
      pool,
      affinity_ticks: service.affinityTicks,
      on_vm_down: service.onVmDown,
      flags: service.flags,
      answer_mac: service.answerMac,
    });
    if (before ? before.equals(entry) : entry.every((byte) => byte === 0)) continue;
    changes.services.push({ index: service.index, entry });
    if (pool !== old || !before) changes.moved.push(service);
  }
}

function changeAssociations(
  { associations, services }: Wanted,
  observed: ObservedServices,
  places: PoolPlaces,
  changes: ServiceChanges,
): void {
  let names: Map<number, string> | undefined;
  for (const [hex, { key, value, service }] of associations) {
    const pool = places.of(value);
    if (pool === undefined) {
      names ??= new Map(services.map(({ index, name }) => [index, name]));
      const text = `service ${names.get(service)}: there is no room for a pool of its associations (E_SERVICE)`;
      changes.problems.push(text);
    } else if (observed.associations.get(hex)?.value !== pool) {
      changes.associations.push({ key, value: pool });
    }
  }
}

function addRemovals(
  wanted: Wanted,
  observed: ObservedServices,
  kept: ReadonlySet<number>,
  { removed }: ServiceChanges,
): void {
  const indices = new Set([...wanted.services.map(({ index }) => index), ...kept]);
  for (const [hex, { key, value }] of observed.keys) {
    if (!wanted.keys.has(hex) && !kept.has(value)) removed.keys.push(key);
  }
  for (const [hex, { key }] of observed.associations) {
    const service = key.readUInt32LE(ASSOCIATION_KEY.fields.service.offset);
    if (!wanted.associations.has(hex) && !kept.has(service)) removed.associations.push(key);
  }
  for (const index of observed.entries.keys()) if (!indices.has(index)) removed.services.push(index);
}

/** Which pool has which content: where it is already, else where there is room. */
class PoolPlaces {
  readonly #byDigest = new Map<string, number>();
  readonly #pools: Room;
  readonly #lines: Room;
  readonly #changes: ServiceChanges;

  constructor({ pools: present, room }: ObservedServices, hints: RoomHints, changes: ServiceChanges) {
    const [pools, lines] = [new Uint8Array(room.pools), new Uint8Array(room.lines)];
    // Nobody's.
    pools[0] = 1;
    for (const [index, { line, count, digest }] of present) {
      pools[index] = 1;
      lines.fill(1, line, line + count);
      if (digest !== null && !this.#byDigest.has(digest)) this.#byDigest.set(digest, index);
    }
    this.#pools = new Room(pools, hints, "pool");
    this.#lines = new Room(lines, hints, "line");
    this.#changes = changes;
  }

  /** Undefined if there is no room. */
  of(content: PoolContent): number | undefined {
    const known = this.#byDigest.get(content.digest);
    if (known !== undefined) return known;
    const line = this.#lines.take(linesOf(content.cells.length));
    const index = line === undefined ? undefined : this.#pools.take(1);
    if (line === undefined || index === undefined) return undefined;
    this.#changes.lines.push({ line, cells: content.cells });
    this.#changes.pools.push({ index, content, line });
    this.#byDigest.set(content.digest, index);
    return index;
  }
}

/** Rows of an array of which some are taken. */
class Room {
  readonly #taken: Uint8Array;
  readonly #hints: RoomHints;
  readonly #which: keyof RoomHints;

  constructor(taken: Uint8Array, hints: RoomHints, which: keyof RoomHints) {
    this.#taken = taken;
    this.#hints = hints;
    this.#which = which;
  }

  /** The first of so many in a row, from where the last ones were given out on; undefined if there are none. */
  take(count: number): number | undefined {
    const from = Math.min(this.#hints[this.#which], this.#taken.length);
    const first = this.#find(count, from, this.#taken.length) ?? this.#find(count, 0, this.#taken.length);
    if (first === undefined) return undefined;
    this.#taken.fill(1, first, first + count);
    this.#hints[this.#which] = first + count;
    return first;
  }

  #find(count: number, from: number, to: number): number | undefined {
    let free = 0;
    for (let at = from; at < to; at++) {
      free = this.#taken[at] === 0 ? free + 1 : 0;
      if (free === count) return at - count + 1;
    }
    return undefined;
  }
}
