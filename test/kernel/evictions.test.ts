// SPDX-License-Identifier: Apache-2.0
// What the balance of the programs says against what is in the tables: evictions are counted by tier and state,
// exactly, and nothing else is taken for one.

import { afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { currentTick, FLOW_STATE_NAMES, secondsToTicks } from "../../src/abi/codec.ts";
import { FLOW_STATE, FLOW_STATES, TIMEOUTS } from "../../src/abi/layout.gen.ts";
import { sweepInstance } from "../../src/controller/sweep.ts";
import { removeFlows } from "../../src/ops/flows.ts";
import { type FlowTable, stateAt, Tables } from "../../src/tables/index.ts";
import { createDevices, enterPrivateNamespace, IFINDEX } from "./support/devices.ts";
import { FAMILIES, type Family } from "./support/scene.ts";
import { CLIENT_ISN, c, cs, cu, VM_ISN, v, vs, vu } from "./support/talk.ts";
import { World } from "./support/world.ts";

const NONE = new Array<number>(FLOW_STATES).fill(0);

let world: World;
let tables: Tables;

beforeAll(() => {
  enterPrivateNamespace();
  createDevices();
});

// Anew each time: what a test empties by hand is not counted.
beforeEach(() => {
  world = new World();
  world.reset();
  tables = new Tables(world);
});

afterEach(() => world.close());

const request = (frame: Buffer) => world.runFast("learn_tc", IFINDEX.uplink_a, frame);
const reply = (frame: Buffer) => world.runFast("reply_tc", IFINDEX.tap_1, frame);

/** Flows number 0 to 60,000 of a family differ in the client's port. */
const client = (number: number) => ({ sourcePort: 1024 + number });
const vm = (number: number) => ({ destinationPort: 1024 + number });

function syn(f: Family, number: number): void {
  request(c(f, "S", client(number)));
}

function handshake(f: Family, number: number): void {
  syn(f, number);
  reply(v(f, "SA", vm(number)));
  request(c(f, "A", client(number)));
}

function inTable(table: FlowTable): number[] {
  const states = [...NONE];
  for (const { count, values } of table.batches()) {
    for (let place = 0; place < count; place++) states[stateAt(values, place * table.valueSize)]!++;
  }
  return states;
}

const byName = (states: readonly number[]) =>
  Object.fromEntries(
    states.flatMap((count, state) => (count === 0 ? [] : [[FLOW_STATE_NAMES[state], count]])),
  );

/** After one pass, by table. */
async function evictions(): Promise<Record<string, Record<string, number>>> {
  const { tables: found } = await sweepInstance(world);
  return Object.fromEntries(found.map(({ name, report }) => [name, byName(report.evicted)]));
}

const NOTHING = { flows4: {}, flows6: {}, embryos4: {}, embryos6: {} };

describe.each(Object.entries(FAMILIES))("%s", (_name, f) => {
  const flows = `flows${f.version}`;
  const embryos = `embryos${f.version}`;
  const established = () => tables.flows.table(f.version, "established");
  const embryonic = () => tables.flows.table(f.version, "embryonic");

  it("a flood of SYNs evicts embryos, and nothing that is established", async () => {
    const held = 500;
    for (let number = 0; number < held; number++) handshake(f, number);
    const size = world.map(embryos).maxEntries;
    const flood = size * 2;
    for (let number = 0; number < flood; number++) syn(f, 2000 + number);
    const left = inTable(embryonic())[FLOW_STATE.SYN]!;
    expect(left).toBeLessThanOrEqual(size);
    expect(left).toBeGreaterThan(0);
    expect(await evictions()).toEqual({ ...NOTHING, [embryos]: { syn: flood - left } });
    expect(byName(inTable(established()))).toEqual({ established: held });
    // More of the same, and the count goes on from there.
    for (let number = 0; number < 1000; number++) syn(f, 40_000 + number);
    const now = inTable(embryonic())[FLOW_STATE.SYN]!;
    expect(await evictions()).toEqual({ ...NOTHING, [embryos]: { syn: flood + 1000 - now } });
    expect(await evictions()).toEqual({ ...NOTHING, [embryos]: { syn: flood + 1000 - now } });
  });

  it("more connections than there is room for evict connections, by the state that they were in", async () => {
    const size = world.map(flows).maxEntries;
    const all = size * 3;
    for (let number = 0; number < all; number++) {
      handshake(f, number);
      // Every third is half closed when it goes; used again, these are the last.
      if (number % 3 === 0) request(c(f, "FA", client(number)));
    }
    const left = inTable(established());
    const halfClosed = Math.ceil(all / 3);
    const truth = {
      half_closed: halfClosed - left[FLOW_STATE.HALF_CLOSED]!,
      established: all - halfClosed - left[FLOW_STATE.ESTABLISHED]!,
    };
    expect(truth.established).toBeGreaterThan(500);
    expect(truth.half_closed).toBeGreaterThan(500);
    expect(await evictions()).toEqual({ ...NOTHING, [flows]: truth });
  });

  it("keeps the balance through a flow's life, whatever it is", async () => {
    // Promotion, both FINs, a blind RST that the VM disproves, RST of the VM, restart, pick-up, UDP, SCTP.
    for (let number = 0; number < 10; number++) handshake(f, number);
    request(c(f, "FA", client(0)));
    reply(v(f, "FA", { ...vm(1), seq: VM_ISN + 1 }));
    request(c(f, "FA", client(2)));
    reply(v(f, "FA", vm(2)));
    request(c(f, "R", { ...client(3), seq: CLIENT_ISN + 1 }));
    reply(v(f, "A", vm(3)));
    reply(v(f, "R", vm(4)));
    request(c(f, "R", client(5)));
    request(c(f, "S", { ...client(6), seq: 777_777 }));
    for (let number = 20; number < 25; number++) {
      request(c(f, "A", client(number)));
      reply(v(f, "A", vm(number)));
      if (number > 21) request(c(f, "A", client(number)));
    }
    for (let times = 0; times < 3; times++) {
      request(cu(f));
      reply(vu(f));
      request(cs(f, times === 0 ? "init" : "data"));
      reply(vs(f, times === 0 ? "initAck" : "data"));
    }
    syn(f, 30);
    reply(v(f, "S", vm(31))); // of the VM's own
    for (const table of [established(), embryonic()]) {
      expect(byName(tables.sweep.balance.read(table.table))).toEqual(byName(inTable(table)));
    }
    expect(Object.keys(byName(inTable(established())))).toEqual(
      expect.arrayContaining(["established", "half_closed", "closed"]),
    );
    expect(await evictions()).toEqual(NOTHING);
  });

  it("does not take what expires, or what is flushed, for evicted", async () => {
    for (let number = 0; number < 300; number++) handshake(f, number);
    for (let number = 0; number < 200; number++) syn(f, 1000 + number);
    const long_ago = (currentTick() - secondsToTicks(10_000)) >>> 0;
    let aged = 0;
    for (const { count, keys, values } of established().batches()) {
      for (let place = 0; place < count && aged < 120; place++, aged++) {
        const key = Buffer.from(
          keys.subarray(place * established().keySize, (place + 1) * established().keySize),
        );
        values.writeUInt32LE(long_ago, place * established().valueSize + 4);
        established().map.update(
          key,
          values.subarray(place * established().valueSize, (place + 1) * established().valueSize),
        );
      }
    }
    world.changeControl({ timeouts: Array(TIMEOUTS).fill(secondsToTicks(60)) });
    expect(removeFlows(tables, { state: "syn" })).toBe(200);
    expect(removeFlows(tables, { limit: 50 })).toBe(50);
    const { tables: found } = await sweepInstance(world);
    const report = found.find(({ name }) => name === flows)!.report;
    expect(report.entries).toBe(250);
    expect(report.expired).toBeGreaterThan(60);
    expect(found.map((table) => byName(table.report.evicted))).toEqual([{}, {}, {}, {}]);
    for (const table of [established(), embryonic()]) {
      expect(byName(tables.sweep.balance.read(table.table))).toEqual(byName(inTable(table)));
    }
    expect(removeFlows(tables, {})).toBe(250 - report.expired);
    expect(await evictions()).toEqual(NOTHING);
  });
});

describe("flush", () => {
  it("counts what a flow was when it went, and not one that somebody else was quicker to delete", () => {
    const f = FAMILIES.ipv4;
    for (let number = 0; number < 3; number++) handshake(f, number);
    const table = tables.flows.table(4, "established");
    const map = world.map("flows4");
    let asked = 0;
    const real = map.takeInto.bind(map);
    map.takeInto = (key, value) => {
      asked++;
      if (asked === 1) return map.delete(key) && false; // vanished
      if (asked === 2) {
        const flow = map.lookup(key)!;
        flow[12] = FLOW_STATE.CLOSED;
        map.update(key, flow);
      }
      return real(key, value);
    };
    expect(removeFlows(tables, {})).toBe(2);
    const removed = tables.sweep.balance.read(table.table);
    // Three were established: one is counted as that, one as closed, and one not at all.
    expect(byName(removed)).toEqual({ established: 2, closed: -1 });
    expect(inTable(table)).toEqual(NONE);
  });
});
