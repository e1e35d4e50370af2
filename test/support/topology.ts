// SPDX-License-Identifier: Apache-2.0
// Builds a site: clients, strictly stateful firewalls, a host and its VMs.
//
//   client 1 ─┬─ c1 [firewall a] in ── up-a ┐            ┌ tap1 ── eth0 [vm1]
//             └─ c1 [firewall b] in ── up-b ┴── host ────┴ tap2 ── eth0 [vm2]
//
// Clients ask through firewall a; VMs (or the host, if it routes) answer by default through firewall b,
// which has not seen the request. Offloads stay as veth has them: on.

import { existsSync } from "node:fs";
import {
  type Addresses,
  FAMILIES,
  HOST_GATEWAY,
  mac,
  outside,
  prefixLength,
  transfer,
  VM_PREFIX,
  vmAddress,
} from "./addresses.ts";
import { Firewall, INSIDE, ruleset } from "./firewall.ts";
import type { Lab, Namespace } from "./lab.ts";
import { FORWARDING, newIndex, Plan } from "./plan.ts";
import { must } from "./run.ts";
import { OnLinkClient, Party, Site, Vm } from "./site.ts";

/** With br_netfilter a bridge passes frames through the host's IP rules. Where it is a module it may not be loaded. */
const NO_BRIDGE_NETFILTER = existsSync("/proc/sys/net/bridge")
  ? ["net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0"]
  : [];

export interface SiteOptions {
  /**
   * How the host joins uplinks and taps: one bridge; routing to each tap; routing to a bridge of taps.
   */
  host?: "bridged" | "routed" | "routed_bridge";
  /** One uplink for each firewall, or one uplink to a switch with all of them. */
  uplinks?: "separate" | "shared";
  firewalls?: { name: string; loose?: boolean }[];
  /** Whose address the VMs (or the routing host) have as their default gateway. */
  defaultGateway?: string;
  clients?: number;
  vms?: number;
  /** A client in the VMs' own network; by way of the switch or of an uplink of its own. */
  onLinkClient?: boolean;
  /** Puts the site beside others into one host: the addresses and MACs are the same in each. */
  within?: { host: Namespace; number: number };
}

function addAddress(plan: Plan, namespace: Namespace, device: string, address: Addresses, wide = true): void {
  for (const family of FAMILIES) {
    const suffix = family === 6 ? " nodad" : "";
    plan.add(namespace, `addr add ${address[family]}/${prefixLength(family, wide)} dev ${device}${suffix}`);
  }
}

interface Building {
  plan: Plan;
  site: Site;
  options: Required<Omit<SiteOptions, "within">>;
  number: number;
  suffix: string;
  switch: Namespace | undefined;
}

function addHost({ plan, site, options, number, suffix }: Building): void {
  const { host } = site;
  plan.add(host, "link set dev lo up");
  plan.sysctls.set(
    host,
    // With br_netfilter a bridge would pass frames through the host's IP rules; no such host is meant.
    site.kind === "bridged" ? NO_BRIDGE_NETFILTER : FORWARDING,
  );
  if (site.kind !== "routed") {
    const bridge = `br${suffix}`;
    plan.add(
      host,
      `link add name ${bridge} index ${newIndex()} address ${mac(0x0b, 1, number)} type bridge stp_state 0 forward_delay 0 mcast_snooping 0`,
      `link set dev ${bridge} up`,
    );
    if (site.kind === "routed_bridge") addAddress(plan, host, bridge, HOST_GATEWAY);
  }
  if (options.uplinks === "shared") site.addUplink(`up${suffix}`, mac(0x0a, 0, number));
}

function joinUplink(plan: Plan, site: Site, name: string): void {
  if (site.kind === "bridged") plan.add(site.host, `link set dev ${name} master br${suffixOf(site.number)}`);
  plan.add(site.host, `link set dev ${name} up`);
}

/** What depends on a firewall's interface towards the VMs. */
function addInside(
  plan: Plan,
  site: Site,
  { namespace, address }: Firewall,
  index: number,
  shared: boolean,
): void {
  plan.add(namespace, `link set dev ${INSIDE} up`);
  addAddress(plan, namespace, INSIDE, address);
  if (site.kind === "bridged") return;
  const host = transfer(shared, index, "host");
  for (const family of FAMILIES) plan.add(namespace, `route add ${VM_PREFIX[family]} via ${host[family]}`);
}

/** A firewall's own uplink, with everything that depends on it. */
function plugUplink(plan: Plan, site: Site, firewall: Firewall, index: number): void {
  const { name, namespace } = firewall;
  const uplink = site.uplinkOf(name);
  plan.veth(
    { namespace, name: INSIDE, mac: firewall.mac },
    { namespace: site.host, name: uplink, mac: site.uplinkMac(name) },
  );
  joinUplink(plan, site, uplink);
  if (site.kind !== "bridged") addAddress(plan, site.host, uplink, transfer(false, index, "host"));
  addInside(plan, site, firewall, index, false);
}

