// SPDX-License-Identifier: Apache-2.0

import { decode, type StructName, sizeOf } from "../abi/codec.ts";
import type { TableMap } from "./source.ts";

export interface ChangeReaderOptions<T> {
  /** The layout of the keys, which have one field: the name. */
  key: StructName;
  /** Entries that are read at once. */
  batch: number;
  /** Bytes of a value that say something; all if left out. */
  length?(value: Buffer): number;
  /** `value` is of `length`, and is the callee's to keep. `before`: what was made of the entry the last time. */
  take(name: string, value: Buffer, before: T | undefined): T;
}

type Known<T> = Map<string, { value: Buffer; taken: T }>;

/** Reads a table of names again and again: only what has changed is taken apart. */
export class ChangeReader<T> {
  readonly #map: TableMap;
  readonly #options: ChangeReaderOptions<T>;
  #known: Known<T> = new Map();

  constructor(table: { map: TableMap }, options: ChangeReaderOptions<T>) {
    this.#map = table.map;
    this.#options = options;
  }

  /** What was made of an entry stays the same object as long as the entry does. */
  read(): Map<string, T> {
    const pieces = this.pieces();
    for (;;) {
      const { done, value } = pieces.next();
      if (done) return value;
    }
  }

  /** The same, a batch at a time. One at a time. */
  *pieces(): Generator<void, Map<string, T>, void> {
    const { key, batch, length, take } = this.#options;
    const keyBytes = sizeOf(key);
    const { valueBytes } = this.#map;
    const found: Known<T> = new Map();
    for (const { count, keys, values } of this.#map.batches(batch)) {
      for (let place = 0; place < count; place++) {
        const { name } = decode(key, keys, place * keyBytes) as { name: string };
        const whole = values.subarray(place * valueBytes, (place + 1) * valueBytes);
        const value = length ? whole.subarray(0, length(whole)) : whole;
        const known = this.#known.get(name);
        if (known?.value.equals(value)) {
          found.set(name, known);
          continue;
        }
        const copy = Buffer.from(value);
        found.set(name, { value: copy, taken: take(name, copy, known?.taken) });
      }
      yield;
    }
    this.#known = found;
    return new Map([...found].map(([name, { taken }]) => [name, taken]));
  }
}
