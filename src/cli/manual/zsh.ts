// SPDX-License-Identifier: Apache-2.0
// Completion for zsh: one function for each command and group, over _arguments.

import type { Command, CommandGroup, Option, Positional } from "../command.ts";
import { completionOf, HELP_OPTIONS, type Manual } from "./tree.ts";

export function zshCompletion({ commands, globalOptions }: Manual): string {
  const global = optionSpecs({ ...globalOptions, ...HELP_OPTIONS });
  const functions = [
    groupFunction("_lasthop", commands),
    ...commands.flatMap((entry) =>
      "commands" in entry
        ? [
            groupFunction(functionName(entry.name), entry.commands, entry.name),
            ...entry.commands.map((command) =>
              commandFunction(functionName(entry.name, command.name), command),
            ),
          ]
        : [commandFunction(functionName(entry.name), entry)],
    ),
  ];
  return `#compdef lasthop
# zsh completion for lasthop. Generated from the commands: do not edit.

__lasthop_global=(
${global.map((spec) => `\t${spec}`).join("\n")}
)

__lasthop_interfaces() {
	local -a lines names
	lines=(\${(f)"$(</proc/self/net/dev)"})
	names=(\${\${\${lines[3,-1]}%%:*}##[[:space:]]#})
	compadd -a names
}

${functions.join("\n")}
if [[ $funcstack[1] == _lasthop ]]; then _lasthop "$@"; else compdef _lasthop lasthop; fi
`;
}

function functionName(...path: string[]): string {
  return ["_lasthop", ...path].join("_");
}

function groupFunction(name: string, entries: readonly (Command | CommandGroup)[], group?: string): string {
  const items = entries.map((entry) => `\t\t${quote(`${colons(entry.name)}:${entry.describe}`)}`);
  const branches = entries.map((entry) => {
    return `\t\t${entry.name}) ${functionName(...(group === undefined ? [] : [group]), entry.name)} ;;`;
  });
  return `${name}() {
	local state line
	local -a commands=(
${items.join("\n")}
	)
	_arguments -C $__lasthop_global '1:command:->command' '*::argument:->argument'
	case $state in
	command) _describe -t commands command commands ;;
	argument)
		case $words[1] in
${branches.join("\n")}
		esac
		;;
	esac
}
`;
}

function commandFunction(name: string, command: Command): string {
  const words = Object.entries(command.words ?? {}).map(([word, positional], index) => {
    const place = positional.many ? "*" : String(index + 1);
    return quote(`${place}:${positional.optional ? ":" : ""}${word}:${action(word, positional)}`);
  });
  const specs = ["$__lasthop_global", ...optionSpecs(command.options ?? {}), ...words];
  return `${name}() {
	_arguments -s ${specs.join(" \\\n\t\t")}
}
`;
}

function optionSpecs(options: Readonly<Record<string, Option>>): string[] {
  return Object.entries(options).map(([name, option]) => {
    const { short, value, describe } = option;
    const text = `[${describe.replace(/[[\]\\:]/g, "\\$&")}]`;
    const argument = value === undefined ? "" : `:${colons(value)}:${action(name, option)}`;
    const equals = value === undefined ? "" : "=";
    if (short === undefined) return quote(`--${name}${equals}${text}${argument}`);
    return `'(-${short} --${name})'{-${short},--${name}${equals}}${quote(`${text}${argument}`)}`;
  });
}

function action(name: string, described: Option | Positional): string {
  const completion = completionOf(name, described);
  if (completion === null) return " ";
  if (completion === "file") return "_files";
  if (completion === "directory") return "_directories";
  return completion === "interface" ? "__lasthop_interfaces" : `(${completion.join(" ")})`;
}

function colons(text: string): string {
  return text.replaceAll(":", "\\:");
}

function quote(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
