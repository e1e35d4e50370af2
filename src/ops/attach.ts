// SPDX-License-Identifier: Apache-2.0

import { INTERFACE_FLAG, ORIGIN } from "../abi/layout.gen.ts";
import { MARK_MAX, MTU_MAX, MTU_MIN } from "../config/defaults.ts";
import { apply } from "../controller/apply.ts";
import {
  type AttachUnit,
  attachedUplinks,
  attachUnit,
  configKey,
  keptUplinks,
  prepare,
  settingsOf,
  takenSlots,
} from "../controller/attachInterface.ts";
import { beneathSteps } from "../controller/beneath.ts";
import { settleDevices } from "../controller/devices.ts";
import { type HostFacts, readHost } from "../controller/hostFacts.ts";
import { type Observed, observe, observeNothing, type Surroundings } from "../controller/observe.ts";
import { attachAction, planGone, planLostBridges, planOrphans, planRemains } from "../controller/plan.ts";
import { openIfPresent } from "../controller/reconcile.ts";
import { settleServices } from "../controller/serviceSettle.ts";
import { runSteps } from "../controller/steps.ts";
import { LasthopError } from "../errors.ts";
import { programFor } from "../kernel/attachment.ts";
import { requireNotHeld } from "../kernel/holder.ts";
import { createInstance, type Instance, removeInstance } from "../kernel/instance.ts";
import { Netlink } from "../kernel/netlink.ts";
import { makeDirectories, requireBpffs, withLock } from "../kernel/pinRoot.ts";
import { requireCapabilities, requireKernel } from "../kernel/probe.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { Tables } from "../tables/index.ts";
import { findInterface, requireAttachable } from "./interfaces.ts";
import type { AttachOptions, AttachResult, Hook, OpContext } from "./types.ts";
import { uplinkWay } from "./uplinkWay.ts";

/**
 * Attaches an interface or changes how it is attached. What the options leave out stays as it is, or is auto,
 * zone 0, enforce. On an error nothing has changed. Throws E_HELD for a configured interface while a daemon runs.
 */
