// SPDX-License-Identifier: Apache-2.0

import { TUNNEL_FLAG, TUNNEL_KIND } from "../abi/layout.gen.ts";
import { formatAddress, formatMac, isMappedIpv4 } from "../addresses.ts";
import { type TunnelSight, tunnelSight } from "../controller/tunnelObserve.ts";
import { isOurs } from "../controller/tunnelPlan.ts";
import { carriesIp, keysOf, placesOf } from "../controller/tunnelSpec.ts";
import { LasthopError } from "../errors.ts";
import { type Instance, openInstance } from "../kernel/instance.ts";
import { linkDetails } from "../kernel/linkCreate.ts";
import { Netlink } from "../kernel/netlink.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { suggest } from "../suggest.ts";
import { Tables, type TunnelRow, type TunnelTraffic } from "../tables/index.ts";
import type { OpContext, TunnelDetails, TunnelEntry, TunnelState, TunnelTypeName } from "./types.ts";

/** The tunnels that the configuration has, as they are. Changes nothing. */
export function listTunnels(context: OpContext): TunnelEntry[] {
  using instance = openInstance(context.pinRoot);
  using netlink = new Netlink();
  return tunnelEntries(instance, netlink);
}

export function tunnelEntries(instance: Instance, netlink: Netlink): TunnelEntry[] {
  const view = viewOf(instance, netlink);
  return view.rows().map((row) => view.entry(row));
}

/** Throws E_NOT_FOUND. */
export function showTunnel(context: OpContext, name: string): TunnelDetails {
  using instance = openInstance(context.pinRoot);
  using netlink = new Netlink();
  const view = viewOf(instance, netlink);
  const rows = view.rows();
  const row = rows.find((one) => one.name === name);
  if (row) return view.details(row);
  const names = rows.map((one) => one.name);
  const meant = suggest(name, names);
  const known =
    names.length > 0 ? `There are ${names.join(", ")}.` : "`tunnels:` in the configuration has them.";
  throw new LasthopError("E_NOT_FOUND", `there is no tunnel ${JSON.stringify(name)}`, {
    hint: meant ? `Did you mean ${meant}?` : known,
  });
}

function viewOf(instance: Instance, netlink: Netlink): TunnelView {
  const tables = new Tables(instance);
  return new TunnelView(tables, netlink, tunnelSight({ instance, tables, netlink }));
}

class TunnelView {
  readonly #tables: Tables;
  readonly #netlink: Netlink;
  readonly #sight: TunnelSight;

  constructor(tables: Tables, netlink: Netlink, sight: TunnelSight) {
    this.#tables = tables;
    this.#netlink = netlink;
    this.#sight = sight;
  }

  rows(): TunnelRow[] {
    return this.#tables.tunnels.list();
  }

  entry(row: TunnelRow): TunnelEntry {
    const link = this.#link(row);
    const { request, reply } = labelsOf(row);
    return {
      name: row.name,
      type: typeOf(row),
      encapsulation: isBuiltin(row) ? "builtin" : "device",
      ifindex: row.ifindex,
      local: addressText(row.local),
      remote: addressText(row.remote),
      id: idOf(row),
      port: row.port === 0 ? null : row.port,
      labels: row.kind === TUNNEL_KIND.MPLS ? { request, reply } : null,
      underlay: row.underlay === 0 ? null : (this.#netlink.link(row.underlay)?.name ?? null),
      mtu: link?.mtu ?? row.mtu,
      state: this.#state(row, link),
      ...this.#traffic(row),
    };
  }

  details(row: TunnelRow): TunnelDetails {
    const link = this.#link(row);
    return {
      ...this.entry(row),
      kind: link?.kind ?? null,
      made_by_lasthop: link !== undefined && isOurs(link, this.#sight),
      mac: carriesIp(typeOf(row)) || !link ? null : link.mac,
      ttl: row.ttl,
      tos: row.tos,
      ttl_model: ttlModelOf(row),
      next_hop: row.kind === TUNNEL_KIND.MPLS ? formatMac(row.next_hop) : null,
      hidden_interface: isBuiltin(row) ? (this.#netlink.link(row.peer_ifindex)?.name ?? null) : null,
      programs: isBuiltin(row) ? placesOf(row).map((place) => this.#program(place)) : [],
    };
  }

  #program(place: ReturnType<typeof placesOf>[number]): TunnelDetails["programs"][number] {
    const found = this.#sight.attachmentAt(place);
    const alive = found?.alive === true;
    return {
      program: place.program,
      interface: this.#netlink.link(place.ifindex)?.name ?? `if${place.ifindex}`,
      hook: alive ? found.hook : null,
      program_id: alive ? found.programId : null,
    };
  }

  /** Another may have its index by now. */
  #link({ ifindex, name }: TunnelRow): Link | undefined {
    const link = this.#netlink.link(ifindex);
    return link?.name === name ? link : undefined;
  }

  #state(row: TunnelRow, link: Link | undefined): TunnelState {
    if (!link) return "interface_gone";
    if (!link.flags.up) return "interface_down";
    if (!isBuiltin(row)) return "ok";
    const underlay = row.underlay === 0 ? undefined : this.#netlink.link(row.underlay);
    if (!underlay) return "underlay_gone";
    if (!underlay.flags.up || !underlay.flags.running) return "underlay_down";
    if (placesOf(row).some((place) => this.#sight.attachmentAt(place)?.alive !== true)) return "program_gone";
    return keysOf(row).every((key) => this.#sight.target(key) === row.ifindex) ? "ok" : "incomplete";
  }

  /** Of an interface of the kernel's driver as the kernel counts. */
  #traffic(row: TunnelRow): TunnelTraffic {
    const none = {
      received_packets: 0,
      received_bytes: 0,
      sent_packets: 0,
      sent_bytes: 0,
      received_errors: 0,
      sent_errors: 0,
    };
    if (isBuiltin(row)) return this.#tables.tunnels.traffic(row.ifindex);
    return linkDetails(this.#netlink, row.ifindex)?.traffic ?? none;
  }
}

const isBuiltin = ({ peer_ifindex }: TunnelRow): boolean => peer_ifindex !== 0;

function typeOf({ kind }: TunnelRow): TunnelTypeName {
  const found = Object.entries(TUNNEL_KIND).find(([, value]) => value === kind)?.[0];
  return (found ?? "NONE").toLowerCase() as TunnelTypeName;
}

function addressText(bytes: Buffer): string | null {
  if (bytes.every((byte) => byte === 0)) return null;
  return formatAddress(isMappedIpv4(bytes) ? bytes.subarray(12) : bytes);
}

function idOf({ kind, id, flags }: TunnelRow): number | null {
  return kind === TUNNEL_KIND.VXLAN || (flags & TUNNEL_FLAG.KEY_PRESENT) !== 0 ? id : null;
}

function labelsOf({ labels, label_count, request_labels }: TunnelRow): {
  request: number[];
  reply: number[];
} {
  return { request: request_labels.filter((label) => label !== 0), reply: labels.slice(0, label_count) };
}

function ttlModelOf({ kind, flags }: TunnelRow): TunnelDetails["ttl_model"] {
  if (kind !== TUNNEL_KIND.MPLS) return null;
  return (flags & TUNNEL_FLAG.TTL_UNIFORM) !== 0 ? "uniform" : "pipe";
}
