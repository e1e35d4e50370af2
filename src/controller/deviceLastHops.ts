// SPDX-License-Identifier: Apache-2.0
/*
 * The last hops of devices: what the operator said of a device becomes records, keys and aliases.
 *
 * What is behind a device's VTEPs is its own too. On a VXLAN device with one VNI the forwarding table says so; such a
 * MAC is entered like one that was given, and when the table forgets it, it stays as a learned one does: until no
 * flow uses it. On a shared device the tunnel key of the last hop says so.
 *
 * For each uplink where a device may be and each of its MACs there is a key; it leads to a record with that MAC, or
 * with the one that the device is answered at. A last hop that the programs learned before is taken over, so its
 * flows stay. When a MAC is no longer the device's, its key goes, and its record stands for one that is: the flows
 * that name it follow by one write of its alias.
 *
 * Everything is made before something leads to it, so packets see either the old or the new, whenever this ends.
 */

import { currentTick, joinLastHop, splitLastHop } from "../abi/codec.ts";
import { ORIGIN } from "../abi/layout.gen.ts";
import { append } from "../append.ts";
import type { Netlink } from "../kernel/netlink.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { vtepKey } from "../kernel/vxlanEntry.ts";
import {
  DeviceReader,
  deviceMacs,
  deviceVteps,
  isFarEnd,
  isZero,
  type NamedDevice,
  NOBODY,
  ownerOf,
  ownership,
  replyMac,
  type Tables,
} from "../tables/index.ts";
import {
  applyStates,
  bestRecord,
  type Fleet,
  inOrder,
  isOn,
  Locator,
  type Member,
  readUplinks,
  type Uplink,
} from "./deviceFleet.ts";
import {
  expectedKeys,
  frameKeyOf,
  isFarEndOf,
  isRecordOf,
  keyId,
  memberOf,
  readMembers,
  tunnelledKey,
  vtepOf,
  type Wanted,
  wantedRecord,
} from "./deviceRecords.ts";
import { isInUse, isTunnelled, keyOfRecord, type LastHopKey } from "./lastHopSurvey.ts";
import type { Pieces } from "./pieces.ts";
import {
  entered,
  KernelVteps,
  placeVteps,
  type VtepMac,
  type VtepPlaces,
  type VtepSource,
} from "./vtepMacs.ts";

/** Devices or last hops between two pauses. */
const SEVERAL = 64;

export interface Settled {
  fleet: Fleet;
  /** What was done, for the log. */
  lines: string[];
}

export interface SettleAround {
  tables: Tables;
  netlink: Netlink;
  /** Of whoever settles often. */
  reader?: DeviceReader;
  /** Of whoever follows the forwarding tables; else they are read. */
  vteps?: VtepSource;
}

/** Idempotent. `moves`: MACs that a device had, and the ones that it has instead. */
export function* settle(
  around: SettleAround,
  moves: ReadonlyMap<string, Buffer> = new Map(),
): Pieces<Settled> {
  if (around.vteps) return yield* settleWith(around, around.vteps, moves);
  const vteps = new KernelVteps();
  try {
    return yield* settleWith(around, vteps, moves);
  } finally {
    vteps.close();
  }
}

function* settleWith(
  { tables, netlink, reader = new DeviceReader(tables.devices) }: SettleAround,
  source: VtepSource,
  moves: ReadonlyMap<string, Buffer>,
): Pieces<Settled> {
  const devices = inOrder(reader.read());
  const links = netlink.links();
  const uplinks = readUplinks(tables, links);
  const places = yield* placeVteps({ devices, uplinks, links, source });
  const fleet: Fleet = {
    devices: new Map(devices.map((device) => [device.id, device])),
    uplinks,
    members: yield* readMembers(tables, devices, uplinks, places),
    current: new Map(),
    homes: new Map(),
    behindVteps: new Set(),
  };
  const settlement = new Settlement(tables, fleet, links, { places, source, moves });
  yield* settlement.dismiss();
  yield* settlement.enter();
  yield* settlement.enterVteps();
  yield* settlement.adopt();
  yield* settlement.keepSilent();
  yield* settlement.dropOldKeys();
  yield* settlement.findHomes(new Locator(netlink, fleet));
  const written = applyStates(tables, netlink, fleet);
  return { fleet, lines: settlement.lines(written) };
}

