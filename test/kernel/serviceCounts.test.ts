// SPDX-License-Identifier: Apache-2.0
// How many flows of services each VM has: counted by the programs as they come and go, and by each sweep.

import { describe, expect, test } from "vitest";
import { currentTick, decode, encode, secondsToTicks, sizeOf } from "../../src/abi/codec.ts";
import {
  FLOW_FLAG,
  FLOW_STATE,
  LAST_HOPS_MAX,
  ON_VM_DOWN,
  TABLE,
  VM_STATE,
  VMS_MAX,
} from "../../src/abi/layout.gen.ts";
import { sweepInstance } from "../../src/controller/sweep.ts";
import { IFINDEX, type PortName } from "./support/devices.ts";
import { useWorld, world } from "./support/fixture.ts";
import { sent } from "./support/forwarding.ts";
import { Random } from "./support/random.ts";
import { FAMILIES, type Family } from "./support/scene.ts";
import { h } from "./support/serviceSteps.ts";
import { SERVICE, type Services, serve, TO_HOST, TO_HOST_B } from "./support/services.ts";
import * as talk from "./support/talk.ts";
import { byVm2, cs, cu, VM1, VM2, v, vs, vu } from "./support/talk.ts";
import { UPLINK_PROGRAMS } from "./support/world.ts";

let services: Services;

useWorld();

type Send = (f: Family) => [PortName, Buffer];
const client =
  (flags: string, seq = 1): Send =>
  (f) => ["uplink_a", h(f, flags, { seq })];
const vm =
  (flags: string): Send =>
  (f) => ["tap_1", v(f, flags)];
const vm2 =
  (flags: string): Send =>
  (f) => ["tap_2", v(f, flags, { frame: byVm2 })];

/** What is sent, and how many open flows VM 1 and VM 2 have then. */
const STORIES: Record<string, [Send, number, number][]> = {
  "a connection that ends from both sides": [
    [client("S"), 1, 0],
    [client("S"), 1, 0],
    [vm("SA"), 1, 0],
    [client("A"), 1, 0],
    [client("FA"), 1, 0],
    [vm("PA"), 1, 0],
    [vm("FA"), 0, 0],
    [client("A"), 0, 0],
    [vm("PA"), 0, 0],
    [client("S", 9000), 0, 1],
    [client("S", 9000), 0, 1],
  ],
  "a blind RST, and a VM that goes on": [
    [client("S"), 1, 0],
    [vm("SA"), 1, 0],
    [client("A"), 1, 0],
    [client("R"), 0, 0],
    [client("A"), 0, 0],
    [vm("PA"), 1, 0],
    [client("R"), 0, 0],
    [client("R"), 0, 0],
    [vm("R"), 0, 0],
    [vm("PA"), 0, 0],
  ],
  "before the handshake is over": [
    [client("S"), 1, 0],
    [client("R"), 0, 0],
    [vm("SA"), 0, 0],
    [vm("A"), 1, 0],
    [vm("RA"), 0, 0],
    [client("S", 9000), 0, 1],
    [vm2("RA"), 0, 0],
    [client("S", 9001), 1, 0],
  ],
  "one begins while the last is still open": [
    [client("PA"), 1, 0],
    [client("S"), 0, 1],
    [vm2("SA"), 0, 1],
    [client("A"), 0, 1],
    [client("S", 9000), 1, 0],
    [client("FA"), 1, 0],
    [client("S", 9001), 0, 1],
  ],
  "a VM that opens one itself from the service's port": [
    [vm("S"), 0, 0],
    [client("SA"), 0, 0],
    [client("S"), 1, 0],
    [vm("SA"), 1, 0],
  ],
  UDP: [
    [(f) => ["uplink_a", cu(f, TO_HOST)], 1, 0],
    [(f) => ["tap_1", vu(f)], 1, 0],
    [(f) => ["uplink_a", cu(f, TO_HOST)], 1, 0],
    [(f) => ["uplink_b", cu(f, TO_HOST_B)], 1, 0],
  ],
  SCTP: [
    [(f) => ["uplink_a", cs(f, "init", TO_HOST)], 1, 0],
    [(f) => ["tap_1", vs(f, "initAck")], 1, 0],
    [(f) => ["uplink_a", cs(f, "cookieEcho", TO_HOST)], 1, 0],
    [(f) => ["tap_1", vs(f, "abort")], 0, 0],
    [(f) => ["uplink_a", cs(f, "init", TO_HOST)], 0, 1],
  ],
};

