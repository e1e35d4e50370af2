// SPDX-License-Identifier: Apache-2.0
// Which of the kernel's events matter: those that may change what should be attached, and those about neighbours
// and links that devices and VMs depend on. A busy neighbour table costs nothing.

import { formatMac, parseMac } from "../addresses.ts";
import type { Config } from "../config/schema.ts";
import { type NetlinkEvent, type NetlinkEventHandlers, NetlinkEvents } from "../kernel/netlinkEvents.ts";
import type { FdbEntry, Link, Neighbour } from "../kernel/rtnetlink.ts";
import type { VxlanEntry } from "../kernel/vxlanEntry.ts";

const REOPEN_MS = 1_000;
/** A tap appears before libvirt has written whose it is. */
export const DOMAIN_LOOKS_MS = [50, 150, 400, 900, 2000] as const;

/** What follows from an event. */
export interface Consequences {
  reconcile?: true;
  /** A tap may have come whose domain is not known yet. */
  newTap?: true;
  /** The host's own addresses are others: neighbours may be asked from them, and ICMP errors come from them. */
  addresses?: true;
  link?: Link;
  neighbour?: Neighbour;
  vxlan?: { entry: VxlanEntry; gone: boolean };
}

/** What is known of the host, as far as events tell; decides what each of them means. No kernel here. */
export class HostView {
  readonly #links = new Map<number, string>();
  readonly #addresses = new Set<string>();
  /** Guests that the configuration names by MAC, and the port where each was last seen. */
  #guests = new Map<string, number | null>();

  /** The configuration changed. */
  configure(config: Pick<Config, "taps">): void {
    const macs = config.taps.flatMap(({ guest_mac }) =>
      guest_mac === undefined ? [] : [formatMac(parseMac(guest_mac)!)],
    );
    this.#guests = new Map(macs.map((mac) => [mac, this.#guests.get(mac) ?? null]));
  }

  /** Events were lost: the next of each thing counts as a change. */
  forget(): void {
    this.#links.clear();
    this.#addresses.clear();
    for (const mac of this.#guests.keys()) this.#guests.set(mac, null);
  }

  consequences(event: NetlinkEvent): Consequences {
    switch (event.kind) {
      case "link":
        return this.#link(event.link, event.gone);
      case "port":
        return { reconcile: true };
      case "address": {
        const { ifindex, address, prefixLength } = event.address;
        const key = `${ifindex} ${address}/${prefixLength}`;
        const changed = event.gone ? this.#addresses.delete(key) : !this.#addresses.has(key);
        if (!event.gone) this.#addresses.add(key);
        // A lifetime that was renewed is no change.
        return changed || event.gone ? { addresses: true, reconcile: true } : {};
      }
      case "neighbour":
        return { neighbour: event.gone ? { ...event.neighbour, state: "none", mac: null } : event.neighbour };
      case "fdb":
        return event.gone ? {} : this.#guest(event.entry);
      case "vxlan":
        return { vxlan: { entry: event.entry, gone: event.gone } };
    }
  }

  #link(link: Link, gone: boolean): Consequences {
    const { ifindex } = link;
    const before = this.#links.get(ifindex);
    const now = gone ? undefined : fingerprint(link);
    if (!gone && before === now) return {};
    if (now === undefined) this.#links.delete(ifindex);
    else this.#links.set(ifindex, now);
    const down = { up: false, running: false, loopback: link.flags.loopback };
    return {
      reconcile: true,
      link: gone ? { ...link, flags: down } : link,
      ...(before === undefined && !gone && mayBeTap(link) && { newTap: true as const }),
    };
  }

  #guest({ mac, ifindex, master }: FdbEntry): Consequences {
    const where = this.#guests.get(mac);
    if (where === undefined || where === ifindex || master === null) return {};
    this.#guests.set(mac, ifindex);
    return { reconcile: true };
  }
}

/** Everything about a link that what is attached to it depends on. Not its counters, queues and the like. */
function fingerprint({ name, mac, mtu, flags, master, portState, lower, xdp }: Link): string {
  return JSON.stringify([name, mac, mtu, flags, master, portState, lower, xdp]);
}

/** libvirt makes tun and macvtap interfaces; veth stands for containers that are attached like VMs. */
function mayBeTap({ kind }: Link): boolean {
  return kind === "tun" || kind === "veth" || kind === "macvtap";
}

export interface WatcherOptions {
  /** Something changed; in so many ms, or soon. */
  reconcile(inMs?: number): void;
  neighbourChanged(neighbour: Neighbour): void;
  linkChanged(link: Link): void;
  /** What is behind a VXLAN device. */
  vxlanChanged(entry: VxlanEntry, gone: boolean): void;
  addressesChanged(): void;
  /** Events were lost. */
  overrun(): void;
  /** The events cannot be followed for the moment. */
  onError(error: unknown): void;
  open?: (handlers: NetlinkEventHandlers) => { close(): void };
  /** After the events could not be followed. */
  reopenMs?: number;
}

/** Follows the host's events until closed. */
export class Watcher {
  readonly #options: WatcherOptions;
  readonly #view = new HostView();
  #events: { close(): void } | undefined;
  #reopening: NodeJS.Timeout | undefined;
  #domainLooks: NodeJS.Timeout[] = [];
  #hasDomains = false;

  constructor(options: WatcherOptions) {
    this.#options = options;
  }

  configure(config: Pick<Config, "taps">): void {
    this.#view.configure(config);
    this.#hasDomains = config.taps.some((tap) => tap.domain !== undefined);
  }

  /** Throws E_NETLINK. */
  start(): void {
    const open = this.#options.open ?? ((handlers) => new NetlinkEvents(handlers));
    this.#events = open({
      event: (event) => this.#handle(event),
      overrun: () => this.#overrun(),
      failed: (error) => this.#failed(error),
    });
  }

  stop(): void {
    clearTimeout(this.#reopening);
    for (const timer of this.#domainLooks) clearTimeout(timer);
    this.#events?.close();
    this.#events = undefined;
  }

  #handle(event: NetlinkEvent): void {
    const { reconcile, newTap, addresses, link, neighbour, vxlan } = this.#view.consequences(event);
    if (link) this.#options.linkChanged(link);
    if (neighbour) this.#options.neighbourChanged(neighbour);
    if (vxlan) this.#options.vxlanChanged(vxlan.entry, vxlan.gone);
    if (addresses) this.#options.addressesChanged();
    if (reconcile) this.#options.reconcile();
    if (newTap && this.#hasDomains) this.#lookForDomains();
  }

  /** Of several taps at once the last one counts. */
  #lookForDomains(): void {
    for (const timer of this.#domainLooks) clearTimeout(timer);
    this.#domainLooks = DOMAIN_LOOKS_MS.map((ms) => setTimeout(() => this.#options.reconcile(), ms));
  }

  #overrun(): void {
    this.#view.forget();
    this.#options.overrun();
    this.#options.reconcile();
  }

  #failed(error: unknown): void {
    this.#options.onError(error);
    this.#events = undefined;
    this.#reopening = setTimeout(() => this.#reopen(), this.#options.reopenMs ?? REOPEN_MS);
  }

  #reopen(): void {
    try {
      this.start();
    } catch (error) {
      this.#failed(error);
      return;
    }
    this.#overrun();
  }
}
