// SPDX-License-Identifier: Apache-2.0
import { createRequire } from "node:module";
import { LasthopError } from "../errors.ts";
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

type Koffi = typeof import("koffi");
type KoffiLibrary = ReturnType<Koffi["load"]>;

const TYPE_NAMES: Record<ResultType, string> = {
  void: "void",
  i32: "int32_t",
  u32: "uint32_t",
  i64: "int64_t",
  u64: "uint64_t",
  size_t: "size_t",
  pointer: "void *",
  cstring: "str",
};

/** Turns what koffi gives for a type into what our types promise; undefined where they are the same. */
const CONVERTERS: Partial<Record<ResultType, (value: unknown) => unknown>> = {
  i64: Number,
  size_t: Number,
  u64: (value) => BigInt(value as number | bigint),
  pointer: (value) => (value as bigint | null) ?? 0n,
};

class KoffiBackedLibrary implements Library {
  readonly soname: string;
  readonly #library: KoffiLibrary;

  constructor(soname: string, library: KoffiLibrary) {
    this.soname = soname;
    this.#library = library;
  }

  function<const R extends ResultType, const A extends readonly ArgumentType[]>(
    name: string,
    result: R,
    args: A,
  ): NativeFunction<R, A> {
    const native = this.#bind(name, result, args);
    const convert = CONVERTERS[result];
    // The common int functions stay koffi's own callable: a wrapper would cost as much as the call.
    const callable = convert === undefined ? native : (...values: unknown[]) => convert(native(...values));
    return callable as NativeFunction<R, A>;
  }

  functionAsync<const R extends ResultType, const A extends readonly ArgumentType[]>(
    name: string,
    result: R,
    args: A,
  ): NativeAsyncFunction<R, A> {
    const native = this.#bind(name, result, args);
    const convert = CONVERTERS[result] ?? ((value: unknown) => value);
    return ((...values: unknown[]) =>
      new Promise((resolve, reject) => {
        native.async(...values, (error: unknown, value: unknown) => {
          // Naming `values` here is what keeps the buffers alive while the other thread uses them.
          if (error)
            reject(new LasthopError("E_FFI", `${name}(${values.length} arguments) failed`, { cause: error }));
          else resolve(convert(value) as ResultValue<R>);
        });
      })) as NativeAsyncFunction<R, A>;
  }

  #bind(name: string, result: ResultType, args: readonly ArgumentType[]) {
    try {
      return this.#library.func(
        name,
        TYPE_NAMES[result],
        args.map((type) => TYPE_NAMES[type]),
      );
    } catch (cause) {
      throw new LasthopError("E_FFI", `${this.soname} has no function ${name}`, { cause });
    }
  }
}

class KoffiFfi implements Ffi {
  readonly backend = "koffi";
  readonly #koffi: Koffi;

  constructor(koffi: Koffi) {
    this.#koffi = koffi;
  }

  open(soname: string): Library {
    try {
      return new KoffiBackedLibrary(soname, this.#koffi.load(soname));
    } catch (cause) {
      throw new LasthopError("E_FFI", `cannot open the shared library ${soname}`, { cause });
    }
  }

  addressOf(buffer: Uint8Array): bigint {
    return this.#koffi.address(buffer);
  }

  view(address: bigint, length: number): Buffer {
    return Buffer.from(this.#koffi.view(address, length));
  }

  callback<const R extends "void" | "i32", const A extends readonly CallbackArgumentType[]>(
    result: R,
    args: A,
    fn: (...args: CallbackArguments<A>) => ResultValue<R>,
  ): NativeCallback {
    const koffi = this.#koffi;
    const type = koffi.pointer(
      koffi.proto(
        TYPE_NAMES[result],
        args.map((argument) => TYPE_NAMES[argument]),
      ),
    );
    const converters = args.map((argument) => CONVERTERS[argument]);
    const adapter = (...values: unknown[]) =>
      fn(...(values.map((value, i) => converters[i]?.(value) ?? value) as CallbackArguments<A>));
    const address = koffi.register(adapter, type);
    let open = true;
    return {
      address,
      close() {
        if (!open) return;
        open = false;
        koffi.unregister(address);
      },
    };
  }

  errno(): number {
    return this.#koffi.errno();
  }

  poll(
    fd: number,
    events: PollEvents,
    onReady: (error: number, events: Required<PollEvents>) => void,
  ): PollHandle {
    // koffi passes libuv's status first; its type declarations leave that out.
    const listener = (status: number, ready: Required<PollEvents>) =>
      onReady(status < 0 ? -status : 0, { readable: ready.readable, writable: ready.writable });
    const handle = this.#koffi.node.poll(fd, events, listener as unknown as () => void);
    let open = true;
    return {
      ref: () => open && handle.ref(),
      unref: () => open && handle.unref(),
      close() {
        if (!open) return;
        open = false;
        handle.stop();
        handle.close();
      },
    };
  }
}

/** Loads koffi. Throws E_FFI if its native module does not load here. */
export function loadKoffi(): Ffi {
  try {
    return new KoffiFfi(createRequire(import.meta.url)("koffi") as Koffi);
  } catch (cause) {
    throw new LasthopError("E_FFI", "cannot load the FFI library koffi", {
      cause,
      hint: "run `npm ci` for this platform, or use the other backend: `make ffi-napi` and LASTHOP_FFI=ffi-napi",
    });
  }
}
