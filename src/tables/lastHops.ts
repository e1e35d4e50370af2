// SPDX-License-Identifier: Apache-2.0
// Last hops: records, what their aliases make of them, who names them, and their traffic.

import {
  decode,
  joinLastHop,
  type StructInput,
  type StructValue,
  sizeOf,
  splitLastHop,
} from "../abi/codec.ts";
import { LAST_HOP_DROP, LAST_HOP_INDEX_BITS, LAST_HOP_KIND, LAST_HOP_ROUTE } from "../abi/layout.gen.ts";
import { LasthopError } from "../errors.ts";
import { BATCH_ENTRIES, type TableMap, type TableSource } from "./source.ts";
import { StructTable } from "./structTable.ts";

export type LastHopRecord = StructValue<"last_hop">;

/** What an alias makes of its index: itself, another record, or the device is down. */
export type AliasState = "up" | "alias" | "route" | "drop";

/** What a flow's reference comes to. Stale: the record was released, the flow's packets pass. */
export type Resolution =
  | { state: "stale" }
  | { state: AliasState; index: number; generation: number; target: number; record: LastHopRecord };

export interface LastHopTraffic {
  request_packets: number;
  request_bytes: number;
  reply_packets: number;
  reply_bytes: number;
  /** Flows that came here from another last hop. */
  relearns: number;
  /** Ticks; 0 if nothing was ever counted. */
  last_seen: number;
}

export class LastHopTables {
  readonly records: StructTable<"u32", "last_hop">;
  readonly aliases: StructTable<"u32", "u32">;
  /** What a frame shows → index. */
  readonly keys: StructTable<"last_hop_key", "u32">;
  /** Flows of each index as sweeps counted them, in two halves: SweepTables.endedRefs says in which. */
  readonly refs: StructTable<"u32", "u32">;
  readonly #free: TableMap;
  readonly #stats: TableMap;
  readonly #allocations: StructTable<"u32", "allocations">;
  readonly #source: TableSource;

  constructor(source: TableSource) {
    this.#source = source;
    this.#allocations = new StructTable(source, "allocations", "u32", "allocations");
    this.records = new StructTable(source, "last_hops", "u32", "last_hop");
    this.aliases = new StructTable(source, "last_hop_alias", "u32", "u32");
    this.keys = new StructTable(source, "last_hop_index", "last_hop_key", "u32");
    this.refs = new StructTable(source, "last_hop_refs", "u32", "u32");
    this.#free = source.map("last_hop_free");
    this.#stats = source.map("last_hop_stats");
  }

  /** As a packet of a flow with this reference would find it. Never throws on garbage. */
  resolve(reference: number): Resolution {
    const { index, generation } = splitLastHop(reference);
    const alias = this.aliases.get(index);
    if (alias === undefined || generation === 0 || alias >>> LAST_HOP_INDEX_BITS !== generation)
      return { state: "stale" };
    const record = this.records.get(index);
    if (!record || record.kind === LAST_HOP_KIND.NONE) return { state: "stale" };
    return { ...aliasState(index, alias), index, generation, record };
  }

  /** Points an index at a record, itself included, or marks it down; the generation stays. */
  setAlias(index: number, generation: number, target: number | "route" | "drop"): void {
    const to = target === "route" ? LAST_HOP_ROUTE : target === "drop" ? LAST_HOP_DROP : target;
    this.aliases.set(index, joinLastHop(generation, to));
  }

  /** How many indices were ever given out: those from there on hold nothing. */
  used(): number {
    return Math.min(this.#allocations.get(0)!.last_hops, this.records.map.info().maxEntries);
  }

  /**
   * Takes an index and publishes a record under it: record first, then its alias. No key leads to it yet.
   * Undefined if every index is taken.
   */
  create(record: StructInput<"last_hop">): { index: number; generation: number } | undefined {
    const index = this.#take();
    if (index === undefined) return undefined;
    const generation = nextGeneration(this.records.get(index)!.generation);
    this.records.set(index, { kind: LAST_HOP_KIND.ETHERNET, ...record, generation });
    this.setAlias(index, generation, index);
    return { index, generation };
  }

  /** An index that nobody uses. Programs take them at the same time, so one of them does it for us. */
  #take(): number | undefined {
    const program = this.#source.program?.("take_last_hop");
    if (!program) throw new LasthopError("E_INTERNAL", "this source of tables has no programs");
    const index = program.testRun({}).retval;
    return index < this.records.map.info().maxEntries ? index : undefined;
  }

  /** Summed over the CPUs. */
  traffic(index: number): LastHopTraffic {
    const values = this.#stats.lookup(u32(index));
    const sum = {
      request_packets: 0,
      request_bytes: 0,
      reply_packets: 0,
      reply_bytes: 0,
      relearns: 0,
      last_seen: 0,
    };
    const size = sizeOf("last_hop_stats");
    for (let offset = 0; values && offset + size <= values.length; offset += size) {
      const value = decode("last_hop_stats", values, offset);
      sum.request_packets += value.request_packets;
      sum.request_bytes += value.request_bytes;
      sum.reply_packets += value.reply_packets;
      sum.reply_bytes += value.reply_bytes;
      sum.relearns += value.relearns;
      sum.last_seen = Math.max(sum.last_seen, value.last_seen);
    }
    return sum;
  }

  /** Sets one half of the counters to 0, those of indices that were ever given out, a millisecond at a time. */
  *clearRefs(base: number): Generator<void, void, void> {
    const keys = Buffer.alloc(BATCH_ENTRIES * 4);
    const values = Buffer.alloc(BATCH_ENTRIES * 4);
    const used = this.used();
    for (let first = 0; first < used; first += BATCH_ENTRIES) {
      const count = Math.min(BATCH_ENTRIES, used - first);
      for (let index = 0; index < count; index++) keys.writeUInt32LE(base + first + index, index * 4);
      this.refs.map.updateBatch(keys, values, count);
      yield;
    }
  }

  /**
   * Gives an index back to the hot path, which may use it at once: nothing may lead to it any more, neither
   * key nor alias, and no program may still be reading the record. The bumped generation makes a flow that
   * still names it see with its next request that the record is not its own. False if it was free already.
   */
  giveBack(index: number): boolean {
    const record = this.records.get(index);
    if (!record || record.kind === LAST_HOP_KIND.NONE) return false;
    const generation = nextGeneration(record.generation);
    // The programs write the others anew.
    const nobody = { owner: Buffer.alloc(record.owner.length), successor: 0 };
    this.records.set(index, { ...record, kind: LAST_HOP_KIND.NONE, generation, ...nobody });
    this.#stats.update(u32(index), Buffer.alloc(this.#stats.valueBytes));
    this.#free.push(u32(index));
    return true;
  }
}

const GENERATIONS = 2 ** (32 - LAST_HOP_INDEX_BITS);

/** The programs count on from there, and 0 is never used. */
function nextGeneration(generation: number): number {
  return (generation + 1) % GENERATIONS || 1;
}

export function aliasState(index: number, alias: number): { state: AliasState; target: number } {
  const target = splitLastHop(alias).index;
  if (target === index) return { state: "up", target };
  if (target === LAST_HOP_ROUTE) return { state: "route", target };
  if (target === LAST_HOP_DROP) return { state: "drop", target };
  return { state: "alias", target };
}

function u32(value: number): Buffer {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32LE(value);
  return buffer;
}
