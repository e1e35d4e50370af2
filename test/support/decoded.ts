// SPDX-License-Identifier: Apache-2.0
// Frames on a wire as tshark decodes them: whatever fields are asked for, of every header within a frame.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Namespace } from "./lab.ts";
import { type Background, must, sleep } from "./run.ts";

/** Values of a field in one frame, outermost first. */
export type DecodedFrame<F extends string> = Record<F, string[]>;

export class DecodedCapture {
  readonly #directory: string;
  readonly #process: Background;

  private constructor(directory: string, process: Background) {
    this.#directory = directory;
    this.#process = process;
  }

  /** Returns once frames are being taken. `filter` is pcap's. */
  static async start(
    namespace: Namespace,
    device: string,
    direction: "in" | "out",
    filter: string,
  ): Promise<DecodedCapture> {
    const directory = mkdtempSync(join(tmpdir(), `lasthop-capture-${process.pid}-`));
    const tcpdump = namespace.start([
      ...["tcpdump", "-Z", "root", "-n", "-U", "--immediate-mode", "-i", device, "-Q", direction],
      ...["-w", join(directory, "frames.pcap"), filter],
    ]);
    await tcpdump.writes(/listening on/, "stderr");
    return new DecodedCapture(directory, tcpdump);
  }

  async stop<const F extends string>(fields: readonly F[]): Promise<DecodedFrame<F>[]> {
    try {
      // What is on its way.
      await sleep(200);
      await this.#process.stop("SIGINT");
      const text = await must([
        ...["tshark", "-r", join(this.#directory, "frames.pcap"), "-n", "-T", "fields", "-E", "separator=/t"],
        ...["-E", "occurrence=a", "-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE"],
        ...fields.flatMap((field) => ["-e", field]),
      ]);
      return text
        .split("\n")
        .filter(Boolean)
        .map((line) => rowOf(fields, line.split("\t")));
    } finally {
      rmSync(this.#directory, { recursive: true, force: true });
    }
  }
}

function rowOf<F extends string>(fields: readonly F[], cells: readonly string[]): DecodedFrame<F> {
  const pairs = fields.map((field, index) => [field, (cells[index] ?? "").split(",").filter(Boolean)]);
  return Object.fromEntries(pairs) as DecodedFrame<F>;
}
