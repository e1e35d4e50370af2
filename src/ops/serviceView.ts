// SPDX-License-Identifier: Apache-2.0
// What the tables say of VMs and services at one moment, for people: who is in whose pool, where each VM is, and why
// one is not up.

import { CAUSE_NAMES, VM_STATE_NAMES } from "../abi/codec.ts";
import { CAUSE, ROLE, VM_STATE } from "../abi/layout.gen.ts";
import { formatMac } from "../addresses.ts";
import { append } from "../append.ts";
import type { CheckConfig, VmConfig } from "../config/schema.ts";
import { type PoolTarget, PoolTargets } from "../controller/poolTargets.ts";
import { type NamedService, type NamedVm, readServices, readVms } from "../controller/serviceSpec.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { isZero, type Tables, type VmSpec } from "../tables/index.ts";
import type { VmCause, VmCounts, VmState } from "./types.ts";

type Broken = { name: string; why: string };

/** A VM in a pool. */
export interface Member {
  vm: NamedVm;
  /** By which it is there; null if it is by name. */
  label: string | null;
  weight: number;
}

/** Who is in whose pool. */
export class ServiceView {
  readonly vms: readonly NamedVm[];
  readonly services: readonly NamedService[];
  /** Entries that cannot be read. */
  readonly broken: { vms: readonly Broken[]; services: readonly Broken[] };
  readonly #targets: PoolTargets<NamedVm>;
  #users: Map<string, string[]> | undefined;

  constructor(tables: Pick<Tables, "guests" | "services">) {
    const { vms, broken } = readVms(tables);
    const read = readServices(tables);
    this.vms = vms;
    this.services = read.services;
    this.broken = { vms: broken, services: read.broken };
    this.#targets = new PoolTargets(vms, ({ spec }) => spec.zone);
  }

  vm(name: string): NamedVm | undefined {
    return this.#targets.get(name);
  }

  /** Those that a member of a pool or an association names. */
  targets(target: PoolTarget, zone: number): readonly NamedVm[] {
    return this.#targets.of(zone, target);
  }

  /** Each VM once: by its name before any label, by a label before the ones that follow. */
  members({ config, spec }: NamedService): Member[] {
    const found = new Map<string, Member>();
    for (const byName of [true, false]) {
      for (const { weight, ...target } of config.pool) {
        if ((target.vm !== undefined) !== byName) continue;
        for (const vm of this.targets(target, spec.zone)) {
          if (!found.has(vm.name)) found.set(vm.name, { vm, label: target.label ?? null, weight });
        }
      }
    }
    return [...found.values()];
  }

  /** Names of the services that have it in their pool or associations. */
  servicesOf(name: string): string[] {
    this.#users ??= this.#findUsers();
    return this.#users.get(name) ?? [];
  }

  #findUsers(): Map<string, string[]> {
    const users = new Map<string, string[]>();
    for (const service of this.services) {
      const { pool, associations } = service.config;
      const targets = [...pool, ...associations].flatMap((target) => this.targets(target, service.spec.zone));
      for (const name of new Set(targets.map((vm) => vm.name))) {
        append(users, name, service.name);
      }
    }
    return users;
  }

  /** Services of which no VM is up. */
  empty(): NamedService[] {
    return this.services.filter((service) => !this.members(service).some(({ vm }) => isUp(vm.spec)));
  }

  vmCounts(): VmCounts {
    const counts: VmCounts = { total: this.vms.length, up: 0, drain: 0, down: 0, unknown: 0 };
    for (const { spec } of this.vms) counts[vmState(spec)]++;
    return counts;
  }
}

export function isUp({ state }: Pick<VmSpec, "state">): boolean {
  return state === VM_STATE.UP;
}

export function vmState({ state }: Pick<VmSpec, "state">): VmState {
  return VM_STATE_NAMES[state] ?? "unknown";
}

export function vmCause({ cause }: Pick<VmSpec, "cause">): VmCause | null {
  const name = CAUSE_NAMES[cause];
  return name === undefined || name === "none" ? null : name;
}

/** Where a VM is, as the host has it. */
export interface VmPlace {
  /** Name of its tap; that which was given, if it is nowhere. */
  tap: string | null;
  /** Its netdev is there. */
  link: Link | undefined;
  /** As a tap, in the VM's zone. */
  attached: boolean;
}

/** `links`: by ifindex. */
export function vmPlace(
  tables: Pick<Tables, "interfaces">,
  links: ReadonlyMap<number, Link>,
  { config, spec }: NamedVm,
): VmPlace {
  const link = links.get(spec.ifindex) ?? linkCalled(links, config.tap);
  const entry = link && tables.interfaces.get(link.ifindex);
  return {
    tap: link?.name ?? config.tap ?? null,
    link,
    attached: entry?.role === ROLE.TAP && entry.zone === spec.zone,
  };
}

function linkCalled(links: ReadonlyMap<number, Link>, name: string | undefined): Link | undefined {
  return name === undefined ? undefined : [...links.values()].find((link) => link.name === name);
}

/** For people; null if it is up. */
export function whyNotUp({ name, config, spec }: NamedVm, place: VmPlace): string | null {
  if (isUp(spec)) return null;
  switch (spec.cause) {
    case CAUSE.OPERATOR:
      return spec.state === VM_STATE.DRAIN
        ? `drained by hand: it keeps its flows and gets no new ones, until \`lasthop vms up ${name}\``
        : `taken down by hand, until \`lasthop vms up ${name}\``;
    case CAUSE.INTERFACE:
      return whyNoTap(config, spec, place);
    case CAUSE.NEIGHBOUR:
      if (isZero(spec.mac)) return "its MAC address is not known yet";
      return `${config.address ?? formatMac(spec.mac)} does not answer ${isIpv6(config.address) ? "neighbour discovery" : "ARP"}`;
    case CAUSE.PROBE:
      return config.check ? `its check fails: ${checkText(config.check, config.address)}` : "its check fails";
    default:
      if (spec.state !== VM_STATE.DOWN) return "nothing is known of it yet";
      return "other VMs have all places in the tables that its id allows: with another MAC it gets another id";
  }
}

function whyNoTap(config: VmConfig, spec: VmSpec, { tap, link, attached }: VmPlace): string {
  if (!link && config.tap !== undefined) return `its tap ${config.tap} is not there`;
  if (!link) {
    const mac = isZero(spec.mac) ? config.mac : formatMac(spec.mac);
    if (mac === undefined) return "neither its MAC address nor its tap is known yet";
    return `${mac} is on no attached tap of zone ${spec.zone}`;
  }
  if (!attached) return `its tap ${tap} is not attached as a tap of zone ${spec.zone}`;
  if (!link.flags.up) return `its tap ${tap} is down`;
  return `nothing can be sent to its tap ${tap}`;
}

function isIpv6(address: string | undefined): boolean {
  return address?.includes(":") === true;
}

/** `http:8080/health of 10.0.0.11`. */
export function checkText(
  { kind, port, path, address }: Pick<CheckConfig, "kind" | "port" | "path" | "address">,
  own: string | undefined,
): string {
  const whom = address ?? own;
  return `${kind}${port === undefined ? "" : `:${port}`}${path ?? ""}${whom === undefined ? "" : ` of ${whom}`}`;
}
