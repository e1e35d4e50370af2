// SPDX-License-Identifier: Apache-2.0
// Replies per second by the kind of interface that the request came in on, against the host's own forwarding out of
// the same device. One host for each of the two, all alike:
//
//   outside: NAME-a ── up-a ┐                ┌ tap ── NAME-vm :outside
//   outside: NAME-b ── up-b ┴── host, routes ┘        the kind's device stands on up-a
//
// Requests are handed to up-a as they would come from the wire; what arrives at NAME-a is counted.

import type { Lab, Namespace } from "../support/lab.ts";
import { must, sleep } from "../support/run.ts";
import type { Fixtures } from "./fixtures.ts";
import { address4, frame, macBytes, wordSum } from "./frames.ts";
import { inNamespace, MEASURING_CPU, pinToCpu, seconds, uninterrupted } from "./machine.ts";
import { Product } from "./product.ts";
import type { Report } from "./report.ts";
import { interleave, type Subject } from "./stats.ts";

export interface KindsEffort {
  rounds: number;
  frames: number;
}

const VM = "10.200.0.2";
const REMOTE = "10.0.0.0";
const VM_PORT = 443;
const REMOTE_PORT = 0x8000;
const HOST_A = "192.0.2.1";
const DEVICE_A = "192.0.2.254";
const DEVICE_B = "198.51.100.254";
/** Behind the kinds that are networks of their own. */
const INNER_HOST = "203.0.113.1";
const INNER_DEVICE = "203.0.113.254";
const INNER_MAC = "02:00:be:ff:00:0a";
const ID = 7;

/** One kind of interface. */
interface Kind {
  id: string;
  title: string;
  /** The netdev that is attached; up-a itself if there are no lines to make another. */
  device: string;
  /** Lines for `ip -batch`. */
  lines: (host: Host) => string[];
  /** A built-in tunnel is made by this part of a configuration. */
  tunnel?: (host: Host) => string;
  /** How the host's own routing leaves by it. */
  route: (host: Host) => string[];
  /** The request's bytes on up-a's wire. `packet` begins with its IP header. */
  request: (host: Host, packet: Buffer) => Buffer;
}

type Way = "lasthop" | "plain";

class Host {
  readonly namespace: Namespace;
  readonly number: number;
  readonly kind: Kind;
  readonly way: Way;
  readonly name: string;
  readonly ends: { tap: number; uplink: number; vm: number; device: number; deviceB: number };

  constructor(namespace: Namespace, number: number, kind: Kind, way: Way) {
    this.namespace = namespace;
    this.number = number;
    this.kind = kind;
    this.way = way;
    this.name = `k${number}`;
    // All different: with equal ones the kernel delays link-up by a second.
    const base = 2000 + number * 10;
    this.ends = { tap: base, uplink: base + 1, vm: base + 3, device: base + 4, deviceB: base + 5 };
  }

  mac(end: "tap" | "up-a" | "up-b" | "vm" | "a" | "b"): string {
    const last = ["tap", "up-a", "up-b", "vm", "a", "b"].indexOf(end);
    return `02:00:bf:00:${this.number.toString(16).padStart(2, "0")}:0${last}`;
  }

  /** Of the kind's own netdev. */
  get ownMac(): string {
    return `02:00:bf:01:${this.number.toString(16).padStart(2, "0")}:01`;
  }
}

const permanent = (address: string, mac: string, device: string) =>
  `neigh replace ${address} lladdr ${mac} dev ${device} nud permanent`;

/** A network of its own on the device, with the other firewall's address and MAC in it. */
const ownNetwork = (device: string) => [
  `addr add ${INNER_HOST}/24 dev ${device}`,
  permanent(INNER_DEVICE, INNER_MAC, device),
];

const viaInner = (device: string) => () => [`route add default via ${INNER_DEVICE} dev ${device}`];

