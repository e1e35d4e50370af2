// SPDX-License-Identifier: Apache-2.0
// Programs of others on our hooks go on seeing what we let pass.

import { describe, expect, it } from "vitest";
import { attachAll, FAMILIES, useSite } from "../support/fixture.ts";
import { addFilter, counted, removeFilter } from "../support/tools.ts";

describe("a foreign TC program", () => {
  const ground = useSite({ vms: 1, clients: 2 }, async ({ site }) => {
    // A server behind firewall b, for what the VM opens.
    await site.routeClientsBy("b", [site.clients[1]!]);
    await site.clients[1]!.agent.call("serve", { name: "client2" });
    await site.vm.agent.call("serve", { name: "vm1", http_port: 8000, echo_port: 4444 });
  });

  it("set up before ours survives it, and runs after it", async () => {
    const { site } = ground;
    const uplink = site.uplinkOf("a");
    await addFilter(site.host, uplink, "ingress", "count");
    await addFilter(site.host, site.vm.tap, "ingress", "count");
    await attachAll(ground);
    expect(await counted(site.host, uplink, "ingress")).toBeGreaterThanOrEqual(0);
  });

  it.each(FAMILIES)("IPv%i: on the uplink sees every request", async (family) => {
    const { site, lasthop } = ground;
    const uplink = site.uplinkOf("a");
    const before = await counted(site.host, uplink, "ingress");
    const seen = (await lasthop.stats()).filter((count) => count.interface === uplink);
    const key = `foreign${family}`;
    await site.client.agent.call("open", { key, host: site.vm.address[family], port: 7 });
    for (let round = 0; round < 10; round++) await site.client.agent.call("echo", { key });
    await site.client.agent.call("close", { key });
    const grown = (await counted(site.host, uplink, "ingress")) - before;
    const total = (counts: typeof seen) => counts.reduce((sum, count) => sum + count.packets, 0);
    const ours = total((await lasthop.stats()).filter((count) => count.interface === uplink)) - total(seen);
    expect(grown).toBeGreaterThan(10);
    expect(Math.abs(grown - ours)).toBeLessThanOrEqual(2);
  });

  it.each(FAMILIES)("IPv%i: on the tap sees what we pass, not what we redirect", async (family) => {
    const { site } = ground;
    const before = await counted(site.host, site.vm.tap, "ingress");
    const key = `tap${family}`;
    await site.client.agent.call("open", { key, host: site.vm.address[family], port: 7 });
    for (let round = 0; round < 20; round++) await site.client.agent.call("echo", { key });
    await site.client.agent.call("close", { key });
    // ARP and neighbour discovery may pass by.
    expect((await counted(site.host, site.vm.tap, "ingress")) - before).toBeLessThan(10);
    const seen = await counted(site.host, site.vm.tap, "ingress");
    await site.vm.agent.call("open", { key, host: site.clients[1]!.address[family], port: 7 });
    for (let round = 0; round < 20; round++) await site.vm.agent.call("echo", { key });
    await site.vm.agent.call("close", { key });
    expect((await counted(site.host, site.vm.tap, "ingress")) - seen).toBeGreaterThan(20);
  });

  it.each(FAMILIES)("IPv%i: that drops still drops", async (family) => {
    const { site } = ground;
    const uplink = site.uplinkOf("a");
    const target = { host: site.vm.address[family], port: 4444, text: "filtered?", timeoutMs: 300 };
    expect(await site.client.agent.call("udp", target)).toMatchObject({ text: target.text });
    await addFilter(site.host, uplink, "ingress", "drop4444", 60);
    expect(await site.client.agent.failure("udp", target)).toBe("timeout");
    await removeFilter(site.host, uplink, "ingress", 60);
    expect(await site.client.agent.call("udp", target)).toMatchObject({ text: target.text });
  });

  it("and its qdisc stay when ours go", async () => {
    const { site, lasthop } = ground;
    await lasthop.detachAll();
    for (const device of [site.uplinkOf("a"), site.vm.tap]) {
      expect(await site.host.must(["tc", "filter", "show", "dev", device, "ingress"])).toContain("tc/count");
      expect(await counted(site.host, device, "ingress")).toBeGreaterThan(0);
    }
  });
});
