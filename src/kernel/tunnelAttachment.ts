// SPDX-License-Identifier: Apache-2.0
// The programs of built-in tunnels and of shared XFRM interfaces: what is there, put it there, take it away. As with
// uplinks and taps a TCX program is held by a pinned link, links/PROGRAM-IFINDEX, and a clsact filter holds itself.

import { existsSync } from "node:fs";
import { TUNNEL_FILTER } from "../config/defaults.ts";
import { BpfLink, type BpfProgram, clsact, type Direction } from "../libbpf/index.ts";
import { detachLink, removeQdiscIfEmpty } from "./attachment.ts";
import type { Instance } from "./instance.ts";
import type { Netlink } from "./netlink.ts";
import { type Filter, TC_PARENT_EGRESS, TC_PARENT_INGRESS } from "./rtnetlink.ts";

/** On each shared XFRM interface; pinned only where there was one (xfrmObject.ts). */
export const XFRM_PROGRAMS = ["xfrm_in", "xfrm_out"] as const;
export const TUNNEL_PROGRAMS = ["tunnel_in", "tunnel_out", "tunnel_out_labels", ...XFRM_PROGRAMS] as const;
export type XfrmProgram = (typeof XFRM_PROGRAMS)[number];
export type TunnelProgram = (typeof TUNNEL_PROGRAMS)[number];

/** Each program belongs on one side of an interface. */
export const DIRECTIONS: Readonly<Record<TunnelProgram, Direction>> = {
  tunnel_in: "ingress",
  tunnel_out: "egress",
  tunnel_out_labels: "ingress",
  xfrm_in: "ingress",
  xfrm_out: "egress",
};

export const PARENTS: Readonly<Record<Direction, number>> = {
  ingress: TC_PARENT_INGRESS,
  egress: TC_PARENT_EGRESS,
};
const LINK_NAME = new RegExp(`^(${TUNNEL_PROGRAMS.join("|")})-(\\d+)$`);

export interface TunnelPlace {
  ifindex: number;
  program: TunnelProgram;
}

export interface TunnelAttachment extends TunnelPlace {
  hook: "tcx" | "clsact";
  programId: number;
  /** False: the interface that the link was on is gone, though another may have its index. */
  alive: boolean;
}

export function placeKey({ ifindex, program }: TunnelPlace): string {
  return `${program}-${ifindex}`;
}

export function isTunnelProgram(name: string): name is TunnelProgram {
  return (TUNNEL_PROGRAMS as readonly string[]).includes(name);
}

export function isXfrmProgram(name: string): name is XfrmProgram {
  return (XFRM_PROGRAMS as readonly string[]).includes(name);
}

/** Whether a filter runs a tunnel's program of some instance of lasthop: libbpf names filters `PROGRAM:[ID]`. */
export function hasTunnelName({ name }: Pick<Filter, "name">): boolean {
  return isTunnelProgram((name ?? "").replace(/:\[\d+\]$/, ""));
}

/** The pinned links, by name. */
export function tunnelLinks(instance: Instance): ({ name: string } & TunnelPlace)[] {
  return instance.linkNames().flatMap((name) => {
    const match = LINK_NAME.exec(name);
    return match ? [{ name, program: match[1] as TunnelProgram, ifindex: Number(match[2]) }] : [];
  });
}

/** Ids of the tunnels' programs that are pinned; none of a build that has none. */
export function tunnelProgramIds(instance: Instance): Map<number, TunnelProgram> {
  const names = new Set(instance.programNames());
  return new Map(
    TUNNEL_PROGRAMS.filter((name) => names.has(name)).map((name) => [instance.program(name).info().id, name]),
  );
}

/** All of ours, wherever they are. */
export function tunnelAttachments(instance: Instance, netlink: Netlink): TunnelAttachment[] {
  const links = tunnelLinks(instance).map(({ name, ifindex, program }): TunnelAttachment => {
    using link = BpfLink.openPinned(instance.linkPath(name));
    const info = link.info();
    const alive = info.ifindex === ifindex;
    return { ifindex, program, hook: "tcx", programId: info.programId, alive };
  });
  return [...links, ...tunnelFilters(netlink, tunnelProgramIds(instance))];
}

