// SPDX-License-Identifier: Apache-2.0
/*
 * Which MACs devices have behind their VTEPs. The forwarding tables of VXLAN devices say it: a device's VTEPs make
 * what stands there its own, on every uplink that is such a VXLAN device or has one beneath it.
 */

import { append } from "../append.ts";
import { VTEP_LAST_HOPS_PER_DEVICE } from "../config/defaults.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { type VxlanEntry, vtepKey } from "../kernel/vxlanEntry.ts";
import { readVxlanFdb, VxlanLookup } from "../kernel/vxlanFdb.ts";
import { deviceVteps, type NamedDevice } from "../tables/index.ts";
import { isOn, type Uplink } from "./deviceFleet.ts";
import type { Pieces } from "./pieces.ts";

const SEVERAL = 512;

/** What is known of the forwarding tables. MACs and VTEPs are hex digits, as in VxlanEntry. */
export interface VtepSource {
  /** Those of a VXLAN device that are behind devices' VTEPs, and perhaps others. */
  entries(vxlan: number): Iterable<readonly VxlanEntry[]>;
  /** Where a MAC is now. */
  find(vxlan: number, mac: string): VxlanEntry | undefined;
  /** Whether somebody has taken back what he entered for good: such a MAC has not merely been silent. */
  isWithdrawn(vxlan: number, mac: string): boolean;
}

/** The kernel's tables, asked each time. */
export class KernelVteps implements VtepSource {
  #lookup: VxlanLookup | undefined;

  entries(vxlan: number): Iterable<readonly VxlanEntry[]> {
    return readVxlanFdb(vxlan);
  }

  find(vxlan: number, mac: string): VxlanEntry | undefined {
    this.#lookup ??= new VxlanLookup();
    return this.#lookup.find(vxlan, mac, null);
  }

  isWithdrawn(): boolean {
    return false;
  }

  close(): void {
    this.#lookup?.close();
    this.#lookup = undefined;
  }
}

/** A MAC behind a device's VTEP, as frames on one of its uplinks show it. */
export interface VtepMac {
  owner: NamedDevice;
  mac: Buffer;
  vtep: Buffer;
  /** Of a shared device: the VNI of its frames, and of those that are sent to it. */
  vni: { source: number; sent: number } | null;
}

export interface VtepPlaces {
  /** By the uplink's ifindex, then by MAC. On a shared device one MAC may be in several VNIs. */
  readonly byUplink: ReadonlyMap<number, ReadonlyMap<string, readonly VtepMac[]>>;
  /** The VXLAN devices that an uplink is, or has beneath it. */
  readonly vxlans: ReadonlyMap<number, readonly number[]>;
  /** Whose a VTEP is, on an uplink. */
  owner(uplink: number, vtep: string): NamedDevice | undefined;
  /** VTEPs of devices. */
  readonly watched: ReadonlySet<string>;
}

/** `links` by ifindex. A VXLAN device's own lower link is where its outer packets leave, and no matter here. */
export function vxlansBeneath(ifindex: number, links: ReadonlyMap<number, Link>): number[] {
  const found = new Set<number>();
  const seen = new Set<number>();
  const look = (at: number): void => {
    const link = links.get(at);
    if (!link || seen.has(at)) return;
    seen.add(at);
    if (link.kind === "vxlan") {
      found.add(at);
      return;
    }
    if (isOnTop(link)) look(link.lower!);
    for (const port of links.values()) if (port.master === at) look(port.ifindex);
  };
  look(ifindex);
  return [...found];
}

/** A veth's "lower" link is its peer, and one in another network namespace is not ours to read. */
function isOnTop({ kind, lower, linkNetns }: Link): boolean {
  return lower !== null && linkNetns === null && kind !== "veth";
}

/** Of all devices together. */
export function watchedVteps(devices: Iterable<NamedDevice>): Set<string> {
  return new Set([...devices].flatMap(({ device }) => deviceVteps(device).map(vtepKey)));
}

/** Uplinks where devices with VTEPs may be, with the VXLAN devices that they are or have beneath them. */
export function vxlansOf(
  devices: readonly NamedDevice[],
  uplinks: Iterable<Uplink>,
  links: readonly Link[],
): Map<number, number[]> {
  const withVteps = devices.filter(({ device }) => deviceVteps(device).length > 0);
  const byIndex = new Map(links.map((link) => [link.ifindex, link]));
  const found = new Map<number, number[]>();
  for (const uplink of withVteps.length === 0 ? [] : uplinks) {
    if (!withVteps.some(({ device }) => isOn(device, uplink))) continue;
    const vxlans = vxlansBeneath(uplink.ifindex, byIndex);
    if (vxlans.length > 0) found.set(uplink.ifindex, vxlans);
  }
  return found;
}

