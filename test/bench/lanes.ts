// SPDX-License-Identifier: Apache-2.0
// Hosts of one VM, each with another way to send replies, or requests, side by side.
//
//   outside: NAME-a ── up-a ┐                       ┌ tap ── NAME-vm :outside
//   outside: NAME-b ── up-b ┴── host, br0 or none ──┘
//
// Replies are injected at tap's ingress and counted where they arrive: NAME-a, as all should. Requests are injected at
// up-a's ingress and counted at NAME-vm.

import type { Lab, Namespace } from "../support/lab.ts";
import { must, sleep } from "../support/run.ts";
import type { Drive, Fixtures, Order } from "./fixtures.ts";
import { frame } from "./frames.ts";
import { inNamespace, seconds, uninterrupted } from "./machine.ts";

export const VM_ADDRESS = "10.200.0.2";
/** Of a service whose only VM this is. */
export const SERVICE_ADDRESS = "10.200.0.3";
export const REMOTE_BASE = "10.0.0.0";
export const VM_PORT = 443;
/** The first flow's; as drive.bpf.c chooses it. */
export const REMOTE_PORT = 0x8000;

export const HOST_ADDRESS = "10.200.0.1";
const DEVICE_A = "192.0.2.254";
const DEVICE_B = "198.51.100.254";

/** `service`: lasthop, and requests are for a service's address and the host's MAC. */
export type Way = "lasthop" | "service" | "plain" | "ct_mark" | "redirect";

export interface LaneOptions {
  name: string;
  way: Way;
  /** The tap is a port of a bridge that has the gateway's address; else the tap has it. */
  bridge: boolean;
  /** The uplinks are ports of that bridge too: the host does not route. */
  bridgedUplinks?: boolean;
}

/** Lanes that stand beside others need numbers of their own. */
export interface LanePlace {
  /** Of the namespace outside. */
  outside: string;
  /** Number of the first lane. */
  first: number;
}

export interface Ends {
  tap: number;
  uplinkA: number;
  uplinkB: number;
  outsideVm: number;
  outsideA: number;
  outsideB: number;
}

export class Lane {
  readonly name: string;
  readonly way: Way;
  readonly bridge: boolean;
  readonly bridgedUplinks: boolean;
  readonly host: Namespace;
  readonly ends: Ends;
  readonly #number: number;

  constructor(host: Namespace, number: number, options: LaneOptions) {
    const { name, way, bridge, bridgedUplinks = false } = options;
    this.name = name;
    this.way = way;
    this.bridge = bridge;
    this.bridgedUplinks = bridgedUplinks;
    this.host = host;
    this.#number = number;
    // All different: with equal ones the kernel delays link-up by a second.
    const base = 1000 + number * 10;
    this.ends = {
      tap: base,
      uplinkA: base + 1,
      uplinkB: base + 2,
      outsideVm: base + 3,
      outsideA: base + 4,
      outsideB: base + 5,
    };
  }

  mac(device: "tap" | "up-a" | "up-b" | "br0" | "vm" | "a" | "b"): string {
    const kind = ["tap", "up-a", "up-b", "br0", "vm", "a", "b"].indexOf(device);
    return `02:00:be:00:${this.#number.toString(16).padStart(2, "0")}:0${kind}`;
  }

  /** What a VM's frames to its gateway are addressed to. */
  get gatewayMac(): string {
    return this.bridge ? this.mac("br0") : this.mac("tap");
  }

  get l3Device(): string {
    return this.bridge ? "br0" : "tap";
  }

  /** What requests are addressed to. */
  get calleeMac(): string {
    if (!this.bridgedUplinks) return this.mac("up-a");
    return this.mac(this.way === "service" ? "br0" : "vm");
  }

  get callee(): string {
    return this.way === "service" ? SERVICE_ADDRESS : VM_ADDRESS;
  }