/** Open flows of services by VM, as they stand in the tables. */
function inTables(): Record<number, number> {
  const found: Record<number, number> = { [VM1]: 0, [VM2]: 0 };
  for (const [name, struct] of [
    ["flows4", "flow"],
    ["flows6", "flow"],
    ["embryos4", "embryo"],
    ["embryos6", "embryo"],
  ] as const) {
    for (const { count, values } of world.map(name).batches(8192)) {
      for (let index = 0; index < count; index++) {
        const offset = index * sizeOf(struct);
        const flow = struct === "flow" ? decode(struct, values, offset) : decode(struct, values, offset).flow;
        if (flow.flags & FLOW_FLAG.SERVICE && flow.state !== FLOW_STATE.CLOSED) found[flow.vm]!++;
      }
    }
  }
  return found;
}

const counted = () => ({ [VM1]: services.flows(VM1), [VM2]: services.flows(VM2) });

/** `others`: flows that VMs opened, and whose answers are handed to them. */
async function swept(others = false): Promise<Record<number, number>> {
  await sweepInstance(world, { countOnly: true });
  const half = services.tables.sweep.endedVmRefs() + (others ? 2 * VMS_MAX : 0);
  return Object.fromEntries([VM1, VM2].map((vm) => [vm, services.tables.guests.refs.get(half + vm)!]));
}

function run(program: string, [port, packet]: [PortName, Buffer]): void {
  world.runFast(port.startsWith("tap") ? "reply_tc" : program, IFINDEX[port], packet);
}

describe.each(Object.entries(FAMILIES))("%s", (_, f) => {
  describe.each(UPLINK_PROGRAMS)("%s", (program) => {
    test.each(Object.entries(STORIES))("%s", async (_what, story) => {
      world.reset();
      services = serve(f)(world);
      for (const [index, [send, first, second]] of story.entries()) {
        run(program, send(f));
        expect([services.flows(VM1), services.flows(VM2)], `packet ${index + 1}`).toEqual([first, second]);
      }
      expect(inTables()).toEqual(counted());
      expect(await swept()).toEqual(counted());
    });

    test("whatever comes and goes: as many as there are", async () => {
      const random = new Random(f.version * 10 + UPLINK_PROGRAMS.indexOf(program));
      world.reset();
      services = serve(f)(world);
      for (let number = 1; number <= 6000; number++) {
        if (random.chance(15)) change(random);
        run(program, randomPacket(f, random));
        if (number % 100 === 0) expect(counted(), `after ${number} packets`).toEqual(inTables());
      }
      const { flows, rebalanced } = services.stats();
      expect(flows).toBeGreaterThan(300);
      expect(rebalanced).toBeGreaterThan(10);
      // Nobody names them: a sweep would take those that drain for removed.
      for (const vm of [VM1, VM2]) services.setState(vm, "UP");
      expect(await swept()).toEqual(counted());
      expect(inTables()).toEqual(counted());
    });
  });

  test("what expires is no longer counted, whether it is looked at alone or on a walk", async () => {
    const ago = (seconds: number) => (currentTick() - secondsToTicks(seconds)) >>> 0;
    const tuples = [1, 2, 3, 4, 5].map((remotePort) => talk.tcpTuple(f, { remotePort }));
    for (const few of [0, 64]) {
      world.reset();
      services = serve(f, { cells: [VM1] })(world);
      for (const { remotePort } of tuples)
        run("learn_tc", ["uplink_a", h(f, "S", { sourcePort: remotePort })]);
      run("learn_tc", ["uplink_a", h(f, "R", { sourcePort: 5 })]);
      expect(services.flows(VM1)).toBe(4);
      for (const tuple of [tuples[0]!, tuples[1]!, tuples[4]!])
        world.changeFlow(tuple, { last_seen: ago(100) });
      await sweepInstance(world, { few });
      expect(inTables()[VM1]).toBe(2);
      expect(services.flows(VM1), "as the pass has found").toBe(2);
      expect(services.tables.guests.refs.get(services.tables.sweep.endedVmRefs() + VM1)).toBe(2);
      expect((await swept())[VM1]).toBe(2);
    }
  });

  test("flows that a VM opened are its own, and a sweep tells of those whose answers are handed over", async () => {
    world.reset();
    services = serve(f)(world);
    services.changeVm(VM2, { responses: VM1 });
    for (const sourcePort of [1, 2, 3]) run("learn_tc", ["tap_1", sent(f, "S", { sourcePort })]);
    run("learn_tc", ["tap_1", sent(f, "R", { sourcePort: 3 })]);
    run("learn_tc", ["tap_2", sent(f, "S", { sourcePort: 4, frame: byVm2 })]);
    expect(counted()).toEqual({ [VM1]: 0, [VM2]: 0 });
    expect(await swept()).toEqual({ [VM1]: 0, [VM2]: 0 });
    // Closed or not: their last packets are handed over as well.
    expect(await swept(true)).toEqual({ [VM1]: 4, [VM2]: 0 });
  });

  test("a service that is gone: the flow that takes the place of its last one is nobody's", () => {
    world.reset();
    services = serve(f)(world);
    run("learn_tc", ["uplink_a", h(f, "PA")]);
    services.removeKey({ prefix: f.vm, proto: 6, port: talk.VM_PORT });
    run("learn_tc", ["uplink_a", talk.c(f, "S")]);
    expect(world.flow(talk.tcpTuple(f))!.flow).toMatchObject({ vm: 0, flags: 0, state: FLOW_STATE.SYN });
    expect(counted()).toEqual({ [VM1]: 0, [VM2]: 0 });
  });

  test("a program that expires one does not count it, and the VM's number waits for the end of the pass", async () => {
    world.reset();
    services = serve(f, { cells: [VM1] })(world);
    const { sweep, guests } = services.tables;
    /** What a pass counts of VM 1 that looks at nothing but this flow: open, and otherwise its VM's. */
    const lookedAt = (): number[] => {
      const base = sweep.begin({ idleTicks: 0, budgetNs: 1_000_000 }) === LAST_HOPS_MAX ? VMS_MAX : 0;
      guests.clearRefs(base);
      const key = Buffer.alloc(40);
      world.flowKey(talk.tcpTuple(f)).copy(key);
      const table = f.version === 4 ? TABLE.EMBRYOS4 : TABLE.EMBRYOS6;
      world.program("sweep_key").testRun({ ctx: encode("sweep_key", { table, key }) });
      return [0, 2 * VMS_MAX].map((half) => guests.refs.get(base + half + VM1)!);
    };
    for (const [flags, open] of [
      ["S", 1],
      ["R", 0],
    ] as const) {
      world.clearFlows();
      services.setFlows(VM1, 0);
      run("learn_tc", ["uplink_a", h(f, "S")]);
      run("learn_tc", ["uplink_a", h(f, flags)]);
      expect(lookedAt(), "still young").toEqual([open, 1 - open]);
      expect(services.flows(VM1), "still young").toBe(open);
      world.changeFlow(talk.tcpTuple(f), { last_seen: (currentTick() - secondsToTicks(100)) >>> 0 });
      expect(lookedAt(), "expired").toEqual([0, 0]);
      expect(world.flowCount()).toBe(0);
      expect(services.flows(VM1), "before the end of the pass").toBe(open);
      expect((await swept())[VM1]).toBe(0);
      expect(services.flows(VM1)).toBe(0);
    }
  });
});

