// SPDX-License-Identifier: Apache-2.0
import { LasthopError } from "../errors.ts";
import { loadFfi } from "../ffi/index.ts";
import { bpfError, check } from "./error.ts";
import { BpfMap } from "./map.ts";
import { listening, messages } from "./messages.ts";
import { native } from "./native.ts";
import { BpfProgram } from "./program.ts";
import { Struct } from "./struct.ts";

export interface OpenOptions {
  /** Sizes other than the object file's, by map name. */
  mapMaxEntries?: Readonly<Record<string, number>>;
  /** Programs that are not loaded. */
  disabledPrograms?: readonly string[];
}

/** The most that every kernel since 5.2 takes. Untouched pages of it cost nothing. */
const LOG_BYTES = (1 << 24) - 1;

/** An object file, from open over load to close. Its maps and programs are closed with it. */
export class BpfObject {
  readonly path: string;
  #pointer: bigint;
  #loaded = false;
  /** The kernel writes the verifier's log here while loading. */
  #log: Buffer | undefined;
  readonly #maps: Map<string, bigint>;
  readonly #programs: Map<string, bigint>;
  readonly #openMaps = new Map<string, BpfMap>();
  readonly #openPrograms = new Map<string, BpfProgram>();

  private constructor(path: string, pointer: bigint, log: Buffer) {
    this.path = path;
    this.#pointer = pointer;
    this.#log = log;
    this.#maps = entries(pointer, native.bpf_object__next_map, native.bpf_map__name);
    this.#programs = entries(pointer, native.bpf_object__next_program, native.bpf_program__name);
  }

  /**
   * Reads an object file. Throws E_BPF: ENOENT, "not a valid BPF object file", or the name of a map or program in
   * the options that the file has not. (bpf_object__open_file)
   */
  static open(path: string, options: OpenOptions = {}): BpfObject {
    const log = Buffer.allocUnsafeSlow(LOG_BYTES);
    log[0] = 0;
    const opts = new Struct("bpf_object_open_opts")
      .setPointer("kernel_log_buf", log)
      .setU64("kernel_log_size", BigInt(log.length));
    const pointer = listening(() => {
      const opened = native.bpf_object__open_file(path, opts.bytes);
      if (opened === 0n) throw bpfError(`cannot open the BPF object file ${path}`, loadFfi().errno());
      return opened;
    });
    const object = new BpfObject(path, pointer, log);
    try {
      for (const [name, count] of Object.entries(options.mapMaxEntries ?? {})) {
        const map = object.#find(object.#maps, "map", name);
        check(
          native.bpf_map__set_max_entries(map, count),
          () => `cannot give the map ${name} ${count} entries`,
        );
      }
      for (const name of options.disabledPrograms ?? []) {
        const program = object.#find(object.#programs, "program", name);
        check(native.bpf_program__set_autoload(program, 0), () => `cannot leave out the program ${name}`);
      }
    } catch (error) {
      object.close();
      throw error;
    }
    return object;
  }

  /**
   * Before load: an existing map takes the place of the file's. Its type and sizes are what count then: the caller
   * knows that they fit. The map may be closed afterwards. Throws E_BPF. (bpf_map__reuse_fd)
   */
  reuseMap(name: string, map: BpfMap): void {
    this.#live();
    const pointer = this.#find(this.#maps, "map", name);
    check(native.bpf_map__reuse_fd(pointer, map.fd), () => `cannot use the map ${map.label} as ${name}`);
  }

  /**
   * Creates the maps and loads the programs. Throws E_LOAD with libbpf's words and the whole verifier log as
   * details; E_NOT_ROOT if a capability is missing. (bpf_object__load)
   */
  load(): void {
    listening(() => {
      const result = native.bpf_object__load(this.#live());
      const log = this.#log;
      this.#log = undefined;
      if (result < 0) throw loadError(this.path, result, log === undefined ? "" : textOf(log));
    });
    this.#loaded = true;
  }

  /** Borrowed: closed with the object. Throws E_BPF if the file has no such map. */
  map(name: string): BpfMap {
    this.#live();
    let map = this.#openMaps.get(name);
    if (map === undefined) {
      const fd = native.bpf_map__fd(this.#find(this.#maps, "map", name));
      map = BpfMap.fromFd(this.#requireLoaded("map", name, fd), "borrowed", name);
      this.#openMaps.set(name, map);
    }
    return map;
  }

  /** Borrowed: closed with the object. Throws E_BPF if the file has no such program, or it was disabled. */
  program(name: string): BpfProgram {
    this.#live();
    let program = this.#openPrograms.get(name);
    if (program === undefined) {
      const fd = native.bpf_program__fd(this.#find(this.#programs, "program", name));
      program = new BpfProgram(this.#requireLoaded("program", name, fd), "borrowed", name);
      this.#openPrograms.set(name, program);
    }
    return program;
  }

  /** In the file's order; with the compiler's own, as `lasthop_.rodata`. */
  mapNames(): string[] {
    return [...this.#maps.keys()];
  }

  /** In the file's order. */
  programNames(): string[] {
    return [...this.#programs.keys()];
  }

  /** Frees the object and closes its maps and programs. A second close does nothing. (bpf_object__close) */
  close(): void {
    const pointer = this.#pointer;
    if (pointer === 0n) return;
    this.#pointer = 0n;
    for (const handle of [...this.#openMaps.values(), ...this.#openPrograms.values()]) handle.close();
    native.bpf_object__close(pointer);
    this.#log = undefined;
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #live(): bigint {
    if (this.#pointer === 0n) {
      throw new LasthopError("E_INTERNAL", `the BPF object ${this.path} was used after close`);
    }
    return this.#pointer;
  }

  #find(from: Map<string, bigint>, kind: string, name: string): bigint {
    const pointer = from.get(name);
    if (pointer === undefined) {
      throw new LasthopError(
        "E_BPF",
        `${this.path} has no ${kind} ${name}; it has ${[...from.keys()].join(", ")}`,
      );
    }
    return pointer;
  }

  #requireLoaded(kind: string, name: string, fd: number): number {
    if (fd < 0) {
      const why = this.#loaded ? "was disabled" : "is not loaded yet";
      throw new LasthopError("E_BPF", `the ${kind} ${name} of ${this.path} ${why}`);
    }
    return fd;
  }
}

type Next = (object: bigint, after: bigint | null) => bigint;

/** Walks one of libbpf's lists: name → pointer, which stays valid until the object is closed. */
function entries(object: bigint, next: Next, nameOf: (item: bigint) => string | null): Map<string, bigint> {
  const found = new Map<string, bigint>();
  for (let item = next(object, null); item !== 0n; item = next(object, item)) {
    found.set(nameOf(item) ?? "", item);
  }
  return found;
}

function textOf(log: Buffer): string {
  const end = log.indexOf(0);
  return log.toString("utf8", 0, end < 0 ? log.length : end).trimEnd();
}

function loadError(path: string, result: number, log: string): Error {
  const program = /prog '([^']+)': BPF program load failed/.exec(messages())?.[1];
  if (program === undefined)
    return bpfError(`cannot load the BPF object ${path}`, result, { code: "E_LOAD", details: log });
  return bpfError(`the kernel refused the program ${program} of ${path}`, result, {
    code: "E_LOAD",
    reason: verdict(log),
    hint: "see the verifier's log: --debug",
    details: log,
  });
}

/** The verifier's own last words before its statistics: they say more than the EACCES or EINVAL that follows. */
function verdict(log: string): string | undefined {
  const words = log
    .split("\n")
    .filter((line) => line !== "" && !/^processed \d+ insns|^verification time/.test(line));
  return words.at(-1);
}
