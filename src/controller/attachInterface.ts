// SPDX-License-Identifier: Apache-2.0
// One interface from how it is to how it is wanted: the same for a command and for the configuration. What is to be
// done is found out without touching anything; then it is done, or undone.

import { HOOK_NAMES, POLICY_NAMES, ROLE_NAMES } from "../abi/codec.ts";
import { INTERFACE_FLAG, ORIGIN, ROLE } from "../abi/layout.gen.ts";
import { LAST_HOPS_PER_UPLINK, TC_FILTER, VMS_PER_TAP } from "../config/defaults.ts";
import { LasthopError } from "../errors.ts";
import { driver } from "../kernel/ethtool.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { BpfError, isErrno, xdpQuery } from "../libbpf/index.ts";
import { ERRNO } from "../libc/index.ts";
import type { Hook, Mode, Policy, Role } from "../ops/types.ts";
import type { InterfaceEntry } from "../tables/index.ts";
import { attachSteps, type Current, changesOf, remapTarget } from "./attachSteps.ts";
import { beneath, type Uplinks } from "./beneath.ts";
import { attachDecided, decideHook, type HookDecision } from "./hook.ts";
import { type IcmpSource, icmpSource, NO_ICMP_SOURCE } from "./icmpSource.ts";
import type { Wanted } from "./interfaceEntry.ts";
import type { LabelStacks } from "./labelStacks.ts";
import { isAsNew } from "./lastHops.ts";
import type { Observed, ObservedInterface, Surroundings } from "./observe.ts";
import { askedMtu, CHOSEN_FLAGS, DEFAULT_UPLINK_FLAGS, LASTING_FLAGS, type Settings } from "./settings.ts";
import { chooseSlot } from "./slots.ts";
import { runSteps, type Step } from "./steps.ts";
import { vmMacs } from "./vms.ts";

export interface AttachUnit {
  link: Link;
  now: Current;
  wanted: Wanted;
  decision: HookDecision;
  /** For people; empty if all is as wanted. A new interface has none. */
  changes: string[];
  /** What the operator should know before it is done. */
  warnings: string[];
}

/** What is to hold beside this interface; what is left out is as observed. */
export interface Company {
  /** Every uplink that is, or is to be, attached. */
  uplinks?: Uplinks;
  labelStacks?: LabelStacks;
  /** Zones that have services. */
  serviceZones?: ReadonlySet<number>;
}

/** Slots that this plan has given out, beside those that the tables know. */
export type TakenSlots = Set<number>;

export function takenSlots({ interfaces }: Observed): TakenSlots {
  return new Set(interfaces.map(({ entry }) => entry.slot));
}

/**
 * What it takes to attach `link` as `settings` say. Reads nothing but what was observed. Throws E_MODE or E_FOREIGN
 * when the mode that was asked for does not work there, E_INTERFACE when there is no room.
 */
export function prepare(
  observed: Observed,
  link: Link,
  settings: Settings,
  taken: TakenSlots,
  returned?: InterfaceEntry,
  company: Company = {},
): AttachUnit {
  const now = currentOf(observed, link, returned);
  const decision = decide(observed, link, now, settings, company);
  const wanted = wantedFor(observed, link, now, settings, taken, company);
  now.outdated = isOutdated(observed, now, wanted);
  const changes = changesOf(now, { ...wanted, hook: decision.hook }, observed);
  return { link, now, wanted, decision, changes, warnings: warningsOf(now, wanted, decision.hook) };
}

function currentOf(observed: Observed, link: Link, returned: InterfaceEntry | undefined): Current {
  const there = observed.interfaces.find(
    ({ entry, link: own }) => entry.ifindex === link.ifindex && own !== undefined,
  );
  const orphan = observed.strayFilters.some(
    ({ ifindex, kind }) => ifindex === link.ifindex && kind === "orphan",
  );
  const attached = new Set(observed.interfaces.flatMap(({ entry, link: own }) => (own ? entry.ifindex : [])));
  const common = {
    orphan,
    outdated: false,
    bridges: observed.bridges,
    attached,
    ...(returned && { returned }),
  };
  if (!there) return common;
  const { link: _, ...rest } = there;
  return { ...common, ...rest };
}

