// SPDX-License-Identifier: Apache-2.0
// Tables in memory of a host with two uplinks, two taps, two devices, VMs with services and a sweep behind it, so that
// every metric has at least one series; and a reader of the text format.

import { encode, joinLastHop, type StructInput, secondsToTicks } from "../../src/abi/codec.ts";
import {
  CAUSE,
  DEVICE_STATE,
  FLOW_STATE,
  HOOK,
  INTERFACE_FLAG,
  LAST_HOP_DROP,
  LAST_HOP_KIND,
  LAST_HOPS_MAX,
  ON_DOWN,
  ORIGIN,
  POLICY,
  REASON,
  REASONS,
  ROLE,
  TABLE,
  TABLES,
  TUNNEL_KIND,
  VM_STATE,
} from "../../src/abi/layout.gen.ts";
import { parseMac } from "../../src/addresses.ts";
import { service, vm } from "../../src/config/services.ts";
import { serviceSpecOf, vmSpecOf } from "../../src/controller/serviceSpec.ts";
import type { DaemonMetrics, MetricsInstance, SweptPass } from "../../src/metrics/index.ts";
import { ownerId, ownership, Tables } from "../../src/tables/index.ts";
import { memorySource, type TestSource } from "./tableSource.ts";

export const UPLINK_A = 11;
export const UPLINK_B = 12;
const TAP_A = 21;
const TAP_GONE = 22;

const GENERATION = 3;

export interface FilledTables {
  instance: MetricsInstance;
  tables: Tables;
  source: TestSource;
}

export function filledTables(): FilledTables {
  const source = memorySource();
  const instance: MetricsInstance = {
    pinRoot: "/nonexistent/lasthop",
    map: (name) => source.map(name),
    programNames: () => ["learn_tc", "reply_tc"],
    program: (name) => ({
      info: () => ({ ...PROGRAM, name, id: name === "learn_tc" ? 71 : 72 }),
      testRun: () => {
        throw new Error("no programs here");
      },
    }),
  };
  const tables = new Tables(source);
  fillInterfaces(source, tables);
  fillLastHops(source, tables);
  fillDevices(tables);
  fillSweep(tables);
  fillTunnels(source, tables);
  fillVms(source, tables);
  fillServices(source, tables);
  tables.control.set({ bypass: 1 });
  tables.allocations.set(0, { last_hops: 6, vms: 3, trace_lost: 4, notices_lost: 7 });
  tables.identity.set(0, { object: Buffer.alloc(32, 0xab), version: "0.2.0", starts: 5 });
  tables.vms.set({ zone: 0, mac: parseMac("02:00:00:00:00:01")! }, { id: 1, ifindex: TAP_A });
  return { instance, tables, source };
}

const PROGRAM = {
  id: 0,
  type: 3,
  name: "",
  tag: "0123456789abcdef",
  loadTime: 0n,
  jitedBytes: 0,
  xlatedBytes: 0,
  verifiedInsns: null,
  mapIds: [],
  runCount: 0n,
  runTimeNs: 0n,
};

function fillInterfaces(source: TestSource, tables: Tables): void {
  const attach = (ifindex: number, entry: StructInput<"interface">, present = true) => {
    tables.interfaces.set(ifindex, entry);
    if (present) tables.egressDevices.set(entry.slot!, ifindex);
  };
  const uplink = { role: ROLE.UPLINK, hook: HOOK.TCX, policy: POLICY.ENFORCE, prog_id: 71 };
  const tap = { role: ROLE.TAP, hook: HOOK.TCX, prog_id: 72 };
  attach(UPLINK_A, { ...uplink, slot: 1, name: "eth0" });
  attach(UPLINK_B, { ...uplink, slot: 2, name: "eth1", zone: 7, flags: INTERFACE_FLAG.PORT_BLOCKED });
  attach(TAP_A, { ...tap, slot: 3, name: "vnet0", policy: POLICY.OBSERVE });
  attach(TAP_GONE, { ...tap, slot: 5, name: "vnet0", policy: POLICY.OFF, flags: INTERFACE_FLAG.GONE }, false);
  tables.interfaces.set(30, { role: ROLE.BRIDGE, name: "br0", slot: 0 });
  tables.budgets.set(1, { last_hops: 3, last_hops_max: 4096 });
  tables.budgets.set(3, { vms: 1, vms_max: 256 });
  count(source, 1, REASON.LEARN, [10, 5], [1000, 500]);
  count(source, 3, REASON.REDIRECT, [2 ** 33, 1], [2 ** 40, 60]);
  count(source, 3, REASON.ERROR, [1, 0], [60, 0]);
  count(source, 0, REASON.NOT_ATTACHED, [0, 9], [0, 540]);
  // A row between two attached slots, which is nobody's.
  count(source, 4, REASON.REDIRECT, [77, 0], [77, 0]);
}

function count(source: TestSource, slot: number, reason: number, packets: number[], bytes: number[]): void {
  const value = Buffer.alloc(32);
  for (const cpu of [0, 1]) {
    value.writeBigUInt64LE(BigInt(packets[cpu]!), cpu * 16);
    value.writeBigUInt64LE(BigInt(bytes[cpu]!), cpu * 16 + 8);
  }
  source.map("verdicts").update(u32(slot * REASONS + reason), value);
}

