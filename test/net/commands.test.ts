// SPDX-License-Identifier: Apache-2.0
// The commands that look at and change what was learned, on live traffic.

import { describe, expect, it } from "vitest";
import type { Explanation, FlowEntry, SweepReport } from "../../src/ops/types.ts";
import type { Family } from "../support/addresses.ts";
import { attachAll, bracket, FAMILIES, type Ground, useSite } from "../support/fixture.ts";
import { TC_HOOK } from "../support/kernel.ts";
import { Lasthop } from "../support/lasthop.ts";
import { until } from "../support/run.ts";

/** One open connection; the tuple as the user writes it. */
async function connect({ site }: Ground, family: Family, key: string) {
  const { client, vm } = site;
  const { local_port } = await client.agent.call("open", { key, host: vm.address[family], port: 7 });
  await client.agent.call("echo", { key });
  const remote = `${bracket(client.address[family])}:${local_port}`;
  const local = `${bracket(vm.address[family])}:7`;
  return { port: local_port, tuple: ["tcp", remote, local], quoted: `tcp ${remote} -> ${local}` };
}

describe.each(["bridged", "routed"] as const)("what is told of a flow on a %s host", (host) => {
  const ground = useSite({ host, vms: 1 }, attachAll);

  it.each(FAMILIES)("IPv%i: trace shows both directions as they happen", async (family) => {
    const { site, lasthop } = ground;
    const { tuple } = await connect(ground, family, `trace${family}`);
    const trace = lasthop.trace(30, ...tuple);
    const events = await until(async () => {
      await site.client.agent.call("echo", { key: `trace${family}` });
      const seen = Lasthop.events(trace);
      return seen.length >= 6 ? seen : undefined;
    }, "the trace to show packets");
    const request = events.find((event) => event.direction === "request");
    expect(request).toMatchObject({
      verdict: "pass",
      reason: "refresh",
      interface: site.uplinkOf("a"),
      interface_after: null,
    });
    const reply = events.find((event) => event.direction === "reply");
    expect(reply).toMatchObject({
      hook: TC_HOOK,
      verdict: "redirect",
      reason: "redirect",
      interface: site.vm.tap,
      mac_after: site.a.mac,
      interface_after: site.uplinkOf("a"),
      flow_state: "established",
    });
    expect(reply?.mac_before).toBe(host === "bridged" ? site.b.mac : site.tapMac);
    expect(await trace.stop("SIGINT")).toBe(0);
    await site.client.agent.call("close", { key: `trace${family}` });
  });

  it.each(FAMILIES)("IPv%i: flows show and explain tell one flow", async (family) => {
    const { site, lasthop } = ground;
    const { tuple, quoted, port } = await connect(ground, family, `explain${family}`);
    expect(await lasthop.json<FlowEntry>("flows", "show", quoted)).toMatchObject({ remote_port: port });
    const explained = await lasthop.json<Explanation>("explain", ...tuple);
    expect(explained).toMatchObject({
      zone: 0,
      host: host === "bridged" ? "bridged" : "routed",
      verdict: "redirect",
      flow: { remote_port: port, last_hop: { mac: site.a.mac } },
    });
    if (host === "bridged") expect(explained.route).toBeNull();
    else expect(explained.route).toMatchObject({ interface: "up-b", gateway: site.b.address[family] });
    const text = await lasthop.must("explain", quoted);
    expect(text).toContain(site.a.mac);
    await site.client.agent.call("close", { key: `explain${family}` });
  });
});