/** A mode that is not given leaves the hook as it is, if it suits the role; so does `auto` of the configuration. */
function decide(
  observed: Observed,
  link: Link,
  now: Current,
  settings: Settings,
  company: Company,
): HookDecision {
  const attachment = now.attachments?.[0];
  const { role, mode, origin } = settings;
  if (now.entry && attachment?.alive) {
    const isOnXdp = attachment.hook.startsWith("xdp");
    const stays = mode === undefined ? role === "uplink" || !isOnXdp : false;
    // A driver that refused XDP would refuse it each time.
    const suits = mode === "auto" && origin === ORIGIN.CONFIG && !isOnXdp;
    if (stays || suits) return { hook: attachment.hook, reason: "it was before", fallback: null };
  }
  const isOurs = attachment?.alive === true && attachment.hook.startsWith("xdp");
  const facts = {
    name: link.name,
    role,
    kind: link.kind,
    ethernet: link.ethernet,
    external: link.external === true,
    hardware: link.parentDevice !== null && link.ethernet,
    xdp: link.xdp,
    ownXdpProgramId: isOurs ? attachment.programId : null,
    vlanStripping: role === "uplink" && mode !== "tc" ? observed.vlanStripping(link) : null,
    services: (company.serviceZones ?? serviceZonesOf(observed)).has(settings.zone),
    tcx: observed.tcx,
  };
  return decideHook(facts, mode ?? "auto");
}

function wantedFor(
  observed: Observed,
  link: Link,
  now: Current,
  settings: Settings,
  taken: TakenSlots,
  company: Company,
): Wanted {
  const { host } = observed;
  const master = link.masterKind === "bridge" && link.master !== null ? host.link(link.master) : undefined;
  const l3 = master ?? link;
  const { mode: _, ...chosen } = settings;
  const isTap = settings.role === "tap";
  const isNewTap = isTap && now.entry?.role !== ROLE.TAP;
  const bridges = master ? [master, ...host.vlansOn(master.ifindex)] : [];
  const uplinks = company.uplinks ?? attachedUplinks(observed);
  return {
    ...chosen,
    link,
    l3,
    bridges,
    beneath: isTap ? null : beneath(host, link, settings.zone, uplinks),
    icmpSource: isTap ? icmpSourceOf(observed, link, l3, bridges, now.entry) : NO_ICMP_SOURCE,
    labelStacks: company.labelStacks ?? observed.labelStacks,
    slot: slotFor(observed, link, now, taken),
    portBlocked: isPortBlocked(link),
    usable: isUsable(observed, link),
    vms: isNewTap ? vmMacs(link, l3.mac ?? "", master ? host.fdb : [], host.neighbours) : [],
  };
}

/** As they are entered. */
export function serviceZonesOf({ specs }: Pick<Observed, "specs">): Set<number> {
  return new Set(specs.services.named.map(({ spec }) => spec.zone));
}

/** Zones by ifindex. */
export function attachedUplinks({ interfaces }: Pick<Observed, "interfaces">): Map<number, number> {
  const uplinks = interfaces.filter(({ entry, link }) => link !== undefined && entry.role === ROLE.UPLINK);
  return new Map(uplinks.map(({ entry }) => [entry.ifindex, entry.zone]));
}

function icmpSourceOf(
  observed: Observed,
  tap: Link,
  l3: Link,
  bridges: readonly Link[],
  entry: InterfaceEntry | undefined,
): IcmpSource {
  const { host } = observed;
  return icmpSource({
    l3,
    others: bridges.filter(({ ifindex }) => ifindex !== l3.ifindex),
    addresses: host.addresses,
    neighbours: () => host.neighbours,
    guests: () => observed.guests.get(tap.ifindex) ?? new Set(),
    before: entry ? { v4: entry.icmp_source4, v6: entry.icmp_source6 } : NO_ICMP_SOURCE,
  });
}

