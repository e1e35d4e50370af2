// SPDX-License-Identifier: Apache-2.0
// `lasthop metrics` on real tables, after real traffic: what it says is what `stats` and `flows list` say, and
// promtool finds nothing wrong with it.

import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { FamilyData } from "../../src/metrics/index.ts";
import { attachAll, FAMILIES, type Ground, useSite } from "../support/fixture.ts";
import { type ParsedFamily, parseMetrics } from "../support/metricsTables.ts";
import { must } from "../support/run.ts";

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), `lasthop-metrics-${process.pid}-`));
});
afterAll(() => rmSync(directory, { recursive: true }));

async function talk({ site }: Ground): Promise<void> {
  for (const family of FAMILIES) {
    const host = site.vm.address[family];
    const key = `metrics${family}`;
    await site.client.agent.call("open", { key, host, port: 7 });
    await site.client.agent.call("echo", { key, bytes: 100_000 });
    await site.client.agent.call("udp", { host, port: 7, text: "hello" });
  }
}

async function read({ lasthop }: Ground): Promise<Map<string, ParsedFamily>> {
  return parseMetrics(await lasthop.must("metrics"));
}

describe("lasthop metrics", () => {
  const ground = useSite({ host: "bridged" }, attachAll);
  beforeAll(() => talk(ground));

  it("counts packets and bytes as stats does", async () => {
    // Nothing is sent in between.
    const [stats, metrics] = [await ground.lasthop.stats(), await read(ground)];
    expect(stats.some(({ reason, packets }) => reason === "redirect" && packets > 0)).toBe(true);
    for (const { interface: name, role, verdict, reason, packets, bytes } of stats) {
      const labels = `interface="${role === null ? "" : name}",role="${role ?? "none"}",verdict="${verdict}",reason="${reason}"`;
      expect(metrics.get("lasthop_packets_total")!.series.get(labels), labels).toBe(packets);
      expect(metrics.get("lasthop_bytes_total")!.series.get(labels), labels).toBe(bytes);
    }
    const shown = [...metrics.get("lasthop_packets_total")!.series.values()].filter((packets) => packets > 0);
    expect(shown.length).toBe(stats.length);
  });

  it("says how interfaces are attached, as status does", async () => {
    const { interfaces, programs } = await ground.lasthop.status();
    const metrics = await read(ground);
    const wanted = interfaces.map(
      ({ interface: name, role, hook, policy, zone, program_id }) =>
        `interface="${name}",role="${role}",hook="${hook}",policy="${policy}",zone="${zone}",program_id="${program_id}"`,
    );
    expect([...metrics.get("lasthop_interface_info")!.series.keys()].sort()).toEqual(wanted.sort());
    const ids = [...metrics.get("lasthop_program_info")!.series.keys()].map(
      (labels) => /id="(\d+)"/.exec(labels)![1],
    );
    expect(ids.sort()).toEqual(programs.map(({ id }) => String(id)).sort());
    expect([...metrics.get("lasthop_interface_present")!.series.values()]).toEqual(interfaces.map(() => 1));
  });

  it("counts flows and last hops, once a sweep has", async () => {
    await ground.lasthop.must("sweep");
    const flows = await ground.lasthop.flows();
    const metrics = await read(ground);
    const sum = (name: string, labels = "") =>
      [...metrics.get(name)!.series]
        .filter(([found]) => found.includes(labels))
        .reduce((total, [, value]) => total + value, 0);
    for (const tier of ["established", "embryonic"]) {
      expect(sum("lasthop_flows", `tier="${tier}"`), tier).toBe(
        flows.filter((flow) => flow.tier === tier).length,
      );
    }
    expect(sum("lasthop_table_entries", 'table="flows4"')).toBeGreaterThan(0);
    const [uplink] = ground.site.uplinks;
    const remote = flows.filter((flow) => flow.last_hop?.interface === uplink);
    expect(remote.length).toBeGreaterThan(0);
    expect(sum("lasthop_last_hop_flows", `interface="${uplink}"`)).toBe(remote.length);
    const lastHops = (await ground.lasthop.lastHops()).filter((one) => one.interface === uplink);
    expect(sum("lasthop_last_hops", `interface="${uplink}"`)).toBe(lastHops.length);
  });

  it("tells of an interface that has gone, and of bypass", async () => {
    const { site, lasthop } = ground;
    await site.host.ip("link add lonely0 type veth peer name lonely1");
    await lasthop.attach("lonely0", "uplink");
    await lasthop.must("bypass", "on");
    await site.host.ip("link del lonely0");
    const metrics = await read(ground);
    expect(metrics.get("lasthop_interface_present")!.series.get('interface="lonely0",role="uplink"')).toBe(0);
    expect(metrics.get("lasthop_bypass")!.series.get("")).toBe(1);
    await lasthop.must("bypass", "off");
    expect((await read(ground)).get("lasthop_bypass")!.series.get("")).toBe(0);
  });

  it("passes promtool, without a finding", async () => {
    const text = await ground.lasthop.must("metrics");
    expect(await must(["promtool", "check", "metrics"], { input: text })).toBe("");
  });

  it("writes the same into a file, and gives it as data", async () => {
    const path = join(directory, "lasthop.prom");
    expect(await ground.lasthop.must("metrics", "--output", path)).toBe("");
    const names = [...parseMetrics(readFileSync(path, "utf8")).keys()];
    expect(names).toEqual([...(await read(ground)).keys()]);
    const { metrics } = await ground.lasthop.json<{ metrics: FamilyData[] }>("metrics");
    expect(metrics.map(({ name }) => name)).toEqual(names);
  });
});

describe("without tables", () => {
  const ground = useSite({ host: "bridged" });

  it("lasthop metrics says so, and leaves the file as it is", async () => {
    const path = join(directory, "none.prom");
    const { status, stdout, stderr } = await ground.lasthop.run("metrics", "--output", path);
    expect([status, stdout]).toEqual([1, ""]);
    expect(stderr).toContain("nothing is attached");
    expect(() => readFileSync(path)).toThrow("ENOENT");
  });
});
