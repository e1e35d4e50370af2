#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
// Writes the man page and the completions into dist/, from the compiled commands there.

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const SCRIPTS = dirname(fileURLToPath(import.meta.url));
const DIST = join(dirname(SCRIPTS), "dist");
const { manualFiles } = await import(join(DIST, "cli/manual/index.js"));

const bashScript = readFileSync(join(SCRIPTS, "completion.bash"), "utf8");
for (const [name, text] of Object.entries(manualFiles(bashScript))) {
  const path = join(DIST, name);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
}
