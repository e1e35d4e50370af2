// SPDX-License-Identifier: Apache-2.0
// What the tap's program does with a packet of a known flow: VM, policy, alias and generation, MACs and TTL.

import { LAST_HOP_DROP, LAST_HOP_ROUTE, POLICY } from "../../../src/abi/layout.gen.ts";
import { macBytes } from "../support/bytes.ts";
import { decodeFrame } from "../support/decode.ts";
import { IFINDEX, IFINDEX_GONE, PORTS } from "../support/devices.ts";
import { arp, ethernet } from "../support/packet.ts";
import type { Row, Step } from "../support/rows.ts";
import { type Family, type FrameOptions, MAC } from "../support/scene.ts";
import * as talk from "../support/talk.ts";
import { A, B, c, cu, VM1, VM2, v, viaB, vu } from "../support/talk.ts";
import { u32, type World } from "../support/world.ts";
import { datagrams, handshake } from "./moving.ts";

const HOST_TAP = PORTS.tap_1.mac;

/** An established flow through the record that index 5, generation 3 names. */
function given(f: Family, last = A) {
  return (world: World): void => {
    const reference = world.putLastHop(5, last, 3);
    world.putFlow(talk.tcpTuple(f), { last_hop: reference, state: 4, vm: VM1 });
  };
}

function knownVm(mac: string, wanted: { tap: number } | null) {
  return (world: World): void => {
    const vm = world.vm(mac);
    if (vm?.ifindex !== wanted?.tap) {
      throw new Error(`VM ${mac}: ${JSON.stringify(vm)}`);
    }
  };
}

