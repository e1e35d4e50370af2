// SPDX-License-Identifier: Apache-2.0
// Makes, changes and removes netdevs, and reads what of them only that needs.

import { ERRNO } from "../libc/errno.ts";
import { type Netlink, NetlinkError } from "./netlink.ts";
import {
  decodeAttributes,
  encodeAttributes,
  encodeMessage,
  type NetlinkAttribute,
  NLM_F_ACK,
  NLM_F_CREATE,
  NLM_F_REQUEST,
} from "./netlinkMessage.ts";
import { RTM_DELLINK, RTM_NEWLINK } from "./rtnetlink.ts";

const RTM_GETLINK = 18;
const RTM_SETLINK = 19;
const NLM_F_EXCL = 0x200;

const AF_INET6 = 10;
const IFF_UP = 0x1;
const IFF_NOARP = 0x80;

const IFLA_ADDRESS = 1;
const IFLA_IFNAME = 3;
const IFLA_MTU = 4;
const IFLA_LINKINFO = 18;
const IFLA_IFALIAS = 20;
const IFLA_STATS64 = 23;
const IFLA_AF_SPEC = 26;
const IFLA_INFO_KIND = 1;
const IFLA_INFO_DATA = 2;
const IFLA_INET6_ADDR_GEN_MODE = 8;
const VETH_INFO_PEER = 1;

const LINK_HEADER_BYTES = 16;

/** What can be set of a netdev; what is left out stays as it is. */
export interface LinkSettings {
  name?: string;
  alias?: string;
  mtu?: number;
  mac?: Buffer;
  up?: boolean;
  noArp?: boolean;
  /** Whether the kernel gives it an IPv6 address of its own making. */
  ipv6LinkLocal?: boolean;
}

export interface NewLink {
  name: string;
  kind: string;
  data?: readonly NetlinkAttribute[];
  mac?: Buffer;
  mtu?: number;
}

export function newLinkRequest(sequence: number, { name, kind, data, mac, mtu }: NewLink): Buffer {
  const flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
  return encodeMessage(RTM_NEWLINK, flags, sequence, Buffer.alloc(LINK_HEADER_BYTES), [
    ...identity(name, mac, mtu),
    {
      type: IFLA_LINKINFO,
      value: [
        { type: IFLA_INFO_KIND, value: kind },
        ...(data === undefined ? [] : [{ type: IFLA_INFO_DATA, value: data }]),
      ],
    },
  ]);
}

function identity(name: string, mac: Buffer | undefined, mtu: number | undefined): NetlinkAttribute[] {
  return [
    { type: IFLA_IFNAME, value: name },
    ...(mac === undefined ? [] : [{ type: IFLA_ADDRESS, value: mac }]),
    ...(mtu === undefined ? [] : [{ type: IFLA_MTU, value: mtu }]),
  ];
}

/** Of the other end of a veth pair. */
export function vethPeer({ name, mac, mtu }: Omit<NewLink, "kind" | "data">): NetlinkAttribute[] {
  const peer = Buffer.concat([Buffer.alloc(LINK_HEADER_BYTES), encodeAttributes(identity(name, mac, mtu))]);
  return [{ type: VETH_INFO_PEER, value: peer }];
}

export function setLinkRequest(sequence: number, ifindex: number, settings: LinkSettings): Buffer {
  const { name, alias, mtu, mac, up, noArp, ipv6LinkLocal } = settings;
  const header = linkHeader(ifindex);
  const flag = (value: boolean | undefined, bit: number): void => {
    if (value === undefined) return;
    header.writeUInt32LE(header.readUInt32LE(8) | (value ? bit : 0), 8);
    header.writeUInt32LE(header.readUInt32LE(12) | bit, 12);
  };
  flag(up, IFF_UP);
  flag(noArp, IFF_NOARP);
  const ipv6 = ipv6LinkLocal === undefined ? [] : [addressGeneration(ipv6LinkLocal)];
  return encodeMessage(RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, sequence, header, [
    ...(name === undefined ? [] : [{ type: IFLA_IFNAME, value: name }]),
    ...(alias === undefined ? [] : [{ type: IFLA_IFALIAS, value: alias }]),
    ...(mtu === undefined ? [] : [{ type: IFLA_MTU, value: mtu }]),
    ...(mac === undefined ? [] : [{ type: IFLA_ADDRESS, value: mac }]),
    ...ipv6,
  ]);
}

