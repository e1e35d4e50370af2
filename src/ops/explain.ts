// SPDX-License-Identifier: Apache-2.0
// What would happen to a reply now: the decisions of reply_tc in bpf/reply.h and bpf/reply_send.h, in the same order,
// from the same tables. What only the packet could tell (its TTL, its length) becomes a note.

import type { StructValue } from "../abi/codec.ts";
import { FLOW_FLAG, INTERFACE_FLAG, LAST_HOP_KIND, POLICY, type REASON, ROLE } from "../abi/layout.gen.ts";
import { REASON_INFO, type VerdictName } from "../abi/reasons.ts";
import { formatMac, parseMac } from "../addresses.ts";
import { isAttached } from "../controller/interfaceEntry.ts";
import { openInstance } from "../kernel/instance.ts";
import { Netlink, NetlinkError } from "../kernel/netlink.ts";
import type { Neighbour } from "../kernel/rtnetlink.ts";
import {
  type Flow,
  type InterfaceEntry,
  type LastHopRecord,
  type Resolution,
  Tables,
} from "../tables/index.ts";
import type { Delivery } from "./explainService.ts";
import { FlowView, lastHopPlace } from "./flowView.ts";
import { findFlow } from "./tupleKeys.ts";
import type { Explanation, OpContext, Tuple } from "./types.ts";

type ReasonKey = keyof typeof REASON;

/** What the tables and the kernel say about one tuple. */
interface Situation {
  tuple: Tuple;
  zone: number;
  tables: Tables;
  netlink: Netlink;
  flow: Flow | undefined;
  /** The VM: the flow's, or the one that has the local address. */
  vm: (StructValue<"vm"> & { mac: string }) | undefined;
  tap: InterfaceEntry | undefined;
  lastHop: Resolution | undefined;
  uplink: InterfaceEntry | undefined;
  neighbours: readonly Neighbour[];
  notes: string[];
}

/** Changes nothing. */
export async function explain(context: OpContext, tuple: Tuple, zone = 0): Promise<Explanation> {
  using instance = openInstance(context.pinRoot);
  using netlink = new Netlink();
  const now = look(new Tables(instance), netlink, tuple, zone);
  const host = hostKind(now);
  const route = host === "routed" ? lookUpRoute(now) : null;
  const key = decide(now, route);
  const { verdict, text } = REASON_INFO[key];
  addNotes(now, key, host);
  return {
    tuple,
    zone,
    flow: now.flow ? new FlowView(now.tables).entry(now.flow) : null,
    host,
    route,
    verdict,
    reason: key.toLowerCase(),
    conclusion: conclude(now, key, verdict, text, host, route),
    ...(await explainDelivery(now)),
    notes: now.notes,
  };
}

/** Where nothing is delivered, what would explain it is not loaded: the hot path asks no further either. */
async function explainDelivery(now: Situation): Promise<Delivery> {
  if (now.tables.control.get().vm_cells === 0) return { service: null, delivery: null };
  const { explainService } = await import("./explainService.ts");
  return explainService({ ...now, mac: now.vm?.mac, nameOf: (ifindex) => interfaceName(now, ifindex) });
}

function look(tables: Tables, netlink: Netlink, tuple: Tuple, zone: number): Situation {
  const flow = findFlow(tables, tuple, zone);
  const neighbours = netlink.neighbours();
  const vm = findVm(tables, zone, flow, tuple.local_address, neighbours);
  const entry = vm && tables.interfaces.get(vm.ifindex);
  const isLocalOrigin = ((flow?.value.flags ?? 0) & FLOW_FLAG.LOCAL_ORIGIN) !== 0;
  const lastHop = flow && !isLocalOrigin ? tables.lastHops.resolve(flow.value.last_hop) : undefined;
  const record = lastHop && lastHop.state !== "stale" ? lastHop.record : undefined;
  const uplink = record && tables.interfaces.get(record.ifindex);
  const tap = entry?.role === ROLE.TAP ? entry : onlyTap(tables, zone);
  return { tuple, zone, tables, netlink, flow, vm, tap, lastHop, uplink, neighbours, notes: [] };
}

