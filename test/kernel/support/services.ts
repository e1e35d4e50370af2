// SPDX-License-Identifier: Apache-2.0
// Services and the VMs behind them, as the controller would enter them: straight into the tables.

import type { StructInput, StructValue } from "../../../src/abi/codec.ts";
import {
  ON_VM_DOWN,
  SERVICE_FLAG,
  SERVICE_KEY_BITS,
  SERVICE_POLICY,
  SERVICE_PROTO_ANSWER,
  VM_FLAG,
  VM_STATE,
  VMS_MAX,
} from "../../../src/abi/layout.gen.ts";
import { cellsFor, Tables } from "../../../src/tables/index.ts";
import { macBytes } from "./bytes.ts";
import { IFINDEX, MTU, PORTS, type PortName } from "./devices.ts";
import { IPPROTO } from "./packet.ts";
import { type Family, type FrameOptions, MAC } from "./scene.ts";
import { VM_PORT, VM1, VM2 } from "./talk.ts";
import { type LastHopSpec, mappedBytes, POOL_LINES, SERVICES, u32, type World } from "./world.ts";

/** VMs as the steps of rows name them: where a request is handed to. */
export const TO_VM1: LastHopSpec = { port: "tap_1", mac: MAC.vm1 };
export const TO_VM2: LastHopSpec = { port: "tap_2", mac: MAC.vm2 };

/** Frames for the host's own MAC, as those for a service mostly are; by uplink B from device B. */
export const TO_HOST: FrameOptions = { to: PORTS.uplink_a.mac };
export const TO_HOST_B: FrameOptions = { from: MAC.deviceB, to: PORTS.uplink_b.mac };

/** What every row finds there unless it says otherwise. */
export const SERVICE = 1;
export const POOL = 1;

export type Policy = keyof typeof SERVICE_POLICY;
export type VmState = keyof typeof VM_STATE;
export type OnVmDown = keyof typeof ON_VM_DOWN;

/** Of these cells the tests use some; they are emptied. */
const CELLS = 64;

/** The tables of services in one world. */
export class Services {
  readonly tables: Tables;
  readonly #world: World;

  constructor(world: World) {
    this.#world = world;
    this.tables = new Tables(world);
  }

  /** No service, no VM in a cell, nothing counted. */
  clear(): void {
    const { services, guests } = this.tables;
    for (const name of ["service_index", "associations", "affinities"]) {
      const map = this.#world.map(name);
      for (let key = map.nextKey(null); key; key = map.nextKey(null)) map.delete(key);
    }
    for (let index = 0; index < SERVICES; index++) {
      services.entries.set(index, {});
      services.pools.set(index, {});
      services.clearStats(index);
      this.#world.map("pool_cursors").update(u32(index), u32(0));
    }
    for (let line = 0; line < POOL_LINES; line++) services.lines.set(line, {});
    for (const cell of [...Array(CELLS).keys(), VMS_MAX - 1]) {
      guests.cells.set(cell, {});
      guests.flows.set(cell, 0);
      for (let half = 0; half < 4; half++) guests.refs.set(half * VMS_MAX + cell, 0);
      guests.clearStats(cell);
    }
    this.#world.changeControl({ vm_cells: 0 });
  }

  /** A VM that frames are handed to, in the first of its cells that is free. */
  putVm(
    id: number,
    { port, mac }: { port: PortName; mac: string },
    fields: StructInput<"vm_cell"> = {},
  ): number {
    const cell = cellsFor(id).find((one) => this.tables.guests.cells.get(one)!.id === 0)!;
    this.tables.guests.cells.set(cell, {
      id,
      ifindex: IFINDEX[port],
      slot: PORTS[port].slot,
      mac: macBytes(mac),
      state: VM_STATE.UP,
      flags: VM_FLAG.XDP,
      ...fields,
    });
    this.#world.changeInterface(port, { mtu: MTU });
    const { vm_cells } = this.tables.control.get();
    this.#world.changeControl({ vm_cells: vm_cells + 1 });
    return cell;
  }

  changeVm(id: number, fields: StructInput<"vm_cell">): void {
    const { cell, vm } = this.tables.guests.cellOf(id)!;
    this.tables.guests.cells.set(cell, { ...vm, ...fields });
  }

  setState(id: number, state: VmState): void {
    this.changeVm(id, { state: VM_STATE[state] });
  }

  /** As when its last flow has gone. */
  removeVm(id: number): void {
    this.tables.guests.cells.set(this.tables.guests.cellOf(id)!.cell, {});
  }

  /** `cells` as they stand in its lines; of LEAST_FLOWS each once, and a weight each. Four lines a pool. */
  putPool(index: number, policy: Policy, cells: readonly number[], weights: readonly number[] = []): void {
    const line = index * 4;
    const all = policy === "LEAST_FLOWS" ? [...cells, ...cells.map((_, at) => weights[at] ?? 1)] : cells;
    this.tables.services.writeCells(line, Uint16Array.from(all));
    this.tables.services.pools.set(index, { line, size: cells.length, policy: SERVICE_POLICY[policy] });
  }