export async function attach(context: OpContext, options: AttachOptions): Promise<AttachResult> {
  checkOptions(options);
  const { pinRoot } = context;
  requireCapabilities(`attach ${options.interface}`, ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
  using netlink = new Netlink();
  requireAttachable(netlink, findInterface(netlink, options.interface), options.role);
  requireKernel();
  requireBpffs(pinRoot);
  const removeDirectories = makeDirectories(pinRoot);
  try {
    return await withLock(pinRoot, () => attachLocked(context, netlink, options));
  } catch (error) {
    removeDirectories();
    throw error;
  }
}

function checkOptions(options: AttachOptions): void {
  const { zone, role, mode, policy } = options;
  const check = (name: string, value: unknown, ok: boolean): void => {
    if (!ok) throw new LasthopError("E_USAGE", `${name} cannot be ${JSON.stringify(value)}`);
  };
  check("zone", zone, zone === undefined || (Number.isInteger(zone) && zone >= 0 && zone <= 0xffff));
  check("role", role, ["uplink", "tap"].includes(role));
  check("mode", mode, mode === undefined || ["auto", "native", "generic", "tc"].includes(mode));
  check("policy", policy, policy === undefined || ["enforce", "observe", "off"].includes(policy));
  const { mtu, clamp_mss, via, mark } = options;
  const isMtu = mtu === "auto" || isWhole(mtu, MTU_MIN, MTU_MAX);
  check("mtu", mtu, mtu === undefined || isMtu);
  check("clamp_mss", clamp_mss, clamp_mss === undefined || typeof clamp_mss === "boolean");
  check("via", via, via === undefined || ["redirect", "stack"].includes(via));
  check("mark", mark, mark === undefined || isWhole(mark, 0, MARK_MAX));
  const ofUplinks = Object.entries({ mtu, clamp_mss, via, mark }).find(([, value]) => value !== undefined);
  if (role === "tap" && ofUplinks) {
    throw new LasthopError("E_USAGE", `${ofUplinks[0]} is for uplinks: it says how replies leave by one`);
  }
}

function isWhole(value: unknown, low: number, high: number): boolean {
  return Number.isInteger(value) && (value as number) >= low && (value as number) <= high;
}

function attachLocked(context: OpContext, netlink: Netlink, options: AttachOptions): AttachResult {
  // Again, since others may have changed it while we waited for the lock.
  const link = findInterface(netlink, options.interface);
  const host = readHost(netlink);
  const present = openIfPresent(context.pinRoot);
  let made: Instance | undefined;
  try {
    const before = present
      ? tidy(context, { instance: present, tables: new Tables(present), netlink }, host)
      : { observed: observeNothing(host, netlink), done: [] };
    const unit = unitFor(context, before.observed, link, options);
    for (const warning of unit.warnings) context.warn(warning);
    const instance = present ?? createInstance(context.pinRoot);
    if (!present) made = instance;
    const around = { instance, tables: new Tables(instance), netlink };
    const { hook, done } = change(context, around, unit);
    const orphans = planOrphans(before.observed, [unit]).filter(({ object }) => object === link.name);
    return {
      ...resultOf(around, unit, hook),
      actions: [
        ...before.done,
        ...done,
        ...applyAll(context, around, orphans),
        ...runSteps(beneathSteps(around.tables, host)),
        ...settleDevices(around),
        ...settleServices(around),
      ],
    };
  } catch (error) {
    if (made) removeInstance(context.pinRoot);
    throw error;
  } finally {
    present?.close();
    made?.close();
  }
}

/** Interfaces that went without us, and what interrupted changes left. */
function tidy(
  context: OpContext,
  around: Surroundings,
  host: HostFacts,
): { observed: Observed; done: string[] } {
  const observed = observe(around, host);
  const [remains, gone] = [[...planRemains(observed), ...planLostBridges(observed)], planGone(observed)];
  if (remains.length + gone.length === 0) return { observed, done: [] };
  applyAll(context, around, remains);
  const done = applyAll(context, around, gone);
  return { observed: observe(around, host), done };
}

/** Throws what made the first of them fail. */
function applyAll({ warn }: OpContext, around: Surroundings, actions: Parameters<typeof apply>[1]): string[] {
  const { done, failed } = apply(around, actions, { warn });
  if (failed[0]) throw failed[0].cause;
  return done;
}

function unitFor({ pinRoot }: OpContext, observed: Observed, link: Link, options: AttachOptions): AttachUnit {
  const there = observed.interfaces.find(
    (item) => item.entry.ifindex === link.ifindex && item.link !== undefined,
  );
  const kept = keptUplinks(observed).find(({ name }) => name === link.name);
  const returned = there || options.role !== "uplink" ? undefined : kept;
  const item = there ?? observed.interfaces.find(({ entry }) => entry === returned);
  const key = item ? configKey(item.entry) : null;
  if (key !== null) requireNotHeld(pinRoot, `attach ${link.name}`, key);
  const before = settingsOf(item ?? {}, options.role);
  const settings = {
    ...before,
    flags: chosenFlags(before.flags, options),
    mode: options.mode,
    ...(options.zone !== undefined && { zone: options.zone }),
    ...(options.policy !== undefined && { policy: options.policy }),
    ...(options.mtu !== undefined && { mtu: options.mtu === "auto" ? null : options.mtu }),
    ...(options.mark !== undefined && { mark: options.mark }),
    origin: ORIGIN.MANUAL,
    configIndex: 0,
  };
  const uplinks = attachedUplinks(observed);
  if (settings.role === "uplink") uplinks.set(link.ifindex, settings.zone);
  else uplinks.delete(link.ifindex);
  return prepare(observed, link, settings, takenSlots(observed), returned, { uplinks });
}

function chosenFlags(flags: number, { clamp_mss, via }: AttachOptions): number {
  const put = (all: number, flag: number, value: boolean | undefined): number =>
    value === undefined ? all : value ? all | flag : all & ~flag;
  const clamped = put(flags, INTERFACE_FLAG.CLAMP_MSS, clamp_mss);
  return put(clamped, INTERFACE_FLAG.VIA_STACK, via && via === "stack");
}

function change({ warn }: OpContext, around: Surroundings, unit: AttachUnit): { hook: Hook; done: string[] } {
  const action = attachAction(unit);
  if (!action) return { hook: unit.decision.hook, done: [] };
  const { hook, done } = attachUnit(around, unit, warn);
  return { hook, done: done.length > 0 ? done : [action.text] };
}

function resultOf(
  { instance }: Surroundings,
  { link, wanted }: AttachUnit,
  hook: Hook,
): Omit<AttachResult, "actions"> {
  const { role, zone, policy, flags } = wanted;
  const way = role === "uplink" ? uplinkWay(wanted.mtu ?? link.mtu, flags, wanted.mark) : {};
  return {
    interface: link.name,
    ifindex: link.ifindex,
    role,
    hook,
    zone,
    policy,
    program_id: programFor(instance, role, hook).info().id,
    ...way,
  };
}
