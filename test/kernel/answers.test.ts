// SPDX-License-Identifier: Apache-2.0
// ARP and neighbour discovery for the address of a service: the question becomes the answer, byte for byte, or passes.

import { describe, expect } from "vitest";
import type { ReasonName } from "../../src/abi/codec.ts";
import { INTERFACE_FLAG, SERVICE_FLAG } from "../../src/abi/layout.gen.ts";
import { ipBytes, macBytes } from "./support/bytes.ts";
import { PORTS } from "./support/devices.ts";
import { useWorld, world } from "./support/fixture.ts";
import {
  arp,
  ETH_P,
  type Ethernet,
  ethernet,
  fragmentHeader,
  hopByHop,
  type Ipv6,
  icmp,
  ipv6,
  type Tag,
} from "./support/packet.ts";
import { type Row, type Step, testRows } from "./support/rows.ts";
import { FAMILIES, MAC } from "./support/scene.ts";
import { passed } from "./support/serviceSteps.ts";
import { answering, SERVICE, serve, servicesOf } from "./support/services.ts";
import * as talk from "./support/talk.ts";
import type { World } from "./support/world.ts";

useWorld();

const { ipv4: v4, ipv6: v6 } = FAMILIES;
const HOST = PORTS.uplink_a.mac;
/** Of the bridge that the uplink is a port of. */
const BRIDGE = PORTS.bridge.mac;

const TAGS: Record<string, Tag[]> = {
  "a tag": [{ vid: 10 }],
  "a priority tag": [{ vid: 0, priority: 5 }],
  "two tags": [
    { proto: ETH_P.qinq, vid: 100 },
    { vid: 10, priority: 3 },
  ],
};

/** Of both families: the frame, what it becomes if `mac` answers, and as what it passes. */
interface Question {
  ask(frame: Partial<Ethernet>, address?: string): Buffer;
  answer(mac: string, frame: Partial<Ethernet>, address?: string): Buffer;
  other: string;
  /** As what it passes if it is not to a group. */
  alone: ReasonName;
  /** Of the shortest whole question. */
  bytes: number;
}

// ---- ARP --------------------------------------------------------------------------------------------

const A = { mac: MAC.deviceA, ip: v4.client };

const arpFor = (address: string, mac: string = MAC.zero) => arp("request", A, { mac, ip: address });

const ARP: Question = {
  ask: (frame, address = v4.vm) =>
    ethernet({ from: MAC.deviceA, to: MAC.broadcast, ...frame }, arpFor(address)),
  answer: (mac, frame, address = v4.vm) =>
    ethernet({ ...frame, from: mac, to: frame.from ?? MAC.deviceA }, arp("reply", { mac, ip: address }, A)),
  other: v4.vm2,
  alone: "not_ip",
  bytes: 42,
};

// ---- neighbour discovery ------------------------------------------------------------------------------

/** The group of an address: ff02::1:ff and its last three bytes; and its MAC. */
const GROUP = "ff02::1:ff00:5";
const GROUP_MAC = "33:33:ff:00:00:05";

const linkLayer = (type: number, mac: string) => Buffer.concat([Buffer.from([type, 1]), macBytes(mac)]);

interface Solicitation {
  target?: string;
  options?: Buffer[];
  code?: number;
  type?: number;
  checksum?: number;
  ip?: Partial<Ipv6>;
  frame?: Partial<Ethernet>;
}

function solicitation({
  target = v6.vm,
  options,
  code,
  type = 135,
  checksum,
  ip,
  frame,
}: Solicitation = {}): Buffer {
  const message = icmp({
    ...{
      version: 6,
      type,
      body: Buffer.concat([ipBytes(target), ...(options ?? [linkLayer(1, MAC.deviceA)])]),
    },
    ...(code === undefined ? {} : { code }),
    ...(checksum === undefined ? {} : { checksum }),
  });
  const network = ipv6({ source: v6.client, destination: GROUP, hopLimit: 255, ...ip }, message);
  return ethernet({ from: MAC.deviceA, to: GROUP_MAC, ...frame }, network);
}

