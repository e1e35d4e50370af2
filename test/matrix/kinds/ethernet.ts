// SPDX-License-Identifier: Apache-2.0
// Netdevs with a link layer that leave the frame as it is, but for tags.

import type { Place, Side } from "../place.ts";
import { VM_PREFIX } from "../place.ts";
import type { End, Kind, Uplink } from "./kind.ts";
import { beneath, FAMILIES, framed, itself, MTU, markOf, serviceVid, viaOtherEnd, vid } from "./kind.ts";

const nic = (_side: Side, { wire }: Place): End => ({
  ip: [`link set dev ${wire} mtu ${MTU}`],
  device: wire,
});

const vlanLine = (lower: string, name: string, id: number, protocol = "802.1Q"): string =>
  `link add link ${lower} name ${name} type vlan proto ${protocol} id ${id}`;

function vlan(_side: Side, place: Place): End {
  const { wire, device } = place;
  // The cable's too: replies may leave by it, with the tag that they have there.
  return { ip: [`link set dev ${wire} mtu ${MTU}`, vlanLine(wire, device, vid(place))], device };
}

function qinq(_side: Side, place: Place): End {
  const { wire, device, number } = place;
  const service = `s${number}`;
  const lines = [
    `link set dev ${wire} mtu ${MTU} up`,
    vlanLine(wire, service, serviceVid(place), "802.1ad"),
    `link set dev ${service} up`,
    vlanLine(service, device, vid(place)),
  ];
  return { ip: lines, device };
}

const BRIDGE = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0";

function bridge(side: Side, place: Place): End {
  if (side === "firewall") return nic(side, place);
  const { wire, device, deviceMac } = place;
  const lines = [
    `link set dev ${wire} mtu ${MTU}`,
    `link add name ${device} address ${deviceMac.host} mtu ${MTU} ${BRIDGE}`,
    `link set dev ${wire} master ${device}`,
  ];
  return { ip: lines, device };
}

/** A VLAN of a VLAN-aware bridge, tagged on the cable. */
function vlanBridge(side: Side, place: Place): End {
  if (side === "firewall") return vlan(side, place);
  const { wire, device, deviceMac, number } = place;
  const below = `b${number}`;
  const lines = [
    `link set dev ${wire} mtu ${MTU}`,
    `link add name ${below} address ${deviceMac.host} mtu ${MTU} ${BRIDGE} vlan_filtering 1`,
    `link set dev ${wire} master ${below}`,
    `link set dev ${below} up`,
    vlanLine(below, device, vid(place)),
  ];
  const shell = [wire, `${below} self`].map((where) => {
    const [name, self = ""] = where.split(" ");
    return `bridge vlan add dev ${name} vid ${vid(place)} ${self}`;
  });
  return { ip: lines, shell, device };
}

function bond(side: Side, place: Place): End {
  if (side === "firewall") return nic(side, place);
  const { wire, device, deviceMac } = place;
  const lines = [
    `link add name ${device} address ${deviceMac.host} mtu ${MTU} type bond mode active-backup miimon 100`,
    `link set dev ${wire} master ${device}`,
  ];
  return { ip: lines, device };
}

function macvlan(side: Side, place: Place): End {
  if (side === "firewall") return nic(side, place);
  const { wire, device, deviceMac } = place;
  const made = `link add link ${wire} name ${device} address ${deviceMac.host} type macvlan mode private`;
  return { ip: [`link set dev ${wire} mtu ${MTU}`, made], device };
}

function vrf(side: Side, place: Place): End {
  if (side === "firewall") return nic(side, place);
  const { wire, device, number } = place;
  const table = 3000 + number;
  const lines = [
    `link set dev ${wire} mtu ${MTU}`,
    `link add name ${device} type vrf table ${table}`,
    `link set dev ${device} up`,
    `link set dev ${wire} master ${device}`,
    ...FAMILIES.map((family) => `route add ${VM_PREFIX[family]} dev tap0 table ${table}`),
  ];
  return { ip: lines, device: wire };
}

const tagged = framed("eth:ethertype:vlan:ethertype", (place) => ({ "vlan.id": [vid(place)] }));
const twiceTagged = framed("eth:ethertype:ieee8021ad:ethertype:vlan:ethertype", (place) => ({
  "ieee8021ad.id": [serviceVid(place)],
  "vlan.id": [vid(place)],
}));
const untagged = framed("eth:ethertype");
const common = { inside: FAMILIES, linkLayer: true };
const both = (place: Place): Uplink[] => [...beneath(place), ...itself(place)];
const dummy = "link add name NAME type bridge";
const vlanProbe = [dummy, "link add link NAME name NAMEv type vlan id 5"];
const bridgeProbe = [dummy];
const vlanBridgeProbe = ["link add name NAME type bridge vlan_filtering 1", ...vlanProbe.slice(1)];

export const ETHERNET_KINDS: Kind[] = [
  { name: "nic", title: "NIC", ...common, probe: [], make: nic, uplinks: beneath, proof: untagged },
  {
    ...{ name: "nic-stack", title: "NIC, `via: stack`", ...common, probe: [], make: nic, proof: untagged },
    uplinks: (place) => [{ interface: place.wire, via: "stack", mark: markOf(place) }],
    marked: (place, family) => viaOtherEnd("host", place, family, place.wire),
  },
  { name: "vlan", title: "VLAN", ...common, probe: vlanProbe, make: vlan, uplinks: itself, proof: tagged },
  {
    ...{ name: "vlan-nic", title: "VLAN, the NIC below attached", ...common, probe: vlanProbe },
    ...{ make: vlan, uplinks: beneath, proof: tagged },
  },
  {
    ...{ name: "vlan-both", title: "VLAN, it and the NIC below attached", ...common, probe: vlanProbe },
    ...{ make: vlan, uplinks: both, proof: tagged },
  },
  {
    ...{ name: "qinq", title: "QinQ (802.1ad, 802.1Q)", ...common, probe: vlanProbe },
    ...{ make: qinq, uplinks: itself, proof: twiceTagged },
  },
  {
    ...{ name: "qinq-nic", title: "QinQ, the NIC below attached", ...common, probe: vlanProbe },
    ...{ make: qinq, uplinks: beneath, proof: twiceTagged },
  },
  {
    ...{ name: "bridge", title: "bridge", ...common, probe: bridgeProbe },
    ...{ make: bridge, uplinks: itself, proof: untagged },
  },
  {
    ...{ name: "bridge-port", title: "bridge, its port attached", ...common, probe: bridgeProbe },
    ...{ make: bridge, uplinks: beneath, proof: untagged },
  },
  {
    ...{ name: "vbridge", title: "VLAN of a VLAN-aware bridge", ...common, probe: vlanBridgeProbe },
    ...{ make: vlanBridge, uplinks: itself, proof: tagged },
  },
  {
    ...{ name: "vbridge-port", title: "VLAN-aware bridge, its port attached", ...common },
    ...{ probe: vlanBridgeProbe, make: vlanBridge, uplinks: beneath, proof: tagged },
  },
  {
    ...{ name: "bond", title: "bond", ...common, probe: ["link add name NAME type bond"] },
    ...{ make: bond, uplinks: itself, proof: untagged },
  },
  {
    ...{ name: "macvlan", title: "macvlan", ...common },
    probe: [dummy, "link add link NAME name NAMEm type macvlan"],
    ...{ make: macvlan, uplinks: itself, proof: untagged },
  },
  {
    ...{ name: "vrf", title: "NIC in a VRF", ...common, probe: ["link add name NAME type vrf table 99"] },
    ...{ make: vrf, uplinks: beneath, proof: untagged },
  },
];
