// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import {
  type Backend,
  disruption,
  MAGLEV_SIZE_MAX,
  maglevSize,
  maglevTable,
  ORDER_MAX,
  peakToAverage,
  roundRobinOrder,
} from "../../src/controller/maglev.ts";

/** Cells are far from names: only names may matter. */
function vms(count: number, weight: (index: number) => number = () => 1): Backend[] {
  return Array.from({ length: count }, (_, index) => ({
    cell: (index * 7919 + 13) % 16_384,
    key: `web${index}`,
    weight: weight(index),
  }));
}

function counts(table: Uint16Array): Map<number, number> {
  const found = new Map<number, number>();
  for (const cell of table) found.set(cell, (found.get(cell) ?? 0) + 1);
  return found;
}

describe("the size of a Maglev table", () => {
  it.each([
    ["nobody", 0, [], 0],
    ["one VM", 1, [1], 1],
    ["one VM, however heavy", 1, [256], 1],
    ["two", 2, [1, 1], 251],
    ["three", 3, [1, 1, 1], 509],
    ["ten", 10, Array(10).fill(1), 1021],
    ["100", 100, Array(100).fill(1), 16_381],
    ["256", 256, Array(256).fill(1), 32_749],
    ["as many as there is room for", 4096, Array(4096).fill(1), 65_537],
    ["weights that hardly differ", 2, [1, 2], 251],
    ["a weight that is very small beside the other", 2, [1, 256], 4093],
    ["one of 256", 256, [1, ...Array(255).fill(256)], 65_537],
  ])("for %s", (_, count, weights, expected) => {
    expect(maglevSize(count, weights)).toBe(expected);
  });

  it("is smaller where there is no room", () => {
    expect(
      [100, 50, 10, 1].map((places) =>
        maglevSize(
          100,
          vms(100).map(({ weight }) => weight),
          places,
        ),
      ),
    ).toEqual([16_381, 8191, 1021, 251]);
  });
});

describe("a Maglev table", () => {
  it.each([
    [1, 1],
    [2, 251],
    [3, 509],
    [10, 1021],
    [100, 16_381],
    [100, 65_537],
    [251, 251],
    [1000, 65_537],
  ])("of %i VMs in %i places has each of them, nearly alike often", (count, size) => {
    const backends = vms(count);
    const found = counts(maglevTable(backends, size));
    expect([...found.keys()].sort()).toEqual(backends.map(({ cell }) => cell).sort());
    // All have a turn in each round.
    expect(Math.max(...found.values()) - Math.min(...found.values())).toBeLessThanOrEqual(1);
  });

  it("is as even as the paper says: 1000 VMs within 2 % in 65,537 places, 100 within 1 %", () => {
    expect(peakToAverage(maglevTable(vms(1000), MAGLEV_SIZE_MAX), vms(1000))).toBeLessThan(1.02);
    expect(peakToAverage(maglevTable(vms(100), MAGLEV_SIZE_MAX), vms(100))).toBeLessThan(1.01);
  });

  it("is the same whatever the order of the VMs, and whichever cells they have", () => {
    const backends = vms(7);
    const table = maglevTable(backends, 1021);
    expect(maglevTable(backends.toReversed(), 1021)).toEqual(table);
    const moved = backends.map((backend) => ({ ...backend, cell: backend.cell + 1 }));
    expect(maglevTable(moved, 1021)).toEqual(table.map((cell) => cell + 1));
  });

  it("stays as it is from version to version", () => {
    const backends = ["a", "b", "c"].map((key, cell) => ({ key, cell, weight: 1 }));
    expect([...maglevTable(backends, 251).subarray(0, 24)].join("")).toMatchInlineSnapshot(
      `"111002212200110220122000"`,
    );
  });

  it.each([
    ["two", [1, 3]],
    ["three, of which one is small", [1, 10, 10]],
    ["a few", [1, 2, 3, 4, 5]],
    ["extremes", [1, 256]],
    ["many", Array.from({ length: 60 }, (_, index) => (index % 5) + 1)],
  ])("gives %s their shares by weight", (_, weights) => {
    const backends = vms(weights.length, (index) => weights[index]!);
    const size = maglevSize(weights.length, weights);
    const found = counts(maglevTable(backends, size));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    for (const { cell, weight } of backends) {
      // A turn more or less at the beginning and at the end.
      expect(Math.abs(found.get(cell)! - (size * weight) / sum)).toBeLessThanOrEqual(2);
    }
  });

  it("has a place for the smallest, however small", () => {
    const backends = vms(256, (index) => (index === 0 ? 1 : 256));
    expect(counts(maglevTable(backends, MAGLEV_SIZE_MAX)).get(backends[0]!.cell)).toBeGreaterThanOrEqual(1);
  });

  it("has a place for as many as there are places", () => {
    expect(new Set(maglevTable(vms(300), 251)).size).toBe(251);
    expect(maglevTable([], 251)).toEqual(new Uint16Array(251));
    expect(maglevTable(vms(3), 0)).toEqual(new Uint16Array(0));
  });
});

describe("when a VM leaves or comes", () => {
  /** Of the places of those that stay, which need not change hands at all. */
  it.each([
    [3, 509, 0.12],
    [10, 1021, 0.08],
    [100, 16_381, 0.03],
    [100, 65_537, 0.02],
    [1000, 65_537, 0.02],
  ])("of %i in %i places, hardly another place changes hands", (count, size, most) => {
    const backends = vms(count);
    const before = maglevTable(backends, size);
    const gone = [0, Math.floor(count / 2), count - 1].map((index) =>
      disruption(before, maglevTable(backends.toSpliced(index, 1), size)),
    );
    expect(Math.max(...gone)).toBeLessThan(most);
    const more = maglevTable([...backends, { cell: 16_383, key: "another", weight: 1 }], size);
    expect(disruption(before, more)).toBeLessThan(most);
  });

  it("has what it had when it is back", () => {
    const backends = vms(10);
    const before = maglevTable(backends, 1021);
    expect(disruption(before, maglevTable(vms(10), 1021))).toBe(0);
    // Whose was whoever left is the others' now.
    const without = maglevTable(backends.slice(1), 1021);
    expect(without).not.toContain(backends[0]!.cell);
    expect(disruption(before, before)).toBe(0);
  });
});

describe("an order by turns", () => {
  it.each([
    ["nobody", [], []],
    ["one", [5], [0]],
    ["equals", [1, 1, 1], [0, 1, 2]],
    ["equals of another weight", [7, 7], [0, 1]],
    ["one that is heavier", [5, 1, 1], [0, 0, 1, 0, 2, 0, 0]],
    ["a common divisor", [4, 2], [0, 1, 0]],
  ])("of %s", (_, weights, expected) => {
    const backends = weights.map((weight, cell) => ({ cell, key: `vm${cell}`, weight }));
    expect([...roundRobinOrder(backends)]).toEqual(expected);
  });

  it("is as long as there is room, with a turn for each", () => {
    const backends = vms(4096, (index) => (index % 256) + 1);
    const order = roundRobinOrder(backends);
    expect(order.length).toBeLessThanOrEqual(ORDER_MAX);
    expect(new Set(order).size).toBe(4096);
  });

  it("has each as often as its weight says", () => {
    const backends = vms(5, (index) => index + 1);
    const found = counts(roundRobinOrder(backends));
    expect(backends.map(({ cell }) => found.get(cell))).toEqual([1, 2, 3, 4, 5]);
  });
});
