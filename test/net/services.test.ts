// SPDX-License-Identifier: Apache-2.0
// Services on the wire: who gets a new flow by each policy, and that everything that belongs to a flow finds its VM.

import { describe, expect, it } from "vitest";
import type { ServiceEntry } from "../../src/ops/serviceTypes.ts";
import { FAMILIES, type Family } from "../support/addresses.ts";
import { Capture } from "../support/capture.ts";
import { sleep } from "../support/run.ts";
import {
  apply,
  askAnew,
  askByUdp,
  BRIDGE_MAC,
  bothFamilies,
  expectThrough,
  MORE_CLIENTS,
  PORT,
  ping,
  SERVICE,
  type ServiceGround,
  serveOn,
  showVm,
  tally,
  useServiceSite,
} from "../support/serviceSite.ts";
import type { Vm } from "../support/site.ts";
import { addFilter, type ForeignProgram } from "../support/tools.ts";

/** A service for each, on one address. */
const PORTS = {
  maglev: 1001,
  weighted: 1002,
  turns: 1003,
  least: 1004,
  source: 1005,
  associated: 1006,
  affine: 1007,
  brief: 1008,
  datagrams: 1009,
};

const ALL = [{ vm: "vm1" }, { vm: "vm2" }, { vm: "vm3" }];

function distribution(): Record<string, unknown>[] {
  const common = { protocol: "tcp", pool: ALL };
  const services: Record<string, Record<string, unknown>> = {
    maglev: {},
    weighted: { pool: [{ vm: "vm1" }, { vm: "vm2", weight: 2 }, { label: "third", weight: 3 }] },
    turns: { policy: "round-robin" },
    least: { policy: "least-flows" },
    source: { policy: "source-hash" },
    affine: { policy: "round-robin", affinity_seconds: 600 },
    brief: { policy: "round-robin", affinity_seconds: 0.6 },
    datagrams: { policy: "round-robin", protocol: "udp" },
  };
  const portly = Object.entries(services).flatMap(([name, keys]) =>
    bothFamilies({ name, ...common, port: PORTS[name as keyof typeof PORTS], ...keys }),
  );
  const associated = FAMILIES.map((family) => ({
    ...{
      name: `associated${family}`,
      address: SERVICE[family],
      port: PORTS.associated,
      policy: "round-robin",
    },
    pool: [{ vm: "vm1" }],
    associations: [
      { client: family === 4 ? "198.51.100.0/24" : "2001:db8:c::/64", label: "second" },
      { client: MORE_CLIENTS[family][0]!, vm: "vm3" },
    ],
  }));
  // Whatever has no service of its own.
  const rest = bothFamilies({ name: "rest", protocol: "any", policy: "round-robin", pool: [{ vm: "vm3" }] });
  return [...portly, ...associated, ...rest];
}

