// SPDX-License-Identifier: Apache-2.0
// Compiles the soak into build/ and runs it: Node 20 does not run TypeScript.

import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../", import.meta.url));
const tsc = spawnSync(`${root}node_modules/.bin/tsc`, ["-p", `${root}test/soak/tsconfig.json`], {
  stdio: "inherit",
});
if (tsc.status !== 0) process.exit(tsc.status ?? 1);

await import(new URL("../../build/test/soak/main.js", import.meta.url).href);
