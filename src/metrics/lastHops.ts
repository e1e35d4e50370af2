// SPDX-License-Identifier: Apache-2.0
// One look at every last hop: how many there are by interface and state, and which are a device's.

import { LAST_HOP, LAST_HOP_INDEX_BITS, LAST_HOP_KIND } from "../abi/layout.gen.ts";
import { type AliasState, aliasState, OWNER_OFFSET } from "../tables/index.ts";
import { Family } from "./family.ts";
import type { ScrapedInterface } from "./interfaces.ts";
import { readRows } from "./rows.ts";
import type { ScrapeSource } from "./source.ts";

export interface ScrapedLastHop {
  index: number;
  generation: number;
  state: AliasState | "gone";
  ifindex: number;
  /** Of the device whose it is, as tables/devices.ts has it. */
  owner: bigint;
  /** As the last sweep counted them. */
  flows: number;
}

const { kind, generation, ifindex, slot } = LAST_HOP.fields;

/** Those that are in use, by index. */
export async function scrapeLastHops(source: ScrapeSource): Promise<ScrapedLastHop[]> {
  const { instance, tables, pace } = source;
  const used = tables.lastHops.used();
  const base = tables.sweep.endedRefs();
  const aliases = await readNumbers(source, "last_hop_alias", 0, used);
  const flows = await readNumbers(source, "last_hop_refs", base, used);
  const devices = new Map<number, number | undefined>();
  const egress = (slot: number) => {
    if (!devices.has(slot)) devices.set(slot, tables.egressDevices.get(slot));
    return devices.get(slot);
  };
  const found: ScrapedLastHop[] = [];
  for await (const { first, count, values } of readRows(instance.map("last_hops"), 0, used, pace)) {
    for (let place = 0; place < count; place++) {
      if (pace.due) await pace.rest();
      const at = place * LAST_HOP.size;
      const index = first + place;
      const alias = aliases[index]!;
      const own = values.readUInt16LE(at + generation.offset);
      // Released, or in the making.
      if (values[at + kind.offset] === LAST_HOP_KIND.NONE || alias >>> LAST_HOP_INDEX_BITS !== own) continue;
      const device = values.readUInt32LE(at + ifindex.offset);
      const { state } = aliasState(index, alias);
      const gone = state === "up" && egress(values.readUInt32LE(at + slot.offset)) !== device;
      found.push({
        index,
        generation: own,
        state: gone ? "gone" : state,
        ifindex: device,
        owner: values.readBigUInt64LE(at + OWNER_OFFSET),
        flows: flows[index]!,
      });
    }
  }
  return found;
}

async function readNumbers(
  { instance, pace }: ScrapeSource,
  name: string,
  base: number,
  count: number,
): Promise<Uint32Array> {
  const numbers = new Uint32Array(count);
  for await (const rows of readRows(instance.map(name), base, base + count, pace)) {
    numbers.set(new Uint32Array(rows.values.buffer, rows.values.byteOffset, rows.count), rows.first - base);
  }
  return numbers;
}

/** Of interfaces only: learned last hops are too many for a label each. */
export async function lastHopFamilies(
  { pace }: ScrapeSource,
  lastHops: readonly ScrapedLastHop[],
  interfaces: readonly ScrapedInterface[],
): Promise<Family[]> {
  const count = new Family("gauge", "lasthop_last_hops", "Last hops in use, by interface and state.");
  const flows = new Family(
    "gauge",
    "lasthop_last_hop_flows",
    "Flows whose last hop is behind an interface, as the last sweep counted them.",
  );
  const uplinks = interfaces.filter(({ role }) => role === "uplink");
  const names = new Map(interfaces.map(({ entry, name }) => [entry.ifindex, name]));
  const counts = new Map<string, Map<ScrapedLastHop["state"], number>>();
  const sums = new Map<string, number>();
  for (const { name } of uplinks) {
    counts.set(name, new Map([["up", 0]]));
    sums.set(name, 0);
  }
  for (const lastHop of lastHops) {
    if (pace.due) await pace.rest();
    const name = names.get(lastHop.ifindex) ?? "";
    const states = counts.get(name) ?? new Map<ScrapedLastHop["state"], number>();
    counts.set(name, states.set(lastHop.state, (states.get(lastHop.state) ?? 0) + 1));
    sums.set(name, (sums.get(name) ?? 0) + lastHop.flows);
  }
  for (const [name, states] of counts) {
    for (const [state, value] of states) count.add(value, { interface: name, state });
  }
  for (const [name, value] of sums) flows.add(value, { interface: name });
  return [count, flows];
}
