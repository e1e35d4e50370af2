// SPDX-License-Identifier: Apache-2.0
// Services and the VMs behind them: what the operator named, what the hot path reads, and what it counted.

import { decode, encode, type StructInput, type StructName, type StructValue, sizeOf } from "../abi/codec.ts";
import { POOL_LINE_CELLS, VM_CELL_TRIES, VM_SPEC, VMS_MAX } from "../abi/layout.gen.ts";
import { BATCH_ENTRIES, type TableMap, type TableSource } from "./source.ts";
import { StructTable } from "./structTable.ts";

export type VmSpec = StructValue<"vm_spec">;
export type VmSpecInput = StructInput<"vm_spec">;
export type VmCell = StructValue<"vm_cell">;
export type VmStats = StructValue<"vm_stats">;
export type ServiceSpec = StructValue<"service_spec">;
export type ServiceSpecInput = StructInput<"service_spec">;
export type ServiceStats = StructValue<"service_stats">;
export type ServiceKey = StructValue<"service_key">;
export type Pool = StructValue<"pool">;

const LINE_BYTES = sizeOf("pool_line");
/** First row of vm_refs for flows that VMs opened. */
const OPENED_REFS = 2 * VMS_MAX;
const SPEC_BYTES = sizeOf("vm_spec");
const ID_OFFSET = VM_SPEC.fields.id.offset;
/** Entries of 2 KB. */
const SPECS_A_BATCH = 256;

/** Services: whose requests they are, and to whom they may go. */
export class ServiceTables {
  /** Zone, protocol, port and longest prefix → index of the service. */
  readonly index: StructTable<"service_key", "u32">;
  /** Index → what the hot path does; index 0 is nobody's. */
  readonly entries: StructTable<"u32", "service">;
  readonly pools: StructTable<"u32", "pool">;
  readonly lines: StructTable<"u32", "pool_line">;
  /** Service and longest prefix of the client → index of a pool. */
  readonly associations: StructTable<"association_key", "u32">;
  readonly affinities: StructTable<"affinity_key", "affinity">;
  /** By name, as the operator gave them. */
  readonly specs: StructTable<"service_name", "service_spec">;
  readonly #stats: PerCpu<"service_stats">;

  constructor(source: TableSource) {
    this.index = new StructTable(source, "service_index", "service_key", "u32");
    this.entries = new StructTable(source, "services", "u32", "service");
    this.pools = new StructTable(source, "pools", "u32", "pool");
    this.lines = new StructTable(source, "pool_lines", "u32", "pool_line");
    this.associations = new StructTable(source, "associations", "association_key", "u32");
    this.affinities = new StructTable(source, "affinities", "affinity_key", "affinity");
    this.specs = new StructTable(source, "service_specs", "service_name", "service_spec");
    this.#stats = new PerCpu(source, "service_stats");
  }

  /** By index of the service, summed over the CPUs. */
  stats(index: number): ServiceStats {
    return this.#stats.sum(index);
  }

  /** For an index that another service gets. */
  clearStats(index: number): void {
    this.#stats.clear(index);
  }

  /** What stands in the lines of a pool: `count` numbers, cells or weights. */
  readCells(line: number, count: number): Uint16Array {
    const cells = new Uint16Array(count);
    let place = 0;
    if (count === 0) return cells;
    for (const { count: lines, values } of this.lines.map.batches(linesOf(count), line)) {
      const there = Math.min(count - place, lines * POOL_LINE_CELLS);
      for (let at = 0; at < there; at++) cells[place + at] = values.readUInt16LE(at * 2);
      place += there;
      if (place >= count) break;
    }
    return cells;
  }

  /** Fills whole lines from `line` on; what is behind the last number in its line becomes 0. */
  writeCells(line: number, cells: Uint16Array): void {
    const lines = linesOf(cells.length);
    const chunk = Math.min(lines, BATCH_ENTRIES);
    const keys = Buffer.alloc(chunk * 4);
    const values = Buffer.alloc(chunk * LINE_BYTES);
    for (let first = 0; first < lines; first += chunk) {
      const count = Math.min(chunk, lines - first);
      for (let index = 0; index < count; index++) keys.writeUInt32LE(line + first + index, index * 4);
      const part = cells.subarray(first * POOL_LINE_CELLS, (first + count) * POOL_LINE_CELLS);
      values.fill(0);
      for (let at = 0; at < part.length; at++) values.writeUInt16LE(part[at]!, at * 2);
      this.lines.map.updateBatch(keys, values, count);
    }
  }
}

/** Lines that so many numbers take. */
export function linesOf(count: number): number {
  return Math.ceil(count / POOL_LINE_CELLS);
}

/** VMs that the operator named, and the cells in which the hot path finds those that get frames. */
export class VmTables {
  readonly cells: StructTable<"u32", "vm_cell">;
  /** By name, as the operator gave them. */
  readonly specs: StructTable<"vm_name", "vm_spec">;
  /** Cell → flows of services that are open. */
  readonly flows: StructTable<"u32", "u32">;
  /** Flows of services of each cell as sweeps counted them, in two halves: SweepTables.endedVmRefs says in which. */
  readonly refs: StructTable<"u32", "u32">;
  readonly #stats: PerCpu<"vm_stats">;

