// SPDX-License-Identifier: Apache-2.0
// One topology for every kind: each firewall has a cable to the host, with its kind upon it, and one to the client.
//
//   client ─┬─ o1 [firewall 1] u1, d1 ──(kind)── u1, d1 ┐
//           ├─ o2 [firewall 2] u2, d2 ──(kind)── u2, d2 ┼ host ── tap0 ── eth0 [vm]
//           └─ …                                        ┘
//
// The client's address says through which firewall it asks; the host has one default route, for the VM's replies.

import type { Family } from "../support/addresses.ts";
import { mac } from "../support/addresses.ts";
import type { Lab, Namespace } from "../support/lab.ts";
import { Plan } from "../support/plan.ts";
import { must } from "../support/run.ts";
import type { End, Kind, Uplink } from "./kinds/kind.ts";
import { FAMILIES, markOf, viaOtherEnd } from "./kinds/kind.ts";
import {
  clientPrefixes,
  outside,
  type Place,
  placeOf,
  prefixLength,
  type Side,
  VM,
  VM_GATEWAY,
  VM_MAC,
  VM_PREFIX,
} from "./place.ts";
import { startRelays } from "./relay.ts";

export interface Stand {
  kind: Kind;
  place: Place;
  namespace: Namespace;
  ends: Record<Side, End>;
}

export interface Ground {
  lab: Lab;
  host: Namespace;
  vm: Namespace;
  client: Namespace;
  stands: Stand[];
  tap: string;
}

/** `default`, of a family. */
const EVERYWHERE: Record<Family, string> = { 4: "0.0.0.0/0", 6: "::/0" };

const FORWARDING = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"];

/** What it has not seen the request of it drops, and counts by the client's address. */
function ruleset(inside: string, loose: boolean): string {
  const sets = FAMILIES.flatMap((family) =>
    ["carried", "dropped"].map(
      (name) =>
        `set ${name}${family} { typeof ip${family === 6 ? "6" : ""} daddr . meta l4proto; size 65535; flags dynamic; counter; }`,
    ),
  );
  const count = (name: string) =>
    FAMILIES.map((family) => {
      const ip = family === 6 ? "ip6" : "ip";
      return `meta nfproto ipv${family} add @${name}${family} { ${ip} daddr . meta l4proto }`;
    });
  const opening = [
    ...(loose ? ["meta l4proto tcp ct state new accept"] : []),
    "tcp flags & (fin | syn | rst | ack) == syn ct state new accept",
    "meta l4proto { udp, icmp, ipv6-icmp } ct state new accept",
  ];
  return `
table inet firewall {
  ${sets.join("\n  ")}
  chain replies {
    ${count("carried").join("\n    ")}
    accept
  }
  chain discard {
    ${count("dropped").join("\n    ")}
    drop
  }
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state invalid goto discard
    iifname "${inside}" ct state established,related goto replies
    ct state established,related accept
    iifname "${inside}" goto discard
    ${opening.join("\n    ")}
    goto discard
  }
}
`;
}

function addAddresses(plan: Plan, at: Namespace, device: string, address: Record<Family, string>): void {
  for (const family of FAMILIES) {
    const nodad = family === 6 ? " nodad" : "";
    plan.add(at, `addr add ${address[family]}/${prefixLength[family]} dev ${device}${nodad}`);
  }
}

function addVm(plan: Plan, { host, vm, tap }: Ground): void {
  plan.veth({ namespace: host, name: tap, mac: mac(0x7a, 1) }, { namespace: vm, name: "eth0", mac: VM_MAC });
  addAddresses(plan, vm, "eth0", VM);
  addAddresses(plan, host, tap, VM_GATEWAY);
  plan.add(host, "link set dev lo up", `link set dev ${tap} up`);
  plan.add(vm, "link set dev lo up", "link set dev eth0 up");
  for (const family of FAMILIES) plan.add(vm, `route add ${EVERYWHERE[family]} via ${VM_GATEWAY[family]}`);
  // A handshake that failed is over: its SYN-ACKs do not turn up later.
  plan.sysctls.set(vm, ["net.ipv4.tcp_synack_retries=0"]);
  // Nobody answers for the address of another netdev: the cable below would for the macvlan's.
  plan.sysctls.set(host, [...FORWARDING, "net.ipv4.conf.all.arp_ignore=1"]);
}

