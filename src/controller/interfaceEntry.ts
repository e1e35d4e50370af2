// SPDX-License-Identifier: Apache-2.0
// The entry of an interface in the table: as it is wanted, and in which words it differs from how it is. Pure.

import { encode, type StructInput } from "../abi/codec.ts";
import { HOOK, INTERFACE_FLAG, ORIGIN, POLICY, ROLE } from "../abi/layout.gen.ts";
import { parseMac } from "../addresses.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { isSharedXfrm } from "../kernel/xfrmObject.ts";
import type { Hook } from "../ops/types.ts";
import type { InterfaceEntry } from "../tables/index.ts";
import { type Beneath, beneathFields } from "./beneath.ts";
import type { IcmpSource } from "./icmpSource.ts";
import type { LabelStacks } from "./labelStacks.ts";
import { askedMtu, CHOSEN_FLAGS, mtuFields, type Settings } from "./settings.ts";

export interface Wanted extends Omit<Settings, "mode"> {
  link: Link;
  /** Where the host's stack sees its packets: its bridge, or itself. */
  l3: Link;
  /** The bridge of a tap and the VLAN interfaces on it: what a routed host's lookup may name. */
  bridges: readonly Link[];
  slot: number;
  portBlocked: boolean;
  /** Packets can leave by it. */
  usable: boolean;
  /** Of an uplink: another that sees its packets before; null if there is none. */
  beneath: Beneath | null;
  /** Of a tap. */
  icmpSource: IcmpSource;
  labelStacks: LabelStacks;
  /** MACs that are known to be behind a new tap. */
  vms: readonly string[];
}

export type WantedAt = Wanted & { hook: Hook };

/** As the table is to have it, without the flag that says whose the qdisc is. */
export function entryOf(wanted: WantedAt, programId: number): InterfaceEntry {
  return {
    slot: wanted.slot,
    l3_ifindex: wanted.l3.ifindex,
    zone: wanted.zone,
    role: ROLE[upper(wanted.role)],
    policy: POLICY[upper(wanted.policy)],
    flags: (wanted.flags & CHOSEN_FLAGS) | foundFlags(wanted),
    hook: HOOK[upper(wanted.hook)],
    mac: macBytes(wanted.link),
    host_mac: macBytes(wanted.l3),
    origin: wanted.origin,
    name: wanted.link.name,
    prog_id: programId,
    ifindex: wanted.link.ifindex,
    config_index: wanted.configIndex,
    ...mtuFields(wanted.mtu, wanted.link.mtu),
    mark: wanted.mark,
    ...beneathFields(wanted.beneath),
    icmp_source4: wanted.icmpSource.v4,
    icmp_source6: wanted.icmpSource.v6,
  };
}

/** What the host says of it. */
function foundFlags({ link, role, portBlocked, beneath }: WantedAt): number {
  const { PORT_BLOCKED, NO_LINK_LAYER, LOWER } = INTERFACE_FLAG;
  return (
    (portBlocked ? PORT_BLOCKED : 0) |
    (link.ethernet ? 0 : NO_LINK_LAYER) |
    (role === "uplink" ? sharedFlag(link) : 0) |
    (beneath ? LOWER : 0)
  );
}

function sharedFlag(link: Link): number {
  if (!link.external) return 0;
  return isSharedXfrm(link) ? INTERFACE_FLAG.XFRM_ID : INTERFACE_FLAG.TUNNEL_KEY;
}

export const OTHER_HOOK = "another hook";

