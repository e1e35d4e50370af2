// SPDX-License-Identifier: Apache-2.0
// The daemon follows its devices: each kind of death and return, what the device's flows do meanwhile, and that
// others' do nothing of the kind. MACs that change are noticed before a request comes from the new one.

import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { DeviceDetails, DeviceEntry } from "../../src/ops/types.ts";
import type { Addresses } from "../support/addresses.ts";
import { cleanUpDaemons, Daemon, type DaemonOptions, WHOLE_SITE } from "../support/daemon.ts";
import type { Firewall } from "../support/firewall.ts";
import { FAMILIES, type Ground, useSite } from "../support/fixture.ts";
import { newIndex } from "../support/plan.ts";
import { sleep, until } from "../support/run.ts";
import { Speaker } from "../support/speaker.ts";

cleanUpDaemons();

const firewalls = [{ name: "a" }, { name: "b" }, { name: "c", loose: true }];
const OTHER_MAC = "02:00:00:00:0f:77";

/** Silent to everybody, as a machine that hangs; its link stays up. */
async function mute({ namespace }: Firewall): Promise<void> {
  const chain = "chain in { type filter hook ingress device in priority 0; policy drop; }";
  await namespace.must(["nft", "-f", "-"], { input: `table netdev mute {\n${chain}\n}\n` });
}

async function unmute({ namespace }: Firewall): Promise<void> {
  await namespace.must(["nft", "delete table netdev mute"]);
}

/** Refuses to answer probes, and forwards as before. */
async function deafen({ namespace }: Firewall, what: string): Promise<void> {
  const chain = `chain in { type filter hook input priority 0; policy accept; ${what} drop; }`;
  await namespace.must(["nft", "-f", "-"], { input: `table inet deaf {\n${chain}\n}\n` });
}

async function hear({ namespace }: Firewall): Promise<void> {
  await namespace.must(["nft", "delete table inet deaf"]);
}

/** The kernel gives a neighbour up within a second. */
async function hurryNeighbours({ site }: Ground): Promise<void> {
  const interfaces = site.kind === "bridged" ? ["br"] : site.uplinks;
  const values = interfaces.flatMap((name) =>
    ["ipv4", "ipv6"].map((family) => `net.${family}.neigh.${name}.retrans_time_ms=100`),
  );
  await site.host.must(["sysctl", "-qw", ...values]);
}

const device = (ground: Ground, name: string) => ground.lasthop.json<DeviceDetails>("devices", "show", name);

function becomes(
  ground: Ground,
  name: string,
  wanted: Partial<DeviceEntry>,
  timeoutMs = 20_000,
): Promise<DeviceDetails> {
  const matches = (entry: DeviceDetails) =>
    Object.entries(wanted).every(([key, value]) => entry[key as keyof DeviceEntry] === value);
  return until(
    async () => {
      const entry = await device(ground, name);
      return matches(entry) ? entry : undefined;
    },
    `${name} to be ${JSON.stringify(wanted)}`,
    timeoutMs,
  );
}

const config = (devices: string) => `${WHOLE_SITE}devices:\n${devices}`;

