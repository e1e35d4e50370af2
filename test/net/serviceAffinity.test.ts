// SPDX-License-Identifier: Apache-2.0
// Flows stay with their VM whatever becomes of the pool, the programs and the daemon, until the VM is down; then they
// do what the service says.

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { TICK_SHIFT } from "../../src/abi/layout.gen.ts";
import { FAMILIES, type Family } from "../support/addresses.ts";
import { type Build, otherLayout, otherObject } from "../support/builds.ts";
import { cleanUpDaemons, Daemon } from "../support/daemon.ts";
import { Lasthop } from "../support/lasthop.ts";
import { sleep, until } from "../support/run.ts";
import {
  apply,
  askAnew,
  askByUdp,
  bothFamilies,
  MORE_CLIENTS,
  PORT,
  SERVICE,
  type ServiceConfigOptions,
  type ServiceGround,
  serveOn,
  serviceConfig,
  showVm,
  tally,
  useServiceSite,
} from "../support/serviceSite.ts";
import { replugTap } from "../support/topology.ts";

cleanUpDaemons();

const ALL = [{ vm: "vm1" }, { vm: "vm2" }, { vm: "vm3" }];
const IN_TURN = { policy: "round-robin" };
const TICK_MS = 2 ** TICK_SHIFT / 1e6;

/** Each flow of datagrams is a new one. */
let nextPort = 20_000;

/** Connections and datagrams of the client's that go on. */
class Held {
  readonly #ground: ServiceGround;
  /** Which VM each began with. */
  readonly tcp = new Map<string, string>();
  readonly udp = new Map<number, { family: Family; vm: string }>();
  readonly #port: number;

  private constructor(ground: ServiceGround, port: number) {
    this.#ground = ground;
    this.#port = port;
  }

  static async open(ground: ServiceGround, each = 6, port = PORT): Promise<Held> {
    const held = new Held(ground, port);
    const { agent } = ground.site.client;
    for (const family of FAMILIES) {
      for (let count = 0; count < each; count++) {
        const key = `held${port}-${family}-${count}`;
        await agent.call("openAsking", { key, host: SERVICE[family], port });
        held.tcp.set(key, await agent.call("ask", { key }));
        const localPort = nextPort++;
        const [vm] = await askByUdp(ground, family, ["first", "second"], { localPort, port });
        held.udp.set(localPort, { family, vm: vm! });
      }
    }
    return held;
  }

