// SPDX-License-Identifier: Apache-2.0
// Tunnels of the kernel's own drivers: which kind carries what, and what the kernel is told to make one.

import type { TunnelType } from "../config/tunnels.ts";
import type { NetlinkAttribute } from "./netlinkMessage.ts";

export interface TunnelEnds {
  type: Exclude<TunnelType, "mpls">;
  /** Of 4 or 16 bytes, both the same. */
  local: Buffer;
  remote: Buffer;
  /** VNI, VSID or key; null for GRE without a key. */
  id: number | null;
  port: number;
  /** ifindex; null for whatever the route says. */
  underlay: number | null;
  ttl: number;
  tos: number;
}

/** Kinds of netdev that are such a tunnel; the first two are what we make, for IPv4 and IPv6 outside. */
const KINDS: Readonly<Record<TunnelType, readonly string[]>> = {
  vxlan: ["vxlan", "vxlan"],
  nvgre: ["gretap", "ip6gretap"],
  gre: ["gre", "ip6gre"],
  // An `ipip` would carry IPv4 only; both of these carry both.
  ipip: ["sit", "ip6tnl", "ipip"],
  mpls: [],
};

export function fitsType(type: TunnelType, kind: string | null): boolean {
  return kind !== null && KINDS[type].includes(kind);
}

/** The VSID is the upper 24 bits of the key (RFC 7637); what is below tells flows apart, which we do not. */
export function greKey(type: TunnelType, id: number): number {
  return type === "nvgre" ? (id << 8) >>> 0 : id;
}

export function deviceOf(ends: TunnelEnds): { kind: string; data: NetlinkAttribute[] } {
  const kind = KINDS[ends.type][ends.local.length === 4 ? 0 : 1]!;
  switch (ends.type) {
    case "vxlan":
      return { kind, data: vxlanData(ends) };
    case "nvgre":
    case "gre":
      return { kind, data: greData(ends) };
    case "ipip":
      return { kind, data: ipipData(ends) };
  }
}

/** Numbers of IFLA_VXLAN_*, linux/if_link.h. */
function vxlanData({ local, remote, id, port, underlay, ttl, tos }: TunnelEnds): NetlinkAttribute[] {
  const v4 = local.length === 4;
  return [
    { type: 1, value: id ?? 0 },
    { type: v4 ? 2 : 16, value: remote },
    ...(underlay === null ? [] : [{ type: 3, value: underlay }]),
    { type: v4 ? 4 : 17, value: local },
    { type: 5, value: u8(ttl) },
    { type: 6, value: u8(tos) },
    // It has one other end: nobody else is to be learned as one.
    { type: 7, value: u8(0) },
    { type: 15, value: be16(port) },
    // A checksum is not asked for, neither by RFC 7348 nor over IPv6 by RFC 6935.
    ...(v4 ? [] : [{ type: 20, value: u8(1) }]),
  ];
}

const GRE_KEY = 0x2000;
/** IP6_TNL_F_IGN_ENCAP_LIMIT: no destination option, which others do not expect. */
const NO_ENCAP_LIMIT = 1;

/** Numbers of IFLA_GRE_*, linux/if_tunnel.h. */
function greData({ type, local, remote, id, underlay, ttl, tos }: TunnelEnds): NetlinkAttribute[] {
  const v4 = local.length === 4;
  const key = id === null ? null : be32(greKey(type, id));
  return [
    ...(underlay === null ? [] : [{ type: 1, value: underlay }]),
    ...(key === null
      ? []
      : [
          { type: 2, value: be16(GRE_KEY) },
          { type: 3, value: be16(GRE_KEY) },
          { type: 4, value: key },
          { type: 5, value: key },
        ]),
    { type: 6, value: local },
    { type: 7, value: remote },
    { type: 8, value: u8(ttl) },
    ...(v4
      ? [{ type: 9, value: u8(tos) }]
      : [
          { type: 12, value: flowInfo(tos) },
          { type: 13, value: NO_ENCAP_LIMIT },
        ]),
  ];
}

/** Numbers of IFLA_IPTUN_*, linux/if_tunnel.h. */
function ipipData({ local, remote, underlay, ttl, tos }: TunnelEnds): NetlinkAttribute[] {
  const v4 = local.length === 4;
  return [
    ...(underlay === null ? [] : [{ type: 1, value: underlay }]),
    { type: 2, value: local },
    { type: 3, value: remote },
    { type: 4, value: u8(ttl) },
    ...(v4
      ? [
          { type: 5, value: u8(tos) },
          { type: 10, value: u8(1) },
        ]
      : [
          { type: 7, value: flowInfo(tos) },
          { type: 8, value: NO_ENCAP_LIMIT },
        ]),
    // Any: IPv4 and IPv6.
    { type: 9, value: u8(0) },
  ];
}

const u8 = (value: number): Buffer => Buffer.from([value]);

function be16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

function be32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

/** The traffic class stands above the 20 bits of the flow label. */
const flowInfo = (tos: number): Buffer => be32((tos << 20) >>> 0);
