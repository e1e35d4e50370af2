// SPDX-License-Identifier: Apache-2.0
// Completion for fish.

import type { Command, Option, Positional } from "../command.ts";
import { completionOf, HELP_OPTIONS, leavesOf, type Manual, optionWords } from "./tree.ts";

export function fishCompletion({ commands, globalOptions }: Manual): string {
  const global = { ...globalOptions, ...HELP_OPTIONS };
  const leaves = leavesOf(commands);
  const everything = [global, ...leaves.map(({ command }) => command.options ?? {})];
  const valued = everything.flatMap((options) =>
    Object.entries(options).flatMap(([name, option]) =>
      option.value === undefined ? [] : optionWords(name, option),
    ),
  );
  const groups = commands.flatMap((entry) => ("commands" in entry ? [entry] : []));
  const lines = [
    ...Object.entries(global).map(([name, option]) => optionLine(undefined, name, option)),
    ...commands.map((entry) => commandLine([], entry.name, entry.describe)),
    ...groups.flatMap((group) =>
      group.commands.map((command) => commandLine([group.name], command.name, command.describe)),
    ),
    ...leaves.flatMap(({ path, command }) => leafLines(path, command)),
  ];
  const names = groups.map((group) => quote(group.name)).join(" ");
  return `# fish completion for lasthop. Generated from the commands: do not edit.

# The command so far, without options: at most two words, a group and its command.
function __lasthop_path
    set -l path
    set -l skip no
    for word in (commandline -opc)[2..-1]
        if test $skip = yes
            set skip no
        else if contains -- $word ${[...new Set(valued)].join(" ")}
            set skip yes
        else if string match -q -- '-*' $word
            continue
        else
            set -a path $word
            contains -- $path[1] ${names}; and test (count $path) -lt 2; or break
        end
    end
    string join ' ' -- $path
end

function __lasthop_at
    test "$(__lasthop_path)" = "$argv"
end

function __lasthop_interfaces
    string replace -rf '^\\s*([^:\\s]+):.*' '$1' </proc/self/net/dev
end

complete -c lasthop -f
${lines.join("\n")}
`;
}

function commandLine(path: readonly string[], name: string, describe: string): string {
  return `complete -c lasthop -n ${condition(path)} -a ${quote(name)} -d ${quote(describe)}`;
}

function leafLines(path: readonly string[], command: Command): string[] {
  const options = Object.entries(command.options ?? {}).map(([name, option]) =>
    optionLine(path, name, option),
  );
  const words = Object.entries(command.words ?? {}).flatMap(([name, word]) => {
    const values = argument(name, word);
    return values === "" ? [] : [`complete -c lasthop -n ${condition(path)}${values}`];
  });
  return [...options, ...words];
}

function optionLine(path: readonly string[] | undefined, name: string, option: Option): string {
  const where = path === undefined ? "" : ` -n ${condition(path)}`;
  const short = option.short === undefined ? "" : ` -s ${option.short}`;
  const value = option.value === undefined ? "" : argument(name, option) || " -x";
  return `complete -c lasthop${where}${short} -l ${name}${value} -d ${quote(option.describe)}`;
}

function argument(name: string, described: Option | Positional): string {
  const completion = completionOf(name, described);
  if (completion === null) return "";
  if (completion === "file") return " -r -F";
  if (completion === "directory") return " -x -a '(__fish_complete_directories (commandline -ct))'";
  if (completion === "interface") return " -x -a '(__lasthop_interfaces)'";
  return ` -x -a ${quote(completion.join(" "))}`;
}

function condition(path: readonly string[]): string {
  return quote(path.length === 0 ? "__lasthop_at" : `__lasthop_at ${path.join(" ")}`);
}

function quote(text: string): string {
  return `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
}
