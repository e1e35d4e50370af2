// SPDX-License-Identifier: Apache-2.0
// What a VM forwards by UDP, what another VM answers for it, whose flow was lost, and what the host's routing brings
// back by itself.

import { spawnSync } from "node:child_process";
import { describe, expect, test } from "vitest";
import { currentTick, secondsToTicks } from "../../src/abi/codec.ts";
import { FLOW_FLAG } from "../../src/abi/layout.gen.ts";
import { IFINDEX, PORTS } from "./support/devices.ts";
import { useWorld, world } from "./support/fixture.ts";
import {
  answer,
  answerUdp,
  forwarded,
  forwardedUdp,
  handedB,
  opens,
  passedB,
  sent,
  sentUdp,
} from "./support/forwarding.ts";
import { IPPROTO } from "./support/packet.ts";
import { type Row, type Step, testRows } from "./support/rows.ts";
import { FAMILIES, MAC } from "./support/scene.ts";
import { down, expectCounts, h, handed, opening, passed, replied, tcpCase } from "./support/serviceSteps.ts";
import { serve, servicesOf, TO_HOST, TO_VM1, TO_VM2 } from "./support/services.ts";
import * as talk from "./support/talk.ts";
import { A, byVm2, c, cu, VM1, VM2, v, vu } from "./support/talk.ts";
import type { World } from "./support/world.ts";

useWorld();

const responsesBy = (vm: number) => (world: World) => servicesOf(world).changeVm(VM1, { responses: vm });

const responses: Row[] = [
  {
    description: "a stored policy gives the answers to another VM, which also replies to the client",
    make: (f) =>
      tcpCase(f, [
        handed(h(f, "S"), "learn", TO_VM1, { before: responsesBy(VM2) }),
        replied(v(f, "SA")),
        handed(h(f, "A"), "promote", TO_VM1),
        opens(sent(f, "S"), {
          tuple: forwarded(f),
          flow: { vm: VM2, flags: ["LOCAL_ORIGIN", "TRANSPARENT"] },
        }),
        handedB(answer(f, "SA"), TO_VM2, { tuple: forwarded(f) }),
        handedB(answer(f, "SA", { frame: { to: PORTS.uplink_b.mac } }), TO_VM2, { tuple: forwarded(f) }),
        passedB(answer(f, "SA", { frame: { to: MAC.vm2 } }), "answer", { tuple: forwarded(f) }),
        opens(sent(f, "A"), { tuple: forwarded(f), flow: { tier: "established", vm: VM2 } }),
        handedB(answer(f, "PA"), TO_VM2, { tuple: forwarded(f) }),
        // Processed, and sent to the client by the VM that got it.
        {
          ...replied(v(f, "PA", { frame: byVm2 })),
          at: "tap_2",
          flow: { vm: VM1, flags: ["ANSWERED", "SERVICE"] },
        },
        handed(h(f, "PA"), "deliver", TO_VM1),
        replied(v(f, "PA")),
        {
          at: "tap_2",
          packet: v(f, "PA", { frame: byVm2 }),
          reason: "vm_mismatch",
          before: responsesBy(0),
          check: (world) => {
            expectCounts(servicesOf(world).vmStats(VM1), { response_packets: 0 });
            expectCounts(servicesOf(world).vmStats(VM2), { response_packets: 3, request_packets: 0 });
          },
        },
      ]),
  },
  {
    description: "nobody else replies for it, and it for nobody",
    make: (f) =>
      tcpCase(
        f,
        [
          handed(h(f, "S"), "learn", TO_VM2),
          // VM 2's own flow: VM 1 has its responses processed, not the other way.
          { at: "tap_1", packet: v(f, "SA"), reason: "vm_mismatch" },
          { ...replied(v(f, "SA", { frame: byVm2 })), at: "tap_2" },
        ],
        (world) => {
          serve(f, { cells: [VM2] })(world);
          responsesBy(VM2)(world);
        },
      ),
  },
  {
    description: "the VM for the responses is down, or in no cell",
    make: (f) => ({
      tuple: forwarded(f),
      given: (world) => {
        serve(f)(world);
        responsesBy(VM2)(world);
      },
      steps: [
        opens(sent(f, "S"), { flow: { vm: VM2 } }),
        passedB(answer(f, "SA"), "answer", { before: down(VM2) }),
        passedB(answer(f, "SA"), "answer", { before: (world) => servicesOf(world).removeVm(VM2) }),
        passedB(answer(f, "SA", { frame: { to: MAC.vm1 } }), "answer"),
      ],
    }),
  },
];

const PROVISIONAL_TICKS = secondsToTicks(60);
const longAgo = () => (currentTick() - PROVISIONAL_TICKS) >>> 0;

