// SPDX-License-Identifier: Apache-2.0
// From what is there to what is wanted: which actions, in which order. Pure: no clock, no descriptor, no waiting.

import { decode, encode, TICK_SECONDS } from "../abi/codec.ts";
import { ORIGIN, ROLE, TIMEOUT, ZONES_MAX } from "../abi/layout.gen.ts";
import { LasthopError } from "../errors.ts";
import type { PinnedLink } from "../kernel/attachment.ts";
import { whyNotAttachable } from "../kernel/coexistence.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import type { Policy, Role } from "../ops/types.ts";
import type { Device, DeviceInput, InterfaceEntry } from "../tables/index.ts";
import {
  type AttachUnit,
  type Company,
  configKey,
  isUsable,
  keptUplinks,
  modeOf,
  prepare,
  settingsOf,
  type TakenSlots,
  takenSlots,
} from "./attachInterface.ts";
import { type Desired, type DesiredDevice, isAwaited } from "./desired.ts";
import { deviceConflict, sameDevice } from "./devices.ts";
import { type Failure, failure } from "./failure.ts";
import { isGone } from "./interfaceEntry.ts";
import { type LabelStackChanges, labelStackChanges, labelStackText } from "./labelStacks.ts";
import type { Observed, ObservedInterface, StrayFilter } from "./observe.ts";
import { planServices, type ServiceAction } from "./servicePlan.ts";
import type { Settings } from "./settings.ts";
import type { TunnelAction } from "./tunnelPlan.ts";
import { planZoneNumbers } from "./zoneNumbers.ts";

interface Described {
  /** Name of the interface, device, zone, table or link that it is about. */
  object: string;
  /** One line for people. */
  text: string;
  /** Key in the configuration file, as "taps[0]"; null for what nobody configured. */
  config: string | null;
}

/** The tables and programs themselves. */
export type InstanceAction = Described & { kind: "create-instance" | "upgrade" | "resize" };

/** What only the tables and programs that are there already can have. */
export type TableAction = ServiceAction | (Described & InterfaceAction);

type InterfaceAction =
  | { kind: "control"; timeouts: readonly number[]; relearnDamping: number }
  | { kind: "zone"; zone: number; number: number }
  | { kind: "label-stacks"; changes: LabelStackChanges }
  /** What an interrupted change left, or an instance of which nothing else is left. */
  | { kind: "repair"; left: { unfinished: PinnedLink } | { link: PinnedLink } | { filter: StrayFilter } }
  /** A netdev has gone; `keep`: for its last hops, until it returns. */
  | { kind: "gone"; observed: ObservedInterface; keep: boolean }
  | { kind: "attach"; unit: AttachUnit }
  | { kind: "change"; unit: AttachUnit }
  | { kind: "detach"; observed: ObservedInterface }
  /** An uplink went down or came up. */
  | { kind: "last-hops"; ifindex: number; state: "up" | "down" }
  | { kind: "bridge"; unused: InterfaceEntry }
  | { kind: "device-add"; name: string; device: DeviceInput }
  | { kind: "device-change"; name: string; device: DeviceInput }
  | { kind: "device-remove"; name: string };

export type Action = InstanceAction | TunnelAction | TableAction;
export type ActionKind = Action["kind"];

interface Findings<A extends Action> {
  /** In the order in which they are to be done. */
  actions: A[];
  /** What cannot be as it is wanted, and why. */
  failed: Failure[];
  /** Conditions that stand: "vnet3 matches taps[0] and taps[2]: taps[0] counts, since it comes first". */
  warnings: string[];
}

export interface Plan<A extends Action = Action> extends Findings<A> {
  /** Every interface that is, or is to be, attached. */
  attached: PlannedInterface[];
}

export interface PlannedInterface {
  ifindex: number;
  name: string;
  role: Role;
  zone: number;
  policy: Policy;
}

export function plan(desired: Desired, observed: Observed): Plan<TableAction> {
  const interfaces = planInterfaces(desired, observed);
  const devices = planDevices(desired, observed);
  const services = planServices(desired, observed.specs);
  return {
    actions: [
      ...planControl(desired, observed),
      ...planLabelStacks(desired, observed),
      ...planRemains(observed),
      ...planGone(observed, desired),
      ...planZones(observed, interfaces.units),
      ...interfaces.actions,
      ...planOrphans(observed, interfaces.units),
      ...devices.actions,
      ...services.actions,
    ],
    failed: [...desired.failed, ...interfaces.failed, ...devices.failed, ...services.failed],
    warnings: [...desired.warnings, ...interfaces.warnings, ...services.warnings],
    attached: interfaces.units.map(({ link: { ifindex, name }, wanted: { role, zone, policy } }) => ({
      ifindex,
      name,
      role,
      zone,
      policy,
    })),
  };
}

