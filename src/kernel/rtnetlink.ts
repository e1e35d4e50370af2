// SPDX-License-Identifier: Apache-2.0
// What rtnetlink says about links, addresses, neighbours, routes, qdiscs and filters: bytes to values.
// Pure, so that events can be decoded by the same functions as dumps.

import { formatAddress, formatMac, parseAddress, parseMac } from "../addresses.ts";
import {
  type Attributes,
  attributeText,
  decodeAttributes,
  encodeMessage,
  type NetlinkAttribute,
  NLM_F_ACK,
  NLM_F_CREATE,
  NLM_F_DUMP,
  NLM_F_REPLACE,
  NLM_F_REQUEST,
} from "./netlinkMessage.ts";

export const RTM_NEWLINK = 16;
export const RTM_DELLINK = 17;
const RTM_GETLINK = 18;
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

const IFF_UP = 0x1;
const IFF_LOOPBACK = 0x8;
const IFF_RUNNING = 0x40;
const ARPHRD_ETHER = 1;
const ARPHRD_LOOPBACK = 772;

const IFLA_ADDRESS = 1;
const IFLA_IFNAME = 3;
const IFLA_MTU = 4;
const IFLA_LINK = 5;
const IFLA_MASTER = 10;
const IFLA_LINKINFO = 18;
const IFLA_EXT_MASK = 29;
const IFLA_NUM_TX_QUEUES = 31;
const IFLA_LINK_NETNSID = 37;
const IFLA_XDP = 43;
const IFLA_PARENT_DEV_NAME = 56;
const IFLA_INFO_KIND = 1;
const IFLA_INFO_DATA = 2;
const IFLA_INFO_SLAVE_KIND = 4;
const IFLA_INFO_SLAVE_DATA = 5;
const IFLA_VLAN_ID = 1;
const IFLA_BR_FORWARD_DELAY = 1;
const IFLA_BR_AGEING_TIME = 4;
const IFLA_BR_STP_STATE = 5;
/** Ticks of the times that bridges are given in: USER_HZ. */
const BRIDGE_TICKS_PER_SECOND = 100;
const IFLA_BRPORT_STATE = 1;
const IFLA_XDP_ATTACHED = 2;
const IFLA_XDP_PROG_ID = 4;
const RTEXT_FILTER_SKIP_STATS = 8;

const IFA_ADDRESS = 1;
const IFA_LOCAL = 2;

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

export type PortState = "disabled" | "listening" | "learning" | "forwarding" | "blocking";
const PORT_STATES: readonly PortState[] = ["disabled", "listening", "learning", "forwarding", "blocking"];

export type XdpMode = "native" | "generic" | "offload" | "multi";
const XDP_MODES: readonly (XdpMode | null)[] = [null, "native", "generic", "offload", "multi"];

export interface Link {
  ifindex: number;
  name: string;
  /** Lower case; null on a link without Ethernet addresses. */
  mac: string | null;
  mtu: number;
  /** Whether its frames begin with an Ethernet header. */
  ethernet: boolean;
  flags: { up: boolean; running: boolean; loopback: boolean };
  /** `veth`, `tun`, `bridge`, `bond`, `vlan`, …; null for hardware and others without a kind. */
  kind: string | null;
  /** The ifindex of the interface that it is on top of (VLAN) or paired with (veth). */
  lower: number | null;
  /** The ifindex of the bridge or bond that it belongs to. */
  master: number | null;
  masterKind: string | null;
  /** The bus device behind it: it is hardware, or looks like it to the kernel. */
  parentDevice: string | null;
  /** As a bridge port. */
  portState: PortState | null;
  /** The netns id where its peer or lower link lives, if not here. */
  linkNetns: number | null;
  xdp: { mode: XdpMode; programId: number | null } | null;
  txQueues: number | null;
  /** Of a VLAN interface. */
  vlanId?: number;
}

