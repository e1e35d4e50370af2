// SPDX-License-Identifier: Apache-2.0
// A service's flows whose VM is down: they get another VM or wait for it, as the service says.

import { describe, expect } from "vitest";
import { IFINDEX, IFINDEX_GONE, PORTS } from "./support/devices.ts";
import { useWorld, world } from "./support/fixture.ts";
import { type Row, testRows } from "./support/rows.ts";
import { down, expectCounts, h, handed, opening, passed, replied, tcpCase } from "./support/serviceSteps.ts";
import { SERVICE, serve, servicesOf, TO_HOST, TO_VM1, TO_VM2 } from "./support/services.ts";
import * as talk from "./support/talk.ts";
import { A, byVm2, ce, cs, cu, VM_PORT, VM1, VM2, v } from "./support/talk.ts";
import { u32 } from "./support/world.ts";

useWorld();

const { udpTuple, sctpTuple, pingTuple } = talk;

// ---- rebalance --------------------------------------------------------------------------------------

const rebalance: Row[] = [
  {
    description: "rebalance: another VM is chosen, once, and the flow is its from then on",
    make: (f) =>
      tcpCase(f, [
        ...opening(f),
        handed(h(f, "PA"), "deliver", TO_VM2, {
          before: down(VM1),
          flow: { tier: "established", state: "established", vm: VM2, lastHop: A },
          check: (world) => {
            const services = servicesOf(world);
            expectCounts(services.counted(), { flows: 2, rebalanced: 1 });
            expect([VM1, VM2].map((vm) => services.flows(vm))).toEqual([0, 1]);
            expectCounts(services.vmStats(VM2), { flows: 1, request_packets: 1 });
          },
        }),
        handed(h(f, "PA"), "deliver", TO_VM2, { before: (world) => servicesOf(world).setState(VM1, "UP") }),
        { at: "tap_1", packet: v(f, "PA"), reason: "vm_mismatch" },
        { ...replied(v(f, "R", { frame: byVm2 })), at: "tap_2", flow: { state: "closed" } },
      ]),
  },
  {
    description: "rebalance: a VM whose tap or cell is gone, and each protocol",
    make: (f) => ({
      tuple: udpTuple(f),
      given: serve(f, { cells: [VM1, VM1, VM1, VM1, VM2] }),
      steps: [
        handed(cu(f, TO_HOST), "learn", TO_VM1),
        handed(cs(f, "init", TO_HOST), "learn", TO_VM1, { tuple: sctpTuple(f) }),
        handed(ce(f, "request", TO_HOST), "learn", TO_VM1, { tuple: pingTuple(f) }),
        handed(h(f, "S"), "learn", TO_VM1, { tuple: talk.tcpTuple(f) }),
        handed(cu(f, TO_HOST), "deliver", TO_VM2, {
          before: (world) => servicesOf(world).changeVm(VM1, { ifindex: 0 }),
          flow: { tier: "embryonic", vm: VM2 },
        }),
        handed(cs(f, "cookieEcho", TO_HOST), "deliver", TO_VM2, {
          before: (world) => servicesOf(world).removeVm(VM1),
          tuple: sctpTuple(f),
        }),
        handed(ce(f, "request", TO_HOST), "deliver", TO_VM2, { tuple: pingTuple(f) }),
        handed(h(f, "S"), "deliver", TO_VM2, { tuple: talk.tcpTuple(f), flow: { state: "syn", vm: VM2 } }),
      ],
    }),
  },
  {
    description: "rebalance: a flow that is closed counts for nobody, before and after",
    make: (f) =>
      tcpCase(f, [
        ...opening(f),
        replied(v(f, "R"), { flow: { state: "closed" } }),
        handed(h(f, "A"), "deliver", TO_VM2, {
          before: down(VM1),
          flow: { state: "closed", vm: VM2 },
          check: (world) => expect([VM1, VM2].map((vm) => servicesOf(world).flows(vm))).toEqual([0, 0]),
        }),
      ]),
  },
  {
    description: "rebalance: nobody else is up: dropped, and the flow waits where it was",
    make: (f) =>
      tcpCase(f, [
        ...opening(f),
        passed(h(f, "PA"), "service_empty", {
          before: (world) => {
            down(VM1)(world);
            servicesOf(world).setState(VM2, "DRAIN");
          },
          flow: { vm: VM1, state: "established" },
          check: (world) => {
            expectCounts(servicesOf(world).stats(), { flows: 1, empty: 1, rebalanced: 0 });
            expect(servicesOf(world).flows(VM1)).toBe(1);
          },
        }),
        handed(h(f, "PA"), "deliver", TO_VM1, {
          before: (world) => servicesOf(world).setState(VM1, "DRAIN"),
        }),
      ]),
  },
  {
    description: "rebalance: with the client's association and affinity, where they still have a VM",
    make: (f) =>
      tcpCase(f, [
        ...opening(f),
        handed(h(f, "PA"), "deliver", TO_VM2, {
          before: (world) => {
            const services = servicesOf(world);
            services.putPool(2, "ROUND_ROBIN", [VM2]);
            services.putPool(1, "ROUND_ROBIN", [VM1]);
            services.associate(SERVICE, f.client, 2);
            down(VM1)(world);
          },
          check: (world) => expectCounts(servicesOf(world).counted(), { associated: 1, rebalanced: 1 }),
        }),
      ]),
  },
  {
    description: "under TC a tap that the kernel has lost is gone before the controller says so",
    programs: ["learn_tc"],
    make: (f) =>
      tcpCase(f, [
        ...opening(f),
        handed(h(f, "PA"), "deliver", TO_VM2, {
          before: (world) => {
            world.map("egress_devices").delete(u32(PORTS.tap_1.slot));
            servicesOf(world).tables.guests.clearStats(VM1);
          },
          flow: { vm: VM2 },
        }),
        handed(h(f, "PA"), "deliver", TO_VM2, {
          before: (world) =>
            world.map("egress_devices").update(u32(PORTS.tap_1.slot), u32(PORTS.tap_1.slot + 99)),
        }),
        // No pool has it until the controller has found it again.
        handed(cu(f, TO_HOST), "learn", TO_VM2, { tuple: udpTuple(f) }),
        handed(ce(f, "request", TO_HOST), "learn", TO_VM2, { tuple: pingTuple(f) }),
        handed(cs(f, "init", TO_HOST), "learn", TO_VM1, {
          tuple: sctpTuple(f),
          before: (world) => servicesOf(world).changeVm(VM1, { ifindex: IFINDEX.tap_1 }),
        }),
        passed(cs(f, "cookieEcho", TO_HOST), "vm_held", {
          tuple: sctpTuple(f),
          before: (world) => {
            const services = servicesOf(world);
            services.changeService(SERVICE, { on_vm_down: 2 });
            services.changeVm(VM1, { ifindex: IFINDEX_GONE });
            services.tables.guests.clearStats(VM1);
          },
        }),
      ]),
  },
];