/** IN6_ADDR_GEN_MODE_EUI64 or _NONE. */
function addressGeneration(on: boolean): NetlinkAttribute {
  const mode = { type: IFLA_INET6_ADDR_GEN_MODE, value: Buffer.from([on ? 0 : 1]) };
  return { type: IFLA_AF_SPEC, value: [{ type: AF_INET6, value: [mode] }] };
}

function linkHeader(ifindex: number): Buffer {
  const header = Buffer.alloc(LINK_HEADER_BYTES);
  header.writeInt32LE(ifindex, 4);
  return header;
}

/** Returns its ifindex. Throws NetlinkError: EEXIST, EOPNOTSUPP where the kernel has no such driver, … */
export function createLink(netlink: Netlink, link: NewLink): number {
  const what = `make the interface ${link.name} of kind ${link.kind}`;
  netlink.change(what, (sequence) => newLinkRequest(sequence, link));
  const made = netlink.link(link.name);
  if (!made) throw new NetlinkError(what, ERRNO.ENODEV, "it went at once");
  return made.ifindex;
}

/** Throws NetlinkError. */
export function changeLink(netlink: Netlink, ifindex: number, name: string, settings: LinkSettings): void {
  const what = `change the interface ${name}`;
  netlink.change(what, (sequence) => setLinkRequest(sequence, ifindex, settings));
}

/** False if it is gone already. */
export function deleteLink(netlink: Netlink, ifindex: number, name: string): boolean {
  try {
    netlink.change(`remove the interface ${name}`, (sequence) =>
      encodeMessage(RTM_DELLINK, NLM_F_REQUEST | NLM_F_ACK, sequence, linkHeader(ifindex)),
    );
    return true;
  } catch (error) {
    if (error instanceof NetlinkError && error.errno === ERRNO.ENODEV) return false;
    throw error;
  }
}

/** Of a netdev what its maker cares for. */
export interface LinkDetails {
  noArp: boolean;
  /** Null where the kernel has no IPv6 there. */
  ipv6LinkLocal: boolean | null;
  traffic: LinkTraffic;
}

export interface LinkTraffic {
  received_packets: number;
  received_bytes: number;
  sent_packets: number;
  sent_bytes: number;
  received_errors: number;
  sent_errors: number;
}

/** Undefined if it is gone. */
export function linkDetails(netlink: Netlink, ifindex: number): LinkDetails | undefined {
  try {
    const request = (sequence: number) =>
      encodeMessage(RTM_GETLINK, NLM_F_REQUEST, sequence, linkHeader(ifindex));
    return decodeDetails(netlink.ask(`look at interface ${ifindex}`, RTM_NEWLINK, request));
  } catch (error) {
    if (error instanceof NetlinkError && error.errno === ERRNO.ENODEV) return undefined;
    throw error;
  }
}

export function decodeDetails(payload: Buffer): LinkDetails {
  const attributes = decodeAttributes(payload.subarray(LINK_HEADER_BYTES));
  const families = decodeAttributes(attributes.get(IFLA_AF_SPEC) ?? Buffer.alloc(0));
  const ipv6 = decodeAttributes(families.get(AF_INET6) ?? Buffer.alloc(0));
  const mode = ipv6.get(IFLA_INET6_ADDR_GEN_MODE)?.readUInt8(0);
  return {
    noArp: (payload.readUInt32LE(8) & IFF_NOARP) !== 0,
    ipv6LinkLocal: mode === undefined ? null : mode !== 1,
    traffic: decodeTraffic(attributes.get(IFLA_STATS64)),
  };
}

/** struct rtnl_link_stats64 */
function decodeTraffic(stats: Buffer | undefined): LinkTraffic {
  const at = (index: number): number => (stats ? Number(stats.readBigUInt64LE(8 * index)) : 0);
  return {
    received_packets: at(0),
    sent_packets: at(1),
    received_bytes: at(2),
    sent_bytes: at(3),
    received_errors: at(4),
    sent_errors: at(5),
  };
}
