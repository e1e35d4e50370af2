// SPDX-License-Identifier: Apache-2.0
// Compiles the matrix into build/ and plays it: Node 20 does not run TypeScript. Where it is compiled already, as in a
// virtual machine, --compiled leaves that out.

import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../", import.meta.url));
const compiled = process.argv.indexOf("--compiled");
if (compiled > 0) process.argv.splice(compiled, 1);
else {
  const tsc = spawnSync(`${root}node_modules/.bin/tsc`, ["-p", `${root}test/matrix/tsconfig.json`], {
    stdio: "inherit",
  });
  if (tsc.status !== 0) process.exit(tsc.status ?? 1);
}

await import(new URL("../../build/test/matrix/main.js", import.meta.url).href);
