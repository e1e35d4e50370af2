// SPDX-License-Identifier: Apache-2.0
// What the configuration wants of this host: which of its interfaces is which, and how it is to be attached. Pure.

import { encode, secondsToTicks } from "../abi/codec.ts";
import { EXCLUSIONS_MAX, INTERFACE_FLAG, ORIGIN, TIMEOUT } from "../abi/layout.gen.ts";
import { formatMac, mapIpv4, parseMac } from "../addresses.ts";
import { matchesGlob, parseExclusion, zoneNumbers } from "../config/parts.ts";
import type { Config, ExclusionConfig, TapConfig, UplinkConfig } from "../config/schema.ts";
import { LasthopError } from "../errors.ts";
import { whyNotAttachable } from "../kernel/coexistence.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { isHiddenEnd } from "../kernel/tunnelNames.ts";
import type { Role } from "../ops/types.ts";
import type { DeviceInput } from "../tables/index.ts";
import { type DesiredService, type DesiredVm, desiredServices } from "./desiredServices.ts";
import { deviceFromConfig } from "./devices.ts";
import { type Failure, failure } from "./failure.ts";
import type { HostFacts } from "./hostFacts.ts";
import { desiredLabelStacks, type LabelStacks } from "./labelStacks.ts";
import type { Settings } from "./settings.ts";

export interface DesiredInterface extends Settings {
  ifindex: number;
}

export interface DesiredDevice {
  config: string;
  device: DeviceInput;
}

export interface Desired {
  /** In the order of the file. */
  interfaces: DesiredInterface[];
  /** By name or pattern, in the order of the file: who would have an interface that is not here now. */
  awaited: readonly { pattern: string; role: Role }[];
  /** By name. */
  devices: Map<string, DesiredDevice>;
  vms: Map<string, DesiredVm>;
  services: Map<string, DesiredService>;
  timeouts: number[];
  relearnDamping: number;
  labelStacks: LabelStacks;
  /** What the configuration names and that cannot be: interfaces that cannot be attached, entries that are too long. */
  failed: Failure[];
  warnings: string[];
}

/** MACs that were seen behind attached taps. */
export type Guests = ReadonlyMap<number, ReadonlySet<string>>;

export function desiredOf(config: Config, host: HostFacts, guests: Guests): Desired {
  const zones = zoneNumbers(config);
  const found = matchAll(config, host, guests);
  const { vms, services, failed } = desiredServices(config, (name) => zoneOf(zones, name));
  const desired: Desired = {
    interfaces: [],
    awaited: awaitedBy(config),
    devices: new Map(
      config.devices.map((device, index) => [
        device.name,
        { config: `devices[${index}]`, device: deviceFromConfig(device, zoneOf(zones, device.zone)) },
      ]),
    ),
    vms,
    services,
    timeouts: timeoutTicks(config),
    relearnDamping: secondsToTicks(config.relearn_damping_seconds),
    labelStacks: desiredLabelStacks(config),
    failed,
    warnings: [...unreadable(config, host), ...found.flatMap(ambiguity)],
  };
  desired.warnings.push(...farEndsWithMacs(config, found));
  const settings = settingsOf(zones);
  for (const { link, matches } of found) {
    const entry = matches[0]!;
    const refusal = whyNotAttachable(host, link, entry.role);
    if (refusal === null) {
      desired.interfaces.push({ ifindex: link.ifindex, ...settings(entry) });
    } else if (entry.precise) {
      const text = `cannot attach ${link.name} as ${entry.role}: ${refusal.why}`;
      const error = new LasthopError("E_INTERFACE", text, { hint: refusal.hint });
      desired.failed.push(failure(link.name, entry.key, error));
    } else {
      desired.warnings.push(`${link.name} matches ${entry.key}, but cannot be attached: ${refusal.why}`);
    }
  }
  return desired;
}

/** A device without any address is the far end of an interface, and Ethernet has more than one. */
function farEndsWithMacs({ devices }: Config, found: readonly Found[]): string[] {
  return devices.flatMap(({ name, interface: pattern, macs, addresses, vteps }, index) => {
    if (pattern === undefined || macs.length + addresses.length + vteps.length > 0) return [];
    const ethernet = found.filter(
      ({ link, matches }) =>
        matches[0]!.role === "uplink" && link.ethernet && matchesGlob(pattern, link.name),
    );
    return ethernet.map(
      ({ link }) =>
        `devices[${index}] (${name}) has neither macs nor addresses, so none of the last hops on ${link.name} is its: ` +
        "that has a link layer",
    );
  });
}

// Matching

