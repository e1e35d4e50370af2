// SPDX-License-Identifier: Apache-2.0
// A device as somebody asks for it by hand, checked value by value and made an entry.

import { decode, encode, type StructInput } from "../abi/codec.ts";
import { DEVICE, PROBE_KIND } from "../abi/layout.gen.ts";
import { formatMac, parseAddress, parseMac } from "../addresses.ts";
import { peerOf } from "../config/parts.ts";
import type { DeviceConfig, ProbeConfig } from "../config/schema.ts";
import { addressText, DEVICE_LIMITS, deviceFromConfig, probeTarget } from "../controller/devices.ts";
import { LasthopError } from "../errors.ts";
import { type Device, deviceAddresses, deviceVteps, givenMacs, isZero, replyMac } from "../tables/index.ts";
import type { DeviceSpec, OnDown, ProbeSpec } from "./types.ts";

const NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]*$/;
const NAME_MAX = DEVICE.fields.peer.size - 1;
const INTERFACE = /^[^\s/:]{1,15}$/;
const VLANS_MAX = 2;
const PROBE_DEFAULTS = { interval_seconds: 1, timeout_seconds: 1, fall: 3, rise: 2 } as const;

function wrong(message: string, hint?: string): LasthopError {
  return new LasthopError("E_USAGE", message, hint === undefined ? {} : { hint });
}

/** Throws E_USAGE. */
export function checkName(name: string): void {
  if (NAME.test(name) && name.length <= NAME_MAX) return;
  throw wrong(
    `${JSON.stringify(name)} cannot be the name of a device`,
    `A name has letters, digits, ".", "_" and "-", begins with a letter or digit, and has ${NAME_MAX} characters at most.`,
  );
}

/** Throws E_USAGE for values that cannot be, E_DEVICE for what does not go together. */
export function entryOf(spec: DeviceSpec, old: Device | undefined): StructInput<"device"> {
  const before = old === undefined ? EMPTY : specOf(old);
  const probe = spec.probe === undefined ? before.probe : mergeProbe(before.probe, spec.probe);
  const asked = { ...before, ...spec, probe };
  const config: DeviceConfig = {
    // The entry does not have it.
    name: "",
    zone: "",
    macs: list(asked.macs, "MAC addresses", DEVICE_LIMITS.macs).map(checkMac),
    addresses: list(asked.addresses, "addresses", DEVICE_LIMITS.addresses).map(checkAddress),
    vteps: list(asked.vteps, "VTEPs", DEVICE_LIMITS.vteps).map(checkAddress),
    vlans: list(asked.vlans, "VLAN tags", VLANS_MAX).map((vid) => checkNumber("a VLAN id", vid, 1, 4094)),
    on_down: checkOnDown(asked.on_down),
    ...(asked.interface !== null && { interface: checkInterface(asked.interface) }),
    ...(asked.reply_mac !== null && { reply_mac: checkMac(asked.reply_mac) }),
    ...(asked.probe !== null && { probe: checkProbe(asked.probe) }),
  };
  const given = config.macs.length + config.addresses.length + config.vteps.length;
  if (given === 0 && config.interface === undefined) {
    throw new LasthopError("E_DEVICE", "a device needs a MAC, an address or a VTEP", {
      hint: "Give --mac, --address or --vtep; or the --interface without a link layer whose far end it is.",
    });
  }
  const entry = deviceFromConfig(config, checkNumber("a zone", asked.zone, 0, 0xffff));
  if (config.probe && probeTarget(whole(entry)) === null) {
    throw new LasthopError("E_DEVICE", "there is nobody to probe", {
      hint: "Give the device an --address, or the probe a --probe-address.",
    });
  }
  return entry;
}

/** With every field. */
export function whole(entry: StructInput<"device">): Device {
  return decode("device", encode("device", entry));
}

type WholeSpec = Required<Omit<DeviceSpec, "probe">> & { probe: Required<ProbeSpec> | null };

const EMPTY: WholeSpec = {
  macs: [],
  addresses: [],
  vteps: [],
  interface: null,
  vlans: [],
  zone: 0,
  reply_mac: null,
  on_down: "route",
  probe: null,
};

/** What an entry asks for. */
export function specOf(device: Device): WholeSpec {
  const reply = replyMac(device);
  return {
    macs: givenMacs(device).map((mac) => formatMac(mac)),
    addresses: deviceAddresses(device).map(({ octets }) => addressText(octets)),
    vteps: deviceVteps(device).map(addressText),
    interface: device.interface === "" ? null : device.interface,
    vlans: device.tags.filter(({ proto }) => proto !== 0).map(({ vid }) => vid),
    zone: device.zone,
    reply_mac: reply && formatMac(reply),
    on_down: onDownOf(device),
    probe: probeOf(device),
  };
}

