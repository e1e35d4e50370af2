// SPDX-License-Identifier: Apache-2.0
// The typed side of traffic.mjs.

import type { Namespace } from "../support/lab.ts";
import { repositoryPath } from "../support/paths.ts";
import type { Background } from "../support/run.ts";

interface Target {
  host: string;
  port: number;
  from: string;
  timeoutMs: number;
}

interface Methods {
  serve: [{ port: number }, null];
  tcp: [Target & { up: number; down: number }, null];
  udp: [Target & { bytes: number; tries?: number }, { tried: number }];
  ping: [Omit<Target, "port">, null];
}

/** A process in a namespace that uses real sockets on our behalf. */
export class TrafficAgent {
  readonly #process: Background;
  readonly #waiting = new Map<number, { resolve: (value: never) => void; reject: (error: Error) => void }>();
  #next = 1;
  #rest = "";

  constructor(namespace: Namespace) {
    this.#process = namespace.start([process.execPath, repositoryPath("test/matrix/traffic.mjs")]);
    this.#process.child.stdout.removeAllListeners("data");
    this.#process.child.stdout.on("data", (text: string) => this.#read(text));
    void this.#process.exited.then((status) => {
      for (const { reject } of this.#waiting.values()) {
        reject(new Error(`the traffic agent ended with ${status}: ${this.#process.stderr}`));
      }
      this.#waiting.clear();
    });
  }

  #read(text: string): void {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop() ?? "";
    for (const line of lines) {
      const { id, result, error } = JSON.parse(line) as { id: number; result?: never; error?: string };
      const waiting = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (error === undefined) waiting?.resolve(result as never);
      else waiting?.reject(new Error(error));
    }
  }

  call<M extends keyof Methods>(method: M, args: Methods[M][0]): Promise<Methods[M][1]> {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#process.child.stdin.write(`${JSON.stringify({ id, method, args })}\n`);
    });
  }

  /** `undefined`, or why it failed. */
  async failure<M extends keyof Methods>(method: M, args: Methods[M][0]): Promise<string | undefined> {
    try {
      await this.call(method, args);
      return undefined;
    } catch (error) {
      return `${method}: ${error instanceof Error ? error.message : String(error)}`;
    }
  }
}
