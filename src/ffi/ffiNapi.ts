// SPDX-License-Identifier: Apache-2.0
import { createRequire } from "node:module";
import { isMainThread } from "node:worker_threads";
import { LasthopError } from "../errors.ts";
import { Frame, Memory, type Ref, Scratch, WORD } from "./ffiNapiMemory.ts";
import { TimedPoll } from "./timedPoll.ts";
import type {
  ArgumentType,
  CallbackArguments,
  CallbackArgumentType,
  Ffi,
  Library,
  NativeAsyncFunction,
  NativeCallback,
  NativeFunction,
  PollEvents,
  PollHandle,
  ResultType,
  ResultValue,
} from "./types.ts";

// ffi-napi's own callables cost several microseconds, and every address that ref-napi turns into a Buffer counts
// as 1 GB of external memory and so forces a garbage collection. We therefore use the two packages' lowest layer
// only: arguments are written into memory of our own, and addresses stay numbers.

type RefType = object;

interface FfiNapi {
  CIF(result: RefType, args: RefType[]): Buffer;
}

interface Bindings {
  ffi_call(cif: Buffer, fn: Buffer, result: Buffer, args: Buffer): void;
  ffi_call_async(cif: Buffer, fn: Buffer, result: Buffer, args: Buffer, done: (error: unknown) => void): void;
  Callback(
    cif: Buffer,
    resultBytes: number,
    args: number,
    onError: (error: unknown) => void,
    fn: (result: Buffer, args: Buffer) => unknown,
  ): Buffer;
  readonly StaticFunctions: Record<"dlopen" | "dlsym" | "dlerror" | "_errno", Buffer>;
}

const RTLD_NOW = 2;

const REF_TYPES: Record<ResultType, keyof Ref["types"]> = {
  void: "void",
  i32: "int32",
  u32: "uint32",
  i64: "int64",
  size_t: "uint64",
  u64: "uint64",
  pointer: "uint64",
  cstring: "uint64",
};

class FfiNapiLibrary implements Library {
  readonly soname: string;
  readonly #ffi: FfiNapiFfi;
  readonly #handle: bigint;

  constructor(ffi: FfiNapiFfi, soname: string, handle: bigint) {
    this.#ffi = ffi;
    this.soname = soname;
    this.#handle = handle;
  }

  function<const R extends ResultType, const A extends readonly ArgumentType[]>(
    name: string,
    result: R,
    args: A,
  ): NativeFunction<R, A> {
    return this.#ffi.bind(this.#symbol(name), result, args);
  }

  functionAsync<const R extends ResultType, const A extends readonly ArgumentType[]>(
    name: string,
    result: R,
    args: A,
  ): NativeAsyncFunction<R, A> {
    return this.#ffi.bindAsync(name, this.#symbol(name), result, args);
  }

  #symbol(name: string): Buffer {
    const address = this.#ffi.symbol(this.#handle, name);
    if (address === 0n) throw new LasthopError("E_FFI", `${this.soname} has no function ${name}`);
    return this.#ffi.view(address, WORD);
  }
}

class FfiNapiFfi implements Ffi {
  readonly backend = "ffi-napi";
  readonly #bindings: Bindings;
  readonly #ffi: FfiNapi;
  readonly #ref: Ref;
  readonly #memory: Memory;
  readonly #scratch: Scratch;
  readonly errno: () => number;
  readonly symbol: (handle: bigint, name: string) => bigint;
  readonly #dlopen: (soname: string, flags: number) => bigint;
  readonly #dlerror: () => string | null;
  /** What open callbacks need: the closure is freed when its code buffer is collected. */
  readonly #callbacks = new Set<{ cif: Buffer; code: Buffer }>();
  #boundLibc: ReturnType<typeof bindLibc> | undefined;

  constructor(ffi: FfiNapi, ref: Ref, bindings: Bindings) {
    this.#ffi = ffi;
    this.#ref = ref;
    this.#bindings = bindings;
    this.#memory = new Memory(ref);
    this.#scratch = new Scratch(this.#memory);
    const { dlopen, dlsym, dlerror, _errno } = bindings.StaticFunctions;
    this.#dlopen = this.bind(dlopen, "pointer", ["cstring", "i32"]);
    this.#dlerror = this.bind(dlerror, "cstring", []);
    this.symbol = this.bind(dlsym, "pointer", ["pointer", "cstring"]);
    this.errno = this.bind(_errno, "i32", []);
  }

