// SPDX-License-Identifier: Apache-2.0
// Interfaces without a link layer. A test run takes the first 14 bytes of what it is given for an Ethernet header and
// its EtherType for the packet's protocol; packets of these clients have the right number there, so they can be given
// as they are: their source address has it.

import { INTERFACE_FLAG, POLICY } from "../../../src/abi/layout.gen.ts";
import { PORTS } from "../support/devices.ts";
import { ETH_P, ipOf, type Tcp } from "../support/packet.ts";
import type { Row, Step } from "../support/rows.ts";
import { type Family, type FrameOptions, MAC } from "../support/scene.ts";
import * as talk from "../support/talk.ts";
import { B, c, ce, cu, VM1, v, viaB, vu } from "../support/talk.ts";
import type { LastHopSpec, World } from "../support/world.ts";

const HOST_TAP = PORTS.tap_1.mac;

/** Uplink A without a link layer. */
const TUN: LastHopSpec = { port: "uplink_a", mac: MAC.zero, kind: "ip" };

const bareClient = (f: Family) => (f.version === 4 ? "8.0.100.10" : "2001:db8:86dd::10");

const tun = (world: World): void =>
  world.changeInterface("uplink_a", { flags: INTERFACE_FLAG.NO_LINK_LAYER });

const ends = (f: Family) => ({ local: f.routedVm, remote: bareClient(f) });

/** A request, as it comes by uplink A. */
function bare(f: Family, flags: string, options: FrameOptions = {}, segment: Partial<Tcp> = {}): Buffer {
  const frame = { source: bareClient(f), destination: f.routedVm, ...options };
  return ipOf(c(f, flags, { ...segment, frame }));
}

/** The VM's answer, to the host unless told otherwise. */
function answer(f: Family, flags: string, options: FrameOptions = {}): Buffer {
  const frame = { to: HOST_TAP, source: f.routedVm, destination: bareClient(f), ...options };
  return v(f, flags, { frame });
}

const request = (packet: Buffer, more: Omit<Step, "at" | "packet">): Step => ({
  at: "uplink_a",
  packet,
  bare: true,
  ...more,
});

/** The kernel takes the Ethernet header off when it has left the program: only the TTL tells. */
function redirected(f: Family, options: FrameOptions = {}): Step {
  return {
    at: "tap_1",
    packet: answer(f, "PA", options),
    reason: "redirect",
    to: TUN,
    out: answer(f, "PA", { ...options, tags: [], ttl: (options.ttl ?? 64) - 1 }),
  };
}

const tuple = (f: Family) => ({ ...talk.tcpTuple(f), ...ends(f) });

const given = (f: Family) => (world: World) => {
  tun(world);
  const reference = world.putLastHop(5, TUN, 3);
  world.putFlow(tuple(f), { last_hop: reference, state: 4, vm: VM1 });
};

function both(description: string, make: Row["make"]): Row {
  return { description, programs: ["learn_tc"], make };
}

