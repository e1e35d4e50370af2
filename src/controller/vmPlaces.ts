// SPDX-License-Identifier: Apache-2.0
// Where each named VM is: its tap and its MAC, or why that cannot be told. What the operator gave counts before what is
// seen, and where the hot path has seen a VM counts before what the host's tables know of it. Pure.

import { formatMac, parseMac } from "../addresses.ts";
import { append } from "../append.ts";
import { addressKey } from "../config/parts.ts";
import type { FdbEntry, Link, Neighbour } from "../kernel/rtnetlink.ts";
import { isZero } from "../tables/index.ts";
import type { NamedVm } from "./serviceSpec.ts";
import { vmMacs } from "./vms.ts";

/** An attached tap that is there. */
export interface Tap {
  link: Link;
  slot: number;
  zone: number;
  /** Of its bridge, or its own. */
  hostMac: string;
  /** Where the host's stack sees its VMs: itself, its bridge, and the VLAN interfaces on that. */
  stack: readonly number[];
  /** Frames come through it. */
  usable: boolean;
  /** MAC of the first VM that was seen on it; null if none was. */
  firstVm: Buffer | null;
}

export interface PlaceFacts {
  taps: readonly Tap[];
  /** By vmKeyOf: where the hot path saw the VM last. */
  seen: ReadonlyMap<string, { ifindex: number }>;
  /** Asked when somebody needs them. */
  fdb(): readonly FdbEntry[];
  neighbours(): readonly Neighbour[];
}

export interface VmPlace {
  tap: Tap | null;
  mac: Buffer | null;
  /** Why one of them is not known, or is of no use; null if both are. */
  why: string | null;
  warnings: string[];
}

/** Neighbours in these states had, or may still have, this MAC; the surest first. */
const KNOWN_STATES = ["permanent", "reachable", "delay", "probe", "stale"];

/** How a VM is known, for maps. */
export function vmKeyOf(zone: number, mac: Buffer): string {
  return `${zone} ${mac.toString("hex")}`;
}

/** By name. A MAC is one VM's: who was given it has it, then who comes first. */
export function vmPlaces(vms: readonly NamedVm[], facts: PlaceFacts): Map<string, VmPlace> {
  const finder = new Finder(vms, facts);
  const places = new Map<string, VmPlace>();
  const owners = new Map<string, string>();
  const first = vms.filter(({ config }) => config.mac !== undefined);
  for (const vm of [...first, ...vms.filter(({ config }) => config.mac === undefined)]) {
    const place = finder.place(vm);
    const key = place.mac && vmKeyOf(vm.spec.zone, place.mac);
    const owner = key === null ? undefined : owners.get(key);
    if (owner === undefined) {
      if (key !== null) owners.set(key, vm.name);
      places.set(vm.name, place);
    } else {
      const why = `its MAC ${formatMac(place.mac!)} is the VM ${owner}'s`;
      places.set(vm.name, { ...place, mac: null, why });
    }
  }
  return places;
}

class Finder {
  readonly #facts: PlaceFacts;
  readonly #byName: ReadonlyMap<string, Tap>;
  readonly #byIndex: ReadonlyMap<number, Tap>;
  readonly #given: ReadonlySet<string>;
  readonly #fdbByMac: () => Map<string, FdbEntry[]>;
  readonly #fdbByPort: () => Map<number, FdbEntry[]>;
  readonly #byAddress: () => Map<string, Neighbour[]>;
  readonly #byInterface: () => Map<number, Neighbour[]>;

