// SPDX-License-Identifier: Apache-2.0

import type { TraceEvent } from "../../ops/types.ts";
import { secondsOption, tupleWords, zoneOption } from "../arguments.ts";
import { defineCommand } from "../command.ts";
import { TableLayout } from "../table.ts";

const COLUMNS = [
  { title: "SECONDS", right: true },
  { title: "DIRECTION" },
  { title: "INTERFACE" },
  { title: "HOOK" },
  { title: "VERDICT" },
  { title: "REASON" },
  { title: "STATE" },
  { title: "FLAGS" },
  { title: "BYTES", right: true },
  { title: "TO MAC AND INTERFACE" },
];
// Lines are written as packets come, so the columns are made wide enough beforehand.
const SAMPLE = ["123.456", "request", "interface-name0", "xdp_generic", "redirect", "stale_last_hop"];
const SAMPLE_REST = ["half_closed", "SFRPA", "65535", ""];

export const traceCommand = defineCommand({
  name: "trace",
  describe: "Show every decision on a flow as it happens",
  details: "Runs until Ctrl-C, or as long as --seconds says.",
  examples: [
    ["trace tcp 198.51.100.7:40000 10.0.0.5:443", "until Ctrl-C"],
    ["trace udp 198.51.100.7:53 10.0.0.5:40000 --seconds 10 --json", "ten seconds, one object a line"],
  ],
  words: { tuple: tupleWords },
  options: { zone: zoneOption, seconds: secondsOption("seconds", "end after so many seconds") },
  endless: true,
  async run(args, context) {
    const { parseTuple } = await import("../../tuple.ts");
    const tuple = parseTuple(args.tuple);
    const { trace } = await import("../../ops/trace.ts");
    const layout = new TableLayout(COLUMNS);
    layout.fit([...SAMPLE, ...SAMPLE_REST]);
    if (!context.json) await context.stdout.write(layout.header());
    const events = trace(context.op, tuple, {
      zone: args.zone ?? 0,
      signal: context.signal,
      ...(args.seconds !== undefined && { seconds: args.seconds }),
    });
    for await (const event of events) {
      await context.stdout.write(context.json ? `${JSON.stringify(event)}\n` : eventText(event, layout));
    }
  },
});

function eventText(event: TraceEvent, layout: TableLayout): string {
  const line = layout.line([
    event.time_seconds.toFixed(3),
    event.direction,
    event.interface,
    event.hook,
    event.verdict,
    event.reason,
    event.flow_state,
    event.tcp_flags,
    event.length_bytes,
    destination(event),
  ]);
  return `${line}         ${event.explanation}\n`;
}

function destination(event: TraceEvent): string {
  const { mac_before: before, mac_after: after, interface_after: name } = event;
  if (event.verdict === "stack") return `${before} -> the host`;
  if (event.verdict === "answer")
    return `${before} -> ${event.direction === "reply" ? "the VM" : "its sender"}`;
  if (name === null) return before;
  return `${before} -> ${after === null ? name : `${after} ${name}`}`;
}