/**
 * The same uplink, as when its driver is loaded again: another interface index. A routing host loses the routes that
 * go there, by default those to all clients.
 */
export async function replugUplink(site: Site, name: string, defaultGateway = "b"): Promise<void> {
  const firewall = site.firewall(name);
  await site.host.ip(`link del dev ${site.uplinkOf(name)}`);
  const plan = new Plan();
  plugUplink(plan, site, firewall, [...site.firewalls.keys()].indexOf(name));
  if (site.kind !== "bridged" && name === defaultGateway) {
    for (const family of FAMILIES) plan.add(site.host, `route add default via ${firewall.address[family]}`);
  }
  await must(["sh"], { input: plan.script([]) });
}

function addSwitch(building: Building): void {
  const { plan, site, number } = building;
  const uplink = site.uplinks[0];
  if (building.switch === undefined || uplink === undefined) return;
  plan.add(
    building.switch,
    "link add name sw type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
    "link set dev sw up",
    "link set dev host master sw",
    "link set dev host up",
  );
  plan.sysctls.set(building.switch, NO_BRIDGE_NETFILTER);
  plan.veth(
    { namespace: site.host, name: uplink, mac: mac(0x0a, 0, number) },
    { namespace: building.switch, name: "host", mac: mac(0x5a, 0) },
  );
  joinUplink(plan, site, uplink);
  if (site.kind !== "bridged") addAddress(plan, site.host, uplink, transfer(true, 0, "host"));
}

function addFirewall(building: Building, index: number): void {
  const { plan, site, options, number, suffix } = building;
  const { name, loose = false } = options.firewalls[index]!;
  const shared = building.switch !== undefined;
  const namespace = site.lab.namespace(`fw-${name}${suffix}`);
  const inside = site.kind === "bridged" ? vmAddress(index + 1) : transfer(shared, index, "firewall");
  const firewall = new Firewall(name, namespace, mac(0x0f, index + 1), inside);
  site.firewalls.set(name, firewall);
  plan.add(namespace, "link set dev lo up");
  if (building.switch !== undefined) {
    const end = { namespace, name: INSIDE, mac: firewall.mac };
    plan.veth(end, { namespace: building.switch, name: `fw-${name}`, mac: mac(0x5a, index + 1) });
    plan.add(building.switch, `link set dev fw-${name} master sw`, `link set dev fw-${name} up`);
    addInside(plan, site, firewall, index, true);
  } else {
    site.addUplink(`up-${name}${suffix}`, mac(0x0a, index + 1, number));
    plugUplink(plan, site, firewall, index);
  }
  plan.sysctls.set(namespace, [...FORWARDING, `net.netfilter.nf_conntrack_tcp_loose=${loose ? 1 : 0}`]);
  plan.rulesets.set(namespace, ruleset(loose));
}

function addClient({ plan, site, suffix }: Building, number: number): void {
  const namespace = site.lab.namespace(`client${number + 1}${suffix}`);
  const last = (number + 1) * 10;
  const address = { 4: `198.51.100.${last}`, 6: `2001:db8:c::${last}` };
  plan.add(namespace, "link set dev lo up");
  addAddress(plan, namespace, "lo", address, false);
  let index = 0;
  for (const [name, firewall] of site.firewalls) {
    const [near, far] = [outside(index, number, 2), outside(index, number, 1)];
    plan.veth(
      { namespace, name: `to-${name}`, mac: mac(0xc0 + number, index + 1) },
      { namespace: firewall.namespace, name: `c${number + 1}`, mac: mac(0xf0 + number, index + 1) },
    );
    addAddress(plan, namespace, `to-${name}`, near);
    addAddress(plan, firewall.namespace, `c${number + 1}`, far);
    plan.add(namespace, `link set dev to-${name} up`);
    plan.add(firewall.namespace, `link set dev c${number + 1} up`);
    for (const family of FAMILIES) {
      plan.add(firewall.namespace, `route add ${address[family]} via ${near[family]}`);
      if (index === 0)
        plan.add(namespace, `route add ${VM_PREFIX[family]} via ${far[family]} src ${address[family]}`);
      // The way back of errors that firewalls and hosts between send.
      if (index === 0)
        plan.add(namespace, `route add default via ${far[family]} src ${address[family]} metric 2000`);
    }
    index++;
  }
  site.clients.push(new Party(`client${number + 1}`, namespace, address));
}

const suffixOf = (number: number): string => (number === 0 ? "" : `.${number}`);

