// SPDX-License-Identifier: Apache-2.0
// From the VMs and services that are there to those that are wanted. Those of the configuration were checked with each
// other when it was read; here with those that were entered by hand. Pure.

import { ORIGIN } from "../abi/layout.gen.ts";
import { serviceOverlaps } from "../config/serviceOverlap.ts";
import { type ErrorCode, LasthopError } from "../errors.ts";
import type { ServiceSpecInput, VmSpecInput } from "../tables/index.ts";
import type { DesiredEntry, DesiredService, DesiredServices, DesiredVm } from "./desiredServices.ts";
import { type Failure, failure } from "./failure.ts";
import {
  type BrokenSpec,
  inNumberedZone,
  type NamedService,
  type NamedVm,
  sameSpec,
  vmClash,
} from "./serviceSpec.ts";

export type ServiceAction = {
  object: string;
  text: string;
  /** Key in the configuration file; null for what nobody configured. */
  config: string | null;
} & (
  | { kind: "vm-add" | "vm-change"; name: string; spec: VmSpecInput }
  | { kind: "vm-remove"; name: string }
  | { kind: "service-add" | "service-change"; name: string; spec: ServiceSpecInput }
  | { kind: "service-remove"; name: string }
);

/** As the tables have them. */
export interface ObservedSpecs {
  vms: { named: readonly NamedVm[]; broken: readonly BrokenSpec[] };
  services: { named: readonly NamedService[]; broken: readonly BrokenSpec[] };
}

export const NO_SPECS: ObservedSpecs = {
  vms: { named: [], broken: [] },
  services: { named: [], broken: [] },
};

export interface ServicePlan {
  actions: ServiceAction[];
  failed: Failure[];
  warnings: string[];
}

/** VMs before services that name them; what goes, last, and in the opposite order. */
export function planServices(
  desired: Pick<DesiredServices, "vms" | "services">,
  observed: ObservedSpecs,
): ServicePlan {
  const vms = planKind("vm", desired.vms, observed.vms, vmConflicts(desired.vms, observed.vms.named));
  const services = planKind(
    "service",
    desired.services,
    observed.services,
    serviceConflicts(desired.services, observed.services.named),
  );
  return {
    actions: [...vms.set, ...services.set, ...services.removed, ...vms.removed],
    failed: [...vms.failed, ...services.failed],
    warnings: [...vms.warnings, ...services.warnings],
  };
}

const KINDS = {
  vm: { word: "VM", code: "E_VM", list: "vms" },
  service: { word: "service", code: "E_SERVICE", list: "services" },
} as const satisfies Record<string, { word: string; code: ErrorCode; list: string }>;

interface KindPlan {
  set: ServiceAction[];
  removed: ServiceAction[];
  failed: Failure[];
  warnings: string[];
}

type AnySpec = VmSpecInput | ServiceSpecInput;

function planKind(
  kind: keyof typeof KINDS,
  desired: ReadonlyMap<string, DesiredEntry<unknown, AnySpec>>,
  { named, broken }: { named: readonly { name: string; spec: AnySpec }[]; broken: readonly BrokenSpec[] },
  conflicts: ReadonlyMap<string, string>,
): KindPlan {
  const { word, code, list } = KINDS[kind];
  const plan: KindPlan = { set: [], removed: [], failed: [], warnings: [] };
  const present = new Map(named.map(({ name, spec }) => [name, spec]));
  const unread = new Map(broken.map((spec) => [spec.name, spec]));
  for (const [name, { key, spec }] of desired) {
    const old = present.get(name);
    if (old && sameSpec(old, spec)) continue;
    const conflict = conflicts.get(name);
    if (conflict !== undefined) {
      const text = `${word} ${name} cannot be as it is configured: ${conflict}`;
      const hint = `\`lasthop ${list} list\` shows what was entered by hand.`;
      plan.failed.push(failure(name, key, new LasthopError(code, text, { hint })));
      continue;
    }
    const isThere = old !== undefined || unread.has(name);
    const origin = (old ?? unread.get(name))?.origin;
    const how = !isThere ? "add" : origin === ORIGIN.CONFIG ? "change" : "by the configuration from now on";
    const action = { object: name, text: `${word} ${name}: ${how}`, config: key, name, spec };
    plan.set.push({ kind: `${kind}-${isThere ? "change" : "add"}`, ...action } as ServiceAction);
  }
  for (const { name, origin } of [
    ...named.map(({ name, spec }) => ({ name, origin: spec.origin })),
    ...broken,
  ]) {
    if (desired.has(name)) continue;
    if (origin === ORIGIN.CONFIG) {
      const text = `${word} ${name}: remove`;
      plan.removed.push({ kind: `${kind}-remove`, object: name, text, config: null, name });
    } else if (unread.has(name)) {
      plan.warnings.push(unreadText(word, unread.get(name)!));
    }
  }
  return plan;
}

export function unreadText(word: string, { name, why }: BrokenSpec): string {
  return `${word} ${name} cannot be read, and is left as it is: ${why}`;
}

/** Those that stay though they are not configured. */
function byHand<T extends { name: string; spec: AnySpec }>(
  named: readonly T[],
  desired: ReadonlyMap<string, unknown>,
): T[] {
  return named.filter(({ name, spec }) => spec.origin !== ORIGIN.CONFIG && !desired.has(name));
}

function vmConflicts(
  desired: ReadonlyMap<string, DesiredVm>,
  named: readonly NamedVm[],
): Map<string, string> {
  const conflicts = new Map<string, string>();
  const manual = byHand(named, desired);
  if (manual.length === 0) return conflicts;
  for (const vm of desired.values()) {
    const conflict = vmClash(vm, manual);
    if (conflict !== null) conflicts.set(vm.name, conflict);
  }
  return conflicts;
}

function serviceConflicts(
  desired: ReadonlyMap<string, DesiredService>,
  named: readonly NamedService[],
): Map<string, string> {
  const conflicts = new Map<string, string>();
  const manual = byHand(named, desired);
  if (manual.length === 0) return conflicts;
  const all = [...manual, ...desired.values()];
  for (const { first, second, message } of serviceOverlaps(all.map(inNumberedZone))) {
    if (first < manual.length && second >= manual.length) conflicts.set(all[second]!.name, message);
  }
  return conflicts;
}
