// SPDX-License-Identifier: Apache-2.0
// The typed side of resident.mjs.

import type { Namespace } from "./lab.ts";
import { repositoryPath } from "./paths.ts";
import { type Background, type Output, TIMEOUT_FACTOR } from "./run.ts";

/** Whether commands share one process, which an emulated machine starts some 20 times as slowly as it runs them. */
export const RESIDENT = process.env.LASTHOP_TEST_RESIDENT === "1";

export class Resident {
  readonly #process: Background;
  readonly #waiting = new Map<number, { resolve: (result: never) => void; reject: (error: Error) => void }>();
  #next = 1;
  #rest = "";

  /** `dist` is the folder of a build. */
  constructor(host: Namespace, dist: string) {
    this.#process = host.start([process.execPath, repositoryPath("test/support/resident.mjs"), dist]);
    this.#process.child.stdout.on("data", (text: string) => this.#read(text));
    void this.#process.exited.then((status) => {
      for (const { reject } of this.#waiting.values()) {
        reject(new Error(`the command's process ended with ${status}: ${this.#process.stderr}`));
      }
      this.#waiting.clear();
    });
  }

  #read(text: string): void {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop() ?? "";
    for (const line of lines) {
      const { id, ...result } = JSON.parse(line) as { id: number };
      this.#waiting.get(id)?.resolve(result as never);
      this.#waiting.delete(id);
    }
  }

  run(args: readonly string[]): Promise<Output> {
    return this.#request({ args });
  }

  /** What the default function of a module answers to the build's folder and the arguments. */
  async ask(module: string, args: readonly unknown[]): Promise<unknown> {
    return (await this.#request<{ answer: unknown }>({ module, args })).answer;
  }

  async #request<Result>(request: object, timeoutMs = 30_000): Promise<Result> {
    const id = this.#next++;
    const timer = setTimeout(() => this.#process.child.kill("SIGKILL"), timeoutMs * TIMEOUT_FACTOR);
    try {
      return await new Promise<Result>((resolve, reject) => {
        if (!this.#process.running)
          throw new Error(`the command's process has ended: ${this.#process.stderr}`);
        this.#waiting.set(id, { resolve, reject });
        this.#process.child.stdin.write(`${JSON.stringify({ id, ...request })}\n`);
      });
    } finally {
      clearTimeout(timer);
    }
  }
}
