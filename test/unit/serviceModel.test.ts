// SPDX-License-Identifier: Apache-2.0
// What the tables of services are to hold, and by which writes they come to it: for random services and VMs, and tables
// that are small.

import { describe, expect, it } from "vitest";
import { decode, encode } from "../../src/abi/codec.ts";
import { SERVICE_POLICY, VM_STATE } from "../../src/abi/layout.gen.ts";
import { type ServiceConfig, service, vm } from "../../src/config/services.ts";
import { atOnce } from "../../src/controller/pieces.ts";
import {
  type ObservedServices,
  type RoomHints,
  type ServiceChanges,
  serviceChanges,
} from "../../src/controller/serviceChanges.ts";
import { type ModelService, type Wanted, wantedContents } from "../../src/controller/serviceModel.ts";
import { type KnownPools, type ModelVm, poolDigest, poolLength } from "../../src/controller/servicePools.ts";
import { linesOf } from "../../src/tables/index.ts";
import { Random } from "../kernel/support/random.ts";

const POLICIES = ["maglev", "round-robin", "least-flows", "source-hash"] as const;

function modelVm(number: number, more: Partial<ModelVm> = {}, labels: string[] = []): ModelVm {
  const config = vm.parse({ name: `vm${number}`, tap: `vnet${number}`, labels });
  const common = {
    zone: 0,
    id: number + 1,
    cell: number + 1,
    state: VM_STATE.UP,
    mac: Buffer.alloc(6, number + 1),
  };
  return { name: config.name, config, ...common, ...more };
}

function modelService(index: number, config: Partial<ServiceConfig>): ModelService {
  const parsed = service.parse({ name: `s${index}`, address: `10.0.0.${index}`, port: 80, ...config });
  return { name: parsed.name, zone: 0, index, config: parsed };
}

function want(services: ModelService[], vms: ModelVm[], lines = 4096, known: KnownPools = new Map()): Wanted {
  return atOnce(wantedContents(services, vms, known, lines));
}

/** The tables of services as values. */
class Model {
  readonly room: ObservedServices["room"];
  readonly hints: RoomHints = { pool: 1, line: 0 };
  readonly entries = new Map<number, Buffer>();
  readonly keys = new Map<string, { key: Buffer; value: number }>();
  readonly associations = new Map<string, { key: Buffer; value: number }>();
  readonly pools = new Map<number, { line: number; size: number; policy: number }>();
  readonly lines: Uint16Array;

  constructor(room: ObservedServices["room"]) {
    this.room = room;
    this.lines = new Uint16Array(room.lines * 32);
  }

  observe(): ObservedServices {
    const named = new Set([
      ...[...this.entries.values()].map((entry) => entry.readUInt32LE(0)),
      ...[...this.associations.values()].map(({ value }) => value),
    ]);
    named.delete(0);
    const pools = [...named].map((index) => {
      const { line, size, policy } = this.pools.get(index)!;
      const cells = this.lines.slice(line * 32, line * 32 + poolLength(policy, size));
      const count = linesOf(cells.length);
      return [index, { line, count, digest: poolDigest(policy, size, cells) }] as const;
    });
    const { entries, keys, associations, room } = this;
    return { entries, keys, associations, room, pools: new Map(pools) };
  }

  change(wanted: Wanted, kept: ReadonlySet<number> = new Set()): ServiceChanges {
    return atOnce(serviceChanges(wanted, this.observe(), kept, this.hints));
  }

  apply(changes: ServiceChanges): void {
    for (const { line, cells } of changes.lines) {
      this.lines.fill(0, line * 32, (line + linesOf(cells.length)) * 32);
      this.lines.set(cells, line * 32);
    }
    for (const { index, content, line } of changes.pools) this.pools.set(index, { ...content, line });
    for (const { index, entry } of changes.services) this.#setEntry(index, entry);
    for (const row of changes.associations) this.associations.set(row.key.toString("hex"), row);
    for (const row of changes.keys) this.keys.set(row.key.toString("hex"), row);
    for (const key of changes.removed.keys) this.keys.delete(key.toString("hex"));
    for (const key of changes.removed.associations) this.associations.delete(key.toString("hex"));
    for (const index of changes.removed.services) this.#setEntry(index, encode("service", {}));
  }

  #setEntry(index: number, entry: Buffer): void {
    if (entry.every((byte) => byte === 0)) this.entries.delete(index);
    else this.entries.set(index, entry);
  }

  /** Cells that new flows of a service go to. */
  cellsOf(index: number): Set<number> {
    const entry = this.entries.get(index);
    return entry ? this.cellsIn(decode("service", entry).pool) : new Set();
  }

  cellsIn(pool: number): Set<number> {
    if (pool === 0) return new Set();
    const { line, size } = this.pools.get(pool)!;
    return new Set(this.lines.slice(line * 32, line * 32 + size));
  }
}