export interface PlaceAround {
  devices: readonly NamedDevice[];
  uplinks: ReadonlyMap<number, Uplink>;
  links: readonly Link[];
  source: VtepSource;
}

export function* placeVteps({ devices, uplinks, links, source }: PlaceAround): Pieces<VtepPlaces> {
  const watched = watchedVteps(devices);
  const vxlans = vxlansOf(devices, uplinks.values(), links);
  const owners = vtepOwners(devices, vxlans.keys(), uplinks);
  const owner = (uplink: number, vtep: string) => owners.get(`${uplink} ${vtep}`);
  const byUplink = new Map<number, Map<string, VtepMac[]>>();
  let taken = 0;
  for (const [ifindex, beneath] of vxlans) {
    const own = new Map<string, VtepMac[]>();
    byUplink.set(ifindex, own);
    for (const vxlan of beneath) {
      for (const entries of source.entries(vxlan)) {
        for (const entry of entries) {
          const placed = place(entry, uplinks.get(ifindex)!, owner);
          if (placed) append(own, entry.mac, placed);
          if (++taken % SEVERAL === 0) yield;
        }
        yield;
      }
    }
  }
  return { byUplink, vxlans, owner, watched };
}

function place(
  { mac, vtep, vni, sourceVni }: VxlanEntry,
  uplink: Uplink,
  ownerOf: VtepPlaces["owner"],
): VtepMac | undefined {
  const owner = vtep === null ? undefined : ownerOf(uplink.ifindex, vtep);
  // An entry for no VNI says nothing of frames with one.
  if (!owner || (uplink.shared && sourceVni === null)) return undefined;
  return {
    owner,
    mac: Buffer.from(mac, "hex"),
    vtep: Buffer.from(vtep!, "hex"),
    vni: uplink.shared ? { source: sourceVni!, sent: vni ?? sourceVni! } : null,
  };
}

/** By uplink and VTEP. No two devices that may be on one uplink have the same VTEP. */
export function vtepOwners(
  devices: readonly NamedDevice[],
  ifindexes: Iterable<number>,
  uplinks: ReadonlyMap<number, Uplink>,
): Map<string, NamedDevice> {
  const owners = new Map<string, NamedDevice>();
  for (const ifindex of ifindexes) {
    const uplink = uplinks.get(ifindex)!;
    for (const named of devices) {
      if (!isOn(named.device, uplink)) continue;
      for (const vtep of deviceVteps(named.device)) owners.set(`${ifindex} ${vtepKey(vtep)}`, named);
    }
  }
  return owners;
}

/** Of each device those that get last hops before they send anything; further ones when their first frame comes. */
export function* entered(places: VtepPlaces): Generator<readonly [uplink: number, VtepMac]> {
  const counts = new Map<bigint, number>();
  for (const [uplink, macs] of places.byUplink) {
    for (const placed of [...macs.values()].flat()) {
      const count = (counts.get(placed.owner.id) ?? 0) + 1;
      counts.set(placed.owner.id, count);
      if (count <= VTEP_LAST_HOPS_PER_DEVICE) yield [uplink, placed];
    }
  }
}

/** What commands show: the VTEP of a last hop's MAC, as the kernel knows it at this moment. */
export class VtepView {
  readonly #source = new KernelVteps();
  readonly #links: ReadonlyMap<number, Link>;
  readonly #beneath = new Map<number, number[]>();

  constructor(links: readonly Link[]) {
    this.#links = new Map(links.map((link) => [link.ifindex, link]));
  }

  /** Hex digits; null if it is behind none that is known. */
  of(ifindex: number, mac: Buffer): string | null {
    const known = this.#beneath.get(ifindex) ?? vxlansBeneath(ifindex, this.#links);
    this.#beneath.set(ifindex, known);
    for (const vxlan of known) {
      const vtep = this.#source.find(vxlan, mac.toString("hex"))?.vtep;
      if (vtep) return vtep;
    }
    return null;
  }

  close(): void {
    this.#source.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