  constructor(source: TableSource) {
    this.cells = new StructTable(source, "vm_cells", "u32", "vm_cell");
    this.specs = new StructTable(source, "vm_specs", "vm_name", "vm_spec");
    this.flows = new StructTable(source, "vm_flows", "u32", "u32");
    this.refs = new StructTable(source, "vm_refs", "u32", "u32");
    this.#stats = new PerCpu(source, "vm_stats");
  }

  /** By cell, summed over the CPUs. */
  stats(cell: number): VmStats {
    return this.#stats.sum(cell);
  }

  /** For a cell that another VM gets. */
  clearStats(cell: number): void {
    this.#stats.clear(cell);
  }

  /** As the hot path finds a VM by its id. */
  cellOf(id: number): { cell: number; vm: VmCell } | undefined {
    if (id === 0) return undefined;
    for (const cell of cellsFor(id)) {
      const vm = this.cells.get(cell);
      if (vm?.id === id) return { cell, vm };
    }
    return undefined;
  }

  /** Open flows of services by cell, as programs count them: one that was counted twice may make it negative. */
  readFlows(): Int32Array {
    return readNumbers(this.flows.map, 0);
  }

  /** One half of what sweeps counted. */
  readRefs(base: number): Int32Array {
    return readNumbers(this.refs.map, base);
  }

  /** Whether the same sweep found any flow of this cell's VM, of a service or opened by itself. */
  isReferred(base: number, cell: number): boolean {
    return [base, OPENED_REFS + base].some((first) => this.refs.get(first + cell) !== 0);
  }

  /** Sets one half of what sweeps counted to 0. */
  clearRefs(base: number): void {
    const keys = Buffer.alloc(BATCH_ENTRIES * 4);
    const zeros = Buffer.alloc(BATCH_ENTRIES * 4);
    for (const half of [base, OPENED_REFS + base]) {
      for (let first = 0; first < VMS_MAX; first += BATCH_ENTRIES) {
        for (let index = 0; index < BATCH_ENTRIES; index++)
          keys.writeUInt32LE(half + first + index, index * 4);
        this.refs.map.updateBatch(keys, zeros, BATCH_ENTRIES);
      }
    }
  }

  /** Ids of those that have a name, whatever else their entries say. */
  namedIds(): Set<number> {
    const ids = new Set<number>();
    for (const { count, values } of this.specs.map.batches(SPECS_A_BATCH)) {
      for (let place = 0; place < count; place++)
        ids.add(values.readUInt32LE(place * SPEC_BYTES + ID_OFFSET));
    }
    return ids;
  }

  /** Those in use, by cell. */
  inUse(): Map<number, VmCell> {
    const found = new Map<number, VmCell>();
    const size = sizeOf("vm_cell");
    let first = 0;
    for (const { count, values } of this.cells.map.batches(BATCH_ENTRIES)) {
      for (let index = 0; index < count; index++) {
        if (values.readUInt32LE(index * size) === 0) continue;
        found.set(first + index, decode("vm_cell", values, index * size));
      }
      first += count;
    }
    return found;
  }
}

/** VMS_MAX of them, from `base` on. */
function readNumbers(map: TableMap, base: number): Int32Array {
  const found = new Int32Array(VMS_MAX);
  let place = 0;
  for (const { count, values } of map.batches(BATCH_ENTRIES, base)) {
    for (let index = 0; index < count && place < VMS_MAX; index++) {
      found[place++] = values.readInt32LE(index * 4);
    }
    if (place >= VMS_MAX) break;
  }
  return found;
}

/** Where a VM of this id may stand, in the order in which programs look. */
export function cellsFor(id: number): number[] {
  return Array.from({ length: VM_CELL_TRIES }, (_, place) => (id + place) % VMS_MAX);
}

/** A per-CPU array of one struct whose fields are counters, but for last_seen. */
class PerCpu<S extends StructName & `${string}_stats`> {
  readonly #map: TableMap;
  readonly #struct: S;

  constructor(source: TableSource, struct: S) {
    this.#map = source.map(struct);
    this.#struct = struct;
  }

  sum(row: number): StructValue<S> {
    const size = sizeOf(this.#struct);
    const values = this.#map.lookup(u32(row));
    const sum = decode(this.#struct, encode(this.#struct, {})) as Record<string, number>;
    for (let offset = 0; values && offset + size <= values.length; offset += size) {
      const value = decode(this.#struct, values, offset) as Record<string, number>;
      for (const name in sum) {
        sum[name] = name === "last_seen" ? Math.max(sum[name]!, value[name]!) : sum[name]! + value[name]!;
      }
    }
    return sum as StructValue<S>;
  }

  clear(row: number): void {
    this.#map.update(u32(row), Buffer.alloc(this.#map.valueBytes));
  }
}

function u32(value: number): Buffer {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32LE(value);
  return buffer;
}
