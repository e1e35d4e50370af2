// SPDX-License-Identifier: Apache-2.0
// Flows as people read them.

import type { FlowEntry, VlanTag } from "../ops/types.ts";
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

export function lastHopText(flow: FlowEntry): string {
  const hop = flow.last_hop;
  if (hop === null) return flow.origin === "local" ? "(own route)" : "-";
  const vlan = hop.tags.length === 0 ? "" : ` vlan ${tags(hop.tags)}`;
  return `${hop.mac} ${hop.interface}${vlan}${flow.stale ? " (stale)" : ""}`;
}