const writes = ({ lines, pools, services, associations, keys, removed }: ServiceChanges): number =>
  [lines, pools, services, associations, keys, ...Object.values(removed)].reduce(
    (sum, { length }) => sum + length,
    0,
  );

/** Nothing that a program may be reading is written over. */
function expectFresh({ pools }: ObservedServices, changes: ServiceChanges): void {
  const inUse = new Set<number>();
  for (const { line, count } of pools.values()) for (let at = 0; at < count; at++) inUse.add(line + at);
  for (const { line, cells } of changes.lines) {
    for (let at = 0; at < linesOf(cells.length); at++) expect(inUse.has(line + at)).toBe(false);
  }
  for (const { index } of changes.pools) {
    expect(index).toBeGreaterThan(0);
    expect(pools.has(index)).toBe(false);
  }
}

describe("members of a pool", () => {
  const vms = [
    modelVm(0, {}, ["web"]),
    modelVm(1, {}, ["web", "new"]),
    modelVm(2),
    modelVm(3, { zone: 7 }, ["web"]),
  ];
  const weightsOf = (pool: object[]): number[] => {
    const { services, problems } = want([modelService(1, { policy: "least-flows", pool } as never)], vms);
    expect(problems).toEqual([]);
    return [...(services[0]!.pool?.cells ?? [])];
  };

  it.each<[string, object[], number[]]>([
    ["by name", [{ vm: "vm2", weight: 3 }], [3, 3]],
    ["by label, in their zone", [{ label: "web" }], [1, 2, 1, 1]],
    ["of a label, each with its weight", [{ label: "web", weight: 5 }], [1, 2, 5, 5]],
    ["named and labelled: its own weight counts", [{ label: "web" }, { vm: "vm1", weight: 9 }], [1, 2, 1, 9]],
    [
      "of two labels: the first one's weight",
      [
        { label: "new", weight: 4 },
        { label: "web", weight: 2 },
      ],
      [1, 2, 2, 4],
    ],
  ])("%s", (_, pool, expected) => {
    expect(weightsOf(pool)).toEqual(expected);
  });

  it.each<[string, object]>([
    ["no VM of its zone is called vm9", { vm: "vm9" }],
    ["no VM of its zone is called vm3", { vm: "vm3" }],
    ["no VM of its zone has the label gone", { label: "gone" }],
  ])("are told if %s, and the others serve", (text, member) => {
    const pool = [{ vm: "vm0" }, member];
    const { services, problems } = want([modelService(1, { pool } as never)], vms);
    expect(problems).toEqual([`service s1: ${text}`]);
    expect(services[0]).toMatchObject({ up: 1, all: 1 });
  });

  it.each([
    ["down", { state: VM_STATE.DOWN }],
    ["drained", { state: VM_STATE.DRAIN }],
    ["without a cell", { cell: null }],
  ])("that are %s get no new flows, and the table stays as large", (_, more) => {
    const all = [0, 1, 2].map((number) => modelVm(number));
    const pool = all.map(({ name }) => ({ vm: name }));
    const services = [modelService(1, { pool } as never)];
    const before = want(services, all).services[0]!.pool!;
    const after = want(services, [modelVm(0, more), ...all.slice(1)]).services[0]!;
    expect(after).toMatchObject({ up: 2, all: 3 });
    expect(after.pool!.size).toBe(before.size);
    expect(new Set(after.pool!.cells)).toEqual(new Set([2, 3]));
    expect([...after.ids]).toEqual([1, 2, 3]);
  });
});

describe("pools", () => {
  it("of the same VMs are one, unless their policies differ", () => {
    const vms = [modelVm(0, {}, ["a"]), modelVm(1, {}, ["a"])];
    const named = [{ vm: "vm0" }, { vm: "vm1" }];
    const services = [
      modelService(1, { pool: named } as never),
      modelService(2, { pool: named.toReversed() } as never),
      modelService(3, { pool: [{ label: "a" }] } as never),
      modelService(4, { pool: named, policy: "source-hash" } as never),
    ];
    const model = new Model({ services: 8, pools: 8, lines: 64 });
    model.apply(model.change(want(services, vms)));
    const pools = services.map(({ index }) => decode("service", model.entries.get(index)!).pool);
    expect(new Set(pools.slice(0, 3)).size).toBe(1);
    expect(new Set(pools).size).toBe(2);
    expect(model.pools.get(pools[3]!)!.policy).toBe(SERVICE_POLICY.SOURCE_HASH);
  });

  it("are worked out once", () => {
    const known: KnownPools = new Map();
    const services = [modelService(1, { pool: [{ vm: "vm0" }, { vm: "vm1" }] } as never)];
    const first = want(services, [modelVm(0), modelVm(1)], 4096, known).services[0]!.pool;
    expect(want(services, [modelVm(0), modelVm(1)], 4096, known).services[0]!.pool).toBe(first);
    want(services, [modelVm(0), modelVm(1, { state: VM_STATE.DOWN })], 4096, known);
    // What nobody wants any more is not kept.
    expect(known.size).toBe(1);
  });

  it("that nobody can read stay, with all that leads there", () => {
    const vms = [modelVm(0), modelVm(1)];
    const one = modelService(1, {
      pool: [{ vm: "vm0" }],
      associations: [{ client: "10.0.0.0/8", vm: "vm1" }],
    } as never);
    const other = modelService(2, { pool: [{ vm: "vm1" }] } as never);
    const model = new Model({ services: 8, pools: 8, lines: 64 });
    model.apply(model.change(want([one, other], vms)));
    const changes = model.change(want([other], vms), new Set([1]));
    expect(writes(changes)).toBe(0);
    const { removed } = model.change(want([other], vms));
    expect([removed.keys.length, removed.associations.length, removed.services]).toEqual([3, 1, [1]]);
  });
});

