// SPDX-License-Identifier: Apache-2.0
// The operator's devices: from what was configured or given to entries, and what two of them may not share.

import { encode, type StructInput } from "../abi/codec.ts";
import {
  CAUSE,
  DEVICE_ADDRESSES_MAX,
  DEVICE_MACS_MAX,
  DEVICE_STATE,
  DEVICE_VTEPS_MAX,
  ON_DOWN,
  ORIGIN,
  PROBE_KIND,
} from "../abi/layout.gen.ts";
import { formatAddress, formatMac, isMappedIpv4, mapIpv4, parseAddress, parseMac } from "../addresses.ts";
import { globsMeet, peerOf } from "../config/parts.ts";
import type { DeviceConfig, ProbeConfig } from "../config/schema.ts";
import {
  type Device,
  type DeviceInput,
  deviceAddresses,
  deviceVteps,
  givenMacs,
  isFarEnd,
  isZero,
  replyMac,
} from "../tables/index.ts";
import { sameTags } from "./deviceFleet.ts";
import { settle } from "./deviceLastHops.ts";
import { removeNamed, setNamed } from "./namedSteps.ts";
import type { Surroundings } from "./observe.ts";
import { atOnce } from "./pieces.ts";
import type { Step } from "./steps.ts";

const ETH_P_8021Q = 0x8100;

/** A device's entry before anything is known of it. `device` has been checked. */
export function deviceFromConfig(device: DeviceConfig, zone: number): StructInput<"device"> {
  const peer = peerOf(device.on_down);
  return {
    peer: peer ?? "",
    interface: device.interface ?? "",
    addresses: device.addresses.map((address) => ({ octets: addressOctets(address) })),
    macs: device.macs.map((mac) => ({ octets: macOctets(mac) })),
    vteps: device.vteps.map((vtep) => ({ octets: addressOctets(vtep) })),
    reply_mac: device.reply_mac === undefined ? {} : { octets: macOctets(device.reply_mac) },
    zone,
    tags: device.vlans.map((vid) => ({ proto: ETH_P_8021Q, vid })),
    probe: device.probe === undefined ? {} : probeFromConfig(device.probe),
    origin: ORIGIN.CONFIG,
    on_down: peer === undefined ? ON_DOWN[upper(device.on_down as "route" | "hold" | "drop")] : ON_DOWN.PEER,
  };
}

function probeFromConfig(probe: ProbeConfig): StructInput<"device_probe"> {
  return {
    target: probe.address === undefined ? {} : { octets: addressOctets(probe.address) },
    kind: PROBE_KIND[upper(probe.kind)],
    fall: probe.fall,
    rise: probe.rise,
    port: probe.port ?? 0,
    interval_ms: Math.round(probe.interval_seconds * 1000),
    timeout_ms: Math.round(probe.timeout_seconds * 1000),
  };
}

/** IPv4 mapped. Throws RangeError for what is no address. */
export function addressOctets(text: string): Buffer {
  const bytes = parseAddress(text);
  if (!bytes) throw new RangeError(`not an IP address: ${text}`);
  return bytes.length === 4 ? mapIpv4(bytes) : bytes;
}

/** As people write it. */
export function addressText(octets: Buffer): string {
  return formatAddress(isMappedIpv4(octets) ? octets.subarray(12) : octets);
}

function macOctets(text: string): Buffer {
  const mac = parseMac(text);
  if (!mac) throw new RangeError(`not a MAC address: ${text}`);
  return mac;
}

function upper<T extends string>(word: T): Uppercase<T> {
  return word.toUpperCase() as Uppercase<T>;
}

/** Whether both ask for the same, whatever was observed. */
export function sameDevice(a: DeviceInput, b: DeviceInput): boolean {
  return asked(a).equals(asked(b));
}

function asked(device: DeviceInput): Buffer {
  const addresses = (device.addresses ?? []).map(({ octets = Buffer.alloc(16) }) => ({ octets }));
  const observed = { state: 0, cause: 0, operator_down: 0, changed: 0, flaps: 0 };
  return encode("device", { ...device, addresses, ...observed });
}

