// SPDX-License-Identifier: Apache-2.0
// Boots a kernel under QEMU on top of this machine's own files, and has it run tests of this tree.

import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { repositoryPath } from "../support/paths.ts";
import { Background, run } from "../support/run.ts";
import { CACHE, fetchKernel, ownAsRepository, Unavailable } from "./image.ts";
import { buildInitramfs, ON_HOST_FILES } from "./initramfs.ts";
import type { GuestKernel } from "./kernels.ts";
import type { GuestEvent, Selection } from "./results.ts";

export const QEMU = "qemu-system-x86_64";
const MEMORY_MIB = 3072;
/** Emulated, everything takes about ten times as long. */
const SLOWNESS = 10;

/** Which programs are needed, and of which Debian package they are. */
const PROGRAMS: Record<string, string> = {
  [QEMU]: "qemu-system-x86",
  busybox: "busybox-static",
  depmod: "kmod",
  zstd: "zstd",
  xz: "xz-utils",
  dpkg: "dpkg",
  "apt-get": "apt",
  "apt-cache": "apt",
};

export interface GuestRun {
  release: string;
  events: GuestEvent[];
  /** Of the command in the guest; undefined when it did not come to an end. */
  status: number | undefined;
  /** Why it did not. */
  ending: string;
  seconds: number;
  /** Where output, console and results of this run are. */
  directory: string;
}

async function whereIs(program: string): Promise<string | undefined> {
  const found = await run(["sh", "-c", 'command -v "$1"', "sh", program]);
  return found.status === 0 ? found.stdout.trim() : undefined;
}

/** The path of a busybox that needs no libraries. Throws Unavailable. */
export async function checkPrograms(): Promise<string> {
  if (process.arch !== "x64") throw new Unavailable(`guests are x86-64 machines, this is ${process.arch}`);
  const missing: string[] = [];
  for (const [program, name] of Object.entries(PROGRAMS)) {
    if ((await whereIs(program)) === undefined) missing.push(`${program} (package ${name})`);
  }
  if (missing.length > 0) throw new Unavailable(`not installed: ${missing.join(", ")}`);
  const busybox = (await whereIs("busybox"))!;
  if ((await run(["ldd", busybox])).status === 0) {
    throw new Unavailable("busybox needs libraries here: install the package busybox-static");
  }
  return busybox;
}

/** Quotes a word for sh. */
function quote(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}

function environmentOf(kernel: GuestKernel, modules: string, selection: Selection): string {
  const config = "test/vm/guest/config.ts";
  const vitest = [
    process.execPath,
    "node_modules/vitest/vitest.mjs",
    "run",
    "--no-cache",
    "--config",
    config,
  ];
  const passedOn = Object.entries(process.env).filter(([name]) => /^(LASTHOP_(?!VM_)|PATH$|CI$)/.test(name));
  const exported = {
    ...Object.fromEntries(passedOn),
    HOME: "/root",
    NO_COLOR: "1",
    LASTHOP_TIMEOUT_FACTOR: String(SLOWNESS),
    LASTHOP_TEST_RESIDENT: "1",
    LASTHOP_MATRIX: kernel.matrix.pairs,
    LASTHOP_GUEST_SELECTION: JSON.stringify(selection),
    LASTHOP_GUEST_RESULTS: "/run/lasthop-guest/results",
  };
  const own = {
    REPOSITORY: repositoryPath("."),
    MODULES: modules,
    MODPROBE: kernel.modules.join(" "),
    COMMAND: vitest.map(quote).join(" "),
  };
  return [
    ...Object.entries(own).map(([name, value]) => `${name}=${quote(value)}\n`),
    ...Object.entries(exported).map(([name, value]) => `export ${name}=${quote(value ?? "")}\n`),
  ].join("");
}

