// SPDX-License-Identifier: Apache-2.0
// The operator's VMs and services: from what was configured or given to their entries and back, and what two of them
// may not share.

import { decode, type StructInput, type StructName, sizeOf } from "../abi/codec.ts";
import { SERVICE_SPEC, SERVICE_SPEC_BYTES, VM_SPEC, VM_SPEC_BYTES, VM_STATE } from "../abi/layout.gen.ts";
import { type Parsed, parseService, parseVm, serviceText, vmText } from "../config/entries.ts";
import { addressKey, macKey } from "../config/parts.ts";
import { serviceOverlap } from "../config/serviceChecks.ts";
import { answeringVm, type ServiceConfig, type VmConfig } from "../config/services.ts";
import { LasthopError } from "../errors.ts";
import type {
  ServiceSpec,
  ServiceSpecInput,
  TableMap,
  Tables,
  VmSpec,
  VmSpecInput,
} from "../tables/index.ts";
import { removeNamed, setNamed } from "./namedSteps.ts";
import type { Surroundings } from "./observe.ts";
import { atOnce, type Pieces } from "./pieces.ts";
import type { Step } from "./steps.ts";

/** The text of a spec is as long as it is: what follows it in the table is not kept. */
export interface NamedVm {
  name: string;
  config: VmConfig;
  spec: VmSpec;
}

export interface NamedService {
  name: string;
  config: ServiceConfig;
  spec: ServiceSpec;
}

/** An entry that cannot be read: nothing is done about it, and somebody must be told. */
export interface BrokenSpec {
  name: string;
  why: string;
  /** enum origin */
  origin: number;
  /** Id of the VM, or index of the service: what it had before stays as it is. */
  number: number;
}

/** What conflicts are looked for in: an entry, or one that is to be. */
export interface VmEntry {
  name: string;
  config: VmConfig;
  spec: Pick<VmSpecInput, "zone">;
}

export interface ServiceEntry {
  name: string;
  config: ServiceConfig;
  spec: Pick<ServiceSpecInput, "zone">;
}

// To entries

/** Before anything is known of it. `config` has been checked. Throws E_VM if its text is too long. */
export function vmSpecOf(config: VmConfig, zone: number, origin: number): StructInput<"vm_spec"> {
  const text = Buffer.from(vmText(config));
  if (text.length > VM_SPEC_BYTES) {
    throw new LasthopError(
      "E_VM",
      `what is given of the VM ${config.name} takes ${text.length} bytes, and ${VM_SPEC_BYTES} is the most`,
      { hint: "Give it fewer or shorter labels." },
    );
  }
  return { zone, origin, bytes: text.length, text };
}

/** Throws E_SERVICE if its text is too long. */
export function serviceSpecOf(
  config: ServiceConfig,
  zone: number,
  origin: number,
): StructInput<"service_spec"> {
  const text = Buffer.from(serviceText(config));
  if (text.length > SERVICE_SPEC_BYTES) {
    throw new LasthopError(
      "E_SERVICE",
      `what is given of the service ${config.name} takes ${text.length} bytes, and ${SERVICE_SPEC_BYTES} is the most`,
      { hint: "Name VMs by a label instead of one by one." },
    );
  }
  return { zone, origin, bytes: text.length, text };
}

/** Whether both ask for the same, whatever was observed. */
export function sameSpec(a: VmSpecInput | ServiceSpecInput, b: VmSpecInput | ServiceSpecInput): boolean {
  return (
    (a.zone ?? 0) === (b.zone ?? 0) && (a.origin ?? 0) === (b.origin ?? 0) && textOf(a).equals(textOf(b))
  );
}

function textOf({ text, bytes = 0 }: VmSpecInput | ServiceSpecInput): Buffer {
  return text ? Buffer.from(text.buffer, text.byteOffset, Math.min(bytes, text.length)) : Buffer.alloc(0);
}

// From entries

/** By name. */
export function readVms(tables: Pick<Tables, "guests">): { vms: NamedVm[]; broken: BrokenSpec[] } {
  const { named, broken } = atOnce(vmsInPieces(tables));
  return { vms: named, broken };
}

/** By name. */
export function readServices(tables: Pick<Tables, "services">): {
  services: NamedService[];
  broken: BrokenSpec[];
} {
  const { named, broken } = atOnce(servicesInPieces(tables));
  return { services: named, broken };
}

interface Found<S, C> {
  named: { name: string; config: C; spec: S }[];
  broken: BrokenSpec[];
}

const VMS = { key: "vm_name", value: "vm_spec", fields: VM_SPEC.fields, parse: parseVm } as const;
const SERVICES = {
  key: "service_name",
  value: "service_spec",
  fields: SERVICE_SPEC.fields,
  parse: parseService,
} as const;

