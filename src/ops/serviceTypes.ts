// SPDX-License-Identifier: Apache-2.0
// What the operations on services and VMs take and return. Keys are those of the JSON output; units are in the keys.

export type ServicePolicyName = "maglev" | "round-robin" | "least-flows" | "source-hash";
export type ServiceProtocol = "tcp" | "udp" | "sctp" | "icmp" | "any";
export type OnVmDown = "rebalance" | "reset" | "hold";
export type Answer = "host" | "none" | `vm:${string}`;
export type VmState = "unknown" | "up" | "drain" | "down";
export type VmCause = "operator" | "interface" | "neighbour" | "probe";

export interface CheckSpec {
  kind: "neighbour" | "icmp" | "tcp" | "http" | "https";
  /** Whom to ask; the VM's address if left out. */
  address?: string;
  /** Of tcp, http (80 if left out) and https (443). */
  port?: number;
  /** Of http and https; `/` if left out. */
  path?: string;
  host?: string;
  /** `200`, or a range as `200-399`. */
  status?: string;
  /** Of https. */
  verify?: boolean;
  interval_seconds?: number;
  timeout_seconds?: number;
  /** Failures in a row that mean down. */
  fall?: number;
  /** Answers in a row that mean up. */
  rise?: number;
}

/** A VM as somebody asks for it by hand; what is left out has the defaults of the configuration. */
export interface VmSpecInput {
  tap?: string;
  mac?: string;
  address?: string;
  /** That of its tap if left out, else 0. */
  zone?: number;
  labels?: readonly string[];
  /** The VM that gets the responses to what this one forwards. */
  responses?: string;
  check?: CheckSpec;
}

/** Either a VM, or all of the zone that have a label. */
export type TargetSpec = { vm: string } | { label: string };
export type MemberSpec = TargetSpec & { weight?: number };
export type AssociationSpec = TargetSpec & { client: string };

/** A service as somebody asks for it by hand; what is left out has the defaults of the configuration. */
export interface ServiceSpecInput {
  /** Or a prefix. */
  address: string;
  port?: number;
  protocol?: ServiceProtocol;
  zone?: number;
  policy?: ServicePolicyName;
  pool: readonly MemberSpec[];
  associations?: readonly AssociationSpec[];
  affinity_seconds?: number;
  on_vm_down?: OnVmDown;
  answer?: Answer;
}

export interface VmEntry {
  name: string;
  origin: "manual" | "config";
  zone: number;
  /** Where it is now; where it is said to be, if it is nowhere. */
  tap: string | null;
  mac: string | null;
  address: string | null;
  labels: string[];
  responses: string | null;
  state: VmState;
  cause: VmCause | null;
  /** Why it is not up, for people; null if it is. */
  why: string | null;
  /** The operator's word, until it is taken back. */
  operator: "drain" | "down" | null;
  /** What its check found last. */
  health: "unknown" | "up" | "down";
  changed_seconds_ago: number | null;
  /** Those that have it in their pool or associations. */
  services: string[];
  /** Of services, open now. */
  flows: number;
  /** Of services, ever handed to it; as the following since it has its place in the tables. */
  flows_started: number;
  request_packets: number;
  request_bytes: number;
  /** To what it forwarded unchanged. */
  response_packets: number;
  response_bytes: number;
}

export interface VmDetails extends VmEntry {
  /** As flows name it; null until its MAC is known. */
  id: number | null;
  /** As it was given; null: found out. */
  given: { tap: string | null; mac: string | null };
  /** Its tap is attached as a tap, in its zone. */
  attached: boolean;
  check: CheckSpec | null;
  last_frame_seconds_ago: number | null;
}

export interface ServiceEntry {
  name: string;
  origin: "manual" | "config";
  /** As the tables have it. */
  index: number;
  zone: number;
  /** Or a prefix. */
  address: string;
  /** Null for any. */
  port: number | null;
  protocol: ServiceProtocol;
  policy: ServicePolicyName;
  on_vm_down: OnVmDown;
  answer: Answer;
  affinity_seconds: number;
  vms_up: number;
  vms_total: number;
  /** Flows for which it chose a VM. How many are open is counted by VM only. */
  flows_started: number;
  /** Of these, by a stored association. */
  flows_associated: number;
  /** Of these, by the client's affinity. */
  flows_affine: number;
  /** That another VM got when theirs was down. */
  flows_rebalanced: number;
  /** Requests that were dropped, as no VM was up. */
  requests_empty: number;
  /** TCP segments that were answered with a reset. */
  requests_reset: number;
  /** Packets that were dropped, as the flow waits for its VM. */
  requests_held: number;
  /** ARP and neighbour discovery for its addresses. */
  addresses_answered: number;
}

/** A VM in a pool. */
export interface PoolMember {
  vm: string;
  /** By which it is there; null if it is by name. */
  label: string | null;
  weight: number;
  /** Of new flows, 0 to 1; null where the policy goes by flows, not by shares. */
  share: number | null;
  state: VmState;
  cause: VmCause | null;
  /** Of all services, open now. */
  flows: number;
}

export interface AssociationEntry {
  /** Prefix of its clients. */
  client: string;
  vm: string | null;
  label: string | null;
  vms_up: number;
  vms_total: number;
}

export interface ServiceDetails extends ServiceEntry {
  pool: PoolMember[];
  associations: AssociationEntry[];
}

export interface VmChange {
  name: string;
  /** Null if it is no longer there. */
  state: VmState | null;
  cause: VmCause | null;
  /** What was done, for people. */
  actions: string[];
}

export interface ServiceChange {
  name: string;
  /** Null if it is no longer there. */
  vms_up: number | null;
  vms_total: number | null;
  /** What was done, for people. */
  actions: string[];
}

/** In `lasthop status`. */
export interface ServiceCounts {
  total: number;
  /** None of their VMs is up. */
  empty: number;
}

export interface VmCounts {
  total: number;
  up: number;
  drain: number;
  down: number;
  unknown: number;
}
