// SPDX-License-Identifier: Apache-2.0
// What the programs write down beside their decisions: notices, who is active, flows taken over from
// tables that are being exchanged.

import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { currentTick, decode, NOTICE_KIND_NAMES, type StructValue } from "../../src/abi/codec.ts";
import { FLOW_STATE, NOTICES_PER_TICK } from "../../src/abi/layout.gen.ts";
import { BpfMap, RingBuffer } from "../../src/libbpf/index.ts";
import { macText } from "./support/bytes.ts";
import { createDevices, enterPrivateNamespace, IFINDEX, PORTS } from "./support/devices.ts";
import { FAMILIES, MAC } from "./support/scene.ts";
import * as talk from "./support/talk.ts";
import { c, cu, v, viaB, vu } from "./support/talk.ts";
import { u32, World } from "./support/world.ts";

const v4 = FAMILIES.ipv4;

let world: World;
let ring: RingBuffer;

beforeAll(() => {
  enterPrivateNamespace();
  createDevices();
  world = new World();
  ring = new RingBuffer(world.map("notices"));
});

beforeEach(() => {
  world.reset();
  takeNotices();
});

afterAll(() => {
  ring?.close();
  world?.close();
});

function takeNotices(): StructValue<"notice">[] {
  const notices: StructValue<"notice">[] = [];
  ring.consume((record) => notices.push(decode("notice", record)));
  return notices;
}

const told = () =>
  takeNotices().map(({ kind, ifindex, mac }) => [NOTICE_KIND_NAMES[kind], ifindex, macText(mac)]);

describe("notices", () => {
  test("a new last hop is told once, with its index", () => {
    world.run("learn_tc", IFINDEX.uplink_a, c(v4, "S"));
    const [notice, ...more] = takeNotices();
    expect(more).toEqual([]);
    expect(notice).toMatchObject({ ifindex: IFINDEX.uplink_a, zone: 0 });
    expect(NOTICE_KIND_NAMES[notice!.kind]).toBe("last_hop");
    expect(macText(notice!.mac)).toBe(MAC.deviceA);
    expect(notice!.last_hop).toBe(world.lastHop(world.flow(talk.tcpTuple(v4))!.flow.last_hop).index);
    world.run("learn_tc", IFINDEX.uplink_a, c(v4, "S"));
    expect(takeNotices()).toEqual([]);
  });

  test("a budget that is used up, and a flow that is damped", () => {
    world.changeControl({ relearn_damping: 4 });
    world.run("learn_tc", IFINDEX.uplink_a, cu(v4));
    world.run("learn_tc", IFINDEX.uplink_b, cu(v4, viaB));
    takeNotices();
    world.run("learn_tc", IFINDEX.uplink_a, cu(v4));
    expect(told()).toEqual([["relearn_damped", IFINDEX.uplink_a, MAC.deviceA]]);
    world.put("budgets", u32(PORTS.uplink_a.slot), "budget", { last_hops_max: 0 });
    world.run("learn_tc", IFINDEX.uplink_a, c(v4, "S", { frame: { from: MAC.deviceC } }));
    expect(told()).toEqual([["last_hop_budget", IFINDEX.uplink_a, MAC.deviceC]]);
  });

  test("a VM that is new, that moved, that is one too many", () => {
    const from = (mac: string) => vu(v4, { from: mac });
    world.run("reply_tc", IFINDEX.tap_1, from("02:00:00:00:01:99"));
    expect(told()).toEqual([["vm", IFINDEX.tap_1, "02:00:00:00:01:99"]]);
    world.run("reply_tc", IFINDEX.tap_2, from("02:00:00:00:01:99"));
    expect(told()).toEqual([["vm_moved", IFINDEX.tap_2, "02:00:00:00:01:99"]]);
    world.put("budgets", u32(PORTS.tap_2.slot), "budget", { vms_max: 0 });
    world.run("reply_tc", IFINDEX.tap_2, from("02:00:00:00:01:9a"));
    expect(told()).toEqual([["vm_budget", IFINDEX.tap_2, "02:00:00:00:01:9a"]]);
  });

  test("more than the rate are counted as lost, and decisions are the same", () => {
    const frames = Array.from({ length: 50 }, (_, index) =>
      cu(v4, { from: `02:00:00:00:77:${index.toString(16).padStart(2, "0")}` }),
    );
    const before = world.allocations();
    const first = currentTick();
    for (const frame of frames) world.run("learn_tc", IFINDEX.uplink_a, frame);
    const ticks = currentTick() - first + 1;
    const seen = takeNotices().length;
    expect(seen).toBeGreaterThanOrEqual(NOTICES_PER_TICK);
    expect(seen).toBeLessThanOrEqual(NOTICES_PER_TICK * (ticks + 1));
    expect(world.allocations().notices_lost - before.notices_lost).toBe(50 - seen);
    expect(world.allocations().last_hops).toBe(50);
  });

  test("a full ring loses notices, and nothing else", () => {
    // Nobody reads; the rate is forgotten before each.
    let learned = 0;
    for (let index = 0; index < 2500; index++) {
      world.setAllocations({ ...world.allocations(), last_hops: 0, notices_count: 0 });
      const mac = `02:00:00:01:${(index >> 8).toString(16).padStart(2, "0")}:${(index & 255).toString(16).padStart(2, "0")}`;
      const { verdict } = world.runFast("learn_tc", IFINDEX.uplink_a, cu(v4, { from: mac }));
      if (verdict === "pass") learned++;
      if (index % 200 === 199) world.reset();
    }
    expect(learned).toBe(2500);
    expect(takeNotices().length).toBeGreaterThan(100);
  });
});

