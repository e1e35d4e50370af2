// SPDX-License-Identifier: Apache-2.0
// What of an uplink's packets another attached uplink saw before: the netdev that it is on top of.

import { encode, type StructValue } from "../abi/codec.ts";
import { INTERFACE_FLAG, ROLE } from "../abi/layout.gen.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import type { InterfaceEntry, Tables } from "../tables/index.ts";
import type { HostFacts } from "./hostFacts.ts";
import type { Step } from "./steps.ts";

type Tag = StructValue<"vlan_tag">;

export interface Beneath {
  /** 0: the ports of the bridge that it is. */
  ifindex: number;
  /** With which its packets are seen there; proto 0 for none. */
  tag: Tag;
}

/** Zones of the uplinks that are, or are to be, attached, by ifindex. */
export type Uplinks = ReadonlyMap<number, number>;

/** As an entry has it, beside its flag. */
export function beneathFields(found: Beneath | null): { lower_ifindex: number; lower_tag: Tag } {
  return { lower_ifindex: found?.ifindex ?? 0, lower_tag: found?.tag ?? NO_TAG };
}

const NO_TAG: Tag = { proto: 0, vid: 0 };
/** Netdevs on top of each other; a ring cannot be made, but it costs nothing not to trust that. */
const DEPTH_MAX = 8;
/** See the packets of the netdev that they are on, as they are. A tunnel's underlay sees others. */
const ON_TOP: readonly (string | null)[] = ["vlan", "macvlan", "ipvlan"];
const GROUPS: readonly (string | null)[] = ["bridge", "bond", "team"];

/**
 * The nearest attached uplink of the zone beneath `link` that sees the same packets; null if there is none. The
 * programs can tell of one tag, so beneath two VLAN interfaces of which the lower is not attached there is none.
 */
export function beneath(host: HostFacts, link: Link, zone: number, uplinks: Uplinks): Beneath | null {
  const isUplink = ({ ifindex }: Link): boolean => uplinks.get(ifindex) === zone;
  const look = (at: Link, tag: Tag, depth: number): Beneath | null => {
    if (depth === DEPTH_MAX) return null;
    const inner = tagBeneath(at, tag);
    if (inner === null) return null;
    const lowers = lowersOf(host, at);
    const found = lowers.find(isUplink);
    // Programs know a bridge's ports by the bridge.
    if (found && at.kind === "bridge") return { ifindex: at === link ? 0 : at.ifindex, tag };
    if (found) return { ifindex: found.ifindex, tag: inner };
    for (const lower of lowers) {
      const deeper = look(lower, inner, depth + 1);
      if (deeper) return deeper;
    }
    return null;
  };
  return look(link, NO_TAG, 0);
}

/** The tag that its packets have one below; null if that is one too many. A priority tag is no tag. */
function tagBeneath({ kind, vlanId, vlanProtocol }: Link, tag: Tag): Tag | null {
  if (kind !== "vlan" || vlanId === undefined || vlanId === 0) return tag;
  return tag.proto === 0 ? { proto: vlanProtocol ?? 0, vid: vlanId } : null;
}

function lowersOf(host: HostFacts, { kind, ifindex, lower, linkNetns }: Link): readonly Link[] {
  if (GROUPS.includes(kind)) return host.portsOf(ifindex);
  const below = ON_TOP.includes(kind) && lower !== null && linkNetns === null ? host.link(lower) : undefined;
  return below ? [below] : [];
}

/** Brings every attached uplink's entry to what is attached beneath it now. The plan does the same on its own. */
export function beneathSteps(tables: Pick<Tables, "interfaces">, host: HostFacts): Step[] {
  const attached = tables.interfaces.list().filter((entry) => isUplinkHere(host, entry));
  const uplinks = new Map(attached.map(({ ifindex, zone }) => [ifindex, zone]));
  return attached.flatMap((entry): Step[] => {
    const found = beneath(host, host.link(entry.ifindex)!, entry.zone, uplinks);
    const flags = (entry.flags & ~INTERFACE_FLAG.LOWER) | (found ? INTERFACE_FLAG.LOWER : 0);
    const wanted = { ...entry, flags, ...beneathFields(found) };
    if (encode("interface", wanted).equals(encode("interface", entry))) return [];
    const lower = found === null ? null : (host.link(found.ifindex)?.name ?? "a port of it");
    return [
      {
        done: `${entry.name}: ${lower === null ? "nothing beneath it is attached any more" : `${lower}, beneath it, is attached too`}`,
        do: () => tables.interfaces.set(entry.ifindex, wanted),
        undo: () => tables.interfaces.set(entry.ifindex, entry),
      },
    ];
  });
}

function isUplinkHere(host: HostFacts, { role, flags, ifindex }: InterfaceEntry): boolean {
  return role === ROLE.UPLINK && (flags & INTERFACE_FLAG.GONE) === 0 && host.link(ifindex) !== undefined;
}