function findVm(
  tables: Tables,
  zone: number,
  flow: Flow | undefined,
  address: string,
  neighbours: readonly Neighbour[],
): Situation["vm"] {
  const id = flow?.value.vm ?? 0;
  if (id !== 0) {
    for (const [key, vm] of tables.vms.entries()) {
      if (vm.id === id) return { ...vm, mac: formatMac(key.mac) };
    }
    return undefined;
  }
  for (const mac of macsOf(neighbours, address)) {
    const vm = tables.vms.get({ zone, mac: parseMac(mac)! });
    if (vm) return { ...vm, mac };
  }
  return undefined;
}

function macsOf(neighbours: readonly Neighbour[], address: string): string[] {
  const own = neighbours.filter((neighbour) => neighbour.address === address && neighbour.state !== "failed");
  return own.flatMap((neighbour) => neighbour.mac ?? []);
}

/** Where only one tap could be meant. */
function onlyTap(tables: Tables, zone: number): InterfaceEntry | undefined {
  const taps = tables.interfaces.list().filter((entry) => entry.role === ROLE.TAP && entry.zone === zone);
  return taps.length === 1 ? taps[0] : undefined;
}

// The decision

function decide(now: Situation, route: Explanation["route"]): ReasonKey {
  const { tables, tap, flow } = now;
  if (!tap && !hasTap(now)) return "NOT_ATTACHED";
  if (tables.control.get().bypass) return "BYPASS";
  if (tap?.policy === POLICY.OFF) return "OFF";
  if (!flow) return "NO_FLOW";
  if (flow.value.flags & FLOW_FLAG.LOCAL_ORIGIN) return "LOCAL_ORIGIN";
  if (isAnotherVm(now)) return "VM_MISMATCH";
  return decideLastHop(now, route);
}

function decideLastHop(now: Situation, route: Explanation["route"]): ReasonKey {
  const { tap, lastHop, tables } = now;
  const observes = tap?.policy === POLICY.OBSERVE;
  if (!lastHop || lastHop.state === "stale") return "STALE_LAST_HOP";
  if (lastHop.state === "route") return "DEVICE_DOWN";
  if (lastHop.state === "drop") return observes ? "OBSERVE_CHANGE" : "DEVICE_DROP";
  // An alias may name a record that was given back.
  const record = tables.lastHops.records.get(lastHop.target);
  if (!record || record.kind === 0) return "STALE_LAST_HOP";
  if (record.ifindex === tap?.ifindex) return "HAIRPIN";
  if (tables.egressDevices.get(record.slot) !== record.ifindex) return "INTERFACE_GONE";
  const isStack = record.kind === LAST_HOP_KIND.STACK;
  if (!observes) return isStack ? "STACK" : "REDIRECT";
  const isSame = isStack
    ? hostKind(now) === "routed" && record.mark === 0
    : isRouteOf(route, record, interfaceName(now, record.ifindex));
  return isSame ? "OBSERVE_SAME" : "OBSERVE_CHANGE";
}

/** Whether the host's own route leads to this last hop. */
function isRouteOf(route: Explanation["route"], { kind, mac }: LastHopRecord, name: string): boolean {
  if (kind === LAST_HOP_KIND.IP) return route?.interface === name;
  return route?.mac === formatMac(mac);
}

function hasTap({ tables, zone }: Situation): boolean {
  return tables.interfaces.list().some((entry) => entry.role === ROLE.TAP && entry.zone === zone);
}

/** The local address is at another VM now than the one that replied first. */
function isAnotherVm({ flow, vm, tables, zone, neighbours, tuple }: Situation): boolean {
  if (!flow?.value.vm) return false;
  // Many VMs hold the address of a service: the one that was chosen answers.
  if (flow.value.flags & FLOW_FLAG.SERVICE) return vm === undefined;
  const present = macsOf(neighbours, tuple.local_address)
    .map((mac) => tables.vms.get({ zone, mac: parseMac(mac)! }))
    .filter((known) => known !== undefined);
  if (present.length > 0) return present.every((known) => known.id !== flow.value.vm);
  return vm === undefined;
}

// The host

