// SPDX-License-Identifier: Apache-2.0
// An entry of a VXLAN device's forwarding table: which MAC is behind which tunnel end (VTEP). There may be ten
// thousands, so they are decoded without detours.

import { formatAddress, formatMac } from "../addresses.ts";
import { AF_BRIDGE } from "./rtnetlink.ts";

const NDA_DST = 1;
export const NDA_LLADDR = 2;
export const NDA_VNI = 7;
const NDA_SRC_VNI = 11;
const NDA_NH_ID = 13;
const NUD_NOARP = 0x40;
const NUD_PERMANENT = 0x80;
export const NTF_SELF = 0x02;

export const HEADER_BYTES = 12;
const ATTRIBUTE_HEADER_BYTES = 4;
const ATTRIBUTE_TYPE_MASK = 0x3fff;
const MAPPED_IPV4 = "00000000000000000000ffff";

/** One MAC behind a VXLAN device. MACs and VTEPs are hex digits, for maps; an IPv4 VTEP is mapped into IPv6. */
export interface VxlanEntry {
  /** Of the VXLAN device. */
  ifindex: number;
  mac: string;
  /** Null: the entry names a nexthop group. */
  vtep: string | null;
  nexthop: number | null;
  /** Of a shared device: the VNI of the frames that the entry is for, and with which they are sent if that is another. */
  sourceVni: number | null;
  vni: number | null;
  /** Somebody entered it for good; otherwise it was learned from a frame, and ages. */
  permanent: boolean;
}

/** Null for what is no MAC behind a VTEP: a bridge's entry, a filter of a network card, where floods go, a group. */
export function decodeVxlanEntry(payload: Buffer): VxlanEntry | null {
  if (payload.length < HEADER_BYTES || payload[0] !== AF_BRIDGE || (payload[10]! & NTF_SELF) === 0)
    return null;
  let mac: string | null = null;
  let vtep: string | null = null;
  let nexthop: number | null = null;
  let sourceVni: number | null = null;
  let vni: number | null = null;
  for (let at = HEADER_BYTES; at + ATTRIBUTE_HEADER_BYTES <= payload.length; ) {
    const length = payload.readUInt16LE(at);
    if (length < ATTRIBUTE_HEADER_BYTES || at + length > payload.length) {
      throw new RangeError(`netlink: attribute of ${length} bytes at ${at} of ${payload.length}`);
    }
    const from = at + ATTRIBUTE_HEADER_BYTES;
    const bytes = length - ATTRIBUTE_HEADER_BYTES;
    switch (payload.readUInt16LE(at + 2) & ATTRIBUTE_TYPE_MASK) {
      case NDA_LLADDR:
        if (bytes === 6 && isOfOneCard(payload, from)) mac = payload.toString("hex", from, from + 6);
        break;
      case NDA_DST:
        if (bytes === 4) vtep = MAPPED_IPV4 + payload.toString("hex", from, from + 4);
        else if (bytes === 16) vtep = payload.toString("hex", from, from + 16);
        break;
      case NDA_VNI:
        if (bytes === 4) vni = payload.readUInt32LE(from);
        break;
      case NDA_SRC_VNI:
        if (bytes === 4) sourceVni = payload.readUInt32LE(from);
        break;
      case NDA_NH_ID:
        if (bytes === 4) nexthop = payload.readUInt32LE(from);
        break;
    }
    at += (length + 3) & ~3;
  }
  if (mac === null || (vtep === null && nexthop === null)) return null;
  const permanent = (payload.readUInt16LE(8) & (NUD_NOARP | NUD_PERMANENT)) !== 0;
  return { ifindex: payload.readInt32LE(4), mac, vtep, nexthop, sourceVni, vni, permanent };
}

/** What no bridge has: an entry with a VTEP or a nexthop group, or where frames are flooded. */
export function isOfVxlan(payload: Buffer): boolean {
  if ((payload[10]! & NTF_SELF) === 0) return false;
  for (let at = HEADER_BYTES; at + ATTRIBUTE_HEADER_BYTES <= payload.length; ) {
    const type = payload.readUInt16LE(at + 2) & ATTRIBUTE_TYPE_MASK;
    if (type === NDA_DST || type === NDA_NH_ID) return true;
    at += Math.max((payload.readUInt16LE(at) + 3) & ~3, ATTRIBUTE_HEADER_BYTES);
  }
  return false;
}

/** 00:00:00:00:00:00 is where frames for unknown MACs are flooded. */
function isOfOneCard(payload: Buffer, at: number): boolean {
  if ((payload[at]! & 1) === 1) return false;
  return payload.readUInt16LE(at) !== 0 || payload.readUInt32LE(at + 2) !== 0;
}

export function vtepKey(octets: Buffer): string {
  return octets.toString("hex");
}

export function vtepText(key: string): string {
  const octets = Buffer.from(key, "hex");
  return formatAddress(key.startsWith(MAPPED_IPV4) ? octets.subarray(12) : octets);
}

export function macText(hex: string): string {
  return formatMac(Buffer.from(hex, "hex"));
}
