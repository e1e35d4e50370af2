// SPDX-License-Identifier: Apache-2.0

import type { InterfaceStatus, StatusReport } from "../../ops/types.ts";
import { defineCommand, printResult } from "../command.ts";
import { hexadecimal, viaText } from "../flowText.ts";
import { age, bytes, duration, percent, plural } from "../format.ts";
import { printable, table } from "../table.ts";

export const statusCommand = defineCommand({
  name: "status",
  describe: "Show what is attached and how full the tables are",
  examples: [["status", "interfaces, programs and tables"]],
  async run(_args, context) {
    const { status } = await import("../../ops/status.ts");
    const report = await status(context.op);
    await printResult(context, report, () => statusText(report));
  },
});

function statusText(report: StatusReport): string {
  const head = `tables in ${printable(report.pin_path)}, ABI ${report.abi}\n`;
  const bypass = report.bypass ? "BYPASS IS ON: every packet passes (lasthop bypass off)\n" : "";
  const parts = [interfaces(report), services(report), programs(report), tables(report), tiers(report)];
  return [head + bypass, ...parts.filter((part) => part !== "")].join("\n");
}

function interfaces(report: StatusReport): string {
  if (report.interfaces.length === 0) return "no interface is attached\n";
  return table(
    [
      { title: "INTERFACE" },
      { title: "ROLE" },
      { title: "HOOK" },
      { title: "ZONE", right: true },
      { title: "POLICY" },
      { title: "MTU", right: true, optional: true },
      { title: "VIA", optional: true },
      { title: "KIND", optional: true },
      { title: "BENEATH", optional: true },
      { title: "PROGRAM", right: true },
      { title: "OTHERS" },
      { title: "STATE" },
    ],
    report.interfaces.map((item) => [
      item.interface,
      item.role,
      item.hook,
      item.zone,
      item.role === "tap" ? item.policy : null,
      item.mtu || null,
      viaOf(item),
      kindOf(item),
      item.beneath.join(",") || null,
      item.program_id,
      item.foreign_program_ids.join(",") || null,
      item.state.replaceAll("_", " "),
    ]),
  );
}

/** Nothing for what is as by default. A mark without `stack` is that of IPsec. */
function viaOf({ via, mark }: InterfaceStatus): string | null {
  if (via === "stack") return viaText({ via, mark: mark || null });
  return mark ? `mark ${hexadecimal(mark)}` : null;
}

function kindOf({ link_layer, shared_tunnel }: InterfaceStatus): string | null {
  const words = [...(link_layer === "none" ? ["ip"] : []), ...(shared_tunnel ? ["shared"] : [])];
  return words.join(" ") || null;
}

/** Nothing on a host that has neither. */
function services({ services, vms }: StatusReport): string {
  if (services.total + vms.total === 0) return "";
  const others = (["drain", "down", "unknown"] as const)
    .filter((state) => vms[state] > 0)
    .map((state) => `, ${vms[state]} ${state}`);
  const empty = services.empty === 0 ? "" : `, ${services.empty} without a VM that is up`;
  return `${plural(services.total, "service")}${empty}; ${plural(vms.total, "VM")}: ${vms.up} up${others.join("")}\n`;
}

function programs(report: StatusReport): string {
  return table(
    [
      { title: "PROGRAM" },
      { title: "ID", right: true },
      { title: "MEMORY", right: true },
      { title: "RUNS", right: true },
    ],
    report.programs.map((item) => [item.name, item.id, memory(item.memory_bytes), item.run_count]),
  );
}

function tables(report: StatusReport): string {
  return table(
    [
      { title: "TABLE" },
      { title: "ENTRIES", right: true },
      { title: "MAX", right: true },
      { title: "USED", right: true },
      { title: "MEMORY", right: true },
    ],
    report.tables.map((item) => [
      item.table,
      item.entries,
      item.max_entries,
      percent(item.entries, item.max_entries),
      memory(item.memory_bytes),
    ]),
  );
}

function tiers(report: StatusReport): string {
  const lines = report.tiers.map(
    ({ tier, entries, max_entries, evicted }) =>
      `${tier} flows: ${percent(entries, max_entries)} full, ${evicted} evicted\n`,
  );
  const pass = report.last_pass;
  const text = pass
    ? `last expiry pass: ended ${age(pass.ended_seconds_ago)} ago, took ${duration(pass.duration_seconds)}, ` +
      `expired ${pass.expired} of ${plural(pass.entries, "flow")}`
    : "no expiry pass yet (lasthop sweep)";
  return `${lines.join("")}${text}\n`;
}

function memory(count: number | null): string | null {
  return count === null ? null : bytes(count);
}
