// SPDX-License-Identifier: Apache-2.0
// A site whose firewall a has no path to the host but a tunnel: by VXLAN of its kernel, on the wire where its frames
// went before. What was its interface inside is called `wire`, and the tunnel `in`, as its rules have it.

import { type Addresses, FAMILIES, type Family, prefixLength, transfer, VM_PREFIX } from "./addresses.ts";
import { INSIDE } from "./firewall.ts";
import type { Ground } from "./fixture.ts";
import type { Site } from "./site.ts";

/** Within the tunnel, on a routing host. */
export const WITHIN: Record<"firewall" | "host", Addresses> = {
  firewall: { 4: "10.77.0.1", 6: "fd77::1" },
  host: { 4: "10.77.0.2", 6: "fd77::2" },
};

export const TUNNEL = "fw-a";
export const VNI = 100;

const suffixOf = (family: Family): string => (family === 6 ? " nodad" : "");

/** Of the outer packets. On a bridged host they have a wire with addresses of their own. */
export const OUTER = {
  firewall: transfer(false, 0, "firewall"),
  host: transfer(false, 0, "host"),
};

export interface TunnelSiteOptions {
  /** IP version of the outer packets. */
  outer: Family;
}

/** Puts the tunnel's far end into firewall a. */
export async function tunnelFirewall(site: Site, { outer }: TunnelSiteOptions): Promise<void> {
  const { namespace, address } = site.a;
  await wireFirewall(site);
  await namespace.ip(vxlan(OUTER.firewall[outer], OUTER.host[outer]), `link set dev ${INSIDE} up`);
  if (site.kind === "bridged") {
    await namespace.ip(...FAMILIES.map((family) => addressLine(address[family], family, INSIDE)));
  } else {
    await useFarEnd(site);
  }
}

/** Leaves firewall a with a bare wire to the host, which has addresses for the outer packets. */
export async function wireFirewall(site: Site): Promise<void> {
  const uplink = site.uplinkOf("a");
  if (site.kind === "bridged") {
    // No port any longer.
    await site.host.ip(
      `link set dev ${uplink} nomaster`,
      ...FAMILIES.map((family) => addressLine(OUTER.host[family], family, uplink)),
    );
  }
  await site.a.namespace.ip(
    `link set dev ${INSIDE} down`,
    `link set dev ${INSIDE} name wire`,
    "addr flush dev wire",
    ...FAMILIES.map((family) => addressLine(OUTER.firewall[family], family, "wire")),
    "link set dev wire up",
  );
}

function addressLine(address: string, family: Family, device: string): string {
  return `addr replace ${address}/${prefixLength(family, true)} dev ${device}${suffixOf(family)}`;
}

/** What the firewall's operator does with the tunnel, towards a routing host. */
export async function useFarEnd({ a }: Site): Promise<void> {
  await a.namespace.ip(
    ...FAMILIES.map((family) => addressLine(WITHIN.firewall[family], family, INSIDE)),
    ...FAMILIES.map((family) => `route replace ${VM_PREFIX[family]} via ${WITHIN.host[family]}`),
  );
}

/** The configurations of two instances, one on the host and one in firewall a, for the same built-in tunnel. */
export function bothEnds(
  site: Site,
  type: "nvgre" | "gre" | "ipip" | "mpls",
  outer: Family,
): { near: string; far: string } {
  const id = type === "nvgre" || type === "gre" ? `, id: ${VNI}` : "";
  const keys = (own: string, other: string, mac: string, labels: string) =>
    type === "mpls" ? `next_hop: "${mac}", labels: ${labels}` : `local: "${own}", remote: "${other}"${id}`;
  const [host, firewall] = [OUTER.host[outer], OUTER.firewall[outer]];
  const near = keys(host, firewall, site.a.mac, "{request: [100, 101], reply: [200, 201]}");
  const far = keys(firewall, host, site.uplinkMac("a"), "{request: [200, 201], reply: [100, 101]}");
  const rest = `uplinks: [{name: ${TUNNEL}}, {name: up-b}]\ntaps: [{name: 'tap*'}]\n`;
  return {
    near: `tunnels: [{name: ${TUNNEL}, type: ${type}, encap: builtin, underlay: ${site.uplinkOf("a")}, ${near}}]\n${rest}`,
    far: `tunnels: [{name: ${INSIDE}, type: ${type}, encap: builtin, underlay: wire, ${far}}]\n`,
  };
}

function vxlan(local: string, remote: string): string {
  const checksum = local.includes(":") ? " udp6zerocsumrx" : "";
  return `link add ${INSIDE} type vxlan id ${VNI} local ${local} remote ${remote} dstport 4789 nolearning dev wire${checksum}`;
}

/** The same tunnel from another address of the firewall's. */
export async function moveFarEnd({ a }: Site, outer: Family, local: string): Promise<void> {
  await a.namespace.ip(
    `addr add ${local}/${prefixLength(outer, true)} dev wire${suffixOf(outer)}`,
    `link set dev ${INSIDE} down`,
    `link set dev ${INSIDE} type vxlan local ${local}`,
    `link set dev ${INSIDE} up`,
    ...FAMILIES.flatMap((family) => {
      const length = prefixLength(family, true);
      const address = `${WITHIN.firewall[family]}/${length} dev ${INSIDE}${suffixOf(family)}`;
      return [`addr replace ${address}`, `route replace ${VM_PREFIX[family]} via ${WITHIN.host[family]}`];
    }),
  );
}

/** What an operator does once the tunnel's interface is there. */
export async function useTunnel({ site }: Pick<Ground, "site">): Promise<void> {
  if (site.kind === "bridged") {
    await site.host.ip(`link set dev ${TUNNEL} master br`);
    return;
  }
  await site.host.ip(
    ...FAMILIES.map((family) => {
      return `addr replace ${WITHIN.host[family]}/${prefixLength(family, true)} dev ${TUNNEL}${suffixOf(family)}`;
    }),
  );
}

export interface TunnelKeys {
  encap?: string;
  type?: string;
  remote?: string;
  more?: string;
}

export function tunnelConfig(site: Site, outer: Family, keys: TunnelKeys = {}): string {
  const { encap = "builtin", type = "vxlan", remote = OUTER.firewall[outer], more = "" } = keys;
  const id = type === "ipip" ? "" : `, id: ${VNI}`;
  const text = `{name: ${TUNNEL}, type: ${type}, encap: ${encap}, local: "${OUTER.host[outer]}", remote: "${remote}"${id}, underlay: ${site.uplinkOf("a")}${more}}`;
  return `tunnels: [${text}]\nuplinks: [{name: ${TUNNEL}}, {name: up-b}]\ntaps: [{name: 'tap*'}]\n`;
}
