// SPDX-License-Identifier: Apache-2.0
// The command line by yargs: which command, with which arguments, or what --help says.

import yargs, { type Argv } from "yargs";
import { DEFAULT_PIN_ROOT } from "../config/defaults.ts";
import type { LasthopError } from "../errors.ts";
import { didYouMean, usageError } from "./arguments.ts";
import type { Command, CommandGroup, Option } from "./command.ts";
import { COMMANDS } from "./commands/index.ts";

export interface GlobalArguments {
  json: boolean;
  debug: boolean;
  pinRoot: string;
}

export interface ParsedCommand {
  command: Command;
  args: Record<string, unknown>;
  global: GlobalArguments;
}

/** What --help or --version say. */
export interface ParsedText {
  text: string;
}

const MAX_HELP_COLUMNS = 110;
const NO_COMMAND = "a command is missing";

export const GLOBAL_OPTIONS = {
  json: { describe: "JSON on stdout, errors as JSON on stderr" },
  "pin-root": { value: "DIR", describe: `where the tables are pinned [default: ${DEFAULT_PIN_ROOT}]` },
  debug: { describe: "with errors: stack traces, verifier logs, what libbpf said" },
} satisfies Record<string, Option>;

export async function parseCommandLine(
  argv: readonly string[],
  options: { version: string; columns: number },
): Promise<ParsedCommand | ParsedText> {
  // yargs takes "->" for an option; between the two sides of a tuple it may stand, but says nothing.
  const words = argv.filter((word) => word !== "->");
  const place: Place = { words, path: [], entries: COMMANDS };
  let selected: { command: Command; values: Record<string, unknown> } | undefined;
  const parser = yargs()
    .scriptName("lasthop")
    .usage("$0 <command>\n\nSends the replies of a connection back through the device its request came from.")
    .locale("en")
    .wrap(Math.min(MAX_HELP_COLUMNS, options.columns))
    .parserConfiguration({
      "boolean-negation": false,
      "camel-case-expansion": false,
      "dot-notation": false,
      "parse-numbers": false,
      "parse-positional-numbers": false,
      "strip-aliased": true,
    })
    .alias("json", "j")
    .version(options.version)
    .help("help")
    .alias("help", "h")
    .strict()
    .demandCommand(1, NO_COMMAND)
    .epilogue("lasthop <command> --help: its options, with examples")
    .exitProcess(false)
    .fail((message, error) => {
      throw usageProblem(message ?? error.message, place);
    });
  addOptions(parser, GLOBAL_OPTIONS);
  parser.group([...Object.keys(GLOBAL_OPTIONS), "help", "version"], "Global options:");
  for (const entry of COMMANDS) {
    addEntry(parser, entry, place, (command, values) => {
      selected = { command, values };
    });
  }
  let text = "";
  await parser.parseAsync(words, {}, (_error, _values, output) => {
    text = output;
  });
  if (text !== "") return { text: `${text.trimEnd()}\n` };
  if (selected === undefined) throw new Error(`no command was selected by ${JSON.stringify(argv)}`);
  return finish(selected.command, selected.values, place);
}

/** Where in the tree of commands yargs is, for messages. */
interface Place {
  words: readonly string[];
  path: string[];
  entries: readonly (Command | CommandGroup)[];
  command?: Command;
}

type Select = (command: Command, values: Record<string, unknown>) => void;

function addEntry(parser: Argv, entry: Command | CommandGroup, place: Place, select: Select): void {
  if (!("commands" in entry)) {
    addCommand(parser, entry, place, select);
    return;
  }
  parser.command(entry.name, entry.describe, (group) => {
    place.path.push(entry.name);
    place.entries = entry.commands;
    for (const command of entry.commands) addCommand(group, command, place, select);
    const examples = entry.commands.flatMap((command) => command.examples);
    return group.demandCommand(1, NO_COMMAND).epilogue(epilogue(undefined, examples));
  });
}

function addCommand(parser: Argv, command: Command, place: Place, select: Select): void {
  parser.command(
    [command.name, ...wordsUsage(command)].join(" "),
    command.describe,
    (builder) => {
      place.path.push(command.name);
      place.command = command;
      for (const [name, { describe, many }] of Object.entries(command.words ?? {})) {
        builder.positional(name, { type: "string", describe, ...(many && { array: true }) });
      }
      const options = command.options ?? {};
      addOptions(builder, options);
      builder.group(Object.keys(options), "Options:");
      return builder.epilogue(epilogue(command.details, command.examples));
    },
    (values) => select(command, values),
  );
}

function epilogue(details: string | undefined, examples: Command["examples"]): string {
  const lines = examples.map(([line, does]) => `  lasthop ${line}\n      ${does}`);
  return [...(details === undefined ? [] : [details, ""]), "Examples:", ...lines].join("\n");
}

function wordsUsage(command: Command): string[] {
  return Object.entries(command.words ?? {}).map(([name, { many, optional }]) => {
    const text = many ? `${name}..` : name;
    return optional ? `[${text}]` : `<${text}>`;
  });
}

function addOptions(parser: Argv, options: Record<string, Option>): void {
  for (const [name, { describe, value, short, required }] of Object.entries(options)) {
    const alias = short === undefined ? {} : { alias: short };
    if (value === undefined) parser.option(name, { type: "boolean", describe, ...alias });
    else {
      const text = `${value}: ${describe}${required ? " (required)" : ""}`;
      parser.option(name, { type: "string", requiresArg: true, describe: text, ...alias });
    }
  }
}

