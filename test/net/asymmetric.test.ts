// SPDX-License-Identifier: Apache-2.0
// The main job: requests come through firewall a, the VM's default gateway is firewall b, and every
// reply still leaves by firewall a, in the right form for its medium.

import { describe, expect, it } from "vitest";
import type { Family } from "../support/addresses.ts";
import { Capture } from "../support/capture.ts";
import { attachAll, bracket, FAMILIES, type Ground, useSite } from "../support/fixture.ts";
import { TC_HOOK } from "../support/kernel.ts";
import { keepTags } from "../support/tools.ts";
import type { SiteOptions } from "../support/topology.ts";

const SITES: [string, SiteOptions][] = [
  ["bridged host with two uplinks", { host: "bridged" }],
  ["bridged host with one uplink for both firewalls", { host: "bridged", uplinks: "shared" }],
  ["routed host with two uplinks", { host: "routed" }],
  ["routed host with a bridge of taps and one uplink", { host: "routed_bridge", uplinks: "shared" }],
];

/** The site's work in one family; afterwards firewall a has carried all of it and b nothing. */
async function exchange({ site }: Ground, family: Family): Promise<void> {
  await site.resetCounts();
  for (const vm of site.vms) {
    const host = vm.address[family];
    const curl = ["curl", "-sS", "--noproxy", "*", "--max-time", "3", `http://${bracket(host)}/`];
    const { status, stdout, stderr } = await site.client.namespace.run(curl);
    expect({ status, stdout, stderr }).toMatchObject({ status: 0 });
    expect(stdout).toContain(`hello from ${vm.name}, you are`);
    expect(stdout).toContain(site.client.address[family]);
    const { text } = await site.client.agent.call("udp", { host, port: 7, text: "over UDP" });
    expect(text).toBe("over UDP");
    const ping = ["ping", "-n", "-q", "-c", "3", "-i", "0.02", "-W", "1", host];
    const pinged = await site.client.namespace.run(ping);
    expect(pinged).toMatchObject({ status: 0 });
    expect(pinged.stdout).toContain(" 0% packet loss");
  }
  const [a, b] = await Promise.all([site.a.counts(), site.b.counts()]);
  for (const protocol of ["tcp", "udp", "icmp"]) {
    expect(a.packets("carried", { family, protocol, direction: "request" })).toBeGreaterThan(1);
    expect(a.packets("carried", { family, protocol, direction: "reply" })).toBeGreaterThan(1);
  }
  expect(a.packets("dropped")).toBe(0);
  expect(b.packets("carried")).toBe(0);
  expect(b.packets("dropped")).toBe(0);
}

describe.each(SITES)("a %s", (_name, options) => {
  const ground = useSite(options, attachAll);
  const routed = options.host !== "bridged";

  it.each(FAMILIES)("IPv%i: TCP, UDP and ping go both ways through firewall a alone", (family) =>
    exchange(ground, family),
  );

  it.each(FAMILIES)(
    "IPv%i: on the wire the reply has a's MAC, and a hop less only if routed",
    async (family) => {
      const { site } = ground;
      const capture = await Capture.start(site.a.namespace, "in", {
        direction: "in",
        filter: "tcp or udp or icmp or icmp6",
      });
      await exchange(ground, family);
      const replies = (await capture.stop()).filter((p) => p.destination === site.client.address[family]);

      for (const vm of site.vms) {
        const own = replies.filter((packet) => packet.source === vm.address[family]);
        expect(new Set(own.map((packet) => packet.protocol))).toEqual(new Set(["tcp", "udp", "icmp"]));
        expect(new Set(own.map((packet) => packet.destination_mac))).toEqual(new Set([site.a.mac]));
        const sender = routed ? site.uplinkMac("a") : vm.mac;
        expect(new Set(own.map((packet) => packet.source_mac))).toEqual(new Set([sender]));
        expect(new Set(own.map((packet) => packet.ttl))).toEqual(new Set([routed ? 63 : 64]));
        expect(own.flatMap((packet) => packet.vids)).toEqual([]);
      }
    },
  );

  it.each(FAMILIES)("IPv%i: the tables say what was learned", async (family) => {
    const { site, lasthop } = ground;
    const key = `tables${family}`;
    const host = site.vm.address[family];
    const { local_port } = await site.client.agent.call("open", { key, host, port: 7 });
    await site.client.agent.call("echo", { key });
    const flows = await lasthop.flows("--address", site.client.address[family]);
    expect(flows.filter((flow) => flow.remote_port === local_port)).toMatchObject([
      {
        protocol: "tcp",
        zone: 0,
        remote_address: site.client.address[family],
        local_address: host,
        local_port: 7,
        tier: "established",
        state: "established",
        origin: "remote",
        last_hop: { mac: site.a.mac, interface: site.uplinkOf("a"), tags: [] },
        stale: false,
        vm_mac: site.vm.mac,
      },
    ]);
    const hops = (await lasthop.lastHops()).filter((hop) => hop.mac === site.a.mac);
    expect(hops).toMatchObject([{ interface: site.uplinkOf("a"), state: "up", origin: "learned" }]);
    expect(hops[0]?.request_packets).toBeGreaterThan(5);
    expect(hops[0]?.reply_packets).toBeGreaterThan(5);
    expect((await lasthop.lastHops()).some((hop) => hop.mac === site.b.mac)).toBe(false);
    await site.client.agent.call("close", { key });
  });
});

describe.each([
  ["tc", TC_HOOK],
  ["generic", "xdp_generic"],
  ["native", "xdp_native"],
])("an uplink in mode %s", (mode, hook) => {
  const ground = useSite({ host: "bridged" }, async ({ site, lasthop }) => {
    for (const uplink of site.uplinks) {
      if (mode !== "tc") await keepTags(site.host, uplink);
      expect(await lasthop.attach(uplink, "uplink", { mode })).toMatchObject({ hook });
    }
    await lasthop.attachAll([], site.taps);
  });

  it.each(FAMILIES)("IPv%i: learns", (family) => exchange(ground, family));
});
