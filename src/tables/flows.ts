// SPDX-License-Identifier: Apache-2.0
// The flow tables: two tiers, two families, one view.

import { decode, encode, type StructValue, sizeOf } from "../abi/codec.ts";
import { FLOW, FLOW_FLAG, TABLE } from "../abi/layout.gen.ts";
import { BATCH_ENTRIES, type TableMap, type TableSource } from "./source.ts";

export type Tier = "established" | "embryonic";

/** A five-tuple and its zone, whatever the family: addresses have 4 or 16 bytes. */
export interface FlowKey {
  family: 4 | 6;
  local: Buffer;
  remote: Buffer;
  localPort: number;
  remotePort: number;
  zone: number;
  proto: number;
}

export interface Flow {
  key: FlowKey;
  tier: Tier;
  value: StructValue<"flow">;
}

/** What is constant of each flow table. */
const LAYOUTS = [
  { name: "flows4", table: TABLE.FLOWS4, family: 4, tier: "established", key: "flow4_key", value: "flow" },
  { name: "flows6", table: TABLE.FLOWS6, family: 6, tier: "established", key: "flow6_key", value: "flow" },
  {
    name: "embryos4",
    table: TABLE.EMBRYOS4,
    family: 4,
    tier: "embryonic",
    key: "flow4_key",
    value: "embryo",
  },
  {
    name: "embryos6",
    table: TABLE.EMBRYOS6,
    family: 6,
    tier: "embryonic",
    key: "flow6_key",
    value: "embryo",
  },
] as const;

export class FlowTable {
  readonly name: string;
  /** enum table */
  readonly table: number;
  readonly family: 4 | 6;
  readonly tier: Tier;
  readonly keySize: number;
  readonly valueSize: number;
  readonly map: TableMap;

  constructor(source: TableSource, layout: (typeof LAYOUTS)[number]) {
    this.name = layout.name;
    this.table = layout.table;
    this.family = layout.family;
    this.tier = layout.tier;
    this.keySize = sizeOf(layout.key);
    this.valueSize = sizeOf(layout.value);
    this.map = source.map(layout.name);
  }

  /**
   * Keys and values as they lie in the kernel; the buffers are reused between steps. A value begins with
   * struct flow in both tiers.
   */
  batches(): Generator<{ count: number; keys: Buffer; values: Buffer }> {
    return this.map.batches(BATCH_ENTRIES);
  }
}

/** enum flow_state of the value that begins at `at`. */
export function stateAt(values: Buffer, at: number): number {
  return values[at + FLOW.fields.state.offset]!;
}

export class FlowTables {
  /** The established tier first. */
  readonly all: readonly FlowTable[];

  constructor(source: TableSource) {
    this.all = LAYOUTS.map((layout) => new FlowTable(source, layout));
  }

  table(family: 4 | 6, tier: Tier): FlowTable {
    return this.all.find((table) => table.family === family && table.tier === tier)!;
  }

  /** From either tier; the established one wins, as it does for a packet. */
  lookup(key: FlowKey): Flow | undefined {
    const bytes = encodeFlowKey(key);
    for (const table of this.all) {
      if (table.family !== key.family) continue;
      const value = table.map.lookup(bytes);
      if (value) return { key, tier: table.tier, value: decode("flow", value) };
    }
    return undefined;
  }

  /**
   * How many flows have each last hop's reference. A flow in both tiers for a moment counts twice; embryos come
   * first, so that one which is promoted meanwhile is not missed.
   */
  countReferences(): Map<number, number> {
    const counts = new Map<number, number>();
    const { last_hop, flags } = FLOW.fields;
    for (const table of this.all.toReversed()) {
      for (const { count, values } of table.batches()) {
        for (let index = 0; index < count; index++) {
          const at = index * table.valueSize;
          if (values[at + flags.offset]! & FLOW_FLAG.LOCAL_ORIGIN) continue;
          const reference = values.readUInt32LE(at + last_hop.offset);
          counts.set(reference, (counts.get(reference) ?? 0) + 1);
        }
      }
    }
    return counts;
  }
}

export function encodeFlowKey(key: FlowKey): Buffer {
  const { local, remote, zone, proto } = key;
  const rest = { local_port: key.localPort, remote_port: key.remotePort, zone, proto };
  if (key.family === 6) return encode("flow6_key", { local, remote, ...rest });
  return encode("flow4_key", { local: local.readUInt32BE(), remote: remote.readUInt32BE(), ...rest });
}

export function decodeFlowKey(family: 4 | 6, buffer: Buffer, offset = 0): FlowKey {
  const key = family === 4 ? decode("flow4_key", buffer, offset) : decode("flow6_key", buffer, offset);
  return {
    family,
    local: addressBytes(key.local),
    remote: addressBytes(key.remote),
    localPort: key.local_port,
    remotePort: key.remote_port,
    zone: key.zone,
    proto: key.proto,
  };
}

function addressBytes(address: number | Buffer): Buffer {
  if (typeof address !== "number") return address;
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(address);
  return bytes;
}