/** A VM's tap and network card, with everything that depends on them. */
function plugTap(plan: Plan, site: Site, { namespace, tap, mac: vmMac, address, gateway }: Vm): void {
  const { host, number } = site;
  const tapMac = mac(0x7a, Number(tap.slice(3, 4)), number);
  plan.veth({ namespace: host, name: tap, mac: tapMac }, { namespace, name: "eth0", mac: vmMac });
  addAddress(plan, namespace, "eth0", address, site.kind !== "routed");
  plan.add(namespace, "link set dev lo up", "link set dev eth0 up");
  for (const family of FAMILIES) {
    plan.add(namespace, `route add default via ${gateway[family]} dev eth0 onlink`);
  }
  if (site.kind !== "routed") plan.add(host, `link set dev ${tap} master br${suffixOf(number)}`);
  plan.add(host, `link set dev ${tap} up`);
  if (site.kind === "routed") {
    addAddress(plan, host, tap, HOST_GATEWAY, false);
    for (const family of FAMILIES) plan.add(host, `route add ${address[family]} dev ${tap}`);
  }
}

function addVm({ plan, site, options, suffix }: Building, index: number): void {
  const name = `vm${index + 1}`;
  const namespace = site.lab.namespace(`${name}${suffix}`);
  const gateway = site.kind === "bridged" ? site.firewall(options.defaultGateway).address : HOST_GATEWAY;
  const tap = `tap${index + 1}${suffix}`;
  const vm = new Vm(name, namespace, vmAddress(11 + index), tap, mac(0x0e, index + 1), gateway);
  plugTap(plan, site, vm);
  // A handshake that failed is over: its SYN-ACKs do not turn up in what is counted later.
  plan.sysctls.set(namespace, ["net.ipv4.tcp_synack_retries=0"]);
  site.vms.push(vm);
}

/** The same VM on a tap of the same name, as when its guest is started again: another interface index. */
export async function replugTap(site: Site, vm: Vm, { unplugged = false } = {}): Promise<void> {
  if (!unplugged) await site.host.ip(`link del dev ${vm.tap}`);
  const plan = new Plan();
  plugTap(plan, site, vm);
  await must(["sh"], { input: plan.script([]) });
}

function addOnLinkClient(building: Building): void {
  const { plan, site, number, suffix } = building;
  const namespace = site.lab.namespace(`onlink${suffix}`);
  const near = { namespace, name: "eth0", mac: mac(0xcc, 1) };
  let uplink = site.uplinks[0]!;
  if (building.switch !== undefined) {
    plan.veth(near, { namespace: building.switch, name: "onlink", mac: mac(0x5a, 0xcc) });
    plan.add(building.switch, "link set dev onlink master sw", "link set dev onlink up");
  } else {
    uplink = `up-x${suffix}`;
    const uplinkMac = mac(0x0a, 0xcc, number);
    plan.veth(near, { namespace: site.host, name: uplink, mac: uplinkMac });
    joinUplink(plan, site, uplink);
    site.addUplink(uplink, uplinkMac);
  }
  const address =
    site.kind === "bridged" ? vmAddress(50) : transfer(building.switch !== undefined, 49, "firewall");
  addAddress(plan, namespace, "eth0", address);
  plan.add(namespace, "link set dev lo up", "link set dev eth0 up");
  if (site.kind !== "bridged") {
    const host = transfer(building.switch !== undefined, 49, "host");
    if (building.switch === undefined) addAddress(plan, site.host, uplink, host);
    for (const family of FAMILIES) plan.add(namespace, `route add ${VM_PREFIX[family]} via ${host[family]}`);
  }
  site.onLinkClient = new OnLinkClient("onlink", namespace, address, uplink, near.mac);
}

/** Builds the site and has the VMs serve. */
export async function buildSite(lab: Lab, given: SiteOptions = {}): Promise<Site> {
  const number = given.within?.number ?? 0;
  const suffix = suffixOf(number);
  const options = {
    host: "bridged" as const,
    uplinks: "separate" as const,
    firewalls: [{ name: "a" }, { name: "b" }],
    defaultGateway: "b",
    clients: 1,
    vms: 2,
    onLinkClient: false,
    ...given,
  };
  const site = new Site(lab, options.host, given.within?.host ?? lab.namespace("host"), number);
  const plan = new Plan();
  const switched = options.uplinks === "shared" ? lab.namespace(`switch${suffix}`) : undefined;
  const building: Building = { plan, site, options, number, suffix, switch: switched };

  addHost(building);
  addSwitch(building);
  for (let index = 0; index < options.firewalls.length; index++) addFirewall(building, index);
  for (let index = 0; index < options.clients; index++) addClient(building, index);
  for (let index = 0; index < options.vms; index++) addVm(building, index);
  if (options.onLinkClient) addOnLinkClient(building);
  if (site.kind !== "bridged") {
    const gateway = site.firewall(options.defaultGateway).address;
    for (const family of FAMILIES) plan.add(site.host, `route add default via ${gateway[family]}`);
  }

  const created = [...plan.commands.keys()].filter((namespace) => namespace !== given.within?.host);
  await must(["sh"], { input: plan.script(created) });
  await site.serve();
  return site;
}
