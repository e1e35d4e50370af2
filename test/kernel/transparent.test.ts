// SPDX-License-Identifier: Apache-2.0
// VMs that forward a client's packets unchanged to servers: the answers, which are addressed to anybody, come back to
// them.

import { describe, expect } from "vitest";
import { HOOK, INTERFACE_FLAG, POLICY, VM_STATE } from "../../src/abi/layout.gen.ts";
import { PORTS } from "./support/devices.ts";
import { useWorld, world } from "./support/fixture.ts";
import {
  answer,
  between,
  CLIENT,
  elsewhere,
  forwarded,
  handedB,
  opens,
  passedB,
  SERVER,
  sent,
} from "./support/forwarding.ts";
import { IPPROTO, icmpEcho, icmpError, ipOf, sctp } from "./support/packet.ts";
import { type Row, testRows, withDestination } from "./support/rows.ts";
import { type FrameOptions, MAC, reply, request } from "./support/scene.ts";
import { down, expectCounts, h, handed, replied, tcpCase } from "./support/serviceSteps.ts";
import { serve, servicesOf, TO_VM1, TO_VM2 } from "./support/services.ts";
import { byVm2, VM1, VM2, v } from "./support/talk.ts";

useWorld();

const answers: Row[] = [
  {
    description: "a connection: its answers are the VM's, whoever they are addressed to",
    make: (f) => ({
      tuple: forwarded(f),
      given: serve(f),
      steps: [
        opens(sent(f, "S"), {
          flow: {
            tier: "embryonic",
            state: "syn",
            lastHop: null,
            vm: VM1,
            flags: ["LOCAL_ORIGIN", "TRANSPARENT"],
          },
        }),
        handedB(answer(f, "SA"), TO_VM1, {
          flow: { state: "syn", vm: VM1, flags: ["LOCAL_ORIGIN", "ANSWERED", "TRANSPARENT"] },
        }),
        handedB(answer(f, "SA", { frame: { to: MAC.unknown } })),
        handedB(answer(f, "SA", { frame: { to: PORTS.uplink_b.mac } })),
        handedB(answer(f, "SA", { frame: { to: MAC.vm2 } })),
        passedB(answer(f, "SA", { frame: { to: MAC.vm1 } }), "answer"),
        opens(sent(f, "A"), { flow: { tier: "established", state: "established", vm: VM1 } }),
        handedB(answer(f, "PA", { payload: Buffer.alloc(500) })),
        passedB(answer(f, "PA", { frame: { to: MAC.vm1 } }), "answer"),
        // By another way.
        handed(answer(f, "PA", { frame: { from: MAC.deviceA, to: MAC.deviceB } }), "deliver", TO_VM1),
        handedB(answer(f, "FA"), TO_VM1, { flow: { state: "half_closed" } }),
        handedB(answer(f, "R"), TO_VM1, {
          flow: { state: "closed" },
          check: (world) => {
            const { length } = answer(f, "PA");
            expectCounts(servicesOf(world).vmStats(VM1), {
              ...{ flows: 0, request_packets: 0 },
              ...{ response_packets: 8, response_bytes: 8 * length + 500 },
            });
            expect(servicesOf(world).flows(VM1)).toBe(0);
          },
        }),
      ],
    }),
  },
  {
    description: "SCTP, and a ping",
    make: (f) => {
      const packet = (chunk: "init" | "initAck", back: boolean) => {
        const ports = { sourcePort: back ? SERVER : CLIENT, destinationPort: back ? CLIENT : SERVER };
        return { ...ports, chunks: [chunk] };
      };
      const ends = { source: f.client, destination: f.client2 };
      const ping = between(f, f.icmp, { localPort: 7, remotePort: 0 });
      return {
        tuple: between(f, IPPROTO.sctp),
        given: serve(f),
        steps: [
          opens(reply(f, sctp(packet("init", false)), ends), {
            flow: { state: "syn", flags: ["LOCAL_ORIGIN", "TRANSPARENT"] },
          }),
          handedB(request(f, sctp(packet("initAck", true)), elsewhere(f))),
          opens(reply(f, icmpEcho(f.version, "request", 7), ends), {
            tuple: ping,
            flow: { flags: ["LOCAL_ORIGIN", "TRANSPARENT"] },
          }),
          handedB(request(f, icmpEcho(f.version, "reply", 7), elsewhere(f)), TO_VM1, { tuple: ping }),
        ],
      };
    },
  },
  {
    description: "an ICMP error about what the VM sent is the VM's, too",
    make: (f) => {
      const error = (frame: FrameOptions) =>
        request(f, icmpError(f.version, "timeExceeded", ipOf(sent(f, "PA"))), { ...elsewhere(f), ...frame });
      return {
        tuple: forwarded(f),
        given: serve(f),
        steps: [
          opens(sent(f, "S")),
          handedB(error({})),
          passedB(error({ to: MAC.vm1 }), "quoted"),
          handedB(answer(f, "SA")),
          opens(sent(f, "A")),
          handedB(error({ source: f.transit, to: MAC.unknown })),
        ],
      };
    },
  },
  {
    description: "the whole way: client, VM, server, VM, client",
    make: (f) =>
      tcpCase(f, [
        handed(h(f, "S"), "learn", TO_VM1),
        replied(v(f, "SA")),
        handed(h(f, "A"), "promote", TO_VM1),
        opens(sent(f, "S"), { tuple: forwarded(f) }),
        handedB(answer(f, "SA"), TO_VM1, { tuple: forwarded(f) }),
        opens(sent(f, "A"), { tuple: forwarded(f) }),
        handed(h(f, "PA"), "deliver", TO_VM1),
        opens(sent(f, "PA"), { tuple: forwarded(f) }),
        handedB(answer(f, "PA"), TO_VM1, { tuple: forwarded(f) }),
        replied(v(f, "PA")),
      ]),
  },
  {
    description: "a VM that is in no cell: nothing is handed to it",
    make: (f) => ({
      tuple: forwarded(f),
      given: (world) => {
        serve(f)(world);
        servicesOf(world).removeVm(VM1);
      },
      steps: [
        opens(sent(f, "S"), { flow: { vm: VM1, flags: ["LOCAL_ORIGIN"] } }),
        passedB(answer(f, "SA"), "not_for_vm"),
        passedB(answer(f, "SA", { frame: { to: MAC.vm1 } }), "answer"),
        // Its next connection, when it has a cell.
        opens(sent(f, "R")),
        opens(sent(f, "S", { seq: 9000 }), {
          before: (world) => void servicesOf(world).putVm(VM1, TO_VM1),
          flow: { state: "syn", vm: VM1, flags: ["LOCAL_ORIGIN", "TRANSPARENT"] },
        }),
        handedB(answer(f, "SA")),
      ],
    }),
  },
  {
    description: "a new connection is judged anew, and its VM is the one that opens it",
    make: (f) => ({
      tuple: forwarded(f),
      given: serve(f),
      steps: [
        opens(sent(f, "S")),
        handedB(answer(f, "SA")),
        opens(sent(f, "A")),
        opens(sent(f, "S", { seq: 9000, frame: byVm2 }), {
          at: "tap_2",
          flow: { state: "syn", vm: VM2, flags: ["LOCAL_ORIGIN", "TRANSPARENT"] },
        }),
        handedB(answer(f, "SA"), TO_VM2),
        opens(sent(f, "A", { frame: byVm2 }), { at: "tap_2" }),
        opens(sent(f, "S", { seq: 77 }), {
          before: (world) => servicesOf(world).removeVm(VM1),
          flow: { state: "syn", vm: VM1, flags: ["LOCAL_ORIGIN"] },
        }),
        passedB(answer(f, "SA"), "answer"),
      ],
    }),
  },
  {
    description: "the server opens one to the client: a request like any other",
    make: (f) => ({
      tuple: forwarded(f),
      given: serve(f),
      steps: [
        opens(sent(f, "S")),
        passedB(answer(f, "S"), "not_for_vm", { flow: { vm: VM1 } }),
        passedB(answer(f, "S", { frame: { to: MAC.vm1 } }), "restart", {
          flow: { state: "syn", vm: 0, flags: [] },
        }),
      ],
    }),
  },
  {
    description:
      "not by a port that is blocked, nor where excluded, nor while no VM is in a cell, nor to a group",
    make: (f) => ({
      tuple: forwarded(f),
      given: serve(f),
      steps: [
        opens(sent(f, "S")),
        passedB(answer(f, "SA", { frame: { to: MAC.broadcast } }), "multicast"),
        passedB(answer(f, "SA"), "not_for_vm", { before: (world) => world.changeControl({ vm_cells: 0 }) }),
        passedB(answer(f, "SA"), "port_blocked", {
          before: (world) => {
            world.changeControl({ vm_cells: 2 });
            world.changeInterface("uplink_b", { flags: INTERFACE_FLAG.PORT_BLOCKED });
          },
        }),
        passedB(answer(f, "SA"), "excluded", {
          before: (world) => world.exclude("uplink_b", [{ port_first: CLIENT, port_last: CLIENT }]),
        }),
        handedB(answer(f, "SA"), TO_VM1, {
          before: (world) => world.changeInterface("uplink_b", { flags: 0 }),
        }),
        opens(sent(f, "A"), { flow: { tier: "established" } }),
        passedB(answer(f, "PA"), "answer", { before: (world) => world.changeControl({ vm_cells: 0 }) }),
      ],
    }),
  },
  {
    description: "the VM drains, is down, has no tap: nobody asked for a drop, so it passes",
    make: (f) => ({
      tuple: forwarded(f),
      given: serve(f),
      steps: [
        opens(sent(f, "S")),
        handedB(answer(f, "SA"), TO_VM1, { before: (world) => servicesOf(world).setState(VM1, "DRAIN") }),
        passedB(answer(f, "SA"), "answer", { before: down(VM1) }),
        passedB(answer(f, "SA", { frame: { to: MAC.vm1 } }), "answer"),
        passedB(answer(f, "SA"), "answer", {
          before: (world) => servicesOf(world).changeVm(VM1, { state: VM_STATE.UP, ifindex: 0 }),
          check: (world) => expectCounts(servicesOf(world).counted(), {}),
        }),
      ],
    }),
  },
  {
    description: "from a hook that cannot reach the tap it passes",
    programs: ["learn_xdp"],
    make: (f) => ({
      tuple: forwarded(f),
      given: serve(f, { vm: { flags: 0 } }),
      steps: [
        opens(sent(f, "S")),
        passedB(answer(f, "SA"), "deliver_hook", {
          before: (world) => world.changeInterface("uplink_b", { hook: HOOK.XDP_NATIVE }),
        }),
        passedB(answer(f, "SA", { frame: { tags: [{ vid: 10 }] } }), "deliver_hook", {
          before: (world) => world.changeInterface("uplink_b", { hook: HOOK.XDP_GENERIC }),
          check: (world) => expectCounts(servicesOf(world).vmStats(VM1), { response_packets: 0 }),
        }),
        handedB(answer(f, "SA")),
      ],
    }),
  },
  {
    description: "tags are taken off",
    programs: ["learn_tc"],
    make: (f) => ({
      tuple: forwarded(f),
      given: serve(f),
      steps: [
        opens(sent(f, "S")),
        handedB(answer(f, "SA", { frame: { tags: [{ vid: 20 }] } }), TO_VM1, {
          out: withDestination(answer(f, "SA"), MAC.vm1),
        }),
      ],
    }),
  },
  {
    description: "a tap that only observes, or is off",
    make: (f) => ({
      tuple: forwarded(f),
      given: (world) => {
        serve(f)(world);
        world.changeInterface("tap_1", { policy: POLICY.OBSERVE });
      },
      steps: [
        opens(sent(f, "S")),
        handedB(answer(f, "SA")),
        {
          at: "tap_1",
          packet: sent(f, "S", { sourcePort: 7 }),
          reason: "off",
          before: (world) => world.changeInterface("tap_1", { policy: POLICY.OFF }),
          tuple: between(f, IPPROTO.tcp, { localPort: 7 }),
          flow: null,
        },
      ],
    }),
  },
];

describe("answers", () => testRows(() => world, answers));
