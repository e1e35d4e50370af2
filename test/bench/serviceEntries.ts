// SPDX-License-Identifier: Apache-2.0
// Services as the hot path reads them, entered by hand: as many as wanted, and gone again at once.

import { VM_FLAG, VM_STATE } from "../../src/abi/layout.gen.ts";
import { mapIpv4, parseIpv4, parseMac } from "../../src/addresses.ts";
import { type Backend, maglevSize, maglevTable } from "../../src/controller/maglev.ts";
import { cellsFor, linesOf, type Tables } from "../../src/tables/index.ts";
import { type Lane, VM_PORT } from "./lanes.ts";

const IPPROTO_TCP = 6;
/** Of service_key, and of an IPv4 address in it. */
const PREFIX_BITS = 64 + 128;
const VMS = 8;

/** Of a service with 8 VMs. */
export const DISTRIBUTED = "10.201.0.1";
/** Of one whose only VM is the lane's. */
export const SINGLE = "10.201.0.2";

const INDEX = { [DISTRIBUTED]: 1, [SINGLE]: 2 } as const;
const POOL = { distributed: 1, single: 2 } as const;

export class ServiceEntries {
  readonly #tables: Tables;
  readonly #cells: number[] = [];
  #present = 0;

  /** The lane's VM must have spoken. The other VMs are behind its tap too. */
  constructor(tables: Tables, lane: Lane) {
    this.#tables = tables;
    const tap = tables.interfaces.get(lane.ends.tap)!;
    const mac = parseMac(lane.mac("vm"))!;
    const known = tables.vms.get({ zone: tap.zone, mac });
    if (!known) throw new Error(`${lane.name}: its VM is not known`);
    const place = { ifindex: lane.ends.tap, slot: tap.slot, state: VM_STATE.UP, flags: VM_FLAG.XDP };
    for (let number = 0; number < VMS; number++) {
      const id = number === 0 ? known.id : 2 ** 31 + number * 1001;
      const own = Buffer.from(mac);
      if (number > 0) own[3] = number;
      const cell = cellsFor(id)[0]!;
      tables.guests.cells.set(cell, { ...place, id, mac: own });
      this.#cells.push(cell);
    }
    this.#fillPools();
  }

  #fillPools(): void {
    const { services } = this.#tables;
    const backends = this.#cells.map<Backend>((cell, number) => ({ cell, key: `vm${number}`, weight: 1 }));
    const size = maglevSize(
      VMS,
      backends.map(({ weight }) => weight),
    );
    const single = linesOf(size) + 1;
    services.writeCells(1, maglevTable(backends, size));
    services.writeCells(single, Uint16Array.of(this.#cells[0]!));
    services.pools.set(POOL.distributed, { line: 1, size });
    services.pools.set(POOL.single, { line: single, size: 1 });
  }

  /** As if just so many had been configured; with none no VM is in use either. False: there are so many already. */
  present(count: number): boolean {
    if (count === this.#present) return false;
    for (let index = this.#present + 1; index <= count; index++) this.#enter(index);
    for (let index = this.#present; index > count; index--) this.#remove(index);
    if ((count === 0) !== (this.#present === 0)) {
      this.#tables.control.set({ vm_cells: count === 0 ? 0 : VMS });
    }
    this.#present = count;
    return true;
  }

  clear(): void {
    this.present(0);
    for (const cell of this.#cells) this.#tables.guests.cells.set(cell, {});
    for (const pool of Object.values(POOL)) this.#tables.services.pools.set(pool, {});
  }

  #enter(index: number): void {
    const { services } = this.#tables;
    const pool = index === INDEX[SINGLE] ? POOL.single : POOL.distributed;
    services.entries.set(index, { pool });
    services.index.set(keyOf(index), index);
  }

  #remove(index: number): void {
    const { services } = this.#tables;
    services.index.delete(keyOf(index));
    services.entries.set(index, {});
  }
}

function keyOf(index: number) {
  const address = `10.201.${index >> 8}.${index & 0xff}`;
  return {
    prefix_bits: PREFIX_BITS,
    proto: IPPROTO_TCP,
    port: VM_PORT,
    address: mapIpv4(parseIpv4(address)!),
  };
}
