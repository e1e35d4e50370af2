// SPDX-License-Identifier: Apache-2.0
// Records and keys of devices' last hops: which there are, and what one has to be like.

import { decode, encode, type StructValue, sizeOf, splitLastHop } from "../abi/codec.ts";
import { ENCAPSULATION, ENCAPSULATION_FLAG, LAST_HOP, LAST_HOP_KIND, TUNNEL_KEY } from "../abi/layout.gen.ts";
import { isMappedIpv4, mapIpv4 } from "../addresses.ts";
import {
  type Device,
  deviceMacs,
  isFarEnd,
  isZero,
  type LastHopRecord,
  type NamedDevice,
  OWNER_OFFSET,
  ownerOf,
  type Tables,
} from "../tables/index.ts";
import { isOn, type Member, type Uplink } from "./deviceFleet.ts";
import {
  frameKey,
  isInUse,
  isTunnelled,
  keyOfRecord,
  keysOf,
  type LastHopKey,
  recordPieces,
} from "./lastHopSurvey.ts";
import { isSameWay, type Way, wayOf } from "./lastHopWay.ts";
import type { Pieces } from "./pieces.ts";
import type { VtepPlaces } from "./vtepMacs.ts";

export type Tags = StructValue<"vlan_tag">[];

/** Of the kernel (bpf/encapsulation.h). */
const TUNNEL_FLAG_CSUM = 0x01;
const TUNNEL_FLAG_KEY = 0x04;
/** Between two pauses. */
const SEVERAL = 64;
const RECORD_BYTES = sizeOf("last_hop");
const { kind, mac, ifindex, encapsulated, encapsulation } = LAST_HOP.fields;
const REMOTE_OFFSET =
  encapsulation.offset + ENCAPSULATION.fields.tunnel.offset + TUNNEL_KEY.fields.remote.offset;
const REMOTE_BYTES = TUNNEL_KEY.fields.remote.size;