type MatchEntry = {
  key: string;
  index: number;
  /** It means this interface, not whatever a pattern happens to match. */
  precise: boolean;
  matches(link: Link): boolean;
} & ({ role: "uplink"; config: UplinkConfig } | { role: "tap"; config: TapConfig });

interface Found {
  link: Link;
  /** The first one counts. */
  matches: MatchEntry[];
}

function matchAll(config: Config, host: HostFacts, guests: Guests): Found[] {
  const entries: MatchEntry[] = [
    ...config.uplinks.map((uplink, index) => ({
      role: "uplink" as const,
      config: uplink,
      ...byName(uplink.name, `uplinks[${index}]`, index),
    })),
    ...config.taps.map((tap, index) => ({
      role: "tap" as const,
      config: tap,
      ...tapMatch(tap, index, host, guests),
    })),
  ];
  const links = host.links.filter((link) => !isHiddenEnd(link));
  const found = links.map((link) => ({ link, matches: entries.filter((entry) => entry.matches(link)) }));
  const place = ({ matches }: Found): number => entries.indexOf(matches[0]!);
  return found.filter(({ matches }) => matches.length > 0).sort((a, b) => place(a) - place(b));
}

function byName(name: string, key: string, index: number): Omit<MatchEntry, "role" | "config"> {
  const precise = !isPattern(name);
  return {
    key,
    index,
    precise,
    matches: precise ? (link) => link.name === name : (link) => matchesGlob(name, link.name),
  };
}

function isPattern(name: string): boolean {
  return /[*?]/.test(name);
}

function tapMatch(
  tap: TapConfig,
  index: number,
  host: HostFacts,
  guests: Guests,
): Omit<MatchEntry, "role" | "config"> {
  const key = `taps[${index}]`;
  if (tap.name !== undefined) return byName(tap.name, key, index);
  const matches =
    tap.domain === undefined ? guestMacMatch(tap.guest_mac!, host, guests) : domainMatch(tap.domain, host);
  return { key, index, precise: true, matches };
}

/** Kinds that a VM or container is behind; a guest's MAC behind another one is a guest elsewhere. */
const GUEST_KINDS: readonly (string | null)[] = ["tun", "veth", "netkit"];

/**
 * libvirt gives a tap the guest's MAC with fe in front. Else the bridge knows it there, or it was seen there before:
 * the bridge forgets a guest that is silent.
 */
function guestMacMatch(text: string, host: HostFacts, guests: Guests): (link: Link) => boolean {
  const bytes = parseMac(text)!;
  const mac = formatMac(bytes);
  const tapMac = formatMac(Buffer.concat([Buffer.from([0xfe]), bytes.subarray(1)]));
  const ports = new Set(
    host.fdb.filter((entry) => !entry.local && entry.mac === mac).map(({ ifindex }) => ifindex),
  );
  return ({ ifindex, kind, mac: own }) =>
    GUEST_KINDS.includes(kind) &&
    (own === tapMac || ports.has(ifindex) || (guests.get(ifindex)?.has(mac) ?? false));
}

function domainMatch(name: string, host: HostFacts): (link: Link) => boolean {
  const targets = new Set(
    host.libvirt.domains
      .filter((domain) => domain.name === name)
      .flatMap((domain) => domain.interfaces.flatMap(({ target }) => target ?? [])),
  );
  return (link) => targets.has(link.name);
}

function unreadable(config: Config, host: HostFacts): string[] {
  if (!config.taps.some((tap) => tap.domain !== undefined)) return [];
  return host.libvirt.unreadable.map(({ path, why }) => `${path} of libvirt cannot be read: ${why}`);
}

/** A pattern behind a more precise entry of the same role is how exceptions are written. */
function ambiguity({ link, matches }: Found): string[] {
  const [first, ...others] = matches;
  const odd = others.filter((other) => other.role !== first!.role || other.precise || !first!.precise);
  if (odd.length === 0) return [];
  const keys = odd.map((other) => other.key).join(" and ");
  return [`${link.name} matches ${first!.key} and ${keys}: ${first!.key} counts, since it comes first`];
}

function awaitedBy(config: Config): Desired["awaited"] {
  const taps = config.taps.flatMap(({ name }) => (name === undefined ? [] : [name]));
  return [
    ...config.uplinks.map(({ name }) => ({ pattern: name, role: "uplink" as const })),
    ...taps.map((pattern) => ({ pattern, role: "tap" as const })),
  ];
}

