// SPDX-License-Identifier: Apache-2.0
// The tunnels, and what those carried that lasthop's own programs encapsulate.

import { TUNNEL_KIND } from "../abi/layout.gen.ts";
import type { TunnelTraffic } from "../tables/index.ts";
import { Family, Labels } from "./family.ts";
import type { ScrapeSource } from "./source.ts";

const COUNTERS: Readonly<Record<keyof TunnelTraffic, string>> = {
  received_packets: "Packets that a tunnel took the outer header off.",
  received_bytes: "Bytes of packets that a tunnel took the outer header off, without it.",
  sent_packets: "Packets that a tunnel put an outer header on.",
  sent_bytes: "Bytes of packets that a tunnel put an outer header on, without it.",
  received_errors: "Packets for a tunnel that could not be taken apart.",
  sent_errors: "Packets that could not leave by a tunnel: no route, too big, refused by the kernel.",
};

/** Interfaces of the kernel's driver are counted by the kernel, and so by the node exporter. */
export async function tunnelFamilies({ tables, pace }: ScrapeSource): Promise<Family[]> {
  const info = new Family("gauge", "lasthop_tunnel_info", "A tunnel, and who encapsulates; always 1.");
  const counters = Object.entries(COUNTERS).map(([key, help]) => ({
    key: key as keyof TunnelTraffic,
    family: new Family("counter", `lasthop_tunnel_${key}_total`, help),
  }));
  for (const { ifindex, name, kind, peer_ifindex } of tables.tunnels.list()) {
    if (pace.due) await pace.rest();
    const labels = new Labels({ tunnel: name });
    const encapsulation = peer_ifindex === 0 ? "device" : "builtin";
    info.add(1, labels, new Labels({ encapsulation, protocol: kindName(kind) }));
    if (encapsulation === "device") continue;
    const traffic = tables.tunnels.traffic(ifindex);
    for (const { key, family } of counters) family.add(traffic[key], labels);
  }
  return [info, ...counters.map(({ family }) => family)];
}

function kindName(kind: number): string {
  const found = Object.entries(TUNNEL_KIND).find(([, value]) => value === kind)?.[0];
  return found?.toLowerCase() ?? String(kind);
}
