// SPDX-License-Identifier: Apache-2.0
// Requests per second through a bridging host to a service, and to the VM itself, with and without lasthop.

import type { Lab } from "../support/lab.ts";
import type { Fixtures } from "./fixtures.ts";
import {
  buildLanes,
  type Lane,
  type LaneOptions,
  prepareLanes,
  requestRate,
  SERVICE_ADDRESS,
  VM_PORT,
} from "./lanes.ts";
import { MEASURING_CPU, pinToCpu } from "./machine.ts";
import { Product } from "./product.ts";
import { establish } from "./replyRate.ts";
import type { Report, RowOptions } from "./report.ts";
import { interleave, type Subject } from "./stats.ts";

export interface Effort {
  rounds: number;
  frames: number;
  flows: number;
}

const bridging = (name: string, way: LaneOptions["way"]): LaneOptions => ({
  name,
  way,
  bridge: true,
  bridgedUplinks: true,
});
const LANES = [bridging("bridged", "plain"), bridging("attached", "lasthop"), bridging("served", "service")];
const PLACE = { outside: "out-services", first: 10 };

export async function measureServiceRate(
  report: Report,
  lab: Lab,
  fixtures: Fixtures,
  effort: Effort,
): Promise<void> {
  const lanes = await buildLanes(lab, LANES, PLACE);
  prepareLanes(lanes, `/run/netns/${lab.id}-${PLACE.outside}`, fixtures);
  for (const lane of lanes) {
    if (lane.way !== "plain") await new Product(lab, lane.host, lane.name).apply(configuration(lane));
  }
  pinToCpu(MEASURING_CPU);
  try {
    for (const lane of lanes) if (lane.way !== "plain") establish(fixtures, lane, effort.flows);
    for (const flows of [1, effort.flows]) {
      const subjects = lanes.map<Subject>((lane) => ({
        id: lane.name,
        run: () => requestRate(fixtures, lane, lane.drive("request", "random", flows), effort.frames),
      }));
      const samples = await interleave(subjects, effort.rounds);
      report.add("Services: requests through a bridge, 64-byte frames", "requests/s", samples, rows(flows));
    }
  } finally {
    pinToCpu(null);
  }
}

function configuration(lane: Lane): string {
  const service = {
    name: "service",
    address: SERVICE_ADDRESS,
    protocol: "udp",
    port: VM_PORT,
    pool: [{ vm: "vm" }],
  };
  return JSON.stringify({
    uplinks: [{ name: "up-a" }, { name: "up-b" }],
    taps: [{ name: "tap" }],
    ...(lane.way === "service" && {
      vms: [{ name: "vm", tap: "tap", mac: lane.mac("vm") }],
      services: [service],
    }),
  });
}

function rows(flows: number): RowOptions[] {
  const what = flows === 1 ? "1 flow" : `${flows.toLocaleString("en-GB")} flows`;
  const row = (id: string, subject: string, title: string, least?: number): RowOptions => ({
    id: `services_rate_${id}_${flows}`,
    subject,
    title: `${what}, ${title}`,
    baseline: { subject: "bridged", title: "plain bridging" },
    comparison: "ratio",
    ...(least !== undefined && { target: { of: "comparison", bound: "at_least", value: least } as const }),
  });
  return [
    row("served", "served", "to a service", flows === 1 ? 1 : undefined),
    row("attached", "attached", "to the VM, lasthop without services"),
  ];
}
