// SPDX-License-Identifier: Apache-2.0

import {
  CAUSE_NAMES,
  currentTick,
  DEVICE_STATE_NAMES,
  idleSeconds,
  ORIGIN_NAMES,
  type StructInput,
} from "../abi/codec.ts";
import { CAUSE, DEVICE_STATE, DEVICES_MAX, ON_DOWN, ORIGIN, ROLE } from "../abi/layout.gen.ts";
import { formatMac } from "../addresses.ts";
import { inOrder, readUplinks } from "../controller/deviceFleet.ts";
import { observed, resolveAddresses } from "../controller/deviceStack.ts";
import {
  addressText,
  deviceConflict,
  removeDevice,
  setDevice,
  settleDevices,
  withObserved,
} from "../controller/devices.ts";
import type { Surroundings } from "../controller/observe.ts";
import { atOnce } from "../controller/pieces.ts";
import { runSteps, type Step, settled } from "../controller/steps.ts";
import { KernelVteps, placeVteps } from "../controller/vtepMacs.ts";
import { LasthopError } from "../errors.ts";
import { requireNotHeld } from "../kernel/holder.ts";
import { openInstance, withLock } from "../kernel/instance.ts";
import { Netlink } from "../kernel/netlink.ts";
import { requireCapabilities } from "../kernel/probe.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { type Device, DeviceReader, deviceAddresses, isZero, Tables } from "../tables/index.ts";
import { checkName, entryOf, specOf, whole } from "./deviceSpec.ts";
import { roundIdle } from "./flowView.ts";
import { lastHopEntries } from "./lastHops.ts";
import { findNamed } from "./named.ts";
import type {
  DeviceChange,
  DeviceDetails,
  DeviceEntry,
  DeviceSpec,
  LastHopEntry,
  OpContext,
  VtepMacEntry,
} from "./types.ts";