export interface Address {
  ifindex: number;
  family: 4 | 6;
  address: string;
  prefixLength: number;
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

export interface Bridge {
  ifindex: number;
  /** After so long without a frame an address is forgotten; 0: at once. */
  ageingSeconds: number;
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

const u32 = (attributes: Attributes, type: number): number | null =>
  attributes.get(type)?.readUInt32LE(0) ?? null;

const text = (attributes: Attributes, type: number): string | null => {
  const value = attributes.get(type);
  return value ? attributeText(value) : null;
};

const nested = (attributes: Attributes, type: number): Attributes =>
  decodeAttributes(attributes.get(type) ?? Buffer.alloc(0));

function macOf(attributes: Attributes, type: number): string | null {
  const value = attributes.get(type);
  return value?.length === 6 ? formatMac(value) : null;
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

// Links

export function linkRequest(sequence: number, which: { ifindex: number } | { name: string } | "all"): Buffer {
  const header = Buffer.alloc(16);
  const attributes: NetlinkAttribute[] = [{ type: IFLA_EXT_MASK, value: RTEXT_FILTER_SKIP_STATS }];
  if (which === "all")
    return encodeMessage(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, sequence, header, attributes);
  if ("ifindex" in which) header.writeInt32LE(which.ifindex, 4);
  else attributes.push({ type: IFLA_IFNAME, value: which.name });
  return encodeMessage(RTM_GETLINK, NLM_F_REQUEST, sequence, header, attributes);
}

export function decodeLink(payload: Buffer): Link {
  const hardwareType = payload.readUInt16LE(2);
  const flags = payload.readUInt32LE(8);
  const attributes = decodeAttributes(payload.subarray(16));
  const info = nested(attributes, IFLA_LINKINFO);
  const masterKind = text(info, IFLA_INFO_SLAVE_KIND);
  const port = masterKind === "bridge" ? nested(info, IFLA_INFO_SLAVE_DATA) : null;
  const kind = text(info, IFLA_INFO_KIND);
  const vlanId =
    kind === "vlan" ? nested(info, IFLA_INFO_DATA).get(IFLA_VLAN_ID)?.readUInt16LE(0) : undefined;
  return {
    ifindex: payload.readInt32LE(4),
    name: text(attributes, IFLA_IFNAME) ?? "",
    mac: macOf(attributes, IFLA_ADDRESS),
    mtu: u32(attributes, IFLA_MTU) ?? 0,
    ethernet: hardwareType === ARPHRD_ETHER || hardwareType === ARPHRD_LOOPBACK,
    flags: {
      up: (flags & IFF_UP) !== 0,
      running: (flags & IFF_RUNNING) !== 0,
      loopback: (flags & IFF_LOOPBACK) !== 0,
    },
    kind,
    lower: u32(attributes, IFLA_LINK),
    master: u32(attributes, IFLA_MASTER),
    masterKind,
    parentDevice: text(attributes, IFLA_PARENT_DEV_NAME),
    portState: PORT_STATES[port?.get(IFLA_BRPORT_STATE)?.readUInt8(0) ?? -1] ?? null,
    linkNetns: attributes.get(IFLA_LINK_NETNSID)?.readInt32LE(0) ?? null,
    xdp: decodeXdp(nested(attributes, IFLA_XDP)),
    txQueues: u32(attributes, IFLA_NUM_TX_QUEUES),
    ...(kind === "vlan" && vlanId !== undefined && { vlanId }),
  };
}

/** Null for a link that is no bridge. */
export function decodeBridge(payload: Buffer): Bridge | null {
  const info = nested(decodeAttributes(payload.subarray(16)), IFLA_LINKINFO);
  if (text(info, IFLA_INFO_KIND) !== "bridge") return null;
  const data = nested(info, IFLA_INFO_DATA);
  const ageing = u32(data, IFLA_BR_AGEING_TIME);
  if (ageing === null) return null;
  // When spanning tree has found another topology, addresses age by this for a while (br_fdb.c, hold_time).
  const stp = (u32(data, IFLA_BR_STP_STATE) ?? 0) !== 0;
  const forwardDelay = u32(data, IFLA_BR_FORWARD_DELAY) ?? ageing;
  const shortest = stp ? Math.min(ageing, forwardDelay) : ageing;
  return { ifindex: payload.readInt32LE(4), ageingSeconds: shortest / BRIDGE_TICKS_PER_SECOND };
}

function decodeXdp(xdp: Attributes): Link["xdp"] {
  const mode = XDP_MODES[xdp.get(IFLA_XDP_ATTACHED)?.readUInt8(0) ?? 0] ?? null;
  return mode ? { mode, programId: u32(xdp, IFLA_XDP_PROG_ID) } : null;
}

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
  return { ifindex: payload.readUInt32LE(4), family, address, prefixLength: payload.readUInt8(1) };
}

// Neighbours and bridge forwarding entries

export function neighboursRequest(sequence: number): Buffer {
  return encodeMessage(RTM_GETNEIGH, NLM_F_REQUEST | NLM_F_DUMP, sequence, Buffer.alloc(12));
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
