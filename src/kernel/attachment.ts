// SPDX-License-Identifier: Apache-2.0
// Our programs on interfaces: what is there, put it there, take it away. A TCX or XDP program is held by a
// pinned link, links/ROLE-IFINDEX; a clsact filter holds itself.

import { type Dirent, existsSync, readdirSync, readFileSync, renameSync } from "node:fs";
import { join } from "node:path";
import { TC_FILTER } from "../config/defaults.ts";
import { BpfLink, type BpfProgram, clsact, isErrno } from "../libbpf/index.ts";
import { type Instance, programIds, unpin } from "./instance.ts";
import type { Netlink } from "./netlink.ts";
import { pinPathError } from "./pinRoot.ts";
import { type Filter, TC_PARENT_EGRESS, TC_PARENT_INGRESS } from "./rtnetlink.ts";

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

export interface PinnedLink {
  name: string;
  role: AttachmentRole;
  ifindex: number;
  /** It was attached beside an old one. */
  unfinished: boolean;
}

/** The links that an instance has pinned, also those that an interrupted change left. */
export function pinnedLinks(instance: Instance): PinnedLink[] {
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
  return instance.program(programName(role, hook !== "tcx" && hook !== "clsact"));
}

/** What that program is called in the object file and among the pins. */
export function programName(role: AttachmentRole, isXdp: boolean): string {
  return role === "tap" ? "reply_tc" : isXdp ? "learn_xdp" : "learn_tc";
}

/** All of our programs on an interface; more than one only after a change that was interrupted. */
export function attachmentsOn(instance: Instance, ifindex: number, xdpMode: string | null): Attachment[] {
  const found: Attachment[] = [];
  for (const role of ROLES) {
    const name = linkName(role, ifindex);
    if (existsSync(instance.linkPath(name))) {
      found.push(linkAttachment(instance, { name, role, ifindex }, xdpMode));
    }
  }
  const filter = ourFilter(instance, ifindex);
  if (filter) found.push({ ...filter, hook: "clsact", alive: true });
  return found;
}

/** A pinned link as an attachment; `xdpMode` of the interface. */
export function linkAttachment(
  instance: Instance,
  { name, role, ifindex }: Pick<PinnedLink, "name" | "role" | "ifindex">,
  xdpMode: string | null,
): Attachment {
  using link = BpfLink.openPinned(instance.linkPath(name));
  const info = link.info();
  const hook = info.type === "tcx" ? "tcx" : xdpMode === "generic" ? "xdp_generic" : "xdp_native";
  return { role, hook, programId: info.programId, alive: info.ifindex === ifindex };
}

/** The clsact filters at the place of ours, whosever they are, by ifindex. */
export function filtersAtOurPlace(netlink: Netlink): Map<number, Filter> {
  const { handle, priority } = TC_FILTER;
  const found = new Map<number, Filter>();
  for (const { ifindex, kind } of netlink.qdiscs()) {
    if (kind !== "clsact") continue;
    const filters = netlink.filters(ifindex, TC_PARENT_INGRESS);
    const ours = filters.find((filter) => filter.handle === handle && filter.priority === priority);
    if (ours) found.set(ifindex, ours);
  }
  return found;
}

/** Whether a filter runs a program of some instance of lasthop: libbpf names filters `PROGRAM:[ID]`. */
export function hasOurName({ name }: Pick<Filter, "name">): boolean {
  return /^(?:learn_tc|reply_tc)(?::\[\d+\])?$/.test(name ?? "");
}

const INSTANCE_PATTERN = /^v\d+-[0-9a-f]+$/;
/** Pin roots are no deeper than this in a bpf file system. */
const DEPTH_MAX = 6;

/**
 * Ids of the programs of all instances that are pinned in a bpf file system of this mount namespace. A program that
 * is not among them has lost its pins: the file system was mounted anew.
 */
export function pinnedProgramIds(): Set<number> {
  const ids = new Set<number>();
  const visit = (directory: string, depth: number): void => {
    for (const entry of directoryEntries(directory)) {
      if (!entry.isDirectory() || depth > DEPTH_MAX) continue;
      if (INSTANCE_PATTERN.test(entry.name)) {
        for (const id of programIds(directory, entry.name)) ids.add(id);
      } else {
        visit(join(directory, entry.name), depth + 1);
      }
    }
  };
  for (const directory of bpfMounts()) visit(directory, 1);
  return ids;
}

function directoryEntries(directory: string): Dirent[] {
  try {
    return readdirSync(directory, { withFileTypes: true });
  } catch (error) {
    throw pinPathError(`cannot read ${directory}`, error);
  }
}

/** Where bpf file systems are mounted (proc(5), /proc/PID/mountinfo). */
function bpfMounts(): string[] {
  const lines = readFileSync("/proc/self/mountinfo", "utf8").split("\n");
  const paths = lines.flatMap((line) => {
    const [mount = "", source = ""] = line.split(" - ");
    return source.startsWith("bpf ") ? [unescapeMount(mount.split(" ")[4]!)] : [];
  });
  // What is mounted over is no longer there.
  return [...new Set(paths)].filter((path) => existsSync(path));
}

function unescapeMount(path: string): string {
  return path.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
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

/**
 * Attaches and, if it is a link, pins it under its name and `suffix`. The clsact qdisc is there already; `replace`: so
 * is a filter that an instance of which nothing else is left has left there.
 */
export function attachAt(
  instance: Instance,
  { ifindex, role, hook }: Place,
  { suffix = "", replace = false } = {},
): void {
  const program = programFor(instance, role, hook);
  if (hook === "clsact") {
    clsact.attach({ ifindex, direction: "ingress", ...TC_FILTER, program, replace });
    return;
  }
  // Not pinned, the link goes with its descriptor.
  using link =
    hook === "tcx"
      ? BpfLink.attachTcx(program, ifindex, "ingress")
      : BpfLink.attachXdp(program, ifindex, hook === "xdp_native" ? "native" : "generic");
  link.pin(instance.linkPath(linkName(role, ifindex) + suffix));
}

/** Exchanges the program for that of the other role, or for the one that is pinned now, without a gap. */
export function changeProgram(instance: Instance, { ifindex, role, hook }: Place, to: AttachmentRole): void {
  const program = programFor(instance, to, hook);
  if (hook === "clsact") {
    clsact.attach({ ifindex, direction: "ingress", ...TC_FILTER, program, replace: true });
    return;
  }
  const from = instance.linkPath(linkName(role, ifindex));
  using link = BpfLink.openPinned(from);
  link.update(program);
  if (to !== role) rename(from, instance.linkPath(linkName(to, ifindex)));
}

/** The link that was pinned beside the old one takes its name. */
export function finishLink(instance: Instance, role: AttachmentRole, ifindex: number): void {
  const name = linkName(role, ifindex);
  rename(instance.linkPath(name + NEW_SUFFIX), instance.linkPath(name));
}

/** Takes finishLink back. */
export function reopenLink(instance: Instance, role: AttachmentRole, ifindex: number): void {
  const name = linkName(role, ifindex);
  rename(instance.linkPath(name), instance.linkPath(name + NEW_SUFFIX));
}

function rename(from: string, to: string): void {
  try {
    renameSync(from, to);
  } catch (error) {
    throw pinPathError(`cannot rename ${from}`, error);
  }
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
