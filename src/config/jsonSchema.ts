// SPDX-License-Identifier: Apache-2.0
// The validator as JSON Schema, for editors. It lacks what a schema cannot say: check.ts, and the
// refinements in schema.ts.

import { z } from "zod";
import { configSchema } from "./schema.ts";

/** JSON Schema 2020-12 of a configuration as people write it: what has a default may be left out. */
export function configJsonSchema(): Record<string, unknown> {
  const { $schema, ...schema } = z.toJSONSchema(configSchema, { io: "input" });
  return { $schema, title: "Configuration of lasthop", ...schema };
}
