// SPDX-License-Identifier: Apache-2.0
// Interfaces that go and come back, under traffic and without a daemon: by hand, and by `apply`.

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { LastHopEntry } from "../../src/ops/types.ts";
import { prefixLength, transfer, VM_PREFIX } from "../support/addresses.ts";
import { Capture } from "../support/capture.ts";
import { Configured, told } from "../support/configured.ts";
import { attachAll, FAMILIES, type Ground, useSite } from "../support/fixture.ts";
import { TC_HOOK } from "../support/kernel.ts";
import { repositoryPath } from "../support/paths.ts";
import { must } from "../support/run.ts";
import { replugTap, replugUplink } from "../support/topology.ts";

const CONFIG = "{uplinks: [{name: 'up-*'}], taps: [{name: 'tap*'}]}";

async function openAll({ site }: Ground, name: string): Promise<void> {
  for (const family of FAMILIES) {
    const key = `${name}${family}`;
    await site.client.agent.call("open", { key, host: site.vm.address[family], port: 7 });
    await site.client.agent.call("echo", { key });
  }
}

async function closeAll({ site }: Ground, name: string): Promise<void> {
  for (const family of FAMILIES)
    await site.client.agent.call("close", { key: `${name}${family}`, reset: true });
}

/** Every connection answers, by way of a. */
async function expectAlive({ site }: Ground): Promise<void> {
  await site.resetCounts();
  const { errors } = await site.client.agent.call("echoAll", { timeoutMs: 5000 });
  expect(errors).toEqual([]);
  expect((await site.b.counts()).packets("dropped")).toBe(0);
}

async function ofUplink({ lasthop, site }: Ground, name: string): Promise<LastHopEntry[]> {
  const mac = site.firewall(name).mac;
  return (await lasthop.lastHops()).filter((entry) => entry.mac === mac);
}

function useConfigured(ground: Ground): { readonly now: Configured } {
  let configured: Configured | undefined;
  beforeAll(() => {
    configured = new Configured(ground.lasthop);
  });
  afterAll(() => configured?.close());
  return {
    get now() {
      return configured!;
    },
  };
}

