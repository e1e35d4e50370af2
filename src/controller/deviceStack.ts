// SPDX-License-Identifier: Apache-2.0
// Where the host's IP stack sees a device, and what it knows of it at the moment.

import { setTimeout as sleep } from "node:timers/promises";
import { currentTick } from "../abi/codec.ts";
import { CAUSE, DEVICE_STATE } from "../abi/layout.gen.ts";
import { parseMac } from "../addresses.ts";
import { type Netlink, NetlinkError } from "../kernel/netlink.ts";
import type { Link, Neighbour } from "../kernel/rtnetlink.ts";
import { type Device, deviceAddresses, isZero, type Tables } from "../tables/index.ts";
import { isOn, readUplinks, type Uplink } from "./deviceFleet.ts";
import { type Evidence, judge, neighbourStep, UNKNOWN_REACHABILITY } from "./deviceStates.ts";
import { addressText, probeTarget } from "./devices.ts";
import { hasProbe } from "./deviceWatch.ts";

/** A neighbour that is there answers within this. */
const RESOLVE_MS = 1_000;
const LOOK_MS = 50;

/** The stack's interfaces of a device: one for each of its uplinks, or the one that the route says. */
export function stackInterfaces(
  netlink: Netlink,
  device: Device,
  uplinks: Iterable<Uplink>,
  links: Iterable<Link>,
): Set<number> {
  const found = new Set<number>();
  for (const uplink of uplinks) {
    if (!uplink.usable || !isOn(device, uplink)) continue;
    for (const ifindex of taggedInterfaces(device, uplink, links)) found.add(ifindex);
  }
  const target = found.size < 2 ? null : probeTarget(device);
  const routed = target === null ? null : routeTo(netlink, target);
  return routed !== null && found.has(routed) ? new Set([routed]) : found;
}

/** The VLAN interface of a device whose frames are tagged; none if the host has none. */
function taggedInterfaces(device: Device, { ifindex, l3Ifindex }: Uplink, links: Iterable<Link>): number[] {
  const [outer, inner] = device.tags;
  if (!outer?.proto) return [l3Ifindex];
  if (inner?.proto) return [];
  return [...links]
    .filter(({ lower, vlanId }) => vlanId === outer.vid && (lower === ifindex || lower === l3Ifindex))
    .map((link) => link.ifindex);
}

/** The interface that the host's routes name; null without a route. */
export function routeTo(netlink: Netlink, target: Buffer): number | null {
  try {
    return netlink.routeGet({ destination: addressText(target) }).outIfindex;
  } catch (error) {
    if (error instanceof NetlinkError) return null;
    throw error;
  }
}

/** Has the kernel find out whether somebody answers for an address now, whatever it has known of it. */
export function askAnew(
  netlink: Pick<Netlink, "askNeighbour">,
  ifindex: number,
  address: string,
  known: Neighbour["state"],
): void {
  if (known === "none" || known === "failed") netlink.askNeighbour(ifindex, address, "resolve");
  else if (known === "stale" || known === "reachable" || known === "delay") {
    netlink.askNeighbour(ifindex, address, "verify");
  }
}

type Around = { tables: Tables; netlink: Netlink };

/** Has the kernel find out the MACs of a device's addresses that it does not know, and gives it a moment. */
export async function resolveAddresses({ tables, netlink }: Around, device: Device): Promise<void> {
  const links = netlink.links();
  const interfaces = stackInterfaces(netlink, device, readUplinks(tables, links).values(), links);
  const wanted = deviceAddresses(device).map(({ octets }) => addressText(octets));
  const isKnown = (address: string): boolean => {
    const entries = netlink.neighbours().filter((entry) => entry.address === address);
    return entries.some(({ ifindex, mac }) => interfaces.has(ifindex) && mac !== null);
  };
  let missing = wanted.filter((address) => !isKnown(address));
  for (const address of missing) {
    for (const ifindex of interfaces) netlink.askNeighbour(ifindex, address, "resolve");
  }
  if (interfaces.size === 0) return;
  const deadline = performance.now() + RESOLVE_MS;
  while (missing.length > 0 && performance.now() < deadline) {
    await sleep(LOOK_MS);
    missing = missing.filter((address) => !isKnown(address));
  }
}

/**
 * The device as it looks now, without having followed it: its addresses' MACs, and whether something speaks against
 * its being up. What its probe found last stands.
 */
export function observed({ tables, netlink }: Around, device: Device): Device {
  const links = netlink.links();
  const uplinks = [...readUplinks(tables, links).values()];
  const interfaces = stackInterfaces(netlink, device, uplinks, links);
  const known = netlink.neighbours().filter(({ ifindex }) => interfaces.has(ifindex));
  const addresses = device.addresses.map((entry) => {
    if (isZero(entry.octets)) return entry;
    const text = addressText(entry.octets);
    const mac = known.find((neighbour) => neighbour.address === text && neighbour.mac !== null)?.mac;
    return mac === undefined || mac === null ? entry : { ...entry, mac: parseMac(mac)! };
  });
  const verdict = judge({
    operatorDown: device.operator_down !== 0,
    uplink: uplinks.some((uplink) => uplink.usable && isOn(device, uplink)),
    neighbours: deviceAddresses(device).map(({ octets }) => evidenceOf(known, addressText(octets))),
    probe: hasProbe(device) ? probeEvidence(device) : null,
  });
  const changed = verdict.state === device.state ? device.changed : currentTick();
  return { ...device, addresses, ...verdict, changed };
}

/** A failure counts here: who asks now has not been asked before. */
function evidenceOf(known: readonly Neighbour[], address: string): Evidence {
  const entries = known.filter((entry) => entry.address === address);
  const before = { ...UNKNOWN_REACHABILITY, asked: true };
  const said = entries.map(({ state, mac }) => neighbourStep(before, state, mac !== null).evidence);
  if (said.includes("good")) return "good";
  return said.length > 0 && said.every((one) => one === "bad") ? "bad" : "unknown";
}

function probeEvidence({ state, cause }: Device): Evidence {
  return state === DEVICE_STATE.DOWN && cause === CAUSE.PROBE ? "bad" : "unknown";
}
