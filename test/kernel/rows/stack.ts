// SPDX-License-Identifier: Apache-2.0
// Replies that the host's own routing sends: addressed to the host, marked, and otherwise as the VM sent them.

import { INTERFACE_FLAG, LAST_HOP_DROP, LAST_HOP_ROUTE, POLICY } from "../../../src/abi/layout.gen.ts";
import { macBytes } from "../support/bytes.ts";
import { IFINDEX, PORTS } from "../support/devices.ts";
import type { Row, Step } from "../support/rows.ts";
import { type Family, MAC } from "../support/scene.ts";
import * as talk from "../support/talk.ts";
import { A, B, c, cu, VM1, v, vu } from "../support/talk.ts";
import { type LastHopSpec, u32, type World } from "../support/world.ts";
import { behind, MARK } from "./labels.ts";

const HOST_TAP = PORTS.tap_1.mac;

const viaStack =
  (mark = 0, more = 0) =>
  (world: World): void =>
    world.changeInterface("uplink_a", { flags: INTERFACE_FLAG.VIA_STACK | more, mark });

const throughStack = (mark?: number): LastHopSpec => ({ ...A, kind: "stack", ...(mark ? { mark } : {}) });

/** An established flow through a record with index 5, generation 3. */
const established = (f: Family, last: LastHopSpec) => (world: World) => {
  const reference = world.putLastHop(5, last, 3);
  world.putFlow(talk.tcpTuple(f), { last_hop: reference, state: 4, vm: VM1 });
};

const observing = (world: World) => world.changeInterface("tap_1", { policy: POLICY.OBSERVE });

/** To what the guest has as its gateway on a bridged host, and on a routed one. */
const GATEWAYS = [
  ["bridged", MAC.deviceB],
  ["routed", HOST_TAP],
] as const;

function conversation(f: Family, to: string, mark: number | undefined): Step[] {
  return [
    { at: "uplink_a", packet: c(f, "S"), reason: "learn", flow: { lastHop: throughStack(mark) } },
    { at: "tap_1", packet: v(f, "SA", { frame: { to } }), reason: "stack", mark: mark ?? 0 },
    {
      at: "uplink_a",
      packet: c(f, "A"),
      reason: "promote",
      flow: { tier: "established", state: "established", lastHop: throughStack(mark), vm: VM1 },
    },
    {
      at: "tap_1",
      packet: v(f, "PA", { frame: { to }, payload: Buffer.alloc(3000) }),
      options: { gsoSize: 1448, gsoSegments: 3 },
      reason: "stack",
      mark: mark ?? 0,
    },
  ];
}

const packetsBack = (count: number) => (world: World) => {
  const { reply_packets } = world.stats(5);
  if (reply_packets !== count) {
    throw new Error(`${reply_packets} packets counted for the last hop`);
  }
};

