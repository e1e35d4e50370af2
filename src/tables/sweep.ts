// SPDX-License-Identifier: Apache-2.0

import type { StructValue } from "../abi/codec.ts";
import { LAST_HOPS_MAX } from "../abi/layout.gen.ts";
import type { TableSource } from "./source.ts";
import { StructTable } from "./structTable.ts";

export interface SweepControl {
  /** Instead of every timeout; 0 for the timeouts. */
  idleTicks: number;
  budgetNs: number;
}

/** What steers the sweep programs and what they found, by enum table. */
export class SweepTables {
  readonly reports: StructTable<"u32", "sweep_report">;
  readonly #control: StructTable<"u32", "sweep_control">;
  readonly #work: StructTable<"u32", "sweep_work">;

  constructor(source: TableSource) {
    this.reports = new StructTable(source, "sweep_reports", "u32", "sweep_report");
    this.#control = new StructTable(source, "sweep_control", "u32", "sweep_control");
    this.#work = new StructTable(source, "sweep_work", "u32", "sweep_work");
  }

  /** Begins a pass; returns the half of last_hop_refs that it counts in, which the caller clears. */
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

  /** Before a table is walked: what an earlier pass found, or left half done, is forgotten. */
  reset(table: number): void {
    this.reports.set(table, {});
    this.#work.set(table, {});
  }

  /** Of the pass under way. */
  report(table: number): StructValue<"sweep_report"> {
    return this.reports.get(table)!;
  }
}