  /** Who answers now. */
  async ask(): Promise<{ tcp: Map<string, string>; udp: Map<number, { family: Family; vm: string }> }> {
    const { agent } = this.#ground.site.client;
    const tcp = new Map<string, string>();
    const udp: typeof this.udp = new Map();
    for (const key of this.tcp.keys()) tcp.set(key, await agent.call("ask", { key }));
    for (const [localPort, { family }] of this.udp) {
      const [vm] = await askByUdp(this.#ground, family, ["again"], { localPort, port: this.#port });
      udp.set(localPort, { family, vm: vm! });
    }
    return { tcp, udp };
  }

  async expectSame(): Promise<void> {
    expect(await this.ask()).toEqual({ tcp: this.tcp, udp: this.udp });
  }

  keysOf(vm: string): string[] {
    return [...this.tcp].filter(([, name]) => name === vm).map(([key]) => key);
  }

  async close(): Promise<void> {
    for (const key of this.tcp.keys()) await this.#ground.site.client.agent.call("endAsking", { key });
  }
}

describe.each(["bridged", "routed"] as const)("on a %s host, without a daemon, live flows stay", (host) => {
  const ground = useServiceSite({ host }, (made) => apply(made, { service: IN_TURN }));

  const news = async () => {
    const names = await Promise.all(FAMILIES.map((family) => askAnew(ground, family, 6)));
    return tally(names.flat());
  };

  it("while VMs are drained, change their weights, leave and come back, and while services go", async () => {
    const { lasthop } = ground;
    const held = await Held.open(ground);
    expect(tally([...held.tcp.values()])).toEqual({ vm1: 4, vm2: 4, vm3: 4 });

    await lasthop.must("vms", "drain", "vm1");
    await held.expectSame();
    expect(await news()).toEqual({ vm2: 6, vm3: 6 });
    await lasthop.must("vms", "up", "vm1");

    const pool = [{ vm: "vm1", weight: 2 }, { vm: "vm3" }];
    await apply(ground, { service: { ...IN_TURN, pool } });
    await held.expectSame();
    expect(await news()).toEqual({ vm1: 8, vm3: 4 });

    // The VM itself is gone, as far as the operator is concerned.
    await apply(ground, { service: { policy: "maglev" }, vms: { vm2: null } });
    await held.expectSame();
    expect((await news()).vm2).toBeUndefined();

    await apply(ground, { service: IN_TURN });
    await held.expectSame();
    expect(await news()).toEqual({ vm1: 4, vm2: 4, vm3: 4 });

    await apply(ground, { services: [] });
    await held.expectSame();
    const asked = { key: "none", host: SERVICE[4], port: PORT, timeoutMs: 300 };
    expect(await ground.site.client.agent.failure("openAsking", asked)).toMatch(/^(timeout|EHOSTUNREACH)$/);

    await apply(ground, { service: IN_TURN });
    await held.expectSame();
    await held.close();
    await ground.lasthop.must("sweep");
    for (const { name } of ground.site.vms) expect((await showVm(ground, name)).flows).toBeLessThan(20);
  });

  it.each(["round-robin", "maglev", "source-hash", "least-flows"])(
    "until their VM's tap is deleted: new ones go elsewhere at once, by %s, and so do datagrams",
    async (policy) => {
      const { site } = ground;
      const vm = site.vms[1]!;
      await apply(ground, { service: { policy, pool: [{ vm: "vm1" }, { vm: "vm2", weight: 2 }] } });
      const held = await Held.open(ground);
      expect(tally([...held.tcp.values()])).toMatchObject({ vm2: expect.any(Number) });
      await site.host.ip(`link del dev ${vm.tap}`);
      // The programs ask once a tick whether it is there.
      await sleep(2 * TICK_MS);
      for (const family of FAMILIES) {
        for (const localAddress of MORE_CLIENTS[family].slice(0, 4)) {
          expect(tally(await askAnew(ground, family, 4, { localAddress, timeoutMs: 800 }))).toEqual({
            vm1: 4,
          });
        }
      }
      for (const [localPort, { family }] of held.udp) {
        expect(await askByUdp(ground, family, ["again"], { localPort })).toEqual(["vm1"]);
      }
      const { agent } = site.client;
      for (const [key, name] of held.tcp) {
        if (name === "vm2") expect(await agent.failure("ask", { key })).toBe("ECONNRESET");
        else expect(await agent.call("ask", { key })).toBe(name);
      }
      // Started again, it is found by whoever looks next.
      await replugTap(site, vm, { unplugged: true });
      await apply(ground, { service: IN_TURN });
      expect(tally(await askAnew(ground, 4, 6))).toEqual({ vm1: 2, vm2: 2, vm3: 2 });
      for (const key of held.keysOf("vm1")) await agent.call("endAsking", { key });
    },
  );
});

describe.each(["bridged", "routed"] as const)("on a %s host, when a VM is set down", (host) => {
  const PORTS = { rebalance: 1001, reset: 1002, hold: 1003 };
  const services = () =>
    Object.entries(PORTS).flatMap(([on_vm_down, port]) =>
      (["tcp", "udp"] as const).flatMap((protocol) =>
        bothFamilies({
          name: `${on_vm_down}-${protocol}-`,
          protocol,
          port,
          on_vm_down,
          ...IN_TURN,
          pool: ALL,
        }),
      ),
    );
  const ground = useServiceSite({ host }, async (made) => {
    await Promise.all(Object.values(PORTS).map((port) => serveOn(made, port)));
    await apply(made, { services: services() });
  });

  /** New flows go to the other two. */
  async function expectElsewhere(port: number): Promise<void> {
    const names = await Promise.all(FAMILIES.map((family) => askAnew(ground, family, 4, { port })));
    expect(tally(names.flat())).toEqual({ vm1: 4, vm3: 4 });
  }

  it.each(["rebalance", "reset"] as const)("its flows %s", async (what) => {
    const { site, lasthop } = ground;
    const { agent } = site.client;
    const port = PORTS[what];
    const held = await Held.open(ground, 3, port);
    const keys = held.keysOf("vm2");
    expect(keys).toHaveLength(2);
    const resets = await lasthop.packets("vm_reset");
    const before = await showVm(ground, "vm2");
    await lasthop.must("vms", "down", "vm2");
    // By the VM that has it now, or by the host itself.
    for (const key of keys) expect(await agent.failure("ask", { key })).toBe("ECONNRESET");
    expect((await lasthop.packets("vm_reset")) - resets).toBe(what === "reset" ? 2 : 0);
    for (const [key, vm] of held.tcp) if (vm !== "vm2") expect(await agent.call("ask", { key })).toBe(vm);
    for (const [localPort, { family, vm }] of held.udp) {
      const again = () => askByUdp(ground, family, ["on"], { localPort, port });
      const [now] = await again();
      if (vm === "vm2") expect(["vm1", "vm3"]).toContain(now);
      else expect(now).toBe(vm);
      // And there it stays.
      expect(await again()).toEqual([now]);
    }
    await expectElsewhere(port);
    // Nothing reached it.
    expect((await showVm(ground, "vm2")).request_packets).toBe(before.request_packets);
    await lasthop.must("vms", "up", "vm2");
    expect(tally(await askAnew(ground, 4, 6, { port }))).toEqual({ vm1: 2, vm2: 2, vm3: 2 });
  });

  it("its flows hold: as long as it has a tap they go on, and then they wait for one", async () => {
    const { site, lasthop } = ground;
    const { agent } = site.client;
    const port = PORTS.hold;
    const held = await Held.open(ground, 3, port);
    const keys = held.keysOf("vm2");
    await lasthop.must("vms", "down", "vm2");
    await held.expectSame();
    await expectElsewhere(port);

    const before = await lasthop.packets("vm_held");
    await site.host.ip(`link del dev ${site.vms[1]!.tap}`);
    await sleep(2 * TICK_MS);
    for (const key of keys) expect(await agent.failure("ask", { key, timeoutMs: 500 })).toBe("timeout");
    for (const [localPort, { family, vm }] of held.udp) {
      const asked = { host: SERVICE[family], localPort, port, texts: ["on"], timeoutMs: 300 };
      if (vm === "vm2") expect(await agent.failure("askByUdp", asked)).toBe("timeout");
    }
    expect(await lasthop.packets("vm_held")).toBeGreaterThan(before);
    for (const [key, vm] of held.tcp) if (vm !== "vm2") expect(await agent.call("ask", { key })).toBe(vm);

    await replugTap(site, site.vms[1]!, { unplugged: true });
    await apply(ground, { services: services() });
    await lasthop.must("vms", "up", "vm2");
    for (const key of keys) {
      expect(await agent.call("ask", { key, text: null, timeoutMs: 10_000 })).toBe("vm2");
    }
    await held.expectSame();
    await held.close();
  });
});

interface Busy {
  /** What a firewall may have dropped. */
  stop(mayStray?: number): Promise<{ connections: number; answers: Record<string, number> }>;
  connections(): Promise<number>;
}

/** Short connections of both families all the while. Ends with nobody having been reset, or fails. */
async function busy({ site }: ServiceGround, parallel = 8): Promise<Busy> {
  const { agent } = site.client;
  const key = "busy";
  const hosts = FAMILIES.map((family) => SERVICE[family]);
  // Who asks after it is over is told by a reset as well: that breaks nothing.
  const resets = async () => {
    const namespaces = [site.client.namespace, ...site.vms.map(({ namespace }) => namespace)];
    const counts = await Promise.all(
      namespaces.map(async (namespace) => {
        const snmp = await namespace.must(["cat", "/proc/self/net/snmp"]);
        const [names, values] = snmp
          .split("\n")
          .filter((line) => line.startsWith("Tcp:"))
          .map((l) => l.split(" "));
        return (
          Number(values![names!.indexOf("EstabResets")]) + Number(values![names!.indexOf("AttemptFails")])
        );
      }),
    );
    return counts.reduce((sum, count) => sum + count, 0);
  };
  const before = await resets();
  await agent.call("startChurn", { key, hosts, port: PORT, parallel });
  return {
    connections: async () => {
      const { connections, errors } = await agent.call("churn", { key });
      if (errors.length > 0) throw new Error(`connections failed: ${errors}`);
      return connections;
    },
    async stop(mayStray = 0) {
      const report = await agent.call("stopChurn", { key });
      expect(report.errors).toEqual([]);
      expect((await resets()) - before).toBe(0);
      const [a, b] = await Promise.all([site.a.counts(), site.b.counts()]);
      const dropped = [a, b].map((counts) => counts.packets("dropped", { protocol: "tcp" }));
      expect(Math.max(...dropped)).toBeLessThanOrEqual(mayStray);
      return report;
    },
  };
}

describe("ten thousand connections", () => {
  const WANTED = 10_000;
  const ground = useServiceSite({});

  const config = (options: ServiceConfigOptions) => serviceConfig(ground, { service: IN_TURN, ...options });

  it("are not broken by VMs that come, go, drain and change their weights, by daemon, apply and commands", async () => {
    const { lasthop, site } = ground;
    const daemon = await Daemon.start(ground, config({}));
    const load = await busy(ground);
    const two = [{ vm: "vm1" }, { vm: "vm3", weight: 3 }];
    let rounds = 0;
    for (; rounds < 2 || (await load.connections()) < WANTED / 2; rounds++) {
      await daemon.reload(config({ service: { ...IN_TURN, pool: two } }));
      await lasthop.must("vms", "drain", "vm1");
      await daemon.reload(config({ vms: { vm2: null } }));
      await daemon.reload(config({ service: { policy: "maglev" } }));
      await lasthop.must("vms", "up", "vm1");
      await lasthop.must("vms", "drain", "vm3");
      await daemon.reload(config({ service: { policy: "least-flows" } }));
      await lasthop.must("vms", "up", "vm3");
    }
    await daemon.stop();
    const byApply = [
      { service: { ...IN_TURN, pool: two } },
      { vms: { vm3: null } },
      { service: { policy: "source-hash" } },
      {},
    ];
    for (let more = 0; more < 2 || (await load.connections()) < WANTED; more++) {
      for (const options of byApply) {
        await apply(ground, { service: IN_TURN, ...options });
        const vm = site.vms[more % 3]!.name;
        if (options.vms === undefined) {
          await lasthop.must("vms", "drain", vm);
          await lasthop.must("vms", "up", vm);
        }
      }
    }
    const { connections, answers } = await load.stop();
    expect(connections).toBeGreaterThanOrEqual(WANTED);
    for (const { name } of site.vms) expect(answers[name]).toBeGreaterThan(WANTED / 20);
  }, 180_000);
});

describe.each(["bridged", "routed"] as const)("on a %s host, flows of services outlive", (host) => {
  const ground = useServiceSite({ host }, (made) => apply(made, { service: IN_TURN }));
  let next: Build;
  let old: Build | undefined;

  beforeAll(async () => {
    next = await otherObject("9.9.1", "quote_skb", "quoted_skb");
  }, 120_000);
  afterAll(() => {
    next?.remove();
    old?.remove();
  });

  /** New connections all the while, and those that were there before are with their VMs afterwards. */
  async function outlived(change: () => Promise<unknown>, mayStray = 0): Promise<void> {
    await ground.site.resetCounts();
    const held = await Held.open(ground, 4);
    const load = await busy(ground, 4);
    const begun = await load.connections();
    await change();
    await until(async () => (await load.connections()) > begun + 100, "a hundred connections more");
    await load.stop(mayStray);
    await held.expectSame();
    await held.close();
  }

  it("an exchange of the programs, and back", async () => {
    const newer = await Lasthop.on(ground.lab, ground.site.host, next.program);
    await outlived(() => newer.must("upgrade"));
    await outlived(() => ground.lasthop.must("upgrade"));
  });

  it("other sizes of the tables", async () => {
    await outlived(async () => {
      for (const [table, entries] of Object.entries({
        flows4: 262_144,
        flows6: 2_097_152,
        embryos4: 131_072,
      })) {
        await ground.lasthop.must("tables", "resize", table, String(entries));
      }
    });
  });

  it("the daemon's start, its end, its violent end, and its next start", async () => {
    const config = serviceConfig(ground, { service: IN_TURN });
    await outlived(async () => {
      const first = await Daemon.start(ground, config);
      await first.stop();
      const second = await Daemon.start(ground, config);
      await second.kill();
      await sleep(200);
      const third = await Daemon.start(ground, config);
      await third.stop();
    });
  });

  it("a version whose tables lie otherwise", async () => {
    const { lasthop, site, lab } = ground;
    await lasthop.detachAll();
    old = await otherLayout("0.0.9", (header) =>
      header
        .replace("struct flow {\n", "struct flow {\n\t__u32 formerly;\n")
        .replace("ASSERT_BYTES(struct flow, 16)", "ASSERT_BYTES(struct flow, 20)")
        .replace("ASSERT_BYTES(struct embryo, 24)", "ASSERT_BYTES(struct embryo, 28)")
        .replace("struct vm_cell {\n", "struct vm_cell {\n\t__u32 formerly;\n")
        .replace("ASSERT_BYTES(struct vm_cell, 24)", "ASSERT_BYTES(struct vm_cell, 28)")
        .replace("struct service_spec {\n", "struct service_spec {\n\t__u32 formerly;\n")
        .replace("ASSERT_BYTES(struct service_spec, 16 +", "ASSERT_BYTES(struct service_spec, 20 +"),
    );
    const former = await Lasthop.on(lab, site.host, old.program);
    ground.configured.write(serviceConfig(ground, { service: IN_TURN }));
    await former.must("apply", "-c", ground.configured.file);
    const version = (await former.status()).abi;
    // What is learned while interfaces are switched waits until it has been copied: its replies pass.
    await outlived(() => lasthop.must("upgrade"), 20);
    expect((await lasthop.status()).abi).not.toBe(version);
    expect(tally(await askAnew(ground, 4, 6))).toEqual({ vm1: 2, vm2: 2, vm3: 2 });
  }, 180_000);
});
