// SPDX-License-Identifier: Apache-2.0

import type { SweepReport } from "../../ops/types.ts";
import { secondsOption } from "../arguments.ts";
import { defineCommand, printResult } from "../command.ts";
import { duration, plural } from "../format.ts";
import { type Cell, table } from "../table.ts";

export const sweepCommand = defineCommand({
  name: "sweep",
  describe: "Remove idle flows in one pass",
  examples: [
    ["sweep", "by the timeouts of each protocol and state"],
    ["sweep --idle 300", "everything that was idle for five minutes"],
  ],
  options: {
    idle: secondsOption("idle", "expire what was idle for so many seconds, whatever its state"),
  },
  async run(args, context) {
    const { sweep } = await import("../../ops/sweep.ts");
    const report = await sweep(context.op, args.idle === undefined ? {} : { idle_seconds: args.idle });
    await printResult(context, report, () => sweepText(report));
  },
});

function sweepText(report: SweepReport): string {
  const total = (key: "entries" | "expired") => report.tables.reduce((sum, item) => sum + item[key], 0);
  const calls = `${plural(report.calls, "kernel call")}, the longest ${duration(report.longest_call_seconds)}`;
  const rows = report.tables.map((item) => [
    item.table,
    item.entries,
    item.expired,
    item.local_origin,
    states(item.states),
    states(item.evicted),
  ]);
  return [
    report.clock_repaired
      ? "the programs' clock was wrong and has been set right; nothing was expired: sweep again in a minute\n"
      : "",
    `expired ${total("expired")} of ${plural(total("entries"), "flow")} `,
    `in ${duration(report.duration_seconds)} (${calls})\n`,
    `released ${plural(report.last_hops_released, "last hop")}\n\n`,
    table(
      [
        { title: "TABLE" },
        { title: "ENTRIES", right: true },
        { title: "EXPIRED", right: true },
        { title: "LOCAL ORIGIN", right: true },
        { title: "STATES" },
        { title: "EVICTED" },
      ],
      rows,
    ),
    zones(report),
  ].join("");
}

/** Those that have flows. */
function zones(report: SweepReport): string {
  const rows: Cell[][] = report.zones
    .map((item) => [item.zone ?? "others", item.table, states(item.states)])
    .filter(([, , text]) => text !== null);
  if (rows.length === 0) return "";
  return `\n${table([{ title: "ZONE", right: true }, { title: "TABLE" }, { title: "STATES" }], rows)}`;
}

function states(counts: Record<string, number>): string | null {
  const some = Object.entries(counts).filter(([, count]) => count > 0);
  return some.map(([state, count]) => `${state} ${count}`).join(", ") || null;
}
