// SPDX-License-Identifier: Apache-2.0

import type { LastHopEntry } from "../../ops/types.ts";
import { usageError } from "../arguments.ts";
import { type CommandGroup, defineCommand, printResult } from "../command.ts";
import { labelsText, tags, tunnelText, viaText } from "../flowText.ts";
import { age, bytes } from "../format.ts";
import { table } from "../table.ts";

function parseIndex(text: string): number {
  if (/^\d{1,7}$/.test(text)) return Number(text);
  throw usageError(`"${text}" is not the index of a last hop`, "`lasthop last-hops list` shows them.");
}

const listCommand = defineCommand({
  name: "list",
  describe: "List the last hops that were learned",
  examples: [["last-hops list", "MAC, interface, tags, flows, packets and bytes of each"]],
  async run(_args, context) {
    const { listLastHops } = await import("../../ops/lastHops.ts");
    const entries = await listLastHops(context.op);
    await printResult(context, { last_hops: entries }, () => lastHopsText(entries));
  },
});

const showCommand = defineCommand({
  name: "show",
  describe: "Show one last hop",
  examples: [["last-hops show 3", "by its index, as `last-hops list` has it"]],
  words: { index: { describe: "index of the last hop" } },
  async run(args, context) {
    const index = parseIndex(args.index);
    const { showLastHop } = await import("../../ops/lastHops.ts");
    const entry = showLastHop(context.op, index);
    await printResult(context, entry, () => lastHopsText([entry]));
  },
});

export const lastHopsGroup: CommandGroup = {
  name: "last-hops",
  describe: "The devices' addresses that flows go back to",
  commands: [listCommand, showCommand],
};

export function lastHopsText(entries: LastHopEntry[]): string {
  if (entries.length === 0) return "no last hop was learned\n";
  return table(
    [
      { title: "INDEX", right: true },
      { title: "MAC" },
      { title: "INTERFACE" },
      { title: "VLAN" },
      { title: "VTEP", optional: true },
      { title: "TUNNEL", optional: true },
      { title: "LABELS", optional: true },
      { title: "IPSEC", optional: true },
      { title: "VIA", optional: true },
      { title: "STATE" },
      { title: "ORIGIN" },
      { title: "DEVICE" },
      { title: "FLOWS", right: true },
      { title: "REQUESTS", right: true },
      { title: "BYTES", right: true },
      { title: "REPLIES", right: true },
      { title: "BYTES", right: true },
      { title: "RELEARNS", right: true },
      { title: "IDLE", right: true },
    ],
    entries.map((entry) => [
      entry.index,
      entry.mac,
      entry.interface,
      tags(entry.tags),
      entry.vtep,
      entry.tunnel && tunnelText(entry.tunnel),
      entry.labels.length === 0 ? null : labelsText(entry.labels),
      entry.ipsec ? "yes" : null,
      viaText(entry),
      entry.state,
      entry.origin,
      entry.device,
      entry.flows,
      entry.request_packets,
      bytes(entry.request_bytes),
      entry.reply_packets,
      bytes(entry.reply_bytes),
      entry.relearns,
      entry.idle_seconds === null ? null : age(entry.idle_seconds),
    ]),
  );
}
