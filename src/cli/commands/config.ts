// SPDX-License-Identifier: Apache-2.0

import { DEFAULT_CONFIG_PATH } from "../../config/defaults.ts";
import { findingText } from "../../config/problems.ts";
import type { ConfigCheck } from "../../ops/types.ts";
import { type CommandGroup, defineCommand, printResult } from "../command.ts";
import { printable } from "../table.ts";

const fileWord = {
  file: { optional: true, describe: `configuration file [default: ${DEFAULT_CONFIG_PATH}]` },
} as const;

const checkCommand = defineCommand({
  name: "check",
  describe: "Say whether a configuration file is right, and what it has",
  details:
    "Lists every problem, each with its line and column, and ends with exit status 1 if there is any. " +
    "Looks at the file only: `lasthop plan` says what it would change on this host.",
  examples: [
    ["config check", `check ${DEFAULT_CONFIG_PATH}`],
    ["config check new.yaml --json", "check another file, for a script"],
  ],
  words: fileWord,
  async run({ file = DEFAULT_CONFIG_PATH }, context) {
    const { checkConfig } = await import("../../ops/config.ts");
    const result = checkConfig(file);
    await printResult(context, result, () => checkText(result));
    if (!result.valid) context.setFailed();
  },
});

const showCommand = defineCommand({
  name: "show",
  describe: "Show a configuration with every default filled in",
  details: "What it writes is a configuration file again, one that says the same.",
  examples: [["config show lasthop.yaml", "the file, with all defaults"]],
  words: fileWord,
  async run({ file = DEFAULT_CONFIG_PATH }, context) {
    const { showConfig } = await import("../../ops/config.ts");
    const { configYaml } = await import("../../config/show.ts");
    const config = showConfig(file);
    await printResult(context, config, () => configYaml(config));
  },
});

const schemaCommand = defineCommand({
  name: "schema",
  describe: "Write the JSON Schema of the configuration file",
  details: "Editors complete and check the file with it. It is made from what checks the file here.",
  examples: [["config schema", "to a file, for an editor"]],
  async run(_args, context) {
    const { configSchema } = await import("../../ops/config.ts");
    const schema = configSchema();
    await printResult(context, schema, () => `${JSON.stringify(schema, null, 2)}\n`);
  },
});

export const configGroup: CommandGroup = {
  name: "config",
  describe: "The configuration file",
  commands: [checkCommand, showCommand, schemaCommand],
};

const LISTED_MAX = 12;

function checkText({ file, problems, has }: ConfigCheck): string {
  if (has === null) return problems.map((problem) => `${printable(findingText(file, problem))}\n`).join("");
  const facts = {
    zones: Object.entries(has.zones).map(([name, number]) => `${name} ${number}`),
    uplinks: has.uplinks,
    taps: has.taps,
    devices: has.devices,
    vms: has.vms,
    services: has.services,
    tunnels: has.tunnels,
    metrics: has.metrics === null ? [] : [has.metrics],
  };
  const lines = Object.entries(facts).map(([name, items]) => {
    return `${`${name}:`.padEnd(10)}${printable(listed(items))}\n`;
  });
  return `${printable(file)} is right\n${lines.join("")}`;
}

function listed(items: readonly string[]): string {
  if (items.length === 0) return "none";
  const rest = items.length - LISTED_MAX;
  return items.slice(0, LISTED_MAX).join(", ") + (rest > 0 ? ` and ${rest} more` : "");
}
