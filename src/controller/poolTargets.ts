// SPDX-License-Identifier: Apache-2.0
// Whom the members of pools, and associations, name: a VM, or those with a label.

import { append } from "../append.ts";
import type { VmConfig } from "../config/services.ts";

/** A member of a pool, or an association. */
export interface PoolTarget {
  vm?: string | undefined;
  label?: string | undefined;
}

export class PoolTargets<T extends { name: string; config: Pick<VmConfig, "labels"> }> {
  readonly #zoneOf: (vm: T) => number;
  readonly #byName: ReadonlyMap<string, T>;
  /** `zone label` → */
  readonly #byLabel = new Map<string, T[]>();

  constructor(vms: readonly T[], zoneOf: (vm: T) => number) {
    this.#zoneOf = zoneOf;
    this.#byName = new Map(vms.map((vm) => [vm.name, vm]));
    for (const vm of vms) {
      for (const label of new Set(vm.config.labels)) append(this.#byLabel, `${zoneOf(vm)} ${label}`, vm);
    }
  }

  get(name: string): T | undefined {
    return this.#byName.get(name);
  }

  /** In that zone. */
  of(zone: number, { vm, label }: PoolTarget): readonly T[] {
    if (label !== undefined) return this.#byLabel.get(`${zone} ${label}`) ?? [];
    const named = vm === undefined ? undefined : this.#byName.get(vm);
    return named && this.#zoneOf(named) === zone ? [named] : [];
  }
}
