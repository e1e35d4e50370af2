// SPDX-License-Identifier: Apache-2.0
// Real connections through a strictly stateful firewall: a VM whose default route is the other one, helped
// by lasthop, against the same path without lasthop and with the default route that matches.

import { Lab } from "../support/lab.ts";
import type { Site } from "../support/site.ts";
import { buildSite } from "../support/topology.ts";
import { Connections } from "./connections.ts";
import { MEASURING_CPU, pinToCpu } from "./machine.ts";
import { Product } from "./product.ts";
import type { Report, RowOptions } from "./report.ts";
import type { Samples } from "./stats.ts";

export interface Effort {
  rounds: number;
  seconds: number;
  connections: number;
}

type Direction = "to_vm" | "from_vm";
const SIDES = ["lasthop", "symmetric"] as const;

export async function measureEndToEnd(report: Report, effort: Effort): Promise<void> {
  for (const kind of ["bridged", "routed"] as const) {
    const lab = new Lab();
    try {
      const bench = new SiteBench(lab, await buildSite(lab, { host: kind, vms: 1 }));
      try {
        report.add(`End to end, ${kind} host`, "Mbit/s", await bench.measure(effort), rows(kind));
      } finally {
        bench.close();
      }
    } finally {
      await lab.close();
    }
  }
}

class SiteBench {
  readonly #site: Site;
  readonly #product: Product;
  readonly #connections: Connections;
  readonly #samples = new Map<string, number[]>();

  constructor(lab: Lab, site: Site) {
    this.#site = site;
    this.#product = new Product(lab, site.host, `site-${site.kind}`);
    const { client, vm } = site;
    this.#connections = new Connections(client.namespace.path, vm.namespace.path, vm.address[4]);
  }

  async measure(effort: Effort): Promise<Samples> {
    const { client, vm } = this.#site;
    const server = vm.namespace.start(["iperf3", "-s", "--forceflush"]);
    await server.writes(/listening/);
    await client.namespace.must(["sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535"]);
    await client.namespace.must(["sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1"]);
    for (let round = 0; round <= effort.rounds; round++) {
      for (const side of round % 2 === 0 ? SIDES : SIDES.toReversed()) {
        await this.#switchTo(side);
        // The first round warms up.
        await this.#round(side, effort, round > 0);
      }
    }
    return this.#samples;
  }

  close(): void {
    this.#connections.close();
  }

  async #switchTo(side: (typeof SIDES)[number]): Promise<void> {
    const { uplinks, taps, a } = this.#site;
    if (side === "lasthop") {
      await this.#product.attach(uplinks, taps);
      await this.#site.routeRepliesBy("b");
    } else {
      await this.#product.detach();
      await this.#site.routeRepliesBy("a");
    }
    // Neither side shall search among the other's old connections.
    await a.namespace.run(["conntrack", "-F"]);
    await this.#site.resetCounts();
  }

  async #round(side: string, effort: Effort, counts: boolean): Promise<void> {
    const results: [string, number][] = [];
    for (const direction of ["to_vm", "from_vm"] as const) {
      results.push([direction, await this.#bulk(direction, effort.seconds)]);
    }
    pinToCpu(MEASURING_CPU);
    try {
      results.push(["connections", this.#connections.rate(effort.connections)]);
    } finally {
      pinToCpu(null);
    }
    await this.#proveByFirewalls(side);
    if (!counts) return;
    for (const [what, value] of results) {
      const id = `${side}_${what}`;
      this.#samples.set(id, [...(this.#samples.get(id) ?? []), value]);
    }
  }

  /** Mbit/s at the receiver. Each end has its own CPU: the scheduler's choice would be most of the noise. */
  async #bulk(direction: Direction, seconds: number): Promise<number> {
    const { client, vm } = this.#site;
    const reverse = direction === "from_vm" ? ["-R"] : [];
    const text = await client.namespace.must(
      ["iperf3", "-c", vm.address[4], "-t", String(seconds), "-A", "1,0", "-J", ...reverse],
      { timeoutMs: (seconds + 10) * 1000 },
    );
    const { end } = JSON.parse(text) as { end: { sum_received: { bits_per_second: number } } };
    return end.sum_received.bits_per_second / 1e6;
  }

  /** Everything went through firewall a, both ways, and nothing was dropped. */
  async #proveByFirewalls(side: string): Promise<void> {
    const [a, b] = [await this.#site.a.counts(), await this.#site.b.counts()];
    const tcp = { protocol: "tcp" };
    const carried = a.packets("carried", { direction: "reply", ...tcp });
    const wrong = b.packets("carried", tcp) + b.packets("dropped", tcp);
    if (carried === 0 || wrong !== 0) {
      throw new Error(`${side}: firewall a carried ${carried} replies, firewall b saw ${wrong} packets`);
    }
  }
}

function rows(kind: string): RowOptions[] {
  const row = (id: string, title: string, unit?: string): RowOptions => ({
    id: `end_to_end_${kind}_${id}`,
    subject: `lasthop_${id}`,
    title,
    ...(unit !== undefined && { unit }),
    baseline: { subject: `symmetric_${id}`, title: "symmetric route" },
    comparison: "ratio",
    target: { of: "comparison", bound: "at_least", value: 0.97 },
  });
  return [
    row("to_vm", "TCP bulk to the VM"),
    row("from_vm", "TCP bulk from the VM"),
    row("connections", "new connections", "conn/s"),
  ];
}
