// SPDX-License-Identifier: Apache-2.0

import type { TableMap } from "../tables/index.ts";
import type { Pace } from "./pace.ts";

/** A quarter of a microsecond each. */
const CHUNK_ROWS = 2048;

/** Values as they lie in the kernel; the buffer is reused by the next step. */
export interface Rows {
  /** Index of the first. */
  first: number;
  count: number;
  values: Buffer;
}

/** Rows [first, end) of an array, in pieces, with pauses. */
export async function* readRows(map: TableMap, first: number, end: number, pace: Pace): AsyncGenerator<Rows> {
  if (first >= end) return;
  let at = first;
  for (const { count, values } of map.batches(Math.min(CHUNK_ROWS, end - first), first)) {
    const wanted = Math.min(count, end - at);
    yield { first: at, count: wanted, values };
    at += wanted;
    if (at >= end) return;
    await pace.rest();
  }
}