/** What was observed of a device goes over to its new entry, as far as it still applies. */
export function withObserved(device: DeviceInput, old: Device | undefined): DeviceInput {
  if (!old) return { ...device, state: DEVICE_STATE.UNKNOWN, cause: CAUSE.NONE };
  const addresses = (device.addresses ?? []).map(({ octets = Buffer.alloc(16) }) => {
    const known = old.addresses.find((other) => other.octets.equals(octets));
    return known ? { octets, mac: known.mac } : { octets };
  });
  const { state, cause, changed, flaps, operator_down } = old;
  return { ...device, addresses, state, cause, changed, flaps, operator_down };
}

/** Enters or changes a device. settleDevices makes its last hops so. */
export function setDevice(
  { tables }: Pick<Surroundings, "tables">,
  name: string,
  device: DeviceInput,
): Step[] {
  return setNamed(tables.devices, `device ${name}`, name, (old) => withObserved(device, old));
}

/** Its last hops stay as learned ones, with settleDevices. */
export function removeDevice({ tables }: Pick<Surroundings, "tables">, name: string): Step[] {
  return removeNamed(tables.devices, `device ${name}`, name);
}

/**
 * Makes the last hops of every device what its entry and its state ask for. Idempotent. Returns what was done, for
 * the log. The caller holds the lock.
 */
export function settleDevices(around: Pick<Surroundings, "tables" | "netlink">): string[] {
  return atOnce(settle(around)).lines;
}

/** Why a device cannot stand beside the others; null if it can. */
export function deviceConflict(
  name: string,
  device: Device,
  others: Iterable<readonly [name: string, device: Device]>,
): string | null {
  const byName = new Map([...others].filter(([other]) => other !== name));
  for (const [other, its] of byName) {
    const address = deviceAddresses(device).find(({ octets }) =>
      deviceAddresses(its).some((theirs) => theirs.octets.equals(octets)),
    );
    if (address && its.zone === device.zone) return `${addressText(address.octets)} is the device ${other}'s`;
    const mac =
      meet(device, its) && wireMacs(device).find((own) => wireMacs(its).some((it) => it.equals(own)));
    if (mac) return `${formatMac(mac)} is the device ${other}'s`;
    const vtep =
      meetSomewhere(device, its) &&
      deviceVteps(device).find((own) => deviceVteps(its).some((it) => it.equals(own)));
    if (vtep) return `the VTEP ${addressText(vtep)} is the device ${other}'s`;
    if (isFarEnd(device) && isFarEnd(its) && meet(device, its)) {
      return `the far end of ${device.interface} is the device ${other} already`;
    }
  }
  return twice(device) ?? peerConflict(name, device, byName);
}

/** MACs that a frame of it may show, as given. */
function wireMacs(device: Device): Buffer[] {
  const reply = replyMac(device);
  return [...givenMacs(device), ...(reply ? [reply] : [])];
}

/** Whether one frame could be of both. */
function meet(a: Device, b: Device): boolean {
  return sameTags(a.tags, b.tags) && meetSomewhere(a, b);
}

/** Whether both may be behind one uplink: what is behind a VTEP is one device's, whatever tags are within. */
function meetSomewhere(a: Device, b: Device): boolean {
  return a.zone === b.zone && globsMeet(a.interface || "*", b.interface || "*");
}

function twice(device: Device): string | null {
  const macs = givenMacs(device).map((mac) => formatMac(mac));
  const addresses = deviceAddresses(device).map(({ octets }) => addressText(octets));
  const vteps = deviceVteps(device).map(addressText);
  for (const list of [macs, addresses, vteps]) {
    const again = list.find((item, place) => list.indexOf(item) !== place);
    if (again !== undefined) return `${again} is given twice`;
  }
  return null;
}

function peerConflict(name: string, device: Device, others: ReadonlyMap<string, Device>): string | null {
  if (device.on_down !== ON_DOWN.PEER) return null;
  if (device.peer === name) return "a device cannot be its own peer";
  const peer = others.get(device.peer);
  if (!peer) return `no device is called ${JSON.stringify(device.peer)}`;
  return peer.zone === device.zone ? null : `its peer ${device.peer} is in another zone`;
}

/** Limits of an entry. */
export const DEVICE_LIMITS = {
  macs: DEVICE_MACS_MAX,
  addresses: DEVICE_ADDRESSES_MAX,
  vteps: DEVICE_VTEPS_MAX,
} as const;

/** The address that its probe asks; null if it has none. */
export function probeTarget(device: Device): Buffer | null {
  const { target } = device.probe;
  if (!isZero(target.octets)) return target.octets;
  return deviceAddresses(device)[0]?.octets ?? null;
}
