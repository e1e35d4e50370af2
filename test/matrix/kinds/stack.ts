// SPDX-License-Identifier: Apache-2.0
// Encryption and labels: what only the host's own stack can put on a packet.

import { createHash, createPrivateKey, createPublicKey } from "node:crypto";
import type { Family } from "../../support/addresses.ts";
import { clientPrefixes, type Place, type Side, VM_PREFIX } from "../place.ts";
import type { End, Kind } from "./kind.ts";
import { encapsulated, FAMILIES, framed, itself, MTU, markOf, other, viaOtherEnd } from "./kind.ts";

/** Without encryption the cable shows what is inside; the kernel takes the same way with any cipher. */
const CIPHER = "enc ecb(cipher_null) '' auth-trunc hmac(sha1) 0x0123456789abcdef0123456789abcdef01234567 96";

const spi = (from: Side, { number }: Place): number => (from === "host" ? 0x1000 : 0x2000) + number;

const template = (from: Side, { outer, number }: Place): string =>
  `tmpl src ${outer[from][4]} dst ${outer[other(from)][4]} proto esp reqid ${number} mode tunnel`;

/** One security association for each direction. */
function associations(place: Place, more = ""): string[] {
  return (["host", "firewall"] as const).map((from) => {
    const way = `src ${place.outer[from][4]} dst ${place.outer[other(from)][4]}`;
    return (
      `xfrm state add ${way} proto esp spi ${spi(from, place)} reqid ${place.number} mode tunnel ` +
      `flag af-unspec ${CIPHER} ${more}`
    );
  });
}

const ANY: Record<Family, string> = { 4: "0.0.0.0/0", 6: "::/0" };

function xfrmInterface(side: Side, place: Place): End {
  const { device, wire, number } = place;
  const policies = FAMILIES.flatMap((family) =>
    (["out", "fwd", "in"] as const).map((direction) => {
      const from = direction === "out" ? side : other(side);
      return `xfrm policy add src ${ANY[family]} dst ${ANY[family]} dir ${direction} if_id ${number} ${template(from, place)}`;
    }),
  );
  const made = `link add name ${device} mtu ${MTU} type xfrm dev ${wire} if_id ${number}`;
  return { ip: [made, ...associations(place, `if_id ${number}`), ...policies], device };
}

const SHARED_XFRM = "x-xfrm";

/** One netdev of the host for all firewalls; the interface id of each packet says which. */
function sharedXfrm(side: Side, place: Place, first: boolean): End {
  const end = xfrmInterface(side, place);
  if (side === "firewall") return end;
  const made = [
    `link add name ${SHARED_XFRM} mtu ${MTU} type xfrm external`,
    `link set dev ${SHARED_XFRM} up`,
  ];
  return { ip: [...(first ? made : []), ...end.ip.slice(1)], device: SHARED_XFRM };
}

/** Of all policies without an interface: beside a shared XFRM interface all that they decrypt comes in there. */
const POLICY_MARK = 0x1f5;

/** The firewall encrypts what is for the VMs; the host what has the mark. */
function policyOnly(side: Side, place: Place): End {
  const policies = FAMILIES.flatMap((family) => {
    const clients = clientPrefixes(family, place.number);
    if (side === "firewall") {
      const [vms, any] = [VM_PREFIX[family], ANY[family]];
      return [
        `xfrm policy add src ${any} dst ${vms} dir out ${template(side, place)}`,
        `xfrm policy add src ${vms} dst ${any} dir fwd ${template("host", place)}`,
      ];
    }
    return clients.flatMap((client) => [
      `xfrm policy add src ${ANY[family]} dst ${client} dir out mark ${POLICY_MARK} mask 0xffffffff ${template(side, place)}`,
      // Not only: a client may move here from another kind of interface.
      `xfrm policy add src ${client} dst ${ANY[family]} dir fwd ${template("firewall", place)} level use`,
    ]);
  });
  const { wire } = place;
  return { ip: [`link set dev ${wire} mtu 1500`, ...associations(place), ...policies], device: wire };
}

/** RFC 8410: what stands before the 32 bytes of a private key. */
const X25519_HEADER = Buffer.from("302e020100300506032b656e04220420", "hex");

function wireguardKey(side: Side, place: Place): { secret: string; open: string } {
  const seed = createHash("sha256").update(`${side} ${place.number}`).digest();
  const key = createPrivateKey({
    key: Buffer.concat([X25519_HEADER, seed]),
    format: "der",
    type: "pkcs8",
  });
  const open = createPublicKey(key).export({ format: "der", type: "spki" }).subarray(-32);
  return { secret: seed.toString("base64"), open: open.toString("base64") };
}

const WIREGUARD_PORT = 51820;

