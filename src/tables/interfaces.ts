// SPDX-License-Identifier: Apache-2.0

import type { StructInput, StructValue } from "../abi/codec.ts";
import { NEAR_INTERFACES } from "../abi/layout.gen.ts";
import type { TableSource } from "./source.ts";
import { StructTable } from "./structTable.ts";

export type InterfaceEntry = StructValue<"interface">;

/** Attached interfaces, and the bridges of attached taps, by ifindex. */
export class InterfaceTable extends StructTable<"u32", "interface"> {
  /** ifindex % NEAR_INTERFACES → the same entry, where programs look first. */
  readonly #near: StructTable<"u32", "interface">;

  constructor(source: TableSource) {
    super(source, "interfaces", "u32", "interface");
    this.#near = new StructTable(source, "near_interfaces", "u32", "interface");
  }

  override set(ifindex: number, entry: StructInput<"interface">): void {
    super.set(ifindex, { ...entry, ifindex });
    // Of two interfaces that meet in a cell, the first keeps it.
    const other = this.#near.get(ifindex % NEAR_INTERFACES)?.ifindex ?? 0;
    if (other === 0 || other === ifindex) this.#near.set(ifindex % NEAR_INTERFACES, { ...entry, ifindex });
  }

  override delete(ifindex: number): boolean {
    const cell = ifindex % NEAR_INTERFACES;
    if (this.#near.get(cell)?.ifindex === ifindex) this.#near.set(cell, {});
    return super.delete(ifindex);
  }

  /** By ifindex. */
  list(): InterfaceEntry[] {
    return [...this.entries()]
      .map(([ifindex, entry]) => ({ ...entry, ifindex }))
      .sort((a, b) => a.ifindex - b.ifindex);
  }

  /** Zones that a flow can have. */
  zones(): number[] {
    return [...new Set([...this.entries()].map(([, entry]) => entry.zone))].sort((a, b) => a - b);
  }
}

/** The name when attached; an interface that is no longer in the table goes by its index. */
export function interfaceName(entry: { name: string } | undefined, ifindex: number): string {
  return entry?.name || `if${ifindex}`;
}
