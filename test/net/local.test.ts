// SPDX-License-Identifier: Apache-2.0
// What lasthop must leave as it is: connections that VMs open, VMs that talk to each other on one
// host, clients in the same network.

import { describe, expect, it } from "vitest";
import { Capture } from "../support/capture.ts";
import { attachAll, FAMILIES, useSite } from "../support/fixture.ts";

describe.each(["bridged", "routed", "routed_bridge"] as const)("a %s host", (host) => {
  const ground = useSite({ host, clients: 2 }, async (prepared) => {
    const { site } = prepared;
    await attachAll(prepared);
    // The second client lives behind firewall b, and is also a server. Port 53 is what firewalls let VMs
    // ask for by UDP.
    await site.routeClientsBy("b", [site.clients[1]!]);
    await site.clients[1]!.agent.call("serve", { name: "client2", echo_port: 53 });
  });

  it.each(FAMILIES)("IPv%i: what the VM opens goes by its own default gateway", async (family) => {
    const { site, lasthop } = ground;
    const { vm, a, b } = site;
    const client = site.clients[1]!;
    await site.resetCounts();
    const key = `opens${family}`;
    const target = { host: client.address[family], port: 53 };
    const { local_port } = await vm.agent.call("open", { key, ...target });
    await vm.agent.call("echo", { key, bytes: 20_000 });
    await vm.agent.call("udp", { ...target, text: "a question" });
    const { status } = await vm.namespace.run(["ping", "-n", "-c2", "-i0.02", "-W1", target.host]);
    expect(status).toBe(0);
    const hash = await vm.agent.call("download", { host: target.host, bytes: 1 << 20 });
    expect(hash).toEqual(await vm.agent.call("expected", { bytes: 1 << 20 }));

    expect((await a.counts()).packets("carried", { family })).toBe(0);
    for (const protocol of ["tcp", "udp", "icmp"]) {
      for (const direction of ["request", "reply"] as const) {
        const packets = (await b.counts()).packets("carried", { family, protocol, direction });
        expect(packets).toBeGreaterThan(0);
      }
    }
    expect((await b.counts()).packets("dropped")).toBe(0);
    const flow = (await lasthop.flows()).find((entry) => entry.local_port === local_port);
    expect(flow).toMatchObject({
      origin: "local",
      last_hop: null,
      remote_address: target.host,
      vm_mac: vm.mac,
    });
    await vm.agent.call("close", { key });
  });

  it.each(FAMILIES)(
    "IPv%i: meanwhile each client is answered by the firewall it came through",
    async (family) => {
      const { site, lasthop } = ground;
      const { vm, a, b } = site;
      await site.resetCounts();
      const key = `both${family}`;
      await vm.agent.call("open", { key, host: site.clients[1]!.address[family], port: 53 });
      for (const client of site.clients)
        await client.agent.call("open", { key, host: vm.address[family], port: 7 });
      const parties = [vm, ...site.clients];
      for (let round = 0; round < 5; round++) {
        await Promise.all(parties.map((party) => party.agent.call("echo", { key, bytes: 5000 })));
      }
      const flows = (await lasthop.flows("--address", vm.address[family])).filter(
        (flow) => flow.local_port === 7,
      );
      for (const [client, firewall] of [
        [site.clients[0]!, a],
        [site.clients[1]!, b],
      ] as const) {
        const flow = flows.find((entry) => entry.remote_address === client.address[family]);
        expect(flow?.last_hop?.mac).toBe(firewall.mac);
        expect((await firewall.counts()).packets("dropped")).toBe(0);
      }
      for (const party of parties) await party.agent.call("close", { key });
    },
  );

  it.each(FAMILIES)("IPv%i: VMs on one host reach each other without a firewall", async (family) => {
    const { site, lasthop } = ground;
    const [from, to] = [site.vms[0]!, site.vms[1]!];
    await site.resetCounts();
    const redirects = await lasthop.packets("redirect");
    const target = { host: to.address[family], port: 7 };
    await from.agent.call("open", { key: `vm${family}`, ...target });
    await from.agent.call("echo", { key: `vm${family}`, bytes: 50_000 });
    await from.agent.call("close", { key: `vm${family}` });
    await from.agent.call("udp", { ...target, text: "neighbour" });
    const bytes = 4 << 20;
    const expected = await from.agent.call("expected", { bytes });
    expect(await from.agent.call("download", { host: target.host, bytes })).toEqual(expected);
    expect(await from.agent.call("upload", { host: target.host, bytes })).toEqual(expected);
    expect((await from.namespace.run(["ping", "-n", "-c1", "-W1", target.host])).status).toBe(0);
    expect(await lasthop.packets("redirect")).toBe(redirects);
    for (const firewall of [site.a, site.b]) {
      const counts = await firewall.counts();
      expect(counts.packets("carried") + counts.packets("dropped")).toBe(0);
    }
  });
});

describe.each([
  { host: "bridged", uplinks: "shared" },
  { host: "bridged", uplinks: "separate" },
  { host: "routed", uplinks: "separate" },
] as const)("a client on the link of a $host host with $uplinks uplinks", ({ host, uplinks }) => {
  const ground = useSite({ host, uplinks, onLinkClient: true, vms: 1 }, attachAll);

  it.each(FAMILIES)("IPv%i: is its own last hop", async (family) => {
    const { site, lasthop } = ground;
    const client = site.onLinkClient!;
    await site.resetCounts();
    const capture = await Capture.start(client.namespace, "eth0", { direction: "in", filter: "tcp" });
    const key = `onlink${family}`;
    const target = { host: site.vm.address[family], port: 7 };
    await client.agent.call("open", { key, ...target });
    await client.agent.call("echo", { key, bytes: 20_000 });
    await client.agent.call("udp", { ...target, text: "near" });
    const flows = await lasthop.flows("--address", client.address[family]);
    expect(flows.find((flow) => flow.protocol === "tcp")).toMatchObject({
      tier: "established",
      last_hop: { mac: client.mac, interface: client.uplink },
    });
    await client.agent.call("close", { key });
    const replies = await capture.stop();
    expect(replies.length).toBeGreaterThan(2);
    expect(new Set(replies.map((packet) => packet.destination_mac))).toEqual(new Set([client.mac]));
    for (const firewall of [site.a, site.b]) {
      const counts = await firewall.counts();
      expect(counts.packets("carried") + counts.packets("dropped")).toBe(0);
    }
  });

  it.each(FAMILIES)("IPv%i: while others come through firewall a", async (family) => {
    const { site } = ground;
    const key = `far${family}`;
    await site.client.agent.call("open", { key, host: site.vm.address[family], port: 7 });
    await site.client.agent.call("echo", { key });
    await site.client.agent.call("close", { key });
    expect((await site.b.counts()).packets("dropped")).toBe(0);
  });
});
