// SPDX-License-Identifier: Apache-2.0
// What would happen to a request now, where a service or a VM that forwards packets unchanged is concerned: the
// decisions of service_choose in bpf/service.h and of delivery_find in bpf/deliver.h, from the same tables.

import { currentTick } from "../abi/codec.ts";
import { FLOW_FLAG, ON_VM_DOWN, SERVICE_KEY_BITS, VM_STATE } from "../abi/layout.gen.ts";
import { inPrefix, parseAddress, parsePrefix } from "../addresses.ts";
import { addressOctets } from "../controller/devices.ts";
import type { NamedService, NamedVm } from "../controller/serviceSpec.ts";
import type { Flow, Tables } from "../tables/index.ts";
import { isUp, type Member, ServiceView, vmCause, vmState } from "./serviceView.ts";
import { tupleKeys } from "./tupleKeys.ts";
import type { Explanation, Tuple } from "./types.ts";

export type Delivery = Pick<Explanation, "service" | "delivery">;

export interface DeliveryQuestion {
  tables: Tables;
  tuple: Tuple;
  zone: number;
  flow: Flow | undefined;
  /** MAC of the flow's VM. */
  mac: string | undefined;
  /** Of an interface by its ifindex. */
  nameOf(ifindex: number): string;
}

export function explainService(question: DeliveryQuestion): Delivery {
  const { tables, flow } = question;
  const view = new ServiceView(tables);
  const service = serviceOf(view, question);
  const flags = flow?.value.flags ?? 0;
  const shown = service ? summary(view, service) : null;
  if (flags & FLOW_FLAG.LOCAL_ORIGIN) {
    const delivery = flags & FLOW_FLAG.TRANSPARENT ? transparentText(view, question) : null;
    return { service: shown, delivery };
  }
  if (flags & FLOW_FLAG.SERVICE) return { service: shown, delivery: servedText(view, question, service) };
  if (!service) return { service: null, delivery: null };
  const delivery = flow
    ? `The flow began before the service ${service.name} was there: its requests go where they went.`
    : chosenText(view, question, service);
  return { service: shown, delivery };
}

/** As service_find looks for it: with the port, then with any. */
function serviceOf(view: ServiceView, { tables, tuple, zone }: DeliveryQuestion): NamedService | undefined {
  const [key] = tupleKeys(tuple, zone);
  const look = (port: number) =>
    tables.services.index.get({
      prefix_bits: SERVICE_KEY_BITS + 128,
      zone,
      proto: key!.proto,
      port,
      address: addressOctets(tuple.local_address),
    });
  const index = look(key!.localPort) ?? look(0);
  return index === undefined ? undefined : view.services.find(({ spec }) => spec.index === index);
}

function summary(view: ServiceView, service: NamedService): NonNullable<Explanation["service"]> {
  const members = view.members(service);
  const { name, config } = service;
  return {
    name,
    policy: config.policy,
    on_vm_down: config.on_vm_down,
    vms_up: upOf(members).length,
    vms_total: members.length,
  };
}

function upOf(members: readonly Member[]): Member[] {
  return members.filter(({ vm }) => isUp(vm.spec));
}

/** The flow's VM, in words: `web1 (52:54:00:00:00:01 on vnet3)`. */
function vmText({ tables, flow, mac, nameOf }: DeliveryQuestion, vm: NamedVm | undefined): string {
  const cell = tables.guests.cellOf(flow!.value.vm)?.vm;
  const where = cell && cell.ifindex !== 0 ? ` on ${nameOf(cell.ifindex)}` : "";
  const address = mac ?? "a VM that is no longer known";
  return vm ? `${vm.name} (${address}${where})` : `${address}${where}`;
}

function transparentText(view: ServiceView, question: DeliveryQuestion): string {
  const vm = vmOf(view, question);
  return (
    "Whichever uplink they come by, answers are handed to the VM that forwarded the connection, " +
    `${vmText(question, vm)}, unless they are addressed to it already.`
  );
}

function vmOf(view: ServiceView, { flow }: DeliveryQuestion): NamedVm | undefined {
  return view.vms.find(({ spec }) => spec.id !== 0 && spec.id === flow!.value.vm);
}

