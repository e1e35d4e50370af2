// SPDX-License-Identifier: Apache-2.0
// Compiles the benchmark into build/ and runs it: Node 20 does not run TypeScript.

import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../", import.meta.url));
const tsc = spawnSync(`${root}node_modules/.bin/tsc`, ["-p", `${root}test/bench/tsconfig.json`], {
  stdio: "inherit",
});
if (tsc.status !== 0) process.exit(tsc.status ?? 1);

await import(new URL("../../build/test/bench/main.js", import.meta.url).href);
