// SPDX-License-Identifier: Apache-2.0
/*
 * How many flows the LRU has evicted, by state. The kernel does not say, but the programs count what comes into
 * a state and what leaves it, so what a walk does not find of this balance was evicted.
 *
 * A walk takes seconds while traffic runs on. It meets each bucket at another moment, so what it finds is the
 * average of the table over the walk, and the balance has to be averaged likewise: weighted by how far the walk
 * came at each moment. That is not known either, only how many entries a piece found; but flows lie evenly in
 * the buckets, so a piece that found n of the N that were there went over n/N of them, and all pieces together
 * over the whole table. From that follows N (`solve`).
 *
 * What is left is noise. The counts must never fall, and noise that only adds would sum up, so a count rises
 * only by more than the noise can be. Nothing is lost by that: each pass compares the totals since the tables
 * were made, and a later one, or a quieter one, makes it good. In a quiet moment the counts are exact.
 */

export interface Piece {
  /** Entries that it met. */
  found: number;
  /** Of these, and of the last one before it, deleted. */
  expired: number;
  /** The balance by state, right before and right after. */
  before: readonly number[];
  after: readonly number[];
}

export interface Walk {
  /** Balance by state when the pass began. */
  start: readonly number[];
  pieces: readonly Piece[];
  /** What was found, by state, before anything of it was expired. */
  states: readonly number[];
  /** Entries with which the LRU cannot have begun to evict. */
  roomy: number;
}

export interface Evictions {
  /** By state since the tables were made. Never falls. */
  evicted: number[];
  /** By state, what the balance is too high by: to be taken off it, or an error would stay for ever. */
  drift: number[];
}

/** Differences that are not believed while the table has room: races between processors, entries a walk missed. */
const ROOMY_NOISE = 64;
/** Under traffic a difference is half noise; this much of it is taken for a real one. */
const DRIFT_SHARE = 1 / 8;

export function countEvictions(walk: Walk, previous: readonly number[]): Evictions {
  const { levels, noise } = balanceLevels(walk);
  const weights = pieceWeights(walk.pieces, levels);
  const found = sum(walk.states);
  // A walk may miss the neighbour of an entry that was deleted between two pieces.
  const missed = walk.pieces.length > 1 ? walk.pieces.filter((piece) => piece.expired > 0).length : 0;
  const roomy = found + sum(noise) < walk.roomy;
  const result: Evictions = { evicted: [], drift: [] };
  for (const [state, count] of walk.states.entries()) {
    const known = previous[state] ?? 0;
    const expected = levels.reduce((total, level, at) => total + level[state]! * weights[at]!, 0);
    const change = Math.round(expected - count) - known;
    const slack = noise[state]! + missed + (roomy ? ROOMY_NOISE : 0);
    const believed = change > slack;
    result.evicted.push(believed ? known + change : known);
    // In a full table a small rise may be true, and is left for the next pass.
    const wrong = !believed && (roomy || change < -slack);
    result.drift.push(!wrong ? 0 : noise[state] === 0 ? change : Math.trunc(change * DRIFT_SHARE));
  }
  return result;
}

/**
 * The balance by state at each piece as it were if the walk had not expired anything: what it met is counted as
 * found. Only changes between pieces can be told from its own, and by how much these lines can be off is the noise.
 */
function balanceLevels({ start, pieces }: Walk): { levels: number[][]; noise: number[] } {
  const noise = start.map(() => 0);
  const levels: number[][] = [];
  let level = [...start];
  let last = start;
  for (const { before, after, expired } of pieces) {
    level = level.map((count, state) => {
      const change = before[state]! - last[state]!;
      noise[state]! += Math.abs(change);
      return count + change;
    });
    levels.push(level);
    const within = before.reduce((total, count, state) => total + Math.abs(count - after[state]!), 0);
    // Whatever is beyond what this piece expired was traffic.
    const traffic = Math.max(0, within - expired);
    for (const state of noise.keys()) noise[state]! += traffic;
    last = after;
  }
  return { levels, noise };
}

/** Which part of the table each piece went over: 1 in all. */
function pieceWeights(pieces: readonly Piece[], levels: readonly number[][]): number[] {
  const totals = levels.map(sum);
  const found = pieces.map((piece) => piece.found);
  const all = sum(found);
  if (all === 0) return pieces.map((_, at) => (at === pieces.length - 1 ? 1 : 0));
  const evicted = solve(found, totals);
  const parts = found.map((count, at) => (count === 0 ? 0 : count / (totals[at]! - evicted)));
  const whole = sum(parts);
  return parts.map((part) => part / whole);
}

/** E such that sum(found / (total - E)) = 1; the left side rises with E. */
function solve(found: readonly number[], totals: readonly number[]): number {
  const all = sum(found);
  const met = totals.filter((_, at) => found[at]! > 0);
  const least = Math.min(...met);
  let low = least - all;
  let high = Math.min(least, Math.max(...met) - all);
  for (let step = 0; step < 60 && high - low > 1e-6; step++) {
    const middle = (low + high) / 2;
    const parts = found.reduce(
      (total, count, at) => (count === 0 ? total : total + count / (totals[at]! - middle)),
      0,
    );
    if (parts < 1) low = middle;
    else high = middle;
  }
  return low;
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
