// SPDX-License-Identifier: Apache-2.0
// What could not be done, as a value: one interface's failure does not keep the others from their turn.

import { type ErrorCode, LasthopError } from "../errors.ts";
import { UndoError } from "./steps.ts";

/** What could not be brought to the configuration, and why. The rest was. */
export interface Failure {
  object: string;
  /** Key in the configuration file, as "taps[0]"; null for what nobody configured. */
  config: string | null;
  code: ErrorCode;
  message: string;
  hint: string | null;
  /** What was thrown. */
  cause: unknown;
}

export function failure(object: string, config: string | null, cause: unknown): Failure {
  if (cause instanceof LasthopError) {
    const { code, message, hint } = cause;
    return { object, config, code, message, hint: hint ?? null, cause };
  }
  if (cause instanceof UndoError) {
    const [first, ...others] = cause.errors as unknown[];
    const undone = others.map((error) => failure(object, config, error).message).join("; ");
    const told = failure(object, config, first);
    return { ...told, message: `${told.message}; taking it back failed too: ${undone}`, cause };
  }
  const text = cause instanceof Error ? `${cause.name}: ${cause.message}` : String(cause);
  return {
    object,
    config,
    code: "E_INTERNAL",
    message: `this is a bug in lasthop: ${text}`,
    hint: "Please report it with the output of the same command with --debug.",
    cause,
  };
}
