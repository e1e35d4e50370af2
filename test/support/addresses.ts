// SPDX-License-Identifier: Apache-2.0
// Who has which address: the same in every site, so that sites overlap.

export type Family = 4 | 6;
export type Addresses = Record<Family, string>;

export const VM_PREFIX: Addresses = { 4: "203.0.113.0/24", 6: "2001:db8:113::/64" };
export const vmAddress = (last: number): Addresses => ({
  4: `203.0.113.${last}`,
  6: `2001:db8:113::${last}`,
});
export const HOST_GATEWAY = vmAddress(254);
/** In the VMs' network, or alone. */
export const prefixLength = (family: Family, wide: boolean): number =>
  wide ? (family === 4 ? 24 : 64) : family === 4 ? 32 : 128;
export const FAMILIES: Family[] = [4, 6];

export function mac(kind: number, number: number, site = 0): string {
  const hex = (value: number) => value.toString(16).padStart(2, "0");
  return `02:00:${hex(site)}:00:${hex(kind)}:${hex(number)}`;
}

/** Between firewall and client: 1 is the firewall's end, 2 the client's. */
export function outside(firewall: number, client: number, end: 1 | 2): Addresses {
  return { 4: `10.${firewall + 1}.${client + 1}.${end}`, 6: `fd10:${firewall + 1}:${client + 1}::${end}` };
}

/** Between firewall and a routing host. */
export function transfer(shared: boolean, firewall: number, end: "firewall" | "host"): Addresses {
  const last = end === "host" ? 254 : firewall + 1;
  const net = shared ? 0 : firewall + 1;
  return { 4: `172.16.${net}.${last}`, 6: `fd16:${net}::${last}` };
}
