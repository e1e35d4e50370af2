// SPDX-License-Identifier: Apache-2.0
// One address as the neighbour table shows it: whether somebody answers for it, and at which MAC. No kernel, no clock.

import type { Neighbour } from "../kernel/rtnetlink.ts";
import {
  type Evidence,
  type MacHistory,
  type MacStep,
  macHistory,
  macSeen,
  neighbourStep,
  type Reachability,
  UNKNOWN_REACHABILITY,
} from "./deviceStates.ts";

export interface MacChange extends MacStep {
  /** The one that counted before. */
  from: string | null;
  /** The one that is shown. */
  to: string;
}

export interface AddressSighting {
  evidence: Evidence;
  /** Everybody on the link is to be asked for the address. */
  ask: boolean;
  /** The table shows another MAC than before. */
  change: MacChange | null;
}

export class AddressWatch {
  readonly text: string;
  #history: MacHistory;
  /** What the neighbour table showed last. */
  #shown: string | null;
  /** By the interface on which it was asked for. */
  readonly #reach = new Map<number, Reachability>();

  constructor(text: string, mac: string | null) {
    this.text = text;
    this.#history = macHistory(mac);
    this.#shown = mac;
  }

  /** The one that counts; null before there was any. */
  get mac(): string | null {
    return this.#history.mac;
  }

  get shown(): string | null {
    return this.#shown;
  }

  /** Somebody answers for it, somewhere. */
  get isGood(): boolean {
    return [...this.#reach.values()].some(({ evidence }) => evidence === "good");
  }

  /** `assumed`: of an interface where nothing was seen yet. */
  seen({ ifindex, state, mac }: Neighbour, assumed: Evidence, nowMs: number): AddressSighting {
    const before = this.#reach.get(ifindex) ?? { ...UNKNOWN_REACHABILITY, evidence: assumed };
    const { ask, ...reach } = neighbourStep(before, state, mac !== null);
    this.#reach.set(ifindex, reach);
    const { evidence } = reach;
    if (mac === null || mac === this.#shown || evidence !== "good") return { evidence, ask, change: null };
    this.#shown = mac;
    return { evidence, ask, change: this.#step(mac, nowMs) };
  }

  /** A MAC that was held back, when its time has come; null if there is none. */
  due(nowMs: number): MacChange | null {
    const { mac, heldUntil } = this.#history;
    if (this.#shown === null || this.#shown === mac || nowMs < heldUntil) return null;
    return this.#step(this.#shown, nowMs);
  }

  /** `ifindexes`: where it is asked for; what other interfaces said is forgotten. */
  evidence(ifindexes: ReadonlySet<number>, assumed: Evidence): Evidence {
    for (const ifindex of [...this.#reach.keys()]) if (!ifindexes.has(ifindex)) this.#reach.delete(ifindex);
    const said = [...ifindexes].map((ifindex) => this.#reach.get(ifindex)?.evidence ?? assumed);
    if (said.includes("good")) return "good";
    return said.length > 0 && said.every((one) => one === "bad") ? "bad" : "unknown";
  }

  /** As if it had never had a MAC. */
  forgetMac(): void {
    this.#history = macHistory(null);
    this.#shown = null;
  }

  #step(mac: string, nowMs: number): MacChange {
    const from = this.#history.mac;
    const step = macSeen(this.#history, mac, nowMs);
    const { outcome, began, flap, ...history } = step;
    this.#history = history;
    return { ...step, from, to: mac };
  }
}
