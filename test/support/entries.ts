// SPDX-License-Identifier: Apache-2.0
// Results of operations, for tests of how they are shown.

import type {
  DoctorReport,
  Explanation,
  FlowEntry,
  LastHopEntry,
  StatusReport,
  SweepReport,
  TraceEvent,
  Tuple,
  VerdictCount,
} from "../../src/ops/types.ts";

/** Of a last hop that is nothing but Ethernet. */
export const PLAIN_PLACE = { tunnel: null, ipsec: false, via: "redirect", mark: null } as const;

export function flowEntry(changes: Partial<FlowEntry> = {}): FlowEntry {
  return {
    protocol: "tcp",
    zone: 0,
    remote_address: "198.51.100.7",
    remote_port: 40_000,
    local_address: "10.0.0.5",
    local_port: 443,
    icmp_id: null,
    tier: "established",
    state: "established",
    origin: "remote",
    flags: [],
    last_hop: {
      index: 1,
      generation: 1,
      mac: "02:00:00:00:0a:01",
      interface: "eth0",
      tags: [],
      ...PLAIN_PLACE,
      labels: [],
    },
    stale: false,
    vm: null,
    vm_mac: "02:00:00:00:00:05",
    idle_seconds: 3,
    ...changes,
  };
}

export const TUPLE: Tuple = {
  protocol: "tcp",
  family: 4,
  remote_address: "198.51.100.7",
  local_address: "10.0.0.5",
  remote_port: 40_000,
  local_port: 443,
  icmp_id: null,
};

export const STATUS: StatusReport = {
  pin_path: "/sys/fs/bpf/lasthop/v1-01234567",
  abi: "v1-01234567",
  bypass: false,
  interfaces: [
    {
      interface: "eth0",
      ifindex: 2,
      role: "uplink",
      hook: "xdp_native",
      zone: 0,
      policy: "enforce",
      program_id: 40,
      state: "ok",
      foreign_program_ids: [],
      link_layer: "ethernet",
      shared_tunnel: false,
      beneath: [],
      mtu: 1500,
      clamp_mss: true,
      via: "redirect",
      mark: 0,
    },
    {
      interface: "vnet3",
      ifindex: 12,
      role: "tap",
      hook: "tcx",
      zone: 1000,
      policy: "observe",
      program_id: null,
      state: "program_gone",
      foreign_program_ids: [7, 9],
      link_layer: "ethernet",
      shared_tunnel: false,
      beneath: [],
    },
  ],
  programs: [
    { name: "learn_xdp", id: 40, memory_bytes: 16_384, run_count: 123 },
    { name: "reply_tc", id: 41, memory_bytes: null, run_count: null },
  ],
  tables: [
    { table: "flows4", entries: 524_288, max_entries: 1_048_576, memory_bytes: 100 * 2 ** 20 },
    { table: "flows6", entries: 3, max_entries: 1_048_576, memory_bytes: null },
  ],
  tiers: [
    { tier: "established", entries: 524_291, max_entries: 2_097_152, fill: 0.25, evicted: 0 },
    { tier: "embryonic", entries: 5, max_entries: 131_072, fill: 5 / 131_072, evicted: 12 },
  ],
  services: { total: 0, empty: 0 },
  vms: { total: 0, up: 0, drain: 0, down: 0, unknown: 0 },
  last_pass: { ended_seconds_ago: 12.3, duration_seconds: 4.21, entries: 524_400, expired: 104 },
};

export const LAST_HOP: LastHopEntry = {
  index: 1,
  generation: 1,
  mac: "02:00:00:00:0a:01",
  interface: "eth0",
  ifindex: 2,
  tags: [{ protocol: "802.1q", vid: 10 }],
  ...PLAIN_PLACE,
  labels: [],
  vtep: null,
  state: "up",
  origin: "learned",
  device: null,
  flows: 1234,
  request_packets: 5000,
  request_bytes: 1_048_576,
  reply_packets: 4000,
  reply_bytes: 999,
  relearns: 7,
  idle_seconds: 252,
};

export const EXPLANATION: Explanation = {
  tuple: TUPLE,
  zone: 4,
  flow: flowEntry({ zone: 4 }),
  host: "routed",
  route: { interface: "eth1", gateway: "203.0.113.1", mac: "02:00:00:00:0b:01", source: "203.0.113.9" },
  verdict: "redirect",
  reason: "redirect",
  conclusion: "A reply goes to 02:00:00:00:0a:01 on eth0; the route lookup would have sent it to eth1.",
  service: null,
  delivery: null,
  notes: ["eth1 is not attached"],
};

export function traceEvent(changes: Partial<TraceEvent> = {}): TraceEvent {
  return {
    time_seconds: 0.1234,
    hook: "tcx",
    interface: "eth0",
    direction: "request",
    verdict: "pass",
    reason: "learn",
    explanation: "a new flow was learned",
    mac_before: "02:00:00:00:00:05",
    mac_after: "02:00:00:00:00:05",
    interface_after: null,
    flow_state: "syn",
    tcp_flags: "S",
    length_bytes: 74,
    ...changes,
  };
}

export const VERDICTS: VerdictCount[] = [
  {
    interface: "eth0",
    ifindex: 2,
    role: "uplink",
    reason: "refresh",
    verdict: "pass",
    packets: 1_234_567,
    bytes: 987_654_321,
  },
  {
    interface: "vnet3",
    ifindex: 12,
    role: "tap",
    reason: "redirect",
    verdict: "redirect",
    packets: 10,
    bytes: 640,
  },
];

export const SWEEP: SweepReport = {
  duration_seconds: 0.2154,
  longest_call_seconds: 0.0041,
  calls: 60,
  tables: [
    {
      table: "flows4",
      entries: 1_000_000,
      expired: 1000,
      states: { established: 998_000, closed: 1000, new: 0 },
      local_origin: 12,
      ages_seconds: { "1": 999_000 },
      evicted: { established: 7, closed: 0 },
    },
    { table: "flows6", entries: 0, expired: 0, states: {}, local_origin: 0, ages_seconds: {}, evicted: {} },
  ],
  zones: [
    { zone: 0, table: "flows4", states: { established: 997_000, closed: 1000, new: 0 } },
    { zone: 0, table: "flows6", states: { established: 0 } },
    { zone: null, table: "flows4", states: { established: 1000 } },
  ],
  last_hops_released: 1,
  clock_repaired: false,
};

export const DOCTOR: DoctorReport = {
  checks: [
    { name: "kernel", level: "ok", found: "6.18", hint: null },
    {
      name: "netfilter",
      level: "warn",
      found: "filter rules on the host",
      hint: "redirected replies pass them by",
    },
  ],
  interfaces: [
    {
      interface: "eth0",
      driver: "ixgbe",
      auto_mode: "tcx",
      reason: "it strips VLAN tags",
      notes: ["ethtool -K eth0 rx-vlan-offload off"],
    },
  ],
};
