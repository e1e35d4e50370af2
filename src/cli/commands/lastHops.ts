// SPDX-License-Identifier: Apache-2.0

import type { LastHopEntry } from "../../ops/types.ts";
import { type CommandGroup, defineCommand, printResult } from "../command.ts";
import { tags } from "../flowText.ts";
import { age, bytes } from "../format.ts";
import { table } from "../table.ts";

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

export const lastHopsGroup: CommandGroup = {
  name: "last-hops",
  describe: "The devices' addresses that flows go back to",
  commands: [listCommand],
};

export function lastHopsText(entries: LastHopEntry[]): string {
  if (entries.length === 0) return "no last hop was learned\n";
  return table(
    [
      { title: "INDEX", right: true },
      { title: "MAC" },
      { title: "INTERFACE" },
      { title: "VLAN" },
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
