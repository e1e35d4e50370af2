// SPDX-License-Identifier: Apache-2.0
// Several ways through one site in turn, each proved by its firewalls.

import type { Site } from "../support/site.ts";
import type { Connections } from "./connections.ts";
import { MEASURING_CPU, pinToCpu } from "./machine.ts";
import type { Samples } from "./stats.ts";

/** One of several ways through a site. */
export interface Side {
  name: string;
  /** Makes the site so; another side was there before. */
  enter(): Promise<void>;
  /** By what it is called in the samples, after the side's name. */
  measure(): Promise<Record<string, number>>;
}

/** Samples by SIDE_WHAT. The first round warms up. */
export async function measureSides(site: Site, sides: readonly Side[], rounds: number): Promise<Samples> {
  const samples = new Map<string, number[]>();
  for (let round = 0; round <= rounds; round++) {
    for (const side of round % 2 === 0 ? sides : sides.toReversed()) {
      await side.enter();
      // No side shall search among the others' old connections.
      await site.a.namespace.run(["conntrack", "-F"]);
      await site.resetCounts();
      const measured = await side.measure();
      await proveByFirewalls(site, side.name);
      if (round === 0) continue;
      for (const [what, value] of Object.entries(measured)) {
        const id = `${side.name}_${what}`;
        samples.set(id, [...(samples.get(id) ?? []), value]);
      }
    }
  }
  return samples;
}

/** Everything went through firewall a, both ways, and nothing was dropped. */
async function proveByFirewalls(site: Site, side: string): Promise<void> {
  const [a, b] = [await site.a.counts(), await site.b.counts()];
  const tcp = { protocol: "tcp" };
  const carried = a.packets("carried", { direction: "reply", ...tcp });
  const wrong = b.packets("carried", tcp) + b.packets("dropped", tcp);
  if (carried === 0 || wrong !== 0) {
    throw new Error(`${side}: firewall a carried ${carried} replies, firewall b saw ${wrong} packets`);
  }
}

/** Ports enough for all connections of a benchmark. */
export async function widenPorts(site: Site): Promise<void> {
  const { namespace } = site.client;
  await namespace.must(["sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535"]);
  await namespace.must(["sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1"]);
}

/** New connections per second, undisturbed. */
export function connectionRate(connections: Connections, count: number): number {
  pinToCpu(MEASURING_CPU);
  try {
    return connections.rate(count);
  } finally {
    pinToCpu(null);
  }
}
