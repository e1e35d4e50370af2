// SPDX-License-Identifier: Apache-2.0
/*
 * The last hops of devices: what the operator said of a device becomes records, keys and aliases.
 *
 * For each uplink where a device may be and each of its MACs there is a key; it leads to a record with that MAC, or
 * with the one that the device is answered at. A last hop that the programs learned before is taken over, so its
 * flows stay. When a MAC is no longer the device's, its key goes, and its record stands for one that is: the flows
 * that name it follow by one write of its alias.
 *
 * Everything is made before something leads to it, so packets see either the old or the new, whenever this ends.
 */

import { currentTick, decode, joinLastHop, type StructValue, sizeOf, splitLastHop } from "../abi/codec.ts";
import { LAST_HOP, ORIGIN } from "../abi/layout.gen.ts";
import type { Netlink } from "../kernel/netlink.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import {
  DeviceReader,
  deviceMacs,
  type LastHopRecord,
  type NamedDevice,
  NOBODY,
  OWNER_OFFSET,
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
  sameTags,
  type Uplink,
} from "./deviceFleet.ts";
import { isEthernet, keysOf, type LastHopKey, recordPieces } from "./lastHopSurvey.ts";
import type { Pieces } from "./pieces.ts";

type Tags = StructValue<"vlan_tag">[];

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
}

/** Idempotent. `moves`: MACs that a device had, and the ones that it has instead. */
export function* settle(
  { tables, netlink, reader = new DeviceReader(tables.devices) }: SettleAround,
  moves: ReadonlyMap<string, Buffer> = new Map(),
): Pieces<Settled> {
  const devices = inOrder(reader.read());
  const links = netlink.links();
  const fleet: Fleet = {
    devices: new Map(devices.map((device) => [device.id, device])),
    uplinks: readUplinks(tables, links),
    members: yield* readMembers(tables, devices),
    current: new Map(),
    homes: new Map(),
  };
  const settlement = new Settlement(tables, fleet, links);
  yield* settlement.dismiss();
  yield* settlement.enter();
  yield* settlement.adopt();
  yield* settlement.dropOldKeys();
  yield* settlement.findHomes(new Locator(netlink, fleet), moves);
  const written = applyStates(tables, netlink, fleet);
  return { fleet, lines: settlement.lines(written) };
}

/** Devices or last hops between two pauses. */
const SEVERAL = 64;
const RECORD_BYTES = sizeOf("last_hop");
const { kind, mac } = LAST_HOP.fields;

/** Last hops that belong to a device, or have one of its MACs. */
function* readMembers(tables: Tables, devices: readonly NamedDevice[]): Pieces<Map<number, Member>> {
  const { lastHops } = tables;
  const macs = new Set(
    devices.flatMap(({ device }) => deviceMacs(device)).map((own) => own.readUIntBE(0, 6)),
  );
  const members = new Map<number, Member>();
  let taken = 0;
  for (const { first, count, values } of recordPieces(lastHops)) {
    for (let place = 0; place < count; place++) {
      const at = place * RECORD_BYTES;
      if (!isEthernet(values[at + kind.offset])) continue;
      const owned =
        values.readUInt32LE(at + OWNER_OFFSET) !== 0 || values.readUInt32LE(at + OWNER_OFFSET + 4) !== 0;
      if (!owned && !macs.has(values.readUIntBE(at + mac.offset, 6))) continue;
      const member = memberOf(first + place, decode("last_hop", values, at));
      // One that is being made or given back has no alias.
      const alias = lastHops.aliases.get(member.index) ?? 0;
      if (splitLastHop(alias).generation === member.record.generation) members.set(member.index, member);
      if (++taken % SEVERAL === 0) yield;
    }
    yield;
  }
  const keys = yield* keysOf(lastHops, (index) => members.has(index));
  for (const [index, own] of keys) members.get(index)!.keys = own;
  return members;
}

function memberOf(index: number, record: LastHopRecord): Member {
  return { index, record, owner: ownerOf(record), keys: [] };
}

