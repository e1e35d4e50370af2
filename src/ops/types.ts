// SPDX-License-Identifier: Apache-2.0
// What the operations take and return. Keys are those of the JSON output; units are in the keys.

export type Role = "uplink" | "tap";
export type Policy = "enforce" | "observe" | "off";
export type Mode = "auto" | "native" | "generic" | "tc";
export type Hook = "xdp_native" | "xdp_generic" | "tcx" | "clsact";
export type Protocol = "tcp" | "udp" | "sctp" | "icmp";

/** What every operation is given. */
export interface OpContext {
  /** Directory on bpffs under which the tables are pinned. */
  pinRoot: string;
  /** Something the user should know although the operation goes on. */
  warn(message: string): void;
}

export interface AttachOptions {
  interface: string;
  role: Role;
  mode?: Mode;
  zone?: number;
  policy?: Policy;
}

export interface AttachResult {
  interface: string;
  ifindex: number;
  role: Role;
  hook: Hook;
  zone: number;
  policy: Policy;
  program_id: number;
  /** What was done, in order, for people; empty when all was as asked already. */
  actions: string[];
}

export interface DetachResult {
  detached: { interface: string; ifindex: number }[];
  purged: boolean;
}

export interface InterfaceStatus {
  interface: string;
  ifindex: number;
  role: Role;
  hook: Hook;
  zone: number;
  policy: Policy;
  program_id: number | null;
  /** `ok`, or what is wrong: `interface_gone`, `program_gone`, `interface_down`, `port_blocked`. */
  state: "ok" | "interface_gone" | "program_gone" | "interface_down" | "port_blocked";
  /** Other programs on the same hook, in their order. */
  foreign_program_ids: number[];
}

export interface TableFill {
  table: string;
  entries: number;
  max_entries: number;
  memory_bytes: number | null;
}

export interface StatusReport {
  pin_path: string;
  abi: string;
  bypass: boolean;
  interfaces: InterfaceStatus[];
  programs: { name: string; id: number; memory_bytes: number | null; run_count: number | null }[];
  tables: TableFill[];
}

export interface VlanTag {
  protocol: "802.1q" | "802.1ad";
  vid: number;
}

/** A five-tuple as the user gives it: the remote side first. */
export interface Tuple {
  protocol: Protocol;
  family: 4 | 6;
  remote_address: string;
  local_address: string;
  /** Ports; for ICMP echo the identifier stands in `icmp_id` and both are 0. */
  remote_port: number;
  local_port: number;
  icmp_id: number | null;
}

export interface FlowEntry {
  protocol: Protocol | `proto_${number}`;
  zone: number;
  remote_address: string;
  remote_port: number;
  local_address: string;
  local_port: number;
  icmp_id: number | null;
  tier: "established" | "embryonic";
  state: string;
  origin: "remote" | "local";
  flags: string[];
  last_hop: { index: number; generation: number; mac: string; interface: string; tags: VlanTag[] } | null;
  /** The record that the flow names is gone or was reused: its packets pass. */
  stale: boolean;
  vm_mac: string | null;
  idle_seconds: number;
}

export interface FlowFilter {
  zone?: number;
  device_mac?: string;
  interface?: string;
  state?: string;
  /** Either side: an address or a prefix. */
  address?: string;
  limit?: number;
}

export interface LastHopEntry {
  index: number;
  generation: number;
  mac: string;
  interface: string;
  ifindex: number;
  tags: VlanTag[];
  /** `up`, or what the operator or the controller made of it; `gone`: its interface no longer exists. */
  state: "up" | "route" | "drop" | "alias" | "gone";
  origin: "learned" | "manual" | "config";
  flows: number;
  request_packets: number;
  request_bytes: number;
  reply_packets: number;
  reply_bytes: number;
  idle_seconds: number | null;
}

export interface VerdictCount {
  interface: string;
  ifindex: number;
  role: Role | null;
  reason: string;
  verdict: "pass" | "redirect" | "drop";
  packets: number;
  bytes: number;
}

export interface SweepReport {
  duration_seconds: number;
  longest_call_seconds: number;
  calls: number;
  tables: {
    table: string;
    entries: number;
    expired: number;
    states: Record<string, number>;
    local_origin: number;
    ages_seconds: Record<string, number>;
  }[];
  last_hops_released: number;
}

export interface TraceEvent {
  /** Seconds since the trace began. */
  time_seconds: number;
  hook: Hook;
  interface: string;
  direction: "request" | "reply";
  verdict: "pass" | "redirect" | "drop";
  reason: string;
  explanation: string;
  mac_before: string;
  mac_after: string;
  interface_after: string | null;
  flow_state: string | null;
  tcp_flags: string | null;
  length_bytes: number;
}

/** What `explain` knows; `conclusion` is the sentence for people. */
export interface Explanation {
  tuple: Tuple;
  zone: number;
  flow: FlowEntry | null;
  /** How a reply of the VM goes on its way to the host. */
  host: "bridged" | "routed" | "unknown";
  /** The host's own route lookup towards the remote side; null where the guest decides. */
  route: { interface: string; gateway: string | null; mac: string | null; source: string | null } | null;
  verdict: "pass" | "redirect" | "drop";
  reason: string;
  conclusion: string;
  notes: string[];
}

export interface DoctorCheck {
  name: string;
  /** `fail` means that lasthop cannot work. */
  level: "ok" | "warn" | "fail";
  found: string;
  hint: string | null;
}

export interface DoctorReport {
  checks: DoctorCheck[];
  interfaces: {
    interface: string;
    driver: string | null;
    auto_mode: Hook;
    reason: string;
    notes: string[];
  }[];
}
