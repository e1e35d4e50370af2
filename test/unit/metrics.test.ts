// SPDX-License-Identifier: Apache-2.0
// What is shown of given tables, and what the daemon counts.

import { Counter, Gauge, Registry } from "prom-client";
import { describe, expect, test } from "vitest";
import { ORIGIN } from "../../src/abi/layout.gen.ts";
import { Family, Labels } from "../../src/metrics/family.ts";
import { DaemonMetrics, readMetrics, renderMetrics } from "../../src/metrics/index.ts";
import { Pace } from "../../src/metrics/pace.ts";
import { type Traffic, TrafficAccounts } from "../../src/metrics/traffic.ts";
import { ownership } from "../../src/tables/index.ts";
import {
  callAll,
  filledTables,
  parseMetrics,
  setCounts,
  setService,
  setTraffic,
  setVm,
  sweepResult,
} from "../support/metricsTables.ts";

async function scrape(filled = filledTables(), daemon?: DaemonMetrics) {
  return parseMetrics(
    await renderMetrics({ instance: filled.instance, ...(daemon === undefined ? {} : { daemon }) }),
  );
}

type Scraped = Awaited<ReturnType<typeof scrape>>;

const series = (scraped: Scraped, name: string) => Object.fromEntries(scraped.get(name)!.series);
const only = (scraped: Scraped, name: string) => scraped.get(name)!.series.get("");

