// SPDX-License-Identifier: Apache-2.0
import { LasthopError } from "../errors.ts";
import { ERRNO } from "../libc/index.ts";
import { bpfError, check } from "./error.ts";
import { Handle, type Ownership, openId, openPin, readInfo } from "./handle.ts";
import { native, possibleCpus } from "./native.ts";
import { Struct } from "./struct.ts";

/** enum bpf_map_type, as far as we meet them. */
export const MAP_TYPE = {
  HASH: 1,
  ARRAY: 2,
  PROG_ARRAY: 3,
  PERCPU_HASH: 5,
  PERCPU_ARRAY: 6,
  LRU_HASH: 9,
  LRU_PERCPU_HASH: 10,
  LPM_TRIE: 11,
  ARRAY_OF_MAPS: 12,
  HASH_OF_MAPS: 13,
  DEVMAP: 14,
  CPUMAP: 16,
  PERCPU_CGROUP_STORAGE: 21,
  QUEUE: 22,
  STACK: 23,
  DEVMAP_HASH: 25,
  RINGBUF: 27,
} as const;

const PER_CPU_TYPES: ReadonlySet<number> = new Set([
  MAP_TYPE.PERCPU_HASH,
  MAP_TYPE.PERCPU_ARRAY,
  MAP_TYPE.LRU_PERCPU_HASH,
  MAP_TYPE.PERCPU_CGROUP_STORAGE,
]);

/** Flags of update: create or change, only create (EEXIST), only change (ENOENT). */
export const BPF_ANY = 0;
export const BPF_NOEXIST = 1;
export const BPF_EXIST = 2;

/** Map flags that we use. */
export const BPF_F_NO_PREALLOC = 1;

export interface MapSpec {
  /** enum bpf_map_type: one of MAP_TYPE. */
  type: number;
  /** At most 15 characters of letters, digits, `_` and `.`. */
  name: string;
  keySize: number;
  valueSize: number;
  maxEntries: number;
  flags?: number;
}

export interface MapInfo extends Required<MapSpec> {
  id: number;
}

/** One step of a walk. The buffers are reused by the next step; only the first `count` entries are valid. */
export interface Batch {
  count: number;
  keys: Buffer;
  values: Buffer;
  /** How much of the map has been walked, 0 to 1. Entries of a hash lie evenly, so this tells how many there are. */
  progress: number;
}

const { ENOENT, ENOSPC } = ERRNO;

const DEFAULT_CHUNK = 32_768;

/** A map. Keys and values are bytes; a codec above gives them types. */
export class BpfMap extends Handle {
  readonly type: number;
  readonly name: string;
  readonly keySize: number;
  readonly maxEntries: number;
  /** Bytes of a value as user space sees it: per-CPU maps have one value a possible CPU, each padded to 8. */
  readonly valueBytes: number;

  /** For the classes of this folder: the descriptor becomes this object's (unless borrowed). */
  constructor(fd: number, ownership: Ownership, spec: MapSpec) {
    super("map", fd, spec.name, ownership);
    this.type = spec.type;
    this.name = spec.name;
    this.keySize = spec.keySize;
    this.maxEntries = spec.maxEntries;
    this.valueBytes = PER_CPU_TYPES.has(spec.type)
      ? Math.ceil(spec.valueSize / 8) * 8 * possibleCpus()
      : spec.valueSize;
  }

  /** Wraps a descriptor that the caller hands over; closed here if its info cannot be read. */
  static fromFd(fd: number, ownership: Ownership = "owned", name?: string): BpfMap {
    const bare = new BareMap(fd, name ?? `fd ${fd}`, ownership);
    try {
      const info = mapInfo(bare);
      return new BpfMap(fd, ownership, { ...info, name: name ?? info.name });
    } catch (error) {
      bare.close();
      throw error;
    }
  }

