// SPDX-License-Identifier: Apache-2.0
// An instance as this build and the configuration want it: made, or brought to it with every flow kept.

import { LasthopError } from "../errors.ts";
import { ABI_NAME, thisBuild } from "../kernel/build.ts";
import { canTakeOver } from "../kernel/formerInstance.ts";
import { createInstance, type Instance, openInstance, pinnedVersions } from "../kernel/instance.ts";
import {
  exchange,
  isExchangePending,
  otherSizes,
  pinnedBuild,
  type Sizes,
  settleInterrupted,
} from "./exchange.ts";
import { migrate } from "./migrate.ts";

export interface InstanceWish {
  /** Entries by table; tables that are left out keep their size, or have the build's. */
  maxEntries: Sizes;
}

export type InstanceChange = { text: string } & (
  | { kind: "create" }
  /** An exchange that was interrupted goes on. */
  | { kind: "resume" }
  | { kind: "programs" }
  | { kind: "resize"; table: string }
  /** Another version's tables are taken over. */
  | { kind: "layout"; from: string }
);

/** What ensureInstance would do. Reads only. Throws as openInstance, but not E_NO_TABLES. */
export function observeInstance(pinRoot: string, wish: InstanceWish): InstanceChange[] {
  const others = pinnedVersions(pinRoot).filter((name) => name !== ABI_NAME);
  const from = others.find((name) => canTakeOver(pinRoot, name));
  if (from !== undefined) {
    return [{ kind: "layout", from, text: `take over the tables of another version (${from})` }];
  }
  const instance = openIfPresent(pinRoot);
  if (!instance) return [{ kind: "create", text: "load the programs and make the tables" }];
  using open = instance;
  return [
    ...(isExchangePending(open)
      ? [{ kind: "resume", text: "finish an upgrade that was interrupted" } as const]
      : []),
    ...programsChange(open),
    ...otherSizes(open, wish.maxEntries).map(
      ({ table, from, to }) =>
        ({ kind: "resize", table, text: `${table}: ${to} entries instead of ${from}` }) as const,
    ),
  ];
}

function programsChange(instance: Instance): InstanceChange[] {
  const build = thisBuild();
  const pinned = pinnedBuild(instance);
  if (pinned.object === build.object) return [];
  const name = ({ version, object }: { version: string; object: string }) =>
    `${version || "unknown"} (${object.slice(0, 8)})`;
  return [{ kind: "programs", text: `programs of ${name(build)} instead of ${name(pinned)}` }];
}

function openIfPresent(pinRoot: string): Instance | undefined {
  try {
    return openInstance(pinRoot);
  } catch (error) {
    if (error instanceof LasthopError && error.code === "E_NO_TABLES") return undefined;
    throw error;
  }
}

/**
 * The caller has the lock, has made the pin root, and closes the instance. `report` is told each change when it is
 * done. On an error (E_UPGRADE, E_LOAD, E_ABI, …) everything goes on as before.
 */
export async function ensureInstance(
  pinRoot: string,
  wish: InstanceWish,
  report: (change: InstanceChange) => void,
): Promise<Instance> {
  const changes = observeInstance(pinRoot, wish);
  const [first] = changes;
  if (first?.kind === "create") {
    const instance = createInstance(pinRoot, { maxEntries: wish.maxEntries as Record<string, number> });
    report(first);
    return instance;
  }
  if (first?.kind === "layout") {
    const instance = await migrate(pinRoot, first.from, wish.maxEntries);
    report(first);
    return instance;
  }
  const instance = openInstance(pinRoot);
  try {
    if (changes.length > 0) {
      const build = thisBuild();
      await settleInterrupted(instance, build);
      if (changes.some(({ kind }) => kind !== "resume")) await exchange(instance, build, wish.maxEntries);
      for (const change of changes) report(change);
    }
    return instance;
  } catch (error) {
    instance.close();
    throw error;
  }
}
