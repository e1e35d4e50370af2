// SPDX-License-Identifier: Apache-2.0

import { apply } from "../controller/apply.ts";
import { configKey } from "../controller/attachInterface.ts";
import { beneathSteps } from "../controller/beneath.ts";
import { bridgeSteps, unusedBridges } from "../controller/detach.ts";
import { settleDevices } from "../controller/devices.ts";
import { readHost } from "../controller/hostFacts.ts";
import { type Observed, type ObservedInterface, observe, type Surroundings } from "../controller/observe.ts";
import { detachAction, planGone, planRemains } from "../controller/plan.ts";
import { settleServices } from "../controller/serviceSettle.ts";
import { runSteps } from "../controller/steps.ts";
import { LasthopError } from "../errors.ts";
import { removeFiltersOf } from "../kernel/attachment.ts";
import { isHeld, removeHolder, requireNotHeld } from "../kernel/holder.ts";
import {
  ABI_NAME,
  openInstance,
  pinnedVersions,
  programIds,
  removeInstance,
  removeUnfinished,
  requireOwnNetns,
} from "../kernel/instance.ts";
import { deleteLink } from "../kernel/linkCreate.ts";
import { Netlink } from "../kernel/netlink.ts";
import { removeIfEmpty, requireBpffs, withLock } from "../kernel/pinRoot.ts";
import { requireCapabilities } from "../kernel/probe.ts";
import { tunnelNames } from "../kernel/tunnelNames.ts";
import { suggest } from "../suggest.ts";
import { Tables } from "../tables/index.ts";
import type { DetachResult, OpContext } from "./types.ts";

export interface DetachOptions {
  interfaces?: readonly string[];
  /** Every attached interface, instead of `interfaces`. */
  all?: boolean;
  /** With `all`: the tables too, also those of other versions of lasthop. */
  purge?: boolean;
}

/**
 * Detaches interfaces. Flows stay, so that attaching again goes on where it was. All names are looked up before
 * anything is changed. Throws E_HELD for configured interfaces while a daemon runs.
 */
export async function detach(context: OpContext, options: DetachOptions): Promise<DetachResult> {
  const { pinRoot } = context;
  requireCapabilities("detach interfaces", ["CAP_BPF", "CAP_NET_ADMIN"]);
  requireBpffs(pinRoot);
  using netlink = new Netlink();
  if (!options.all) {
    const detached = await withLock(pinRoot, () => detachNamed(context, netlink, options.interfaces ?? []));
    return { detached, purged: false };
  }
  // Nothing there is what was asked for.
  if (pinnedVersions(pinRoot).length === 0) return { detached: [], purged: false };
  return await withLock(pinRoot, () =>
    options.purge ? purge(context, netlink) : { detached: detachAll(context, netlink), purged: false },
  );
}

function detachNamed(
  context: OpContext,
  netlink: Netlink,
  names: readonly string[],
): DetachResult["detached"] {
  using instance = openInstance(context.pinRoot);
  const around = { instance, tables: new Tables(instance), netlink };
  const observed = observe(around, readHost(netlink));
  const wanted = new Set(names.map((name) => findAttached(observed, netlink, name)));
  return detachObserved(context, around, observed, [...wanted]);
}

function detachAll(context: OpContext, netlink: Netlink): DetachResult["detached"] {
  using instance = openInstance(context.pinRoot);
  const around = { instance, tables: new Tables(instance), netlink };
  const observed = observe(around, readHost(netlink));
  return detachObserved(context, around, observed, observed.interfaces);
}

function detachObserved(
  { pinRoot, warn }: OpContext,
  around: Surroundings,
  observed: Observed,
  interfaces: readonly ObservedInterface[],
): DetachResult["detached"] {
  for (const { entry } of interfaces) {
    const key = configKey(entry);
    if (key !== null) requireNotHeld(pinRoot, `detach ${entry.name}`, key);
  }
  const leaving = new Set(interfaces);
  const others = { ...observed, interfaces: observed.interfaces.filter((item) => !leaving.has(item)) };
  const actions = [...planRemains(observed), ...planGone(others), ...interfaces.map(detachAction)];
  const { failed } = apply(around, actions, { warn });
  if (failed[0]) throw failed[0].cause;
  runSteps(bridgeSteps(around.tables, unusedBridges(around.tables)));
  runSteps(beneathSteps(around.tables, observed.host));
  settleDevices(around);
  settleServices(around);
  return interfaces.map(({ entry }) => ({ interface: entry.name, ifindex: entry.ifindex }));
}

/** By its present name, or by the one under which it was attached. */
function findAttached({ interfaces }: Observed, netlink: Netlink, name: string): ObservedInterface {
  const ifindex = netlink.link(name)?.ifindex;
  const found =
    interfaces.find(({ entry }) => entry.ifindex === ifindex) ??
    interfaces.find(({ entry }) => entry.name === name);
  if (found) return found;
  const names = interfaces.map(({ entry }) => entry.name);
  const meant = suggest(name, names);
  throw new LasthopError(
    ifindex === undefined ? "E_NO_INTERFACE" : "E_INTERFACE",
    ifindex === undefined ? `there is no interface ${JSON.stringify(name)} here` : `${name} is not attached`,
    {
      hint: meant
        ? `Did you mean ${meant}?`
        : names.length > 0
          ? `Attached are ${names.join(", ")}.`
          : "Nothing is attached.",
    },
  );
}

function purge(context: OpContext, netlink: Netlink): DetachResult {
  const { pinRoot } = context;
  if (isHeld(pinRoot)) {
    throw new LasthopError("E_HELD", `cannot remove the tables: \`lasthop run\` holds ${pinRoot}`, {
      hint: "Stop it first: `systemctl stop lasthop`.",
    });
  }
  const versions = pinnedVersions(pinRoot);
  // Of a namespace that is gone only the pins are left.
  const here = versions.filter((version) => requireOwnNetns(pinRoot, version));
  const detached = here.includes(ABI_NAME) ? detachAll(context, netlink) : [];
  const programs = new Set(here.flatMap((version) => programIds(pinRoot, version)));
  for (const version of versions) removeInstance(pinRoot, version);
  if (here.length > 0) removeTunnels(pinRoot, netlink);
  removeFiltersOf(netlink, programs);
  removeUnfinished(pinRoot);
  removeHolder(pinRoot);
  removeIfEmpty(pinRoot);
  return { detached, purged: true };
}

/** The netdevs that this instance made: without programs they lead nowhere. */
function removeTunnels(pinRoot: string, netlink: Netlink): void {
  const { alias, making } = tunnelNames(pinRoot);
  for (const { ifindex, name, alias: found } of netlink.links()) {
    if (found === alias || name === making.tunnel) deleteLink(netlink, ifindex, name);
  }
}
