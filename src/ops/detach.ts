// SPDX-License-Identifier: Apache-2.0

import { HOOK } from "../abi/layout.gen.ts";
import type { Surroundings } from "../controller/attachSteps.ts";
import { cleanUp, detachInterface, isAttached } from "../controller/detach.ts";
import { LasthopError } from "../errors.ts";
import { removeFiltersOf } from "../kernel/attachment.ts";
import {
  ABI_NAME,
  openInstance,
  pinnedVersions,
  programIds,
  removeInstance,
  removeUnfinished,
  requireOwnNetns,
} from "../kernel/instance.ts";
import { Netlink } from "../kernel/netlink.ts";
import { removeIfEmpty, requireBpffs, withLock } from "../kernel/pinRoot.ts";
import { requireCapabilities } from "../kernel/probe.ts";
import { suggest } from "../suggest.ts";
import { type InterfaceEntry, Tables } from "../tables/index.ts";
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
 * anything is changed.
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
  const wanted = [...new Set(names)].map((name) => findAttached(around, name));
  return detachEntries(context, around, wanted);
}

function detachAll(context: OpContext, netlink: Netlink): DetachResult["detached"] {
  using instance = openInstance(context.pinRoot);
  const around = { instance, tables: new Tables(instance), netlink };
  return detachEntries(context, around, around.tables.interfaces.list().filter(isAttached));
}

function detachEntries(
  context: OpContext,
  around: Surroundings,
  entries: readonly InterfaceEntry[],
): DetachResult["detached"] {
  const gone = cleanUp(around);
  for (const entry of entries) {
    if (gone.has(entry.ifindex)) continue;
    if (entry.hook === HOOK.XDP_NATIVE) {
      context.warn(`${entry.name}: detaching native XDP may reset the link for a moment`);
    }
    detachInterface(around, entry);
  }
  return entries.map(({ name, ifindex }) => ({ interface: name, ifindex }));
}

/** By its present name, or by the one under which it was attached. */
function findAttached({ tables, netlink }: Surroundings, name: string): InterfaceEntry {
  const attached = tables.interfaces.list().filter(isAttached);
  const ifindex = netlink.link(name)?.ifindex;
  const found =
    attached.find((entry) => entry.ifindex === ifindex) ?? attached.find((entry) => entry.name === name);
  if (found) return found;
  const names = attached.map((entry) => entry.name);
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
  const versions = pinnedVersions(pinRoot);
  // Of a namespace that is gone only the pins are left.
  const here = versions.filter((version) => requireOwnNetns(pinRoot, version));
  const detached = here.includes(ABI_NAME) ? detachAll(context, netlink) : [];
  const programs = new Set(here.flatMap((version) => programIds(pinRoot, version)));
  for (const version of versions) removeInstance(pinRoot, version);
  removeFiltersOf(netlink, programs);
  removeUnfinished(pinRoot);
  removeIfEmpty(pinRoot);
  return { detached, purged: true };
}
