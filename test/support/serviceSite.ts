// SPDX-License-Identifier: Apache-2.0
// A site whose VMs stand behind an address that none of them answers for: they serve it themselves, forward to servers
// behind further uplinks, or ask those on their own behalf.
//
//   client ─┬─ c1 [firewall a] in ── up-a ┐            ┌ tap1 ── eth0 [vm1] lo: the service's address
//           └─ c1 [firewall b] in ── up-b ┼── host ────┼ tap2 ── eth0 [vm2]
//   [server1] eth0 ──────────────── up-s1 ┘            └ tap3 ── eth0 [vm3]

import { afterAll, beforeAll, expect } from "vitest";
import type { VmDetails } from "../../src/ops/serviceTypes.ts";
import {
  type Addresses,
  FAMILIES,
  type Family,
  HOST_GATEWAY,
  mac,
  prefixLength,
  transfer,
  vmAddress,
} from "./addresses.ts";
import { Configured } from "./configured.ts";
import { bracket, type Ground } from "./fixture.ts";
import { Lab } from "./lab.ts";
import { Lasthop } from "./lasthop.ts";
import { FORWARDING, newIndex, Plan } from "./plan.ts";
import { must } from "./run.ts";
import { Party, type Site, type Vm } from "./site.ts";
import { buildSite, type SiteOptions } from "./topology.ts";

export const SERVICE: Addresses = vmAddress(200);
/** Of the servers that tell their name. */
export const PORT = 9;
export const BRIDGE_MAC = mac(0x0b, 1);

/** The first client has these addresses too. */
export const MORE_CLIENTS: Record<Family, string[]> = {
  4: Array.from({ length: 16 }, (_, at) => `198.51.100.${101 + at}`),
  6: Array.from({ length: 16 }, (_, at) => `2001:db8:c::${101 + at}`),
};
const MORE_CLIENTS_PREFIX: Addresses = { 4: "198.51.100.96/27", 6: "2001:db8:c::100/120" };

/** What the VMs do with what they get; the configuration is the same for all. */
export type Shape = "answering" | "transparent" | "proxying";

export interface ServiceSiteOptions extends SiteOptions {
  shape?: Shape;
  servers?: number;
  /** Of a bridged host: its bridge has an address, and the host forwards. */
  bridgeAddress?: boolean;
  /** Of a bridged host: servers are on a bridge of their own, where each VM has another network card. */
  serverBridge?: boolean;
}

/** A VM's network card on the servers' bridge. */
export const serverTap = (vm: Vm): { tap: string; mac: string; address: Addresses } => ({
  tap: `${vm.tap}s`,
  mac: mac(0x1e, Number(vm.tap.slice(3))),
  address: { 4: `192.0.2.${vm.tap.slice(3)}`, 6: `2001:db8:2::${vm.tap.slice(3)}` },
});

/** Behind an uplink of its own, with the service's address besides its own. */
export class Server extends Party {
  readonly uplink: string;
  readonly mac: string;
  /** Where its answers to clients go at first. */
  readonly gateway: Addresses;

  constructor(
    name: string,
    party: Pick<Party, "namespace" | "address">,
    { uplink, mac, gateway }: Pick<Server, "uplink" | "mac" | "gateway">,
  ) {
    super(name, party.namespace, party.address);
    this.uplink = uplink;
    this.mac = mac;
    this.gateway = gateway;
  }

  /** Answers to clients go there. */
  async routeBy(gateway: Addresses): Promise<void> {
    await this.namespace.ip(
      ...FAMILIES.map((family) => `route replace default via ${gateway[family]} dev eth0 onlink`),
    );
  }
}

export interface ServiceGround extends Ground {
  servers: Server[];
  configured: Configured;
}