// ---- hold -------------------------------------------------------------------------------------------

const hold: Row[] = [
  {
    description: "hold: handed to the VM while its tap is there, dropped when it is gone",
    make: (f) =>
      tcpCase(
        f,
        [
          ...opening(f),
          handed(h(f, "PA"), "deliver", TO_VM1, { before: down(VM1), flow: { vm: VM1 } }),
          passed(h(f, "PA"), "vm_held", {
            before: (world) => servicesOf(world).changeVm(VM1, { ifindex: 0 }),
            flow: { vm: VM1, state: "established" },
            check: (world) => expectCounts(servicesOf(world).counted(), { flows: 1, held: 1 }),
          }),
          passed(h(f, "PA"), "vm_held", { before: (world) => servicesOf(world).removeVm(VM1) }),
          // It returns to another tap.
          handed(h(f, "PA"), "deliver", TO_VM2, {
            before: (world) => void servicesOf(world).putVm(VM1, TO_VM2),
          }),
        ],
        serve(f, { onVmDown: "HOLD" }),
      ),
  },
  {
    description: "hold: a new connection is another matter",
    make: (f) =>
      tcpCase(
        f,
        [
          ...opening(f),
          handed(h(f, "S", { seq: 9000 }), "restart", TO_VM2, { before: down(VM1), flow: { vm: VM2 } }),
        ],
        serve(f, { onVmDown: "HOLD" }),
      ),
  },
  {
    description: "while tables are exchanged what is in its middle waits: its VM may be in those before",
    make: (f) =>
      tcpCase(f, [
        passed(h(f, "PA"), "vm_held", { before: (world) => world.changeControl({ migrating: 1 }) }),
        handed(h(f, "S"), "learn", TO_VM1),
        handed(h(f, "PA", { sourcePort: 40_001 }), "learn", TO_VM2, {
          before: (world) => world.changeControl({ migrating: 0 }),
          tuple: talk.tcpTuple(f, { remotePort: 40_001 }),
        }),
      ]),
  },
  {
    description: "a service that was removed has no say: handed over while there is a tap, else not for us",
    make: (f) =>
      tcpCase(
        f,
        [
          ...opening(f),
          handed(h(f, "PA"), "deliver", TO_VM1, {
            before: (world) => {
              down(VM1)(world);
              servicesOf(world).removeKey({ prefix: f.vm, proto: 6, port: VM_PORT });
            },
            flow: { vm: VM1 },
          }),
          passed(h(f, "PA"), "not_for_vm", {
            before: (world) => servicesOf(world).changeVm(VM1, { ifindex: 0 }),
            flow: { vm: VM1, state: "established" },
            check: (world) => expectCounts(servicesOf(world).stats(), { held: 0, reset: 0 }),
          }),
          passed(h(f, "PA"), "not_for_vm", { before: (world) => servicesOf(world).removeVm(VM1) }),
        ],
        serve(f, { onVmDown: "RESET" }),
      ),
  },
];

describe("rebalance", () => testRows(() => world, rebalance));
describe("hold", () => testRows(() => world, hold));
