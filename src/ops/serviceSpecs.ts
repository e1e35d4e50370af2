// SPDX-License-Identifier: Apache-2.0
// A VM or a service as somebody asks for it by hand, checked as the configuration is.

import { type CheckedEntry, checkService, checkVm } from "../config/given.ts";
import type { ServiceConfig, VmConfig } from "../config/schema.ts";
import { type ErrorCode, LasthopError } from "../errors.ts";
import type { ServiceSpecInput, VmSpecInput } from "./types.ts";

const ZONE_MAX = 0xffff;

/** Its zone stands beside it, as a number. Throws E_USAGE for values that cannot be, E_VM for what does not go together. */
export function vmConfigOf(name: string, spec: VmSpecInput): VmConfig {
  const { zone: _, ...given } = spec;
  return entryOf(checkVm({ ...given, name }), "E_VM");
}

/** The same of a service, with E_SERVICE. */
export function serviceConfigOf(name: string, spec: ServiceSpecInput): ServiceConfig {
  const { zone: _, ...given } = spec;
  return entryOf(checkService({ ...given, name }), "E_SERVICE");
}

function entryOf<T>({ entry, problems }: CheckedEntry<T>, code: ErrorCode): T {
  if (problems === null) return entry;
  const malformed = problems.filter(({ together }) => !together);
  const told = malformed.length > 0 ? malformed : problems;
  throw new LasthopError(
    malformed.length > 0 ? "E_USAGE" : code,
    told.map(({ message }) => message).join("; "),
  );
}

/** Throws E_USAGE. */
export function checkZone(zone: number): number {
  if (Number.isInteger(zone) && zone >= 0 && zone <= ZONE_MAX) return zone;
  throw new LasthopError("E_USAGE", `a zone is a whole number from 0 to ${ZONE_MAX}, not ${zone}`);
}
