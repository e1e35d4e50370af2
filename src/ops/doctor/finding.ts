// SPDX-License-Identifier: Apache-2.0

import { LasthopError } from "../../errors.ts";
import type { DoctorCheck } from "../types.ts";

export type Finding = Omit<DoctorCheck, "name">;

export const ok = (found: string): Finding => ({ level: "ok", found, hint: null });
export const warn = (found: string, hint: string | null): Finding => ({ level: "warn", found, hint });
export const fail = (found: string, hint: string | null): Finding => ({ level: "fail", found, hint });

/** Several things that were found, and what to do about each. */
export function warnings(items: readonly { found: string; hint: string }[], otherwise: string): Finding {
  if (items.length === 0) return ok(otherwise);
  const hints = [...new Set(items.map((item) => item.hint))];
  return warn(items.map((item) => item.found).join("; "), hints.join(" "));
}

/** A check that fails is a finding, not the end. */
export function check(name: string, look: () => Finding): DoctorCheck {
  try {
    return { name, ...look() };
  } catch (error) {
    if (!(error instanceof LasthopError)) throw error;
    return { name, ...fail(error.message, error.hint ?? null) };
  }
}