test("a tap's usual VM and its others are seen to be active", () => {
  const usual = () => decode("tap", world.map("taps").lookup(u32(PORTS.tap_1.slot))!);
  world.run("reply_tc", IFINDEX.tap_1, vu(v4));
  // The first frame entered it, the second found it.
  world.run("reply_tc", IFINDEX.tap_1, vu(v4));
  expect(currentTick() - usual().last_seen).toBeLessThan(8);
  const other = "02:00:00:00:01:77";
  world.addVm(other, "tap_1", 77);
  expect(world.vm(other)!.last_seen).toBe(0);
  world.run("reply_tc", IFINDEX.tap_1, vu(v4, { from: other }));
  expect(currentTick() - world.vm(other)!.last_seen).toBeLessThan(8);
});

describe("a table is exchanged", () => {
  for (const [name, family] of Object.entries(FAMILIES)) {
    const four = family.version === 4;
    const suffix = four ? "4" : "6";
    const tcp = talk.tcpTuple(family);
    const udp = talk.udpTuple(family);

    /** Flow and embryo move to other tables, which the programs are told of. */
    function exchange(migrating: number): () => void {
      const flows = like(`flows${suffix}`);
      const embryos = like(`embryos${suffix}`);
      for (const [from, to] of [
        [world.map(`flows${suffix}`), flows],
        [world.map(`embryos${suffix}`), embryos],
      ] as const) {
        for (let at = from.nextKey(null); at; at = from.nextKey(null)) {
          to.update(at, from.lookup(at)!);
          from.delete(at);
        }
      }
      const fd = (map: BpfMap) => u32(map.fd);
      world.map(`previous_flows${suffix}`).update(u32(0), fd(flows));
      world.map(`previous_embryos${suffix}`).update(u32(0), fd(embryos));
      world.changeControl({ migrating });
      return () => {
        world.map(`previous_flows${suffix}`).delete(u32(0));
        world.map(`previous_embryos${suffix}`).delete(u32(0));
        flows.close();
        embryos.close();
      };
    }

    function like(table: string): BpfMap {
      const { type, keySize, valueSize, flags } = world.map(table).info();
      return BpfMap.create({ type, name: "previous", keySize, valueSize, maxEntries: 64, flags });
    }

    function converse(): void {
      world.run("learn_tc", IFINDEX.uplink_a, c(family, "S"));
      world.run("reply_tc", IFINDEX.tap_1, v(family, "SA"));
      world.run("learn_tc", IFINDEX.uplink_a, c(family, "A"));
      world.run("learn_tc", IFINDEX.uplink_a, cu(family));
    }

    const reasons = (run: { counts: { reason: string }[] }) => run.counts.map(({ reason }) => reason);

    test(`${name}: a reply finds the flow in the table before, and takes it over`, () => {
      converse();
      const done = exchange(1);
      expect(world.flow(tcp)).toBeUndefined();
      expect(reasons(world.run("reply_tc", IFINDEX.tap_1, v(family, "A")))).toEqual(["redirect"]);
      expect(world.flow(tcp)).toMatchObject({ tier: "established" });
      expect(reasons(world.run("reply_tc", IFINDEX.tap_1, vu(family)))).toEqual(["redirect"]);
      expect(world.flow(udp)).toMatchObject({ tier: "embryonic" });
      expect(reasons(world.run("learn_tc", IFINDEX.uplink_a, cu(family)))).toEqual(["promote"]);
      done();
    });

    test(`${name}: a request finds it there too`, () => {
      converse();
      const done = exchange(1);
      expect(reasons(world.run("learn_xdp", IFINDEX.uplink_a, c(family, "A")))).toEqual(["refresh"]);
      expect(reasons(world.run("learn_tc", IFINDEX.uplink_a, cu(family)))).toEqual(["refresh"]);
      expect(world.flow(udp)!.flow.state).toBe(FLOW_STATE.NEW);
      done();
    });

    test(`${name}: what is in neither table is learned, and without an exchange nobody looks`, () => {
      const empty = exchange(1);
      expect(reasons(world.run("learn_tc", IFINDEX.uplink_a, c(family, "S")))).toEqual(["learn"]);
      empty();
      world.reset();
      converse();
      const done = exchange(0);
      expect(reasons(world.run("reply_tc", IFINDEX.tap_1, v(family, "A")))).toEqual(["no_flow"]);
      done();
    });

    test(`${name}: the entry in the new table wins, and migrating without a table is no harm`, () => {
      converse();
      const done = exchange(1);
      world.putFlow(tcp, { state: FLOW_STATE.ESTABLISHED, flags: 1, vm: 1 });
      expect(reasons(world.run("reply_tc", IFINDEX.tap_1, v(family, "A")))).toEqual(["local_origin"]);
      done();
      world.deleteFlow(tcp);
      expect(reasons(world.run("reply_tc", IFINDEX.tap_1, v(family, "A")))).toEqual(["no_flow"]);
    });
  }
});
