// SPDX-License-Identifier: Apache-2.0
// Last hops that are more than an interface and a MAC: behind a shared tunnel device, behind an interface without a
// link layer, by the host's own routing, and beneath another attached interface.

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FAMILIES, type Family, mac, transfer, vmAddress } from "../support/addresses.ts";
import { Capture } from "../support/capture.ts";
import { Lab } from "../support/lab.ts";
import { Lasthop } from "../support/lasthop.ts";
import { FORWARDING } from "../support/plan.ts";
import { must, until } from "../support/run.ts";
import { buildSharedVxlan, type SharedVxlan, type TunnelEnd } from "../support/sharedVxlan.ts";
import type { Site } from "../support/site.ts";
import { buildSite } from "../support/topology.ts";
import { plugTun } from "../support/tun.ts";

const BULK_BYTES = 16 << 20;

/** Ping, UDP, and TCP both ways with large segments. */
async function talk(site: Site, family: Family): Promise<void> {
  const { client, vm } = site;
  const host = vm.address[family];
  await client.namespace.must(["ping", `-${family}`, "-n", "-c", "2", "-i", "0.05", "-W", "2", host]);
  const { text } = await client.agent.call("udp", { host, port: 7, text: `hello ${family}` });
  expect(text).toBe(`hello ${family}`);
  const target = { host, bytes: BULK_BYTES, timeoutMs: 20_000 };
  const expected = await client.agent.call("expected", { bytes: BULK_BYTES });
  expect(await client.agent.call("download", target)).toEqual(expected);
  expect(await client.agent.call("upload", target)).toEqual(expected);
}

/** Its SYN comes by firewall a, and the answer to firewall b, which drops it. */
async function expectNoConnection(site: Site): Promise<void> {
  const host = site.vm.address[4];
  const opening = site.client.agent.failure("open", { key: "none", host, port: 7, timeoutMs: 2000 });
  await until(async () => (await site.b.counts()).packets("dropped") > 0, "firewall b to drop the answer");
  expect(await opening).toBe("timeout");
}

const MOVES = [
  ["a", "b"],
  ["b", "a"],
] as const;

/** Datagrams of one flow come by two firewalls, one after the other; each carries the answer to its own. */
async function expectMove(
  site: Site,
  from: "a" | "b",
  to: "a" | "b",
  watch?: () => Promise<() => Promise<void>>,
): Promise<void> {
  const datagram = async (name: "a" | "b") => {
    await site.routeClientsBy(name);
    await site.resetCounts();
    const done = name === to ? await watch?.() : undefined;
    const host = site.vm.address[6];
    await site.client.agent.call("udp", {
      host,
      port: 7,
      text: name,
      localPort: from === "a" ? 33_333 : 33_334,
    });
    const counts = await site.firewall(name).counts();
    expect(counts.packets("carried", { protocol: "udp", direction: "reply" }), `by ${name}`).toBe(1);
    await done?.();
  };
  await datagram(from);
  await datagram(to);
}

/** All that came by A went back by A. */
async function expectAllThroughA(site: Site, family: Family): Promise<void> {
  const [a, b] = await Promise.all([site.a.counts(), site.b.counts()]);
  for (const protocol of ["tcp", "udp", "icmp"]) {
    expect(a.packets("carried", { family, direction: "reply", protocol }), protocol).toBeGreaterThan(0);
  }
  expect(a.bytes("carried", { family, direction: "reply", protocol: "tcp" })).toBeGreaterThan(BULK_BYTES);
  expect(b.packets("carried"), "carried by b").toBe(0);
  expect(b.packets("dropped"), "dropped by b").toBe(0);
}

const OUTER_FIELDS = [
  "ip.src",
  "ip.dst",
  "ipv6.src",
  "ipv6.dst",
  "vxlan.vni",
  "eth.dst",
  "frame.len",
  "udp.checksum.status",
  "tcp.checksum.status",
] as const;
type Outer = Record<(typeof OUTER_FIELDS)[number], string[]>;

