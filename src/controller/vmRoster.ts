// SPDX-License-Identifier: Apache-2.0
// The VMs that are followed: those that have an entry, found by name, by address, and by what a frame shows of them.

import { parseMac } from "../addresses.ts";
import { append } from "../append.ts";
import { isZero } from "../tables/index.ts";
import { type NamedVm, sameSpec } from "./serviceSpec.ts";
import { vmKeyOf } from "./vmPlaces.ts";
import { VmWatch } from "./vmWatch.ts";

export interface RosterChanges {
  /** Something else is asked for than before: VMs came or went, or their entries say something else. */
  asked: boolean;
  gone: VmWatch[];
  /** Those whose checks are to begin anew. */
  otherChecks: VmWatch[];
}

export class VmRoster {
  readonly #reader: { read(): Map<string, NamedVm | null> };
  readonly #watches = new Map<string, VmWatch>();
  #byAddress = new Map<string, VmWatch[]>();
  /** `zone MAC`, or the tap of one whose MAC was not given. */
  #signs = new Set<string>();

  constructor(reader: { read(): Map<string, NamedVm | null> }) {
    this.#reader = reader;
  }

  get size(): number {
    return this.#watches.size;
  }

  get(name: string): VmWatch | undefined {
    return this.#watches.get(name);
  }

  all(): Iterable<VmWatch> {
    return this.#watches.values();
  }

  /** Addresses that are followed. */
  addresses(): string[] {
    return [...this.#byAddress.keys()];
  }

  at(address: string): readonly VmWatch[] {
    return this.#byAddress.get(address) ?? [];
  }

  /** Whether a frame from that MAC on that tap may tell something of one of them. */
  concerns(zone: number, mac: Buffer, tap: string | undefined): boolean {
    return this.#signs.has(vmKeyOf(zone, mac)) || this.#signs.has(tapSign(zone, tap));
  }

  /** Takes up what the command line, the configuration or settling has changed. */
  read(): RosterChanges {
    const found = this.#reader.read();
    const changes: RosterChanges = { asked: false, gone: [], otherChecks: [] };
    let any = false;
    for (const [name, watch] of this.#watches) {
      if (found.get(name)) continue;
      this.#watches.delete(name);
      changes.gone.push(watch);
      changes.asked = true;
    }
    for (const named of found.values()) {
      const watch = named && this.#watches.get(named.name);
      if (named === null || watch?.spec === named.spec) continue;
      any = true;
      if (!watch) {
        this.#watches.set(named.name, new VmWatch(named));
        changes.asked = true;
        continue;
      }
      const isSame =
        sameSpec(watch.spec, named.spec) && watch.spec.operator_state === named.spec.operator_state;
      if (!isSame) changes.asked = true;
      if (watch.change(named)) changes.otherChecks.push(watch);
    }
    if (any || changes.asked) this.#index();
    return changes;
  }

  #index(): void {
    this.#byAddress = new Map();
    this.#signs = new Set();
    for (const watch of this.#watches.values()) {
      const { address, spec, config } = watch;
      if (address !== null) append(this.#byAddress, address, watch);
      if (!isZero(spec.mac)) this.#signs.add(vmKeyOf(spec.zone, spec.mac));
      if (config.mac !== undefined) this.#signs.add(vmKeyOf(spec.zone, parseMac(config.mac)!));
      else if (config.tap !== undefined) this.#signs.add(tapSign(spec.zone, config.tap));
    }
  }
}

function tapSign(zone: number, tap: string | undefined): string {
  return `${zone} tap ${tap}`;
}