/** An address that is held but not answered for. */
function holdAddress(plan: Plan, party: Pick<Party, "namespace">): void {
  const { namespace } = party;
  plan.add(
    namespace,
    ...FAMILIES.map(
      (family) =>
        `addr add ${SERVICE[family]}/${prefixLength(family, false)} dev lo${family === 6 ? " nodad" : ""}`,
    ),
  );
  const sysctls = ["net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2"];
  plan.sysctls.set(namespace, [...(plan.sysctls.get(namespace) ?? []), ...sysctls]);
}

function addMoreClients(plan: Plan, site: Site): void {
  for (const family of FAMILIES) {
    for (const address of MORE_CLIENTS[family]) {
      const suffix = family === 6 ? " nodad" : "";
      plan.add(site.client.namespace, `addr add ${address}/${prefixLength(family, false)} dev lo${suffix}`);
    }
    let index = 0;
    for (const { namespace } of site.firewalls.values()) {
      const near = family === 4 ? `10.${index + 1}.1.2` : `fd10:${index + 1}:1::2`;
      plan.add(namespace, `route add ${MORE_CLIENTS_PREFIX[family]} via ${near}`);
      index++;
    }
  }
}

function addServer(plan: Plan, site: Site, number: number, ownBridge: boolean): Server {
  const namespace = site.lab.namespace(`server${number}`);
  const uplink = `up-s${number}`;
  const bridged = site.kind === "bridged";
  const [own, hosts] = (["firewall", "host"] as const).map((end) => transfer(false, 20 + number, end));
  const behind = { 4: `192.0.2.${100 + number}`, 6: `2001:db8:2::${100 + number}` };
  const address = ownBridge ? behind : bridged ? vmAddress(100 + number) : own!;
  const gateway = ownBridge ? serverTap(site.vm).address : bridged ? site.b.address : hosts!;
  const serverMac = mac(0x05, number);
  const uplinkMac = mac(0x0a, 0x50 + number);
  plan.veth(
    { namespace, name: "eth0", mac: serverMac },
    { namespace: site.host, name: uplink, mac: uplinkMac },
  );
  if (bridged) plan.add(site.host, `link set dev ${uplink} master ${ownBridge ? "brs" : "br"}`);
  plan.add(site.host, `link set dev ${uplink} up`);
  plan.add(namespace, "link set dev lo up", "link set dev eth0 up");
  for (const family of FAMILIES) {
    const suffix = family === 6 ? " nodad" : "";
    plan.add(namespace, `addr add ${address[family]}/${prefixLength(family, true)} dev eth0${suffix}`);
    plan.add(namespace, `route add default via ${gateway[family]} dev eth0`);
    if (bridged) continue;
    plan.add(
      site.host,
      `addr add ${hosts![family]}/${prefixLength(family, true)} dev ${uplink}${suffix}`,
      `route append ${SERVICE[family]} via ${address[family]} dev ${uplink}`,
    );
  }
  site.addUplink(uplink, uplinkMac);
  return new Server(`server${number}`, { namespace, address }, { uplink, mac: serverMac, gateway });
}

function addServerBridge(plan: Plan, { host, vms }: Site): void {
  plan.add(
    host,
    `link add name brs index ${newIndex()} address ${mac(0x0b, 2)} type bridge stp_state 0 forward_delay 0 mcast_snooping 0`,
    "link set dev brs up",
  );
  for (const [at, vm] of vms.entries()) {
    const { tap, mac: vmMac, address } = serverTap(vm);
    plan.veth(
      { namespace: host, name: tap, mac: mac(0x7a, 0x50 + at) },
      { namespace: vm.namespace, name: "eth1", mac: vmMac },
    );
    plan.add(host, `link set dev ${tap} master brs`, `link set dev ${tap} up`);
    for (const family of FAMILIES) {
      const suffix = family === 6 ? " nodad" : "";
      plan.add(vm.namespace, `addr add ${address[family]}/${prefixLength(family, true)} dev eth1${suffix}`);
    }
    plan.add(vm.namespace, "link set dev eth1 up");
  }
}

