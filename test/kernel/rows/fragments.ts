// SPDX-License-Identifier: Apache-2.0
// Fragments follow their first fragment.

import { encode } from "../../../src/abi/codec.ts";
import { ipBytes } from "../support/bytes.ts";
import { PORTS } from "../support/devices.ts";
import { destinationOptions, fragmentHeader, hopByHop, icmpEcho, raw, tcp, udp } from "../support/packet.ts";
import type { Row } from "../support/rows.ts";
import { type Family, type FrameOptions, MAC, reply, request } from "../support/scene.ts";
import * as talk from "../support/talk.ts";
import { A, cu, VM1, viaB, vu } from "../support/talk.ts";
import { datagrams } from "./moving.ts";

const ID = 0xabcd;

function part(id: number, offset: number, more: boolean): FrameOptions {
  return {
    v4: { id, fragmentOffset: offset, moreFragments: more },
    v6: { extensions: [fragmentHeader(id, offset, more)] },
  };
}

/** The first 1,200 bytes of a UDP datagram of 3,000. */
const datagram = (from: number, to: number) =>
  udp({ sourcePort: from, destinationPort: to, length: 3000, payload: Buffer.alloc(1192) });

const first = (f: Family, more: FrameOptions = {}, id = ID) =>
  request(f, datagram(talk.CLIENT_PORT, talk.VM_PORT), { ...part(id, 0, true), ...more });
const later = (f: Family, more: FrameOptions = {}, id = ID) =>
  request(f, raw(17, Buffer.alloc(600)), { ...part(id, 1200, false), ...more });
const firstReply = (f: Family, more: FrameOptions = {}) =>
  reply(f, datagram(talk.VM_PORT, talk.CLIENT_PORT), { ...part(ID, 0, true), ...more });
const laterReply = (f: Family, more: FrameOptions = {}) =>
  reply(f, raw(17, Buffer.alloc(600)), { ...part(ID, 1200, false), ...more });

