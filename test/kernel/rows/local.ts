// SPDX-License-Identifier: Apache-2.0
// DESIGN section 2, "Local origin": connections that the VM opens.

import { currentTick } from "../../../src/abi/codec.ts";
import { fragmentHeader, icmpError, ipOf, raw } from "../support/packet.ts";
import type { Row } from "../support/rows.ts";
import { MAC, reply, request } from "../support/scene.ts";
import * as talk from "../support/talk.ts";
import { A, B, c, ce, cs, cu, VM1, v, ve, viaB, vs, vu } from "../support/talk.ts";
import type { World } from "../support/world.ts";

const local = { lastHop: null, vm: VM1 } as const;

export const localRows: Row[] = [
  {
    description:
      "a TCP connection of the VM: recorded on its SYN, its answers are never learned, it keeps its route",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        {
          at: "tap_1",
          packet: v(f, "S"),
          reason: "local_origin",
          flow: { ...local, tier: "embryonic", state: "syn", flags: ["LOCAL_ORIGIN"] },
        },
        {
          at: "uplink_a",
          packet: c(f, "SA"),
          reason: "answer",
          flow: { ...local, flags: ["LOCAL_ORIGIN", "ANSWERED"] },
        },
        { at: "tap_1", packet: v(f, "A"), reason: "local_origin", flow: { ...local, state: "established" } },
        { at: "uplink_a", packet: c(f, "PA"), reason: "answer", flow: { ...local, state: "established" } },
        { at: "uplink_b", packet: c(f, "PA", { frame: viaB }), reason: "answer", flow: local },
        { at: "tap_1", packet: v(f, "PA"), reason: "local_origin", flow: local },
        { at: "uplink_a", packet: c(f, "FA"), reason: "answer", flow: { ...local, state: "half_closed" } },
        { at: "tap_1", packet: v(f, "FA"), reason: "local_origin", flow: { ...local, state: "closed" } },
      ],
    }),
  },
  {
    description: "a VM's retransmitted SYN, and a new one after the connection closed",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "tap_1", packet: v(f, "S"), reason: "local_origin" },
        { at: "tap_1", packet: v(f, "S"), reason: "local_origin", flow: { ...local, state: "syn" } },
        { at: "uplink_a", packet: c(f, "RA"), reason: "answer", flow: { ...local, state: "closed" } },
        { at: "tap_1", packet: v(f, "S"), reason: "local_origin", flow: { ...local, state: "syn" } },
      ],
    }),
  },
  {
    description: "an SCTP association of the VM",
    make: (f) => ({
      tuple: talk.sctpTuple(f),
      steps: [
        {
          at: "tap_1",
          packet: vs(f, "init"),
          reason: "local_origin",
          flow: { ...local, tier: "embryonic", state: "syn", flags: ["LOCAL_ORIGIN"] },
        },
        { at: "uplink_a", packet: cs(f, "initAck"), reason: "answer", flow: local },
        { at: "tap_1", packet: vs(f, "cookieEcho"), reason: "local_origin", flow: local },
        { at: "uplink_b", packet: cs(f, "data", viaB), reason: "answer", flow: local },
      ],
    }),
  },
  {
    description: "a ping by the VM, under its own identifier",
    make: (f) => ({
      tuple: talk.localPingTuple(f),
      steps: [
        {
          at: "tap_1",
          packet: ve(f, "request"),
          reason: "local_origin",
          flow: { ...local, tier: "embryonic", flags: ["LOCAL_ORIGIN"] },
        },
        { at: "uplink_a", packet: ce(f, "reply"), reason: "answer", flow: local },
        { at: "tap_1", packet: ve(f, "request"), reason: "local_origin", flow: local },
        // The same identifier the other way is another flow.
        {
          at: "uplink_a",
          packet: ce(f, "request"),
          reason: "learn",
          tuple: talk.pingTuple(f),
          flow: { lastHop: A },
        },
        { at: "tap_1", packet: ve(f, "reply"), reason: "redirect", to: A, tuple: talk.pingTuple(f) },
        { at: "uplink_b", packet: ce(f, "reply", viaB), reason: "answer", flow: local },
      ],
    }),
  },
  {
    description: "UDP by the VM is provisional, and renewed as long as nobody answers",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        {
          at: "tap_1",
          packet: vu(f),
          reason: "local_origin",
          flow: { ...local, tier: "embryonic", state: "provisional", flags: ["LOCAL_ORIGIN"] },
        },
        {
          before: (world) => world.changeFlow(talk.udpTuple(f), { last_seen: (currentTick() - 50) >>> 0 }),
          at: "tap_1",
          packet: vu(f),
          reason: "local_origin",
          check: (world) => lastSeen(world, talk.udpTuple(f), 0),
        },
      ],
    }),
  },
  {
    description: "UDP by the VM: answers within the provisional life are not learned",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        { at: "tap_1", packet: vu(f), reason: "local_origin" },
        {
          at: "uplink_b",
          packet: cu(f, viaB),
          reason: "answer",
          flow: { ...local, state: "provisional", flags: ["LOCAL_ORIGIN", "ANSWERED"] },
        },
        { at: "tap_1", packet: vu(f), reason: "local_origin", flow: local },
        { at: "uplink_a", packet: cu(f), reason: "answer", flow: local },
      ],
    }),
  },
  {
    description:
      "UDP by the VM: once answered nothing renews the provisional life, and then a request is learned",
    make: (f) => {
      const tuple = talk.udpTuple(f);
      return {
        tuple,
        steps: [
          { at: "tap_1", packet: vu(f), reason: "local_origin" },
          { at: "uplink_a", packet: cu(f), reason: "answer" },
          {
            before: (world) => world.changeFlow(tuple, { last_seen: (currentTick() - 100) >>> 0 }),
            at: "tap_1",
            packet: vu(f),
            reason: "local_origin",
            check: (world) => lastSeen(world, tuple, 100),
          },
          {
            at: "uplink_a",
            packet: cu(f),
            reason: "answer",
            check: (world) => lastSeen(world, tuple, 100),
          },
          {
            before: (world) => world.changeFlow(tuple, { last_seen: (currentTick() - 1000) >>> 0 }),
            at: "uplink_b",
            packet: cu(f, viaB),
            reason: "restart",
            flow: { state: "new", lastHop: B, vm: 0, flags: [] },
          },
          { at: "tap_1", packet: vu(f), reason: "redirect", to: B, flow: { state: "replied", vm: VM1 } },
          {
            at: "uplink_b",
            packet: cu(f, viaB),
            reason: "promote",
            flow: { tier: "established", lastHop: B },
          },
        ],
      };
    },
  },
  ...(
    [
      ["a TCP ACK", (f) => v(f, "A"), "tcp"],
      ["TCP data", (f) => v(f, "PA", { payload: Buffer.from("x") }), "tcp"],
      ["a SYN-ACK", (f) => v(f, "SA"), "tcp"],
      ["an RST", (f) => v(f, "R"), "tcp"],
      ["a FIN", (f) => v(f, "FA"), "tcp"],
      ["SCTP data", (f) => vs(f, "data"), "sctp"],
      ["an SCTP INIT-ACK", (f) => vs(f, "initAck"), "sctp"],
      ["an SCTP ABORT", (f) => vs(f, "abort"), "sctp"],
      ["an echo reply", (f) => ve(f, "reply"), "echo"],
    ] as [string, (f: Parameters<Row["make"]>[0]) => Buffer, "tcp" | "sctp" | "echo"][]
  ).map(
    ([name, packet, proto]): Row => ({
      description: `${name} of a VM without a flow passes and creates nothing`,
      make: (f) => ({
        tuple: { tcp: talk.tcpTuple, sctp: talk.sctpTuple, echo: talk.pingTuple }[proto](f),
        steps: [
          {
            at: "tap_1",
            packet: packet(f),
            reason: "no_flow",
            flow: null,
            check: (world) => {
              if (world.flowCount() !== 0) {
                throw new Error("an entry was made");
              }
            },
          },
        ],
      }),
    }),
  ),
  {
    description: "an ICMP error of a VM about no flow passes and creates nothing",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        {
          at: "tap_1",
          packet: reply(f, icmpError(f.version, "unreachable", ipOf(cu(f)))),
          reason: "no_flow",
          flow: null,
          check: (world) => {
            if (world.flowCount() !== 0) {
              throw new Error("an entry was made");
            }
          },
        },
      ],
    }),
  },
  {
    description: "a SYN-ACK or an RST from an uplink never turns a local-origin flow round",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "tap_1", packet: v(f, "S"), reason: "local_origin" },
        { at: "uplink_b", packet: c(f, "SA", { frame: viaB }), reason: "answer", flow: local },
        {
          at: "uplink_b",
          packet: c(f, "RA", { frame: viaB }),
          reason: "answer",
          flow: { ...local, state: "closed" },
        },
      ],
    }),
  },
  {
    description: "an ICMP error about a local-origin flow changes nothing",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "tap_1", packet: v(f, "S"), reason: "local_origin" },
        {
          at: "uplink_a",
          packet: request(f, icmpError(f.version, "unreachable", ipOf(v(f, "S"))), { source: f.client2 }),
          reason: "quoted",
          flow: { ...local, state: "syn", flags: ["LOCAL_ORIGIN"] },
        },
      ],
    }),
  },
  {
    description: "a SYN from an uplink always replaces an entry, a local-origin one too",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "tap_1", packet: v(f, "S"), reason: "local_origin" },
        {
          at: "uplink_a",
          packet: c(f, "S"),
          reason: "restart",
          flow: { state: "syn", lastHop: A, flags: [], vm: 0 },
        },
        { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: A, flow: { state: "syn_ack", vm: VM1 } },
        { at: "uplink_a", packet: c(f, "A"), reason: "promote", flow: { tier: "established", lastHop: A } },
      ],
    }),
  },
  {
    description: "an SCTP INIT from an uplink replaces a local-origin entry",
    make: (f) => ({
      tuple: talk.sctpTuple(f),
      steps: [
        { at: "tap_1", packet: vs(f, "init"), reason: "local_origin" },
        {
          at: "uplink_a",
          packet: cs(f, "init"),
          reason: "restart",
          flow: { state: "syn", lastHop: A, flags: [] },
        },
        { at: "tap_1", packet: vs(f, "initAck"), reason: "redirect", to: A },
      ],
    }),
  },
  {
    description: "later fragments of a VM's own datagram follow its first",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        {
          at: "tap_1",
          packet: vu(f, {
            v4: { id: 5, moreFragments: true },
            v6: { extensions: [fragmentHeader(5, 0, true)] },
          }),
          reason: "local_origin",
          flow: local,
        },
        {
          at: "tap_1",
          packet: reply(f, raw(17), {
            v4: { id: 5, fragmentOffset: 16 },
            v6: { extensions: [fragmentHeader(5, 16)] },
          }),
          reason: "local_origin",
          flow: local,
        },
      ],
    }),
  },
  {
    description:
      "a transparent VM: the server's answer goes back to it, and its own to the device of the client",
    make: (f) => {
      // The client's request for the server, given to VM 1, which forwards it unchanged through device B.
      const server = f.client2;
      const first = { ...talk.tcpTuple(f), local: server };
      const second = {
        ...talk.tcpTuple(f),
        local: f.client,
        remote: server,
        localPort: 40000,
        remotePort: 80,
      };
      const toServer = { source: f.client, destination: server };
      const toClient = { source: server, destination: f.client };
      return {
        tuple: first,
        steps: [
          { at: "uplink_a", packet: c(f, "S", { frame: toServer }), reason: "learn", flow: { lastHop: A } },
          {
            at: "tap_1",
            packet: c(f, "S", { frame: { ...toServer, from: MAC.vm1, to: MAC.deviceB } }),
            reason: "local_origin",
            tuple: second,
            flow: { lastHop: null, vm: VM1, flags: ["LOCAL_ORIGIN"] },
          },
          {
            at: "uplink_b",
            packet: v(f, "SA", { frame: { ...toClient, from: MAC.deviceB, to: MAC.vm1 } }),
            reason: "answer",
            tuple: second,
            flow: { lastHop: null, flags: ["LOCAL_ORIGIN", "ANSWERED"] },
          },
          {
            at: "tap_1",
            packet: v(f, "SA", { frame: toClient }),
            reason: "redirect",
            to: A,
            flow: { state: "syn_ack", vm: VM1 },
          },
          { at: "uplink_a", packet: c(f, "A", { frame: toServer }), reason: "promote", flow: { lastHop: A } },
        ],
      };
    },
  },
  {
    description: "a VM opens a connection of an overlapping address in its own zone only",
    make: (f) => ({
      tuple: { ...talk.tcpTuple(f), zone: 7 },
      steps: [
        {
          at: "tap_z",
          packet: v(f, "S", { frame: { from: MAC.vmZ } }),
          reason: "local_origin",
          flow: { lastHop: null, vm: 3 },
        },
        { at: "uplink_a", packet: c(f, "S"), reason: "learn", tuple: talk.tcpTuple(f), flow: { lastHop: A } },
      ],
    }),
  },
];

function lastSeen(world: World, tuple: Parameters<World["flow"]>[0], ticksAgo: number): void {
  const age = currentTick() - world.flow(tuple)!.flow.last_seen;
  // The programs read a coarse clock, and the run takes a while.
  if (Math.abs(age - ticksAgo) > 8) {
    throw new Error(`last seen ${age} ticks ago, not ${ticksAgo}`);
  }
}