describe.each(["bridged", "routed"] as const)("a %s host", (host) => {
  const ground = useSite({ host, firewalls, vms: 1, clients: 2 }, async (ground) => {
    await hurryNeighbours(ground);
    await ground.site.routeClientsBy("c", ground.site.clients.slice(1));
    // Probes of a bridged host need an address to ask from; finding neighbours does not.
    if (host === "bridged") {
      await ground.site.host.ip(
        "addr add 203.0.113.200/24 dev br",
        "addr add 2001:db8:113::200/64 dev br nodad",
      );
    }
  });
  let speaker: Speaker;
  let daemon: Daemon;
  beforeAll(async () => {
    speaker = await Speaker.start(ground.site);
    const { a } = ground.site;
    const c = ground.site.firewall("c");
    daemon = await Daemon.start(
      ground,
      config(`
  - { name: fw-a, addresses: ['${a.address[4]}', '${a.address[6]}'], interface: up-a, on_down: 'peer:fw-c' }
  - { name: fw-c, addresses: ['${c.address[4]}', '${c.address[6]}'], interface: up-c }
`),
    );
    await becomes(ground, "fw-a", { state: "up" });
    await becomes(ground, "fw-c", { state: "up" });
  });
  afterAll(() => daemon.stop());

  const to = (name: string) => [{ firewall: name, destination_mac: ground.site.firewall(name).mac }];
  const flows = async () => {
    const [client, other] = ground.site.clients;
    const own = [];
    for (const family of FAMILIES) own.push(await speaker.open(client!, family));
    const others = [];
    for (const family of FAMILIES) others.push(await speaker.open(other!, family));
    return { own, others };
  };
  const heard = async (ports: number[]) => {
    const all = await speaker.heard(...ports);
    return ports.map((port) => all.get(port)!);
  };

  it("knows their MACs before any traffic", async () => {
    const { lasthop, site } = ground;
    const entry = await device(ground, "fw-a");
    expect(entry).toMatchObject({ origin: "config", macs: [], flaps: 0 });
    expect(entry.addresses.map(({ mac }) => mac)).toEqual([site.a.mac, site.a.mac]);
    const own = (await lasthop.lastHops()).filter(({ device }) => device === "fw-a");
    expect(own).toMatchObject([{ mac: site.a.mac, interface: "up-a", state: "up", origin: "config" }]);
  });

  it("a neighbour that falls silent and comes back: only its flows go to the peer", async () => {
    const { own, others } = await flows();
    await mute(ground.site.a);
    try {
      await becomes(ground, "fw-a", { state: "down", cause: "neighbour" });
      expect(await heard([...own, ...others])).toEqual([to("c"), to("c"), to("c"), to("c")]);
    } finally {
      await unmute(ground.site.a);
    }
    await becomes(ground, "fw-a", { state: "up", cause: null });
    expect(await heard([...own, ...others])).toEqual([to("a"), to("a"), to("c"), to("c")]);
  });

  it("a link that goes down and comes back", async () => {
    const { own, others } = await flows();
    await ground.site.a.namespace.ip("link set dev in down");
    await becomes(ground, "fw-a", { state: "down", cause: "interface" });
    expect(await heard([...own, ...others])).toEqual([to("c"), to("c"), to("c"), to("c")]);
    await ground.site.a.namespace.ip("link set dev in up");
    await restoreInside(ground.site.a, ground);
    await becomes(ground, "fw-a", { state: "up", cause: null });
    expect(await heard([...own, ...others])).toEqual([to("a"), to("a"), to("c"), to("c")]);
  });

  it("an interface that goes, and returns under another index", async () => {
    const { own, others } = await flows();
    await ground.site.host.ip("link del dev up-a");
    await becomes(ground, "fw-a", { state: "down", cause: "interface" });
    expect(await heard([...own, ...others])).toEqual([to("c"), to("c"), to("c"), to("c")]);
    await replugFirewall(ground.site.a, ground);
    await becomes(ground, "fw-a", { state: "up", cause: null });
    expect(await heard([...own, ...others])).toEqual([to("a"), to("a"), to("c"), to("c")]);
    const entries = (await ground.lasthop.lastHops()).filter(({ device }) => device === "fw-a");
    expect(entries.every(({ interface: name }) => name === "up-a")).toBe(true);
  });

  it("the operator's word wins over what is observed, and no daemon forgets it", async () => {
    const { lasthop } = ground;
    const { own, others } = await flows();
    await lasthop.must("devices", "down", "fw-a");
    expect(await heard([...own, ...others])).toEqual([to("c"), to("c"), to("c"), to("c")]);
    await sleep(2500);
    expect(await device(ground, "fw-a")).toMatchObject({
      state: "down",
      cause: "operator",
      operator_down: true,
    });
    await lasthop.must("devices", "up", "fw-a");
    await becomes(ground, "fw-a", { state: "up", operator_down: false });
    expect(await heard([...own, ...others])).toEqual([to("a"), to("a"), to("c"), to("c")]);
  });

  it("the operator's word counts at once, whatever the daemon hears of in the same moment", async () => {
    const { lasthop, site } = ground;
    const { own } = await flows();
    // Each makes the daemon look at its devices.
    const stir = async () => {
      const entry = `${site.a.address[4]} lladdr ${site.a.mac} dev ${site.kind === "bridged" ? "br" : "up-a"}`;
      await site.host.ip(`neigh replace ${entry} nud reachable`, `neigh replace ${entry} nud stale`);
      await sleep(50);
    };
    for (let round = 0; round < 4; round++) {
      await lasthop.must("devices", "down", "fw-a");
      await stir();
      expect(await heard(own)).toEqual([to("c"), to("c")]);
      await lasthop.must("devices", "up", "fw-a");
      await stir();
      expect(await heard(own)).toEqual([to("a"), to("a")]);
    }
  });

  it("another MAC in the middle of connections: replies go there before any request came from it", async () => {
    const { site } = ground;
    const { own, others } = await flows();
    await site.a.namespace.ip(`link set dev in address ${OTHER_MAC}`);
    try {
      await until(
        async () => (await device(ground, "fw-a")).addresses.every(({ mac }) => mac === OTHER_MAC),
        "the new MAC",
        20_000,
      );
      const moved = [{ firewall: "a", destination_mac: OTHER_MAC }];
      expect(await heard([...own, ...others])).toEqual([moved, moved, to("c"), to("c")]);
    } finally {
      await site.a.namespace.ip(`link set dev in address ${site.a.mac}`);
    }
    await until(
      async () => (await device(ground, "fw-a")).addresses.every(({ mac }) => mac === site.a.mac),
      "the old MAC",
      20_000,
    );
    expect(await heard(own)).toEqual([to("a"), to("a")]);
    expect(await device(ground, "fw-a")).toMatchObject({ state: "up" });
  });

  it("a configured device is not changed or removed by hand; one made by hand is followed, and survives", async () => {
    const { lasthop, site } = ground;
    for (const args of [
      ["set", "fw-a", "--on-down", "drop"],
      ["remove", "fw-a"],
    ]) {
      const { status, stderr } = await lasthop.run("--json", "devices", ...args);
      expect(status).toBe(1);
      expect(JSON.parse(stderr)).toMatchObject({
        code: "E_HELD",
        message: expect.stringContaining("devices.fw-a"),
      });
    }
    await lasthop.must("devices", "add", "by-hand", "--address", site.b.address[4], "--interface", "up-b");
    await becomes(ground, "by-hand", { state: "up", origin: "manual" });
    await mute(site.b);
    try {
      await becomes(ground, "by-hand", { state: "down", cause: "neighbour" });
      await daemon.stop();
      daemon = await Daemon.start(
        ground,
        config(`
  - { name: fw-a, addresses: ['${site.a.address[4]}'], interface: up-a, on_down: hold }
`),
      );
      expect(await device(ground, "by-hand")).toMatchObject({ state: "down", origin: "manual" });
    } finally {
      await unmute(site.b);
    }
    await becomes(ground, "by-hand", { state: "up" });
    expect(await lasthop.json("devices", "list")).toMatchObject({
      devices: [{ name: "by-hand" }, { name: "fw-a" }],
    });
    await lasthop.must("devices", "remove", "by-hand");
  });
});