describe.each(["bridged", "routed"] as const)("a %s host", (host) => {
  describe("attached by hand", () => {
    const ground = useSite({ host, vms: 1 }, attachAll);

    it("keeps the flows of an uplink that was deleted and made again", async () => {
      const { site, lasthop } = ground;
      await openAll(ground, "hand");
      const flows = await lasthop.flows("--state", "established");
      expect(flows).toHaveLength(2);
      const [before] = await ofUplink(ground, "a");
      await replugUplink(site, "a");
      const { actions, ifindex } = await lasthop.attach("up-a", "uplink");
      expect(ifindex).not.toBe(before!.ifindex);
      expect(actions).toEqual([
        "up-a is gone: kept until it returns",
        "up-a: 1 last hop taken over, with all flows",
        expect.stringContaining(`up-a: attached by ${TC_HOOK}`),
      ]);
      // Those of before, not ones that were picked up since.
      const after = await lasthop.flows("--state", "established");
      expect(after.map(({ remote_port, flags }) => [remote_port, flags]).sort()).toEqual(
        flows.map(({ remote_port }) => [remote_port, []]).sort(),
      );
      for (const flow of after) expect(flow.last_hop).toMatchObject({ mac: site.a.mac, interface: "up-a" });
      await expectAlive(ground);
      await closeAll(ground, "hand");
    });

    it("keeps its place while it is gone, whatever else is done, until it is detached", async () => {
      const { site, lasthop } = ground;
      const state = async () =>
        (await lasthop.status()).interfaces.find((item) => item.interface === "up-a")?.state;
      await openAll(ground, "place");
      await site.host.ip("link del up-a");
      await lasthop.attach("tap1", "tap", { policy: "observe" });
      expect(await state()).toBe("interface_gone");
      const lastHops = await ofUplink(ground, "a");
      expect(lastHops.map((entry) => entry.state)).not.toContain("up");
      expect(await lasthop.must("detach", "up-a")).toBe("up-a: detached\n");
      expect(await state()).toBeUndefined();
      expect((await lasthop.attach("tap1", "tap", { policy: "enforce" })).actions).toHaveLength(1);
    });
  });

  describe("by its configuration", () => {
    const ground = useSite({ host, vms: 1 });
    const configured = useConfigured(ground);

    it("keeps the flows of an uplink that was deleted and made again, also when apply ran in between", async () => {
      const { site, lasthop } = ground;
      expect((await configured.now.apply(CONFIG)).failed).toEqual([]);
      await openAll(ground, "config");
      for (const between of [false, true]) {
        const [before] = await ofUplink(ground, "a");
        if (between) {
          // Elsewhere it is as good as deleted.
          const elsewhere = site.lab.namespace("elsewhere");
          await must(["ip", "netns", "add", elsewhere.name]);
          await site.host.ip(`link set up-a netns ${elsewhere.name}`);
          expect(told(await configured.now.apply(CONFIG))).toEqual(["gone up-a"]);
          expect(await configured.now.plan(CONFIG)).toMatchObject({ status: 0, actions: [] });
          expect(await lasthop.status()).toMatchObject({
            interfaces: expect.arrayContaining([
              expect.objectContaining({ interface: "up-a", state: "interface_gone" }),
            ]),
          });
          const gone = await ofUplink(ground, "a");
          expect(gone.map(({ state }) => state).filter((state) => state === "up")).toEqual([]);
          await elsewhere.ip(`link set up-a netns ${site.host.name}`);
        }
        await replugUplink(site, "a");
        expect(told(await configured.now.apply(CONFIG))).toEqual(
          between ? ["attach up-a"] : ["gone up-a", "attach up-a"],
        );
        const flows = await lasthop.flows("--state", "established");
        expect(flows.map(({ flags }) => flags)).toEqual([[], []]);
        for (const flow of flows) {
          expect(flow.last_hop).toMatchObject({ interface: "up-a", mac: site.a.mac });
        }
        const now = await lasthop.status();
        const entry = now.interfaces.filter((item) => item.interface === "up-a");
        expect(entry).toHaveLength(1);
        expect(entry[0]).toMatchObject({ state: "ok" });
        expect(entry[0]!.ifindex).not.toBe(before!.ifindex);
        await expectAlive(ground);
        expect(await configured.now.plan(CONFIG)).toMatchObject({ status: 0, actions: [] });
      }
      await closeAll(ground, "config");
    });

    it("knows a guest again whose tap has another index", async () => {
      const { site } = ground;
      await configured.now.apply(CONFIG);
      await openAll(ground, "tap");
      await replugTap(site, site.vm);
      expect(told(await configured.now.apply(CONFIG))).toEqual(["gone tap1", "attach tap1"]);
      await expectAlive(ground);
      await closeAll(ground, "tap");
    });

    it("lets replies go the VM's own way while an uplink is down, and back when it is up", async () => {
      const { site, lasthop } = ground;
      await configured.now.apply(CONFIG);
      const reconciled = () => reconcileAsDaemon(ground);
      await openAll(ground, "down");
      // As when its cable is pulled: the interface itself stays up.
      for (const [device, namespace] of [
        ["up-a", site.host],
        ["in", site.a.namespace],
      ] as const) {
        await namespace.ip(`link set ${device} down`);
        // Without a daemon nobody would see it come up.
        expect(await configured.now.plan(CONFIG)).toMatchObject({ status: 0 });
        expect(await reconciled()).toEqual(["up-a is down: replies of its flows take the VMs' own routes"]);
        expect(await reconciled()).toEqual([]);
        const [entry] = (await ofUplink(ground, "a")).filter(({ flows }) => flows > 0);
        expect(entry).toMatchObject({ state: "route" });
        const tuple = await lasthop.flows("--state", "established");
        expect(tuple).toHaveLength(2);
        await namespace.ip(`link set ${device} up`);
        await restore(ground, namespace === site.host);
        expect(await reconciled()).toEqual(["up-a is up: replies go there again"]);
        await expectAlive(ground);
      }
      await closeAll(ground, "down");
    });

    it("sends from the host's new MAC when that has changed", async () => {
      const { site } = ground;
      await configured.now.apply(CONFIG);
      await openAll(ground, "mac");
      const mac = "02:00:00:00:0a:77";
      await site.host.ip(`link set up-a address ${mac}`);
      expect(told(await configured.now.apply(CONFIG))).toEqual(["change up-a"]);
      await site.a.namespace.must(["ip", "neigh", "flush", "dev", "in"]);
      const capture = await Capture.start(site.a.namespace, "in", {
        filter: "tcp src port 7",
        direction: "in",
      });
      await expectAlive(ground);
      const packets = await capture.stop();
      expect(packets.length).toBeGreaterThan(0);
      const sources = new Set(packets.map((packet) => packet.source_mac));
      expect([...sources]).toEqual([host === "routed" ? mac : site.vm.mac]);
      expect(await configured.now.plan(CONFIG)).toMatchObject({ status: 0, actions: [] });
      await closeAll(ground, "mac");
    });

    it("follows names: detached when they match no longer, attached when they do", async () => {
      const { site, lasthop } = ground;
      await site.host.ip(
        "link add tap7 type veth peer name p-tap7",
        "link set tap7 up",
        "link set p-tap7 up",
      );
      await configured.now.apply(CONFIG);
      await site.host.ip("link set tap7 down", "link set tap7 name tap8", "link set tap8 up");
      expect(told(await configured.now.apply(CONFIG))).toEqual(["change tap8"]);
      await site.host.ip("link set tap8 down", "link set tap8 name odd", "link set odd up");
      expect(told(await configured.now.apply(CONFIG))).toEqual(["detach odd"]);
      await site.host.ip("link set odd down", "link set odd name tap7", "link set tap7 up");
      expect(told(await configured.now.apply(CONFIG))).toEqual(["attach tap7"]);
      // By hand the name is only a name.
      await lasthop.attach("p-tap7", "tap");
      await site.host.ip("link set p-tap7 down", "link set p-tap7 name byhand", "link set byhand up");
      expect(told(await configured.now.apply(CONFIG))).toEqual(["change byhand"]);
      expect((await lasthop.status()).interfaces.map((item) => item.interface)).toContain("byhand");
      await lasthop.must("detach", "byhand");
      await site.host.ip("link del tap7");
      expect(told(await configured.now.apply(CONFIG))).toEqual(["gone tap7"]);
    });
  });
});

