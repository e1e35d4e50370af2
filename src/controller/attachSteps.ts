// SPDX-License-Identifier: Apache-2.0
// The steps that bring an interface from how it is attached to how it is wanted. Tables are written before the
// program that reads them is attached; what goes, goes after its successor works.

import { encode, type StructValue } from "../abi/codec.ts";
import { HOOK, INTERFACE_FLAG, ORIGIN, POLICY, ROLE } from "../abi/layout.gen.ts";
import { parseMac } from "../addresses.ts";
import { LAST_HOPS_PER_UPLINK, VMS_PER_TAP } from "../config/defaults.ts";
import {
  type Attachment,
  attachAt,
  changeRole,
  detachAt,
  finishLink,
  NEW_SUFFIX,
  type Place,
  programFor,
  removeQdiscIfEmpty,
} from "../kernel/attachment.ts";
import type { Instance } from "../kernel/instance.ts";
import type { Netlink } from "../kernel/netlink.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { clsact } from "../libbpf/index.ts";
import type { Hook, Policy, Role } from "../ops/types.ts";
import type { Tables } from "../tables/index.ts";
import { countLastHops, markRoute, markUp } from "./lastHops.ts";
import type { Step } from "./steps.ts";
import { inZone, type KnownVm, newVms, removeVms, restoreVms, vmsOf } from "./vms.ts";

export interface Wanted {
  link: Link;
  /** Where the host's stack sees its packets: its bridge, or itself. */
  l3: Link;
  /** The bridge of a tap and the VLAN interfaces on it: what a routed host's lookup may name. */
  bridges: readonly Link[];
  role: Role;
  hook: Hook;
  zone: number;
  policy: Policy;
  slot: number;
  portBlocked: boolean;
  /** MACs that are known to be behind a tap. */
  vms: readonly string[];
}

export interface Surroundings {
  instance: Instance;
  tables: Tables;
  netlink: Netlink;
}

/** How it is attached now. */
export interface Current {
  entry: StructValue<"interface"> | undefined;
  attachment: Attachment | undefined;
}

/** What only becomes known while the steps run. */
interface Progress {
  /** The clsact qdisc was not there before us. */
  qdiscOurs: boolean;
}

export function attachSteps(around: Surroundings, now: Current, wanted: Wanted, why: string): Step[] {
  const progress = { qdiscOurs: ((now.entry?.flags ?? 0) & INTERFACE_FLAG.QDISC_OURS) !== 0 };
  const hook = hookSteps(around, now, wanted, why, progress);
  const vms = vmSteps(around, now, wanted);
  return [
    ...(now.entry ? [] : slotSteps(around, wanted)),
    ...hook.before,
    ...vms.before,
    ...entrySteps(around, now, wanted, progress),
    ...bridgeSteps(around, wanted),
    ...vms.after,
    ...lastHopSteps(around, now, wanted),
    ...hook.after,
  ];
}

const nothing = (): void => undefined;

// The slot's rows

function slotSteps({ tables }: Surroundings, { slot, link }: Wanted): Step[] {
  return [
    {
      done: null,
      do: () => tables.egressDevices.set(slot, link.ifindex),
      undo: () => tables.egressDevices.delete(slot),
    },
    { done: null, do: () => tables.verdicts.clear(slot), undo: nothing },
    { done: null, do: () => tables.taps.set(slot, {}), undo: nothing },
  ];
}

/** What the hot path made so far counts, so this comes after the VMs and last hops that are known. */
function budgetStep({ tables }: Surroundings, { slot, link, role }: Wanted): Step {
  const old = tables.budgets.get(slot) ?? {};
  return {
    done: null,
    do: () =>
      tables.budgets.set(
        slot,
        role === "uplink"
          ? { last_hops: countLastHops(tables.lastHops, link.ifindex), last_hops_max: LAST_HOPS_PER_UPLINK }
          : { vms: vmsOf(tables, link.ifindex).length, vms_max: VMS_PER_TAP },
      ),
    undo: () => tables.budgets.set(slot, old),
  };
}

// The entry

type Entry = StructValue<"interface">;

