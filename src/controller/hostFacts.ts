// SPDX-License-Identifier: Apache-2.0
// What the host says of itself, read once a reconcile.

import { append } from "../append.ts";
import { isHostNetns } from "../kernel/coexistence.ts";
import { type LibvirtDomains, readDomains } from "../kernel/libvirt.ts";
import type { Netlink } from "../kernel/netlink.ts";
import type { Address, FdbEntry, Link, Neighbour } from "../kernel/rtnetlink.ts";

export interface HostFacts {
  readonly links: readonly Link[];
  link(ifindex: number): Link | undefined;
  /** The VLAN interfaces on an interface. */
  vlansOn(ifindex: number): readonly Link[];
  /** What belongs to a bridge, bond or the like. */
  portsOf(ifindex: number): readonly Link[];
  readonly addresses: readonly Address[];
  readonly fdb: readonly FdbEntry[];
  readonly neighbours: readonly Neighbour[];
  readonly libvirt: LibvirtDomains;
}

/** Interfaces at once; the rest when somebody asks for it, since most reconciles need no more. */
export function readHost(netlink: Netlink): HostFacts {
  const links = netlink.links();
  return hostFacts({
    links,
    addresses: once(() => netlink.addresses()),
    fdb: once(() => netlink.fdb()),
    neighbours: once(() => netlink.neighbours()),
    libvirt: once(() => readDomainsHere(links)),
  });
}

export interface HostSources {
  links: readonly Link[];
  addresses(): readonly Address[];
  fdb(): readonly FdbEntry[];
  neighbours(): readonly Neighbour[];
  libvirt(): LibvirtDomains;
}

export function hostFacts(sources: HostSources): HostFacts {
  const byIndex = new Map(sources.links.map((link) => [link.ifindex, link]));
  const vlans = new Map<number, Link[]>();
  const ports = new Map<number, Link[]>();
  for (const link of sources.links) {
    if (link.kind === "vlan" && link.lower !== null) append(vlans, link.lower, link);
    if (link.master !== null) append(ports, link.master, link);
  }
  return {
    links: sources.links,
    link: (ifindex) => byIndex.get(ifindex),
    vlansOn: (ifindex) => vlans.get(ifindex) ?? [],
    portsOf: (ifindex) => ports.get(ifindex) ?? [],
    get addresses() {
      return sources.addresses();
    },
    get fdb() {
      return sources.fdb();
    },
    get neighbours() {
      return sources.neighbours();
    },
    get libvirt() {
      return sources.libvirt();
    },
  };
}

/** libvirt's domains have their taps in the host's network namespace. */
function readDomainsHere(links: readonly Link[]): LibvirtDomains {
  const named = (process.env.LASTHOP_LIBVIRT ?? "") !== "";
  return named || isHostNetns(links) ? readDomains() : { domains: [], unreadable: [] };
}

/** Reads at the first call only. */
export function once<T>(read: () => T): () => T {
  let value: { read: T } | undefined;
  return () => {
    value ??= { read: read() };
    return value.read;
  };
}
