// SPDX-License-Identifier: Apache-2.0
// Asks devices and VMs whether they are alive: ICMP echo and TCP connections. So many at once; the others wait.

import { randomInt } from "node:crypto";
import { setMaxListeners } from "node:events";
import { connect } from "node:net";
import { inPrefix, isMappedIpv4 } from "../addresses.ts";
import { PROBES_AT_ONCE } from "../config/defaults.ts";
import { LasthopError } from "../errors.ts";
import { type EchoReply, IcmpSocket } from "../kernel/icmp.ts";
import type { Address } from "../kernel/rtnetlink.ts";
import { addressOctets, addressText } from "./devices.ts";

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

/** `unavailable`: nobody was asked, so it says nothing of who would have been. */
export type ProbeOutcome =
  | { kind: "ok"; seconds: number }
  | { kind: "failed"; seconds: number; why: string }
  | { kind: "unavailable"; why: string };

interface Waiting {
  target: Buffer;
  answer(): void;
}

export const STOPPED: ProbeOutcome = { kind: "unavailable", why: "stopped" };

/** So many are asked at once. */
export class Places {
  readonly #queue: (() => void)[] = [];
  readonly #closing = new AbortController();
  #free: number;

  constructor(atOnce: number) {
    this.#free = atOnce;
    setMaxListeners(0, this.#closing.signal);
  }

  /** Is given when they are closed: nobody waits for an answer any longer. */
  get closed(): AbortSignal {
    return this.#closing.signal;
  }

  async during<T>(work: () => Promise<T>): Promise<T> {
    if (this.#free > 0) this.#free--;
    else await new Promise<void>((resolve) => this.#queue.push(resolve));
    try {
      return await work();
    } finally {
      // Whoever waits takes the place over.
      const next = this.#queue.shift();
      if (next) next();
      else this.#free++;
    }
  }

  close(): void {
    this.#closing.abort();
    this.#free += this.#queue.length;
    for (const go of this.#queue.splice(0)) go();
  }
}

export class Prober {
  readonly #sockets = new Map<string, { socket: IcmpSocket; ifindex: number }>();
  readonly #waiting = new Map<number, Waiting>();
  readonly #identifier = randomInt(0x1_0000);
  readonly #places: Places;
  #sequence = randomInt(0x1_0000);

  constructor(places = new Places(PROBES_AT_ONCE)) {
    this.#places = places;
  }

  /** Never rejects. */
  async probe(request: ProbeRequest): Promise<ProbeOutcome> {
    const { source } = request;
    if (source === null) return noSource(request);
    return await this.#places.during(async () => {
      const { closed } = this.#places;
      if (closed.aborted) return STOPPED;
      return request.kind === "icmp" ? await this.#echo(request) : await tcp(request, source, closed);
    });
  }

  /** Sockets of other interfaces than these are of no use any longer. */
  keep(ifindexes: { has(ifindex: number): boolean }): void {
    for (const [key, { socket, ifindex }] of this.#sockets) {
      if (ifindexes.has(ifindex)) continue;
      socket.close();
      this.#sockets.delete(key);
    }
  }

  close(): void {
    this.#places.close();
    for (const { socket } of this.#sockets.values()) socket.close();
    this.#sockets.clear();
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
        forget();
        this.#waiting.delete(sequence);
        resolve(outcome);
      };
      const forget = onAbort(this.#places.closed, () => end(STOPPED));
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
    if (known) return known;
    const family = isMappedIpv4(request.target) ? 4 : 6;
    try {
      const socket = new IcmpSocket(family, request.link, (reply) => this.#replied(reply));
      this.#sockets.set(key, { socket, ifindex: request.link.ifindex });
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
    this.#sockets.get(key)?.socket.close();
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
function tcp(
  { target, port, timeoutMs, link }: ProbeRequest,
  source: string,
  closed: AbortSignal,
): Promise<ProbeOutcome> {
  const started = performance.now();
  const seconds = (): number => (performance.now() - started) / 1000;
  return new Promise((resolve) => {
    const socket = connect({ port, ...endpoints(target, source, link) });
    const end = (outcome: ProbeOutcome): void => {
      clearTimeout(timer);
      forget();
      socket.destroy();
      resolve(outcome);
    };
    const forget = onAbort(closed, () => end(STOPPED));
    const timer = setTimeout(() => {
      end({ kind: "failed", seconds: seconds(), why: "the connection did not come up in time" });
    }, timeoutMs);
    socket.once("connect", () => end({ kind: "ok", seconds: seconds() }));
    socket.on("error", (error: NodeJS.ErrnoException) => end(failure(error, seconds())));
  });
}

/** The host has no address to ask from. */
export function noSource({ link, target }: Pick<ProbeRequest, "link" | "target">): ProbeOutcome {
  const family = isMappedIpv4(target) ? "IPv4" : "IPv6";
  return { kind: "unavailable", why: `${link.name} has no ${family} address to ask from` };
}

/** Returns how to be told no longer. */
export function onAbort(signal: AbortSignal, tell: () => void): () => void {
  signal.addEventListener("abort", tell, { once: true });
  return () => signal.removeEventListener("abort", tell);
}

/** Of a connection; link-local addresses have their interface with them. */
export function endpoints(
  target: Buffer,
  source: string,
  link: { name: string },
): { host: string; localAddress: string } {
  const text = addressText(target);
  const scope = isLinkLocal(text) ? `%${link.name}` : "";
  return { host: text + scope, localAddress: source + scope };
}

/** What is wrong with us, not with who was asked. */
const OURS: ReadonlySet<string | undefined> = new Set([
  ...["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"],
  ...["EADDRINUSE", "EADDRNOTAVAIL"],
]);

/** Of a connection that did not come up, or ended too early. */
export function failure(error: NodeJS.ErrnoException, seconds: number): ProbeOutcome {
  const why = error.code ?? error.message;
  return OURS.has(error.code) ? { kind: "unavailable", why } : { kind: "failed", seconds, why };
}

/** The host's address on an interface from which the target is asked; null if it has none of that family. */
export function sourceFor(target: Buffer, addresses: readonly Address[], ifindex: number): string | null {
  const family = isMappedIpv4(target) ? 4 : 6;
  const own = addresses.filter((one) => one.ifindex === ifindex && one.family === family);
  const wanted = addressText(target);
  const near = own.find(({ address, prefixLength }) => {
    const bits = family === 4 ? prefixLength + 96 : prefixLength;
    return inPrefix({ family: 6, bytes: addressOctets(address), bits }, target);
  });
  const scope = isLinkLocal(wanted);
  return (near ?? own.find(({ address }) => isLinkLocal(address) === scope) ?? own[0])?.address ?? null;
}

function isLinkLocal(address: string): boolean {
  return /^fe[89ab]/i.test(address);
}
