// SPDX-License-Identifier: Apache-2.0
// The pinned tables and programs of one host: PIN_ROOT/v1-HASH/{maps,programs,links}/NAME.

import { existsSync, renameSync, rmSync, unlinkSync } from "node:fs";
import { join } from "node:path";
import { decode, encode, secondsToTicks, sizeOf } from "../abi/codec.ts";
import { TIMEOUT } from "../abi/layout.gen.ts";
import { RELEARN_DAMPING_SECONDS, TIMEOUT_SECONDS } from "../config/defaults.ts";
import { LasthopError } from "../errors.ts";
import { BpfMap, BpfObject, BpfProgram } from "../libbpf/index.ts";
import { ABI_NAME, objectPath, thisBuild, writeIdentity, writeLayout } from "./build.ts";
import { jiffiesClock } from "./clock.ts";
import { makeDirectories, namesIn, noTables, pinPathError, removeIfEmpty, requireBpffs } from "./pinRoot.ts";
import { netnsInode, netnsPath, requireCapabilities } from "./probe.ts";

const ABI_PATTERN = /^v\d+-[0-9a-f]+$/;
/** An instance in the making; never opened, removed by the next who makes one. */
const NEW_NAME = `${ABI_NAME}_new`;
const NEW_PATTERN = /^v\d+-[0-9a-f]+_new$/;

const CONTROL_KEY = Buffer.alloc(4);
const KINDS = ["links", "programs", "maps"] as const;

export interface CreateOptions {
  /** Sizes other than the object's, by table. */
  maxEntries?: Readonly<Record<string, number>>;
  /** Also where another version's tables are, to take them over. */
  beside?: boolean;
}

export class Instance {
  readonly pinRoot: string;
  readonly path: string;
  readonly #maps = new Map<string, BpfMap>();
  readonly #programs = new Map<string, BpfProgram>();

  /** Opens nothing yet. `version` may be another than ours. */
  constructor(pinRoot: string, version = ABI_NAME) {
    this.pinRoot = pinRoot;
    this.path = join(pinRoot, version);
  }

  map(name: string): BpfMap {
    let map = this.#maps.get(name);
    if (!map) {
      map = BpfMap.openPinned(join(this.path, "maps", name));
      this.#maps.set(name, map);
    }
    return map;
  }

  program(name: string): BpfProgram {
    let program = this.#programs.get(name);
    if (!program) {
      program = BpfProgram.openPinned(this.programPath(name));
      this.#programs.set(name, program);
    }
    return program;
  }

  mapNames(): string[] {
    return namesIn(join(this.path, "maps"));
  }

  programNames(): string[] {
    return namesIn(join(this.path, "programs"));
  }

  linkNames(): string[] {
    return namesIn(join(this.path, "links"));
  }

  programPath(name: string): string {
    return join(this.path, "programs", name);
  }

  linkPath(name: string): string {
    return join(this.path, "links", name);
  }

