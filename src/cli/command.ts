// SPDX-License-Identifier: Apache-2.0
// A command is data: what it is called, what it takes, and the function that does it.

import type { OpContext } from "../ops/types.ts";
import type { Output } from "./output.ts";

export interface CommandContext {
  /** For the operations. */
  op: OpContext;
  json: boolean;
  /** Details are wanted. */
  debug: boolean;
  stdout: Output;
  stderr: Output;
  /** Aborted by SIGINT and SIGTERM, for commands that run until told to stop. */
  signal: AbortSignal;
  /** The exit status will be 1, although what was asked for could be shown. */
  setFailed(): void;
  /** Some other exit status that says what was found; what failed counts more. */
  setStatus(status: number): void;
}

/** A word of the command line, by its place. */
export interface Positional {
  describe: string;
  /** What it may be, as `on|off`, where its name does not say it. For completion. */
  value?: string;
  /** Takes as many words as there are; only the last positional may. */
  many?: true;
  optional?: true;
}

/** An option with a value, or without one a switch. */
export interface Option {
  describe: string;
  /** What the value is, for --help. */
  value?: string;
  /** One letter that may stand for its name. */
  short?: string;
  required?: true;
  /** May be given more than once; commas stand between the values then, as within one. */
  many?: true;
  /** Checks the value and makes something better of it. */
  parse?: (text: string) => unknown;
}

type Words = Record<string, Positional>;
type Options = Record<string, Option>;

type OptionValue<O extends Option> = O extends { parse: (text: string) => infer Value }
  ? Value
  : O extends { value: string }
    ? string
    : boolean;

/** What `run` is given; keys are those of the tables. */
type ArgumentsOf<W extends Words, O extends Options> = {
  [K in keyof W]: W[K] extends { many: true } ? string[] : string;
} & {
  [K in keyof O]: O[K] extends { required: true } ? OptionValue<O[K]> : OptionValue<O[K]> | undefined;
};

interface CommandSpec<W extends Words, O extends Options> {
  name: string;
  describe: string;
  /** More than one sentence, for --help. */
  details?: string;
  /** Command lines without `lasthop`, and what they do. */
  examples: readonly (readonly [line: string, does: string])[];
  words?: W;
  options?: O;
  /** Runs until it is told to stop: SIGINT ends it as planned. */
  endless?: true;
  run(args: ArgumentsOf<W, O>, context: CommandContext): Promise<void>;
}

/** A command whose argument types are no longer known, as the list of all commands holds it. */
export interface Command extends Omit<CommandSpec<Words, Options>, "run"> {
  run(args: Record<string, unknown>, context: CommandContext): Promise<void>;
}

export interface CommandGroup {
  name: string;
  describe: string;
  commands: readonly Command[];
}

export function defineCommand<
  const W extends Words = Record<never, never>,
  const O extends Options = Record<never, never>,
>(spec: CommandSpec<W, O>): Command {
  return spec as unknown as Command;
}

/** Writes a command's one result: a JSON document, or the text for people. */
export function printResult(context: CommandContext, result: unknown, text: () => string): Promise<void> {
  return context.stdout.write(context.json ? `${JSON.stringify(result)}\n` : text());
}
