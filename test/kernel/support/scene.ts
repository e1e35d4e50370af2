// SPDX-License-Identifier: Apache-2.0
// Who talks to whom in the tests: two devices (A is asked, B is what the guests have as default gateway),
// clients behind them, VMs behind taps. Every test is written once for both families.

import {
  type Ethernet,
  ethernet,
  type Ipv4,
  type Ipv6,
  ipv4,
  ipv6,
  type Network,
  type Transport,
} from "./packet.ts";

export const MAC = {
  deviceA: "02:00:00:00:00:a1",
  deviceB: "02:00:00:00:00:b1",
  /** A second device on uplink A. */
  deviceC: "02:00:00:00:00:c1",
  vm1: "02:00:00:00:01:01",
  vm2: "02:00:00:00:01:02",
  vmZ: "02:00:00:00:01:07",
  unknown: "02:00:00:00:ee:01",
  broadcast: "ff:ff:ff:ff:ff:ff",
  zero: "00:00:00:00:00:00",
} as const;

export interface Family {
  version: 4 | 6;
  icmp: number;
  /** The remote side. */
  client: string;
  client2: string;
  /** VMs reached over layer 2. */
  vm: string;
  vm2: string;
  /** A VM that the host routes to, out of tap_1. */
  routedVm: string;
  /** The same behind the bridge. */
  bridgedVm: string;
  /** The same out of an interface that is not ours, where the neighbour has VM 1's MAC. */
  neighbourVm: string;
  /** Behind device B as the host's routing sees it: transit. */
  transit: string;
  /** The host's own address on uplink_a. */
  host: string;
  multicast: string;
  unroutable: string;
  /** Lines for `ip -4 -batch` or `ip -6 -batch`: the addresses above. */
  routes: string[];
  ip(header: IpHeader, transport: Transport): Network;
}

/** What both families have; `v4` and `v6` for the rest. */
export interface IpHeader {
  source: string;
  destination: string;
  ttl?: number;
  v4?: Partial<Ipv4>;
  v6?: Partial<Ipv6>;
}

function routes(version: 4 | 6, f: Omit<Family, "routes" | "ip">, host: string, gateway: string): string[] {
  const nodad = version === 4 ? "" : " nodad";
  const length = version === 4 ? 32 : 128;
  return [
    `addr add ${host} dev uplink_a${nodad}`,
    `route add ${f.routedVm}/${length} dev tap_1`,
    `route add ${f.bridgedVm}/${length} dev bridge`,
    `route add ${f.neighbourVm}/${length} dev stranger`,
    `route add ${f.transit}/${length} dev uplink_b`,
    `route add unreachable ${f.unroutable}/${length}`,
    `route add default via ${gateway} dev uplink_a`,
    `neigh add ${f.routedVm} lladdr ${MAC.vm1} dev tap_1 nud permanent`,
    `neigh add ${f.bridgedVm} lladdr ${MAC.vm1} dev bridge nud permanent`,
    `neigh add ${f.neighbourVm} lladdr ${MAC.vm1} dev stranger nud permanent`,
    `neigh add ${f.transit} lladdr ${MAC.deviceB} dev uplink_b nud permanent`,
    `neigh add ${gateway} lladdr ${MAC.deviceA} dev uplink_a nud permanent`,
  ];
}

const addresses4 = {
  version: 4,
  icmp: 1,
  client: "198.51.100.10",
  client2: "198.51.100.20",
  vm: "10.0.0.5",
  vm2: "10.0.0.6",
  routedVm: "10.0.1.5",
  bridgedVm: "10.0.2.5",
  neighbourVm: "10.0.3.5",
  transit: "10.9.0.5",
  host: "192.0.2.1",
  multicast: "224.0.0.251",
  unroutable: "10.8.0.5",
} as const;

const addresses6 = {
  version: 6,
  icmp: 58,
  client: "2001:db8:c::10",
  client2: "2001:db8:c::20",
  vm: "fd00::5",
  vm2: "fd00::6",
  routedVm: "fd00:1::5",
  bridgedVm: "fd00:2::5",
  neighbourVm: "fd00:3::5",
  transit: "fd00:9::5",
  host: "2001:db8:a::1",
  multicast: "ff02::fb",
  unroutable: "fd00:8::5",
} as const;

export const FAMILIES: { ipv4: Family; ipv6: Family } = {
  ipv4: {
    ...addresses4,
    routes: routes(4, addresses4, "192.0.2.1/24", "192.0.2.254"),
    ip: ({ source, destination, ttl, v4 }, transport) =>
      ipv4({ source, destination, ...(ttl === undefined ? {} : { ttl }), ...v4 }, transport),
  },
  ipv6: {
    ...addresses6,
    routes: routes(6, addresses6, "2001:db8:a::1/64", "2001:db8:a::fe"),
    ip: ({ source, destination, ttl, v6 }, transport) =>
      ipv6({ source, destination, ...(ttl === undefined ? {} : { hopLimit: ttl }), ...v6 }, transport),
  },
};

export type FrameOptions = Partial<Ethernet> & Partial<IpHeader>;

function build(
  f: Family,
  ether: Ethernet,
  ip: IpHeader,
  transport: Transport,
  options: FrameOptions,
): Buffer {
  const { from, to, tags, labels, etherType, trailer, ...rest } = options;
  const header = {
    from: from ?? ether.from,
    to: to ?? ether.to,
    ...(tags && { tags }),
    ...(labels && { labels }),
    ...(etherType === undefined ? {} : { etherType }),
    ...(trailer === undefined ? {} : { trailer }),
  };
  return ethernet(header, f.ip({ ...ip, ...rest }, transport));
}

/** A request as device A delivers it: the client's packet to VM 1. */
export function request(f: Family, transport: Transport, options: FrameOptions = {}): Buffer {
  const ether = { from: MAC.deviceA, to: MAC.vm1 };
  return build(f, ether, { source: f.client, destination: f.vm }, transport, options);
}

/** VM 1's answer to the client, sent to what the guest has as its gateway: device B. */
export function reply(f: Family, transport: Transport, options: FrameOptions = {}): Buffer {
  const ether = { from: MAC.vm1, to: MAC.deviceB };
  return build(f, ether, { source: f.vm, destination: f.client }, transport, options);
}
