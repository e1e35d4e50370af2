// SPDX-License-Identifier: Apache-2.0
// Where the host's IP stack sees VMs: on the bridge of their tap, on a VLAN interface of that, or on the tap itself.

import { append } from "../append.ts";
import type { Netlink } from "../kernel/netlink.ts";
import type { Address, Link } from "../kernel/rtnetlink.ts";
import type { Tables } from "../tables/index.ts";
import { isUsable } from "./deviceFleet.ts";
import { routeTo } from "./deviceStack.ts";
import { addressOctets } from "./devices.ts";

const NOWHERE: ReadonlySet<number> = new Set();

/** What is known of the host, read at once now and then; links also as events tell. */
export class VmStack {
  readonly #tables: Pick<Tables, "interfaces">;
  readonly #netlink: Netlink;
  #links = new Map<number, Link>();
  #l3 = new Map<number, number>();
  /** VLAN interfaces by what they stand on. */
  #vlans = new Map<number, number[]>();
  #addresses: readonly Address[] = [];
  readonly #known = new Map<string, ReadonlySet<number>>();

  constructor(tables: Pick<Tables, "interfaces">, netlink: Netlink) {
    this.#tables = tables;
    this.#netlink = netlink;
  }

  read(): void {
    const links = this.#netlink.links();
    this.#links = new Map(links.map((link) => [link.ifindex, link]));
    this.#l3 = new Map(
      this.#tables.interfaces.list().map(({ ifindex, l3_ifindex }) => [ifindex, l3_ifindex]),
    );
    this.#vlans = new Map();
    for (const { kind, lower, ifindex } of links) {
      if (kind === "vlan" && lower !== null) append(this.#vlans, lower, ifindex);
    }
    this.#addresses = this.#netlink.addresses();
    this.#known.clear();
  }

  get links(): ReadonlyMap<number, Link> {
    return this.#links;
  }

  get addresses(): readonly Address[] {
    return this.#addresses;
  }

  /** As an event has it. */
  changed(link: Link): void {
    if (this.#links.get(link.ifindex)?.master !== link.master) this.#known.clear();
    this.#links.set(link.ifindex, link);
  }

  /** Whether an interface is there and up; of one that was not seen yet the kernel is asked. */
  isUsable(ifindex: number): boolean {
    return isUsable(this.#link(ifindex));
  }

  /** Whether the host has an address of the target's family on one of the interfaces. */
  mayAsk(ifindexes: ReadonlySet<number>, target: string): boolean {
    const family = target.includes(":") ? 6 : 4;
    return this.#addresses.some((own) => own.family === family && ifindexes.has(own.ifindex));
  }

  /** Where an address is asked for, of a VM on that tap; by the host's routes if it is on none (0). */
  interfaces(tap: number, address: string): ReadonlySet<number> {
    const key = `${tap} ${address}`;
    let found = this.#known.get(key);
    if (!found) {
      found = this.#find(tap, address);
      this.#known.set(key, found);
    }
    return found;
  }

  #find(tap: number, address: string): ReadonlySet<number> {
    const target = addressOctets(address);
    if (tap === 0) {
      const routed = routeTo(this.#netlink, target);
      return routed === null || this.#link(routed)?.flags.loopback ? NOWHERE : new Set([routed]);
    }
    const port = this.#link(tap);
    // A tap may become a port after it was attached; its entry is changed later.
    const bridge = port?.masterKind === "bridge" ? port.master : null;
    const l3 = bridge ?? this.#l3.get(tap) ?? tap;
    const vlans = this.#vlans.get(l3) ?? [];
    const routed = vlans.length === 0 ? null : routeTo(this.#netlink, target);
    return new Set([routed !== null && vlans.includes(routed) ? routed : l3]);
  }

  #link(ifindex: number): Link | undefined {
    const known = this.#links.get(ifindex);
    if (known) return known;
    const link = this.#netlink.link(ifindex);
    if (link) this.#links.set(ifindex, link);
    return link;
  }
}
