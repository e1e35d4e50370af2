// SPDX-License-Identifier: Apache-2.0
// Which VM a new flow of a service gets: the policies of its pool, associations of clients, affinity.

import { beforeEach, describe, expect, test } from "vitest";
import { currentTick, type ReasonName } from "../../src/abi/codec.ts";
import { SERVICE_FLAG, VM_STATE, VMS_MAX } from "../../src/abi/layout.gen.ts";
import { maglevTable } from "../../src/controller/maglev.ts";
import { macText } from "./support/bytes.ts";
import { IFINDEX, type PortName } from "./support/devices.ts";
import { useWorld, world } from "./support/fixture.ts";
import { icmpEcho, tcp, udp } from "./support/packet.ts";
import { FAMILIES, type Family, request } from "./support/scene.ts";
import { POOL, type Policy, SERVICE, type Services, serve, servicesOf, TO_HOST } from "./support/services.ts";
import { tcpTuple, VM_PORT } from "./support/talk.ts";
import { type Tuple, UPLINK_PROGRAMS, type UplinkProgram } from "./support/world.ts";

let services: Services;

useWorld();

/** VM number 1 to 63, in the cell of its number. */
const placeOf = (vm: number): { port: PortName; mac: string } => ({
  port: vm % 2 === 1 ? "tap_1" : "tap_2",
  mac: `02:00:00:00:01:${vm.toString(16).padStart(2, "0")}`,
});

/** So many VMs, all up, and a service of the pool. */
function scene(f: Family, vms: number, policy: Policy, cells?: number[], weights?: number[]): void {
  world.reset();
  serve(f)(world);
  services = servicesOf(world);
  for (let vm = 3; vm <= vms; vm++) services.putVm(vm, placeOf(vm));
  services.putPool(POOL, policy, cells ?? upTo(vms), weights);
}

const upTo = (vms: number) => Array.from({ length: vms }, (_, index) => index + 1);

interface Flow {
  client?: string;
  port?: number;
  proto?: "tcp" | "udp" | "echo";
}

function packetOf(f: Family, { client = f.client, port = 40000, proto = "tcp" }: Flow): Buffer {
  const ports = { sourcePort: port, destinationPort: VM_PORT };
  const transport = {
    tcp: () => tcp({ ...ports, seq: 1, flags: "S" }),
    udp: () => udp(ports),
    echo: () => icmpEcho(f.version, "request", port),
  }[proto]();
  return request(f, transport, { ...TO_HOST, source: client });
}

/** The VM that a flow gets; a reason if none. */
function choose(f: Family, flow: Flow = {}, program: UplinkProgram = "learn_tc"): number | ReasonName {
  const { verdict, out } = world.runFast(program, IFINDEX.uplink_a, packetOf(f, flow));
  if (verdict !== "redirect") {
    expect(verdict).toBe("drop");
    const others = world.takeCounts().filter(({ reason }) => reason !== "learn");
    expect(others).toHaveLength(1);
    return others[0]!.reason;
  }
  return Number.parseInt(macText(out.subarray(5, 6)), 16);
}

const ports = (count: number) => Array.from({ length: count }, (_, index) => ({ port: 1024 + index * 7 }));
const clients = (f: Family, count: number) =>
  Array.from({ length: count }, (_, index) => ({
    client:
      f.version === 4 ? `198.51.${index >> 8}.${index & 255}` : `2001:db8:c::${(index + 1).toString(16)}`,
  }));

/** How often each VM was chosen. */
function shares(chosen: (number | string)[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const one of chosen) counts[one] = (counts[one] ?? 0) + 1;
  return counts;
}

/** As bpf/service.h has it, over 64-bit words of the flow's key: every host must come to the same. */
function hash(words: bigint[]): number {
  const mask = (1n << 64n) - 1n;
  const sum = [...words, 0n].reduce((hash, word) => {
    const product = ((hash ^ word) * 0x9e3779b97f4a7c15n) & mask;
    return product ^ (product >> 32n);
  }, 0n);
  return Number((sum >> 16n) & 0xffff_ffffn);
}

function wordsOf(key: Buffer): bigint[] {
  return Array.from({ length: key.length / 8 }, (_, index) => key.readBigUInt64LE(index * 8));
}

const families = Object.entries(FAMILIES);

