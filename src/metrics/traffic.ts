// SPDX-License-Identifier: Apache-2.0

import type { LastHopTraffic } from "../tables/index.ts";

type Counts<K extends string> = Record<K, number>;

interface Account<K extends string> {
  total: Counts<K>;
  /** What each of its parts had counted when it was last looked at, by its reference. */
  seen: ReadonlyMap<number, Readonly<Counts<K>>>;
}

/**
 * Sums of the counters of parts that come and go: last hops of a device, cells of a VM. A sum may not fall when a part
 * is given back: Prometheus would take that for a restart and count all that is left once more.
 */
export class Accounts<K extends string> {
  readonly #keys: readonly K[];
  readonly #accounts = new Map<string, Account<K>>();

  constructor(keys: readonly K[]) {
    this.#keys = keys;
  }

  /** `now`: by reference, which nothing else has, what each of its parts has counted. */
  add(name: string, now: ReadonlyMap<number, Readonly<Counts<K>>>): Counts<K> {
    const account = this.#accounts.get(name) ?? { total: this.#nothing(), seen: new Map() };
    for (const [reference, counts] of now) {
      const before = account.seen.get(reference);
      for (const key of this.#keys) {
        const growth = counts[key] - (before?.[key] ?? 0);
        // One that has fallen was cleared: all of it is new.
        account.total[key] += growth < 0 ? counts[key] : growth;
      }
    }
    account.seen = new Map(now);
    this.#accounts.set(name, account);
    return { ...account.total };
  }

  /** Forgets those that are no longer there. */
  keep(names: { has(name: string): boolean }): void {
    for (const name of this.#accounts.keys()) if (!names.has(name)) this.#accounts.delete(name);
  }

  #nothing(): Counts<K> {
    return Object.fromEntries(this.#keys.map((key) => [key, 0])) as Counts<K>;
  }
}

export type Traffic = Omit<LastHopTraffic, "last_seen">;

/** Of devices, by the references of their last hops: generation and index. */
export class TrafficAccounts extends Accounts<keyof Traffic> {
  constructor() {
    super(["request_packets", "request_bytes", "reply_packets", "reply_bytes", "relearns"]);
  }
}
