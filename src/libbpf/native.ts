// SPDX-License-Identifier: Apache-2.0
import { LasthopError } from "../errors.ts";
import {
  type ArgumentType,
  type Library,
  loadFfi,
  type NativeFunction,
  type ResultType,
} from "../ffi/index.ts";
import { captureMessages } from "./messages.ts";

/** Every function of libbpf that we call; all of them are in libbpf 1.1 (bpf.h, libbpf.h). */
const SIGNATURES = {
  libbpf_major_version: ["u32", []],
  libbpf_minor_version: ["u32", []],
  libbpf_version_string: ["cstring", []],
  libbpf_num_possible_cpus: ["i32", []],

  bpf_object__open_file: ["pointer", ["cstring", "pointer"]],
  bpf_object__load: ["i32", ["pointer"]],
  bpf_object__close: ["void", ["pointer"]],
  bpf_object__next_map: ["pointer", ["pointer", "pointer"]],
  bpf_object__next_program: ["pointer", ["pointer", "pointer"]],
  bpf_map__name: ["cstring", ["pointer"]],
  bpf_map__fd: ["i32", ["pointer"]],
  bpf_map__set_max_entries: ["i32", ["pointer", "u32"]],
  bpf_map__reuse_fd: ["i32", ["pointer", "i32"]],
  bpf_program__name: ["cstring", ["pointer"]],
  bpf_program__fd: ["i32", ["pointer"]],
  // The second argument is a bool, which travels as an int.
  bpf_program__set_autoload: ["i32", ["pointer", "i32"]],

  bpf_map_create: ["i32", ["i32", "cstring", "u32", "u32", "u32", "pointer"]],
  bpf_map_lookup_elem: ["i32", ["i32", "pointer", "pointer"]],
  bpf_map_update_elem: ["i32", ["i32", "pointer", "pointer", "u64"]],
  bpf_map_delete_elem: ["i32", ["i32", "pointer"]],
  bpf_map_lookup_and_delete_elem: ["i32", ["i32", "pointer", "pointer"]],
  bpf_map_get_next_key: ["i32", ["i32", "pointer", "pointer"]],
  bpf_map_lookup_batch: ["i32", ["i32", "pointer", "pointer", "pointer", "pointer", "pointer", "pointer"]],
  bpf_map_update_batch: ["i32", ["i32", "pointer", "pointer", "pointer", "pointer"]],
  bpf_map_delete_batch: ["i32", ["i32", "pointer", "pointer", "pointer"]],
  bpf_obj_pin: ["i32", ["i32", "cstring"]],
  bpf_obj_get: ["i32", ["cstring"]],
  bpf_obj_get_info_by_fd: ["i32", ["i32", "pointer", "pointer"]],
  bpf_map_get_fd_by_id: ["i32", ["u32"]],
  bpf_prog_get_fd_by_id: ["i32", ["u32"]],
  bpf_link_get_fd_by_id: ["i32", ["u32"]],

  bpf_prog_test_run_opts: ["i32", ["i32", "pointer"]],
  bpf_prog_query: ["i32", ["i32", "i32", "u32", "pointer", "pointer", "pointer"]],
  bpf_link_create: ["i32", ["i32", "i32", "i32", "pointer"]],
  bpf_link_update: ["i32", ["i32", "i32", "pointer"]],
  bpf_link_detach: ["i32", ["i32"]],
  bpf_iter_create: ["i32", ["i32"]],

  bpf_xdp_query: ["i32", ["i32", "i32", "pointer"]],
  bpf_tc_hook_create: ["i32", ["pointer"]],
  bpf_tc_hook_destroy: ["i32", ["pointer"]],
  bpf_tc_attach: ["i32", ["pointer", "pointer"]],
  bpf_tc_detach: ["i32", ["pointer", "pointer"]],
  bpf_tc_query: ["i32", ["pointer", "pointer"]],
} as const satisfies Record<string, readonly [ResultType, readonly ArgumentType[]]>;

type Symbols = typeof SIGNATURES;
type Native = { readonly [S in keyof Symbols]: NativeFunction<Symbols[S][0], Symbols[S][1]> };

let library: Library | undefined;

function openLibbpf(): Library {
  if (library === undefined) {
    const ffi = loadFfi();
    try {
      library = ffi.open("libbpf.so.1");
    } catch (cause) {
      throw new LasthopError(
        "E_LIBBPF_MISSING",
        "libbpf.so.1 cannot be loaded: libbpf 1.1 or later is needed",
        {
          cause,
          hint: "install it: `apt install libbpf1` (Debian, Ubuntu) or `dnf install libbpf` (Fedora, RHEL)",
        },
      );
    }
    captureMessages(library);
  }
  return library;
}

/**
 * libbpf's functions under their own names. The library is opened and each symbol bound at its first use, so
 * that a command which needs no BPF starts without either. Throws E_LIBBPF_MISSING or E_FFI then.
 */
export const native = {} as Native;

for (const name of Object.keys(SIGNATURES) as (keyof Symbols)[]) {
  Object.defineProperty(native, name, {
    configurable: true,
    enumerable: true,
    get() {
      const [result, args] = SIGNATURES[name] as readonly [ResultType, readonly ArgumentType[]];
      const value = openLibbpf().function(name, result, args);
      Object.defineProperty(native, name, { value, enumerable: true });
      return value;
    },
  });
}

/** The version of the libbpf in use. Throws E_LIBBPF_MISSING. (libbpf_major_version, libbpf_minor_version) */
export function libbpfVersion(): { major: number; minor: number; text: string } {
  return {
    major: native.libbpf_major_version(),
    minor: native.libbpf_minor_version(),
    text: native.libbpf_version_string() ?? "",
  };
}

let cpus = 0;

/** How many CPUs this machine could ever have: the number of values in a per-CPU map's entry. */
export function possibleCpus(): number {
  if (cpus === 0) {
    const count = native.libbpf_num_possible_cpus();
    if (count <= 0) {
      throw new LasthopError("E_KERNEL", "cannot tell the number of possible CPUs", {
        hint: "is /sys mounted? libbpf reads /sys/devices/system/cpu/possible",
      });
    }
    cpus = count;
  }
  return cpus;
}
