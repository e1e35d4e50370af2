// SPDX-License-Identifier: Apache-2.0
// The ground that the other tests stand on: without lasthop the site fails because firewall b drops
// the answers, and only because of that.

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Family } from "../support/addresses.ts";
import { Lab } from "../support/lab.ts";
import type { Site } from "../support/site.ts";
import { buildSite, type SiteOptions } from "../support/topology.ts";

const SITES: [string, SiteOptions][] = [
  ["bridged", { host: "bridged" }],
  ["bridged, one uplink", { host: "bridged", uplinks: "shared" }],
  ["routed", { host: "routed" }],
  ["routed to a bridge, one uplink", { host: "routed_bridge", uplinks: "shared" }],
];

describe.each(SITES)("a %s host without lasthop", (_name, options) => {
  let lab: Lab;
  let site: Site;

  beforeAll(async () => {
    lab = new Lab();
    site = await buildSite(lab, options);
  });
  afterAll(() => lab.close());

  it.each<Family>([4, 6])("IPv%i: the answer comes by firewall b, which drops it", async (family) => {
    await site.resetCounts();
    const host = site.vm.address[family];
    const failure = await site.client.agent.failure("open", { key: "x", host, port: 7, timeoutMs: 150 });
    expect(failure).toBe("timeout");
    const udp = await site.client.agent.failure("udp", { host, port: 7, text: "hello", timeoutMs: 150 });
    expect(udp).toBe("timeout");

    const [a, b] = await Promise.all([site.a.counts(), site.b.counts()]);
    for (const protocol of ["tcp", "udp"]) {
      expect(a.packets("carried", { family, protocol, direction: "request" })).toBeGreaterThan(0);
      expect(a.packets("carried", { family, protocol, direction: "reply" })).toBe(0);
      expect(b.packets("dropped", { family, protocol, direction: "reply" })).toBeGreaterThan(0);
      expect(b.packets("carried", { family, protocol })).toBe(0);
    }
  });

  it.each<Family>([4, 6])("IPv%i: a symmetric route is all it needs", async (family) => {
    await site.routeRepliesBy("a");
    try {
      await site.resetCounts();
      const host = site.vm.address[family];
      await site.client.agent.call("open", { key: "y", host, port: 7 });
      await site.client.agent.call("echo", { key: "y", bytes: 5000 });
      await site.client.agent.call("close", { key: "y" });
      await site.client.agent.call("udp", { host, port: 7, text: "hello" });
      const [a, b] = await Promise.all([site.a.counts(), site.b.counts()]);
      expect(a.packets("carried", { family, direction: "reply" })).toBeGreaterThan(3);
      expect(b.packets("dropped", { family })).toBe(0);
    } finally {
      await site.routeRepliesBy("b");
    }
  });
});
