// SPDX-License-Identifier: Apache-2.0
// Two tenants on one host with the same addresses, the same MACs and at last the same five-tuple.

import { describe, expect, it } from "vitest";
import { FAMILIES, useSite } from "../support/fixture.ts";
import type { Site } from "../support/site.ts";
import { buildSite } from "../support/topology.ts";

const PORT = 40_000;

describe("two zones with overlapping addresses", () => {
  let second: Site;
  const ground = useSite({}, async ({ lab, site, lasthop }) => {
    second = await buildSite(lab, { within: { host: site.host, number: 1 } });
    await lasthop.attachAll(site.uplinks, site.taps, { zone: 1 });
    await lasthop.attachAll(second.uplinks, second.taps, { zone: 2 });
  });

  it.each(FAMILIES)("IPv%i: the same five-tuple is two flows, and each goes its own way", async (family) => {
    const { site, lasthop } = ground;
    const sites = [site, second];
    const host = site.vm.address[family];
    expect(second.vm.address[family]).toBe(host);
    expect(second.vm.mac).toBe(site.vm.mac);
    for (const one of sites) await one.resetCounts();

    const key = `zone${family}`;
    for (const { client } of sites) {
      await client.agent.call("open", { key, host, port: 7, localPort: PORT + family });
    }
    for (const { client } of sites) await client.agent.call("echo", { key, bytes: 5000 });

    const flows = (await lasthop.flows()).filter((flow) => flow.remote_port === PORT + family);
    expect(flows.map((flow) => [flow.zone, flow.last_hop?.interface]).sort()).toEqual([
      [1, "up-a"],
      [2, "up-a.1"],
    ]);
    expect(new Set(flows.map((flow) => flow.remote_address)).size).toBe(1);
    for (const { client } of sites) await client.agent.call("close", { key });
    for (const { a, b } of sites) {
      const counts = await a.counts();
      expect(counts.packets("carried", { family, direction: "reply" })).toBeGreaterThan(3);
      expect(counts.packets("dropped")).toBe(0);
      const others = await b.counts();
      expect(others.packets("carried") + others.packets("dropped")).toBe(0);
    }
  });

  it.each(FAMILIES)("IPv%i: flushing one zone leaves the other alone", async (family) => {
    const { site, lasthop } = ground;
    const host = site.vm.address[family];
    for (const { client } of [site, second]) {
      await client.agent.call("open", {
        key: `flush${family}`,
        host,
        port: 7,
        localPort: PORT + 10 + family,
      });
    }
    await lasthop.must("flows", "flush", "--zone", "1");
    expect(await lasthop.flows("--zone", "1")).toEqual([]);
    const left = await lasthop.flows("--zone", "2");
    expect(left.some((flow) => flow.remote_port === PORT + 10 + family)).toBe(true);
    for (const { client } of [site, second]) {
      await client.agent.call("echo", { key: `flush${family}` });
      await client.agent.call("close", { key: `flush${family}` });
    }
  });
});
