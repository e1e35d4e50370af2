// SPDX-License-Identifier: Apache-2.0
// A live connection whose requests come in by one kind of interface after another; and tunnels of two zones with the
// same addresses within.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { seenBy } from "../matrix/counts.ts";
import { FAMILIES } from "../matrix/kinds/kind.ts";
import { KINDS, missingKinds } from "../matrix/kinds.ts";
import { Matrix, SLOWER } from "../matrix/matrix.ts";
import { clientAddress, VM } from "../matrix/place.ts";
import { type Stand, setDefault } from "../matrix/topology.ts";
import type { Agent } from "../support/agent.ts";
import { useSite } from "../support/fixture.ts";
import { Lab } from "../support/lab.ts";
import { until } from "../support/run.ts";
import type { Site } from "../support/site.ts";
import { buildSite } from "../support/topology.ts";

/** From one to the next: other link layers, other headers, and none. The last has the default route only. */
const WALK = [
  "vxlan4",
  "nic",
  "tun",
  "macvlan",
  "gre",
  "bridge-port",
  "vxlan-external",
  "ipsec",
  "mpls",
  "vlan",
];
const DEFAULT = "nic-stack";
const KEY = { 4: "walk4", 6: "walk6" };

const lab = new Lab();
const missing = await missingKinds(lab.namespace("probe")).finally(() => lab.close());
const lacks = new Set(missing.map(({ kind }) => kind.name));
const named = (name: string) => KINDS.find((kind) => kind.name === name)!;
const kinds = [...WALK, DEFAULT].filter((name) => !lacks.has(name)).map(named);

describe("a live connection goes from one kind of interface to the next", () => {
  let matrix: Matrix | undefined;
  let client: Agent;
  /** By which kinds replies have come, of which family. */
  const walked = new Set<string>();
  const folder = mkdtempSync(join(tmpdir(), "lasthop-failover-"));
  // IPsec policies name clients: those of their own firewall.
  const address = clientAddress("redirected", kinds.indexOf(named("ipsec")) + 1 || 250, 250);

  /** The client asks by another firewall from now on. */
  async function askBy({ place }: Stand): Promise<void> {
    const { client: namespace } = matrix!.ground;
    await Promise.all(
      FAMILIES.map(async (family) => {
        await namespace.run(["ip", `-${family}`, "rule", "del", "pref", "100"]);
        const table = String(1000 + place.number);
        const rule = ["from", address[family], "lookup", table, "pref", "100"];
        await namespace.must(["ip", `-${family}`, "rule", "add", ...rule]);
      }),
    );
  }

  async function carried(stand: Stand, family: 4 | 6): Promise<number> {
    return (await seenBy(stand)).carried.get(address[family]) ?? 0;
  }

  beforeAll(
    async () => {
      matrix = await Matrix.build({ kinds, lacks, bytes: 0, loose: true });
      await matrix.attach(folder);
      const { ground } = matrix;
      const server = ground.vm.agent();
      client = ground.client.agent();
      await server.call("serve", { name: "vm" });
      for (const family of FAMILIES) await setDefault(ground, family, ground.stands.at(-1)!);
    },
    300_000 + 60_000 * SLOWER,
  );

  afterAll(async () => {
    await matrix?.close();
    rmSync(folder, { recursive: true, force: true });
  }, 60_000 * SLOWER);

  it(
    "TCP survives, IPv4 and IPv6, and each firewall carries the replies while it has the requests",
    async () => {
      const { stands } = matrix!.ground;
      const walk = stands.slice(0, -1);
      await askBy(walk[0]!);
      for (const family of FAMILIES) {
        const target = { host: VM[family], port: 7, localAddress: address[family], timeoutMs: 3000 * SLOWER };
        await client.call("open", { key: KEY[family], ...target });
      }
      for (const stand of [...walk, walk[0]!]) {
        await askBy(stand);
        for (const family of FAMILIES) {
          const before = await carried(stand, family);
          // A flow that has just moved stays where it is for a second.
          await until(
            async () => {
              await client.call("echo", { key: KEY[family], bytes: 5000, timeoutMs: 3000 * SLOWER });
              return (await carried(stand, family)) > before + 3;
            },
            `IPv${family} replies by ${stand.kind.name}`,
            10_000 * SLOWER,
          );
          walked.add(`${stand.kind.name} ${family}`);
        }
      }
      for (const family of FAMILIES) await client.call("close", { key: KEY[family] });
      const last = await seenBy(stands.at(-1)!);
      for (const family of FAMILIES) {
        expect(last.carried.get(address[family]) ?? 0).toBe(0);
        expect(last.dropped.get(address[family]) ?? 0).toBe(0);
      }
    },
    120_000 + 30_000 * SLOWER,
  );

  for (const name of WALK) {
    it(`goes by ${name}`, (context) => {
      const without = missing.find(({ kind }) => kind.name === name);
      if (without !== undefined) return context.skip(`this kernel lacks it: ${without.reason}`);
      for (const family of FAMILIES) expect(walked).toContain(`${name} ${family}`);
    });
  }
});

