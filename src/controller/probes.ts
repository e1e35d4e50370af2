// SPDX-License-Identifier: Apache-2.0
// Asks devices whether they are alive: ICMP echo and TCP connections. So many at once; the others wait.

import { randomInt } from "node:crypto";
import { connect } from "node:net";
import { isMappedIpv4 } from "../addresses.ts";
import { PROBES_AT_ONCE } from "../config/defaults.ts";
import { LasthopError } from "../errors.ts";
import { type EchoReply, IcmpSocket } from "../kernel/icmp.ts";
import { addressText } from "./devices.ts";

export interface ProbeRequest {
  kind: "icmp" | "tcp";
  /** 16 bytes, IPv4 mapped. */
  target: Buffer;
  port: number;
  timeoutMs: number;
  /** The interface of the host's IP stack that it goes out of. */
  link: { name: string; ifindex: number };
  /** The host's address there, in the target's family; null if it has none. */
  source: string | null;
}

/** `unavailable`: nobody was asked, so it says nothing of the device. */
export type ProbeOutcome =
  | { kind: "ok"; seconds: number }
  | { kind: "failed"; seconds: number; why: string }
  | { kind: "unavailable"; why: string };

interface Waiting {
  target: Buffer;
  answer(): void;
}

export class Prober {
  readonly #sockets = new Map<string, IcmpSocket>();
  readonly #waiting = new Map<number, Waiting>();
  readonly #identifier = randomInt(0x1_0000);
  readonly #queue: (() => void)[] = [];
  #sequence = randomInt(0x1_0000);
  #running = 0;
  #closed = false;

  /** Never rejects. */
  async probe(request: ProbeRequest): Promise<ProbeOutcome> {
    if (request.source === null) {
      const family = isMappedIpv4(request.target) ? "IPv4" : "IPv6";
      return { kind: "unavailable", why: `${request.link.name} has no ${family} address to ask from` };
    }
    await this.#enter();
    try {
      if (this.#closed) return { kind: "unavailable", why: "stopped" };
      return request.kind === "icmp" ? await this.#echo(request) : await tcp(request, request.source);
    } finally {
      this.#leave();
    }
  }

  close(): void {
    this.#closed = true;
    for (const socket of this.#sockets.values()) socket.close();
    this.#sockets.clear();
    for (const go of this.#queue.splice(0)) go();
  }

  #enter(): Promise<void> {
    if (this.#running < PROBES_AT_ONCE) {
      this.#running++;
      return Promise.resolve();
    }
    return new Promise((resolve) => this.#queue.push(resolve));
  }

  /** Whoever waits takes the place over. */
  #leave(): void {
    const next = this.#queue.shift();
    if (next) next();
    else this.#running--;
  }

  #echo(request: ProbeRequest): Promise<ProbeOutcome> {
    const opened = this.#socket(request);
    if ("why" in opened) return Promise.resolve({ kind: "unavailable", why: opened.why });
    const sequence = this.#nextSequence();
    const started = performance.now();
    const seconds = (): number => (performance.now() - started) / 1000;
    return new Promise((resolve) => {
      const end = (outcome: ProbeOutcome): void => {
        clearTimeout(timer);
        this.#waiting.delete(sequence);
        resolve(outcome);
      };
      const timer = setTimeout(() => {
        end({ kind: "failed", seconds: seconds(), why: "no answer to the echo request" });
      }, request.timeoutMs);
      const answer = (): void => end({ kind: "ok", seconds: seconds() });
      this.#waiting.set(sequence, { target: request.target, answer });
      const refusal = opened.socket.request(request.target, this.#identifier, sequence);
      if (refusal === null) return;
      if (refusal.interfaceGone) this.#drop(request);
      end(
        refusal.interfaceGone
          ? { kind: "unavailable", why: refusal.why }
          : { kind: "failed", seconds: seconds(), why: refusal.why },
      );
    });
  }

  #socket(request: ProbeRequest): { socket: IcmpSocket } | { why: string } {
    const key = socketKey(request);
    const known = this.#sockets.get(key);
    if (known) return { socket: known };
    const family = isMappedIpv4(request.target) ? 4 : 6;
    try {
      const socket = new IcmpSocket(family, request.link, (reply) => this.#replied(reply));
      this.#sockets.set(key, socket);
      return { socket };
    } catch (error) {
      if (error instanceof LasthopError) {
        return { why: error.hint === undefined ? error.message : `${error.message}. ${error.hint}` };
      }
      throw error;
    }
  }

  #drop(request: ProbeRequest): void {
    const key = socketKey(request);
    this.#sockets.get(key)?.close();
    this.#sockets.delete(key);
  }

  #nextSequence(): number {
    do this.#sequence = (this.#sequence + 1) & 0xffff;
    while (this.#waiting.has(this.#sequence));
    return this.#sequence;
  }

  #replied({ source, identifier, sequence }: EchoReply): void {
    const waiting = identifier === this.#identifier ? this.#waiting.get(sequence) : undefined;
    if (waiting?.target.equals(source)) waiting.answer();
  }
}

function socketKey({ target, link }: ProbeRequest): string {
  return `${isMappedIpv4(target) ? 4 : 6} ${link.ifindex} ${link.name}`;
}

/** Bound by the address of the interface: a connection that is refused or does not come up is a failure. */
function tcp({ target, port, timeoutMs, link }: ProbeRequest, source: string): Promise<ProbeOutcome> {
  const started = performance.now();
  const text = addressText(target);
  const isLinkLocal = /^fe[89ab]/i.test(text);
  const scope = isLinkLocal ? `%${link.name}` : "";
  return new Promise((resolve) => {
    const socket = connect({ host: text + scope, port, localAddress: source + scope });
    const end = (why: string | null): void => {
      clearTimeout(timer);
      socket.destroy();
      const seconds = (performance.now() - started) / 1000;
      resolve(why === null ? { kind: "ok", seconds } : { kind: "failed", seconds, why });
    };
    const timer = setTimeout(() => end("the connection did not come up in time"), timeoutMs);
    socket.once("connect", () => end(null));
    socket.on("error", (error: NodeJS.ErrnoException) => end(error.code ?? error.message));
  });
}
