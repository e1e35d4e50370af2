// SPDX-License-Identifier: Apache-2.0

import type { TunnelDetails, TunnelEntry } from "../../ops/types.ts";
import { type CommandGroup, defineCommand, printResult } from "../command.ts";
import { bytes } from "../format.ts";
import { printable, table } from "../table.ts";

const listCommand = defineCommand({
  name: "list",
  describe: "List the tunnels, with traffic and state",
  examples: [["tunnels list", "both ends, who encapsulates, packets and errors of each"]],
  async run(_args, context) {
    const { listTunnels } = await import("../../ops/tunnels.ts");
    const tunnels = await listTunnels(context.op);
    await printResult(context, { tunnels }, () => tunnelsText(tunnels));
  },
});

const showCommand = defineCommand({
  name: "show",
  describe: "Show everything about a tunnel",
  words: { name: { describe: "name of the tunnel, which is that of its interface" } },
  examples: [["tunnels show fw-a", "its parameters, and where its programs are"]],
  async run({ name }, context) {
    const { showTunnel } = await import("../../ops/tunnels.ts");
    const tunnel = await showTunnel(context.op, name);
    await printResult(context, tunnel, () => tunnelText(tunnel));
  },
});

export const tunnelsGroup: CommandGroup = {
  name: "tunnels",
  describe: "The tunnels of the configuration",
  commands: [listCommand, showCommand],
};

export function tunnelsText(tunnels: readonly TunnelEntry[]): string {
  if (tunnels.length === 0) return "there are no tunnels (`tunnels:` in the configuration)\n";
  return table(
    [
      { title: "NAME" },
      { title: "TYPE" },
      { title: "ENCAP" },
      { title: "LOCAL" },
      { title: "REMOTE" },
      { title: "ID" },
      { title: "UNDERLAY" },
      { title: "MTU", right: true },
      { title: "STATE" },
      { title: "RECEIVED", right: true },
      { title: "BYTES", right: true },
      { title: "ERRORS", right: true },
      { title: "SENT", right: true },
      { title: "BYTES", right: true },
      { title: "ERRORS", right: true },
    ],
    tunnels.map((tunnel) => [
      tunnel.name,
      tunnel.type,
      tunnel.encapsulation,
      tunnel.local,
      tunnel.remote,
      idText(tunnel),
      tunnel.underlay,
      tunnel.mtu,
      tunnel.state.replaceAll("_", " "),
      tunnel.received_packets,
      bytes(tunnel.received_bytes),
      tunnel.received_errors,
      tunnel.sent_packets,
      bytes(tunnel.sent_bytes),
      tunnel.sent_errors,
    ]),
  );
}

/** MPLS: labels of requests, and of replies. */
function idText({ id, labels }: TunnelEntry): string | null {
  if (labels) return `${labels.request.join("/")}>${labels.reply.join("/")}`;
  return id === null ? null : String(id);
}

export function tunnelText(tunnel: TunnelDetails): string {
  const { labels } = tunnel;
  const made = tunnel.made_by_lasthop ? "made by lasthop" : "was there already";
  const rows: [string, string | number | null][] = [
    ["type", tunnel.type],
    ["encapsulation", tunnel.encapsulation],
    ["interface", `${tunnel.kind ?? "gone"}, ifindex ${tunnel.ifindex}, ${made}`],
    ["state", tunnel.state.replaceAll("_", " ")],
    ["local", tunnel.local],
    ["remote", tunnel.remote],
    ["id", tunnel.id],
    ["port", tunnel.port],
    ["labels of requests", labels?.request.join(" ") ?? null],
    ["labels of replies", labels?.reply.join(" ") ?? null],
    ["next hop", tunnel.next_hop],
    ["TTL", tunnel.ttl_model === "uniform" ? "that of the packet" : tunnel.ttl],
    ["TOS", tunnel.tos],
    ["underlay", tunnel.underlay],
    ["MTU", tunnel.mtu],
    ["MAC", tunnel.mac],
    ["hidden end", tunnel.hidden_interface],
    ["received", traffic(tunnel.received_packets, tunnel.received_bytes, tunnel.received_errors)],
    ["sent", traffic(tunnel.sent_packets, tunnel.sent_bytes, tunnel.sent_errors)],
    ...tunnel.programs.map(({ program, interface: name, hook, program_id }): [string, string] => [
      "program",
      `${program} on ${name}, ${hook === null ? "missing" : `by ${hook}, id ${program_id}`}`,
    ]),
  ];
  const given = rows.filter(([, value]) => value !== null);
  const width = Math.max(...given.map(([name]) => name.length));
  const lines = given.map(([name, value]) => `  ${name.padEnd(width)}  ${printable(String(value))}\n`);
  return `${printable(tunnel.name)}\n${lines.join("")}`;
}

function traffic(packets: number, byteCount: number, errors: number): string {
  return `${packets} packets, ${bytes(byteCount)}, ${errors} errors`;
}
