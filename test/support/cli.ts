// SPDX-License-Identifier: Apache-2.0
// Runs the command line in this process, with its output captured.

import { type CliHost, main } from "../../src/cli/cli.ts";
import type { Output } from "../../src/cli/output.ts";

export interface CliRun {
  status: number;
  stdout: string;
  stderr: string;
}

export interface CliRunOptions {
  signal?: AbortSignal;
  columns?: number;
  /** Called with each text as it is written to stdout; what it throws, the write throws. */
  onStdout?(text: string): void;
  /** Which of the two are terminals. */
  terminals?: { stdout?: boolean; stderr?: boolean };
}

export async function runCli(argv: readonly string[], options: CliRunOptions = {}): Promise<CliRun> {
  const run: CliRun = { status: -1, stdout: "", stderr: "" };
  const capture = (name: "stdout" | "stderr"): Output => ({
    isTerminal: options.terminals?.[name] ?? false,
    columns: options.columns ?? 100,
    async write(data) {
      const text = typeof data === "string" ? data : Buffer.from(data).toString();
      run[name] += text;
      if (name === "stdout") options.onStdout?.(text);
    },
  });
  const host: CliHost = {
    stdout: capture("stdout"),
    stderr: capture("stderr"),
    signal: options.signal ?? new AbortController().signal,
  };
  run.status = await main(argv, host);
  return run;
}
