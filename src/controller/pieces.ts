// SPDX-License-Identifier: Apache-2.0
// Work that walks large tables, as a generator that yields between pieces: a command runs it through, the
// daemon lets others have their turn.

import { setTimeout as sleep, setImmediate as turn } from "node:timers/promises";

/** One piece takes less than this; several short ones are taken together. */
const PIECE_MS = 2;

export type Pieces<T> = Generator<void, T, void>;

export function atOnce<T>(work: Pieces<T>): T {
  for (;;) {
    const { done, value } = work.next();
    if (done) return value;
  }
}

/** `share`: of a processor that it may take, from 0 to 1; the rest of the time it waits. */
export async function inPieces<T>(work: Pieces<T>, share = 1): Promise<T> {
  for (;;) {
    const started = performance.now();
    let busy: number;
    do {
      const { done, value } = work.next();
      if (done) return value;
      busy = performance.now() - started;
    } while (busy < PIECE_MS);
    if (share < 1) await sleep(busy / share - busy);
    else await turn();
  }
}
