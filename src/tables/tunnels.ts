// SPDX-License-Identifier: Apache-2.0
// The tunnels of this host: what is put around their packets, by what arriving ones are known, and how many there were.

import { decode, type StructInput, type StructValue, sizeOf } from "../abi/codec.ts";
import type { TableMap, TableSource } from "./source.ts";
import { StructTable } from "./structTable.ts";

export type TunnelRow = StructValue<"tunnel">;
export type TunnelRowInput = StructInput<"tunnel">;
export type TunnelKey = StructValue<"tunnel_index_key">;
export type TunnelTraffic = StructValue<"tunnel_stats">;

/** Of an interface of the kernel's driver there is the row alone, for those who list them. */
export class TunnelTables {
  /** ifindex of its netdev → */
  readonly rows: StructTable<"u32", "tunnel">;
  /** What an outer header shows → ifindex of its netdev. */
  readonly index: StructTable<"tunnel_index_key", "u32">;
  readonly #stats: TableMap;

  constructor(source: TableSource) {
    this.rows = new StructTable(source, "tunnels", "u32", "tunnel");
    this.index = new StructTable(source, "tunnel_index", "tunnel_index_key", "u32");
    this.#stats = source.map("tunnel_stats");
  }

  /** In the order of their names. */
  list(): TunnelRow[] {
    return [...this.rows.entries()]
      .map(([ifindex, row]) => ({ ...row, ifindex }))
      .sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** Keys that lead to a netdev. */
  keysOf(ifindex: number): TunnelKey[] {
    return [...this.index.entries()].filter(([, to]) => to === ifindex).map(([key]) => key);
  }

  /** Summed over the CPUs. */
  traffic(ifindex: number): TunnelTraffic {
    const values = this.#stats.lookup(u32(ifindex));
    const sum = decode("tunnel_stats", Buffer.alloc(sizeOf("tunnel_stats")));
    const size = sizeOf("tunnel_stats");
    for (let offset = 0; values && offset + size <= values.length; offset += size) {
      const value = decode("tunnel_stats", values, offset);
      for (const name of Object.keys(sum) as (keyof TunnelTraffic)[]) sum[name] += value[name];
    }
    return sum;
  }

  /** Begins to count, from 0. */
  beginCounting(ifindex: number): void {
    this.#stats.update(u32(ifindex), Buffer.alloc(this.#stats.valueBytes));
  }

  isCounted(ifindex: number): boolean {
    return this.#stats.lookup(u32(ifindex)) !== undefined;
  }

  /** False if it was not counted. */
  endCounting(ifindex: number): boolean {
    return this.#stats.delete(u32(ifindex));
  }
}

function u32(value: number): Buffer {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32LE(value);
  return buffer;
}
