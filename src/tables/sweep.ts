// SPDX-License-Identifier: Apache-2.0
// What steers the sweep programs, what they found, and what went in and out of the flow tables meanwhile.

import type { StructInput, StructValue } from "../abi/codec.ts";
import { FLOW_STATES, LAST_HOPS_MAX, TABLES, VMS_MAX } from "../abi/layout.gen.ts";
import type { TableMap, TableSource } from "./source.ts";
import { StructTable } from "./structTable.ts";

export interface SweepControl {
  /** Instead of every timeout; 0 for the timeouts. */
  idleTicks: number;
  budgetNs: number;
}

/** What steers the sweep programs and what they found, by enum table. */
export class SweepTables {
  readonly reports: StructTable<"u32", "sweep_report">;
  readonly zoneReports: StructTable<"u32", "zone_report">;
  readonly balance: FlowBalance;
  readonly #control: StructTable<"u32", "sweep_control">;
  readonly #work: StructTable<"u32", "sweep_work">;

  constructor(source: TableSource) {
    this.reports = new StructTable(source, "sweep_reports", "u32", "sweep_report");
    this.zoneReports = new StructTable(source, "zone_reports", "u32", "zone_report");
    this.balance = new FlowBalance(source);
    this.#control = new StructTable(source, "sweep_control", "u32", "sweep_control");
    this.#work = new StructTable(source, "sweep_work", "u32", "sweep_work");
  }

  /** Begins a pass; returns the half of last_hop_refs that it counts in, which the caller clears as that of vm_refs. */
  begin({ idleTicks, budgetNs }: SweepControl): number {
    const refs_ended = this.endedRefs();
    const refs = refs_ended === 0 ? LAST_HOPS_MAX : 0;
    this.#control.set(0, { idle_ticks: idleTicks, budget_ns: budgetNs, refs, refs_ended });
    return refs;
  }

  /** Ends it: what it counted is what is shown from now on. */
  end(): void {
    const control = this.#control.get(0)!;
    this.#control.set(0, { ...control, refs_ended: control.refs });
  }

  /** The half of last_hop_refs that the last pass filled. */
  endedRefs(): number {
    return this.#control.get(0)!.refs_ended;
  }

  /** The half of vm_refs that the last pass filled. */
  endedVmRefs(): number {
    return this.endedRefs() === 0 ? 0 : VMS_MAX;
  }

  /** Before a table is walked: what an earlier pass found, or left half done, is forgotten. */
  reset(table: number): void {
    this.reports.set(table, {});
    this.#work.set(table, {});
  }

  /** Of the pass under way. */
  report(table: number): StructValue<"sweep_report"> {
    return this.reports.get(table)!;
  }

  /** Of the last pass that ended; its finished_ns is 0 if none ever did. */
  ended(table: number): StructValue<"sweep_report"> {
    return this.reports.get(TABLES + table)!;
  }

  publish(table: number, report: StructInput<"sweep_report">): void {
    this.reports.set(TABLES + table, report);
  }

  /** Flows of one zone in one table, by state; `number` as in zones, 0 for all zones without one. */
  zoneStates(number: number, table: number, pass: "under way" | "ended"): number[] {
    return this.zoneReports.get(zoneRow(number, table, pass))!.states;
  }

  /** Before a pass, or for a number that another zone had. */
  resetZone(number: number, pass: "under way" | "ended"): void {
    for (let table = 0; table < TABLES; table++) this.zoneReports.set(zoneRow(number, table, pass), {});
  }

  publishZone(number: number): void {
    for (let table = 0; table < TABLES; table++) {
      const states = this.zoneStates(number, table, "under way");
      this.zoneReports.set(zoneRow(number, table, "ended"), { states });
    }
  }
}

function zoneRow(number: number, table: number, pass: "under way" | "ended"): number {
  return (number * TABLES + table) * 2 + (pass === "ended" ? 1 : 0);
}

/** Flows that came into a state less those that left it; what the LRU evicts does not come by here. */
export class FlowBalance {
  readonly #balance: TableMap;
  readonly #removals: TableMap;
  readonly #key = Buffer.alloc(4);
  readonly #counts: Buffer;
  readonly #removed = Buffer.alloc(8);

  constructor(source: TableSource) {
    this.#balance = source.map("flow_balance");
    this.#removals = source.map("flow_removals");
    this.#counts = Buffer.alloc(this.#balance.valueBytes);
  }

  /** Of one table by state, what user space deleted taken off. */
  read(table: number): number[] {
    return Array.from({ length: FLOW_STATES }, (_, state) => {
      this.#row(table, state);
      this.#balance.lookupInto(this.#key, this.#counts);
      this.#removals.lookupInto(this.#key, this.#removed);
      let count = -signed64(this.#removed, 0);
      // One CPU may count more leave a state than came.
      for (let at = 0; at < this.#counts.length; at += 8) count += signed64(this.#counts, at);
      return count;
    });
  }

  /**
   * User space has deleted so many flows of each state, or fewer than it said before. The caller has the lock:
   * others write here too.
   */
  remove(table: number, states: readonly number[]): void {
    for (const [state, count] of states.entries()) {
      if (count === 0) continue;
      this.#row(table, state);
      this.#removals.lookupInto(this.#key, this.#removed);
      this.#removed.writeBigInt64LE(this.#removed.readBigInt64LE() + BigInt(count));
      this.#removals.update(this.#key, this.#removed);
    }
  }

  /** CPUs that the kernel counts for: an LRU map keeps some free entries for each. */
  get cpus(): number {
    return this.#counts.length / 8;
  }

  #row(table: number, state: number): void {
    this.#key.writeUInt32LE(table * FLOW_STATES + state);
  }
}

/** Exact up to 2^53, and without the cost of a BigInt. */
function signed64(buffer: Buffer, at: number): number {
  return buffer.readInt32LE(at + 4) * 2 ** 32 + buffer.readUInt32LE(at);
}
