// SPDX-License-Identifier: Apache-2.0

import { ensureInstance, type InstanceChange, observeInstance } from "../controller/ensure.ts";
import { SIZED_TABLES, type SizedTable, type Sizes } from "../controller/exchange.ts";
import { LasthopError } from "../errors.ts";
import { isHeld, requireNotHeld } from "../kernel/holder.ts";
import { openInstance, pinnedVersions, withLock } from "../kernel/instance.ts";
import { noTables, requireBpffs } from "../kernel/pinRoot.ts";
import { requireCapabilities } from "../kernel/probe.ts";
import { suggest } from "../suggest.ts";
import { tableFills } from "./status.ts";
import type { OpContext, TableFill } from "./types.ts";

/** Of a hash: below this the kernel's own lists take more than the entries. */
const ENTRIES_MIN = 1024;
const ENTRIES_MAX = 2 ** 26;
const NEEDED = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"] as const;

export interface TableInfo extends TableFill {
  /** `tables resize` can change it. */
  resizable: boolean;
}

/** How full the tables are. Takes no lock. */
export function listTables(context: OpContext): TableInfo[] {
  using instance = openInstance(context.pinRoot);
  const resizable: readonly string[] = SIZED_TABLES;
  return tableFills(instance).map((fill) => ({ ...fill, resizable: resizable.includes(fill.table) }));
}

export interface UpgradeResult {
  changes: { kind: InstanceChange["kind"]; text: string }[];
}

/**
 * Gives a table another size while traffic runs; every flow that has room is kept, the latest first. Throws E_USAGE,
 * E_NOT_FOUND, E_HELD, E_NO_TABLES, E_UPGRADE.
 */
export async function resizeTable(context: OpContext, name: string, entries: number): Promise<UpgradeResult> {
  const table = sizedTable(name);
  if (!Number.isSafeInteger(entries) || entries < ENTRIES_MIN || entries > ENTRIES_MAX) {
    throw new LasthopError("E_USAGE", `${table} cannot have ${entries} entries`, {
      hint: `From ${ENTRIES_MIN} to ${ENTRIES_MAX} are possible; an IPv4 flow takes about 100 bytes.`,
    });
  }
  requireNotHeld(context.pinRoot, `resize ${table}`, `tables.${table}`);
  return change(context, `resize ${table}`, { [table]: entries });
}

/**
 * Puts this build's programs in place of those that are pinned, and takes over the tables of another layout, while
 * traffic runs. Nothing to do is no error. Throws E_HELD, E_NO_TABLES, E_ABI, E_UPGRADE.
 */
export async function upgrade(context: OpContext): Promise<UpgradeResult> {
  if (isHeld(context.pinRoot)) {
    throw new LasthopError(
      "E_HELD",
      `\`lasthop run\` holds ${context.pinRoot}, and upgrades it when it starts`,
      {
        hint: "Restart the daemon: `systemctl restart lasthop`.",
      },
    );
  }
  return change(context, "upgrade", {});
}

async function change(context: OpContext, what: string, maxEntries: Sizes): Promise<UpgradeResult> {
  const { pinRoot } = context;
  requireCapabilities(what, NEEDED);
  requireBpffs(pinRoot);
  if (pinnedVersions(pinRoot).length === 0) throw noTables(pinRoot);
  return withLock(pinRoot, async () => {
    const changes: UpgradeResult["changes"] = [];
    // Of a version that cannot be taken over.
    if (observeInstance(pinRoot, { maxEntries })[0]?.kind === "create") openInstance(pinRoot).close();
    const instance = await ensureInstance(pinRoot, { maxEntries }, ({ kind, text }) => {
      changes.push({ kind, text });
    });
    instance.close();
    return { changes };
  });
}

function sizedTable(name: string): SizedTable {
  const found = SIZED_TABLES.find((table) => table === name);
  if (found) return found;
  const meant = suggest(name, SIZED_TABLES);
  throw new LasthopError("E_NOT_FOUND", `there is no table ${JSON.stringify(name)} that can be resized`, {
    hint: meant ? `Did you mean ${meant}?` : `These can: ${SIZED_TABLES.join(", ")}.`,
  });
}
