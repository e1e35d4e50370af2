// SPDX-License-Identifier: Apache-2.0
// 802.1Q and QinQ in the frame: parsed, remembered, given back. (Test runs cannot set or show VLAN metadata:
// the outermost tag that reply_tc pushes is not in the packet out. wire.test.ts covers metadata on both sides.)

import { ETH_P } from "../support/packet.ts";
import type { Row } from "../support/rows.ts";
import { MAC } from "../support/scene.ts";
import * as talk from "../support/talk.ts";
import { A, B, c, VM1, v } from "../support/talk.ts";

const dot1q = [{ vid: 10 }];
const qinq = [{ proto: ETH_P.qinq, vid: 100 }, { vid: 10 }];
const doubled = [{ vid: 100 }, { vid: 10 }];

export const tagRows: Row[] = [
  {
    description: "a tagged request: the tag is part of the last hop",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { tags: dot1q } }),
          reason: "learn",
          flow: { lastHop: { ...A, tags: dot1q } },
        },
        { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: { ...A, tags: dot1q } },
        { at: "uplink_a", packet: c(f, "A", { frame: { tags: dot1q } }), reason: "promote" },
      ],
    }),
  },
  ...(
    [
      ["802.1ad and 802.1Q", qinq],
      ["802.1Q twice", doubled],
    ] as const
  ).map(
    ([name, tags]): Row => ({
      description: `two tags, ${name}: both are remembered and pushed in their order`,
      make: (f) => ({
        tuple: talk.tcpTuple(f),
        steps: [
          {
            at: "uplink_a",
            packet: c(f, "S", { frame: { tags: [...tags] } }),
            reason: "learn",
            flow: { lastHop: { ...A, tags: [...tags] } },
          },
          {
            at: "tap_1",
            packet: v(f, "SA"),
            reason: "redirect",
            to: { ...A, tags: [...tags] },
            // The outer one is in the metadata.
            out: v(f, "SA", { frame: { to: MAC.deviceA, tags: [tags[1]!] } }),
          },
        ],
      }),
    }),
  ),
  {
    description: "the same device with another tag, or without, is another last hop",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "PA", { frame: { tags: dot1q } }), reason: "learn" },
        {
          at: "uplink_a",
          packet: c(f, "PA", { frame: { tags: [{ vid: 20 }] } }),
          reason: "relearn",
          flow: { lastHop: { ...A, tags: [{ vid: 20 }] } },
        },
        {
          at: "uplink_a",
          packet: c(f, "PA", { frame: { tags: [{ proto: ETH_P.qinq, vid: 20 }] } }),
          reason: "relearn",
          flow: { lastHop: { ...A, tags: [{ proto: ETH_P.qinq, vid: 20 }] } },
        },
        { at: "uplink_a", packet: c(f, "PA"), reason: "relearn", flow: { lastHop: A } },
        {
          at: "tap_1",
          packet: v(f, "A"),
          reason: "redirect",
          to: A,
          out: v(f, "A", { frame: { to: MAC.deviceA } }),
        },
      ],
    }),
  },
  {
    description: "priority may change from packet to packet and is no other last hop, nor is a priority tag",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "PA", { frame: { tags: dot1q } }), reason: "learn" },
        {
          at: "uplink_a",
          packet: c(f, "PA", { frame: { tags: [{ vid: 10, priority: 5 }] } }),
          reason: "refresh",
          flow: { lastHop: { ...A, tags: dot1q } },
        },
        {
          at: "uplink_b",
          packet: c(f, "PA", { frame: { from: MAC.deviceB } }),
          reason: "relearn",
          flow: { lastHop: B },
        },
        {
          at: "uplink_b",
          packet: c(f, "PA", { frame: { from: MAC.deviceB, tags: [{ vid: 0, priority: 6 }] } }),
          reason: "refresh",
          flow: { lastHop: B },
        },
      ],
    }),
  },
  {
    description: "the tags of a VM's frame give way to those of the last hop",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        const reference = world.putLastHop(5, A);
        world.putFlow(talk.tcpTuple(f), { last_hop: reference, state: 4, vm: VM1 });
      },
      steps: [
        {
          at: "tap_1",
          packet: v(f, "A", { frame: { tags: [{ vid: 33 }] } }),
          reason: "redirect",
          to: A,
          out: v(f, "A", { frame: { to: MAC.deviceA } }),
        },
        {
          at: "tap_1",
          packet: v(f, "A", { frame: { tags: qinq } }),
          reason: "redirect",
          to: A,
          out: v(f, "A", { frame: { to: MAC.deviceA } }),
        },
        {
          at: "tap_1",
          packet: v(f, "A", { frame: { tags: [{ vid: 0, priority: 3 }] } }),
          reason: "redirect",
          to: A,
          out: v(f, "A", { frame: { to: MAC.deviceA } }),
        },
      ],
    }),
  },
  {
    description: "a tagged frame of a VM to a tagged last hop leaves with that one's tag only",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        const reference = world.putLastHop(5, { ...A, tags: dot1q });
        world.putFlow(talk.tcpTuple(f), { last_hop: reference, state: 4, vm: VM1 });
      },
      steps: [
        {
          at: "tap_1",
          packet: v(f, "A", { frame: { tags: [{ vid: 33 }] } }),
          reason: "redirect",
          to: { ...A, tags: dot1q },
          out: v(f, "A", { frame: { to: MAC.deviceA } }),
        },
      ],
    }),
  },
  {
    description: "three tags are too many: the packet passes",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { tags: [...qinq, { vid: 3 }] } }),
          reason: "vlan_depth",
          flow: null,
        },
        {
          at: "tap_1",
          packet: v(f, "S", { frame: { tags: [...qinq, { vid: 3 }] } }),
          reason: "vlan_depth",
          flow: null,
        },
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { tags: [...qinq, { vid: 3 }, { vid: 4 }] } }),
          reason: "vlan_depth",
          flow: null,
        },
      ],
    }),
  },
];