  /** Makes a map that no object file describes. Throws E_BPF, E_NOT_ROOT. (bpf_map_create) */
  static create(spec: MapSpec): BpfMap {
    const opts = new Struct("bpf_map_create_opts").setU32("map_flags", spec.flags ?? 0);
    const fd = check(
      native.bpf_map_create(spec.type, spec.name, spec.keySize, spec.valueSize, spec.maxEntries, opts.bytes),
      () =>
        `cannot create the map ${spec.name} (type ${spec.type}, key ${spec.keySize}, value ${spec.valueSize} bytes, ${spec.maxEntries} entries)`,
    );
    return new BpfMap(fd, "owned", spec);
  }

  /** Opens a pin. Throws E_BPF: ENOENT if there is none. (bpf_obj_get) */
  static openPinned(path: string): BpfMap {
    return BpfMap.fromFd(openPin("map", path));
  }

  /** Opens a map by its id. Needs CAP_SYS_ADMIN. Throws E_BPF: ENOENT if there is none. (bpf_map_get_fd_by_id) */
  static fromId(id: number): BpfMap {
    return BpfMap.fromFd(openId("map", id, native.bpf_map_get_fd_by_id));
  }

  /** What the kernel knows of it; the kernel cuts names after 15 bytes. (bpf_obj_get_info_by_fd) */
  info(): MapInfo {
    return mapInfo(this);
  }

  /** The value of a key, in a buffer of its own; undefined if there is none. (bpf_map_lookup_elem) */
  lookup(key: Uint8Array): Buffer | undefined {
    const value = Buffer.allocUnsafe(this.valueBytes);
    return this.lookupInto(key, value) ? value : undefined;
  }

  /** Reads the value of a key into a buffer of `valueBytes`; false if there is none. (bpf_map_lookup_elem) */
  lookupInto(key: Uint8Array, value: Uint8Array): boolean {
    this.#checkKey(key);
    this.#checkValue(value);
    const result = native.bpf_map_lookup_elem(this.fd, key, value);
    if (result >= 0) return true;
    if (result === -ENOENT) return false;
    throw bpfError(`cannot look up ${hex(key)} in the map ${this.label}`, result);
  }

  /**
   * Writes an entry. Flags: BPF_ANY, BPF_NOEXIST (EEXIST if it is there), BPF_EXIST (ENOENT if it is not).
   * Throws E_BPF: E2BIG if a hash is full. (bpf_map_update_elem)
   */
  update(key: Uint8Array, value: Uint8Array, flags = BPF_ANY): void {
    this.#checkKey(key);
    this.#checkValue(value);
    const result = native.bpf_map_update_elem(this.fd, key, value, flags);
    if (result < 0) throw bpfError(`cannot write ${hex(key)} in the map ${this.label}`, result);
  }

  /** Removes an entry; false if it was not there. (bpf_map_delete_elem) */
  delete(key: Uint8Array): boolean {
    this.#checkKey(key);
    const result = native.bpf_map_delete_elem(this.fd, key);
    if (result >= 0) return true;
    if (result === -ENOENT) return false;
    throw bpfError(`cannot delete ${hex(key)} in the map ${this.label}`, result);
  }

  /**
   * Removes an entry and reads what it was into a buffer of `valueBytes`, both at once; false if it was not there.
   * Hashes only. (bpf_map_lookup_and_delete_elem)
   */
  takeInto(key: Uint8Array, value: Uint8Array): boolean {
    this.#checkKey(key);
    this.#checkValue(value);
    const result = native.bpf_map_lookup_and_delete_elem(this.fd, key, value);
    if (result >= 0) return true;
    if (result === -ENOENT) return false;
    throw bpfError(`cannot take ${hex(key)} from the map ${this.label}`, result);
  }

  /** Appends to a queue or stack. Throws E_BPF: E2BIG if it is full. (bpf_map_update_elem) */
  push(value: Uint8Array): void {
    this.#checkValue(value);
    check(
      native.bpf_map_update_elem(this.fd, null, value, BPF_ANY),
      () => `cannot push to the map ${this.label}`,
    );
  }

