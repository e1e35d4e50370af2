// SPDX-License-Identifier: Apache-2.0
// What each firewall's rules have seen, by client address.

import { FAMILIES } from "./kinds/kind.ts";
import type { Stand } from "./topology.ts";

/** Packets to a client address, of any protocol, that were carried or dropped as replies. */
export interface Seen {
  carried: Map<string, number>;
  dropped: Map<string, number>;
}

interface Listing {
  nftables: {
    set?: {
      name: string;
      elem?: { elem: { val: { concat: [string, ...unknown[]] }; counter: { packets: number } } }[];
    };
  }[];
}

export async function seenBy({ namespace }: Stand): Promise<Seen> {
  const { nftables } = JSON.parse(
    await namespace.must(["nft", "-j", "list", "table", "inet", "firewall"]),
  ) as Listing;
  const seen: Seen = { carried: new Map(), dropped: new Map() };
  for (const { set } of nftables) {
    for (const name of ["carried", "dropped"] as const) {
      if (set === undefined || !FAMILIES.some((family) => set.name === `${name}${family}`)) continue;
      for (const { elem } of set.elem ?? []) {
        const address = elem.val.concat[0];
        seen[name].set(address, (seen[name].get(address) ?? 0) + elem.counter.packets);
      }
    }
  }
  return seen;
}
