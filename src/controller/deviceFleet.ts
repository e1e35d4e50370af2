// SPDX-License-Identifier: Apache-2.0
// Devices, the uplinks where they are and their last hops, and which way each last hop's flows are to go.

import { joinLastHop, splitLastHop } from "../abi/codec.ts";
import {
  DEVICE_STATE,
  INTERFACE_FLAG,
  LAST_HOP_DROP,
  LAST_HOP_ROUTE,
  ON_DOWN,
  ROLE,
} from "../abi/layout.gen.ts";
import { formatMac } from "../addresses.ts";
import { matchesGlob } from "../config/parts.ts";
import type { Netlink } from "../kernel/netlink.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import {
  type Device,
  givenMacs,
  type LastHopRecord,
  type NamedDevice,
  type Tables,
} from "../tables/index.ts";
import { readLabelStacks } from "./labelStacks.ts";
import type { LastHopKey } from "./lastHopSurvey.ts";
import type { WayOut } from "./lastHopWay.ts";

export interface Uplink {
  ifindex: number;
  name: string;
  slot: number;
  zone: number;
  /** Where the host's IP stack sees its packets: its bridge, or itself. */
  l3Ifindex: number;
  hostMac: Buffer;
  /** It is there, up, and has a carrier. */
  usable: boolean;
  /** Learns no last hops but devices'. */
  devicesOnly: boolean;
  /** Its packets have no MACs. */
  bare: boolean;
  /** A packet there also shows of which tunnel it is. */
  shared: boolean;
  /** How replies leave by it. */
  way: WayOut;
}

/** A last hop that is a device's. */
export interface Member {
  index: number;
  record: LastHopRecord;
  owner: bigint;
  /** What frames show that lead here. */
  keys: LastHopKey[];
}

export interface Fleet {
  devices: Map<bigint, NamedDevice>;
  /** By ifindex. */
  uplinks: Map<number, Uplink>;
  members: Map<number, Member>;
  /** Of each device, those whose records are right as they are. */
  current: Map<bigint, Set<number>>;
  /** Those whose MACs a forwarding table has behind a device's VTEP. */
  behindVteps: Set<number>;
  /** Of each member, the record that its flows use while nothing is down. */
  homes: Map<number, number>;
}

/** Those with given MACs come first: what an address resolves to may be another device's. Copies, for the fleet. */
export function inOrder(devices: readonly NamedDevice[]): NamedDevice[] {
  const ranked = devices.map((named) => ({ named, rank: givenMacs(named.device).length > 0 ? 0 : 1 }));
  ranked.sort((a, b) => a.rank - b.rank || (a.named.name < b.named.name ? -1 : 1));
  return ranked.map(({ named }) => ({ ...named }));
}

export function readUplinks(tables: Tables, links: readonly Link[]): Map<number, Uplink> {
  const byIndex = new Map(links.map((link) => [link.ifindex, link]));
  const uplinks = new Map<number, Uplink>();
  const labelStacks = readLabelStacks(tables);
  for (const entry of tables.interfaces.list()) {
    if (entry.role !== ROLE.UPLINK) continue;
    const link = byIndex.get(entry.ifindex);
    uplinks.set(entry.ifindex, {
      ifindex: entry.ifindex,
      name: entry.name,
      slot: entry.slot,
      zone: entry.zone,
      l3Ifindex: entry.l3_ifindex,
      hostMac: entry.host_mac,
      usable: isUsable(link) && (entry.flags & INTERFACE_FLAG.GONE) === 0,
      devicesOnly: (entry.flags & INTERFACE_FLAG.LEARN_DEVICES) !== 0,
      bare: (entry.flags & INTERFACE_FLAG.NO_LINK_LAYER) !== 0,
      shared: (entry.flags & INTERFACE_FLAG.TUNNEL_KEY) !== 0,
      way: { flags: entry.flags, mark: entry.mark, labelStacks },
    });
  }
  return uplinks;
}

export function isUsable(link: Link | undefined): boolean {
  return link?.flags.up === true && link.flags.running;
}

/** Whether a device may be behind an uplink. */
export function isOn(device: Device, uplink: Pick<Uplink, "zone" | "name">): boolean {
  if (device.zone !== uplink.zone) return false;
  return device.interface === "" || matchesGlob(device.interface, uplink.name);
}

export function isDown(device: Device): boolean {
  return device.operator_down !== 0 || device.state === DEVICE_STATE.DOWN;
}

export function sameTags(a: LastHopRecord["tags"], b: LastHopRecord["tags"]): boolean {
  return a.every((tag, place) => tag.proto === b[place]!.proto && tag.vid === b[place]!.vid);
}

/** Where a MAC is, as far as the kernel knows. Asked only when there is a choice. */
export class Locator {
  readonly #netlink: Netlink;
  readonly #fleet: Fleet;
  readonly #chosen = new Map<string, Member | undefined>();
  #places: Map<string, Set<number>> | undefined;

  constructor(netlink: Netlink, fleet: Fleet) {
    this.#netlink = netlink;
    this.#fleet = fleet;
  }