/** One of ours, and one of the kernel's driver. */
function fillTunnels(source: TestSource, tables: Tables): void {
  tables.tunnels.rows.set(UPLINK_A, {
    name: "fw-a",
    kind: TUNNEL_KIND.VXLAN,
    peer_ifindex: 40,
    ifindex: UPLINK_A,
  });
  tables.tunnels.rows.set(UPLINK_B, { name: "fw-b", kind: TUNNEL_KIND.GRE, ifindex: UPLINK_B });
  const one = encode("tunnel_stats", {
    ...{ received_packets: 3, received_bytes: 300, received_errors: 1 },
    ...{ sent_packets: 4, sent_bytes: 400, sent_errors: 2 },
  });
  source.map("tunnel_stats").update(u32(UPLINK_A), Buffer.concat([one, one]));
}

function fillLastHops(source: TestSource, tables: Tables): void {
  const put = (index: number, record: StructInput<"last_hop">, alias: number, flows: number) => {
    tables.lastHops.records.set(index, { kind: LAST_HOP_KIND.ETHERNET, generation: GENERATION, ...record });
    tables.lastHops.aliases.set(index, joinLastHop(GENERATION, alias));
    tables.lastHops.refs.set(LAST_HOPS_MAX + index, flows);
    // What the pass under way has counted so far is not shown.
    tables.lastHops.refs.set(index, 1_000_000);
  };
  const onA = { ifindex: UPLINK_A, slot: 1 };
  const ofFirewall = { origin: ORIGIN.CONFIG, ...ownership(ownerId("fw-a")) };
  put(1, { ...onA, ...ofFirewall }, 1, 40);
  put(2, { ...onA, ...ofFirewall }, 1, 2);
  put(3, { ifindex: UPLINK_B, slot: 2 }, LAST_HOP_DROP, 8);
  put(4, { ifindex: 99, slot: 6 }, 4, 1);
  // Released.
  put(5, { ...onA, kind: LAST_HOP_KIND.NONE }, 5, 0);
  setTraffic(source, 1, {
    request_packets: 100,
    request_bytes: 6000,
    reply_packets: 50,
    reply_bytes: 90_000,
  });
  setTraffic(source, 2, { request_packets: 1, relearns: 4 });
}

/** What the second CPU has counted; the first has seen nothing. */
export function setTraffic(source: TestSource, index: number, stats: StructInput<"last_hop_stats">): void {
  const value = Buffer.concat([encode("last_hop_stats", {}), encode("last_hop_stats", stats)]);
  source.map("last_hop_stats").update(u32(index), value);
}

function fillDevices(tables: Tables): void {
  tables.devices.set(
    { name: "fw-a" },
    { origin: ORIGIN.CONFIG, state: DEVICE_STATE.UP, on_down: ON_DOWN.PEER, peer: "fw-b", flaps: 2 },
  );
  tables.devices.set(
    { name: "fw-b" },
    { origin: ORIGIN.MANUAL, zone: 7, state: DEVICE_STATE.DOWN, cause: CAUSE.PROBE, changed: minutesAgo(10) },
  );
}

/** As settling leaves it: in the cell that its id says. */
export function setVm(tables: Tables, name: string, given: object, found: StructInput<"vm_spec">): void {
  const config = vm.parse({ name, ...given });
  tables.guests.specs.set({ name }, { ...vmSpecOf(config, 7, ORIGIN.CONFIG), ...found });
  if (found.id) tables.guests.cells.set(found.id, { id: found.id });
}

export function setService(tables: Tables, name: string, given: object, index: number): void {
  const config = service.parse({ name, ...given });
  tables.services.specs.set({ name }, { ...serviceSpecOf(config, 7, ORIGIN.MANUAL), index });
}

function fillVms(source: TestSource, tables: Tables): void {
  const labels = ["web"];
  const mac = parseMac("02:00:00:00:00:01")!;
  setVm(tables, "web1", { tap: "vnet0", labels }, { id: 6, ifindex: TAP_A, mac, state: VM_STATE.UP });
  setVm(
    tables,
    "web2",
    { tap: "vnet9", labels },
    { id: 7, state: VM_STATE.DOWN, cause: CAUSE.INTERFACE, changed: minutesAgo(10) },
  );
  setVm(tables, "old", { mac: "02:00:00:00:00:03" }, { state: VM_STATE.DRAIN, cause: CAUSE.OPERATOR });
  tables.guests.flows.set(6, 11);
  setCounts(source, "vm_stats", 6, { flows: 20, request_packets: 2 ** 33, request_bytes: 5000 });
}

