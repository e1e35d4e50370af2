// SPDX-License-Identifier: Apache-2.0
// What is on the wire, as tcpdump takes it and tshark, which is not ours, reads it.

import type { Namespace } from "./lab.ts";
import { type Background, must, until } from "./run.ts";

export interface Packet {
  time_seconds: number;
  length_bytes: number;
  source_mac: string;
  destination_mac: string;
  /** VLAN ids, outer first. */
  vids: number[];
  family: 4 | 6 | null;
  source: string;
  destination: string;
  /** IPv4 TTL or IPv6 hop limit. */
  ttl: number;
  protocol: "tcp" | "udp" | "icmp" | "other";
  source_port: number;
  destination_port: number;
  tcp_flags: number;
  payload_bytes: number;
  icmp_type: number | null;
  icmp_code: number | null;
  /** Of the outermost headers; `bad` if any of them is. */
  checksum: "good" | "bad" | "unknown";
}

const FIELDS = [
  "frame.time_epoch",
  "frame.len",
  "eth.src",
  "eth.dst",
  "ieee8021ad.id",
  "vlan.id",
  "ip.src",
  "ip.dst",
  "ip.ttl",
  "ip.checksum.status",
  "ipv6.src",
  "ipv6.dst",
  "ipv6.hlim",
  "tcp.srcport",
  "tcp.dstport",
  "tcp.flags",
  "tcp.len",
  "tcp.checksum.status",
  "udp.srcport",
  "udp.dstport",
  "udp.checksum.status",
  "icmp.type",
  "icmp.code",
  "icmp.checksum.status",
  "icmpv6.type",
  "icmpv6.code",
  "icmpv6.checksum.status",
] as const;

type Field = (typeof FIELDS)[number];

const OPTIONS = ["ip.check_checksum", "tcp.check_checksum", "udp.check_checksum"];

/** An ICMP error shows its own header and the quoted one: the first counts. */
function decode(line: string): Packet {
  const cells = line.split("\t");
  const all = (field: Field) => cells[FIELDS.indexOf(field)] ?? "";
  const first = (field: Field) => all(field).split(",")[0] ?? "";
  const number = (field: Field) => (first(field) === "" ? null : Number(first(field)));
  const family = first("ip.src") !== "" ? 4 : first("ipv6.src") !== "" ? 6 : null;
  const icmp = number("icmp.type") !== null || number("icmpv6.type") !== null;
  const protocol = icmp
    ? "icmp"
    : number("tcp.srcport") !== null
      ? "tcp"
      : number("udp.srcport") !== null
        ? "udp"
        : "other";
  const status = (field: Field) => first(field);
  const checks = [
    status("ip.checksum.status"),
    ...(icmp
      ? [status("icmp.checksum.status"), status("icmpv6.checksum.status")]
      : [status("tcp.checksum.status"), status("udp.checksum.status")]),
  ].filter((value) => value !== "");
  return {
    time_seconds: Number(first("frame.time_epoch")),
    length_bytes: Number(first("frame.len")),
    source_mac: first("eth.src"),
    destination_mac: first("eth.dst"),
    vids: [all("ieee8021ad.id"), all("vlan.id")]
      .flatMap((ids) => ids.split(","))
      .filter(Boolean)
      .map(Number),
    family,
    source: first(family === 6 ? "ipv6.src" : "ip.src"),
    destination: first(family === 6 ? "ipv6.dst" : "ip.dst"),
    ttl: number(family === 6 ? "ipv6.hlim" : "ip.ttl") ?? 0,
    protocol,
    source_port: icmp ? 0 : (number("tcp.srcport") ?? number("udp.srcport") ?? 0),
    destination_port: icmp ? 0 : (number("tcp.dstport") ?? number("udp.dstport") ?? 0),
    tcp_flags: icmp ? 0 : (number("tcp.flags") ?? 0),
    payload_bytes: icmp ? 0 : (number("tcp.len") ?? 0),
    icmp_type: number("icmp.type") ?? number("icmpv6.type"),
    icmp_code: number("icmp.code") ?? number("icmpv6.code"),
    // tshark: 0 bad, 1 good, 2 unverified, 3 not present.
    checksum: checks.includes("0")
      ? "bad"
      : checks.length > 0 && checks.every((v) => v === "1")
        ? "good"
        : "unknown",
  };
}

