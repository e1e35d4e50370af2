// SPDX-License-Identifier: Apache-2.0
// Our programs on interfaces: what is there, put it there, take it away. A TCX or XDP program is held by a
// pinned link, links/ROLE-IFINDEX; a clsact filter holds itself.

import { existsSync, renameSync } from "node:fs";
import { TC_FILTER } from "../config/defaults.ts";
import { BpfLink, type BpfProgram, clsact, isErrno } from "../libbpf/index.ts";
import { type Instance, unpin } from "./instance.ts";
import type { Netlink } from "./netlink.ts";
import { TC_PARENT_EGRESS, TC_PARENT_INGRESS } from "./rtnetlink.ts";

export type AttachmentRole = "uplink" | "tap";
export type AttachmentHook = "xdp_native" | "xdp_generic" | "tcx" | "clsact";

const ROLES: readonly AttachmentRole[] = ["uplink", "tap"];
const LINK_NAME = /^(uplink|tap)-(\d+)(_new)?$/;
/** What is attached beside the old link until that is gone. */
export const NEW_SUFFIX = "_new";

export interface Attachment {
  role: AttachmentRole;
  hook: AttachmentHook;
  programId: number;
  /** False: the interface that the link was on is gone, though another may have its index. */
  alive: boolean;
}

export interface Place {
  ifindex: number;
  role: AttachmentRole;
  hook: AttachmentHook;
}

export function linkName(role: AttachmentRole, ifindex: number): string {
  return `${role}-${ifindex}`;
}

/** The links that an instance has pinned, also those that an interrupted change left. */
export function pinnedLinks(
  instance: Instance,
): { name: string; role: AttachmentRole; ifindex: number; unfinished: boolean }[] {
  return instance.linkNames().flatMap((name) => {
    const match = LINK_NAME.exec(name);
    if (!match) return [];
    return [
      {
        name,
        role: match[1] as AttachmentRole,
        ifindex: Number(match[2]),
        unfinished: match[3] !== undefined,
      },
    ];
  });
}

/** The program that a role has at a hook. */
export function programFor(instance: Instance, role: AttachmentRole, hook: AttachmentHook): BpfProgram {
  if (role === "tap") return instance.program("reply_tc");
  return instance.program(hook === "tcx" || hook === "clsact" ? "learn_tc" : "learn_xdp");
}

/** All of our programs on an interface; more than one only after a change that was interrupted. */
export function attachmentsOn(instance: Instance, ifindex: number, xdpMode: string | null): Attachment[] {
  const found: Attachment[] = [];
  for (const role of ROLES) {
    const path = instance.linkPath(linkName(role, ifindex));
    if (!existsSync(path)) continue;
    using link = BpfLink.openPinned(path);
    const info = link.info();
    const hook = info.type === "tcx" ? "tcx" : xdpMode === "generic" ? "xdp_generic" : "xdp_native";
    found.push({ role, hook, programId: info.programId, alive: info.ifindex === ifindex });
  }
  const filter = ourFilter(instance, ifindex);
  if (filter) found.push({ ...filter, hook: "clsact", alive: true });
  return found;
}

/** Our clsact filter: at its place, and with one of our programs. */
export function ourFilter(
  instance: Instance,
  ifindex: number,
): { role: AttachmentRole; programId: number } | undefined {
  const programId = clsact.query({ ifindex, direction: "ingress", ...TC_FILTER })?.programId;
  if (programId === undefined) return undefined;
  const role = ROLES.find((role) => programFor(instance, role, "clsact").info().id === programId);
  return role && { role, programId };
}

/** Attaches and, if it is a link, pins it under its name and `suffix`. The clsact qdisc is there already. */
export function attachAt(instance: Instance, { ifindex, role, hook }: Place, suffix = ""): void {
  const program = programFor(instance, role, hook);
  if (hook === "clsact") {
    clsact.attach({ ifindex, direction: "ingress", ...TC_FILTER, program });
    return;
  }
  // Not pinned, the link goes with its descriptor.
  using link =
    hook === "tcx"
      ? BpfLink.attachTcx(program, ifindex, "ingress")
      : BpfLink.attachXdp(program, ifindex, hook === "xdp_native" ? "native" : "generic");
  link.pin(instance.linkPath(linkName(role, ifindex) + suffix));
}

/** Exchanges the program of one role for that of the other, without a gap. */
export function changeRole(instance: Instance, { ifindex, role, hook }: Place, to: AttachmentRole): void {
  const program = programFor(instance, to, hook);
  if (hook === "clsact") {
    clsact.attach({ ifindex, direction: "ingress", ...TC_FILTER, program, replace: true });
    return;
  }
  const from = instance.linkPath(linkName(role, ifindex));
  using link = BpfLink.openPinned(from);
  link.update(program);
  renameSync(from, instance.linkPath(linkName(to, ifindex)));
}

/** The link that was pinned beside the old one takes its name. */
export function finishLink(instance: Instance, role: AttachmentRole, ifindex: number): void {
  const name = linkName(role, ifindex);
  renameSync(instance.linkPath(name + NEW_SUFFIX), instance.linkPath(name));
}

/** Nothing happens if it is gone already. */
export function detachAt(instance: Instance, { ifindex, role, hook }: Place, suffix = ""): void {
  if (hook === "clsact") clsact.detach({ ifindex, direction: "ingress", ...TC_FILTER });
  else detachLink(instance, linkName(role, ifindex) + suffix);
}

/** Unpinned, the link may still be held by somebody's descriptor: detach it first. */
export function detachLink(instance: Instance, name: string): void {
  const path = instance.linkPath(name);
  if (!existsSync(path)) return;
  using link = BpfLink.openPinned(path);
  if (link.info().ifindex !== 0) link.detach();
  unpin(path);
}

/** Removes the clsact qdisc unless somebody's filter is in it, or the interface is gone and the qdisc with it. */
export function removeQdiscIfEmpty(netlink: Netlink, ifindex: number): boolean {
  const filters = [TC_PARENT_INGRESS, TC_PARENT_EGRESS].flatMap((parent) => netlink.filters(ifindex, parent));
  if (filters.length > 0) return false;
  try {
    return clsact.destroy(ifindex);
  } catch (error) {
    if (isErrno(error, "ENODEV")) return false;
    throw error;
  }
}

/** Removes the clsact filters that run one of these programs, wherever they are. */
export function removeFiltersOf(netlink: Netlink, programIds: ReadonlySet<number>): void {
  for (const { ifindex } of netlink.links()) {
    const filters = netlink.filters(ifindex, TC_PARENT_INGRESS);
    const ours = filters.filter(({ programId }) => programId !== null && programIds.has(programId));
    if (ours.length === 0) continue;
    for (const { handle, priority } of ours) {
      clsact.detach({ ifindex, direction: "ingress", handle, priority });
    }
    removeQdiscIfEmpty(netlink, ifindex);
  }
}
