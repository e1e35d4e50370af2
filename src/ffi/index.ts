// SPDX-License-Identifier: Apache-2.0
import { LasthopError } from "../errors.ts";
import { loadFfiNapi } from "./ffiNapi.ts";
import { loadKoffi } from "./koffi.ts";
import type { Ffi } from "./types.ts";

export type * from "./types.ts";

const BACKENDS: Record<Ffi["backend"], () => Ffi> = { koffi: loadKoffi, "ffi-napi": loadFfiNapi };

let loaded: Ffi | undefined;

/**
 * The FFI backend that LASTHOP_FFI names ("koffi" if unset), loaded at the first call and kept.
 * Throws E_FFI if the name is unknown or the backend cannot be loaded.
 */
export function loadFfi(): Ffi {
  if (loaded === undefined) {
    const name = process.env.LASTHOP_FFI || "koffi";
    if (!Object.hasOwn(BACKENDS, name)) {
      throw new LasthopError("E_FFI", `LASTHOP_FFI names an unknown FFI backend: ${name}`, {
        hint: `use one of: ${Object.keys(BACKENDS).join(", ")}`,
      });
    }
    loaded = BACKENDS[name as Ffi["backend"]]();
  }
  return loaded;
}