interface Counts {
  made: number;
  adopted: number;
  lacking: number;
}

function* inTurn<T>(items: Iterable<T>, work: (item: T) => void): Pieces<void> {
  let count = 0;
  for (const item of items) {
    work(item);
    if (++count % SEVERAL === 0) yield;
  }
}

interface Ensure {
  /** Of the record; the device's own if left out. */
  origin?: number;
  /** Where a forwarding table has the MAC. */
  vtep?: Buffer;
  /** With which replies are sent to it, of a tunnelled key. */
  vni?: number;
}

interface SettleBy {
  places: VtepPlaces;
  source: VtepSource;
  moves: ReadonlyMap<string, Buffer>;
}

class Settlement {
  readonly #tables: Tables;
  readonly #fleet: Fleet;
  readonly #by: SettleBy;
  /** Interfaces of this host. */
  readonly #links: ReadonlySet<number>;
  /** Whose each key is. */
  readonly #claims = new Map<string, bigint>();
  readonly #counts = new Map<string, Counts>();
  /** Of each device. */
  readonly #macs: ReadonlyMap<bigint, Buffer[]>;
  readonly #byMac = new Map<string, NamedDevice[]>();
  readonly #byRecord = new Map<string, Member[]>();

  constructor(tables: Tables, fleet: Fleet, links: readonly Link[], by: SettleBy) {
    this.#tables = tables;
    this.#fleet = fleet;
    this.#by = by;
    this.#links = new Set(links.map(({ ifindex }) => ifindex));
    this.#macs = new Map([...fleet.devices.values()].map(({ id, device }) => [id, deviceMacs(device)]));
    for (const owner of fleet.devices.values()) {
      for (const mac of this.#macs.get(owner.id)!) append(this.#byMac, mac.toString("hex"), owner);
    }
    for (const member of fleet.members.values())
      append(this.#byRecord, keyId(keyOfRecord(member.record)), member);
  }

  /** The last hops of devices that are no longer: as if they had been learned. */
  dismiss(): Pieces<void> {
    return inTurn(this.#fleet.members.values(), (member) => {
      if (member.owner !== NOBODY && !this.#fleet.devices.has(member.owner)) this.#dismiss(member);
    });
  }

  /** Keys and records for each MAC on each uplink where the device may be. */
  enter(): Pieces<void> {
    return inTurn(this.#fleet.devices.values(), (owner) => {
      for (const uplink of this.#fleet.uplinks.values()) {
        if (!isOn(owner.device, uplink)) continue;
        for (const key of expectedKeys(owner.device, this.#macs.get(owner.id)!, uplink)) {
          this.#ensure(owner, uplink, key);
        }
      }
    });
  }

  /** The same for what is behind its VTEPs. */
  enterVteps(): Pieces<void> {
    return inTurn(entered(this.#by.places), ([ifindex, placed]) => {
      const uplink = this.#fleet.uplinks.get(ifindex)!;
      const { owner, mac: own, vtep } = placed;
      if (this.#isLeft(placed, uplink)) return;
      const key = frameKeyOf(uplink, own, owner.device.tags);
      const index =
        placed.vni === null
          ? this.#ensure(owner, uplink, key, { vtep })
          : this.#ensure(owner, uplink, tunnelledKey(key, vtep, placed.vni.source), { vni: placed.vni.sent });
      if (index !== undefined) this.#fleet.behindVteps.add(index);
    });
  }

  /** Learned ones with a device's MAC and other tags are the device's too, and all of its far end's and its VTEPs'. */
  adopt(): Pieces<void> {
    return inTurn([...this.#fleet.members.values()], (member) => {
      for (const key of [...member.keys]) {
        if (this.#claims.has(keyId(key))) continue;
        const uplink = this.#fleet.uplinks.get(key.ifindex);
        const owner = uplink && this.#ownerOnWire(uplink, key);
        if (owner) this.#ensure(owner, uplink, key, { origin: ORIGIN.LEARNED });
      }
    });
  }

  /**
   * A MAC that the forwarding table no longer has: nothing was heard of it for some time, which is no reason to send
   * its flows elsewhere. One that is behind the VTEP of nobody, or that the operator took back, is the device's no more.
   */
  keepSilent(): Pieces<void> {
    return inTurn([...this.#fleet.members.values()], (member) => {
      const owner = this.#fleet.devices.get(member.owner);
      const noted = vtepOf(member);
      if (!owner || noted === null) return;
      for (const key of [...member.keys]) {
        const uplink = this.#fleet.uplinks.get(key.ifindex);
        const vxlans = this.#by.places.vxlans.get(key.ifindex);
        if (!uplink || !vxlans || this.#claims.has(keyId(key))) continue;
        if (this.#by.places.owner(key.ifindex, vtepKey(noted)) !== owner) continue;
        const own = key.mac.toString("hex");
        if (this.#by.moves.has(own) || vxlans.some((one) => this.#by.source.isWithdrawn(one, own))) continue;
        const now = vxlans
          .map((one) => this.#by.source.find(one, own)?.vtep ?? null)
          .find((one) => one !== null);
        const isAway = now !== undefined && this.#by.places.owner(key.ifindex, now) !== owner;
        if (isAway) {
          this.#dismiss(member);
          return;
        }
        this.#ensure(owner, uplink, key, { origin: ORIGIN.LEARNED, vtep: noted });
      }
    });
  }

  /** Where a device no longer is, or under a MAC that is no longer its own. */
  dropOldKeys(): Pieces<void> {
    return inTurn(this.#fleet.members.values(), (member) => {
      if (!this.#fleet.devices.has(member.owner)) return;
      for (const key of [...member.keys]) {
        // One that is detached, or gone for the moment, may return.
        const isHere = this.#fleet.uplinks.has(key.ifindex) || !this.#links.has(key.ifindex);
        if (isHere && this.#claims.get(keyId(key)) !== member.owner) this.#dropKey(member, key);
      }
    });
  }

  /** Each that no key leads to stands for one of its device's that are right. */
  findHomes(locator: Locator): Pieces<void> {
    const current = new Set([...this.#fleet.current.values()].flatMap((own) => [...own]));
    return inTurn(this.#fleet.members.values(), (member) => {
      if (!this.#fleet.devices.has(member.owner)) return;
      const home = current.has(member.index) ? member : this.#home(member, current, locator);
      this.#fleet.homes.set(member.index, home.index);
      const successor = home === member ? 0 : joinLastHop(home.record.generation, home.index);
      this.#label(member, member.owner, member.record.origin, successor);
    });
  }

  lines(written: ReadonlyMap<string, number>): string[] {
    const lines: string[] = [];
    for (const [name, { made, adopted, lacking }] of this.#counts) {
      if (made > 0) lines.push(`device ${name}: ${plural(made, "last hop")} entered`);
      if (adopted > 0) lines.push(`device ${name}: ${plural(adopted, "last hop")} taken over`);
      if (lacking > 0) lines.push(`device ${name}: no room for ${plural(lacking, "last hop")}`);
    }
    for (const [name, count] of written)
      lines.push(`device ${name}: flows of ${plural(count, "last hop")} moved`);
    return lines;
  }

  #home(member: Member, current: ReadonlySet<number>, locator: Locator): Member {
    const moved = this.#by.moves.get(member.record.mac.toString("hex"));
    const candidates = [...(this.#fleet.current.get(member.owner) ?? [])].map(
      (index) => this.#fleet.members.get(index)!,
    );
    const toMoved = moved && candidates.filter(({ record }) => record.mac.equals(moved));
    if (toMoved && toMoved.length > 0) {
      const among = {
        ...this.#fleet,
        current: new Map([[member.owner, new Set(toMoved.map(({ index }) => index))]]),
      };
      return bestRecord(this.#tables, among, locator, member.owner, member)!;
    }
    const { generation, index } = splitLastHop(member.record.successor);
    const successor = this.#fleet.members.get(index);
    const stands = successor?.record.generation === generation && successor.owner === member.owner;
    if (stands && current.has(index)) return successor;
    // Where it was, as far as is known: what it does there is for on_down to say.
    if (!this.#fleet.uplinks.has(member.record.ifindex) && this.#isOwn(member)) return member;
    return bestRecord(this.#tables, this.#fleet, locator, member.owner, member) ?? member;
  }

  /** Whether its MAC is still one that the device is answered at. */
  #isOwn({ owner, record }: Member): boolean {
    const { device } = this.#fleet.devices.get(owner)!;
    const reply = replyMac(device);
    if (isFarEnd(device)) return isZero(record.mac);
    if (reply) return reply.equals(record.mac);
    const noted = vtepOf({ record });
    return (
      this.#macs.get(owner)!.some((own) => own.equals(record.mac)) ||
      (noted !== null && deviceVteps(device).some((vtep) => vtep.equals(noted)))
    );
  }

  /** On a shared device the VTEP says whose a frame is, and MACs only of devices without VTEPs. */
  #ownerOnWire(uplink: Uplink, key: LastHopKey): NamedDevice | undefined {
    if (uplink.bare) {
      return [...this.#fleet.devices.values()].find(({ device }) => isFarEndOf(device, uplink));
    }
    const { places, moves } = this.#by;
    const hex = key.mac.toString("hex");
    const byVtep = isTunnelled(key) ? places.owner(uplink.ifindex, vtepKey(key.tunnel_remote)) : undefined;
    if (byVtep) return byVtep;
    const given = this.#byMac.get(hex)?.find(({ device }) => {
      return isOn(device, uplink) && !(isTunnelled(key) && deviceVteps(device).length > 0);
    });
    if (given || isTunnelled(key) || moves.has(hex)) return given;
    return places.byUplink.get(uplink.ifindex)?.get(hex)?.[0]?.owner;
  }

  /**
   * The device's addresses have left this MAC for another, and no frame has come from it since: that the forwarding
   * table has it for some time yet says nothing.
   */
  #isLeft({ owner, mac: own, vni }: VtepMac, uplink: Uplink): boolean {
    if (this.#by.moves.has(own.toString("hex"))) return true;
    const key = frameKeyOf(uplink, own, owner.device.tags);
    if (vni !== null || this.#tables.lastHops.keys.get(key) !== undefined) return false;
    const before = this.#byRecord.get(keyId(key))?.find((member) => member.owner === owner.id);
    const after = before && this.#successor(before);
    return after !== undefined && this.#macs.get(owner.id)!.some((one) => one.equals(after.record.mac));
  }

  #successor({ record }: Member): Member | undefined {
    const { generation, index } = splitLastHop(record.successor);
    const successor = generation === 0 ? undefined : this.#member(index);
    return successor?.record.generation === generation ? successor : undefined;
  }

  /** Returns the index that the key leads to; undefined if it is another's, or there is no room. */
  #ensure(owner: NamedDevice, uplink: Uplink, key: LastHopKey, more: Ensure = {}): number | undefined {
    const id = keyId(key);
    if (this.#claims.has(id)) return undefined;
    const { origin = owner.device.origin, vtep } = more;
    const index = this.#tables.lastHops.keys.get(key);
    const present = index === undefined ? undefined : this.#member(index);
    const target = uplink.bare ? key.mac : (replyMac(owner.device) ?? key.mac);
    const wanted = wantedRecord(uplink, key, target, present?.record, more.vni);
    const record =
      present && isRecordOf(present, wanted, uplink)
        ? present
        : (this.#find(owner, uplink, wanted) ?? this.#make(owner, wanted, origin));
    if (!record) return undefined;
    this.#claims.set(id, owner.id);
    if (present !== record) {
      this.#tables.lastHops.keys.set(key, record.index);
      if (present) present.keys = present.keys.filter((other) => keyId(other) !== id);
      record.keys.push(key);
      // One that the programs made in between was this device's, so its flows follow.
      if (present) this.#own(present, owner, ORIGIN.LEARNED, { instead: record });
    }
    this.#own(record, owner, origin, { vtep });
    const current = this.#fleet.current.get(owner.id);
    if (!current) this.#fleet.current.set(owner.id, new Set([record.index]));
    else current.add(record.index);
    return record.index;
  }

  #member(index: number): Member | undefined {
    const known = this.#fleet.members.get(index);
    if (known) return known;
    const record = this.#tables.lastHops.records.get(index);
    const alias = this.#tables.lastHops.aliases.get(index) ?? 0;
    if (!record || !isInUse(record.kind) || splitLastHop(alias).generation !== record.generation)
      return undefined;
    const member = memberOf(index, record);
    this.#fleet.members.set(index, member);
    return member;
  }

  #find(owner: NamedDevice, uplink: Uplink, wanted: Wanted): Member | undefined {
    return this.#byRecord
      .get(keyId(keyOfRecord(wanted)))
      ?.find((member) => member.owner === owner.id && isRecordOf(member, wanted, uplink));
  }

  #make(owner: NamedDevice, wanted: Wanted, origin: number): Member | undefined {
    const { lastHops } = this.#tables;
    const made = lastHops.create({ ...wanted, origin, created: currentTick(), ...ownership(owner.id) });
    const counts = this.#countsOf(owner);
    if (!made) {
      counts.lacking++;
      return undefined;
    }
    counts.made++;
    const member = memberOf(made.index, lastHops.records.get(made.index)!);
    this.#fleet.members.set(made.index, member);
    append(this.#byRecord, keyId(keyOfRecord(member.record)), member);
    return member;
  }

  /** `instead`: the record that its key leads to now; `vtep`: where a forwarding table has its MAC. */
  #own(
    member: Member,
    owner: NamedDevice,
    origin: number,
    { instead, vtep }: { instead?: Member; vtep?: Buffer | undefined } = {},
  ): void {
    if (member.owner !== owner.id) this.#countsOf(owner).adopted++;
    const successor = instead && joinLastHop(instead.record.generation, instead.index);
    this.#label(member, owner.id, origin, successor ?? member.record.successor, vtep);
  }

  /** Writes what no program reads, if it is not so already. */
  #label(member: Member, owner: bigint, origin: number, successor: number, vtep?: Buffer): void {
    const { record } = member;
    const noted =
      vtep !== undefined && !isTunnelled(record) && !record.encapsulation.tunnel.remote.equals(vtep);
    const isSo = record.origin === origin && ownerOf(record) === owner && record.successor === successor;
    member.owner = owner;
    if (isSo && !noted) return;
    member.record = { ...record, origin, ...ownership(owner, successor) };
    if (noted) {
      const { encapsulation: old } = record;
      member.record.encapsulation = { ...old, tunnel: { ...old.tunnel, remote: vtep } };
    }
    this.#tables.lastHops.records.set(member.index, member.record);
  }

  /** As if it had been learned. */
  #dismiss(member: Member): void {
    for (const key of [...member.keys]) {
      // What led to the reply MAC would go on doing so; and where only devices are learned this is none.
      const asLearned =
        key.mac.equals(member.record.mac) && !this.#fleet.uplinks.get(key.ifindex)?.devicesOnly;
      if (!asLearned) this.#dropKey(member, key);
    }
    this.#label(member, NOBODY, ORIGIN.LEARNED, member.record.successor);
    this.#raise(member);
  }

  #dropKey(member: Member, key: LastHopKey): void {
    this.#tables.lastHops.keys.delete(key);
    member.keys = member.keys.filter((other) => other !== key);
  }

  /** As a learned one: the record that it stands for, itself if none; while that is detached, the VM's own route. */
  #raise(member: Member): void {
    const home = this.#successor(member) ?? member;
    const target = this.#fleet.uplinks.get(home.record.ifindex)?.usable ? home.index : "route";
    this.#tables.lastHops.setAlias(member.index, member.record.generation, target);
  }

  #countsOf({ name }: NamedDevice): Counts {
    const counts = this.#counts.get(name) ?? { made: 0, adopted: 0, lacking: 0 };
    this.#counts.set(name, counts);
    return counts;
  }
}

function plural(count: number, word: string): string {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}
