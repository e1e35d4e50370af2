// SPDX-License-Identifier: Apache-2.0
// Which VMs and services of the configuration do not go together.

import { ASSOCIATIONS_MAX, SERVICE_SPEC_BYTES } from "../abi/layout.gen.ts";
import { type Prefix, parsePrefix } from "../addresses.ts";
import type { Entry, Sound } from "./check.ts";
import { serviceText } from "./entries.ts";
import { quoted } from "./problems.ts";
import { maskedHex, type ServiceSelector, serviceOverlaps } from "./serviceOverlap.ts";
import { type AssociationConfig, answeringVm, type MemberConfig, type ServiceConfig } from "./services.ts";
import { checkNames, checkVms, complaint, KnownVms } from "./vmChecks.ts";
import type { Complaint } from "./wording.ts";

export {
  type Overlap,
  type ServiceSelector,
  serviceOverlap,
  serviceOverlaps,
} from "./serviceOverlap.ts";

type ServiceEntry = Entry<ServiceConfig>;

export function checkServices(sound: Sound): Complaint[] {
  const { vms, services } = sound;
  const known = new KnownVms(vms);
  return [
    ...checkVms(sound, known),
    ...checkNames("services", services),
    ...services.flatMap((entry) => checkTargets(entry, known)),
    ...services.flatMap(checkClients),
    ...services.flatMap((entry) => checkAnswer(entry, known)),
    ...checkAnswered(services, sound.devices),
    ...checkOverlaps(services),
    ...services.flatMap(checkRoom),
    ...checkAssociations(services),
  ];
}

/** The VMs and labels of the pool and of the associations. */
function checkTargets([index, { zone, pool, associations }]: ServiceEntry, known: KnownVms): Complaint[] {
  const found: Complaint[] = [];
  const check = (list: "pool" | "associations", place: number, target: MemberConfig | AssociationConfig) => {
    const { vm, label } = target;
    const problem =
      vm === undefined ? known.labelProblem(label!, zone) : known.vmProblem(vm, "this service", zone);
    if (problem === undefined) return;
    found.push(complaint(["services", index, list, place, vm === undefined ? "label" : "vm"], problem));
  };
  const places = new Map<string, number>();
  for (const [place, member] of pool?.entries() ?? []) {
    check("pool", place, member);
    const key = member.vm === undefined ? "label" : "vm";
    const first = places.get(`${key} ${member[key]}`);
    if (first === undefined) places.set(`${key} ${member[key]}`, place);
    else {
      const what = key === "vm" ? "VM" : "label";
      const message = `pool[${first}] is the ${what} ${quoted(member[key]!)} already: give that the whole weight`;
      found.push(complaint(["services", index, "pool", place, key], message));
    }
  }
  for (const [place, association] of associations?.entries() ?? []) check("associations", place, association);
  return found;
}

function checkClients([index, { address, associations }]: ServiceEntry): Complaint[] {
  const found: Complaint[] = [];
  const own = address === undefined ? undefined : parsePrefix(address);
  const places = new Map<string, number>();
  for (const [place, { client }] of associations?.entries() ?? []) {
    const prefix = parsePrefix(client);
    if (prefix === undefined) continue;
    const path = ["services", index, "associations", place, "client"];
    if (own !== undefined && own.family !== prefix.family) {
      found.push(complaint(path, `${client} is not of the same IP version as ${address}`));
    }
    const key = `${maskedHex(prefix, prefix.bits)}/${prefix.bits}`;
    const first = places.get(key);
    if (first === undefined) places.set(key, place);
    else found.push(complaint(path, `${client} is associations[${first}].client already`));
  }
  return found;
}

/** Its MAC may become known later. */
function checkAnswer([index, { answer, zone }]: ServiceEntry, known: KnownVms): Complaint[] {
  const name = answer === undefined ? undefined : answeringVm(answer);
  const problem = name === undefined ? undefined : known.vmProblem(name, "this service", zone);
  return problem === undefined ? [] : [complaint(["services", index, "answer"], problem)];
}

/** Nobody but a device is to answer for it: replies go where its address resolves to. */
function checkAnswered(services: readonly ServiceEntry[], devices: Sound["devices"]): Complaint[] {
  const answered = services.flatMap(([index, { zone, address, answer }]) => {
    const prefix = address === undefined ? undefined : parsePrefix(address);
    if (zone === undefined || prefix === undefined || answer === undefined || answer === "none") return [];
    return [{ index, zone, address, prefix }];
  });
  const lengths = new Set(answered.map(({ prefix }) => prefix.bits));
  const taken = new Map<string, string>();
  for (const [place, { zone, addresses }] of devices) {
    for (const address of addresses ?? []) {
      const prefix = parsePrefix(address)!;
      for (const bits of lengths) {
        const key = prefixKey(zone, prefix, bits);
        if (bits <= prefix.bits && !taken.has(key)) taken.set(key, `${address} of devices[${place}]`);
      }
    }
  }
  return answered.flatMap(({ index, zone, address, prefix }) => {
    const whose = taken.get(prefixKey(zone, prefix, prefix.bits));
    if (whose === undefined) return [];
    const message = `${whose} is in ${address}, so that it would be answered for: say answer: none`;
    return [complaint(["services", index, "address"], message)];
  });
}

function prefixKey(zone: string | undefined, prefix: Prefix, bits: number): string {
  return `${zone} ${maskedHex(prefix, bits)}/${bits}`;
}

function checkOverlaps(services: readonly ServiceEntry[]): Complaint[] {
  const sound = services.filter(([, service]) => {
    const { name, zone, address, protocol } = service;
    return [name, zone, address, protocol].every((given) => given !== undefined) && "port" in service;
  });
  const overlaps = serviceOverlaps(sound.map(([, service]) => service as ServiceSelector));
  return overlaps.map(({ second, message }) => {
    return complaint(["services", sound[second]![0], "address"], message);
  });
}

/** Of members and associations together there is as much as the tables have room for. */
function checkRoom([index, service]: ServiceEntry): Complaint[] {
  const { pool, associations } = service;
  if (pool === undefined || associations === undefined) return [];
  const bytes = Buffer.byteLength(serviceText(service as ServiceConfig));
  if (bytes <= SERVICE_SPEC_BYTES) return [];
  const message = `takes ${bytes} bytes in the tables, where ${SERVICE_SPEC_BYTES} have room: name VMs by a label instead of one by one`;
  return [complaint(["services", index], message)];
}

function checkAssociations(services: readonly ServiceEntry[]): Complaint[] {
  const count = services.reduce((sum, [, { associations }]) => sum + (associations?.length ?? 0), 0);
  if (count <= ASSOCIATIONS_MAX) return [];
  return [
    complaint(["services"], `have ${count} associations together, where ${ASSOCIATIONS_MAX} have room`),
  ];
}
