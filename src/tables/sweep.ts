// SPDX-License-Identifier: Apache-2.0

import type { StructValue } from "../abi/codec.ts";
import type { TableSource } from "./source.ts";
import { StructTable } from "./structTable.ts";

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

  configure(idleTicks: number, budgetNs: number): void {
    this.#control.set(0, { idle_ticks: idleTicks, budget_ns: budgetNs });
  }

  /** Before a pass: what an earlier one found, or left half done, is forgotten. */
  reset(table: number): void {
    this.reports.set(table, {});
    this.#work.set(table, {});
  }

  report(table: number): StructValue<"sweep_report"> {
    return this.reports.get(table)!;
  }
}
