// SPDX-License-Identifier: Apache-2.0
// Brings a host to its configuration: reads what is there, plans, and does it.

import { setImmediate as turn } from "node:timers/promises";
import type { Config } from "../config/schema.ts";
import { LasthopError } from "../errors.ts";
import { type Instance, openInstance } from "../kernel/instance.ts";
import { Netlink } from "../kernel/netlink.ts";
import { makeDirectories, requireBpffs, withLock } from "../kernel/pinRoot.ts";
import { requireCapabilities, requireKernel } from "../kernel/probe.ts";
import { Tables } from "../tables/index.ts";
import { type Applied, apply } from "./apply.ts";
import type { RunSteps } from "./attachInterface.ts";
import { desiredOf } from "./desired.ts";
import { settle } from "./deviceLastHops.ts";
import { ensureInstance, type InstanceChange, observeInstance } from "./ensure.ts";
import type { Failure } from "./failure.ts";
import { type HostFacts, readHost } from "./hostFacts.ts";
import { type Observed, observe, observeNothing, observeSpecs, type Surroundings } from "./observe.ts";
import { inPieces } from "./pieces.ts";
import { type Action, type InstanceAction, type Plan, plan } from "./plan.ts";
import { settleServicesInPieces } from "./serviceSettle.ts";
import { observeNoTunnels, observeTunnels } from "./tunnelObserve.ts";
import { planTunnels, type TunnelPlan } from "./tunnelPlan.ts";
import { applyTunnel, strangeEnds, withTunnels } from "./tunnels.ts";

export type { Failure } from "./failure.ts";
export type { Action, ActionKind, Plan } from "./plan.ts";

export interface ReconcileContext {
  /** Directory on bpffs under which the tables are pinned. */
  pinRoot: string;
  /** Something that happens now and that the operator should know ("detaching native XDP may reset the link"). */
  warn(message: string): void;
}

export interface ReconcileResult {
  /** What was found to do; empty when all was as configured. */
  actions: Action[];
  /** What was done, in order, for people. */
  done: string[];
  /** Refused or failed; each attempt of it was undone. Stands until it is repaired: log it when it is new. */
  failed: Failure[];
  /** Conditions that stand: log each when it is new. */
  warnings: string[];
}

export interface ReconcileOptions {
  /** How the steps of an action are run. */
  run?: RunSteps;
}

const CAPABILITIES = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"] as const;

/** What reconcile would do. Reads only. */
export async function planConfig(
  { pinRoot }: Pick<ReconcileContext, "pinRoot">,
  config: Config,
): Promise<Plan> {
  requireCapabilities("look at what is attached", [...CAPABILITIES]);
  requireKernel();
  requireBpffs(pinRoot);
  using netlink = new Netlink();
  const changes = observeInstance(pinRoot, { maxEntries: config.tables });
  const first = changes.map((change) => instanceAction(pinRoot, change));
  const host = readHost(netlink);
  // Another version's tables, and who is attached to them, can only be read once they were taken over.
  const isLater = changes.some(({ kind }) => kind === "layout");
  using instance = isLater ? undefined : openIfPresent(pinRoot);
  const around = instance && { instance, tables: new Tables(instance), netlink };
  const there = around ? observeTunnels(around, host) : observeNoTunnels(host, pinRoot);
  // Tunnels that are there already are in those tables too.
  const tunnels = isLater ? { actions: [], failed: [] } : planTunnels(config.tunnels, there);
  const after = withTunnels(host, tunnels.actions);
  const observed = around ? observe(around, after) : observeNothing(after, netlink);
  const rest = plan(desiredOf(config, after, observed.guests), observed);
  return {
    ...rest,
    actions: [...first, ...tunnels.actions, ...rest.actions],
    failed: [...tunnels.failed, ...rest.failed],
    warnings: [...strangeEnds(config.tunnels, netlink), ...rest.warnings],
  };
}