/** By name. Walks all flows to count them. */
export function listDevices(context: OpContext): DeviceEntry[] {
  using instance = openInstance(context.pinRoot);
  using netlink = new Netlink();
  const tables = new Tables(instance);
  const links = netlink.links();
  const lastHops = lastHopEntries(tables, links);
  const behind = vtepMacs(tables, links);
  return [...tables.devices.entries()]
    .map(([{ name }, device]) => deviceEntry(name, device, ownedBy(lastHops, name), behind.get(name)))
    .sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** Throws E_NOT_FOUND. */
export function showDevice(context: OpContext, name: string): DeviceDetails {
  using instance = openInstance(context.pinRoot);
  using netlink = new Netlink();
  const tables = new Tables(instance);
  const device = findNamed(tables.devices, "device", name);
  const links = netlink.links();
  const own = ownedBy(lastHopEntries(tables, links), name);
  const addresses = new Set(deviceAddresses(device).map(({ octets }) => addressText(octets)));
  const names = new Map(links.map((link) => [link.ifindex, link.name]));
  const neighbours = netlink
    .neighbours()
    .filter(({ address }) => addresses.has(address))
    .map(({ ifindex, address, mac, state }) => ({
      interface: names.get(ifindex) ?? `if${ifindex}`,
      address,
      mac,
      state,
    }));
  const behind = vtepMacs(tables, links).get(name);
  return { ...deviceEntry(name, device, own, behind), neighbours, last_hops: own };
}

/** Enters a device. What the spec leaves out has the defaults of the configuration. Throws E_DEVICE if it is there. */
export async function addDevice(context: OpContext, name: string, spec: DeviceSpec): Promise<DeviceChange> {
  checkName(name);
  return await changeDevice(context, `add the device ${name}`, async ({ tables }) => {
    if (tables.devices.get({ name })) {
      throw new LasthopError("E_DEVICE", `there is a device ${name} already`, {
        hint: `Change it: \`lasthop devices set ${name} …\`.`,
      });
    }
    const count = [...tables.devices.keys()].length;
    if (count >= DEVICES_MAX)
      throw new LasthopError("E_DEVICE", `there are ${count} devices already, the most`);
    const entry = entryOf(withZone(tables, spec), undefined);
    return { name, entry: { ...entry, origin: ORIGIN.MANUAL } };
  });
}

/** Changes what the spec says. Throws E_NOT_FOUND; E_HELD for a configured one while the daemon runs. */
export async function setDeviceByHand(
  context: OpContext,
  name: string,
  spec: DeviceSpec,
): Promise<DeviceChange> {
  const attempt = `change the device ${name}`;
  return await changeDevice(context, attempt, async ({ tables }) => {
    const old = findNamed(tables.devices, "device", name);
    requireOwn(context, old, attempt, name);
    return { name, entry: { ...entryOf(spec, old), origin: ORIGIN.MANUAL } };
  });
}

/** Its flows stay. Throws E_NOT_FOUND, E_DEVICE if another falls back on it, E_HELD. */
export async function removeDeviceByHand(context: OpContext, name: string): Promise<DeviceChange> {
  const attempt = `remove the device ${name}`;
  return await changing(context, attempt, ({ tables }) => {
    requireOwn(context, findNamed(tables.devices, "device", name), attempt, name);
    const [leaner] = [...tables.devices.entries()].find(
      ([, other]) => other.on_down === ON_DOWN.PEER && other.peer === name,
    ) ?? [undefined];
    if (leaner) {
      throw new LasthopError("E_DEVICE", `cannot ${attempt}: it is the peer of ${leaner.name}`, {
        hint: `Give that another on_down first: \`lasthop devices set ${leaner.name} --on-down route\`.`,
      });
    }
    return { name, steps: removeDevice({ tables }, name) };
  });
}

/** The operator's word, until upDevice takes it back. A configured device obeys it too. */
export async function downDevice(context: OpContext, name: string): Promise<DeviceChange> {
  return await changing(context, `take the device ${name} down`, ({ tables }) => {
    const old = findNamed(tables.devices, "device", name);
    const changed = old.state === DEVICE_STATE.DOWN ? old.changed : currentTick();
    const down = { state: DEVICE_STATE.DOWN, cause: CAUSE.OPERATOR, operator_down: 1, changed };
    return { name, steps: [writeStep(tables, name, `device ${name}: taken down`, old, { ...old, ...down })] };
  });
}

/** It is again what is observed of it. */
export async function upDevice(context: OpContext, name: string): Promise<DeviceChange> {
  return await changing(context, `bring the device ${name} up`, ({ tables, netlink }) => {
    const old = findNamed(tables.devices, "device", name);
    const up = observed({ tables, netlink }, { ...old, operator_down: 0 });
    return { name, steps: [writeStep(tables, name, `device ${name}: no longer held down`, old, up)] };
  });
}

interface NewEntry {
  name: string;
  entry: StructInput<"device">;
}

async function changeDevice(
  context: OpContext,
  attempt: string,
  make: (around: Surroundings) => Promise<NewEntry>,
): Promise<DeviceChange> {
  return await changing(context, attempt, async (around) => {
    const { tables } = around;
    const { name, entry } = await make(around);
    const asked = whole(entry);
    const others = [...tables.devices.entries()].map(([key, device]) => [key.name, device] as const);
    const conflict = deviceConflict(name, asked, others) ?? interfaceConflict(tables, asked);
    if (conflict !== null) throw new LasthopError("E_DEVICE", `cannot ${attempt}: ${conflict}`);
    warnUnattached(context, tables, name, asked);
    await resolveAddresses(around, asked);
    const known = whole(withObserved(entry, tables.devices.get({ name })));
    return { name, steps: setDevice(around, name, entry), entry: observed(around, known) };
  });
}

interface Change {
  name: string;
  steps: Step[];
  /** What the entry is to be in the end, if the steps do not say. */
  entry?: Device;
}

/** Under the lock, with the last hops made so at once; on an error nothing has changed. */
async function changing(
  context: OpContext,
  attempt: string,
  make: (around: Surroundings) => Change | Promise<Change>,
): Promise<DeviceChange> {
  requireCapabilities(attempt, ["CAP_BPF", "CAP_NET_ADMIN"]);
  return await withLock(context.pinRoot, async () => {
    using instance = openInstance(context.pinRoot);
    using netlink = new Netlink();
    const tables = new Tables(instance);
    const around = { instance, tables, netlink };
    const { name, steps, entry } = await make(around);
    const asked: Step = {
      done: null,
      do: () => {
        if (entry) tables.devices.set({ name }, entry);
      },
      undo: () => undefined,
    };
    let lines: string[] = [];
    const settle = (): void => {
      lines = settleDevices(around);
    };
    const done = runSteps(settled([...steps, asked], settle));
    const device = tables.devices.get({ name });
    return {
      name,
      state: device ? DEVICE_STATE_NAMES[device.state]! : null,
      cause: device ? causeOf(device) : null,
      actions: [...done, ...lines],
    };
  });
}

function writeStep(tables: Tables, name: string, done: string, old: Device, device: Device): Step {
  return {
    done,
    do: () => tables.devices.set({ name }, device),
    undo: () => tables.devices.set({ name }, old),
  };
}

function requireOwn({ pinRoot }: OpContext, device: Device, attempt: string, name: string): void {
  if (device.origin === ORIGIN.CONFIG) requireNotHeld(pinRoot, attempt, `devices.${name}`);
}

/** A device of one uplink is in that uplink's zone, unless it is said to be in another. */
function withZone(tables: Tables, spec: DeviceSpec): DeviceSpec {
  if (spec.zone !== undefined || spec.interface === undefined || spec.interface === null) return spec;
  const uplink = tables.interfaces.list().find((entry) => entry.name === spec.interface);
  return uplink?.role === ROLE.UPLINK ? { ...spec, zone: uplink.zone } : spec;
}

function interfaceConflict(tables: Tables, device: Device): string | null {
  const entry = tables.interfaces.list().find(({ name }) => name === device.interface);
  if (entry?.role === ROLE.TAP) return `${entry.name} is a tap, and devices are behind uplinks`;
  if (entry?.role === ROLE.UPLINK && entry.zone !== device.zone) {
    return `${entry.name} is in zone ${entry.zone}, not ${device.zone}`;
  }
  return null;
}

function warnUnattached(context: OpContext, tables: Tables, name: string, device: Device): void {
  if (device.interface === "" || /[*?]/.test(device.interface)) return;
  const known = tables.interfaces.list().some((entry) => entry.name === device.interface);
  if (!known) context.warn(`${device.interface} is not attached: ${name} begins to count when it is`);
}

function causeOf({ cause }: Device): DeviceEntry["cause"] {
  const name = CAUSE_NAMES[cause];
  return name === undefined || name === "none" ? null : name;
}

function ownedBy(lastHops: readonly LastHopEntry[], name: string): LastHopEntry[] {
  return lastHops.filter(({ device }) => device === name);
}

/** By the device's name: what the kernel has behind their VTEPs at this moment. */
function vtepMacs(tables: Tables, links: readonly Link[]): Map<string, VtepMacEntry[]> {
  const devices = inOrder(new DeviceReader(tables.devices).read());
  const uplinks = readUplinks(tables, links);
  const source = new KernelVteps();
  const { byUplink } = atOnce(placeVteps({ devices, uplinks, links, source }));
  const found = new Map<string, VtepMacEntry[]>();
  for (const [uplink, macs] of byUplink) {
    for (const { owner, mac, vtep, vni } of [...macs.values()].flat()) {
      const own = found.get(owner.name) ?? [];
      found.set(owner.name, own);
      own.push({
        mac: formatMac(mac),
        vtep: addressText(vtep),
        interface: uplinks.get(uplink)!.name,
        vni: vni?.source ?? null,
      });
    }
  }
  for (const own of found.values()) own.sort((a, b) => (a.mac < b.mac ? -1 : 1));
  return found;
}

function deviceEntry(
  name: string,
  device: Device,
  lastHops: readonly LastHopEntry[],
  behind: readonly VtepMacEntry[] = [],
): DeviceEntry {
  const sum = (count: (entry: LastHopEntry) => number): number =>
    lastHops.reduce((total, entry) => total + count(entry), 0);
  const { addresses, ...asked } = specOf(device);
  const known = deviceAddresses(device);
  return {
    name,
    origin: ORIGIN_NAMES[device.origin] === "config" ? "config" : "manual",
    state: DEVICE_STATE_NAMES[device.state] ?? "unknown",
    cause: causeOf(device),
    operator_down: device.operator_down !== 0,
    changed_seconds_ago: device.changed === 0 ? null : roundIdle(idleSeconds(device.changed, currentTick())),
    flaps: device.flaps,
    ...asked,
    addresses: addresses.map((address, place) => {
      const { mac } = known[place]!;
      return { address, mac: isZero(mac) ? null : formatMac(mac) };
    }),
    vtep_macs: [...behind],
    flows: sum(({ flows }) => flows),
    request_packets: sum((entry) => entry.request_packets),
    request_bytes: sum((entry) => entry.request_bytes),
    reply_packets: sum((entry) => entry.reply_packets),
    reply_bytes: sum((entry) => entry.reply_bytes),
    relearns: sum((entry) => entry.relearns),
  };
}