/** A new cable between the host and a firewall: the same names and addresses. */
async function replugFirewall(firewall: Firewall, ground: Ground): Promise<void> {
  const { host, kind } = ground.site;
  const near = `name up-${firewall.name} index ${newIndex()} address ${ground.site.uplinkMac(firewall.name)}`;
  const far = `name in index ${newIndex()} address ${firewall.mac} netns ${firewall.namespace.name}`;
  await host.ip(`link add ${near} type veth peer ${far}`);
  if (kind === "bridged") await host.ip(`link set dev up-${firewall.name} master br`);
  await host.ip(`link set dev up-${firewall.name} up`);
  if (kind === "routed") {
    const own = hostAddress(firewall);
    await host.ip(
      `addr add ${own[4]}/24 dev up-${firewall.name}`,
      `addr add ${own[6]}/64 dev up-${firewall.name} nodad`,
    );
    await hurryNeighbours(ground);
  }
  await firewall.namespace.ip("link set dev in up", `addr add ${firewall.address[4]}/24 dev in`);
  await restoreInside(firewall, ground);
}

/** Of a routing host, on the wire to a firewall. */
function hostAddress({ address }: Firewall): Addresses {
  return { 4: address[4].replace(/\.\d+$/, ".254"), 6: address[6].replace(/::.*$/, "::254") };
}