/** Somebody goes down or comes back, or the service says something else. */
function change(random: Random): void {
  const vm = random.pick([VM1, VM2]);
  switch (random.below(4)) {
    case 0:
      services.changeVm(vm, { state: random.pick([VM_STATE.UP, VM_STATE.DOWN, VM_STATE.DRAIN]) });
      break;
    case 1:
      services.changeVm(vm, { state: VM_STATE.UP });
      break;
    case 2:
      services.changeVm(vm, { ifindex: random.chance(4) ? 0 : IFINDEX[vm === VM1 ? "tap_1" : "tap_2"] });
      break;
    default:
      services.changeService(SERVICE, { on_vm_down: random.pick(Object.values(ON_VM_DOWN)) });
  }
}

function randomPacket(f: Family, random: Random): [PortName, Buffer] {
  const port = 1000 + random.below(6);
  const flags = random.pick(["S", "S", "SA", "SA", "A", "A", "PA", "PA", "FA", "R", "RA"]);
  const numbers = { seq: random.below(3), ack: random.below(4) };
  switch (random.below(5)) {
    case 0:
    case 1:
      return ["uplink_a", h(f, flags, { ...numbers, sourcePort: port })];
    case 2:
      return ["uplink_b", h(f, flags, { ...numbers, sourcePort: port, frame: TO_HOST_B })];
    case 3:
      return ["tap_1", v(f, flags, { ...numbers, destinationPort: port })];
  }
  return ["tap_2", v(f, flags, { ...numbers, destinationPort: port, frame: byVm2 })];
}
