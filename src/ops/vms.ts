// SPDX-License-Identifier: Apache-2.0

import { currentTick, idleSeconds, VM_STATE_NAMES } from "../abi/codec.ts";
import { HOOK, ORIGIN, ROLE, VM_FLAG, VM_SPECS_MAX, VM_STATE } from "../abi/layout.gen.ts";
import { formatMac } from "../addresses.ts";
import { answeringVm, type VmConfig } from "../config/services.ts";
import type { Surroundings } from "../controller/observe.ts";
import {
  type NamedVm,
  removeVm as removeSteps,
  setOperatorState,
  setVm,
  vmConflict,
  vmSpecOf,
} from "../controller/serviceSpec.ts";
import { LasthopError } from "../errors.ts";
import { requireNotHeld } from "../kernel/holder.ts";
import { openInstance } from "../kernel/instance.ts";
import { Netlink } from "../kernel/netlink.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { isZero, Tables, type VmSpec } from "../tables/index.ts";
import { roundIdle } from "./flowView.ts";
import { findNamed } from "./named.ts";
import { type Changed, changeServices, problemsOf } from "./serviceChange.ts";
import { checkZone, vmConfigOf } from "./serviceSpecs.ts";
import { ServiceView, vmCause, vmPlace, vmState, whyNotUp } from "./serviceView.ts";
import type { OpContext, VmChange, VmDetails, VmEntry, VmSpecInput } from "./types.ts";

/** By name. */
export function listVms(context: OpContext): VmEntry[] {
  using instance = openInstance(context.pinRoot);
  using netlink = new Netlink();
  const known = look(new Tables(instance), netlink);
  return known.view.vms.map((vm) => vmEntry(known, vm));
}

/** Throws E_NOT_FOUND. */
export function showVm(context: OpContext, name: string): VmDetails {
  using instance = openInstance(context.pinRoot);
  using netlink = new Netlink();
  const tables = new Tables(instance);
  findNamed(tables.guests.specs, "VM", name);
  const known = look(tables, netlink);
  return vmDetails(known, soundVm(known.view, name));
}

/** Gives a VM a name. What the spec leaves out has the defaults of the configuration, or is found out. */
export async function addVm(context: OpContext, name: string, spec: VmSpecInput): Promise<VmChange> {
  const attempt = `add the VM ${name}`;
  const config = vmConfigOf(name, spec);
  const asked = spec.zone === undefined ? undefined : checkZone(spec.zone);
  const make = ({ tables }: Surroundings) => {
    const { specs } = tables.guests;
    if (specs.get({ name })) {
      throw new LasthopError("E_VM", `there is a VM ${name} already`, {
        hint: `\`lasthop vms show ${name}\` shows it; to change it, remove it and add it again.`,
      });
    }
    const count = [...specs.keys()].length;
    if (count >= VM_SPECS_MAX) {
      throw new LasthopError("E_VM", `there are ${count} VMs with a name already, the most`);
    }
    const zone = zoneOf(tables, config, asked, attempt);
    const conflict = vmConflict({ name, config, spec: { zone } }, new ServiceView(tables).vms);
    if (conflict !== null) throw new LasthopError("E_VM", `cannot ${attempt}: ${conflict}`);
    return setVm({ tables }, name, vmSpecOf(config, zone, ORIGIN.MANUAL));
  };
  return await changeServices(context, attempt, make, (around, changed) => {
    warnOfPlace(context, around, name, changed);
    return vmChange(around, name, changed);
  });
}

/** Its flows stay with it. Throws E_NOT_FOUND, E_VM if a service or another VM names it, E_HELD. */
export async function removeVm(context: OpContext, name: string): Promise<VmChange> {
  const attempt = `remove the VM ${name}`;
  const make = ({ tables }: Surroundings) => {
    const spec = findNamed(tables.guests.specs, "VM", name);
    if (spec.origin === ORIGIN.CONFIG) requireNotHeld(context.pinRoot, attempt, `vms.${name}`);
    const use = useOf(new ServiceView(tables), name);
    if (use !== null) {
      throw new LasthopError("E_VM", `cannot ${attempt}: ${use}`, {
        hint: `Change that first; or \`lasthop vms drain ${name}\`, which takes it out of all pools.`,
      });
    }
    return removeSteps({ tables }, name);
  };
  return await changeServices(context, attempt, make, (around, changed) => vmChange(around, name, changed));
}

