// SPDX-License-Identifier: Apache-2.0
// Real connections through a strictly stateful firewall: a VM whose default route is the other one, helped
// by lasthop, against the same path without lasthop and with the default route that matches.

import { Lab } from "../support/lab.ts";
import type { Site } from "../support/site.ts";
import { buildSite } from "../support/topology.ts";
import { Connections } from "./connections.ts";
import { Product } from "./product.ts";
import type { Report, RowOptions } from "./report.ts";
import { connectionRate, measureSides, widenPorts } from "./siteBench.ts";
import type { Samples } from "./stats.ts";

export interface Effort {
  rounds: number;
  seconds: number;
  connections: number;
}

type Direction = "to_vm" | "from_vm";

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

  constructor(lab: Lab, site: Site) {
    this.#site = site;
    this.#product = new Product(lab, site.host, `site-${site.kind}`);
    const { client, vm } = site;
    this.#connections = new Connections(client.namespace.path, vm.namespace.path, vm.address[4]);
  }

  async measure(effort: Effort): Promise<Samples> {
    const site = this.#site;
    const server = site.vm.namespace.start(["iperf3", "-s", "--forceflush"]);
    await server.writes(/listening/);
    await widenPorts(site);
    const measure = async () => ({
      to_vm: await this.#bulk("to_vm", effort.seconds),
      from_vm: await this.#bulk("from_vm", effort.seconds),
      connections: connectionRate(this.#connections, effort.connections),
    });
    const lasthop = async () => {
      await this.#product.attach(site.uplinks, site.taps);
      await site.routeRepliesBy("b");
    };
    const symmetric = async () => {
      await this.#product.detach();
      await site.routeRepliesBy("a");
    };
    const sides = [
      { name: "lasthop", enter: lasthop, measure },
      { name: "symmetric", enter: symmetric, measure },
    ];
    return await measureSides(site, sides, effort.rounds);
  }

  close(): void {
    this.#connections.close();
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
