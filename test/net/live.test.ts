// SPDX-License-Identifier: Apache-2.0
// Changes under traffic: attach, detach, policy, bypass. What runs on, what stops, and that it heals.

import { readdirSync } from "node:fs";
import { describe, expect, it } from "vitest";
import type { Family } from "../support/addresses.ts";
import { attachAll, FAMILIES, type Ground, useSite } from "../support/fixture.ts";
import { until } from "../support/run.ts";

const keys = (family: Family, count: number) =>
  Array.from({ length: count }, (_, at) => `live${family}-${at}`);

/** Opens connections while the way back is symmetric; then replies begin to go by firewall b. */
async function connectThenTurn({ site }: Ground, count: number): Promise<void> {
  await site.routeRepliesBy("a");
  for (const family of FAMILIES) {
    const target = { keys: keys(family, count), host: site.vm.address[family], port: 7 };
    expect(await site.client.agent.call("openMany", target)).toEqual({ opened: count });
  }
  await site.routeRepliesBy("b");
}

async function rounds({ site }: Ground, key: string, more: number): Promise<void> {
  const before = await site.client.agent.call("progress", { key });
  await until(async () => {
    const now = await site.client.agent.call("progress", { key });
    if (now.error !== null) throw new Error(`the connection died of ${now.error}`);
    return now.rounds >= before.rounds + more;
  }, `${more} rounds`);
}

