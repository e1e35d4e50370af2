// SPDX-License-Identifier: Apache-2.0

import { setImmediate as turn } from "node:timers/promises";

/** So long a scrape works before it lets others have the event loop; the bound to keep is 10 ms. */
const SLICE_MS = 3;

/** Long work in slices. Ask between pieces that take no more than a millisecond each. */
export class Pace {
  #since = performance.now();

  /** Whether it is time to rest: cheaper to ask than to wait for nothing. */
  get due(): boolean {
    return performance.now() - this.#since >= SLICE_MS;
  }

  async rest(): Promise<void> {
    if (!this.due) return;
    await turn();
    this.#since = performance.now();
  }

  /** Work in pieces, to its end. */
  async through<T>(pieces: Generator<void, T, void>): Promise<T> {
    for (;;) {
      const { done, value } = pieces.next();
      if (done) return value;
      if (this.due) await this.rest();
    }
  }
}
