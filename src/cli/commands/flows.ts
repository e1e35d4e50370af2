// SPDX-License-Identifier: Apache-2.0

import type { FlowLinesChunk } from "../../ops/flowLines.ts";
import type { FlowEntry, FlowFilter } from "../../ops/types.ts";
import { tupleWords, usageError, wholeNumber, zoneOption } from "../arguments.ts";
import { type CommandContext, type CommandGroup, defineCommand, printResult } from "../command.ts";
import { flowEnds, lastHopText } from "../flowText.ts";
import { age, plural } from "../format.ts";
import { ChunkedWriter } from "../output.ts";
import { type Cell, TableLayout } from "../table.ts";

const filterOptions = {
  zone: zoneOption,
  "device-mac": { value: "MAC", describe: "MAC address of the last hop" },
  interface: { value: "NAME", describe: "interface of the last hop" },
  state: { value: "STATE", describe: "state of the flow, such as established" },
  address: { value: "ADDRESS", describe: "address or prefix of either side" },
} as const;

interface FilterArguments {
  zone?: number | undefined;
  "device-mac"?: string | undefined;
  interface?: string | undefined;
  state?: string | undefined;
  address?: string | undefined;
}

function filterOf(args: FilterArguments): FlowFilter {
  return {
    ...(args.zone !== undefined && { zone: args.zone }),
    ...(args["device-mac"] !== undefined && { device_mac: args["device-mac"] }),
    ...(args.interface !== undefined && { interface: args.interface }),
    ...(args.state !== undefined && { state: args.state }),
    ...(args.address !== undefined && { address: args.address }),
  };
}

const listCommand = defineCommand({
  name: "list",
  describe: "List flows",
  details: "With --json one object a line. Flows are written as they are read, in no order.",
  examples: [
    ["flows list --limit 20", "any twenty"],
    ["flows list --address 198.51.100.0/24 --state established", "connections with one network"],
    ["flows list --json | jq -r .last_hop.mac | sort | uniq -c", "flows by device"],
  ],
  options: {
    ...filterOptions,
    limit: {
      value: "N",
      describe: "stop after so many",
      parse: wholeNumber("limit", 1, 1_000_000_000),
    },
  },
  async run(args, context) {
    const { listFlowLines, listFlows } = await import("../../ops/flows.ts");
    const filter = filterOf(args);
    if (args.limit !== undefined) filter.limit = args.limit;
    if (context.json) await writeLines(listFlowLines(context.op, filter), context);
    else await writeTable(listFlows(context.op, filter), context);
  },
});

const showCommand = defineCommand({
  name: "show",
  describe: "Show one flow",
  examples: [["flows show tcp 198.51.100.7:40000 10.0.0.5:443", "by its five-tuple"]],
  words: { tuple: tupleWords },
  options: { zone: zoneOption },
  async run(args, context) {
    const { parseTuple } = await import("../../tuple.ts");
    const tuple = parseTuple(args.tuple);
    const { showFlow } = await import("../../ops/flows.ts");
    const flow = showFlow(context.op, tuple, args.zone ?? 0);
    await printResult(context, flow, () => {
      const layout = new TableLayout(COLUMNS);
      layout.fit(row(flow));
      return layout.header() + layout.line(row(flow));
    });
  },
});

const flushCommand = defineCommand({
  name: "flush",
  describe: "Remove flows",
  details: "A flow that still has traffic is learned again with its next request.",
  examples: [
    ["flows flush --device-mac 02:00:00:00:0a:01", "those of one device"],
    ["flows flush --all", "every flow"],
  ],
  options: { ...filterOptions, all: { describe: "every flow" } },
  async run(args, context) {
    const filter = filterOf(args);
    const filtered = Object.keys(filter).length > 0;
    if (args.all && filtered) {
      throw usageError("filters and --all exclude each other", "Give the filters alone, or --all alone.");
    }
    if (!args.all && !filtered) {
      throw usageError("nothing says which flows", "Give a filter, or --all for every flow.");
    }
    const { flushFlows } = await import("../../ops/flows.ts");
    const result = await flushFlows(context.op, filter);
    await printResult(context, result, () => `removed ${plural(result.removed, "flow")}\n`);
  },
});

export const flowsGroup: CommandGroup = {
  name: "flows",
  describe: "The table of flows",
  commands: [listCommand, showCommand, flushCommand],
};

const COLUMNS = [
  { title: "PROTO" },
  { title: "ZONE", right: true },
  { title: "REMOTE" },
  { title: "LOCAL" },
  { title: "STATE" },
  { title: "TIER" },
  { title: "LAST HOP" },
  { title: "VM" },
  { title: "IDLE", right: true },
  { title: "FLAGS" },
];

function row(flow: FlowEntry): Cell[] {
  const { remote, local } = flowEnds(flow);
  return [
    flow.protocol,
    flow.zone,
    remote,
    local,
    flow.state,
    flow.tier,
    lastHopText(flow),
    flow.vm ?? flow.vm_mac,
    age(flow.idle_seconds),
    flow.flags.join(",") || null,
  ];
}

async function writeLines(chunks: Iterable<FlowLinesChunk>, context: CommandContext): Promise<void> {
  const progress = new Progress(context);
  for (const { lines, flows } of chunks) {
    await context.stdout.write(lines);
    progress.count += flows;
    await progress.show();
  }
  await progress.clear();
}

const LAYOUT_ROWS = 500;

/** The first rows decide on the widths; later ones go out as they come, and may widen the columns. */
async function writeTable(entries: Iterable<FlowEntry>, context: CommandContext): Promise<void> {
  const writer = new ChunkedWriter(context.stdout);
  const progress = new Progress(context);
  const layout = new TableLayout(COLUMNS);
  let first: Cell[][] | undefined = [];
  const begin = () => {
    const text = (first ?? []).map((cells) => layout.line(cells)).join("");
    first = undefined;
    return writer.add(layout.header() + text);
  };
  for (const entry of entries) {
    const cells = row(entry);
    layout.fit(cells);
    let full: Promise<void> | undefined;
    if (first === undefined) full = writer.add(layout.line(cells));
    else if (first.push(cells) === LAYOUT_ROWS) full = begin();
    progress.count++;
    if (full) {
      await full;
      await progress.show();
    }
  }
  await progress.clear();
  if (progress.count === 0) await context.stderr.write("no flow\n");
  else if (first !== undefined) await begin();
  await writer.flush();
}

const PROGRESS_INTERVAL_MS = 200;

/** A count on stderr while a long list goes to a file or a pipe. */
class Progress {
  count = 0;
  readonly #context: CommandContext;
  #shown = performance.now();
  #visible = false;

  constructor(context: CommandContext) {
    this.#context = context;
  }

  async show(): Promise<void> {
    const { stdout, stderr } = this.#context;
    if (!stderr.isTerminal || stdout.isTerminal) return;
    const now = performance.now();
    if (now - this.#shown < PROGRESS_INTERVAL_MS) return;
    this.#shown = now;
    this.#visible = true;
    await stderr.write(`\r${plural(this.count, "flow")}`);
  }

  async clear(): Promise<void> {
    if (this.#visible) await this.#context.stderr.write("\r\x1b[K");
  }
}
