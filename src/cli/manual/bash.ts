// SPDX-License-Identifier: Apache-2.0
// Completion for bash: what scripts/completion.bash leaves open.

import { type Completion, completionOf, HELP_OPTIONS, leavesOf, type Manual, optionWords } from "./tree.ts";

export function bashCompletion({ commands, globalOptions }: Manual, script: string): string {
  const global = { ...globalOptions, ...HELP_OPTIONS };
  const globalWords = Object.entries(global).flatMap(([name, option]) => optionWords(name, option));
  const leaves = leavesOf(commands);
  const groups = commands.flatMap((entry) => ("commands" in entry ? [entry] : []));
  const names = (list: readonly { name: string }[]) => list.map(({ name }) => name).join(" ");
  const places = [
    `\t"") commands="${names(commands)}" ;;`,
    ...groups.map((group) => `\t"${group.name}") commands="${names(group.commands)}" ;;`),
    ...leaves.map(({ path, command }) => {
      const own = Object.entries(command.options ?? {}).flatMap(([name, option]) =>
        optionWords(name, option),
      );
      return `\t"${path.join(" ")}") options="${own.join(" ")}" ;;`;
    }),
  ];
  const valued = (path: string, options: typeof global) =>
    Object.entries(options).flatMap(([name, option]) => {
      if (option.value === undefined) return [];
      const patterns = optionWords(name, option).map((word) => `"${path}${word}"`);
      return [`\t${patterns.join(" | ")}) ${kind(completionOf(name, option))} ;;`];
    });
  const values = leaves.flatMap(({ path, command }) => valued(`${path.join(" ")} `, command.options ?? {}));
  // A global option may stand before the command, too.
  const globalValues = valued("", global).map((line) => line.replaceAll('"--', '*"--'));
  const words = leaves.flatMap(({ path, command }) =>
    Object.entries(command.words ?? {}).flatMap(([name, word], index) => {
      const completion = completionOf(name, word);
      if (completion === null) return [];
      return [`\t"${path.join(" ")} "${word.many ? "*" : index}) ${kind(completion)} ;;`];
    }),
  );
  const parts: Record<string, string> = {
    PLACES: places.join("\n"),
    GLOBAL: globalWords.join(" "),
    VALUES: [...values, ...globalValues].join("\n"),
    WORDS: words.join("\n"),
  };
  return script.replace(/@([A-Z]+)@/g, (_, name: string) => parts[name]!);
}

function kind(completion: Completion): string {
  if (completion === null) return "kind=none";
  return typeof completion === "string" ? `kind=${completion}` : `kind=words words="${completion.join(" ")}"`;
}