  putService(index: number, fields: StructInput<"service"> = {}): void {
    this.tables.services.entries.set(index, { pool: POOL, on_vm_down: ON_VM_DOWN.REBALANCE, ...fields });
  }

  changeService(index: number, fields: StructInput<"service">): void {
    this.tables.services.entries.set(index, { ...this.tables.services.entries.get(index)!, ...fields });
  }

  putKey(service: number, key: ServiceAddress): void {
    this.tables.services.index.set(serviceKey(key), service);
  }

  removeKey(key: ServiceAddress): void {
    this.tables.services.index.delete(serviceKey(key));
  }

  /** Clients of this prefix get a VM of this pool. */
  associate(service: number, prefix: string, pool: number): void {
    const { bytes, bits } = parsePrefix(prefix);
    this.tables.services.associations.set({ prefix_bits: 32 + bits, service, client: bytes }, pool);
    this.changeService(service, { flags: SERVICE_FLAG.ASSOCIATED });
  }

  affinity(service: number, client: string): StructValue<"affinity"> | undefined {
    return this.tables.services.affinities.get({ service, client: mappedBytes(client) });
  }

  setAffinity(service: number, client: string, vm: number, last_seen: number): void {
    this.tables.services.affinities.set({ service, client: mappedBytes(client) }, { vm, last_seen });
  }

  /** Open flows of services, as the programs count them: a negative number would be a flaw. */
  flows(id: number): number {
    return this.tables.guests.flows.get(this.tables.guests.cellOf(id)!.cell)! | 0;
  }

  setFlows(id: number, count: number): void {
    this.tables.guests.flows.set(this.tables.guests.cellOf(id)!.cell, count);
  }

  vmStats(id: number): StructValue<"vm_stats"> {
    return this.tables.guests.stats(this.tables.guests.cellOf(id)!.cell);
  }

  stats(index = SERVICE): StructValue<"service_stats"> {
    return this.tables.services.stats(index);
  }

  /** Only what is not 0. */
  counted(index = SERVICE): Partial<StructValue<"service_stats">> {
    return Object.fromEntries(Object.entries(this.stats(index)).filter(([, count]) => count !== 0));
  }
}

const WORLDS = new WeakMap<World, Services>();

export function servicesOf(world: World): Services {
  let services = WORLDS.get(world);
  if (!services) {
    services = new Services(world);
    WORLDS.set(world, services);
  }
  return services;
}

export interface ServiceAddress {
  /** An address, or one with `/bits`. */
  prefix: string;
  proto: number;
  /** 0: any. */
  port?: number;
  zone?: number;
}

/** Mapped, and so are the bits of an IPv4 prefix. */
function parsePrefix(prefix: string): { bytes: Buffer; bits: number } {
  const [address, length] = prefix.split("/") as [string, string | undefined];
  const all = address.includes(":") ? 128 : 32;
  return { bytes: mappedBytes(address), bits: 128 - all + Number(length ?? all) };
}

function serviceKey({ prefix, proto, port = 0, zone = 0 }: ServiceAddress): StructInput<"service_key"> {
  const { bytes, bits } = parsePrefix(prefix);
  return { prefix_bits: SERVICE_KEY_BITS + bits, zone, proto, port, address: bytes };
}

export interface ServedOptions {
  policy?: Policy;
  /** Of the pool's places; by default the two VMs in turn. */
  cells?: readonly number[];
  onVmDown?: OnVmDown;
  service?: StructInput<"service">;
  vm?: StructInput<"vm_cell">;
  /** By default TCP, UDP, SCTP to the port, and echo. */
  keys?: readonly Omit<ServiceAddress, "prefix">[];
}

/**
 * The scene of most rows: VM 1 and VM 2 behind their taps, and a service with the address of VM 1 that gives each new
 * flow to the next of them, VM 1 first.
 */
export function serve(f: Family, options: ServedOptions = {}): (world: World) => Services {
  return (world) => {
    const services = servicesOf(world);
    services.clear();
    services.putVm(VM1, TO_VM1, options.vm);
    services.putVm(VM2, TO_VM2, options.vm);
    services.putPool(POOL, options.policy ?? "ROUND_ROBIN", options.cells ?? [VM1, VM2]);
    services.putService(SERVICE, {
      on_vm_down: ON_VM_DOWN[options.onVmDown ?? "REBALANCE"],
      ...options.service,
    });
    for (const key of options.keys ?? ALL_KEYS(f)) services.putKey(SERVICE, { prefix: f.vm, ...key });
    return services;
  };
}

const ALL_KEYS = (f: Family) => [
  ...[IPPROTO.tcp, IPPROTO.udp, IPPROTO.sctp].map((proto) => ({ proto, port: VM_PORT })),
  { proto: f.icmp },
];

/** Who answers ARP and ND for an address: a MAC, or the host. */
export function answering(world: World, prefix: string, mac?: string, zone = 0): void {
  const services = servicesOf(world);
  services.putKey(SERVICE, { prefix, proto: SERVICE_PROTO_ANSWER, zone });
  services.changeService(SERVICE, {
    flags: SERVICE_FLAG.ANSWERED,
    answer_mac: mac ? macBytes(mac) : Buffer.alloc(6),
  });
}
