// SPDX-License-Identifier: Apache-2.0

import { DEFAULT_CONFIG_PATH } from "../../config/defaults.ts";
import { configOption } from "../arguments.ts";
import { defineCommand, printResult } from "../command.ts";
import { printFindings } from "../findings.ts";

export const applyCommand = defineCommand({
  name: "apply",
  describe: "Bring the host to its configuration, once",
  details:
    "What fails is taken back and reported, and the rest is done. `lasthop run` does this whenever something changes; " +
    "while it runs, apply is refused.",
  examples: [
    ["apply", `with ${DEFAULT_CONFIG_PATH}`],
    ["apply -c lasthop.yaml", "with another file"],
  ],
  options: { config: configOption },
  async run(args, context) {
    const { applyConfig } = await import("../../ops/apply.ts");
    const report = await applyConfig(context.op, args.config ?? DEFAULT_CONFIG_PATH);
    await printResult(context, report, () =>
      report.done.length === 0 ? "nothing to do\n" : report.done.map((line) => `${line}\n`).join(""),
    );
    await printFindings(context, report);
  },
});