export const fragmentRows: Row[] = [
  {
    description: "the first fragment is a request, the later ones belong to its flow",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        {
          at: "uplink_a",
          packet: first(f),
          reason: "learn",
          flow: { tier: "embryonic", state: "new", lastHop: A },
        },
        {
          at: "uplink_a",
          packet: later(f),
          reason: "refresh",
          flow: { tier: "embryonic", state: "new", lastHop: A },
        },
        {
          at: "tap_1",
          packet: firstReply(f),
          reason: "redirect",
          to: A,
          flow: { state: "replied", vm: VM1 },
        },
        { at: "tap_1", packet: laterReply(f), reason: "redirect", to: A, flow: { state: "replied" } },
      ],
    }),
  },
  {
    description: "later fragments before their first pass",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        ...datagrams(f),
        { at: "uplink_a", packet: later(f), reason: "fragment" },
        { at: "tap_1", packet: laterReply(f), reason: "fragment" },
        { at: "tap_1", packet: firstReply(f), reason: "redirect", to: A },
        { at: "tap_1", packet: laterReply(f), reason: "redirect", to: A },
      ],
    }),
  },
  {
    description: "later fragments neither create nor move a flow",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        { at: "uplink_a", packet: first(f), reason: "learn" },
        { at: "uplink_b", packet: later(f, viaB), reason: "not_request", flow: { lastHop: A } },
        {
          before: (world) => world.deleteFlow(talk.udpTuple(f)),
          at: "uplink_a",
          packet: later(f),
          reason: "not_request",
          flow: null,
        },
        { at: "uplink_a", packet: first(f), reason: "learn" },
        { at: "tap_1", packet: firstReply(f), reason: "redirect", to: A },
        {
          before: (world) => world.deleteFlow(talk.udpTuple(f)),
          at: "tap_1",
          packet: laterReply(f),
          reason: "no_flow",
          flow: null,
        },
      ],
    }),
  },
  {
    description: "a first fragment does not make a flow when it is not for a VM, and its later ones neither",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        { at: "uplink_a", packet: first(f, { to: MAC.unknown }), reason: "not_for_vm", flow: null },
        { at: "uplink_a", packet: later(f, { to: MAC.unknown }), reason: "not_for_vm", flow: null },
        { at: "uplink_a", packet: later(f), reason: "not_request", flow: null },
      ],
    }),
  },
  {
    description: "another id, another source or another zone is another datagram",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        { at: "uplink_a", packet: first(f), reason: "learn" },
        { at: "uplink_a", packet: later(f, {}, ID + 1), reason: "fragment" },
        { at: "uplink_a", packet: later(f, { source: f.client2 }), reason: "fragment" },
        { at: "uplink_z", packet: later(f, { to: MAC.vmZ }), reason: "fragment" },
        { at: "uplink_a", packet: later(f), reason: "refresh" },
      ],
    }),
  },
  {
    description: "another protocol under the same id is another datagram",
    families: [4],
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        { at: "uplink_a", packet: first(f), reason: "learn" },
        {
          at: "uplink_a",
          packet: later(f, { v4: { id: ID, fragmentOffset: 1200, protocol: 6 } }),
          reason: "fragment",
        },
      ],
    }),
  },
  {
    description: "a first fragment is forgotten after the time that reassembly takes",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        { at: "uplink_a", packet: first(f), reason: "learn" },
        {
          before: (world) => {
            const map = world.map("fragments");
            for (let key = map.nextKey(null); key; key = map.nextKey(key)) {
              const old = world.get("fragments", key, "fragment")!;
              world.put("fragments", key, "fragment", { ...old, seen: (old.seen - 400) >>> 0 });
            }
          },
          at: "uplink_a",
          packet: later(f),
          reason: "fragment",
        },
      ],
    }),
  },
  {
    description: "the ports of the first fragment are kept under the addresses as in the packet",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        {
          at: "uplink_a",
          packet: first(f),
          reason: "learn",
          check: (world) => {
            const key = world.map("fragments").nextKey(null)!;
            const pad = (address: string) =>
              Buffer.concat([ipBytes(address), Buffer.alloc(16)]).subarray(0, 16);
            const id =
              f.version === 4
                ? Buffer.from([ID >> 8, ID & 255, 0, 0])
                : Buffer.from([0, 0, ID >> 8, ID & 255]);
            const wanted = encode("fragment_key", {
              source: pad(f.client),
              destination: pad(f.vm),
              id: id.readUInt32LE(),
              proto: 17,
              family: f.version,
            });
            if (!key.equals(wanted)) {
              throw new Error(`key ${key.toString("hex")}, not ${wanted.toString("hex")}`);
            }
          },
        },
      ],
    }),
  },
  {
    description: "fragments of TCP",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        {
          at: "uplink_a",
          packet: request(
            f,
            tcp({
              sourcePort: talk.CLIENT_PORT,
              destinationPort: talk.VM_PORT,
              flags: "PA",
              payload: Buffer.alloc(1180),
            }),
            part(ID, 0, true),
          ),
          reason: "learn",
          flow: { state: "new", flags: ["PICKUP"], lastHop: A },
        },
        {
          at: "uplink_a",
          packet: request(f, raw(6, Buffer.alloc(600)), part(ID, 1200, false)),
          reason: "refresh",
          flow: { state: "new", lastHop: A },
        },
      ],
    }),
  },
  {
    description: "fragments of a large echo request and its reply",
    make: (f) => ({
      tuple: talk.pingTuple(f),
      steps: [
        {
          at: "uplink_a",
          packet: request(f, icmpEcho(f.version, "request", talk.ECHO_ID), part(ID, 0, true)),
          reason: "learn",
          flow: { lastHop: A },
        },
        { at: "uplink_a", packet: request(f, raw(f.icmp), part(ID, 1200, false)), reason: "refresh" },
        {
          at: "tap_1",
          packet: reply(f, icmpEcho(f.version, "reply", talk.ECHO_ID), part(ID, 0, true)),
          reason: "redirect",
          to: A,
        },
        { at: "tap_1", packet: reply(f, raw(f.icmp), part(ID, 1200, false)), reason: "redirect", to: A },
      ],
    }),
  },
  {
    description: "a first fragment that is too short for its transport header is malformed",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        {
          at: "uplink_a",
          packet: request(f, raw(6, Buffer.alloc(8)), part(ID, 0, true)),
          reason: "malformed",
          flow: null,
        },
        {
          at: "uplink_a",
          packet: request(f, raw(17, Buffer.alloc(4)), part(ID, 0, true)),
          reason: "malformed",
        },
        {
          at: "uplink_a",
          packet: request(f, raw(6, Buffer.alloc(64)), part(ID, 8, false)),
          reason: "fragment",
        },
      ],
    }),
  },
  {
    description: "a middle fragment is a later one",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        { at: "uplink_a", packet: first(f), reason: "learn" },
        {
          at: "uplink_a",
          packet: request(f, raw(17, Buffer.alloc(1200)), part(ID, 1200, true)),
          reason: "refresh",
        },
        {
          at: "uplink_a",
          packet: request(f, raw(17, Buffer.alloc(600)), part(ID, 2400, false)),
          reason: "refresh",
        },
      ],
    }),
  },
  {
    description: "IPv6: an atomic fragment is a whole packet",
    families: [6],
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        {
          at: "uplink_a",
          packet: cu(f, { v6: { extensions: [fragmentHeader(ID, 0, false)] } }),
          reason: "learn",
          flow: { lastHop: A },
          check: (world) => {
            if (world.map("fragments").nextKey(null)) {
              throw new Error("noted as a first fragment");
            }
          },
        },
        {
          at: "tap_1",
          packet: vu(f, { v6: { extensions: [fragmentHeader(ID, 0, false)] } }),
          reason: "redirect",
          to: A,
        },
      ],
    }),
  },
  {
    description: "IPv6: headers before and behind the fragment header",
    families: [6],
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        {
          at: "uplink_a",
          packet: first(f, {
            v6: { extensions: [hopByHop(), fragmentHeader(ID, 0, true), destinationOptions()] },
          }),
          reason: "learn",
          flow: { lastHop: A },
        },
        {
          // The fragment header of later ones names what follows in the first: an options header.
          at: "uplink_a",
          packet: later(f, { v6: { extensions: [hopByHop(), fragmentHeader(ID, 1200, false)] } }),
          reason: "refresh",
        },
      ],
    }),
  },
  {
    description: "routed host: later fragments lose a TTL like the first",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        ...datagrams(f),
        ...[firstReply, laterReply].map((make) => ({
          at: "tap_1" as const,
          packet: make(f, { to: PORTS.tap_1.mac, ttl: 9 }),
          reason: "redirect" as const,
          to: A,
          out: make(f, { to: MAC.deviceA, from: PORTS.uplink_a.mac, ttl: 8 }),
        })),
        { at: "tap_1", packet: laterReply(f, { to: PORTS.tap_1.mac, ttl: 1 }), reason: "ttl" },
      ],
    }),
  },
  {
    description: "another VM's later fragments are not the flow's",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        ...datagrams(f),
        { at: "tap_1", packet: firstReply(f), reason: "redirect", to: A },
        { at: "tap_2", packet: laterReply(f, talk.byVm2), reason: "vm_mismatch" },
      ],
    }),
  },
];
