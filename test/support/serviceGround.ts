// SPDX-License-Identifier: Apache-2.0
// Tables in memory with VMs and services in them, as they stand when everything is settled.

import { currentTick, decode, encode, type StructInput, secondsToTicks } from "../../src/abi/codec.ts";
import { ORIGIN, REASONS, ROLE, SERVICE_KEY_BITS, VM_STATE } from "../../src/abi/layout.gen.ts";
import { mapIpv4, parseAddress, parseMac } from "../../src/addresses.ts";
import { serviceSpecOf, vmSpecOf } from "../../src/controller/serviceSpec.ts";
import { serviceConfigOf, vmConfigOf } from "../../src/ops/serviceSpecs.ts";
import type { ServiceSpecInput, VmSpecInput } from "../../src/ops/types.ts";
import { type InterfaceEntry, Tables } from "../../src/tables/index.ts";
import { memorySource } from "./tableSource.ts";

/** The address of services. */
export const VIP = "192.0.2.80";

/** Of a VM by its number, which is its id and its cell too. */
export const MAC = (number: number): string => `02:00:00:00:01:0${number}`;
/** Index and slot of its tap, which is called vnetNUMBER. */
export const TAP = (number: number): number => 20 + number;

export interface VmAsked extends VmSpecInput {
  state?: number;
  cause?: number;
  flags?: number;
}

export class ServiceGround {
  readonly source = memorySource();
  readonly tables = new Tables(this.source);
  readonly attached: InterfaceEntry[] = [];

  constructor() {
    this.tables.control.set({ vm_cells: 1 });
  }

  /** A tap, or what else `more` makes of it; its slot is its index. */
  attach(name: string, ifindex: number, more: StructInput<"interface"> = {}): void {
    const entry = { name, ifindex, l3_ifindex: ifindex, slot: ifindex, role: ROLE.TAP, ...more };
    this.tables.interfaces.set(ifindex, entry);
    this.attached.push(decode("interface", encode("interface", entry)));
  }

  /** Up, unless something else is said. Of number 0 nothing is known. */
  addVm(name: string, number: number, asked: VmAsked = {}): void {
    const { state = VM_STATE.UP, cause = 0, flags = 0, ...spec } = asked;
    const { guests, vms } = this.tables;
    const zone = spec.zone ?? 0;
    const tap = number === 0 ? {} : { tap: `vnet${number}` };
    const entry = vmSpecOf(vmConfigOf(name, { ...tap, ...spec }), zone, ORIGIN.MANUAL);
    if (number === 0) {
      guests.specs.set({ name }, { ...entry, state, cause });
      return;
    }
    const mac = parseMac(MAC(number))!;
    const found = { id: number, ifindex: TAP(number), mac, state };
    guests.specs.set({ name }, { ...entry, ...found, cause, changed: currentTick() });
    guests.cells.set(number, { ...found, slot: TAP(number), flags });
    vms.set({ zone, mac }, { id: number, ifindex: TAP(number) });
  }

  /** TCP to VIP; of its keys only that of this one address. */
  addService(name: string, index: number, spec: Partial<ServiceSpecInput> = {}): void {
    const { services } = this.tables;
    const zone = spec.zone ?? 0;
    const config = serviceConfigOf(name, { address: VIP, pool: [{ vm: "web1" }], ...spec });
    services.specs.set({ name }, { ...serviceSpecOf(config, zone, ORIGIN.MANUAL), index });
    const place = { zone, proto: 6, port: spec.port ?? 0, address: octets(VIP) };
    services.index.set({ prefix_bits: SERVICE_KEY_BITS + 128, ...place }, index);
    services.entries.set(index, { affinity_ticks: secondsToTicks(config.affinity_seconds) });
  }

  /** Packets that were counted for a reason. */
  count(slot: number, reason: number, packets: number): void {
    const map = this.source.map("verdicts");
    const key = Buffer.alloc(4);
    key.writeUInt32LE(slot * REASONS + reason);
    const value = Buffer.alloc(map.valueBytes);
    value.writeBigUInt64LE(BigInt(packets));
    map.update(key, value);
  }
}

/** IPv4 mapped. */
export function octets(address: string): Buffer {
  return mapIpv4(parseAddress(address)!);
}
