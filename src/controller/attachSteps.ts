// SPDX-License-Identifier: Apache-2.0
// The steps that bring an interface from how it is attached to how it is wanted. Tables are written before the
// program that reads them is attached; what goes, goes after its successor works.

import { encode } from "../abi/codec.ts";
import { INTERFACE_FLAG, ROLE } from "../abi/layout.gen.ts";
import { programFor } from "../kernel/attachment.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import type { InterfaceEntry, Tables } from "../tables/index.ts";
import { hookChanges, hookSteps, type Progress } from "./hookSteps.ts";
import {
  bridgeEntry,
  entryChanges,
  entryOf,
  isGone,
  macBytes,
  OTHER_HOOK,
  type WantedAt,
} from "./interfaceEntry.ts";
import { setState } from "./lastHopFacts.ts";
import { countLastHops, type RemapTarget, remapLastHops } from "./lastHops.ts";
import type { Observed, ObservedInterface, Surroundings } from "./observe.ts";
import type { Step } from "./steps.ts";
import { inZone, type KnownVm, newVms, removeVms, restoreVms, vmsOf } from "./vms.ts";
import { xfrmChanges, xfrmSteps } from "./xfrmSteps.ts";

/** How it is attached now. */
export interface Current extends Partial<Omit<ObservedInterface, "link">> {
  /** The entry of the same uplink under the index that it had before it went and came back. */
  returned?: InterfaceEntry;
  /** An instance of which nothing else is left has a clsact filter there. */
  orphan: boolean;
  /** Its last hops say another way back than new ones would: another slot, MAC of the host, mark. */
  outdated: boolean;
  /** What the table has of the bridges that it brings, by ifindex. */
  bridges: ReadonlyMap<number, InterfaceEntry>;
  /** Interfaces that are attached: a bridge among them has an entry of its own. */
  attached: ReadonlySet<number>;
}

export function attachSteps(around: Surroundings, now: Current, wanted: WantedAt, why: string): Step[] {
  const progress: Progress = { qdiscOurs: ((now.entry?.flags ?? 0) & INTERFACE_FLAG.QDISC_OURS) !== 0 };
  const hook = hookSteps(around, now, wanted, why, progress);
  const vms = vmSteps(around, now, wanted);
  return [
    ...slotSteps(around, now, wanted),
    ...exclusionSteps(around, now, wanted),
    ...hook.before,
    ...vms.before,
    ...entrySteps(around, now, wanted, progress),
    ...bridgeSteps(around, now, wanted),
    ...vms.after,
    ...lastHopSteps(around, now, wanted),
    ...budgetSteps(around, now, wanted),
    ...returnSteps(around, now, wanted),
    ...xfrmSteps(around, wanted),
    ...hook.after,
  ];
}

/** What attachSteps would change, for people; empty if nothing. `programs` is null where there are none yet. */
export function changesOf(
  now: Current,
  wanted: WantedAt,
  { programs, xfrmPrograms }: Pick<Observed, "programs" | "xfrmPrograms">,
): string[] {
  const id = programs?.(wanted.role, wanted.hook) ?? 0;
  const entry = now.entry ? entryChanges(now.entry, entryOf(wanted, id), wanted) : [];
  return [
    ...entry,
    ...hookChanges(now, wanted, id),
    ...xfrmChanges(now, wanted, xfrmPrograms),
    ...(now.entry && now.egress !== wanted.link.ifindex ? ["replies can leave by it again"] : []),
    ...(now.entry && budgetDiffers(now, wanted) ? [budgetText(wanted)] : []),
    ...(now.entry && exclusionsDiffer(now, wanted) ? ["exclusions"] : []),
    ...bridgesMissing(now, wanted).map(({ name }) => `bridge ${name} as it is now`),
    ...(now.entry && now.outdated ? ["last hops with the present way back"] : []),
  ];
}

const nothing = (): void => undefined;

// The slot's rows

function slotSteps({ tables }: Surroundings, now: Current, { slot, link }: WantedAt): Step[] {
  const steps: Step[] = [];
  if (!now.entry || now.egress !== link.ifindex) {
    steps.push({
      done: null,
      do: () => tables.egressDevices.set(slot, link.ifindex),
      undo: () => {
        if (now.egress === undefined) tables.egressDevices.delete(slot);
        else tables.egressDevices.set(slot, now.egress);
      },
    });
  }
  // One that returns goes on counting.
  if (now.entry || now.returned) return steps;
  return [
    ...steps,
    { done: null, do: () => tables.verdicts.clear(slot), undo: nothing },
    { done: null, do: () => tables.taps.set(slot, {}), undo: nothing },
  ];
}

function budgetOf({ role, lastHopsMax, vmsMax }: WantedAt): { last_hops_max: number; vms_max: number } {
  return role === "uplink"
    ? { last_hops_max: lastHopsMax, vms_max: 0 }
    : { last_hops_max: 0, vms_max: vmsMax };
}

function budgetText({ role, lastHopsMax, vmsMax }: WantedAt): string {
  return role === "uplink" ? `at most ${lastHopsMax} last hops` : `at most ${vmsMax} VMs`;
}