function slotFor(observed: Observed, link: Link, now: Current, taken: TakenSlots): number {
  const known = now.entry?.slot ?? now.returned?.slot;
  if (known !== undefined) return known;
  const { lastHops } = observed;
  const slot = chooseSlot(lastHops.of(link.ifindex).sources[0]?.slot, taken, lastHops.slots);
  taken.add(slot);
  return slot;
}

/** A port that is merely down forwards again when it comes up; one that the operator or STP stopped does not. */
function isPortBlocked({ portState, flags }: Link): boolean {
  return portState === "blocking" || (portState === "disabled" && flags.up && flags.running);
}

/** Up, and with a carrier. When nobody would see it come up again, it counts as up. */
export function isUsable({ followed }: Pick<Observed, "followed">, { flags }: Link): boolean {
  return !followed || (flags.up && flags.running);
}

/** Some of its last hops say another way back than new ones would. */
function isOutdated({ lastHops }: Observed, now: Current, wanted: Wanted): boolean {
  const { link, role } = wanted;
  if (role !== "uplink" || !now.entry) return false;
  const to = remapTarget(wanted);
  return lastHops.of(link.ifindex).sources.some((source) => !isAsNew(source, to));
}

function warningsOf(now: Current, { link, portBlocked, origin, role }: Wanted, hook: Hook): string[] {
  const old = now.attachments?.[0];
  const from = old?.alive ? old.hook : null;
  const warnings: string[] = [];
  if (from !== hook && (from === "xdp_native" || hook === "xdp_native")) {
    warnings.push(`${link.name}: attaching or detaching native XDP may reset the link for a moment`);
  }
  if (hook === "xdp_native" && from !== hook && link.kind === "veth") {
    warnings.push(
      `${link.name}: native XDP on a veth turns segmentation offload off; TCP gets several times slower`,
    );
  }
  // The tap of a guest that starts is up a moment later.
  if (!link.flags.up && !(role === "tap" && origin === ORIGIN.CONFIG)) warnings.push(`${link.name} is down`);
  if (portBlocked) {
    const until = origin === ORIGIN.MANUAL ? "; attach again when it forwards" : " until it forwards";
    warnings.push(`${link.name}: the bridge port is ${link.portState}, nothing is learned there${until}`);
  }
  return warnings;
}

/** What an entry says of how it was asked to be attached; what it does not say is what holds without a word. */
export function settingsOf({ entry, budget, exclusions }: Partial<ObservedInterface>, role: Role): Settings {
  const isSameRole = entry !== undefined && ROLE_NAMES[entry.role] === role;
  const fallback = role === "uplink" ? DEFAULT_UPLINK_FLAGS : 0;
  // An entry of a version that knew no MTU says nothing of what came with it.
  const flags =
    isSameRole && entry.mtu !== 0
      ? entry.flags & CHOSEN_FLAGS
      : fallback | ((entry?.flags ?? 0) & LASTING_FLAGS);
  return {
    role,
    mode: undefined,
    zone: entry?.zone ?? 0,
    policy: (POLICY_NAMES[entry?.policy ?? 0] ?? "enforce") as Policy,
    flags: exclusions ? flags : flags & ~INTERFACE_FLAG.EXCLUDES,
    lastHopsMax: (isSameRole && budget?.last_hops_max) || LAST_HOPS_PER_UPLINK,
    vmsMax: (isSameRole && budget?.vms_max) || VMS_PER_TAP,
    mtu: isSameRole ? askedMtu(entry) : null,
    mark: isSameRole ? entry.mark : 0,
    exclusions: exclusions ?? Buffer.alloc(0),
    origin: entry?.origin ?? ORIGIN.MANUAL,
    config: null,
    configIndex: entry?.config_index ?? 0,
  };
}

/** The key of a configured interface in its file, as "taps[2]"; null if it was attached by hand. */
export function configKey({ origin, role, config_index }: InterfaceEntry): string | null {
  if (origin !== ORIGIN.CONFIG) return null;
  return `${role === ROLE.TAP ? "taps" : "uplinks"}[${config_index}]`;
}