/** Bridged if the VM and its devices are ports of one bridge, so that frames need not pass the host's stack. */
function hostKind({ tap, uplink, tables }: Situation): Explanation["host"] {
  if (!tap) return "unknown";
  if (tap.l3_ifindex === tap.ifindex) return "routed";
  if (uplink) return uplink.l3_ifindex === tap.l3_ifindex ? "bridged" : "routed";
  const uplinks = tables.interfaces.list().filter((entry) => entry.role === ROLE.UPLINK);
  if (uplinks.length === 0) return "unknown";
  if (uplinks.every((entry) => entry.l3_ifindex === tap.l3_ifindex)) return "bridged";
  return uplinks.some((entry) => entry.l3_ifindex === tap.l3_ifindex) ? "unknown" : "routed";
}

/** With a mark, if one is given. */
function lookUpRoute(now: Situation, mark = 0): Explanation["route"] {
  const { netlink, tap, tuple, notes } = now;
  const towards = `towards ${tuple.remote_address}${mark === 0 ? "" : ` with mark 0x${mark.toString(16)}`}`;
  try {
    const route = netlink.routeGet({
      destination: tuple.remote_address,
      source: tuple.local_address,
      inIfindex: tap!.l3_ifindex,
      ...(mark !== 0 && { mark }),
    });
    if (route.type !== "unicast" || route.outIfindex === null) {
      notes.push(`the host's route lookup ${towards} says ${route.type}`);
      return null;
    }
    const hop = route.gateway ?? tuple.remote_address;
    const neighbour = now.neighbours.find(
      (candidate) => candidate.ifindex === route.outIfindex && candidate.address === hop,
    );
    return {
      interface: netlink.link(route.outIfindex)?.name ?? `if${route.outIfindex}`,
      gateway: route.gateway,
      mac: neighbour?.mac ?? null,
      source: route.source,
    };
  } catch (error) {
    if (!(error instanceof NetlinkError)) throw error;
    notes.push(`the host's route lookup ${towards} is refused: ${error.message}`);
    return null;
  }
}

// For people

function conclude(
  now: Situation,
  key: ReasonKey,
  verdict: VerdictName,
  text: string,
  host: Explanation["host"],
  route: Explanation["route"],
): string {
  if (key === "REDIRECT") {
    const record = targetRecord(now)!;
    const name = interfaceName(now, record.ifindex);
    const instead =
      host === "bridged"
        ? ", wherever the guest sends it"
        : route
          ? `, not ${routeText(route)} as the host's route says`
          : "";
    const same = route !== null && isRouteOf(route, record, name) && route.interface === name;
    return `A reply is redirected to ${placeWords(record, name)}${same ? ", which is also what the host's route says" : instead}.`;
  }
  if (key === "STACK") return concludeStack(now);
  if (verdict === "drop") return `A reply is dropped: ${text}.`;
  const then =
    host === "bridged"
      ? "It goes where the guest sends it."
      : route
        ? `The host sends it ${routeText(route)}.`
        : "It takes the VM's own route.";
  return `A reply passes: ${text}. ${then}`;
}

function concludeStack(now: Situation): string {
  const { mark } = targetRecord(now)!;
  const marked = mark === 0 ? "" : ` with mark 0x${mark.toString(16)}`;
  const route = lookUpRoute(now, mark);
  const then = route ? `, which sends it ${routeText(route)}` : "";
  return `A reply is handed to the host's own routing${marked}${then}.`;
}

/** `02:00:00:00:0a:01 on eth0`, `gre1`, `vxlan0, in the tunnel to 192.0.2.2 with id 100`. */
function placeWords(record: LastHopRecord, name: string): string {
  const { mac, tunnel } = lastHopPlace(record);
  const id = tunnel?.id == null ? "" : ` with id ${tunnel.id}`;
  const to = tunnel?.remote == null ? "" : ` to ${tunnel.remote}`;
  const inside = tunnel === null ? "" : `, in the tunnel${to}${id}`;
  return `${mac === null ? name : `${mac} on ${name}`}${inside}`;
}

function routeText(route: NonNullable<Explanation["route"]>): string {
  const by = route.gateway === null ? "directly" : `via ${route.gateway}`;
  return `${by}${route.mac ? ` (${route.mac})` : ""} on ${route.interface}`;
}

function targetRecord({ lastHop, tables }: Situation): LastHopRecord | undefined {
  if (!lastHop || lastHop.state === "stale") return undefined;
  return tables.lastHops.records.get(lastHop.target);
}