describe.each(["bridged", "routed"] as const)("a %s host", (host) => {
  describe("attached in the middle of connections", () => {
    const ground = useSite({ host, vms: 1 });

    it("heals them: the next request of each is enough", async () => {
      const { site, lasthop } = ground;
      await connectThenTurn(ground, 10);
      const waiting = site.client.agent.call("echoAll", { timeoutMs: 8000 });
      await until(
        async () => (await site.b.counts()).packets("dropped") >= 20,
        "b to drop what it does not know",
      );
      await attachAll(ground);
      expect(await waiting).toEqual({ alive: 20, errors: [] });
      const flows = await lasthop.flows();
      expect(flows).toHaveLength(20);
      for (const flow of flows)
        expect(flow).toMatchObject({ flags: ["pickup"], last_hop: { mac: site.a.mac } });
      expect(await site.client.agent.call("echoAll", {})).toEqual({ alive: 20, errors: [] });
      expect((await lasthop.flows("--state", "established")).map((flow) => flow.tier)).toEqual(
        Array(20).fill("established"),
      );
    });
  });

  describe("detached under traffic", () => {
    const ground = useSite({ host, vms: 1 }, attachAll);

    it.each(FAMILIES)(
      "IPv%i: replies go the VM's own way again; attached anew, they come back",
      async (family) => {
        const { site, lasthop } = ground;
        const key = `detach${family}`;
        await site.client.agent.call("open", { key, host: site.vm.address[family], port: 7 });
        await site.client.agent.call("startEchoing", { key, timeoutMs: 10_000 });
        await rounds(ground, key, 20);

        await site.resetCounts();
        await lasthop.must("detach", ...site.uplinks);
        await until(
          async () => (await site.b.counts()).packets("dropped", { family }) > 0,
          "b to see the replies",
        );
        for (const uplink of site.uplinks) await lasthop.attach(uplink, "uplink");
        await rounds(ground, key, 20);

        await site.resetCounts();
        await lasthop.must("detach", ...site.taps);
        await until(
          async () => (await site.b.counts()).packets("dropped", { family }) > 0,
          "b to see the replies",
        );
        for (const tap of site.taps) await lasthop.attach(tap, "tap");
        await rounds(ground, key, 20);
        expect(await site.client.agent.call("stopEchoing", { key })).toMatchObject({ error: null });
        await site.client.agent.call("close", { key });
      },
    );

    it("with --purge leaves nothing of ours, and the connections do not notice if the way is symmetric", async () => {
      const { site, lasthop, lab } = ground;
      await site.routeRepliesBy("a");
      for (const family of FAMILIES) {
        const key = `purge${family}`;
        await site.client.agent.call("open", { key, host: site.vm.address[family], port: 7 });
        await site.client.agent.call("startEchoing", { key });
        await rounds(ground, key, 10);
      }
      await lasthop.detachAll();
      for (const family of FAMILIES) {
        const key = `purge${family}`;
        await rounds(ground, key, 20);
        const run = await site.client.agent.call("stopEchoing", { key });
        expect(run.error).toBeNull();
        expect(run.longest_ms).toBeLessThan(1000);
      }
      expect(readdirSync("/sys/fs/bpf")).not.toContain(lab.id);
      for (const device of [...site.uplinks, ...site.taps]) {
        const links = await site.host.must(["ip", "-d", "link", "show", "dev", device]);
        expect(links).not.toContain("xdp");
        expect(await site.host.must(["tc", "qdisc", "show", "dev", device])).not.toContain("clsact");
        expect(await site.host.must(["bpftool", "net", "show", "dev", device])).not.toMatch(/learn_|reply_/);
      }
      await site.routeRepliesBy("b");
    });
  });

  describe("with a policy", () => {
    const ground = useSite({ host, vms: 1 }, async ({ site, lasthop }) => {
      await lasthop.attachAll(site.uplinks, site.taps, { policy: "observe" });
    });

    it.each(FAMILIES)("IPv%i: observe and off change nothing on the wire, enforce does", async (family) => {
      const { site, lasthop } = ground;
      const address = site.vm.address[family];
      const redirects = await lasthop.packets("redirect", site.vm.tap);
      for (const policy of ["observe", "off"] as const) {
        await lasthop.attach(site.vm.tap, "tap", { policy });
        await site.resetCounts();
        const reason = policy === "observe" ? "observe_change" : "off";
        const before = await lasthop.packets(reason, site.vm.tap);
        const target = { key: `policy${family}`, host: address, port: 7, timeoutMs: 150 };
        expect(await site.client.agent.failure("open", target)).toBe("timeout");
        expect((await site.b.counts()).packets("dropped", { family, protocol: "tcp" })).toBeGreaterThan(0);
        expect((await site.a.counts()).packets("carried", { direction: "reply" })).toBe(0);
        expect(await lasthop.packets(reason, site.vm.tap)).toBeGreaterThan(before);
        expect(await lasthop.packets("redirect", site.vm.tap)).toBe(redirects);
      }
      await lasthop.attach(site.vm.tap, "tap", { policy: "enforce" });
      const target = { key: `policy${family}`, host: address, port: 7 };
      await site.client.agent.call("open", target);
      await site.client.agent.call("echo", { key: target.key });
      await site.client.agent.call("close", { key: target.key });
      expect(await lasthop.packets("redirect", site.vm.tap)).toBeGreaterThan(redirects);
    });

    it.each(FAMILIES)("IPv%i: on the same path observe counts that nothing would change", async (family) => {
      const { site, lasthop } = ground;
      await site.routeRepliesBy("a");
      // With the neighbour unknown, the host's own way is not known either.
      const router = host === "bridged" ? site.vm.namespace : site.host;
      await router.must(["ping", "-n", "-c", "1", "-W", "1", site.a.address[family]]);
      await lasthop.attach(site.vm.tap, "tap", { policy: "observe" });
      const [same, change] = [await lasthop.packets("observe_same"), await lasthop.packets("observe_change")];
      const key = `same${family}`;
      await site.client.agent.call("open", { key, host: site.vm.address[family], port: 7 });
      await site.client.agent.call("echo", { key });
      await site.client.agent.call("close", { key });
      expect(await lasthop.packets("observe_same")).toBeGreaterThan(same);
      expect(await lasthop.packets("observe_change")).toBe(change);
      await site.routeRepliesBy("b");
    });
  });
});

describe("with bypass", () => {
  const ground = useSite({ vms: 1 }, attachAll);

  it.each(FAMILIES)("IPv%i: one write lets everything pass, another takes it back", async (family) => {
    const { site, lasthop } = ground;
    const key = `bypass${family}`;
    await site.client.agent.call("open", { key, host: site.vm.address[family], port: 7 });
    await site.client.agent.call("startEchoing", { key, timeoutMs: 10_000 });
    await rounds(ground, key, 10);
    await site.resetCounts();
    await lasthop.must("bypass", "on");
    expect(await lasthop.status()).toMatchObject({ bypass: true });
    await until(
      async () => (await site.b.counts()).packets("dropped", { family }) > 0,
      "b to see the replies",
    );
    expect(await lasthop.packets("bypass")).toBeGreaterThan(0);
    await lasthop.must("bypass", "off");
    await rounds(ground, key, 20);
    expect(await site.client.agent.call("stopEchoing", { key })).toMatchObject({ error: null });
    await site.client.agent.call("close", { key });
  });
});
