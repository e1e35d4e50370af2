// SPDX-License-Identifier: Apache-2.0
// Replies per second through a routed host.

import type { Lab } from "../support/lab.ts";
import type { Fixtures } from "./fixtures.ts";
import { buildLanes, injectFrames, type Lane, type LaneOptions, prepareLanes, replyRate } from "./lanes.ts";
import { MEASURING_CPU, pinToCpu } from "./machine.ts";
import { Product } from "./product.ts";
import type { Report, RowOptions } from "./report.ts";
import { interleave, type Subject } from "./stats.ts";

export interface Effort {
  rounds: number;
  frames: number;
  /** Below half of the conntrack table's usual size. */
  flows: number;
}

const LANES: readonly LaneOptions[] = [
  { name: "lasthop", way: "lasthop", bridge: true },
  { name: "plain", way: "plain", bridge: true },
  { name: "mark", way: "ct_mark", bridge: true },
  { name: "redirect", way: "redirect", bridge: true },
  { name: "lasthop0", way: "lasthop", bridge: false },
  { name: "plain0", way: "plain", bridge: false },
  { name: "mark0", way: "ct_mark", bridge: false },
];

export interface RoutedHost {
  lane: Lane;
  product: Product;
}

/** The lanes, with lasthop attached where it belongs. */
export async function buildRoutedHosts(
  lab: Lab,
  fixtures: Fixtures,
): Promise<{ lanes: Lane[]; hosts: RoutedHost[] }> {
  const lanes = await buildLanes(lab, LANES);
  prepareLanes(lanes, `/run/netns/${lab.id}-out`, fixtures);
  const hosts: RoutedHost[] = [];
  for (const lane of lanes) {
    if (lane.way !== "lasthop") continue;
    const product = new Product(lab, lane.host, lane.name);
    await product.attach(["up-a", "up-b"], ["tap"]);
    hosts.push({ lane, product });
  }
  return { lanes, hosts };
}

/** Requests and replies of each flow, as often as lasthop and conntrack want to see them. */
export function establish(fixtures: Fixtures, lane: Lane, flows: number): void {
  const chunk = 16_384;
  for (let first = 0; first < flows; first += chunk) {
    const count = Math.min(chunk, flows - first);
    for (const direction of ["request", "reply", "request"] as const) {
      injectFrames(fixtures, lane, lane.drive(direction, "sequential", flows, first), count);
    }
  }
}

export async function measureReplyRate(
  report: Report,
  fixtures: Fixtures,
  lanes: readonly Lane[],
  effort: Effort,
): Promise<void> {
  pinToCpu(MEASURING_CPU);
  try {
    for (const lane of lanes) {
      if (lane.way === "lasthop" || lane.way === "ct_mark") establish(fixtures, lane, effort.flows);
    }
    for (const flows of [1, effort.flows]) {
      const subjects = lanes.map<Subject>((lane) => ({
        id: lane.name,
        run: () => replyRate(fixtures, lane, lane.drive("reply", "random", flows), effort.frames),
      }));
      const samples = await interleave(subjects, effort.rounds);
      report.add("Reply rate of a routed host, 64-byte frames", "replies/s", samples, rows(flows));
    }
  } finally {
    pinToCpu(null);
  }
}

function rows(flows: number): RowOptions[] {
  const what = flows === 1 ? "1 flow" : `${flows.toLocaleString("en-GB")} flows`;
  const row = (
    id: string,
    subject: string,
    title: string,
    baseline: { subject: string; title: string },
    least?: number,
  ): RowOptions => ({
    id: `reply_rate_${id}_${flows}`,
    subject,
    title: `${what}, ${title}`,
    baseline,
    comparison: "ratio",
    ...(least !== undefined &&
      flows === 1 && { target: { of: "comparison", bound: "at_least", value: least } as const }),
  });
  return [
    row("plain", "lasthop", "tap on a bridge", { subject: "plain", title: "plain forwarding" }, 1.9),
    row("ct_mark", "lasthop", "tap on a bridge", { subject: "mark", title: "ct mark + ip rule" }, 2.4),
    row("redirect", "lasthop", "tap on a bridge", { subject: "redirect", title: "bare redirect" }, 0.93),
    row("plain_no_bridge", "lasthop0", "tap alone", { subject: "plain0", title: "plain forwarding" }),
    row("ct_mark_no_bridge", "lasthop0", "tap alone", { subject: "mark0", title: "ct mark + ip rule" }),
  ];
}
