// SPDX-License-Identifier: Apache-2.0
// Where a named VM is: what was given, then what the hot path saw, then what the host's tables know.

import { describe, expect, it } from "vitest";
import { ORIGIN, VMS_MAX } from "../../src/abi/layout.gen.ts";
import { formatMac, parseMac } from "../../src/addresses.ts";
import { type VmConfig, vm } from "../../src/config/services.ts";
import { vmSpecOf } from "../../src/controller/serviceSpec.ts";
import { type CellRequest, planCells } from "../../src/controller/vmCells.ts";
import { type PlaceFacts, type Tap, vmKeyOf, vmPlaces } from "../../src/controller/vmPlaces.ts";
import type { FdbEntry, Neighbour } from "../../src/kernel/rtnetlink.ts";
import { cellsFor, type VmCell } from "../../src/tables/index.ts";
import { link, namedVm } from "../support/planModel.ts";

const A = "52:54:00:00:00:0a";
const B = "52:54:00:00:00:0b";
const BRIDGE = 5;
const VLAN = 6;

function tap(number: number, more: Partial<Tap> & { mac?: string } = {}): Tap {
  const { mac = `02:00:00:00:00:${number}0`, ...rest } = more;
  return {
    link: link(100 + number, `vnet${number}`, { kind: "tun", mac }),
    slot: number,
    zone: 0,
    hostMac: "02:00:00:00:0b:01",
    stack: [100 + number, BRIDGE, VLAN],
    usable: true,
    firstVm: null,
    ...rest,
  };
}

interface Known {
  taps?: Tap[];
  /** MAC → number of the tap. */
  seen?: Record<string, number>;
  fdb?: Partial<FdbEntry>[];
  neighbours?: Partial<Neighbour>[];
}

function facts({ taps = [tap(1), tap(2)], seen = {}, fdb = [], neighbours = [] }: Known): PlaceFacts {
  const last = Object.entries(seen).map(
    ([mac, number]) => [vmKeyOf(0, parseMac(mac)!), { ifindex: 100 + number }] as const,
  );
  return {
    taps,
    seen: new Map(last),
    fdb: () => fdb.map((entry) => ({ master: BRIDGE, vlan: null, local: false, ...entry }) as FdbEntry),
    neighbours: () =>
      neighbours.map((one) => ({ ifindex: BRIDGE, family: 4, state: "reachable", ...one }) as Neighbour),
  };
}

interface Before {
  mac?: string;
  zone?: number;
}

function named(config: Partial<VmConfig> & { name: string }, { mac, zone = 0 }: Before = {}) {
  const spec = { ...vmSpecOf(vm.parse(config), zone, ORIGIN.CONFIG), ...(mac && { mac: parseMac(mac)! }) };
  return namedVm({ name: config.name, spec });
}

/** "vnet1 52:54:…", and what is said of it. */
function placed(config: Partial<VmConfig>, known: Known, before: Before = {}): unknown[] {
  const place = vmPlaces([named({ name: "a", ...config }, before)], facts(known)).get("a")!;
  const where = `${place.tap?.link.name ?? "-"} ${place.mac ? formatMac(place.mac) : "-"}`;
  return [where, ...(place.why === null ? [] : [place.why]), ...place.warnings.map((text) => ({ text }))];
}