function advertisement(
  mac: string,
  frame: Partial<Ethernet> = {},
  target: string = v6.vm,
  option = true,
): Buffer {
  const body = Buffer.concat([ipBytes(target), ...(option ? [linkLayer(2, mac)] : [])]);
  const message = icmp({ version: 6, type: 136, rest: Buffer.from([0x60, 0, 0, 0]), body });
  const network = ipv6({ source: target, destination: v6.client, hopLimit: 255 }, message);
  return ethernet({ ...frame, from: mac, to: frame.from ?? MAC.deviceA }, network);
}

const ND: Question = {
  ask: (frame, target = v6.vm) => solicitation({ target, frame }),
  answer: advertisement,
  other: v6.vm2,
  alone: "multicast",
  bytes: 14 + 40 + 24 + 8,
};

// ---- both -------------------------------------------------------------------------------------------

const answered = (packet: Buffer, out: Buffer, more: Partial<Step> = {}): Step =>
  passed(packet, "address_answer", { out, ...more });

const given =
  (mac?: string, prefix?: string) =>
  (family: typeof v4) =>
  (world: World): void => {
    serve(family)(world);
    answering(world, prefix ?? family.vm, mac);
  };

const answers = (count: number) => (world: World) =>
  expect(servicesOf(world).stats().answered, "answered").toBe(count);

function both(q: Question, version: 4 | 6): Row[] {
  const families = [version] as const;
  const group = "multicast";
  const row = (description: string, steps: Step[], prepare: (world: World) => void = () => {}): Row => ({
    description,
    families,
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        given()(f)(world);
        prepare(world);
      },
      steps,
    }),
  });
  const ask = (frame: Partial<Ethernet> = {}) => q.ask(frame);
  const wide = version === 4 ? "10.0.0.0/24" : "fd00::/64";
  return [
    row("answered with the host's MAC, and counted", [
      answered(ask(), q.answer(HOST, {})),
      answered(ask(), q.answer(HOST, {}), { check: answers(2) }),
      // Of a bridge port the host's is the bridge's.
      answered(ask(), q.answer(BRIDGE, {}), {
        before: (world) => world.changeInterface("uplink_a", { host_mac: macBytes(BRIDGE) }),
      }),
      answered(q.ask({ from: MAC.deviceB }), q.answer(PORTS.uplink_b.mac, { from: MAC.deviceB }), {
        at: "uplink_b",
      }),
    ]),
    row(
      "answered with the VM's MAC",
      [
        answered(ask(), q.answer(MAC.vm2, {})),
        // Down or not: its services say who gets what comes.
        answered(ask(), q.answer(MAC.vm2, {}), { before: (world) => servicesOf(world).setState(2, "DOWN") }),
      ],
      (world) => answering(world, version === 4 ? v4.vm : v6.vm, MAC.vm2),
    ),
    row("asked by itself: the host's MAC, or that of one of its VMs", [
      answered(ask({ to: HOST }), q.answer(HOST, {})),
      answered(ask({ to: MAC.vm1 }), q.answer(HOST, {})),
      passed(ask({ to: MAC.unknown }), q.alone),
      passed(ask({ to: MAC.deviceB }), q.alone, { check: answers(2) }),
    ]),
    ...Object.entries(TAGS).map(([what, tags]) =>
      row(`${what} is kept`, [answered(ask({ tags }), q.answer(HOST, { tags }))]),
    ),
    row("what is behind it is kept: a short frame is padded", [
      answered(ask({ trailer: 18 }), q.answer(HOST, { trailer: 18 })),
    ]),
    row("three tags are too many", [
      passed(ask({ tags: [{ vid: 1 }, { vid: 2 }, { vid: 3 }] }), "vlan_depth"),
    ]),
    row("any address of a prefix, and no other", [
      passed(q.ask({}, q.other), group),
      answered(q.ask({}, q.other), q.answer(HOST, {}, q.other), {
        before: (world) => answering(world, wide),
      }),
      passed(q.ask({}, version === 4 ? "10.0.1.5" : "fd00:0:0:1::5"), group, { check: answers(1) }),
    ]),
    row("not in another zone", [
      passed(ask(), group, { at: "uplink_z" }),
      answered(ask(), q.answer(PORTS.uplink_z.mac, {}), {
        at: "uplink_z",
        before: (world) => answering(world, version === 4 ? v4.vm : v6.vm, undefined, 7),
      }),
    ]),
    row("not of a service that does not answer, or that is gone, nor without VMs", [
      passed(ask(), group, {
        before: (world) => servicesOf(world).changeService(SERVICE, { flags: SERVICE_FLAG.ASSOCIATED }),
      }),
      passed(ask(), group, {
        before: (world) => {
          servicesOf(world).changeService(SERVICE, { flags: SERVICE_FLAG.ANSWERED });
          world.changeControl({ vm_cells: 0 });
        },
      }),
      passed(ask(), group, {
        before: (world) => {
          world.changeControl({ vm_cells: 2 });
          servicesOf(world).clear();
          world.changeControl({ vm_cells: 2 });
        },
        check: answers(0),
      }),
    ]),
    row("not on a port that does not forward: our MAC cannot be reached there", [
      passed(ask(), group, {
        before: (world) => world.changeInterface("uplink_a", { flags: INTERFACE_FLAG.PORT_BLOCKED }),
        check: answers(0),
      }),
    ]),
    row("not from a group, the host itself, or a VM of this host whose frame comes back", [
      ...["01:00:5e:00:00:01", MAC.broadcast, MAC.zero, HOST, MAC.vm2].map((from) =>
        passed(ask({ from }), group),
      ),
      passed(ask(), "bypass", { before: (world) => world.changeControl({ bypass: 1 }), check: answers(0) }),
    ]),
    row("not without a MAC to answer with", [passed(ask(), group, { check: answers(0) })], (world) =>
      world.changeInterface("uplink_a", { host_mac: Buffer.alloc(6) }),
    ),
    row("a VM's own question is not ours", [{ at: "tap_1", packet: ask({ from: MAC.vm1 }), reason: group }]),
    row("cut short", [
      ...Array.from({ length: q.bytes - shortest(version) }, (_, cut) =>
        passed(Buffer.from(ask().subarray(0, shortest(version) + cut)), group),
      ),
      answered(ask(), q.answer(HOST, {}), { check: answers(1) }),
    ]),
  ];
}

