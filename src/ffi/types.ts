// SPDX-License-Identifier: Apache-2.0
/** Types of the C functions that we call. Structs go through Buffers laid out by hand, so these are enough. */
export type ArgumentType = "i32" | "u32" | "i64" | "u64" | "size_t" | "pointer" | "cstring";
export type ResultType = ArgumentType | "void";

/** Memory for a C function: a Buffer's own bytes, an address, or NULL. */
export type Pointer = Uint8Array | bigint | null;

interface ArgumentValues {
  i32: number;
  u32: number;
  i64: number | bigint;
  u64: number | bigint;
  size_t: number | bigint;
  pointer: Pointer;
  cstring: string | null;
}

interface ResultValues {
  void: undefined;
  i32: number;
  u32: number;
  /** A number also for 64 bits: used for lengths and counts, exact up to 2^53. */
  i64: number;
  size_t: number;
  u64: bigint;
  /** 0n is NULL. */
  pointer: bigint;
  cstring: string | null;
}

export type ArgumentValue<T extends ArgumentType> = ArgumentValues[T];
export type ResultValue<T extends ResultType> = ResultValues[T];

export type Arguments<A extends readonly ArgumentType[]> = { -readonly [I in keyof A]: ArgumentValue<A[I]> };

export type NativeFunction<R extends ResultType, A extends readonly ArgumentType[]> = (
  ...args: Arguments<A>
) => ResultValue<R>;

export type NativeAsyncFunction<R extends ResultType, A extends readonly ArgumentType[]> = (
  ...args: Arguments<A>
) => Promise<ResultValue<R>>;

/** Callbacks get addresses as bigint and 64-bit numbers as the results above. */
export type CallbackArgumentType = Exclude<ArgumentType, "cstring">;
export type CallbackArguments<A extends readonly CallbackArgumentType[]> = {
  -readonly [I in keyof A]: ResultValue<A[I]>;
};

/** A shared library; stays open as long as the process. */
export interface Library {
  readonly soname: string;
  /** Binds a symbol. Throws E_FFI if the library has no such symbol. Bind once and keep the result. */
  function<const R extends ResultType, const A extends readonly ArgumentType[]>(
    name: string,
    result: R,
    args: A,
  ): NativeFunction<R, A>;
  /**
   * The same on a thread of the pool. Buffers are kept until the promise settles. errno belongs to the other
   * thread and is lost: call only what returns its error.
   */
  functionAsync<const R extends ResultType, const A extends readonly ArgumentType[]>(
    name: string,
    result: R,
    args: A,
  ): NativeAsyncFunction<R, A>;
}

/** A JavaScript function as C sees it. It must not throw. */
export interface NativeCallback {
  readonly address: bigint;
  /** Frees it; C must not call it afterwards. A second close does nothing. */
  close(): void;
}

export interface PollEvents {
  readable?: boolean;
  writable?: boolean;
}

/** Watches a descriptor from the event loop. Close it before the descriptor. */
export interface PollHandle {
  /** Lets the process end although this is open. */
  unref(): void;
  ref(): void;
  /** A second close does nothing. */
  close(): void;
}

export interface Ffi {
  readonly backend: "koffi" | "ffi-napi";
  /** Opens a shared library by its soname. Throws E_FFI if the dynamic linker cannot find it. */
  open(soname: string): Library;
  /** The address of the first byte. The caller keeps the buffer referenced for as long as C uses the address. */
  addressOf(buffer: Uint8Array): bigint;
  /** C memory as a Buffer, without a copy. Touching it after the memory is gone ends the process. */
  view(address: bigint, length: number): Buffer;
  callback<const R extends "void" | "i32", const A extends readonly CallbackArgumentType[]>(
    result: R,
    args: A,
    fn: (...args: CallbackArguments<A>) => ResultValue<R>,
  ): NativeCallback;
  /** errno of this thread: read it at once after a call that failed. */
  errno(): number;
  /**
   * Calls back whenever the descriptor is ready (level-triggered), until closed. `error` is 0 or a positive
   * errno if watching failed.
   */
  poll(
    fd: number,
    events: PollEvents,
    onReady: (error: number, events: Required<PollEvents>) => void,
  ): PollHandle;
}