/** The VM's own part of the shape, as its operator sets it up. */
function addShape(plan: Plan, site: Site, vm: Vm, shape: Shape, servers: readonly Server[]): void {
  if (shape !== "transparent") {
    holdAddress(plan, vm);
    return;
  }
  plan.sysctls.set(vm.namespace, [...(plan.sysctls.get(vm.namespace) ?? []), ...FORWARDING]);
  const next = site.kind === "bridged" ? servers[0]!.address : vm.gateway;
  if (site.kind === "routed") return;
  plan.add(vm.namespace, ...FAMILIES.map((family) => `route add ${SERVICE[family]} via ${next[family]}`));
}

async function serve(site: Site, shape: Shape, servers: readonly Server[]): Promise<void> {
  const addresses = FAMILIES.map((family) => SERVICE[family]);
  const named = (party: Party, own: boolean) =>
    party.agent.call("serveNamed", {
      name: party.name,
      port: PORT,
      addresses: [...addresses, ...(own ? FAMILIES.map((family) => party.address[family]) : [])],
    });
  await Promise.all(servers.map((server) => named(server, true)));
  if (shape === "answering") await Promise.all(site.vms.map((vm) => named(vm, true)));
  if (shape !== "proxying") return;
  const host = servers[0]!.address[4];
  await Promise.all(
    site.vms.map((vm) => vm.agent.call("proxy", { port: PORT, addresses, host, target_port: PORT })),
  );
}

export async function buildServiceSite(
  lab: Lab,
  options: ServiceSiteOptions,
): Promise<{ site: Site; servers: Server[] }> {
  const { shape = "answering", servers: count = shape === "answering" ? 0 : 1, ...others } = options;
  const { bridgeAddress, serverBridge = false, ...rest } = others;
  const site = await buildSite(lab, { vms: 3, ...rest });
  const plan = new Plan();
  addMoreClients(plan, site);
  if (serverBridge) addServerBridge(plan, site);
  const servers = Array.from({ length: count }, (_, at) => addServer(plan, site, at + 1, serverBridge));
  for (const server of servers) {
    // As in the VMs: a handshake that failed is over.
    plan.sysctls.set(server.namespace, ["net.ipv4.tcp_synack_retries=0"]);
    holdAddress(plan, server);
  }
  for (const vm of site.vms) addShape(plan, site, vm, shape, servers);
  if (bridgeAddress) {
    for (const family of FAMILIES) {
      const suffix = family === 6 ? " nodad" : "";
      plan.add(
        site.host,
        `addr add ${HOST_GATEWAY[family]}/${prefixLength(family, true)} dev br${suffix}`,
        `route add default via ${site.b.address[family]}`,
      );
    }
    plan.sysctls.set(site.host, FORWARDING);
  }
  await must(["sh"], { input: plan.script(servers.map(({ namespace }) => namespace)) });
  await serve(site, shape, servers);
  return { site, servers };
}

/** As useSite. `prepare` applies a configuration, or not. */
export function useServiceSite(
  options: ServiceSiteOptions,
  prepare?: (ground: ServiceGround) => Promise<unknown>,
): ServiceGround {
  const ground = {} as ServiceGround;
  let lab: Lab | undefined;
  beforeAll(async () => {
    lab = new Lab();
    const { site, servers } = await buildServiceSite(lab, options);
    const lasthop = await Lasthop.on(lab, site.host);
    Object.assign(ground, { lab, site, servers, lasthop, configured: new Configured(lasthop) });
    await prepare?.(ground);
  });
  afterAll(async () => {
    ground.configured?.close();
    await lab?.close();
  });
  return ground;
}

type Keys = Record<string, unknown>;

export interface ServiceConfigOptions {
  /** By name: further keys of VMs, or null for one that is left out. */
  vms?: Record<string, Keys | null>;
  /** Of the service, in both families. */
  service?: Keys;
  /** In its place. */
  services?: Keys[];
  /** Of uplinks and taps by name: further keys. */
  interfaces?: Record<string, Keys>;
  /** Further keys of the configuration, in place of these. */
  more?: Keys;
}

