// SPDX-License-Identifier: Apache-2.0
// A map whose keys and values are structs of abi.h, or u32.

import { decode, encode, type StructInput, type StructName, type StructValue, sizeOf } from "../abi/codec.ts";
import { LasthopError } from "../errors.ts";
import { isErrno } from "../libbpf/index.ts";
import { BATCH_ENTRIES, type TableMap, type TableSource } from "./source.ts";

/** BPF_NOEXIST of bpf_map_update_elem. */
const NO_EXIST = 1;

/** The layout of a key or a value: a struct, or a plain number in host order. */
export type Layout = StructName | "u32";
export type LayoutValue<L extends Layout> = L extends StructName ? StructValue<L> : number;
export type LayoutInput<L extends Layout> = L extends StructName ? StructInput<L> : number;

export class StructTable<K extends Layout, V extends Layout> {
  readonly name: string;
  readonly map: TableMap;
  readonly #key: K;
  readonly #value: V;

  constructor(source: TableSource, name: string, key: K, value: V) {
    this.name = name;
    this.map = source.map(name);
    this.#key = key;
    this.#value = value;
    const { keySize, valueSize } = this.map.info();
    if (keySize !== layoutSize(key) || valueSize !== layoutSize(value)) {
      throw new LasthopError("E_ABI", `map ${name} has keys of ${keySize} and values of ${valueSize} bytes`, {
        hint: "the pinned tables are not of this version: detach --all --purge, then attach again",
      });
    }
  }

  get(key: LayoutInput<K>): LayoutValue<V> | undefined {
    const value = this.map.lookup(write(this.#key, key));
    return value === undefined ? undefined : read(this.#value, value, 0);
  }

  /** Creates or replaces. */
  set(key: LayoutInput<K>, value: LayoutInput<V>): void {
    this.map.update(write(this.#key, key), write(this.#value, value));
  }

  /** False if it is there already, and stays as it is. */
  insert(key: LayoutInput<K>, value: LayoutInput<V>): boolean {
    try {
      this.map.update(write(this.#key, key), write(this.#value, value), NO_EXIST);
      return true;
    } catch (error) {
      if (isErrno(error, "EEXIST")) return false;
      throw error;
    }
  }

  /** False if it was not there. */
  delete(key: LayoutInput<K>): boolean {
    return this.map.delete(write(this.#key, key));
  }

  *entries(): Generator<[LayoutValue<K>, LayoutValue<V>]> {
    const keySize = layoutSize(this.#key);
    const valueSize = this.map.valueBytes;
    for (const { count, keys, values } of this.map.batches(BATCH_ENTRIES)) {
      for (let index = 0; index < count; index++) {
        yield [read(this.#key, keys, index * keySize), read(this.#value, values, index * valueSize)];
      }
    }
  }

  *keys(): Generator<LayoutValue<K>> {
    for (const [key] of this.entries()) yield key;
  }
}

function layoutSize(layout: Layout): number {
  return layout === "u32" ? 4 : sizeOf(layout);
}

function read<L extends Layout>(layout: L, buffer: Buffer, offset: number): LayoutValue<L> {
  const value = layout === "u32" ? buffer.readUInt32LE(offset) : decode(layout, buffer, offset);
  return value as LayoutValue<L>;
}

function write<L extends Layout>(layout: L, value: LayoutInput<L>): Buffer {
  if (layout !== "u32") return encode(layout, value as StructInput<StructName>);
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32LE(value as number);
  return buffer;
}
