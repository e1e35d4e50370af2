// SPDX-License-Identifier: Apache-2.0
// Takes an interface out, and repairs what interfaces that went without us have left.

import { INTERFACE_FLAG, ROLE } from "../abi/layout.gen.ts";
import {
  attachmentsOn,
  detachAt,
  detachLink,
  finishLink,
  linkName,
  ourFilter,
  pinnedLinks,
  removeQdiscIfEmpty,
} from "../kernel/attachment.ts";
import type { Instance } from "../kernel/instance.ts";
import type { InterfaceEntry, Tables } from "../tables/index.ts";
import type { Surroundings } from "./attachSteps.ts";
import { markRoute } from "./lastHops.ts";
import { forgetVmsWithoutTap } from "./vms.ts";

export function isAttached(entry: { role: number }): boolean {
  return entry.role === ROLE.UPLINK || entry.role === ROLE.TAP;
}

/** Programs first, so that none runs without its tables; works also when the interface is gone. */
export function detachInterface(around: Surroundings, entry: InterfaceEntry): void {
  const { instance, tables, netlink } = around;
  const { ifindex, slot } = entry;
  for (const link of pinnedLinks(instance)) {
    if (link.ifindex === ifindex) detachLink(instance, link.name);
  }
  const filter = ourFilter(instance, ifindex);
  if (filter) detachAt(instance, { ifindex, role: filter.role, hook: "clsact" });
  if (entry.flags & INTERFACE_FLAG.QDISC_OURS) removeQdiscIfEmpty(netlink, ifindex);
  if (entry.role === ROLE.UPLINK) markRoute(tables.lastHops, ifindex);
  tables.interfaces.delete(ifindex);
  tables.egressDevices.delete(slot);
  tables.budgets.set(slot, {});
  tables.taps.set(slot, {});
  removeUnusedBridges(tables);
}

function removeUnusedBridges(tables: Tables): void {
  const entries = tables.interfaces.list();
  const used = new Set(entries.filter((entry) => entry.role === ROLE.TAP).map((entry) => entry.l3_ifindex));
  for (const entry of entries) {
    if (entry.role === ROLE.BRIDGE && !used.has(entry.l3_ifindex)) tables.interfaces.delete(entry.ifindex);
  }
}

/**
 * Removes the entries and pins of interfaces that are gone, and what an interrupted change left. Returns those
 * entries, by ifindex.
 */
export function cleanUp(around: Surroundings): Map<number, InterfaceEntry> {
  const { instance, tables, netlink } = around;
  finishInterrupted(instance);
  const links = new Map(netlink.links().map((link) => [link.ifindex, link]));
  const gone: InterfaceEntry[] = [];
  for (const entry of tables.interfaces.list()) {
    const link = links.get(entry.ifindex);
    if (!isAttached(entry)) {
      if (!link) tables.interfaces.delete(entry.ifindex);
      continue;
    }
    const attachments = link ? attachmentsOn(instance, entry.ifindex, link.xdp?.mode ?? null) : [];
    const replaced = attachments.length > 0 && attachments.every((attachment) => !attachment.alive);
    if (!link || replaced) gone.push(entry);
  }
  for (const entry of gone) detachInterface(around, entry);
  const known = new Set(
    tables.interfaces
      .list()
      .filter(isAttached)
      .map((entry) => entry.ifindex),
  );
  for (const link of pinnedLinks(instance)) {
    if (!known.has(link.ifindex)) detachLink(instance, link.name);
  }
  forgetVmsWithoutTap(tables, known);
  return new Map(gone.map((entry) => [entry.ifindex, entry]));
}

/** A link that was attached beside the old one: takes its place if that is gone, else goes itself. */
function finishInterrupted(instance: Instance): void {
  const names = new Set(instance.linkNames());
  for (const { name, role, ifindex, unfinished } of pinnedLinks(instance)) {
    if (!unfinished) continue;
    if (names.has(linkName(role, ifindex))) detachLink(instance, name);
    else finishLink(instance, role, ifindex);
  }
}
