// SPDX-License-Identifier: Apache-2.0
// One table's part of an expiry pass, piece by piece: no call holds a processor for long.

import { encode, type StructValue, sizeOf } from "../abi/codec.ts";
import { type BpfIter, BpfLink, type BpfMap, type BpfProgram } from "../libbpf/index.ts";
import type { FlowTable, SweepTables } from "../tables/index.ts";
import type { Piece } from "./evictions.ts";

/** Where the sweep programs and the maps come from: an instance. */
export interface Programs {
  map(name: string): BpfMap;
  program(name: string): BpfProgram;
}

export interface WalkOptions {
  /** A table with fewer entries is not walked: they are looked at one by one. */
  few: number;
  /** Is told how long each call into the kernel took that goes over many entries. */
  called(ns: number): void;
}

export class TableWalk {
  readonly table: FlowTable;
  readonly pieces: Piece[] = [];
  /** Balance by state when the pass began. */
  readonly start: readonly number[];
  /** In the kernel. */
  busyNs = 0;
  readonly #map: BpfMap;
  readonly #programs: Programs;
  readonly #sweep: SweepTables;
  readonly #options: WalkOptions;
  readonly #record = Buffer.alloc(sizeOf("sweep_record"));
  #link: BpfLink | undefined;
  #iter: BpfIter | undefined;
  #report: StructValue<"sweep_report">;

  constructor(programs: Programs, sweep: SweepTables, table: FlowTable, options: WalkOptions) {
    this.table = table;
    this.#map = programs.map(table.name);
    this.#programs = programs;
    this.#sweep = sweep;
    this.#options = options;
    this.start = sweep.balance.read(table.table);
    sweep.reset(table.table);
    this.#report = sweep.report(table.table);
  }

  get report(): StructValue<"sweep_report"> {
    return this.#report;
  }

  /** Goes on for one piece; false when it has come to the end. */
  step(): boolean {
    const { table } = this.table;
    const before = this.#sweep.balance.read(table);
    const more = this.#iter ? this.#walk(this.#iter) : this.#begin();
    const after = this.#sweep.balance.read(table);
    const last = this.#report;
    this.#report = this.#sweep.report(table);
    const found = this.#report.entries - last.entries;
    const expired = this.#report.expired - last.expired;
    this.pieces.push({ found, expired, before, after });
    if (!more) this.close();
    return more;
  }

  close(): void {
    this.#iter?.close();
    this.#link?.close();
    this.#iter = undefined;
    this.#link = undefined;
  }

  #begin(): boolean {
    const few = this.#fewKeys();
    if (few) {
      this.#sweepKeys(few);
      return false;
    }
    this.#link = BpfLink.attachIter(this.#programs.program(`sweep_${this.table.name}`), this.#map);
    this.#iter = this.#link.iter();
    return this.#walk(this.#iter);
  }

  /** Exactly one record: a larger buffer would let the kernel go on after the first. */
  #walk(iter: BpfIter): boolean {
    return this.#timed(() => iter.read(this.#record)) > 0;
  }

  /**
   * An iterator cannot stop between buckets that hold nothing, and spends 20 ns on each: longer than a call may
   * take, for a large table with hardly an entry. This look takes a thirtieth of that. Null if there are many.
   */
  #fewKeys(): Buffer[] | null {
    const keys = new Map<string, Buffer>();
    let key: Buffer | null = null;
    // A key that vanishes makes the kernel begin anew, so steps are counted and not keys.
    for (let step = 0; step < this.#options.few; step++) {
      const next: Buffer | undefined = this.#timed(() => this.#map.nextKey(key));
      if (next === undefined) return [...keys.values()];
      keys.set(next.toString("hex"), next);
      key = next;
    }
    return null;
  }

  #sweepKeys(keys: readonly Buffer[]): void {
    const program = this.#programs.program("sweep_key");
    for (const key of keys) {
      this.#timed(() => program.testRun({ ctx: encode("sweep_key", { table: this.table.table, key }) }));
    }
  }

  #timed<T>(call: () => T): T {
    const before = process.hrtime.bigint();
    const value = call();
    const ns = Number(process.hrtime.bigint() - before);
    this.busyNs += ns;
    this.#options.called(ns);
    return value;
  }
}
