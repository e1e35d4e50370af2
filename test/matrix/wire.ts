// SPDX-License-Identifier: Apache-2.0
// What was on every cable, taken once for a whole run and decoded by tshark at its end.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Namespace } from "../support/lab.ts";
import { type Background, until } from "../support/run.ts";
import { PROOF_FIELDS, type ProofField } from "./kinds/kind.ts";
import { GENEVE_EXTERNAL_PORT, TUN_RELAY_PORT, VXLAN_EXTERNAL_PORT } from "./kinds/tunnel.ts";

export interface Frame {
  wire: string;
  time: number;
  bytes: number;
  /** tshark's names of the headers, from the outermost. */
  layers: string;
  /** Every value of a field, from the outermost header. */
  values: Record<ProofField, string[]>;
}

const FIELDS = ["frame.interface_name", "frame.time_epoch", "frame.len", "frame.protocols", ...PROOF_FIELDS];

const PREFERENCES = [
  "esp.enable_null_encryption_decode_heuristic:TRUE",
  // Each frame is shown as it is.
  ...["ip.defragment", "ipv6.defragment", "tcp.desegment_tcp_streams"].map((name) => `${name}:FALSE`),
  // Segmented and checksummed below where it is taken.
  ...["ip.check_checksum", "tcp.check_checksum", "udp.check_checksum"].map((name) => `${name}:FALSE`),
];

const DECODE_AS = [
  `udp.port==${VXLAN_EXTERNAL_PORT},vxlan`,
  `udp.port==${GENEVE_EXTERNAL_PORT},geneve`,
  `udp.port==${TUN_RELAY_PORT},ip`,
];

/** Enough for every header; a large segment is cut off. */
const SNAP_LENGTH = 256;

export class Wires {
  readonly #process: Background;
  readonly #folder: string;

  private constructor(process: Background, folder: string) {
    this.#process = process;
    this.#folder = folder;
  }

  static async start(host: Namespace, wires: readonly string[], timeoutMs: number): Promise<Wires> {
    const folder = mkdtempSync(join(tmpdir(), "lasthop-matrix-"));
    // No filter: while it sets one, dumpcap loses what comes.
    const each = wires.flatMap((wire) => ["-i", wire, "-s", String(SNAP_LENGTH), "-B", "8"]);
    const process = host.start(["dumpcap", ...each, "-w", join(folder, "wires.pcapng")]);
    const started = new Wires(process, folder);
    try {
      await process.writes(/File: /, "stderr", timeoutMs);
    } catch (error) {
      started.remove();
      throw error;
    }
    return started;
  }

  get #path(): string {
    return join(this.#folder, "wires.pcapng");
  }

  /** Ends when nothing more comes in. */
  async stop(): Promise<void> {
    let last = -1;
    let quiet = 0;
    await until(() => {
      const { size } = statSync(this.#path);
      quiet = size === last ? quiet + 1 : 0;
      last = size;
      return quiet >= 5;
    }, "the capture to end");
    await this.#process.stop("SIGINT");
    const lost = [...this.#process.stderr.matchAll(/on interface '(\S+)': (\d+)\/(\d+)/g)].filter(
      ([, , , dropped]) => dropped !== "0",
    );
    if (!/received\/dropped/.test(this.#process.stderr) || lost.length > 0) {
      throw new Error(`the capture lost frames: ${this.#process.stderr}`);
    }
  }

  /** Frame by frame: a long run's are too many to hold as text. */
  async read(each: (frame: Frame) => void): Promise<void> {
    const argv = ["-r", this.#path, "-n", "-T", "fields", "-E", "separator=/t", "-E", "occurrence=a"];
    for (const preference of PREFERENCES) argv.push("-o", preference);
    for (const rule of DECODE_AS) argv.push("-d", rule);
    for (const field of FIELDS) argv.push("-e", field);
    const child = spawn("tshark", argv, { stdio: ["ignore", "pipe", "pipe"] });
    let said = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      said += text;
    });
    const ended = new Promise<number | null>((resolve, reject) => {
      child.on("error", reject);
      child.on("close", resolve);
    });
    for await (const line of createInterface({ input: child.stdout })) each(decode(line));
    const code = await ended;
    if (code !== 0) throw new Error(`tshark ended with ${code}: ${said}`);
  }

  remove(): void {
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

function decode(line: string): Frame {
  const [wire = "", time = "", bytes = "", layers = "", ...cells] = line.split("\t");
  const values = Object.fromEntries(
    PROOF_FIELDS.map((field, index) => [field, cells[index]?.split(",").filter(Boolean) ?? []]),
  ) as Record<ProofField, string[]>;
  return { wire, time: Number(time), bytes: Number(bytes), layers, values };
}
