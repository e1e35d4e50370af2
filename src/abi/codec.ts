// SPDX-License-Identifier: Apache-2.0
// Bytes to typed values and back, as src/abi/layout.gen.ts says. The types are derived from the layout,
// so a field that changes in abi.h changes here too. The table walks that must be fast (listing flows)
// read the offsets themselves.

import {
  CAUSE,
  DEVICE_STATE,
  FLOW_STATE,
  HOOK,
  LAST_HOP_INDEX_BITS,
  LAST_HOP_INDEX_MASK,
  NOTICE_KIND,
  ON_DOWN,
  ORIGIN,
  POLICY,
  PROBE_KIND,
  REASON,
  ROLE,
  STRUCTS,
  TICK_SHIFT,
  VERDICT,
  VM_STATE,
} from "./layout.gen.ts";

type Structs = typeof STRUCTS;
export type StructName = keyof Structs;

interface Field {
  readonly size: number;
  readonly kind: string;
  readonly struct?: string;
  readonly count?: number;
  readonly element?: Field;
}

interface Struct {
  readonly name: string;
  readonly size: number;
  readonly fields: Readonly<Record<string, Field & { readonly offset: number }>>;
}

type FieldValue<F> = F extends { kind: "struct"; struct: infer S extends StructName }
  ? StructValue<S>
  : F extends { kind: "array"; element: infer E }
    ? FieldValue<E>[]
    : F extends { kind: "bytes" }
      ? Buffer
      : F extends { kind: "text" }
        ? string
        : number;

/** A decoded struct. Bytes are a copy; 64-bit counters are numbers, exact below 2^53. */
export type StructValue<S extends StructName> = {
  -readonly [K in keyof Structs[S]["fields"]]: FieldValue<Structs[S]["fields"][K]>;
};

type FieldInput<F> = F extends { kind: "struct"; struct: infer S extends StructName }
  ? StructInput<S>
  : F extends { kind: "array"; element: infer E }
    ? readonly FieldInput<E>[]
    : F extends { kind: "bytes" }
      ? Uint8Array
      : F extends { kind: "text" }
        ? string
        : number;

/** What `encode` takes: fields left out are zero. */
export type StructInput<S extends StructName> = {
  readonly [K in keyof Structs[S]["fields"]]?: FieldInput<Structs[S]["fields"][K]>;
};

/** Size in bytes of a struct. */
export function sizeOf(name: StructName): number {
  return STRUCTS[name].size;
}

export function decode<S extends StructName>(name: S, buffer: Buffer, offset = 0): StructValue<S> {
  return decodeStruct(STRUCTS[name], buffer, offset) as StructValue<S>;
}

/** Into `buffer` at `offset` if given, else into a new buffer. Values out of a field's range throw RangeError. */
export function encode<S extends StructName>(
  name: S,
  value: StructInput<S>,
  buffer: Buffer = Buffer.alloc(STRUCTS[name].size),
  offset = 0,
): Buffer {
  encodeStruct(STRUCTS[name], value as Record<string, unknown>, buffer, offset);
  return buffer;
}

function decodeStruct(struct: Struct, buffer: Buffer, offset: number): Record<string, unknown> {
  const value: Record<string, unknown> = {};
  for (const name in struct.fields) {
    const field = struct.fields[name]!;
    value[name] = decodeField(field, buffer, offset + field.offset);
  }
  return value;
}

function decodeField(field: Field, buffer: Buffer, offset: number): unknown {
  switch (field.kind) {
    case "u8":
      return buffer.readUInt8(offset);
    case "u16":
      return buffer.readUInt16LE(offset);
    case "u32":
      return buffer.readUInt32LE(offset);
    case "u64":
      return Number(buffer.readBigUInt64LE(offset));
    case "be16":
      return buffer.readUInt16BE(offset);
    case "be32":
      return buffer.readUInt32BE(offset);
    case "bytes":
      return Buffer.from(buffer.subarray(offset, offset + field.size));
    case "text": {
      const bytes = buffer.subarray(offset, offset + field.size);
      const end = bytes.indexOf(0);
      return bytes.toString("utf8", 0, end < 0 ? field.size : end);
    }
    case "struct":
      return decodeStruct(STRUCTS[field.struct as StructName], buffer, offset);
    case "array":
      return Array.from({ length: field.count! }, (_, index) =>
        decodeField(field.element!, buffer, offset + index * field.element!.size),
      );
    default:
      throw new TypeError(`layout: unknown kind ${field.kind}`);
  }
}

