// SPDX-License-Identifier: Apache-2.0
// What is to be done about a tunnel that is an interface of the kernel's driver. Pure.

import type { TunnelConfig } from "../config/tunnels.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { macBytes, type TunnelChange } from "./tunnelChanges.ts";
import type { TunnelSight } from "./tunnelObserve.ts";
import { isMadeAs, mtuOf, rowOf, sameRow } from "./tunnelSpec.ts";

/**
 * Null if it has to be made anew: most of its parameters cannot be changed. Which those are the row says with which it
 * was made. `as it is`: somebody else made it, so only the row is to tell of it.
 */
export function deviceChanges(
  config: TunnelConfig,
  link: Link,
  underlay: Link | undefined,
  sight: TunnelSight,
  whose: "ours" | "as it is" = "ours",
): TunnelChange[] | null {
  const mtu = whose === "ours" ? (mtuOf(config, underlay) ?? link.mtu) : link.mtu;
  const row = rowOf(config, {
    ifindex: link.ifindex,
    peer: 0,
    underlay: underlay?.ifindex ?? 0,
    mac: macBytes(link.mac),
    underlayMac: macBytes(underlay?.mac ?? null),
    mtu,
  });
  const old = sight.row(link.ifindex);
  if (whose === "ours" && (!old || !isMadeAs(old, row))) return null;
  return [
    ...mtuChange(link, mtu),
    ...(old && sameRow(old, row) ? [] : [{ kind: "row" as const, row, old, text: null }]),
  ];
}

function mtuChange(link: Link, mtu: number): TunnelChange[] {
  if (link.mtu === mtu) return [];
  const text = `MTU ${mtu} instead of ${link.mtu}`;
  return [{ kind: "link", link, to: { mtu }, back: { mtu: link.mtu }, text }];
}
