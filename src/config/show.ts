// SPDX-License-Identifier: Apache-2.0

import { stringify } from "yaml";
import type { Config } from "./schema.ts";

/** A configuration as YAML, which parses to the same configuration. */
export function configYaml(config: Config): string {
  // Aliases and folded lines would be right, but not readable.
  return stringify(config, { aliasDuplicateObjects: false, lineWidth: 0 });
}
