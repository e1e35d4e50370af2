// SPDX-License-Identifier: Apache-2.0
/*
 * Takes over the tables of a version whose structs lie otherwise, while traffic runs.
 *
 *  1. Our instance is made beside the other, and filled: the flows, which take long, first; then, in a few
 *     milliseconds, what is small. Nothing uses it yet: killed here, it is made anew by whoever comes next.
 *  2. Each interface gets our program by one link update, and its link's pin moves to us.
 *  3. What the old programs learned meanwhile is copied. New flows of these milliseconds can miss their last hop
 *     until then: their replies pass, and those of services wait (control.migrating). 4. The old instance is removed.
 *
 * An error in 2 puts the old programs back and removes our instance.
 */

import { renameSync } from "node:fs";
import { join } from "node:path";
import { setImmediate as turn } from "node:timers/promises";
import { decode, encode, type StructName } from "../abi/codec.ts";
import { convertStruct, type Entries, entriesConverter, type Shape } from "../abi/convert.ts";
import { CONTROL, FLOW, FLOW_STATES, LAST_HOP_KIND, LAST_HOPS_MAX, ROLE } from "../abi/layout.gen.ts";
import { TC_FILTER } from "../config/defaults.ts";
import { LasthopError } from "../errors.ts";
import { pinnedLinks, programName } from "../kernel/attachment.ts";
import { ABI_NAME } from "../kernel/build.ts";
import { FormerInstance } from "../kernel/formerInstance.ts";
import {
  createInstance,
  type Instance,
  openInstance,
  pinnedVersions,
  removeInstance,
  requireOwnNetns,
} from "../kernel/instance.ts";
import {
  isTunnelProgram,
  isXfrmProgram,
  renewTunnelProgram,
  tunnelLinks,
} from "../kernel/tunnelAttachment.ts";
import { pinXfrmPrograms } from "../kernel/xfrmObject.ts";
import { BpfLink, type BpfMap, BpfProgram, clsact, isErrno } from "../libbpf/index.ts";
import { Tables } from "../tables/index.ts";
import { copyFlows } from "./copyFlows.ts";
import type { Sizes } from "./exchange.ts";
import { tunnelPrograms } from "./tunnelObserve.ts";

const ZERO = Buffer.alloc(4);

/** Indices and ids that the old programs may give out until they no longer run. */
const MARGIN = 4096;

/** Of a table with large entries, so many are read at once. */
const BATCH_BYTES = 2 ** 20;

/** The tables that hold what is worth keeping, but for the flows. Counters by reason begin anew. */
const SMALL_TABLES: readonly { name: string; key: Shape; value: Shape }[] = [
  { name: "last_hops", key: "u32", value: "last_hop" },
  { name: "last_hop_alias", key: "u32", value: "u32" },
  { name: "last_hop_index", key: "last_hop_key", value: "u32" },
  { name: "interfaces", key: "u32", value: "interface" },
  { name: "near_interfaces", key: "u32", value: "interface" },
  { name: "budgets", key: "u32", value: "budget" },
  { name: "exclusions", key: "u32", value: "exclusions" },
  { name: "vms", key: "vm_key", value: "vm" },
  { name: "devices", key: "device_key", value: "device" },
  { name: "zones", key: "u32", value: "u32" },
  { name: "tunnels", key: "u32", value: "tunnel" },
  { name: "tunnel_index", key: "tunnel_index_key", value: "u32" },
  // VMs before the pools that name them, and these before the services, as when they were made.
  { name: "vm_specs", key: "vm_name", value: "vm_spec" },
  { name: "vm_cells", key: "u32", value: "vm_cell" },
  { name: "vm_flows", key: "u32", value: "u32" },
  { name: "service_specs", key: "service_name", value: "service_spec" },
  { name: "pool_lines", key: "u32", value: "pool_line" },
  { name: "pools", key: "u32", value: "pool" },
  { name: "services", key: "u32", value: "service" },
  { name: "associations", key: "association_key", value: "u32" },
  { name: "affinities", key: "affinity_key", value: "affinity" },
  { name: "service_index", key: "service_key", value: "u32" },
];

const FLOW_TABLES = [
  { name: "flows4", key: "flow4_key", value: "flow" },
  { name: "flows6", key: "flow6_key", value: "flow" },
  { name: "embryos4", key: "flow4_key", value: "embryo" },
  { name: "embryos6", key: "flow6_key", value: "embryo" },
] as const;