const KINDS: readonly Kind[] = [
  {
    id: "nic",
    title: "NIC",
    device: "up-a",
    lines: () => [],
    route: () => [`route add default via ${DEVICE_A}`],
    request: (host, packet) => ethernet(host.mac("up-a"), host.mac("a"), packet),
  },
  {
    id: "bridge",
    title: "bridge",
    device: "br-a",
    lines: (host) => [
      `link add br-a address ${host.ownMac} type bridge forward_delay 0`,
      "link set up-a master br-a",
      "link set br-a up",
      ...ownNetwork("br-a"),
      `neigh replace ${INNER_DEVICE} lladdr ${host.mac("a")} dev br-a nud permanent`,
    ],
    route: viaInner("br-a"),
    request: (host, packet) => ethernet(host.ownMac, host.mac("a"), packet),
  },
  {
    id: "macvlan",
    title: "macvlan",
    device: "mv-a",
    lines: (host) => [
      `link add mv-a link up-a address ${host.ownMac} type macvlan mode bridge`,
      "link set mv-a up",
      `addr add ${INNER_HOST}/24 dev mv-a`,
      permanent(INNER_DEVICE, host.mac("a"), "mv-a"),
    ],
    route: viaInner("mv-a"),
    request: (host, packet) => ethernet(host.ownMac, host.mac("a"), packet),
  },
  {
    id: "vxlan",
    title: "VXLAN",
    device: "vx-a",
    lines: (host) => [
      `link add vx-a address ${host.ownMac} type vxlan id ${ID} local ${HOST_A} remote ${DEVICE_A} dstport 4789 dev up-a`,
      "link set vx-a up",
      ...ownNetwork("vx-a"),
    ],
    route: viaInner("vx-a"),
    request: vxlanRequest,
  },
  {
    id: "vxlan_shared",
    title: "VXLAN, shared device",
    device: "vx-a",
    lines: (host) => [
      `link add vx-a address ${host.ownMac} type vxlan external dstport 4789`,
      "link set vx-a up",
      ...ownNetwork("vx-a"),
    ],
    route: () => [
      `route add default encap ip id ${ID} dst ${DEVICE_A} src ${HOST_A} via ${INNER_DEVICE} dev vx-a`,
    ],
    request: vxlanRequest,
  },
  builtin("vxlan", "VXLAN, built in", vxlanRequest, `id: ${ID}`),
  builtin("nvgre", "NVGRE, built in", nvgreRequest, `id: ${ID}`),
  builtin("gre", "GRE, built in", (host, packet) => outer(host, 47, Buffer.concat([GRE_IP, packet]))),
  builtin("ipip", "IP-in-IP, built in", (host, packet) => outer(host, 4, packet)),
  builtin(
    "mpls",
    "MPLS, built in",
    (host, packet) => ethernet(host.mac("up-a"), host.mac("a"), Buffer.concat([LABEL, packet]), 0x8847),
    "labels: { request: [100], reply: [200] }, next_hop: NEXT_HOP",
  ),
];

const GRE_IP = Buffer.from("00000800", "hex");
/** 100, bottom of the stack, TTL 64 */
const LABEL = Buffer.from([0, 0x06, 0x41, 64]);

function builtin(type: string, title: string, request: Kind["request"], more?: string): Kind {
  const device = "bt-a";
  const isLayer2 = type === "vxlan" || type === "nvgre";
  const ends = type === "mpls" ? [] : [`local: ${HOST_A}`, `remote: ${DEVICE_A}`];
  return {
    id: `builtin_${type}`,
    title,
    device,
    lines: () => [],
    tunnel: (host) =>
      `{ ${[`name: ${device}`, `type: ${type}`, "encap: builtin", "underlay: up-a", ...ends, ...(more ? [more] : [])].join(", ")} }`.replace(
        "NEXT_HOP",
        `"${host.mac("a")}"`,
      ),
    route: () =>
      isLayer2
        ? [...ownNetwork(device), ...viaInner(device)()]
        : [`route add default dev ${device} src 10.200.0.1`],
    request,
  };
}

function ethernet(destination: string, source: string, payload: Buffer, type = 0x0800): Buffer {
  const header = Buffer.alloc(14);
  macBytes(destination).copy(header, 0);
  macBytes(source).copy(header, 6);
  header.writeUInt16BE(type, 12);
  return Buffer.concat([header, payload]);
}

