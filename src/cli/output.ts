// SPDX-License-Identifier: Apache-2.0
// Where a command's output goes: a stream with backpressure, which whoever reads it may close.

import type { Writable } from "node:stream";

export interface Output {
  /** Resolves when there is room for more; rejects with OutputClosed when nobody reads any longer. */
  write(data: string | Uint8Array): Promise<void>;
  readonly isTerminal: boolean;
  readonly columns: number;
}

/** The reader has gone, as `head` does: nothing is wrong, but there is nothing left to do. */
export class OutputClosed extends Error {
  override readonly name = "OutputClosed";
}

type OutputStream = Writable & { isTTY?: boolean; columns?: number };

export function streamOutput(stream: OutputStream): Output {
  let failure: NodeJS.ErrnoException | undefined;
  // Without a listener an EPIPE would end the process with a stack trace.
  stream.on("error", (error: NodeJS.ErrnoException) => {
    failure ??= error;
  });
  return {
    isTerminal: stream.isTTY === true,
    get columns() {
      return stream.columns ?? 80;
    },
    write: (data) =>
      new Promise<void>((resolve, reject) => {
        stream.write(data, (error) => {
          const cause: NodeJS.ErrnoException | null | undefined = failure ?? error;
          if (!cause) resolve();
          else reject(cause.code === "EPIPE" ? new OutputClosed("EPIPE", { cause }) : cause);
        });
      }),
  };
}

const CHUNK_CHARS = 64 * 1024;

/** Gathers short texts into writes that are worth a system call. */
export class ChunkedWriter {
  readonly #output: Output;
  #pending = "";

  constructor(output: Output) {
    this.#output = output;
  }

  /** Adds a text; gives a promise to wait for only when enough has gathered. */
  add(text: string): Promise<void> | undefined {
    this.#pending += text;
    return this.#pending.length >= CHUNK_CHARS ? this.flush() : undefined;
  }

  flush(): Promise<void> {
    const text = this.#pending;
    this.#pending = "";
    return text === "" ? Promise.resolve() : this.#output.write(text);
  }
}
