// SPDX-License-Identifier: Apache-2.0
import { type Library, loadFfi } from "../ffi/index.ts";

let library: Library | undefined;

/** The C library, opened at the first call. Throws E_FFI. */
export function libc(): Library {
  library ??= loadFfi().open("libc.so.6");
  return library;
}
