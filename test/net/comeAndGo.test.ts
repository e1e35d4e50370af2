// SPDX-License-Identifier: Apache-2.0
// Interfaces come and go while the daemon runs: taps that match are attached, an uplink that returns keeps its
// flows, and whatever happens often or all at once leaves nothing behind.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import {
  attachedOnce,
  cleanUpDaemons,
  Daemon,
  type DaemonOptions,
  programsOn,
  WHOLE_SITE,
} from "../support/daemon.ts";
import { FAMILIES, type Ground, useSite } from "../support/fixture.ts";
import { must, sleep, until } from "../support/run.ts";
import { replugTap } from "../support/topology.ts";

cleanUpDaemons();

let daemon: Daemon | undefined;
async function start(ground: Ground, config = WHOLE_SITE, options: DaemonOptions = {}): Promise<Daemon> {
  daemon = Daemon.launch(ground, config, options);
  await daemon.started();
  return daemon;
}
afterEach(async () => {
  await daemon?.stop();
  daemon = undefined;
});

const attached = async ({ lasthop }: Ground) =>
  (await lasthop.status()).interfaces.filter((one) => one.state === "ok").map((one) => one.interface);

async function openAll({ site }: Ground, name: string): Promise<void> {
  for (const family of FAMILIES) {
    const key = `${name}${family}`;
    await site.client.agent.call("open", { key, host: site.vm.address[family], port: 7 });
    await site.client.agent.call("echo", { key });
  }
}

async function closeAll({ site }: Ground, name: string): Promise<void> {
  for (const family of FAMILIES) await site.client.agent.call("close", { key: `${name}${family}` });
}

describe("a tap", () => {
  const ground = useSite({ vms: 1 });

  it("is attached when it appears, and its guest's flows go on though it has another index", async () => {
    const { site } = ground;
    await start(ground);
    await openAll(ground, "tap");
    for (let round = 0; round < 3; round++) {
      await replugTap(site, site.vm);
      await attachedOnce(ground, site.taps);
      expect(await site.client.agent.call("echoAll", { timeoutMs: 5000 })).toEqual({ alive: 2, errors: [] });
    }
    await site.resetCounts();
    expect(await site.client.agent.call("echoAll", {})).toEqual({ alive: 2, errors: [] });
    expect((await site.b.counts()).packets("dropped")).toBe(0);
    await closeAll(ground, "tap");
  });

  it("is attached under its new name when it is renamed into the configuration, and detached when out of it", async () => {
    const { site } = ground;
    await start(ground);
    await site.host.ip("link add odd index 900 type veth peer name odd-peer", "link set odd up");
    await sleep(200);
    expect(await attached(ground)).not.toContain("odd");
    await site.host.ip("link set odd name tap9");
    await until(async () => (await attached(ground)).includes("tap9"), "tap9");
    await site.host.ip("link set tap9 name odd");
    await until(async () => !(await attached(ground)).some((name) => /tap9|odd/.test(name)), "tap9 to go");
    expect(await programsOn(ground, ["odd"])).toEqual([[]]);
    await site.host.ip("link del odd");
  });

  it("that moves to another namespace is forgotten, and attached when it returns", async () => {
    const { site, lab } = ground;
    await start(ground);
    const elsewhere = lab.namespace("elsewhere");
    await must(["ip", "netns", "add", elsewhere.name]);
    await site.host.ip("link add tap8 up type veth peer name peer8", "link set peer8 up");
    await until(async () => (await attached(ground)).includes("tap8"), "tap8");
    await site.host.ip(`link set tap8 netns ${elsewhere.name}`);
    await until(async () => !(await attached(ground)).includes("tap8"), "tap8 to go");
    await elsewhere.ip(`link set tap8 netns ${site.host.name}`);
    await site.host.ip("link set tap8 up");
    await until(async () => (await attached(ground)).includes("tap8"), "tap8 again");
    await attachedOnce(ground, ["tap8"]);
    await site.host.ip("link del tap8");
  });

  it("given by its guest's MAC is attached when the bridge sees the guest there", async () => {
    const { site } = ground;
    const config = `uplinks: [{ name: 'up*' }]\ntaps: [{ guest_mac: '${site.vm.mac}' }]\n`;
    await site.host.ip(`link set dev ${site.vm.tap} type bridge_slave learning on`);
    await site.host.must(["bridge", "fdb", "del", site.vm.mac, "dev", site.vm.tap, "master"]);
    await start(ground, config);
    await openAll(ground, "guest");
    await attachedOnce(ground, site.taps);
    await closeAll(ground, "guest");
  });
});