export const replyRows: Row[] = [
  {
    description: "bridged host: only the destination MAC changes; the VM's MAC, the TTL and the rest stay",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: given(f),
      steps: [
        {
          at: "tap_1",
          packet: v(f, "PA", { payload: Buffer.alloc(1000, 7), frame: { ttl: 1 } }),
          reason: "redirect",
          to: A,
          out: v(f, "PA", { payload: Buffer.alloc(1000, 7), frame: { ttl: 1, to: MAC.deviceA } }),
        },
      ],
    }),
  },
  {
    description: "a reply that the guest sent the right way already is redirected all the same",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: given(f),
      steps: [{ at: "tap_1", packet: v(f, "A", { frame: { to: MAC.deviceA } }), reason: "redirect", to: A }],
    }),
  },
  {
    description: "the flow belongs to the VM that first replied; another's replies pass",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        { at: "uplink_a", packet: cu(f), reason: "learn", flow: { vm: 0 } },
        {
          at: "tap_2",
          packet: vu(f, talk.byVm2),
          reason: "redirect",
          to: A,
          flow: { vm: VM2, state: "replied" },
        },
        { at: "tap_1", packet: vu(f), reason: "vm_mismatch", flow: { vm: VM2, state: "replied" } },
        { at: "tap_2", packet: vu(f, talk.byVm2), reason: "redirect", to: A },
      ],
    }),
  },
  {
    description: "another VM cannot close a flow",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: given(f),
      steps: [
        {
          at: "tap_2",
          packet: v(f, "R", { frame: talk.byVm2 }),
          reason: "vm_mismatch",
          flow: { state: "established" },
        },
        {
          at: "tap_2",
          packet: v(f, "FA", { frame: talk.byVm2 }),
          reason: "vm_mismatch",
          flow: { state: "established" },
        },
      ],
    }),
  },
  {
    description: "a VM is known by zone and MAC, not by the interface of its tap: it may move",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: given(f),
      steps: [
        {
          at: "tap_2",
          packet: v(f, "A"),
          reason: "redirect",
          to: A,
          flow: { vm: VM1 },
          check: knownVm(MAC.vm1, { tap: IFINDEX.tap_2 }),
        },
      ],
    }),
  },
  {
    description: "the same MAC in another zone is another VM",
    make: (f) => ({
      tuple: { ...talk.tcpTuple(f), zone: 7 },
      given: (world) => {
        const reference = world.putLastHop(5, { port: "uplink_z", mac: MAC.deviceC });
        world.putFlow({ ...talk.tcpTuple(f), zone: 7 }, { last_hop: reference, state: 4, vm: 3 });
      },
      steps: [
        { at: "tap_z", packet: v(f, "A"), reason: "vm_mismatch" },
        {
          at: "tap_z",
          packet: v(f, "A", { frame: { from: MAC.vmZ } }),
          reason: "redirect",
          to: { port: "uplink_z", mac: MAC.deviceC },
        },
      ],
    }),
  },
  {
    description: "a new VM is entered by its first frame, with an id of its own",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      given: (world) => world.forgetVm(MAC.vm1),
      steps: [
        {
          at: "tap_1",
          packet: ethernet(
            { from: MAC.vm1, to: MAC.deviceB },
            arp("reply", { mac: MAC.vm1, ip: "10.0.0.5" }, { mac: MAC.deviceB, ip: "10.0.0.1" }),
          ),
          reason: "not_ip",
          check: knownVm(MAC.vm1, { tap: IFINDEX.tap_1 }),
        },
        { at: "uplink_a", packet: cu(f), reason: "learn" },
        { at: "tap_1", packet: vu(f), reason: "redirect", to: A, flow: { vm: 101 } },
        { at: "tap_2", packet: vu(f, talk.byVm2), reason: "vm_mismatch", flow: { vm: 101 } },
      ],
    }),
  },
  {
    description: "the budget of a tap bounds new VMs; the packets of one that is not entered pass",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      given: (world) => world.put("budgets", u32(PORTS.tap_1.slot), "budget", { vms_max: 1 }),
      steps: [
        { at: "uplink_a", packet: cu(f), reason: "learn" },
        {
          at: "tap_1",
          packet: vu(f, { from: MAC.unknown }),
          reason: "redirect",
          to: A,
          check: knownVm(MAC.unknown, { tap: IFINDEX.tap_1 }),
        },
        {
          at: "tap_1",
          packet: vu(f, { from: "02:00:00:00:ee:02" }),
          reason: "vm_budget",
          check: knownVm("02:00:00:00:ee:02", null),
        },
        {
          at: "tap_1",
          packet: v(f, "S", { frame: { from: "02:00:00:00:ee:02" } }),
          reason: "vm_budget",
          tuple: talk.tcpTuple(f),
          flow: null,
        },
        { at: "tap_1", packet: vu(f), reason: "vm_mismatch" },
      ],
    }),
  },
  ...(
    [
      ["multicast", "03:00:00:00:01:01"],
      ["zero", MAC.zero],
      ["the host's own", HOST_TAP],
    ] as const
  ).map(
    ([name, from]): Row => ({
      description: `a frame from a tap whose source MAC is ${name} passes and enters no VM`,
      make: (f) => ({
        tuple: talk.tcpTuple(f),
        given: given(f),
        steps: [
          {
            at: "tap_1",
            packet: v(f, "A", { frame: { from } }),
            reason: "source_mac",
            flow: { vm: VM1 },
            check: knownVm(from, null),
          },
          { at: "tap_1", packet: vu(f, { from }), reason: "source_mac", tuple: talk.udpTuple(f), flow: null },
        ],
      }),
    }),
  ),
  {
    description: "policy off: the guest does it itself; nothing is changed and nothing recorded",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => world.changeInterface("tap_1", { policy: POLICY.OFF }),
      steps: [
        { at: "uplink_a", packet: c(f, "S"), reason: "learn" },
        { at: "tap_1", packet: v(f, "SA"), reason: "off", flow: { state: "syn", vm: 0 } },
        { at: "tap_1", packet: vu(f), reason: "off", tuple: talk.udpTuple(f), flow: null },
        {
          at: "tap_1",
          packet: v(f, "S", { frame: { destination: f.client2 } }),
          reason: "off",
          tuple: { ...talk.tcpTuple(f), remote: f.client2 },
          flow: null,
        },
      ],
    }),
  },
  {
    description: "policy off still makes the VM known",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        world.changeInterface("tap_1", { policy: POLICY.OFF });
        world.forgetVm(MAC.vm1);
      },
      steps: [
        { at: "tap_1", packet: v(f, "A"), reason: "off", check: knownVm(MAC.vm1, { tap: IFINDEX.tap_1 }) },
      ],
    }),
  },
  {
    description: "policy observe: counts what would change and what would not, and changes no packet",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        world.changeInterface("tap_1", { policy: POLICY.OBSERVE });
        given(f)(world);
      },
      steps: [
        { at: "tap_1", packet: v(f, "A"), reason: "observe_change" },
        { at: "tap_1", packet: v(f, "A", { frame: { to: MAC.deviceA } }), reason: "observe_same" },
      ],
    }),
  },
  {
    description: "policy observe on a routed host: the route lookup says what would change",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        world.changeInterface("tap_1", { policy: POLICY.OBSERVE });
        given(f)(world);
        const viaBRecord = world.putLastHop(6, B, 1);
        world.putFlow(talk.udpTuple(f), { last_hop: viaBRecord, state: 4, vm: VM1 });
      },
      steps: [
        // The host's default route is device A.
        { at: "tap_1", packet: v(f, "A", { frame: { to: HOST_TAP } }), reason: "observe_same" },
        { at: "tap_1", packet: vu(f, { to: HOST_TAP }), reason: "observe_change", tuple: talk.udpTuple(f) },
      ],
    }),
  },
  {
    description: "policy observe never drops",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        world.changeInterface("tap_1", { policy: POLICY.OBSERVE });
        given(f)(world);
        world.setAlias(5, ((3 << 20) | LAST_HOP_DROP) >>> 0);
      },
      steps: [{ at: "tap_1", packet: v(f, "A"), reason: "observe_change" }],
    }),
  },
  {
    description: "alias: one write repoints every flow of a device to another",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        given(f)(world);
        world.putLastHop(6, B, 9);
      },
      steps: [
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: A },
        {
          before: (world) => world.setAlias(5, ((3 << 20) | 6) >>> 0),
          at: "tap_1",
          packet: v(f, "A"),
          reason: "redirect",
          to: B,
        },
        {
          before: (world) => world.setAlias(5, ((3 << 20) | 5) >>> 0),
          at: "tap_1",
          packet: v(f, "A"),
          reason: "redirect",
          to: A,
        },
      ],
    }),
  },
  {
    description:
      "alias: a device that is down passes to the VM's own choice, or is dropped if that was asked for",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: given(f),
      steps: [
        {
          before: (world) => world.setAlias(5, ((3 << 20) | LAST_HOP_ROUTE) >>> 0),
          at: "tap_1",
          packet: v(f, "A"),
          reason: "device_down",
          flow: { state: "established" },
        },
        {
          before: (world) => world.setAlias(5, ((3 << 20) | LAST_HOP_DROP) >>> 0),
          at: "tap_1",
          packet: v(f, "A"),
          reason: "device_drop",
        },
      ],
    }),
  },
  {
    description: "a mismatch of generations is a miss: the packet passes",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: given(f),
      steps: [
        {
          before: (world) => world.setAlias(5, ((4 << 20) | 5) >>> 0),
          at: "tap_1",
          packet: v(f, "A"),
          reason: "stale_last_hop",
        },
        { before: (world) => world.setAlias(5, 0), at: "tap_1", packet: v(f, "A"), reason: "stale_last_hop" },
        {
          before: (world) => world.setAlias(5, ((4 << 20) | LAST_HOP_DROP) >>> 0),
          at: "tap_1",
          packet: v(f, "A"),
          reason: "stale_last_hop",
        },
      ],
    }),
  },
  {
    description: "a flow that names an index outside of the table passes",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => world.putFlow(talk.tcpTuple(f), { last_hop: (1 << 20) | 50000, state: 4, vm: VM1 }),
      steps: [{ at: "tap_1", packet: v(f, "A"), reason: "stale_last_hop" }],
    }),
  },
  {
    description: "an alias that names an index outside of the table passes",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: given(f),
      steps: [
        {
          before: (world) => world.setAlias(5, ((3 << 20) | 50000) >>> 0),
          at: "tap_1",
          packet: v(f, "A"),
          reason: "stale_last_hop",
        },
      ],
    }),
  },
  {
    description: "an egress interface that is gone, or whose slot is another's now, is never redirected to",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: given(f),
      steps: [
        {
          before: (world) => {
            world.map("egress_devices").delete(u32(PORTS.uplink_a.slot));
            world.clearStats(5);
          },
          at: "tap_1",
          packet: v(f, "A"),
          reason: "interface_gone",
        },
        {
          before: (world) =>
            world.map("egress_devices").update(u32(PORTS.uplink_a.slot), u32(IFINDEX.stranger)),
          at: "tap_1",
          packet: v(f, "A"),
          reason: "interface_gone",
        },
        {
          before: (world) => {
            const record = world.get("last_hops", u32(5), "last_hop")!;
            world.put("last_hops", u32(5), "last_hop", { ...record, ifindex: IFINDEX_GONE });
          },
          at: "tap_1",
          packet: v(f, "A"),
          reason: "interface_gone",
        },
      ],
    }),
  },
  {
    description: "a reply is never sent out of the interface that it came in by",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: given(f, { port: "tap_1", mac: MAC.deviceC }),
      steps: [{ at: "tap_1", packet: v(f, "A"), reason: "hairpin" }],
    }),
  },
  {
    description: "routed host: the source MAC becomes the egress interface's, and the TTL is decremented",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: given(f, B),
      steps: [64, 255, 2].map(
        (ttl): Step => ({
          at: "tap_1",
          packet: v(f, "PA", { payload: Buffer.from("x"), frame: { to: HOST_TAP, ttl } }),
          reason: "redirect",
          to: B,
          out: v(f, "PA", {
            payload: Buffer.from("x"),
            frame: { to: MAC.deviceB, from: PORTS.uplink_b.mac, ttl: ttl - 1 },
          }),
        }),
      ),
    }),
  },
  {
    description: "routed host: the header checksum is right whatever it was",
    families: [4],
    make: (f) => {
      const frame = { to: HOST_TAP, ttl: 64 };
      const packet = (id: number, more: FrameOptions) =>
        v(f, "A", { frame: { ...frame, v4: { id }, ...more } });
      const sum = ~packet(0, {}).readUInt16BE(24) & 0xffff;
      return {
        tuple: talk.tcpTuple(f),
        given: given(f, B),
        // Around every carry that the update can meet, by the identification that gives this checksum.
        steps: [0xfeff, 0xfefe, 0xff00, 0xff01, 0xffff, 0xfffe, 0xfdff, 0xfe00, 0, 1, 0xff, 0x100].map(
          (check): Step => {
            const id = ((~check & 0xffff) - sum + 0xffff) % 0xffff;
            return {
              at: "tap_1",
              packet: packet(id, {}),
              reason: "redirect",
              to: B,
              out: packet(id, { to: MAC.deviceB, from: PORTS.uplink_b.mac, ttl: 63 }),
              check: (_, run) => {
                if (!decodeFrame(run.out).ip!.headerChecksumOk) {
                  throw new Error(`wrong header checksum after 0x${check.toString(16)}`);
                }
              },
            };
          },
        ),
      };
    },
  },
  {
    description: "routed host: with a TTL of 1 the packet goes to the stack",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: given(f, B),
      steps: [
        { at: "tap_1", packet: v(f, "A", { frame: { to: HOST_TAP, ttl: 1 } }), reason: "ttl" },
        { at: "tap_1", packet: v(f, "A", { frame: { to: HOST_TAP, ttl: 0 } }), reason: "ttl" },
      ],
    }),
  },
  {
    description: "routed host behind a bridge: the bridge's MAC is the host's own",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        given(f, B)(world);
        world.changeInterface("tap_1", { host_mac: macBytes(PORTS.bridge.mac), l3_ifindex: IFINDEX.bridge });
      },
      steps: [
        {
          at: "tap_1",
          packet: v(f, "A", { frame: { to: PORTS.bridge.mac } }),
          reason: "redirect",
          to: B,
          out: v(f, "A", { frame: { to: MAC.deviceB, from: PORTS.uplink_b.mac, ttl: 63 } }),
        },
      ],
    }),
  },
  {
    description: "routed host: what was learned there goes back with the MAC of the uplink's IP interface",
    make: (f) => {
      const tuple = { ...talk.tcpTuple(f), local: f.routedVm };
      return {
        tuple,
        given: (world) => world.changeInterface("uplink_a", { host_mac: macBytes("02:00:00:00:0b:01") }),
        steps: [
          {
            at: "uplink_a",
            packet: c(f, "S", { frame: { to: "02:00:00:00:0b:01", destination: f.routedVm } }),
            reason: "learn",
          },
          {
            at: "tap_1",
            packet: v(f, "SA", { frame: { to: HOST_TAP, source: f.routedVm } }),
            reason: "redirect",
            to: A,
            out: v(f, "SA", {
              frame: { to: MAC.deviceA, from: "02:00:00:00:0b:01", source: f.routedVm, ttl: 63 },
            }),
          },
        ],
      };
    },
  },
  {
    description: "a GSO frame is redirected whole and counted once",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: given(f),
      steps: [
        {
          at: "tap_1",
          packet: v(f, "PA", { payload: Buffer.alloc(3000) }),
          options: { gsoSize: 1448, gsoSegments: 3 },
          reason: "redirect",
          to: A,
        },
        {
          at: "tap_1",
          packet: v(f, "PA", { payload: Buffer.alloc(3000), frame: { to: HOST_TAP } }),
          options: { gsoSize: 1448, gsoSegments: 3 },
          reason: "redirect",
          to: A,
          out: v(f, "PA", {
            payload: Buffer.alloc(3000),
            frame: { to: MAC.deviceA, from: PORTS.uplink_a.mac, ttl: 63 },
          }),
        },
      ],
    }),
  },
  {
    description: "what the uplink learned, through both tiers and two devices, is what the tap uses",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...handshake(f),
        ...datagrams(f).map((step) => ({ ...step, tuple: talk.udpTuple(f) })),
        { at: "uplink_b", packet: cu(f, viaB), reason: "relearn", tuple: talk.udpTuple(f) },
        { at: "tap_1", packet: vu(f), reason: "redirect", to: B, tuple: talk.udpTuple(f) },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: A },
      ],
    }),
  },
];
