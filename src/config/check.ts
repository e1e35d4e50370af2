// SPDX-License-Identifier: Apache-2.0
// Checks that concern more than one entry of the configuration.

import { suggest } from "../suggest.ts";
import { addressKey, DEFAULT_ZONE, globsMeet, macKey, peerOf, zoneNumbers } from "./parts.ts";
import { quoted } from "./problems.ts";
import type { Config, DeviceConfig, LabelStackConfig, TapConfig, UplinkConfig } from "./schema.ts";
import { checkServices } from "./serviceChecks.ts";
import type { ServiceConfig, VmConfig } from "./services.ts";
import { checkTunnels } from "./tunnelChecks.ts";
import type { TunnelConfig } from "./tunnels.ts";
import type { Complaint } from "./wording.ts";

/** An entry with its place in the list. */
export type Entry<T> = readonly [index: number, entry: Partial<T>];

/** Of each entry the keys that are well-formed, in a file of which not all is. */
export interface Sound {
  /** null: they cannot be told. */
  zones: Config["zones"] | null;
  uplinks: readonly Entry<UplinkConfig>[];
  taps: readonly Entry<TapConfig>[];
  devices: readonly Entry<DeviceConfig>[];
  vms: readonly Entry<VmConfig>[];
  services: readonly Entry<ServiceConfig>[];
  tunnels: readonly Entry<TunnelConfig>[];
  sweep: Config["sweep"] | null;
  labelStacks: readonly Entry<LabelStackConfig>[];
}

export function crossCheck(sound: Sound): Complaint[] {
  return [
    ...checkZones(sound),
    ...checkInterfaces(sound),
    ...checkDeviceNames(sound),
    ...checkDeviceAddresses(sound),
    ...checkPeers(sound),
    ...checkServices(sound),
    ...checkTunnels(sound),
    ...checkSweep(sound),
    ...checkLabelStacks(sound),
  ];
}

function complaint(path: Complaint["path"], message: string, on: Complaint["on"] = "value"): Complaint {
  return { path, on, message };
}

function checkZones({ zones, uplinks, taps, devices, vms, services }: Sound): Complaint[] {
  if (zones === null) return [];
  const found: Complaint[] = [];
  const numbers = zoneNumbers({ zones });
  const names = new Map<number, string>();
  for (const [name, number] of numbers) {
    const other = names.get(number);
    if (other === undefined) names.set(number, name);
    else if (other === DEFAULT_ZONE && !(DEFAULT_ZONE in zones)) {
      const message = `${number} is the number of the zone ${DEFAULT_ZONE}, unless that is given another`;
      found.push(complaint(["zones", name], message));
    } else found.push(complaint(["zones", name], `${number} is the number of the zone ${other} too`));
  }
  for (const [kind, entries] of Object.entries({ uplinks, taps, devices, vms, services })) {
    for (const [index, { zone }] of entries as readonly Entry<{ zone: string }>[]) {
      if (zone === undefined || numbers.has(zone)) continue;
      const near = suggest(zone, [...numbers.keys()]);
      const help =
        near === undefined ? `known: ${[...numbers.keys()].join(", ")}` : `did you mean ${quoted(near)}?`;
      found.push(complaint([kind, index, "zone"], `zones has no ${quoted(zone)} – ${help}`));
    }
  }
  return found;
}

/** No interface may be asked for twice in the same words; other overlaps are settled by order. */
function checkInterfaces({ uplinks, taps }: Sound): Complaint[] {
  const found: Complaint[] = [];
  const places = new Map<string, string>();
  const take = (kind: string, index: number, key: string, value: string, same = value) => {
    const first = places.get(`${key} ${same}`);
    const here = `${kind}[${index}]`;
    if (first === undefined) places.set(`${key} ${same}`, here);
    else found.push(complaint([kind, index, key], `${quoted(value)} is ${first}.${key} already`));
  };
  for (const [index, { name }] of uplinks) {
    if (name !== undefined) take("uplinks", index, "name", name);
  }
  for (const [index, { name, guest_mac, domain }] of taps) {
    if (name !== undefined) take("taps", index, "name", name);
    if (guest_mac !== undefined) take("taps", index, "guest_mac", guest_mac, macKey(guest_mac));
    if (domain !== undefined) take("taps", index, "domain", domain);
  }
  return found;
}

function checkDeviceNames({ devices }: Sound): Complaint[] {
  const found: Complaint[] = [];
  const places = new Map<string, number>();
  for (const [index, { name }] of devices) {
    if (name === undefined) continue;
    const first = places.get(name);
    if (first === undefined) places.set(name, index);
    else
      found.push(
        complaint(["devices", index, "name"], `devices[${first}] has the name ${quoted(name)} already`),
      );
  }
  return found;
}

