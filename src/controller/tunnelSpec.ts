// SPDX-License-Identifier: Apache-2.0
// A configured tunnel as the tables and the kernel have it. Pure.

import { createHash } from "node:crypto";
import { encode } from "../abi/codec.ts";
import { INTERFACE_FLAG, LABELS_MAX, ORIGIN, TUNNEL_FLAG, TUNNEL_KIND } from "../abi/layout.gen.ts";
import { mapIpv4, parseAddress, parseMac } from "../addresses.ts";
import { VXLAN_PORT } from "../config/tunnelChecks.ts";
import type { TunnelConfig, TunnelType } from "../config/tunnels.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { type TunnelPlace, XFRM_PROGRAMS } from "../kernel/tunnelAttachment.ts";
import type { TunnelEnds } from "../kernel/tunnelDevice.ts";
import type { InterfaceEntry, TunnelKey, TunnelRow, TunnelRowInput } from "../tables/index.ts";

const IP_BYTES = { 4: 20, 6: 40 } as const;
const UDP_BYTES = 8;
const VXLAN_BYTES = 8;
const GRE_BYTES = 4;
const GRE_KEY_BYTES = 4;
const ETHERNET_BYTES = 14;
const LABEL_BYTES = 4;
/** What every netdev can have. */
const MTU_MIN = 68;

/** Without a link layer inside: no neighbours are asked for, and MAC addresses mean nothing. */
const IP_TYPES: readonly TunnelType[] = ["gre", "ipip", "mpls"];

export function carriesIp(type: TunnelType): boolean {
  return IP_TYPES.includes(type);
}

export function familyOf({ local }: Pick<TunnelConfig, "local">): 4 | 6 | null {
  return local === undefined ? null : local.includes(":") ? 6 : 4;
}

/** Bytes that it adds between the inner packet, from its IP header on, and the underlay's link layer. */
export function overhead(tunnel: TunnelConfig): number {
  const family = familyOf(tunnel);
  const outer = family === null ? 0 : IP_BYTES[family];
  const gre = GRE_BYTES + (tunnel.id === undefined ? 0 : GRE_KEY_BYTES);
  switch (tunnel.type) {
    case "vxlan":
      return outer + UDP_BYTES + VXLAN_BYTES + ETHERNET_BYTES;
    case "nvgre":
      return outer + gre + ETHERNET_BYTES;
    case "gre":
      return outer + gre;
    case "ipip":
      return outer;
    case "mpls":
      return LABEL_BYTES * (tunnel.labels?.reply.length ?? 0);
  }
}

/** Null where neither the configuration nor an underlay says. */
export function mtuOf(tunnel: TunnelConfig, underlay: Pick<Link, "mtu"> | undefined): number | null {
  if (tunnel.mtu !== undefined) return tunnel.mtu;
  return underlay ? Math.max(MTU_MIN, underlay.mtu - overhead(tunnel)) : null;
}

/** The same whenever it is made, and unlike that of another host: of what nobody else has. */
export function macOf(tunnel: TunnelConfig, underlay: Pick<Link, "mac"> | undefined): Buffer {
  const own = tunnel.local ?? underlay?.mac ?? "";
  const mac = createHash("sha256").update(`lasthop ${own} ${tunnel.name}`).digest().subarray(0, 6);
  mac[0] = (mac[0]! & 0xfc) | 0x02;
  return Buffer.from(mac);
}

export function endsOf(tunnel: TunnelConfig, underlay: number | null): TunnelEnds {
  const { type, id, port, ttl, tos } = tunnel;
  if (type === "mpls") throw new Error("the kernel has no interface for MPLS");
  return {
    type,
    local: parseAddress(tunnel.local!)!,
    remote: parseAddress(tunnel.remote!)!,
    id: id ?? null,
    port: port ?? VXLAN_PORT,
    underlay,
    ttl,
    tos,
  };
}

/** What differs from one netdev to the next. */
export interface Made {
  ifindex: number;
  /** Of the hidden end; 0 for an interface of the kernel's driver. */
  peer: number;
  /** ifindex; 0 while it is not there. */
  underlay: number;
  mac: Buffer;
  underlayMac: Buffer;
  mtu: number;
}

/** enum tunnel_kind */
export function kindOf({ type }: Pick<TunnelConfig, "type">): number {
  return TUNNEL_KIND[type.toUpperCase() as Uppercase<TunnelType>];
}

