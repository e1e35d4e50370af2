// SPDX-License-Identifier: Apache-2.0
// Tunnels of the kernel's drivers: one netdev for each firewall, or one for all of them.

import type { Family } from "../../support/addresses.ts";
import type { Place, Side } from "../place.ts";
import type { End, Kind, Proof } from "./kind.ts";
import { encapsulated, FAMILIES, itself, MTU, other, viaOtherEnd, vni } from "./kind.ts";

const ends = (side: Side, { outer }: Place, family: Family): string =>
  `local ${outer[side][family]} remote ${outer[other(side)][family]}`;

const greKey = ({ number }: Place): number => 1000 + number;
/** RFC 7637: a virtual subnet id of 24 bits, and a flow id. */
const nvgreKey = (place: Place): number => (0xab_00_00 + place.number) * 0x100 + 7;

export const VXLAN_EXTERNAL_PORT = 8472;
export const GENEVE_EXTERNAL_PORT = 6082;
export const TUN_RELAY_PORT = 5600;

interface Tunnel {
  name: string;
  title: string;
  inside: readonly Family[];
  outside: Family;
  linkLayer: boolean;
  type: string;
  /** Options of the type but its ends. */
  options?(place: Place): string;
  proof(place: Place): Proof;
  /** What the driver does not work out by itself. */
  mtu?: number;
}

const make =
  ({ outside, linkLayer, type, options, mtu }: Tunnel) =>
  (side: Side, place: Place): End => {
    const mac = linkLayer ? ` address ${place.deviceMac[side]}` : "";
    const size = mtu === undefined ? "" : ` mtu ${mtu}`;
    const how = `${type} ${ends(side, place, outside)} ${options?.(place) ?? ""}`;
    return { ip: [`link add name ${place.device}${mac}${size} type ${how}`], device: place.device };
  };

/** A netdev for each firewall. */
function fixed(tunnel: Tunnel): Kind {
  const { name, title, inside, outside, linkLayer, type, proof } = tunnel;
  const address = outside === 4 ? "local 192.0.2.1 remote 192.0.2.2" : "local 2001:db8::1 remote 2001:db8::2";
  const id = type === "vxlan" ? "id 1 dstport 4789" : type === "geneve" ? "id 1" : "";
  const probe = `link add name NAME type ${type} ${type === "geneve" ? "remote 192.0.2.2" : address} ${id}`;
  return {
    ...{
      name,
      title,
      inside,
      outside,
      linkLayer,
      probe: [probe, "link del dev NAME"],
      uplinks: itself,
      proof,
    },
    make: make(tunnel),
  };
}

interface Shared extends Tunnel {
  /** The type at the host. */
  external: string;
  /** What follows `encap ip` of the host's route. */
  key(place: Place): string;
}

const SHARED_MAC = "02:00:00:00:14:01";

/** One netdev of the host for all firewalls; the tunnel key of each packet says which. */
function shared(tunnel: Shared): Kind {
  const { name, title, inside, outside, linkLayer, external, mtu = MTU, key, proof } = tunnel;
  const device = `x-${name.replace("-external", "")}`;
  const firewallEnd = make(tunnel);
  return {
    ...{ name, title, inside, outside, linkLayer, proof },
    probe: [`link add name NAME type ${external}`],
    uplinks: () => [{ interface: device }],
    make(side, place, first) {
      if (side === "firewall") {
        const end = firewallEnd(side, place);
        if (!linkLayer) return end;
        return { ...end, ip: [...end.ip, ...known(inside, place, "host", place.device, SHARED_MAC)] };
      }
      const mac = linkLayer ? ` address ${SHARED_MAC}` : "";
      const made = `link add name ${device} mtu ${mtu}${mac} type ${external}`;
      const neighbours = linkLayer ? known(inside, place, "firewall", device, place.deviceMac.firewall) : [];
      return { ip: [...(first ? [made, `link set dev ${device} up`] : []), ...neighbours], device };
    },
    route(side, place, family) {
      if (side === "firewall") return viaOtherEnd(side, place, family, place.device);
      const { firewall, host } = place.outer;
      const six = outside === 6 ? "6" : "";
      const encap = `encap ip${six} ${key(place)} dst ${firewall[outside]} src ${host[outside]}`;
      return linkLayer ? `${encap} ${viaOtherEnd(side, place, family, device)}` : `${encap} dev ${device}`;
    },
  };
}

/** Neighbours cannot be asked over a shared device: a question has no tunnel key. */
function known(
  families: readonly Family[],
  { inner }: Place,
  who: Side,
  device: string,
  mac: string,
): string[] {
  return families.map(
    (family) => `neigh add ${inner[who][family]} lladdr ${mac} dev ${device} nud permanent`,
  );
}

function tun(side: Side, place: Place): End {
  void side;
  const lines = [`tuntap add dev ${place.device} mode tun`, `link set dev ${place.device} mtu ${MTU}`];
  return { ip: lines, device: place.device };
}

const vxlan = (family: Family) =>
  encapsulated(family, "udp:vxlan:eth:ethertype", (place) => ({
    "vxlan.vni": [vni(place)],
    "udp.dstport": [4789],
  }));
const geneve = (port: number) =>
  encapsulated(4, "udp:geneve:eth:ethertype", (place) => ({
    "geneve.vni": [vni(place)],
    "udp.dstport": [port],
  }));
