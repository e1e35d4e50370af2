// SPDX-License-Identifier: Apache-2.0
/*
 * Puts this build's programs, and tables of other sizes, in place of the pinned ones while traffic runs.
 *
 *  1. Stage: load the programs over the pinned tables (and new ones for those that change in size), pinned in
 *     next/. Nothing uses them yet. Killed here: next/ is removed by whoever comes next.
 *  2. Switch: with other tables, `previous_*` name the old ones, and what a program misses in the new table it
 *     takes over from there. next/switching says that there is no way back but forward. One link update an
 *     interface; taps first, so that a reply finds what an uplink still learns into the old table.
 *  3. Copy what nobody asked for. 4. next/committed: the pins take their places.
 *
 * An error in 2 puts the old programs back; they in turn take over from the new tables.
 */

import { existsSync, mkdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { ROLE } from "../abi/layout.gen.ts";
import { TC_FILTER } from "../config/defaults.ts";
import { LasthopError } from "../errors.ts";
import { pinnedLinks, programName } from "../kernel/attachment.ts";
import { type Build, readIdentity, writeIdentity, writeLayout } from "../kernel/build.ts";
import type { Instance } from "../kernel/instance.ts";
import { makeDirectories, namesIn } from "../kernel/pinRoot.ts";
import { renewTunnelProgram } from "../kernel/tunnelAttachment.ts";
import { withXfrmPrograms, xfrmProgramIds } from "../kernel/xfrmObject.ts";
import { BpfLink, BpfMap, BpfObject, BpfProgram, clsact } from "../libbpf/index.ts";
import { Tables } from "../tables/index.ts";
import { copyFlows } from "./copyFlows.ts";
import { tunnelPrograms } from "./tunnelObserve.ts";

/** Tables whose size can be chosen. */
export const SIZED_TABLES = ["flows4", "flows6", "embryos4", "embryos6"] as const;
export type SizedTable = (typeof SIZED_TABLES)[number];
export type Sizes = Partial<Record<SizedTable, number>>;

const ZERO = Buffer.alloc(4);

class Staged {
  readonly path: string;

  constructor(instance: Instance) {
    this.path = join(instance.path, "next");
  }

  get exists(): boolean {
    return existsSync(this.path);
  }

  mark(what: "switching" | "committed"): void {
    mkdirSync(join(this.path, what), { mode: 0o700 });
  }

  isMarked(what: "switching" | "committed"): boolean {
    return existsSync(join(this.path, what));
  }

  names(kind: "maps" | "programs"): string[] {
    return namesIn(join(this.path, kind));
  }

  pin(kind: "maps" | "programs", name: string): string {
    return join(this.path, kind, name);
  }

  map(name: string): BpfMap {
    return BpfMap.openPinned(this.pin("maps", name));
  }

  program(name: string): BpfProgram {
    return BpfProgram.openPinned(this.pin("programs", name));
  }

  remove(): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}

/** True if an exchange was interrupted here. */
export function isExchangePending(instance: Instance): boolean {
  return new Staged(instance).exists;
}

/** Tables whose size is another than wished. */
export function otherSizes(
  instance: Instance,
  wished: Sizes,
): { table: SizedTable; from: number; to: number }[] {
  return SIZED_TABLES.flatMap((table) => {
    const to = wished[table];
    const from = instance.map(table).info().maxEntries;
    return to === undefined || to === from ? [] : [{ table, from, to }];
  });
}

/** The caller has the lock. Afterwards the instance's handles are those of the new programs and tables. */
export async function exchange(instance: Instance, build: Build, sizes: Sizes): Promise<void> {
  const staged = new Staged(instance);
  await settleInterrupted(instance, build);
  try {
    stage(instance, staged, build, sizes);
  } catch (error) {
    staged.remove();
    throw failure("the new programs could not be loaded", error);
  }
  try {
    beginSwitch(instance, staged);
    switchPrograms(instance, staged, (name) => staged.program(name));
  } catch (error) {
    await goBack(instance, staged);
    throw failure("the new programs could not be put in place", error);
  }
  await finish(instance, staged, build);
}

/** Brings an interrupted exchange to its end, or takes it back if nothing had been switched. */
export async function settleInterrupted(instance: Instance, build: Build): Promise<void> {
  const staged = new Staged(instance);
  if (!staged.exists) return;
  if (staged.isMarked("committed")) return commit(instance, staged, build);
  if (!staged.isMarked("switching")) return staged.remove();
  switchPrograms(instance, staged, (name) => staged.program(name));
  await finish(instance, staged, build);
}

function failure(what: string, cause: unknown): LasthopError {
  const why = cause instanceof Error ? cause.message : String(cause);
  const details = cause instanceof LasthopError ? cause.details : undefined;
  return new LasthopError("E_UPGRADE", `${what}: ${why}`, {
    cause,
    hint: "Everything goes on as before, with the programs and tables that were there.",
    ...(details !== undefined && { details }),
  });
}

function stage(instance: Instance, staged: Staged, build: Build, sizes: Sizes): void {
  const resized = new Map(otherSizes(instance, sizes).map(({ table, to }) => [table as string, to]));
  using object = BpfObject.open(build.path, { mapMaxEntries: Object.fromEntries(resized) });
  const pinned = new Set(instance.mapNames());
  // The compiler's own maps (.rodata) have a dot in their names.
  const names = object.mapNames().filter((name) => !name.includes("."));
  const kept = names.filter((name) => pinned.has(name) && !resized.has(name));
  for (const name of kept) object.reuseMap(name, instance.map(name));
  object.load();
  for (const kind of ["maps", "programs"] as const) makeDirectories(join(staged.path, kind));
  for (const name of names) if (!kept.includes(name)) object.map(name).pin(staged.pin("maps", name));
  for (const name of object.programNames()) object.program(name).pin(staged.pin("programs", name));
  if (xfrmProgramIds(instance).size > 0) {
    withXfrmPrograms((name, program) => program.pin(staged.pin("programs", name)));
  }
}

/** From here on what one of the programs misses it looks for in the other table. */
function beginSwitch(instance: Instance, staged: Staged): void {
  staged.mark("switching");
  setPrevious(instance, (table) => (staged.names("maps").includes(table) ? instance.map(table) : undefined));
}

function setPrevious(instance: Instance, tableOf: (table: SizedTable) => BpfMap | undefined): void {
  let any = false;
  for (const table of SIZED_TABLES) {
    const previous = tableOf(table);
    if (!previous) continue;
    const fd = Buffer.alloc(4);
    fd.writeUInt32LE(previous.fd);
    instance.map(`previous_${table}`).update(ZERO, fd);
    any = true;
  }
  if (any) new Tables(instance).control.set({ migrating: 1 });
}

function clearPrevious(instance: Instance): void {
  new Tables(instance).control.set({ migrating: 0 });
  for (const table of SIZED_TABLES) instance.map(`previous_${table}`).delete(ZERO);
}

/** Every interface runs the program of this name from now on; those that do already are left alone. */
function switchPrograms(instance: Instance, staged: Staged, open: (name: string) => BpfProgram): void {
  const { interfaces } = new Tables(instance);
  const ours = programIdsOf(instance, staged);
  using programs = new Programs(open);
  const links = pinnedLinks(instance).toSorted((a, b) => Number(a.role !== "tap") - Number(b.role !== "tap"));
  for (const { name, role, ifindex } of links) {
    using link = BpfLink.openPinned(instance.linkPath(name));
    const info = link.info();
    // Its interface is gone.
    if (info.ifindex === 0) continue;
    const program = programs.get(programName(role, info.type === "xdp"));
    const { id } = program.info();
    if (info.programId !== id) link.update(program);
    const entry = interfaces.get(ifindex);
    if (entry) interfaces.set(ifindex, { ...entry, prog_id: id });
  }
  const filters = interfaces.list().filter(({ role }) => role === ROLE.TAP || role === ROLE.UPLINK);
  for (const entry of filters.toSorted((a, b) => b.role - a.role)) {
    const at = { ifindex: entry.ifindex, direction: "ingress", ...TC_FILTER } as const;
    const present = clsact.query(at)?.programId;
    if (present === undefined || !ours.has(present)) continue;
    const program = programs.get(programName(entry.role === ROLE.TAP ? "tap" : "uplink", false));
    const { id } = program.info();
    if (present === id) continue;
    clsact.attach({ ...at, program, replace: true });
    interfaces.set(entry.ifindex, { ...entry, prog_id: id });
  }
  for (const at of tunnelPrograms(instance)) {
    const program = programs.get(at.program);
    if (ours.has(at.programId) && at.programId !== program.info().id) {
      renewTunnelProgram(instance, at, program);
    }
  }
}

/** Of the old and the new programs: a filter that runs one of these is ours. */
function programIdsOf(instance: Instance, staged: Staged): Set<number> {
  const paths = [
    ...instance.programNames().map((name) => join(instance.path, "programs", name)),
    ...staged.names("programs").map((name) => staged.pin("programs", name)),
  ];
  return new Set(
    paths.map((path) => {
      using program = BpfProgram.openPinned(path);
      return program.info().id;
    }),
  );
}

/** Opened once each, closed together. */
class Programs {
  readonly #open: (name: string) => BpfProgram;
  readonly #programs = new Map<string, BpfProgram>();

  constructor(open: (name: string) => BpfProgram) {
    this.#open = open;
  }

  get(name: string): BpfProgram {
    let program = this.#programs.get(name);
    if (!program) {
      program = this.#open(name);
      this.#programs.set(name, program);
    }
    return program;
  }

  [Symbol.dispose](): void {
    for (const program of this.#programs.values()) program.close();
  }
}

/** The old programs run again, and have in their tables what the new ones learned. */
async function goBack(instance: Instance, staged: Staged): Promise<void> {
  using tables = new StagedTables(staged);
  setPrevious(instance, (table) => tables.get(table));
  switchPrograms(instance, staged, (name) => BpfProgram.openPinned(join(instance.path, "programs", name)));
  for (const [table, map] of tables.all()) await copyFlows(map, instance.map(table));
  clearPrevious(instance);
  staged.remove();
}

class StagedTables {
  readonly #maps = new Map<SizedTable, BpfMap>();

  constructor(staged: Staged) {
    const names = staged.names("maps");
    for (const table of SIZED_TABLES) if (names.includes(table)) this.#maps.set(table, staged.map(table));
  }

  get(table: SizedTable): BpfMap | undefined {
    return this.#maps.get(table);
  }

  all(): Iterable<[SizedTable, BpfMap]> {
    return this.#maps;
  }

  [Symbol.dispose](): void {
    for (const map of this.#maps.values()) map.close();
  }
}

async function finish(instance: Instance, staged: Staged, build: Build): Promise<void> {
  using tables = new StagedTables(staged);
  for (const [table, map] of tables.all()) await copyFlows(instance.map(table), map);
  staged.mark("committed");
  commit(instance, staged, build);
}

function commit(instance: Instance, staged: Staged, build: Build): void {
  clearPrevious(instance);
  for (const kind of ["maps", "programs"] as const) {
    for (const name of staged.names(kind))
      renameSync(staged.pin(kind, name), join(instance.path, kind, name));
  }
  // Of a former build: programs that this one no longer has stay pinned until they are purged, and run nowhere.
  instance.close();
  writeIdentity(instance.map("identity"), build);
  writeLayout(instance.map("layout"));
  staged.remove();
}

/** Of the pinned programs, for people: a version, or the beginning of the object's hash. */
export function pinnedBuild(instance: Instance): { object: string; version: string } {
  const { object, version } = readIdentity(instance.map("identity"));
  return { object: object.toString("hex"), version };
}
