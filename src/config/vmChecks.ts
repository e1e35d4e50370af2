// SPDX-License-Identifier: Apache-2.0
// Which VMs of the configuration do not go together, and what others may name of them.

import { suggest } from "../suggest.ts";
import type { Entry, Sound } from "./check.ts";
import { addressKey, macKey } from "./parts.ts";
import { quoted } from "./problems.ts";
import type { VmConfig } from "./services.ts";
import type { Complaint } from "./wording.ts";

type VmEntry = Entry<VmConfig>;

export function checkVms({ vms, uplinks }: Sound, known: KnownVms): Complaint[] {
  return [
    ...checkNames("vms", vms),
    ...checkTaps(vms, uplinks),
    ...checkOwned(vms),
    ...vms.flatMap((entry) => checkResponses(entry, known)),
  ];
}

export function complaint(path: Complaint["path"], message: string): Complaint {
  return { path, on: "value", message };
}

export function checkNames(kind: string, entries: readonly Entry<{ name: string }>[]): Complaint[] {
  const found: Complaint[] = [];
  const places = new Map<string, number>();
  for (const [index, { name }] of entries) {
    if (name === undefined) continue;
    const first = places.get(name);
    if (first === undefined) places.set(name, index);
    else
      found.push(complaint([kind, index, "name"], `${kind}[${first}] has the name ${quoted(name)} already`));
  }
  return found;
}

/** An interface is of one zone, and without more said of it of one VM. */
function checkTaps(vms: readonly VmEntry[], uplinks: Sound["uplinks"]): Complaint[] {
  const found: Complaint[] = [];
  const uplinkPlaces = new Map(uplinks.map(([index, { name }]) => [name, index]));
  const places = new Map<string, VmEntry[]>();
  for (const entry of vms) {
    const [index, vm] = entry;
    const { tap, zone } = vm;
    if (tap === undefined) continue;
    const path = ["vms", index, "tap"];
    const uplink = uplinkPlaces.get(tap);
    if (uplink !== undefined) {
      found.push(complaint(path, `${quoted(tap)} is uplinks[${uplink}]: a VM is behind a tap`));
    }
    const others = places.get(tap) ?? [];
    places.set(tap, others);
    const elsewhere = others.find(([, other]) => zone !== undefined && (other.zone ?? zone) !== zone);
    const unclear = others.find(([, other]) => isAnyone(vm) || isAnyone(other));
    others.push(entry);
    if (elsewhere !== undefined) {
      const message = `${quoted(tap)} is in the zone ${elsewhere[1].zone} by vms[${elsewhere[0]}], this VM in ${zone}`;
      found.push(complaint(path, message));
    } else if (unclear !== undefined) {
      const message = `vms[${unclear[0]}] is on ${quoted(tap)} too: both need a mac or an address, to tell them apart`;
      found.push(complaint(path, message));
    }
  }
  return found;
}

/** Whether it is whoever is on its tap. */
function isAnyone(vm: Partial<VmConfig>): boolean {
  return "mac" in vm && "address" in vm && vm.mac === undefined && vm.address === undefined;
}

/** Of one zone a MAC and an address are one VM's. */
function checkOwned(vms: readonly VmEntry[]): Complaint[] {
  const found: Complaint[] = [];
  const owners = new Map<string, VmEntry>();
  const take = (entry: VmEntry, key: "mac" | "address", value: string, same: string) => {
    const [index, { zone, tap }] = entry;
    const place = `${key} ${zone} ${same}`;
    const other = owners.get(place);
    if (other === undefined) {
      owners.set(place, entry);
      return;
    }
    const onTwoTaps = key === "mac" && tap !== undefined && (other[1].tap ?? tap) !== tap;
    const where = onTwoTaps ? `, on ${quoted(other[1].tap!)}: a VM is on one tap` : "";
    found.push(complaint(["vms", index, key], `${value} belongs to vms[${other[0]}] already${where}`));
  };
  for (const entry of vms) {
    const { zone, mac, address } = entry[1];
    if (zone === undefined) continue;
    if (mac !== undefined) take(entry, "mac", mac, macKey(mac));
    if (address !== undefined) take(entry, "address", address, addressKey(address));
  }
  return found;
}

/** Looking for what was meant takes time. */
const SUGGESTIONS_MAX = 100;

/** What services may name. */
export class KnownVms {
  readonly #byName = new Map<string, Partial<VmConfig>>();
  /** Zones of the VMs that have a label. */
  readonly #zones = new Map<string, Set<string>>();
  /** Whether all names, and all labels, could be read: else what is not found may be there. */
  readonly #allNamed: boolean;
  readonly #allLabelled: boolean;
  #suggestions = 0;

  constructor(vms: readonly VmEntry[]) {
    this.#allNamed = vms.every(([, { name }]) => name !== undefined);
    this.#allLabelled = vms.every(([, { zone, labels }]) => zone !== undefined && labels !== undefined);
    for (const [, vm] of vms) {
      if (vm.name !== undefined) this.#byName.set(vm.name, vm);
      for (const label of vm.labels ?? []) {
        if (vm.zone === undefined) continue;
        const zones = this.#zones.get(label) ?? new Set();
        this.#zones.set(label, zones.add(vm.zone));
      }
    }
  }

  /** What is wrong with naming this VM; `who` is to be in the same zone, unless that is undefined. */
  vmProblem(name: string, who: string, zone: string | undefined): string | undefined {
    const vm = this.#byName.get(name);
    if (vm === undefined) {
      return this.#allNamed
        ? `no VM is called ${quoted(name)}${this.#near(name, () => [...this.#byName.keys()])}`
        : undefined;
    }
    if (zone === undefined || vm.zone === undefined || vm.zone === zone) return undefined;
    return `the VM ${quoted(name)} is in the zone ${vm.zone}, ${who} in ${zone}`;
  }

  labelProblem(label: string, zone: string | undefined): string | undefined {
    const zones = this.#zones.get(label);
    if (!this.#allLabelled || zone === undefined || zones?.has(zone)) return undefined;
    const what = `no VM of the zone ${zone} has the label ${quoted(label)}`;
    if (zones !== undefined) return `${what}, only such of ${[...zones].join(", ")}`;
    const others = () => [...this.#zones].filter(([, zones]) => zones.has(zone)).map(([other]) => other);
    return `${what}${this.#near(label, others)}`;
  }

  #near(word: string, words: () => readonly string[]): string {
    if (this.#suggestions++ >= SUGGESTIONS_MAX) return "";
    const near = suggest(word, words());
    return near === undefined ? "" : ` – did you mean ${quoted(near)}?`;
  }
}

function checkResponses([index, { name, responses }]: VmEntry, known: KnownVms): Complaint[] {
  if (responses === undefined) return [];
  const message =
    responses === name
      ? "a VM gets its own responses unless another is named"
      : known.vmProblem(responses, "this VM", undefined);
  return message === undefined ? [] : [complaint(["vms", index, "responses"], message)];
}