/** It keeps its flows and gets no new ones, until upVm. A configured VM obeys too. */
export async function drainVm(context: OpContext, name: string): Promise<VmChange> {
  return await command(context, name, VM_STATE.DRAIN, `drain the VM ${name}`);
}

/** Down whatever is observed, until upVm. A configured VM obeys too. */
export async function downVm(context: OpContext, name: string): Promise<VmChange> {
  return await command(context, name, VM_STATE.DOWN, `take the VM ${name} down`);
}

/** It is again what is observed of it. */
export async function upVm(context: OpContext, name: string): Promise<VmChange> {
  return await command(context, name, VM_STATE.UNKNOWN, `bring the VM ${name} up`);
}

function command(context: OpContext, name: string, word: number, attempt: string): Promise<VmChange> {
  const make = ({ tables }: Surroundings) => {
    findNamed(tables.guests.specs, "VM", name);
    return setOperatorState({ tables }, name, word);
  };
  return changeServices(context, attempt, make, (around, changed) => vmChange(around, name, changed));
}

function vmChange({ tables }: Surroundings, name: string, { actions }: Changed): VmChange {
  const spec = tables.guests.specs.get({ name });
  return { name, state: spec ? vmState(spec) : null, cause: spec ? vmCause(spec) : null, actions };
}

/** That of its tap, unless another was asked for. */
function zoneOf(tables: Tables, { tap }: VmConfig, asked: number | undefined, attempt: string): number {
  const entry = tables.interfaces.list().find(({ name, role }) => name === tap && role !== ROLE.BRIDGE);
  if (!entry) return asked ?? 0;
  if (entry.role === ROLE.UPLINK) {
    throw new LasthopError("E_VM", `cannot ${attempt}: ${tap} is an uplink, and VMs are behind taps`);
  }
  if (asked === undefined || asked === entry.zone) return entry.zone;
  throw new LasthopError("E_VM", `cannot ${attempt}: ${tap} is in zone ${entry.zone}, not ${asked}`);
}

/** Who would miss it; null for nobody. */
function useOf(view: ServiceView, name: string): string | null {
  const follower = view.vms.find((vm) => vm.config.responses === name && vm.name !== name);
  if (follower) return `the responses to the VM ${follower.name} go to it`;
  for (const { name: service, config, spec } of view.services) {
    if (answeringVm(config.answer) === name) return `the service ${service} answers with its MAC`;
    const targets = [...config.pool, ...config.associations];
    if (targets.some((target) => target.vm === name)) return `the service ${service} names it`;
    const last = targets.find(({ label }) => {
      const others = label === undefined ? [] : view.targets({ label }, spec.zone);
      return others.length === 1 && others[0]!.name === name;
    });
    if (last) return `it is the last VM with the label ${last.label}, which the service ${service} names`;
  }
  return null;
}

/** What is no error, but keeps frames from it. */
function warnOfPlace(
  context: OpContext,
  { tables, netlink }: Surroundings,
  name: string,
  changed: Changed,
): void {
  const known = look(tables, netlink);
  const vm = known.view.vm(name);
  if (!vm) return;
  const place = vmPlace(tables, known.links, vm);
  if (place.link && !place.attached) {
    context.warn(
      `${place.tap} is not attached as a tap of zone ${vm.spec.zone}: ${name} gets nothing until it is ` +
        `(lasthop attach ${place.tap} --role tap${vm.spec.zone === 0 ? "" : ` --zone ${vm.spec.zone}`})`,
    );
  } else {
    for (const problem of problemsOf(`VM ${name}`, changed.problems)) context.warn(problem);
  }
  const uplinks = unreachedFrom(tables, vm.spec);
  if (uplinks.length > 0) {
    context.warn(
      `what comes in by ${uplinks.join(", ")} (native XDP) does not reach ${place.tap}, which takes no frames from ` +
        `there: attach it with --mode tc`,
    );
  }
}