function budgetDiffers({ budget }: Current, wanted: WantedAt): boolean {
  const { last_hops_max, vms_max } = budgetOf(wanted);
  return budget?.last_hops_max !== last_hops_max || budget.vms_max !== vms_max;
}

/** What the hot path made so far counts, so this comes after the VMs and last hops that are known. */
function budgetSteps({ tables }: Surroundings, now: Current, wanted: WantedAt): Step[] {
  const { slot, link, role } = wanted;
  const isSame = now.entry?.role === ROLE[upper(role)] && now.entry.zone === wanted.zone;
  if (isSame && !isGone(now.entry!) && !budgetDiffers(now, wanted)) return [];
  const old = tables.budgets.get(slot) ?? {};
  return [
    {
      done: null,
      do: () => {
        const counts =
          role === "uplink"
            ? { last_hops: countLastHops(tables.lastHops, link.ifindex) }
            : { vms: vmsOf(tables, link.ifindex).length };
        tables.budgets.set(slot, { ...budgetOf(wanted), ...counts });
      },
      undo: () => tables.budgets.set(slot, old),
    },
  ];
}

function exclusionsDiffer({ exclusions }: Current, { flags, exclusions: wanted }: WantedAt): boolean {
  // Without the flag nobody looks at them.
  return (flags & INTERFACE_FLAG.EXCLUDES) !== 0 && !exclusions?.equals(wanted);
}

/** Before the entry's flag says that there are any. */
function exclusionSteps({ tables }: Surroundings, now: Current, wanted: WantedAt): Step[] {
  if (!exclusionsDiffer(now, wanted)) return [];
  const { map } = tables.exclusions;
  const key = Buffer.alloc(4);
  key.writeUInt32LE(wanted.slot);
  const old = map.lookup(key)!;
  return [
    {
      done: now.exclusions ? `${wanted.link.name}: other exclusions` : null,
      do: () => map.update(key, wanted.exclusions),
      undo: () => map.update(key, old),
    },
  ];
}

// The entry

function entrySteps(
  { instance, tables }: Surroundings,
  now: Current,
  wanted: WantedAt,
  progress: Progress,
): Step[] {
  const { ifindex } = wanted.link;
  const old = now.entry;
  // The netdev that had the index before may have been this uplink too.
  const before =
    old ??
    (now.returned?.ifindex === ifindex ? now.returned : undefined) ??
    // A bridge of attached taps that becomes an uplink.
    tables.interfaces.get(ifindex);
  const entry = entryOf(wanted, programFor(instance, wanted.role, wanted.hook).info().id);
  const changes = old ? entryDone(old, entry, wanted) : null;
  if (old && changes === null) return [];
  const qdiscFlag = (): number =>
    wanted.hook === "clsact" && progress.qdiscOurs ? INTERFACE_FLAG.QDISC_OURS : 0;
  return [
    {
      done: changes?.text ?? null,
      do: () => tables.interfaces.set(ifindex, { ...entry, flags: entry.flags | qdiscFlag() }),
      undo: () => {
        if (before) tables.interfaces.set(ifindex, before);
        else tables.interfaces.delete(ifindex);
      },
    },
  ];
}

function entryDone(
  old: InterfaceEntry,
  entry: InterfaceEntry,
  wanted: WantedAt,
): { text: string | null } | null {
  const changes = entryChanges(old, entry, wanted);
  if (changes.length === 0) return null;
  // The steps of the hook say that.
  const told = changes.filter((change) => change !== OTHER_HOOK);
  return { text: told.length === 0 ? null : `${wanted.link.name}: ${told.join(", ")}` };
}

// Bridges

/** Those that the table does not have, or not as they are. */
function bridgesMissing(
  { bridges: known, attached }: Pick<Current, "bridges" | "attached">,
  wanted: WantedAt,
): Link[] {
  if (wanted.role !== "tap") return [];
  return wanted.bridges.filter((bridge) => {
    if (attached.has(bridge.ifindex)) return false;
    const entry = known.get(bridge.ifindex);
    return !entry || !encode("interface", bridgeEntry(bridge, wanted.l3)).equals(encode("interface", entry));
  });
}

function bridgeSteps({ tables }: Surroundings, { attached }: Current, wanted: WantedAt): Step[] {
  // Another tap of the same bridge may have brought it by now.
  const there = new Map(
    wanted.bridges.flatMap(({ ifindex }) => {
      const entry = tables.interfaces.get(ifindex);
      return entry ? [[ifindex, entry] as const] : [];
    }),
  );
  // An attached interface keeps its entry.
  const missing = bridgesMissing({ bridges: there, attached }, wanted).filter(
    ({ ifindex }) => (there.get(ifindex)?.role ?? ROLE.BRIDGE) === ROLE.BRIDGE,
  );
  return missing.map((bridge) => ({
    done: null,
    do: () => tables.interfaces.set(bridge.ifindex, bridgeEntry(bridge, wanted.l3)),
    undo: () => {
      const old = there.get(bridge.ifindex);
      if (old) tables.interfaces.set(bridge.ifindex, old);
      else tables.interfaces.delete(bridge.ifindex);
    },
  }));
}

