// SPDX-License-Identifier: Apache-2.0
// The man page: roff with the man macros, for lasthop(8).

import { DEFAULT_CONFIG_PATH, DEFAULT_PIN_ROOT } from "../../config/defaults.ts";
import type { Command, CommandGroup, Option } from "../command.ts";
import { HELP_OPTIONS, type Manual } from "./tree.ts";

export function manPage({ commands, globalOptions, version }: Manual): string {
  const global = { ...globalOptions, ...HELP_OPTIONS };
  return [
    '.\\" Generated from the commands: do not edit.',
    `.TH LASTHOP 8 "" "lasthop ${roff(version)}" "System Administration"`,
    // No hyphenation, and ragged lines: what is written here is to be typed.
    ".nh",
    ".ad l",
    section("NAME"),
    "lasthop \\- send replies back through the device that their request came from",
    section("SYNOPSIS"),
    `.B lasthop\n.I command\n.RI [ option " ...]"`,
    section("DESCRIPTION"),
    ...DESCRIPTION.flatMap((text) => [paragraph(text), ".PP"]).slice(0, -1),
    section("COMMANDS"),
    ...commands.map(entryText),
    section("OPTIONS OF EVERY COMMAND"),
    ...Object.entries(global).map(([name, option]) => optionText(name, option)),
    section("EXIT STATUS"),
    ...EXIT_STATUS.map(([status, meaning]) => term(`.B ${status}`, meaning)),
    section("FILES"),
    ...FILES.map(([path, meaning]) => term(`.I ${roff(path)}`, meaning)),
    section("SEE ALSO"),
    ".BR bridge (8),\n.BR tc (8),\n.BR bpftool (8)",
    "",
  ].join("\n");
}

const DESCRIPTION = [
  "A stateful device (a firewall, a load balancer, a router) sends a connection's request to a virtualisation " +
    "host. The host remembers, for that connection, the device's MAC address and the interface on which the " +
    "request came in: its last hop. When a virtual machine answers, the answer goes back to that device, whatever " +
    "the routes of the machine or the host say.",
  "Programs in the kernel do this, at XDP and TC. An uplink is an interface towards devices, a tap one towards a " +
    "virtual machine. `lasthop attach` attaches single interfaces; `lasthop run` holds the host to a configuration " +
    "file. Forwarding goes on when neither runs.",
] as const;

const EXIT_STATUS = [
  ["0", "It is done."],
  ["1", "It failed; the error says why, and has a code. Or something that was to be checked is wrong."],
  ["2", "The command line is wrong."],
  ["3", "Of `lasthop plan`: there is something to do."],
] as const;

const FILES = [
  [DEFAULT_CONFIG_PATH, "The configuration. `lasthop config schema` says what may stand in it."],
  [DEFAULT_PIN_ROOT, "Programs and tables, pinned on a bpf file system."],
] as const;

function section(title: string): string {
  return `.SH ${title}`;
}

function entryText(entry: Command | CommandGroup): string {
  if (!("commands" in entry)) return commandText([entry.name], entry);
  return entry.commands.map((command) => commandText([entry.name, command.name], command)).join("\n");
}

function commandText(path: readonly string[], command: Command): string {
  const examples = command.examples.map(([line, does]) =>
    term(`.B ${roff(`lasthop ${line}`)}`, `${does.charAt(0).toUpperCase()}${does.slice(1)}.`),
  );
  const words = Object.entries(command.words ?? {}).map(([name, { describe }]) =>
    term(`.I ${roff(name)}`, sentence(describe)),
  );
  return [
    `.SS ${roff(`lasthop ${path.join(" ")}`)}`,
    `.B lasthop ${roff(path.join(" "))}`,
    ...usage(command),
    ".PP",
    paragraph(sentence(command.describe)),
    ...(command.details === undefined ? [] : [".PP", paragraph(command.details)]),
    ...words,
    ...Object.entries(command.options ?? {}).map(([name, option]) => optionText(name, option)),
    ".PP",
    examples.length === 1 ? "Example:" : "Examples:",
    ...examples,
  ].join("\n");
}

/** Macros that go on in the line of the command's name. */
function usage(command: Command): string[] {
  const words = Object.entries(command.words ?? {}).map(([name, { many, optional }]) => {
    const text = `"${roff(name)}"${many ? ' " ..."' : ""}`;
    return optional ? `.RI [ ${text} ]` : `.IR ${text}`;
  });
  const required = Object.entries(command.options ?? {}).filter(([, { required }]) => required);
  const options = required.map(([name, { value = "" }]) => `.BI \\-\\-${roff(name)} " ${roff(value)}"`);
  const more = Object.keys(command.options ?? {}).length > required.length ? ['.RI [ option " ...]"'] : [];
  return [...words, ...options, ...more];
}

function optionText(name: string, { short, value, describe, required }: Option): string {
  const long = `\\-\\-${roff(name)}`;
  const names = short === undefined ? `"${long}"` : `"\\-${roff(short)}" ", " "${long}"`;
  const macro = short === undefined ? (value === undefined ? ".B" : ".BI") : ".BR";
  const tag =
    short === undefined
      ? `${macro} ${names}${value === undefined ? "" : ` " ${roff(value)}"`}`
      : `.BR ${names}${value === undefined ? "" : ` " \\fI${roff(value)}\\fR"`}`;
  return term(tag, `${sentence(describe)}${required ? " Required." : ""}`);
}

function term(tag: string, text: string): string {
  return `.TP\n${tag}\n${paragraph(text)}`;
}

function sentence(text: string): string {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.)\]]$/.test(text) ? "" : "."}`;
}

/** Text of its own lines, one a sentence; what is in backquotes is set in bold. */
function paragraph(text: string): string {
  const lines = text.split(/(?<=[.:;?]) (?=[^a-z])/).map((line) => {
    return line
      .split("`")
      .map((part, index) => (index % 2 === 1 ? `\\fB${roff(part)}\\fR` : roff(part)))
      .join("");
  });
  return lines.map((line) => (/^[.']/.test(line) ? `\\&${line}` : line)).join("\n");
}

/** Text without a meaning to roff. Hyphens and quotes stay what they are, so that they can be copied. */
function roff(text: string): string {
  const escaped = text
    .replaceAll("\\", "\\e")
    .replaceAll("-", "\\-")
    .replaceAll("'", "\\(aq")
    .replaceAll('"', "\\(dq")
    .replaceAll("^", "\\(ha")
    .replaceAll("~", "\\(ti")
    .replaceAll("`", "\\(ga");
  return escaped.replace(/[^\n -~]/gu, (character) => {
    return `\\[u${character.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")}]`;
  });
}
