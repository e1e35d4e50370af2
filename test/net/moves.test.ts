// SPDX-License-Identifier: Apache-2.0
// Addresses that move while flows live: a firewall answers with another MAC, an uplink goes and comes
// back, a VM's address is taken over by another VM.

import { describe, expect, it } from "vitest";
import type { Family } from "../support/addresses.ts";
import { attachAll, FAMILIES, type Ground, useSite } from "../support/fixture.ts";
import type { Vm } from "../support/site.ts";
import { replugTap } from "../support/topology.ts";

/** An address that VMs have beside their own, one at a time. */
const FLOATING = { 4: "203.0.113.99", 6: "2001:db8:113::99" };

/** As keepalived does in guests: another VM has the address now, and the neighbours are told. */
async function giveAddress({ site }: Ground, family: Family, to: Vm): Promise<void> {
  const address = `${FLOATING[family]}/${family === 4 ? 32 : 128} dev eth0`;
  for (const vm of site.vms) {
    const has = await vm.namespace.must(["ip", "-o", "addr", "show", "dev", "eth0"]);
    if (has.includes(`${FLOATING[family]}/`)) await vm.namespace.ip(`addr del ${address}`);
  }
  await to.namespace.ip(
    `addr add ${address}${family === 6 ? " nodad" : ""}`,
    // A UDP server that is bound to no address answers from what the route says.
    `route replace ${site.client.address[family]} via ${site.b.address[family]} src ${FLOATING[family]}`,
  );
  for (const firewall of [site.a, site.b]) await firewall.namespace.ip("neigh flush dev in");
}

describe.each(["bridged", "routed"] as const)("a %s host", (host) => {
  const ground = useSite({ host, vms: 1 }, attachAll);

  it.each(FAMILIES)("IPv%i: a firewall that takes another MAC keeps its connections", async (family) => {
    const { site, lasthop } = ground;
    const { client, vm, a } = site;
    const key = `mac${family}`;
    await client.agent.call("open", { key, host: vm.address[family], port: 7 });
    await client.agent.call("echo", { key });
    const other = `02:00:00:00:0f:${family}1`;
    await a.namespace.ip(`link set dev in address ${other}`);
    await client.agent.call("echo", { key });
    const flow = (await lasthop.flows("--address", client.address[family])).find(
      (one) => one.local_port === 7,
    );
    expect(flow).toMatchObject({ last_hop: { mac: other } });
    await a.namespace.ip(`link set dev in address ${a.mac}`);
    await client.agent.call("echo", { key });
    await client.agent.call("close", { key });
    expect((await lasthop.lastHops()).map((hop) => hop.mac)).toEqual(expect.arrayContaining([a.mac, other]));
  });

  it.each(FAMILIES)("IPv%i: a closed port is refused at once, by way of a", async (family) => {
    const { client, vm, b } = ground.site;
    await ground.site.resetCounts();
    const target = { key: "refused", host: vm.address[family], port: 81 };
    expect(await client.agent.failure("open", target)).toBe("ECONNREFUSED");
    expect((await b.counts()).packets("dropped")).toBe(0);
  });

  it.each(FAMILIES)("IPv%i: 500 connections at once all come up", async (family) => {
    const { client, vm, b } = ground.site;
    await ground.site.resetCounts();
    const keys = Array.from({ length: 500 }, (_, at) => `many${family}-${at}`);
    const target = { keys, host: vm.address[family], port: 7, timeoutMs: 10_000 };
    expect(await client.agent.call("openMany", target)).toEqual({ opened: keys.length });
    const { alive, errors } = await client.agent.call("echoAll", { timeoutMs: 10_000 });
    expect({ alive, errors }).toEqual({ alive: keys.length, errors: [] });
    for (const key of keys) await client.agent.call("close", { key, reset: true });
    expect((await b.counts()).packets("dropped")).toBe(0);
  });
});