describe("of the tables", () => {
  test("packets and bytes are summed over the CPUs, exact beyond 32 bits, by what is attached", async () => {
    const scraped = await scrape();
    const nonZero = (name: string) =>
      Object.fromEntries([...scraped.get(name)!.series].filter(([, value]) => value > 0));
    expect(nonZero("lasthop_packets_total")).toEqual({
      'interface="",role="none",verdict="pass",reason="not_attached"': 9,
      'interface="eth0",role="uplink",verdict="pass",reason="learn"': 15,
      'interface="vnet0",role="tap",verdict="pass",reason="error"': 1,
      'interface="vnet0",role="tap",verdict="redirect",reason="redirect"': 2 ** 33 + 1,
    });
    expect(nonZero("lasthop_bytes_total")).toEqual({
      'interface="",role="none",verdict="pass",reason="not_attached"': 540,
      'interface="eth0",role="uplink",verdict="pass",reason="learn"': 1500,
      'interface="vnet0",role="tap",verdict="pass",reason="error"': 60,
      'interface="vnet0",role="tap",verdict="redirect",reason="redirect"': 2 ** 40 + 60,
    });
  });

  test("the reasons that alerts ask for are there before they occur, each on its own role", async () => {
    const zero = [...(await scrape()).get("lasthop_packets_total")!.series]
      .filter(([labels, value]) => value === 0 && labels.includes('interface="eth1"'))
      .map(([labels]) => /reason="(\w+)"/.exec(labels)![1]);
    expect(zero).toEqual(["error", "relearn", "relearn_damped", "last_hop_budget"]);
  });

  test("interfaces: how they are attached, gone or blocked, and their budgets", async () => {
    const scraped = await scrape();
    expect(series(scraped, "lasthop_interface_info")).toEqual({
      'interface="eth0",role="uplink",hook="tcx",policy="enforce",zone="0",program_id="71"': 1,
      'interface="eth1",role="uplink",hook="tcx",policy="enforce",zone="7",program_id="71"': 1,
      'interface="vnet0",role="tap",hook="tcx",policy="observe",zone="0",program_id="72"': 1,
      // Of two with one name, the one that is there has it.
      'interface="vnet0@if22",role="tap",hook="tcx",policy="off",zone="0",program_id="72"': 1,
    });
    expect(series(scraped, "lasthop_interface_present")).toMatchObject({
      'interface="vnet0",role="tap"': 1,
      'interface="vnet0@if22",role="tap"': 0,
    });
    expect(series(scraped, "lasthop_interface_port_blocked")).toMatchObject({
      'interface="eth0",role="uplink"': 0,
      'interface="eth1",role="uplink"': 1,
    });
    expect(series(scraped, "lasthop_interface_learned_last_hops")).toMatchObject({
      'interface="eth0",role="uplink"': 3,
    });
    expect(series(scraped, "lasthop_interface_vms_max")).toMatchObject({
      'interface="vnet0",role="tap"': 256,
    });
  });

  test("flows by zone: those of the last sweep that ended, and those of zones without a number", async () => {
    const flows = (await scrape()).get("lasthop_flows")!.series;
    expect(flows.get('zone="7",family="ipv4",tier="established",state="established"')).toBe(900);
    expect(flows.get('zone="7",family="ipv6",tier="embryonic",state="closed"')).toBe(100);
    expect(flows.get('zone="7",family="ipv6",tier="embryonic",state="new"')).toBe(0);
    expect(flows.get('zone="other",family="ipv6",tier="established",state="established"')).toBe(900);
    expect([...flows.keys()].filter((labels) => labels.includes('zone="other",family="ipv4"'))).toEqual([]);
  });

  test("before the first sweep nothing is said about flows", async () => {
    const filled = filledTables();
    for (let table = 0; table < 4; table++) filled.tables.sweep.publish(table, {});
    const scraped = await scrape(filled);
    for (const name of ["lasthop_flows", "lasthop_sweep_last_entries", "lasthop_table_evictions_total"]) {
      expect(scraped.get(name)!.series.size, name).toBe(0);
    }
    expect(series(scraped, "lasthop_table_entries")).not.toHaveProperty('table="flows4"');
    expect(series(scraped, "lasthop_table_size")).toHaveProperty('table="flows4"', 4096);
  });

  test("tables: size, entries, fill and evictions", async () => {
    const scraped = await scrape();
    expect(series(scraped, "lasthop_table_entries")).toEqual({
      'table="flows4"': 800,
      'table="flows6"': 800,
      'table="embryos4"': 800,
      'table="embryos6"': 800,
      'table="last_hops"': 4,
      'table="vm_specs"': 3,
      'table="service_specs"': 2,
      'table="last_hop_index"': 0,
      'table="vms"': 1,
      'table="fragments"': 0,
      'table="interfaces"': 5,
      'table="devices"': 2,
      'table="zones"': 1,
    });
    expect(series(scraped, "lasthop_table_fill_ratio")).toHaveProperty('table="flows4"', 800 / 4096);
    expect(series(scraped, "lasthop_table_evictions_total")).toMatchObject({
      'table="flows4",state="established"': 13,
      'table="flows4",state="closed"': 0,
    });
  });

  test("sweeps: when, how long, how much, how old", async () => {
    const scraped = await scrape();
    const ended = scraped.get("lasthop_sweep_last_end_timestamp_seconds")!.series.get('table="flows4"')!;
    expect(Date.now() / 1000 - ended).toBeGreaterThan(0.9);
    expect(Date.now() / 1000 - ended).toBeLessThan(60);
    expect(series(scraped, "lasthop_sweep_last_duration_seconds")).toHaveProperty('table="flows6"', 2);
    expect(series(scraped, "lasthop_sweep_last_busy_seconds")).toHaveProperty('table="flows6"', 0.05);
    expect(series(scraped, "lasthop_sweep_last_expired")).toHaveProperty('table="flows6"', 200);
    const ages = scraped.get("lasthop_flows_by_idle_time")!.series;
    expect(ages.get('table="flows4",below_seconds="1"')).toBe(990);
    expect(ages.get('table="flows4",below_seconds="16384"')).toBe(0);
    expect(ages.get('table="flows4",below_seconds="+Inf"')).toBe(10);
  });

  test("last hops by interface and state, with the flows of the half that the last sweep filled", async () => {
    const scraped = await scrape();
    expect(series(scraped, "lasthop_last_hops")).toEqual({
      'interface="eth0",state="up"': 1,
      'interface="eth0",state="alias"': 1,
      'interface="eth1",state="up"': 0,
      'interface="eth1",state="drop"': 1,
      'interface="",state="gone"': 1,
    });
    expect(series(scraped, "lasthop_last_hop_flows")).toEqual({
      'interface="eth0"': 42,
      'interface="eth1"': 8,
      'interface=""': 1,
    });
  });

  test("devices: state and cause, and the sums of their last hops", async () => {
    const scraped = await scrape();
    expect(series(scraped, "lasthop_device_info")).toEqual({
      'device="fw-a",zone="0",origin="config",on_down="peer:fw-b"': 1,
      'device="fw-b",zone="7",origin="manual",on_down="route"': 1,
    });
    expect(series(scraped, "lasthop_device_up")).toEqual({ 'device="fw-a"': 1, 'device="fw-b"': 0 });
    expect(series(scraped, "lasthop_device_state")).toEqual({
      'device="fw-a",state="up",cause="none"': 1,
      'device="fw-b",state="down",cause="probe"': 1,
    });
    const changed = scraped.get("lasthop_device_last_change_timestamp_seconds")!.series;
    expect([...changed.keys()]).toEqual(['device="fw-b"']);
    expect(Math.abs(Date.now() / 1000 - 600 - changed.get('device="fw-b"')!)).toBeLessThan(60);
    const ofA = (name: string) => scraped.get(`lasthop_device_${name}`)!.series.get('device="fw-a"');
    const names = ["flaps_total", "last_hops", "flows", "request_packets_total", "request_bytes_total"];
    expect(names.map(ofA)).toEqual([2, 2, 42, 101, 6000]);
    expect(["reply_packets_total", "reply_bytes_total", "relearns_total"].map(ofA)).toEqual([50, 90_000, 4]);
  });

  test("VMs: state and cause, and what services hand them", async () => {
    const scraped = await scrape();
    expect(series(scraped, "lasthop_vm_info")).toEqual({
      'vm="old",zone="7",origin="config",tap="",mac=""': 1,
      'vm="web1",zone="7",origin="config",tap="vnet0",mac="02:00:00:00:00:01"': 1,
      // Where it is said to be.
      'vm="web2",zone="7",origin="config",tap="vnet9",mac=""': 1,
    });
    expect(series(scraped, "lasthop_vm_up")).toEqual({ 'vm="old"': 1, 'vm="web1"': 1, 'vm="web2"': 0 });
    expect(series(scraped, "lasthop_vm_state")).toEqual({
      'vm="old",state="drain",cause="operator"': 1,
      'vm="web1",state="up",cause="none"': 1,
      'vm="web2",state="down",cause="interface"': 1,
    });
    const changed = scraped.get("lasthop_vm_last_change_timestamp_seconds")!.series;
    expect([...changed.keys()]).toEqual(['vm="web2"']);
    expect(Math.abs(Date.now() / 1000 - 600 - changed.get('vm="web2"')!)).toBeLessThan(60);
    expect(series(scraped, "lasthop_vm_flows")).toEqual({ 'vm="old"': 0, 'vm="web1"': 11, 'vm="web2"': 0 });
    const ofWeb1 = (name: string) => scraped.get(`lasthop_vm_${name}_total`)!.series.get('vm="web1"');
    const names = ["flows_started", "request_packets", "request_bytes", "response_packets", "response_bytes"];
    expect(names.map(ofWeb1)).toEqual([40, 2 ** 34, 10_000, 0, 0]);
    expect(scraped.get("lasthop_vm_flows_started_total")!.series.get('vm="old"')).toBe(0);
  });

  test("services: how many of their VMs are up, and what they did", async () => {
    const scraped = await scrape();
    expect(series(scraped, "lasthop_service_info")).toEqual({
      'service="dns",zone="7",address="2001:db8::/64",port="any",protocol="any",policy="source-hash",origin="manual"': 1,
      'service="shop",zone="7",address="192.0.2.80",port="443",protocol="tcp",policy="maglev",origin="manual"': 1,
    });
    expect(series(scraped, "lasthop_service_vms")).toEqual({
      'service="dns",state="up"': 0,
      'service="dns",state="drain"': 0,
      'service="dns",state="down"': 1,
      // Whoever is named twice counts once.
      'service="shop",state="up"': 1,
      'service="shop",state="drain"': 1,
      'service="shop",state="down"': 1,
    });
    const shop = (name: string) => scraped.get(`lasthop_service_${name}_total`)!.series.get('service="shop"');
    const flows = ["flows_started", "flows_associated", "flows_affine", "flows_rebalanced"];
    expect(flows.map(shop)).toEqual([60, 6, 8, 12]);
    const rest = ["requests_empty", "requests_reset", "requests_held", "addresses_answered"];
    expect(rest.map(shop)).toEqual([10, 14, 16, 18]);
    const ofDns = [...flows, ...rest].filter((name) =>
      scraped.get(`lasthop_service_${name}_total`)!.series.has('service="dns"'),
    );
    expect(ofDns).toEqual(["flows_started", "requests_empty"]);
  });

  test("entries that cannot be read are left out", async () => {
    const filled = filledTables();
    filled.tables.guests.specs.set({ name: "broken" }, { bytes: 1, text: Buffer.from("{") });
    filled.tables.services.specs.set({ name: "broken" }, { bytes: 1, text: Buffer.from("{") });
    const scraped = await scrape(filled);
    expect(scraped.get("lasthop_vm_up")!.series.size).toBe(3);
    expect(scraped.get("lasthop_service_info")!.series.size).toBe(2);
  });

  test("a thousand services are read in slices, between which others have their turn", async () => {
    const filled = filledTables();
    const pool = [{ label: "web" }];
    for (let index = 3; index < 1_000; index++) {
      setService(
        filled.tables,
        `service-${index}`,
        { address: `10.0.${index >> 8}.${index & 255}`, pool },
        index,
      );
    }
    let turns = 0;
    const timer = setInterval(() => turns++, 0);
    const scraped = await scrape(filled);
    clearInterval(timer);
    expect(turns).toBeGreaterThan(0);
    expect(scraped.get("lasthop_service_vms")!.series.size).toBe(3 * 999);
    expect(scraped.get("lasthop_service_vms")!.series.get('service="service-999",state="up"')).toBe(1);
    // What has not occurred is not shown a thousand times.
    expect(scraped.get("lasthop_service_requests_held_total")!.series.size).toBe(1);
  });

  test("a time does not seem to change from scrape to scrape", async () => {
    const filled = filledTables();
    const times = new Set<string>();
    for (let round = 0; round < 20; round++) {
      const scraped = await scrape(filled);
      times.add(JSON.stringify(series(scraped, "lasthop_device_last_change_timestamp_seconds")));
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    // One step of rounding at most, where a true value lies at its edge.
    expect(times.size).toBeLessThanOrEqual(2);
  });

  test("the instance: build, programs, bypass, what was lost", async () => {
    const scraped = await scrape();
    expect([...scraped.get("lasthop_build_info")!.series.keys()][0]).toMatch(
      /^version="0\.2\.0",object="abababababab",abi="v\d+-[0-9a-f]+",node="v[\d.]+",ffi="koffi"$/,
    );
    expect(series(scraped, "lasthop_program_info")).toEqual({
      'program="learn_tc",id="71",tag="0123456789abcdef"': 1,
      'program="reply_tc",id="72",tag="0123456789abcdef"': 1,
    });
    const names = [
      "bypass",
      "daemon_running",
      "daemon_starts_total",
      "trace_events_lost_total",
      "notices_lost_total",
    ];
    expect(names.map((name) => only(scraped, `lasthop_${name}`))).toEqual([1, 0, 5, 4, 7]);
  });

  test("without a daemon there is nothing that only one knows", async () => {
    const names = [...(await scrape()).keys()];
    expect(names.filter((name) => !name.startsWith("lasthop_"))).toEqual([]);
    expect(names).not.toContain("lasthop_reconciles_total");
  });

  test("the same as data", async () => {
    const { instance } = filledTables();
    const families = await readMetrics(instance);
    expect(families.find(({ name }) => name === "lasthop_device_up")).toEqual({
      name: "lasthop_device_up",
      type: "gauge",
      help: expect.any(String),
      series: [
        { labels: { device: "fw-a" }, value: 1 },
        { labels: { device: "fw-b" }, value: 0 },
      ],
    });
  });
});

describe("counters of VMs and services", () => {
  const count = async (filled: ReturnType<typeof filledTables>, daemon: DaemonMetrics, name: string) =>
    (await scrape(filled, daemon)).get(`lasthop_${name}_total`)!.series;

  test("of a VM do not fall when it gets another cell, or its cell is another's", async () => {
    const daemon = new DaemonMetrics();
    const filled = filledTables();
    const { tables, source } = filled;
    const flows = async (vm: string) => (await count(filled, daemon, "vm_flows_started")).get(`vm="${vm}"`);
    expect(await flows("web1")).toBe(40);
    // Another MAC: another id, and nothing counted yet.
    setVm(tables, "web1", { tap: "vnet0" }, { id: 8 });
    tables.guests.cells.set(6, {});
    expect(await flows("web1")).toBe(40);
    setCounts(source, "vm_stats", 8, { flows: 3 });
    expect(await flows("web1")).toBe(46);
    // Who gets its old cell begins with what is counted from then on.
    setCounts(source, "vm_stats", 6, { flows: 1 });
    setVm(tables, "new", { tap: "vnet1" }, { id: 6 });
    expect([await flows("new"), await flows("web1")]).toEqual([2, 46]);
    tables.guests.specs.delete({ name: "web1" });
    expect(await flows("web1")).toBeUndefined();
    expect(await flows("new")).toBe(2);
  });

  test("of a service go on when its counts begin anew", async () => {
    const daemon = new DaemonMetrics();
    const filled = filledTables();
    const held = async () => (await count(filled, daemon, "service_requests_held")).get('service="shop"');
    expect(await held()).toBe(16);
    setCounts(filled.source, "service_stats", 1, { flows: 1, held: 2 });
    expect(await held()).toBe(20);
    setCounts(filled.source, "service_stats", 1, { flows: 1, held: 3 });
    expect(await held()).toBe(22);
  });
});

describe("counters of devices", () => {
  const traffic = (packets: number): Traffic => ({
    request_packets: packets,
    request_bytes: 10 * packets,
    reply_packets: 0,
    reply_bytes: 0,
    relearns: 0,
  });

  test("do not fall when a last hop is given back, or taken by another", () => {
    const accounts = new TrafficAccounts();
    const packets = (now: [number, number][]) =>
      accounts.add("fw", new Map(now.map(([reference, count]) => [reference, traffic(count)])))
        .request_packets;
    expect(
      packets([
        [1, 100],
        [2, 5],
      ]),
    ).toBe(105);
    expect(packets([[2, 6]])).toBe(106);
    // The same index with another generation.
    expect(
      packets([
        [2, 6],
        [4097, 3],
      ]),
    ).toBe(109);
    expect(packets([])).toBe(109);
    // Its statistics were cleared under the same reference.
    expect(packets([[2, 1]])).toBe(110);
    accounts.keep(new Set());
    expect(packets([[2, 6]])).toBe(6);
  });

  test("go on in the daemon from scrape to scrape", async () => {
    const daemon = new DaemonMetrics();
    const filled = filledTables();
    const requests = async () =>
      (await scrape(filled, daemon)).get("lasthop_device_request_packets_total")!.series.get('device="fw-a"');
    expect(await requests()).toBe(101);
    expect(await requests()).toBe(101);
    // One goes back to nobody.
    const { records } = filled.tables.lastHops;
    records.set(1, { ...records.get(1)!, origin: ORIGIN.LEARNED, ...ownership(0n) });
    setTraffic(filled.source, 2, { request_packets: 5 });
    expect(await requests()).toBe(105);
    filled.tables.devices.delete({ name: "fw-a" });
    expect(await requests()).toBeUndefined();
  });
});

describe("of the daemon", () => {
  test("what it is told", async () => {
    const daemon = new DaemonMetrics();
    callAll(daemon);
    const scraped = await scrape(filledTables(), daemon);
    expect(only(scraped, "lasthop_reconciles_total")).toBe(1);
    expect(series(scraped, "lasthop_reconcile_actions_total")).toEqual({
      'kind="attach"': 2,
      'kind="detach"': 1,
    });
    expect(series(scraped, "lasthop_reconcile_errors_total")).toMatchObject({
      'code="E_NETLINK"': 1,
      'code="E_INTERNAL"': 0,
    });
    expect(series(scraped, "lasthop_reconcile_duration_seconds")).toMatchObject({ _count: 1, _sum: 0.02 });
    expect(only(scraped, "lasthop_reconcile_last_success_timestamp_seconds")).toBeGreaterThan(1.6e9);
    expect(series(scraped, "lasthop_reloads_total")).toEqual({ 'result="ok"': 1, 'result="error"': 0 });
    expect(series(scraped, "lasthop_notices_total")).toMatchObject({ 'kind="last_hop"': 1, 'kind="vm"': 0 });
    expect(only(scraped, "lasthop_netlink_overruns_total")).toBe(1);
    expect(series(scraped, "lasthop_device_probes_total")).toEqual({
      'device="fw-b",result="ok"': 1,
      'device="fw-b",result="error"': 1,
    });
    // A probe without an answer has no duration.
    expect(series(scraped, "lasthop_device_probe_duration_seconds")).toMatchObject({
      '_count device="fw-b"': 1,
      '_sum device="fw-b"': 0.003,
    });
    expect(series(scraped, "lasthop_vm_checks_total")).toEqual({
      'vm="web1",result="ok"': 1,
      'vm="web1",result="error"': 1,
    });
    expect(series(scraped, "lasthop_vm_check_last_duration_seconds")).toEqual({ 'vm="web1"': 0.004 });
    expect(series(scraped, "lasthop_sweep_duration_seconds")).toMatchObject({ _count: 2, _sum: 4 });
    expect(series(scraped, "lasthop_sweep_busy_seconds")).toMatchObject({ '_sum table="flows4"': 0.1 });
    expect(series(scraped, "lasthop_sweep_entries")).toMatchObject({ '_bucket le="1000",table="flows4"': 2 });
    expect(only(scraped, "lasthop_sweep_cpu_seconds_total")).toBeCloseTo(0.12);
    expect(series(scraped, "lasthop_sweep_expired_total")).toEqual({ 'table="flows4"': 400 });
    expect(only(scraped, "lasthop_sweep_last_hops_released_total")).toBe(6);
    expect(only(scraped, "lasthop_clock_repairs_total")).toBe(0);
  });

  test("pressure counts what was evicted between two sweeps, not what was before", async () => {
    const daemon = new DaemonMetrics();
    const pressure = async () =>
      (await scrape(filledTables(), daemon)).get("lasthop_table_pressure_ratio")!.series;
    daemon.swept(sweepResult(1_000_000));
    expect((await pressure()).size).toBe(0);
    daemon.swept(sweepResult(1_003_296));
    expect((await pressure()).get('table="flows4"')).toBe((800 + 3296) / 4096);
    // The table was exchanged, and counts anew.
    daemon.swept(sweepResult(5));
    expect((await pressure()).get('table="flows4"')).toBe(800 / 4096);
  });

  test("notices that were lost are counted on when the tables are exchanged", () => {
    const daemon = new DaemonMetrics();
    for (const total of [3, 3, 10, 0, 2, 1]) daemon.noticesLost(total);
    expect(daemon.lostNotices).toBe(10 + 2 + 1);
  });

  test("labels are bounded whatever it is told, and a device that goes takes its series with it", async () => {
    const daemon = new DaemonMetrics();
    for (let number = 0; number < 50; number++) {
      daemon.reconcileFailed(`E_${number}`);
      daemon.noticeSeen(`kind ${number}`);
      daemon.probed(`gone-${number}`, number % 2 === 0, 0.1);
      daemon.checked(`gone-${number}`, number % 2 === 0, 0.1);
    }
    daemon.probed("fw-a", true, 0.1);
    const scraped = await scrape(filledTables(), daemon);
    expect(series(scraped, "lasthop_reconcile_errors_total")).toMatchObject({ 'code="E_INTERNAL"': 50 });
    expect(series(scraped, "lasthop_notices_total")).toMatchObject({ 'kind="other"': 50 });
    expect(scraped.get("lasthop_device_probes_total")!.series.size).toBe(2);
    expect(scraped.get("lasthop_vm_checks_total")!.series.size).toBe(0);
    expect([...scraped.get("lasthop_device_probe_duration_seconds")!.labels].sort()).toEqual([
      "device",
      "le",
    ]);
    expect(JSON.stringify([...scraped.get("lasthop_device_probe_duration_seconds")!.series])).not.toContain(
      "gone",
    );
  });

  test("two of them do not get in each other's way", () => {
    expect(() => [new DaemonMetrics(), new DaemonMetrics()]).not.toThrow();
  });
});

describe("the text", () => {
  const NASTY = ["eth0", 'a"b', "back\\slash", "new\nline", "umlaut ü", "{}", ""];

  test("is what prom-client writes of the same series", async () => {
    const registry = new Registry();
    const labelNames = ["interface", "reason"];
    const help = 'All of "it",\nwith \\ in it.';
    const gauge = new Gauge({ name: "g", help, labelNames, registers: [registry] });
    const counter = new Counter({ name: "c_total", help: "Bare.", registers: [registry] });
    const empty = new Gauge({ name: "none", help: "Without series.", labelNames, registers: [registry] });
    expect(empty).toBeDefined();
    const families = [
      new Family("gauge", "g", help),
      new Family("counter", "c_total", "Bare."),
      new Family("gauge", "none", "Without series."),
    ] as const;
    counter.inc(1e21);
    families[1].add(1e21);
    for (const [place, name] of NASTY.entries()) {
      const value = [0, -1.5, 1e-7, 2 ** 53, 0.1 + 0.2, 12, 3][place]!;
      gauge.set({ interface: name, reason: "r" }, value);
      families[0].add(value, new Labels({ interface: name }), new Labels({ reason: "r" }));
    }
    const texts: string[] = [];
    for (const family of families) texts.push(await family.text(new Pace()));
    expect(`${texts.join("\n\n")}\n`).toBe(await registry.metrics());
  });

  test("follows the conventions: names, units, and every series once", async () => {
    const daemon = new DaemonMetrics();
    callAll(daemon);
    const text = await renderMetrics({ instance: filledTables().instance, daemon });
    expect(text.endsWith("\n")).toBe(true);
    for (const [name, { type, help, labels }] of parseMetrics(text)) {
      expect(name, name).toMatch(/^(lasthop|process|nodejs)_[a-z0-9]+(_[a-z0-9]+)*$/);
      expect(name.endsWith("_total"), name).toBe(type === "counter");
      expect(["counter", "gauge", "histogram"], name).toContain(type);
      expect(help, name).not.toBe("");
      if (name.endsWith("_info")) expect(labels.size, name).toBeGreaterThan(0);
    }
  });

  test("is written in slices, between which others have their turn", async () => {
    const family = new Family("gauge", "many", "Many.");
    for (let number = 0; number < 60_000; number++) family.add(number, { number });
    let turns = 0;
    const timer = setInterval(() => turns++, 0);
    const text = await family.text(new Pace());
    clearInterval(timer);
    expect(text.split("\n").length).toBe(60_002);
    expect(turns).toBeGreaterThan(0);
  });
});
