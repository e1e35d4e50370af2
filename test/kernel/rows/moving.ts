// SPDX-License-Identifier: Apache-2.0
// Refresh, relearn, restart: what a further request does to a flow, and what must not move it.

import { currentTick, joinLastHop } from "../../../src/abi/codec.ts";
import { INTERFACE_FLAG, LAST_HOP_ROUTE } from "../../../src/abi/layout.gen.ts";
import { ICMP_ERROR, icmpError, ipOf } from "../support/packet.ts";
import type { Row, Step } from "../support/rows.ts";
import { type Family, MAC, request } from "../support/scene.ts";
import * as talk from "../support/talk.ts";
import { A, B, C, c, ce, cs, cu, VM1, v, ve, viaB, vs, vu } from "../support/talk.ts";
import type { World } from "../support/world.ts";

/** The three-way handshake through device A. */
export function handshake(f: Family): Step[] {
  return [
    { at: "uplink_a", packet: c(f, "S"), reason: "learn" },
    { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: A },
    {
      at: "uplink_a",
      packet: c(f, "A"),
      reason: "promote",
      flow: { tier: "established", state: "established", lastHop: A, vm: VM1, flags: [] },
    },
  ];
}

/** Request, reply and request over UDP. */
export function datagrams(f: Family): Step[] {
  return [
    { at: "uplink_a", packet: cu(f), reason: "learn" },
    { at: "tap_1", packet: vu(f), reason: "redirect", to: A },
    {
      at: "uplink_a",
      packet: cu(f),
      reason: "promote",
      flow: { tier: "established", state: "established", lastHop: A, vm: VM1, flags: [] },
    },
  ];
}

const unmoved = { tier: "established", state: "established", lastHop: A, vm: VM1 } as const;

function seenNow(world: World, f: Family): void {
  const age = currentTick() - world.flow(talk.tcpTuple(f))!.flow.last_seen;
  if (age < 0 || age > 8) {
    throw new Error(`last seen ${age} ticks ago`);
  }
}

