// SPDX-License-Identifier: Apache-2.0
// Flows of services: what promotes and what moves them, and what is left alone.

import { describe } from "vitest";
import { INTERFACE_FLAG } from "../../src/abi/layout.gen.ts";
import { PORTS } from "./support/devices.ts";
import { useWorld, world } from "./support/fixture.ts";
import { icmpError, ipOf } from "./support/packet.ts";
import { type Row, testRows } from "./support/rows.ts";
import { MAC, reply, request } from "./support/scene.ts";
import { expectCounts, h, handed, opening, passed, replied, tcpCase } from "./support/serviceSteps.ts";
import { SERVICE, serve, servicesOf, TO_HOST, TO_HOST_B, TO_VM1, TO_VM2 } from "./support/services.ts";
import * as talk from "./support/talk.ts";
import { A, B, CLIENT_ISN, c, ce, cu, VM1, VM2, v, vu } from "./support/talk.ts";
import { u32 } from "./support/world.ts";

useWorld();

const { tcpTuple, udpTuple } = talk;

const promotion: Row[] = [
  {
    description: "UDP: not before the VM replied, however many requests come",
    make: (f) => ({
      tuple: udpTuple(f),
      given: serve(f),
      steps: [
        handed(cu(f, TO_HOST), "learn", TO_VM1),
        handed(cu(f, TO_HOST), "deliver", TO_VM1, { flow: { tier: "embryonic", vm: VM1 } }),
        handed(cu(f, TO_HOST), "deliver", TO_VM1, { flow: { tier: "embryonic", flags: ["SERVICE"] } }),
        replied(vu(f), { flow: { tier: "embryonic", flags: ["ANSWERED", "SERVICE"] } }),
        handed(cu(f, TO_HOST), "promote", TO_VM1, { flow: { tier: "established" } }),
      ],
    }),
  },
  {
    description: "the VM's ICMP error proves nothing",
    make: (f) => ({
      tuple: udpTuple(f),
      given: serve(f),
      steps: [
        handed(cu(f, TO_HOST), "learn", TO_VM1),
        replied(reply(f, icmpError(f.version, "unreachable", ipOf(cu(f)))), {
          flow: { tier: "embryonic", flags: ["SERVICE"] },
        }),
        handed(cu(f, TO_HOST), "deliver", TO_VM1, { flow: { tier: "embryonic" } }),
      ],
    }),
  },
  {
    description: "a connection from its middle: not before the VM replied; an RST does not help",
    make: (f) =>
      tcpCase(f, [
        handed(h(f, "PA"), "learn", TO_VM1, { flow: { state: "new", flags: ["PICKUP", "SERVICE"] } }),
        handed(h(f, "R"), "deliver", TO_VM1, { flow: { tier: "embryonic", state: "closed" } }),
        handed(h(f, "PA"), "deliver", TO_VM1, { flow: { tier: "embryonic" } }),
        handed(h(f, "FA"), "deliver", TO_VM1, { flow: { tier: "embryonic" } }),
        replied(v(f, "A")),
        handed(h(f, "PA"), "promote", TO_VM1, { flow: { tier: "established" } }),
      ]),
  },
  {
    description: "TCP: an ACK before the SYN-ACK, and one of another number, prove nothing",
    make: (f) =>
      tcpCase(f, [
        handed(h(f, "S"), "learn", TO_VM1),
        handed(h(f, "A"), "deliver", TO_VM1, { flow: { tier: "embryonic" } }),
        handed(h(f, "R"), "deliver", TO_VM1, { flow: { tier: "embryonic" } }),
        replied(v(f, "SA")),
        handed(h(f, "A", { ack: 1 }), "deliver", TO_VM1, { flow: { tier: "embryonic" } }),
        handed(h(f, "A"), "promote", TO_VM1),
      ]),
  },
];