function entrySteps(
  { instance, tables }: Surroundings,
  now: Current,
  wanted: Wanted,
  progress: Progress,
): Step[] {
  const { ifindex } = wanted.link;
  const old = now.entry;
  const entry = entryOf(wanted, programFor(instance, wanted.role, wanted.hook).info().id, old);
  const changes = old ? entryChanges(old, entry, wanted) : null;
  if (old && changes === null) return [];
  const qdiscFlag = (): number =>
    wanted.hook === "clsact" && progress.qdiscOurs ? INTERFACE_FLAG.QDISC_OURS : 0;
  return [
    {
      done: changes?.text ?? null,
      do: () => tables.interfaces.set(ifindex, { ...entry, flags: entry.flags | qdiscFlag() }),
      undo: () => {
        if (old) tables.interfaces.set(ifindex, old);
        else tables.interfaces.delete(ifindex);
      },
    },
  ];
}

/** Without the flag that says whose the qdisc is. */
function entryOf(wanted: Wanted, programId: number, old: Entry | undefined): Entry {
  const kept = (old?.flags ?? 0) & ~(INTERFACE_FLAG.PORT_BLOCKED | INTERFACE_FLAG.QDISC_OURS);
  return {
    slot: wanted.slot,
    l3_ifindex: wanted.l3.ifindex,
    zone: wanted.zone,
    role: ROLE[upper(wanted.role)],
    policy: POLICY[upper(wanted.policy)],
    flags: kept | (wanted.portBlocked ? INTERFACE_FLAG.PORT_BLOCKED : 0),
    hook: HOOK[upper(wanted.hook)],
    mac: macBytes(wanted.link),
    host_mac: macBytes(wanted.l3),
    origin: ORIGIN.MANUAL,
    name: wanted.link.name,
    prog_id: programId,
    ifindex: wanted.link.ifindex,
    config_index: 0,
    reserved: 0,
  };
}

/** For people; null if the entries are the same. */
function entryChanges(old: Entry, entry: Entry, wanted: Wanted): { text: string | null } | null {
  const { name } = wanted.link;
  const changes: string[] = [];
  if (old.role !== entry.role) changes.push(`role ${wanted.role}`);
  if (old.zone !== entry.zone) changes.push(`zone ${entry.zone} instead of ${old.zone}`);
  if (old.policy !== entry.policy) changes.push(`policy ${wanted.policy}`);
  if (changes.length > 0) return { text: `${name}: ${changes.join(", ")}` };
  // The steps of the hook say so.
  if (old.hook !== entry.hook) return { text: null };
  const ours = INTERFACE_FLAG.QDISC_OURS;
  const same = encode("interface", { ...old, flags: old.flags & ~ours }).equals(encode("interface", entry));
  return same ? null : { text: `${name}: entered what has changed about the interface` };
}

// Bridges, VMs, last hops

function bridgeSteps({ tables }: Surroundings, { bridges, l3, role }: Wanted): Step[] {
  if (role !== "tap") return [];
  return bridges
    .filter((bridge) => !tables.interfaces.get(bridge.ifindex))
    .map((bridge) => ({
      done: null,
      do: () =>
        tables.interfaces.set(bridge.ifindex, {
          // Of the bridge itself also for a VLAN interface on it: this is how its taps are found.
          l3_ifindex: l3.ifindex,
          role: ROLE.BRIDGE,
          mac: macBytes(bridge),
          host_mac: macBytes(bridge),
          name: bridge.name,
        }),
      undo: () => tables.interfaces.delete(bridge.ifindex),
    }));
}

interface VmSteps {
  /** Before the entry is written. */
  before: Step[];
  after: Step[];
}

