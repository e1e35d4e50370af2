// SPDX-License-Identifier: Apache-2.0

import { idleSeconds, joinLastHop, ORIGIN_NAMES } from "../abi/codec.ts";
import { vtepOf } from "../controller/deviceRecords.ts";
import { addressText } from "../controller/devices.ts";
import { isTunnelled } from "../controller/lastHopSurvey.ts";
import { homeOf } from "../controller/lastHops.ts";
import { VtepView } from "../controller/vtepMacs.ts";
import { LasthopError } from "../errors.ts";
import { openInstance } from "../kernel/instance.ts";
import { Netlink } from "../kernel/netlink.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { vtepText } from "../kernel/vxlanEntry.ts";
import { aliasState, type LastHopRecord, NOBODY, ownerId, ownerOf, Tables } from "../tables/index.ts";
import { FlowView, lastHopPlace, roundIdle } from "./flowView.ts";
import type { LastHopEntry, OpContext } from "./types.ts";

/** Those that frames can find or flows name, by index. Walks all flows to count them. */
export function listLastHops(context: OpContext): LastHopEntry[] {
  using instance = openInstance(context.pinRoot);
  using netlink = new Netlink();
  return lastHopEntries(new Tables(instance), netlink.links());
}

export function lastHopEntries(tables: Tables, links: readonly Link[]): LastHopEntry[] {
  using vteps = new VtepView(links);
  const view = new FlowView(tables);
  const devices = new Map([...tables.devices.keys()].map(({ name }) => [ownerId(name), name]));
  const flows = tables.flows.countReferences();
  const named = [...flows.keys()].map((reference) => tables.lastHops.resolve(reference));
  const indices = new Set([...tables.lastHops.keys.entries()].map(([, index]) => index));
  for (const found of named) if (found.state !== "stale") indices.add(found.index);
  return [...indices]
    .sort((a, b) => a - b)
    .map((index) => lastHopEntry(tables, { view, vteps, devices, flows }, index))
    .filter((entry) => entry !== undefined);
}

/** By its index, as lists show it. Throws E_NOT_FOUND. */
export function showLastHop(context: OpContext, index: number): LastHopEntry {
  const found = listLastHops(context).find((entry) => entry.index === index);
  if (found) return found;
  throw new LasthopError("E_NOT_FOUND", `there is no last hop ${index}`, {
    hint: "`lasthop last-hops list` shows them.",
  });
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

interface Around {
  view: FlowView;
  vteps: VtepView;
  devices: ReadonlyMap<bigint, string>;
  flows: ReadonlyMap<number, number>;
}

/** The forwarding table as it is, else what that had when it was entered. On a shared device the tunnel key says it. */
function vtepOfLastHop(record: LastHopRecord, ifindex: number, vteps: VtepView): string | null {
  if (isTunnelled(record)) return null;
  const now = vteps.of(ifindex, record.mac);
  if (now !== null) return vtepText(now);
  const noted = vtepOf({ record });
  return noted && addressText(noted);
}

/** Undefined if it was released meanwhile. */
function lastHopEntry(
  tables: Tables,
  { view, vteps, devices, flows }: Around,
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
  const way = lastHopPlace(home);
  return {
    index,
    generation: record.generation,
    interface: view.interfaceName(home.ifindex),
    ifindex: home.ifindex,
    ...lastHopPlace(record),
    vtep: vtepOfLastHop(record, home.ifindex, vteps),
    via: way.via,
    mark: way.mark,
    state: lastHopState(tables, index, alias, record),
    origin: ORIGIN_NAMES[record.origin] ?? "learned",
    device: ownerOf(record) === NOBODY ? null : (devices.get(ownerOf(record)) ?? null),
    flows: flows.get(reference) ?? 0,
    ...traffic,
    idle_seconds: last_seen === 0 ? null : roundIdle(idleSeconds(last_seen, view.now)),
  };
}
