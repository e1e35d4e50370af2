// SPDX-License-Identifier: Apache-2.0
// Which VM a hash of a flow means. Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
// NSDI 2016, section 3.4: each VM has its own order of all places, and takes the next free one when it is its turn.
// So every VM has its share nearly to the place, and when one leaves, hardly a place of the others changes hands. Pure.

/** A VM of a pool. */
export interface Backend {
  /** In vm_cells. */
  cell: number;
  /** Its name: its order hangs on it, so that it is the same on every host and after every restart. */
  key: string;
  /** A whole number from 1 on. */
  weight: number;
}

/** Each the largest prime below a power of two; the last one, the paper's, is the first above. */
const SIZES = [251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_537] as const;
export const MAGLEV_SIZE_MAX = 65_537;
/** Shares are right within 1 %: the paper's section 5.3. */
const PLACES_PER_VM = 100;
/** Of the VM with the smallest weight: its share is right within a tenth. */
const PLACES_OF_SMALLEST = 10;

/**
 * How many places the table of a pool has: a prime, so that every order has every place. `count` VMs, whether they are
 * up or not: with another size most places would change hands. One VM has them all: one place is enough. Where weights
 * differ there are so many that the smallest has some, and is not rounded to nothing. `placesPerVm`: fewer where
 * there is no room for more.
 */
export function maglevSize(count: number, weights: readonly number[], placesPerVm = PLACES_PER_VM): number {
  if (count <= 1) return count;
  const smallest = weights.reduce((least, weight) => Math.min(least, weight), Number.POSITIVE_INFINITY);
  const sum = weights.reduce((total, weight) => total + weight, 0);
  const forSmallest = Math.min(PLACES_OF_SMALLEST, placesPerVm) * (sum / smallest);
  const wanted = Math.max(placesPerVm * count, forSmallest);
  return SIZES.find((size) => size >= wanted) ?? MAGLEV_SIZE_MAX;
}

/**
 * Cells by place. The order of `backends` says nothing: whose turn is first is a matter of their keys. Each has at least
 * one place, if there are as many. `size` is one of maglevSize's.
 */
export function maglevTable(backends: readonly Backend[], size: number): Uint16Array {
  const table = new Uint16Array(size);
  const sorted = backends.toSorted((a, b) => (a.key < b.key ? -1 : 1));
  const count = sorted.length;
  if (count === 0 || size === 0) return table;
  if (count === 1) return table.fill(sorted[0]!.cell);
  const place = new Uint32Array(count);
  const skip = new Uint32Array(count);
  const weights = new Uint32Array(count);
  const credit = new Uint32Array(count);
  const most = sorted.reduce((max, { weight }) => Math.max(max, weight), 0);
  for (const [index, { key, weight }] of sorted.entries()) {
    place[index] = hash(key, 0x9747b28c) % size;
    skip[index] = (hash(key, 0x3c6ef372) % (size - 1)) + 1;
    weights[index] = weight;
    // All have a turn in the first round.
    credit[index] = most - weight;
  }
  const taken = new Uint8Array(size);
  for (let left = size; ; ) {
    for (let index = 0; index < count; index++) {
      // As often as its weight says: weight / most turns a round.
      credit[index]! += weights[index]!;
      if (credit[index]! < most) continue;
      credit[index]! -= most;
      let at = place[index]!;
      while (taken[at] !== 0) at = next(at, skip[index]!, size);
      taken[at] = 1;
      table[at] = sorted[index]!.cell;
      place[index] = next(at, skip[index]!, size);
      if (--left === 0) return table;
    }
  }
}

function next(at: number, skip: number, size: number): number {
  const sum = at + skip;
  return sum >= size ? sum - size : sum;
}

/** MurmurHash3 of 32 bits, of the characters' codes: names are ASCII. */
function hash(text: string, seed: number): number {
  let h = seed;
  for (let index = 0; index < text.length; index++) {
    let k = Math.imul(text.charCodeAt(index), 0xcc9e2d51);
    k = (k << 15) | (k >>> 17);
    h ^= Math.imul(k, 0x1b873593);
    h = (h << 13) | (h >>> 19);
    h = (Math.imul(h, 5) + 0xe6546b64) | 0;
  }
  h ^= text.length;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** As long as an order by turns may be; weights are rounded where theirs would be longer. */
export const ORDER_MAX = 16_384;

/**
 * Cells in the order of their turns: each as often as its weight says, and never several turns in a row where others
 * wait (smooth weighted round-robin, as in nginx).
 */
export function roundRobinOrder(backends: readonly Backend[]): Uint16Array {
  const sorted = backends.toSorted((a, b) => (a.key < b.key ? -1 : 1));
  const weights = orderWeights(sorted.map(({ weight }) => weight));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  const order = new Uint16Array(sum);
  if (weights.every((weight) => weight === 1)) return order.map((_, turn) => sorted[turn]!.cell);
  const current = new Float64Array(weights.length);
  for (let turn = 0; turn < sum; turn++) {
    let best = 0;
    for (let index = 0; index < weights.length; index++) {
      current[index]! += weights[index]!;
      if (current[index]! > current[best]!) best = index;
    }
    current[best]! -= sum;
    order[turn] = sorted[best]!.cell;
  }
  return order;
}

function orderWeights(weights: readonly number[]): number[] {
  const divisor = weights.reduce(gcd, 0);
  const short = weights.map((weight) => weight / divisor);
  const sum = short.reduce((total, weight) => total + weight, 0);
  if (sum <= ORDER_MAX) return short;
  // Rounded down, and at least 1: with each of them that may be more than the rest has lost.
  const room = ORDER_MAX - short.length;
  return short.map((weight) => Math.max(1, Math.floor((weight * room) / sum)));
}

function gcd(a: number, b: number): number {
  return b === 0 ? a : gcd(b, a % b);
}

/** The fullest VM's share of the places over the one that it should have; 1 is best. */
export function peakToAverage(table: Uint16Array, backends: readonly Backend[]): number {
  const counts = new Map<number, number>();
  for (const cell of table) counts.set(cell, (counts.get(cell) ?? 0) + 1);
  const sum = backends.reduce((total, { weight }) => total + weight, 0);
  const loads = backends.map(({ cell, weight }) => (counts.get(cell) ?? 0) / ((table.length * weight) / sum));
  return loads.reduce((most, load) => Math.max(most, load), 0);
}

/**
 * The share of the places that changed hands although their VM is in both tables, from 0 to 1. What a VM that left had,
 * and what a new one has, had to change.
 */
export function disruption(before: Uint16Array, after: Uint16Array): number {
  const stays = new Set(after);
  const was = new Set(before);
  let changed = 0;
  for (const [place, cell] of before.entries()) {
    if (after[place] !== cell && stays.has(cell) && was.has(after[place]!)) changed++;
  }
  return changed / before.length;
}
