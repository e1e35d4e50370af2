// SPDX-License-Identifier: Apache-2.0

import { idleSeconds, joinLastHop, ORIGIN_NAMES } from "../abi/codec.ts";
import { formatMac } from "../addresses.ts";
import { homeOf } from "../controller/lastHops.ts";
import { openInstance } from "../kernel/instance.ts";
import { aliasState, NOBODY, ownerId, ownerOf, Tables } from "../tables/index.ts";
import { FlowView, roundIdle, vlanTags } from "./flowView.ts";
import type { LastHopEntry, OpContext } from "./types.ts";

/** Those that frames can find or flows name, by index. Walks all flows to count them. */
export function listLastHops(context: OpContext): LastHopEntry[] {
  const instance = openInstance(context.pinRoot);
  try {
    return lastHopEntries(new Tables(instance));
  } finally {
    instance.close();
  }
}

export function lastHopEntries(tables: Tables): LastHopEntry[] {
  const view = new FlowView(tables);
  const devices = new Map([...tables.devices.keys()].map(({ name }) => [ownerId(name), name]));
  const flows = tables.flows.countReferences();
  const named = [...flows.keys()].map((reference) => tables.lastHops.resolve(reference));
  const indices = new Set([...tables.lastHops.keys.entries()].map(([, index]) => index));
  for (const found of named) if (found.state !== "stale") indices.add(found.index);
  return [...indices]
    .sort((a, b) => a - b)
    .map((index) => lastHopEntry(tables, view, devices, flows, index))
    .filter((entry) => entry !== undefined);
}

function lastHopState(
  tables: Tables,
  index: number,
  alias: number,
  { slot, ifindex }: { slot: number; ifindex: number },
): LastHopEntry["state"] {
  const { state } = aliasState(index, alias);
  return state === "up" && tables.egressDevices.get(slot) !== ifindex ? "gone" : state;
}

/** Undefined if it was released meanwhile. */
function lastHopEntry(
  tables: Tables,
  view: FlowView,
  devices: ReadonlyMap<bigint, string>,
  flows: ReadonlyMap<number, number>,
  index: number,
): LastHopEntry | undefined {
  const record = tables.lastHops.records.get(index);
  const alias = tables.lastHops.aliases.get(index);
  if (!record || alias === undefined) return undefined;
  const reference = joinLastHop(record.generation, index);
  if (tables.lastHops.resolve(reference).state === "stale") return undefined;
  const { last_seen, ...traffic } = tables.lastHops.traffic(index);
  // Its interface may have come back under another index.
  const home = tables.lastHops.records.get(homeOf(tables.lastHops, index)) ?? record;
  return {
    index,
    generation: record.generation,
    mac: formatMac(record.mac),
    interface: view.interfaceName(home.ifindex),
    ifindex: home.ifindex,
    tags: vlanTags(record.tags),
    state: lastHopState(tables, index, alias, record),
    origin: ORIGIN_NAMES[record.origin] ?? "learned",
    device: ownerOf(record) === NOBODY ? null : (devices.get(ownerOf(record)) ?? null),
    flows: flows.get(reference) ?? 0,
    ...traffic,
    idle_seconds: last_seen === 0 ? null : roundIdle(idleSeconds(last_seen, view.now)),
  };
}