function wireguard(side: Side, place: Place): End {
  const { device, number, outer } = place;
  const far = other(side);
  const port = WIREGUARD_PORT + number;
  const lines = [
    `[Interface]\nListenPort = ${port}\nPrivateKey = ${wireguardKey(side, place).secret}`,
    `[Peer]\nPublicKey = ${wireguardKey(far, place).open}\nAllowedIPs = 0.0.0.0/0, ::/0`,
    `Endpoint = ${outer[far][4]}:${port}`,
  ];
  const shell = [`wg setconf ${device} /proc/self/fd/0 <<'KEYS'\n${lines.join("\n")}\nKEYS`];
  return { ip: [`link add name ${device} mtu 1420 type wireguard`], shell, device };
}

export const labelsFrom = (from: Side, { number }: Place): [number, number] =>
  from === "firewall" ? [1000 + number, 2000 + number] : [3000 + number, 4000 + number];

export const labelledRoute = (side: Side, place: Place, family: Family): string =>
  `encap mpls ${labelsFrom(side, place).join("/")} via ${family === 6 ? "inet6" : "inet"} ` +
  `${place.outer[other(side)][family]} dev ${place.wire}`;

export function labelEnd(side: Side, place: Place): End {
  const { wire } = place;
  const pops = labelsFrom(other(side), place).map((label) => `route add ${label} dev lo`);
  const shell = [
    `sysctl -qw net.mpls.platform_labels=10000 net.mpls.conf.lo.input=1 net.mpls.conf.${wire}.input=1`,
    `ip -f mpls -batch - <<'LABELS'\n${pops.join("\n")}\nLABELS`,
  ];
  return { ip: [`link set dev ${wire} mtu 1500`], shell, device: wire, arrivesBy: "lo" };
}

const esp = encapsulated(4, "esp", (place) => ({
  "esp.spi": [`0x${spi("host", place).toString(16).padStart(8, "0")}`],
}));

export const STACK_KINDS: Kind[] = [
  {
    ...{ name: "xfrm", title: "IPsec, XFRM interface", inside: FAMILIES, outside: 4, linkLayer: false },
    probe: ["link add name NAMEw type bridge", "link add name NAME type xfrm dev NAMEw if_id 7"],
    ...{ make: xfrmInterface, uplinks: itself, proof: esp },
  },
  {
    ...{ name: "xfrm-external", title: "IPsec, one XFRM interface for all (external)", inside: FAMILIES },
    ...{ outside: 4, linkLayer: false, make: sharedXfrm, proof: esp },
    probe: ["link add name NAME type xfrm external"],
    // Before Linux 6.2 no program is told the interface ids.
    kernelFunction: "bpf_skb_set_xfrm_info",
    uplinks: () => [{ interface: SHARED_XFRM, mark: POLICY_MARK }],
    route: (side, place, family) =>
      side === "host"
        ? `dev ${SHARED_XFRM} encap xfrm if_id ${place.number}`
        : viaOtherEnd(side, place, family, place.device),
  },
  {
    ...{ name: "ipsec", title: "IPsec by policy, the NIC attached", inside: FAMILIES, outside: 4 },
    probe: [
      `xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 1 mode tunnel ${CIPHER}`,
      "xfrm state flush",
    ],
    ...{ linkLayer: true, make: policyOnly, proof: esp, dropsUncounted: true },
    uplinks: (place) => [{ interface: place.wire, mark: POLICY_MARK }],
    mark: () => POLICY_MARK,
    marked: (place, family) => viaOtherEnd("host", place, family, place.wire),
  },
  {
    ...{ name: "wireguard", title: "WireGuard", inside: FAMILIES, outside: 4, linkLayer: false },
    ...{ probe: ["link add name NAME type wireguard"], program: "wg", opaque: true },
    ...{ make: wireguard, uplinks: itself },
    proof: encapsulated(4, "udp:wg", (place) => ({ "udp.dstport": [WIREGUARD_PORT + place.number] })),
  },
  {
    ...{ name: "mpls", title: "MPLS, the NIC attached", inside: FAMILIES, linkLayer: true },
    probe: [
      "link add name NAME type bridge",
      "link set dev NAME up",
      "addr add 192.0.2.1/24 dev NAME",
      "route add 198.51.100.0/24 encap mpls 100/200 via inet 192.0.2.2 dev NAME",
    ],
    make: labelEnd,
    uplinks: (place) => [{ interface: place.wire }],
    labelStacks: (place) => [{ request: labelsFrom("firewall", place), mark: markOf(place) }],
    route: labelledRoute,
    marked: (place, family) => labelledRoute("host", place, family),
    proof: framed("eth:ethertype:mpls", (place) => ({ "mpls.label": labelsFrom("host", place) })),
  },
];