const moving: Row[] = [
  {
    description: "a request from another last hop moves the flow, and is handed to the same VM",
    make: (f) =>
      tcpCase(f, [
        ...opening(f),
        handed(h(f, "PA", { frame: TO_HOST_B }), "relearn", TO_VM1, {
          at: "uplink_b",
          flow: { lastHop: B, vm: VM1 },
        }),
        { at: "tap_1", packet: v(f, "PA"), reason: "redirect", to: B },
        // Addressed to another VM's MAC: the service says whose it is.
        handed(c(f, "PA", { frame: talk.toVm2 }), "relearn", TO_VM1, { flow: { lastHop: A, vm: VM1 } }),
      ]),
  },
  {
    description: "one that may not move is handed to its VM all the same",
    make: (f) => {
      const byB = (flags: string) => h(f, flags, { frame: TO_HOST_B });
      const stays = { at: "uplink_b", flow: { lastHop: A, vm: VM1 } } as const;
      return tcpCase(f, [
        ...opening(f),
        handed(byB("PA"), "relearn_off", TO_VM1, {
          ...stays,
          before: (world) => world.changeInterface("uplink_b", { flags: INTERFACE_FLAG.RELEARN_NEVER }),
        }),
        handed(byB("PA"), "unknown_device", TO_VM1, {
          ...stays,
          before: (world) => world.changeInterface("uplink_b", { flags: INTERFACE_FLAG.LEARN_DEVICES }),
        }),
        handed(byB("PA"), "last_hop_budget", TO_VM1, {
          ...stays,
          before: (world) => {
            world.changeInterface("uplink_b", { flags: 0 });
            world.put("budgets", u32(PORTS.uplink_b.slot), "budget", { last_hops_max: 0 });
          },
        }),
        handed(byB("PA"), "relearn", TO_VM1, {
          at: "uplink_b",
          before: (world) => world.put("budgets", u32(PORTS.uplink_b.slot), "budget", { last_hops_max: 9 }),
        }),
        handed(h(f, "PA"), "relearn_damped", TO_VM1, {
          before: (world) => world.changeControl({ relearn_damping: 1000 }),
          flow: { lastHop: B },
        }),
        // What moves nothing, and may be anybody's, is for the VM to judge.
        handed(h(f, "RA"), "deliver", TO_VM1, { flow: { lastHop: B, state: "established" } }),
      ]);
    },
  },
];

