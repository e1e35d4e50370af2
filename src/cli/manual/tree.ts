// SPDX-License-Identifier: Apache-2.0
// The commands as the man page and the completions need them.

import type { Command, CommandGroup, Option, Positional } from "../command.ts";

export interface Manual {
  commands: readonly (Command | CommandGroup)[];
  globalOptions: Readonly<Record<string, Option>>;
  /** Of the package. */
  version: string;
}

/** A command by its words: `["flows", "list"]`. */
export interface Leaf {
  path: readonly string[];
  command: Command;
}

export function leavesOf(commands: Manual["commands"]): Leaf[] {
  return commands.flatMap((entry) =>
    "commands" in entry
      ? entry.commands.map((command) => ({ path: [entry.name, command.name], command }))
      : [{ path: [entry.name], command: entry }],
  );
}

/** What may be completed: one of these words, a path, or an interface of this host. */
export type Completion = readonly string[] | "file" | "directory" | "interface" | null;

/** By the conventions of the tables: what a value is called, or what the word or option is. */
export function completionOf(name: string, { value }: Option | Positional): Completion {
  // What is in capitals stands for something else.
  if (value?.includes("|")) return value.split("|").filter((word) => !/[A-Z]/.test(word));
  if (value === "FILE" || name === "file") return "file";
  if (value === "DIR") return "directory";
  return name === "interface" || value === "IFACE" ? "interface" : null;
}

/** `--config`, `-c`. */
export function optionWords(name: string, { short }: Option): string[] {
  return short === undefined ? [`--${name}`] : [`--${name}`, `-${short}`];
}

/** Every command has these too; yargs answers them. */
export const HELP_OPTIONS: Readonly<Record<string, Option>> = {
  help: { short: "h", describe: "the options of a command, with examples" },
  version: { describe: "the version of lasthop" },
};
