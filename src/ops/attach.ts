// SPDX-License-Identifier: Apache-2.0

import { setTimeout as sleep } from "node:timers/promises";
import { POLICY_NAMES } from "../abi/codec.ts";
import { TC_FILTER } from "../config/defaults.ts";
import { attachSteps, type Current, type Surroundings, type Wanted } from "../controller/attachSteps.ts";
import { cleanUp, isAttached } from "../controller/detach.ts";
import { attachDecided, decideHook, type HookDecision } from "../controller/hook.ts";
import { forgetOutdated, formerSlot, slotsInUse } from "../controller/lastHops.ts";
import { chooseSlot } from "../controller/slots.ts";
import { runSteps } from "../controller/steps.ts";
import { vmMacs } from "../controller/vms.ts";
import { LasthopError } from "../errors.ts";
import { attachmentsOn, programFor } from "../kernel/attachment.ts";
import { driver, vlanStripping } from "../kernel/ethtool.ts";
import { createInstance, type Instance, openInstance, removeInstance } from "../kernel/instance.ts";
import { Netlink } from "../kernel/netlink.ts";
import { makeDirectories, requireBpffs, withLock } from "../kernel/pinRoot.ts";
import { requireCapabilities, requireKernel } from "../kernel/probe.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { usesTcx } from "../kernel/tc.ts";
import { BpfError, isErrno, xdpQuery } from "../libbpf/index.ts";
import { ERRNO } from "../libc/index.ts";
import { Tables } from "../tables/index.ts";
import { findInterface, requireAttachable } from "./interfaces.ts";
import type { AttachOptions, AttachResult, Hook, OpContext, Policy } from "./types.ts";

/** After this no packet is still using a record that no table leads to. */
const GRACE_MS = 20;

/**
 * Attaches an interface or changes how it is attached. What the options leave out stays as it is, or is auto,
 * zone 0, enforce. On an error nothing has changed.
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

function checkOptions({ zone, role, mode, policy }: AttachOptions): void {
  const check = (name: string, value: unknown, ok: boolean): void => {
    if (!ok) throw new LasthopError("E_USAGE", `${name} cannot be ${JSON.stringify(value)}`);
  };
  check("zone", zone, zone === undefined || (Number.isInteger(zone) && zone >= 0 && zone <= 0xffff));
  check("role", role, ["uplink", "tap"].includes(role));
  check("mode", mode, mode === undefined || ["auto", "native", "generic", "tc"].includes(mode));
  check("policy", policy, policy === undefined || ["enforce", "observe", "off"].includes(policy));
}

async function attachLocked(
  context: OpContext,
  netlink: Netlink,
  options: AttachOptions,
): Promise<AttachResult> {
  // Again, since others may have changed it while we waited for the lock.
  const link = findInterface(netlink, options.interface);
  const present = openIfPresent(context.pinRoot);
  const actions: string[] = [];
  try {
    if (present) {
      const around = { instance: present, tables: new Tables(present), netlink };
      for (const { name } of cleanUp(around).values()) actions.push(`${name} is gone: forgotten`);
    }
    const now = present ? observe(present, link) : { entry: undefined, attachment: undefined };
    const decision = decide(link, now, options, present);
    sayFirst(context, link, now, decision.hook);
    const instance = present ?? createInstance(context.pinRoot);
    try {
      const around = { instance, tables: new Tables(instance), netlink };
      const result = await change(around, link, now, decision, options, context);
      return { ...result, actions: [...actions, ...result.actions] };
    } catch (error) {
      if (!present) removeInstance(context.pinRoot);
      throw explain(error, netlink, link, decision.hook);
    } finally {
      instance.close();
    }
  } finally {
    present?.close();
  }
}

function openIfPresent(pinRoot: string): Instance | undefined {
  try {
    return openInstance(pinRoot);
  } catch (error) {
    if (error instanceof LasthopError && error.code === "E_NO_TABLES") return undefined;
    throw error;
  }
}

function observe(instance: Instance, link: Link): Current {
  const entry = new Tables(instance).interfaces.get(link.ifindex);
  const attachments = attachmentsOn(instance, link.ifindex, link.xdp?.mode ?? null);
  return {
    entry: entry && isAttached(entry) ? entry : undefined,
    attachment: attachments.find((attachment) => attachment.alive) ?? attachments[0],
  };
}

/** A mode that is not given leaves the hook as it is, if it suits the role. */
function decide(link: Link, now: Current, options: AttachOptions, instance?: Instance): HookDecision {
  const { attachment } = now;
  if (options.mode === undefined && now.entry && attachment?.alive) {
    const suits = options.role === "uplink" || !attachment.hook.startsWith("xdp");
    if (suits) return { hook: attachment.hook, reason: "it was before", fallback: null };
  }
  return decideHook(hookFacts(link, options.role, now, instance), options.mode ?? "auto");
}

function hookFacts(link: Link, role: AttachOptions["role"], now: Current, instance?: Instance) {
  const isOurs = now.attachment?.alive === true && now.attachment.hook.startsWith("xdp");
  return {
    name: link.name,
    role,
    kind: link.kind,
    hardware: link.parentDevice !== null && link.ethernet,
    xdp: link.xdp,
    ownXdpProgramId: isOurs && instance ? now.attachment!.programId : null,
    vlanStripping: vlanStripping(link.name),
    tcx: usesTcx(link.ifindex),
  };
}

