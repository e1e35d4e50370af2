// SPDX-License-Identifier: Apache-2.0
// A distribution's kernel, from its package into a cache: never installed. What is there already is used again.

import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { repositoryPath } from "../support/paths.ts";
import { must, type Output, run } from "../support/run.ts";
import type { GuestKernel } from "./kernels.ts";

export const CACHE = repositoryPath("build/vm");
/** What a cached kernel's folder has when it is complete. */
const VMLINUX = "vmlinux";

export interface KernelImage {
  /** As `uname -r` says it. */
  release: string;
  /** Uncompressed: it boots by PVH. */
  vmlinux: string;
  /** As /lib/modules/RELEASE. */
  modules: string;
}

/** Something that this machine lacks; the tests are skipped for this reason. */
export class Unavailable extends Error {
  override readonly name = "Unavailable";
}

/** Numbers count as numbers, so that 6.1.0-9 comes before 6.1.0-10. */
function byVersion(a: string, b: string): number {
  return a.localeCompare(b, "en", { numeric: true });
}

async function newestPackage(packages: RegExp): Promise<string | undefined> {
  const found = await must(["apt-cache", "search", "--names-only", "^linux-image-6"]);
  const names = found.split("\n").map((line) => line.split(" ")[0]!);
  return names
    .filter((name) => packages.test(name))
    .sort(byVersion)
    .at(-1);
}

/** The package's folder in the cache; its version is part of it. */
async function cacheName(name: string): Promise<string> {
  const shown = await must(["apt-cache", "show", "--no-all-versions", name]);
  const version = /^Version: (\S+)$/m.exec(shown)?.[1];
  if (version === undefined) throw new Error(`apt-cache show ${name} names no version: ${shown}`);
  return `${name}_${version}`;
}

function cached(packages: RegExp): string | undefined {
  if (!existsSync(CACHE)) return undefined;
  const complete = readdirSync(CACHE).filter(
    (name) => packages.test(name.split("_")[0]!) && existsSync(join(CACHE, name, VMLINUX)),
  );
  return complete.sort(byVersion).at(-1);
}

function describeImage(name: string): KernelImage {
  const directory = join(CACHE, name);
  const [found] = readdirSync(join(directory, "lib/modules"));
  return {
    release: found!,
    vmlinux: join(directory, VMLINUX),
    modules: join(directory, "lib/modules", found!),
  };
}

/** The newest kernel of a series that apt has; without a network, the newest that was fetched before. */
export async function fetchKernel({ packages }: GuestKernel): Promise<KernelImage> {
  for (const refresh of [false, true]) {
    // The lists are not there, or name a version that has gone.
    if (refresh) await apt("update", "-q");
    const name = await newestPackage(packages);
    if (name === undefined) continue;
    const folder = await cacheName(name);
    if (existsSync(join(CACHE, folder, VMLINUX))) return describeImage(folder);
    const fetched = await fetchAndUnpack(name, folder);
    if (fetched.status === 0) {
      removeOthers(packages, folder);
      return describeImage(folder);
    }
    if (!refresh) continue;
    const older = cached(packages);
    if (older !== undefined) return describeImage(older);
    throw new Unavailable(`apt-get could not download ${name}: ${fetched.stderr.trim()}`);
  }
  const older = cached(packages);
  if (older !== undefined) return describeImage(older);
  throw new Unavailable(`apt knows no package like ${packages.source}`);
}

function apt(...args: string[]): Promise<Output> {
  // As another user apt may not enter the cache.
  return run(["apt-get", "-o", "APT::Sandbox::User=root", ...args], { timeoutMs: 600_000 });
}

async function fetchAndUnpack(name: string, folder: string): Promise<Output> {
  const draft = join(CACHE, `draft-${process.pid}`);
  mkdirSync(draft, { recursive: true });
  try {
    const download = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name];
    const output = await run(["env", "-C", draft, ...download], { timeoutMs: 600_000 });
    if (output.status !== 0) return output;
    const archive = join(draft, readdirSync(draft)[0]!);
    await must(["dpkg", "-x", archive, draft], { timeoutMs: 300_000 });
    rmSync(archive);
    const [found] = readdirSync(join(draft, "lib/modules"));
    await must(["depmod", "-b", draft, found!], { timeoutMs: 120_000 });
    await unpackKernel(readFileSync(join(draft, `boot/vmlinuz-${found}`)), join(draft, VMLINUX));
    await ownAsRepository(draft);
    renameSync(draft, join(CACHE, folder));
    return output;
  } finally {
    rmSync(draft, { recursive: true, force: true });
  }
}

/** So that `make clean` works without root. */
export async function ownAsRepository(path: string): Promise<void> {
  await must(["chown", "-R", "--reference", repositoryPath("."), path], { timeoutMs: 120_000 });
}

function removeOthers(packages: RegExp, kept: string): void {
  for (const name of readdirSync(CACHE)) {
    if (name !== kept && packages.test(name.split("_")[0]!)) rmSync(join(CACHE, name), { recursive: true });
  }
}

/** Offsets in a bzImage; see the kernel's Documentation/arch/x86/boot.rst. */
const SETUP_SECTORS = 0x1f1;
const PAYLOAD_OFFSET = 0x248;
const PAYLOAD_LENGTH = 0x24c;
/** After the compressed kernel comes its length, which decompressors take for damage. */
const LENGTH_BYTES = 4;

const DECOMPRESSORS = [
  { magic: "28b52ffd", argv: ["zstd", "-dc"] },
  { magic: "fd377a58", argv: ["xz", "-dc"] },
];

async function unpackKernel(image: Buffer, to: string): Promise<void> {
  const start = (image[SETUP_SECTORS]! + 1) * 512 + image.readUInt32LE(PAYLOAD_OFFSET);
  const payload = image.subarray(start, start + image.readUInt32LE(PAYLOAD_LENGTH) - LENGTH_BYTES);
  const magic = payload.toString("hex", 0, 4);
  const format = DECOMPRESSORS.find((item) => item.magic === magic);
  if (format === undefined) throw new Error(`the kernel is compressed in an unknown format: ${magic}`);
  await must(["sh", "-c", `exec ${format.argv.join(" ")} >"$1"`, "sh", to], {
    input: payload,
    timeoutMs: 120_000,
  });
}