  constructor(vms: readonly NamedVm[], facts: PlaceFacts) {
    this.#facts = facts;
    this.#byName = new Map(facts.taps.map((tap) => [`${tap.zone} ${tap.link.name}`, tap]));
    this.#byIndex = new Map(facts.taps.map((tap) => [tap.link.ifindex, tap]));
    this.#given = new Set(
      vms.flatMap(({ config: { mac }, spec: { zone } }) =>
        mac === undefined ? [] : [vmKeyOf(zone, parseMac(mac)!)],
      ),
    );
    this.#fdbByMac = grouped(facts.fdb, ({ mac }) => mac);
    this.#fdbByPort = grouped(facts.fdb, ({ ifindex }) => ifindex);
    this.#byAddress = grouped(facts.neighbours, ({ address }) => addressKey(address));
    this.#byInterface = grouped(facts.neighbours, ({ ifindex }) => ifindex);
  }

  place(vm: NamedVm): VmPlace {
    const { tap: name } = vm.config;
    const { zone } = vm.spec;
    const named = name === undefined ? undefined : this.#byName.get(`${zone} ${name}`);
    const found = this.#mac(vm, named);
    const mac = "mac" in found ? found.mac : null;
    const unknown = "why" in found ? found.why : null;
    const where = name === undefined ? this.#tapOf(zone, mac) : this.#namedTap(name, zone, named, mac);
    const { tap = null, why = null, warnings = [] } = where;
    const isDown = tap !== null && !tap.usable ? `${tap.link.name} is down` : null;
    // Without a tap that was named it is no wonder that its MAC is not known.
    return { tap, mac, why: (name === undefined ? (unknown ?? why) : (why ?? unknown)) ?? isDown, warnings };
  }

  #mac({ config, spec }: NamedVm, named: Tap | undefined): { mac: Buffer } | { why: string } {
    const { mac, address, tap: name } = config;
    if (mac !== undefined) return { mac: parseMac(mac)! };
    const resolved = address === undefined ? null : this.#resolved(address, spec.zone, named);
    if (resolved) return { mac: resolved };
    const before = isZero(spec.mac) ? null : spec.mac;
    // Whoever was there before is not forgotten when the tap goes, or while it is seen there.
    const seen = before === null ? undefined : this.#seenOn(spec.zone, before);
    if (before && (named === undefined ? name !== undefined || seen !== undefined : seen === named)) {
      return { mac: before };
    }
    const behind: { mac: Buffer } | { why: string } | null = named ? this.#behind(named) : null;
    if (behind) return behind;
    return before ? { mac: before } : { why: "its MAC is not known yet" };
  }

  /** As the neighbour table has it. */
  #resolved(address: string, zone: number, named: Tap | undefined): Buffer | null {
    const taps = named ? [named] : this.#facts.taps.filter((tap) => tap.zone === zone);
    const stack = new Set(taps.flatMap((tap) => tap.stack));
    const found = (this.#byAddress().get(addressKey(address)) ?? [])
      .filter(({ ifindex, mac, state }) => stack.has(ifindex) && mac !== null && KNOWN_STATES.includes(state))
      .sort((a, b) => KNOWN_STATES.indexOf(a.state) - KNOWN_STATES.indexOf(b.state));
    const mac = found[0] && parseMac(found[0].mac!);
    return mac && !isZero(mac) ? mac : null;
  }

  /** Who is behind a tap, if that is one VM; null if nobody is known to be. */
  #behind(tap: Tap): { mac: Buffer } | { why: string } | null {
    const { firstVm, link, zone, hostMac } = tap;
    if (firstVm && !this.#given.has(vmKeyOf(zone, firstVm))) return { mac: firstVm };
    const fdb = this.#fdbByPort().get(link.ifindex) ?? [];
    const macs = vmMacs(link, hostMac, fdb, this.#byInterface().get(link.ifindex) ?? [])
      .map((mac) => parseMac(mac)!)
      .filter((mac) => !this.#given.has(vmKeyOf(zone, mac)));
    if (macs.length > 1) {
      const list = macs.slice(0, 3).map((mac) => formatMac(mac));
      return { why: `${list.join(", ")} are behind ${link.name}: give it its mac` };
    }
    return macs[0] ? { mac: macs[0] } : null;
  }

  #namedTap(name: string, zone: number, named: Tap | undefined, mac: Buffer | null): Partial<VmPlace> {
    const seen = mac === null ? undefined : this.#seenOn(zone, mac);
    if (named) {
      if (seen === undefined || seen === named) return { tap: named };
      return {
        tap: named,
        warnings: [`its MAC ${formatMac(mac!)} is seen on ${seen.link.name}, not on ${name}`],
      };
    }
    const why = `${name} is not attached as a tap in zone ${zone}`;
    return seen ? { tap: seen, warnings: [`${why}; it is seen on ${seen.link.name}`] } : { why };
  }

  /** Where the hot path saw it, else behind which bridge port it is, else the tap that libvirt made for it. */
  #tapOf(zone: number, mac: Buffer | null): Partial<VmPlace> {
    if (mac === null) return {};
    const text = formatMac(mac);
    const seen = this.#seenOn(zone, mac);
    if (seen) return { tap: seen };
    const taps = this.#facts.taps.filter((tap) => tap.zone === zone);
    const ports = new Set(
      (this.#fdbByMac().get(text) ?? []).filter(({ local }) => !local).map(({ ifindex }) => ifindex),
    );
    const guest = `fe${text.slice(2)}`;
    const isNeighbour = ({ ifindex, state, mac: its }: Neighbour, { link }: Tap): boolean =>
      ifindex === link.ifindex && its === text && KNOWN_STATES.includes(state);
    const levels: ((tap: Tap) => boolean)[] = [
      ({ link }) => ports.has(link.ifindex),
      ({ link }) => link.mac === guest,
      (tap) => (this.#byInterface().get(tap.link.ifindex) ?? []).some((one) => isNeighbour(one, tap)),
    ];
    for (const isThere of levels) {
      const found = taps.filter(isThere);
      if (found.length > 1) {
        return {
          why: `${text} is on ${found.map(({ link }) => link.name).join(" and on ")}: give it its tap`,
        };
      }
      if (found[0]) return { tap: found[0] };
    }
    return { why: `${text} is on no attached tap in zone ${zone}` };
  }

  #seenOn(zone: number, mac: Buffer): Tap | undefined {
    const seen = this.#facts.seen.get(vmKeyOf(zone, mac));
    const tap = seen && this.#byIndex.get(seen.ifindex);
    return tap?.zone === zone ? tap : undefined;
  }
}

/** Built at the first question only. */
function grouped<K, T>(read: () => readonly T[], keyOf: (item: T) => K): () => Map<K, T[]> {
  let groups: Map<K, T[]> | undefined;
  return () => {
    if (groups) return groups;
    groups = new Map();
    for (const item of read()) append(groups, keyOf(item), item);
    return groups;
  };
}
