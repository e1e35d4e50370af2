// SPDX-License-Identifier: Apache-2.0
// From VMs and services to what the tables are to hold for the hot path: pools, services, associations and keys. Pure,
// in pieces.

import { encode, secondsToTicks } from "../abi/codec.ts";
import {
  ASSOCIATIONS_MAX,
  ON_VM_DOWN,
  SERVICE_FLAG,
  SERVICE_KEY_BITS,
  SERVICE_POLICY,
  SERVICE_PROTO_ANSWER,
} from "../abi/layout.gen.ts";
import { mapIpv4, parsePrefix } from "../addresses.ts";
import { maskedHex } from "../config/serviceOverlap.ts";
import { answeringVm, type MemberConfig, type ServiceConfig } from "../config/services.ts";
import type { Pieces } from "./pieces.ts";
import {
  type AskedPool,
  type KnownPools,
  Members,
  type ModelVm,
  type PoolContent,
  Pools,
} from "./servicePools.ts";

export interface ModelService {
  name: string;
  zone: number;
  /** In services; 0 is nobody's. */
  index: number;
  config: ServiceConfig;
}

export interface WantedService {
  name: string;
  index: number;
  /** Null: no VM is up. */
  pool: PoolContent | null;
  affinityTicks: number;
  onVmDown: number;
  flags: number;
  answerMac: Buffer;
  /** VMs of its pool: those that get new flows, and all. */
  up: number;
  all: number;
  /** Ids that an affinity of it may name. */
  ids: ReadonlySet<number>;
}

/** A row of a table whose keys are more than a number. */
export interface Row<V> {
  key: Buffer;
  value: V;
}

export interface Wanted {
  services: WantedService[];
  /** By key, in hex. */
  associations: Map<string, Row<PoolContent> & { service: number }>;
  keys: Map<string, Row<number>>;
  problems: string[];
}

const { TCP, UDP, SCTP, ICMP, ICMPV6 } = { TCP: 6, UDP: 17, SCTP: 132, ICMP: 1, ICMPV6: 58 } as const;
const IPV4_BITS = 96;
const ASSOCIATION_KEY_BITS = 32;
const NO_MAC = Buffer.alloc(6);
/** Services between two pauses. */
const SEVERAL = 64;

/** `services` in the order of their names: of two that want the same key the first has it. `lines`: that there are. */
export function* wantedContents(
  services: readonly ModelService[],
  vms: readonly ModelVm[],
  known: KnownPools,
  lines: number,
): Pieces<Wanted> {
  const members = new Members(vms);
  const pools = new Pools(known);
  const problems: string[] = [];
  const asked: Asked[] = [];
  for (const [count, service] of services.entries()) {
    asked.push(ask(service, members, pools, problems));
    if (count % SEVERAL === 0) yield;
  }
  yield* pools.chooseSizes(lines);
  const keys = yield* wantedKeys(services, members, problems);
  const wanted: Wanted = { services: [], associations: new Map(), keys: keys.rows, problems };
  for (const [count, { service, pool, associations }] of asked.entries()) {
    const { affinity_seconds, on_vm_down } = service.config;
    const stored = addAssociations(wanted, service, associations, pools);
    const answer = keys.answers.get(service.index);
    wanted.services.push({
      name: service.name,
      index: service.index,
      pool: pools.content(pool),
      affinityTicks: affinity_seconds === 0 ? 0 : secondsToTicks(affinity_seconds),
      onVmDown: ON_VM_DOWN[on_vm_down.toUpperCase() as Uppercase<typeof on_vm_down>],
      flags: (stored ? SERVICE_FLAG.ASSOCIATED : 0) | (answer ? SERVICE_FLAG.ANSWERED : 0),
      answerMac: answer ?? NO_MAC,
      up: pool.up.length,
      all: pool.all.length,
      ids: pool.ids,
    });
    if (count % SEVERAL === 0) yield;
  }
  pools.forgetOthers();
  return wanted;
}

// What is asked for

interface Asked {
  service: ModelService;
  pool: AskedPool;
  associations: readonly { client: string; pool: AskedPool }[];
}

