// SPDX-License-Identifier: Apache-2.0
// Flows that expire by themselves while the daemon runs: what is idle goes, by its protocol and state, what lives
// stays, and what went too early heals with its next request. Both families alike.

import { readdirSync } from "node:fs";
import { afterEach, describe, expect, it } from "vitest";
import type { FlowEntry, StatusReport, SweepReport } from "../../src/ops/types.ts";
import { FAMILIES, type Family } from "../support/addresses.ts";
import { cleanUpDaemons, Daemon, WHOLE_SITE } from "../support/daemon.ts";
import { type Ground, useSite } from "../support/fixture.ts";
import { synFrame } from "../support/frames.ts";
import { sleep, until } from "../support/run.ts";
import { sendFrames } from "../support/tools.ts";

cleanUpDaemons();

let daemon: Daemon | undefined;
afterEach(async () => {
  await daemon?.stop();
  daemon = undefined;
});

const SHORT = `
timeouts: { syn: 2, tcp: 10, closed: 2, udp: 3, udp_provisional: 1, icmp: 2, sctp: 10 }
sweep: { interval_min_seconds: 1, interval_max_seconds: 1 }
`;

/** Flows with this client's port, or with any. */
async function flows({ site, lasthop }: Ground, family: Family, port?: number): Promise<FlowEntry[]> {
  const all = await lasthop.flows("--address", site.client.address[family]);
  return port === undefined ? all : all.filter((flow) => flow.remote_port === port);
}

const gone = (ground: Ground, family: Family, port: number) =>
  until(async () => (await flows(ground, family, port)).length === 0, `port ${port} to expire`, 15_000);

/** Passes that ended. */
const passes = (one: Daemon) => one.metric("lasthop_sweep_duration_seconds_count");

describe.each(["bridged", "routed"] as const)("expiry on a %s host", (host) => {
  const ground = useSite({ host, vms: 1 });

  it("takes what is idle and leaves what lives", async () => {
    const { site, lasthop } = ground;
    const { client, vm, a, b } = site;
    daemon = await Daemon.start(ground, WHOLE_SITE + SHORT);
    const busy = FAMILIES.map((family) => ({ family, key: `busy${family}`, udp: 30_000 + family }));
    for (const { family, key } of busy) {
      await client.agent.call("open", { key, host: vm.address[family], port: 7 });
      await client.agent.call("startEchoing", { key, intervalMs: 300 });
    }
    let talking = true;
    const talk = busy.map(async ({ family, udp }) => {
      for (let count = 0; talking; count++) {
        const datagram = { host: vm.address[family], port: 7, text: `${count}`, localPort: udp };
        await client.agent.call("udp", datagram);
        await sleep(500);
      }
    });
    const idle: { family: Family; port: number }[] = [];
    for (const family of FAMILIES) {
      // A connection that ends, a datagram, an echo request, a SYN that nobody answers.
      const { local_port } = await client.agent.call("open", {
        key: "ends",
        host: vm.address[family],
        port: 7,
      });
      await client.agent.call("echo", { key: "ends" });
      await client.agent.call("close", { key: "ends" });
      const udp = await client.agent.call("udp", { host: vm.address[family], port: 7, text: "once" });
      const syn = synFrame({
        sourceMac: a.mac,
        destinationMac: host === "bridged" ? vm.mac : site.uplinkMac("a"),
        source: family === 4 ? 0xc633_6463 : (0x2001_0db8_000c_0000n << 64n) | 0x99n,
        destination: vm.address[family],
        sourcePort: 5000 + family,
        destinationPort: 4444,
      });
      await sendFrames(a.namespace, "in", [syn]);
      idle.push({ family, port: local_port }, { family, port: udp.local_port });
    }
    for (const { family, port } of idle) await gone(ground, family, port);
    await until(
      async () => (await lasthop.flows("--state", "syn")).length === 0,
      "the SYNs to expire",
      15_000,
    );
    // Longer than any timeout, and some passes.
    const before = await passes(daemon);
    await until(async () => (await passes(daemon!)) >= before + 4, "four passes", 15_000);
    await site.resetCounts();
    for (const { family, key, udp } of busy) {
      expect((await client.agent.call("progress", { key })).error).toBeNull();
      expect(await flows(ground, family, udp)).toHaveLength(1);
      const tcp = await flows(ground, family);
      expect(tcp.filter(({ protocol, state }) => protocol === "tcp" && state === "established")).toHaveLength(
        1,
      );
    }
    talking = false;
    await Promise.all(talk);
    for (const { key } of busy) {
      expect((await client.agent.call("stopEchoing", { key })).error).toBeNull();
      await client.agent.call("close", { key });
    }
    expect((await b.counts()).packets("dropped")).toBe(0);
    expect(daemon.lines.filter((line) => !line.startsWith("lasthop: info: "))).toEqual([]);
  });

  it("of a connection that comes to life again costs nothing: its next request heals it", async () => {
    const { site } = ground;
    const { client, vm, b } = site;
    daemon = await Daemon.start(ground, WHOLE_SITE + SHORT);
    for (const family of FAMILIES) {
      const { local_port } = await client.agent.call("open", {
        key: `idle${family}`,
        host: vm.address[family],
        port: 7,
      });
      await client.agent.call("echo", { key: `idle${family}` });
      expect(await flows(ground, family, local_port)).toHaveLength(1);
    }
    for (const family of FAMILIES) {
      await until(async () => (await flows(ground, family)).length === 0, "it to expire", 30_000);
      await site.resetCounts();
      await client.agent.call("echo", { key: `idle${family}` });
      expect((await flows(ground, family)).map(({ flags }) => flags)).toEqual([["pickup"]]);
      await client.agent.call("close", { key: `idle${family}` });
      expect((await b.counts()).packets("dropped")).toBe(0);
    }
  });
});