function fillServices(source: TestSource, tables: Tables): void {
  const pool = [{ label: "web" }, { vm: "web1" }, { vm: "old" }];
  setService(tables, "shop", { address: "192.0.2.80", port: 443, pool }, 1);
  const dns = { address: "2001:db8::/64", protocol: "any", policy: "source-hash", pool: [{ vm: "web2" }] };
  setService(tables, "dns", dns, 2);
  const counts = {
    flows: 30,
    associated: 3,
    affine: 4,
    empty: 5,
    rebalanced: 6,
    reset: 7,
    held: 8,
    answered: 9,
  };
  setCounts(source, "service_stats", 1, counts);
}

/** What the second CPU has counted; the first has seen the same. */
export function setCounts<S extends "vm_stats" | "service_stats">(
  source: TestSource,
  struct: S,
  row: number,
  counts: StructInput<S>,
): void {
  const one = encode(struct, counts);
  source.map(struct).update(u32(row), Buffer.concat([one, one]));
}

function minutesAgo(minutes: number): number {
  const tick = Number(process.hrtime.bigint() >> 28n);
  return (tick - secondsToTicks(60 * minutes)) >>> 0;
}

function fillSweep(tables: Tables): void {
  const now = Number(process.hrtime.bigint());
  tables.sweep.begin({ idleTicks: 0, budgetNs: 1 });
  tables.sweep.end();
  const states = Array<number>(8).fill(0);
  states[FLOW_STATE.ESTABLISHED] = 900;
  states[FLOW_STATE.CLOSED] = 100;
  const ages = Array<number>(16).fill(0);
  ages[0] = 990;
  ages[15] = 10;
  const evicted = Array<number>(8).fill(0);
  evicted[FLOW_STATE.ESTABLISHED] = 13;
  for (const table of Object.values(TABLE)) {
    tables.sweep.publish(table, {
      entries: 1000,
      expired: 200,
      states,
      ages,
      evicted,
      local_origin: 30,
      started_ns: now - 3e9,
      finished_ns: now - 1e9,
      busy_ns: 5e7,
    });
    tables.sweep.zoneReports.set((1 * TABLES + table) * 2 + 1, { states });
  }
  // Of a zone without a number.
  tables.sweep.zoneReports.set((0 * TABLES + TABLE.FLOWS6) * 2 + 1, { states });
  tables.zones.set(7, 1);
}

/** One call of each, so that each has a series. */
export function callAll(daemon: DaemonMetrics): void {
  daemon.reconciled([{ kind: "attach" }, { kind: "attach" }, { kind: "detach" }], 0.02);
  daemon.reconcileFailed("E_NETLINK");
  daemon.swept(sweepResult(10));
  daemon.swept(sweepResult(13));
  daemon.noticeSeen("last_hop");
  daemon.noticesLost(7);
  daemon.netlinkOverrun();
  daemon.probed("fw-b", true, 0.003);
  daemon.probed("fw-b", false, 1);
  daemon.checked("web1", true, 0.004);
  daemon.checked("web1", false, 2);
  daemon.reloaded(true);
}

/** Of one table; `evicted` flows since it was made. */
export function sweepResult(evicted: number): SweptPass {
  const report = {
    entries: 1000,
    expired: 200,
    states: [],
    local_origin: 0,
    ages: [],
    evicted: [evicted],
    started_ns: 0,
    finished_ns: 2e9,
    busy_ns: 5e7,
  };
  return {
    durationNs: 2e9,
    busyNs: 6e7,
    longestCallNs: 2e6,
    tables: [{ name: "flows4", report }],
    lastHopsReleased: 3,
    clockRepaired: false,
  };
}

function u32(value: number): Buffer {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32LE(value);
  return buffer;
}

export interface ParsedFamily {
  type: string;
  help: string;
  /** By the labels as they are written, `a="1",b="2"`. */
  series: Map<string, number>;
  labels: Set<string>;
}

const SUFFIX = /_(bucket|sum|count)$/;

/** Throws if two series are the same, or a line is none. */
export function parseMetrics(text: string): Map<string, ParsedFamily> {
  const families = new Map<string, ParsedFamily>();
  for (const line of text.split("\n")) {
    if (line === "") continue;
    const [, what, named, rest = ""] = /^# (HELP|TYPE) (\S+) (.*)$/.exec(line) ?? [];
    if (what === "HELP") {
      if (families.has(named!)) throw new Error(`${named} is there twice`);
      families.set(named!, { type: "", help: rest, series: new Map(), labels: new Set() });
      continue;
    }
    if (what === "TYPE") {
      families.get(named!)!.type = rest;
      continue;
    }
    const [, sample = "", labels = "", value] = /^([a-z_0-9]+)(?:\{(.*)\})? (\S+)$/.exec(line) ?? [];
    const name = families.has(sample) ? sample : sample.replace(SUFFIX, "");
    const family = families.get(name);
    if (!family || value === undefined) throw new Error(`not a sample: ${line}`);
    const key = name === sample ? labels : `${sample.slice(name.length)} ${labels}`.trim();
    if (family.series.has(key)) throw new Error(`the same series twice: ${line}`);
    family.series.set(key, Number(value.replace("Inf", "Infinity")));
    for (const [, label] of labels.matchAll(/([a-z_]+)="(?:[^"\\]|\\.)*"/g)) family.labels.add(label!);
  }
  return families;
}
