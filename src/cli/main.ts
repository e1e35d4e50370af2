#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0

import { main } from "./cli.ts";
import { streamOutput } from "./output.ts";

const abort = new AbortController();

process.exitCode = await main(process.argv.slice(2), {
  stdout: streamOutput(process.stdout),
  stderr: streamOutput(process.stderr),
  signal: abort.signal,
  onEndless() {
    for (const signal of ["SIGINT", "SIGTERM"] as const) {
      // A second signal ends the process at once, as without a listener.
      process.once(signal, () => abort.abort());
    }
  },
});
