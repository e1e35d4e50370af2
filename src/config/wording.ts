// SPDX-License-Identifier: Apache-2.0
// What the validator found, for people.

import { z } from "zod";
import { suggest } from "../suggest.ts";
import { quoted } from "./problems.ts";

type Issue = z.core.$ZodIssue;

/** One thing that is wrong; `on` says whether the key or the value is to be pointed at. */
export interface Complaint {
  path: readonly (string | number)[];
  on: "key" | "value";
  message: string;
  /** The value is not of its kind at all, so that nothing else said of it counts. */
  fatal?: true;
}

/** Looking for what was meant takes time. */
const SUGGESTIONS_MAX = 100;

/** Several only for unknown keys. */
export function complaints(issue: Issue, data: unknown, schema: z.ZodType): Complaint[] {
  const path = issue.path as (string | number)[];
  if (issue.code === "unrecognized_keys") {
    const known = keysOf(schema, path);
    return issue.keys.map((key, index) => {
      if (index >= SUGGESTIONS_MAX) return { path: [...path, key], on: "key", message: "unknown key" };
      const found = suggest(key, known);
      const help = found === undefined ? `known: ${known.join(", ")}` : `did you mean ${quoted(found)}?`;
      return { path: [...path, key], on: "key", message: `unknown key – ${help}` };
    });
  }
  if (issue.code === "invalid_key") {
    const expected = issue.issues[0]?.message ?? issue.message;
    return [{ path, on: "key", message: `expected ${expected}` }];
  }
  const value = valueAt(data, path);
  if (issue.code === "custom") return [{ path, on: "value", message: issue.message }];
  if (value === undefined)
    return [{ path, on: "value", message: `is missing: ${issue.message}`, fatal: true }];
  const counted = issue.code === "too_big" || issue.code === "too_small";
  const found = Array.isArray(value) && counted ? String(value.length) : shown(value);
  const message = `expected ${issue.message}, not ${found}${guess(issue, value)}`;
  return [{ path, on: "value", message, fatal: true }];
}

function shown(value: unknown): string {
  if (value === null) return "nothing";
  if (typeof value === "string") return quoted(value);
  if (Array.isArray(value)) return "a list";
  return typeof value === "object" ? "a mapping" : String(value);
}

const UNIT_SECONDS = new Map([
  ["s", 1],
  ["m", 60],
  ["min", 60],
  ["h", 3600],
  ["d", 86_400],
]);
const YES = ["yes", "on", "y"];
const NO = ["no", "off", "n"];

/** What was probably meant, or nothing. */
function guess(issue: Issue, value: unknown): string {
  const type = issue.code === "invalid_type" ? issue.expected : undefined;
  if (typeof value === "string") {
    const words = wordsOf(issue);
    const near = suggest(value, words) ?? words.find((word) => value.length > 2 && word.startsWith(value));
    if (near !== undefined) return ` – did you mean ${quoted(near)}?`;
    if (type === "boolean" && YES.includes(value.toLowerCase())) return " – did you mean true?";
    if (type === "boolean" && NO.includes(value.toLowerCase())) return " – did you mean false?";
    const [, count, unit = ""] = /^(\d+) ?([a-z]+)$/.exec(value) ?? [];
    const factor = issue.message.includes("seconds") ? UNIT_SECONDS.get(unit) : undefined;
    if (factor !== undefined) return ` – did you mean ${Number(count) * factor}?`;
    if ((type === "number" || type === "int") && /^\d+(\.\d+)?$/.test(value)) return " – without quotes";
  }
  if (type === "string" && (typeof value === "number" || typeof value === "boolean")) {
    return " – put it in quotes";
  }
  return "";
}

/** The words that would have been right. */
function wordsOf(issue: Issue): string[] {
  if (issue.code === "invalid_value") return issue.values.map(String);
  if (issue.code === "invalid_union") return issue.errors.flat().flatMap(wordsOf);
  return [];
}

function valueAt(data: unknown, path: readonly (string | number)[]): unknown {
  let value = data;
  for (const step of path) value = (value as Record<string | number, unknown> | undefined)?.[step];
  return value;
}

/** Keys of the mapping at a path. */
function keysOf(schema: z.ZodType, path: readonly (string | number)[]): string[] {
  let found: unknown = schema;
  for (const step of path) {
    const inner = unwrapped(found);
    if (inner instanceof z.ZodObject) found = inner.shape[step];
    else if (inner instanceof z.ZodArray) found = inner.element;
    else return [];
  }
  const inner = unwrapped(found);
  return inner instanceof z.ZodObject ? Object.keys(inner.shape) : [];
}

function unwrapped(schema: unknown): unknown {
  let inner = schema;
  while (inner instanceof z.ZodDefault || inner instanceof z.ZodOptional || inner instanceof z.ZodPrefault) {
    inner = inner.unwrap();
  }
  return inner;
}
