// SPDX-License-Identifier: Apache-2.0
// The VMs behind a tap, as the bridge and the neighbour table know them before any frame was seen there.

import { randomInt } from "node:crypto";
import type { StructValue } from "../abi/codec.ts";
import { currentTick } from "../abi/codec.ts";
import { ORIGIN, VMS_MAX } from "../abi/layout.gen.ts";
import { parseMac } from "../addresses.ts";
import { VMS_PER_TAP } from "../config/defaults.ts";
import type { FdbEntry, Link, Neighbour } from "../kernel/rtnetlink.ts";
import type { Tables } from "../tables/index.ts";

/** Neighbours in these states had, or may still have, this MAC. */
const KNOWN_STATES = new Set(["reachable", "stale", "delay", "probe", "permanent"]);

/** MACs of guests behind `tap`, each once; never the host's own. Pure. */
export function vmMacs(
  tap: Link,
  hostMac: string,
  fdb: readonly FdbEntry[],
  neighbours: readonly Neighbour[],
): string[] {
  const macs = [
    ...fdb
      .filter((entry) => entry.ifindex === tap.ifindex && entry.master !== null && !entry.local)
      .map((entry) => entry.mac),
    ...neighbours
      .filter((neighbour) => neighbour.ifindex === tap.ifindex && KNOWN_STATES.has(neighbour.state))
      .map((neighbour) => neighbour.mac),
  ];
  const own = new Set([tap.mac, hostMac, "00:00:00:00:00:00"]);
  const guests = macs.filter((mac) => mac !== null && !own.has(mac) && !isGroup(mac));
  return [...new Set(guests as string[])].slice(0, VMS_PER_TAP);
}

function isGroup(mac: string): boolean {
  return (Number.parseInt(mac.slice(0, 2), 16) & 1) === 1;
}

export type KnownVm = readonly [key: StructValue<"vm_key">, vm: StructValue<"vm">];

/** Entries for MACs behind a tap, with ids that nobody has. */
export function newVms(tables: Tables, zone: number, ifindex: number, macs: readonly string[]): KnownVm[] {
  const taken = new Set([...tables.vms.entries()].map(([, vm]) => vm.id));
  return macs.map((mac) => {
    const id = freshId(taken);
    taken.add(id);
    const vm = { id, ifindex, last_seen: currentTick(), origin: ORIGIN.LEARNED, reserved: Buffer.alloc(3) };
    return [{ zone, mac: parseMac(mac)! }, vm];
  });
}

/** The hot path counts its ids up from 1; ours are drawn from the upper half, where it never comes. */
export function freshId(taken: ReadonlySet<number>): number {
  for (;;) {
    const id = 2 ** 31 + randomInt(2 ** 31);
    if (!taken.has(id)) return id;
  }
}

export function vmsOf(tables: Tables, ifindex: number): KnownVm[] {
  return [...tables.vms.entries()].filter(([, vm]) => vm.ifindex === ifindex);
}

/** The same VMs as they are known in another zone. */
export function inZone(vms: readonly KnownVm[], zone: number): KnownVm[] {
  return vms.map(([key, vm]) => [{ ...key, zone }, vm]);
}

/** Enters those that are not known: a VM that is stays as it is, and its frames move it. Returns the new ones. */
export function restoreVms(tables: Tables, vms: readonly KnownVm[]): KnownVm[] {
  return vms.filter(([key, vm]) => tables.vms.insert(key, vm));
}

export function removeVms(tables: Tables, vms: readonly KnownVm[]): void {
  for (const [key] of vms) tables.vms.delete(key);
}

/**
 * VMs stay known when their tap is detached or goes, so that their flows know them when they return. When they
 * have come to fill half of the table, those without an attached tap are forgotten.
 */
export function forgetVmsWithoutTap(tables: Tables, attached: ReadonlySet<number>): void {
  const all = [...tables.vms.entries()];
  if (all.length < VMS_MAX / 2) return;
  for (const [key, vm] of all) {
    // Those with a cell are the operator's, and flows of services name them.
    if (!attached.has(vm.ifindex) && !tables.guests.cellOf(vm.id)) tables.vms.delete(key);
  }
}
