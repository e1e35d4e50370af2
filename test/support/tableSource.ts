// SPDX-License-Identifier: Apache-2.0
// The tables of maps.h without programs: in the kernel, or in memory for tests without root.

import { type StructName, sizeOf } from "../../src/abi/codec.ts";
import {
  FLOW_STATES,
  LAST_HOPS_MAX,
  NEAR_INTERFACES,
  POOL_LINES_MAX,
  POOLS_MAX,
  REASONS,
  TABLES,
  VMS_MAX,
} from "../../src/abi/layout.gen.ts";
import {
  BPF_ANY,
  BPF_F_NO_PREALLOC,
  BPF_NOEXIST,
  BpfError,
  BpfMap,
  MAP_TYPE,
} from "../../src/libbpf/index.ts";
import type { TableMap, TableSource } from "../../src/tables/index.ts";

type Size = StructName | number;

interface Shape {
  type: keyof typeof MAP_TYPE;
  key: Size;
  value: Size;
  entries: number;
}

const LAST_HOPS = 256;
const SLOTS = 8;

const SHAPES: Readonly<Record<string, Shape>> = {
  flows4: { type: "LRU_HASH", key: "flow4_key", value: "flow", entries: 4096 },
  flows6: { type: "LRU_HASH", key: "flow6_key", value: "flow", entries: 4096 },
  embryos4: { type: "LRU_HASH", key: "flow4_key", value: "embryo", entries: 4096 },
  embryos6: { type: "LRU_HASH", key: "flow6_key", value: "embryo", entries: 4096 },
  last_hops: { type: "ARRAY", key: 4, value: "last_hop", entries: LAST_HOPS },
  last_hop_alias: { type: "ARRAY", key: 4, value: 4, entries: LAST_HOPS },
  last_hop_free: { type: "QUEUE", key: 0, value: 4, entries: LAST_HOPS },
  last_hop_index: { type: "HASH", key: "last_hop_key", value: 4, entries: LAST_HOPS },
  last_hop_stats: { type: "PERCPU_ARRAY", key: 4, value: "last_hop_stats", entries: LAST_HOPS },
  last_hop_refs: { type: "ARRAY", key: 4, value: 4, entries: 2 * LAST_HOPS_MAX },
  verdicts: { type: "PERCPU_ARRAY", key: 4, value: "verdict_count", entries: SLOTS * REASONS },
  interfaces: { type: "HASH", key: 4, value: "interface", entries: 64 },
  near_interfaces: { type: "ARRAY", key: 4, value: "interface", entries: NEAR_INTERFACES },
  taps: { type: "ARRAY", key: 4, value: "tap", entries: SLOTS },
  budgets: { type: "ARRAY", key: 4, value: "budget", entries: SLOTS },
  egress_devices: { type: "DEVMAP", key: 4, value: 4, entries: SLOTS },
  vms: { type: "HASH", key: "vm_key", value: "vm", entries: 1024 },
  fragments: { type: "LRU_HASH", key: "fragment_key", value: "fragment", entries: 1024 },
  traces: { type: "HASH", key: "flow6_key", value: 4, entries: 64 },
  allocations: { type: "ARRAY", key: 4, value: "allocations", entries: 1 },
  control: { type: "ARRAY", key: 4, value: "control", entries: 1 },
  exclusions: { type: "ARRAY", key: 4, value: "exclusions", entries: SLOTS },
  devices: { type: "HASH", key: "device_key", value: "device", entries: 64 },
  zones: { type: "HASH", key: 4, value: 4, entries: 64 },
  zone_reports: { type: "ARRAY", key: 4, value: "zone_report", entries: 64 * TABLES * 2 },
  label_stacks: { type: "HASH", key: "label_stack", value: 4, entries: 64 },
  flow_balance: { type: "PERCPU_ARRAY", key: 4, value: 8, entries: TABLES * FLOW_STATES },
  flow_removals: { type: "ARRAY", key: 4, value: 8, entries: TABLES * FLOW_STATES },
  tunnels: { type: "HASH", key: 4, value: "tunnel", entries: 64 },
  tunnel_index: { type: "HASH", key: "tunnel_index_key", value: 4, entries: 64 },
  tunnel_stats: { type: "PERCPU_HASH", key: 4, value: "tunnel_stats", entries: 64 },
  identity: { type: "ARRAY", key: 4, value: "identity", entries: 1 },
  layout: { type: "ARRAY", key: 4, value: "layout", entries: 1 },
  sweep_reports: { type: "ARRAY", key: 4, value: "sweep_report", entries: TABLES * 2 },
  sweep_control: { type: "ARRAY", key: 4, value: "sweep_control", entries: 1 },
  sweep_work: { type: "ARRAY", key: 4, value: "sweep_work", entries: TABLES },
  // As many cells as there are: a VM's are found by its id.
  vm_cells: { type: "ARRAY", key: 4, value: "vm_cell", entries: VMS_MAX },
  vm_stats: { type: "PERCPU_ARRAY", key: 4, value: "vm_stats", entries: VMS_MAX },
  vm_flows: { type: "ARRAY", key: 4, value: 4, entries: VMS_MAX },
  vm_refs: { type: "ARRAY", key: 4, value: 4, entries: VMS_MAX * 4 },
  vm_specs: { type: "HASH", key: "vm_name", value: "vm_spec", entries: 1024 },
  service_specs: { type: "HASH", key: "service_name", value: "service_spec", entries: 1024 },
  service_index: { type: "LPM_TRIE", key: "service_key", value: 4, entries: 4096 },
  services: { type: "ARRAY", key: 4, value: "service", entries: 1024 },
  service_stats: { type: "PERCPU_ARRAY", key: 4, value: "service_stats", entries: 1024 },
  pools: { type: "ARRAY", key: 4, value: "pool", entries: POOLS_MAX },
  pool_lines: { type: "ARRAY", key: 4, value: "pool_line", entries: POOL_LINES_MAX },
  pool_cursors: { type: "ARRAY", key: 4, value: 4, entries: POOLS_MAX },
  associations: { type: "LPM_TRIE", key: "association_key", value: 4, entries: 4096 },
  affinities: { type: "LRU_HASH", key: "affinity_key", value: "affinity", entries: 1024 },
};

