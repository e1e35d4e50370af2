// SPDX-License-Identifier: Apache-2.0

import { ORIGIN, SERVICES_MAX, VM_STATE } from "../abi/layout.gen.ts";
import type { Surroundings } from "../controller/observe.ts";
import {
  type NamedService,
  removeService as removeSteps,
  serviceConflict,
  serviceSpecOf,
  setService,
} from "../controller/serviceSpec.ts";
import { LasthopError } from "../errors.ts";
import { requireNotHeld } from "../kernel/holder.ts";
import { openInstance } from "../kernel/instance.ts";
import { Tables } from "../tables/index.ts";
import { findNamed } from "./named.ts";
import { type Changed, changeServices, problemsOf } from "./serviceChange.ts";
import { checkZone, serviceConfigOf } from "./serviceSpecs.ts";
import { isUp, type Member, ServiceView, vmCause, vmState } from "./serviceView.ts";
import type {
  AssociationEntry,
  OpContext,
  PoolMember,
  ServiceChange,
  ServiceDetails,
  ServiceEntry,
  ServiceSpecInput,
} from "./types.ts";
import { openFlows, unreachedFrom } from "./vms.ts";

/** By name. */
export function listServices(context: OpContext): ServiceEntry[] {
  using instance = openInstance(context.pinRoot);
  const tables = new Tables(instance);
  const view = new ServiceView(tables);
  return view.services.map((service) => serviceEntry(tables, service, view.members(service)));
}

/** Throws E_NOT_FOUND. */
export function showService(context: OpContext, name: string): ServiceDetails {
  using instance = openInstance(context.pinRoot);
  const tables = new Tables(instance);
  findNamed(tables.services.specs, "service", name);
  const view = new ServiceView(tables);
  const service = view.services.find((one) => one.name === name);
  if (service) return serviceDetails(tables, view, service);
  const broken = view.broken.services.find((one) => one.name === name);
  const why = broken?.why ?? "it has gone";
  throw new LasthopError("E_SERVICE", `the entry of the service ${name} cannot be read: ${why}`, {
    hint: `\`lasthop services remove ${name}\` removes it.`,
  });
}

/** What the spec leaves out has the defaults of the configuration. Throws E_SERVICE if it is there. */
export async function addService(
  context: OpContext,
  name: string,
  spec: ServiceSpecInput,
): Promise<ServiceChange> {
  const attempt = `add the service ${name}`;
  const config = serviceConfigOf(name, spec);
  const zone = checkZone(spec.zone ?? 0);
  const make = ({ tables }: Surroundings) => {
    const { specs } = tables.services;
    if (specs.get({ name })) {
      throw new LasthopError("E_SERVICE", `there is a service ${name} already`, {
        hint: `\`lasthop services show ${name}\` shows it; to change it, remove it and add it again.`,
      });
    }
    // Index 0 is nobody's.
    const count = [...specs.keys()].length;
    if (count >= SERVICES_MAX - 1) {
      throw new LasthopError("E_SERVICE", `there are ${count} services already, the most`);
    }
    const view = new ServiceView(tables);
    const conflict = serviceConflict({ name, config, spec: { zone } }, view.services, view.vms);
    if (conflict !== null) throw new LasthopError("E_SERVICE", `cannot ${attempt}: ${conflict}`);
    return setService({ tables }, name, serviceSpecOf(config, zone, ORIGIN.MANUAL));
  };
  return await changeServices(context, attempt, make, ({ tables }, changed) => {
    const view = new ServiceView(tables);
    const change = serviceChange(view, name, changed);
    for (const problem of problemsOf(`service ${name}`, changed.problems)) context.warn(problem);
    warnOfPool(context, tables, view, name, change);
    return change;
  });
}

/** Its flows stay with their VMs. Throws E_NOT_FOUND, E_HELD. */
export async function removeService(context: OpContext, name: string): Promise<ServiceChange> {
  const attempt = `remove the service ${name}`;
  const make = ({ tables }: Surroundings) => {
    const spec = findNamed(tables.services.specs, "service", name);
    if (spec.origin === ORIGIN.CONFIG) requireNotHeld(context.pinRoot, attempt, `services.${name}`);
    return removeSteps({ tables }, name);
  };
  return await changeServices(context, attempt, make, ({ tables }, changed) =>
    serviceChange(new ServiceView(tables), name, changed),
  );
}

