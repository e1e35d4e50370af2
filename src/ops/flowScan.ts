// SPDX-License-Identifier: Apache-2.0
// Walks the flow tables a batch at a time and picks the entries that a filter wants, on the bytes as
// they come from the kernel.

import { FLOW_STATE_NAMES } from "../abi/codec.ts";
import { FLOW, FLOW4_KEY, FLOW6_KEY } from "../abi/layout.gen.ts";
import { formatMac, type Prefix, parseMac, parsePrefix } from "../addresses.ts";
import { LasthopError } from "../errors.ts";
import type { FlowTable, Tables } from "../tables/index.ts";
import type { FlowView } from "./flowView.ts";
import type { FlowFilter } from "./types.ts";

/** Entries of one batch that were picked: `selected[0..count)` are their places in keys and values. */
export interface FlowBatch {
  table: FlowTable;
  keys: Buffer;
  values: Buffer;
  selected: Uint32Array;
  count: number;
}

const ZONE_MAX = 0xffff;

/** A filter whose texts have been read. */
export interface ParsedFilter {
  zone: number | undefined;
  state: number | undefined;
  mac: string | undefined;
  interface: string | undefined;
  address: Prefix | undefined;
  limit: number;
}

export function parseFilter(filter: FlowFilter, view: FlowView): ParsedFilter {
  const { zone, state, device_mac: mac, address, limit } = filter;
  if (zone !== undefined && !(Number.isInteger(zone) && zone >= 0 && zone <= ZONE_MAX)) {
    throw new LasthopError("E_USAGE", `zone ${zone} is not a number from 0 to ${ZONE_MAX}`);
  }
  if (limit !== undefined && !(Number.isInteger(limit) && limit >= 0)) {
    throw new LasthopError("E_USAGE", `limit ${limit} is not a whole number`);
  }
  return {
    zone,
    state: state === undefined ? undefined : parseState(state),
    mac:
      mac === undefined
        ? undefined
        : formatMac(parsed(parseMac(mac), "a MAC address", mac, "02:00:00:00:0a:01")),
    interface: filter.interface === undefined ? undefined : parseInterface(filter.interface, view),
    address:
      address === undefined
        ? undefined
        : parsed(parsePrefix(address), "an address or prefix", address, "198.51.100.0/24"),
    limit: limit ?? Number.POSITIVE_INFINITY,
  };
}

function parseState(text: string): number {
  const state = (FLOW_STATE_NAMES as readonly string[]).indexOf(text.toLowerCase());
  if (state >= 0) return state;
  throw new LasthopError("E_USAGE", `a flow has no state "${text}"`, {
    hint: `states are ${FLOW_STATE_NAMES.join(", ")}`,
  });
}

function parseInterface(name: string, view: FlowView): string {
  const names = view.interfaceNames();
  // The last hops of a detached interface go by its index.
  if (names.includes(name) || /^if\d+$/.test(name)) return name;
  throw new LasthopError("E_NO_INTERFACE", `${name} is not attached`, {
    hint: names.length > 0 ? `attached are ${names.join(", ")}` : "nothing is attached",
  });
}

function parsed<T>(value: T | undefined, what: string, text: string, example: string): T {
  if (value !== undefined) return value;
  throw new LasthopError("E_USAGE", `"${text}" is not ${what}`, { hint: `for example: ${example}` });
}

/**
 * Every entry that the filter wants, each flow once. The established tier comes first; an embryo whose
 * flow has just been promoted is left out, as the programs do not look at it either.
 */
export function* scanFlows(tables: Tables, view: FlowView, filter: ParsedFilter): Generator<FlowBatch> {
  let left = filter.limit;
  for (const table of tables.flows.all) {
    const wanted = compileFilter(table, view, filter);
    const established = tables.flows.table(table.family, "established");
    const tests = table === established ? [wanted] : [wanted, not(presentIn(established))];
    for (const batch of scanTable(table, all(tests), left)) {
      left -= batch.count;
      yield batch;
    }
  }
}

/** The first `limit` entries of one table that are wanted; undefined wants all. */
export function* scanTable(
  table: FlowTable,
  wanted: Predicate | undefined,
  limit: number,
): Generator<FlowBatch> {
  let left = limit;
  let selected = new Uint32Array(0);
  if (left <= 0) return;
  for (const { count: size, keys, values } of table.batches()) {
    if (selected.length < size) selected = new Uint32Array(size);
    let count = 0;
    for (let index = 0; index < size && count < left; index++) {
      if (wanted && !wanted(keys, index * table.keySize, values, index * table.valueSize)) continue;
      selected[count++] = index;
    }
    left -= count;
    if (count > 0) yield { table, keys, values, selected, count };
    if (left <= 0) return;
  }
}

/** Looks at an entry where it lies in a batch. */
export type Predicate = (keys: Buffer, keyAt: number, values: Buffer, valueAt: number) => boolean;

function presentIn(table: FlowTable): Predicate {
  const value = Buffer.alloc(table.map.valueBytes);
  const key = Buffer.alloc(table.keySize);
  return (keys, keyAt) => {
    keys.copy(key, 0, keyAt, keyAt + key.length);
    return table.map.lookupInto(key, value);
  };
}

const not =
  (test: Predicate): Predicate =>
  (keys, keyAt, values, valueAt) =>
    !test(keys, keyAt, values, valueAt);

function all(tests: readonly (Predicate | undefined)[]): Predicate | undefined {
  const [first, second, ...rest] = tests.filter((test) => test !== undefined);
  if (!first || !second) return first;
  const others = all([second, ...rest])!;
  return (keys, keyAt, values, valueAt) =>
    first(keys, keyAt, values, valueAt) && others(keys, keyAt, values, valueAt);
}

/** Undefined if the filter wants all of this table. */
export function compileFilter(table: FlowTable, view: FlowView, filter: ParsedFilter): Predicate | undefined {
  const fields = table.family === 4 ? FLOW4_KEY.fields : FLOW6_KEY.fields;
  const { zone, state, address, mac, interface: name } = filter;
  if (address && address.family !== table.family) return () => false;
  const tests: Predicate[] = [];
  if (zone !== undefined) tests.push((keys, at) => keys.readUInt16LE(at + fields.zone.offset) === zone);
  if (state !== undefined)
    tests.push((_keys, _at, values, at) => values[at + FLOW.fields.state.offset] === state);
  if (address) {
    const inside = prefixTest(address);
    tests.push(
      (keys, at) => inside(keys, at + fields.remote.offset) || inside(keys, at + fields.local.offset),
    );
  }
  if (mac !== undefined || name !== undefined) {
    tests.push((_keys, _at, values, at) => {
      const reference = values.readUInt32LE(at + FLOW.fields.last_hop.offset);
      const { last_hop } = view.lastHop(reference, values[at + FLOW.fields.flags.offset]!);
      if (!last_hop || (mac !== undefined && last_hop.mac !== mac)) return false;
      return name === undefined || last_hop.interface === name;
    });
  }
  return all(tests);
}

function prefixTest({ bytes, bits }: Prefix): (buffer: Buffer, offset: number) => boolean {
  const whole = bits >> 3;
  const mask = (0xff << (8 - (bits & 7))) & 0xff;
  return (buffer, offset) => {
    for (let index = 0; index < whole; index++) if (buffer[offset + index] !== bytes[index]) return false;
    return mask === 0 || ((buffer[offset + whole]! ^ bytes[whole]!) & mask) === 0;
  };
}
