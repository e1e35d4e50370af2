// SPDX-License-Identifier: Apache-2.0
// Sums of per-CPU counters, without taking the record of each CPU apart: there may be 10,000 rows and 100 CPUs.

import { STRUCTS } from "../abi/layout.gen.ts";
import type { TableMap } from "../tables/index.ts";

const WORD_BYTES = 4;
const HIGH_WORD = 2 ** 32;

type CountedStruct = "vm_stats" | "service_stats";

/** Reads rows of one array. `keys` are 64-bit counters of its struct; sums are exact below 2^53. */
export class CounterReader<K extends string> {
  readonly #map: TableMap;
  readonly #places: { key: K; word: number }[];
  readonly #rowWords: number;
  readonly #index = Buffer.alloc(4);
  readonly #value: Buffer;
  readonly #words: Uint32Array;

  constructor(map: TableMap, struct: CountedStruct, keys: readonly K[]) {
    const { size, fields } = STRUCTS[struct];
    this.#map = map;
    this.#rowWords = size / WORD_BYTES;
    this.#places = keys.map((key) => {
      const { offset } = (fields as Record<string, { offset: number }>)[key]!;
      return { key, word: offset / WORD_BYTES };
    });
    const bytes = new ArrayBuffer(map.valueBytes);
    this.#value = Buffer.from(bytes);
    this.#words = new Uint32Array(bytes);
  }

  /** Zeros for a row that is not there. */
  read(row: number): Record<K, number> {
    this.#index.writeUInt32LE(row);
    const there = this.#map.lookupInto(this.#index, this.#value);
    const sums = {} as Record<K, number>;
    for (const { key, word } of this.#places) {
      let sum = 0;
      for (let at = word; there && at < this.#words.length; at += this.#rowWords) {
        sum += this.#words[at]! + this.#words[at + 1]! * HIGH_WORD;
      }
      sums[key] = sum;
    }
    return sums;
  }
}