describe("a VM whose tap is given", () => {
  it.each<[string, Partial<VmConfig>, Known, Before, unknown[]]>([
    ["is there with its MAC", { mac: A }, {}, {}, [`vnet1 ${A}`]],
    [
      "is whoever was seen there first",
      {},
      { taps: [tap(1, { firstVm: parseMac(A)! })] },
      {},
      [`vnet1 ${A}`],
    ],
    ["is whoever the bridge knows there", {}, { fdb: [{ ifindex: 101, mac: A }] }, {}, [`vnet1 ${A}`]],
    [
      "is none of those that the bridge knows there if they are several",
      {},
      {
        fdb: [
          { ifindex: 101, mac: A },
          { ifindex: 101, mac: B },
        ],
      },
      {},
      ["vnet1 -", `${A}, ${B} are behind vnet1: give it its mac`],
    ],
    [
      "is whoever a routed tap has for a neighbour",
      {},
      { neighbours: [{ ifindex: 101, mac: A }] },
      {},
      [`vnet1 ${A}`],
    ],
    ["is not known yet where nobody was seen", {}, {}, {}, ["vnet1 -", "its MAC is not known yet"]],
    [
      "is followed by its address before who was seen first",
      { address: "192.0.2.1" },
      { taps: [tap(1, { firstVm: parseMac(A)! })], neighbours: [{ address: "192.0.2.1", mac: B }] },
      {},
      [`vnet1 ${B}`],
    ],
    [
      "and it is on a VLAN of the bridge",
      { address: "2001:db8:0::1" },
      { neighbours: [{ ifindex: VLAN, address: "2001:db8::1", mac: B, state: "stale" }] },
      {},
      [`vnet1 ${B}`],
    ],
    [
      "is who the surest neighbour says",
      { address: "192.0.2.1" },
      {
        neighbours: [
          { address: "192.0.2.1", mac: A, state: "stale" },
          { address: "192.0.2.1", mac: B, ifindex: VLAN },
          { address: "192.0.2.1", mac: A, ifindex: VLAN, state: "failed" },
        ],
      },
      {},
      [`vnet1 ${B}`],
    ],
    [
      "is not who answers somewhere else",
      { address: "192.0.2.1" },
      { neighbours: [{ ifindex: 77, address: "192.0.2.1", mac: A }] },
      {},
      ["vnet1 -", "its MAC is not known yet"],
    ],
    ["is who it was, while it is seen there", {}, { seen: { [A]: 1 } }, { mac: A }, [`vnet1 ${A}`]],
    [
      "is who is seen now if the other has gone to another tap",
      {},
      { seen: { [A]: 2 }, taps: [tap(1, { firstVm: parseMac(B)! }), tap(2)] },
      { mac: A },
      [`vnet1 ${B}`],
    ],
    ["is who it was when nobody has been seen since", {}, {}, { mac: A }, [`vnet1 ${A}`]],
    [
      "is who it was when the tap is gone",
      {},
      { taps: [] },
      { mac: A },
      [`- ${A}`, "vnet1 is not attached as a tap in zone 0"],
    ],
    [
      "has no place without the tap",
      {},
      { taps: [] },
      {},
      ["- -", "vnet1 is not attached as a tap in zone 0"],
    ],
    [
      "has none if that is in another zone",
      { mac: A },
      { taps: [tap(1, { zone: 7 })] },
      {},
      [`- ${A}`, "vnet1 is not attached as a tap in zone 0"],
    ],
    [
      "is down with it",
      { mac: A },
      { taps: [tap(1, { usable: false })] },
      {},
      [`vnet1 ${A}`, "vnet1 is down"],
    ],
    [
      "stays there when it is seen elsewhere",
      { mac: A },
      { seen: { [A]: 2 } },
      {},
      [`vnet1 ${A}`, { text: `its MAC ${A} is seen on vnet2, not on vnet1` }],
    ],
    [
      "is where it is seen when its tap is gone",
      { mac: A },
      { seen: { [A]: 2 }, taps: [tap(2)] },
      {},
      [`vnet2 ${A}`, { text: "vnet1 is not attached as a tap in zone 0; it is seen on vnet2" }],
    ],
  ])("%s", (_, config, known, before, expected) => {
    expect(placed({ tap: "vnet1", ...config }, known, before)).toEqual(expected);
  });
});

describe("a VM whose tap is not given", () => {
  it.each<[string, Partial<VmConfig>, Known, Before, unknown[]]>([
    ["is where the hot path saw it", { mac: A }, { seen: { [A]: 2 } }, {}, [`vnet2 ${A}`]],
    ["is where the bridge knows it", { mac: A }, { fdb: [{ ifindex: 102, mac: A }] }, {}, [`vnet2 ${A}`]],
    [
      "is where it was seen rather",
      { mac: A },
      { seen: { [A]: 1 }, fdb: [{ ifindex: 102, mac: A }] },
      {},
      [`vnet1 ${A}`],
    ],
    [
      "is not where the bridge has an address of its own",
      { mac: A },
      { fdb: [{ ifindex: 102, mac: A, local: true }] },
      {},
      [`- ${A}`, `${A} is on no attached tap in zone 0`],
    ],
    [
      "is on the tap that libvirt made for it",
      { mac: A },
      { taps: [tap(1), tap(2, { mac: "fe:54:00:00:00:0a" })] },
      {},
      [`vnet2 ${A}`],
    ],
    [
      "is on the routed tap with it",
      { mac: A },
      { neighbours: [{ ifindex: 102, mac: A }] },
      {},
      [`vnet2 ${A}`],
    ],
    [
      "has no place on two",
      { mac: A },
      {
        fdb: [
          { ifindex: 101, mac: A },
          { ifindex: 102, mac: A },
        ],
      },
      {},
      [`- ${A}`, `${A} is on vnet1 and on vnet2: give it its tap`],
    ],
    [
      "is found by its address",
      { address: "192.0.2.1" },
      { neighbours: [{ address: "192.0.2.1", mac: A }], seen: { [A]: 2 } },
      {},
      [`vnet2 ${A}`],
    ],
    ["is not known before it answers", { address: "192.0.2.1" }, {}, {}, ["- -", "its MAC is not known yet"]],
    [
      "is who it was while the neighbour table has forgotten it",
      { address: "192.0.2.1" },
      { seen: { [A]: 2 } },
      { mac: A },
      [`vnet2 ${A}`],
    ],
    [
      "is on no tap that was detached",
      { mac: A },
      { seen: { [A]: 9 } },
      {},
      [`- ${A}`, `${A} is on no attached tap in zone 0`],
    ],
    [
      "is in no other zone",
      { mac: A },
      { seen: { [A]: 1 }, taps: [tap(1, { zone: 7 })] },
      {},
      [`- ${A}`, `${A} is on no attached tap in zone 0`],
    ],
  ])("%s", (_, config, known, before, expected) => {
    expect(placed(config, known, before)).toEqual(expected);
  });
});

