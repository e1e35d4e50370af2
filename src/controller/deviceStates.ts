// SPDX-License-Identifier: Apache-2.0
// What is known of a device, and what follows from it. Pure: clocks and probes are the caller's.

import { CAUSE, DEVICE_STATE } from "../abi/layout.gen.ts";
import {
  MAC_CHANGES_WINDOW_SECONDS,
  MAC_CHANGES_WITHIN_WINDOW,
  MAC_HOLD_MAX_SECONDS,
  MAC_HOLD_SECONDS,
} from "../config/defaults.ts";
import type { NeighbourState } from "../kernel/rtnetlink.ts";

/** What one source says. `unknown`: nothing yet, or it cannot be asked. */
export type Evidence = "good" | "bad" | "unknown";

export interface Observation {
  operatorDown: boolean;
  /** Whether one of its uplinks is attached, there and up. */
  uplink: boolean;
  /** Of each of its addresses. */
  neighbours: readonly Evidence[];
  /** Null: it has no probe. */
  probe: Evidence | null;
}

export interface Verdict {
  /** enum device_state */
  state: number;
  /** enum cause */
  cause: number;
}

/**
 * The operator's word comes first, then what is sure. A device that shows no sign of life and none of death is
 * unknown, and treated as if it were up; one of which nothing can be observed is up.
 */
export function judge({ operatorDown, uplink, neighbours, probe }: Observation): Verdict {
  if (operatorDown) return { state: DEVICE_STATE.DOWN, cause: CAUSE.OPERATOR };
  if (!uplink) return { state: DEVICE_STATE.DOWN, cause: CAUSE.INTERFACE };
  const allFailed = neighbours.length > 0 && neighbours.every((one) => one === "bad");
  if (allFailed) return { state: DEVICE_STATE.DOWN, cause: CAUSE.NEIGHBOUR };
  if (probe === "bad") return { state: DEVICE_STATE.DOWN, cause: CAUSE.PROBE };
  const observed = neighbours.length > 0 || probe !== null;
  const alive = probe === "good" || neighbours.includes("good");
  return { state: observed && !alive ? DEVICE_STATE.UNKNOWN : DEVICE_STATE.UP, cause: CAUSE.NONE };
}

// The neighbour of an address

/** As the kernel's table shows it, over time. */
export interface Reachability {
  evidence: Evidence;
  /** The kernel gave up once, asking the MAC that it knew; it was told to ask everybody. */
  asked: boolean;
}

export const UNKNOWN_REACHABILITY: Reachability = { evidence: "unknown", asked: false };

export type NeighbourStep = Reachability & {
  /** What to have the kernel do: ask everybody for the address. */
  ask: boolean;
};

/**
 * A neighbour that failed may only have another MAC: the kernel asks the one that it knows, and gives up. So
 * everybody is asked once more before it counts as gone. `gone`: the kernel has dropped the entry.
 */
export function neighbourStep(
  before: Reachability,
  state: NeighbourState | "gone",
  hasMac: boolean,
): NeighbourStep {
  switch (state) {
    case "reachable":
    case "permanent":
    case "noarp":
      return { evidence: "good", asked: false, ask: false };
    case "stale":
    case "delay":
    case "probe":
      // It has a MAC that was right not long ago, or has just been heard of.
      return { evidence: hasMac ? "good" : before.evidence, asked: false, ask: false };
    case "failed":
      if (before.asked) return { evidence: "bad", asked: true, ask: false };
      return { evidence: before.evidence, asked: true, ask: true };
    case "gone":
    case "none":
      return { ...before, ask: true };
    case "incomplete":
      return { ...before, ask: false };
  }
}

// A MAC that changes

export interface MacHistory {
  /** The one that replies go to; null before there was any. */
  mac: string | null;
  /** When it changed, in milliseconds; those within the window. */
  changes: readonly number[];
  /** Until then it stays what it is. */
  heldUntil: number;
  /** How long it was held the last time; 0 for never, or long ago. */
  holdMs: number;
}

export interface MacStep extends MacHistory {
  /** `taken`: this is its MAC now; `held`: not yet, it changes too often. */
  outcome: "same" | "taken" | "held";
  /** Holding has just begun. */
  began: boolean;
  /** It came too soon after another change. */
  flap: boolean;
}

export function macHistory(mac: string | null): MacHistory {
  return { mac, changes: [], heldUntil: 0, holdMs: 0 };
}

/**
 * The neighbour table shows a MAC. Two that take turns would repoint all flows each time: after some changes within
 * the window the present one is held, each time for twice as long.
 */
export function macSeen(history: MacHistory, mac: string, nowMs: number): MacStep {
  if (mac === history.mac) return { ...history, outcome: "same", began: false, flap: false };
  if (history.mac === null) return { ...macHistory(mac), outcome: "taken", began: false, flap: false };
  if (nowMs < history.heldUntil) return { ...history, outcome: "held", began: false, flap: true };
  const window = MAC_CHANGES_WINDOW_SECONDS * 1000;
  const recent = history.changes.filter((at) => nowMs - at < window);
  if (recent.length >= MAC_CHANGES_WITHIN_WINDOW) {
    const holdMs = nextHold(history, nowMs);
    const held = { ...history, changes: [], heldUntil: nowMs + holdMs, holdMs };
    return { ...held, outcome: "held", began: true, flap: true };
  }
  const changes = [...recent, nowMs];
  return { ...history, mac, changes, outcome: "taken", began: false, flap: recent.length > 0 };
}

/** Calm for as long as the longest hold makes it forget. */
function nextHold({ holdMs, heldUntil }: MacHistory, nowMs: number): number {
  const longest = MAC_HOLD_MAX_SECONDS * 1000;
  const calm = heldUntil > 0 && nowMs - heldUntil > longest;
  if (holdMs === 0 || calm) return MAC_HOLD_SECONDS * 1000;
  return Math.min(holdMs * 2, longest);
}

// A probe

export interface ProbeHistory {
  evidence: Evidence;
  /** Answers or failures in a row, against the present evidence. */
  against: number;
}

/** After a restart a device that was down by its probe has to rise again. */
export function probeHistory(wasDown: boolean): ProbeHistory {
  return { evidence: wasDown ? "bad" : "unknown", against: 0 };
}

export function probed(
  { evidence, against }: ProbeHistory,
  ok: boolean,
  { fall, rise }: { fall: number; rise: number },
): ProbeHistory {
  if (ok === (evidence === "good") && evidence !== "unknown") return { evidence, against: 0 };
  if (ok && evidence === "unknown") return { evidence: "good", against: 0 };
  const count = against + 1;
  if (count < (ok ? rise : fall)) return { evidence, against: count };
  return { evidence: ok ? "good" : "bad", against: 0 };
}