export const stackRows: Row[] = [
  ...GATEWAYS.flatMap(([kind, to]) =>
    [0x10, undefined].map(
      (mark): Row => ({
        description: `via stack, ${kind} host, ${mark ? "a mark" : "no mark"}: to the host's MAC, nothing else changed`,
        make: (f) => ({
          tuple: talk.tcpTuple(f),
          given: viaStack(mark),
          steps: conversation(f, to, mark),
        }),
      }),
    ),
  ),
  {
    description: "a mark takes the place of what the packet had; none leaves it",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: established(f, throughStack(0xffffffff)),
      steps: [
        { at: "tap_1", packet: v(f, "A"), options: { mark: 5 }, reason: "stack", mark: 0xffffffff },
        {
          before: established(f, throughStack()),
          at: "tap_1",
          packet: v(f, "A"),
          options: { mark: 5 },
          reason: "stack",
          mark: 5,
        },
      ],
    }),
  },
  {
    description: "what is redirected or passes keeps its mark, whatever the uplink has",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        world.changeInterface("uplink_a", { mark: 9 });
        established(f, A)(world);
      },
      steps: [
        { at: "tap_1", packet: v(f, "A"), options: { mark: 5 }, reason: "redirect", to: A },
        {
          at: "tap_1",
          packet: vu(f),
          options: { mark: 5 },
          reason: "local_origin",
          tuple: talk.udpTuple(f),
        },
      ],
    }),
  },
  {
    description: "behind a bridge the host's MAC is the bridge's",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        world.changeInterface("tap_1", { host_mac: macBytes(PORTS.bridge.mac), l3_ifindex: IFINDEX.bridge });
        established(f, throughStack(MARK))(world);
      },
      steps: [
        {
          at: "tap_1",
          packet: v(f, "A"),
          reason: "stack",
          mark: MARK,
          out: v(f, "A", { frame: { to: PORTS.bridge.mac } }),
        },
      ],
    }),
  },
  {
    description: "the TTL is the host's to decrement, and its to answer for",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: established(f, throughStack(MARK)),
      steps: GATEWAYS.flatMap(([, to]) =>
        [64, 1].map(
          (ttl): Step => ({
            at: "tap_1",
            packet: v(f, "A", { frame: { to, ttl } }),
            reason: "stack",
            mark: MARK,
          }),
        ),
      ),
    }),
  },
  {
    description: "a VM's tags stay: the host's routing is behind them as for any packet of the VM",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: established(f, { ...throughStack(MARK), tags: [{ vid: 10 }] }),
      steps: [
        { at: "tap_1", packet: v(f, "A", { frame: { tags: [{ vid: 33 }] } }), reason: "stack", mark: MARK },
        { at: "tap_1", packet: v(f, "A"), reason: "stack", mark: MARK },
      ],
    }),
  },
  {
    description: "what goes through the stack counts for its last hop",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: established(f, throughStack(MARK)),
      steps: [
        { at: "tap_1", packet: v(f, "A"), reason: "stack", mark: MARK, check: packetsBack(1) },
        { at: "tap_1", packet: v(f, "PA"), reason: "stack", mark: MARK, check: packetsBack(2) },
      ],
    }),
  },
  {
    description: "labels have their own mark, also where all goes through the stack",
    make: (f) => {
      const labels = [{ label: 100 }];
      return {
        tuple: talk.tcpTuple(f),
        given: (world) => {
          viaStack(0x10)(world);
          world.putLabelStack([100], MARK);
        },
        steps: [
          {
            at: "uplink_a",
            packet: c(f, "PA", { frame: { labels } }),
            reason: "learn",
            flow: { lastHop: behind([100]) },
          },
          { at: "tap_1", packet: v(f, "A"), reason: "stack", mark: MARK },
          { at: "uplink_a", packet: c(f, "PA"), reason: "relearn", flow: { lastHop: throughStack(0x10) } },
          { at: "tap_1", packet: v(f, "A"), reason: "stack", mark: 0x10 },
        ],
      };
    },
  },
  {
    description: "observe: a mark changes the way, and so does the host's routing where it bridges",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        observing(world);
        established(f, throughStack(MARK))(world);
      },
      steps: [
        { at: "tap_1", packet: v(f, "A"), reason: "observe_change" },
        { at: "tap_1", packet: v(f, "A", { frame: { to: MAC.deviceA } }), reason: "observe_change" },
        { at: "tap_1", packet: v(f, "A", { frame: { to: HOST_TAP } }), reason: "observe_change" },
        {
          before: established(f, throughStack()),
          at: "tap_1",
          packet: v(f, "A"),
          options: { mark: 5 },
          reason: "observe_change",
        },
        { at: "tap_1", packet: v(f, "A", { frame: { to: HOST_TAP } }), reason: "observe_same" },
      ],
    }),
  },
  {
    description: "a device that is down, an interface that is gone: no way through the stack either",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: established(f, throughStack(MARK)),
      steps: [
        {
          before: (world) => world.setAlias(5, ((3 << 20) | LAST_HOP_ROUTE) >>> 0),
          at: "tap_1",
          packet: v(f, "A"),
          reason: "device_down",
        },
        {
          before: (world) => world.setAlias(5, ((3 << 20) | LAST_HOP_DROP) >>> 0),
          at: "tap_1",
          packet: v(f, "A"),
          reason: "device_drop",
        },
        {
          before: (world) => {
            world.setAlias(5, ((3 << 20) | 5) >>> 0);
            world.map("egress_devices").delete(u32(PORTS.uplink_a.slot));
          },
          at: "tap_1",
          packet: v(f, "A"),
          reason: "interface_gone",
        },
      ],
    }),
  },
  {
    description: "a last hop behind the tap itself is a hairpin through the stack too",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: established(f, { ...throughStack(MARK), port: "tap_1", mac: MAC.deviceC }),
      steps: [{ at: "tap_1", packet: v(f, "A"), reason: "hairpin" }],
    }),
  },
  {
    description: "a flow may move between the stack and a redirect",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      given: viaStack(0x10),
      steps: [
        { at: "uplink_a", packet: cu(f), reason: "learn", flow: { lastHop: throughStack(0x10) } },
        { at: "tap_1", packet: vu(f), reason: "stack", mark: 0x10 },
        { at: "uplink_b", packet: cu(f, talk.viaB), reason: "relearn", flow: { lastHop: B } },
        { at: "tap_1", packet: vu(f), reason: "redirect", to: B },
        { at: "uplink_a", packet: cu(f), reason: "relearn", flow: { lastHop: throughStack(0x10) } },
        { at: "tap_1", packet: vu(f), reason: "stack", mark: 0x10 },
      ],
    }),
  },
  {
    description: "aliases lead to and from a record through the stack",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        established(f, throughStack(MARK))(world);
        world.putLastHop(6, B, 9);
      },
      steps: [
        { at: "tap_1", packet: v(f, "A"), reason: "stack", mark: MARK },
        {
          before: (world) => world.setAlias(5, ((3 << 20) | 6) >>> 0),
          at: "tap_1",
          packet: v(f, "A"),
          reason: "redirect",
          to: B,
        },
      ],
    }),
  },
];