describe("a tap that is given by its libvirt domain", () => {
  const ground = useSite({ vms: 1 });

  it("is attached though libvirt writes whose it is only afterwards", async () => {
    const { site } = ground;
    const directory = mkdtempSync(join(tmpdir(), "lasthop-libvirt-"));
    try {
      const config = "uplinks: [{ name: 'up*' }]\ntaps: [{ domain: web }]\n";
      await start(ground, config, { prefix: ["env", `LASTHOP_LIBVIRT=${directory}`] });
      await site.host.ip("link add vnet3 up type veth peer name peer3", "link set peer3 up");
      // libvirt takes about so long.
      await sleep(300);
      expect(await programsOn(ground, ["vnet3"])).toEqual([[]]);
      const status = (name: string, target: string) =>
        `<domstatus state='running'><domain type='kvm'><name>${name}</name><devices><interface type='bridge'>
          <mac address='52:54:00:00:00:03'/><target dev='${target}'/></interface></devices></domain></domstatus>`;
      writeFileSync(join(directory, "other.xml"), status("other", site.vm.tap));
      writeFileSync(join(directory, "web.xml"), status("web", "vnet3"));
      await attachedOnce(ground, ["vnet3"]);
      expect(await programsOn(ground, site.taps)).toEqual([[]]);
      await site.host.ip("link del vnet3");
    } finally {
      rmSync(directory, { recursive: true });
    }
  });
});

describe.each(["bridged", "routed"] as const)("an uplink of a %s host", (host) => {
  const ground = useSite({ host, vms: 1 });

  it("that is deleted and made again keeps its last hops and flows, under another index", async () => {
    const { site, lasthop } = ground;
    await start(ground);
    await openAll(ground, "uplink");
    const before = (await lasthop.flows()).map((flow) => flow.remote_port).sort();
    const { a } = site;
    const mac = site.uplinkMac("a");
    const addresses = JSON.parse(await site.host.must(["ip", "-j", "addr", "show", "dev", "up-a"])) as [
      { addr_info: { local: string; prefixlen: number; scope: string }[] },
    ];
    const inner = JSON.parse(
      await a.namespace.must(["ip", "-j", "addr", "show", "dev", "in"]),
    ) as typeof addresses;
    await site.host.ip("link del up-a");
    await daemon?.logs(/up-a is gone/);
    // The firewall's end went with it.
    await must([
      ...["ip", "link", "add", "name", "up-a", "index", "950", "address", mac, "netns", site.host.name],
      ...["type", "veth", "peer", "name", "in", "address", a.mac, "netns", a.namespace.name],
    ]);
    const give = (device: string, info: (typeof addresses)[0]["addr_info"]) =>
      info
        .filter(({ scope }) => scope === "global")
        .map(
          ({ local, prefixlen }) =>
            `addr add ${local}/${prefixlen} dev ${device}${local.includes(":") ? " nodad" : ""}`,
        );
    await a.namespace.ip(...give("in", inner[0].addr_info), "link set in up");
    await site.host.ip(
      ...(host === "bridged" ? ["link set up-a master br"] : give("up-a", addresses[0].addr_info)),
      "link set up-a up",
    );
    if (host === "routed") {
      const routes = FAMILIES.map((family) => {
        const gateway = inner[0].addr_info.find((one) => one.local.includes(":") === (family === 6));
        const via = addresses[0].addr_info.find(
          (one) => one.scope === "global" && one.local.includes(":") === (family === 6),
        )?.local;
        return gateway && via
          ? `route replace ${family === 4 ? "203.0.113.0/24" : "2001:db8:113::/64"} via ${via}`
          : "";
      }).filter(Boolean);
      await a.namespace.ip(...routes);
    }
    await attachedOnce(ground, ["up-a"]);
    // It may have been attached a moment before it was up.
    await until(
      async () => (await lasthop.lastHops()).every(({ state }) => state === "up" || state === "alias"),
      "replies to go there again",
    );
    await site.resetCounts();
    expect(await site.client.agent.call("echoAll", { timeoutMs: 5000 })).toEqual({ alive: 2, errors: [] });
    expect((await lasthop.flows()).map((flow) => flow.remote_port).sort()).toEqual(
      expect.arrayContaining(before),
    );
    expect((await site.b.counts()).packets("dropped")).toBe(0);
    await closeAll(ground, "uplink");
  });

  it("that gets another MAC or MTU goes on", async () => {
    const { site, lasthop } = ground;
    await start(ground);
    await openAll(ground, "mac");
    await site.host.ip("link set up-a mtu 1400");
    await site.host.ip("link set up-a address 02:00:00:00:0a:99");
    await sleep(300);
    await site.a.namespace.ip("neigh flush dev in");
    await site.resetCounts();
    expect(await site.client.agent.call("echoAll", { timeoutMs: 5000 })).toEqual({ alive: 2, errors: [] });
    expect((await site.b.counts()).packets("dropped")).toBe(0);
    expect((await lasthop.status()).interfaces.every((one) => one.state === "ok")).toBe(true);
    await closeAll(ground, "mac");
  });
});

