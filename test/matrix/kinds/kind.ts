// SPDX-License-Identifier: Apache-2.0
// What is said of a kind of routing interface, and what is the same for many of them.

import type { Family } from "../../support/addresses.ts";
import type { Place, Side } from "../place.ts";

/** What tshark shows of a frame. */
export const PROOF_FIELDS = [
  "eth.src",
  "eth.dst",
  "ieee8021ad.id",
  "vlan.id",
  "ip.dst",
  "ip.proto",
  "ipv6.dst",
  "udp.dstport",
  "vxlan.vni",
  "geneve.vni",
  "gre.proto",
  "gre.key",
  "mpls.label",
  "esp.spi",
  "wg.type",
] as const;
export type ProofField = (typeof PROOF_FIELDS)[number];

/** What the cable shows of a reply that left by the kind. */
export interface Proof {
  /** tshark's names of the headers before the inner IP header. */
  layers: string;
  /** Its name of the inner IP header, where it is not `ip` and `ipv6`. */
  inner?: Record<Family, string>;
  /** The values of the outermost headers, in their order. */
  fields: Partial<Record<ProofField, readonly (string | number)[]>>;
}

export interface End {
  /** Lines for `ip -batch`. */
  ip: string[];
  /** Lines for a shell in the namespace, once every netdev is up. */
  shell?: string[];
  /** What routes name, and what has the inner addresses. */
  device: string;
  /** What packets come in by, as netfilter sees it, if that is another one. */
  arrivesBy?: string;
  /** An entry of `tunnels:`, if lasthop makes the netdev. */
  tunnel?: object;
}

export interface Uplink {
  interface: string;
  via?: "redirect" | "stack";
  mark?: number;
}

export interface Kind {
  name: string;
  /** For the reader of the table. */
  title: string;
  /** The families that it carries, and that of its outer header. */
  inside: readonly Family[];
  outside?: Family;
  linkLayer: boolean;
  /** `ip -batch` lines that only work where the kernel has it; NAME stands for a netdev of the probe's own. */
  probe: readonly string[];
  /** A program that it takes. */
  program?: string;
  /** A function that the kernel, or the module that the probe loads, has to have for BPF programs. */
  kernelFunction?: string;
  /** `first`: no other place of this kind has been made. `lacks`: the names of the kinds that the kernel lacks. */
  make(side: Side, place: Place, first: boolean, lacks: ReadonlySet<string>): End;
  uplinks(place: Place): Uplink[];
  /** Label stacks of requests, and the mark of their replies. */
  labelStacks?(place: Place): { request: number[]; mark: number }[];
  /** What follows `ip route add PREFIX` in order to go out by it; by default `via` the other end. */
  route?(side: Side, place: Place, family: Family, device: string): string;
  /** Of the replies that the host's routing sends, where it is not the place's own. */
  mark?(): number;
  /** Where replies go that the host's routing sends: by their mark. */
  marked?(place: Place, family: Family): string;
  proof(place: Place): Proof;
  /** The cable does not show what is inside: that a frame is of a pair is told by the time. */
  opaque?: true;
  /** Its firewall drops what comes outside the tunnel before its rules could count it. */
  dropsUncounted?: true;
  /** A process at either end carries its packets in UDP. */
  relay?: true;
}

export const FAMILIES: readonly Family[] = [4, 6];

/** Of kinds that take nothing from a frame: less than the VM's, or its path MTU would have nothing to find. */
export const MTU = 1400;

export const other = (side: Side): Side => (side === "host" ? "firewall" : "host");

export const vni = ({ number }: Place): number => 100 + number;
export const vid = ({ number }: Place): number => 100 + number;
export const serviceVid = ({ number }: Place): number => 500 + number;
export const markOf = ({ number }: Place): number => 0x100 + number;

/** The uplink is the netdev that the kind makes, or the cable beneath. */
export const itself = ({ device }: Place): Uplink[] => [{ interface: device }];
export const beneath = ({ wire }: Place): Uplink[] => [{ interface: wire }];

export function viaOtherEnd(side: Side, place: Place, family: Family, device: string): string {
  return `via ${place.inner[other(side)][family]} dev ${device} onlink`;
}

/** Straight in the cable's frame, perhaps behind tags. */
export function framed(layers: string, fields: (place: Place) => Proof["fields"] = () => ({})) {
  return (place: Place): Proof => ({
    layers,
    fields: { "eth.dst": [place.wireMac.firewall], ...fields(place) },
  });
}

/** Behind an outer IP header that leads to the firewall. */
export function encapsulated(
  family: Family,
  next: string,
  fields: (place: Place) => Proof["fields"] = () => ({}),
) {
  return (place: Place): Proof => ({
    layers: `eth:ethertype:${family === 4 ? "ip" : "ipv6"}${next && `:${next}`}`,
    fields: {
      "eth.dst": [place.wireMac.firewall],
      [family === 4 ? "ip.dst" : "ipv6.dst"]: [place.outer.firewall[family]],
      ...fields(place),
    },
  });
}