/** Of a flow whose VM a service chose. */
function servedText(
  view: ServiceView,
  question: DeliveryQuestion,
  service: NamedService | undefined,
): string {
  const { tables, flow } = question;
  const vm = vmOf(view, question);
  const state = tables.guests.cellOf(flow!.value.vm)?.vm.state ?? VM_STATE.DOWN;
  const chosen = service ? `which the service ${service.name} chose` : "as a service that has gone chose it";
  const told = vmText(question, vm);
  if (state === VM_STATE.UP) return `Requests are handed to ${told}, ${chosen}.`;
  if (state === VM_STATE.DRAIN) {
    return `Requests are handed to ${told}, ${chosen}; it gets no new flows, and keeps those that it has.`;
  }
  const cause = vm ? vmCause(vm.spec) : null;
  const why = vm ? ` (${[vmState(vm.spec), ...(cause === null ? [] : [cause])].join(", ")})` : "";
  return `The flow's VM, ${told}, is not up${why}: ${withoutVm(view, service)}.`;
}

/** What delivery_without does. */
function withoutVm(view: ServiceView, service: NamedService | undefined): string {
  if (!service || onVmDown(service) === ON_VM_DOWN.HOLD) {
    return "requests are handed to it all the same, and dropped as long as it has no tap";
  }
  const up = upOf(view.members(service)).length;
  const another =
    up === 0 ? "no VM of the service is up, so it is dropped" : `it goes to another, one of ${up}`;
  if (onVmDown(service) === ON_VM_DOWN.RESET) {
    return `the next segment of TCP is answered with a reset; of another protocol ${another}`;
  }
  return up === 0
    ? "no VM of the service is up, so the next request is dropped"
    : `the next request goes to another, one of ${up}`;
}

function onVmDown({ config }: NamedService): number {
  return { rebalance: ON_VM_DOWN.REBALANCE, reset: ON_VM_DOWN.RESET, hold: ON_VM_DOWN.HOLD }[
    config.on_vm_down
  ];
}

/** Of a request that is the first of its flow. */
function chosenText(view: ServiceView, question: DeliveryQuestion, service: NamedService): string {
  const { name, config } = service;
  const stored = association(view, question, service);
  const begin = `The next request begins a flow of the service ${name}, `;
  if (stored) return `${begin}for ${oneOf(stored.vms)}: its client is in ${stored.client}.`;
  const affine = affineVm(view, question, service);
  if (affine) return `${begin}for ${affine.name}, which had the client's last flow.`;
  const up = upOf(view.members(service));
  if (up.length === 0) return `The next request is dropped: no VM of the service ${name} is up.`;
  return `${begin}for ${oneOf(up.map(({ vm }) => vm))}, by ${config.policy}.`;
}

const NAMES_SHOWN = 4;

function oneOf(vms: readonly NamedVm[]): string {
  if (vms.length === 1) return vms[0]!.name;
  const names = vms.slice(0, NAMES_SHOWN).map(({ name }) => name);
  const more = vms.length > names.length ? ", …" : "";
  return `one of ${vms.length} VMs (${names.join(", ")}${more})`;
}

/** The longest prefix of the client counts, if a VM of it is up. */
function association(view: ServiceView, { tuple }: DeliveryQuestion, { config, spec }: NamedService) {
  const client = parseAddress(tuple.remote_address)!;
  const [best] = config.associations
    .flatMap((item) => {
      const prefix = parsePrefix(item.client);
      return prefix && inPrefix(prefix, client) ? [{ ...item, bits: prefix.bits }] : [];
    })
    .sort((a, b) => b.bits - a.bits);
  const vms = best ? view.targets(best, spec.zone).filter((vm) => isUp(vm.spec)) : [];
  return best && vms.length > 0 ? { client: best.client, vms } : undefined;
}

function affineVm(
  view: ServiceView,
  { tables, tuple }: DeliveryQuestion,
  { spec }: NamedService,
): NamedVm | undefined {
  const ticks = tables.services.entries.get(spec.index)?.affinity_ticks ?? 0;
  if (ticks === 0) return undefined;
  const known = tables.services.affinities.get({
    client: addressOctets(tuple.remote_address),
    service: spec.index,
  });
  if (!known || ((currentTick() - known.last_seen) | 0) >= ticks) return undefined;
  return view.vms.find((vm) => vm.spec.id === known.vm && isUp(vm.spec));
}