/** Some services, with others than before here and there. */
function randomServices(random: Random, vms: number): ModelService[] {
  return Array.from({ length: 12 }, (_, at) => at + 1).flatMap((index) => {
    if (random.chance(4)) return [];
    const members = Array.from({ length: vms }, (_, number) => number).filter(() => random.chance(2));
    const pool = members.map((number) => ({ vm: `vm${number}`, weight: 1 + random.below(3) }));
    const associations = random.chance(3)
      ? [{ client: `10.${random.below(4)}.0.0/16`, vm: `vm${random.below(vms)}` }]
      : [];
    if (pool.length === 0) pool.push({ vm: "vm0", weight: 1 });
    const policy = random.pick([...POLICIES]);
    const protocol = random.pick(["tcp", "udp", "any", "icmp"]);
    const port =
      protocol === "tcp" || protocol === "udp" ? { port: random.below(3) + 1 } : { port: undefined };
    return [modelService(index, { policy, pool, associations, protocol, ...port } as never)];
  });
}

describe("from change to change", () => {
  it.each(Array.from({ length: 30 }, (_, seed) => seed))("all leads where it is to lead, seed %i", (seed) => {
    const random = new Random(seed);
    const model = new Model({ services: 16, pools: 64, lines: 2048 });
    let services = randomServices(random, 8);
    for (let round = 0; round < 8; round++) {
      if (random.chance(2)) services = randomServices(random, 8);
      const vms = Array.from({ length: 8 }, (_, number) => {
        return modelVm(number, { state: random.chance(4) ? VM_STATE.DOWN : VM_STATE.UP });
      });
      const up = new Map(
        vms.filter(({ state }) => state === VM_STATE.UP).map(({ name, cell }) => [name, cell!]),
      );
      const wanted = want(services, vms, model.room.lines);
      const before = model.observe();
      const stayed = new Map(
        wanted.services.map(({ index }) => [index, model.entries.get(index)?.readUInt32LE(0)]),
      );
      const changes = model.change(wanted);
      expectFresh(before, changes);
      model.apply(changes);
      expect(changes.problems).toEqual([]);
      for (const { index, config } of services) {
        const members = config.pool.flatMap((member) => up.get(member.vm!) ?? []);
        expect(model.cellsOf(index)).toEqual(new Set(members));
        expect([...model.keys.values()].some(({ value }) => value === index)).toBe(true);
      }
      const named = services.flatMap(({ config }) =>
        config.associations.flatMap((one) => up.get(one.vm!) ?? []),
      );
      const stored = [...model.associations.values()].map(({ value }) => [...model.cellsIn(value)]);
      expect(stored.flat().sort()).toEqual(named.sort());
      expect([...model.entries.keys()].sort()).toEqual(services.map(({ index }) => index).sort());
      // A second time there is nothing to do, and what has the same content is where it was.
      expect(writes(model.change(want(services, vms, model.room.lines)))).toBe(0);
      for (const { index, pool } of wanted.services) {
        const old = stayed.get(index);
        const had = old ? before.pools.get(old)?.digest : undefined;
        if (pool && had === pool.digest) expect(model.entries.get(index)!.readUInt32LE(0)).toBe(old);
      }
    }
  });

  it("room is given out in turns, so that what was read a moment ago is not written over soon", () => {
    const model = new Model({ services: 4, pools: 32, lines: 1024 });
    const places: number[] = [];
    for (let round = 0; round < 12; round++) {
      const vms = [modelVm(0), modelVm(1), modelVm(round % 2 === 0 ? 2 : 3)];
      const pool = vms.map(({ name }) => ({ vm: name }));
      const changes = model.change(want([modelService(1, { pool } as never)], vms, 1024));
      places.push(...changes.lines.map(({ line }) => line));
      model.apply(changes);
    }
    expect(places).toHaveLength(12);
    expect(new Set(places).size).toBe(12);
  });
});
