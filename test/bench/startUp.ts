// SPDX-License-Identifier: Apache-2.0
// How long a person waits for the command.

import { spawnSync } from "node:child_process";
import type { Product } from "./product.ts";
import type { Report } from "./report.ts";
import { interleave, type Subject } from "./stats.ts";

/** Milliseconds that a command takes. */
export function commandTime(id: string, command: readonly string[]): Subject {
  return {
    id,
    run() {
      const start = process.hrtime.bigint();
      const { status, stderr } = spawnSync(command[0]!, command.slice(1), { encoding: "utf8" });
      const elapsed = Number(process.hrtime.bigint() - start) / 1e6;
      if (status !== 0) throw new Error(`${command.join(" ")} ended with ${status}: ${stderr}`);
      return elapsed;
    },
  };
}

export async function measureStartUp(report: Report, product: Product, rounds: number): Promise<void> {
  const lasthop = product.argv();
  const words = lasthop.slice(0, lasthop.indexOf("--pin-root"));
  const node = words.slice(0, -1);
  const samples = await interleave(
    [
      commandTime("node", [...node, "-e", "0"]),
      commandTime("version", [...words, "--version"]),
      commandTime("status", product.argv("status")),
    ],
    rounds,
  );
  const row = (id: string, title: string, most: number) => ({
    id: `start_up_${id}`,
    subject: id,
    title,
    baseline: { subject: "node", title: "node -e 0" },
    comparison: "difference" as const,
    target: { of: "value", bound: "at_most", value: most } as const,
  });
  report.add("Start-up of the command", "ms", samples, [
    row("version", "lasthop --version", 150),
    row("status", "lasthop status", 300),
  ]);
}