/** For people; empty if the entries are the same. */
export function entryChanges(old: InterfaceEntry, entry: InterfaceEntry, wanted: WantedAt): string[] {
  const changes: string[] = [];
  if (old.name !== entry.name) changes.push(`was called ${old.name}`);
  if (old.role !== entry.role) changes.push(`role ${wanted.role}`);
  if (old.zone !== entry.zone) changes.push(`zone ${entry.zone} instead of ${old.zone}`);
  if (old.policy !== entry.policy) changes.push(`policy ${wanted.policy}`);
  changes.push(...flagChanges(old.flags, entry.flags), ...wayChanges(old, entry));
  if (old.origin !== entry.origin) changes.push(originText(wanted));
  else if (old.config_index !== entry.config_index) changes.push(`${wanted.config} in the configuration now`);
  if (changes.length > 0) return changes;
  if (old.hook !== entry.hook) return [OTHER_HOOK];
  const ours = INTERFACE_FLAG.QDISC_OURS;
  const same = encode("interface", { ...old, flags: old.flags & ~ours }).equals(encode("interface", entry));
  return same ? [] : ["entered what has changed about the interface"];
}

function originText({ origin, config }: WantedAt): string {
  return origin === ORIGIN.CONFIG ? `by the configuration from now on (${config})` : "by hand from now on";
}

function wayChanges(old: InterfaceEntry, entry: InterfaceEntry): string[] {
  const changes: string[] = [];
  if (old.mtu !== entry.mtu) changes.push(`MTU ${entry.mtu}${old.mtu === 0 ? "" : ` instead of ${old.mtu}`}`);
  else if (old.mtu_chosen !== entry.mtu_chosen) {
    changes.push(askedMtu(entry) === null ? "follows its own MTU" : `MTU ${entry.mtu}, whatever its own is`);
  }
  if (old.mark !== entry.mark)
    changes.push(entry.mark === 0 ? "no mark" : `mark 0x${entry.mark.toString(16)}`);
  const isSameSource = old.icmp_source4 === entry.icmp_source4 && old.icmp_source6.equals(entry.icmp_source6);
  if (!isSameSource) changes.push("ICMP errors from the host's present address");
  return changes;
}

function flagChanges(old: number, flags: number): string[] {
  const { LEARN_DEVICES, RELEARN_NEVER, PICKUP_NO, EXCLUDES, CLAMP_MSS, VIA_STACK, LOWER } = INTERFACE_FLAG;
  const texts: [flag: number, set: string, cleared: string][] = [
    [LEARN_DEVICES, "learns devices only", "learns from any"],
    [RELEARN_NEVER, "never relearns", "relearns"],
    [PICKUP_NO, "no pickup", "pickup"],
    [EXCLUDES, "exclusions", "no exclusions"],
    [CLAMP_MSS, "clamps the MSS", "leaves the MSS alone"],
    [VIA_STACK, "replies by the host's routing", "replies straight by it"],
    [LOWER, "an interface beneath it is attached too", "none beneath it is attached any more"],
  ];
  return texts.flatMap(([flag, set, cleared]) =>
    (old & flag) === (flags & flag) ? [] : [(flags & flag) !== 0 ? set : cleared],
  );
}

export function bridgeEntry(bridge: Link, l3: Pick<Link, "ifindex">): StructInput<"interface"> {
  return {
    // Of the bridge itself also for a VLAN interface on it: this is how its taps are found.
    l3_ifindex: l3.ifindex,
    role: ROLE.BRIDGE,
    mac: macBytes(bridge),
    host_mac: macBytes(bridge),
    name: bridge.name,
    ifindex: bridge.ifindex,
  };
}

export function macBytes(link: Link): Buffer {
  return (link.mac !== null && parseMac(link.mac)) || Buffer.alloc(6);
}

function upper<T extends string>(word: T): Uppercase<T> {
  return word.toUpperCase() as Uppercase<T>;
}

/** Not a bridge that has an entry because of its ports. */
export function isAttached(entry: { role: number }): boolean {
  return entry.role === ROLE.UPLINK || entry.role === ROLE.TAP;
}

/** An uplink whose netdev is not there, and may return. */
export function isGone(entry: { flags: number }): boolean {
  return (entry.flags & INTERFACE_FLAG.GONE) !== 0;
}