// Host-wide

function planControl(desired: Desired, observed: Observed): TableAction[] {
  const { timeouts, relearnDamping } = desired;
  const changes = Object.entries(TIMEOUT).flatMap(([name, index]) =>
    timeouts[index] === observed.timeouts[index]
      ? []
      : [`${name.toLowerCase()} ${ticksText(timeouts[index]!)}`],
  );
  const isDampingSame = relearnDamping === observed.relearnDamping;
  if (changes.length === 0 && isDampingSame) return [];
  const text = [
    ...(changes.length > 0 ? [`timeouts: ${changes.join(", ")}`] : []),
    ...(isDampingSame ? [] : [`relearn damping ${ticksText(relearnDamping)}`]),
  ].join("; ");
  const config = changes.length > 0 ? "timeouts" : "relearn_damping_seconds";
  return [{ kind: "control", object: "control", text, config, timeouts, relearnDamping }];
}

function ticksText(ticks: number): string {
  return `${Math.round(ticks * TICK_SECONDS)} s`;
}

/** The last hops that have labels follow: their uplinks are outdated then. */
function planLabelStacks({ labelStacks }: Desired, observed: Observed): TableAction[] {
  const changes = labelStackChanges(labelStacks, observed.labelStacks);
  if (changes === null) return [];
  const text = labelStackText(changes);
  return [{ kind: "label-stacks", object: "label stacks", text, config: "mpls.label_stacks", changes }];
}

/** A sweep takes the numbers of zones that nobody has any more. */
function planZones(observed: Observed, units: readonly AttachUnit[]): TableAction[] {
  const wanted = units.map(({ wanted }) => wanted.zone);
  if (observed.zones.size >= ZONES_MAX - 1) return [];
  const { added } = planZoneNumbers(observed.zones, wanted, () => true);
  return [...added].map(([zone, number]) => ({
    kind: "zone",
    object: `zone ${zone}`,
    text: `zone ${zone}: counted by itself`,
    config: "zones",
    zone,
    number,
  }));
}

// What was left

/** Before anything else, so that a name is free for what is right. */
export function planRemains({ unfinished, strayLinks, host }: Observed): TableAction[] {
  const nameOf = ({ ifindex }: PinnedLink) => host.link(ifindex)?.name ?? `if${ifindex}`;
  return [
    ...unfinished.map((link) => ({
      kind: "repair" as const,
      object: nameOf(link),
      text: `${nameOf(link)}: finish the change of its hook that was interrupted`,
      config: null,
      left: { unfinished: link },
    })),
    ...strayLinks.map((link) => ({
      kind: "repair" as const,
      object: nameOf(link),
      text: `${nameOf(link)}: remove a program of ours that no table knows`,
      config: null,
      left: { link },
    })),
  ];
}

/** Those whose place a filter of ours takes are replaced there. */
export function planOrphans({ strayFilters, host }: Observed, units: readonly AttachUnit[]): TableAction[] {
  const replaced = new Set(
    units.filter(({ decision }) => decision.hook === "clsact").map(({ link }) => link.ifindex),
  );
  return strayFilters
    .filter(({ kind, ifindex }) => kind === "orphan" && !replaced.has(ifindex))
    .map((filter) => {
      const name = host.link(filter.ifindex)?.name ?? `if${filter.ifindex}`;
      const text = `${name}: remove a filter of an instance of which nothing else is left`;
      return { kind: "repair", object: name, text, config: null, left: { filter } };
    });
}

// Interfaces that are gone

/** Without `desired`: as if nothing were configured. */
export function planGone(observed: Observed, desired?: Desired): TableAction[] {
  const kept = new Set(keptUplinks(observed).filter((entry) => isExpected(entry, desired)));
  return observed.interfaces.flatMap((item): TableAction[] => {
    const { entry, link, attachments } = item;
    if (link !== undefined) return [];
    const keep = kept.has(entry);
    const { up } = observed.lastHops.of(entry.ifindex);
    if (keep && isGone(entry) && attachments.length === 0 && up.length === 0) return [];
    const text = keep ? `${entry.name} is gone: kept until it returns` : `${entry.name} is gone: forgotten`;
    return [{ kind: "gone", object: entry.name, text, config: configKey(entry), observed: item, keep }];
  });
}

function isExpected(entry: InterfaceEntry, desired: Desired | undefined): boolean {
  return desired === undefined || entry.origin !== ORIGIN.CONFIG || isAwaited(desired, entry.name);
}

// Interfaces