export const linkLayerRows: Row[] = [
  both("a request without an Ethernet header: its last hop is the interface", (f) => ({
    tuple: tuple(f),
    given: tun,
    steps: [
      request(bare(f, "S"), { reason: "learn", flow: { tier: "embryonic", state: "syn", lastHop: TUN } }),
      {
        at: "tap_1",
        packet: answer(f, "SA"),
        reason: "redirect",
        to: TUN,
        out: answer(f, "SA", { ttl: 63 }),
      },
      request(bare(f, "A"), {
        reason: "promote",
        flow: { tier: "established", state: "established", lastHop: TUN, vm: VM1 },
      }),
      request(bare(f, "PA", {}, { payload: Buffer.alloc(1000) }), { reason: "refresh" }),
      redirected(f),
    ],
  })),
  both("UDP and ping", (f) => {
    const udpTuple = { ...talk.udpTuple(f), ...ends(f) };
    const pingTuple = { ...talk.pingTuple(f), ...ends(f) };
    // A test run wants as many bytes behind what it takes for the Ethernet header as an IP header has.
    const from = { source: bareClient(f), destination: f.routedVm, trailer: 20 };
    const back = { to: HOST_TAP, source: f.routedVm, destination: bareClient(f) };
    return {
      tuple: udpTuple,
      given: tun,
      steps: [
        request(ipOf(cu(f, from)), { reason: "learn", flow: { lastHop: TUN } }),
        { at: "tap_1", packet: vu(f, back), reason: "redirect", to: TUN, out: vu(f, { ...back, ttl: 63 }) },
        request(ipOf(cu(f, from)), { reason: "promote" }),
        request(ipOf(ce(f, "request", from)), { reason: "learn", tuple: pingTuple, flow: { lastHop: TUN } }),
      ],
    };
  }),
  both("the host routes what comes from there: to a VM, a bridge of VMs, itself, elsewhere", (f) => ({
    tuple: tuple(f),
    given: tun,
    steps: [
      ...(
        [
          ["routedVm", "learn"],
          ["bridgedVm", "learn"],
          ["neighbourVm", "learn"],
          ["host", "for_host"],
          ["transit", "not_for_vm"],
          ["unroutable", "not_for_vm"],
        ] as const
      ).map(([where, reason]) =>
        request(bare(f, "S", { destination: f[where] }), {
          reason,
          tuple: { ...tuple(f), local: f[where] },
          flow: reason === "learn" ? { lastHop: TUN } : null,
        }),
      ),
    ],
  })),
  both("whom the VM sent its reply to does not matter: the host routes it", (f) => ({
    tuple: tuple(f),
    given: given(f),
    steps: [redirected(f), redirected(f, { to: MAC.deviceB }), redirected(f, { to: MAC.deviceB, ttl: 2 })],
  })),
  both("with a TTL of 1 a reply goes to the stack, whom it was sent to does not matter", (f) => ({
    tuple: tuple(f),
    given: given(f),
    steps: [HOST_TAP, MAC.deviceB].flatMap((to) =>
      [1, 0].map((ttl): Step => ({ at: "tap_1", packet: answer(f, "PA", { to, ttl }), reason: "ttl" })),
    ),
  })),
  both("a VM's tags go with its Ethernet header", (f) => ({
    tuple: tuple(f),
    given: given(f),
    steps: [
      redirected(f, { tags: [{ vid: 33 }] }),
      redirected(f, { tags: [{ proto: ETH_P.qinq, vid: 33 }, { vid: 44 }] }),
      redirected(f, { tags: [{ vid: 0, priority: 3 }] }),
    ],
  })),
  both("a flow moves from there to a device with a MAC, and back", (f) => ({
    tuple: tuple(f),
    given: (world) => {
      tun(world);
    },
    steps: [
      request(bare(f, "PA"), { reason: "learn", flow: { lastHop: TUN } }),
      {
        at: "uplink_b",
        packet: c(f, "PA", {
          frame: { ...viaB, to: PORTS.uplink_b.mac, source: bareClient(f), destination: f.routedVm },
        }),
        reason: "relearn",
        flow: { lastHop: B },
      },
      {
        at: "tap_1",
        packet: answer(f, "A"),
        reason: "redirect",
        to: B,
        out: answer(f, "A", { to: MAC.deviceB, from: PORTS.uplink_b.mac, ttl: 63 }),
      },
      request(bare(f, "PA"), { reason: "relearn", flow: { lastHop: TUN } }),
      redirected(f),
    ],
  })),
  both("via stack: marked and handed on, Ethernet header and TTL as they were", (f) => ({
    tuple: tuple(f),
    given: (world) =>
      world.changeInterface("uplink_a", {
        flags: INTERFACE_FLAG.NO_LINK_LAYER | INTERFACE_FLAG.VIA_STACK,
        mark: 7,
      }),
    steps: [
      request(bare(f, "S"), { reason: "learn", flow: { lastHop: { ...TUN, kind: "stack", mark: 7 } } }),
      { at: "tap_1", packet: answer(f, "SA"), reason: "stack", mark: 7 },
    ],
  })),
  both("a device of the operator's is a last hop without a MAC", (f) => ({
    tuple: tuple(f),
    given: (world) => {
      world.changeInterface("uplink_a", {
        flags: INTERFACE_FLAG.NO_LINK_LAYER | INTERFACE_FLAG.LEARN_DEVICES,
      });
    },
    steps: [
      request(bare(f, "S"), { reason: "unknown_device", flow: null }),
      request(bare(f, "S"), {
        before: (world) => void world.putLastHop(5, TUN),
        reason: "learn",
        flow: { lastHop: TUN },
      }),
    ],
  })),
  both("observe: the interface says whether the way is the same", (f) => ({
    tuple: tuple(f),
    given: (world) => {
      given(f)(world);
      world.changeInterface("tap_1", { policy: POLICY.OBSERVE });
    },
    steps: [
      // The host's default route is uplink A.
      { at: "tap_1", packet: answer(f, "A"), reason: "observe_same" },
      { at: "tap_1", packet: answer(f, "A", { to: MAC.deviceB }), reason: "observe_change" },
      {
        before: (world) => {
          const reference = world.putLastHop(6, { ...TUN, port: "uplink_b" });
          world.changeFlow(tuple(f), { last_hop: reference });
        },
        at: "tap_1",
        packet: answer(f, "A"),
        reason: "observe_change",
      },
    ],
  })),
  both("what is wrong is as wrong as behind an Ethernet header", (f) => ({
    tuple: tuple(f),
    given: tun,
    steps: [
      request(bare(f, "SF"), { reason: "malformed", flow: null }),
      request(bare(f, "SA"), { reason: "not_request", flow: null }),
      request(bare(f, "S", { destination: f.multicast }), { reason: "multicast", flow: null }),
      request(bare(f, "S", { v4: { version: 6 }, v6: { version: 4 } }), { reason: "malformed", flow: null }),
      request(bare(f, "S", { v4: { totalLength: 41 }, v6: { payloadLength: 21 } }), {
        reason: "malformed",
        flow: null,
      }),
      // With an Ethernet header in front, as XFRM interfaces have it: a packet like any other, for nobody here.
      request(c(f, "S"), { reason: "not_for_vm", flow: null }),
    ],
  })),
  {
    description: "XDP does not know what a packet without a link layer is: it passes",
    programs: ["learn_xdp"],
    make: (f) => ({
      tuple: tuple(f),
      given: tun,
      steps: [request(bare(f, "S"), { reason: "not_ip", flow: null })],
    }),
  },
];