const gre = (family: Family, key?: (place: Place) => number) =>
  encapsulated(family, "gre", (place) => (key === undefined ? {} : { "gre.key": [key(place)] }));
const ethernetGre = (key: (place: Place) => number) =>
  encapsulated(4, "gre:eth:ethertype", (place) => ({ "gre.proto": [0x6558], "gre.key": [key(place)] }));

const ethernet = { inside: FAMILIES, linkLayer: true };
const layer3 = { inside: FAMILIES, linkLayer: false };

export const TUNNEL_KINDS: Kind[] = [
  ...FAMILIES.map((family) =>
    fixed({
      ...{ name: `vxlan${family}`, title: `VXLAN over IPv${family}`, ...ethernet, outside: family },
      ...{ type: "vxlan", options: (place) => `id ${vni(place)} dstport 4789 dev ${place.wire}` },
      proof: vxlan(family),
    }),
  ),
  shared({
    ...{ name: "vxlan-external", title: "VXLAN, one device for all (external)", ...ethernet, outside: 4 },
    ...{ type: "vxlan", options: (place) => `id ${vni(place)} dstport ${VXLAN_EXTERNAL_PORT}` },
    ...{ external: `vxlan external dstport ${VXLAN_EXTERNAL_PORT}`, key: (place) => `id ${vni(place)}` },
    ...{
      mtu: 1450,
      proof: encapsulated(4, "udp:vxlan:eth:ethertype", (place) => ({
        "vxlan.vni": [vni(place)],
        "udp.dstport": [VXLAN_EXTERNAL_PORT],
      })),
    },
  }),
  {
    ...fixed({
      ...{ name: "geneve", title: "Geneve", ...ethernet, outside: 4, type: "geneve", proof: geneve(6081) },
    }),
    make: (side, place) => ({
      ip: [
        `link add name ${place.device} address ${place.deviceMac[side]} mtu 1450 type geneve ` +
          `id ${vni(place)} remote ${place.outer[other(side)][4]}`,
      ],
      device: place.device,
    }),
  },
  fixed({
    ...{ name: "gretap", title: "GRE with Ethernet and a key (NVGRE)", ...ethernet, outside: 4 },
    ...{ type: "gretap", options: (place) => `key ${nvgreKey(place)} dev ${place.wire}` },
    proof: ethernetGre(nvgreKey),
  }),
  shared({
    ...{ name: "gretap-external", title: "GRE with Ethernet, one device for all", ...ethernet, outside: 4 },
    ...{ type: "gretap", options: (place) => `key ${greKey(place)}` },
    ...{ external: "gretap external", key: (place) => `id ${greKey(place)} key`, proof: ethernetGre(greKey) },
  }),
  fixed({
    ...{ name: "gre", title: "GRE", ...layer3, outside: 4, type: "gre", proof: gre(4) },
    options: ({ wire }) => `dev ${wire}`,
  }),
  fixed({
    ...{ name: "gre-key", title: "GRE with a key", ...layer3, outside: 4, type: "gre" },
    ...{ options: (place) => `key ${greKey(place)} dev ${place.wire}`, proof: gre(4, greKey) },
  }),
  fixed({
    ...{ name: "ip6gre", title: "GRE over IPv6", ...layer3, outside: 6, type: "ip6gre" },
    ...{ options: (place) => `key ${greKey(place)} encaplimit none dev ${place.wire}` },
    proof: gre(6, greKey),
  }),
  shared({
    ...{ name: "gre-external", title: "GRE, one device for all (external)", ...layer3, outside: 4 },
    ...{ type: "gre", options: (place) => `key ${greKey(place)}`, external: "gre external" },
    ...{ key: (place) => `id ${greKey(place)} key`, proof: gre(4, greKey) },
  }),
  fixed({
    ...{ name: "ipip", title: "IP in IP: 4in4", ...layer3, inside: [4], outside: 4, type: "ipip" },
    ...{ options: ({ wire }) => `dev ${wire}`, proof: encapsulated(4, "") },
  }),
  shared({
    ...{ name: "ipip-external", title: "IP in IP, one device for all", ...layer3, inside: [4] },
    ...{ outside: 4, type: "ipip", external: "ipip external", key: () => "id 0" },
    proof: encapsulated(4, ""),
  }),
  fixed({
    ...{ name: "sit", title: "IP in IP: 6in4 (sit)", ...layer3, inside: [6], outside: 4, type: "sit" },
    ...{ options: ({ wire }) => `dev ${wire}`, proof: encapsulated(4, "") },
  }),
  fixed({
    ...{ name: "ip6tnl", title: "IP in IP: 4in6, 6in6 (ip6tnl)", ...layer3, outside: 6, type: "ip6tnl" },
    ...{ options: ({ wire }) => `mode any encaplimit none dev ${wire}`, proof: encapsulated(6, "") },
  }),
  {
    ...{ name: "tun", title: "tun (a process carries it in UDP)", ...layer3, outside: 4 },
    ...{ probe: ["tuntap add dev NAME mode tun"], make: tun, uplinks: itself, relay: true },
    proof: (place) => ({
      ...encapsulated(4, "udp", () => ({ "udp.dstport": [TUN_RELAY_PORT] }))(place),
      inner: { 4: "ip", 6: "ip:ipv6" },
    }),
  },
];