/** The kind at one end, from its own lines to its addresses. */
function addEnd(plan: Plan, at: Namespace, side: Side, { kind, place, ends }: Stand): void {
  const end = ends[side];
  plan.add(at, ...end.ip, `link set dev ${place.wire} up`);
  if (end.device !== place.wire || kind.outside !== undefined || kind.route !== undefined) {
    addAddresses(plan, at, place.wire, place.outer[side]);
  }
  if (end.tunnel === undefined) addInner(plan, at, side, place, end);
}

function addInner(plan: Plan, at: Namespace, side: Side, { inner }: Place, { device }: End): void {
  plan.add(at, `link set dev ${device} up`);
  addAddresses(plan, at, device, inner[side]);
}

function addStand(plan: Plan, ground: Ground, stand: Stand, loose: boolean): void {
  const { host, client } = ground;
  const { namespace, place, ends } = stand;
  const { number, wire, wireMac } = place;
  plan.veth(
    { namespace: host, name: wire, mac: wireMac.host },
    { namespace, name: wire, mac: wireMac.firewall },
  );
  plan.veth(
    { namespace: client, name: `o${number}`, mac: mac(0xc0, number) },
    { namespace, name: "out", mac: mac(0xc1, number) },
  );
  plan.add(namespace, "link set dev lo up");
  addEnd(plan, host, "host", stand);
  addEnd(plan, namespace, "firewall", stand);
  addOutside(plan, ground, stand);
  plan.sysctls.set(namespace, [
    ...FORWARDING,
    ...["tcp_loose", "tcp_be_liberal"].map((name) => `net.netfilter.nf_conntrack_${name}=${loose ? 1 : 0}`),
  ]);
  plan.rulesets.set(namespace, ruleset(ends.firewall.arrivesBy ?? ends.firewall.device, loose));
}

function addOutside(plan: Plan, { client }: Ground, { place, namespace }: Stand): void {
  const { number } = place;
  const link = outside(number);
  addAddresses(plan, client, `o${number}`, link.client);
  addAddresses(plan, namespace, "out", link.firewall);
  plan.add(client, `link set dev o${number} up`);
  plan.add(namespace, "link set dev out up");
  for (const family of FAMILIES) {
    // Also to clients of others: what comes here by mistake is forwarded, and so seen by the rules.
    plan.add(namespace, `route add ${EVERYWHERE[family]} via ${link.client[family]}`);
    plan.add(
      client,
      `route add ${VM_PREFIX[family]} via ${link.firewall[family]} dev o${number} table ${1000 + number}`,
    );
  }
}

/** How to reach `prefix` by a kind; `undefined` if it does not carry the family. */
function routeBy({ kind, place, ends }: Stand, side: Side, family: Family): string | undefined {
  if (!kind.inside.includes(family)) return undefined;
  const { device } = ends[side];
  return kind.route?.(side, place, family, device) ?? viaOtherEnd(side, place, family, device);
}

/** Routes and rules of one family, which need all netdevs up. */
function addRoutes(plan: Plan, { host, client, stands }: Ground, family: Family): void {
  for (const prefix of clientPrefixes(family)) plan.add(client, `route add local ${prefix} dev lo`);
  for (const stand of stands) {
    const { place, kind, namespace } = stand;
    const way = routeBy(stand, "firewall", family);
    if (way !== undefined) plan.add(namespace, `route add ${VM_PREFIX[family]} ${way}`);
    const ofClient = 1000 + place.number;
    for (const prefix of clientPrefixes(family, place.number)) {
      plan.add(client, `rule add from ${prefix} lookup ${ofClient}`);
    }
    const marked = kind.marked?.(place, family);
    if (marked === undefined) continue;
    const table = 2000 + place.number;
    plan.add(host, `route add default ${marked} table ${table}`);
    plan.add(host, `rule add fwmark ${kind.mark?.() ?? markOf(place)} lookup ${table}`);
  }
}

