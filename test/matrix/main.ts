// SPDX-License-Identifier: Apache-2.0
// The whole product of kinds, for one kernel:
//
//   main.js [--ring] [--kinds A,B] --out FILE      plays it, and writes what came of it as JSON
//   main.js --document FILE FILE...                writes the table of docs/matrix.md from such results

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { parseArgs } from "node:util";
import { document, type Result } from "./document.ts";
import { play } from "./play.ts";

const { values, positionals } = parseArgs({
  options: {
    ring: { type: "boolean", default: false },
    kinds: { type: "string" },
    out: { type: "string" },
    document: { type: "string" },
  },
  allowPositionals: true,
});

if (values.document !== undefined) {
  const results = positionals.map((path) => JSON.parse(readFileSync(path, "utf8")) as Result);
  writeFileSync(values.document, document(results));
} else {
  const result = await play({ ring: values.ring, kinds: values.kinds?.split(",") });
  if (values.out !== undefined) {
    mkdirSync(dirname(values.out), { recursive: true });
    writeFileSync(values.out, `${JSON.stringify(result, undefined, 1)}\n`);
  }
  const failed = result.pairs.filter(({ failures }) => failures.length > 0).length;
  console.log(`${result.pairs.length - failed} pairs work, ${failed} fail`);
  process.exitCode = failed > 0 ? 1 : 0;
}
