// SPDX-License-Identifier: Apache-2.0
// What the operations take and return. Keys are those of the JSON output; units are in the keys.

import type { VerdictName } from "../abi/reasons.ts";
import type { ErrorCode } from "../errors.ts";
import type { OnVmDown, ServiceCounts, ServicePolicyName, VmCounts } from "./serviceTypes.ts";

export type * from "./serviceTypes.ts";

export type Role = "uplink" | "tap";
export type Policy = "enforce" | "observe" | "off";
export type Mode = "auto" | "native" | "generic" | "tc";
export type Via = "redirect" | "stack";
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
  /** Of the way back by an uplink; `auto`: the netdev's own, as it changes. */
  mtu?: number | "auto";
  clamp_mss?: boolean;
  via?: Via;
  /** 0 for none. */
  mark?: number;
}

/** How replies leave by an uplink; a tap has nothing of it. */
export interface UplinkWay {
  /** Of IP packets on the way back. */
  mtu?: number;
  clamp_mss?: boolean;
  via?: Via;
  /** Of the replies that go by the host's routing; 0 for none. */
  mark?: number;
}

export interface AttachResult extends UplinkWay {
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

/** One change that would bring the host to its configuration. */
export interface PlannedAction {
  /** `attach`, `change`, `detach`, `gone`, `last-hops`, `device-add`, … */
  kind: string;
  /** Name of the interface, device, zone or table that it is about. */
  object: string;
  text: string;
  /** Key in the configuration file, as "taps[0]"; null for what nobody configured. */
  config: string | null;
}

/** What cannot be as it is configured, and why. */
export interface ConfigFailure {
  object: string;
  config: string | null;
  code: ErrorCode;
  message: string;
  hint: string | null;
}

export interface PlanReport {
  file: string;
  /** In the order in which they would be done; empty when all is as configured. */
  actions: PlannedAction[];
  failed: ConfigFailure[];
  warnings: string[];
}

export interface ApplyReport extends PlanReport {
  /** What was done, in order, for people. */
  done: string[];
}

export interface DetachResult {
  detached: { interface: string; ifindex: number }[];
  purged: boolean;
}

export interface InterfaceStatus extends UplinkWay {
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
  /** `none`: its packets begin with their IP header. */
  link_layer: "ethernet" | "none";
  /** Many tunnels share it, and each packet has its key. */
  shared_tunnel: boolean;
  /** Uplinks beneath it that see its packets first. */
  beneath: string[];
}

export interface TableFill {
  table: string;
  entries: number;
  max_entries: number;
  memory_bytes: number | null;
}

/** Both families together. */
export interface TierFill {
  tier: "established" | "embryonic";
  entries: number;
  max_entries: number;
  /** entries / max_entries */
  fill: number;
  /** By the LRU since the tables were made, as of the last expiry pass. */
  evicted: number;
}

export interface StatusReport {
  pin_path: string;
  abi: string;
  bypass: boolean;
  interfaces: InterfaceStatus[];
  programs: { name: string; id: number; memory_bytes: number | null; run_count: number | null }[];
  tables: TableFill[];
  tiers: TierFill[];
  services: ServiceCounts;
  /** Those that have a name. */
  vms: VmCounts;
  /** The last expiry pass that ended; null if none ever did. */
  last_pass: { ended_seconds_ago: number; duration_seconds: number; entries: number; expired: number } | null;
}

export interface VlanTag {
  protocol: "802.1q" | "802.1ad";
  vid: number;
}

/** Which tunnel of a shared device. */
export interface TunnelEnds {
  /** The far end; null on a shared XFRM interface, which does not tell. */
  remote: string | null;
  local: string | null;
  /** VNI, key or XFRM interface id; null for a GRE header without a key. */
  id: number | null;
}

/** What a last hop's requests show, and how replies leave by it. */
export interface LastHopPlace {
  /** Null where there is no link layer. */
  mac: string | null;
  interface: string;
  tags: VlanTag[];
  tunnel: TunnelEnds | null;
  /** Of MPLS, outer first. */
  labels: number[];
  /** Came by an IPsec policy without an interface of its own. */
  ipsec: boolean;
  /** `stack`: replies go by the host's own routing. */
  via: Via;
  /** Of the replies that do; null for none. */
  mark: number | null;
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
  last_hop: ({ index: number; generation: number } & LastHopPlace) | null;
  /** The record that the flow names is gone or was reused: its packets pass. */
  stale: boolean;
  /** Name of its VM; null if it has none, or none is known. */
  vm: string | null;
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

export interface LastHopEntry extends LastHopPlace {
  index: number;
  generation: number;
  ifindex: number;
  /** The far end of the VXLAN tunnel that it is behind, by the forwarding table; null: none is known. */
  vtep: string | null;
  /** `up`, or what the operator or the controller made of it; `gone`: its interface no longer exists. */
  state: "up" | "route" | "drop" | "alias" | "gone";
  origin: "learned" | "manual" | "config";
  /** Whose it is. */
  device: string | null;
  flows: number;
  request_packets: number;
  request_bytes: number;
  reply_packets: number;
  reply_bytes: number;
  /** Flows that came here from another last hop. */
  relearns: number;
  idle_seconds: number | null;
}

export type OnDown = "route" | "hold" | "drop" | `peer:${string}`;

export interface ProbeSpec {
  kind: "icmp" | "tcp";
  /** Of a TCP probe. */
  port: number | null;
  /** Null: the device's first address. */
  address: string | null;
  interval_seconds?: number;
  timeout_seconds?: number;
  /** Failures in a row that mean down. */
  fall?: number;
  /** Answers in a row that mean up. */
  rise?: number;
}

/** What is asked of a device; what is left out stays as it is, or has its default. */
export interface DeviceSpec {
  macs?: readonly string[];
  addresses?: readonly string[];
  /** The far ends of VXLAN tunnels that it is behind. */
  vteps?: readonly string[];
  /** Name or pattern of its uplinks; null: all of its zone. */
  interface?: string | null;
  /** Outer first. */
  vlans?: readonly number[];
  zone?: number;
  reply_mac?: string | null;
  on_down?: OnDown;
  /** What is left out of it stays as it is too, if its kind is the same. */
  probe?: Partial<ProbeSpec> | null;
}

export interface DeviceEntry extends Required<Omit<DeviceSpec, "addresses" | "probe">> {
  probe: Required<ProbeSpec> | null;
  name: string;
  origin: "manual" | "config";
  state: "unknown" | "up" | "down";
  cause: "operator" | "interface" | "neighbour" | "probe" | null;
  operator_down: boolean;
  changed_seconds_ago: number | null;
  /** Changes of its MAC that came too soon after another. */
  flaps: number;
  /** With the MAC that each has at present. */
  addresses: { address: string; mac: string | null }[];
  /** What the forwarding tables of its VXLAN uplinks have behind its VTEPs. */
  vtep_macs: VtepMacEntry[];
  flows: number;
  request_packets: number;
  request_bytes: number;
  reply_packets: number;
  reply_bytes: number;
  relearns: number;
}

export interface VtepMacEntry {
  mac: string;
  vtep: string;
  /** The uplink. */
  interface: string;
  /** Of a device with several. */
  vni: number | null;
}

export interface DeviceDetails extends DeviceEntry {
  /** What the kernel knows of its addresses. */
  neighbours: { interface: string; address: string; mac: string | null; state: string }[];
  last_hops: LastHopEntry[];
}

export interface DeviceChange {
  name: string;
  /** Null if it is no longer there. */
  state: DeviceEntry["state"] | null;
  cause: DeviceEntry["cause"];
  /** What was done, for people. */
  actions: string[];
}

export interface VerdictCount {
  interface: string;
  ifindex: number;
  role: Role | null;
  reason: string;
  verdict: VerdictName;
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
    /** By the LRU since the tables were made, by the state that they were in. */
    evicted: Record<string, number>;
  }[];
  /** Flows by state, as the pass met them; zone null: all zones that are not counted by themselves. */
  zones: { zone: number | null; table: string; states: Record<string, number> }[];
  last_hops_released: number;
  /** The programs' clock was wrong and has been set right; nothing was expired. */
  clock_repaired: boolean;
}

export interface TraceEvent {
  /** Seconds since the trace began. */
  time_seconds: number;
  hook: Hook;
  interface: string;
  direction: "request" | "reply";
  verdict: VerdictName;
  reason: string;
  explanation: string;
  mac_before: string;
  /** Null if it leaves without a link layer. */
  mac_after: string | null;
  /** Null if it does not leave straight by one. */
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
  verdict: VerdictName;
  reason: string;
  conclusion: string;
  /** That which distributes requests to the local side; null if there is none. */
  service: {
    name: string;
    policy: ServicePolicyName;
    on_vm_down: OnVmDown;
    vms_up: number;
    vms_total: number;
  } | null;
  /** Which VM gets requests by a service, or answers to what it forwarded; null where that is left to the host. */
  delivery: string | null;
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
    /** Null: it cannot be attached, and \`reason\` says why. */
    auto_mode: Hook | null;
    reason: string;
    notes: string[];
  }[];
}