  /** Takes from a queue or stack; undefined if it is empty. (bpf_map_lookup_and_delete_elem) */
  pop(): Buffer | undefined {
    const value = Buffer.allocUnsafe(this.valueBytes);
    const result = native.bpf_map_lookup_and_delete_elem(this.fd, null, value);
    if (result >= 0) return value;
    if (result === -ENOENT) return undefined;
    throw bpfError(`cannot pop from the map ${this.label}`, result);
  }

  /**
   * The key after this one, or the first for null; undefined at the end. A key that was deleted meanwhile starts
   * again from the first: use batches() on maps that change. (bpf_map_get_next_key)
   */
  nextKey(key: Uint8Array | null): Buffer | undefined {
    if (key !== null) this.#checkKey(key);
    const next = Buffer.allocUnsafe(this.keySize);
    const result = native.bpf_map_get_next_key(this.fd, key, next);
    if (result >= 0) return next;
    if (result === -ENOENT) return undefined;
    throw bpfError(`cannot walk the map ${this.label}`, result);
  }

  /**
   * Walks all entries, `chunk` at a time at first: a hash bucket with more entries than that makes it grow.
   * Hashes and arrays only (ENOTSUPP otherwise). The buffers of a step are overwritten by the next. What is
   * inserted or deleted during the walk may be seen or not; the rest is seen exactly once. `first` is where to begin
   * in an array. (bpf_map_lookup_batch)
   */
  *batches(chunk: number = DEFAULT_CHUNK, first = 0): Generator<Batch, void, void> {
    let capacity = Math.max(1, Math.min(chunk, this.maxEntries));
    const limit = Math.max(this.maxEntries, DEFAULT_CHUNK) * 2;
    let keys = Buffer.allocUnsafeSlow(capacity * this.keySize);
    let values = Buffer.allocUnsafeSlow(capacity * this.valueBytes);
    // The kernel's place in the walk: a bucket number for hashes, a key for others.
    let from: Buffer | null = null;
    let next: Buffer = Buffer.alloc(Math.max(this.keySize, 8));
    let spare: Buffer = Buffer.alloc(next.length);
    if (first > 0) {
      // Of an array the place is the last key that was seen.
      from = Buffer.alloc(next.length);
      from.writeUInt32LE(first - 1);
    }
    const counter = Buffer.alloc(4);
    // The kernel makes as many buckets as the next power of two.
    const places =
      this.type === MAP_TYPE.ARRAY ? this.maxEntries : 2 ** Math.ceil(Math.log2(this.maxEntries));
    for (;;) {
      counter.writeUInt32LE(capacity);
      const result = native.bpf_map_lookup_batch(this.fd, from, next, keys, values, counter, null);
      if (result === -ENOSPC && capacity < limit) {
        capacity *= 2;
        keys = Buffer.allocUnsafeSlow(capacity * this.keySize);
        values = Buffer.allocUnsafeSlow(capacity * this.valueBytes);
        continue;
      }
      if (result < 0 && result !== -ENOENT) throw bpfError(`cannot walk the map ${this.label}`, result);
      const count = counter.readUInt32LE();
      const ended = result === -ENOENT;
      const progress = ended ? 1 : Math.min(next.readUInt32LE() / places, 1);
      if (count > 0) yield { count, keys, values, progress };
      if (ended) return;
      const used: Buffer = from ?? spare;
      from = next;
      next = used;
      spare = used;
    }
  }

  /**
   * Deletes the first `count` keys of a buffer and returns how many of them were there.
   * Throws E_BPF. (bpf_map_delete_batch)
   */
  deleteBatch(keys: Uint8Array, count: number): number {
    this.#checkBatch(keys, count, this.keySize, "keys");
    const counter = Buffer.alloc(4);
    let position = 0;
    let deleted = 0;
    while (position < count) {
      counter.writeUInt32LE(count - position);
      const rest = keys.subarray(position * this.keySize);
      const result = native.bpf_map_delete_batch(this.fd, rest, counter, null);
      const done = result === 0 ? count - position : counter.readUInt32LE();
      deleted += done;
      position += done;
      if (result === 0) break;
      if (result !== -ENOENT)
        throw bpfError(`cannot delete ${count} entries of the map ${this.label}`, result);
      // The kernel stops at the first key that is not there: go on behind it.
      position += 1;
    }
    return deleted;
  }