function serviceChange(view: ServiceView, name: string, { actions }: Changed): ServiceChange {
  const service = view.services.find((one) => one.name === name);
  if (!service) return { name, vms_up: null, vms_total: null, actions };
  const members = view.members(service);
  return { name, vms_up: countUp(members), vms_total: members.length, actions };
}

function countUp(members: readonly Member[]): number {
  return members.filter(({ vm }) => isUp(vm.spec)).length;
}

/** What is no error, but keeps requests from its VMs. */
function warnOfPool(
  context: OpContext,
  tables: Tables,
  view: ServiceView,
  name: string,
  { vms_up }: ServiceChange,
): void {
  const service = view.services.find((one) => one.name === name);
  if (!service) return;
  if (vms_up === 0) {
    context.warn(`no VM of ${name} is up: its requests are dropped until one is (lasthop vms list)`);
  }
  const unreached = view
    .members(service)
    .flatMap(({ vm }) => unreachedFrom(tables, vm.spec).map((uplink) => ({ uplink, vm: vm.name })));
  if (unreached.length === 0) return;
  const uplinks = [...new Set(unreached.map(({ uplink }) => uplink))];
  const vms = [...new Set(unreached.map(({ vm }) => vm))];
  context.warn(
    `what comes in by ${uplinks.join(", ")} (native XDP) does not reach the taps of ${vms.join(", ")}: attach ` +
      `${uplinks.length === 1 ? "it" : "them"} with --mode tc`,
  );
}

function serviceEntry(
  tables: Tables,
  { name, config, spec }: NamedService,
  members: readonly Member[],
): ServiceEntry {
  const stats = tables.services.stats(spec.index);
  return {
    name,
    origin: spec.origin === ORIGIN.CONFIG ? "config" : "manual",
    index: spec.index,
    zone: spec.zone,
    address: config.address,
    port: config.port ?? null,
    protocol: config.protocol,
    policy: config.policy,
    on_vm_down: config.on_vm_down,
    answer: config.answer as ServiceEntry["answer"],
    affinity_seconds: config.affinity_seconds,
    vms_up: countUp(members),
    vms_total: members.length,
    flows_started: stats.flows,
    flows_associated: stats.associated,
    flows_affine: stats.affine,
    flows_rebalanced: stats.rebalanced,
    requests_empty: stats.empty,
    requests_reset: stats.reset,
    requests_held: stats.held,
    addresses_answered: stats.answered,
  };
}

function serviceDetails(tables: Tables, view: ServiceView, service: NamedService): ServiceDetails {
  const members = view.members(service);
  const { policy, associations } = service.config;
  const whole = members.reduce((sum, { vm, weight }) => sum + (isUp(vm.spec) ? weight : 0), 0);
  return {
    ...serviceEntry(tables, service, members),
    pool: members.map((member) => poolMember(tables, member, policy === "least-flows" ? null : whole)),
    associations: associations.map(({ client, vm, label }): AssociationEntry => {
      const targets = view.targets({ vm, label }, service.spec.zone);
      const up = targets.filter(({ spec }) => isUp(spec)).length;
      return { client, vm: vm ?? null, label: label ?? null, vms_up: up, vms_total: targets.length };
    }),
  };
}

/** `whole`: the weights of those that are up; null where new flows do not go by shares. */
function poolMember(tables: Tables, { vm, label, weight }: Member, whole: number | null): PoolMember {
  const cell = tables.guests.cellOf(vm.spec.id)?.cell;
  const isChosen = vm.spec.state === VM_STATE.UP;
  return {
    vm: vm.name,
    label,
    weight,
    share: whole === null ? null : isChosen ? weight / whole : 0,
    state: vmState(vm.spec),
    cause: vmCause(vm.spec),
    flows: cell === undefined ? 0 : openFlows(tables, cell),
  };
}
