// SPDX-License-Identifier: Apache-2.0
// What rtnetlink says about links, addresses, neighbours, routes, qdiscs and filters: bytes to values.
// Pure, so that events can be decoded by the same functions as dumps.

import { formatAddress, parseAddress, parseMac } from "../addresses.ts";
import { macOf } from "./linkMessage.ts";
import {
  type Attributes,
  decodeAttributes,
  encodeMessage,
  type NetlinkAttribute,
  NLM_F_ACK,
  NLM_F_CREATE,
  NLM_F_DUMP,
  NLM_F_REPLACE,
  NLM_F_REQUEST,
  nestedAttributes as nested,
  attributeString as text,
  attributeU32 as u32,
} from "./netlinkMessage.ts";

export * from "./linkMessage.ts";

export const RTM_NEWADDR = 20;
export const RTM_DELADDR = 21;
const RTM_GETADDR = 22;
export const RTM_NEWROUTE = 24;
const RTM_GETROUTE = 26;
export const RTM_NEWNEIGH = 28;
export const RTM_DELNEIGH = 29;
const RTM_GETNEIGH = 30;
export const RTM_NEWQDISC = 36;
const RTM_GETQDISC = 38;
export const RTM_NEWTFILTER = 44;
const RTM_GETTFILTER = 46;

const AF_INET = 2;
export const AF_BRIDGE = 7;
const AF_INET6 = 10;

const IFA_ADDRESS = 1;
const IFA_LOCAL = 2;
/** Of another address of its network; of IPv6, for a while. */
const IFA_F_SECONDARY = 0x01;
const RT_SCOPE_LINK = 253;
const RT_SCOPE_HOST = 254;

const NDA_DST = 1;
const NDA_LLADDR = 2;
const NDA_VLAN = 5;
const NDA_MASTER = 9;
const NUD_REACHABLE = 0x02;
const NUD_PROBE = 0x10;
const NUD_FAILED = 0x20;
const NUD_NOARP = 0x40;
const NUD_PERMANENT = 0x80;
const NTF_USE = 0x01;
const NTF_MASTER = 0x04;
const NTF_EXT_LEARNED = 0x10;

const RTA_DST = 1;
const RTA_SRC = 2;
const RTA_IIF = 3;
const RTA_OIF = 4;
const RTA_GATEWAY = 5;
const RTA_PREFSRC = 7;
const RTA_MARK = 16;
const RTA_VIA = 18;

const TCA_KIND = 1;
const TCA_OPTIONS = 2;
const TCA_BPF_NAME = 7;
const TCA_BPF_ID = 11;

/** Parents of the filters that clsact and ingress qdiscs hold. */
export const TC_PARENT_INGRESS = 0xfffffff2;
export const TC_PARENT_EGRESS = 0xfffffff3;

export interface Address {
  ifindex: number;
  family: 4 | 6;
  address: string;
  prefixLength: number;
  /** Within which it is valid, if that is not everywhere. */
  scope?: "link" | "host";
  secondary?: true;
}

export type NeighbourState =
  | "none"
  | "incomplete"
  | "reachable"
  | "stale"
  | "delay"
  | "probe"
  | "failed"
  | "noarp"
  | "permanent";

const NEIGHBOUR_STATES: ReadonlyMap<number, NeighbourState> = new Map([
  [0x00, "none"],
  [0x01, "incomplete"],
  [0x02, "reachable"],
  [0x04, "stale"],
  [0x08, "delay"],
  [0x10, "probe"],
  [0x20, "failed"],
  [0x40, "noarp"],
  [0x80, "permanent"],
]);

export interface Neighbour {
  ifindex: number;
  family: 4 | 6;
  address: string;
  mac: string | null;
  state: NeighbourState;
}

export interface FdbEntry {
  /** The port. */
  ifindex: number;
  /** The bridge; null for the link's own filter list. */
  master: number | null;
  mac: string;
  vlan: number | null;
  /** The bridge's or port's own address. */
  local: boolean;
  /** The bridge forgets it when it sees no frame from there. */
  ages?: true;
}

export type RouteType =
  | "unicast"
  | "local"
  | "broadcast"
  | "multicast"
  | "blackhole"
  | "unreachable"
  | "prohibit";
const ROUTE_TYPES: ReadonlyMap<number, RouteType> = new Map([
  [1, "unicast"],
  [2, "local"],
  [3, "broadcast"],
  [5, "multicast"],
  [6, "blackhole"],
  [7, "unreachable"],
  [8, "prohibit"],
]);

export interface Route {
  type: RouteType | `type_${number}`;
  outIfindex: number | null;
  gateway: string | null;
  source: string | null;
}

export interface Qdisc {
  ifindex: number;
  kind: string;
  handle: number;
  parent: number;
}

export interface Filter {
  ifindex: number;
  parent: number;
  kind: string;
  priority: number;
  /** Host order, as in ETH_P_ALL. */
  protocol: number;
  handle: number;
  /** Of a bpf filter. */
  programId: number | null;
  name: string | null;
}

