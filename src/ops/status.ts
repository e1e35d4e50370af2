// SPDX-License-Identifier: Apache-2.0

import { readFileSync } from "node:fs";
import { HOOK_NAMES, POLICY_NAMES, ROLE_NAMES } from "../abi/codec.ts";
import { INTERFACE_FLAG, ROLE } from "../abi/layout.gen.ts";
import { isAttached } from "../controller/interfaceEntry.ts";
import { xfrmPlacesOf } from "../controller/tunnelSpec.ts";
import { type Attachment, attachmentsOn } from "../kernel/attachment.ts";
import { ABI_NAME, type Instance, openInstance } from "../kernel/instance.ts";
import { Netlink } from "../kernel/netlink.ts";
import { type Link, TC_PARENT_INGRESS } from "../kernel/rtnetlink.ts";
import { tunnelAttachmentAt, tunnelProgramIds } from "../kernel/tunnelAttachment.ts";
import { type BpfMap, tcxQuery } from "../libbpf/index.ts";
import { type InterfaceEntry, Tables } from "../tables/index.ts";
import type {
  Hook,
  InterfaceStatus,
  OpContext,
  Policy,
  Role,
  StatusReport,
  TableFill,
  TierFill,
} from "./types.ts";
import { uplinkWay } from "./uplinkWay.ts";

/** The tables whose fill an operator may want to watch. */
const HASH_TABLES = [
  "flows4",
  "flows6",
  "embryos4",
  "embryos6",
  "vms",
  "last_hop_index",
  "fragments",
] as const;

/** Counting a million entries takes half a second; after this long the rest is extrapolated. */
const COUNT_BUDGET_MS = 20;

/** What is attached, and how full the tables are. Changes nothing and takes no lock. */
export async function status(context: OpContext): Promise<StatusReport> {
  using instance = openInstance(context.pinRoot);
  using netlink = new Netlink();
  const tables = new Tables(instance);
  const fills = tableFills(instance);
  return {
    pin_path: instance.path,
    abi: ABI_NAME,
    bypass: tables.control.get().bypass !== 0,
    interfaces: tables.interfaces
      .list()
      .filter(isAttached)
      .map((entry, _, all) => interfaceStatus(instance, netlink, entry, all)),
    programs: instance.programNames().map((name) => programStatus(instance, name)),
    tables: fills,
    tiers: tierFills(tables, fills),
    ...(await distribution(tables)),
    last_pass: lastPass(tables),
  };
}

/** Reading what the operator gave takes the schema of the configuration: loaded where there is something. */
async function distribution(tables: Tables): Promise<Pick<StatusReport, "services" | "vms">> {
  const named = [tables.services.specs, tables.guests.specs];
  if (named.every((specs) => specs.keys().next().done)) {
    return { services: { total: 0, empty: 0 }, vms: { total: 0, up: 0, drain: 0, down: 0, unknown: 0 } };
  }
  const { ServiceView } = await import("./serviceView.ts");
  const view = new ServiceView(tables);
  return {
    services: { total: view.services.length, empty: view.empty().length },
    vms: view.vmCounts(),
  };
}

export function interfaceStatus(
  instance: Instance,
  netlink: Netlink,
  entry: InterfaceEntry,
  all: readonly InterfaceEntry[],
): InterfaceStatus {
  const { ifindex } = entry;
  const link = netlink.link(ifindex);
  const attachments = link ? attachmentsOn(instance, ifindex, link.xdp?.mode ?? null) : [];
  const attachment = attachments.find((candidate) => candidate.alive);
  const hook = attachment?.hook ?? (HOOK_NAMES[entry.hook] as Hook);
  return {
    interface: link?.name ?? entry.name,
    ifindex,
    role: ROLE_NAMES[entry.role] as Role,
    hook,
    zone: entry.zone,
    policy: POLICY_NAMES[entry.policy] as Policy,
    program_id: attachment?.programId ?? null,
    state: stateOf(entry, link, hasTunnelPrograms(instance, entry) ? attachment : undefined, attachments),
    foreign_program_ids: link ? foreignPrograms(instance, netlink, link, hook, attachment) : [],
    link_layer: entry.flags & INTERFACE_FLAG.NO_LINK_LAYER ? "none" : "ethernet",
    shared_tunnel: (entry.flags & (INTERFACE_FLAG.TUNNEL_KEY | INTERFACE_FLAG.XFRM_ID)) !== 0,
    beneath: beneathNames(entry, all),
    ...(entry.role === ROLE.UPLINK && uplinkWay(entry.mtu, entry.flags, entry.mark)),
  };
}