function qemu(vmlinux: string, directory: string): string[] {
  const share = (tag: string, path: string, more: string) =>
    `local,path=${path},mount_tag=${tag},security_model=none,multidevs=remap${more}`;
  return [
    QEMU,
    ...["-machine", "q35", "-accel", "tcg,thread=multi", "-smp", "2", "-m", String(MEMORY_MIB)],
    // Emulated, "rep movsb" copies byte by byte and five levels of page tables cost more than four.
    ...["-cpu", "max,la57=off,erms=off,fsrm=off"],
    ...["-nodefaults", "-display", "none", "-monitor", "none", "-no-reboot"],
    ...["-serial", `file:${join(directory, "console")}`],
    ...["-kernel", vmlinux, "-initrd", join(directory, "initramfs")],
    ...["-append", "console=ttyS0 quiet panic=-1 mitigations=off"],
    ...["-virtfs", share("host", "/", ",readonly=on")],
    ...["-virtfs", share("results", directory, "")],
  ];
}

/** Removes folders of runs whose process is gone. */
export function sweepLeftovers(): void {
  for (const name of readdirSync(CACHE)) {
    const owner = /^(?:run|draft|guests)-(\d+)$/.exec(name)?.[1];
    if (owner !== undefined && !existsSync(`/proc/${owner}`)) rmSync(join(CACHE, name), { recursive: true });
  }
}

/** Boots, has the tests run, and waits for the end. Whatever the guest does, nothing of it is left running. */
export async function runGuest(
  kernel: GuestKernel,
  selection: Selection,
  limitMinutes: number,
): Promise<GuestRun> {
  const busybox = await checkPrograms();
  mkdirSync(CACHE, { recursive: true });
  sweepLeftovers();
  const image = await fetchKernel(kernel);
  const directory = join(CACHE, `run-${process.pid}`);
  mkdirSync(directory);
  const began = performance.now();
  try {
    await buildInitramfs(
      image,
      busybox,
      ON_HOST_FILES,
      join(directory, "initramfs"),
      join(directory, "scratch"),
    );
    copyFileSync(repositoryPath("test/vm/guest/inside.sh"), join(directory, "inside.sh"));
    writeFileSync(join(directory, "environment"), environmentOf(kernel, image.modules, selection));
    const ending = await untilOff(new Background(qemu(image.vmlinux, directory)), limitMinutes);
    const seconds = (performance.now() - began) / 1000;
    return { release: image.release, ...readResults(directory), ending, seconds, directory: lastOf(kernel) };
  } finally {
    rmSync(lastOf(kernel), { recursive: true, force: true });
    rmSync(join(directory, "initramfs"), { force: true });
    renameSync(directory, lastOf(kernel));
    await ownAsRepository(lastOf(kernel));
  }
}

function lastOf(kernel: GuestKernel): string {
  return join(CACHE, `last-${kernel.series}`);
}

async function untilOff(guest: Background, limitMinutes: number): Promise<string> {
  // A signal ends this process, and the kernel then the guest: Background sees to that.
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<"late">((resolve) => {
    timer = setTimeout(() => resolve("late"), limitMinutes * 60_000);
  });
  const first = await Promise.race([guest.exited, late]);
  clearTimeout(timer);
  if (first === "late") {
    await guest.stop("SIGKILL");
    return `it was stopped after ${limitMinutes} minutes`;
  }
  return first === 0 ? "it switched itself off" : `QEMU ended with ${first}: ${guest.stderr.trim()}`;
}

function readResults(directory: string): { events: GuestEvent[]; status: number | undefined } {
  const read = (name: string) => {
    const path = join(directory, name);
    return existsSync(path) ? readFileSync(path, "utf8") : "";
  };
  // The last line may have been cut.
  const lines = read("results").split("\n").slice(0, -1);
  const status = read("status").trim();
  return {
    events: lines.map((line) => JSON.parse(line) as GuestEvent),
    status: status === "" ? undefined : Number(status),
  };
}

/** The end of what a guest wrote, for whoever looks for the reason. */
export function tailOf({ directory }: GuestRun, lines = 25): string {
  return ["console", "output"]
    .map((name) => {
      const path = join(directory, name);
      const text = existsSync(path) ? readFileSync(path, "utf8").trimEnd() : "";
      return `--- ${path}\n${text.split("\n").slice(-lines).join("\n")}`;
    })
    .join("\n");
}
