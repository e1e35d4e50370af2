// SPDX-License-Identifier: Apache-2.0
// Who has which address. A firewall has a number; everything that belongs to it follows from that.

import { type Addresses, type Family, mac } from "../support/addresses.ts";

export type Side = "host" | "firewall";

/** One firewall: the cable between it and the host, and the kind's own network upon it. */
export interface Place {
  number: number;
  /** The netdev at either end of the cable. */
  wire: string;
  /** What a kind makes is called this at either end. */
  device: string;
  /** On the cable: the tunnel's ends. */
  outer: Record<Side, Addresses>;
  /** Within: what the routes name. */
  inner: Record<Side, Addresses>;
  wireMac: Record<Side, string>;
  deviceMac: Record<Side, string>;
}

function ends(net4: number, net6: string, number: number): Record<Side, Addresses> {
  const end = (last: number) => ({ 4: `10.${net4}.${number}.${last}`, 6: `${net6}:${number}::${last}` });
  return { host: end(1), firewall: end(2) };
}

export function placeOf(number: number): Place {
  return {
    number,
    wire: `u${number}`,
    device: `d${number}`,
    outer: ends(64, "fd64", number),
    inner: ends(32, "fd32", number),
    wireMac: { host: mac(0x10, number), firewall: mac(0x11, number) },
    deviceMac: { host: mac(0x12, number), firewall: mac(0x13, number) },
  };
}

export const prefixLength: Record<Family, number> = { 4: 24, 6: 64 };

export const VM: Addresses = { 4: "203.0.113.11", 6: "2001:db8:113::11" };
export const VM_GATEWAY: Addresses = { 4: "203.0.113.254", 6: "2001:db8:113::254" };
export const VM_PREFIX: Addresses = { 4: "203.0.113.0/24", 6: "2001:db8:113::/64" };
export const VM_MAC = mac(0x0e, 1);

/** Between firewall and client. */
export const outside = (number: number): Record<"firewall" | "client", Addresses> => {
  const { host, firewall } = ends(96, "fd96", number);
  return { client: host, firewall };
};

/**
 * What is played: the traffic of the pairs; the replies too big for the way back, of which the VM shall know nothing
 * before; and, under bypass, connections that have to fail.
 */
export type Run = "redirected" | "oversized" | "bypassed";

const RUN_NETS: Record<Run, Addresses> = {
  redirected: { 4: "198.18", 6: "2001:db8:18" },
  oversized: { 4: "198.17", 6: "2001:db8:17" },
  bypassed: { 4: "198.19", 6: "2001:db8:19" },
};

/** Each pair has a client address of its own, so an address on any wire tells which pair it is of. */
export function clientAddress(run: Run, ingress: number, egress: number): Addresses {
  const net = RUN_NETS[run];
  return { 4: `${net[4]}.${ingress}.${egress}`, 6: `${net[6]}:${ingress}::${egress}` };
}

/** All client addresses, or those of the pairs whose requests go by one firewall. */
export function clientPrefixes(family: Family, ingress?: number): string[] {
  return Object.values(RUN_NETS).map((net) => {
    if (family === 4) return ingress === undefined ? `${net[4]}.0.0/16` : `${net[4]}.${ingress}.0/24`;
    return ingress === undefined ? `${net[6]}::/48` : `${net[6]}:${ingress}::/64`;
  });
}