  drive(direction: Drive["direction"], order: Order, flows: number, first = 0): Drive {
    const reply = direction === "reply";
    // On a bridge the VM's own choice is the other device.
    const ownChoice = this.bridgedUplinks ? this.mac("b") : this.gatewayMac;
    return {
      frame: frame({
        destinationMac: reply ? ownChoice : this.calleeMac,
        sourceMac: reply ? this.mac("vm") : this.mac("a"),
        source: reply ? this.callee : REMOTE_BASE,
        destination: reply ? REMOTE_BASE : this.callee,
        sourcePort: reply ? VM_PORT : REMOTE_PORT,
        destinationPort: reply ? REMOTE_PORT : VM_PORT,
      }),
      remote: REMOTE_BASE,
      direction,
      order,
      flows,
      first,
    };
  }
}

/** Several lanes with one outside. */
export async function buildLanes(
  lab: Lab,
  options: readonly LaneOptions[],
  place: LanePlace = { outside: "out", first: 0 },
): Promise<Lane[]> {
  const outside = lab.namespace(place.outside);
  const lanes = options.map(
    (option, index) => new Lane(lab.namespace(option.name), place.first + index, option),
  );
  const names = [outside, ...lanes.map((lane) => lane.host)].map((namespace) => namespace.name);
  await must(["ip", "-batch", "-"], { input: names.map((name) => `netns add ${name}\n`).join("") });
  for (const lane of lanes) {
    await lane.host.must(["sysctl", "-qw", ...SYSCTLS]);
    await must(["ip", "-batch", "-"], { input: links(lane, outside).join("\n") });
    await lane.host.ip(...(lane.bridgedUplinks ? bridgingHostLines(lane) : hostLines(lane)));
    if (lane.bridgedUplinks) await keepForwarding(lane);
    await outside.ip(...["vm", "a", "b"].map((end) => `link set ${lane.name}-${end} up`));
    if (lane.way === "ct_mark") await addConntrackMarks(lane);
  }
  return lanes;
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

function links(lane: Lane, outside: Namespace): string[] {
  const { ends } = lane;
  const veth = (name: string, index: number, mac: string, peer: string, peerIndex: number, peerMac: string) =>
    `link add name ${name} index ${index} address ${mac} netns ${lane.host.name} type veth ` +
    `peer name ${peer} index ${peerIndex} address ${peerMac} netns ${outside.name}`;
  return [
    veth("tap", ends.tap, lane.mac("tap"), `${lane.name}-vm`, ends.outsideVm, lane.mac("vm")),
    veth("up-a", ends.uplinkA, lane.mac("up-a"), `${lane.name}-a`, ends.outsideA, lane.mac("a")),
    veth("up-b", ends.uplinkB, lane.mac("up-b"), `${lane.name}-b`, ends.outsideB, lane.mac("b")),
  ];
}

const bridgeLine = (lane: Lane) =>
  `link add br0 index ${lane.ends.tap + 6} address ${lane.mac("br0")} type bridge forward_delay 0`;

function bridgingHostLines(lane: Lane): string[] {
  const ports = ["tap", "up-a", "up-b"];
  return [
    bridgeLine(lane),
    "link set lo up",
    "link set br0 up",
    ...ports.flatMap((port) => [`link set ${port} up`, `link set ${port} master br0`]),
  ];
}

/** Who is behind which port: nothing is flooded. */
async function keepForwarding(lane: Lane): Promise<void> {
  const ends = [
    ["vm", "tap"],
    ["a", "up-a"],
    ["b", "up-b"],
  ] as const;
  for (const [end, port] of ends) {
    await lane.host.must(["bridge", "fdb", "replace", lane.mac(end), "dev", port, "master", "static"]);
  }
}

function hostLines(lane: Lane): string[] {
  // Only lasthop and the mark know better than the default route.
  const gateway = lane.way === "plain" || lane.way === "redirect" ? DEVICE_A : DEVICE_B;
  return [
    ...["lo", "tap", "up-a", "up-b"].map((device) => `link set ${device} up`),
    ...(lane.bridge ? [bridgeLine(lane), "link set br0 up", "link set tap master br0"] : []),
    `addr add ${HOST_ADDRESS}/24 dev ${lane.l3Device}`,
    "addr add 192.0.2.1/24 dev up-a",
    "addr add 198.51.100.1/24 dev up-b",
    `neigh replace ${VM_ADDRESS} lladdr ${lane.mac("vm")} dev ${lane.l3Device} nud permanent`,
    `neigh replace ${DEVICE_A} lladdr ${lane.mac("a")} dev up-a nud permanent`,
    `neigh replace ${DEVICE_B} lladdr ${lane.mac("b")} dev up-b nud permanent`,
    `route add default via ${gateway}`,
  ];
}

/** The usual way without lasthop: save the uplink in the connection's mark, route replies by it. */
async function addConntrackMarks(lane: Lane): Promise<void> {
  await lane.host.must(["sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout=600"]);
  await lane.host.must(["sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout_stream=600"]);
  await lane.host.must(["nft", "-f", "-"], {
    input: `table ip returns {
      chain prerouting {
        type filter hook prerouting priority mangle;
        iifname "up-a" ct state new ct mark set 1
        iifname "up-b" ct state new ct mark set 2
        iifname "${lane.l3Device}" meta mark set ct mark
      }
    }`,
  });
  await lane.host.ip(
    "rule add fwmark 1 table 101",
    "rule add fwmark 2 table 102",
    `route add default via ${DEVICE_A} table 101`,
    `route add default via ${DEVICE_B} table 102`,
  );
}

/** Attaches what counts, and the bare redirect where the lane is that. */
export function prepareLanes(lanes: readonly Lane[], outside: string, fixtures: Fixtures): void {
  inNamespace(outside, () => {
    for (const { ends, bridgedUplinks } of lanes) {
      fixtures.countAt(ends.outsideA);
      fixtures.countAt(ends.outsideB);
      // What routed hosts send to their VMs only establishes flows.
      if (bridgedUplinks) fixtures.countAt(ends.outsideVm);
    }
  });
  for (const lane of lanes) {
    if (lane.way !== "redirect") continue;
    inNamespace(lane.host.path, () =>
      fixtures.redirectAll(lane.ends.tap, lane.ends.uplinkA, lane.mac("a"), lane.mac("up-a")),
    );
  }
}

/** Injects and returns the seconds that it took. */
export function injectFrames(fixtures: Fixtures, lane: Lane, drive: Drive, frames: number): number {
  fixtures.setDrive(drive);
  const ifindex = drive.direction === "reply" ? lane.ends.tap : lane.ends.uplinkA;
  return inNamespace(lane.host.path, () =>
    uninterrupted(() => seconds(() => fixtures.inject(ifindex, frames))),
  );
}

/** Frames per second. Throws unless every one arrived at `wanted`, with its MAC, and none at the others. */
async function frameRate(
  fixtures: Fixtures,
  lane: Lane,
  drive: Drive,
  frames: number,
  wanted: number,
  others: readonly number[],
): Promise<number> {
  const count = () => {
    const right = fixtures.arrived(wanted);
    const elsewhere = others.reduce((sum, end) => sum + fixtures.arrived(end).packets, 0);
    return { right: right.packets, wrong: right.otherPackets + elsewhere };
  };
  const before = count();
  const elapsed = injectFrames(fixtures, lane, drive, frames);
  // The last ones may still wait for another thread of the kernel.
  for (let wait = 1; ; wait *= 2) {
    const after = count();
    const right = after.right - before.right;
    const wrong = after.wrong - before.wrong;
    if (right === frames && wrong === 0) return frames / elapsed;
    if (wait > 100 || wrong > 0) {
      const what = drive.direction === "reply" ? "replies" : "requests";
      throw new Error(
        `${lane.name}: of ${frames} ${what} ${right} arrived where they should, ${wrong} elsewhere`,
      );
    }
    await sleep(wait);
  }
}

/** Replies per second, that arrive at device A. */
export function replyRate(fixtures: Fixtures, lane: Lane, drive: Drive, frames: number): Promise<number> {
  return frameRate(fixtures, lane, drive, frames, lane.ends.outsideA, [lane.ends.outsideB]);
}

/** Requests per second, that arrive at the VM. */
export function requestRate(fixtures: Fixtures, lane: Lane, drive: Drive, frames: number): Promise<number> {
  const { outsideVm, outsideA, outsideB } = lane.ends;
  return frameRate(fixtures, lane, drive, frames, outsideVm, [outsideA, outsideB]);
}