describe("a pass by hand", () => {
  const ground = useSite({ vms: 1 });

  /** Holds the lock of passes, as one that goes on for long. */
  async function pass(): Promise<{ stop(): Promise<unknown> }> {
    const { lab, site } = ground;
    const version = readdirSync(lab.pinRoot).find((name) => /^v\d/.test(name));
    const maps = `${lab.pinRoot}/${version}/maps`;
    const process = site.host.start(["flock", "--no-fork", maps, "sh", "-c", "echo locked; exec sleep 60"]);
    await process.writes(/locked/);
    return process;
  }

  it("waits for the daemon's, or says what is going on", async () => {
    const { lasthop } = ground;
    daemon = await Daemon.start(ground);
    const first = await pass();
    const refused = await lasthop.run("--json", "sweep");
    expect(refused.status).toBe(1);
    expect(JSON.parse(refused.stderr)).toMatchObject({
      code: "E_LOCKED",
      message: expect.stringMatching(/another expiry pass goes over the tables .* has not ended within 5 s/),
      hint: expect.stringContaining("lasthop status"),
    });
    // Others are not kept waiting.
    await lasthop.must("bypass", "off");
    const patient = lasthop.json<SweepReport>("sweep");
    await sleep(500);
    await first.stop();
    expect((await patient).tables).toHaveLength(4);
  });

  it("shows in status: what it found, and when it ended", async () => {
    const { lasthop, site } = ground;
    daemon = await Daemon.start(ground, `${WHOLE_SITE}zones: { default: 4 }\n`);
    for (const family of FAMILIES) {
      const key = `shown${family}`;
      await site.client.agent.call("open", { key, host: site.vm.address[family], port: 7 });
      await site.client.agent.call("echo", { key });
    }
    const swept = await lasthop.json<SweepReport>("sweep");
    expect(swept.clock_repaired).toBe(false);
    for (const family of FAMILIES) {
      expect(
        swept.zones.find(({ zone, table }) => zone === 4 && table === `flows${family}`)?.states,
      ).toMatchObject({
        established: 1,
      });
    }
    const { tiers, last_pass } = await lasthop.json<StatusReport>("status");
    expect(tiers.map(({ tier, entries, evicted }) => ({ tier, entries, evicted }))).toEqual([
      { tier: "established", entries: 2, evicted: 0 },
      { tier: "embryonic", entries: 0, evicted: 0 },
    ]);
    expect(tiers[0]!.fill).toBeCloseTo(2 / 2_097_152, 12);
    expect(last_pass).toMatchObject({ entries: 2, expired: 0 });
    expect(last_pass!.ended_seconds_ago).toBeLessThan(60);
    const text = await lasthop.must("status");
    expect(text).toMatch(/^established flows: <1% full, 0 evicted$/m);
    expect(text).toMatch(/^last expiry pass: ended \d+s ago, took .* expired 0 of 2 flows$/m);
    expect(await lasthop.must("sweep")).toMatch(/^ +4 +flows4 +established 1$/m);
  });
});
