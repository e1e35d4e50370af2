// SPDX-License-Identifier: Apache-2.0

import { DEFAULT_CONFIG_PATH } from "../../config/defaults.ts";
import { configOption } from "../arguments.ts";
import { defineCommand, printResult } from "../command.ts";
import { printFindings } from "../findings.ts";

/** There is something to do. */
const SOMETHING = 3;

export const planCommand = defineCommand({
  name: "plan",
  describe: "Show what would bring the host to its configuration; change nothing",
  details:
    "The exit status is 0 if there is nothing to do, 3 if there is something, 1 if something cannot be as it is " +
    "configured. Warns of filters of the host that replies would go past.",
  examples: [
    ["plan", `with ${DEFAULT_CONFIG_PATH}`],
    ["plan -c lasthop.yaml", "before a change is made"],
  ],
  options: { config: configOption },
  async run(args, context) {
    const { plan } = await import("../../ops/plan.ts");
    const report = await plan(context.op, args.config ?? DEFAULT_CONFIG_PATH);
    if (report.actions.length > 0) context.setStatus(SOMETHING);
    await printResult(context, report, () => {
      const lines = report.actions.map(
        ({ text, config }) => `${text}${config === null ? "" : ` (${config})`}\n`,
      );
      return lines.length === 0 ? "nothing to do\n" : lines.join("");
    });
    await printFindings(context, report);
  },
});
