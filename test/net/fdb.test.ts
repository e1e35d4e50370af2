// SPDX-License-Identifier: Apache-2.0
// A VM whose replies are all redirected: the bridge sees nothing of it, and must not flood requests for it.

import { afterEach, describe, expect, it } from "vitest";
import { Capture } from "../support/capture.ts";
import { cleanUpDaemons, Daemon } from "../support/daemon.ts";
import { attachAll, type Ground, useSite } from "../support/fixture.ts";
import { sleep } from "../support/run.ts";

cleanUpDaemons();

const AGEING_SECONDS = 3;
const FILTERING = ["vlan_filtering", "1"];
const NEEDS_FILTERING = "needs a kernel with CONFIG_BRIDGE_VLAN_FILTERING";

let daemon: Daemon | undefined;
afterEach(async () => {
  await daemon?.stop();
  daemon = undefined;
});

/** From here on only redirected replies come from the VM: nobody asks for addresses. */
async function silenceOthers({ site }: Ground): Promise<void> {
  const { a, b, vm } = site;
  const permanent = (address: string, mac: string, device: string) =>
    `neigh replace ${address} lladdr ${mac} dev ${device} nud permanent`;
  for (const family of [4, 6] as const) {
    await a.namespace.ip(permanent(vm.address[family], vm.mac, "in"));
    await vm.namespace.ip(permanent(b.address[family], b.mac, "eth0"));
  }
  await site.host.ip(`link set dev br type bridge ageing_time ${AGEING_SECONDS * 100}`);
}

interface Watched {
  /** Frames for the VM at a port where it is not. */
  flooded: number;
  requests: number;
}

/** Datagrams of both families there and back, for several times the ageing time, seen from another port. */
async function talk({ site }: Ground): Promise<Watched> {
  const { client, vm } = site;
  const other = site.vms[1]!;
  // A VM that the bridge had forgotten is known when it has sent once.
  await client.agent.failure("udp", { host: vm.address[4], port: 7, text: "x", timeoutMs: 300 });
  const capture = await Capture.start(site.host, other.tap, {
    direction: "out",
    filter: `ether dst ${vm.mac} and udp port 7`,
  });
  const until = Date.now() + AGEING_SECONDS * 3 * 1000;
  let requests = 0;
  while (Date.now() < until) {
    for (const family of [4, 6] as const) {
      await client.agent.call("udp", {
        host: vm.address[family],
        port: 7,
        localPort: 42_000 + family,
        text: "x",
      });
      requests++;
    }
    await sleep(100);
  }
  return { flooded: (await capture.stop()).length, requests };
}

/** The bridge's entries for the VM: port and VLAN. */
async function entries({ site }: Ground): Promise<{ ifname: string; vlan?: number; state?: string }[]> {
  const all = JSON.parse(await site.host.must(["bridge", "-j", "fdb", "show", "br", "br"])) as {
    mac: string;
    ifname: string;
    vlan?: number;
    state?: string;
  }[];
  return all.filter((entry) => entry.mac === site.vm.mac).map(({ mac: _, ...entry }) => entry);
}

describe.each([false, true])("on a bridge (VLAN-aware: %s)", (vlanAware) => {
  let lacking = false;
  const ground = useSite({}, async (ground) => {
    const { site } = ground;
    if (vlanAware) {
      const ports = [...site.uplinks, ...site.taps];
      const { stderr } = await site.host.run([
        "ip",
        "link",
        "set",
        "dev",
        "br",
        "type",
        "bridge",
        ...FILTERING,
      ]);
      lacking = stderr.includes("Operation not supported");
      if (lacking) return;
      for (const port of ports) {
        await site.host.must(["bridge", "vlan", "add", "vid", "7", "dev", port, "pvid", "untagged"]);
        await site.host.must(["bridge", "vlan", "del", "vid", "1", "dev", port]);
      }
    }
    await silenceOthers(ground);
  });

  it("requests are flooded when nobody keeps the entry, and not when the daemon does", async (context) => {
    context.skip(lacking, NEEDS_FILTERING);
    await attachAll(ground);
    const without = await talk(ground);
    expect(without.flooded).toBeGreaterThan(without.requests / 4);

    daemon = await Daemon.start(ground);
    // The entry has to be learned once; a daemon that comes when it has been forgotten makes it again.
    await ground.site.client.agent.call("udp", { host: ground.site.vm.address[4], port: 7, text: "x" });
    await sleep(1500);
    const withDaemon = await talk(ground);
    expect(withDaemon.requests).toBeGreaterThan(50);
    expect(withDaemon.flooded).toBe(0);
    const kept = await entries(ground);
    expect(kept.every((entry) => entry.ifname === ground.site.vm.tap)).toBe(true);
    if (vlanAware) expect(kept.map((entry) => entry.vlan)).toContain(7);
  });

  it("a VM that is silent is forgotten as ever, and a static entry stays as it is", async (context) => {
    context.skip(lacking, NEEDS_FILTERING);
    daemon = await Daemon.start(ground);
    const { site } = ground;
    for (let round = 0; round < 3; round++) {
      await site.client.agent.failure("udp", {
        host: site.vm.address[4],
        port: 7,
        text: "x",
        timeoutMs: 300,
      });
      await sleep(500);
    }
    expect(await entries(ground)).not.toEqual([]);
    await sleep(AGEING_SECONDS * 2500);
    expect(await entries(ground)).toEqual([]);

    const vlan = vlanAware ? ["vlan", "7"] : [];
    await site.host.must([
      "bridge",
      "fdb",
      "add",
      site.vm.mac,
      "dev",
      site.vm.tap,
      "master",
      "static",
      ...vlan,
    ]);
    await talk(ground);
    expect((await entries(ground)).filter((entry) => entry.state === "static")).toHaveLength(1);
    await site.host.must(["bridge", "fdb", "del", site.vm.mac, "dev", site.vm.tap, "master", ...vlan]);
  });
});