  /** Uplinks by ifindex. */
  of(mac: Buffer): ReadonlySet<number> {
    this.#places ??= this.#read();
    return this.#places.get(formatMac(mac)) ?? new Set();
  }

  /** A record once chosen does for all that are alike. */
  once(key: string, choose: () => Member | undefined): Member | undefined {
    if (!this.#chosen.has(key)) this.#chosen.set(key, choose());
    return this.#chosen.get(key);
  }

  #read(): Map<string, Set<number>> {
    const places = new Map<string, Set<number>>();
    const add = (mac: string | null, ifindex: number): void => {
      const uplink = this.#fleet.uplinks.get(ifindex);
      if (mac === null || !uplink) return;
      places.set(mac, (places.get(mac) ?? new Set()).add(ifindex));
    };
    for (const entry of this.#netlink.fdb()) if (!entry.local) add(entry.mac, entry.ifindex);
    // A bridge's neighbour is behind any of its ports.
    for (const { mac, ifindex } of this.#netlink.neighbours()) add(mac, ifindex);
    return places;
  }
}

/**
 * The record of a device that serves best in place of another: with the same tags, on an uplink that is up, where
 * the kernel knows the MAC to be, which was in use last, on the same uplink.
 */
export function bestRecord(
  tables: Tables,
  fleet: Fleet,
  locator: Locator,
  owner: bigint,
  from: Member,
): Member | undefined {
  const candidates = [...(fleet.current.get(owner) ?? [])]
    .filter((index) => index !== from.index)
    .map((index) => fleet.members.get(index)!);
  if (candidates.length < 2) return candidates[0];
  const scored = candidates.map((member) => ({
    member,
    score: scoreOf(tables, fleet, locator, member, from),
  }));
  scored.sort((a, b) => compareScores(b.score, a.score) || a.member.index - b.member.index);
  return scored[0]!.member;
}

function scoreOf(tables: Tables, fleet: Fleet, locator: Locator, member: Member, from: Member): number[] {
  const { record, index } = member;
  return [
    Number(sameTags(record.tags, from.record.tags)),
    Number(fleet.uplinks.get(record.ifindex)?.usable === true),
    Number(fleet.behindVteps.has(index) || locator.of(record.mac).has(record.ifindex)),
    tables.lastHops.traffic(index).last_seen,
    Number(record.ifindex === from.record.ifindex),
  ];
}

function compareScores(a: readonly number[], b: readonly number[]): number {
  const place = a.findIndex((score, at) => score !== b[at]);
  return place < 0 ? 0 : a[place]! - b[place]!;
}

/** The index part that an alias should have; undefined for what is no device's. */
function desiredTarget(
  tables: Tables,
  fleet: Fleet,
  locator: Locator,
  peers: ReadonlyMap<string, NamedDevice>,
  member: Member,
): number | undefined {
  const owner = fleet.devices.get(member.owner);
  if (!owner) return undefined;
  const { device } = owner;
  const home = fleet.members.get(fleet.homes.get(member.index) ?? member.index) ?? member;
  if (device.on_down === ON_DOWN.HOLD) return home.index;
  // One that is not attached leads nowhere either.
  const usable = fleet.uplinks.get(home.record.ifindex)?.usable === true;
  if (!isDown(device) && usable) return home.index;
  if (device.on_down === ON_DOWN.DROP) return LAST_HOP_DROP;
  if (device.on_down !== ON_DOWN.PEER) return LAST_HOP_ROUTE;
  const peer = peers.get(device.peer);
  if (!peer || isDown(peer.device)) return LAST_HOP_ROUTE;
  const { ifindex, tags } = member.record;
  const alike = [peer.id, ifindex, ...tags.flatMap(({ proto, vid }) => [proto, vid])].join();
  const record = locator.once(alike, () => bestRecord(tables, fleet, locator, peer.id, member));
  const there = record && fleet.uplinks.get(record.record.ifindex)?.usable;
  return record && there ? record.index : LAST_HOP_ROUTE;
}

/**
 * Makes every alias of a device's last hops what the device's state asks for, each by one write. Returns those of
 * which devices were written.
 */
export function applyStates(tables: Tables, netlink: Netlink, fleet: Fleet): Map<string, number> {
  const locator = new Locator(netlink, fleet);
  const peers = new Map([...fleet.devices.values()].map((device) => [device.name, device]));
  const written = new Map<string, number>();
  for (const member of fleet.members.values()) {
    const { generation } = member.record;
    const alias = tables.lastHops.aliases.get(member.index) ?? 0;
    // Given back meanwhile.
    if (splitLastHop(alias).generation !== generation) continue;
    const target = desiredTarget(tables, fleet, locator, peers, member);
    if (target === undefined || alias === joinLastHop(generation, target)) continue;
    tables.lastHops.aliases.set(member.index, joinLastHop(generation, target));
    const { name } = fleet.devices.get(member.owner)!;
    written.set(name, (written.get(name) ?? 0) + 1);
  }
  return written;
}
