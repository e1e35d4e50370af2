// SPDX-License-Identifier: Apache-2.0

import { type ErrorCode, LasthopError } from "../errors.ts";
import type { Output } from "./output.ts";
import { printable } from "./table.ts";

export const FAILED = 1;
const USAGE = 2;

const USAGE_CODES: readonly ErrorCode[] = ["E_USAGE", "E_TUPLE"];

interface Report {
  code: ErrorCode;
  message: string;
  hint: string | null;
  /** With --debug only. */
  details?: string;
}

/** Writes an error for people or for programs, and gives the exit status. */
export async function reportError(
  error: unknown,
  stderr: Output,
  options: { json: boolean; debug: boolean },
): Promise<number> {
  const report = describe(error);
  if (options.debug) report.details = debugText(error);
  await stderr.write(options.json ? `${JSON.stringify(report)}\n` : errorText(report));
  return USAGE_CODES.includes(report.code) ? USAGE : FAILED;
}

function describe(error: unknown): Report {
  if (error instanceof LasthopError) {
    return { code: error.code, message: error.message, hint: error.hint ?? null };
  }
  const text = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  return {
    code: "E_INTERNAL",
    message: `this is a bug in lasthop: ${text}`,
    hint: "Please report it with the output of the same command with --debug.",
  };
}

function errorText(report: Report): string {
  const hint = report.hint === null ? "" : `  ${printable(report.hint)}\n`;
  const details = report.details === undefined ? "" : `\n${report.details}\n`;
  return `lasthop: ${printable(report.message)}\n${hint}${details}`;
}

/** Stack traces with their causes, and what the kernel or libbpf said. */
function debugText(error: unknown): string {
  const parts: string[] = [];
  for (let current = error; current !== undefined; ) {
    if (!(current instanceof Error)) {
      parts.push(String(current));
      break;
    }
    parts.push(current.stack ?? `${current.name}: ${current.message}`);
    if (current instanceof LasthopError && current.details !== undefined)
      parts.push(current.details.trimEnd());
    current = current.cause;
  }
  return parts.join("\n\n");
}
