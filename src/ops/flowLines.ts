// SPDX-License-Identifier: Apache-2.0
// Flows as JSON lines, a million of them in a second or two: what JSON.stringify(view.entry(flow)) gives,
// put together from bytes. What repeats (states, last hops, VMs, ages) is made once and copied.

import { decode, TICK_SECONDS } from "../abi/codec.ts";
import { FLOW, FLOW_FLAG, FLOW4_KEY, FLOW6_KEY } from "../abi/layout.gen.ts";
import { formatIpv6 } from "../addresses.ts";
import { decodeFlowKey, type FlowTable } from "../tables/index.ts";
import type { FlowBatch } from "./flowScan.ts";
import { type FlowView, flagNames, protocolName, roundIdle, stateName } from "./flowView.ts";

const CHUNK_BYTES = 1 << 18;
/** More than the longest line: two IPv6 addresses, a last hop whose interface's name is escaped, all flags. */
const LINE_BYTES = 4096;

const OCTETS = Array.from({ length: 256 }, (_, value) => Buffer.from(String(value)));
const QUOTE_REMOTE_PORT = Buffer.from('","remote_port":');
const LOCAL_ADDRESS = Buffer.from(',"local_address":"');
const QUOTE_LOCAL_PORT = Buffer.from('","local_port":');
const DOT = 0x2e;
const ZERO = 0x30;
const LINE_END = Buffer.from("}\n");

const AT = FLOW.fields;

export interface FlowLinesChunk {
  lines: Buffer;
  /** How many lines. */
  flows: number;
}

/** Makes lines of one list; its caches belong to one view. */
export class FlowLines {
  readonly #view: FlowView;
  readonly #heads = new Map<number, Buffer>();
  readonly #states = new Map<number, Buffer>();
  readonly #lastHops = new Map<number, Buffer>();
  readonly #vms = new Map<number, Buffer>();
  readonly #ages: Buffer[] = [];

  constructor(view: FlowView) {
    this.#view = view;
  }

  /** A chunk is the caller's: it is not written to again. */
  *format(batch: FlowBatch): Generator<FlowLinesChunk> {
    for (let place = 0; place < batch.count; ) {
      const out = Buffer.allocUnsafe(CHUNK_BYTES);
      const first = place;
      let at = 0;
      while (place < batch.count && at <= CHUNK_BYTES - LINE_BYTES) {
        at = this.#line(out, at, batch, batch.selected[place++]!);
      }
      yield { lines: out.subarray(0, at), flows: place - first };
    }
  }