/** Makes VXLAN tunnels of the cables between a site's firewalls and its host, with the host's ends in its bridge. */
async function tunnelled(site: Site): Promise<string[]> {
  const suffix = site.number === 0 ? "" : `.${site.number}`;
  const uplinks: string[] = [];
  let index = 0;
  for (const [name, { namespace, mac, address }] of site.firewalls) {
    index++;
    const net = `10.7${site.number}.${index}`;
    const tunnel = `vx-${name}${suffix}`;
    const type = (near: number, far: number) =>
      `type vxlan id ${100 * (site.number + 1) + index} dstport 4789 local ${net}.${near} remote ${net}.${far}`;
    const wire = site.uplinkOf(name);
    await site.host.ip(
      `link set dev ${wire} nomaster`,
      `addr add ${net}.1/24 dev ${wire}`,
      `link add name ${tunnel} ${type(1, 2)} dev ${wire}`,
      `link set dev ${tunnel} master br${suffix}`,
      `link set dev ${tunnel} up`,
    );
    await namespace.ip(
      "link set dev in down",
      "link set dev in name under",
      "addr flush dev under",
      "link set dev under address 02:00:00:00:99:01",
      `addr add ${net}.2/24 dev under`,
      "link set dev under up",
      `link add name in address ${mac} ${type(2, 1)} dev under`,
      "link set dev in up",
      `addr add ${address[4]}/24 dev in`,
      `addr add ${address[6]}/64 dev in nodad`,
    );
    uplinks.push(tunnel);
  }
  return uplinks;
}

describe("two zones of tunnels with the same addresses within", () => {
  let second: Site;
  const PORT = 40_000;
  const ground = useSite({ vms: 1 }, async ({ lab, site, lasthop }) => {
    second = await buildSite(lab, { vms: 1, within: { host: site.host, number: 1 } });
    await lasthop.attachAll(await tunnelled(site), site.taps, { zone: 1 });
    await lasthop.attachAll(await tunnelled(second), second.taps, { zone: 2 });
  });

  it.each(FAMILIES)("IPv%i: the same five-tuple goes each its own way", async (family) => {
    const { site, lasthop } = ground;
    const sites = [site, second];
    expect(second.vm.address).toEqual(site.vm.address);
    expect(second.client.address).toEqual(site.client.address);
    for (const one of sites) await one.resetCounts();
    const key = `zone${family}`;
    const target = { key, host: site.vm.address[family], port: 7, localPort: PORT + family };
    await Promise.all(sites.map(({ client }) => client.agent.call("open", target)));
    await Promise.all(sites.map(({ client }) => client.agent.call("echo", { key, bytes: 50_000 })));

    const flows = (await lasthop.flows()).filter((flow) => flow.remote_port === PORT + family);
    expect(flows.map((flow) => [flow.zone, flow.last_hop?.interface]).sort()).toEqual([
      [1, "vx-a"],
      [2, "vx-a.1"],
    ]);
    for (const { client } of sites) await client.agent.call("close", { key });
    for (const { a, b } of sites) {
      const counts = await a.counts();
      expect(counts.packets("carried", { family, direction: "reply" })).toBeGreaterThan(3);
      expect(counts.packets("dropped")).toBe(0);
      const others = await b.counts();
      expect(others.packets("carried") + others.packets("dropped")).toBe(0);
    }
  });
});