  /**
   * Writes the first `count` entries of two buffers and returns `count`. Throws E_BPF at the first entry that
   * cannot be written; those before it are written. (bpf_map_update_batch)
   */
  updateBatch(keys: Uint8Array, values: Uint8Array, count: number, flags = BPF_ANY): number {
    this.#checkBatch(keys, count, this.keySize, "keys");
    this.#checkBatch(values, count, this.valueBytes, "values");
    if (count === 0) return 0;
    const counter = Buffer.alloc(4);
    counter.writeUInt32LE(count);
    const opts = new Struct("bpf_map_batch_opts").setU64("elem_flags", BigInt(flags));
    const result = native.bpf_map_update_batch(this.fd, keys, values, counter, opts.bytes);
    if (result < 0) {
      const done = counter.readUInt32LE();
      throw bpfError(`cannot write entry ${done} of ${count} in the map ${this.label}`, result);
    }
    return count;
  }

  /**
   * Writes those of the first `count` entries that are not there yet, and returns how many. One call an entry: the
   * kernel's batches know no BPF_NOEXIST. Throws E_BPF. (bpf_map_update_elem)
   */
  insertAll(keys: Uint8Array, values: Uint8Array, count: number): number {
    this.#checkBatch(keys, count, this.keySize, "keys");
    this.#checkBatch(values, count, this.valueBytes, "values");
    let inserted = 0;
    for (let index = 0; index < count; index++) {
      const key = keys.subarray(index * this.keySize, (index + 1) * this.keySize);
      const value = values.subarray(index * this.valueBytes, (index + 1) * this.valueBytes);
      const result = native.bpf_map_update_elem(this.fd, key, value, BPF_NOEXIST);
      if (result >= 0) inserted++;
      else if (result !== -ERRNO.EEXIST)
        throw bpfError(`cannot write ${hex(key)} in the map ${this.label}`, result);
    }
    return inserted;
  }

  // A buffer that is too short would let the kernel write over other memory.
  #checkKey(key: Uint8Array): void {
    if (key.length !== this.keySize) {
      throw new LasthopError(
        "E_INTERNAL",
        `a key of the map ${this.label} has ${this.keySize} bytes, not ${key.length}`,
      );
    }
  }

  #checkValue(value: Uint8Array): void {
    if (value.length !== this.valueBytes) {
      throw new LasthopError(
        "E_INTERNAL",
        `a value of the map ${this.label} has ${this.valueBytes} bytes, not ${value.length}`,
      );
    }
  }

  #checkBatch(buffer: Uint8Array, count: number, size: number, what: string): void {
    if (!Number.isSafeInteger(count) || count < 0 || buffer.length < count * size) {
      throw new LasthopError(
        "E_INTERNAL",
        `${count} ${what} of the map ${this.label} need ${count * size} bytes, not ${buffer.length}`,
      );
    }
  }
}

/** A descriptor whose shape is not known yet. */
class BareMap extends Handle {
  constructor(fd: number, label: string, ownership: Ownership) {
    super("map", fd, label, ownership);
  }
}

function mapInfo(handle: Handle): MapInfo {
  const info = new Struct("bpf_map_info");
  readInfo(handle, info.bytes);
  return {
    id: info.u32("id"),
    type: info.u32("type"),
    name: info.name("name"),
    keySize: info.u32("key_size"),
    valueSize: info.u32("value_size"),
    maxEntries: info.u32("max_entries"),
    flags: info.u32("map_flags"),
  };
}

function hex(key: Uint8Array): string {
  return `key ${Buffer.from(key.buffer, key.byteOffset, key.length).toString("hex")}`;
}
