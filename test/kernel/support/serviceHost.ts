// SPDX-License-Identifier: Apache-2.0
// A host with taps and VMs, whose tables are those of the real programs: for what the controller makes of services.

import { tmpdir } from "node:os";
import { join } from "node:path";
import { encode } from "../../../src/abi/codec.ts";
import { ORIGIN, ROLE } from "../../../src/abi/layout.gen.ts";
import { parseMac } from "../../../src/addresses.ts";
import { type ServiceConfig, service, type VmConfig, vm } from "../../../src/config/services.ts";
import type { Surroundings } from "../../../src/controller/observe.ts";
import { atOnce } from "../../../src/controller/pieces.ts";
import { type Settled, settleServicesInPieces } from "../../../src/controller/serviceSettle.ts";
import {
  removeService,
  removeVm,
  serviceSpecOf,
  setOperatorState,
  setService,
  setVm,
  vmSpecOf,
} from "../../../src/controller/serviceSpec.ts";
import { runSteps } from "../../../src/controller/steps.ts";
import { objectPath } from "../../../src/kernel/instance.ts";
import type { FdbEntry, Link, Neighbour } from "../../../src/kernel/rtnetlink.ts";
import { BpfObject } from "../../../src/libbpf/index.ts";
import { type TableMap, Tables, type VmCell } from "../../../src/tables/index.ts";

const SMALL = {
  flows4: 1024,
  flows6: 1024,
  embryos4: 1024,
  embryos6: 1024,
  fragments: 64,
  last_hops: 64,
  last_hop_alias: 64,
  last_hop_free: 64,
  last_hop_index: 64,
  last_hop_stats: 64,
};

export const BRIDGE = 5;
export const HOST_MAC = "02:00:00:00:0b:01";

const NOTHING = encode("service", {});

export class ServiceHost {
  readonly object: BpfObject;
  readonly tables: Tables;
  links: Link[] = [];
  fdb: FdbEntry[] = [];
  neighbours: Neighbour[] = [];

  constructor(sizes: Record<string, number> = {}) {
    this.object = BpfObject.open(objectPath(), { mapMaxEntries: { ...SMALL, ...sizes } });
    this.object.load();
    this.tables = new Tables(this.object);
  }

  close(): void {
    this.object.close();
  }

  /** As after loading, which takes long. */
  clear(): void {
    const { guests, services, vms, interfaces, taps, control, flows } = this.tables;
    this.links = [];
    this.fdb = [];
    this.neighbours = [];
    const { specs, index, associations, affinities } = services;
    const tables = [guests.specs, specs, index, associations, affinities, vms, ...flows.all];
    for (const { map } of tables) for (const key of keysOf(map)) map.delete(key);
    for (const { ifindex, slot } of interfaces.list()) {
      interfaces.delete(ifindex);
      taps.set(slot, {});
    }
    for (const cell of guests.inUse().keys()) guests.cells.set(cell, {});
    for (const [number, entry] of services.entries.entries()) {
      if (!encode("service", entry).equals(NOTHING)) services.entries.set(number, {});
    }
    control.set({ vm_cells: 0 });
  }

  get around(): Surroundings {
    const netlink = { links: () => this.links, fdb: () => this.fdb, neighbours: () => this.neighbours };
    // Nobody holds it.
    const instance = { pinRoot: join(tmpdir(), `lasthop-nobody-${process.pid}`) };
    return { tables: this.tables, netlink, instance } as unknown as Surroundings;
  }

  /** An attached tap on the bridge: its slot is its ifindex - 100. */
  addTap(ifindex: number, name: string, { zone = 0, kind = "tun" } = {}): void {
    this.links.push({
      ifindex,
      name,
      kind,
      mac: `fe:00:00:00:${hex(ifindex >> 8)}:${hex(ifindex & 255)}`,
      lower: null,
      flags: { up: true, running: true, loopback: false },
    } as Link);
    this.tables.interfaces.set(ifindex, {
      name,
      zone,
      slot: ifindex - 100,
      role: ROLE.TAP,
      l3_ifindex: BRIDGE,
      host_mac: parseMac(HOST_MAC)!,
    });
  }

  /** As when its VM is switched off. */
  removeTap(ifindex: number): void {
    this.links = this.links.filter((link) => link.ifindex !== ifindex);
    this.tables.interfaces.delete(ifindex);
    this.tables.taps.set(ifindex - 100, {});
  }

  /** As the hot path enters one that it sees on a tap. */
  see(ifindex: number, mac: string, id: number, zone = 0): void {
    const octets = parseMac(mac)!;
    this.tables.vms.set({ zone, mac: octets }, { id, ifindex });
    if (this.tables.taps.get(ifindex - 100)!.vm === 0) {
      this.tables.taps.set(ifindex - 100, { mac: octets, vm: id, claimed: 1 });
    }
  }

  /** With what the configuration leaves out. */
  setVm(config: Partial<VmConfig> & { name: string }, zone = 0, origin: number = ORIGIN.CONFIG): void {
    runSteps(setVm(this.around, config.name, vmSpecOf(vm.parse(config), zone, origin)));
  }

  removeVm(name: string): void {
    runSteps(removeVm(this.around, name));
  }

  setOperatorState(name: string, state: number): void {
    runSteps(setOperatorState(this.around, name, state));
  }

  setService(config: object, zone = 0, origin: number = ORIGIN.CONFIG): void {
    const parsed: ServiceConfig = service.parse(config);
    runSteps(setService(this.around, parsed.name, serviceSpecOf(parsed, zone, origin)));
  }

  removeService(name: string): void {
    runSteps(removeService(this.around, name));
  }

  settle(): Settled {
    return atOnce(settleServicesInPieces(this.around));
  }

  /** Of a VM by name; throws if it has no cell. */
  vm(name: string): { cell: number; vm: VmCell } {
    const { id } = this.tables.guests.specs.get({ name })!;
    return this.tables.guests.cellOf(id)!;
  }

  /** Index of a service in services. */
  indexOf(name: string): number {
    return this.tables.services.specs.get({ name })!.index;
  }

  poolOf(service: string): number {
    return this.tables.services.entries.get(this.indexOf(service))!.pool;
  }

  /** What stands in the lines of a pool, weights too. */
  cells(pool: number, numbers?: number): number[] {
    const { line, size } = this.tables.services.pools.get(pool)!;
    return [...this.tables.services.readCells(line, numbers ?? size)];
  }
}

function keysOf(map: TableMap): Buffer[] {
  const { keySize } = map.info();
  const found: Buffer[] = [];
  for (const { count, keys } of map.batches(256)) {
    for (let place = 0; place < count; place++) {
      found.push(Buffer.from(keys.subarray(place * keySize, (place + 1) * keySize)));
    }
  }
  return found;
}

function hex(value: number): string {
  return value.toString(16).padStart(2, "0");
}
