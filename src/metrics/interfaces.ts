// SPDX-License-Identifier: Apache-2.0
// Attached interfaces: what they are, what they may still learn, and the packets by reason.

import { HOOK_NAMES, POLICY_NAMES, type ReasonName, ROLE_NAMES } from "../abi/codec.ts";
import { INTERFACE_FLAG, REASON, REASONS, ROLE } from "../abi/layout.gen.ts";
import { reasonOf } from "../abi/reasons.ts";
import { type InterfaceEntry, interfaceName } from "../tables/index.ts";
import { Family, Labels } from "./family.ts";
import { readRows } from "./rows.ts";
import type { ScrapeSource } from "./source.ts";

export interface ScrapedInterface {
  entry: InterfaceEntry;
  role: "uplink" | "tap";
  /** Its netdev is there. */
  present: boolean;
  name: string;
  labels: Labels;
}

/** Uplinks and taps, each with a name that no other has. */
export async function scrapeInterfaces({ tables, pace }: ScrapeSource): Promise<ScrapedInterface[]> {
  const found: { entry: InterfaceEntry; present: boolean }[] = [];
  for (const [ifindex, entry] of tables.interfaces.entries()) {
    if (pace.due) await pace.rest();
    if (entry.role !== ROLE.UPLINK && entry.role !== ROLE.TAP) continue;
    const present = tables.egressDevices.get(entry.slot) === ifindex;
    found.push({ entry: { ...entry, ifindex }, present });
  }
  // Of two that were seen under one name, the one that is there has it.
  found.sort((a, b) => Number(b.present) - Number(a.present) || a.entry.ifindex - b.entry.ifindex);
  const taken = new Set<string>();
  return found.map(({ entry, present }) => {
    const role = ROLE_NAMES[entry.role] as ScrapedInterface["role"];
    const plain = interfaceName(entry, entry.ifindex);
    const name = taken.has(plain) ? `${plain}@if${entry.ifindex}` : plain;
    taken.add(name);
    return { entry, role, present, name, labels: new Labels({ interface: name, role }) };
  });
}

export async function interfaceFamilies(
  { tables, pace }: ScrapeSource,
  interfaces: readonly ScrapedInterface[],
): Promise<Family[]> {
  const info = new Family("gauge", "lasthop_interface_info", "How an interface is attached; always 1.");
  const present = new Family(
    "gauge",
    "lasthop_interface_present",
    "1 if the interface is there, 0 if it has gone.",
  );
  const blocked = new Family(
    "gauge",
    "lasthop_interface_port_blocked",
    "1 if the interface is a bridge port that does not forward, and so learns nothing.",
  );
  const lastHops = new Family(
    "gauge",
    "lasthop_interface_learned_last_hops",
    "Last hops that an uplink has learned and that count against its budget.",
  );
  const lastHopsMax = new Family(
    "gauge",
    "lasthop_interface_learned_last_hops_max",
    "Budget of an uplink: last hops that it may learn.",
  );
  const vms = new Family(
    "gauge",
    "lasthop_interface_vms",
    "VMs (MAC addresses) that were seen behind a tap.",
  );
  const vmsMax = new Family(
    "gauge",
    "lasthop_interface_vms_max",
    "Budget of a tap: VMs that may appear behind it.",
  );
  for (const { entry, role, present: isPresent, labels } of interfaces) {
    if (pace.due) await pace.rest();
    const { hook, policy, zone, prog_id, flags, slot } = entry;
    const how = { hook: HOOK_NAMES[hook]!, policy: POLICY_NAMES[policy]!, zone, program_id: prog_id };
    info.add(1, labels, new Labels(how));
    present.add(isPresent ? 1 : 0, labels);
    blocked.add(flags & INTERFACE_FLAG.PORT_BLOCKED ? 1 : 0, labels);
    const budget = tables.budgets.get(slot);
    if (!budget) continue;
    if (role === "uplink") {
      lastHops.add(budget.last_hops, labels);
      lastHopsMax.add(budget.last_hops_max, labels);
    } else {
      vms.add(budget.vms, labels);
      vmsMax.add(budget.vms_max, labels);
    }
  }
  return [info, present, blocked, lastHops, lastHopsMax, vms, vmsMax];
}