describe("a VM's address that moves to another VM", () => {
  const ground = useSite({}, attachAll);
  const port = 41_000;

  it.each(FAMILIES)(
    "IPv%i: the same five-tuple, opened anew, is answered by the other VM",
    async (family) => {
      const { site, lasthop } = ground;
      const { client, a } = site;
      const target = { host: FLOATING[family], port: 7, localPort: port + family };
      await giveAddress(ground, family, site.vms[0]!);
      await client.agent.call("open", { key: "first", ...target });
      await client.agent.call("echo", { key: "first" });
      // The end of the first connection is lost.
      await a.halt();
      await client.agent.call("close", { key: "first", reset: true });
      await a.resume();
      await a.namespace.must(["conntrack", "-F"]);
      await giveAddress(ground, family, site.vms[1]!);
      await client.agent.call("open", { key: "second", ...target });
      await client.agent.call("echo", { key: "second" });
      const flow = (await lasthop.flows()).find((one) => one.remote_port === target.localPort);
      expect(flow).toMatchObject({ vm_mac: site.vms[1]!.mac, tier: "established" });
      await client.agent.call("close", { key: "second" });
    },
  );

  it.each(FAMILIES)("IPv%i: a datagram flow stays the first VM's until it is forgotten", async (family) => {
    const { site, lasthop } = ground;
    const { client } = site;
    const target = { host: FLOATING[family], port: 7, localPort: port + 10 + family, text: "on and on" };
    await giveAddress(ground, family, site.vms[0]!);
    for (let round = 0; round < 3; round++) await client.agent.call("udp", target);
    await giveAddress(ground, family, site.vms[1]!);
    // Whoever claims an address does not get the flows of another VM.
    const before = await lasthop.packets("vm_mismatch");
    expect(await client.agent.failure("udp", { ...target, timeoutMs: 200 })).toBe("timeout");
    expect(await lasthop.packets("vm_mismatch")).toBe(before + 1);
    await lasthop.must("flows", "flush", "--address", FLOATING[family]);
    expect(await client.agent.call("udp", target)).toMatchObject({ text: target.text });
    const flow = (await lasthop.flows()).find((one) => one.remote_port === target.localPort);
    expect(flow).toMatchObject({ vm_mac: site.vms[1]!.mac });
  });
});

describe.each(["bridged", "routed"] as const)("interfaces of a %s host that go", (host) => {
  const firewalls = [{ name: "a" }, { name: "b" }, { name: "c", loose: true }];
  const ground = useSite({ host, firewalls, vms: 1 }, attachAll);
  const open = async (name: string) => {
    const { client, vm } = ground.site;
    for (const family of FAMILIES) {
      const key = `${name}${family}`;
      await client.agent.call("open", { key, host: vm.address[family], port: 7 });
      await client.agent.call("echo", { key });
    }
  };

  it("an uplink: its flows pass, until their requests come by another", async () => {
    const { site, lasthop } = ground;
    await open("uplink");
    await site.host.ip("link del dev up-a");
    expect(await site.client.agent.call("echoAll", { timeoutMs: 300 })).toMatchObject({ alive: 0 });
    const [flow] = await lasthop.flows("--address", site.client.address[4]);
    const tuple = ["tcp", `${site.client.address[4]}:${flow?.remote_port}`, `${site.vm.address[4]}:7`];
    expect(await lasthop.json("explain", ...tuple)).toMatchObject({
      verdict: "pass",
      reason: "interface_gone",
    });
    const { interfaces } = await lasthop.status();
    expect(interfaces.find((one) => one.interface === "up-a")).toMatchObject({ state: "interface_gone" });
    await site.routeClientsBy("c");
    expect(await site.client.agent.call("echoAll", { timeoutMs: 5000 })).toEqual({ alive: 2, errors: [] });
    await lasthop.must("detach", "up-a");
    expect((await lasthop.status()).interfaces.map((one) => one.interface)).toEqual(["up-b", "up-c", "tap1"]);
  });

  it("a tap that comes back with another index: its flows go on once it is attached", async () => {
    const { site, lasthop } = ground;
    await replugTap(site, site.vm);
    await lasthop.attach(site.vm.tap, "tap");
    expect(await site.client.agent.call("echoAll", { timeoutMs: 5000 })).toEqual({ alive: 2, errors: [] });
    expect((await lasthop.status()).interfaces.every((one) => one.state === "ok")).toBe(true);
    expect((await site.b.counts()).packets("carried")).toBe(0);
  });
});
