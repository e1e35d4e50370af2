// SPDX-License-Identifier: Apache-2.0
// A firewall fails while connections live: the clients' next requests come through its peer, which
// has their state, and the replies follow them there.

import { describe, expect, it } from "vitest";
import { attachAll, FAMILIES, useSite } from "../support/fixture.ts";
import { until } from "../support/run.ts";

// b is nobody's way but the default gateway's, and drops everything; c takes over from a.
const firewalls = [{ name: "a" }, { name: "b" }, { name: "c", loose: true }];

describe.each([
  { host: "bridged", uplinks: "separate" },
  { host: "bridged", uplinks: "shared" },
  { host: "routed", uplinks: "separate" },
] as const)("a $host host with $uplinks uplinks", ({ host, uplinks }) => {
  const ground = useSite({ host, uplinks, firewalls, vms: 1 }, attachAll);

  it.each(FAMILIES)("IPv%i: a live connection moves to firewall c and back", async (family) => {
    const { site, lasthop } = ground;
    const { client, vm, a, b } = site;
    const c = site.firewall("c");
    const key = `moves${family}`;
    const { local_port } = await client.agent.call("open", { key, host: vm.address[family], port: 7 });
    await client.agent.call("echo", { key });
    await client.agent.call("startEchoing", { key });
    await site.resetCounts();
    const relearned = await lasthop.packets("relearn");

    await a.halt();
    await site.routeClientsBy("c");
    const { rounds } = await client.agent.call("progress", { key });
    await until(async () => {
      const run = await client.agent.call("progress", { key });
      return run.error !== null || run.rounds > rounds + 50;
    }, "fifty rounds through c");
    expect(await client.agent.call("stopEchoing", { key })).toMatchObject({ error: null });

    expect(await lasthop.packets("relearn")).toBe(relearned + 1);
    const flows = await lasthop.flows("--address", client.address[family]);
    expect(flows.find((flow) => flow.remote_port === local_port)).toMatchObject({
      tier: "established",
      last_hop: { mac: c.mac, interface: site.uplinkOf("c") },
    });
    expect((await c.counts()).packets("carried", { family, direction: "reply" })).toBeGreaterThan(10);
    expect((await b.counts()).packets("dropped", { protocol: "tcp" })).toBe(0);

    await a.resume();
    // It has missed a part of the connection: its idea of the window is old.
    await a.namespace.must(["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_be_liberal=1"]);
    await site.routeClientsBy("a");
    // Damping: a flow that has just moved stays where it is for a second.
    await until(async () => {
      await client.agent.call("echo", { key });
      return (await lasthop.packets("relearn")) > relearned + 1;
    }, "the flow to move back");
    expect(await lasthop.packets("relearn")).toBe(relearned + 2);
    await client.agent.call("close", { key });
  });
});