const datagrams: Row[] = [
  {
    description: "UDP: an answer to another's address proves who began",
    make: (f) => ({
      tuple: forwardedUdp(f),
      given: serve(f),
      steps: [
        opens(sentUdp(f), {
          flow: { tier: "embryonic", state: "provisional", vm: VM1, flags: ["LOCAL_ORIGIN", "TRANSPARENT"] },
        }),
        opens(sentUdp(f), { flow: { tier: "embryonic", state: "provisional" } }),
        handedB(answerUdp(f), TO_VM1, {
          flow: {
            ...{ tier: "established", state: "established", vm: VM1, lastHop: null },
            flags: ["LOCAL_ORIGIN", "ANSWERED", "TRANSPARENT"],
          },
        }),
        opens(sentUdp(f)),
        handedB(answerUdp(f, { to: MAC.unknown })),
        // However long nothing was heard.
        handedB(answerUdp(f), TO_VM1, {
          before: (world) => world.changeFlow(forwardedUdp(f), { last_seen: longAgo() }),
          flow: { tier: "established", state: "established", vm: VM1 },
        }),
        passedB(answerUdp(f, { to: MAC.vm1 }), "answer"),
      ],
    }),
  },
  {
    description: "UDP: an answer to the VM's own MAC proves nothing, a later one to another's does",
    make: (f) => ({
      tuple: forwardedUdp(f),
      given: serve(f),
      steps: [
        opens(sentUdp(f)),
        passedB(answerUdp(f, { to: MAC.vm1 }), "answer", {
          flow: { tier: "embryonic", state: "provisional" },
        }),
        opens(sentUdp(f)),
        handedB(answerUdp(f), TO_VM1, { flow: { tier: "established" } }),
      ],
    }),
  },
  {
    description: "UDP: late, and to another's address, it is an answer all the same",
    make: (f) => ({
      tuple: forwardedUdp(f),
      given: serve(f),
      steps: [
        opens(sentUdp(f)),
        handedB(answerUdp(f), TO_VM1, {
          before: (world) => world.changeFlow(forwardedUdp(f), { last_seen: longAgo() }),
          flow: {
            tier: "established",
            state: "established",
            flags: ["LOCAL_ORIGIN", "ANSWERED", "TRANSPARENT"],
          },
        }),
      ],
    }),
  },
  {
    description:
      "UDP from a service's own address: rather a reply whose flow was lost; it heals at once, and with that VM",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      given: serve(f, { cells: [VM1] }),
      steps: [
        opens(vu(f, byVm2), {
          at: "tap_2",
          flow: { tier: "embryonic", state: "provisional", vm: VM2, flags: ["LOCAL_ORIGIN"] },
        }),
        handed(cu(f, TO_HOST), "restart", TO_VM2, {
          flow: { tier: "embryonic", state: "new", vm: VM2, lastHop: A, flags: ["SERVICE"] },
          check: (world) => {
            expect(servicesOf(world).flows(VM2)).toBe(1);
            expect(servicesOf(world).flows(VM1)).toBe(0);
          },
        }),
        { ...replied(vu(f, byVm2)), at: "tap_2" },
        handed(cu(f, TO_HOST), "promote", TO_VM2),
      ],
    }),
  },
  {
    description:
      "UDP of a service that was removed: who began is not known before the provisional time is over",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      given: serve(f, { cells: [VM1] }),
      steps: [
        opens(vu(f), { flow: { state: "provisional", vm: VM1, flags: ["LOCAL_ORIGIN"] } }),
        passed(cu(f), "answer", {
          before: (world) =>
            servicesOf(world).removeKey({ prefix: f.vm, proto: IPPROTO.udp, port: talk.VM_PORT }),
          flow: { state: "provisional", vm: VM1, flags: ["LOCAL_ORIGIN", "ANSWERED"] },
        }),
        passed(cu(f), "restart", {
          before: (world) => world.changeFlow(talk.udpTuple(f), { last_seen: longAgo() }),
          flow: { tier: "embryonic", state: "new", lastHop: A, flags: [] },
          check: (world) => expect(servicesOf(world).flows(VM1)).toBe(0),
        }),
      ],
    }),
  },
  {
    description: "a lost flow of a VM that is down, or in no cell, gets another one",
    make: (f) => {
      const lost = (more: Partial<Step>): Step[] => [
        opens(vu(f, byVm2), { at: "tap_2", before: (world) => world.clearFlows() }),
        handed(cu(f, TO_HOST), more.reason!, TO_VM1, {
          ...more,
          flow: { vm: VM1, flags: ["SERVICE"] },
        }),
      ];
      return {
        tuple: talk.udpTuple(f),
        given: serve(f, { cells: [VM1] }),
        steps: [
          ...lost({ reason: "restart", before: down(VM2) }),
          ...lost({ reason: "restart", before: (world) => servicesOf(world).removeVm(VM2) }),
        ],
      };
    },
  },
  {
    description: "a lost TCP flow heals with the next request, of any VM",
    make: (f) =>
      tcpCase(f, [
        ...opening(f),
        { at: "tap_1", packet: v(f, "PA"), reason: "no_flow", before: (world) => world.clearFlows() },
        handed(h(f, "PA"), "learn", TO_VM2, { flow: { vm: VM2, flags: ["PICKUP", "SERVICE"] } }),
      ]),
  },
  {
    description: "a VM's TCP from the service's address is its own connection",
    make: (f) =>
      tcpCase(f, [
        opens(v(f, "S"), { flow: { flags: ["LOCAL_ORIGIN", "TRANSPARENT"] } }),
        handed(h(f, "SA"), "deliver", TO_VM1),
        passed(c(f, "SA"), "answer"),
        // Which another one may open from outside.
        handed(h(f, "S"), "restart", TO_VM1, { flow: { vm: VM1, flags: ["SERVICE"] } }),
      ]),
  },
];

