// SPDX-License-Identifier: Apache-2.0
// What stands beside a result: warnings, and what could not be as it is configured.

import type { PlanReport } from "../ops/types.ts";
import type { CommandContext } from "./command.ts";
import { printable } from "./table.ts";

/** On stderr for people; programs have it in the document. Something that failed makes the exit status 1. */
export async function printFindings(
  context: CommandContext,
  { failed, warnings }: Pick<PlanReport, "failed" | "warnings">,
): Promise<void> {
  if (failed.length > 0) context.setFailed();
  if (context.json) return;
  for (const warning of warnings) context.op.warn(warning);
  for (const { config, message, hint } of failed) {
    const where = config === null ? "" : `${config}: `;
    const advice = hint === null ? "" : `  ${printable(hint)}\n`;
    await context.stderr.write(`lasthop: ${where}${printable(message)}\n${advice}`);
  }
}
