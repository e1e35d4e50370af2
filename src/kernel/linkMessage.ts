// SPDX-License-Identifier: Apache-2.0
// What rtnetlink says about links: bytes to values. Pure.

import { formatMac } from "../addresses.ts";
import { decodeKind, isEthernet, type LinkKindFacts } from "./linkKind.ts";
import {
  type Attributes,
  decodeAttributes,
  encodeMessage,
  type NetlinkAttribute,
  NLM_F_DUMP,
  NLM_F_REQUEST,
  nestedAttributes as nested,
  attributeString as text,
  attributeU32 as u32,
} from "./netlinkMessage.ts";

export const RTM_NEWLINK = 16;
export const RTM_DELLINK = 17;
const RTM_GETLINK = 18;

const IFF_UP = 0x1;
const IFF_LOOPBACK = 0x8;
const IFF_RUNNING = 0x40;

const IFLA_ADDRESS = 1;
const IFLA_IFNAME = 3;
const IFLA_MTU = 4;
const IFLA_LINK = 5;
const IFLA_MASTER = 10;
const IFLA_LINKINFO = 18;
const IFLA_IFALIAS = 20;
const IFLA_EXT_MASK = 29;
const IFLA_NUM_TX_QUEUES = 31;
const IFLA_LINK_NETNSID = 37;
const IFLA_XDP = 43;
const IFLA_PARENT_DEV_NAME = 56;
const IFLA_INFO_KIND = 1;
const IFLA_INFO_DATA = 2;
const IFLA_INFO_SLAVE_KIND = 4;
const IFLA_INFO_SLAVE_DATA = 5;
const IFLA_BR_FORWARD_DELAY = 1;
const IFLA_BR_AGEING_TIME = 4;
const IFLA_BR_STP_STATE = 5;
/** Ticks of the times that bridges are given in: USER_HZ. */
const BRIDGE_TICKS_PER_SECOND = 100;
const IFLA_BRPORT_STATE = 1;
const IFLA_XDP_ATTACHED = 2;
const IFLA_XDP_PROG_ID = 4;
const RTEXT_FILTER_SKIP_STATS = 8;

export type PortState = "disabled" | "listening" | "learning" | "forwarding" | "blocking";
const PORT_STATES: readonly PortState[] = ["disabled", "listening", "learning", "forwarding", "blocking"];

export type XdpMode = "native" | "generic" | "offload" | "multi";
const XDP_MODES: readonly (XdpMode | null)[] = [null, "native", "generic", "offload", "multi"];

export interface Link extends LinkKindFacts {
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
  /** What somebody wrote beside it (`ip link set … alias`). */
  alias?: string;
}

export interface Bridge {
  ifindex: number;
  /** After so long without a frame an address is forgotten; 0: at once. */
  ageingSeconds: number;
}

/** Null for what is no address of Ethernet. */
export function macOf(attributes: Attributes, type: number): string | null {
  const value = attributes.get(type);
  return value?.length === 6 ? formatMac(value) : null;
}

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
  const alias = text(attributes, IFLA_IFALIAS);
  return {
    ifindex: payload.readInt32LE(4),
    name: text(attributes, IFLA_IFNAME) ?? "",
    mac: macOf(attributes, IFLA_ADDRESS),
    mtu: u32(attributes, IFLA_MTU) ?? 0,
    ethernet: isEthernet(hardwareType),
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
    ...(alias !== null && { alias }),
    ...decodeKind(kind, hardwareType, nested(info, IFLA_INFO_DATA)),
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
