// SPDX-License-Identifier: Apache-2.0

import type { Explanation } from "../../ops/types.ts";
import { tupleWords, zoneOption } from "../arguments.ts";
import { defineCommand, printResult } from "../command.ts";
import { lastHopText } from "../flowText.ts";
import { age, plural } from "../format.ts";
import { printable } from "../table.ts";

export const explainCommand = defineCommand({
  name: "explain",
  describe: "Say what will happen to a reply on a flow, and why",
  details:
    "Compares what was learned with what the host's own route lookup says; of a service, says which VM has the flow, or " +
    "gets the next request. Changes nothing.",
  examples: [
    ["explain tcp 198.51.100.7:40000 10.0.0.5:443", "a TCP connection from a client to a VM"],
    ["explain 'tcp [2001:db8::7]:40000 -> [2001:db8:1::5]:443' --zone 7", "over IPv6, in zone 7"],
    ["explain icmp 198.51.100.7 10.0.0.5 4711", "a ping by its identifier"],
  ],
  words: { tuple: tupleWords },
  options: { zone: zoneOption },
  async run(args, context) {
    const { parseTuple, formatTuple } = await import("../../tuple.ts");
    const tuple = parseTuple(args.tuple);
    const { explain } = await import("../../ops/explain.ts");
    const result = await explain(context.op, tuple, args.zone ?? 0);
    await printResult(context, result, () => explanationText(result, formatTuple(result.tuple)));
  },
});

function explanationText(result: Explanation, tuple: string): string {
  const facts: [string, string][] = [
    ["flow", `${tuple}, zone ${result.zone}`],
    ["learned", learned(result)],
    ...serviceFacts(result),
    ["host", result.host],
    ["route lookup", route(result)],
    ["reply", `${result.verdict}, reason ${result.reason}`],
  ];
  const width = Math.max(...facts.map(([name]) => name.length));
  const lines = facts.map(([name, value]) => `${`${name}:`.padEnd(width + 2)}${printable(value)}\n`);
  const notes = result.notes.map((note) => `note: ${printable(note)}\n`);
  const delivery = result.delivery === null ? [] : [`${printable(result.delivery)}\n`];
  return [...lines, "\n", ...delivery, `${printable(result.conclusion)}\n`, ...notes].join("");
}

function serviceFacts({ service }: Explanation): [string, string][] {
  if (service === null) return [];
  const { name, policy, vms_up, vms_total, on_vm_down } = service;
  return [
    ["service", `${name}, ${policy}, ${vms_up} of ${plural(vms_total, "VM")} up, on VM down ${on_vm_down}`],
  ];
}

function learned(result: Explanation): string {
  if (result.flow === null) return "nothing";
  const { state, tier, idle_seconds: idle, vm, vm_mac: mac } = result.flow;
  const whose = vm === null ? "" : `, VM ${vm} (${mac})`;
  return `${lastHopText(result.flow)}; state ${state}, ${tier} tier, idle ${age(idle)}${whose}`;
}

function route(result: Explanation): string {
  if (result.route === null) return "the guest decides";
  const { interface: name, gateway, mac, source } = result.route;
  const words = [
    gateway === null ? "on link" : `via ${gateway}`,
    mac === null ? "" : `(${mac})`,
    `on ${name}`,
    source === null ? "" : `from ${source}`,
  ];
  return words.filter((word) => word !== "").join(" ");
}