function ask(service: ModelService, members: Members, pools: Pools, problems: string[]): Asked {
  const { name, zone, config } = service;
  const policy = SERVICE_POLICY[config.policy.toUpperCase().replace("-", "_") as keyof typeof SERVICE_POLICY];
  const of = (targets: readonly MemberConfig[]): AskedPool => {
    const found = members.of(zone, targets);
    for (const missing of found.missing) problems.push(`service ${name}: ${missing}`);
    return pools.ask(policy, found);
  };
  return {
    service,
    pool: of(config.pool),
    associations: config.associations.map(({ client, vm, label }) => ({
      client,
      pool: of([{ vm, label, weight: 1 }]),
    })),
  };
}

// Associations

/** True if there are any. One whose VMs are all down is left out: the client goes where others go. */
function addAssociations(
  wanted: Wanted,
  { name, index }: ModelService,
  associations: Asked["associations"],
  pools: Pools,
): boolean {
  let any = false;
  for (const { client, pool } of associations) {
    const value = pools.content(pool);
    if (value === null) continue;
    if (wanted.associations.size >= ASSOCIATIONS_MAX) {
      wanted.problems.push(`service ${name}: there is no room for its associations (E_SERVICE)`);
      return any;
    }
    const { bits, address } = mappedPrefix(client);
    const prefix_bits = ASSOCIATION_KEY_BITS + bits;
    const key = encode("association_key", { prefix_bits, service: index, client: address });
    wanted.associations.set(key.toString("hex"), { key, value, service: index });
    any = true;
  }
  return any;
}

/** As the tables have it: IPv4 mapped, without what follows the prefix. */
function mappedPrefix(text: string): { family: 4 | 6; bits: number; address: Buffer } {
  const prefix = parsePrefix(text)!;
  const bytes = Buffer.from(maskedHex(prefix, prefix.bits), "hex");
  const isIpv4 = prefix.family === 4;
  return {
    family: prefix.family,
    bits: prefix.bits + (isIpv4 ? IPV4_BITS : 0),
    address: isIpv4 ? mapIpv4(bytes) : bytes,
  };
}

// Keys

interface Keys {
  rows: Wanted["keys"];
  /** Index of a service that is answered for → with which MAC. */
  answers: Map<number, Buffer>;
}

/** Echo requests follow a service of another protocol, unless one is for them; a prefix is answered for once. */
function* wantedKeys(services: readonly ModelService[], members: Members, problems: string[]): Pieces<Keys> {
  const keys: Keys = { rows: new Map(), answers: new Map() };
  const add = (zone: number, proto: number, port: number, address: string, index: number): boolean => {
    const prefix = mappedPrefix(address);
    const prefix_bits = SERVICE_KEY_BITS + prefix.bits;
    const key = encode("service_key", { prefix_bits, zone, proto, port, address: prefix.address });
    const hex = key.toString("hex");
    if (keys.rows.has(hex)) return false;
    keys.rows.set(hex, { key, value: index });
    return true;
  };
  const icmpOf = (address: string): number => (parsePrefix(address)!.family === 4 ? ICMP : ICMPV6);
  const PROTOCOLS = { tcp: [TCP], udp: [UDP], sctp: [SCTP], icmp: [], any: [TCP, UDP, SCTP] } as const;
  for (const [count, { zone, index, config }] of services.entries()) {
    const { protocol, port, address } = config;
    for (const proto of PROTOCOLS[protocol]) add(zone, proto, port ?? 0, address, index);
    if (protocol === "icmp" || protocol === "any") add(zone, icmpOf(address), 0, address, index);
    if (count % SEVERAL === 0) yield;
  }
  for (const [count, service] of services.entries()) {
    const { zone, index, config } = service;
    add(zone, icmpOf(config.address), 0, config.address, index);
    const mac = answerOf(service, members, problems);
    if (mac && add(zone, SERVICE_PROTO_ANSWER, 0, config.address, index)) keys.answers.set(index, mac);
    if (count % SEVERAL === 0) yield;
  }
  return keys;
}

/** The MAC that is answered with; zeros for the host's, null for none. */
function answerOf({ name, zone, config }: ModelService, members: Members, problems: string[]): Buffer | null {
  if (config.answer === "none") return null;
  const vm = answeringVm(config.answer);
  if (vm === undefined) return NO_MAC;
  const mac = members.get(zone, vm)?.mac;
  if (!mac)
    problems.push(`service ${name}: nobody answers for its address, as the MAC of ${vm} is not known`);
  return mac ?? null;
}