/** The mode that leads to the hook of an entry whose interface has gone. */
export function modeOf({ hook }: InterfaceEntry): Mode {
  switch (HOOK_NAMES[hook]) {
    case "xdp_native":
      return "native";
    case "xdp_generic":
      return "generic";
    default:
      return "tc";
  }
}

export type RunSteps = (steps: readonly Step[]) => string[];

/** Does it, or leaves everything as it was and throws. Returns what was done, and the hook that it became. */
export function attachUnit(
  around: Surroundings,
  { link, now, wanted, decision }: AttachUnit,
  warn: (message: string) => void,
  run: RunSteps = runSteps,
): { hook: Hook; done: string[] } {
  try {
    const { hook, result: done } = attachDecided(
      decision,
      (hook, reason) => run(attachSteps(around, now, { ...wanted, hook }, reason)),
      (error) => driverRefusal(link, error, warn),
    );
    return { hook, done };
  } catch (error) {
    throw explain(error, around, link, decision.hook);
  }
}

/** Why the driver does not take native XDP; null if that is not what failed. */
function driverRefusal(link: Link, error: unknown, warn: (message: string) => void): string | null {
  if (!(error instanceof BpfError) || error.code !== "E_BPF" || error.errno === ERRNO.ENODEV) return null;
  const why = `the driver refuses native XDP (${error.errnoName})`;
  warn(`${link.name}: ${why}; using TC`);
  return why;
}

/** The same error with what the user can do about it. */
function explain(error: unknown, { netlink }: Surroundings, { name, ifindex }: Link, hook: Hook): unknown {
  if (!netlink.link(ifindex)) {
    return new LasthopError("E_NO_INTERFACE", `${name} went away while it was being attached`, {
      cause: error,
      hint: "Nothing was changed. Attach it when it is back.",
    });
  }
  if (!(error instanceof BpfError) || error.code !== "E_BPF") return error;
  const options = { cause: error, ...(error.details !== undefined && { details: error.details }) };
  if (hook.startsWith("xdp") && isErrno(error, "EBUSY", "EEXIST")) {
    const id = xdpQuery(ifindex).programId;
    return new LasthopError(
      "E_FOREIGN",
      `cannot attach ${name} by ${hook}: XDP program ${id ?? "(unknown)"} is on it`,
      { ...options, hint: `Use --mode tc, or see whose it is: \`bpftool net show dev ${name}\`.` },
    );
  }
  if (hook === "clsact" && isErrno(error, "EEXIST")) {
    const { handle, priority } = TC_FILTER;
    return new LasthopError(
      "E_FOREIGN",
      `cannot attach ${name} by clsact: another filter has handle ${handle} of priority ${priority}`,
      {
        ...options,
        hint: `See whose it is: \`tc filter show dev ${name} ingress\`. Its owner can give it another priority.`,
      },
    );
  }
  if (hook === "xdp_native") {
    return new LasthopError(
      "E_MODE",
      `the driver of ${name} (${driver(name) ?? "unknown"}) refuses native XDP: ${error.errnoName}`,
      { ...options, hint: "Use --mode tc, or --mode generic." },
    );
  }
  return error;
}

/**
 * Uplinks whose netdev has gone and that are kept for their last hops: of a name the latest, and none whose name
 * another interface has by now.
 */
export function keptUplinks({ interfaces, lastHops }: Observed): InterfaceEntry[] {
  const kept = new Map<string, InterfaceEntry>();
  for (const { entry, link } of interfaces) {
    if (link !== undefined || entry.role !== ROLE.UPLINK || lastHops.of(entry.ifindex).count === 0) continue;
    if ((kept.get(entry.name)?.ifindex ?? 0) < entry.ifindex) kept.set(entry.name, entry);
  }
  for (const { link } of interfaces) if (link) kept.delete(link.name);
  return [...kept.values()];
}