describe.each(["bridged", "routed"] as const)("a %s host distributes", (host) => {
  const ground = useServiceSite({ host }, async (made) => {
    await Promise.all(Object.values(PORTS).map((port) => serveOn(made, port)));
    const vms = { vm2: { labels: ["second"] }, vm3: { labels: ["third"] } };
    await apply(made, { vms, services: distribution() });
  });

  /** Short connections, some at a time: how many each VM got. */
  async function spread(family: Family, port: number, limit: number): Promise<Record<string, number>> {
    const { agent } = ground.site.client;
    const key = `spread${family}`;
    await agent.call("startChurn", { key, hosts: [SERVICE[family]], port, parallel: 8, limit });
    const { answers, errors } = await agent.call("stopChurn", { key, finish: true });
    expect(errors).toEqual([]);
    return answers;
  }

  it.each(FAMILIES)("IPv%i: by Maglev, evenly and by weight", async (family) => {
    // Ten standard deviations.
    const even = await spread(family, PORTS.maglev, 300);
    for (const { name } of ground.site.vms) expect(Math.abs(even[name]! - 100)).toBeLessThan(82);
    const weighed = await spread(family, PORTS.weighted, 300);
    expect(weighed.vm1).toBeLessThan(weighed.vm3!);
    for (const [at, { name }] of ground.site.vms.entries()) {
      expect(Math.abs(weighed[name]! - 50 * (at + 1))).toBeLessThan(80);
    }
    const { services } = await ground.lasthop.json<{ services: ServiceEntry[] }>("services", "list");
    const entry = services.find(({ name }) => name === `maglev${family}`);
    expect(entry).toMatchObject({ flows_started: 300, vms_up: 3, vms_total: 3, requests_empty: 0 });
  });

  it.each(FAMILIES)("IPv%i: by turns", async (family) => {
    const names = await askAnew(ground, family, 9, { port: PORTS.turns });
    expect(names.slice(3)).toEqual(names.slice(0, 6));
    expect(new Set(names.slice(0, 3)).size).toBe(3);
    const udp: string[] = [];
    for (let count = 0; count < 6; count++) {
      udp.push(...(await askByUdp(ground, family, ["one", "and the same"], { port: PORTS.datagrams })));
    }
    // Each flow has two datagrams.
    expect(tally(udp)).toEqual({ vm1: 4, vm2: 4, vm3: 4 });
  });

  it.each(FAMILIES)("IPv%i: to whom has the fewest flows", async (family) => {
    const { agent } = ground.site.client;
    const open = async (key: string) => {
      await agent.call("openAsking", { key, host: SERVICE[family], port: PORTS.least });
      return await agent.call("ask", { key });
    };
    const held = new Map<string, string>();
    for (let count = 0; count < 9; count++) held.set(`least${count}`, await open(`least${count}`));
    expect(tally([...held.values()])).toEqual({ vm1: 3, vm2: 3, vm3: 3 });
    const gone = [...held].filter(([, name]) => name === "vm2").map(([key]) => key);
    for (const key of gone) await agent.call("endAsking", { key });
    const again = await Promise.all(gone.map((key) => open(key)));
    expect(tally(again)).toEqual({ vm2: 3 });
    for (const key of held.keys()) await agent.call("endAsking", { key });
  });

  it.each(FAMILIES)("IPv%i: by the client's address", async (family) => {
    const vms = new Set<string>();
    for (const localAddress of MORE_CLIENTS[family]) {
      const names = await askAnew(ground, family, 3, { port: PORTS.source, localAddress });
      expect(new Set(names).size).toBe(1);
      vms.add(names[0]!);
    }
    expect(vms.size).toBeGreaterThan(1);
  });

  it.each(FAMILIES)("IPv%i: as is stored for a client, by the longest prefix", async (family) => {
    const port = PORTS.associated;
    expect(tally(await askAnew(ground, family, 4, { port }))).toEqual({ vm2: 4 });
    const [first, second] = MORE_CLIENTS[family];
    expect(tally(await askAnew(ground, family, 4, { port, localAddress: first }))).toEqual({ vm3: 4 });
    expect(tally(await askAnew(ground, family, 4, { port, localAddress: second }))).toEqual({ vm2: 4 });
    const shown = await ground.lasthop.json<ServiceEntry>("services", "show", `associated${family}`);
    expect(shown).toMatchObject({ flows_started: 12, flows_associated: 12 });
  });

  it.each(FAMILIES)(
    "IPv%i: a client's flows to the VM of its last one, for as long as is said",
    async (family) => {
      for (const localAddress of MORE_CLIENTS[family].slice(0, 3)) {
        const names = await askAnew(ground, family, 4, { port: PORTS.affine, localAddress });
        expect(new Set(names).size).toBe(1);
      }
      const shown = await ground.lasthop.json<ServiceEntry>("services", "show", `affine${family}`);
      expect(shown).toMatchObject({ flows_started: 12, flows_affine: 9 });
    },
  );

  it("and to whose turn it is when that is over", async () => {
    const seen: Record<Family, string[]> = { 4: [], 6: [] };
    for (let count = 0; count < 3; count++) {
      if (count > 0) await sleep(1200);
      for (const family of FAMILIES) {
        seen[family].push(...(await askAnew(ground, family, 1, { port: PORTS.brief })));
      }
    }
    for (const family of FAMILIES) expect(new Set(seen[family]).size).toBe(3);
  });

  it.each(FAMILIES)("IPv%i: every port and protocol that no other service has", async (family) => {
    const before = await showVm(ground, "vm3");
    expect(tally(await askAnew(ground, family, 4))).toEqual({ vm3: 4 });
    expect(tally(await askByUdp(ground, family, ["a", "b"]))).toEqual({ vm3: 2 });
    await ping(ground, family);
    expect((await showVm(ground, "vm3")).flows_started - before.flows_started).toBe(6);
  });
});