describe("a storm of events", () => {
  const ground = useSite({ vms: 1 });

  it("costs a few looks, and what came in it is attached", async () => {
    const { site } = ground;
    const running = await start(ground);
    const before = await running.metric("lasthop_reconciles_total");
    const changes = Array.from({ length: 1000 }, (_, at) => `link set storm mtu ${1000 + at}`);
    await site.host.ip(
      "link add storm mtu 900 type veth peer name storm-peer",
      ...changes,
      "link add tap7 up type veth peer name peer7",
      "link set peer7 up",
    );
    await attachedOnce(ground, ["tap7"]);
    expect((await running.metric("lasthop_reconciles_total")) - before).toBeLessThan(40);
    await site.host.ip("link del tap7", "link del storm");
  });

  it("that there is no room for is made good by a look at everything", async () => {
    const { site } = ground;
    const running = await start(ground);
    running.signal("SIGSTOP");
    const neighbours = (verb: string) =>
      Array.from(
        { length: 10_000 },
        (_, at) =>
          `neigh ${verb} 10.99.${at >> 8}.${at & 255} lladdr 02:00:00:00:99:01 dev up-a nud permanent`,
      );
    await site.host.ip(...neighbours("add"), ...neighbours("del"));
    await site.host.ip("link add tap6 type veth peer name peer6");
    running.signal("SIGCONT");
    await attachedOnce(ground, ["tap6"]);
    await running.logs(/the kernel had more events than there was room for/);
    expect(await running.metric("lasthop_netlink_overruns_total")).toBeGreaterThan(0);
    await site.host.ip("link del tap6");
  });
});

/** A pass or a look at everything has descriptors of its own for a moment: the fewest of two seconds. */
async function quietly(running: Daemon): Promise<Map<string, number>> {
  const fewest = running.descriptors();
  for (let sample = 0; sample < 20; sample++) {
    await sleep(100);
    const now = running.descriptors();
    for (const [kind, count] of fewest) fewest.set(kind, Math.min(count, now.get(kind) ?? 0));
  }
  return fewest;
}

describe("a tap that comes and goes a thousand times", () => {
  const ground = useSite({ vms: 1 });
  const CYCLES = 1000;
  const WARM_UP = 200;

  it("leaves no descriptor, link, program, entry or memory", { timeout: 240_000 }, async () => {
    const { site, lasthop } = ground;
    const running = await start(ground);
    const tables = async () => {
      const { tables, programs, interfaces } = await lasthop.status();
      return {
        programs: programs.map(({ id }) => id),
        interfaces: interfaces.map((one) => one.interface),
        fill: tables.filter((one) => /interfaces|last_hops|vms|egress/.test(one.table)),
        links: (await must(["sh", "-c", `ls ${ground.lab.pinRoot}/v*/links`])).split("\n"),
      };
    };
    let cycles = 0;
    const cycle = async (count: number): Promise<void> => {
      for (let round = 0; round < count; round += 10) {
        for (let at = 0; at < 10; at++) {
          const name = `tapc${at}`;
          await site.host.ip(`link add ${name} type veth peer name p-${name}`, `link set ${name} up`);
          // Some are attached by then, some are gone before.
          if (at % 2 === 0) await sleep(at === 0 ? 100 : 20);
          await site.host.ip(`link del ${name}`);
          cycles++;
        }
      }
      await until(async () => (await attached(ground)).length === 3, "the taps to be gone");
      // Descriptors of links that went are let go when the pins are looked at next.
      await sleep(2500);
    };
    await cycle(WARM_UP);
    const before = { descriptors: await quietly(running), rssBytes: running.rssBytes, ...(await tables()) };
    await cycle(CYCLES - WARM_UP);
    expect(cycles).toBe(CYCLES);
    expect(await tables()).toEqual({
      programs: before.programs,
      interfaces: before.interfaces,
      fill: before.fill,
      links: before.links,
    });
    const kinds = ["anon_inode:bpf-map", "anon_inode:bpf-prog", "anon_inode:bpf-link", "anon_inode:bpf_link"];
    const most = (kind: string) => before.descriptors.get(kind) ?? 0;
    await until(
      () => {
        const now = running.descriptors();
        return kinds.every((kind) => (now.get(kind) ?? 0) <= most(kind));
      },
      `no more descriptors than ${JSON.stringify(kinds.map((kind) => [kind, most(kind)]))}`,
      20_000,
    );
    await until(
      () => (running.descriptors().get("socket:") ?? 0) <= most("socket:") + 2,
      "no more sockets than before",
    );
    expect(running.rssBytes - before.rssBytes).toBeLessThan(64 * 1024 * 1024);
    expect(await running.metric("lasthop_reconcile_actions_total", 'kind="attach"')).toBeGreaterThan(
      CYCLES / 20,
    );
  });
});