/** Checks single values, which yargs left as text. */
function finish(command: Command, values: Record<string, unknown>, place: Place): ParsedCommand {
  const extra = (values._ as string[]).slice(place.path.length);
  if (extra.length > 0) throw usageError(`"${extra.join(" ")}" is too much`, usageLine(place));
  const args: Record<string, unknown> = {};
  for (const [name, { many }] of Object.entries(command.words ?? {})) {
    args[name] = values[name] ?? (many ? [] : undefined);
  }
  const optionValue = (name: string, option: Option) => {
    const value = option.many && Array.isArray(values[name]) ? values[name].join(",") : values[name];
    if (option.value === undefined && place.words.some((word) => word.startsWith(`--${name}=`))) {
      throw usageError(`--${name} takes no value`);
    }
    // Given twice, yargs makes a list of it.
    if (Array.isArray(value)) {
      if (option.value !== undefined) throw usageError(`--${name} is given more than once`);
      return value.at(-1) as boolean;
    }
    // yargs would say this before it says which option it does not know.
    if (value === undefined && option.required) throw usageError(`--${name} is missing`, usageLine(place));
    if (typeof value !== "string") return value;
    if (value === "") throw usageError(`--${name} is empty`);
    return option.parse ? option.parse(value) : value;
  };
  for (const [name, option] of Object.entries(command.options ?? {})) args[name] = optionValue(name, option);
  const global = {
    json: optionValue("json", GLOBAL_OPTIONS.json) === true,
    debug: optionValue("debug", GLOBAL_OPTIONS.debug) === true,
    pinRoot: (optionValue("pin-root", GLOBAL_OPTIONS["pin-root"]) as string | undefined) ?? DEFAULT_PIN_ROOT,
  };
  return { command, args, global };
}

function usageLine({ path, command }: Place): string {
  const words = command ? wordsUsage(command) : ["<command>"];
  const required = Object.entries(command?.options ?? {}).filter(([, option]) => option.required);
  const options = required.map(([name, option]) => `--${name} ${option.value}`);
  return `Usage: ${["lasthop", ...path, ...words, ...options].join(" ")}`;
}

/** What yargs found wrong, in our words and with what was probably meant. */
function usageProblem(message: string, place: Place): LasthopError {
  const [, unknown] = /^Unknown arguments?: (.*)$/.exec(message) ?? [];
  if (unknown !== undefined) return unknownArgument(unknown.split(", "), place);
  const [, valueless] = /^Not enough arguments following: (.*)$/.exec(message) ?? [];
  if (valueless !== undefined) return usageError(`--${valueless} needs a value`, usageLine(place));
  if (message === NO_COMMAND) {
    // An option that yargs does not know takes the command for its value.
    const stray = place.words.find((word) => /^--?[^-=]/.test(word) && !isKnownOption(word, place));
    return stray === undefined ? usageError(message, commandsHint(place)) : unknownOption(stray, place);
  }
  if (message.startsWith("Not enough non-option arguments")) {
    const [first] = Object.entries(place.command?.words ?? {}).find(([, word]) => !word.optional) ?? [];
    return usageError(`${place.path.join(" ")}: the ${first} is missing`, usageLine(place));
  }
  return usageError(message, usageLine(place));
}

function unknownArgument(names: string[], place: Place): LasthopError {
  // Without a command its options are unknown too, but it is the command that is wrong.
  const word = place.command === undefined ? names.find((name) => place.words.includes(name)) : undefined;
  const name = word ?? names[0]!;
  const dashes = ["--", "-"].find((prefix) =>
    place.words.some((word) => word === prefix + name || word.startsWith(`${prefix}${name}=`)),
  );
  if (dashes !== undefined) return unknownOption(dashes + name, place);
  if (place.command !== undefined) return usageError(`"${name}" is too much`, usageLine(place));
  const known = place.entries.map((entry) => entry.name);
  const prefix = place.path.map((word) => `${word} `).join("");
  return usageError(
    `unknown command "${prefix}${name}"`,
    didYouMean(name, known, prefix) ?? commandsHint(place),
  );
}

function unknownOption(word: string, place: Place): LasthopError {
  const [dashed = ""] = word.split("=");
  const hint = didYouMean(dashed.replace(/^-+/, ""), knownOptions(place), "--") ?? seeHelp(place);
  return usageError(`unknown option ${dashed}`, hint);
}

function knownOptions(place: Place): string[] {
  return [...Object.keys({ ...place.command?.options, ...GLOBAL_OPTIONS }), "help", "version"];
}

function isKnownOption(word: string, place: Place): boolean {
  const [dashed = ""] = word.split("=");
  if (dashed.startsWith("--")) return knownOptions(place).includes(dashed.slice(2));
  const shorts = Object.values(place.command?.options ?? {}).flatMap(({ short }) => short ?? []);
  return /^-[jh]+$/.test(dashed) || shorts.includes(dashed.slice(1));
}

function commandsHint(place: Place): string {
  return `Commands: ${place.entries.map((entry) => entry.name).join(", ")}. ${seeHelp(place)}`;
}

function seeHelp(place: Place): string {
  return `See \`${["lasthop", ...place.path].join(" ")} --help\`.`;
}