function addressOf(attributes: Attributes, type: number): string | null {
  const value = attributes.get(type);
  return value && (value.length === 4 || value.length === 16) ? formatAddress(value) : null;
}

function addressBytes(address: string): Buffer {
  const bytes = parseAddress(address);
  if (!bytes) throw new RangeError(`netlink: not an address: ${address}`);
  return bytes;
}

const familyOf = (value: number): 4 | 6 | null => (value === AF_INET ? 4 : value === AF_INET6 ? 6 : null);

// Addresses

export function addressesRequest(sequence: number): Buffer {
  return encodeMessage(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, sequence, Buffer.alloc(8));
}

export function decodeAddress(payload: Buffer): Address | null {
  const family = familyOf(payload.readUInt8(0));
  const attributes = decodeAttributes(payload.subarray(8));
  // On point-to-point links IFA_ADDRESS is the peer's.
  const address = addressOf(attributes, IFA_LOCAL) ?? addressOf(attributes, IFA_ADDRESS);
  if (!family || !address) return null;
  const scope = payload.readUInt8(3);
  return {
    ifindex: payload.readUInt32LE(4),
    family,
    address,
    prefixLength: payload.readUInt8(1),
    ...(scope >= RT_SCOPE_LINK && { scope: scope >= RT_SCOPE_HOST ? ("host" as const) : ("link" as const) }),
    ...((payload.readUInt8(2) & IFA_F_SECONDARY) !== 0 && { secondary: true as const }),
  };
}

// Neighbours and bridge forwarding entries

export function neighboursRequest(sequence: number): Buffer {
  return encodeMessage(RTM_GETNEIGH, NLM_F_REQUEST | NLM_F_DUMP, sequence, Buffer.alloc(12));
}

/** One entry. */
export function neighbourRequest(sequence: number, ifindex: number, address: string): Buffer {
  const destination = addressBytes(address);
  const header = Buffer.alloc(12);
  header.writeUInt8(destination.length === 4 ? AF_INET : AF_INET6, 0);
  header.writeInt32LE(ifindex, 4);
  return encodeMessage(RTM_GETNEIGH, NLM_F_REQUEST, sequence, header, [
    { type: NDA_DST, value: destination },
  ]);
}

export function decodeNeighbour(payload: Buffer): Neighbour | null {
  const family = familyOf(payload.readUInt8(0));
  const attributes = decodeAttributes(payload.subarray(12));
  const address = addressOf(attributes, NDA_DST);
  if (!family || !address) return null;
  return {
    ifindex: payload.readInt32LE(4),
    family,
    address,
    mac: macOf(attributes, NDA_LLADDR),
    state: NEIGHBOUR_STATES.get(payload.readUInt16LE(8)) ?? "none",
  };
}

export type NeighbourQuestion = "resolve" | "verify" | "forget";

const QUESTIONS: Readonly<Record<NeighbourQuestion, { state: number; flags: number; create: number }>> = {
  resolve: { state: 0, flags: NTF_USE, create: NLM_F_CREATE },
  verify: { state: NUD_PROBE, flags: 0, create: 0 },
  forget: { state: NUD_FAILED, flags: 0, create: 0 },
};

/**
 * Has the kernel find out who has an address. `resolve`: asks everybody unless somebody is known to have it
 * (`ip neigh replace … use`); `verify`: asks the one that is known (`ip neigh change … nud probe`); `forget`: takes
 * nobody to have it, so that the next question goes to everybody (`… nud failed`).
 */
export function askNeighbourRequest(
  sequence: number,
  ifindex: number,
  address: string,
  question: NeighbourQuestion,
): Buffer {
  const { state, flags, create } = QUESTIONS[question];
  const destination = addressBytes(address);
  const header = Buffer.alloc(12);
  header.writeUInt8(destination.length === 4 ? AF_INET : AF_INET6, 0);
  header.writeInt32LE(ifindex, 4);
  header.writeUInt16LE(state, 8);
  header.writeUInt8(flags, 10);
  const messageFlags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE | create;
  return encodeMessage(RTM_NEWNEIGH, messageFlags, sequence, header, [{ type: NDA_DST, value: destination }]);
}

export function fdbRequest(sequence: number): Buffer {
  const header = Buffer.alloc(12);
  header.writeUInt8(AF_BRIDGE, 0);
  return encodeMessage(RTM_GETNEIGH, NLM_F_REQUEST | NLM_F_DUMP, sequence, header);
}

/** The port of an entry, without decoding the rest. */
export function fdbPort(payload: Buffer): number {
  return payload.readInt32LE(4);
}

export function decodeFdbEntry(payload: Buffer): FdbEntry | null {
  const attributes = decodeAttributes(payload.subarray(12));
  const mac = macOf(attributes, NDA_LLADDR);
  if (payload.readUInt8(0) !== AF_BRIDGE || !mac) return null;
  const state = payload.readUInt16LE(8);
  const lasts = (state & (NUD_NOARP | NUD_PERMANENT)) !== 0;
  const external = (payload.readUInt8(10) & NTF_EXT_LEARNED) !== 0;
  return {
    ifindex: payload.readInt32LE(4),
    master: u32(attributes, NDA_MASTER),
    mac,
    vlan: attributes.get(NDA_VLAN)?.readUInt16LE(0) ?? null,
    local: (state & NUD_PERMANENT) !== 0,
    ...(!lasts && !external && { ages: true as const }),
  };
}

