// SPDX-License-Identifier: Apache-2.0
import type { ArgumentType } from "./types.ts";

/** The part of ref-napi that we use. */
export interface Ref {
  readonly types: Record<"int32" | "uint32" | "int64" | "uint64" | "void", object>;
  address(buffer: Uint8Array): number;
  readPointer(buffer: Uint8Array, offset: number, length: number): Buffer;
}

/** Bytes of an address or of an argument. */
export const WORD = 8;

/** ref-napi gives every Buffer that it makes from an address at least this many bytes. */
const WINDOW_BYTES = 0x3fff_ffff;
/** A window starts this far below the first address in it, since libraries load next to each other. */
const WINDOW_MARGIN = 0x1000_0000n;

/** Addresses as Buffers through few windows of 1 GB. */
export class Memory {
  readonly #ref: Ref;
  readonly #windows: { start: bigint; bytes: Buffer }[] = [];
  /** Where an ArrayBuffer's bytes are: they never move, and asking ref-napi costs more than the call. */
  readonly #addresses = new WeakMap<ArrayBufferLike, bigint>();

  constructor(ref: Ref) {
    this.#ref = ref;
  }

  addressOf(bytes: Uint8Array): bigint {
    let start = this.#addresses.get(bytes.buffer);
    if (start === undefined) {
      const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
      start = BigInt(this.#ref.address(buffer) - bytes.byteOffset);
      this.#addresses.set(bytes.buffer, start);
    }
    return start + BigInt(bytes.byteOffset);
  }

  /** True if the address of this memory was asked for before. */
  knows(bytes: Uint8Array): boolean {
    return this.#addresses.has(bytes.buffer);
  }

  view(address: bigint, length: number): Buffer {
    const end = address + BigInt(length);
    let window = this.#windows.find(({ start }) => address >= start && end <= start + BigInt(WINDOW_BYTES));
    if (window === undefined) {
      const start = address > WINDOW_MARGIN ? address - (address % 4096n) - WINDOW_MARGIN : address;
      const pointer = Buffer.alloc(WORD);
      pointer.writeBigUInt64LE(start);
      window = { start, bytes: this.#ref.readPointer(pointer, 0, WINDOW_BYTES) };
      this.#windows.push(window);
    }
    const offset = Number(address - window.start);
    return window.bytes.subarray(offset, offset + length);
  }
}

/** Up to this size a buffer that C has not seen before is copied there and back. */
const COPY_BYTES = 1024;
const SCRATCH_BYTES = 64 * 1024;

/**
 * Memory for the small buffers of the calls that are under way. ref-napi keeps a record and a finalizer for every
 * ArrayBuffer that it gives an address of, and Node runs finalizers only between turns of the event loop: a loop
 * over fresh 8-byte keys would take hundreds of megabytes until its end.
 */
export class Scratch {
  readonly #bytes = Buffer.alloc(SCRATCH_BYTES);
  readonly #address: bigint;
  #top = 0;

  constructor(memory: Memory) {
    this.#address = memory.addressOf(this.#bytes);
  }

  get top(): number {
    return this.#top;
  }

  /** Copies a buffer in; returns where it is, or -1 if it does not fit. */
  push(bytes: Uint8Array): number {
    const start = this.#top;
    const end = start + Math.ceil(bytes.length / WORD) * WORD;
    if (end > SCRATCH_BYTES) return -1;
    this.#bytes.set(bytes, start);
    this.#top = end;
    return start;
  }

  addressOf(start: number): bigint {
    return this.#address + BigInt(start);
  }

  copyBack(bytes: Uint8Array, start: number): void {
    bytes.set(this.#bytes.subarray(start, start + bytes.length));
  }

  /** Frees what was pushed since. */
  release(top: number): void {
    this.#top = top;
  }
}

/** The arguments of one function in memory: `argc` pointers, `argc` words that they point to, and the result. */
export class Frame {
  readonly args: Buffer;
  readonly result: Buffer;
  readonly #slots: Buffer;
  readonly #types: readonly ArgumentType[];
  readonly #memory: Memory;
  /** Undefined for calls on another thread, which need the buffers themselves. */
  readonly #scratch: Scratch | undefined;
  /**
   * The values of the last call. Set after a call, so that V8 cannot collect an argument while C uses it, which it
   * might after the last use that it can see.
   */
  held: unknown;

  constructor(memory: Memory, types: readonly ArgumentType[], scratch?: Scratch) {
    const argc = types.length;
    const bytes = Buffer.alloc((2 * argc + 1) * WORD);
    this.#memory = memory;
    this.#types = types;
    this.#scratch = scratch;
    this.args = bytes.subarray(0, argc * WORD);
    this.#slots = bytes.subarray(argc * WORD, 2 * argc * WORD);
    this.result = bytes.subarray(2 * argc * WORD);
    const slots = memory.addressOf(bytes) + BigInt(argc * WORD);
    for (let i = 0; i < argc; i++) this.args.writeBigUInt64LE(slots + BigInt(i * WORD), i * WORD);
  }

  /**
   * Puts the arguments into place; strings are replaced in `values` by the bytes that C sees. Returns where in the
   * scratch memory the copied buffers are: -1 for the others.
   */
  write(values: unknown[]): number[] | undefined {
    if (values.length !== this.#types.length) {
      throw new TypeError(`expected ${this.#types.length} arguments, not ${values.length}`);
    }
    let copies: number[] | undefined;
    for (let i = 0; i < values.length; i++) {
      const value = typeof values[i] === "string" ? Buffer.from(`${values[i]}\0`, "utf8") : values[i];
      values[i] = value;
      const start = value instanceof Uint8Array ? this.#copy(value, values) : -1;
      if (start < 0) {
        this.#writeOne(this.#types[i]!, value, i * WORD);
        continue;
      }
      this.#slots.writeBigUInt64LE(this.#scratch!.addressOf(start), i * WORD);
      copies ??= new Array<number>(values.length).fill(-1);
      copies[i] = start;
    }
    return copies;
  }

  #copy(bytes: Uint8Array, values: readonly unknown[]): number {
    if (this.#scratch === undefined || bytes.length === 0 || bytes.length > COPY_BYTES) return -1;
    if (this.#memory.knows(bytes)) return -1;
    // Two views of one memory must stay one memory.
    for (const other of values) {
      if (other !== bytes && other instanceof Uint8Array && other.buffer === bytes.buffer) return -1;
    }
    return this.#scratch.push(bytes);
  }

  #writeOne(type: ArgumentType, value: unknown, offset: number): void {
    const slots = this.#slots;
    switch (type) {
      case "i32":
        slots.writeInt32LE(value as number, offset);
        break;
      case "u32":
        slots.writeUInt32LE(value as number, offset);
        break;
      case "i64":
        slots.writeBigInt64LE(BigInt(value as number | bigint), offset);
        break;
      case "u64":
      case "size_t":
        slots.writeBigUInt64LE(BigInt(value as number | bigint), offset);
        break;
      case "pointer":
      case "cstring":
        slots.writeBigUInt64LE(this.#address(value), offset);
        break;
    }
  }

  #address(value: unknown): bigint {
    if (value === null) return 0n;
    if (typeof value === "bigint") return value;
    if (value instanceof Uint8Array) return value.length === 0 ? 0n : this.#memory.addressOf(value);
    throw new TypeError("a pointer must be a Buffer, a bigint or null");
  }
}
