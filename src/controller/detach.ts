// SPDX-License-Identifier: Apache-2.0
// Takes interfaces out, keeps the place of an uplink whose netdev has gone, and clears what interrupted changes and
// instances of which nothing else is left have left.

import { INTERFACE_FLAG, ROLE } from "../abi/layout.gen.ts";
import {
  attachAt,
  detachAt,
  detachLink,
  finishLink,
  linkName,
  type PinnedLink,
  pinnedLinks,
  removeQdiscIfEmpty,
} from "../kernel/attachment.ts";
import { clsact } from "../libbpf/index.ts";
import type { InterfaceEntry, Tables } from "../tables/index.ts";
import { stateStep } from "./attachSteps.ts";
import { bridgeEntry, isGone } from "./interfaceEntry.ts";
import type { ObservedInterface, StrayFilter, Surroundings } from "./observe.ts";
import type { Step } from "./steps.ts";
import { forgetVmsWithoutTap } from "./vms.ts";
import { xfrmDetachSteps } from "./xfrmSteps.ts";

const nothing = (): void => undefined;

/** Programs first, so that none runs without its tables. Flows stay, and so does what is known of VMs. */
export function detachSteps(around: Surroundings, observed: ObservedInterface): Step[] {
  const { tables } = around;
  const { entry } = observed;
  return [
    ...programSteps(around, observed),
    ...(entry.role === ROLE.UPLINK ? [stateStep(around, entry.ifindex, "down")] : []),
    ...rowSteps(tables, observed),
    leaveStep(tables, observed),
  ];
}

/** The same of an interface whose netdev has gone; `keep`: as an uplink that may return to its last hops. */
export function goneSteps(around: Surroundings, observed: ObservedInterface, keep: boolean): Step[] {
  if (!keep) return detachSteps(around, observed);
  const { entry } = observed;
  const gone = { ...entry, flags: entry.flags | INTERFACE_FLAG.GONE };
  return [
    ...programSteps(around, observed),
    stateStep(around, entry.ifindex, "down"),
    ...(isGone(entry) ? [] : [entryStep(around.tables, entry, gone)]),
  ];
}

function programSteps(around: Surroundings, observed: ObservedInterface): Step[] {
  const { instance, netlink } = around;
  const { entry, attachments, link } = observed;
  const { ifindex, flags } = entry;
  const own = attachments.map(({ role, hook, alive }): Step => {
    const place = { ifindex, role, hook };
    const isThere = alive && link !== undefined;
    return {
      done: null,
      do: () => detachAt(instance, place),
      undo: isThere ? () => attachAt(instance, place) : nothing,
    };
  });
  const programs = [...own, ...xfrmDetachSteps(around, observed)];
  if ((flags & INTERFACE_FLAG.QDISC_OURS) === 0 || link === undefined) return programs;
  let removed = false;
  const qdisc: Step = {
    done: null,
    do: () => {
      removed = removeQdiscIfEmpty(netlink, ifindex);
    },
    undo: () => {
      if (removed) clsact.create(ifindex);
    },
  };
  return [...programs, qdisc];
}

function entryStep(tables: Tables, entry: InterfaceEntry, to: InterfaceEntry | undefined): Step {
  return {
    done: null,
    do: () => {
      if (to) tables.interfaces.set(entry.ifindex, to);
      else tables.interfaces.delete(entry.ifindex);
    },
    undo: () => tables.interfaces.set(entry.ifindex, entry),
  };
}

/** Its entry goes; a bridge with attached taps, or a VLAN interface on one, is entered as that again. */
function leaveStep(tables: Tables, { entry, link }: ObservedInterface): Step {
  const carries = (tap: InterfaceEntry): boolean =>
    tap.role === ROLE.TAP &&
    (tap.l3_ifindex === entry.ifindex || (link?.kind === "vlan" && tap.l3_ifindex === link.lower));
  return {
    done: null,
    do: () => {
      const tap = tables.interfaces.list().find((other) => other.ifindex !== entry.ifindex && carries(other));
      if (tap && link) tables.interfaces.set(entry.ifindex, bridgeEntry(link, { ifindex: tap.l3_ifindex }));
      else tables.interfaces.delete(entry.ifindex);
    },
    undo: () => tables.interfaces.set(entry.ifindex, entry),
  };
}

/** What the slot has. */
function rowSteps(tables: Tables, { entry: { slot }, budget, egress }: ObservedInterface): Step[] {
  const tap = tables.taps.get(slot)!;
  return [
    {
      done: null,
      do: () => tables.egressDevices.delete(slot),
      undo: () => {
        if (egress !== undefined) tables.egressDevices.set(slot, egress);
      },
    },
    {
      done: null,
      do: () => tables.budgets.set(slot, {}),
      undo: () => tables.budgets.set(slot, budget),
    },
    { done: null, do: () => tables.taps.set(slot, {}), undo: () => tables.taps.set(slot, tap) },
  ];
}

/** The bridges of taps that are no longer there; one that has become an uplink meanwhile stays. */
export function bridgeSteps(tables: Tables, unused: readonly InterfaceEntry[]): Step[] {
  return unused
    .filter(({ ifindex }) => tables.interfaces.get(ifindex)?.role === ROLE.BRIDGE)
    .map((entry) => entryStep(tables, entry, undefined));
}

/** Entries of bridges that no tap has any more. */
export function unusedBridges(tables: Tables): InterfaceEntry[] {
  const entries = tables.interfaces.list();
  const used = new Set(entries.filter(({ role }) => role === ROLE.TAP).map((entry) => entry.l3_ifindex));
  return entries.filter((entry) => entry.role === ROLE.BRIDGE && !used.has(entry.l3_ifindex));
}

/** When interfaces have gone or were taken out. */
export function forgetVms(tables: Tables): void {
  const taps = tables.interfaces.list().filter(({ role }) => role === ROLE.TAP);
  forgetVmsWithoutTap(tables, new Set(taps.map(({ ifindex }) => ifindex)));
}

// What was left

/** A link that was attached beside the old one: takes its place if that is gone, else goes itself. */
export function unfinishedSteps({ instance }: Surroundings, { name, role, ifindex }: PinnedLink): Step[] {
  const finish = (): void => {
    const names = new Set(pinnedLinks(instance).map((link) => link.name));
    if (names.has(linkName(role, ifindex))) detachLink(instance, name);
    else finishLink(instance, role, ifindex);
  };
  return [{ done: null, do: finish, undo: nothing }];
}

export function strayLinkSteps({ instance }: Surroundings, { name }: PinnedLink): Step[] {
  return [{ done: null, do: () => detachLink(instance, name), undo: nothing }];
}

/** Of ours, at our place, and nobody's any more. */
export function strayFilterSteps({ instance, netlink }: Surroundings, { ifindex }: StrayFilter): Step[] {
  const remove = (): void => {
    detachAt(instance, { ifindex, role: "tap", hook: "clsact" });
    removeQdiscIfEmpty(netlink, ifindex);
  };
  return [{ done: null, do: remove, undo: nothing }];
}
