// SPDX-License-Identifier: Apache-2.0

/** What many rounds gave: the middle, and where the middle half of them lies. */
export interface Spread {
  median: number;
  p25: number;
  p75: number;
}

export function quantile(values: readonly number[], at: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  const position = (sorted.length - 1) * at;
  const below = Math.floor(position);
  const low = sorted[below] ?? Number.NaN;
  const high = sorted[below + 1] ?? low;
  return low + (high - low) * (position - below);
}

export function spread(values: readonly number[]): Spread {
  return { median: quantile(values, 0.5), p25: quantile(values, 0.25), p75: quantile(values, 0.75) };
}

/** One thing that is measured again and again. */
export interface Subject {
  id: string;
  run(): number | Promise<number>;
}

export type Samples = ReadonlyMap<string, readonly number[]>;

/**
 * Each round measures every subject once, there and back in turn, so that a slow spell of the machine
 * falls on all alike. The first round warms up and is dropped.
 */
export async function interleave(subjects: readonly Subject[], rounds: number): Promise<Samples> {
  const samples = new Map<string, number[]>(subjects.map(({ id }) => [id, []]));
  for (let round = 0; round <= rounds; round++) {
    for (const subject of round % 2 === 0 ? subjects : subjects.toReversed()) {
      const value = await subject.run();
      if (round > 0) samples.get(subject.id)!.push(value);
    }
  }
  return samples;
}

/** Round by round, so that what slows down both cancels out. */
export function paired(
  a: readonly number[],
  b: readonly number[],
  combine: (a: number, b: number) => number,
): number[] {
  return a.map((value, index) => combine(value, b[index]!));
}