/** A frame must belong to one device: what it shows is zone, interface, VLAN tags and MAC. */
function checkDeviceAddresses({ devices }: Sound): Complaint[] {
  const found: Complaint[] = [];
  const owners = new Map<string, Entry<DeviceConfig>[]>();
  // Those that are whoever is at the other end of an interface.
  const farEnds: Entry<DeviceConfig>[] = [];
  const take = (
    entry: Entry<DeviceConfig>,
    key: "macs" | "addresses" | "vteps",
    place: number,
    value: string,
    same: string,
  ) => {
    const [index, device] = entry;
    const others = owners.get(same) ?? [];
    // What is behind a VTEP is one device's, whatever tags are within.
    const other = others.find(([, other]) => (key === "vteps" ? meetSomewhere : meet)(device, other));
    owners.set(same, [...others, entry]);
    if (other === undefined) return;
    const whose = other[0] === index ? "this device" : `devices[${other[0]}]`;
    found.push(complaint(["devices", index, key, place], `${value} belongs to ${whose} already`));
  };
  for (const entry of devices) {
    entry[1].macs?.forEach((mac, place) => void take(entry, "macs", place, mac, `mac ${macKey(mac)}`));
    entry[1].addresses?.forEach((address, place) => {
      take(entry, "addresses", place, address, `address ${addressKey(address)}`);
    });
    entry[1].vteps?.forEach(
      (vtep, place) => void take(entry, "vteps", place, vtep, `vtep ${addressKey(vtep)}`),
    );
    const [index, { interface: name, macs, addresses, vteps }] = entry;
    if (name === undefined || [macs, addresses, vteps].some((given) => given?.length !== 0)) continue;
    const other = farEnds.find(([, other]) => meet(entry[1], other));
    farEnds.push(entry);
    if (other === undefined) continue;
    const message = `the far end of ${name} is devices[${other[0]}] already`;
    found.push(complaint(["devices", index, "interface"], message));
  }
  return found;
}

/** Whether one frame could be of both. What is not well-formed is met by nothing. */
function meet(a: Partial<DeviceConfig>, b: Partial<DeviceConfig>): boolean {
  return a.vlans !== undefined && a.vlans.join() === b.vlans?.join() && meetSomewhere(a, b);
}

/** Whether both may be behind one uplink. */
function meetSomewhere(a: Partial<DeviceConfig>, b: Partial<DeviceConfig>): boolean {
  if (a.zone === undefined || a.zone !== b.zone || !("interface" in a) || !("interface" in b)) return false;
  return globsMeet(a.interface ?? "*", b.interface ?? "*");
}

function checkPeers({ devices }: Sound): Complaint[] {
  const found: Complaint[] = [];
  const byName = new Map(devices.map(([, device]) => [device.name, device]));
  for (const [index, { name, on_down, zone }] of devices) {
    const peer = on_down === undefined ? undefined : peerOf(on_down);
    if (peer === undefined) continue;
    const path = ["devices", index, "on_down"];
    const other = byName.get(peer);
    if (peer === name) found.push(complaint(path, "a device cannot be its own peer"));
    else if (other === undefined) {
      const others = [...byName.keys()].filter((known) => known !== undefined && known !== name) as string[];
      const near = suggest(peer, others);
      const help = near === undefined ? "" : ` – did you mean ${quoted(near)}?`;
      found.push(complaint(path, `no device is called ${quoted(peer)}${help}`));
    } else if (other.zone !== undefined && zone !== undefined && other.zone !== zone) {
      const message = `the peer ${quoted(peer)} is in the zone ${other.zone}, this device in ${zone}`;
      found.push(complaint(path, message));
    }
  }
  return found;
}

function checkSweep({ sweep }: Sound): Complaint[] {
  if (sweep === null || sweep.interval_min_seconds <= sweep.interval_max_seconds) return [];
  const { interval_min_seconds: min, interval_max_seconds: max } = sweep;
  const message = `${min} is more than interval_max_seconds, ${max}`;
  return [complaint(["sweep", "interval_min_seconds"], message)];
}

/** A request must lead to one mark. Where 0 (explicit null) is the last of several, the programs do not see it. */
function checkLabelStacks({ labelStacks }: Sound): Complaint[] {
  const found: Complaint[] = [];
  const places = new Map<string, number>();
  for (const [index, { request }] of labelStacks) {
    if (request === undefined) continue;
    const key = request.join(" ").replace(/(?<=\d) 0$/, "");
    const first = places.get(key);
    if (first === undefined) places.set(key, index);
    else {
      const path = ["mpls", "label_stacks", index, "request"];
      found.push(complaint(path, `mpls.label_stacks[${first}] has the labels ${request.join(", ")} already`));
    }
  }
  return found;
}
