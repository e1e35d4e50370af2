// SPDX-License-Identifier: Apache-2.0
// Interfaces on top of each other, all attached: a request is learned at the one that sees it first. Uplink A is the
// lowest here; uplink B and the bridge stand for what is on top of it.

import type { StructInput } from "../../../src/abi/codec.ts";
import { INTERFACE_FLAG, ROLE } from "../../../src/abi/layout.gen.ts";
import { macBytes } from "../support/bytes.ts";
import { IFINDEX, type PortName } from "../support/devices.ts";
import { ETH_P, type Tag } from "../support/packet.ts";
import type { Row, Step } from "../support/rows.ts";
import { type Family, MAC } from "../support/scene.ts";
import * as talk from "../support/talk.ts";
import { A, B, C, c, cu, VM1, v, vu } from "../support/talk.ts";
import { type LastHopSpec, u32, type World } from "../support/world.ts";

const dot1q = { proto: ETH_P.vlan, vid: 10 };
const qinq = { proto: ETH_P.qinq, vid: 100 };

/** Device A as uplink B shows it. */
const A_ON_TOP: LastHopSpec = { ...B, mac: MAC.deviceA };

/** Uplink B is on top of `lower`, which shows one more tag. */
function above(lower: number, tag?: Required<Pick<Tag, "proto" | "vid">>): Partial<StructInput<"interface">> {
  return {
    flags: INTERFACE_FLAG.LOWER,
    lower_ifindex: lower,
    lower_tag: tag ?? { proto: 0, vid: 0 },
  };
}

const onTopOfA = (tag?: Required<Pick<Tag, "proto" | "vid">>) => (world: World) =>
  world.changeInterface("uplink_b", above(IFINDEX.uplink_a, tag));

/** Uplink A is a port of the bridge. */
const portOfBridge = (world: World): void => {
  world.changeInterface("uplink_a", { l3_ifindex: IFINDEX.bridge });
};

/** Interfaces on top of each other, the first of them on uplink A; none of them shows a tag. */
function chain(world: World, upper: readonly PortName[]): void {
  upper.forEach((port, index) => {
    const lower = index === 0 ? "uplink_a" : upper[index - 1]!;
    const role = { role: ROLE.UPLINK, zone: 0 };
    world.changeInterface(port, { ...role, ...above(IFINDEX[lower]) });
  });
}

/** A whole conversation that both see, first below with `tags`, then on top with `inner`. */
function seenTwice(f: Family, tags: Tag[], inner: Tag[] = []): Step[] {
  const lastHop = tags.length > 0 ? { ...A, tags } : A;
  const below = { frame: { tags } };
  const top = { frame: { tags: inner } };
  return [
    { at: "uplink_a", packet: c(f, "S", below), reason: "learn", flow: { lastHop } },
    { at: "uplink_b", packet: c(f, "S", top), reason: "learned_below", flow: { state: "syn", lastHop } },
    {
      at: "tap_1",
      packet: v(f, "SA"),
      reason: "redirect",
      to: lastHop,
      // The outer tag is in the metadata.
      out: v(f, "SA", { frame: { to: MAC.deviceA, tags: tags.slice(1) } }),
    },
    { at: "uplink_a", packet: c(f, "A", below), reason: "promote" },
    {
      at: "uplink_b",
      packet: c(f, "A", top),
      reason: "learned_below",
      flow: { tier: "established", state: "established", lastHop, vm: VM1 },
    },
    { at: "uplink_a", packet: c(f, "PA", below), reason: "refresh" },
    { at: "uplink_b", packet: c(f, "PA", top), reason: "learned_below", flow: { lastHop } },
    // A SYN after all: the new connection is learned once as well.
    { at: "uplink_a", packet: c(f, "S", below), reason: "restart", flow: { state: "syn", lastHop } },
    { at: "uplink_b", packet: c(f, "S", top), reason: "learned_below", flow: { state: "syn", lastHop } },
  ];
}