interface InterfacesPlan extends Findings<TableAction> {
  /** Every interface that is, or is to be, attached. */
  units: AttachUnit[];
}

function planInterfaces(desired: Desired, observed: Observed): InterfacesPlan {
  const { host } = observed;
  const result: InterfacesPlan = { actions: [], failed: [], warnings: [], units: [] };
  const taken = takenSlots(observed);
  const kept = keptUplinks(observed).filter((entry) => isExpected(entry, desired));
  const wanted = new Map<number, Settings>(desired.interfaces.map((item) => [item.ifindex, item]));
  const failed = new Set(desired.failed.map(({ object }) => object));
  const present = observed.interfaces.filter((item) => item.link !== undefined);
  const company = {
    uplinks: plannedUplinks(wanted, present),
    labelStacks: desired.labelStacks,
    serviceZones: plannedServiceZones(desired, observed),
  };
  const add = (link: Link, settings: Settings, returned?: InterfaceEntry): void => {
    addUnit(result, observed, link, settings, taken, returned, company);
  };
  for (const [ifindex, settings] of wanted) {
    const link = host.link(ifindex)!;
    const isThere = present.some(({ entry }) => entry.ifindex === ifindex);
    const returned =
      isThere || settings.role !== "uplink" ? undefined : kept.find(({ name }) => name === link.name);
    add(link, settings, returned);
  }
  const detached: TableAction[] = [];
  for (const item of present) {
    const { entry, link } = item;
    if (wanted.has(entry.ifindex)) continue;
    if (entry.origin === ORIGIN.CONFIG) {
      if (!failed.has(link!.name) || whyNotAttachable(host, link!) !== null)
        detached.push(detachAction(item));
    } else {
      const mode = item.attachments[0]?.alive ? undefined : modeOf(entry);
      add(link!, { ...settingsOf(item, roleOf(entry)), mode });
    }
  }
  for (const [link, entry] of returningByHand(observed, kept, wanted)) {
    const item = observed.interfaces.find((other) => other.entry === entry)!;
    add(link, { ...settingsOf(item, "uplink"), mode: modeOf(entry) }, entry);
  }
  result.actions.push(
    ...planLastHops(observed, result.units),
    ...detached,
    ...planBridges(observed, result.units),
  );
  return result;
}

/** Of the services that are configured, and of those that stay though they are not. */
function plannedServiceZones({ services }: Desired, { specs }: Observed): Set<number> {
  const stay = specs.services.named.filter(({ name, spec }) => {
    return spec.origin !== ORIGIN.CONFIG && !services.has(name);
  });
  return new Set([...services.values(), ...stay].map(({ spec }) => spec.zone ?? 0));
}

/** Those that are configured, and those that stay though they are not. */
function plannedUplinks(
  wanted: ReadonlyMap<number, Settings>,
  present: readonly ObservedInterface[],
): Map<number, number> {
  const uplinks = new Map<number, number>();
  for (const [ifindex, { role, zone }] of wanted) if (role === "uplink") uplinks.set(ifindex, zone);
  for (const { entry } of present) {
    const stays = entry.role === ROLE.UPLINK && entry.origin !== ORIGIN.CONFIG && !wanted.has(entry.ifindex);
    if (stays) uplinks.set(entry.ifindex, entry.zone);
  }
  return uplinks;
}

function roleOf(entry: InterfaceEntry): "uplink" | "tap" {
  return entry.role === ROLE.UPLINK ? "uplink" : "tap";
}

function addUnit(
  result: InterfacesPlan,
  observed: Observed,
  link: Link,
  settings: Settings,
  taken: TakenSlots,
  returned: InterfaceEntry | undefined,
  company: Company,
): void {
  let unit: AttachUnit;
  try {
    unit = prepare(observed, link, settings, taken, returned, company);
  } catch (error) {
    if (!(error instanceof LasthopError)) throw error;
    result.failed.push(failure(link.name, settings.config, error));
    return;
  }
  result.units.push(unit);
  const action = attachAction(unit);
  if (action) result.actions.push(action);
}

/** Null if the interface is as it is wanted. */
export function attachAction(unit: AttachUnit): TableAction | null {
  const { link, now, wanted, decision, changes } = unit;
  const common = { object: link.name, config: wanted.config, unit };
  if (now.entry) {
    if (changes.length === 0) return null;
    return { kind: "change", text: `${link.name}: ${changes.join(", ")}`, ...common };
  }
  const policy = wanted.role === "tap" ? `, policy ${wanted.policy}` : "";
  const how = `${wanted.role} by ${decision.hook}, zone ${wanted.zone}${policy}`;
  const again = now.returned ? " again, with its last hops" : "";
  return { kind: "attach", text: `${link.name}: attach as ${how}${again}`, ...common };
}

