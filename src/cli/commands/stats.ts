// SPDX-License-Identifier: Apache-2.0

import { setTimeout as sleep } from "node:timers/promises";
import type { VerdictCount } from "../../ops/types.ts";
import { type CommandContext, defineCommand, printResult } from "../command.ts";
import { bytes } from "../format.ts";
import { table } from "../table.ts";

const WATCH_INTERVAL_MS = 1000;
const CLEAR_SCREEN = "\x1b[H\x1b[2J";

export const statsCommand = defineCommand({
  name: "stats",
  describe: "Count packets by interface and reason",
  details: "Every packet is counted once, with the reason why it left a program as it did.",
  examples: [
    ["stats", "since the interfaces were attached"],
    ["stats --watch", "again every second, with packets per second; Ctrl-C ends it"],
    ["stats --watch --json", "one object a line every second"],
  ],
  options: { watch: { describe: "show again every second" } },
  endless: true,
  async run(args, context) {
    const { stats } = await import("../../ops/stats.ts");
    if (args.watch) {
      await watch(context, () => stats(context.op));
      return;
    }
    const counts = await stats(context.op);
    await printResult(context, { counters: counts }, () => countersText(counts));
  },
});

async function watch(context: CommandContext, read: () => VerdictCount[] | Promise<VerdictCount[]>) {
  let before: Snapshot | undefined;
  while (!context.signal.aborted) {
    const now: Snapshot = { counts: await read(), time_ms: performance.now() };
    await printResult(context, { counters: now.counts }, () => {
      const clear = context.stdout.isTerminal ? CLEAR_SCREEN : "";
      return `${clear}${countersText(now.counts, packetRates(now, before))}${clear ? "" : "\n"}`;
    });
    before = now;
    await sleep(WATCH_INTERVAL_MS, undefined, { signal: context.signal }).catch((error: Error) => {
      if (error.name !== "AbortError") throw error;
    });
  }
}

interface Snapshot {
  counts: VerdictCount[];
  time_ms: number;
}

const keyOf = (count: VerdictCount) => `${count.ifindex} ${count.reason}`;

/** Packets per second since the snapshot before, by interface and reason. */
function packetRates(now: Snapshot, before: Snapshot | undefined): Map<string, number> | undefined {
  if (before === undefined) return undefined;
  const seconds = (now.time_ms - before.time_ms) / 1000;
  const earlier = new Map(before.counts.map((count) => [keyOf(count), count.packets]));
  return new Map(
    now.counts.map((count) => [
      keyOf(count),
      Math.round((count.packets - (earlier.get(keyOf(count)) ?? 0)) / seconds),
    ]),
  );
}

function countersText(counts: VerdictCount[], rates?: Map<string, number>): string {
  if (counts.length === 0) return "no packet was counted\n";
  const columns = [
    { title: "INTERFACE" },
    { title: "ROLE" },
    { title: "VERDICT" },
    { title: "REASON" },
    { title: "PACKETS", right: true },
    { title: "BYTES", right: true },
  ];
  if (rates) columns.push({ title: "PACKETS/S", right: true });
  const rows = counts.map((count) => [
    count.interface,
    count.role,
    count.verdict,
    count.reason,
    count.packets,
    bytes(count.bytes),
    ...(rates ? [rates.get(keyOf(count)) ?? 0] : []),
  ]);
  return table(columns, rows);
}
