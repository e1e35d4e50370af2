// SPDX-License-Identifier: Apache-2.0

import type { DoctorReport } from "../../ops/types.ts";
import { defineCommand, printResult } from "../command.ts";
import { printable, table } from "../table.ts";

export const doctorCommand = defineCommand({
  name: "doctor",
  describe: "Say what this host offers, what is missing, and what to do",
  details: "Ends with exit status 1 if something is missing without which lasthop cannot work.",
  examples: [["doctor", "check kernel, libbpf, capabilities and network drivers"]],
  async run(_args, context) {
    const { doctor } = await import("../../ops/doctor.ts");
    const report = await doctor(context.op);
    await printResult(context, report, () => doctorText(report));
    if (report.checks.some((check) => check.level === "fail")) context.setFailed();
  },
});

function doctorText(report: DoctorReport): string {
  const checks = table(
    [{ title: "CHECK" }, { title: "LEVEL" }, { title: "FOUND" }],
    report.checks.map((check) => [check.name, check.level, check.found]),
  );
  const interfaces = table(
    [{ title: "INTERFACE" }, { title: "DRIVER" }, { title: "AUTO MODE" }, { title: "BECAUSE" }],
    report.interfaces.map((item) => [item.interface, item.driver, item.auto_mode, item.reason]),
  );
  const advice = [
    ...report.checks.flatMap((check) => (check.hint === null ? [] : [`${check.name}: ${check.hint}`])),
    ...report.interfaces.flatMap((item) => item.notes.map((note) => `${item.interface}: ${note}`)),
  ];
  const sections = [checks];
  if (report.interfaces.length > 0) sections.push(interfaces);
  if (advice.length > 0) sections.push(advice.map((line) => `${printable(line)}\n`).join(""));
  return sections.join("\n");
}
