// SPDX-License-Identifier: Apache-2.0
// Tunnelled frames as tshark, which is not ours, reads them.

import type { Capture } from "./capture.ts";

export interface Label {
  label: number;
  trafficClass: number;
  bottom: boolean;
  ttl: number;
}

export interface Frame {
  length: number;
  /** IP headers, and labels for one. */
  layers: number;
  protocol: "vxlan" | "gre" | "ipip" | "mpls" | "none";
  sourceMac: string;
  outerSource: string;
  outerDestination: string;
  outerTtl: number;
  outerDscp: number;
  outerEcn: number;
  /** null over IPv6, which knows no other. */
  dontFragment: boolean | null;
  innerSource: string;
  innerDestination: string;
  innerTtl: number;
  innerEcn: number;
  udpSource: number | null;
  udpDestination: number | null;
  innerUdpDestination: number | null;
  vni: number | null;
  greKey: number | null;
  labels: Label[];
  tcp: boolean;
  /** Of all headers, inside and outside, those that tshark calls wrong. */
  badChecksums: number;
  /** A TCP or UDP checksum was found right; none of our outer headers has any. */
  transportChecked: boolean;
  malformed: boolean;
}

const FIELDS = [
  ...["frame.len", "frame.protocols", "eth.src", "_ws.malformed"],
  ...["ip.src", "ip.dst", "ip.ttl", "ip.dsfield.dscp", "ip.dsfield.ecn", "ip.flags.df", "ip.checksum.status"],
  ...["ipv6.src", "ipv6.dst", "ipv6.hlim", "ipv6.tclass.dscp", "ipv6.tclass.ecn"],
  ...["udp.srcport", "udp.dstport", "udp.checksum.status", "tcp.checksum.status", "tcp.srcport"],
  ...["icmp.checksum.status", "icmpv6.checksum.status", "vxlan.vni", "gre.key"],
  ...["mpls.label", "mpls.exp", "mpls.bottom", "mpls.ttl"],
] as const;
type Field = (typeof FIELDS)[number];

const BAD = "0";
const GOOD = "1";

function decode(row: Record<Field, string[]>): Frame {
  const all = (field: Field) => row[field];
  const numbers = (field: Field) => all(field).map(Number);
  const protocols = all("frame.protocols")[0]!.split(":");
  // The two families' fields stand apart, each in its order in the frame.
  const taken = { ip: 0, ipv6: 0 };
  const layers = protocols
    .filter((name): name is "ip" | "ipv6" => name === "ip" || name === "ipv6")
    .map((name) => {
      const at = taken[name]++;
      const six = name === "ipv6";
      return {
        source: all(six ? "ipv6.src" : "ip.src")[at] ?? "",
        destination: all(six ? "ipv6.dst" : "ip.dst")[at] ?? "",
        ttl: numbers(six ? "ipv6.hlim" : "ip.ttl")[at] ?? 0,
        dscp: numbers(six ? "ipv6.tclass.dscp" : "ip.dsfield.dscp")[at] ?? 0,
        ecn: numbers(six ? "ipv6.tclass.ecn" : "ip.dsfield.ecn")[at] ?? 0,
        dontFragment: six ? null : ["1", "True"].includes(all("ip.flags.df")[at] ?? ""),
      };
    });
  const mpls = protocols.includes("mpls");
  const [outer, inner] = [mpls ? undefined : layers[0], layers[mpls ? 0 : 1]];
  const vxlan = protocols.includes("vxlan");
  const udp = numbers("udp.dstport");
  const states = (["ip", "udp", "tcp", "icmp", "icmpv6"] as const).flatMap((name) =>
    all(`${name}.checksum.status` as Field),
  );
  return {
    length: Number(all("frame.len")[0]),
    layers: layers.length + (mpls ? 1 : 0),
    protocol: mpls
      ? "mpls"
      : vxlan
        ? "vxlan"
        : protocols.includes("gre")
          ? "gre"
          : layers.length > 1
            ? "ipip"
            : "none",
    sourceMac: all("eth.src")[0] ?? "",
    outerSource: outer?.source ?? "",
    outerDestination: outer?.destination ?? "",
    outerTtl: outer?.ttl ?? 0,
    outerDscp: outer?.dscp ?? 0,
    outerEcn: outer?.ecn ?? 0,
    dontFragment: outer?.dontFragment ?? null,
    innerSource: inner?.source ?? "",
    innerDestination: inner?.destination ?? "",
    innerTtl: inner?.ttl ?? 0,
    innerEcn: inner?.ecn ?? 0,
    udpSource: numbers("udp.srcport")[0] ?? null,
    udpDestination: udp[0] ?? null,
    innerUdpDestination: udp[vxlan ? 1 : 0] ?? null,
    vni: numbers("vxlan.vni")[0] ?? null,
    greKey: numbers("gre.key")[0] ?? null,
    labels: numbers("mpls.label").map((label, at) => ({
      label,
      trafficClass: numbers("mpls.exp")[at]!,
      bottom: ["1", "True"].includes(all("mpls.bottom")[at]!),
      ttl: numbers("mpls.ttl")[at]!,
    })),
    tcp: protocols.includes("tcp"),
    transportChecked: [...all("tcp.checksum.status"), ...all("udp.checksum.status")].includes(GOOD),
    badChecksums: states.filter((state) => state === BAD).length,
    malformed: all("_ws.malformed").length > 0,
  };
}

/** What a capture has taken, once nothing more comes in. */
export async function readFrames(capture: Capture): Promise<Frame[]> {
  return (await capture.fields(...FIELDS)).map(decode);
}