function keyId({ ifindex, mac, tags }: Pick<LastHopKey, "ifindex" | "mac" | "tags">): string {
  return `${ifindex} ${mac.toString("hex")} ${tags.map(({ proto, vid }) => `${proto}.${vid}`).join(" ")}`;
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

class Settlement {
  readonly #tables: Tables;
  readonly #fleet: Fleet;
  /** Interfaces of this host. */
  readonly #links: ReadonlySet<number>;
  /** Whose each key is. */
  readonly #claims = new Map<string, bigint>();
  readonly #counts = new Map<string, Counts>();
  /** Of each device. */
  readonly #macs: ReadonlyMap<bigint, Buffer[]>;
  readonly #byMac = new Map<string, NamedDevice[]>();
  readonly #byRecord = new Map<string, Member[]>();

  constructor(tables: Tables, fleet: Fleet, links: readonly Link[]) {
    this.#tables = tables;
    this.#fleet = fleet;
    this.#links = new Set(links.map(({ ifindex }) => ifindex));
    this.#macs = new Map([...fleet.devices.values()].map(({ id, device }) => [id, deviceMacs(device)]));
    for (const owner of fleet.devices.values()) {
      for (const mac of this.#macs.get(owner.id)!) append(this.#byMac, mac.toString("hex"), owner);
    }
    for (const member of fleet.members.values()) append(this.#byRecord, keyId(member.record), member);
  }

  /** The last hops of devices that are no longer: as if they had been learned. */
  dismiss(): Pieces<void> {
    return inTurn(this.#fleet.members.values(), (member) => {
      if (member.owner === NOBODY || this.#fleet.devices.has(member.owner)) return;
      for (const key of [...member.keys]) {
        // What led to the reply MAC would go on doing so; and where only devices are learned this is none.
        const asLearned =
          key.mac.equals(member.record.mac) && !this.#fleet.uplinks.get(key.ifindex)?.devicesOnly;
        if (!asLearned) this.#dropKey(member, key);
      }
      this.#label(member, NOBODY, ORIGIN.LEARNED, member.record.successor);
      this.#raise(member);
    });
  }

  /** Keys and records for each MAC on each uplink where the device may be. */
  enter(): Pieces<void> {
    return inTurn(this.#fleet.devices.values(), (owner) => {
      for (const uplink of this.#fleet.uplinks.values()) {
        if (!isOn(owner.device, uplink)) continue;
        for (const own of this.#macs.get(owner.id)!) this.#ensure(owner, uplink, own, owner.device.tags);
      }
    });
  }

  /** Learned ones with a device's MAC and other tags are the device's too. */
  adopt(): Pieces<void> {
    return inTurn([...this.#fleet.members.values()], (member) => {
      for (const key of [...member.keys]) {
        if (this.#claims.has(keyId(key))) continue;
        const uplink = this.#fleet.uplinks.get(key.ifindex);
        const owner = uplink && this.#ownerOnWire(uplink, key.mac);
        if (owner) this.#ensure(owner, uplink, key.mac, key.tags, ORIGIN.LEARNED);
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
  findHomes(locator: Locator, moves: ReadonlyMap<string, Buffer>): Pieces<void> {
    const current = new Set([...this.#fleet.current.values()].flat());
    return inTurn(this.#fleet.members.values(), (member) => {
      if (!this.#fleet.devices.has(member.owner)) return;
      const home = current.has(member.index) ? member : this.#home(member, current, locator, moves);
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

  #home(
    member: Member,
    current: ReadonlySet<number>,
    locator: Locator,
    moves: ReadonlyMap<string, Buffer>,
  ): Member {
    const moved = moves.get(member.record.mac.toString("hex"));
    const candidates = (this.#fleet.current.get(member.owner) ?? []).map(
      (index) => this.#fleet.members.get(index)!,
    );
    const toMoved = moved && candidates.filter(({ record }) => record.mac.equals(moved));
    if (toMoved && toMoved.length > 0) {
      const among = { ...this.#fleet, current: new Map([[member.owner, toMoved.map(({ index }) => index)]]) };
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
    return reply ? reply.equals(record.mac) : this.#macs.get(owner)!.some((own) => own.equals(record.mac));
  }

  #ownerOnWire(uplink: Uplink, own: Buffer): NamedDevice | undefined {
    return this.#byMac.get(own.toString("hex"))?.find(({ device }) => isOn(device, uplink));
  }

  #ensure(
    owner: NamedDevice,
    uplink: Uplink,
    own: Buffer,
    tags: Tags,
    origin: number = owner.device.origin,
  ): void {
    const key: LastHopKey = { ifindex: uplink.ifindex, mac: own, reserved: 0, tags };
    const id = keyId(key);
    if (this.#claims.has(id)) return;
    const target = replyMac(owner.device) ?? own;
    const index = this.#tables.lastHops.keys.get(key);
    const present = index === undefined ? undefined : this.#member(index);
    const record =
      present && isRecordOf(present, uplink, target, tags)
        ? present
        : (this.#find(owner, uplink, target, tags) ?? this.#make(owner, uplink, target, tags, origin));
    if (!record) return;
    this.#claims.set(id, owner.id);
    if (present !== record) {
      this.#tables.lastHops.keys.set(key, record.index);
      if (present) present.keys = present.keys.filter((other) => keyId(other) !== id);
      record.keys.push(key);
      // One that the programs made in between was this device's, so its flows follow.
      if (present) this.#own(present, owner, ORIGIN.LEARNED);
    }
    this.#own(record, owner, origin);
    const current = this.#fleet.current.get(owner.id) ?? [];
    if (!current.includes(record.index)) this.#fleet.current.set(owner.id, [...current, record.index]);
  }

  #member(index: number): Member | undefined {
    const known = this.#fleet.members.get(index);
    if (known) return known;
    const record = this.#tables.lastHops.records.get(index);
    const alias = this.#tables.lastHops.aliases.get(index) ?? 0;
    if (!record || !isEthernet(record.kind) || splitLastHop(alias).generation !== record.generation)
      return undefined;
    const member = memberOf(index, record);
    this.#fleet.members.set(index, member);
    return member;
  }

  #find(owner: NamedDevice, uplink: Uplink, target: Buffer, tags: Tags): Member | undefined {
    return this.#byRecord
      .get(keyId({ ifindex: uplink.ifindex, mac: target, tags }))
      ?.find((member) => member.owner === owner.id && isRecordOf(member, uplink, target, tags));
  }

  #make(owner: NamedDevice, uplink: Uplink, target: Buffer, tags: Tags, origin: number): Member | undefined {
    const { lastHops } = this.#tables;
    const made = lastHops.create({
      origin,
      ifindex: uplink.ifindex,
      slot: uplink.slot,
      mac: target,
      source_mac: uplink.hostMac,
      tags,
      created: currentTick(),
      ...ownership(owner.id),
    });
    const counts = this.#countsOf(owner);
    if (!made) {
      counts.lacking++;
      return undefined;
    }
    counts.made++;
    const member = memberOf(made.index, lastHops.records.get(made.index)!);
    this.#fleet.members.set(made.index, member);
    append(this.#byRecord, keyId(member.record), member);
    return member;
  }

  #own(member: Member, owner: NamedDevice, origin: number): void {
    if (member.owner !== owner.id) this.#countsOf(owner).adopted++;
    this.#label(member, owner.id, origin, member.record.successor);
  }

  /** Writes what no program reads, if it is not so already. */
  #label(member: Member, owner: bigint, origin: number, successor: number): void {
    const { record } = member;
    const isSo = record.origin === origin && ownerOf(record) === owner && record.successor === successor;
    member.owner = owner;
    if (isSo) return;
    member.record = { ...record, origin, ...ownership(owner, successor) };
    this.#tables.lastHops.records.set(member.index, member.record);
  }

  #dropKey(member: Member, key: LastHopKey): void {
    this.#tables.lastHops.keys.delete(key);
    member.keys = member.keys.filter((other) => other !== key);
  }

  /** As a learned one: the record that it stands for, itself if none; while that is detached, the VM's own route. */
  #raise(member: Member): void {
    const { generation, index } = splitLastHop(member.record.successor);
    const successor = generation === 0 ? undefined : this.#member(index);
    const home = successor?.record.generation === generation ? successor : member;
    const target = this.#fleet.uplinks.get(home.record.ifindex)?.usable ? home.index : "route";
    this.#tables.lastHops.setAlias(member.index, member.record.generation, target);
  }

  #countsOf({ name }: NamedDevice): Counts {
    const counts = this.#counts.get(name) ?? { made: 0, adopted: 0, lacking: 0 };
    this.#counts.set(name, counts);
    return counts;
  }
}

function append<K, V>(lists: Map<K, V[]>, key: K, item: V): void {
  const list = lists.get(key);
  if (list) list.push(item);
  else lists.set(key, [item]);
}

function isRecordOf({ record }: Member, uplink: Uplink, target: Buffer, tags: Tags): boolean {
  return (
    record.ifindex === uplink.ifindex &&
    record.slot === uplink.slot &&
    record.mac.equals(target) &&
    record.source_mac.equals(uplink.hostMac) &&
    sameTags(record.tags, tags)
  );
}

function plural(count: number, word: string): string {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}