export function rowOf(tunnel: TunnelConfig, made: Made): TunnelRowInput {
  const { type, id, labels } = tunnel;
  const uniform = type === "mpls" && tunnel.ttl_model !== "pipe";
  return {
    kind: kindOf(tunnel),
    family: familyOf(tunnel) ?? 0,
    ttl: tunnel.ttl,
    tos: tunnel.tos,
    flags: keyFlag(tunnel) | (uniform ? TUNNEL_FLAG.TTL_UNIFORM : 0),
    label_count: labels?.reply.length ?? 0,
    port: type === "vxlan" ? (tunnel.port ?? VXLAN_PORT) : 0,
    id: id ?? 0,
    ifindex: made.ifindex,
    peer_ifindex: made.peer,
    underlay: made.underlay,
    local: mapped(tunnel.local),
    remote: mapped(tunnel.remote),
    mac: made.mac,
    next_hop: (tunnel.next_hop && parseMac(tunnel.next_hop)) || Buffer.alloc(6),
    labels: filled(labels?.reply),
    name: tunnel.name,
    origin: ORIGIN.CONFIG,
    request_labels: filled(labels?.request),
    mtu: made.mtu,
    underlay_mac: made.underlayMac,
  };
}

/**
 * What leads to its netdev: what the outer header of a packet shows that arrives for it, and of MPLS the hidden end by
 * which packets leave. Nothing arrives while there is no underlay.
 */
export function keysOf(row: TunnelRowInput): TunnelKey[] {
  const { kind = 0, underlay = 0, peer_ifindex: hidden = 0, id = 0, port = 0 } = row;
  const none = {
    local: Buffer.alloc(16),
    remote: Buffer.alloc(16),
    id: 0,
    labels: filled(),
    port: 0,
    flags: 0,
  };
  const leaving = kind === TUNNEL_KIND.MPLS ? [{ ...none, kind, underlay: hidden }] : [];
  if (underlay === 0) return leaving;
  if (kind === TUNNEL_KIND.MPLS) {
    return [...leaving, { ...none, kind, underlay, labels: [...row.request_labels!] }];
  }
  const flags = (row.flags ?? 0) & TUNNEL_FLAG.KEY_PRESENT;
  const [local, remote] = [Buffer.from(row.local!), Buffer.from(row.remote!)];
  return [{ ...none, kind, underlay: 0, local, remote, id, port, flags }];
}

/** Where the programs of a built-in tunnel belong. */
export function placesOf({ kind, ifindex, peer_ifindex, underlay }: TunnelRowInput): TunnelPlace[] {
  const out: TunnelPlace =
    kind === TUNNEL_KIND.MPLS
      ? { ifindex: peer_ifindex!, program: "tunnel_out_labels" }
      : { ifindex: ifindex!, program: "tunnel_out" };
  return [out, ...(underlay ? [{ ifindex: underlay, program: "tunnel_in" as const }] : [])];
}

/** Of a shared XFRM interface, by its entry. */
export function xfrmPlacesOf({ ifindex, flags }: Pick<InterfaceEntry, "ifindex" | "flags">): TunnelPlace[] {
  if ((flags & INTERFACE_FLAG.XFRM_ID) === 0 || (flags & INTERFACE_FLAG.GONE) !== 0) return [];
  return XFRM_PROGRAMS.map((program) => ({ ifindex, program }));
}

/** The same without that on the underlay, which others may need as well. */
export function placesOnNetdevs(row: TunnelRowInput | undefined): TunnelPlace[] {
  if (!row || row.peer_ifindex === 0) return [];
  return placesOf(row).filter(({ ifindex }) => ifindex !== row.underlay);
}

function keyFlag({ type, id }: TunnelConfig): number {
  const isGre = type === "gre" || type === "nvgre";
  return isGre && id !== undefined ? TUNNEL_FLAG.KEY_PRESENT : 0;
}

function mapped(address: string | undefined): Buffer {
  const bytes = address === undefined ? undefined : parseAddress(address);
  if (bytes === undefined) return Buffer.alloc(16);
  return bytes.length === 4 ? mapIpv4(bytes) : bytes;
}

function filled(labels: readonly number[] = []): number[] {
  return Array.from({ length: LABELS_MAX }, (_, index) => labels[index] ?? 0);
}

export function sameRow(a: TunnelRowInput, b: TunnelRowInput): boolean {
  return encode("tunnel", a).equals(encode("tunnel", b));
}

export function sameKey(a: TunnelKey, b: TunnelKey): boolean {
  return encode("tunnel_index_key", a).equals(encode("tunnel_index_key", b));
}

/** Whether an interface of the kernel's driver that was made as `row` says is what is wanted. */
export function isMadeAs(row: TunnelRow, wanted: TunnelRowInput): boolean {
  // These follow without its being made anew.
  const { mac, mtu, underlay_mac } = row;
  return sameRow(row, { ...wanted, mac, mtu, underlay_mac });
}