export function detachAction(observed: ObservedInterface): TableAction {
  const { entry, link } = observed;
  const object = link?.name ?? entry.name;
  return { kind: "detach", object, text: `${object}: detach`, config: configKey(entry), observed };
}

/** Uplinks that were attached by hand, went, and are back under their name. Taps are not: who knows whose they are. */
function returningByHand(
  { host, interfaces }: Observed,
  kept: readonly InterfaceEntry[],
  wanted: ReadonlyMap<number, unknown>,
): [Link, InterfaceEntry][] {
  const attached = new Set(interfaces.filter(({ link }) => link).map(({ entry }) => entry.ifindex));
  return kept.flatMap((entry): [Link, InterfaceEntry][] => {
    if (entry.origin === ORIGIN.CONFIG) return [];
    const link = host.links.find(({ name }) => name === entry.name);
    if (!link || attached.has(link.ifindex) || wanted.has(link.ifindex)) return [];
    return whyNotAttachable(host, link, "uplink") === null ? [[link, entry]] : [];
  });
}

/** Of uplinks that are attached as they are wanted, and went down or came up. */
function planLastHops(observed: Observed, units: readonly AttachUnit[]): TableAction[] {
  return units.flatMap(({ link, now, wanted }): TableAction[] => {
    if (wanted.role !== "uplink" || now.entry?.role !== ROLE.UPLINK) return [];
    const { up, down } = observed.lastHops.of(link.ifindex);
    const state = isUsable(observed, link) ? "up" : "down";
    if ((state === "up" ? down : up).length === 0) return [];
    const text =
      state === "up"
        ? `${link.name} is up: replies go there again`
        : `${link.name} is down: replies of its flows take the VMs' own routes`;
    const { ifindex, name } = link;
    return [{ kind: "last-hops", object: name, text, config: wanted.config, ifindex, state }];
  });
}

/** Of bridges that are gone themselves. */
export function planLostBridges({ bridges, host }: Observed): TableAction[] {
  return [...bridges.values()]
    .filter(({ ifindex }) => !host.link(ifindex))
    .map((unused) => {
      const text = `${unused.name} is gone: forgotten`;
      return { kind: "bridge", object: unused.name, text, config: null, unused };
    });
}

function planBridges({ bridges }: Observed, units: readonly AttachUnit[]): TableAction[] {
  const taps = units.filter(({ wanted }) => wanted.role === "tap");
  const used = new Set(taps.flatMap(({ wanted }) => wanted.bridges.map(({ ifindex }) => ifindex)));
  return [...bridges.values()]
    .filter(({ ifindex }) => !used.has(ifindex))
    .map((unused) => {
      const text = `${unused.name}: no tap is on it any more`;
      return { kind: "bridge", object: unused.name, text, config: null, unused };
    });
}

// Devices

function planDevices({ devices }: Desired, observed: Observed): Findings<TableAction> {
  const result: Findings<TableAction> = { actions: [], failed: [], warnings: [] };
  for (const [name, { origin }] of observed.devices) {
    if (origin !== ORIGIN.CONFIG || devices.has(name)) continue;
    result.actions.push({
      kind: "device-remove",
      object: name,
      text: `device ${name}: remove`,
      config: null,
      name,
    });
  }
  const all = devicesOf(devices, observed.devices);
  for (const [name, { config, device }] of devices) {
    const old = observed.devices.get(name);
    if (old && sameDevice(old, device)) continue;
    const conflict = deviceConflict(name, all.get(name)!, all);
    if (conflict !== null) {
      const error = new LasthopError(
        "E_DEVICE",
        `device ${name} cannot be as it is configured: ${conflict}`,
        {
          hint: "`lasthop devices list` shows what was entered by hand.",
        },
      );
      result.failed.push(failure(name, config, error));
      continue;
    }
    const kind = old ? "device-change" : "device-add";
    const text = `device ${name}: ${old ? changeText(old) : "add"}`;
    result.actions.push({ kind, object: name, text, config, name, device });
  }
  return result;
}

function changeText({ origin }: Device): string {
  return origin === ORIGIN.CONFIG ? "change" : "by the configuration from now on";
}

/** As they would be, with those that were entered by hand. */
function devicesOf(
  desired: ReadonlyMap<string, DesiredDevice>,
  observed: ReadonlyMap<string, Device>,
): Map<string, Device> {
  const manual = [...observed].filter(([name, { origin }]) => origin !== ORIGIN.CONFIG && !desired.has(name));
  const wanted = [...desired].map(
    ([name, { device }]) => [name, decode("device", encode("device", device))] as const,
  );
  return new Map([...manual, ...wanted]);
}
