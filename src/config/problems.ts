// SPDX-License-Identifier: Apache-2.0
// What is wrong with a configuration, and where.

import { LasthopError } from "../errors.ts";

/** Both count from 1. A column is a character. */
export interface Position {
  line: number;
  column: number;
}

export interface Finding extends Position {
  /** As `taps[2].policy`; empty for the document itself. */
  path: string;
  message: string;
}

/** How many are told at most; the rest is counted. */
const FINDINGS_MAX = 200;

/** A configuration that is refused, with everything that is wrong with it. */
export class ConfigError extends LasthopError {
  /** In the order of the text; empty if the file could not be read at all. */
  readonly problems: readonly Finding[];

  constructor(source: string, problems: readonly Finding[]) {
    const [first] = problems;
    if (first === undefined) throw new Error("no problem");
    const rest = problems.length - 1;
    const more = rest === 0 ? "" : ` (and ${rest} more ${rest === 1 ? "problem" : "problems"})`;
    super("E_CONFIG", `${findingText(source, first)}${more}`, {
      ...(rest > 0 && { hint: `\`lasthop config check ${source}\` lists them all.` }),
      details: problems
        .slice(0, FINDINGS_MAX)
        .map((finding) => `${findingText(source, finding)}\n`)
        .join(""),
    });
    this.name = "ConfigError";
    this.problems = problems;
  }
}

/** `FILE:12:5: taps[2].policy: what is wrong`. */
export function findingText(source: string, { line, column, path, message }: Finding): string {
  return `${source}:${line}:${column}: ${path === "" ? "" : `${path}: `}${message}`;
}

const KEY_CHARS_MAX = 40;

export function pathText(path: readonly PropertyKey[]): string {
  let text = "";
  for (const step of path) {
    if (typeof step === "number") text += `[${step}]`;
    else text += `${text === "" ? "" : "."}${keyText(String(step))}`;
  }
  return text;
}

function keyText(key: string): string {
  return /^[\w.-]+$/.test(key) && key.length <= KEY_CHARS_MAX ? key : quoted(key);
}

/** A text in quotes, cut if it is long, with control characters made visible. */
export function quoted(text: string): string {
  const points = [...text];
  return JSON.stringify(points.length > KEY_CHARS_MAX ? `${points.slice(0, KEY_CHARS_MAX).join("")}…` : text);
}