export interface TestSource extends TableSource {
  close(): void;
}

const bytes = (size: Size) => (typeof size === "number" ? size : sizeOf(size));

export function kernelSource(entries: Record<string, number> = {}): TestSource {
  const maps = new Map<string, BpfMap>();
  return {
    map(name) {
      let map = maps.get(name);
      if (!map) {
        const shape = SHAPES[name]!;
        map = BpfMap.create({
          type: MAP_TYPE[shape.type],
          name,
          keySize: bytes(shape.key),
          valueSize: bytes(shape.value),
          maxEntries: entries[name] ?? shape.entries,
          ...(shape.type === "LPM_TRIE" && { flags: BPF_F_NO_PREALLOC }),
        });
        maps.set(name, map);
      }
      return map;
    },
    close() {
      for (const map of maps.values()) map.close();
    },
  };
}

export function memorySource(): TestSource {
  const maps = new Map<string, TableMap>();
  return {
    map(name) {
      let map = maps.get(name);
      if (!map) {
        map = new MemoryMap(name, SHAPES[name]!);
        maps.set(name, map);
      }
      return map;
    },
    close() {},
  };
}

const CPUS = 2;
const EEXIST = 17;

/**
 * What BpfMap does, as far as test/kernel/tables.test.ts proves by running the same tests over both. Of a trie only the
 * very key is found, no longer one.
 */
class MemoryMap implements TableMap {
  readonly valueBytes: number;
  readonly #name: string;
  readonly #shape: Shape;
  readonly #isArray: boolean;
  /** Of an array those that were ever written. */
  readonly #entries = new Map<string, Buffer>();
  readonly #queue: Buffer[] = [];

  constructor(name: string, shape: Shape) {
    this.#name = name;
    this.#shape = shape;
    this.valueBytes = bytes(shape.value) * (shape.type.startsWith("PERCPU") ? CPUS : 1);
    this.#isArray = shape.type.endsWith("ARRAY");
  }

  /** A value that may be written to. */
  #entry(key: Uint8Array): Buffer | undefined {
    const found = this.#entries.get(hex(key));
    if (found || !this.#isArray || Buffer.from(key).readUInt32LE() >= this.#shape.entries) return found;
    return Buffer.alloc(this.valueBytes);
  }

  info() {
    const { type, key, value, entries } = this.#shape;
    const sizes = { keySize: bytes(key), valueSize: bytes(value), maxEntries: entries };
    return { id: 0, flags: 0, name: this.#name, type: MAP_TYPE[type], ...sizes };
  }

  lookup(key: Uint8Array): Buffer | undefined {
    const value = this.#entry(key);
    return value && Buffer.from(value);
  }

  lookupInto(key: Uint8Array, value: Uint8Array): boolean {
    const found = this.#entry(key);
    if (found) value.set(found);
    return found !== undefined;
  }

  update(key: Uint8Array, value: Uint8Array, flags = BPF_ANY): void {
    if (flags === BPF_NOEXIST && this.#entry(key)) {
      throw new BpfError(`cannot write in the map ${this.#name}`, EEXIST);
    }
    this.#entries.set(hex(key), Buffer.from(value));
  }

  delete(key: Uint8Array): boolean {
    return this.#entries.delete(hex(key));
  }

  push(value: Uint8Array): void {
    this.#queue.push(Buffer.from(value));
  }

  pop(): Buffer | undefined {
    return this.#queue.shift();
  }

  *batches(chunk: number, from = 0) {
    const all = this.#isArray ? undefined : [...this.#entries];
    const length = all?.length ?? this.#shape.entries;
    for (let first = from; first < length; first += chunk) {
      const count = Math.min(chunk, length - first);
      const part = all?.slice(first, first + chunk) ?? this.#rows(first, count);
      const keys = Buffer.concat(part.map(([key]) => Buffer.from(key, "hex")));
      const values = Buffer.concat(part.map(([, value]) => value));
      yield { count, keys, values, progress: (first + count) / length };
    }
  }

  #rows(first: number, count: number): [key: string, value: Buffer][] {
    return Array.from({ length: count }, (_, place) => {
      const key = Buffer.alloc(4);
      key.writeUInt32LE(first + place);
      return [key.toString("hex"), this.#entry(key)!];
    });
  }

  takeInto(key: Uint8Array, value: Uint8Array): boolean {
    return this.lookupInto(key, value) && this.delete(key);
  }

  updateBatch(keys: Uint8Array, values: Uint8Array, count: number): number {
    const size = bytes(this.#shape.key);
    for (let index = 0; index < count; index++) {
      const value = values.subarray(index * this.valueBytes, (index + 1) * this.valueBytes);
      this.update(keys.subarray(index * size, (index + 1) * size), value);
    }
    return count;
  }
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("hex");
}
