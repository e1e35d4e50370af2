// SPDX-License-Identifier: Apache-2.0
// Processes: run one to its end, or keep one until it is ready and later stopped.

import { type ChildProcess, type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { readFileSync } from "node:fs";

export interface Output {
  status: number;
  stdout: string;
  stderr: string;
}

export interface RunOptions {
  input?: string | Buffer;
  timeoutMs?: number;
  env?: NodeJS.ProcessEnv;
}

/** On a slow machine, such as an emulated one, everything may take this many times as long. */
export const TIMEOUT_FACTOR = Number(process.env.LASTHOP_TIMEOUT_FACTOR ?? 1);

/** Children of run() that have not ended; whoever cleans up in a hurry ends them first. */
const running = new Set<ChildProcessWithoutNullStreams>();

function hasEnded(child: ChildProcess): boolean {
  if (child.pid === undefined) return true;
  try {
    // We are its parent and may not get to reap it: a zombie holds nothing any longer.
    return / [ZX] /.test(readFileSync(`/proc/${child.pid}/stat`, "utf8").replace(/^.*\)/, ""));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return true;
    throw error;
  }
}

/** Kills processes and returns when they are gone, without waiting for the event loop. */
export function killNow(children: Iterable<ChildProcess> = []): void {
  const all = [...running, ...children];
  for (const child of all) child.kill("SIGKILL");
  const pause = new Int32Array(new SharedArrayBuffer(4));
  for (let tries = 0; tries < 200 && !all.every(hasEnded); tries++) Atomics.wait(pause, 0, 0, 5);
}

/** Runs to the end and returns whatever the status was. A signal counts as 128 + its number, as in a shell. */
export function run(argv: readonly string[], options: RunOptions = {}): Promise<Output> {
  return new Promise((resolve, reject) => {
    // The kernel ends the child with us, so nothing outlives a killed test.
    const child = spawn("setpriv", ["--pdeathsig", "KILL", ...argv], {
      stdio: ["pipe", "pipe", "pipe"],
      ...(options.env === undefined ? {} : { env: options.env }),
    });
    running.add(child);
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    const timer = setTimeout(() => child.kill("SIGKILL"), (options.timeoutMs ?? 30_000) * TIMEOUT_FACTOR);
    child.stdout.on("data", (chunk: Buffer) => out.push(chunk));
    child.stderr.on("data", (chunk: Buffer) => err.push(chunk));
    // A child that ends without reading its input is judged by its status.
    child.stdin.on("error", (error: NodeJS.ErrnoException) => {
      if (error.code !== "EPIPE") reject(error);
    });
    child.on("error", (error) => {
      running.delete(child);
      reject(error);
    });
    child.on("close", (code, signal) => {
      running.delete(child);
      clearTimeout(timer);
      const status = code ?? 128 + (signal === "SIGINT" ? 2 : signal === "SIGTERM" ? 15 : 9);
      resolve({ status, stdout: Buffer.concat(out).toString(), stderr: Buffer.concat(err).toString() });
    });
    child.stdin.end(options.input);
  });
}

/** Runs to the end and throws unless the status is 0. */
export async function must(argv: readonly string[], options: RunOptions = {}): Promise<string> {
  const output = await run(argv, options);
  if (output.status !== 0) {
    throw new Error(`${argv.join(" ")} ended with ${output.status}: ${output.stderr}${output.stdout}`);
  }
  return output.stdout;
}

/** A process that runs beside the test. */
export class Background {
  readonly child: ChildProcessWithoutNullStreams;
  readonly exited: Promise<number>;
  readonly #argv: readonly string[];
  stdout = "";
  stderr = "";

  constructor(argv: readonly string[]) {
    this.#argv = argv;
    this.child = spawn("setpriv", ["--pdeathsig", "KILL", ...argv], { stdio: ["pipe", "pipe", "pipe"] });
    this.child.stdout.setEncoding("utf8").on("data", (text: string) => {
      this.stdout += text;
    });
    this.child.stderr.setEncoding("utf8").on("data", (text: string) => {
      this.stderr += text;
    });
    this.exited = new Promise((resolve) => {
      this.child.on("error", (error) => {
        this.stderr += error.message;
        resolve(127);
      });
      this.child.on("close", (code) => resolve(code ?? 128));
    });
  }

  get running(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null && this.child.pid !== undefined;
  }

  /** Waits until the process has written what is looked for. */
  async writes(pattern: RegExp, stream: "stdout" | "stderr" = "stdout", timeoutMs = 10_000): Promise<void> {
    await until(
      () => {
        if (pattern.test(this[stream])) return true;
        if (!this.running) {
          throw new Error(`${this.#argv.join(" ")} ended before it wrote ${pattern}: ${this.stderr}`);
        }
        return false;
      },
      `${this.#argv.join(" ")} to write ${pattern}`,
      timeoutMs,
    );
  }

  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<number> {
    if (!this.running) return await this.exited;
    this.child.kill(signal);
    const timer = setTimeout(() => this.child.kill("SIGKILL"), 5_000 * TIMEOUT_FACTOR);
    const status = await this.exited;
    clearTimeout(timer);
    return status;
  }
}

export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Asks again and again until the answer is neither false nor undefined. */
export async function until<T>(
  ask: () => T | false | undefined | Promise<T | false | undefined>,
  what: string,
  timeoutMs = 10_000,
): Promise<T> {
  const deadline = Date.now() + timeoutMs * TIMEOUT_FACTOR;
  for (let pause = 2; ; pause = Math.min(pause * 2, 100)) {
    const answer = await ask();
    if (answer !== false && answer !== undefined) return answer;
    if (Date.now() > deadline) throw new Error(`waited ${timeoutMs * TIMEOUT_FACTOR} ms for ${what}`);
    await sleep(pause);
  }
}
