// SPDX-License-Identifier: Apache-2.0
// make bench: one table and one JSON file. BENCH_QUICK=1 measures less, and less surely.

import { mkdirSync, writeFileSync } from "node:fs";
import os from "node:os";
import { dirname } from "node:path";
import { parseArgs } from "node:util";
import { Lab } from "../support/lab.ts";
import { repositoryPath } from "../support/paths.ts";
import { measureEndToEnd } from "./endToEnd.ts";
import { Fixtures } from "./fixtures.ts";
import { FlowTable } from "./flowTable.ts";
import { HotPath } from "./hotPath.ts";
import { measureInterfaceKinds } from "./interfaceKinds.ts";
import { buildRoutedHosts, measureReplyRate } from "./replyRate.ts";
import { Report } from "./report.ts";
import { measureServices } from "./services.ts";
import { measureStartUp } from "./startUp.ts";

const PARTS = [
  "hot-path",
  "reply-rate",
  "end-to-end",
  "flow-table",
  "start-up",
  "interfaces",
  "services",
] as const;
type Part = (typeof PARTS)[number];

interface Options {
  json: string;
  quick: boolean;
  parts: ReadonlySet<Part>;
}

function readOptions(): Options {
  const { values } = parseArgs({
    options: {
      json: { type: "string", default: repositoryPath("build/bench.json") },
      /** Comma-separated. */
      only: { type: "string", default: PARTS.join(",") },
      quick: { type: "boolean", default: Boolean(process.env.BENCH_QUICK) },
    },
  });
  const chosen = values.only.split(",");
  const unknown = chosen.find((name) => !PARTS.includes(name as Part));
  if (unknown !== undefined) throw new Error(`--only ${unknown}: the parts are ${PARTS.join(", ")}`);
  return { json: values.json, quick: values.quick, parts: new Set(chosen as Part[]) };
}

const FULL = {
  hotPath: { rounds: 11, packets: 500_000, flows: 500_000 },
  replyRate: { rounds: 9, frames: 200_000, flows: 100_000 },
  endToEnd: { rounds: 7, seconds: 1, connections: 10_000 },
  flowTable: { rounds: 5, flows: 1_000_000 },
  startUp: 15,
  interfaces: { rounds: 9, frames: 200_000 },
  services: {
    path: { rounds: 11, packets: 300_000, flows: 200_000 },
    rate: { rounds: 9, frames: 200_000, flows: 100_000 },
    connections: { rounds: 9, connections: 10_000 },
    updates: 15,
  },
};

const QUICK: typeof FULL = {
  hotPath: { rounds: 3, packets: 200_000, flows: 500_000 },
  replyRate: { rounds: 3, frames: 100_000, flows: 50_000 },
  endToEnd: { rounds: 2, seconds: 1, connections: 5_000 },
  flowTable: { rounds: 1, flows: 1_000_000 },
  startUp: 5,
  interfaces: { rounds: 3, frames: 50_000 },
  services: {
    path: { rounds: 3, packets: 200_000, flows: 200_000 },
    rate: { rounds: 3, frames: 100_000, flows: 50_000 },
    connections: { rounds: 3, connections: 5_000 },
    updates: 5,
  },
};

async function run({ parts, quick }: Options, report: Report, lab: Lab, fixtures: Fixtures): Promise<void> {
  const effort = quick ? QUICK : FULL;
  const measure = async (part: Part, task: () => Promise<void>) => {
    if (!parts.has(part)) return;
    const start = Date.now();
    process.stderr.write(`${part} … `);
    await task();
    process.stderr.write(`${Math.round((Date.now() - start) / 1000)} s\n`);
  };
  const { lanes, hosts } = await buildRoutedHosts(lab, fixtures);
  const host = hosts[0]!;
  const { lane, product } = host;
  await measure("hot-path", () => new HotPath(fixtures, lane, product).measure(report, effort.hotPath));
  await measure("reply-rate", () => measureReplyRate(report, fixtures, lanes, effort.replyRate));
  await measure("end-to-end", () => measureEndToEnd(report, effort.endToEnd));
  await measure("flow-table", () => new FlowTable(product).measure(report, effort.flowTable));
  await measure("interfaces", () => measureInterfaceKinds(report, lab, fixtures, effort.interfaces));
  await measure("services", () => measureServices(report, lab, fixtures, host, effort.services));
  await measure("start-up", () => measureStartUp(report, product, effort.startUp));
}

async function main(options: Options): Promise<void> {
  // Whoever measures comes first; what runs beside it should not count.
  os.setPriority(os.constants.priority.PRIORITY_HIGHEST);
  const start = Date.now();
  const report = new Report();
  const lab = new Lab();
  try {
    const fixtures = Fixtures.load();
    try {
      await run(options, report, lab, fixtures);
    } finally {
      fixtures.close();
    }
  } finally {
    await lab.close();
    // Also what was measured before a failure.
    if (report.rows.length > 0) {
      const elapsed = (Date.now() - start) / 1000;
      mkdirSync(dirname(options.json), { recursive: true });
      writeFileSync(options.json, report.json(options.quick, elapsed));
      process.stdout.write(report.text());
      process.stdout.write(`\n${report.summary(elapsed)}; ${options.json}\n`);
    }
  }
}

let options: Options;
try {
  options = readOptions();
} catch (error) {
  process.stderr.write(`bench: ${(error as Error).message}\n`);
  process.exit(2);
}
await main(options);
