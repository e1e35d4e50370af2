// SPDX-License-Identifier: Apache-2.0
// The typed side of agent.mjs.

import { repositoryPath } from "./paths.ts";
import { Background } from "./run.ts";

export interface OpenOptions {
  host: string;
  port: number;
  localAddress?: string;
  localPort?: number;
  timeoutMs?: number;
}

export interface Hashed {
  bytes: number;
  sha256: string;
}

export interface EchoRun {
  rounds: number;
  longest_ms: number;
  error: string | null;
}

/** Whom to ask: a named server of serviceAgent.mjs. */
export interface AskOptions {
  host: string;
  port: number;
  localAddress?: string;
  localPort?: number;
  timeoutMs?: number;
}

export interface ChurnReport {
  /** That were opened, asked twice and closed in order. */
  connections: number;
  /** By the name of the server. */
  answers: Record<string, number>;
  errors: string[];
}

interface ServiceMethods {
  /** Servers that answer each line of TCP, and each datagram to one of the addresses, with their name before it. */
  serveNamed: [{ name: string; port: number; addresses: string[] }, null];
  /** Takes TCP connections at the addresses, and makes one of its own to the target for each. */
  proxy: [{ port: number; addresses: string[]; host: string; target_port: number }, null];
  openAsking: [AskOptions & { key: string }, { local_port: number }];
  /** The name of the server. With `text: null` nothing is sent, and the answer that is due is waited for. */
  ask: [{ key: string; text?: string | null; timeoutMs?: number }, string];
  endAsking: [{ key: string }, null];
  /** The names of those that answered, one for each new connection. */
  askAnew: [AskOptions & { times: number }, string[]];
  askByUdp: [AskOptions & { texts: string[] }, { names: string[]; local_port: number }];
  startChurn: [
    Omit<AskOptions, "host"> & { key: string; hosts: string[]; parallel: number; limit?: number },
    null,
  ];
  churn: [{ key: string }, ChurnReport];
  /** `finish`: once `limit` connections have come and gone; else now. */
  stopChurn: [{ key: string; finish?: boolean }, ChurnReport];
}

interface Methods extends ServiceMethods {
  serve: [{ name: string; http_port?: number; echo_port?: number }, null];
  open: [OpenOptions & { key: string }, { local_port: number }];
  openMany: [OpenOptions & { keys: string[] }, { opened: number }];
  echo: [{ key: string; bytes?: number; timeoutMs?: number }, null];
  echoAll: [{ timeoutMs?: number }, { alive: number; errors: string[] }];
  startEchoing: [{ key: string; intervalMs?: number; timeoutMs?: number }, null];
  progress: [{ key: string }, EchoRun];
  stopEchoing: [{ key: string }, EchoRun];
  close: [{ key: string; reset?: boolean }, null];
  udp: [OpenOptions & { text: string }, { text: string; local_port: number }];
  download: [Omit<OpenOptions, "port"> & { bytes: number; port?: number }, Hashed];
  upload: [Omit<OpenOptions, "port"> & { bytes: number; port?: number }, Hashed];
  expected: [{ bytes: number }, Hashed];
}

/** A process in a namespace that opens real sockets on our behalf. */
export class Agent {
  readonly process: Background;
  readonly #waiting = new Map<number, { resolve: (value: never) => void; reject: (error: Error) => void }>();
  #next = 1;
  #rest = "";

  constructor(prefix: readonly string[]) {
    const program = repositoryPath("test/support/agent.mjs");
    this.process = new Background([...prefix, process.execPath, program]);
    this.process.child.stdout.on("data", (text: string) => this.#read(text));
    void this.process.exited.then((status) => {
      for (const { reject } of this.#waiting.values()) {
        reject(new Error(`the agent ended with ${status}: ${this.process.stderr}`));
      }
      this.#waiting.clear();
    });
  }

  #read(text: string): void {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop() ?? "";
    for (const line of lines) {
      const answer = JSON.parse(line) as { id: number; result?: never; error?: string };
      const waiting = this.#waiting.get(answer.id);
      this.#waiting.delete(answer.id);
      if (answer.error === undefined) waiting?.resolve(answer.result as never);
      else waiting?.reject(new Error(answer.error));
    }
  }

  /** Rejects with the error's code, for instance `ETIMEDOUT` or `timeout`. */
  call<M extends keyof Methods>(method: M, args: Methods[M][0]): Promise<Methods[M][1]> {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.process.child.stdin.write(`${JSON.stringify({ id, method, args })}\n`);
    });
  }

  /** `undefined`, or the code of the error with which the call failed. */
  async failure<M extends keyof Methods>(method: M, args: Methods[M][0]): Promise<string | undefined> {
    try {
      await this.call(method, args);
      return undefined;
    } catch (error) {
      return error instanceof Error ? error.message : String(error);
    }
  }
}
