// SPDX-License-Identifier: Apache-2.0

/** Conditions that stand for a while: told when they come, not each time that they are found. */
export class Standing {
  #known: ReadonlySet<string> = new Set();

  /** Those that were not there the last time. */
  news(conditions: readonly string[]): string[] {
    const fresh = [...new Set(conditions)].filter((condition) => !this.#known.has(condition));
    this.#known = new Set(conditions);
    return fresh;
  }

  get size(): number {
    return this.#known.size;
  }
}
