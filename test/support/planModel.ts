// SPDX-License-Identifier: Apache-2.0
// A host and its tables as values, for plans without a kernel; `carryOut` is what apply would make of them.

import { decode, encode, type StructInput } from "../../src/abi/codec.ts";
import { INTERFACE_FLAG, ROLE } from "../../src/abi/layout.gen.ts";
import { parseService, parseVm } from "../../src/config/entries.ts";
import { parseConfig } from "../../src/config/load.ts";
import type { Config } from "../../src/config/schema.ts";

import { withObserved } from "../../src/controller/devices.ts";
import { hostFacts } from "../../src/controller/hostFacts.ts";
import { bridgeEntry, entryOf } from "../../src/controller/interfaceEntry.ts";
import { NO_LAST_HOPS } from "../../src/controller/lastHopFacts.ts";
import type { Observed, ObservedInterface } from "../../src/controller/observe.ts";
import type { TableAction } from "../../src/controller/plan.ts";
import { NO_SPECS, type ObservedSpecs } from "../../src/controller/servicePlan.ts";
import type { NamedService, NamedVm } from "../../src/controller/serviceSpec.ts";
import { xfrmPlacesOf } from "../../src/controller/tunnelSpec.ts";
import type { LibvirtDomain } from "../../src/kernel/libvirt.ts";
import type { Address, FdbEntry, Link, Neighbour } from "../../src/kernel/rtnetlink.ts";
import { XFRM_PROGRAMS } from "../../src/kernel/tunnelAttachment.ts";
import type { Device, InterfaceEntry } from "../../src/tables/index.ts";

const UP = { up: true, running: true, loopback: false };

/** A veth that is up; what it is otherwise is in `more`. */
export function link(ifindex: number, name: string, more: Partial<Link> = {}): Link {
  return {
    ifindex,
    name,
    mac: `02:00:00:00:${hex(ifindex >> 8)}:${hex(ifindex & 255)}`,
    mtu: 1500,
    ethernet: true,
    flags: UP,
    kind: "veth",
    lower: null,
    master: null,
    masterKind: null,
    parentDevice: null,
    portState: null,
    linkNetns: null,
    xdp: null,
    txQueues: 1,
    ...more,
  };
}

function hex(value: number): string {
  return value.toString(16).padStart(2, "0");
}

export const LO = link(1, "lo", { kind: null, flags: { ...UP, loopback: true }, mac: "00:00:00:00:00:00" });

export interface HostOptions {
  addresses?: Address[];
  fdb?: FdbEntry[];
  neighbours?: Neighbour[];
  domains?: LibvirtDomain[];
  unreadable?: { path: string; why: string }[];
}

export function host(links: readonly Link[], options: HostOptions = {}) {
  const { addresses = [], fdb = [], neighbours = [], domains = [], unreadable = [] } = options;
  return hostFacts({
    links: links.some(({ ifindex }) => ifindex === LO.ifindex) ? links : [LO, ...links],
    addresses: () => addresses,
    fdb: () => fdb,
    neighbours: () => neighbours,
    libvirt: () => ({ domains, unreadable }),
  });
}

export function config(text: string): Config {
  return parseConfig(text, "test");
}

const PROGRAMS: Readonly<Record<string, number>> = {
  uplink_tcx: 11,
  uplink_clsact: 11,
  tap_tcx: 12,
  tap_clsact: 12,
};

const XFRM_IDS: Observed["xfrmPrograms"] = new Map(
  XFRM_PROGRAMS.map((name, index) => [name, 20 + index] as const),
);

/** Tables without anything in them, on this host. */
export function empty(facts: ReturnType<typeof host>): Observed {
  return {
    host: facts,
    programs: (role, hook) => PROGRAMS[`${role}_${hook}`] ?? 10,
    xfrmPrograms: XFRM_IDS,
    interfaces: [],
    bridges: new Map(),
    unfinished: [],
    strayLinks: [],
    strayFilters: [],
    lastHops: NO_LAST_HOPS,
    guests: new Map(),
    timeouts: [],
    relearnDamping: 0,
    zones: new Map(),
    labelStacks: new Map(),
    devices: new Map(),
    specs: NO_SPECS,
    followed: true,
    tcx: true,
    vlanStripping: () => [],
  };
}