function beneathNames(entry: InterfaceEntry, all: readonly InterfaceEntry[]): string[] {
  if ((entry.flags & INTERFACE_FLAG.LOWER) === 0) return [];
  const below = entry.lower_ifindex || entry.ifindex;
  return all
    .filter(
      ({ role, zone, ifindex }) => role === ROLE.UPLINK && zone === entry.zone && ifindex !== entry.ifindex,
    )
    .filter(({ ifindex, l3_ifindex }) => ifindex === below || l3_ifindex === below)
    .map(({ name }) => name);
}

/** A shared XFRM interface takes more than its uplink's program. */
function hasTunnelPrograms(instance: Instance, entry: InterfaceEntry): boolean {
  return xfrmPlacesOf(entry).every((place) => tunnelAttachmentAt(instance, place)?.alive === true);
}

function stateOf(
  entry: InterfaceEntry,
  link: Link | undefined,
  attachment: Attachment | undefined,
  attachments: readonly Attachment[],
): InterfaceStatus["state"] {
  // A link that is pinned but dead: its interface went, and another has the index.
  if (!link || (attachments.length > 0 && attachments.every(({ alive }) => !alive))) return "interface_gone";
  if (!attachment) return "program_gone";
  if (!link.flags.up) return "interface_down";
  const blocked = link.portState === "blocking" || link.portState === "disabled";
  if (blocked || entry.flags & INTERFACE_FLAG.PORT_BLOCKED) return "port_blocked";
  return "ok";
}

/** In the order in which they run. An interface has one XDP program only. */
function foreignPrograms(
  instance: Instance,
  netlink: Netlink,
  link: Link,
  hook: Hook,
  attachment: Attachment | undefined,
): number[] {
  const all =
    hook === "clsact"
      ? clsactPrograms(netlink, link.ifindex)
      : hook === "tcx"
        ? (tcxQuery(link.ifindex, "ingress") ?? [])
        : [];
  if (hook.startsWith("xdp") && link.xdp?.programId) all.push(link.xdp.programId);
  const tunnels = tunnelProgramIds(instance);
  return all.filter((id) => id !== attachment?.programId && !tunnels.has(id));
}

function clsactPrograms(netlink: Netlink, ifindex: number): number[] {
  return netlink
    .filters(ifindex, TC_PARENT_INGRESS)
    .sort((a, b) => a.priority - b.priority)
    .flatMap((filter) => filter.programId ?? []);
}

function programStatus(instance: Instance, name: string): StatusReport["programs"][number] {
  const program = instance.program(name);
  const { id, runCount } = program.info();
  return {
    name,
    id,
    memory_bytes: memoryBytes(program.fd),
    // Zero unless the kernel counts, sysctl kernel.bpf_stats_enabled.
    run_count: runCount === 0n ? null : Number(runCount),
  };
}

export function tableFills(instance: Instance): TableFill[] {
  return HASH_TABLES.map((name) => tableFill(instance.map(name)));
}

function tierFills(tables: Tables, fills: readonly TableFill[]): TierFill[] {
  return (["established", "embryonic"] as const).map((tier) => {
    const sums = { entries: 0, max_entries: 0, evicted: 0 };
    for (const { name, table } of tables.flows.all.filter((table) => table.tier === tier)) {
      const fill = fills.find((fill) => fill.table === name)!;
      sums.entries += fill.entries;
      sums.max_entries += fill.max_entries;
      sums.evicted += sum(tables.sweep.ended(table).evicted);
    }
    return { tier, ...sums, fill: sums.entries / sums.max_entries };
  });
}

/** Its tables end together. */
function lastPass(tables: Tables): StatusReport["last_pass"] {
  const reports = tables.flows.all.map(({ table }) => tables.sweep.ended(table));
  const { started_ns: started, finished_ns: finished } = reports[0]!;
  if (finished === 0) return null;
  return {
    ended_seconds_ago: Math.max(0, Number(process.hrtime.bigint()) - finished) / 1e9,
    duration_seconds: (finished - started) / 1e9,
    entries: sum(reports.map((report) => report.entries)),
    expired: sum(reports.map((report) => report.expired)),
  };
}

function sum(counts: readonly number[]): number {
  return counts.reduce((total, count) => total + count, 0);
}

/** Exact, or for a table too large to count in no time within half a per cent. */
export function tableFill(map: BpfMap): TableFill {
  const deadline = performance.now() + COUNT_BUDGET_MS;
  let entries = 0;
  for (const { count, progress } of map.batches()) {
    entries += count;
    if (performance.now() < deadline || progress === 0) continue;
    entries = Math.min(Math.round(entries / progress), map.maxEntries);
    break;
  }
  return { table: map.name, entries, max_entries: map.maxEntries, memory_bytes: memoryBytes(map.fd) };
}

/** What the kernel says it took; null if it does not. */
function memoryBytes(fd: number): number | null {
  const text = readFileSync(`/proc/self/fdinfo/${fd}`, "utf8");
  const found = /^memlock:\s*(\d+)$/m.exec(text)?.[1];
  return found === undefined ? null : Number(found);
}
