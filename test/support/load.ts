// SPDX-License-Identifier: Apache-2.0
// Traffic that must not notice what is done to the host meanwhile.

import { FAMILIES, type Family } from "./addresses.ts";
import type { Site } from "./site.ts";

export interface LoadReport {
  /** Rounds of the long-lived TCP connections. */
  rounds: number;
  longest_ms: number;
  /** New TCP connections that came and went, and datagrams that were answered. */
  connections: number;
  datagrams: number;
  errors: string[];
}

/** Long-lived TCP connections that echo, short ones one after the other, and UDP; both families. */
export class Load {
  readonly #site: Site;
  readonly #keys: string[] = [];
  readonly #workers: Promise<void>[] = [];
  readonly #report = { connections: 0, datagrams: 0, errors: [] as string[] };
  #stop = false;

  private constructor(site: Site) {
    this.#site = site;
  }

  static async start(site: Site, connections = 10): Promise<Load> {
    const load = new Load(site);
    await load.#begin(connections);
    return load;
  }

  async #begin(connections: number): Promise<void> {
    const { agent } = this.#site.client;
    for (const family of FAMILIES) {
      for (let at = 0; at < connections; at++) {
        const key = `load${family}-${at}`;
        await agent.call("open", { key, host: this.#site.vm.address[family], port: 7 });
        await agent.call("startEchoing", { key, intervalMs: 5, timeoutMs: 10_000 });
        this.#keys.push(key);
      }
      this.#workers.push(this.#connect(family), this.#datagrams(family));
    }
  }

  async #connect(family: Family): Promise<void> {
    const { agent } = this.#site.client;
    const key = `short${family}`;
    while (!this.#stop) {
      try {
        await agent.call("open", { key, host: this.#site.vm.address[family], port: 7 });
        await agent.call("echo", { key });
        await agent.call("close", { key });
        this.#report.connections++;
      } catch (error) {
        this.#report.errors.push(`TCP over IPv${family}: ${(error as Error).message}`);
        return;
      }
    }
  }

  async #datagrams(family: Family): Promise<void> {
    const { agent } = this.#site.client;
    for (let count = 0; !this.#stop; count++) {
      try {
        const host = this.#site.vm.address[family];
        await agent.call("udp", {
          host,
          port: 7,
          text: `${count}`,
          localPort: family * 1000 + 20_000 + (count % 50),
        });
        this.#report.datagrams++;
      } catch (error) {
        this.#report.errors.push(`UDP over IPv${family}: ${(error as Error).message}`);
        return;
      }
    }
  }

  /** Ends it, closing every connection. */
  async stop(): Promise<LoadReport> {
    this.#stop = true;
    await Promise.all(this.#workers);
    const { agent } = this.#site.client;
    const report: LoadReport = { ...this.#report, rounds: 0, longest_ms: 0 };
    for (const key of this.#keys) {
      const run = await agent.call("stopEchoing", { key });
      report.rounds += run.rounds;
      report.longest_ms = Math.max(report.longest_ms, run.longest_ms);
      if (run.error !== null) report.errors.push(`${key}: ${run.error}`);
      else await agent.call("close", { key });
    }
    return report;
  }
}