// VMs

interface VmSteps {
  /** Before the entry is written. */
  before: Step[];
  after: Step[];
}

function vmSteps({ tables }: Surroundings, { entry: old }: Current, wanted: WantedAt): VmSteps {
  const { slot, zone } = wanted;
  const { ifindex, name } = wanted.link;
  const isNew = !old || isGone(old) || old.role !== ROLE[upper(wanted.role)];
  const leaves = old?.role === ROLE.TAP && (isNew || old.zone !== zone);
  if (!isNew && !leaves) return { before: [], after: [] };
  const before: Step[] = [];
  const after: Step[] = [];
  if (leaves) {
    const former = vmsOf(tables, ifindex).filter(([key]) => key.zone === old.zone);
    const usual = tables.taps.get(slot)!;
    // In another zone they keep their ids, so that a flow that they begin now still knows them afterwards.
    if (wanted.role === "tap") before.push(vmStep(tables, inZone(former, zone)));
    after.push({
      done: null,
      do: () => {
        removeVms(tables, former);
        tables.taps.set(slot, {});
      },
      undo: () => {
        restoreVms(tables, former);
        tables.taps.set(slot, usual);
      },
    });
  }
  if (wanted.role === "tap" && wanted.vms.length > 0) {
    const count = wanted.vms.length === 1 ? "1 VM" : `${wanted.vms.length} VMs`;
    const known = newVms(tables, zone, ifindex, wanted.vms);
    after.push({
      ...vmStep(tables, known),
      done: `${name}: ${count} known from the bridge or the neighbour table`,
    });
  }
  return { before, after };
}

/** Enters those that are not known yet. */
function vmStep(tables: Tables, vms: readonly KnownVm[]): Step {
  let entered: KnownVm[] = [];
  return {
    done: null,
    do: () => {
      entered = restoreVms(tables, vms);
    },
    undo: () => removeVms(tables, entered),
  };
}

// Last hops

function lastHopSteps({ tables }: Surroundings, now: Current, wanted: WantedAt): Step[] {
  const { lastHops } = tables;
  const { ifindex } = wanted.link;
  const old = now.entry ?? now.returned;
  if (wanted.role === "tap")
    return old?.role === ROLE.UPLINK ? [stateStep(around(tables), ifindex, "down")] : [];
  const begins = old?.role !== ROLE.UPLINK || isGone(old) || now.returned !== undefined;
  if (!begins && !now.outdated) return [];
  const to = remapTarget(wanted);
  const from = now.returned?.ifindex ?? ifindex;
  const before = old
    ? { ifindex: from, slot: old.slot, sourceMac: old.host_mac, way: { ...to.way!, ...old } }
    : to;
  let remapped = 0;
  const remap: Step = {
    done: null,
    do: () => {
      remapped = remapLastHops(lastHops, from, to);
      remap.done = remapped === 0 ? null : remapText(wanted.link.name, remapped);
    },
    undo: () => {
      if (remapped === 0) return;
      remapLastHops(lastHops, ifindex, before);
      if (begins) setState(lastHops, from, "down");
    },
  };
  return [
    remap,
    ...(begins || !wanted.usable ? [stateStep(around(tables), ifindex, wanted.usable ? "up" : "down")] : []),
  ];
}

/** What the records of its last hops are to say. */
export function remapTarget(wanted: Omit<WantedAt, "hook">): RemapTarget {
  const { link, l3, slot, flags, mark, labelStacks } = wanted;
  const bare = link.ethernet ? 0 : INTERFACE_FLAG.NO_LINK_LAYER;
  return {
    ifindex: link.ifindex,
    slot,
    sourceMac: macBytes(l3),
    way: { flags: flags | bare, mark, labelStacks },
  };
}

function remapText(name: string, count: number): string {
  return `${name}: ${count === 1 ? "1 last hop" : `${count} last hops`} taken over, with all flows`;
}

const around = (tables: Tables): Pick<Surroundings, "tables"> => ({ tables });

/** Of the last hops of an uplink that belong to no device: whether replies go there. */
export function stateStep(
  { tables: { lastHops } }: Pick<Surroundings, "tables">,
  ifindex: number,
  state: "up" | "down",
): Step {
  let changed: number[] = [];
  return {
    done: null,
    do: () => {
      changed = setState(lastHops, ifindex, state);
    },
    undo: () => {
      if (changed.length > 0) setState(lastHops, ifindex, state === "up" ? "down" : "up", changed);
    },
  };
}

/** The entry under which it was kept goes; its slot has the new one by now. */
function returnSteps({ tables }: Surroundings, { returned }: Current, { link }: WantedAt): Step[] {
  if (!returned || returned.ifindex === link.ifindex) return [];
  return [
    {
      done: null,
      do: () => tables.interfaces.delete(returned.ifindex),
      undo: () => tables.interfaces.set(returned.ifindex, returned),
    },
  ];
}

function upper<T extends string>(word: T): Uppercase<T> {
  return word.toUpperCase() as Uppercase<T>;
}