describe.each(["bridged", "routed"] as const)("a %s host hands to the flow's VM", (host) => {
  const ground = useServiceSite({ host }, (made) => apply(made, { service: { policy: "round-robin" } }));

  it.each(FAMILIES)(
    "IPv%i: fragments, first and later ones, and takes those of the answer",
    async (family) => {
      const { site } = ground;
      await site.resetCounts();
      const captures = await Promise.all(
        site.vms.map(({ tap }) => Capture.start(site.host, tap, { filter: `host ${SERVICE[family]}` })),
      );
      const texts = ["l".repeat(4000), "m".repeat(5000)];
      const { agent } = site.client;
      const asked = await Promise.all(
        Array.from({ length: 3 }, () =>
          agent.call("askByUdp", { host: SERVICE[family], port: PORT, texts }).then(({ names }) => names),
        ),
      );
      // Three flows, each to another VM.
      expect(tally(asked.flat())).toEqual({ vm1: 2, vm2: 2, vm3: 2 });
      for (const [at, capture] of captures.entries()) {
        const packets = await capture.stop();
        const to = packets.filter(({ destination }) => destination === SERVICE[family]);
        const from = packets.filter(({ source }) => source === SERVICE[family]);
        // 4000 bytes in three pieces, 5000 in four.
        expect([to.length, from.length]).toEqual([7, 7]);
        expect(new Set(to.map((packet) => packet.destination_mac))).toEqual(new Set([site.vms[at]!.mac]));
      }
      await expectThrough(ground, "a", family, ["udp"]);
    },
  );

  it.each(FAMILIES)("IPv%i: errors about what it sent, so that it finds a narrow link", async (family) => {
    const { site } = ground;
    const { client, a } = site;
    const pathMtu = async ({ namespace }: Vm) => {
      const argv = ["ip", `-${family}`, "route", "get", client.address[family]];
      const route = await namespace.must([...argv, "from", SERVICE[family]]);
      return /\bmtu (\d+)/.exec(route)?.[1] ?? null;
    };
    await a.namespace.ip("link set dev c1 mtu 1400");
    const found: (string | null)[][] = [];
    for (let count = 0; count < 2; count++) {
      const bytes = 1 << 20;
      const result = await client.agent.call("download", { host: SERVICE[family], bytes });
      expect(result).toEqual(await client.agent.call("expected", { bytes }));
      found.push(await Promise.all(site.vms.map(pathMtu)));
    }
    await a.namespace.ip("link set dev c1 mtu 1500");
    // The VM whose turn it was, and no other.
    expect(found.map((mtus) => mtus.filter((mtu) => mtu === "1400").length)).toEqual([1, 2]);
    expect(found.map((mtus) => mtus.filter((mtu) => mtu === null).length)).toEqual([2, 1]);
  });

  it.each(FAMILIES)("IPv%i: segments as large as offloads make them", async (family) => {
    const { site } = ground;
    const { agent } = site.client;
    await site.resetCounts();
    const captures = await Promise.all(
      site.vms.map(({ tap }) => Capture.start(site.host, tap, { filter: `tcp and host ${SERVICE[family]}` })),
    );
    const target = { host: SERVICE[family], bytes: 16 << 20, timeoutMs: 30_000 };
    const expected = await agent.call("expected", { bytes: target.bytes });
    expect(await agent.call("download", target)).toEqual(expected);
    expect(await agent.call("upload", target)).toEqual(expected);
    const packets = (await Promise.all(captures.map((capture) => capture.stop()))).flat();
    for (const side of ["source", "destination"] as const) {
      const sizes = packets.filter((packet) => packet[side] === SERVICE[family]).map((p) => p.length_bytes);
      expect(Math.max(...sizes)).toBeGreaterThan(20_000);
    }
    await expectThrough(ground, "a", family, ["tcp"]);
    expect((await site.a.counts()).bytes("carried", { family, direction: "reply" })).toBeGreaterThan(
      16 << 20,
    );
  });
});