/** The shell lines of both ends, which come when every netdev is up. */
function shellLines({ host, stands }: Ground): string {
  const blocks = stands.flatMap(({ namespace, ends }) =>
    (["host", "firewall"] as const).flatMap((side) => {
      const { shell = [] } = ends[side];
      const at = side === "host" ? host : namespace;
      if (shell.length === 0) return [];
      return [`nsenter --net=${at.path} sh -e <<'LINES'\n${shell.join("\n")}\nLINES`];
    }),
  );
  return ["set -e", ...blocks].join("\n");
}

export interface GroundOptions {
  kinds: readonly Kind[];
  /** Two firewalls of each kind: then the default route may leave over the kind that the request came in by. */
  copies?: 1 | 2;
  /** Firewalls that take over TCP from the middle, as peers with synchronised state would. */
  loose?: boolean;
  /** Names of the kinds that the kernel lacks. */
  lacks: ReadonlySet<string>;
}

function layOut(lab: Lab, { kinds, copies = 1, lacks }: GroundOptions): Ground {
  const numbered = Array.from({ length: copies }, () => kinds).flat();
  return {
    lab,
    host: lab.namespace("host"),
    vm: lab.namespace("vm"),
    client: lab.namespace("client"),
    tap: "tap0",
    stands: numbered.map((kind, index) => {
      const place = placeOf(index + 1);
      const end = (side: Side) => kind.make(side, place, index < kinds.length, lacks);
      const ends = { host: end("host"), firewall: end("firewall") };
      return { kind, place, namespace: lab.namespace(`fw${place.number}`), ends };
    }),
  };
}

/** Builds all but what lasthop makes on the host. */
export async function buildGround(lab: Lab, options: GroundOptions): Promise<Ground> {
  const ground = layOut(lab, options);
  const { host, vm, client, stands } = ground;
  const plan = new Plan();
  addVm(plan, ground);
  plan.add(client, "link set dev lo up");
  plan.sysctls.set(client, ["net.ipv6.ip_nonlocal_bind=1"]);
  for (const stand of stands) addStand(plan, ground, stand, options.loose ?? false);
  const created = [host, vm, client, ...stands.map(({ namespace }) => namespace)];
  await shell(plan.script(created));
  await startRelays(ground);
  await shell(shellLines(ground));
  return ground;
}

async function shell(input: string): Promise<void> {
  await must(["sh"], { input, timeoutMs: 180_000 });
}

const batch = (plan: Plan, option = ""): string[] =>
  [...plan.commands].map(
    ([{ name }, lines]) => `ip ${option} -n ${name} -batch - <<'END'\n${lines.join("\n")}\nEND`,
  );

/** What needs every netdev, also those that lasthop has made. */
export async function route(ground: Ground): Promise<void> {
  const late = new Plan();
  for (const { place, namespace, ends } of ground.stands) {
    for (const side of ["host", "firewall"] as const) {
      const at = side === "host" ? ground.host : namespace;
      if (ends[side].tunnel !== undefined) addInner(late, at, side, place, ends[side]);
    }
  }
  const routes = FAMILIES.flatMap((family) => {
    const plan = new Plan();
    addRoutes(plan, ground, family);
    return batch(plan, `-${family}`);
  });
  await shell(["set -e", ...batch(late), ...routes].join("\n"));
}

/** The host's default route for one family, by one kind. */
export async function setDefault(ground: Ground, family: Family, stand: Stand): Promise<void> {
  const way = routeBy(stand, "host", family);
  if (way === undefined) throw new Error(`${stand.kind.name} does not carry IPv${family}`);
  await ground.host.ip(`route replace ${EVERYWHERE[family]} ${way}`);
}

/** Every netdev that is attached, once. */
export function uplinksOf(ground: Ground): Uplink[] {
  const all = ground.stands.flatMap(({ kind, place }) => kind.uplinks(place));
  return [...new Map(all.map((uplink) => [uplink.interface, uplink])).values()];
}