function encodeStruct(struct: Struct, value: Record<string, unknown>, buffer: Buffer, offset: number): void {
  buffer.fill(0, offset, offset + struct.size);
  for (const name in value) {
    const field = struct.fields[name];
    if (!field) throw new TypeError(`layout: struct ${struct.name} has no field ${name}`);
    if (value[name] !== undefined) encodeField(field, value[name], buffer, offset + field.offset);
  }
}

function encodeField(field: Field, value: unknown, buffer: Buffer, offset: number): void {
  switch (field.kind) {
    case "u8":
      buffer.writeUInt8(value as number, offset);
      break;
    case "u16":
      buffer.writeUInt16LE(value as number, offset);
      break;
    case "u32":
      buffer.writeUInt32LE(value as number, offset);
      break;
    case "u64":
      buffer.writeBigUInt64LE(BigInt(value as number), offset);
      break;
    case "be16":
      buffer.writeUInt16BE(value as number, offset);
      break;
    case "be32":
      buffer.writeUInt32BE(value as number, offset);
      break;
    case "bytes":
    case "text": {
      const bytes = typeof value === "string" ? Buffer.from(value) : (value as Uint8Array);
      // A text keeps its terminating NUL.
      if (bytes.length > field.size - (field.kind === "text" ? 1 : 0)) {
        throw new RangeError(`layout: ${bytes.length} bytes do not fit into ${field.size}`);
      }
      buffer.set(bytes, offset);
      break;
    }
    case "struct":
      encodeStruct(STRUCTS[field.struct as StructName], value as Record<string, unknown>, buffer, offset);
      break;
    case "array":
      if ((value as unknown[]).length > field.count!) {
        throw new RangeError(
          `layout: ${(value as unknown[]).length} elements do not fit into ${field.count}`,
        );
      }
      (value as unknown[]).forEach((element, index) => {
        encodeField(field.element!, element, buffer, offset + index * field.element!.size);
      });
      break;
    default:
      throw new TypeError(`layout: unknown kind ${field.kind}`);
  }
}

/** Names of an enum's values as JSON has them: lower case, by value. */
function namesOf<E extends Readonly<Record<string, number>>>(
  values: E,
): readonly Lowercase<keyof E & string>[] {
  const names: string[] = [];
  for (const [name, value] of Object.entries(values)) names[value] = name.toLowerCase();
  return names as Lowercase<keyof E & string>[];
}

export type FlowStateName = Lowercase<keyof typeof FLOW_STATE>;
export type ReasonName = Lowercase<keyof typeof REASON>;

export const FLOW_STATE_NAMES = namesOf(FLOW_STATE);
export const HOOK_NAMES = namesOf(HOOK);
export const CAUSE_NAMES = namesOf(CAUSE);
export const DEVICE_STATE_NAMES = namesOf(DEVICE_STATE);
export const NOTICE_KIND_NAMES = namesOf(NOTICE_KIND);
export const ON_DOWN_NAMES = namesOf(ON_DOWN);
export const ORIGIN_NAMES = namesOf(ORIGIN);
export const PROBE_KIND_NAMES = namesOf(PROBE_KIND);
export const POLICY_NAMES = namesOf(POLICY);
export const REASON_NAMES = namesOf(REASON);
export const ROLE_NAMES = namesOf(ROLE);
export const VERDICT_NAMES = namesOf(VERDICT);
export const VM_STATE_NAMES = namesOf(VM_STATE);

/** Seconds of CLOCK_MONOTONIC in one tick. */
export const TICK_SECONDS = 2 ** TICK_SHIFT / 1e9;

/** The kernel's CLOCK_MONOTONIC in ticks, as programs write it into last_seen. */
export function currentTick(): number {
  // process.hrtime reads CLOCK_MONOTONIC, as bpf_ktime_get_ns does.
  return Number(process.hrtime.bigint() >> BigInt(TICK_SHIFT)) >>> 0;
}

/** Seconds since a tick; a tick of the future (written meanwhile, or garbage) is now. */
export function idleSeconds(lastSeen: number, now: number): number {
  const ticks = (now - lastSeen) | 0;
  return ticks > 0 ? ticks * TICK_SECONDS : 0;
}

export function secondsToTicks(seconds: number): number {
  return Math.min(Math.ceil(seconds / TICK_SECONDS), 0xffff_ffff);
}

/** The 12-bit generation and 20-bit index that a flow or an alias holds. */
export function splitLastHop(reference: number): { generation: number; index: number } {
  return { generation: reference >>> LAST_HOP_INDEX_BITS, index: (reference & LAST_HOP_INDEX_MASK) >>> 0 };
}

export function joinLastHop(generation: number, index: number): number {
  return ((generation << LAST_HOP_INDEX_BITS) | index) >>> 0;
}