describe.each<{ name: string; push: ForeignProgram; vids: number[] }>([
  { name: "802.1Q", push: "push100", vids: [100] },
  { name: "QinQ", push: "push200_100", vids: [200, 100] },
])("an uplink with $name tags", ({ push, vids }) => {
  const ground = useServiceSite({}, async (made) => {
    const { site } = made;
    await apply(made, { service: { policy: "round-robin" } });
    // In place of the firewall's VLAN device.
    await addFilter(site.a.namespace, "in", "egress", push);
    await addFilter(site.a.namespace, "in", "ingress", "pop");
  });

  it.each(FAMILIES)(
    "IPv%i: VMs get frames without tags, and their answers leave with them",
    async (family) => {
      const { site } = ground;
      await site.resetCounts();
      const filter = `host ${SERVICE[family]} or (vlan and host ${SERVICE[family]})`;
      const capture = await Capture.start(site.a.namespace, "in", { direction: "in" });
      const taps = await Promise.all(site.vms.map(({ tap }) => Capture.start(site.host, tap, { filter })));
      expect(tally(await askAnew(ground, family, 3))).toEqual({ vm1: 1, vm2: 1, vm3: 1 });
      expect(await askByUdp(ground, family, ["tagged"])).toHaveLength(1);
      await ping(ground, family);
      const replies = (await capture.stop()).filter(({ source }) => source === SERVICE[family]);
      expect(replies.length).toBeGreaterThan(9);
      expect(new Set(replies.map((packet) => packet.vids.join()))).toEqual(new Set([vids.join()]));
      for (const tap of taps) {
        const packets = await tap.stop();
        expect(packets.length).toBeGreaterThan(6);
        expect(packets.flatMap((packet) => packet.vids)).toEqual([]);
      }
      // The firewall learned the address by a question with tags, too.
      const [entry] = await neighbours(ground, family);
      expect(entry).toMatchObject({ lladdr: BRIDGE_MAC });
      await expectThrough(ground, "a", family);
    },
  );
});

async function neighbours({ site }: ServiceGround, family: Family): Promise<{ lladdr?: string }[]> {
  const argv = ["ip", "-j", `-${family}`, "neigh", "show", SERVICE[family], "dev", "in"];
  return JSON.parse(await site.a.namespace.must(argv)) as { lladdr?: string }[];
}

describe("ARP and neighbour discovery for the address", () => {
  const ground = useServiceSite({});

  /** Firewall a asks anew; what the VMs got of the question. */
  async function asked(family: Family): Promise<{ lladdr: string | undefined; questions: number }> {
    const { site } = ground;
    await site.a.namespace.ip("neigh flush dev in");
    // A solicitation goes to a group.
    const filter = family === 4 ? `arp host ${SERVICE[4]}` : "icmp6 and ip6[40] == 135";
    const captures = await Promise.all(
      site.vms.map(({ tap }) => Capture.start(site.host, tap, { filter, direction: "out" })),
    );
    expect(await askAnew(ground, family, 2)).toHaveLength(2);
    const [entry] = await neighbours(ground, family);
    const fields = await Promise.all(
      captures.map((capture) => capture.fields("arp.dst.proto_ipv4", "icmpv6.nd.ns.target_address")),
    );
    const wanted = fields.flat().flatMap((packet) => Object.values(packet).flat());
    return { lladdr: entry?.lladdr, questions: wanted.filter((target) => target === SERVICE[family]).length };
  }

  it("is answered with the host's MAC, and no VM hears of it", async () => {
    await apply(ground, { service: { answer: "host" } });
    for (const family of FAMILIES) {
      expect(await asked(family)).toEqual({ lladdr: BRIDGE_MAC, questions: 0 });
      const shown = await ground.lasthop.json<ServiceEntry>("services", "show", `web${family}`);
      expect(shown.addresses_answered).toBeGreaterThan(0);
    }
  });

  it("with a VM's MAC, if so said, and no VM hears of it", async () => {
    await apply(ground, { service: { answer: "vm:vm2", policy: "round-robin" } });
    for (const family of FAMILIES) {
      expect(await asked(family)).toEqual({ lladdr: ground.site.vms[1]!.mac, questions: 0 });
      // Whoever answers, all VMs have their turns.
      expect(tally(await askAnew(ground, family, 3))).toEqual({ vm1: 1, vm2: 1, vm3: 1 });
    }
  });

  it("by a VM, if nobody else is to: all VMs have their turns all the same", async () => {
    await apply(ground, { service: { answer: "none", policy: "round-robin" } });
    const { namespace, mac } = ground.site.vms[2]!;
    await namespace.ip(
      ...FAMILIES.map((family) => `addr del ${SERVICE[family]}/${family === 4 ? 32 : 128} dev lo`),
    );
    await namespace.ip(`addr add ${SERVICE[4]}/32 dev eth0`, `addr add ${SERVICE[6]}/128 dev eth0 nodad`);
    for (const family of FAMILIES) {
      const { lladdr, questions } = await asked(family);
      expect(lladdr).toBe(mac);
      expect(questions).toBeGreaterThan(0);
      expect(tally(await askAnew(ground, family, 3))).toEqual({ vm1: 1, vm2: 1, vm3: 1 });
      await ground.site.resetCounts();
      expect(await askAnew(ground, family, 3)).toHaveLength(3);
      await expectThrough(ground, "a", family, ["tcp"]);
    }
  });
});