function vmSteps(around: Surroundings, { entry: old }: Current, wanted: Wanted): VmSteps {
  const { tables } = around;
  const { slot, zone } = wanted;
  const { ifindex, name } = wanted.link;
  const isNew = !old || old.role !== ROLE[upper(wanted.role)];
  const leaves = old?.role === ROLE.TAP && (isNew || old.zone !== zone);
  if (!isNew && !leaves) return { before: [], after: [] };
  const before: Step[] = [];
  const after: Step[] = [];
  if (leaves) {
    const former = vmsOf(tables, ifindex).filter(([key]) => key.zone === old.zone);
    // In another zone they keep their ids, so that a flow that they begin now still knows them afterwards.
    if (wanted.role === "tap") before.push(vmStep(tables, inZone(former, zone)));
    after.push({
      done: null,
      do: () => {
        removeVms(tables, former);
        tables.taps.set(slot, {});
      },
      undo: () => restoreVms(tables, former),
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
  after.push(budgetStep(around, wanted));
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

function lastHopSteps({ tables }: Surroundings, { entry: old }: Current, wanted: Wanted): Step[] {
  const { ifindex } = wanted.link;
  const { lastHops } = tables;
  let changed: number[] = [];
  if (wanted.role === "uplink" && old?.role !== ROLE.UPLINK) {
    return [
      {
        done: null,
        do: () => {
          changed = markUp(lastHops, ifindex);
        },
        undo: () => markRoute(lastHops, ifindex, changed),
      },
    ];
  }
  if (wanted.role === "tap" && old?.role === ROLE.UPLINK) {
    return [
      {
        done: null,
        do: () => {
          changed = markRoute(lastHops, ifindex);
        },
        undo: () => markUp(lastHops, ifindex, changed),
      },
    ];
  }
  return [];
}

// The hook

interface HookSteps {
  /** Before the entry is written. */
  before: Step[];
  /** When all tables are right. */
  after: Step[];
}

function hookSteps(
  around: Surroundings,
  { attachment: old }: Current,
  wanted: Wanted,
  why: string,
  progress: Progress,
): HookSteps {
  const { instance } = around;
  const to: Place = { ifindex: wanted.link.ifindex, role: wanted.role, hook: wanted.hook };
  const done = `${wanted.link.name}: attached by ${wanted.hook}, since ${why}`;
  const qdisc =
    to.hook === "clsact" && old?.hook !== "clsact" ? [qdiscStep(around, to.ifindex, progress)] : [];
  const attach = (suffix: string): Step => ({
    done,
    do: () => attachAt(instance, to, suffix),
    undo: () => detachAt(instance, to, suffix),
  });
  if (!old?.alive) {
    const clear: Step = { done: null, do: () => detachAt(instance, { ...to, ...old }), undo: nothing };
    return { before: qdisc, after: old ? [clear, attach("")] : [attach("")] };
  }
  const from: Place = { ifindex: to.ifindex, role: old.role, hook: old.hook };
  if (from.hook === to.hook) {
    if (from.role === to.role) return { before: [], after: [] };
    const change: Step = {
      done: null,
      do: () => changeRole(instance, from, to.role),
      undo: () => changeRole(instance, to, from.role),
    };
    return { before: [], after: [change] };
  }
  const detach: Step = {
    done: `${wanted.link.name}: detached from ${from.hook}`,
    do: () => detachAt(instance, from),
    undo: () => attachAt(instance, from),
  };
  // The kernel does not have native and generic XDP on one interface at the same time.
  if (isXdp(from.hook) && isXdp(to.hook)) return { before: [], after: [detach, attach("")] };
  const leave = from.hook === "clsact" ? [leaveQdiscStep(around, to.ifindex, progress)] : [];
  if (to.hook === "clsact") return { before: [...qdisc, attach("")], after: [detach] };
  return { before: [attach(NEW_SUFFIX)], after: [detach, renameStep(instance, to), ...leave] };
}

function qdiscStep({ netlink }: Surroundings, ifindex: number, progress: Progress): Step {
  let created = false;
  return {
    done: null,
    do: () => {
      created = clsact.create(ifindex);
      progress.qdiscOurs ||= created;
    },
    undo: () => {
      if (created) removeQdiscIfEmpty(netlink, ifindex);
    },
  };
}

function leaveQdiscStep({ netlink }: Surroundings, ifindex: number, progress: Progress): Step {
  return {
    done: null,
    do: () => {
      if (progress.qdiscOurs) removeQdiscIfEmpty(netlink, ifindex);
    },
    undo: nothing,
  };
}

function renameStep(instance: Instance, { role, ifindex }: Place): Step {
  return {
    done: null,
    do: () => finishLink(instance, role, ifindex),
    undo: nothing,
  };
}

function isXdp(hook: Hook): boolean {
  return hook === "xdp_native" || hook === "xdp_generic";
}

function macBytes(link: Link): Buffer {
  return (link.mac !== null && parseMac(link.mac)) || Buffer.alloc(6);
}

function upper<T extends string>(word: T): Uppercase<T> {
  return word.toUpperCase() as Uppercase<T>;
}