/** Routes of a firewall go with its link. */
async function restoreInside(firewall: Firewall, { site }: Ground): Promise<void> {
  const { namespace, address } = firewall;
  const has = await namespace.must(["ip", "-6", "-o", "addr", "show", "dev", "in", "scope", "global"]);
  if (!has.includes(address[6])) await namespace.ip(`addr add ${address[6]}/64 dev in nodad`);
  if (site.kind === "bridged") return;
  const host = hostAddress(firewall);
  await namespace.ip(
    `route replace 203.0.113.0/24 via ${host[4]}`,
    `route replace 2001:db8:113::/64 via ${host[6]}`,
  );
}

describe("probes", () => {
  const ground = useSite({ host: "routed", firewalls, vms: 1 }, async ({ site }) => {
    await site.a.namespace.agent().call("serve", { name: "fw-a" });
  });
  const daemons: Daemon[] = [];
  const speakers: Speaker[] = [];
  afterEach(async () => {
    for (const speaker of speakers.splice(0)) await speaker.stop();
    for (const daemon of daemons.splice(0)) await daemon.stop();
  });
  async function start(family: 4 | 6, probe: string, options: DaemonOptions = {}): Promise<Daemon> {
    const { mac, address } = ground.site.a;
    const timing = "interval_seconds: 0.2, timeout_seconds: 0.2, fall: 3, rise: 2";
    const probing = `{ ${probe}, address: '${address[family]}', ${timing} }`;
    const daemon = await Daemon.start(
      ground,
      config(`  - { name: fw-a, macs: ['${mac}'], interface: up-a, on_down: drop, probe: ${probing} }\n`),
      options,
    );
    daemons.push(daemon);
    return daemon;
  }

  it.each(
    FAMILIES.flatMap((family) => [
      {
        family,
        kind: "ICMP",
        probe: "kind: icmp",
        match: family === 4 ? "icmp type echo-request" : "icmpv6 type echo-request",
      },
      { family, kind: "TCP", probe: "kind: tcp, port: 7", match: "tcp dport 7" },
    ]),
  )(
    "IPv$family: a failed $kind probe takes the device down, an answered one up",
    async ({ family, probe, match }) => {
      const daemon = await start(family, probe);
      await becomes(ground, "fw-a", { state: "up" });
      const speaker = await Speaker.start(ground.site);
      speakers.push(speaker);
      const port = await speaker.open(ground.site.client, family);
      await deafen(ground.site.a, match);
      try {
        await becomes(ground, "fw-a", { state: "down", cause: "probe" });
        expect((await speaker.heard(port)).get(port)).toEqual([]);
      } finally {
        await hear(ground.site.a);
      }
      await becomes(ground, "fw-a", { state: "up", cause: null });
      const heard = (await speaker.heard(port)).get(port);
      expect(heard).toEqual([{ firewall: "a", destination_mac: ground.site.a.mac }]);
      expect(daemon.lines.filter((line) => line.includes("fw-a is down"))).toHaveLength(1);
    },
  );

  it("that may not be sent say so once, and say nothing of the device", async () => {
    const prefix = ["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw"];
    const daemon = await start(4, "kind: icmp", { prefix });
    await daemon.logs(/cannot be probed.*CAP_NET_RAW/);
    await sleep(2000);
    expect(daemon.lines.filter((line) => line.includes("cannot be probed"))).toHaveLength(1);
    expect(await device(ground, "fw-a")).toMatchObject({ state: "unknown", cause: null });
  });
});