/** One look at everything as the daemon takes it, holding the instance; what it did. */
async function reconcileAsDaemon({ site, lab }: Ground): Promise<string[]> {
  const program = `
    import { holdInstance } from "${repositoryPath("dist/kernel/holder.js")}";
    import { parseConfig } from "${repositoryPath("dist/config/load.js")}";
    import { reconcile } from "${repositoryPath("dist/controller/reconcile.js")}";
    const pinRoot = ${JSON.stringify(lab.pinRoot)};
    const holder = holdInstance(pinRoot);
    const config = parseConfig(${JSON.stringify(CONFIG)}, "test");
    const { done } = await reconcile({ pinRoot, warn() {} }, config);
    process.stdout.write(JSON.stringify(done));
    holder.close();`;
  const output = await site.host.must([process.execPath, "--input-type=module", "-e", program]);
  return JSON.parse(output) as string[];
}

/** What is lost with a link: IPv6 addresses, and routes by way of it. */
async function restore({ site }: Ground, ofHost: boolean): Promise<void> {
  const isRouted = site.kind !== "bridged";
  if (ofHost && !isRouted) return;
  const hostEnd = transfer(false, 0, "host");
  const [namespace, device, address] = ofHost
    ? [site.host, "up-a", hostEnd]
    : [site.a.namespace, "in", site.a.address];
  for (const family of FAMILIES) {
    const nodad = family === 6 ? " nodad" : "";
    await namespace.ip(`addr replace ${address[family]}/${prefixLength(family, true)} dev ${device}${nodad}`);
    if (!ofHost && isRouted) await namespace.ip(`route replace ${VM_PREFIX[family]} via ${hostEnd[family]}`);
  }
}

describe("a bridge port", () => {
  const ground = useSite({ vms: 1 });
  const configured = useConfigured(ground);

  it("that does not forward is told apart, and again when it does; one that leaves the bridge too", async () => {
    const { site, lasthop } = ground;
    await configured.now.apply(CONFIG);
    const state = async () =>
      (await lasthop.status()).interfaces.find((item) => item.interface === "up-a")?.state;
    await site.host.must(["bridge", "link", "set", "dev", "up-a", "state", "0"]);
    expect(told(await configured.now.apply(CONFIG))).toEqual(["change up-a"]);
    expect(await state()).toBe("port_blocked");
    await site.host.must(["bridge", "link", "set", "dev", "up-a", "state", "3"]);
    expect(told(await configured.now.apply(CONFIG))).toEqual(["change up-a"]);
    expect(await state()).toBe("ok");
    await site.host.ip("link set tap1 nomaster");
    expect(told(await configured.now.apply(CONFIG))).toEqual(["change tap1", "bridge br"]);
    await site.host.ip("link set tap1 master br");
    expect(told(await configured.now.apply(CONFIG))).toEqual(["change tap1"]);
    await openAll(ground, "port");
    await expectAlive(ground);
    await closeAll(ground, "port");
  });

  it("of a bridge that gets another MAC goes on", async () => {
    const { site } = ground;
    await configured.now.apply(CONFIG);
    await openAll(ground, "bridge");
    await site.host.ip("link set dev br address 02:00:00:00:0b:99");
    const kinds = told(await configured.now.apply(CONFIG));
    expect(kinds).toEqual(["change up-a", "change up-b", "change tap1"]);
    await expectAlive(ground);
    expect(await configured.now.plan(CONFIG)).toMatchObject({ status: 0, actions: [] });
    await closeAll(ground, "bridge");
  });
});