/** What the user should know before it happens. */
function sayFirst(context: OpContext, link: Link, now: Current, hook: Hook): void {
  const from = now.attachment?.alive ? now.attachment.hook : null;
  if (from !== hook && (from === "xdp_native" || hook === "xdp_native")) {
    context.warn(`${link.name}: attaching or detaching native XDP may reset the link for a moment`);
  }
  if (hook === "xdp_native" && from !== hook && link.kind === "veth") {
    context.warn(
      `${link.name}: native XDP on a veth turns segmentation offload off; TCP gets several times slower`,
    );
  }
  if (!link.flags.up) context.warn(`${link.name} is down`);
  if (isPortBlocked(link)) {
    context.warn(
      `${link.name}: the bridge port is ${link.portState}, nothing is learned there; attach again when it forwards`,
    );
  }
}

async function change(
  around: Surroundings,
  link: Link,
  now: Current,
  decision: HookDecision,
  options: AttachOptions,
  context: OpContext,
): Promise<AttachResult> {
  const wanted = wantedFor(around, link, now, options);
  const { hook, result: actions } = attachDecided(
    decision,
    (hook, reason) => runSteps(attachSteps(around, now, { ...wanted, hook }, reason)),
    (error) => refusal(context, link, error),
  );
  await forgetLastHops(around.tables, wanted);
  return {
    interface: link.name,
    ifindex: link.ifindex,
    role: wanted.role,
    hook,
    zone: wanted.zone,
    policy: wanted.policy,
    program_id: programFor(around.instance, wanted.role, hook).info().id,
    actions,
  };
}

/** Why the driver does not take native XDP; null if that is not what failed. */
function refusal(context: OpContext, link: Link, error: unknown): string | null {
  if (!(error instanceof BpfError) || error.code !== "E_BPF" || error.errno === ERRNO.ENODEV) return null;
  const why = `the driver refuses native XDP (${error.errnoName})`;
  context.warn(`${link.name}: ${why}; using TC`);
  return why;
}

async function forgetLastHops(tables: Tables, { link, l3, role, slot }: Omit<Wanted, "hook">): Promise<void> {
  if (role !== "uplink" || l3.mac === null) return;
  const outdated = forgetOutdated(tables.lastHops, link.ifindex, slot, l3.mac);
  if (outdated.length === 0) return;
  await sleep(GRACE_MS);
  for (const index of outdated) tables.lastHops.giveBack(index);
}

function wantedFor(
  { tables, netlink }: Surroundings,
  link: Link,
  { entry }: Current,
  options: AttachOptions,
): Omit<Wanted, "hook"> {
  const bridge = link.masterKind === "bridge" && link.master !== null ? netlink.link(link.master) : undefined;
  const l3 = bridge ?? link;
  const onBridge = bridge
    ? netlink.links().filter((other) => other.kind === "vlan" && other.lower === bridge.ifindex)
    : [];
  const { role } = options;
  return {
    link,
    l3,
    bridges: bridge ? [bridge, ...onBridge] : [],
    role,
    zone: options.zone ?? entry?.zone ?? 0,
    policy: options.policy ?? policyName(entry?.policy ?? 0),
    slot: entry?.slot ?? freeSlot(tables, link.ifindex),
    portBlocked: isPortBlocked(link),
    vms: role === "tap" ? vmMacs(link, l3.mac ?? "", bridge ? netlink.fdb() : [], netlink.neighbours()) : [],
  };
}

function policyName(policy: number): Policy {
  return POLICY_NAMES[policy] ?? "enforce";
}

function freeSlot(tables: Tables, ifindex: number): number {
  const taken = new Set(tables.interfaces.list().map((entry) => entry.slot));
  return chooseSlot(formerSlot(tables.lastHops, ifindex), taken, slotsInUse(tables.lastHops));
}

/** A port that is merely down forwards again when it comes up; one that the operator or STP stopped does not. */
function isPortBlocked({ portState, flags }: Link): boolean {
  return portState === "blocking" || (portState === "disabled" && flags.up && flags.running);
}

/** The same error with what the user can do about it. */
function explain(error: unknown, netlink: Netlink, link: Link, hook: Hook): unknown {
  const { name, ifindex } = link;
  if (!netlink.link(ifindex)) {
    return new LasthopError("E_NO_INTERFACE", `${name} went away while it was being attached`, {
      cause: error,
      hint: "Nothing was changed. Attach it when it is back.",
    });
  }
  if (!(error instanceof BpfError) || error.code !== "E_BPF") return error;
  const options = { cause: error, ...(error.details !== undefined && { details: error.details }) };
  if (hook.startsWith("xdp") && isErrno(error, "EBUSY", "EEXIST")) {
    const id = xdpQuery(ifindex).programId;
    return new LasthopError(
      "E_FOREIGN",
      `cannot attach ${name} by ${hook}: XDP program ${id ?? "(unknown)"} is on it`,
      { ...options, hint: `Use --mode tc, or see whose it is: \`bpftool net show dev ${name}\`.` },
    );
  }
  if (hook === "clsact" && isErrno(error, "EEXIST")) {
    const { handle, priority } = TC_FILTER;
    return new LasthopError(
      "E_FOREIGN",
      `cannot attach ${name} by clsact: another filter has handle ${handle} of priority ${priority}`,
      {
        ...options,
        hint: `See whose it is: \`tc filter show dev ${name} ingress\`. Its owner can give it another priority.`,
      },
    );
  }
  if (hook === "xdp_native") {
    return new LasthopError(
      "E_MODE",
      `the driver of ${name} (${driver(name) ?? "unknown"}) refuses native XDP: ${error.errnoName}`,
      { ...options, hint: "Use --mode tc, or --mode generic." },
    );
  }
  return error;
}