/** Last hops that belong to a device, have one of its MACs or VTEPs, or are on an interface whose far end one is. */
export function* readMembers(
  tables: Tables,
  devices: readonly NamedDevice[],
  uplinks: ReadonlyMap<number, Uplink>,
  { byUplink, watched }: VtepPlaces,
): Pieces<Map<number, Member>> {
  const { lastHops } = tables;
  const farEnds = new Set(
    [...uplinks.values()]
      .filter((uplink) => devices.some(({ device }) => isFarEndOf(device, uplink)))
      .map((uplink) => uplink.ifindex),
  );
  const macs = new Set(
    devices.flatMap(({ device }) => deviceMacs(device)).map((own) => own.readUIntBE(0, 6)),
  );
  for (const behind of byUplink.values()) {
    for (const hex of behind.keys()) macs.add(Number.parseInt(hex, 16));
    yield;
  }
  const members = new Map<number, Member>();
  let taken = 0;
  for (const { first, count, values } of recordPieces(lastHops)) {
    for (let place = 0; place < count; place++) {
      const at = place * RECORD_BYTES;
      if (!isInUse(values[at + kind.offset])) continue;
      const owned =
        values.readUInt32LE(at + OWNER_OFFSET) !== 0 || values.readUInt32LE(at + OWNER_OFFSET + 4) !== 0;
      const isHere =
        owned ||
        macs.has(values.readUIntBE(at + mac.offset, 6)) ||
        farEnds.has(values.readUInt32LE(at + ifindex.offset)) ||
        isOfVtep(values, at, watched);
      if (!isHere) continue;
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

function isOfVtep(values: Buffer, at: number, watched: ReadonlySet<string>): boolean {
  if (!isTunnelled({ encapsulated: values[at + encapsulated.offset]! })) return false;
  return watched.has(values.toString("hex", at + REMOTE_OFFSET, at + REMOTE_OFFSET + REMOTE_BYTES));
}

export function memberOf(index: number, record: LastHopRecord): Member {
  return { index, record, owner: ownerOf(record), keys: [] };
}

/** For maps: two keys with the same id are the same key. */
export function keyId(key: LastHopKey): string {
  return encode("last_hop_key", key).toString("hex");
}

/** A record as it has to be. */
export type Wanted = Way &
  Pick<
    LastHopRecord,
    "ifindex" | "slot" | "mac" | "source_mac" | "tags" | "encapsulated" | "label_count" | "encapsulation"
  >;

/**
 * For what shows a key and is answered at a MAC. `from`: a record to which the key leads, which knows all of the
 * tunnel; `vni`: with which replies are sent, if no request has told.
 */
export function wantedRecord(
  uplink: Uplink,
  key: LastHopKey,
  mac: Buffer,
  from: LastHopRecord | undefined,
  vni: number | undefined,
): Wanted {
  const { encapsulated, labels, tags, ifindex } = key;
  const way = wayOf({ kind: LAST_HOP_KIND.NONE, mark: from?.mark ?? 0, encapsulated, labels }, uplink.way);
  return {
    ...way,
    ifindex,
    slot: uplink.slot,
    mac,
    source_mac: uplink.hostMac,
    tags,
    encapsulated,
    label_count: from?.label_count ?? 0,
    encapsulation: encapsulated !== 0 && from ? from.encapsulation : encapsulationOf(key, vni),
  };
}

/**
 * The source address of the tunnel is the route's choice, or the device's own; a UDP checksum goes with IPv6, where
 * many take no packet without.
 */
function encapsulationOf(key: LastHopKey, vni = key.tunnel_id): LastHopRecord["encapsulation"] {
  const { encapsulation: none } = decode("last_hop", Buffer.alloc(RECORD_BYTES));
  if (!isTunnelled(key)) return none;
  const isIpv4 = isMappedIpv4(key.tunnel_remote);
  const local = isIpv4 ? mapIpv4(Buffer.alloc(4)) : none.tunnel.local;
  const flags = TUNNEL_FLAG_KEY | (isIpv4 ? 0 : TUNNEL_FLAG_CSUM);
  return { ...none, tunnel: { ...none.tunnel, remote: key.tunnel_remote, local, id: vni, flags } };
}

/** Whether replies that a wanted record is for may go by this one. */
export function isRecordOf({ record }: Member, wanted: Wanted, uplink: Uplink): boolean {
  const { kind, mark, encapsulated: own } = record;
  const way = { kind, mark, encapsulated: own, labels: record.encapsulation.labels };
  return (
    keyId(keyOfRecord(record)) === keyId(keyOfRecord(wanted)) &&
    record.slot === wanted.slot &&
    record.source_mac.equals(wanted.source_mac) &&
    isSameWay(way, wayOf(way, uplink.way))
  );
}

export function frameKeyOf({ ifindex }: Uplink, mac: Buffer, tags: Tags): LastHopKey {
  return { ...frameKey(), ifindex, mac, tags };
}

export function tunnelledKey(key: LastHopKey, remote: Buffer, id: number): LastHopKey {
  return { ...key, encapsulated: ENCAPSULATION_FLAG.TUNNEL, tunnel_remote: remote, tunnel_id: id };
}

/** Whoever is at the other end of this interface. */
export function isFarEndOf(device: Device, uplink: Uplink): boolean {
  return uplink.bare && isFarEnd(device) && isOn(device, uplink);
}

/** What its packets will show there, as far as that can be told before one comes: not of which tunnel they are. */
export function expectedKeys(device: Device, macs: readonly Buffer[], uplink: Uplink): LastHopKey[] {
  if (uplink.shared) return [];
  if (uplink.bare) return isFarEnd(device) ? [{ ...frameKey(), ifindex: uplink.ifindex }] : [];
  return macs.map((mac) => frameKeyOf(uplink, mac, device.tags));
}

/** The VTEP at which a forwarding table had its MAC; null if none did, or the tunnel key says it. */
export function vtepOf({ record }: Pick<Member, "record">): Buffer | null {
  const { remote } = record.encapsulation.tunnel;
  return isTunnelled(record) || isZero(remote) ? null : remote;
}