/**
 * As if a frame from the address had come in at the port: its entry is as young as if it were new (`bridge fdb
 * replace MAC dev PORT master use`). Without a VLAN in every VLAN of the port.
 */
export function refreshFdbRequest(
  sequence: number,
  { ifindex, mac, vlan }: Pick<FdbEntry, "ifindex" | "mac" | "vlan">,
): Buffer {
  const address = parseMac(mac);
  if (!address) throw new RangeError(`netlink: not a MAC address: ${mac}`);
  const header = Buffer.alloc(12);
  header.writeUInt8(AF_BRIDGE, 0);
  header.writeInt32LE(ifindex, 4);
  header.writeUInt16LE(NUD_REACHABLE, 8);
  header.writeUInt8(NTF_USE | NTF_MASTER, 10);
  const attributes: NetlinkAttribute[] = [{ type: NDA_LLADDR, value: address }];
  if (vlan !== null) {
    const id = Buffer.alloc(2);
    id.writeUInt16LE(vlan);
    attributes.push({ type: NDA_VLAN, value: id });
  }
  const flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
  return encodeMessage(RTM_NEWNEIGH, flags, sequence, header, attributes);
}

// Routes

export interface RouteQuery {
  destination: string;
  source?: string;
  /** As if the packet had come in there; needs a source. */
  inIfindex?: number;
  mark?: number;
}

export function routeRequest(sequence: number, query: RouteQuery): Buffer {
  const destination = addressBytes(query.destination);
  const header = Buffer.alloc(12);
  header.writeUInt8(destination.length === 4 ? AF_INET : AF_INET6, 0);
  header.writeUInt8(destination.length * 8, 1);
  const attributes: NetlinkAttribute[] = [{ type: RTA_DST, value: destination }];
  if (query.source !== undefined) {
    const source = addressBytes(query.source);
    header.writeUInt8(source.length * 8, 2);
    attributes.push({ type: RTA_SRC, value: source });
  }
  if (query.inIfindex !== undefined) attributes.push({ type: RTA_IIF, value: query.inIfindex });
  if (query.mark !== undefined) attributes.push({ type: RTA_MARK, value: query.mark });
  return encodeMessage(RTM_GETROUTE, NLM_F_REQUEST, sequence, header, attributes);
}

export function decodeRoute(payload: Buffer): Route {
  const attributes = decodeAttributes(payload.subarray(12));
  const typeNumber = payload.readUInt8(7);
  const via = attributes.get(RTA_VIA);
  return {
    type: ROUTE_TYPES.get(typeNumber) ?? `type_${typeNumber}`,
    outIfindex: u32(attributes, RTA_OIF),
    // RTA_VIA: an address of the other family, after its two bytes of family.
    gateway: addressOf(attributes, RTA_GATEWAY) ?? (via ? formatAddress(via.subarray(2)) : null),
    source: addressOf(attributes, RTA_PREFSRC),
  };
}

// Traffic control

function trafficControlHeader(ifindex: number, parent: number): Buffer {
  const header = Buffer.alloc(20);
  header.writeInt32LE(ifindex, 4);
  header.writeUInt32LE(parent, 12);
  return header;
}

export function qdiscsRequest(sequence: number): Buffer {
  return encodeMessage(RTM_GETQDISC, NLM_F_REQUEST | NLM_F_DUMP, sequence, trafficControlHeader(0, 0));
}

export function decodeQdisc(payload: Buffer): Qdisc {
  return {
    ifindex: payload.readInt32LE(4),
    handle: payload.readUInt32LE(8),
    parent: payload.readUInt32LE(12),
    kind: text(decodeAttributes(payload.subarray(20)), TCA_KIND) ?? "",
  };
}

export function filtersRequest(sequence: number, ifindex: number, parent: number): Buffer {
  return encodeMessage(
    RTM_GETTFILTER,
    NLM_F_REQUEST | NLM_F_DUMP,
    sequence,
    trafficControlHeader(ifindex, parent),
  );
}

export function decodeFilter(payload: Buffer): Filter {
  const attributes = decodeAttributes(payload.subarray(20));
  const kind = text(attributes, TCA_KIND) ?? "";
  const options = kind === "bpf" ? nested(attributes, TCA_OPTIONS) : new Map();
  const info = payload.readUInt32LE(16);
  return {
    ifindex: payload.readInt32LE(4),
    handle: payload.readUInt32LE(8),
    parent: payload.readUInt32LE(12),
    priority: info >>> 16,
    protocol: ((info & 0xff) << 8) | ((info >>> 8) & 0xff),
    kind,
    programId: u32(options, TCA_BPF_ID),
    name: text(options, TCA_BPF_NAME),
  };
}