/** On up-a's wire: an outer IPv4 header from device A. */
function outer(host: Host, proto: number, payload: Buffer): Buffer {
  const header = Buffer.alloc(20);
  header.writeUInt8(0x45, 0);
  header.writeUInt16BE(20 + payload.length, 2);
  header.writeUInt8(64, 8);
  header.writeUInt8(proto, 9);
  header.writeUInt32BE(address4(DEVICE_A), 12);
  header.writeUInt32BE(address4(HOST_A), 16);
  const sum = wordSum(header);
  header.writeUInt16BE(~((sum & 0xffff) + (sum >>> 16)) & 0xffff, 10);
  return ethernet(host.mac("up-a"), host.mac("a"), Buffer.concat([header, payload]));
}

function vxlanRequest(host: Host, packet: Buffer): Buffer {
  const inner = ethernet(host.ownMac, INNER_MAC, packet);
  const header = Buffer.alloc(16);
  header.writeUInt16BE(50_000, 0);
  header.writeUInt16BE(4789, 2);
  header.writeUInt16BE(16 + inner.length, 4);
  header.writeUInt8(0x08, 8);
  header.writeUInt32BE(ID << 8, 12);
  return outer(host, 17, Buffer.concat([header, inner]));
}

function nvgreRequest(host: Host, packet: Buffer): Buffer {
  const header = Buffer.from("2000655800000000", "hex");
  header.writeUInt32BE(ID << 8, 4);
  return outer(host, 47, Buffer.concat([header, ethernet(host.ownMac, INNER_MAC, packet)]));
}

async function build(lab: Lab, outside: Namespace, host: Host): Promise<Product | null> {
  const veth = (name: string, index: number, mac: string, peer: string, peerIndex: number, peerMac: string) =>
    `link add name ${name} index ${index} address ${mac} netns ${host.namespace.name} type veth ` +
    `peer name ${peer} index ${peerIndex} address ${peerMac} netns ${outside.name}`;
  const { ends, name, kind } = host;
  const links = [
    veth("tap", ends.tap, host.mac("tap"), `${name}-vm`, ends.vm, host.mac("vm")),
    veth("up-a", ends.uplink, host.mac("up-a"), `${name}-a`, ends.device, host.mac("a")),
    veth("up-b", ends.uplink + 1, host.mac("up-b"), `${name}-b`, ends.deviceB, host.mac("b")),
  ];
  await must(["ip", "-batch", "-"], { input: [`netns add ${host.namespace.name}`, ...links].join("\n") });
  await host.namespace.must(["sysctl", "-qw", ...SYSCTLS]);
  await outside.ip(...["vm", "a", "b"].map((end) => `link set ${name}-${end} up`));
  await host.namespace.ip(
    ...["lo", "tap", "up-a", "up-b"].map((device) => `link set ${device} up`),
    "addr add 10.200.0.1/24 dev tap",
    `addr add ${HOST_A}/24 dev up-a`,
    "addr add 198.51.100.1/24 dev up-b",
    permanent(VM, host.mac("vm"), "tap"),
    permanent(DEVICE_A, host.mac("a"), "up-a"),
    permanent(DEVICE_B, host.mac("b"), "up-b"),
    ...kind.lines(host),
  );
  const product =
    kind.tunnel !== undefined || host.way === "lasthop" ? new Product(lab, host.namespace, name) : null;
  if (kind.tunnel) await makeTunnel(host, kind.tunnel(host), product!);
  const route = kind.route(host);
  // The network of the device is there either way; the default route only where nothing else leads back.
  const others = route.filter((line) => !line.startsWith("route add default"));
  const isPlain = host.way === "plain";
  await host.namespace.ip(...(isPlain ? route : [...others, `route add default via ${DEVICE_B}`]));
  if (host.way === "lasthop") await product!.attach([kind.device, "up-b"], ["tap"]);
  return product;
}

async function makeTunnel(host: Host, tunnel: string, product: Product): Promise<void> {
  const config = `tunnels:\n  - ${tunnel}\n`;
  await product.apply(config);
  // Its own MAC is what requests are addressed to, and the programs know it.
  await host.namespace.ip(`link set ${host.kind.device} address ${host.ownMac}`);
  await product.apply(config);
}

