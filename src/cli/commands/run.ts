// SPDX-License-Identifier: Apache-2.0

import { fstatSync } from "node:fs";
import { DEFAULT_CONFIG_PATH } from "../../config/defaults.ts";
import { isJournal } from "../../log.ts";
import { configOption } from "../arguments.ts";
import { defineCommand } from "../command.ts";
import type { Output } from "../output.ts";

const STDERR = 2;

export const runCommand = defineCommand({
  name: "run",
  describe: "Bring the host to its configuration and keep it there, until told to stop",
  details:
    "Attaches interfaces as they come, expires idle flows, follows devices, serves metrics. Forwarding goes on when " +
    "it ends, however it ends. SIGHUP reloads the configuration: one that is wrong is refused, and the one before " +
    "stays. SIGUSR1 logs in detail, SIGUSR2 as configured again.",
  examples: [
    ["run", `with ${DEFAULT_CONFIG_PATH}`],
    ["run --config lasthop.yaml --detach-on-exit", "to try a configuration: nothing stays attached"],
  ],
  options: {
    config: configOption,
    "detach-on-exit": { describe: "at the end, detach what is configured" },
  },
  endless: true,
  async run(args, context) {
    const { HOST_PARTS, runDaemon } = await import("../../daemon/index.ts");
    await runDaemon({
      configPath: args.config ?? DEFAULT_CONFIG_PATH,
      pinRoot: context.op.pinRoot,
      detachOnExit: args["detach-on-exit"] ?? false,
      signal: context.signal,
      write: lineWriter(context.stderr),
      journal: isJournal(process.env.JOURNAL_STREAM, fstatSync(STDERR)),
      log: {
        ...(context.json && { format: "json" as const }),
        ...(context.debug && { level: "debug" as const }),
      },
      signals: process,
      environment: process.env,
      parts: HOST_PARTS,
    });
  },
});

/** A daemon goes on when nobody reads its log any longer. */
function lineWriter(output: Output): (line: string) => void {
  let open = true;
  return (line) => {
    if (!open) return;
    output.write(line).catch(() => {
      open = false;
    });
  };
}
