// SPDX-License-Identifier: Apache-2.0

import type { StructInput, StructValue } from "../abi/codec.ts";
import type { TableSource } from "./source.ts";
import { StructTable } from "./structTable.ts";

/** The one record of control. */
export class ControlTable {
  readonly #table: StructTable<"u32", "control">;

  constructor(source: TableSource) {
    this.#table = new StructTable(source, "control", "u32", "control");
  }

  get(): StructValue<"control"> {
    return this.#table.get(0)!;
  }

  /** Changes the given fields. The caller holds the lock. */
  set(fields: StructInput<"control">): void {
    this.#table.set(0, { ...this.get(), ...fields });
  }
}