describe("responses", () => testRows(() => world, responses));
describe("datagrams, and flows that were lost", () => testRows(() => world, datagrams));

describe.each(Object.entries(FAMILIES))("a VM that routes through the host, %s", (_, f) => {
  const ip = (...words: string[]) => {
    const { status, stderr } = spawnSync("ip", [`-${f.version}`, ...words], { encoding: "utf8" });
    expect(status, stderr).toBe(0);
  };

  /** Is its connection from this address taken for one that may be another's? */
  function isTransparent(source: string, l3 = IFINDEX.tap_1, to: string = PORTS.tap_1.mac): boolean {
    world.reset();
    serve(f)(world);
    world.changeInterface("tap_1", { l3_ifindex: l3 });
    const frame = { to, source, destination: f.client2 };
    const run = world.run("reply_tc", IFINDEX.tap_1, v(f, "S", { frame }));
    expect(run).toMatchObject({ verdict: "pass", counts: [{ reason: "local_origin" }] });
    const { flow } = world.flow(talk.tcpTuple(f, { local: source, remote: f.client2 }))!;
    expect(flow.vm).toBe(VM1);
    expect(flow.flags & FLOW_FLAG.LOCAL_ORIGIN).not.toBe(0);
    return (flow.flags & FLOW_FLAG.TRANSPARENT) !== 0;
  }

  test("its own address: the host's routing leads back to it", () => {
    expect(isTransparent(f.routedVm)).toBe(false);
    expect(isTransparent(f.bridgedVm, IFINDEX.bridge)).toBe(false);
  });

  test("another's: it leads elsewhere, or nowhere", () => {
    for (const source of [f.client, f.transit, f.unroutable, f.host]) {
      expect(isTransparent(source), source).toBe(true);
    }
  });

  test("the same through a gateway on the bridge, where only the VM's MAC tells", () => {
    const bridged = (source: string) => isTransparent(source, IFINDEX.bridge, MAC.deviceB);
    for (const source of [f.bridgedVm, f.routedVm, f.neighbourVm]) {
      expect(bridged(source), source).toBe(false);
    }
    // The host knows nothing of the VM's network, or not whose address it is there.
    for (const source of [f.vm, f.client, f.transit, f.unroutable, f.host]) {
      expect(bridged(source), source).toBe(true);
    }
    ip("neigh", "replace", f.bridgedVm, "lladdr", MAC.vm2, "dev", "bridge", "nud", "permanent");
    try {
      expect(bridged(f.bridgedVm)).toBe(true);
      ip("neigh", "del", f.bridgedVm, "dev", "bridge");
      expect(bridged(f.bridgedVm)).toBe(true);
    } finally {
      ip("neigh", "replace", f.bridgedVm, "lladdr", MAC.vm1, "dev", "bridge", "nud", "permanent");
    }
  });

  test("a neighbour that is not known: the interface tells", () => {
    const neighbour = [f.routedVm, "lladdr", MAC.vm1, "dev", "tap_1", "nud", "permanent"];
    ip("neigh", "del", f.routedVm, "dev", "tap_1");
    try {
      expect(isTransparent(f.routedVm)).toBe(false);
      expect(isTransparent(f.routedVm, IFINDEX.bridge)).toBe(false);
    } finally {
      ip("neigh", "add", ...neighbour);
    }
    const there = [f.transit, "dev", "uplink_b"];
    ip("neigh", "del", ...there);
    try {
      expect(isTransparent(f.transit)).toBe(true);
    } finally {
      ip("neigh", "add", ...there, "lladdr", MAC.deviceB, "nud", "permanent");
    }
  });

  test("the same address with another VM's MAC: it is not its own", () => {
    ip("neigh", "replace", f.routedVm, "lladdr", MAC.vm2, "dev", "tap_1", "nud", "permanent");
    try {
      expect(isTransparent(f.routedVm)).toBe(true);
    } finally {
      ip("neigh", "replace", f.routedVm, "lladdr", MAC.vm1, "dev", "tap_1", "nud", "permanent");
    }
  });
});