export interface ConfigCheck {
  file: string;
  valid: boolean;
  /** In the order of the file; lines and columns count from 1. */
  problems: { line: number; column: number; path: string; message: string }[];
  /** null if it is not valid. */
  has: {
    zones: Record<string, number>;
    /** By name or pattern. */
    uplinks: string[];
    taps: string[];
    devices: string[];
    vms: string[];
    services: string[];
    tunnels: string[];
    /** Where it listens; null for nowhere. */
    metrics: string | null;
  } | null;
}

export type TunnelTypeName = "vxlan" | "nvgre" | "gre" | "ipip" | "mpls";

/** `incomplete`: packets that arrive are not led there; the next reconciliation does that. */
export type TunnelState =
  | "ok"
  | "interface_gone"
  | "interface_down"
  | "underlay_gone"
  | "underlay_down"
  | "program_gone"
  | "incomplete";

export interface TunnelEntry {
  name: string;
  type: TunnelTypeName;
  /** Who encapsulates: an interface of the kernel's driver, or lasthop's own programs. */
  encapsulation: "device" | "builtin";
  ifindex: number;
  local: string | null;
  remote: string | null;
  /** VNI, VSID or key. */
  id: number | null;
  port: number | null;
  /** Outer first. */
  labels: { request: number[]; reply: number[] } | null;
  underlay: string | null;
  mtu: number;
  state: TunnelState;
  /** Received by the tunnel from its other end. Bytes are those of the inner packets. */
  received_packets: number;
  received_bytes: number;
  sent_packets: number;
  sent_bytes: number;
  received_errors: number;
  sent_errors: number;
}

export interface TunnelDetails extends TunnelEntry {
  /** Of its interface, as `ip -d link` shows it; null if that is gone. */
  kind: string | null;
  /** False: it was there already, and stays when the configuration no longer has it. */
  made_by_lasthop: boolean;
  mac: string | null;
  ttl: number;
  tos: number;
  ttl_model: "uniform" | "pipe" | null;
  next_hop: string | null;
  /** The other end of its pair. */
  hidden_interface: string | null;
  programs: {
    program: string;
    interface: string;
    hook: "tcx" | "clsact" | null;
    program_id: number | null;
  }[];
}
