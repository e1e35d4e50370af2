// SPDX-License-Identifier: Apache-2.0
// The lint rules that keep imports running one way: each is shown to object to what it forbids, and to
// nothing else.

import { spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, test } from "vitest";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const directory = mkdtempSync(join(tmpdir(), "lasthop-layering-"));
copyFileSync(`${ROOT}biome.json`, join(directory, "biome.json"));
afterAll(() => rmSync(directory, { recursive: true }));

/** What each folder may import of the others. */
const MAY_IMPORT: Record<string, string[]> = {
  abi: [],
  config: ["abi"],
  ffi: ["abi"],
  libc: ["abi", "ffi"],
  libbpf: ["abi", "ffi", "libc"],
  kernel: ["abi", "config", "libbpf", "libc"],
  tables: ["abi", "config", "libbpf", "kernel"],
  controller: ["abi", "config", "libbpf", "libc", "kernel", "tables"],
  metrics: ["abi", "config", "libbpf", "libc", "kernel", "tables", "controller"],
  ops: ["abi", "config", "libbpf", "libc", "kernel", "tables", "controller", "metrics"],
  daemon: ["abi", "config", "ffi", "libc", "libbpf", "kernel", "tables", "controller", "metrics", "ops"],
  cli: ["abi", "config", "ops", "daemon"],
};
/** Packages, and the one folder that may import them. */
const BELONGS_TO: Record<string, string> = {
  koffi: "ffi",
  "ffi-napi": "ffi",
  "ref-napi": "ffi",
  yargs: "cli",
  "yargs/helpers": "cli",
  "prom-client": "metrics",
  yaml: "config",
  zod: "config",
};
const FOLDERS = Object.keys(MAY_IMPORT);

/** Which of these imports the lint refuses in a file of that name. */
function refused(file: string, imports: readonly string[]): string[] {
  mkdirSync(dirname(join(directory, file)), { recursive: true });
  const lines = imports.map((path, index) => `export { x as x${index} } from "${path}";\n`);
  writeFileSync(join(directory, file), lines.join(""));
  const args = [
    "lint",
    "--only=style/noRestrictedImports",
    "--reporter=json",
    "--max-diagnostics=none",
    file,
  ];
  const { stdout } = spawnSync(`${ROOT}node_modules/.bin/biome`, args, { cwd: directory, encoding: "utf8" });
  const { diagnostics } = JSON.parse(stdout) as {
    diagnostics: { category: string; location: { start: { line: number } } }[];
  };
  const found = diagnostics.filter((item) => item.category === "lint/style/noRestrictedImports");
  const numbers = found.map((item) => item.location.start.line);
  return imports.filter((_, index) => numbers.includes(index + 1));
}

describe("imports", () => {
  test.each(FOLDERS)("of src/%s", (folder) => {
    const others = FOLDERS.filter((other) => other !== folder);
    const forbidden = others.filter((other) => !MAY_IMPORT[folder]!.includes(other));
    const upFrom = (up: string) => (other: string) => `${up}${other}/index.ts`;
    const packages = Object.keys(BELONGS_TO);
    const foreign = packages.filter((name) => BELONGS_TO[name] !== folder);
    for (const [file, up] of [
      [`src/${folder}/example.ts`, "../"],
      [`src/${folder}/deeper/example.ts`, "../../"],
    ] as const) {
      const imports = [
        ...others.map(upFrom(up)),
        `${up}errors.ts`,
        `${up}log.ts`,
        "./own.ts",
        "node:fs",
        ...packages,
      ];
      expect(refused(file, imports), file).toEqual([...forbidden.map(upFrom(up)), ...foreign]);
    }
  });

  test("of the files beside the folders", () => {
    const folders = FOLDERS.map((folder) => `./${folder}/index.ts`);
    for (const file of ["src/errors.ts", "src/log.ts", "src/addresses.ts"]) {
      expect(refused(file, [...folders, "./tuple.ts", "node:net"])).toEqual([...folders, "./tuple.ts"]);
    }
    expect(refused("src/tuple.ts", [...folders, "./errors.ts", "./addresses.ts", "./ops/types.ts"])).toEqual(
      folders,
    );
  });

  test("of shared types: the controller may name those of the operations", () => {
    expect(refused("src/controller/example.ts", ["../ops/types.ts", "../ops/attach.ts"])).toEqual([
      "../ops/attach.ts",
    ]);
  });
});