describe.each([4, 6] as const)("a shared VXLAN device over IPv%i", (outer) => {
  describe.each(["by VTEP", "by VNI"] as const)("firewalls told apart %s", (apart) => {
    let lab: Lab;
    let site: Site;
    let lasthop: Lasthop;
    let tunnel: SharedVxlan;

    beforeAll(async () => {
      lab = new Lab();
      ({ site, tunnel } = await buildSharedVxlan(lab, { outer, apart }));
      lasthop = await Lasthop.on(lab, site.host);
    });
    afterAll(() => lab?.close());

    /** Inner destinations of what the host sends to a VTEP with a VNI. */
    function sentTo(packets: Outer[], end: TunnelEnd): string[] {
      const [own, other] =
        outer === 4 ? (["ip.dst", "ipv6.dst"] as const) : (["ipv6.dst", "ip.dst"] as const);
      return packets
        .filter((packet) => packet[own][0] === end.vtep && packet["vxlan.vni"][0] === String(end.vni))
        .map((packet) => packet[own][1] ?? packet[other][0] ?? "none");
    }

    it("without lasthop no connection comes about: the host answers by firewall b", async () => {
      await expectNoConnection(site);
    });

    it("attaches", async () => {
      await lasthop.attachAll(site.uplinks, site.taps, { mode: "tc" });
    });

    it.each(FAMILIES)("IPv%i inside: replies have the tunnel key of their requests", async (family) => {
      await site.resetCounts();
      const { a } = tunnel.ends;
      const capture = await Capture.start(site.host, a.underlay, {
        direction: "out",
        filter: "udp port 4789",
      });
      await talk(site, family);
      const packets = await capture.fields(...OUTER_FIELDS);
      await expectAllThroughA(site, family);
      const inner = sentTo(packets, a);
      expect(inner.length).toBe(packets.length);
      expect([...new Set(inner)]).toEqual([site.client.address[family]]);
      expect(inner.length).toBeGreaterThan(20);
    });

    it.each(FAMILIES)(
      "IPv%i inside: every segment and checksum is right where the underlay does none of it",
      async (family) => {
        const { a } = tunnel.ends;
        await site.host.must(["ethtool", "-K", a.underlay, "tx", "off", "gso", "off"]);
        const capture = await Capture.start(site.host, a.underlay, {
          direction: "out",
          filter: "udp port 4789",
        });
        const target = { host: site.vm.address[family], bytes: 1 << 20, timeoutMs: 10_000 };
        await site.client.agent.call("download", target);
        const packets = await capture.fields(...OUTER_FIELDS);
        await site.host.must(["ethtool", "-K", a.underlay, "tx", "on", "gso", "on"]);
        expect(packets.length).toBeGreaterThan(700);
        expect(sentTo(packets, a).length).toBe(packets.length);
        for (const packet of packets) {
          expect(Number(packet["frame.len"][0])).toBeLessThanOrEqual(1500 + 14 + (outer === 4 ? 50 : 70));
          expect(packet["tcp.checksum.status"]).toEqual(["1"]);
          // The requests have one, so the replies do.
          expect(packet["udp.checksum.status"]).toEqual(["1"]);
        }
      },
    );

    it.each(MOVES)("a datagram by firewall %s and one by %s: the flow moves", async (from, to) => {
      await expectMove(site, from, to, async () => {
        const end = tunnel.ends[to];
        const capture = await Capture.start(site.host, end.underlay, {
          direction: "out",
          filter: "udp port 4789",
        });
        return async () => {
          expect(sentTo(await capture.fields(...OUTER_FIELDS), end)).toEqual([site.client.address[6]]);
        };
      });
      expect(await lasthop.packets("relearn", tunnel.device)).toBeGreaterThan(0);
    });
  });
});

/** A routed host's uplink a has its addresses and routes here instead. */
async function moveUplinkA(site: Site, device: string): Promise<void> {
  const lines = FAMILIES.map((family) => {
    const nodad = family === 6 ? " nodad" : "";
    const bits = family === 4 ? 24 : 64;
    return `addr add ${transfer(false, 0, "host")[family]}/${bits} dev ${device}${nodad}`;
  });
  await site.host.ip("addr flush dev up-a", ...lines);
}

describe.each(["routed", "routed_bridge"] as const)("an uplink without a link layer, %s host", (host) => {
  let lab: Lab;
  let site: Site;
  let lasthop: Lasthop;

  beforeAll(async () => {
    lab = new Lab();
    site = await buildSite(lab, { host, vms: 1 });
    lasthop = await Lasthop.on(lab, site.host);
    await plugTun(lab, site);
  });
  afterAll(() => lab?.close());

  it("without lasthop no connection comes about", () => expectNoConnection(site));

  it("attaches", async () => {
    await lasthop.attachAll(site.uplinks, site.taps, { mode: "tc" });
  });

  it.each(FAMILIES)("IPv%i: replies leave without an Ethernet header, as routed", async (family) => {
    await site.resetCounts();
    const capture = await Capture.start(site.host, "up-a", { direction: "out" });
    const fromVm = await Capture.start(site.host, site.vm.tap, { direction: "in" });
    await talk(site, family);
    const fields = ["frame.protocols", "ip.dst", "ipv6.dst", "ip.ttl", "ipv6.hlim"] as const;
    const packets = await capture.fields(...fields);
    await expectAllThroughA(site, family);
    expect(packets.length).toBeGreaterThan(20);
    const [protocol, destination, ttl] =
      family === 4
        ? (["raw:ip:", "ip.dst", "ip.ttl"] as const)
        : (["raw:ipv6:", "ipv6.dst", "ipv6.hlim"] as const);
    for (const packet of packets) {
      expect(packet["frame.protocols"][0]!.slice(0, protocol.length)).toBe(protocol);
      expect([packet[destination][0], packet[ttl][0]]).toEqual([site.client.address[family], "63"]);
    }
    // With an Ethernet header, and another TTL, they came from the VM.
    const before = (await fromVm.stop()).filter(
      (packet) => packet.destination === site.client.address[family],
    );
    expect([...new Set(before.map((packet) => `${packet.source_mac} ${packet.ttl}`))]).toEqual([
      `${site.vm.mac} 64`,
    ]);
    // Large segments stayed large.
    const counts = await site.a.counts();
    expect(counts.packets("carried", { family, protocol: "tcp", direction: "reply" })).toBeLessThan(
      BULK_BYTES / 1448 / 2,
    );
  });

  it.each(MOVES)("a datagram by firewall %s and one by %s: the flow moves", async (from, to) => {
    await expectMove(site, from, to);
  });
});