/** A test run of TC wants an IP header. */
const shortest = (version: 4 | 6) => (version === 4 ? 15 : 54);

/** Someone changes a byte of a whole question. */
function changed(frame: Buffer, at: number, value: number): Buffer {
  const copy = Buffer.from(frame);
  copy[at] = value;
  return copy;
}

const arpRows: Row[] = [
  {
    description: "ARP: what is not a question for an address passes",
    families: [4],
    make: (f) => {
      const whole = ARP.ask({});
      const between = (kind: "request" | "reply", from: string, to: string) =>
        ethernet(
          { from: MAC.deviceA, to: MAC.broadcast },
          arp(kind, { mac: MAC.deviceA, ip: from }, { mac: MAC.zero, ip: to }),
        );
      return {
        tuple: talk.tcpTuple(f),
        given: given()(f),
        steps: [
          ["gratuitous", between("request", f.vm, f.vm)],
          ["gratuitous, as a reply", between("reply", f.vm, f.vm)],
          ["an answer", between("reply", f.client, f.vm)],
          ["other hardware", changed(whole, 15, 6)],
          ["other protocol", changed(whole, 16, 0x86)],
          ["other lengths", changed(whole, 18, 8)],
          ["other lengths", changed(whole, 19, 16)],
          ["no operation", changed(whole, 21, 0)],
          ["RARP", changed(whole, 21, 3)],
          ["an operation of another byte", changed(whole, 20, 1)],
        ].map(([, packet]) => passed(packet as Buffer, "multicast", { check: answers(0) })),
      };
    },
  },
  {
    description: "ARP: whoever asks on behalf of another, and a probe, are answered (RFC 5227)",
    families: [4],
    make: (f) => {
      const frame = { from: MAC.deviceB, to: MAC.broadcast };
      const probe = { mac: MAC.deviceB, ip: "0.0.0.0" };
      return {
        tuple: talk.tcpTuple(f),
        given: given()(f),
        steps: [
          answered(
            ethernet(frame, arpFor(f.vm)),
            ethernet({ from: HOST, to: MAC.deviceB }, arp("reply", { mac: HOST, ip: f.vm }, A)),
          ),
          answered(
            ethernet(frame, arp("request", probe, { mac: MAC.zero, ip: f.vm })),
            ethernet({ from: HOST, to: MAC.deviceB }, arp("reply", { mac: HOST, ip: f.vm }, probe)),
          ),
        ],
      };
    },
  },
];

