// SPDX-License-Identifier: Apache-2.0
// Bytes of another version's structs in the form of this one: field by field, by name. What the other version
// did not have is zero.

import { type StructName, sizeOf } from "./codec.ts";
import { STRUCTS } from "./layout.gen.ts";

export interface FieldLayout {
  size: number;
  kind: string;
  struct?: string;
  count?: number;
  element?: FieldLayout;
}

export interface StructLayout {
  size: number;
  fields: Record<string, FieldLayout & { offset: number }>;
}

/** How the structs of a version's tables lie, by name. */
export type Layout = Record<string, StructLayout>;

/** Ours. */
export const LAYOUT: Layout = Object.fromEntries(
  Object.entries(STRUCTS as unknown as Record<string, StructLayout>).map(([name, { size, fields }]) => [
    name,
    { size, fields },
  ]),
);

type Converter = (from: Buffer, at: number, to: Buffer, target: number) => void;

/** A struct of abi.h, or a plain number in host order. */
export type Shape = StructName | "u32";

/** One value of another version in our form. */
export function convertStruct(from: Layout, name: StructName, bytes: Buffer): Buffer {
  const result = Buffer.alloc(sizeOf(name));
  structConverter(from, LAYOUT, name)(bytes, 0, result, 0);
  return result;
}

export interface Entries {
  count: number;
  keys: Buffer;
  values: Buffer;
}

/** For the entries of a table; `keySize` and `valueSize` are those of the other version's. */
export function entriesConverter(
  from: Layout,
  table: { key: Shape; value: Shape; keySize: number; valueSize: number },
): (entries: Entries) => Entries {
  const [key, value] = [shapeConverter(from, table.key), shapeConverter(from, table.value)];
  const [keySize, valueSize] = [shapeSize(table.key), shapeSize(table.value)];
  return ({ count, keys, values }) => {
    const result = { count, keys: Buffer.alloc(count * keySize), values: Buffer.alloc(count * valueSize) };
    for (let index = 0; index < count; index++) {
      key(keys, index * table.keySize, result.keys, index * keySize);
      value(values, index * table.valueSize, result.values, index * valueSize);
    }
    return result;
  };
}

function shapeSize(shape: Shape): number {
  return shape === "u32" ? 4 : sizeOf(shape);
}

function shapeConverter(from: Layout, shape: Shape): Converter {
  return shape === "u32" ? copyBytes(4) : structConverter(from, LAYOUT, shape);
}

export function structConverter(fromLayout: Layout, toLayout: Layout, name: string): Converter {
  const from = fromLayout[name];
  const steps = Object.entries(toLayout[name]!.fields).flatMap(([field, place]): Converter[] => {
    const source = from?.fields[field];
    if (!source) return [];
    const convert = fieldConverter(fromLayout, toLayout, source, place);
    return [(bytes, at, out, target) => convert(bytes, at + source.offset, out, target + place.offset)];
  });
  return (bytes, at, out, target) => {
    for (const step of steps) step(bytes, at, out, target);
  };
}

function fieldConverter(fromLayout: Layout, toLayout: Layout, from: FieldLayout, to: FieldLayout): Converter {
  if (to.kind === "struct" && from.kind === "struct") {
    return structConverter(fromLayout, toLayout, to.struct!);
  }
  if (to.kind === "array" && from.kind === "array") {
    const convert = fieldConverter(fromLayout, toLayout, from.element!, to.element!);
    const [size, target] = [from.element!.size, to.element!.size];
    const count = Math.min(from.count!, to.count!);
    return (bytes, at, out, place) => {
      for (let index = 0; index < count; index++) {
        convert(bytes, at + index * size, out, place + index * target);
      }
    };
  }
  // Little-endian numbers grow and shrink at their end; network order, bytes and text keep their beginning.
  return copyBytes(Math.min(from.size, to.size));
}

function copyBytes(count: number): Converter {
  return (bytes, at, out, place) => {
    bytes.copy(out, place, at, at + count);
  };
}
