// SPDX-License-Identifier: Apache-2.0
// lasthop as it is installed: the built command, with the capabilities of its systemd unit and no others.

import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { BpfMap, BpfProgram } from "../../src/libbpf/index.ts";
import type { Lab, Namespace } from "../support/lab.ts";
import { repositoryPath } from "../support/paths.ts";
import { must } from "../support/run.ts";

const UNIT_CAPABILITIES = "-all,+bpf,+net_admin,+perfmon";

export class Product {
  readonly pinRoot: string;
  readonly #namespace: Namespace;

  /** Each name of a lab is another instance. */
  constructor(lab: Lab, namespace: Namespace, name: string) {
    this.pinRoot = `${lab.pinRoot}/${name}`;
    this.#namespace = namespace;
  }

  /** The words that run `lasthop` with these arguments. */
  argv(...args: string[]): string[] {
    return [
      ...this.#namespace.prefix,
      "setpriv",
      "--inh-caps=-all",
      `--bounding-set=${UNIT_CAPABILITIES}`,
      process.execPath,
      CLI,
      "--pin-root",
      this.pinRoot,
      ...args,
    ];
  }

  run(...args: string[]): Promise<string> {
    return must(this.argv(...args), { timeoutMs: 60_000 });
  }

  async attach(uplinks: readonly string[], taps: readonly string[]): Promise<void> {
    for (const uplink of uplinks) await this.run("attach", uplink, "--role", "uplink");
    for (const tap of taps) await this.run("attach", tap, "--role", "tap");
  }

  /** With this text as its configuration file; JSON is YAML too. */
  apply(text: string): Promise<string> {
    return withFile(text, (path) => this.run("apply", "--config", path));
  }

  detach(): Promise<string> {
    return this.run("detach", "--all");
  }

  map(name: string): BpfMap {
    return BpfMap.openPinned(`${this.#pins}/maps/${name}`);
  }

  program(name: string): BpfProgram {
    return BpfProgram.openPinned(`${this.#pins}/programs/${name}`);
  }

  get #pins(): string {
    const version = readdirSync(this.pinRoot).find((name) => /^v\d/.test(name));
    if (version === undefined) throw new Error(`nothing is pinned under ${this.pinRoot}`);
    return `${this.pinRoot}/${version}`;
  }
}

/** A file with this text, as long as `task` takes. */
export async function withFile<T>(text: string, task: (path: string) => Promise<T>): Promise<T> {
  const directory = mkdtempSync(join(tmpdir(), "lasthop-bench-"));
  const path = join(directory, "lasthop.yaml");
  try {
    writeFileSync(path, text);
    return await task(path);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

export const CLI = repositoryPath("dist/cli/main.js");

/** Bytes of kernel memory that a map is charged for. */
export function kernelMemory(map: BpfMap): number {
  const match = /^memlock:\s*(\d+)/m.exec(readFileSync(`/proc/self/fdinfo/${map.fd}`, "utf8"));
  if (match === null) throw new Error(`no memlock in the fdinfo of ${map.name}`);
  return Number(match[1]);
}