describe.each(["routed", "routed_bridge", "bridged"] as const)("via stack, %s host", (host) => {
  const MARK = 0x10;
  let lab: Lab;
  let site: Site;
  let lasthop: Lasthop;

  beforeAll(async () => {
    lab = new Lab();
    site = await buildSite(lab, { host, vms: 1 });
    lasthop = await Lasthop.on(lab, site.host);
    const device = host === "bridged" ? "br" : "up-a";
    if (host === "bridged") {
      await site.host.must(["sysctl", "-qw", ...FORWARDING]);
      await site.host.ip(
        ...FAMILIES.map((family) => {
          const bits = family === 4 ? 24 : 64;
          return `addr add ${vmAddress(253)[family]}/${bits} dev br${family === 6 ? " nodad" : ""}`;
        }),
      );
    }
    for (const family of FAMILIES) {
      const ip = ["ip", "-n", site.host.name, `-${family}`];
      await must([...ip, "rule", "add", "fwmark", String(MARK), "lookup", "100"]);
      await must([
        ...ip,
        ..."route add default via".split(" "),
        site.a.address[family],
        "dev",
        device,
        "table",
        "100",
      ]);
    }
  });
  afterAll(() => lab?.close());

  it("without lasthop no connection comes about", () => expectNoConnection(site));

  it("attaches", async () => {
    await lasthop.attachAll(site.uplinks, site.taps, { mode: "tc" });
    await lasthop.must(..."attach up-a --role uplink --via stack --mark".split(" "), String(MARK));
  });

  it.each(FAMILIES)("IPv%i: the host's rule for the mark leads back", async (family) => {
    await site.resetCounts();
    const capture = await Capture.start(site.a.namespace, "in", { direction: "in" });
    await talk(site, family);
    const replies = (await capture.stop()).filter(
      (packet) => packet.destination === site.client.address[family],
    );
    await expectAllThroughA(site, family);
    expect(replies.length).toBeGreaterThan(20);
    // The host routed them: its MAC, and a hop more.
    const source = host === "bridged" ? mac(0x0b, 1) : site.uplinkMac("a");
    expect([...new Set(replies.map((packet) => `${packet.source_mac} ${packet.ttl}`))]).toEqual([
      `${source} 63`,
    ]);
    expect(await lasthop.packets("stack", site.vm.tap)).toBeGreaterThan(0);
    expect(await lasthop.packets("redirect", site.vm.tap)).toBe(0);
  });
});

/** What is put on top of uplink a, and takes its addresses. */
const UPPERS = [
  {
    kind: "a macvlan device",
    add: ["link add name upper link up-a type macvlan mode passthru"],
  },
  {
    kind: "a bridge",
    add: [
      "link add name upper address 02:00:00:00:0a:01 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
      "link set dev up-a master upper",
    ],
  },
];

describe.each(UPPERS)("an uplink and $kind on it, both attached", ({ add }) => {
  let lab: Lab;
  let site: Site;
  let lasthop: Lasthop;

  beforeAll(async () => {
    lab = new Lab();
    site = await buildSite(lab, { host: "routed", vms: 1 });
    lasthop = await Lasthop.on(lab, site.host);
    await site.host.ip(...add, "link set dev upper up");
    await moveUplinkA(site, "upper");
    await lasthop.attachAll([...site.uplinks, "upper"], site.taps, { mode: "tc" });
  });
  afterAll(() => lab?.close());

  it.each(FAMILIES)("IPv%i: learned once, beneath, and replies leave there", async (family) => {
    await site.resetCounts();
    await talk(site, family);
    await expectAllThroughA(site, family);
    for (const entry of await lasthop.flows("--address", site.vm.address[family])) {
      expect(entry.last_hop).toMatchObject({ mac: site.a.mac, interface: "up-a" });
    }
    expect((await lasthop.lastHops()).map((hop) => hop.interface)).toEqual(["up-a"]);
    for (const reason of ["learn", "relearn", "restart", "promote", "refresh"]) {
      expect(await lasthop.packets(reason, "upper"), reason).toBe(0);
    }
    expect(await lasthop.packets("learned_below", "upper")).toBeGreaterThan(20);
    expect(await lasthop.packets("relearn", "up-a")).toBe(0);
  });
});
