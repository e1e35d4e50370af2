// SPDX-License-Identifier: Apache-2.0

import type { LastHopTraffic } from "../tables/index.ts";

export type Traffic = Omit<LastHopTraffic, "last_seen">;

interface Account {
  total: Traffic;
  /** What each last hop had counted when it was last looked at, by its reference. */
  seen: Map<number, Traffic>;
}

const NOTHING: Traffic = {
  request_packets: 0,
  request_bytes: 0,
  reply_packets: 0,
  reply_bytes: 0,
  relearns: 0,
};
const KEYS = Object.keys(NOTHING) as (keyof Traffic)[];

/**
 * Sums of the counters of last hops that come and go. A device's sum may not fall when one of its last hops is
 * given back: Prometheus would take that for a restart and count all that is left once more.
 */
export class TrafficAccounts {
  readonly #accounts = new Map<string, Account>();

  /** `now`: by reference (generation and index), what each of the device's last hops has counted. */
  add(device: string, now: ReadonlyMap<number, Traffic>): Traffic {
    const account = this.#accounts.get(device) ?? { total: { ...NOTHING }, seen: new Map<number, Traffic>() };
    for (const [reference, traffic] of now) {
      const before = account.seen.get(reference) ?? NOTHING;
      for (const key of KEYS) account.total[key] += Math.max(0, traffic[key] - before[key]);
    }
    account.seen = new Map(now);
    this.#accounts.set(device, account);
    return { ...account.total };
  }

  /** Forgets the devices that are no longer there. */
  keep(devices: ReadonlySet<string>): void {
    for (const name of this.#accounts.keys()) if (!devices.has(name)) this.#accounts.delete(name);
  }
}
