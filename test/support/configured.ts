// SPDX-License-Identifier: Apache-2.0
// `lasthop plan` and `lasthop apply` with a configuration that is given as text.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ApplyReport, PlanReport } from "../../src/ops/types.ts";
import type { Lasthop } from "./lasthop.ts";
import type { Output } from "./run.ts";

export class Configured {
  readonly file: string;
  readonly #directory: string;
  readonly #lasthop: Lasthop;

  constructor(lasthop: Lasthop) {
    this.#lasthop = lasthop;
    this.#directory = mkdtempSync(join(tmpdir(), `lasthop-config-${process.pid}-`));
    this.file = join(this.#directory, "lasthop.yaml");
  }

  close(): void {
    rmSync(this.#directory, { recursive: true, force: true });
  }

  write(config: string): void {
    writeFileSync(this.file, config);
  }

  /** Whatever its status. */
  run(command: "plan" | "apply", config: string, ...more: string[]): Promise<Output> {
    this.write(config);
    return this.#lasthop.run(...more, command, "-c", this.file);
  }

  async plan(config: string): Promise<PlanReport & { status: number }> {
    const output = await this.run("plan", config, "--json");
    return { ...(parsed(output) as PlanReport), status: output.status };
  }

  async apply(config: string): Promise<ApplyReport & { status: number; warned: string }> {
    const output = await this.run("apply", config, "--json");
    return { ...(parsed(output) as ApplyReport), status: output.status, warned: output.stderr };
  }
}

function parsed(output: Output): unknown {
  if (output.stdout === "") throw new Error(`no document, status ${output.status}: ${output.stderr}`);
  return JSON.parse(output.stdout);
}

/** What kinds of action there are, and about what. */
export function told({ actions }: PlanReport): string[] {
  return actions.map(({ kind, object }) => `${kind} ${object}`);
}
