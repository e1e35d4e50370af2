// SPDX-License-Identifier: Apache-2.0
// The operator's devices: up or down and why, and what goes through them.

import { joinLastHop, ORIGIN_NAMES } from "../abi/codec.ts";
import { CAUSE, DEVICE_STATE, ON_DOWN } from "../abi/layout.gen.ts";
import { type Device, ownerId } from "../tables/index.ts";
import { Family, Labels } from "./family.ts";
import type { ScrapedLastHop } from "./lastHops.ts";
import type { ScrapeSource } from "./source.ts";
import { tickUnixSeconds } from "./time.ts";
import type { Traffic, TrafficAccounts } from "./traffic.ts";

export interface NamedDevice extends Device {
  name: string;
}

export async function scrapeDevices({ tables, pace }: ScrapeSource): Promise<NamedDevice[]> {
  const devices: NamedDevice[] = [];
  for (const [{ name }, device] of tables.devices.entries()) {
    devices.push({ ...device, name });
    if (pace.due) await pace.rest();
  }
  return devices.sort((a, b) => (a.name < b.name ? -1 : 1));
}

const nameOf = (values: Readonly<Record<string, number>>, value: number): string =>
  Object.keys(values)
    .find((name) => values[name] === value)
    ?.toLowerCase() ?? String(value);

export async function deviceFamilies(
  { pace }: ScrapeSource,
  devices: readonly NamedDevice[],
): Promise<Family[]> {
  const info = new Family("gauge", "lasthop_device_info", "A device of the operator's; always 1.");
  const up = new Family("gauge", "lasthop_device_up", "0 if the device is down, else 1.");
  const state = new Family(
    "gauge",
    "lasthop_device_state",
    "1 for the state that the device is in, and the cause of it.",
  );
  const changed = new Family(
    "gauge",
    "lasthop_device_last_change_timestamp_seconds",
    "When the device's state last changed.",
  );
  const flaps = new Family(
    "counter",
    "lasthop_device_flaps_total",
    "Changes of the device's MAC address that came too soon after another.",
  );
  for (const device of devices) {
    if (pace.due) await pace.rest();
    const { name, zone, peer } = device;
    const labels = new Labels({ device: name });
    const on_down = device.on_down === ON_DOWN.PEER ? `peer:${peer}` : nameOf(ON_DOWN, device.on_down);
    info.add(1, labels, new Labels({ zone, origin: ORIGIN_NAMES[device.origin]!, on_down }));
    up.add(device.state === DEVICE_STATE.DOWN ? 0 : 1, labels);
    const why = { state: nameOf(DEVICE_STATE, device.state), cause: nameOf(CAUSE, device.cause) };
    state.add(1, labels, new Labels(why));
    if (device.changed !== 0) changed.add(tickUnixSeconds(device.changed), labels);
    flaps.add(device.flaps, labels);
  }
  return [info, up, state, changed, flaps];
}

const COUNTERS: Readonly<Record<keyof Traffic, [name: string, help: string]>> = {
  request_packets: ["request_packets", "Requests that came by the device."],
  request_bytes: ["request_bytes", "Bytes of the requests that came by the device."],
  reply_packets: ["reply_packets", "Replies that were sent back to the device."],
  reply_bytes: ["reply_bytes", "Bytes of the replies that were sent back to the device."],
  relearns: ["relearns", "Flows that came to the device from another last hop."],
};

export async function deviceTrafficFamilies(
  { tables, pace }: ScrapeSource,
  devices: readonly NamedDevice[],
  own: ReadonlyMap<string, readonly ScrapedLastHop[]>,
  accounts: TrafficAccounts,
): Promise<Family[]> {
  const count = new Family("gauge", "lasthop_device_last_hops", "Last hops that are the device's.");
  const flows = new Family(
    "gauge",
    "lasthop_device_flows",
    "Flows of the device, as the last sweep counted them.",
  );
  const counters = Object.entries(COUNTERS).map(([key, [name, help]]) => ({
    key: key as keyof Traffic,
    family: new Family("counter", `lasthop_device_${name}_total`, help),
  }));
  for (const { name } of devices) {
    const labels = new Labels({ device: name });
    const lastHops = own.get(name) ?? [];
    count.add(lastHops.length, labels);
    flows.add(
      lastHops.reduce((sum, lastHop) => sum + lastHop.flows, 0),
      labels,
    );
    const traffic = new Map<number, Traffic>();
    for (const { index, generation } of lastHops) {
      traffic.set(joinLastHop(generation, index), tables.lastHops.traffic(index));
    }
    const total = accounts.add(name, traffic);
    for (const { key, family } of counters) family.add(total[key], labels);
    await pace.rest();
  }
  accounts.keep(new Set(devices.map(({ name }) => name)));
  return [count, flows, ...counters.map(({ family }) => family)];
}

/** By the device's name. */
export function lastHopsByDevice(
  devices: readonly NamedDevice[],
  lastHops: readonly ScrapedLastHop[],
): Map<string, ScrapedLastHop[]> {
  const own = new Map<bigint, ScrapedLastHop[]>(devices.map(({ name }) => [ownerId(name), []]));
  for (const lastHop of lastHops) own.get(lastHop.owner)?.push(lastHop);
  return new Map(devices.map(({ name }) => [name, own.get(ownerId(name))!]));
}