/**
 * Shown from the start, so that the first of them is seen as an increase: alerts ask for these. The others have a
 * series once they have occurred; all of all interfaces would be tens of thousands.
 */
export const REASONS_FROM_THE_START: ReadonlySet<ReasonName> = new Set<ReasonName>([
  "error",
  "relearn",
  "relearn_damped",
  "last_hop_budget",
  "redirect",
  "device_drop",
  "vm_mismatch",
  "vm_budget",
]);

const REASON_LABELS: readonly Labels[] = Object.values(REASON).map((reason) => {
  const { name, verdict } = reasonOf(reason);
  return new Labels({ verdict, reason: name });
});

/** By role and reason. */
const SHOWN_AT_ZERO: Readonly<Record<string, readonly boolean[]>> = Object.fromEntries(
  (["uplink", "tap"] as const).map((role) => [
    role,
    Object.values(REASON).map((reason) => {
      const { name, roles } = reasonOf(reason);
      return REASONS_FROM_THE_START.has(name as ReasonName) && roles.includes(role);
    }),
  ]),
);

/** Slot 0: packets of interfaces that are not in the table. */
const NOT_ATTACHED = { labels: new Labels({ interface: "", role: "none" }), role: "none" };

const WORDS_PER_CPU = 4;
const HIGH_WORD = 2 ** 32;

export async function trafficFamilies(
  { instance, pace }: ScrapeSource,
  interfaces: readonly ScrapedInterface[],
): Promise<Family[]> {
  const packets = new Family(
    "counter",
    "lasthop_packets_total",
    "Packets that left a program, by the reason why they left as they did.",
  );
  const bytes = new Family(
    "counter",
    "lasthop_bytes_total",
    "Bytes of the packets of lasthop_packets_total.",
  );
  const bySlot = new Map<number, { labels: Labels; role: string }>([[0, NOT_ATTACHED]]);
  for (const found of interfaces) bySlot.set(found.entry.slot, found);
  const map = instance.map("verdicts");
  const rowWords = map.valueBytes / 4;
  for (const [first, last] of runs([...bySlot.keys()])) {
    for await (const rows of readRows(map, first * REASONS, (last + 1) * REASONS, pace)) {
      // The rows of user space are aligned to 8 bytes; numbers are exact below 2^53.
      const words = new Uint32Array(rows.values.buffer, rows.values.byteOffset, rows.count * rowWords);
      for (let place = 0; place < rows.count; place++) {
        let packetSum = 0;
        let byteSum = 0;
        for (let at = place * rowWords; at < (place + 1) * rowWords; at += WORDS_PER_CPU) {
          packetSum += words[at]! + words[at + 1]! * HIGH_WORD;
          byteSum += words[at + 2]! + words[at + 3]! * HIGH_WORD;
        }
        const row = rows.first + place;
        const { labels, role } = bySlot.get(Math.floor(row / REASONS))!;
        const reason = row % REASONS;
        if (packetSum === 0 && !SHOWN_AT_ZERO[role]?.[reason]) continue;
        packets.add(packetSum, labels, REASON_LABELS[reason]);
        bytes.add(byteSum, labels, REASON_LABELS[reason]);
        if (pace.due) await pace.rest();
      }
    }
  }
  return [packets, bytes];
}

/** First and last of each run of numbers that follow each other. */
function runs(numbers: readonly number[]): [number, number][] {
  const found: [number, number][] = [];
  for (const number of numbers.toSorted((a, b) => a - b)) {
    const run = found.at(-1);
    if (run && number === run[1] + 1) run[1] = number;
    else found.push([number, number]);
  }
  return found;
}