export const movingRows: Row[] = [
  {
    description: "a further request of the same last hop refreshes, and so does a reply",
    make: (f) => {
      const old = (world: World) =>
        world.changeFlow(talk.tcpTuple(f), { last_seen: (currentTick() - 1000) >>> 0 });
      const check = (world: World) => seenNow(world, f);
      return {
        tuple: talk.tcpTuple(f),
        steps: [
          ...handshake(f),
          { before: old, at: "uplink_a", packet: c(f, "A"), reason: "refresh", flow: unmoved, check },
          { before: old, at: "tap_1", packet: v(f, "A"), reason: "redirect", to: A, flow: unmoved, check },
        ],
      };
    },
  },
  {
    description: "a retransmitted SYN refreshes, before and after the SYN-ACK",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "S"), reason: "learn" },
        { at: "uplink_a", packet: c(f, "S"), reason: "refresh", flow: { state: "syn", lastHop: A } },
        { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: A },
        {
          at: "uplink_a",
          packet: c(f, "S"),
          reason: "refresh",
          flow: { tier: "embryonic", lastHop: A, vm: VM1 },
        },
        { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: A },
        { at: "uplink_a", packet: c(f, "A"), reason: "promote" },
      ],
    }),
  },
  {
    description: "relearn: a request from another last hop moves an established flow, and it heals",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...handshake(f),
        {
          at: "uplink_b",
          packet: c(f, "PA", { frame: viaB }),
          reason: "relearn",
          flow: { ...unmoved, lastHop: B },
        },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: B, flow: { ...unmoved, lastHop: B } },
        { at: "uplink_a", packet: c(f, "A"), reason: "relearn", flow: unmoved },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: A },
      ],
    }),
  },
  {
    description: "a record that took another's place: the flow goes on with it, and that is no relearn",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => world.changeControl({ relearn_damping: 4 }),
      steps: [
        ...handshake(f),
        {
          // As when an uplink returned under another index: the alias was written, the frames come from there.
          before: (world) => {
            const { index } = world.lastHop(world.flow(talk.tcpTuple(f))!.flow.last_hop);
            world.putLastHop(40, B);
            const generation = world.flow(talk.tcpTuple(f))!.flow.last_hop >>> 20;
            world.setAlias(index, joinLastHop(generation, 40));
          },
          at: "tap_1",
          packet: v(f, "A"),
          reason: "redirect",
          to: B,
          flow: unmoved,
        },
        {
          at: "uplink_b",
          packet: c(f, "A", { frame: viaB }),
          reason: "refresh",
          flow: { ...unmoved, lastHop: B },
          check: (world) => {
            const { moved } = world.flow(talk.tcpTuple(f))!.flow;
            if (moved !== 0 || world.stats(40).relearns !== 0) throw new Error("counted as a relearn");
          },
        },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: B },
        // From where it no longer is, it is a relearn as ever.
        { at: "uplink_a", packet: c(f, "A"), reason: "relearn" },
      ],
    }),
  },
  {
    description: "a device that is down has no successor",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        ...datagrams(f),
        {
          before: (world) => {
            const { index } = world.lastHop(world.flow(talk.udpTuple(f))!.flow.last_hop);
            const generation = world.flow(talk.udpTuple(f))!.flow.last_hop >>> 20;
            world.setAlias(index, joinLastHop(generation, LAST_HOP_ROUTE));
          },
          at: "uplink_b",
          packet: cu(f, viaB),
          reason: "relearn",
          flow: { lastHop: B },
        },
      ],
    }),
  },
  {
    description: "relearn moves UDP, SCTP and echo too",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        ...datagrams(f),
        { at: "uplink_b", packet: cu(f, viaB), reason: "relearn", flow: { ...unmoved, lastHop: B } },
        { at: "tap_1", packet: vu(f), reason: "redirect", to: B },
        { at: "uplink_a", packet: cs(f, "init"), reason: "learn", tuple: talk.sctpTuple(f) },
        { at: "tap_1", packet: vs(f, "initAck"), reason: "redirect", to: A, tuple: talk.sctpTuple(f) },
        { at: "uplink_a", packet: cs(f, "cookieEcho"), reason: "promote", tuple: talk.sctpTuple(f) },
        {
          at: "uplink_b",
          packet: cs(f, "data", viaB),
          reason: "relearn",
          tuple: talk.sctpTuple(f),
          flow: { ...unmoved, lastHop: B },
        },
        { at: "tap_1", packet: vs(f, "sack"), reason: "redirect", to: B, tuple: talk.sctpTuple(f) },
        { at: "uplink_a", packet: ce(f, "request"), reason: "learn", tuple: talk.pingTuple(f) },
        {
          at: "uplink_b",
          packet: ce(f, "request", viaB),
          reason: "relearn",
          tuple: talk.pingTuple(f),
          flow: { lastHop: B },
        },
        { at: "tap_1", packet: ve(f, "reply"), reason: "redirect", to: B, tuple: talk.pingTuple(f) },
      ],
    }),
  },
  {
    description: "relearn moves an embryonic flow",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        { at: "uplink_a", packet: cu(f), reason: "learn" },
        {
          at: "uplink_b",
          packet: cu(f, viaB),
          reason: "relearn",
          flow: { tier: "embryonic", state: "new", lastHop: B },
        },
        { at: "tap_1", packet: vu(f), reason: "redirect", to: B },
      ],
    }),
  },
  {
    description: "another device on the same uplink is another last hop",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...handshake(f),
        {
          at: "uplink_a",
          packet: c(f, "A", { frame: { from: MAC.deviceC } }),
          reason: "relearn",
          flow: { ...unmoved, lastHop: C },
        },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: C },
      ],
    }),
  },
  {
    description: "the same device MAC on another uplink is another last hop",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...handshake(f),
        {
          at: "uplink_b",
          packet: c(f, "A"),
          reason: "relearn",
          flow: { ...unmoved, lastHop: { port: "uplink_b", mac: MAC.deviceA } },
        },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: { port: "uplink_b", mac: MAC.deviceA } },
      ],
    }),
  },
  {
    description: "relearn never: the flow stays where it was learned",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => world.changeInterface("uplink_b", { flags: INTERFACE_FLAG.RELEARN_NEVER }),
      steps: [
        ...handshake(f),
        { at: "uplink_b", packet: c(f, "A", { frame: viaB }), reason: "relearn_off", flow: unmoved },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: A },
        {
          at: "uplink_b",
          packet: cu(f, viaB),
          reason: "learn",
          tuple: talk.udpTuple(f),
          flow: { lastHop: B },
        },
      ],
    }),
  },
  ...(
    [
      ["SYN-ACK", "SA"],
      ["RST", "R"],
      ["RST with ACK", "RA"],
    ] as const
  ).map(
    ([name, flags]): Row => ({
      description: `a ${name} from another last hop neither moves nor closes a flow`,
      make: (f) => ({
        tuple: talk.tcpTuple(f),
        steps: [
          ...handshake(f),
          { at: "uplink_b", packet: c(f, flags, { frame: viaB }), reason: "not_request", flow: unmoved },
          { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: A },
        ],
      }),
    }),
  ),
  {
    description: "a SYN-ACK from another last hop does not move an embryonic flow",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "S"), reason: "learn" },
        {
          at: "uplink_b",
          packet: c(f, "SA", { frame: viaB }),
          reason: "not_request",
          flow: { tier: "embryonic", state: "syn", lastHop: A, vm: 0 },
        },
      ],
    }),
  },
  ...(Object.keys(ICMP_ERROR[4]) as (keyof (typeof ICMP_ERROR)[4])[]).map(
    (error): Row => ({
      description: `an ICMP error (${error}) from another last hop does not move a flow`,
      make: (f) => ({
        tuple: talk.tcpTuple(f),
        steps: [
          ...handshake(f),
          {
            at: "uplink_b",
            packet: request(f, icmpError(f.version, error, ipOf(v(f, "PA"))), { ...viaB, source: f.client2 }),
            reason: "quoted",
            flow: unmoved,
          },
          { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: A },
        ],
      }),
    }),
  ),
  {
    description: "an SCTP INIT-ACK and an ABORT from another last hop do not move a flow",
    make: (f) => ({
      tuple: talk.sctpTuple(f),
      steps: [
        { at: "uplink_a", packet: cs(f, "init"), reason: "learn" },
        { at: "uplink_b", packet: cs(f, "initAck", viaB), reason: "not_request", flow: { lastHop: A } },
        {
          at: "uplink_b",
          packet: cs(f, "abort", viaB),
          reason: "not_request",
          flow: { lastHop: A, state: "syn" },
        },
      ],
    }),
  },
  {
    description: "a request addressed to another VM never moves a flow",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...handshake(f),
        {
          at: "uplink_b",
          packet: c(f, "PA", { frame: { ...viaB, ...talk.toVm2 } }),
          reason: "other_vm",
          flow: unmoved,
        },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: A },
      ],
    }),
  },
  {
    description: "a datagram addressed to another VM never moves a flow, embryonic or established",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        { at: "uplink_a", packet: cu(f), reason: "learn" },
        { at: "tap_1", packet: vu(f), reason: "redirect", to: A },
        {
          at: "uplink_b",
          packet: cu(f, { ...viaB, ...talk.toVm2 }),
          reason: "other_vm",
          flow: { tier: "embryonic", lastHop: A, vm: VM1 },
        },
        { at: "uplink_a", packet: cu(f), reason: "promote", flow: unmoved },
        { at: "uplink_b", packet: cu(f, { ...viaB, ...talk.toVm2 }), reason: "other_vm", flow: unmoved },
      ],
    }),
  },
  {
    description: "an echo request addressed to another VM never moves a flow",
    make: (f) => ({
      tuple: talk.pingTuple(f),
      steps: [
        { at: "uplink_a", packet: ce(f, "request"), reason: "learn" },
        { at: "tap_1", packet: ve(f, "reply"), reason: "redirect", to: A },
        {
          at: "uplink_b",
          packet: ce(f, "request", { ...viaB, ...talk.toVm2 }),
          reason: "other_vm",
          flow: { lastHop: A, vm: VM1 },
        },
      ],
    }),
  },
  {
    description: "a request of the same last hop addressed to another VM leaves the flow to its VM",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...handshake(f),
        { at: "uplink_a", packet: c(f, "PA", { frame: talk.toVm2 }), reason: "refresh", flow: unmoved },
      ],
    }),
  },
  ...(
    [
      ["the source MAC of a VM", { from: MAC.vm2 }, "source_vm"],
      ["a zero source MAC", { from: MAC.zero }, "source_mac"],
      ["no VM as its destination", { ...viaB, to: MAC.deviceC }, "not_for_vm"],
    ] as const
  ).map(
    ([name, frame, reason]): Row => ({
      description: `a request with ${name} does not move a flow`,
      make: (f) => ({
        tuple: talk.tcpTuple(f),
        steps: [
          ...handshake(f),
          { at: "uplink_b", packet: c(f, "A", { frame }), reason, flow: unmoved },
          { at: "uplink_b", packet: c(f, "S", { frame }), reason, flow: unmoved },
        ],
      }),
    }),
  ),
  {
    description: "a port that does not forward moves nothing",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => world.changeInterface("uplink_b", { flags: INTERFACE_FLAG.PORT_BLOCKED }),
      steps: [
        ...handshake(f),
        { at: "uplink_b", packet: c(f, "A", { frame: viaB }), reason: "port_blocked", flow: unmoved },
        { at: "uplink_b", packet: c(f, "S", { frame: viaB }), reason: "port_blocked", flow: unmoved },
      ],
    }),
  },
  {
    description: "learn devices: an unknown device moves nothing",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => world.changeInterface("uplink_b", { flags: INTERFACE_FLAG.LEARN_DEVICES }),
      steps: [
        ...handshake(f),
        { at: "uplink_b", packet: c(f, "A", { frame: viaB }), reason: "unknown_device", flow: unmoved },
      ],
    }),
  },
  {
    description: "a SYN from another last hop replaces an entry",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...handshake(f),
        {
          at: "uplink_b",
          packet: c(f, "S", { frame: viaB }),
          reason: "restart",
          flow: { state: "syn", lastHop: B, vm: 0, flags: [] },
        },
        { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: B, flow: { state: "syn_ack", vm: VM1 } },
      ],
    }),
  },
  {
    description: "a SYN from the same last hop replaces an entry that is past its handshake",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...handshake(f),
        { at: "uplink_a", packet: c(f, "FA"), reason: "refresh" },
        { at: "tap_1", packet: v(f, "FA"), reason: "redirect", to: A, flow: { state: "closed" } },
        {
          at: "uplink_a",
          packet: c(f, "S"),
          reason: "restart",
          flow: { state: "syn", lastHop: A, vm: 0, flags: [] },
        },
        { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: A, flow: { state: "syn_ack", vm: VM1 } },
        { at: "uplink_a", packet: c(f, "A"), reason: "refresh", flow: { state: "established", lastHop: A } },
      ],
    }),
  },
  {
    description: "a SYN to another VM replaces an entry, whatever its last hop",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "S"), reason: "learn" },
        { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: A, flow: { vm: VM1 } },
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: talk.toVm2 }),
          reason: "restart",
          flow: { state: "syn", lastHop: A, vm: 0 },
        },
        {
          at: "tap_2",
          packet: v(f, "SA", { frame: talk.byVm2 }),
          reason: "redirect",
          to: A,
          flow: { vm: talk.VM2 },
        },
        {
          at: "uplink_b",
          packet: c(f, "S", { frame: viaB }),
          reason: "restart",
          flow: { state: "syn", lastHop: B, vm: 0 },
        },
        { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: B, flow: { vm: VM1 } },
      ],
    }),
  },
  {
    description: "a SYN replaces an entry of the embryonic tier from another last hop",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "S"), reason: "learn" },
        {
          at: "uplink_b",
          packet: c(f, "S", { frame: viaB }),
          reason: "restart",
          flow: { tier: "embryonic", state: "syn", lastHop: B, vm: 0 },
        },
        { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: B },
        { at: "uplink_b", packet: c(f, "A", { frame: viaB }), reason: "promote", flow: { lastHop: B } },
      ],
    }),
  },
  {
    description: "after a restart only the new SYN-ACK's number proves the connection",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "S"), reason: "learn" },
        { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: A },
        { at: "uplink_b", packet: c(f, "S", { frame: viaB }), reason: "restart" },
        {
          at: "uplink_b",
          packet: c(f, "A", { frame: viaB }),
          reason: "refresh",
          flow: { tier: "embryonic" },
        },
        { at: "tap_1", packet: v(f, "SA", { seq: 90000 }), reason: "redirect", to: B },
        {
          at: "uplink_b",
          packet: c(f, "A", { frame: viaB }),
          reason: "refresh",
          flow: { tier: "embryonic" },
        },
        {
          at: "uplink_b",
          packet: c(f, "A", { frame: viaB, ack: 90001 }),
          reason: "promote",
          flow: { tier: "established", lastHop: B },
        },
      ],
    }),
  },
  {
    description: "an SCTP INIT past the handshake replaces an entry",
    make: (f) => ({
      tuple: talk.sctpTuple(f),
      steps: [
        { at: "uplink_a", packet: cs(f, "init"), reason: "learn" },
        { at: "tap_1", packet: vs(f, "initAck"), reason: "redirect", to: A },
        { at: "uplink_a", packet: cs(f, "cookieEcho"), reason: "promote", flow: { state: "established" } },
        {
          at: "uplink_b",
          packet: cs(f, "init", viaB),
          reason: "restart",
          flow: { state: "syn", lastHop: B, vm: 0 },
        },
      ],
    }),
  },
  {
    description: "an entry lost under traffic heals with the next request",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...handshake(f),
        {
          before: (world) => world.deleteFlow(talk.tcpTuple(f)),
          at: "tap_1",
          packet: v(f, "PA"),
          reason: "no_flow",
          flow: null,
        },
        { at: "uplink_a", packet: c(f, "A"), reason: "learn", flow: { lastHop: A, flags: ["PICKUP"] } },
        { at: "tap_1", packet: v(f, "PA"), reason: "redirect", to: A },
        { at: "uplink_a", packet: c(f, "A"), reason: "promote", flow: { state: "established", lastHop: A } },
      ],
    }),
  },
  {
    description: "a flow in both tiers: the established entry wins",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        const established = world.putLastHop(5, A);
        const embryonic = world.putLastHop(6, B);
        world.putFlow(talk.tcpTuple(f), { last_hop: established, state: 4, vm: VM1 });
        world.putEmbryo(talk.tcpTuple(f), { flow: { last_hop: embryonic, state: 1 } });
      },
      steps: [
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: A, flow: unmoved },
        { at: "uplink_a", packet: c(f, "A"), reason: "refresh", flow: unmoved },
      ],
    }),
  },
  {
    description: "a flow whose record was reused heals with the next request",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        const stale = world.putLastHop(5, A, 1);
        world.putLastHop(5, C, 2);
        world.putFlow(talk.tcpTuple(f), { last_hop: stale, state: 4, vm: VM1 });
      },
      steps: [
        { at: "tap_1", packet: v(f, "A"), reason: "stale_last_hop" },
        {
          at: "uplink_b",
          packet: c(f, "A", { frame: viaB }),
          reason: "relearn",
          flow: { ...unmoved, lastHop: B },
        },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: B },
      ],
    }),
  },
];
