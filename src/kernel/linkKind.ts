// SPDX-License-Identifier: Apache-2.0
// What a link's type and the data of its kind say: what its packets begin with, whether many tunnels share it, what
// it is on top of. Pure.

import type { Attributes } from "./netlinkMessage.ts";

const ARPHRD_ETHER = 1;
const ARPHRD_LOOPBACK = 772;
/** Of packets that begin with their IP header (linux/if_arp.h); the kernel takes the Ethernet header off for these. */
const BARE_IP: ReadonlySet<number> = new Set([
  519, // RAWIP
  768, // TUNNEL: ipip, vti
  769, // TUNNEL6: ip6tnl, vti6
  776, // SIT
  778, // IPGRE
  823, // IP6GRE
  0xfffe, // NONE: tun, wireguard, xfrm, shared gre
]);

const IFLA_VLAN_ID = 1;
const IFLA_VLAN_PROTOCOL = 5;
const IFLA_IPVLAN_MODE = 1;
const IPVLAN_MODE_L2 = 0;
const ETH_P_8021Q = 0x8100;

/** IFLA_*_COLLECT_METADATA: where it is a u8 it may be 0, where it is a flag it is there or not. */
const COLLECT_METADATA: Readonly<Record<string, number>> = {
  vxlan: 25,
  geneve: 6,
  gre: 18,
  gretap: 18,
  erspan: 18,
  ip6gre: 18,
  ip6gretap: 18,
  ip6erspan: 18,
  ipip: 19,
  sit: 19,
  ip6tnl: 19,
  xfrm: 3,
};

/** IFLA_*_REMOTE of those that send to nobody without one, unless a route or a tunnel key says to whom. */
const REMOTE: Readonly<Record<string, number>> = {
  gre: 7,
  gretap: 7,
  erspan: 7,
  ip6gre: 7,
  ip6gretap: 7,
  ip6erspan: 7,
  ipip: 3,
  sit: 3,
  ip6tnl: 3,
};

/** What is not said does not hold. */
export interface LinkKindFacts {
  /** Its packets begin with their IP header. */
  bareIp?: true;
  /** Many tunnels share it, and each packet has its tunnel key (`external`, collect metadata). */
  external?: true;
  /** A tunnel without a remote end of its own. */
  anyRemote?: true;
  /** Of a VLAN interface. */
  vlanId?: number;
  /** EtherType of its tag. */
  vlanProtocol?: number;
  /** An ipvlan that routes by itself (mode l3 or l3s). */
  routesItself?: true;
}

/** Whether frames of this hardware type begin with an Ethernet header. */
export function isEthernet(hardwareType: number): boolean {
  return hardwareType === ARPHRD_ETHER || hardwareType === ARPHRD_LOOPBACK;
}

/** `data` is IFLA_INFO_DATA. */
export function decodeKind(kind: string | null, hardwareType: number, data: Attributes): LinkKindFacts {
  const external = kind !== null && isSet(data.get(COLLECT_METADATA[kind] ?? -1));
  const remote = kind === null ? undefined : REMOTE[kind];
  const anyRemote = remote !== undefined && !external && !isSet(data.get(remote));
  const mode = kind === "ipvlan" ? data.get(IFLA_IPVLAN_MODE)?.readUInt16LE(0) : undefined;
  return {
    ...(BARE_IP.has(hardwareType) && { bareIp: true }),
    ...(external && { external: true }),
    ...(anyRemote && { anyRemote: true }),
    ...(kind === "vlan" && vlanOf(data)),
    ...(mode !== undefined && mode !== IPVLAN_MODE_L2 && { routesItself: true }),
  };
}

/** A flag that is there, or a value that is not zero. */
function isSet(value: Buffer | undefined): boolean {
  return value !== undefined && (value.length === 0 || value.some((byte) => byte !== 0));
}

function vlanOf(data: Attributes): LinkKindFacts {
  const vlanId = data.get(IFLA_VLAN_ID)?.readUInt16LE(0);
  if (vlanId === undefined) return {};
  const vlanProtocol = data.get(IFLA_VLAN_PROTOCOL)?.readUInt16BE(0) ?? ETH_P_8021Q;
  return { vlanId, vlanProtocol };
}