/** The request is new to the upper interface: it is learned there. */
function seenAnew(f: Family, tags: Tag[], inner: Tag[], from: string = MAC.deviceA): Step[] {
  return [
    {
      at: "uplink_a",
      packet: cu(f, { tags }),
      reason: "learn",
      flow: { lastHop: tags.length > 0 ? { ...A, tags } : A },
    },
    {
      at: "uplink_b",
      packet: cu(f, { tags: inner, from }),
      reason: "relearn",
      flow: { lastHop: { ...B, mac: from, ...(inner.length > 0 ? { tags: inner } : {}) } },
    },
  ];
}

export const belowRows: Row[] = [
  {
    description: "a VLAN device on its NIC: the NIC sees the tag in the frame",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: onTopOfA(dot1q),
      steps: seenTwice(f, [dot1q]),
    }),
  },
  {
    description: "an 802.1ad device on its NIC, with a tag inside",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: onTopOfA(qinq),
      steps: seenTwice(f, [qinq, dot1q], [dot1q]),
    }),
  },
  {
    description: "a device on another that shows the same tags, none to two of them",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: onTopOfA(),
      steps: [[], [dot1q], [qinq, dot1q]].flatMap((tags) => {
        const clear: Step["before"] = (world) => {
          world.deleteFlow(talk.tcpTuple(f));
        };
        const [first, ...rest] = seenTwice(f, tags, tags);
        return [{ ...first!, before: clear }, ...rest];
      }),
    }),
  },
  {
    description: "a bridge on its port",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        world.changeInterface("uplink_a", { l3_ifindex: IFINDEX.uplink_b });
        world.changeInterface("uplink_b", above(0));
      },
      steps: seenTwice(f, []),
    }),
  },
  ...(
    [
      ["which is not attached", undefined],
      ["which is a bridge of attached taps", "BRIDGE"],
      ["which is an uplink as well", "UPLINK"],
    ] as const
  ).map(
    ([name, role]): Row => ({
      description: `a VLAN device on a bridge, ${name}, on its port`,
      make: (f) => ({
        tuple: talk.tcpTuple(f),
        given: (world) => {
          portOfBridge(world);
          world.changeInterface("uplink_b", above(IFINDEX.bridge, dot1q));
          if (role) {
            world.attach("bridge", { role: ROLE[role] });
          } else {
            world.map("interfaces").delete(u32(IFINDEX.bridge));
          }
        },
        steps: seenTwice(f, [dot1q]),
      }),
    }),
  ),
  {
    description: "a bridge that gives tags to what comes in untagged, or takes them off",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        portOfBridge(world);
        world.changeInterface("uplink_b", above(IFINDEX.bridge, dot1q));
      },
      steps: [
        { at: "uplink_a", packet: cu(f), reason: "learn", tuple: talk.udpTuple(f), flow: { lastHop: A } },
        {
          at: "uplink_b",
          packet: cu(f),
          reason: "learned_below",
          tuple: talk.udpTuple(f),
          flow: { lastHop: A },
        },
        {
          before: (world) => world.changeInterface("uplink_b", above(IFINDEX.bridge)),
          at: "uplink_a",
          packet: c(f, "PA", { frame: { tags: [dot1q] } }),
          reason: "learn",
        },
        {
          at: "uplink_b",
          packet: c(f, "PA"),
          reason: "learned_below",
          flow: { lastHop: { ...A, tags: [dot1q] } },
        },
      ],
    }),
  },
  {
    description: "a device that is answered at another MAC than it sends from",
    make: (f) => {
      const steps = (tags: Tag[], inner: Tag[]): Step[] => [
        { at: "uplink_a", packet: cu(f, { tags, from: MAC.unknown }), reason: "refresh" },
        {
          at: "uplink_b",
          packet: cu(f, { tags: inner, from: MAC.unknown }),
          reason: "learned_below",
          flow: { lastHop: { ...A, tags } },
        },
      ];
      return {
        tuple: talk.udpTuple(f),
        given: (world) => {
          onTopOfA(dot1q)(world);
          const reference = world.putLastHop(5, { ...A, tags: [dot1q] });
          world.addLastHopKey(5, { port: "uplink_a", mac: MAC.unknown, tags: [dot1q] });
          world.putFlow(talk.udpTuple(f), { last_hop: reference, state: 4, vm: VM1 });
        },
        steps: steps([dot1q], []),
      };
    },
  },
  {
    description: "a device behind a bridge that is answered at another MAC than it sends from",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      given: (world) => {
        world.changeInterface("uplink_a", { l3_ifindex: IFINDEX.uplink_b });
        world.changeInterface("uplink_b", above(0));
        const reference = world.putLastHop(5, A);
        world.addLastHopKey(5, { port: "uplink_a", mac: MAC.unknown });
        world.putFlow(talk.udpTuple(f), { last_hop: reference, state: 4, vm: VM1 });
      },
      steps: [
        { at: "uplink_a", packet: cu(f, { from: MAC.unknown }), reason: "refresh" },
        {
          at: "uplink_b",
          packet: cu(f, { from: MAC.unknown }),
          reason: "learned_below",
          flow: { lastHop: A },
        },
      ],
    }),
  },
  {
    description: "another MAC is not what was learned below, nor another tag, nor one less",
    make: (f) => {
      const clear: Step["before"] = (world) => world.deleteFlow(talk.udpTuple(f));
      const anew = (steps: Step[]): Step[] => [{ ...steps[0]!, before: clear }, ...steps.slice(1)];
      return {
        tuple: talk.udpTuple(f),
        given: onTopOfA(dot1q),
        steps: [
          ...anew(seenAnew(f, [dot1q], [], MAC.deviceC)),
          ...anew(seenAnew(f, [{ ...dot1q, vid: 11 }], [])),
          ...anew(seenAnew(f, [{ ...dot1q, proto: ETH_P.qinq }], [])),
          ...anew(seenAnew(f, [], [])),
          ...anew(seenAnew(f, [dot1q], [dot1q])),
          ...anew(seenAnew(f, [dot1q, qinq], [])),
        ],
      };
    },
  },
  {
    description: "without the flag, what is on top learns for itself",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      given: (world) =>
        world.changeInterface("uplink_b", {
          ...above(IFINDEX.uplink_a, dot1q),
          flags: INTERFACE_FLAG.EXCLUDES,
        }),
      steps: seenAnew(f, [dot1q], []),
    }),
  },
  {
    description: "what is beneath is no longer attached: the upper one learns",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      given: onTopOfA(dot1q),
      steps: [
        { at: "uplink_a", packet: cu(f, { tags: [dot1q] }), reason: "learn" },
        { at: "uplink_b", packet: cu(f), reason: "learned_below" },
        {
          before: (world) => {
            world.map("interfaces").delete(u32(IFINDEX.uplink_a));
          },
          at: "uplink_b",
          packet: cu(f),
          reason: "relearn",
          flow: { lastHop: A_ON_TOP },
        },
      ],
    }),
  },
  {
    description: "what is beneath never learned it: the upper one does",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: onTopOfA(dot1q),
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { tags: [dot1q], to: MAC.unknown } }),
          reason: "not_for_vm",
        },
        { at: "uplink_b", packet: c(f, "S"), reason: "learn", flow: { lastHop: A_ON_TOP } },
        {
          at: "uplink_a",
          packet: c(f, "A", { frame: { tags: [dot1q], to: MAC.unknown } }),
          reason: "not_for_vm",
        },
        { at: "uplink_b", packet: c(f, "A"), reason: "refresh", flow: { lastHop: A_ON_TOP } },
      ],
    }),
  },
  {
    description: "zones keep their flows apart, also on top of each other",
    make: (f) => {
      const zone = { ...talk.tcpTuple(f), zone: 7 };
      return {
        tuple: zone,
        given: (world) => {
          world.changeInterface("uplink_z", above(IFINDEX.uplink_a, dot1q));
          world.addVm(MAC.vm1, "tap_z", 9, 7);
        },
        steps: [
          {
            at: "uplink_a",
            packet: c(f, "S", { frame: { tags: [dot1q] } }),
            reason: "learn",
            tuple: talk.tcpTuple(f),
            flow: { lastHop: { ...A, tags: [dot1q] } },
          },
          {
            at: "uplink_z",
            packet: c(f, "S"),
            reason: "learn",
            flow: { lastHop: { ...A, port: "uplink_z" } },
          },
          {
            at: "uplink_a",
            packet: c(f, "A", { frame: { tags: [dot1q] } }),
            reason: "refresh",
            tuple: talk.tcpTuple(f),
          },
          { at: "uplink_z", packet: c(f, "A"), reason: "refresh" },
        ],
      };
    },
  },
  ...(
    [
      [2, "learned_below"],
      [3, "learned_below"],
      [4, "relearn"],
    ] as const
  ).map(
    ([depth, reason]): Row => ({
      description: `${depth} interfaces on top of each other: ${reason === "relearn" ? "further than is looked" : "learned once"}`,
      make: (f) => {
        const ports = (["tap_2", "uplink_z", "tap_z", "uplink_b"] as const).slice(-depth);
        return {
          tuple: talk.udpTuple(f),
          given: (world) => chain(world, ports),
          steps: [
            { at: "uplink_a", packet: cu(f), reason: "learn" },
            {
              at: "uplink_b",
              packet: cu(f),
              reason,
              flow: { lastHop: reason === "relearn" ? A_ON_TOP : A },
            },
          ],
        };
      },
    }),
  ),
  {
    description: "an interface that is said to be beneath itself is no loop",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      given: (world) => world.changeInterface("uplink_b", above(IFINDEX.uplink_b)),
      steps: [
        { at: "uplink_b", packet: cu(f, talk.viaB), reason: "learn", flow: { lastHop: B } },
        // Its own requests are its own.
        { at: "uplink_b", packet: cu(f, talk.viaB), reason: "refresh", flow: { lastHop: B } },
        { at: "uplink_a", packet: cu(f), reason: "relearn", flow: { lastHop: A } },
        { at: "uplink_b", packet: cu(f, talk.viaB), reason: "relearn", flow: { lastHop: B } },
      ],
    }),
  },
  {
    description: "a request that moved below is followed on top",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      given: onTopOfA(dot1q),
      steps: [
        { at: "uplink_a", packet: cu(f, { tags: [dot1q] }), reason: "learn" },
        { at: "uplink_b", packet: cu(f), reason: "learned_below" },
        { at: "uplink_a", packet: cu(f, { tags: [dot1q], from: MAC.deviceC }), reason: "relearn" },
        {
          at: "uplink_b",
          packet: cu(f, { from: MAC.deviceC }),
          reason: "learned_below",
          flow: { lastHop: { ...C, tags: [dot1q] } },
        },
        { at: "tap_1", packet: vu(f), reason: "redirect", to: { ...C, tags: [dot1q] } },
      ],
    }),
  },
  {
    description: "what the VM opened is answered on top as below",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: onTopOfA(dot1q),
      steps: [
        { at: "tap_1", packet: v(f, "S"), reason: "local_origin" },
        { at: "uplink_a", packet: c(f, "SA", { frame: { tags: [dot1q] } }), reason: "answer" },
        {
          at: "uplink_b",
          packet: c(f, "SA"),
          reason: "answer",
          flow: { lastHop: null, flags: ["LOCAL_ORIGIN", "ANSWERED"] },
        },
      ],
    }),
  },
  {
    description: "the MAC of the bridge is the host's: routed requests are learned at the port",
    make: (f) => ({
      tuple: { ...talk.udpTuple(f), local: f.routedVm },
      given: (world) => {
        const host_mac = macBytes("02:00:00:00:0b:01");
        world.changeInterface("uplink_a", { host_mac });
        world.changeInterface("uplink_b", { ...above(IFINDEX.uplink_a), host_mac, mac: host_mac });
      },
      steps: (["uplink_a", "uplink_b"] as const).map(
        (at): Step => ({
          at,
          packet: cu(f, { to: "02:00:00:00:0b:01", destination: f.routedVm }),
          reason: at === "uplink_a" ? "learn" : "learned_below",
          flow: { lastHop: A },
        }),
      ),
    }),
  },
];