  #line(out: Buffer, start: number, { table, keys, values }: FlowBatch, index: number): number {
    const keyAt = index * table.keySize;
    const valueAt = index * table.valueSize;
    const fields = table.family === 4 ? FLOW4_KEY.fields : FLOW6_KEY.fields;
    const proto = keys[keyAt + fields.proto.offset]!;
    if (protocolName(proto) === "icmp")
      return this.#slowLine(out, start, table, keys, keyAt, values, valueAt);
    const address = table.family === 4 ? putIpv4 : putIpv6;
    const flags = values[valueAt + AT.flags.offset]!;
    let at = put(out, start, this.#head(proto, readU16(keys, keyAt + fields.zone.offset)));
    at = address(out, at, keys, keyAt + fields.remote.offset);
    at = put(out, at, QUOTE_REMOTE_PORT);
    at = putPort(out, at, keys, keyAt + fields.remote_port.offset);
    at = put(out, at, LOCAL_ADDRESS);
    at = address(out, at, keys, keyAt + fields.local.offset);
    at = put(out, at, QUOTE_LOCAL_PORT);
    at = putPort(out, at, keys, keyAt + fields.local_port.offset);
    at = put(out, at, this.#state(table, values[valueAt + AT.state.offset]!, flags));
    at = put(out, at, this.#lastHop(readU32(values, valueAt + AT.last_hop.offset), flags));
    at = put(out, at, this.#vm(readU32(values, valueAt + AT.vm.offset)));
    at = put(out, at, this.#age(readU32(values, valueAt + AT.last_seen.offset)));
    return put(out, at, LINE_END);
  }

  /** Echo has an identifier in place of ports. */
  #slowLine(
    out: Buffer,
    at: number,
    table: FlowTable,
    keys: Buffer,
    keyAt: number,
    values: Buffer,
    valueAt: number,
  ): number {
    const key = decodeFlowKey(table.family, keys, keyAt);
    const entry = this.#view.entry({ key, tier: table.tier, value: decode("flow", values, valueAt) });
    return at + out.write(`${JSON.stringify(entry)}\n`, at);
  }

  #head(proto: number, zone: number): Buffer {
    return cached(this.#heads, (proto << 16) | zone, () => {
      return `{"protocol":"${protocolName(proto)}","zone":${zone},"remote_address":"`;
    });
  }

  #state(table: FlowTable, state: number, flags: number): Buffer {
    return cached(this.#states, (table.table << 16) | (state << 8) | flags, () => {
      const origin = flags & FLOW_FLAG.LOCAL_ORIGIN ? "local" : "remote";
      const rest = {
        icmp_id: null,
        tier: table.tier,
        state: stateName(state),
        origin,
        flags: flagNames(flags),
      };
      return `,${JSON.stringify(rest).slice(1, -1)}`;
    });
  }

  #lastHop(reference: number, flags: number): Buffer {
    // Of local origin there is none, whatever the reference: a key that no reference has.
    return cached(this.#lastHops, flags & FLOW_FLAG.LOCAL_ORIGIN ? -1 : reference, () => {
      return `,${JSON.stringify(this.#view.lastHop(reference, flags)).slice(1, -1)}`;
    });
  }

  #vm(id: number): Buffer {
    return cached(this.#vms, id, () => `,${JSON.stringify(this.#view.vm(id)).slice(1, -1)},"idle_seconds":`);
  }

  #age(lastSeen: number): Buffer {
    const difference = (this.#view.now - lastSeen) | 0;
    const ticks = Math.max(difference, 0);
    const known = this.#ages[ticks];
    if (known) return known;
    const age = Buffer.from(String(roundIdle(ticks * TICK_SECONDS)));
    // A day's worth of ticks; older ages are too rare to be worth keeping.
    if (ticks < 400_000) this.#ages[ticks] = age;
    return age;
  }
}

function cached(map: Map<number, Buffer>, key: number, make: () => string): Buffer {
  let fragment = map.get(key);
  if (!fragment) {
    fragment = Buffer.from(make());
    map.set(key, fragment);
  }
  return fragment;
}

/** Short pieces byte by byte, which stays in compiled code; a call is worth it from some 30 bytes on. */
function put(out: Buffer, at: number, fragment: Buffer): number {
  const length = fragment.length;
  if (length > 32) {
    out.set(fragment, at);
    return at + length;
  }
  for (let index = 0; index < length; index++) out[at + index] = fragment[index]!;
  return at + length;
}

function putIpv4(out: Buffer, start: number, keys: Buffer, offset: number): number {
  let at = put(out, start, OCTETS[keys[offset]!]!);
  for (let index = 1; index < 4; index++) {
    out[at++] = DOT;
    at = put(out, at, OCTETS[keys[offset + index]!]!);
  }
  return at;
}

function putIpv6(out: Buffer, at: number, keys: Buffer, offset: number): number {
  const text = formatIpv6(keys, offset);
  for (let index = 0; index < text.length; index++) out[at + index] = text.charCodeAt(index);
  return at + text.length;
}

function putPort(out: Buffer, start: number, keys: Buffer, offset: number): number {
  let port = (keys[offset]! << 8) | keys[offset + 1]!;
  const digits = port < 10 ? 1 : port < 100 ? 2 : port < 1000 ? 3 : port < 10_000 ? 4 : 5;
  for (let at = start + digits - 1; at >= start; at--) {
    const tenth = (port / 10) | 0;
    out[at] = ZERO + port - tenth * 10;
    port = tenth;
  }
  return start + digits;
}

function readU16(buffer: Buffer, at: number): number {
  return buffer[at]! | (buffer[at + 1]! << 8);
}

function readU32(buffer: Buffer, at: number): number {
  return (buffer[at]! | (buffer[at + 1]! << 8) | (buffer[at + 2]! << 16) | (buffer[at + 3]! << 24)) >>> 0;
}