const ON_DOWN_WORDS = ["route", "hold", "peer", "drop"] as const;

function onDownOf({ on_down, peer }: Device): OnDown {
  const word = ON_DOWN_WORDS[on_down] ?? "route";
  return word === "peer" ? `peer:${peer}` : word;
}

function probeOf({ probe }: Device): Required<ProbeSpec> | null {
  if (probe.kind === PROBE_KIND.NONE) return null;
  return {
    kind: probe.kind === PROBE_KIND.TCP ? "tcp" : "icmp",
    port: probe.kind === PROBE_KIND.TCP ? probe.port : null,
    address: isZero(probe.target.octets) ? null : addressText(probe.target.octets),
    interval_seconds: probe.interval_ms / 1000,
    timeout_seconds: probe.timeout_ms / 1000,
    fall: probe.fall,
    rise: probe.rise,
  };
}

function mergeProbe(
  before: Required<ProbeSpec> | null,
  asked: Partial<ProbeSpec> | null,
): Required<ProbeSpec> | null {
  if (asked === null) return null;
  const kind = asked.kind ?? before?.kind;
  if (kind === undefined)
    throw wrong("there is no probe to change", "Give its kind: --probe icmp or --probe tcp:PORT.");
  const sameKind = before?.kind === kind ? before : null;
  return { port: null, address: null, ...PROBE_DEFAULTS, ...(sameKind ?? {}), ...asked, kind };
}

function list<T>(items: readonly T[], what: string, most: number): readonly T[] {
  if (items.length > most) throw wrong(`a device has at most ${most} ${what}, not ${items.length}`);
  return items;
}

function checkMac(text: string): string {
  const mac = parseMac(text);
  if (!mac) throw wrong(`${JSON.stringify(text)} is not a MAC address`, "Write it as 02:00:00:00:0a:01.");
  if ((mac[0]! & 1) === 1 || isZero(mac)) throw wrong(`${text} is not the MAC address of one network card`);
  return text;
}

function checkAddress(text: string): string {
  const bytes = parseAddress(text);
  if (!bytes) throw wrong(`${JSON.stringify(text)} is not an IP address`);
  const multicast = bytes.length === 4 ? bytes[0]! >= 224 : bytes[0] === 0xff;
  if (multicast || isZero(bytes)) throw wrong(`${text} is not the address of one host`);
  return text;
}

function checkInterface(text: string): string {
  if (INTERFACE.test(text)) return text;
  throw wrong(
    `${JSON.stringify(text)} is neither the name of an interface nor a pattern of names with * and ?`,
  );
}

function checkOnDown(text: string): OnDown {
  const peer = peerOf(text);
  if (peer !== undefined) {
    checkName(peer);
    return `peer:${peer}`;
  }
  const word = (["route", "hold", "drop"] as const).find((one) => one === text);
  if (word === undefined)
    throw wrong(`on_down cannot be ${JSON.stringify(text)}`, "route, hold, drop or peer:NAME.");
  return word;
}

function checkProbe(probe: Required<ProbeSpec>): ProbeConfig {
  const { kind, port, address, interval_seconds, timeout_seconds, fall, rise } = probe;
  if (kind === "tcp" && port === null) throw wrong("a TCP probe needs a port");
  if (kind === "icmp" && port !== null) throw wrong("an ICMP probe has no port");
  return {
    kind,
    ...(port !== null && { port: checkNumber("a port", port, 1, 65_535) }),
    ...(address !== null && { address: checkAddress(address) }),
    interval_seconds: checkRange("the probe's interval", interval_seconds, 0.1, 3600),
    timeout_seconds: checkRange("the probe's timeout", timeout_seconds, 0.05, 60),
    fall: checkNumber("fall", fall, 1, 100),
    rise: checkNumber("rise", rise, 1, 100),
  };
}

function checkNumber(what: string, value: number, low: number, high: number): number {
  if (Number.isInteger(value) && value >= low && value <= high) return value;
  throw wrong(`${what} is a whole number from ${low} to ${high}, not ${value}`);
}

function checkRange(what: string, seconds: number, low: number, high: number): number {
  if (seconds >= low && seconds <= high) return seconds;
  throw wrong(`${what} is ${low} to ${high} seconds, not ${seconds}`);
}