/** Of the control record what does not belong to the version itself. */
const CONTROL_FIELDS = ["bypass", "timeouts", "relearn_damping", "vm_cells"] as const;

/** The caller has the lock, and closes the instance that is returned. Throws E_UPGRADE, E_NETNS, E_LOAD, … */
export async function migrate(pinRoot: string, version: string, sizes: Sizes): Promise<Instance> {
  if (!requireOwnNetns(pinRoot, version)) {
    throw new LasthopError("E_NETNS", `the tables in ${pinRoot} belong to a network namespace that is gone`, {
      hint: "`lasthop detach --all --purge` removes them.",
    });
  }
  using old = new FormerInstance(pinRoot, version);
  const { instance, resumed } = await openOrFill(pinRoot, old, sizes);
  try {
    // What interfaces that were switched have learned since must stay.
    if (!resumed) copySmall(old, instance);
    switchAll(old, instance);
  } catch (error) {
    instance.close();
    if (!resumed) removeInstance(pinRoot);
    const why = error instanceof Error ? error.message : String(error);
    throw new LasthopError("E_UPGRADE", `the tables of ${version} could not be taken over: ${why}`, {
      cause: error,
      hint: "Everything goes on as before, with the programs and tables of that version.",
    });
  }
  await copyAllFlows(old, instance);
  copyLateLastHops(old, instance);
  new Tables(instance).control.set({ migrating: 0 });
  await settleBalance(instance);
  removeInstance(pinRoot, version);
  return instance;
}

/** What a killed predecessor left is used only if interfaces run on it already. */
async function openOrFill(
  pinRoot: string,
  old: FormerInstance,
  sizes: Sizes,
): Promise<{ instance: Instance; resumed: boolean }> {
  if (pinnedVersions(pinRoot).includes(ABI_NAME)) {
    using left = openInstance(pinRoot);
    if (isSwitching(old, left)) return { instance: openInstance(pinRoot), resumed: true };
    removeInstance(pinRoot);
  }
  // As large as the old ones, unless the configuration says otherwise.
  const present = Object.fromEntries(
    FLOW_TABLES.filter(({ name }) => old.has(name)).map(({ name }) => [
      name,
      old.map(name).info().maxEntries,
    ]),
  );
  const instance = createInstance(pinRoot, { maxEntries: { ...present, ...sizes }, beside: true });
  try {
    await copyAllFlows(old, instance);
    return { instance, resumed: false };
  } catch (error) {
    instance.close();
    removeInstance(pinRoot);
    throw error;
  }
}

function isSwitching(old: FormerInstance, instance: Instance): boolean {
  if (instance.linkNames().length > 0) return true;
  const ids = new Set(instance.programNames().map((name) => instance.program(name).info().id));
  const links = old.linkNames().map((name) => {
    using link = BpfLink.openPinned(old.linkPath(name));
    return link.info().programId;
  });
  return links.some((id) => ids.has(id));
}

// Copying

function converterOf(
  old: FormerInstance,
  name: string,
  key: Shape,
  value: Shape,
): (entries: Entries) => Entries {
  const { keySize, valueBytes } = old.map(name);
  return entriesConverter(old.layout, { key, value, keySize, valueSize: valueBytes });
}

async function copyAllFlows(old: FormerInstance, instance: Instance): Promise<void> {
  for (const { name, key, value } of FLOW_TABLES) {
    if (!old.has(name)) continue;
    const from = old.map(name);
    const lastSeen = old.layout.flow?.fields.last_seen?.offset;
    if (lastSeen === undefined) continue;
    const inValue = value === "embryo" ? (old.layout.embryo?.fields.flow?.offset ?? 0) + lastSeen : lastSeen;
    await copyFlows(from, instance.map(name), converterOf(old, name, key, value), inValue);
  }
}

