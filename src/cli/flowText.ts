// SPDX-License-Identifier: Apache-2.0
// Flows as people read them.

import type { FlowEntry, LastHopPlace, TunnelEnds, VlanTag } from "../ops/types.ts";
import { formatEndpoint } from "../tuple.ts";

/** The two sides of a flow; ICMP echo has an identifier in place of ports. */
export function flowEnds(flow: FlowEntry): { remote: string; local: string } {
  if (flow.icmp_id !== null) {
    return { remote: flow.remote_address, local: `${flow.local_address} id ${flow.icmp_id}` };
  }
  return {
    remote: formatEndpoint(flow.remote_address, flow.remote_port),
    local: formatEndpoint(flow.local_address, flow.local_port),
  };
}

/** VLAN tags, outer first: `10`, `ad 100 > 10` for a service tag. */
export function tags(list: readonly VlanTag[]): string {
  if (list.length === 0) return "-";
  return list.map((tag) => `${tag.protocol === "802.1ad" ? "ad " : ""}${tag.vid}`).join(" > ");
}

/** `192.0.2.2 id 100`: the far end of a tunnel, and which one; `if_id 7` of a shared XFRM interface. */
export function tunnelText({ remote, id }: TunnelEnds): string {
  if (remote === null) return `if_id ${id}`;
  return id === null ? remote : `${remote} id ${id}`;
}

/** Outer first. */
export function labelsText(labels: readonly number[]): string {
  return labels.join("/");
}

/** How replies leave, if not straight: `stack mark 0x11`. */
export function viaText({ via, mark }: Pick<LastHopPlace, "via" | "mark">): string | null {
  if (via === "redirect") return null;
  return mark === null ? "stack" : `stack mark ${hexadecimal(mark)}`;
}

export function hexadecimal(value: number): string {
  return `0x${value.toString(16)}`;
}

/** Where a last hop is: `02:00:00:00:0a:01 eth0 vlan 10`, `gre1`, `vxlan0 tunnel 192.0.2.2 id 100`. */
export function placeText(hop: LastHopPlace): string {
  const via = viaText(hop);
  return [
    ...(hop.mac === null ? [] : [hop.mac]),
    hop.interface,
    ...(hop.tags.length === 0 ? [] : [`vlan ${tags(hop.tags)}`]),
    ...(hop.tunnel === null ? [] : [`tunnel ${tunnelText(hop.tunnel)}`]),
    ...(hop.labels.length === 0 ? [] : [`labels ${labelsText(hop.labels)}`]),
    ...(hop.ipsec ? ["ipsec"] : []),
    ...(via === null ? [] : [`via ${via}`]),
  ].join(" ");
}

export function lastHopText(flow: FlowEntry): string {
  const hop = flow.last_hop;
  if (hop === null) return flow.origin === "local" ? "(own route)" : "-";
  return `${placeText(hop)}${flow.stale ? " (stale)" : ""}`;
}