export function vmsInPieces({ guests }: Pick<Tables, "guests">): Pieces<Found<VmSpec, VmConfig>> {
  return readSpecs<VmSpec, VmConfig>(guests.specs.map, VMS, knownVms);
}

export function servicesInPieces({
  services,
}: Pick<Tables, "services">): Pieces<Found<ServiceSpec, ServiceConfig>> {
  return readSpecs<ServiceSpec, ServiceConfig>(services.specs.map, SERVICES, knownServices);
}

interface SpecKind<C> {
  key: StructName;
  value: StructName;
  fields: Record<"bytes" | "text" | "origin", { offset: number; size: number }>;
  parse(name: string, text: string): Parsed<C>;
}

/** Entries of some 8 KB are not read by the thousand. */
const SPECS_A_BATCH = 128;

/** What texts of the last reading said, by name: they are read again and again, and seldom change. */
type Known<C> = { texts: Map<string, { text: string; parsed: Parsed<C> }> };
const knownVms: Known<VmConfig> = { texts: new Map() };
const knownServices: Known<ServiceConfig> = { texts: new Map() };

function* readSpecs<S, C>(map: TableMap, kind: SpecKind<C>, known: Known<C>): Pieces<Found<S, C>> {
  const found: Found<S, C> = { named: [], broken: [] };
  const texts: Known<C>["texts"] = new Map();
  const { bytes, text, origin } = kind.fields;
  const keyBytes = sizeOf(kind.key);
  const valueBytes = sizeOf(kind.value);
  for (const { count, keys, values } of map.batches(SPECS_A_BATCH)) {
    for (let place = 0; place < count; place++) {
      const { name } = decode(kind.key, keys, place * keyBytes) as { name: string };
      const value = values.subarray(place * valueBytes, (place + 1) * valueBytes);
      const length = value.readUIntLE(bytes.offset, bytes.size);
      const broken = (why: string): void => {
        found.broken.push({ name, why, origin: value[origin.offset]!, number: value.readUInt32LE(0) });
      };
      if (length > text.size) {
        broken(`its text has ${length} bytes, where there is room for ${text.size}`);
        continue;
      }
      // Cut behind the text, which is the last field.
      const spec = decode(kind.value, value.subarray(0, text.offset + length)) as S & { text: Buffer };
      const said = spec.text.toString();
      const before = known.texts.get(name);
      const parsed = before?.text === said ? before.parsed : kind.parse(name, said);
      texts.set(name, { text: said, parsed });
      if ("why" in parsed) broken(parsed.why);
      else found.named.push({ name, config: parsed.entry, spec });
    }
    yield;
  }
  known.texts = texts;
  found.named.sort(byName);
  found.broken.sort(byName);
  return found;
}

function byName(a: { name: string }, b: { name: string }): number {
  return a.name < b.name ? -1 : 1;
}

// Changes

/** Enters or changes a VM; what was observed of it stays, and so does the operator's word. settleServices does the rest. */
export function setVm(
  { tables }: Pick<Surroundings, "tables">,
  name: string,
  spec: StructInput<"vm_spec">,
): Step[] {
  return setNamed(tables.guests.specs, `VM ${name}`, name, (old) => withObserved(name, spec, old));
}

function withObserved(name: string, spec: VmSpecInput, old: VmSpec | undefined): VmSpecInput {
  if (!old) return spec;
  const { id, ifindex, mac, changed, state, cause, operator_state, health } = old;
  const [asked, before] = [spec, old].map((given) => parseVm(name, textOf(given).toString()));
  const unless = (keys: readonly (keyof VmConfig)[]): boolean =>
    spec.zone !== old.zone || keys.some((key) => configured(asked!, key) !== configured(before!, key));
  return {
    ...spec,
    ...{ changed, state, cause, operator_state },
    // Who it is, and what its check found, only as far as the same is asked for.
    ...(unless(["tap", "mac", "address"]) ? {} : { id, ifindex, mac }),
    health: unless(["check", "address"]) ? VM_STATE.UNKNOWN : health,
  };
}

function configured(parsed: Parsed<VmConfig>, key: keyof VmConfig): string | undefined {
  return "entry" in parsed ? JSON.stringify(parsed.entry[key]) : "?";
}

/** Its flows keep their way until a sweep finds none, with settleServices. */
export function removeVm({ tables }: Pick<Surroundings, "tables">, name: string): Step[] {
  return removeNamed(tables.guests.specs, `VM ${name}`, name);
}

