// SPDX-License-Identifier: Apache-2.0
// What explain, flows, trace and the lists say of a service is what its packets do.

import { describe, expect, it } from "vitest";
import type { Explanation, ServiceEntry, VmEntry } from "../../src/ops/types.ts";
import { type Family, vmAddress } from "../support/addresses.ts";
import { attachAll, bracket, FAMILIES, useSite } from "../support/fixture.ts";
import { Lasthop } from "../support/lasthop.ts";
import { until } from "../support/run.ts";

const VIP = vmAddress(80);
const ECHO = 7;

describe.each(["bridged", "routed"] as const)("on a %s host", (host) => {
  const ground = useSite({ host, vms: 2 }, async (ground) => {
    const { site, lasthop } = ground;
    await attachAll(ground);
    for (const { name, namespace, tap, mac } of site.vms) {
      await namespace.ip(`addr add ${VIP[4]}/32 dev lo`, `addr add ${VIP[6]}/128 dev lo nodad`);
      // Nobody but the host answers for it.
      await namespace.must(["sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1"]);
      await lasthop.must("vms", "add", name, "--tap", tap, "--mac", mac);
    }
    await lasthop.must("vms", "drain", "vm2");
    for (const family of FAMILIES) {
      const where = ["--address", VIP[family], "--port", String(ECHO)];
      await lasthop.must("services", "add", `echo${family}`, ...where, "--vm", "vm1,vm2");
    }
  });
  const portOf = (family: Family): number => 42_000 + family;
  const tuple = (family: Family): string[] => {
    const client = bracket(ground.site.client.address[family]);
    return ["tcp", `${client}:${portOf(family)}`, `${bracket(VIP[family])}:${ECHO}`];
  };
  const explain = (family: Family) => ground.lasthop.json<Explanation>("explain", ...tuple(family));
  const service = (family: Family) => ground.lasthop.json<ServiceEntry>("services", "show", `echo${family}`);
  const vm = (name: string) => ground.lasthop.json<VmEntry>("vms", "show", name);
  const echo = (family: Family) => ground.site.client.agent.failure("echo", { key: `open${family}` });

  it.each(FAMILIES)("IPv%i: which VM a connection gets, keeps and loses", async (family) => {
    const { site, lasthop } = ground;
    const [one, two] = site.vms.map(({ name, mac, tap }) => `${name} (${mac} on ${tap})`);
    expect((await explain(family)).delivery).toBe(
      `The next request begins a flow of the service echo${family}, for vm1, by maglev.`,
    );
    const before = await vm("vm1");
    const where = { host: VIP[family], port: ECHO, localPort: portOf(family) };
    await site.client.agent.call("open", { key: `open${family}`, ...where });
    expect(await echo(family)).toBeUndefined();
    expect(await explain(family)).toMatchObject({
      verdict: "redirect",
      reason: "redirect",
      service: { name: `echo${family}`, policy: "maglev", vms_up: 1, vms_total: 2 },
      flow: { vm: "vm1", vm_mac: site.vm.mac, flags: expect.arrayContaining(["service"]) },
      delivery: `Requests are handed to ${one}, which the service echo${family} chose.`,
    });
    expect(await lasthop.must("flows", "show", ...tuple(family))).toMatch(/ vm1 .*service/);
    expect(await service(family)).toMatchObject({ flows_started: 1, vms_up: 1, vms_total: 2 });
    const after = await vm("vm1");
    expect(after).toMatchObject({ flows: before.flows + 1, flows_started: before.flows_started + 1 });
    expect(after.request_packets).toBeGreaterThan(before.request_packets);

    const trace = lasthop.trace(60, ...tuple(family));
    const request = await until(async () => {
      expect(await echo(family)).toBeUndefined();
      return Lasthop.events(trace).find(({ direction }) => direction === "request");
    }, "the trace to show a request");
    await trace.stop("SIGINT");
    expect(request).toMatchObject({
      verdict: "redirect",
      reason: "deliver",
      interface: site.uplinkOf("a"),
      interface_after: site.vm.tap,
      mac_after: site.vm.mac,
      explanation: expect.stringMatching(new RegExp(`: vm1 \\(${site.vm.mac}\\) on ${site.vm.tap}$`)),
    });

    await lasthop.must("vms", "drain", "vm1");
    expect((await explain(family)).delivery).toMatch(/gets no new flows, and keeps those that it has\.$/);
    expect(await echo(family)).toBeUndefined();
    await lasthop.must("vms", "up", "vm2");
    await lasthop.must("vms", "down", "vm1");
    expect((await explain(family)).delivery).toBe(
      `The flow's VM, ${one}, is not up (down, operator): the next request goes to another, one of 1.`,
    );
    // The other one knows nothing of the connection.
    expect(await echo(family)).toBe("ECONNRESET");
    expect(await explain(family)).toMatchObject({
      flow: { vm: "vm2" },
      delivery: `Requests are handed to ${two}, which the service echo${family} chose.`,
    });
    expect((await service(family)).flows_rebalanced).toBe(1);
    await lasthop.must("vms", "up", "vm1");
    await lasthop.must("vms", "drain", "vm2");
  });

  it("with no VM that is up, it is dropped, and counted", async () => {
    const { site, lasthop } = ground;
    await lasthop.must("vms", "down", "vm1");
    const tuple = ["tcp", `${site.client.address[4]}:43000`, `${VIP[4]}:${ECHO}`];
    expect((await lasthop.json<Explanation>("explain", ...tuple)).delivery).toBe(
      "The next request is dropped: no VM of the service echo4 is up.",
    );
    const before = (await service(4)).requests_empty;
    const where = { host: VIP[4], port: ECHO, localPort: 43_000, timeoutMs: 100 };
    expect(await site.client.agent.failure("open", { key: "never", ...where })).toBeDefined();
    expect((await service(4)).requests_empty).toBeGreaterThan(before);
    expect(await lasthop.packets("service_empty", site.uplinkOf("a"))).toBeGreaterThan(0);
    await lasthop.must("vms", "up", "vm1");
  });
});