/** Copied flows entered without the programs' count: from here on nothing is missing, so nothing was evicted. */
async function settleBalance(instance: Instance): Promise<void> {
  const balance = instance.map("flow_balance");
  const stateAt = FLOW.fields.state.offset;
  for (const { table, map, valueSize } of new Tables(instance).flows.all) {
    const present = new Array<bigint>(FLOW_STATES).fill(0n);
    for (const { count, values } of map.batches(4096)) {
      for (let index = 0; index < count; index++) {
        const state = values[index * valueSize + stateAt]!;
        if (state < FLOW_STATES) present[state]! += 1n;
      }
      await turn();
    }
    for (const [state, found] of present.entries()) {
      const row = u32(table * FLOW_STATES + state);
      const values = balance.lookup(row)!;
      let sum = 0n;
      for (let cpu = 0; cpu < values.length; cpu += 8) sum += values.readBigInt64LE(cpu);
      const removals = Buffer.alloc(8);
      removals.writeBigInt64LE(sum - found);
      instance.map("flow_removals").update(row, removals);
    }
  }
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function copySmall(old: FormerInstance, instance: Instance): void {
  for (const { name, key, value } of SMALL_TABLES) {
    if (!old.has(name)) continue;
    const from = old.map(name);
    const to = instance.map(name);
    const convert = converterOf(old, name, key, value);
    for (const batch of from.batches(Math.min(4096, Math.ceil(BATCH_BYTES / from.valueBytes)))) {
      const { count, keys, values } = convert(batch);
      for (let index = 0; index < count; index++) writeEntry(to, keys, values, index);
    }
  }
  nameEgressDevices(new Tables(instance));
  copyControl(old, instance);
  copyAllocations(old, instance);
  if (old.has("identity")) {
    const { starts } = decode("identity", oldRecord(old, "identity"));
    const now = decode("identity", instance.map("identity").lookup(ZERO)!);
    instance.map("identity").update(ZERO, encode("identity", { ...now, starts }));
  }
}

function writeEntry(to: BpfMap, keys: Buffer, values: Buffer, index: number): void {
  const value = values.subarray(index * to.valueBytes, (index + 1) * to.valueBytes);
  // Arrays are zero already.
  if (value.every((byte) => byte === 0)) return;
  to.update(keys.subarray(index * to.keySize, (index + 1) * to.keySize), value);
}

/** A DEVMAP cannot be walked, but the interfaces say what is in it. */
function nameEgressDevices({ interfaces, egressDevices }: Tables): void {
  for (const { slot, ifindex } of interfaces.list()) {
    if (slot === 0) continue;
    try {
      egressDevices.set(slot, ifindex);
    } catch (error) {
      // It has gone meanwhile.
      if (!isErrno(error, "EINVAL", "ENODEV")) throw error;
    }
  }
}

function oldRecord(old: FormerInstance, name: StructName): Buffer {
  return convertStruct(old.layout, name, old.map(name).lookup(ZERO)!);
}

function copyControl(old: FormerInstance, instance: Instance): void {
  const was = oldRecord(old, "control");
  const now = instance.map("control").lookup(ZERO)!;
  for (const name of CONTROL_FIELDS) {
    if (!old.layout.control?.fields[name]) continue;
    const { offset, size } = CONTROL.fields[name];
    was.copy(now, offset, offset, offset + size);
  }
  // Whoever misses a flow now must not give it to another VM.
  now.writeUInt32LE(1, CONTROL.fields.migrating.offset);
  instance.map("control").update(ZERO, now);
}

/** Ids go on above what the old programs may still give out; free are the indices that have no record. */
function copyAllocations(old: FormerInstance, instance: Instance): void {
  const tables = new Tables(instance);
  const was = oldRecord(old, "allocations");
  instance.map("allocations").update(ZERO, was);
  const { last_hops, vms } = tables.allocations.get(0)!;
  const next = Math.min(last_hops + MARGIN, LAST_HOPS_MAX);
  instance.map("allocations").update(ZERO, encode("allocations", { last_hops: next, vms: vms + MARGIN }));
}

/** What the old programs learned while interfaces were switched; then every index without a record is free. */
function copyLateLastHops(old: FormerInstance, instance: Instance): void {
  const tables = new Tables(instance);
  const used = tables.allocations.get(0)!.last_hops;
  const from = old.map("last_hops");
  const index = Buffer.alloc(4);
  const free = new Set<number>();
  for (let number = 0; number < used; number++) {
    if (tables.lastHops.records.get(number)!.kind !== LAST_HOP_KIND.NONE) continue;
    index.writeUInt32LE(number);
    const record = convertStruct(old.layout, "last_hop", from.lookup(index)!);
    const alias = old.map("last_hop_alias").lookup(index)!;
    if (record.readUInt8(0) === LAST_HOP_KIND.NONE || alias.readUInt32LE(0) === 0) free.add(number);
    else {
      instance.map("last_hops").update(index, record);
      instance.map("last_hop_alias").update(index, alias);
    }
  }
  const keys = converterOf(old, "last_hop_index", "last_hop_key", "u32");
  for (const batch of old.map("last_hop_index").batches(4096)) {
    const converted = keys(batch);
    instance.map("last_hop_index").insertAll(converted.keys, converted.values, converted.count);
  }
  for (const number of free) instance.map("last_hop_free").push(u32(number));
}

// Programs

interface Switched {
  undo(): void;
}

function switchAll(old: FormerInstance, instance: Instance): void {
  const done: Switched[] = [];
  try {
    switchLinks(old, instance, done);
    switchFilters(old, instance, done);
    switchTunnels(old, instance, done);
  } catch (error) {
    for (const { undo } of done.toReversed()) undo();
    throw error;
  }
}

function switchLinks(old: FormerInstance, instance: Instance, done: Switched[]): void {
  const { interfaces } = new Tables(instance);
  for (const { name, role, unfinished } of pinnedLinks(old)) {
    using link = BpfLink.openPinned(old.linkPath(name));
    const { type, ifindex, programId } = link.info();
    // Of a gone interface, or a change that was interrupted: goes with the old instance.
    if (unfinished || !ifindex) continue;
    const program = instance.program(programName(role, type === "xdp"));
    const { id } = program.info();
    if (programId !== id) {
      const former = oldProgram(old, programId);
      link.update(program);
      done.push({ undo: () => putBack(old.linkPath(name), former) });
    }
    const entry = interfaces.get(ifindex);
    if (entry) interfaces.set(ifindex, { ...entry, prog_id: id });
    renameSync(old.linkPath(name), instance.linkPath(name));
    done.push({ undo: () => renameSync(instance.linkPath(name), old.linkPath(name)) });
  }
}

function oldProgram(old: FormerInstance, id: number): BpfProgram {
  const directory = join(old.path, "programs");
  for (const name of old.programNames()) {
    const program = BpfProgram.openPinned(join(directory, name));
    if (program.info().id === id) return program;
    program.close();
  }
  throw new LasthopError("E_UPGRADE", `program ${id} is not among those pinned in ${directory}`);
}

function putBack(path: string, program: BpfProgram): void {
  using link = BpfLink.openPinned(path);
  link.update(program);
  program.close();
}

function switchFilters(old: FormerInstance, instance: Instance, done: Switched[]): void {
  const { interfaces } = new Tables(instance);
  for (const entry of interfaces.list()) {
    if (entry.role !== ROLE.TAP && entry.role !== ROLE.UPLINK) continue;
    const at = { ifindex: entry.ifindex, direction: "ingress", ...TC_FILTER } as const;
    const present = clsact.query(at)?.programId;
    if (present === undefined || present !== entry.prog_id) continue;
    const program = instance.program(programName(entry.role === ROLE.TAP ? "tap" : "uplink", false));
    const former = oldProgram(old, present);
    clsact.attach({ ...at, program, replace: true });
    interfaces.set(entry.ifindex, { ...entry, prog_id: program.info().id });
    done.push({
      undo() {
        clsact.attach({ ...at, program: former, replace: true });
        former.close();
      },
    });
  }
}

/** The same of the tunnels' programs, which have no entry to be told of. */
function switchTunnels(old: FormerInstance, instance: Instance, done: Switched[]): void {
  const { tunnels } = new Tables(instance);
  for (const { ifindex } of tunnels.list()) tunnels.beginCounting(ifindex);
  if (old.programNames().some((name) => isXfrmProgram(name))) pinXfrmPrograms(instance);
  for (const { name, program } of tunnelLinks(old)) {
    using link = BpfLink.openPinned(old.linkPath(name));
    const { ifindex, programId } = link.info();
    // Of a netdev that is gone: goes with the old instance.
    if (!ifindex) continue;
    const own = instance.program(program);
    if (programId !== own.info().id) {
      const former = oldProgram(old, programId);
      link.update(own);
      done.push({ undo: () => putBack(old.linkPath(name), former) });
    }
    renameSync(old.linkPath(name), instance.linkPath(name));
    done.push({ undo: () => renameSync(instance.linkPath(name), old.linkPath(name)) });
  }
  const former = new Set(
    old
      .programNames()
      .filter(isTunnelProgram)
      .map((name) => oldProgramId(old, name)),
  );
  for (const at of tunnelPrograms(instance)) {
    if (at.hook !== "clsact" || !former.has(at.programId)) continue;
    const before = oldProgram(old, at.programId);
    renewTunnelProgram(instance, at);
    done.push({
      undo() {
        renewTunnelProgram(instance, at, before);
        before.close();
      },
    });
  }
}

function oldProgramId(old: FormerInstance, name: string): number {
  using program = BpfProgram.openPinned(join(old.path, "programs", name));
  return program.info().id;
}