/** The same tables after these actions. */
export function carryOut(before: Observed, actions: readonly TableAction[]): Observed {
  const interfaces = new Map(before.interfaces.map((item) => [item.entry.ifindex, item]));
  const bridges = new Map(before.bridges);
  const zones = new Map(before.zones);
  const devices = new Map<string, Device>(before.devices);
  let { timeouts, relearnDamping, labelStacks, specs } = before;
  for (const action of actions) {
    switch (action.kind) {
      case "control":
        ({ timeouts, relearnDamping } = action);
        break;
      case "label-stacks": {
        const { set, removed } = action.changes;
        const kept = [...labelStacks].filter(([id]) => !removed.includes(id));
        labelStacks = new Map([...kept, ...set]);
        break;
      }
      case "zone":
        zones.set(action.zone, action.number);
        break;
      case "attach":
      case "change": {
        const item = attached(before, action.unit);
        interfaces.set(item.entry.ifindex, item);
        const { returned } = action.unit.now;
        if (returned && returned.ifindex !== item.entry.ifindex) interfaces.delete(returned.ifindex);
        if (item.entry.role !== ROLE.TAP) break;
        for (const bridge of action.unit.wanted.bridges) {
          const bytes = encode("interface", bridgeEntry(bridge, action.unit.wanted.l3));
          bridges.set(bridge.ifindex, decode("interface", bytes));
        }
        break;
      }
      case "detach":
        interfaces.delete(action.observed.entry.ifindex);
        break;
      case "gone":
        interfaces.delete(action.observed.entry.ifindex);
        if (action.keep) interfaces.set(action.observed.entry.ifindex, gone(action.observed));
        break;
      case "bridge":
        bridges.delete(action.unused.ifindex);
        break;
      case "device-add":
      case "device-change": {
        const value = withObserved(action.device, devices.get(action.name));
        devices.set(action.name, decode("device", encode("device", value)));
        break;
      }
      case "device-remove":
        devices.delete(action.name);
        break;
      case "vm-add":
      case "vm-change":
      case "vm-remove":
      case "service-add":
      case "service-change":
      case "service-remove":
        specs = specified(specs, action);
        break;
      case "last-hops":
      case "repair":
        throw new Error(`the model has no ${action.kind}`);
    }
  }
  return {
    ...before,
    interfaces: [...interfaces.values()],
    bridges,
    zones,
    devices,
    specs,
    timeouts,
    relearnDamping,
    labelStacks,
  };
}

type SpecAction = Extract<TableAction, { kind: `${"vm" | "service"}-${string}` }>;

function specified(before: ObservedSpecs, action: SpecAction): ObservedSpecs {
  const list = action.kind.startsWith("vm") ? "vms" : "services";
  const others = (specs: readonly { name: string }[]) => specs.filter(({ name }) => name !== action.name);
  const named = others(before[list].named) as (NamedVm | NamedService)[];
  if ("spec" in action) named.push(list === "vms" ? namedVm(action) : namedService(action));
  return { ...before, [list]: { named, broken: others(before[list].broken) } };
}

type NamedSpec = { name: string; spec: Extract<SpecAction, { spec: unknown }>["spec"] };

/** As it is read from a table. */
export function namedVm({ name, spec }: NamedSpec): NamedVm {
  const value = decode("vm_spec", encode("vm_spec", spec as StructInput<"vm_spec">));
  const text = value.text.subarray(0, value.bytes);
  const parsed = parseVm(name, text.toString());
  if ("why" in parsed) throw new Error(parsed.why);
  return { name, config: parsed.entry, spec: { ...value, text } };
}

export function namedService({ name, spec }: NamedSpec): NamedService {
  const value = decode("service_spec", encode("service_spec", spec as StructInput<"service_spec">));
  const text = value.text.subarray(0, value.bytes);
  const parsed = parseService(name, text.toString());
  if ("why" in parsed) throw new Error(parsed.why);
  return { name, config: parsed.entry, spec: { ...value, text } };
}

type Unit = Extract<TableAction, { kind: "attach" }>["unit"];

function attached(
  { programs, xfrmPrograms }: Observed,
  { link: own, wanted, decision }: Unit,
): ObservedInterface {
  const { role, slot, lastHopsMax, vmsMax, flags } = wanted;
  const { hook } = decision;
  const programId = programs!(role, hook);
  const entry = entryOf({ ...wanted, hook }, programId);
  return {
    entry,
    xfrm: xfrmPlacesOf(entry).map((place) => {
      return { ...place, hook: "tcx", programId: xfrmPrograms.get(place.program)!, alive: true };
    }),
    link: own,
    attachments: [{ role, hook, programId, alive: true }],
    budget: {
      last_hops: 0,
      last_hops_max: role === "uplink" ? lastHopsMax : 0,
      vms: 0,
      vms_max: role === "tap" ? vmsMax : 0,
    },
    exclusions: (flags & INTERFACE_FLAG.EXCLUDES) === 0 ? null : wanted.exclusions,
    egress: slot === 0 ? undefined : own.ifindex,
  };
}

function gone(item: ObservedInterface): ObservedInterface {
  const flags = item.entry.flags | INTERFACE_FLAG.GONE;
  return { ...item, entry: { ...item.entry, flags }, link: undefined, attachments: [], egress: undefined };
}

/** The same tables on a host that has changed. */
export function onHost(before: Observed, facts: ReturnType<typeof host>): Observed {
  const interfaces = before.interfaces.map((item) => {
    const own = facts.link(item.entry.ifindex);
    const isGone = own === undefined || (item.entry.flags & INTERFACE_FLAG.GONE) !== 0;
    // The kernel takes a link off, and empties the cell of the slot.
    const attachments = isGone ? item.attachments.map((one) => ({ ...one, alive: false })) : item.attachments;
    return { ...item, link: isGone ? undefined : own, attachments, egress: isGone ? undefined : item.egress };
  });
  return { ...before, host: facts, interfaces };
}

export function byName({ interfaces }: Observed, name: string): InterfaceEntry | undefined {
  return interfaces.find(({ entry }) => entry.name === name)?.entry;
}