describe("the commands", () => {
  const ground = useSite({}, attachAll);

  it.each(FAMILIES)("IPv%i: flush forgets, and the next request learns again", async (family) => {
    const { site, lasthop } = ground;
    const { port } = await connect(ground, family, `flush${family}`);
    const mine = async () =>
      (await lasthop.flows("--address", site.client.address[family])).filter((f) => f.remote_port === port);
    expect(await mine()).toHaveLength(1);
    await lasthop.must("flows", "flush", "--device-mac", site.b.mac);
    expect(await mine()).toHaveLength(1);
    await lasthop.must(
      "flows",
      "flush",
      "--device-mac",
      site.a.mac,
      "--address",
      site.client.address[family],
    );
    expect(await mine()).toHaveLength(0);
    await site.client.agent.call("echo", { key: `flush${family}` });
    expect(await mine()).toMatchObject([{ flags: ["pickup"], last_hop: { mac: site.a.mac } }]);
    await site.client.agent.call("close", { key: `flush${family}` });
    await lasthop.must("flows", "flush", "--all");
    expect(await lasthop.flows()).toEqual([]);
  });

  it("list filters are each of them kept", async () => {
    const { site, lasthop } = ground;
    await connect(ground, 4, "filter4");
    await connect(ground, 6, "filter6");
    const count = async (...filters: string[]) => (await lasthop.flows(...filters)).length;
    expect(await count()).toBe(2);
    expect(await count("--limit", "1")).toBe(1);
    expect(await count("--address", "198.51.100.0/24")).toBe(1);
    expect(await count("--address", "2001:db8:113::/64")).toBe(1);
    expect(await count("--device-mac", site.a.mac)).toBe(2);
    expect(await count("--device-mac", site.b.mac)).toBe(0);
    expect(await count("--interface", site.uplinkOf("a"))).toBe(2);
    expect(await count("--interface", site.uplinkOf("b"))).toBe(0);
    expect(await count("--state", "established")).toBe(2);
    expect(await count("--state", "syn")).toBe(0);
    expect(await count("--zone", "9")).toBe(0);
    for (const key of ["filter4", "filter6"]) await site.client.agent.call("close", { key });
  });

  it("last-hops counts what went each way", async () => {
    const { site, lasthop } = ground;
    const hop = async () => (await lasthop.lastHops()).find((entry) => entry.mac === site.a.mac)!;
    const before = await hop();
    const bytes = 1 << 20;
    await site.client.agent.call("download", { host: site.vm.address[4], bytes });
    const after = await hop();
    expect(after.reply_bytes - before.reply_bytes).toBeGreaterThan(bytes);
    expect(after.request_packets).toBeGreaterThan(before.request_packets);
    expect(after).toMatchObject({ interface: site.uplinkOf("a"), state: "up", origin: "learned", tags: [] });
  });

  it("sweep expires what is idle, and only that", async () => {
    const { site, lasthop } = ground;
    await lasthop.must("flows", "flush", "--all");
    await connect(ground, 4, "sweep4");
    await connect(ground, 6, "sweep6");
    const kept = await lasthop.json<SweepReport>("sweep");
    const total = (report: SweepReport, of: "entries" | "expired") =>
      report.tables.reduce((sum, table) => sum + table[of], 0);
    expect(total(kept, "entries")).toBe(2);
    expect(total(kept, "expired")).toBe(0);
    await until(
      async () => (await lasthop.flows()).every((flow) => flow.idle_seconds >= 1),
      "a second to pass",
    );
    await site.client.agent.call("echo", { key: "sweep4" });
    const swept = await lasthop.json<SweepReport>("sweep", "--idle", "1");
    expect(total(swept, "expired")).toBe(1);
    expect((await lasthop.flows()).map((flow) => flow.remote_address)).toEqual([site.client.address[4]]);
    // What was swept too early heals like anything else.
    await site.client.agent.call("echo", { key: "sweep6" });
    for (const key of ["sweep4", "sweep6"]) await site.client.agent.call("close", { key });
  });

  it("stats count each packet once", async () => {
    const { site, lasthop } = ground;
    const key = "stats";
    const sum = async (device: string) =>
      (await lasthop.stats()).filter((c) => c.interface === device).reduce((n, c) => n + c.packets, 0);
    await connect(ground, 4, key);
    const before = await sum(site.vm.tap);
    const redirects = await lasthop.packets("redirect", site.vm.tap);
    for (let round = 0; round < 50; round++) await site.client.agent.call("echo", { key });
    const grown = (await sum(site.vm.tap)) - before;
    const redirected = (await lasthop.packets("redirect", site.vm.tap)) - redirects;
    expect(redirected).toBeGreaterThanOrEqual(50);
    expect(grown).toBeGreaterThanOrEqual(redirected);
    expect(grown).toBeLessThan(redirected + 10);
    await site.client.agent.call("close", { key });
  });
});