  open(soname: string): Library {
    const handle = this.#dlopen(soname, RTLD_NOW);
    if (handle === 0n) {
      const cause = new Error(this.#dlerror() ?? "dlopen failed");
      throw new LasthopError("E_FFI", `cannot open the shared library ${soname}`, { cause });
    }
    return new FfiNapiLibrary(this, soname, handle);
  }

  addressOf(buffer: Uint8Array): bigint {
    return this.#memory.addressOf(buffer);
  }

  view(address: bigint, length: number): Buffer {
    return this.#memory.view(address, length);
  }

  bind<const R extends ResultType, const A extends readonly ArgumentType[]>(
    fn: Buffer,
    result: R,
    args: A,
  ): NativeFunction<R, A> {
    const cif = this.#cif(result, args);
    // One frame serves all calls: C has taken the arguments out before it can call back into us.
    const scratch = this.#scratch;
    const frame = new Frame(this.#memory, args, scratch);
    const { ffi_call } = this.#bindings;
    const call = (...values: unknown[]) => {
      const top = scratch.top;
      try {
        const copies = frame.write(values);
        ffi_call(cif, fn, frame.result, frame.args);
        copies?.forEach((start, i) => {
          if (start >= 0) scratch.copyBack(values[i] as Uint8Array, start);
        });
        frame.held = values;
      } finally {
        scratch.release(top);
      }
      return this.#read(result, frame.result);
    };
    return call as NativeFunction<R, A>;
  }

  bindAsync<const R extends ResultType, const A extends readonly ArgumentType[]>(
    name: string,
    fn: Buffer,
    result: R,
    args: A,
  ): NativeAsyncFunction<R, A> {
    const cif = this.#cif(result, args);
    const call = (...values: unknown[]) =>
      new Promise((resolve, reject) => {
        const frame = new Frame(this.#memory, args);
        frame.write(values);
        this.#bindings.ffi_call_async(cif, fn, frame.result, frame.args, (error) => {
          // Naming cif, frame and values here keeps their memory alive while the other thread uses it.
          frame.held = [cif, values];
          if (error) reject(new LasthopError("E_FFI", `the call of ${name} failed`, { cause: error }));
          else resolve(this.#read(result, frame.result));
        });
      });
    return call as NativeAsyncFunction<R, A>;
  }

  callback<const R extends "void" | "i32", const A extends readonly CallbackArgumentType[]>(
    result: R,
    args: A,
    fn: (...args: CallbackArguments<A>) => ResultValue<R>,
  ): NativeCallback {
    const { memcpy } = this.#libc;
    const word = Buffer.alloc(WORD);
    // ref-napi wraps the two stack addresses of a call anew each time unless a wrapper of them is still alive.
    const wrappers: Buffer[] = [];
    const adapter = (returned: Buffer, pointers: Buffer): void => {
      if (wrappers.push(returned, pointers) > 64) wrappers.splice(0, 2);
      const values = args.map((type, i) => {
        memcpy(word, pointers.readBigUInt64LE(i * WORD), WORD);
        return this.#read(type, word);
      });
      const value = fn(...(values as CallbackArguments<A>));
      if (result === "i32") returned.writeBigInt64LE(BigInt(value as number));
    };
    const onError = (error: unknown): void => {
      throw error;
    };
    const cif = this.#cif(result, args);
    const code = this.#bindings.Callback(cif, WORD, args.length, onError, adapter);
    const kept = { cif, code };
    this.#callbacks.add(kept);
    return { address: BigInt(this.#ref.address(code)), close: () => void this.#callbacks.delete(kept) };
  }

  poll(
    fd: number,
    events: PollEvents,
    onReady: (error: number, events: Required<PollEvents>) => void,
  ): PollHandle {
    return new TimedPoll(this.#libc.poll, fd, events, onReady);
  }

  get #libc() {
    this.#boundLibc ??= bindLibc(this.open("libc.so.6"));
    return this.#boundLibc;
  }

  #cif(result: ResultType, args: readonly ArgumentType[]): Buffer {
    const { types } = this.#ref;
    return this.#ffi.CIF(
      types[REF_TYPES[result]],
      args.map((type) => types[REF_TYPES[type]]),
    );
  }

  #read(type: ResultType, word: Buffer): unknown {
    switch (type) {
      case "void":
        return undefined;
      case "i32":
        return word.readInt32LE();
      case "u32":
        return word.readUInt32LE();
      case "i64":
        return Number(word.readBigInt64LE());
      case "size_t":
        return Number(word.readBigUInt64LE());
      case "u64":
      case "pointer":
        return word.readBigUInt64LE();
      case "cstring":
        return this.#readString(word.readBigUInt64LE());
    }
  }

  #readString(address: bigint): string | null {
    if (address === 0n) return null;
    const { memcpy, strlen } = this.#libc;
    const text = Buffer.alloc(strlen(address));
    memcpy(text, address, text.length);
    return text.toString("utf8");
  }
}

/** What this backend itself needs of the C library. */
function bindLibc(libc: Library) {
  return {
    memcpy: libc.function("memcpy", "pointer", ["pointer", "pointer", "size_t"]),
    strlen: libc.function("strlen", "size_t", ["pointer"]),
    poll: libc.function("poll", "i32", ["pointer", "u64", "i32"]),
  };
}

/** Loads ffi-napi and ref-napi, which are optional. Throws E_FFI with what to do. */
export function loadFfiNapi(): Ffi {
  if (!isMainThread) {
    throw new LasthopError("E_FFI", "the FFI library ffi-napi crashes in worker threads", {
      hint: "leave LASTHOP_FFI unset to use koffi",
    });
  }
  try {
    const load = createRequire(import.meta.url);
    return new FfiNapiFfi(
      load("ffi-napi") as FfiNapi,
      load("ref-napi") as Ref,
      load("ffi-napi/lib/bindings") as Bindings,
    );
  } catch (cause) {
    throw new LasthopError("E_FFI", "cannot load the FFI library ffi-napi with ref-napi", {
      cause,
      hint: "install them with `make ffi-napi`, or leave LASTHOP_FFI unset to use koffi",
    });
  }
}