/** A configuration file: every uplink and tap, every VM, and a service of all of them for each family. */
export function serviceConfig({ site }: Pick<Ground, "site">, options: ServiceConfigOptions = {}): string {
  const vms = site.vms
    .filter(({ name }) => options.vms?.[name] !== null)
    .map(({ name, tap, mac }) => ({ name, tap, mac, ...options.vms?.[name] }));
  const pool = vms.map(({ name }) => ({ vm: name }));
  const services = options.services ?? bothFamilies({ protocol: "any", pool, ...options.service });
  return JSON.stringify({
    uplinks: site.uplinks.map((name) => ({ name, ...options.interfaces?.[name] })),
    taps: site.taps.map((name) => ({ name, ...options.interfaces?.[name] })),
    vms,
    services,
    ...options.more,
  });
}

/** One for each family: web4 and web6, or another name. */
export function bothFamilies({ name = "web", ...keys }: Keys & { name?: string }): Keys[] {
  return FAMILIES.map((family) => ({ name: `${name}${family}`, address: SERVICE[family], ...keys }));
}

export async function apply(ground: ServiceGround, options: ServiceConfigOptions = {}): Promise<void> {
  const report = await ground.configured.run("apply", serviceConfig(ground, options));
  if (report.status !== 0) throw new Error(`apply: ${report.stderr}${report.stdout}`);
}

/** Of answers, or of anything that has a name. */
export function tally(names: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const name of names) counts[name] = (counts[name] ?? 0) + 1;
  return counts;
}

/** New connections of the client's: who answered each. */
export function askAnew(
  { site }: ServiceGround,
  family: Family,
  times: number,
  keys: Keys = {},
): Promise<string[]> {
  return site.client.agent.call("askAnew", { host: SERVICE[family], port: PORT, times, ...keys });
}

export async function ping({ site }: Ground, family: Family, times = 3): Promise<void> {
  const argv = ["ping", "-n", "-q", "-c", String(times), "-i", "0.02", "-W", "1", SERVICE[family]];
  const { status, stdout, stderr } = await site.client.namespace.run(argv);
  expect({ status, stdout, stderr }).toMatchObject({ status: 0 });
  expect(stdout).toContain(" 0% packet loss");
}

/** Firewall `through` has carried both directions of every protocol, and nobody dropped anything. */
export async function expectThrough(
  { site }: Ground,
  through: string,
  family: Family,
  protocols: readonly string[] = ["tcp", "udp", "icmp"],
): Promise<void> {
  for (const [name, firewall] of site.firewalls) {
    const counts = await firewall.counts();
    const dropped = counts.dropped.filter(({ protocol }) => protocols.includes(protocol));
    expect({ name, dropped }).toEqual({ name, dropped: [] });
    for (const protocol of protocols) {
      for (const direction of ["request", "reply"] as const) {
        const carried = counts.packets("carried", { family, protocol, direction });
        if (name === through) expect(carried).toBeGreaterThan(0);
        else expect(carried).toBe(0);
      }
    }
  }
}

export const url = (family: Family, path = "/"): string => `http://${bracket(SERVICE[family])}${path}`;

export function showVm({ lasthop }: Ground, name: string): Promise<VmDetails> {
  return lasthop.json("vms", "show", name);
}

/** The VMs tell their names on one more port of the service's address. */
export async function serveOn({ site }: ServiceGround, port: number): Promise<void> {
  const addresses = FAMILIES.map((family) => SERVICE[family]);
  await Promise.all(site.vms.map(({ name, agent }) => agent.call("serveNamed", { name, port, addresses })));
}

/** Datagrams of one flow: who answered each. */
export async function askByUdp(
  { site }: ServiceGround,
  family: Family,
  texts: string[],
  keys: Keys = {},
): Promise<string[]> {
  const asked = { host: SERVICE[family], port: PORT, texts, ...keys };
  return (await site.client.agent.call("askByUdp", asked)).names;
}