  close(): void {
    for (const handle of [...this.#maps.values(), ...this.#programs.values()]) handle.close();
    this.#maps.clear();
    this.#programs.clear();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * Opens what is pinned; loads nothing. Throws E_NOT_ROOT, E_NO_TABLES, E_ABI if only another version's tables are there,
 * E_NETNS if they belong to another network namespace, E_BPFFS.
 */
export function openInstance(pinRoot: string): Instance {
  requireCapabilities("open the tables", ["CAP_BPF"]);
  requireBpffs(pinRoot);
  const instance = new Instance(pinRoot);
  if (!existsSync(instance.path)) {
    refuseOtherVersions(pinRoot);
    throw noTables(pinRoot);
  }
  if (requireOwnNetns(pinRoot, ABI_NAME)) return instance;
  throw netnsError(
    pinRoot,
    "Nothing is left of that namespace: `lasthop detach --all --purge` removes the tables.",
  );
}

function refuseOtherVersions(pinRoot: string): void {
  const others = pinnedVersions(pinRoot).filter((name) => name !== ABI_NAME);
  if (others.length === 0) return;
  throw new LasthopError(
    "E_ABI",
    `the tables in ${pinRoot} are of another version of lasthop (${others.join(", ")}; this one is ${ABI_NAME})`,
    {
      hint: "`lasthop upgrade` takes them over, with every flow; `lasthop detach --all --purge` removes them.",
    },
  );
}

/** Directories of this and of other versions. */
export function pinnedVersions(pinRoot: string): string[] {
  return namesIn(pinRoot).filter((name) => ABI_PATTERN.test(name));
}

/**
 * True if a version's tables belong to this network namespace; false if to one that nobody can enter any more.
 * Throws E_NETNS if to any other.
 */
export function requireOwnNetns(pinRoot: string, version: string): boolean {
  using control = BpfMap.openPinned(join(pinRoot, version, "maps", "control"));
  // The inode comes first in every version.
  const inode = Number(control.lookup(CONTROL_KEY)!.readBigUInt64LE(0));
  if (inode === netnsInode()) return true;
  const path = netnsPath(inode);
  if (path === undefined) return false;
  throw netnsError(
    pinRoot,
    `Run it there: \`nsenter --net=${path} lasthop …\`; or give this namespace a --pin-root of its own.`,
  );
}

/** Of all programs that a version has pinned. */
export function programIds(pinRoot: string, version: string): number[] {
  const directory = join(pinRoot, version, "programs");
  return namesIn(directory).map((name) => {
    using program = BpfProgram.openPinned(join(directory, name));
    return program.info().id;
  });
}

function netnsError(pinRoot: string, hint: string): LasthopError {
  return new LasthopError("E_NETNS", `the tables in ${pinRoot} belong to another network namespace`, {
    hint,
  });
}

/** Loads and pins everything; on failure nothing remains. The caller has the lock and has made the pin root. */
export function createInstance(pinRoot: string, options: CreateOptions = {}): Instance {
  requireBpffs(pinRoot);
  if (!options.beside) refuseOtherVersions(pinRoot);
  removeUnfinished(pinRoot);
  const instance = new Instance(pinRoot);
  const making = join(pinRoot, NEW_NAME);
  const object = BpfObject.open(objectPath(), { mapMaxEntries: options.maxEntries ?? {} });
  try {
    object.load();
    writeControl(object.map("control"), object.program("read_clock"));
    writeIdentity(object.map("identity"), thisBuild());
    writeLayout(object.map("layout"));
    for (const kind of KINDS) makeDirectories(join(making, kind));
    // The compiler's own maps (.rodata, .bss) have a dot in their names, which bpffs refuses; programs hold them.
    for (const name of object.mapNames().filter((name) => !name.includes("."))) {
      object.map(name).pin(join(making, "maps", name));
    }
    for (const name of object.programNames()) object.program(name).pin(join(making, "programs", name));
    renameSync(making, instance.path);
    return instance;
  } catch (error) {
    removeTree(making);
    throw error;
  } finally {
    object.close();
  }
}

function writeControl(control: BpfMap, readClock: BpfProgram): void {
  const timeouts: number[] = [];
  for (const [name, index] of Object.entries(TIMEOUT)) {
    timeouts[index] = secondsToTicks(TIMEOUT_SECONDS[name as keyof typeof TIMEOUT]);
  }
  const relearn_damping = secondsToTicks(RELEARN_DAMPING_SECONDS);
  const ctx = Buffer.alloc(sizeOf("clock"));
  readClock.testRun({ ctx });
  const { jiffies, time_ns } = decode("clock", ctx);
  const clock = jiffiesClock(BigInt(jiffies), BigInt(time_ns)) ?? {};
  control.update(
    CONTROL_KEY,
    encode("control", { netns_inode: netnsInode(), timeouts, relearn_damping, ...clock }),
  );
}

/** Removes what an interrupted createInstance left. */
export function removeUnfinished(pinRoot: string): void {
  for (const name of namesIn(pinRoot)) {
    if (NEW_PATTERN.test(name)) removeTree(join(pinRoot, name));
  }
}

/** Unpins everything of one version; what only pins held is gone then, links first. */
export function removeInstance(pinRoot: string, name: string = ABI_NAME): void {
  removeTree(join(pinRoot, name));
}

function removeTree(path: string): void {
  for (const kind of KINDS) {
    const directory = join(path, kind);
    for (const name of namesIn(directory)) unpin(join(directory, name));
    removeIfEmpty(directory);
  }
  rmSync(path, { recursive: true, force: true });
}

/** False if it was not there. */
export function unpin(path: string): boolean {
  try {
    unlinkSync(path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return false;
    throw pinPathError(`cannot unpin ${path}`, error);
  }
}
export { ABI_NAME, objectPath } from "./build.ts";
export { withLock } from "./pinRoot.ts";
