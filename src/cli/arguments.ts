// SPDX-License-Identifier: Apache-2.0
// Checks of single arguments, and options that several commands share.

import { DEFAULT_CONFIG_PATH, MARK_MAX } from "../config/defaults.ts";
import { LasthopError } from "../errors.ts";
import { alternatives, suggest } from "../suggest.ts";

export function usageError(message: string, hint?: string): LasthopError {
  return new LasthopError("E_USAGE", message, hint === undefined ? {} : { hint });
}

/** Parses a whole number in decimal within bounds. */
export function wholeNumber(option: string, min: number, max: number) {
  return (text: string): number => {
    const number = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    if (number >= min && number <= max) return number;
    throw usageError(`--${option}: "${text}" is not a whole number from ${min} to ${max}`);
  };
}

/** Parses a number of seconds, whole or not. */
export function secondsValue(option: string) {
  return (text: string): number => {
    if (/^\d+(\.\d+)?$/.test(text)) return Number(text);
    throw usageError(`--${option}: "${text}" is not a number of seconds`);
  };
}

/** Parses a firewall mark, in decimal or as 0x10. */
export function parseMark(text: string): number {
  const number = /^(?:\d{1,10}|0x[\da-f]{1,8})$/i.test(text) ? Number(text) : Number.NaN;
  if (number <= MARK_MAX) return number;
  throw usageError(`--mark: "${text}" is not a mark from 0 to 0xffffffff`);
}

/** Parses one of a few words; `subject` begins the message. */
export function oneOf<const T extends string>(subject: string, words: readonly T[]) {
  return (text: string): T => {
    const found = words.find((word) => word === text);
    if (found !== undefined) return found;
    throw usageError(`${subject}: "${text}" is not ${alternatives(words)}`, didYouMean(text, words));
  };
}

export function didYouMean(word: string, candidates: readonly string[], prefix = ""): string | undefined {
  const found = suggest(word, candidates);
  return found === undefined ? undefined : `Did you mean "${prefix}${found}"?`;
}

const YEAR_SECONDS = 365 * 86_400;

export const zoneOption = {
  value: "N",
  describe: "network zone, 0 to 65535: overlapping address spaces never share a flow",
  parse: wholeNumber("zone", 0, 65_535),
} as const;

export const configOption = {
  value: "FILE",
  short: "c",
  describe: `configuration file [default: ${DEFAULT_CONFIG_PATH}]`,
} as const;

export function secondsOption(option: string, describe: string) {
  return { value: "N", describe, parse: wholeNumber(option, 1, YEAR_SECONDS) } as const;
}

/** A five-tuple in as many words as it takes. */
export const tupleWords = {
  many: true,
  describe: "tcp|udp|sctp REMOTE:PORT LOCAL:PORT (IPv6 in brackets), or icmp REMOTE LOCAL ID",
} as const;
