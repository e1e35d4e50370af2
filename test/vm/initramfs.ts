// SPDX-License-Identifier: Apache-2.0
// The little file system from which a guest starts: busybox, a script, and the modules that it loads first.

import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { repositoryPath } from "../support/paths.ts";
import { must } from "../support/run.ts";
import type { KernelImage } from "./image.ts";

export interface Contents {
  /** Kernel modules; with those that they need they are named in /modules/list, in the order in which they load. */
  modules: readonly string[];
  /** In this repository: the first process. */
  init: string;
}

/** To the host's files over virtio and 9p, and an overlay on them. */
export const ON_HOST_FILES: Contents = {
  modules: ["virtio_pci", "9pnet_virtio", "9p", "overlay"],
  init: "test/vm/guest/init.sh",
};

/** Paths below the modules' folder, each after those that it needs; those built into the kernel are not among them. */
export function modulesInOrder(dependencies: string, wanted: readonly string[]): string[] {
  const needs = new Map<string, string[]>();
  for (const line of dependencies.split("\n").filter(Boolean)) {
    const [path, rest] = line.split(":") as [string, string];
    needs.set(path, rest.split(" ").filter(Boolean));
  }
  const paths = new Map([...needs.keys()].map((path) => [moduleName(path), path]));
  const ordered = new Set<string>();
  for (const name of wanted) {
    const path = paths.get(name);
    if (path === undefined) continue;
    // depmod lists what is needed last first.
    for (const needed of needs.get(path)!.toReversed()) ordered.add(needed);
    ordered.add(path);
  }
  return [...ordered];
}

function moduleName(path: string): string {
  return basename(path)
    .replace(/\.ko(\.\w+)?$/, "")
    .replaceAll("-", "_");
}

const DECOMPRESSORS: Record<string, string> = { ".xz": "xz", ".zst": "zstd" };

/** Copies a module to where busybox's insmod can read it. */
async function unpackModule(from: string, to: string): Promise<void> {
  const suffix = /\.ko(\.\w+)?$/.exec(from)?.[1];
  if (suffix === undefined) return copyFileSync(from, to);
  const tool = DECOMPRESSORS[suffix];
  if (tool === undefined) throw new Error(`${from} is compressed in an unknown format`);
  await must(["sh", "-c", `exec ${tool} -dc "$1" >"$2"`, "sh", from, to]);
}

/** Writes it to `to`; `scratch` is a folder that goes away again. */
export async function buildInitramfs(
  image: KernelImage,
  busybox: string,
  contents: Contents,
  to: string,
  scratch: string,
): Promise<void> {
  mkdirSync(join(scratch, "bin"), { recursive: true });
  mkdirSync(join(scratch, "modules"));
  try {
    copyFileSync(busybox, join(scratch, "bin/busybox"));
    copyFileSync(repositoryPath(contents.init), join(scratch, "init"));
    await must(["chmod", "755", join(scratch, "init"), join(scratch, "bin/busybox")]);
    const names: string[] = [];
    const dependencies = readFileSync(join(image.modules, "modules.dep"), "utf8");
    for (const path of modulesInOrder(dependencies, contents.modules)) {
      const name = `${moduleName(path)}.ko`;
      await unpackModule(join(image.modules, path), join(scratch, "modules", name));
      names.push(name);
    }
    writeFileSync(join(scratch, "modules/list"), names.map((name) => `${name}\n`).join(""));
    const pack = 'cd "$1" && find . | "$2" cpio -o -H newc >"$3"';
    await must(["sh", "-c", pack, "sh", scratch, busybox, to]);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}