it("a MAC is one VM's: who was given it has it, then the first", () => {
  const taps = [tap(1, { firstVm: parseMac(A)! }), tap(2, { firstVm: parseMac(A)! })];
  const vms = [
    named({ name: "a", tap: "vnet1" }),
    named({ name: "b", tap: "vnet2" }),
    named({ name: "c", mac: A }),
  ];
  const without = vmPlaces(vms.slice(0, 2), facts({ taps }));
  expect(without.get("a")!.mac).toEqual(parseMac(A));
  expect(without.get("b")).toMatchObject({ mac: null, why: `its MAC ${A} is the VM a's` });
  const places = vmPlaces(vms, facts({ taps, seen: { [A]: 2 } }));
  expect(places.get("c")).toMatchObject({ mac: parseMac(A), tap: taps[1] });
  for (const name of ["a", "b"]) expect(places.get(name)!.mac).toBeNull();
});

describe("cells", () => {
  const MAC = parseMac(A)!;
  const request = (more: Partial<CellRequest> = {}) => ({
    name: "a",
    zone: 0,
    mac: MAC,
    hasTap: true,
    id: 0,
    ...more,
  });
  const cell = (id: number) => ({ id }) as VmCell;
  const know = (id: number) => new Map([[vmKeyOf(0, MAC), { id }]]);

  it.each<[string, Partial<CellRequest>, number | null, [number, number][], unknown]>([
    ["by the id that the hot path knows", {}, 7, [], { id: 7, cell: 7, isNew: true }],
    ["which counts before the one that it had", { id: 9 }, 7, [], { id: 7, cell: 7, isNew: true }],
    ["by the id that it had", { id: 9 }, null, [], { id: 9, cell: 9, isNew: true }],
    ["behind a cell that is another's", {}, 7, [[7, 7 + VMS_MAX]], { id: 7, cell: 8, isNew: true }],
    [
      "from the end to the beginning",
      {},
      VMS_MAX - 1,
      [[VMS_MAX - 1, 5]],
      { id: VMS_MAX - 1, cell: 0, isNew: true },
    ],
    ["where it is already", {}, 7, [[9, 7]], { id: 7, cell: 9, isNew: false }],
    ["where it is already, without a tap", { hasTap: false }, 7, [[9, 7]], { id: 7, cell: 9, isNew: false }],
    ["not without a tap", { hasTap: false }, 7, [], undefined],
    [
      "not where all are others'",
      {},
      7,
      [
        [7, 1],
        [8, 2],
        [9, 3],
        [10, 4],
      ],
      { id: 7, cell: null, isNew: true },
    ],
  ])("%s", (_, more, known, cells, expected) => {
    const taken = new Map(cells.map(([number, id]) => [number, cell(id)]));
    const plans = planCells([request(more)], {
      known: known === null ? new Map() : know(known),
      cells: taken,
    });
    expect(plans.get("a")).toEqual(expected);
  });

  it("of two with one id are two", () => {
    const two = [request({ id: 7 }), request({ name: "b", mac: parseMac(B)!, id: 7 })];
    const plans = planCells(two, { known: new Map(), cells: new Map() });
    expect(plans.get("a")).toEqual({ id: 7, cell: 7, isNew: true });
    expect(plans.get("b")!.id).toBeGreaterThanOrEqual(2 ** 31);
  });

  it("of new ones are free, and their ids nobody's", () => {
    const many = Array.from({ length: 1000 }, (_, number) => {
      return request({ name: `vm${number}`, mac: Buffer.from([2, 0, 0, 0, number >> 8, number & 255]) });
    });
    const taken = new Map(
      Array.from({ length: 8000 }, (_, number) => [number * 2, cell(number * 2 + VMS_MAX)]),
    );
    const plans = [...planCells(many, { known: new Map(), cells: taken }).values()];
    expect(new Set(plans.map(({ id }) => id)).size).toBe(1000);
    expect(new Set(plans.map((plan) => plan.cell)).size).toBe(1000);
    for (const { id, cell: own } of plans) {
      expect(id).toBeGreaterThanOrEqual(2 ** 31);
      expect(cellsFor(id)).toContain(own);
      expect(taken.has(own!)).toBe(false);
    }
  });
});
