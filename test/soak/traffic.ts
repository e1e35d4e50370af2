// SPDX-License-Identifier: Apache-2.0
// Connections that must live through everything, and others that come and go.

import type { Random } from "../kernel/support/random.ts";
import { FAMILIES, type Family } from "../support/addresses.ts";
import { synFrame } from "../support/frames.ts";
import type { Party, Site, Vm } from "../support/site.ts";
import { sendFrames } from "../support/tools.ts";

const ECHO_PORT = 7;
/** TCP bears an outage for as long. */
const PATIENCE_MS = 45_000;
const SHORT_MS = 1000;
const AT_A_TIME = 4;

/** Long-lived connections of the first client to the first VM, by firewall a. */
export class HeldConnections {
  readonly #client: Party;
  readonly #vm: Vm;
  readonly #keys: string[] = [];

  constructor(site: Site) {
    this.#client = site.client;
    this.#vm = site.vm;
  }

  async open(each: number): Promise<void> {
    for (const family of FAMILIES) {
      for (let number = 0; number < each; number++) {
        const key = `held${family}-${number}`;
        const host = this.#vm.address[family];
        await this.#client.agent.call("open", { key, host, port: ECHO_PORT });
        await this.#client.agent.call("startEchoing", { key, intervalMs: 40, timeoutMs: PATIENCE_MS });
        this.#keys.push(key);
      }
    }
  }

  /** Rounds of each connection; throws if one of them has ended or been reset. */
  async progress(): Promise<number[]> {
    const rounds: number[] = [];
    for (const key of this.#keys) {
      const run = await this.#client.agent.call("progress", { key });
      if (run.error !== null) throw new Error(`${key} broke after ${run.rounds} rounds: ${run.error}`);
      rounds.push(run.rounds);
    }
    return rounds;
  }

  async close(): Promise<void> {
    for (const key of this.#keys.splice(0)) {
      const run = await this.#client.agent.call("stopEchoing", { key });
      if (run.error !== null) throw new Error(`${key} broke after ${run.rounds} rounds: ${run.error}`);
      await this.#client.agent.call("close", { key });
    }
  }
}

export interface ShortCounts {
  connections: number;
  datagrams: number;
  /** While interfaces and firewalls come and go, some do. */
  failed: number;
}

/** Of the second client: whatever firewall, VM and family; some at a time. */
export class ShortConnections {
  readonly counts: ShortCounts = { connections: 0, datagrams: 0, failed: 0 };
  readonly #site: Site;
  readonly #client: Party;
  readonly #random: Random;
  #stop = false;
  #number = 0;
  #running: Promise<void>[] = [];

  constructor(site: Site, random: Random) {
    this.#site = site;
    this.#client = site.clients[1]!;
    this.#random = random;
  }

  start(): void {
    this.#running = Array.from({ length: AT_A_TIME }, () => this.#run());
  }

  async stop(): Promise<void> {
    this.#stop = true;
    await Promise.all(this.#running);
  }

  async #run(): Promise<void> {
    while (!this.#stop) {
      const number = this.#number++;
      const family = this.#random.pick(FAMILIES);
      const vm = this.#random.pick(this.#site.vms);
      try {
        if (this.#random.chance(3)) await this.#datagram(family, vm, number);
        else await this.#connection(family, vm, number);
      } catch (error) {
        if (!(error instanceof Error)) throw error;
        this.counts.failed++;
      }
    }
  }

  async #connection(family: Family, vm: Vm, number: number): Promise<void> {
    const key = `short${number}`;
    const { agent } = this.#client;
    await agent.call("open", { key, host: vm.address[family], port: ECHO_PORT, timeoutMs: SHORT_MS });
    try {
      await agent.call("echo", { key, timeoutMs: SHORT_MS });
      this.counts.connections++;
    } finally {
      // A connection that has just broken is not there to be closed in order.
      await agent.call("close", { key, reset: true });
    }
  }

  async #datagram(family: Family, vm: Vm, number: number): Promise<void> {
    const host = vm.address[family];
    await this.#client.agent.call("udp", { host, port: ECHO_PORT, text: `${number}`, timeoutMs: SHORT_MS });
    this.counts.datagrams++;
  }
}

/** From nobody in particular, by firewall c; answers how many went. */
export function synFlood(site: Site, random: Random, count: number): Promise<number> {
  const { namespace, mac } = site.firewall("c");
  const vm = random.pick(site.vms);
  function* frames(): Generator<Buffer> {
    for (let sent = 0; sent < count; sent++) {
      const family = random.pick(FAMILIES);
      yield synFrame({
        sourceMac: mac,
        destinationMac: site.kind === "bridged" ? vm.mac : site.uplinkMac("c"),
        source:
          family === 4 ? 0x2000_0000 + random.below(0x1000_0000) : (0x2a00n << 112n) | BigInt(random.u32()),
        destination: vm.address[family],
        sourcePort: 1024 + random.below(60_000),
        destinationPort: ECHO_PORT,
      });
    }
  }
  return sendFrames(namespace, "in", frames());
}
