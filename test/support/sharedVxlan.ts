// SPDX-License-Identifier: Apache-2.0
// A routed host whose firewalls are all behind one shared VXLAN device: it has neither VNI nor remote end of its own,
// a tunnel key with each packet says both.
//
//   [firewall a] in ── br-a ── vx-a ┐                  ┌─ up (vxlan external)
//                            [vtep] un ════ un [host] ─┤
//   [firewall b] in ── br-b ── vx-b ┘                  └─ tap1 ── [vm1]

import { type Addresses, FAMILIES, type Family, mac, transfer } from "./addresses.ts";
import { INSIDE } from "./firewall.ts";
import type { Lab, Namespace } from "./lab.ts";
import { newIndex, Plan } from "./plan.ts";
import { must } from "./run.ts";
import type { Site } from "./site.ts";
import { buildSite } from "./topology.ts";

/** Room for a VM's largest packet with its outer headers. */
const UNDERLAY_MTU = 1600;
const PORT = 4789;

/** Where a firewall is as the host sees it. */
export interface TunnelEnd {
  vtep: string;
  vni: number;
  /** The host's interface towards that VTEP. */
  underlay: string;
}

export interface SharedVxlan {
  /** The shared device. */
  device: string;
  outer: Family;
  local(end: TunnelEnd): string;
  ends: Record<"a" | "b", TunnelEnd>;
}

export interface SharedVxlanOptions {
  outer: Family;
  /** Each firewall has a VTEP of its own, with the same VNI; or they have one VTEP, and two VNIs. */
  apart: "by VTEP" | "by VNI";
}

/** Between host and VTEP: 1 is the VTEP's end. */
function underlayAddress(vtep: number, end: 1 | 2): Addresses {
  return { 4: `192.0.2.${vtep * 4 + end}`, 6: `2001:db8:2:${vtep + 1}::${end}` };
}

const prefix = (outer: Family) => (outer === 4 ? 30 : 64);

interface Vtep {
  namespace: Namespace;
  number: number;
}

function addVtep(plan: Plan, site: Site, { namespace, number }: Vtep, outer: Family): string {
  const underlay = `un${number}`;
  plan.veth(
    { namespace: site.host, name: underlay, mac: mac(0x1a, number) },
    { namespace, name: "un", mac: mac(0x1b, number) },
  );
  for (const [at, name, end] of [
    [site.host, underlay, 2],
    [namespace, "un", 1],
  ] as const) {
    const nodad = outer === 6 ? " nodad" : "";
    plan.add(
      at,
      `addr add ${underlayAddress(number, end)[outer]}/${prefix(outer)} dev ${name}${nodad}`,
      `link set dev ${name} mtu ${UNDERLAY_MTU} up`,
    );
  }
  return underlay;
}

function addTunnel(plan: Plan, { namespace, number }: Vtep, name: string, vni: number, outer: Family): void {
  const [near, far] = ([1, 2] as const).map((end) => underlayAddress(number, end)[outer]);
  plan.add(
    namespace,
    `link add name vx-${name} index ${newIndex()} type vxlan id ${vni} local ${near} remote ${far} dstport ${PORT}`,
    `link add name br-${name} index ${newIndex()} type bridge stp_state 0 forward_delay 0 mcast_snooping 0`,
    `link set dev vx-${name} mtu 1500 master br-${name} up`,
    `link set dev fw-${name} master br-${name} up`,
    `link set dev br-${name} up`,
  );
}

/** Both firewalls have the same MAC: nothing but the tunnel tells them apart. */
export async function buildSharedVxlan(
  lab: Lab,
  { outer, apart }: SharedVxlanOptions,
): Promise<{ site: Site; tunnel: SharedVxlan }> {
  const site = await buildSite(lab, { host: "routed", uplinks: "shared", vms: 1 });
  const device = site.uplinks[0]!;
  const vteps = (apart === "by VTEP" ? [0, 1] : [0]).map((number) => ({
    namespace: lab.namespace(`vtep${number}`),
    number,
  }));
  const ends = {} as SharedVxlan["ends"];
  const plan = new Plan();
  const underlays = vteps.map((vtep) => addVtep(plan, site, vtep, outer));
  // The firewalls' ends of the switch that the site came with move to the VTEPs.
  const moves: string[] = [];
  (["a", "b"] as const).forEach((name, index) => {
    const vtep = vteps[index % vteps.length]!;
    const vni = apart === "by VTEP" ? 100 : 100 + index;
    addTunnel(plan, vtep, name, vni, outer);
    moves.push(`link set dev fw-${name} netns ${vtep.namespace.name}`);
    ends[name] = {
      vtep: underlayAddress(vtep.number, 1)[outer],
      vni,
      underlay: underlays[vtep.number]!,
    };
    const { namespace } = site.firewall(name);
    plan.add(namespace, `link set dev ${INSIDE} address ${site.a.mac}`);
    for (const family of FAMILIES) {
      const host = transfer(true, 0, "host")[family];
      plan.add(namespace, `neigh replace ${host} lladdr ${site.uplinkMac("a")} dev ${INSIDE} nud permanent`);
    }
  });
  addSharedDevice(plan, site, device, outer, ends);
  await must(["sh", "-c", vteps.map(({ namespace }) => `ip netns add ${namespace.name}`).join(" && ")]);
  await site.host.ip(`link del dev ${device}`);
  await must(["ip", "-n", `${lab.id}-switch`, "-batch", "-"], { input: `${moves.join("\n")}\n` });
  await must(["sh"], { input: plan.script([]) });
  const local = ({ underlay }: TunnelEnd) => underlayAddress(Number(underlay.slice(2)), 2)[outer];
  return { site, tunnel: { device, outer, ends, local } };
}

function addSharedDevice(
  plan: Plan,
  site: Site,
  device: string,
  outer: Family,
  ends: SharedVxlan["ends"],
): void {
  plan.add(
    site.host,
    `link add name ${device} index ${newIndex()} address ${site.uplinkMac("a")} type vxlan external dstport ${PORT}`,
    `link set dev ${device} mtu 1500 up`,
  );
  const encap = outer === 4 ? "ip" : "ip6";
  (["a", "b"] as const).forEach((name) => {
    const { address } = site.firewall(name);
    for (const family of FAMILIES) {
      plan.add(
        site.host,
        `neigh replace ${address[family]} lladdr ${site.a.mac} dev ${device} nud permanent`,
      );
    }
  });
  for (const family of FAMILIES) {
    const bits = family === 4 ? 24 : 64;
    const nodad = family === 6 ? " nodad" : "";
    plan.add(site.host, `addr add ${transfer(true, 0, "host")[family]}/${bits} dev ${device}${nodad}`);
    // What the host routes itself goes to firewall b.
    const checksum = outer === 6 ? " csum" : "";
    const key = `id ${ends.b.vni} dst ${ends.b.vtep}${checksum}`;
    plan.add(
      site.host,
      `route replace default encap ${encap} ${key} via ${site.b.address[family]} dev ${device}`,
    );
  }
}