/**
 * Takes the lock, makes or upgrades the instance, and brings it to the configuration. What fails is undone and told in
 * `failed`; throws only when nothing can be done at all (E_NOT_ROOT, E_BPFFS, E_LOCKED, E_NETNS, E_UPGRADE, …).
 * Idempotent: a second run does nothing.
 */
export async function reconcile(
  context: ReconcileContext,
  config: Config,
  options: ReconcileOptions = {},
): Promise<ReconcileResult> {
  const { pinRoot } = context;
  requireCapabilities("attach interfaces", [...CAPABILITIES]);
  requireKernel();
  requireBpffs(pinRoot);
  const removeDirectories = makeDirectories(pinRoot);
  try {
    return await withLock(pinRoot, () => reconcileLocked(context, config, options));
  } catch (error) {
    removeDirectories();
    throw error;
  }
}

async function reconcileLocked(
  context: ReconcileContext,
  config: Config,
  options: ReconcileOptions,
): Promise<ReconcileResult> {
  const { pinRoot } = context;
  const first: InstanceAction[] = [];
  using instance = await ensureInstance(pinRoot, { maxEntries: config.tables }, (change) =>
    first.push(instanceAction(pinRoot, change)),
  );
  using netlink = new Netlink();
  const around = { instance, tables: new Tables(instance), netlink };
  const before = readHost(netlink);
  const tunnels = await reconcileTunnels(around, before, config, options);
  const host = tunnels.actions.length > 0 ? readHost(netlink) : before;
  // The event loop has its turn between what takes some milliseconds each.
  await turn();
  const specs = await inPieces(observeSpecs(around));
  const observed = observe(around, host, specs);
  await turn();
  const { actions, failed, warnings } = plan(desiredOf(config, host, observed.guests), observed);
  const applied: Applied = { done: [], failed: [] };
  for (const action of actions) {
    await turn();
    const one = apply(around, [action], { warn: context.warn, ...options });
    applied.done.push(...one.done);
    applied.failed.push(...one.failed);
  }
  const devices = await settleDevices(around, observed, actions.length > 0);
  const services = await inPieces(settleServicesInPieces(around));
  return {
    actions: [...first, ...tunnels.actions, ...actions],
    done: [...first.map(({ text }) => text), ...tunnels.done, ...applied.done, ...devices, ...services.lines],
    failed: [...tunnels.failed, ...failed, ...applied.failed],
    warnings: [...strangeEnds(config.tunnels, netlink), ...new Set([...warnings, ...services.problems])],
  };
}

/** Before interfaces are looked at: what is made here may be an uplink. */
async function reconcileTunnels(
  around: Surroundings,
  host: HostFacts,
  config: Config,
  { run }: ReconcileOptions,
): Promise<TunnelPlan & Pick<Applied, "done">> {
  const { actions, failed } = planTunnels(config.tunnels, observeTunnels(around, host));
  const applied: Applied = { done: [], failed: [...failed] };
  for (const action of actions) {
    await turn();
    const one = applyTunnel(around, action, run);
    applied.done.push(...one.done);
    applied.failed.push(...one.failed);
  }
  return { actions, ...applied };
}

/** Also when nothing was changed: whoever was killed may not have come to it. */
async function settleDevices(
  around: Surroundings,
  { devices }: Observed,
  changed: boolean,
): Promise<string[]> {
  if (!changed && devices.size === 0) return [];
  return (await inPieces(settle(around))).lines;
}

function instanceAction(pinRoot: string, change: InstanceChange): InstanceAction {
  const { text } = change;
  switch (change.kind) {
    case "create":
      return { kind: "create-instance", object: pinRoot, text, config: null };
    case "resize":
      return { kind: "resize", object: change.table, text, config: `tables.${change.table}` };
    case "resume":
    case "programs":
    case "layout":
      return { kind: "upgrade", object: pinRoot, text, config: null };
  }
}

export function openIfPresent(pinRoot: string): Instance | undefined {
  try {
    return openInstance(pinRoot);
  } catch (error) {
    if (error instanceof LasthopError && error.code === "E_NO_TABLES") return undefined;
    throw error;
  }
}