/** VM_STATE.DRAIN, VM_STATE.DOWN, or VM_STATE.UNKNOWN to take the word back. */
export function setOperatorState(
  { tables }: Pick<Surroundings, "tables">,
  name: string,
  operator_state: number,
): Step[] {
  const { specs } = tables.guests;
  const old = specs.get({ name });
  if (!old || old.operator_state === operator_state) return [];
  const set = (state: number): void => {
    const now = specs.get({ name });
    if (now) specs.set({ name }, { ...now, operator_state: state });
  };
  return [{ done: null, do: () => set(operator_state), undo: () => set(old.operator_state) }];
}

/** Enters or changes a service; its index stays. settleServices does the rest. */
export function setService(
  { tables }: Pick<Surroundings, "tables">,
  name: string,
  spec: StructInput<"service_spec">,
): Step[] {
  return setNamed(tables.services.specs, `service ${name}`, name, (old) => ({
    ...spec,
    index: old?.index ?? 0,
  }));
}

/** Its flows keep their VMs. */
export function removeService({ tables }: Pick<Surroundings, "tables">, name: string): Step[] {
  return removeNamed(tables.services.specs, `service ${name}`, name);
}

// What goes together

/** Why a VM cannot stand beside the others; null if it can. */
export function vmConflict(vm: VmEntry, others: Iterable<VmEntry>): string | null {
  const all = [...others];
  const { responses } = vm.config;
  const clash = vmClash(vm, all);
  if (clash !== null || responses === undefined || responses === vm.name) return clash;
  return all.some(({ name }) => name === responses) ? null : `no VM is called ${JSON.stringify(responses)}`;
}

/** What it would have in common with one of the others and may not; null if nothing. */
export function vmClash(vm: VmEntry, others: Iterable<VmEntry>): string | null {
  const { config } = vm;
  for (const other of others) {
    if (other.name === vm.name || zoneOf(other) !== zoneOf(vm)) continue;
    const its = other.config;
    if (config.mac !== undefined && same(config.mac, its.mac, macKey)) {
      return `${config.mac} is the VM ${other.name}'s`;
    }
    if (config.address !== undefined && same(config.address, its.address, addressKey)) {
      return `${config.address} is the VM ${other.name}'s`;
    }
    if (config.tap !== undefined && config.tap === its.tap && !(isTold(config) && isTold(its))) {
      return `the VM ${other.name} is on ${config.tap} too, and it takes a mac or an address to tell them apart`;
    }
  }
  return null;
}

/** Not whoever is on its tap. */
function isTold({ mac, address }: VmConfig): boolean {
  return mac !== undefined || address !== undefined;
}

function same(a: string, b: string | undefined, key: (text: string) => string): boolean {
  return b !== undefined && key(a) === key(b);
}

function zoneOf({ spec }: { spec: { zone?: number | undefined } }): number {
  return spec.zone ?? 0;
}

/** Why a service cannot stand beside the others with these VMs; null if it can. */
export function serviceConflict(
  service: ServiceEntry,
  others: Iterable<ServiceEntry>,
  vms: Iterable<VmEntry>,
): string | null {
  return serviceClash(service, others) ?? targetConflict(service, [...vms]);
}

/** With which of the others it would share requests; null if with none. */
export function serviceClash(service: ServiceEntry, others: Iterable<ServiceEntry>): string | null {
  const own = inNumberedZone(service);
  for (const other of others) {
    if (other.name === service.name || zoneOf(other) !== zoneOf(service)) continue;
    const overlap = serviceOverlap(own, inNumberedZone(other));
    if (overlap !== null) return overlap;
  }
  return null;
}

/** Entries know zones by number: names of the configuration may be others by now. */
export function inNumberedZone({ name, config, spec }: ServiceEntry): ServiceConfig {
  return { ...config, name, zone: String(spec.zone ?? 0) };
}

function targetConflict(service: ServiceEntry, vms: readonly VmEntry[]): string | null {
  const { pool, associations, answer } = service.config;
  const byName = new Map(vms.map((vm) => [vm.name, vm]));
  const answering = answeringVm(answer);
  const targets = [...pool, ...associations, ...(answering === undefined ? [] : [{ vm: answering }])];
  for (const target of targets) {
    if (target.vm !== undefined) {
      const vm = byName.get(target.vm);
      if (!vm) return `no VM is called ${JSON.stringify(target.vm)}`;
      if (zoneOf(vm) !== zoneOf(service)) return `the VM ${vm.name} is in another zone`;
    } else {
      const label = (target as { label?: string }).label!;
      const has = (vm: VmEntry) => zoneOf(vm) === zoneOf(service) && vm.config.labels.includes(label);
      if (!vms.some(has)) return `no VM of its zone has the label ${JSON.stringify(label)}`;
    }
  }
  return null;
}
