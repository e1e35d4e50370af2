// SPDX-License-Identifier: Apache-2.0
// One entry as it is given by hand: checked as in a file, in the same words.

import type { z } from "zod";
import { pathText } from "./problems.ts";
import { entrySchemas, type ServiceConfig, type VmConfig } from "./schema.ts";
import { complaints } from "./wording.ts";

export interface GivenProblem {
  /** With its place in the entry: `pool[0].weight: expected …`. */
  message: string;
  /** Each value is what it may be, but they do not go together. */
  together: boolean;
}

export type CheckedEntry<T> = { entry: T; problems: null } | { entry: null; problems: GivenProblem[] };

export function checkVm(data: unknown): CheckedEntry<VmConfig> {
  return checkEntry(entrySchemas.vms, data);
}

export function checkService(data: unknown): CheckedEntry<ServiceConfig> {
  return checkEntry(entrySchemas.services, data);
}

/** With at least one problem, or none. */
function checkEntry<S extends z.ZodObject>(schema: S, data: unknown): CheckedEntry<z.output<S>> {
  const parsed = schema.safeParse(data);
  if (parsed.success) return { entry: parsed.data, problems: null };
  const unsound = unsoundKeys(schema, data);
  const problems = parsed.error.issues.flatMap((issue) => {
    const together = issue.code === "custom" && !unsound.has(issue.path[0]);
    return complaints(issue, data, schema).map(({ path, message }) => ({
      message: path.length === 0 ? message : `${pathText(path)}: ${message}`,
      together,
    }));
  });
  return { entry: null, problems };
}

/** Keys whose value is wrong whatever the others are. */
function unsoundKeys(schema: z.ZodObject, data: unknown): Set<PropertyKey | undefined> {
  const values = (typeof data === "object" && data !== null ? data : {}) as Record<string, unknown>;
  const keys = Object.entries(schema.shape) as [string, z.ZodType][];
  return new Set(keys.filter(([key, value]) => !value.safeParse(values[key]).success).map(([key]) => key));
}
