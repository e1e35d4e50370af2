// SPDX-License-Identifier: Apache-2.0
// Other builds of lasthop, as an upgrade meets them: in folders of their own, removed afterwards.

import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { repositoryPath } from "./paths.ts";
import { must } from "./run.ts";

const MULTIARCH = { x64: "x86_64-linux-gnu", arm64: "aarch64-linux-gnu" }[process.arch as "x64" | "arm64"];

export interface Build {
  /** What `node` runs. */
  program: string;
  directory: string;
  remove(): void;
}

function folder(version: string): Build {
  const directory = mkdtempSync(join(tmpdir(), `lasthop-build-${process.pid}-`));
  const manifest = JSON.parse(readFileSync(repositoryPath("package.json"), "utf8")) as object;
  writeFileSync(join(directory, "package.json"), JSON.stringify({ ...manifest, version }));
  symlinkSync(repositoryPath("node_modules"), join(directory, "node_modules"));
  return {
    directory,
    program: join(directory, "dist/cli/main.js"),
    remove: () => rmSync(directory, { recursive: true, force: true }),
  };
}

/** Every object of a folder of sources. */
async function compile(source: string, directory: string): Promise<void> {
  for (const name of readdirSync(source).filter((name) => name.endsWith(".bpf.c"))) {
    const output = join(directory, name.replace(/\.c$/, ".o"));
    await must([
      "clang",
      ...["-target", "bpf", "-mcpu=v3", "-O2", "-g", `-I/usr/include/${MULTIARCH}`],
      ...["-c", join(source, name), "-o", output],
    ]);
    await must(["llvm-strip", "-g", output]);
  }
}

/** The same code and another BPF object, of sources in which every `from` is `to`. */
export async function otherObject(version: string, from: string, to: string): Promise<Build> {
  const build = folder(version);
  cpSync(repositoryPath("dist"), join(build.directory, "dist"), { recursive: true });
  const sources = join(build.directory, "bpf");
  cpSync(repositoryPath("bpf"), sources, { recursive: true });
  let changed = 0;
  for (const name of readdirSync(sources)) {
    const text = readFileSync(join(sources, name), "utf8");
    if (text.includes(from)) changed++;
    writeFileSync(join(sources, name), text.replaceAll(from, to));
  }
  if (changed === 0) throw new Error(`no source has ${from}`);
  await compile(sources, join(build.directory, "dist/bpf"));
  return build;
}

/** The same code with a file that is no BPF object. */
export function brokenObject(version: string): Build {
  const build = folder(version);
  cpSync(repositoryPath("dist"), join(build.directory, "dist"), { recursive: true });
  writeFileSync(join(build.directory, "dist/bpf/lasthop.bpf.o"), "not an object file");
  return build;
}

/** A whole build of sources whose header was changed: its tables lie otherwise. */
export async function otherLayout(version: string, change: (header: string) => string): Promise<Build> {
  const build = folder(version);
  for (const name of ["bpf", "src", "scripts", "tsconfig.json", "tsconfig.build.json"]) {
    cpSync(repositoryPath(name), join(build.directory, name), { recursive: true });
  }
  const header = join(build.directory, "bpf/abi.h");
  writeFileSync(header, change(readFileSync(header, "utf8")));
  await must([process.execPath, join(build.directory, "scripts/layout.mjs")]);
  await must([
    process.execPath,
    repositoryPath("node_modules/typescript/bin/tsc"),
    // What its structs have more the sources do not know.
    ...["--noCheck", "-p", join(build.directory, "tsconfig.build.json")],
  ]);
  mkdirSync(join(build.directory, "dist/bpf"), { recursive: true });
  await compile(join(build.directory, "bpf"), join(build.directory, "dist/bpf"));
  return build;
}