const SYSCTLS = [
  "net.ipv4.ip_forward=1",
  "net.ipv4.conf.all.rp_filter=0",
  "net.ipv4.conf.default.rp_filter=0",
  "net.ipv4.conf.all.send_redirects=0",
  "net.ipv4.conf.default.send_redirects=0",
  "net.ipv6.conf.all.disable_ipv6=1",
  "net.ipv6.conf.default.disable_ipv6=1",
];

function requestFrame(host: Host): Buffer {
  const inner = frame({
    destinationMac: host.mac("up-a"),
    sourceMac: host.mac("a"),
    source: REMOTE,
    destination: VM,
    sourcePort: REMOTE_PORT,
    destinationPort: VM_PORT,
  });
  return host.kind.request(host, inner.subarray(14));
}

function driveReplies(host: Host, fixtures: Fixtures): void {
  fixtures.setDrive({
    frame: frame({
      destinationMac: host.mac("tap"),
      sourceMac: host.mac("vm"),
      source: VM,
      destination: REMOTE,
      sourcePort: VM_PORT,
      destinationPort: REMOTE_PORT,
    }),
    remote: REMOTE,
    direction: "reply",
    order: "random",
    flows: 1,
  });
}

function injectReplies(host: Host, fixtures: Fixtures, frames: number): number {
  driveReplies(host, fixtures);
  return inNamespace(host.namespace.path, () =>
    uninterrupted(() => seconds(() => fixtures.inject(host.ends.tap, frames))),
  );
}

async function settled(fixtures: Fixtures, host: Host, before: number, frames: number): Promise<void> {
  for (let wait = 1; ; wait *= 2) {
    const right = fixtures.arrived(host.ends.device).packets - before;
    if (right === frames) return;
    const elsewhere = fixtures.arrived(host.ends.deviceB).packets;
    if (wait > 200) {
      throw new Error(
        `${host.kind.title}, ${host.way}: of ${frames} replies ${right} arrived at device A, ${elsewhere} at device B`,
      );
    }
    await sleep(wait);
  }
}

async function establish(fixtures: Fixtures, host: Host): Promise<void> {
  for (const step of ["request", "reply", "request"]) {
    if (step === "reply") injectReplies(host, fixtures, 1);
    else inNamespace(host.namespace.path, () => fixtures.passFrame(host.ends.uplink, requestFrame(host)));
    await sleep(20);
  }
}

async function rate(fixtures: Fixtures, host: Host, frames: number): Promise<number> {
  const before = fixtures.arrived(host.ends.device).packets;
  const elapsed = injectReplies(host, fixtures, frames);
  await settled(fixtures, host, before, frames);
  return frames / elapsed;
}

export async function measureInterfaceKinds(
  report: Report,
  lab: Lab,
  fixtures: Fixtures,
  effort: KindsEffort,
): Promise<void> {
  const outside = lab.namespace("kinds");
  await must(["ip", "-batch", "-"], { input: `netns add ${outside.name}\n` });
  const hosts: Host[] = [];
  for (const kind of KINDS) {
    for (const way of ["lasthop", "plain"] as const) {
      const host = new Host(lab.namespace(`k${hosts.length}`), hosts.length, kind, way);
      hosts.push(host);
      await build(lab, outside, host);
    }
  }
  inNamespace(outside.path, () => {
    for (const { ends } of hosts) {
      fixtures.countAt(ends.device);
      fixtures.countAt(ends.deviceB);
    }
  });
  pinToCpu(MEASURING_CPU);
  try {
    for (const host of hosts) if (host.way === "lasthop") await establish(fixtures, host);
    for (const kind of KINDS) {
      const subjects = hosts
        .filter((host) => host.kind === kind)
        .map<Subject>((host) => ({ id: host.way, run: () => rate(fixtures, host, effort.frames) }));
      const samples = await interleave(subjects, effort.rounds);
      report.add(
        "Reply rate by routing interface, 64-byte frames before encapsulation",
        "replies/s",
        samples,
        [
          {
            id: `reply_rate_kind_${kind.id}`,
            subject: "lasthop",
            title: kind.title,
            baseline: { subject: "plain", title: "the host's own forwarding" },
            comparison: "ratio",
          },
        ],
      );
    }
  } finally {
    pinToCpu(null);
  }
}
