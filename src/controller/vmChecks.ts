// SPDX-License-Identifier: Apache-2.0
// Asks VMs whether they are well, each in the way that its check says. So many at once, whatever the way.

import { setTimeout as sleep } from "node:timers/promises";
import { isMappedIpv4 } from "../addresses.ts";
import { CHECKS_AT_ONCE } from "../config/defaults.ts";
import type { CheckConfig } from "../config/services.ts";
import { LasthopError } from "../errors.ts";
import type { Netlink } from "../kernel/netlink.ts";
import { addressText } from "./devices.ts";
import { askHttp } from "./httpCheck.ts";
import {
  endpoints,
  noSource,
  Places,
  type ProbeOutcome,
  type ProbeRequest,
  Prober,
  STOPPED,
} from "./probes.ts";

/** Between two looks at a neighbour that was asked for; the first ones follow closer. */
const LOOK_MS = 100;

const PORTS: Readonly<Partial<Record<CheckConfig["kind"], number>>> = { http: 80, https: 443 };
const GOOD_STATUSES = "200-399";

export interface CheckRequest extends Pick<ProbeRequest, "target" | "link" | "source"> {
  check: CheckConfig;
}

export class VmChecker {
  readonly #netlink: Pick<Netlink, "neighbour" | "askNeighbour">;
  readonly #places = new Places(CHECKS_AT_ONCE);
  readonly #prober = new Prober(this.#places);

  constructor(netlink: Pick<Netlink, "neighbour" | "askNeighbour">) {
    this.#netlink = netlink;
  }

  /** Never rejects. */
  async check(request: CheckRequest): Promise<ProbeOutcome> {
    const { check, target, link, source } = request;
    try {
      if (check.kind === "neighbour") return await this.#places.during(() => this.#neighbour(request));
      const port = check.port ?? PORTS[check.kind] ?? 0;
      const timeoutMs = check.timeout_seconds * 1000;
      if (check.kind === "icmp" || check.kind === "tcp") {
        return await this.#prober.probe({ kind: check.kind, target, port, timeoutMs, link, source });
      }
      if (source === null) return noSource(request);
      return await this.#places.during(() => this.#http(check, port, endpoints(target, source, link)));
    } catch (error) {
      if (error instanceof LasthopError) return { kind: "unavailable", why: error.message };
      throw error;
    }
  }

  /** Interfaces that are there. */
  keep(ifindexes: { has(ifindex: number): boolean }): void {
    this.#prober.keep(ifindexes);
  }

  close(): void {
    this.#prober.close();
  }

  async #http(
    check: CheckConfig,
    port: number,
    ends: { host: string; localAddress: string },
  ): Promise<ProbeOutcome> {
    const { closed } = this.#places;
    if (closed.aborted) return STOPPED;
    const question = {
      secure: check.kind === "https",
      ...ends,
      port,
      path: check.path ?? "/",
      name: check.host ?? null,
      statuses: statusRange(check.status ?? GOOD_STATUSES),
      verify: check.verify ?? false,
      timeoutMs: check.timeout_seconds * 1000,
    };
    return await askHttp(question, closed);
  }

  /** The kernel asks, and its table says whether there was an answer. */
  async #neighbour({ check, target, link }: CheckRequest): Promise<ProbeOutcome> {
    const address = addressText(target);
    const started = performance.now();
    const seconds = (): number => (performance.now() - started) / 1000;
    const { closed } = this.#places;
    if (closed.aborted) return STOPPED;
    const before = this.#netlink.neighbour(link.ifindex, address)?.state ?? "none";
    if (before === "permanent" || before === "noarp") {
      return { kind: "unavailable", why: `nobody asks for ${address}: its entry is ${before}` };
    }
    // In two states it is being asked already.
    if (before !== "incomplete" && before !== "probe") {
      const question = before === "none" || before === "failed" ? "resolve" : "verify";
      if (!this.#netlink.askNeighbour(link.ifindex, address, question)) {
        return { kind: "unavailable", why: `${link.name} is down` };
      }
    }
    for (let pause = 1; seconds() < check.timeout_seconds; pause = Math.min(pause * 2, LOOK_MS)) {
      await sleep(pause);
      if (closed.aborted) return STOPPED;
      const state = this.#netlink.neighbour(link.ifindex, address)?.state;
      if (state === "reachable" || state === "stale") return { kind: "ok", seconds: seconds() };
      if (state === "failed") break;
    }
    const protocol = isMappedIpv4(target) ? "ARP" : "neighbour discovery";
    return { kind: "failed", seconds: seconds(), why: `no answer to ${protocol}` };
  }
}

/** Of `200` or `200-399`: the first and the last. */
export function statusRange(text: string): [number, number] {
  const [first, last = first] = text.split("-").map(Number);
  return [first!, last!];
}

/** What was asked, for the log: `GET /health`. */
export function checkText(check: CheckConfig): string {
  switch (check.kind) {
    case "http":
    case "https":
      return `GET ${check.path ?? "/"}`;
    case "tcp":
      return `TCP port ${check.port}`;
    case "icmp":
      return "ICMP";
    case "neighbour":
      return "neighbour";
  }
}
