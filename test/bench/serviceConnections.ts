// SPDX-License-Identifier: Apache-2.0
// New connections per second to a service through a strictly stateful firewall, against the same VM at its own address
// by plain bridging and with the default route that matches.

import { Lab } from "../support/lab.ts";
import type { Site } from "../support/site.ts";
import { buildSite } from "../support/topology.ts";
import { Connections } from "./connections.ts";
import { Product } from "./product.ts";
import type { Report } from "./report.ts";
import { connectionRate, measureSides, type Side, widenPorts } from "./siteBench.ts";

export interface Effort {
  rounds: number;
  connections: number;
}

/** In the VMs' network, and nobody's own. */
const SERVICE = "203.0.113.100";

export async function measureServiceConnections(report: Report, effort: Effort): Promise<void> {
  const lab = new Lab();
  const open: Connections[] = [];
  try {
    const site = await buildSite(lab, { host: "bridged", vms: 1 });
    await holdService(site);
    await widenPorts(site);
    const side = (name: string, address: string, enter: Side["enter"]): Side => {
      const { client, vm } = site;
      const connections = new Connections(client.namespace.path, vm.namespace.path, address);
      open.push(connections);
      const measure = async () => ({ rate: connectionRate(connections, effort.connections) });
      return { name, enter, measure };
    };
    const product = new Product(lab, site.host, "service-site");
    const sides = [
      side("service", SERVICE, async () => {
        await product.apply(configuration(site));
        await site.routeRepliesBy("b");
      }),
      side("symmetric", site.vm.address[4], async () => {
        await product.detach();
        await site.routeRepliesBy("a");
      }),
    ];
    report.add(
      "Services: end to end, bridged host",
      "conn/s",
      await measureSides(site, sides, effort.rounds),
      [
        {
          id: "services_connections",
          subject: "service_rate",
          title: "new connections to a service",
          baseline: { subject: "symmetric_rate", title: "plain bridging, symmetric route" },
          comparison: "ratio",
          target: { of: "comparison", bound: "at_least", value: 0.97 },
        },
      ],
    );
  } finally {
    for (const connections of open) connections.close();
    await lab.close();
  }
}

/** The VM has the address, and is silent about it. */
async function holdService({ vm }: Site): Promise<void> {
  await vm.namespace.ip(`addr add ${SERVICE}/32 dev lo`);
  await vm.namespace.must([
    "sysctl",
    "-qw",
    "net.ipv4.conf.all.arp_ignore=1",
    "net.ipv4.conf.all.arp_announce=2",
  ]);
}

function configuration({ uplinks, vm }: Site): string {
  return JSON.stringify({
    uplinks: uplinks.map((name) => ({ name })),
    taps: [{ name: vm.tap }],
    vms: [{ name: "vm", tap: vm.tap, mac: vm.mac }],
    services: [{ name: "service", address: SERVICE, pool: [{ vm: "vm" }] }],
  });
}