/** What of ours is at a place, also if its interface has gone. */
export function tunnelAttachmentAt(instance: Instance, place: TunnelPlace): TunnelAttachment | undefined {
  return pinnedAt(instance.linkPath(placeKey(place)), place) ?? filterAt(place);
}

function pinnedAt(path: string, { ifindex, program }: TunnelPlace): TunnelAttachment | undefined {
  if (!existsSync(path)) return undefined;
  using link = BpfLink.openPinned(path);
  const info = link.info();
  return { ifindex, program, hook: "tcx", programId: info.programId, alive: info.ifindex === ifindex };
}

function filterAt({ ifindex, program }: TunnelPlace): TunnelAttachment | undefined {
  const found = clsact.query({ ifindex, direction: DIRECTIONS[program], ...TUNNEL_FILTER });
  return found && { ifindex, program, hook: "clsact", programId: found.programId, alive: true };
}

function tunnelFilters(netlink: Netlink, own: ReadonlyMap<number, TunnelProgram>): TunnelAttachment[] {
  const { handle, priority } = TUNNEL_FILTER;
  const found: TunnelAttachment[] = [];
  for (const { ifindex, kind } of netlink.qdiscs()) {
    if (kind !== "clsact") continue;
    for (const direction of ["ingress", "egress"] as const) {
      for (const filter of netlink.filters(ifindex, PARENTS[direction])) {
        const program = filter.programId === null ? undefined : own.get(filter.programId);
        if (filter.handle !== handle || filter.priority !== priority || program === undefined) continue;
        found.push({ ifindex, program, hook: "clsact", programId: filter.programId!, alive: true });
      }
    }
  }
  return found;
}

/** Behind whatever else is there; but what xfrm_in tells learn_tc it has to tell before. */
export function attachTunnelProgram(
  instance: Instance,
  place: TunnelPlace,
  hook: TunnelAttachment["hook"],
): void {
  const { ifindex, program: name } = place;
  const direction = DIRECTIONS[name];
  const program = instance.program(name);
  if (hook === "clsact") {
    clsact.create(ifindex);
    clsact.attach({ ifindex, direction, ...TUNNEL_FILTER, program, replace: true });
    return;
  }
  const path = instance.linkPath(placeKey(place));
  // That of an interface that has gone, whose index another has.
  if (existsSync(path)) detachLink(instance, placeKey(place));
  // Not pinned, the link goes with its descriptor.
  using link = BpfLink.attachTcx(program, ifindex, direction, name === "xfrm_in" ? "first" : "last");
  link.pin(path);
}

/** Exchanges the program for the one that is pinned now, without a gap. */
export function renewTunnelProgram(
  instance: Instance,
  at: Pick<TunnelAttachment, "ifindex" | "program" | "hook">,
  program: BpfProgram = instance.program(at.program),
): void {
  const { ifindex, hook } = at;
  if (hook === "clsact") {
    const direction = DIRECTIONS[at.program];
    clsact.attach({ ifindex, direction, ...TUNNEL_FILTER, program, replace: true });
    return;
  }
  using link = BpfLink.openPinned(instance.linkPath(placeKey(at)));
  link.update(program);
}

/** Nothing happens if it is gone already. The qdisc goes too, unless somebody's filter is in it. */
export function detachTunnelProgram(
  instance: Instance,
  netlink: Netlink,
  { ifindex, program, hook }: Pick<TunnelAttachment, "ifindex" | "program" | "hook">,
): void {
  if (hook === "tcx") {
    detachLink(instance, placeKey({ ifindex, program }));
    return;
  }
  clsact.detach({ ifindex, direction: DIRECTIONS[program], ...TUNNEL_FILTER });
  removeQdiscIfEmpty(netlink, ifindex);
}
