// SPDX-License-Identifier: Apache-2.0
// From a command line to an exit status: 0 done, 1 failed, 2 usage, and of plan 3: there is something to do.

import { createLogger } from "../log.ts";
import { packageVersion } from "../version.ts";
import type { CommandContext } from "./command.ts";
import { type Output, OutputClosed } from "./output.ts";
import { FAILED, reportError } from "./report.ts";

export interface CliHost {
  stdout: Output;
  stderr: Output;
  signal: AbortSignal;
  /** Called before a command that runs until `signal` is aborted. */
  onEndless?(): void;
}

export async function main(argv: readonly string[], host: CliHost): Promise<number> {
  try {
    return await run(argv, host);
  } catch (error) {
    if (error instanceof OutputClosed) return 0;
    return reportError(error, host.stderr, { json: asksForJson(argv), debug: argv.includes("--debug") });
  }
}

async function run(argv: readonly string[], host: CliHost): Promise<number> {
  // Answered before anything else is loaded.
  if (argv.length === 1 && argv[0] === "--version") {
    await host.stdout.write(`${packageVersion()}\n`);
    return 0;
  }
  const { parseCommandLine } = await import("./parse.ts");
  const parsed = await parseCommandLine(argv, { version: packageVersion(), columns: host.stdout.columns });
  if ("text" in parsed) {
    await host.stdout.write(parsed.text);
    return 0;
  }
  const { command, args, global } = parsed;
  let status = 0;
  let logged = Promise.resolve();
  const log = createLogger({
    level: global.debug ? "debug" : "info",
    format: global.json ? "json" : "text",
    write(line) {
      logged = Promise.all([logged, host.stderr.write(line)]).then(() => undefined);
    },
  });
  const context: CommandContext = {
    op: { pinRoot: global.pinRoot, warn: (message) => log.warning(message) },
    json: global.json,
    debug: global.debug,
    stdout: host.stdout,
    stderr: host.stderr,
    signal: host.signal,
    setFailed() {
      status = FAILED;
    },
    setStatus(found) {
      if (status !== FAILED) status = found;
    },
  };
  if (command.endless) host.onEndless?.();
  const started = performance.now();
  await command.run(args, context);
  log.debug(`${command.name} done`, { milliseconds: Math.round(performance.now() - started) });
  await logged;
  return status;
}

/** For errors in the command line itself, when there is nothing parsed to ask. */
function asksForJson(argv: readonly string[]): boolean {
  return argv.some((word) => word === "--json" || /^-[a-z]*j[a-z]*$/.test(word));
}