function interfaceName({ netlink, tables }: Situation, ifindex: number): string {
  return netlink.link(ifindex)?.name ?? tables.interfaces.get(ifindex)?.name ?? `if${ifindex}`;
}

function addNotes(now: Situation, key: ReasonKey, host: Explanation["host"]): void {
  const { notes, flow, tap, vm } = now;
  if (host === "bridged") {
    notes.push(
      "the host is a bridge for this VM: the guest's own route lookup decides about a reply that passes",
    );
  }
  if (!flow) noteMissing(now);
  noteTransparent(now);
  if (key === "VM_MISMATCH") {
    notes.push(
      "the VM that replied first is not the one that has the local address now; a new connection starts anew",
    );
  }
  if (key === "OBSERVE_CHANGE" && host === "bridged") {
    notes.push("it counts as observe_same if the guest sends it to that MAC anyway");
  }
  const isSent = key === "REDIRECT" || key === "STACK";
  if (flow && !flow.value.vm && isSent) {
    notes.push("no VM has replied yet: the first that does is the flow's VM from then on");
  }
  if (isSent) noteWay(now, key, host);
  if (!tap && vm) notes.push(`the VM ${vm.mac} is on an interface that is not attached as a tap`);
}

function noteMissing({ tables, tuple, zone, notes }: Situation): void {
  const entries = tables.interfaces.list().filter(isAttached);
  const elsewhere = tables.interfaces
    .zones()
    .filter((other) => other !== zone && findFlow(tables, tuple, other) !== undefined);
  if (elsewhere.length > 0) notes.push(`there is such a flow in zone ${elsewhere.join(", ")}`);
  if (!entries.some((entry) => entry.role === ROLE.UPLINK && entry.zone === zone)) {
    notes.push(`no uplink is attached in zone ${zone}, so nothing is learned there`);
  }
  if (findFlow(tables, swapped(tuple), zone)) {
    notes.push("there is a flow with the two sides exchanged: the remote side comes first");
  }
  notes.push(
    "a reply creates no flow; the next request does. A TCP SYN of the VM would be recorded as its own connection",
  );
}

/** A VM that forwards packets unchanged, and the server behind it, in one zone: each hides the other's flow. */
function noteTransparent({ tables, tuple, zone, flow, notes }: Situation): void {
  const mirrored = flow && findFlow(tables, swapped(tuple), zone);
  if (!mirrored) return;
  const local = (which: Flow): boolean => (which.value.flags & FLOW_FLAG.LOCAL_ORIGIN) !== 0;
  if (local(flow) === local(mirrored)) return;
  notes.push(
    `a VM of this host forwards this connection unchanged to another VM in the same zone ${zone}: the server's ` +
      "answers would go past it. Give each side of that VM a zone of its own: lasthop attach TAP --role tap --zone N",
  );
}

function swapped(tuple: Tuple): Tuple {
  return {
    ...tuple,
    remote_address: tuple.local_address,
    local_address: tuple.remote_address,
    remote_port: tuple.local_port,
    local_port: tuple.remote_port,
  };
}

function noteWay(now: Situation, key: ReasonKey, host: Explanation["host"]): void {
  const { netlink, notes, tap, tables } = now;
  const record = targetRecord(now);
  if (!record) return;
  const uplink = netlink.link(record.ifindex);
  const from = tap && netlink.link(tap.ifindex);
  const isRouted = host === "routed" || record.kind === LAST_HOP_KIND.IP;
  if (key === "REDIRECT" && isRouted)
    notes.push("its TTL is decremented; at 1 it passes, so that the host's stack answers");
  const entry = tables.interfaces.get(record.ifindex);
  const mtu = entry?.mtu || uplink?.mtu;
  if (uplink && from && mtu !== undefined && mtu < from.mtu) {
    const clamped =
      (entry?.flags ?? 0) & INTERFACE_FLAG.CLAMP_MSS ? ", and TCP is told to send smaller ones" : "";
    notes.push(
      `the way back by ${uplink.name} has an MTU of ${mtu}, ${from.name} one of ${from.mtu}: ` +
        `larger replies are answered with an ICMP error${clamped}`,
    );
  }
  if (uplink && !uplink.flags.up) notes.push(`${uplink.name} is down`);
}