/** Whether an uplink of this name would be attached as one if it came back. */
export function isAwaited(desired: Pick<Desired, "awaited">, name: string): boolean {
  return desired.awaited.find(({ pattern }) => matchesGlob(pattern, name))?.role === "uplink";
}

// Settings

function zoneOf(zones: ReadonlyMap<string, number>, name: string): number {
  const zone = zones.get(name);
  if (zone !== undefined) return zone;
  throw new LasthopError("E_CONFIG", `there is no zone ${name}`, { hint: "Give it a number under `zones`." });
}

/** One object for all interfaces that an entry matches. */
function settingsOf(zones: ReadonlyMap<string, number>): (entry: MatchEntry) => Settings {
  const known = new Map<string, Settings>();
  return (entry) => {
    const settings =
      known.get(entry.key) ??
      (entry.role === "uplink" ? uplinkSettings(entry, zones) : tapSettings(entry, zones));
    known.set(entry.key, settings);
    return settings;
  };
}

type EntryOf<R extends Role> = Extract<MatchEntry, { role: R }>;

function uplinkSettings(
  { config, key, index }: EntryOf<"uplink">,
  zones: ReadonlyMap<string, number>,
): Settings {
  const { LEARN_DEVICES, RELEARN_NEVER, PICKUP_NO, CLAMP_MSS, VIA_STACK } = INTERFACE_FLAG;
  return {
    ...commonSettings(key, index, zoneOf(zones, config.zone), config.exclude),
    role: "uplink",
    mode: config.mode,
    policy: "enforce",
    flags:
      (config.learn === "devices" ? LEARN_DEVICES : 0) |
      (config.relearn === "never" ? RELEARN_NEVER : 0) |
      (config.pickup ? 0 : PICKUP_NO) |
      (config.clamp_mss ? CLAMP_MSS : 0) |
      (config.via === "stack" ? VIA_STACK : 0) |
      excludesFlag(config.exclude),
    lastHopsMax: config.last_hops_max,
    vmsMax: 0,
    mtu: config.mtu ?? null,
    mark: config.mark,
  };
}

function tapSettings({ config, key, index }: EntryOf<"tap">, zones: ReadonlyMap<string, number>): Settings {
  return {
    ...commonSettings(key, index, zoneOf(zones, config.zone), config.exclude),
    role: "tap",
    mode: undefined,
    policy: config.policy,
    flags: excludesFlag(config.exclude),
    lastHopsMax: 0,
    vmsMax: config.vms_max,
    mtu: null,
    mark: 0,
  };
}

function commonSettings(config: string, configIndex: number, zone: number, exclude: ExclusionConfig[]) {
  return { config, configIndex, zone, origin: ORIGIN.CONFIG, exclusions: encodeExclusions(config, exclude) };
}

function excludesFlag(rules: readonly ExclusionConfig[]): number {
  return rules.length > 0 ? INTERFACE_FLAG.EXCLUDES : 0;
}

// IANA protocol numbers.
const PROTOCOLS = { tcp: [6], udp: [17], sctp: [132] } as const;
const ICMP = { 4: 1, 6: 58 } as const;

/** struct exclusions; `key` is the entry's in the file. */
export function encodeExclusions(key: string, exclude: readonly ExclusionConfig[]): Buffer {
  const rules = exclude.flatMap((given) => {
    const { remote, ports, protocol } = parseExclusion(given);
    const address = remote?.family === 4 ? mapIpv4(remote.bytes) : (remote?.bytes ?? Buffer.alloc(16));
    const bits = remote ? remote.bits + (remote.family === 4 ? 96 : 0) : 0;
    const range = { port_first: ports.first, port_last: ports.last };
    const icmp = remote ? [ICMP[remote.family]] : [ICMP[4], ICMP[6]];
    const numbers = protocol === null ? [0] : protocol === "icmp" ? icmp : PROTOCOLS[protocol];
    return numbers.map((proto) => ({ remote: address, prefix_bits: bits, proto, ...range }));
  });
  if (rules.length > EXCLUSIONS_MAX) {
    throw new LasthopError(
      "E_CONFIG",
      `${key} has ${rules.length} exclusions, where ICMP for both IP versions counts twice; there is room for ${EXCLUSIONS_MAX}`,
      { hint: "Join some of them into one prefix or one range of ports." },
    );
  }
  return encode("exclusions", { count: rules.length, rules });
}

function timeoutTicks({ timeouts }: Config): number[] {
  const ticks: number[] = [];
  for (const [name, index] of Object.entries(TIMEOUT)) {
    ticks[index] = secondsToTicks(timeouts[name.toLowerCase() as keyof Config["timeouts"]]);
  }
  return ticks;
}
