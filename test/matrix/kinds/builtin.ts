// SPDX-License-Identifier: Apache-2.0
// Tunnels that lasthop's own programs encapsulate. At the firewall's end is the kernel's driver where there is one, so
// that the two prove each other; else another instance of lasthop.

import type { Family } from "../../support/addresses.ts";
import type { Place, Side } from "../place.ts";
import type { End, Kind, Proof } from "./kind.ts";
import { encapsulated, FAMILIES, framed, itself, other, vni } from "./kind.ts";
import { labelEnd, labelledRoute, labelsFrom } from "./stack.ts";

interface Builtin {
  name: string;
  title: string;
  outside?: Family;
  linkLayer: boolean;
  /** What is particular to the type in an entry of `tunnels:`. */
  entry(side: Side, place: Place): object;
  /** The kind that the kernel must have for the firewall's end, and that end. */
  driver: string;
  far(place: Place): End;
  farRoute?(place: Place, family: Family): string;
  proof(place: Place): Proof;
}

const outerEnds = (side: Side, { outer }: Place, family: Family) => ({
  local: outer[side][family],
  remote: outer[other(side)][family],
});

function builtin({ name, title, outside, linkLayer, entry, driver, far, farRoute, proof }: Builtin): Kind {
  return {
    ...{ name, title, inside: FAMILIES, ...(outside !== undefined && { outside }), linkLayer, probe: [] },
    ...{ uplinks: itself, proof },
    make(side, place, _first, lacks) {
      if (side === "firewall" && !lacks.has(driver)) return far(place);
      const common = { name: place.device, encap: "builtin", underlay: place.wire };
      return { ip: [], device: place.device, tunnel: { ...common, ...entry(side, place) } };
    },
    route: (side, place, family, device) =>
      side === "firewall" && device !== place.device && farRoute !== undefined
        ? farRoute(place, family)
        : `via ${place.inner[other(side)][family]} dev ${device} onlink`,
  };
}

const device =
  (type: (place: Place) => string, mac: boolean) =>
  (place: Place): End => ({
    ip: [
      `link add name ${place.device}${mac ? ` address ${place.deviceMac.firewall}` : ""} type ${type(place)}`,
    ],
    device: place.device,
  });

const ends = ({ outer }: Place, family: Family): string =>
  `local ${outer.firewall[family]} remote ${outer.host[family]}`;

const vsid = ({ number }: Place): number => 0xcd_00_00 + number;
const key = ({ number }: Place): number => 5000 + number;

export const BUILTIN_KINDS: Kind[] = [
  ...FAMILIES.map((family) =>
    builtin({
      ...{ name: `builtin-vxlan${family}`, title: `built-in VXLAN over IPv${family}`, linkLayer: true },
      entry: (side, place) => ({ type: "vxlan", id: vni(place), ...outerEnds(side, place, family) }),
      ...{ outside: family, driver: `vxlan${family}` },
      far: device(
        // The programs cannot sum up a whole packet: over IPv6 the far end has to take datagrams without a checksum.
        (place) =>
          `vxlan id ${vni(place)} dstport 4789 ${ends(place, family)} dev ${place.wire} udp6zerocsumrx`,
        true,
      ),
      proof: encapsulated(family, "udp:vxlan:eth:ethertype", (place) => ({
        "vxlan.vni": [vni(place)],
        "udp.dstport": [4789],
      })),
    }),
  ),
  builtin({
    ...{ name: "builtin-nvgre", title: "built-in NVGRE", outside: 4, linkLayer: true, driver: "gretap" },
    entry: (side, place) => ({ type: "nvgre", id: vsid(place), ...outerEnds(side, place, 4) }),
    far: device((place) => `gretap ${ends(place, 4)} key ${vsid(place) * 0x100} dev ${place.wire}`, true),
    proof: encapsulated(4, "gre:eth:ethertype", (place) => ({
      "gre.proto": [0x6558],
      "gre.key": [vsid(place) * 0x100],
    })),
  }),
  builtin({
    ...{ name: "builtin-gre", title: "built-in GRE with a key", outside: 4, linkLayer: false, driver: "gre" },
    entry: (side, place) => ({ type: "gre", id: key(place), ...outerEnds(side, place, 4) }),
    far: device((place) => `gre ${ends(place, 4)} key ${key(place)} dev ${place.wire}`, false),
    proof: encapsulated(4, "gre", (place) => ({ "gre.key": [key(place)] })),
  }),
  builtin({
    ...{ name: "builtin-ipip", title: "built-in IP in IP: 4in4, 6in4", outside: 4, linkLayer: false },
    entry: (side, place) => ({ type: "ipip", ...outerEnds(side, place, 4) }),
    // Of the kernel's drivers only sit takes both into IPv4.
    driver: "sit",
    far: device((place) => `sit mode any ${ends(place, 4)} dev ${place.wire}`, false),
    proof: encapsulated(4, ""),
  }),
  builtin({
    ...{ name: "builtin-mpls", title: "built-in MPLS", linkLayer: false, driver: "mpls" },
    entry: (side, place) => ({
      type: "mpls",
      labels: { request: labelsFrom(other(side), place), reply: labelsFrom(side, place) },
      next_hop: place.wireMac[other(side)],
    }),
    far: (place) => labelEnd("firewall", place),
    farRoute: (place, family) => labelledRoute("firewall", place, family),
    proof: framed("eth:ethertype:mpls", (place) => ({ "mpls.label": labelsFrom("host", place) })),
  }),
];