const leftAlone: Row[] = [
  {
    description:
      "nothing is learned, nothing handed on: excluded, blocked, a VM's MAC, no MAC, in its middle",
    make: (f) =>
      tcpCase(f, [
        passed(h(f, "S", { frame: { from: MAC.vm2 } }), "source_vm", { flow: null }),
        passed(h(f, "S", { frame: { from: PORTS.uplink_a.mac } }), "source_mac", { flow: null }),
        ...(["SA", "R", "RA"] as const).map((flags) => passed(h(f, flags), "not_request", { flow: null })),
        passed(ce(f, "reply", TO_HOST), "not_request"),
        passed(h(f, "PA"), "pickup_off", {
          before: (world) => world.changeInterface("uplink_a", { flags: INTERFACE_FLAG.PICKUP_NO }),
          flow: null,
        }),
        passed(h(f, "S"), "port_blocked", {
          before: (world) => world.changeInterface("uplink_a", { flags: INTERFACE_FLAG.PORT_BLOCKED }),
          flow: null,
        }),
        passed(h(f, "S"), "unknown_device", {
          before: (world) => world.changeInterface("uplink_a", { flags: INTERFACE_FLAG.LEARN_DEVICES }),
          flow: null,
        }),
        passed(h(f, "S"), "excluded", {
          before: (world) => world.exclude("uplink_a", [{ port_first: 80, port_last: 80 }]),
          flow: null,
          check: (world) => expectCounts(servicesOf(world).counted(), {}),
        }),
      ]),
  },
  {
    description: "of a live flow as well",
    make: (f) =>
      tcpCase(f, [
        ...opening(f),
        passed(h(f, "PA", { frame: { from: MAC.vm2 } }), "source_vm"),
        passed(h(f, "PA"), "port_blocked", {
          before: (world) => world.changeInterface("uplink_a", { flags: INTERFACE_FLAG.PORT_BLOCKED }),
        }),
        passed(h(f, "RA"), "port_blocked"),
        passed(request(f, icmpError(f.version, "timeExceeded", ipOf(v(f, "PA"))), TO_HOST), "port_blocked"),
        passed(h(f, "PA", { frame: TO_HOST_B }), "port_blocked", {
          at: "uplink_b",
          before: (world) => world.changeInterface("uplink_b", { flags: INTERFACE_FLAG.PORT_BLOCKED }),
        }),
        passed(h(f, "PA"), "excluded", {
          before: (world) => world.exclude("uplink_a", [{ port_first: 80, port_last: 80 }]),
        }),
        passed(h(f, "PA"), "bypass", { before: (world) => world.changeControl({ bypass: 1 }) }),
        passed(v(f, "PA"), "bypass", { at: "tap_1" }),
      ]),
  },
  {
    description: "while no VM is in a cell services are not looked at",
    make: (f) =>
      tcpCase(
        f,
        [
          passed(h(f, "S"), "not_for_vm", { flow: null }),
          passed(h(f, "S", { frame: { destination: f.routedVm } }), "learn", {
            tuple: { ...tcpTuple(f), local: f.routedVm },
            flow: { vm: 0, flags: [] },
          }),
          passed(c(f, "S"), "learn", { flow: { vm: 0, flags: [] } }),
          replied(v(f, "SA"), { flow: { vm: VM1, flags: [] } }),
          passed(c(f, "A"), "promote"),
        ],
        (world) => {
          serve(f)(world);
          servicesOf(world).putKey(SERVICE, { prefix: f.routedVm, proto: 6 });
          world.changeControl({ vm_cells: 0 });
        },
      ),
  },
  {
    description: "while tables are exchanged a connection may still be on its way from the others: it waits",
    make: (f) => {
      const data = passed(h(f, "PA"), "vm_held", {
        before: (world) => world.changeControl({ migrating: 1 }),
        flow: null,
        check: (world) => expectCounts(servicesOf(world).counted(), {}),
      });
      return tcpCase(f, [
        data,
        passed(c(f, "PA", { destinationPort: 81 }), "learn", { tuple: tcpTuple(f, { localPort: 81 }) }),
        handed(cu(f, TO_HOST), "learn", TO_VM1, { tuple: udpTuple(f) }),
        handed(h(f, "S"), "learn", TO_VM2),
        handed(h(f, "PA"), "deliver", TO_VM2),
      ]);
    },
  },
  {
    description: "nor is the VM of a live flow",
    make: (f) =>
      tcpCase(f, [
        ...opening(f),
        passed(h(f, "PA"), "refresh", {
          before: (world) => world.changeControl({ vm_cells: 0 }),
          flow: { vm: VM1, flags: ["ANSWERED", "SERVICE"] },
        }),
        replied(v(f, "PA")),
        passed(request(f, icmpError(f.version, "timeExceeded", ipOf(v(f, "PA"))), TO_HOST), "quoted"),
      ]),
  },
  {
    description: "a flow that was there before the service stays as it is",
    make: (f) =>
      tcpCase(
        f,
        [
          passed(c(f, "PA"), "refresh", { flow: { vm: VM2, flags: [] } }),
          handed(c(f, "S", { seq: CLIENT_ISN + 5 }), "restart", TO_VM1, {
            flow: { vm: VM1, flags: ["SERVICE"] },
          }),
        ],
        (world) => {
          serve(f)(world);
          world.putFlow(tcpTuple(f), { last_hop: world.putLastHop(5, A), state: 4, vm: VM2 });
        },
      ),
  },
];

describe("both directions are proven", () => testRows(() => world, promotion));
describe("another last hop", () => testRows(() => world, moving));
describe("left alone", () => testRows(() => world, leftAlone));
