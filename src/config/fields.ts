// SPDX-License-Identifier: Apache-2.0
// What single values of the configuration may be, for the sections of the schema.
//
// A message is what was expected, for "expected …, not …"; that of a refinement is a whole sentence.

import { z } from "zod";
import { isMappedIpv4, parseAddress, parseMac, parsePrefix } from "../addresses.ts";
import { alternatives } from "../suggest.ts";

const NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]*$/;
const NAME_MAX = 31;
const INTERFACE_GLOB = /^[^\s/:]{1,15}$/;
const MAC = /^(?:[0-9A-Fa-f]{1,2}(?::[0-9A-Fa-f]{1,2}){5}|[0-9A-Fa-f]{1,2}(?:-[0-9A-Fa-f]{1,2}){5})$/;

export const matching = (error: string, pattern: RegExp) =>
  z.string(error).regex(pattern, { error, abort: true });

export function name() {
  const expected = `a name of up to ${NAME_MAX} letters, digits, ".", "_" and "-", a letter or digit first`;
  return matching(expected, NAME).max(NAME_MAX, expected).meta({ title: "name" });
}

export function real(low: number, high: number, unit: string) {
  const expected = `a number of ${unit} from ${low} to ${high}`;
  return z.number(expected).min(low, expected).max(high, expected);
}

export function whole(low: number, high: number, what = "a whole number") {
  const expected = `${what} from ${low} to ${high}`;
  return z.int(expected).min(low, expected).max(high, expected);
}

export function oneOf<const T extends string>(words: readonly [T, ...T[]]) {
  return z.enum(words, alternatives(words));
}

export function list<T extends z.ZodType>(item: T, what: string, max?: number) {
  const items = z.array(item, "a list");
  return max === undefined ? items : items.max(max, `at most ${max} ${what}`);
}

export const seconds = (low: number, high: number) => real(low, high, "seconds");
export const port = whole(1, 65_535, "a port");
export const interfaceGlob = matching(
  "the name of an interface (up to 15 characters), or a pattern of names with * and ?",
  INTERFACE_GLOB,
).meta({ title: "name or pattern" });
export const mac = matching("a MAC address as 02:00:00:00:0a:01", MAC)
  .refine(isUnicast, { error: (issue) => `${issue.input} is not the address of one network card` })
  .meta({ title: "MAC address" });
export const address = z
  .union([z.ipv4("an IP address"), z.ipv6("an IP address")], "an IP address")
  .refine(isOfOneHost, { error: (issue) => `${issue.input} is not the address of one host` })
  .meta({ title: "address" });
export const prefix = z
  .string("an address or a prefix as 192.0.2.0/24")
  .refine((text) => parsePrefix(text) !== undefined, {
    error: (issue) => `expected an address or a prefix as 192.0.2.0/24, not ${JSON.stringify(issue.input)}`,
  })
  .meta({ title: "address or prefix" });
export const zone = name()
  .default("default")
  .describe("zone that it belongs to: flows of different zones never meet");

/** How often somebody is asked, and what the answers mean; in seconds if left out. */
export const attempts = (interval: number, timeout: number) => ({
  interval_seconds: seconds(0.1, 3600).default(interval).describe("between two attempts"),
  timeout_seconds: seconds(0.05, 60).default(timeout).describe("how long an answer may take"),
  fall: whole(1, 100).default(3).describe("failures in a row that mean down"),
  rise: whole(1, 100).default(2).describe("answers in a row that mean up"),
});

/** Whether a probe or a check says whom to ask, or there is somebody of its own; whatever type it has. */
export function asksSomebody(asking: unknown, hasOwn: boolean): boolean {
  const isEntry = typeof asking === "object" && asking !== null;
  return hasOwn || !isEntry || (asking as { address?: unknown }).address !== undefined;
}

function isUnicast(text: string): boolean {
  const bytes = parseMac(text);
  return bytes !== undefined && (bytes[0]! & 1) === 0 && bytes.some((byte) => byte !== 0);
}

/** Not multicast, broadcast, loopback or unspecified; and an IPv4 address is written as one. */
function isOfOneHost(text: string): boolean {
  const bytes = parseAddress(text);
  if (bytes === undefined) return false;
  if (bytes.length === 4) return bytes[0]! > 0 && bytes[0]! < 224 && bytes[0] !== 127;
  const low = bytes.subarray(0, 15).every((byte) => byte === 0) && bytes[15]! <= 1;
  return bytes[0] !== 0xff && !low && !isMappedIpv4(bytes);
}

/** Refinements run whatever else is wrong with the entry; `rule` must bear with values of any type. */
export function always<T extends Record<string, unknown>>(
  path: string | undefined,
  rule: (entry: T) => boolean,
  error: string,
) {
  const params = {
    error,
    when: ({ value }: { value: unknown }) =>
      typeof value === "object" && value !== null && !Array.isArray(value),
    ...(path !== undefined && { path: [path] }),
  };
  return [rule, params] as const;
}
