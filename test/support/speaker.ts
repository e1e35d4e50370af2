// SPDX-License-Identifier: Apache-2.0
// A UDP server in a VM that answers, and speaks again when it is told to: replies without a request before them.

import type { Family } from "./addresses.ts";
import { Capture, type Packet } from "./capture.ts";
import { type Background, until } from "./run.ts";
import type { Site, Vm } from "./site.ts";

const PROGRAM = `
const { createSocket } = require("node:dgram");
const { createInterface } = require("node:readline");
const peers = new Map();
for (const type of ["udp4", "udp6"]) {
  const socket = createSocket({ type, ipv6Only: type === "udp6" });
  socket.on("message", (data, { address, port }) => {
    peers.set(port, { socket, address });
    socket.send(data, port, address);
  });
  socket.bind(PORT, type === "udp4" ? "0.0.0.0" : "::", () => console.log("listening " + type));
}
createInterface({ input: process.stdin }).on("line", (line) => {
  const { socket, address } = peers.get(Number(line));
  socket.send("unasked", Number(line), address, () => console.log("spoke " + line));
});
`;

export const SPEAKER_PORT = 9;

/** Where a frame was seen, and whom it was for. */
export interface Seen {
  firewall: string;
  destination_mac: string;
}

export class Speaker {
  readonly #site: Site;
  readonly #vm: Vm;
  readonly #process: Background;
  #spoken = 0;

  private constructor(site: Site, vm: Vm, process: Background) {
    this.#site = site;
    this.#vm = vm;
    this.#process = process;
  }

  static async start(site: Site, vm: Vm = site.vm): Promise<Speaker> {
    const program = PROGRAM.replace("PORT", String(SPEAKER_PORT));
    const background = vm.namespace.start([process.execPath, "-e", program]);
    await background.writes(/(listening udp[46]\s+){2}/);
    return new Speaker(site, vm, background);
  }

  async stop(): Promise<void> {
    await this.#process.stop();
  }

  /** Has a client ask once, so that there is a flow; returns the client's port, which names it. */
  async open(client: Site["client"], family: Family): Promise<number> {
    const target = { host: this.#vm.address[family], port: SPEAKER_PORT, text: "asked" };
    return (await client.agent.call("udp", target)).local_port;
  }

  /** The VM sends once more on that flow. */
  async speak(port: number): Promise<void> {
    const count = ++this.#spoken;
    this.#process.child.stdin.write(`${port}\n`);
    await until(() => this.#process.stdout.split("spoke ").length > count, "the VM to speak");
  }

  /** The same, and who gets the frames: captured at every firewall. */
  async heard(...ports: number[]): Promise<Map<number, Seen[]>> {
    const all = [...this.#site.firewalls.values()];
    const up = await Promise.all(
      all.map(({ namespace }) => namespace.must(["ip", "-o", "link", "show", "up"])),
    );
    // One whose link is down or gone hears nothing.
    const firewalls = all.filter((_firewall, place) => / in@/.test(up[place]!));
    const filter = `udp src port ${SPEAKER_PORT}`;
    const captures = await Promise.all(
      firewalls.map(({ namespace }) => Capture.start(namespace, "in", { filter, direction: "in" })),
    );
    for (const port of ports) await this.speak(port);
    const packets = await Promise.all(captures.map((capture) => capture.stop()));
    const seenBy = (port: number) =>
      firewalls.flatMap(({ name }, place) =>
        packets[place]!.filter((packet: Packet) => packet.destination_port === port).map(
          ({ destination_mac }): Seen => ({ firewall: name, destination_mac }),
        ),
      );
    return new Map(ports.map((port) => [port, seenBy(port)]));
  }
}