export interface CaptureOptions {
  /** In pcap's language. */
  filter?: string;
  direction?: "in" | "out" | "inout";
}

/** A frame of any MTU here, whole. With the default, the ring has room for a few frames only. */
const SNAP_LENGTH = 2048;

export class Capture {
  readonly #process: Background;
  readonly #chunks: Buffer[] = [];

  private constructor(process: Background) {
    this.#process = process;
    process.child.stdout.removeAllListeners("data");
    process.child.stdout.setEncoding("latin1");
    process.child.stdout.on("data", (text: string) => this.#chunks.push(Buffer.from(text, "latin1")));
  }

  /** Returns once packets are being taken. */
  static async start(namespace: Namespace, device: string, options: CaptureOptions = {}): Promise<Capture> {
    const process = namespace.start([
      ...["tcpdump", "-Z", "root", "-n", "-U", "--immediate-mode", "-B", "16384"],
      ...["-i", device, "-Q", options.direction ?? "inout", "-s", String(SNAP_LENGTH), "-w", "-"],
      ...(options.filter === undefined ? [] : [options.filter]),
    ]);
    const capture = new Capture(process);
    await process.writes(/listening on/, "stderr");
    return capture;
  }

  get #bytes(): number {
    return this.#chunks.reduce((sum, chunk) => sum + chunk.length, 0);
  }

  /** Waits until that much has come in: what is on the wire may not have been taken yet. */
  async holds(bytes: number): Promise<void> {
    await until(() => this.#bytes >= bytes, `the capture to hold ${bytes} bytes`);
  }

  /** Ends when nothing more comes in, and tells what came. */
  async stop(): Promise<Packet[]> {
    return (await this.#lines(FIELDS)).map(decode);
  }

  /** The same, by these fields of tshark's: outer headers first, then those within. */
  async fields<F extends string>(...names: F[]): Promise<Record<F, string[]>[]> {
    return (await this.#lines(names)).map((line) => {
      const cells = line.split("\t");
      const of = (index: number) => (cells[index] ?? "").split(",").filter(Boolean);
      return Object.fromEntries(names.map((name, index) => [name, of(index)])) as Record<F, string[]>;
    });
  }

  async #lines(fields: readonly string[]): Promise<string[]> {
    let last = -1;
    let quiet = 0;
    await until(() => {
      quiet = this.#bytes === last ? quiet + 1 : 0;
      last = this.#bytes;
      return quiet >= 6;
    }, "the capture to end");
    await this.#process.stop("SIGINT");
    if (!/\b0 packets dropped by kernel/.test(this.#process.stderr)) {
      throw new Error(`the capture lost packets: ${this.#process.stderr}`);
    }
    // tshark reads a pipe but no socket, which is what Node gives as stdin.
    const argv = [
      "sh",
      "-c",
      'cat | tshark "$@"',
      "sh",
      "-r",
      "-",
      "-n",
      "-T",
      "fields",
      "-E",
      "separator=/t",
      "-E",
      "occurrence=a",
    ];
    // What TCP carries here is nobody's protocol, though some of it looks like one that is malformed.
    argv.push("-d", "tcp.port==1-65535,data");
    for (const option of OPTIONS) argv.push("-o", `${option}:TRUE`);
    for (const field of fields) argv.push("-e", field);
    const text = await must(argv, { input: Buffer.concat(this.#chunks) });
    return text.split("\n").filter(Boolean);
  }
}