const unicast: Solicitation = { ip: { destination: v6.vm }, frame: { to: HOST } };

/** None of these is answered; to a group but for those that say so. */
const PASSING: Record<string, Solicitation & { reason?: ReasonName; after?: (frame: Buffer) => Buffer }> = {
  "a router on the way": { ip: { hopLimit: 254 } },
  "a code": { code: 1 },
  "a wrong checksum": { checksum: 0x1234 },
  "an unfinished checksum": { checksum: 0 },
  "a change on the way": { after: (frame) => changed(frame, 14 + 40 + 5, 1) },
  "whoever looks whether the address is free": { ip: { source: "::" }, options: [] },
  "the same with a nonce": { ip: { source: "::" }, options: [Buffer.from([14, 1, 1, 2, 3, 4, 5, 6])] },
  "a group that asks": { ip: { source: "ff02::1" } },
  "no MAC, to a group": { options: [] },
  "no MAC, to a group, in a frame for us": { options: [], frame: { to: HOST }, reason: "multicast" },
  "another option": { options: [linkLayer(2, MAC.deviceA)] },
  "an option of another length": { options: [Buffer.concat([Buffer.from([1, 2]), Buffer.alloc(6)])] },
  "a second option": { options: [linkLayer(1, MAC.deviceA), Buffer.from([14, 1, 1, 2, 3, 4, 5, 6])] },
  "half an option": { options: [Buffer.from([1, 1, 2, 0])] },
  "an advertisement": { type: 136 },
  "a router's solicitation": { type: 133 },
  "another version": { ip: { version: 5 } },
  "an extension header": { ip: { extensions: [hopByHop()] } },
  "a fragment": { ip: { extensions: [fragmentHeader(1)] } },
  "a length beyond the frame": { ip: { payloadLength: 40 } },
  "another EtherType": { frame: { etherType: 0x0800 } },
  "an unknown target, to us": { ...unicast, target: v6.vm2, reason: "protocol" },
};

const ndRows: Row[] = [
  {
    description: "ND: what is asked to one needs no MAC, and the answer has none then",
    families: [6],
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: given()(f),
      steps: [
        answered(solicitation({ ...unicast, options: [] }), advertisement(HOST, {}, f.vm, false)),
        answered(solicitation(unicast), advertisement(HOST)),
        answered(solicitation({ frame: { to: HOST } }), advertisement(HOST)),
        answered(solicitation({ ip: { destination: f.vm } }), advertisement(HOST)),
      ],
    }),
  },
  {
    description: "ND: what else is in its headers stays",
    families: [6],
    make: (f) => {
      const ip = { trafficClass: 0xe0, flowLabel: 0x12345 };
      const out = advertisement(HOST);
      solicitation({ ip }).copy(out, 14, 14, 18);
      return { tuple: talk.tcpTuple(f), given: given()(f), steps: [answered(solicitation({ ip }), out)] };
    },
  },
  ...Object.entries(PASSING).map(
    ([what, { reason, after, ...fields }]): Row => ({
      description: `ND: ${what}: passes`,
      families: [6],
      make: (f) => ({
        tuple: talk.tcpTuple(f),
        given: given()(f),
        steps: [
          passed(after ? after(solicitation(fields)) : solicitation(fields), reason ?? "multicast", {
            check: answers(0),
          }),
        ],
      }),
    }),
  ),
];

describe("ARP", () => testRows(() => world, [...both(ARP, 4), ...arpRows]));
describe("neighbour discovery", () => testRows(() => world, [...both(ND, 6), ...ndRows]));