/** Uplinks whose frames cannot be handed to the VM's tap. */
export function unreachedFrom(tables: Pick<Tables, "guests" | "interfaces">, spec: VmSpec): string[] {
  const cell = tables.guests.cellOf(spec.id)?.vm;
  if (!cell || cell.ifindex === 0 || cell.flags & VM_FLAG.XDP) return [];
  return tables.interfaces
    .list()
    .filter(({ role, zone, hook }) => role === ROLE.UPLINK && zone === spec.zone && hook === HOOK.XDP_NATIVE)
    .map((entry) => entry.name);
}

interface Known {
  tables: Tables;
  view: ServiceView;
  /** By ifindex. */
  links: ReadonlyMap<number, Link>;
  now: number;
}

function look(tables: Tables, netlink: Netlink): Known {
  const links = new Map(netlink.links().map((link) => [link.ifindex, link]));
  return { tables, view: new ServiceView(tables), links, now: currentTick() };
}

/** One that is there. */
function soundVm(view: ServiceView, name: string): NamedVm {
  const vm = view.vm(name);
  if (vm) return vm;
  const broken = view.broken.vms.find((one) => one.name === name);
  throw new LasthopError(
    "E_VM",
    `the entry of the VM ${name} cannot be read: ${broken?.why ?? "it has gone"}`,
    {
      hint: `\`lasthop vms remove ${name}\` removes it.`,
    },
  );
}

function vmEntry({ tables, view, links, now }: Known, vm: NamedVm): VmEntry {
  const { name, config, spec } = vm;
  const place = vmPlace(tables, links, vm);
  const cell = tables.guests.cellOf(spec.id)?.cell;
  const stats = cell === undefined ? undefined : tables.guests.stats(cell);
  return {
    name,
    origin: spec.origin === ORIGIN.CONFIG ? "config" : "manual",
    zone: spec.zone,
    tap: place.tap,
    mac: isZero(spec.mac) ? (config.mac ?? null) : formatMac(spec.mac),
    address: config.address ?? null,
    labels: [...config.labels],
    responses: config.responses ?? null,
    state: vmState(spec),
    cause: vmCause(spec),
    why: whyNotUp(vm, place),
    operator: operatorWord(spec),
    health: healthWord(spec),
    changed_seconds_ago: spec.changed === 0 ? null : roundIdle(idleSeconds(spec.changed, now)),
    services: view.servicesOf(name),
    flows: cell === undefined ? 0 : openFlows(tables, cell),
    flows_started: stats?.flows ?? 0,
    request_packets: stats?.request_packets ?? 0,
    request_bytes: stats?.request_bytes ?? 0,
    response_packets: stats?.response_packets ?? 0,
    response_bytes: stats?.response_bytes ?? 0,
  };
}

function operatorWord({ operator_state }: VmSpec): VmEntry["operator"] {
  if (operator_state === VM_STATE.DRAIN) return "drain";
  return operator_state === VM_STATE.DOWN ? "down" : null;
}

function healthWord({ health }: VmSpec): VmEntry["health"] {
  const name = VM_STATE_NAMES[health];
  return name === "up" || name === "down" ? name : "unknown";
}

/** The hot path's count may be short for a moment, below nothing even, until a sweep sets it right. */
export function openFlows({ guests }: Pick<Tables, "guests">, cell: number): number {
  return Math.max(0, (guests.flows.get(cell) ?? 0) | 0);
}

function vmDetails(known: Known, vm: NamedVm): VmDetails {
  const { tables, links, now } = known;
  const { config, spec } = vm;
  const cell = tables.guests.cellOf(spec.id)?.cell;
  const seen = cell === undefined ? 0 : tables.guests.stats(cell).last_seen;
  return {
    ...vmEntry(known, vm),
    id: spec.id || null,
    given: { tap: config.tap ?? null, mac: config.mac ?? null },
    attached: vmPlace(tables, links, vm).attached,
    check: (config.check as VmDetails["check"]) ?? null,
    last_frame_seconds_ago: seen === 0 ? null : roundIdle(idleSeconds(seen, now)),
  };
}