describe.each(families)("%s", (_, f) => {
  const tuple = (flow: Flow): Tuple =>
    tcpTuple(f, { remotePort: flow.port ?? 40000, remote: flow.client ?? f.client });

  describe("maglev", () => {
    test("the place is the flow's hash: the same by every hook, on every host, after any restart", () => {
      scene(f, 61, "MAGLEV");
      for (const flow of [...ports(100), ...clients(f, 100)]) {
        const wanted = (hash(wordsOf(world.flowKey(tuple(flow)))) % 61) + 1;
        for (const program of UPLINK_PROGRAMS) {
          world.clearFlows();
          expect(choose(f, flow, program)).toBe(wanted);
        }
      }
    });

    test("flows of one client spread, and each VM has about its share", () => {
      const table = maglevTable(
        [1, 2, 3].map((cell) => ({ cell, key: `vm${cell}`, weight: cell })),
        61,
      );
      scene(f, 3, "MAGLEV", [...table]);
      const counts = shares(ports(1200).map((flow) => choose(f, flow)));
      for (const vm of [1, 2, 3]) {
        const wanted = (1200 * [...table].filter((cell) => cell === vm).length) / 61;
        expect(Math.abs(counts[vm]! - wanted), `VM ${vm}: ${counts[vm]}`).toBeLessThan(wanted * 0.25);
      }
      expect(services.counted()).toEqual({ flows: 1200 });
    });
  });

  test("source-hash: by the client's address alone", () => {
    scene(f, 61, "SOURCE_HASH");
    const found = clients(f, 150).map(({ client }) => {
      const words = wordsOf(world.flowKey(tuple({ client })));
      const wanted = (hash(f.version === 4 ? [words[0]! >> 32n] : words.slice(2, 4)) % 61) + 1;
      expect(choose(f, { client })).toBe(wanted);
      for (const flow of [{ port: 1 }, { port: 2, proto: "udp" }, { port: 3, proto: "echo" }] as const) {
        expect(choose(f, { client, ...flow })).toBe(wanted);
      }
      return wanted;
    });
    expect(Object.keys(shares(found)).length).toBeGreaterThan(45);
  });

  test("round-robin: in the order of the pool's places, each pool in its own", () => {
    const order = [1, 2, 1, 3, 1];
    scene(f, 3, "ROUND_ROBIN", order);
    expect(ports(12).map((flow) => choose(f, flow))).toEqual([...order, ...order, 1, 2]);
    services.putPool(2, "ROUND_ROBIN", [3, 2]);
    services.changeService(SERVICE, { pool: 2 });
    expect(clients(f, 3).map((flow) => choose(f, flow))).toEqual([3, 2, 3]);
    services.changeService(SERVICE, { pool: POOL });
    expect(
      clients(f, 6)
        .slice(3)
        .map((flow) => choose(f, flow)),
    ).toEqual([1, 3, 1]);
  });

  test("round-robin: the turn goes on where a counter of 32 bits begins anew", () => {
    scene(f, 2, "ROUND_ROBIN");
    const cursor = Buffer.alloc(4);
    const key = Buffer.from([POOL, 0, 0, 0]);
    cursor.writeUInt32LE(0xffff_fffe);
    world.map("pool_cursors").update(key, cursor);
    expect(ports(4).map((flow) => choose(f, flow))).toEqual([1, 2, 1, 2]);
  });

  describe("least-flows", () => {
    test.each<[string, number[], number[] | undefined, number]>([
      ["the fewest", [5, 3, 4], undefined, 2],
      ["none at all", [1, 1, 0], undefined, 3],
      ["the fewest for the weight", [10, 3, 8], [10, 2, 4], 1],
      ["a large weight", [250, 2, 2], [256, 1, 1], 1],
      ["as many flows as there are", [1_000_000, 999_999, 1_048_576], undefined, 2],
      ["a number that the LRU has made less than none counts as none", [0xffff_fff0, 1, 1], undefined, 1],
    ])("%s", (_what, flows, weights, wanted) => {
      scene(f, 3, "LEAST_FLOWS", [1, 2, 3], weights);
      for (const flow of ports(8)) {
        for (const [index, count] of flows.entries()) services.setFlows(index + 1, count);
        expect(choose(f, flow)).toBe(wanted);
      }
    });

    test("flows that end make room, weights hold over many", () => {
      scene(f, 3, "LEAST_FLOWS", [1, 2, 3], [4, 2, 1]);
      const found = shares(ports(700).map((flow) => choose(f, flow)));
      expect(Math.abs(found[1]! - 400)).toBeLessThan(8);
      expect(Math.abs(found[2]! - 200)).toBeLessThan(8);
      expect([1, 2, 3].map((vm) => services.flows(vm))).toEqual([found[1], found[2], found[3]]);
      services.setFlows(3, 0);
      expect(clients(f, 50).map((flow) => choose(f, flow))).toEqual(Array(50).fill(3));
    });

    test("equals are taken at random, of a large pool some are looked at", () => {
      scene(f, 40, "LEAST_FLOWS");
      const found = ports(200).map((flow) => {
        for (const vm of upTo(40)) services.setFlows(vm, 7);
        return choose(f, flow);
      });
      expect(Object.keys(shares(found)).length).toBeGreaterThan(30);
      // Of any 16 that follow each other one has fewer.
      for (const vm of upTo(40)) services.setFlows(vm, vm % 16 === 0 ? 1 : 50);
      services.setFlows(40, 1);
      for (const flow of clients(f, 40)) {
        expect([16, 32, 40]).toContain(choose(f, flow));
        for (const vm of [16, 32, 40]) services.setFlows(vm, 1);
      }
    });

    test("weights stand behind all places, in another line as well", () => {
      const weights = upTo(40).map((vm) => (vm === 33 ? 100 : 1));
      scene(f, 40, "LEAST_FLOWS", upTo(40), weights);
      const found = ports(60).map((flow) => {
        for (const vm of upTo(40)) services.setFlows(vm, vm === 33 ? 90 : 80);
        return choose(f, flow);
      });
      // Whenever it is among those that are looked at: 16 of 40.
      expect(shares(found)[33]).toBeGreaterThan(8);
    });
  });

  describe.each(["MAGLEV", "ROUND_ROBIN", "LEAST_FLOWS", "SOURCE_HASH"] as const)("%s", (policy) => {
    test.each<[string, () => void]>([
      ["is down", () => services.setState(1, "DOWN")],
      ["drains", () => services.setState(1, "DRAIN")],
      ["is not known to be up", () => services.setState(1, "UNKNOWN")],
      ["has no tap", () => services.changeVm(1, { ifindex: 0 })],
      ["has no cell any more", () => services.removeVm(1)],
    ])("a VM that %s is passed over", (_what, change) => {
      scene(f, 2, policy, [1, 2]);
      change();
      for (const flow of [...ports(10), ...clients(f, 10)]) expect(choose(f, flow)).toBe(2);
    });

    test("none is up: dropped, counted, and no flow", () => {
      scene(f, 2, policy, [1, 2]);
      services.setState(1, "DOWN");
      services.setState(2, "DRAIN");
      for (const program of UPLINK_PROGRAMS) expect(choose(f, {}, program)).toBe("service_empty");
      expect(services.counted()).toEqual({ empty: 2 });
      expect(world.flowCount()).toBe(0);
      expect([1, 2].map((vm) => services.flows(vm))).toEqual([0, 0]);
      services.setState(2, "UP");
      expect(choose(f)).toBe(2);
    });

    test("an empty pool, and none", () => {
      scene(f, 2, policy, []);
      expect(choose(f)).toBe("service_empty");
      services.changeService(SERVICE, { pool: 0 });
      expect(choose(f)).toBe("service_empty");
      services.changeService(SERVICE, { pool: 100_000 });
      expect(choose(f)).toBe("service_empty");
    });
  });

  test("a place beyond the lines is nobody's", () => {
    scene(f, 2, "ROUND_ROBIN", [1, 2]);
    services.tables.services.pools.set(POOL, { line: 63, size: 400, policy: 1 });
    expect(choose(f)).toBe("service_empty");
  });

  test("a VM stands in one of the cells that follow its own", () => {
    scene(f, 2, "ROUND_ROBIN", [3]);
    const far = placeOf(9);
    // Its cell is that of VM 1, the next one VM 2's.
    expect(services.putVm(VMS_MAX + 1, far)).toBe(3);
    expect(choose(f)).toBe(9);
    expect(world.flow(tuple({}))!.flow.vm).toBe(VMS_MAX + 1);
    expect(services.flows(VMS_MAX + 1)).toBe(1);
    services.setState(VMS_MAX + 1, "DRAIN");
    const run = world.run("learn_tc", IFINDEX.uplink_a, packetOf(f, {}));
    expect(macText(run.out.subarray(0, 6))).toBe(far.mac);
    // Over the end of the table it begins anew.
    services.putVm(3 * VMS_MAX - 1, placeOf(10));
    expect(services.putVm(4 * VMS_MAX - 1, placeOf(11))).toBe(0);
    services.putPool(POOL, "ROUND_ROBIN", [0, VMS_MAX - 1]);
    expect(ports(2).map((flow) => choose(f, flow))).toEqual([10, 11]);
  });

  describe("associations", () => {
    const wide = f.version === 4 ? "198.51.100.0/24" : "2001:db8:c::/64";

    beforeEach(() => {
      scene(f, 4, "ROUND_ROBIN", [1]);
      services.putPool(2, "ROUND_ROBIN", [2]);
      services.putPool(3, "ROUND_ROBIN", [3, 4]);
      services.associate(SERVICE, wide, 2);
      services.associate(SERVICE, f.client2, 3);
    });

    test("the longest prefix of the client wins, and its pool is like any other", () => {
      expect(choose(f)).toBe(2);
      expect(ports(3).map((flow) => choose(f, { client: f.client2, ...flow }))).toEqual([3, 4, 3]);
      expect(choose(f, { client: f.version === 4 ? "203.0.113.1" : "2001:db8:d::1" })).toBe(1);
      expect(services.counted()).toEqual({ flows: 5, associated: 4 });
    });

    test("one whose VMs are not up does not count: the service's pool does", () => {
      services.setState(2, "DOWN");
      expect(choose(f)).toBe(1);
      services.setState(3, "DRAIN");
      expect(choose(f, { client: f.client2 })).toBe(4);
      services.setState(4, "DOWN");
      expect(choose(f, { client: f.client2, port: 7 })).toBe(1);
      services.setState(1, "DOWN");
      expect(choose(f, { client: f.client2, port: 8 })).toBe("service_empty");
      expect(services.counted()).toEqual({ flows: 3, associated: 1, empty: 1 });
    });

    test("of another service, of the other family, and without the flag: none", () => {
      services.putService(2, { pool: POOL, flags: SERVICE_FLAG.ASSOCIATED });
      services.putKey(2, { prefix: f.vm, proto: 17, port: VM_PORT });
      expect(choose(f, { proto: "udp" })).toBe(1);
      services.associate(SERVICE, f.version === 4 ? "2001:db8:c::/64" : "198.51.100.0/24", 3);
      expect(choose(f)).toBe(2);
      services.changeService(SERVICE, { flags: 0 });
      expect(choose(f, { port: 7 })).toBe(1);
    });

    test("every client of the family", () => {
      scene(f, 4, "ROUND_ROBIN", [1]);
      services.putPool(2, "ROUND_ROBIN", [2]);
      services.associate(SERVICE, f.version === 4 ? "0.0.0.0/0" : "::/0", 2);
      expect(choose(f)).toBe(2);
    });
  });

  describe("affinity", () => {
    const TICKS = 1000;
    const seen = () => services.affinity(SERVICE, f.client);
    const now = () => currentTick();

    beforeEach(() => {
      scene(f, 4, "ROUND_ROBIN", [1, 2, 3]);
      services.changeService(SERVICE, { affinity_ticks: TICKS });
    });

    test("a client's flows go to the VM that had its last one, other clients' in turn", () => {
      expect(ports(3).map((flow) => choose(f, flow))).toEqual([1, 1, 1]);
      expect(choose(f, { client: f.client2 })).toBe(2);
      expect(choose(f, { proto: "udp" })).toBe(1);
      expect(services.counted()).toEqual({ flows: 5, affine: 3 });
      expect(seen()!.vm).toBe(1);
    });

    test("for so long after its last flow, and no longer", () => {
      services.setAffinity(SERVICE, f.client, 3, now() - TICKS + 20);
      expect(choose(f)).toBe(3);
      // That was a flow: it counts from now on.
      expect(now() - seen()!.last_seen).toBeLessThan(5);
      services.setAffinity(SERVICE, f.client, 3, now() - TICKS);
      expect(choose(f, { port: 7 })).toBe(1);
      expect(seen()).toMatchObject({ vm: 1 });
      expect(choose(f, { port: 8 })).toBe(1);
    });

    test.each(["DRAIN", "DOWN"] as const)("not to a VM whose state is %s", (state) => {
      expect(choose(f)).toBe(1);
      services.setState(1, state);
      expect(choose(f, { port: 7 })).toBe(2);
      services.setState(1, "UP");
      // The client has moved.
      expect(choose(f, { port: 8 })).toBe(2);
    });

    test("not to a VM that is gone", () => {
      services.setAffinity(SERVICE, f.client, 77, now());
      expect(choose(f)).toBe(1);
    });

    test("an association comes first, and is none", () => {
      services.putPool(2, "ROUND_ROBIN", [4]);
      expect(choose(f)).toBe(1);
      services.associate(SERVICE, f.client, 2);
      expect(choose(f, { port: 7 })).toBe(4);
      expect(seen()!.vm).toBe(1);
      services.setState(4, "DOWN");
      expect(choose(f, { port: 8 })).toBe(1);
      expect(services.counted()).toEqual({ flows: 3, associated: 1, affine: 1 });
    });

    test("without a time nothing is kept", () => {
      services.changeService(SERVICE, { affinity_ticks: 0 });
      expect(ports(3).map((flow) => choose(f, flow))).toEqual([1, 2, 3]);
      expect(seen()).toBeUndefined();
    });
  });

  test("states as the table has them", () => {
    scene(f, 2, "ROUND_ROBIN", [1]);
    for (const state of Object.values(VM_STATE)) {
      world.clearFlows();
      services.changeVm(1, { state });
      expect(choose(f)).toBe(state === VM_STATE.UP ? 1 : "service_empty");
    }
  });
});
