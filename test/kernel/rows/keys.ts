// SPDX-License-Identifier: Apache-2.0
// What tells last hops apart: whatever of a request differs, it is another one, and the same again is the same one.

import type { PortName } from "../support/devices.ts";
import { ETH_P } from "../support/packet.ts";
import type { Row, Step } from "../support/rows.ts";
import { type Family, type FrameOptions, MAC } from "../support/scene.ts";
import * as talk from "../support/talk.ts";
import { cu } from "../support/talk.ts";
import type { World } from "../support/world.ts";
import { stackOf } from "./labels.ts";

const TAGS = [
  { proto: ETH_P.qinq, vid: 100 },
  { proto: ETH_P.vlan, vid: 10 },
];
const LABELS = [1, 2, 3, 4];

interface Variant {
  what: string;
  at?: PortName;
  frame: FrameOptions;
}

const withLabels = (...labels: number[]): FrameOptions => ({ tags: TAGS, labels: stackOf(...labels) });
const withTags = (...tags: typeof TAGS): FrameOptions => ({ tags, labels: stackOf(...LABELS) });

const BASE = withLabels(...LABELS);

const VARIANTS: Variant[] = [
  { what: "the interface", at: "uplink_b", frame: BASE },
  { what: "the MAC", frame: { ...BASE, from: MAC.deviceC } },
  { what: "the outer tag's type", frame: withTags({ ...TAGS[0]!, proto: ETH_P.vlan }, TAGS[1]!) },
  { what: "the outer tag's VID", frame: withTags({ ...TAGS[0]!, vid: 101 }, TAGS[1]!) },
  { what: "the inner tag's type", frame: withTags(TAGS[0]!, { ...TAGS[1]!, proto: ETH_P.qinq }) },
  { what: "the inner tag's VID", frame: withTags(TAGS[0]!, { ...TAGS[1]!, vid: 11 }) },
  { what: "only the outer tag", frame: withTags(TAGS[0]!) },
  { what: "only the inner tag", frame: withTags(TAGS[1]!) },
  { what: "no tag", frame: withTags() },
  ...LABELS.map((label, index) => ({
    what: `label ${index + 1}`,
    frame: withLabels(...LABELS.map((other) => (other === label ? 99 : other))),
  })),
  { what: "another order of labels", frame: withLabels(4, 3, 2, 1) },
  { what: "a label less", frame: withLabels(...LABELS.slice(0, 3)) },
  { what: "no label", frame: { tags: TAGS } },
  { what: "neither tag nor label", frame: {} },
];

const stacks = VARIANTS.map(({ frame }) => frame.labels?.map(({ label }) => label) ?? []);

function knowsAll(world: World): void {
  for (const labels of [LABELS, ...stacks]) {
    world.putLabelStack(labels, 1);
  }
}

const keys = (count: number) => (world: World) => {
  const found = world.lastHopKeys().length;
  if (found !== count) {
    throw new Error(`${found} keys instead of ${count}`);
  }
};

function indexOf(world: World, f: Family): number {
  return world.lastHop(world.flow(talk.udpTuple(f))!.flow.last_hop).index;
}

const firstIndex = (f: Family) => (world: World) => {
  if (indexOf(world, f) !== 0) {
    throw new Error("another record for the same request");
  }
};

export const keyRows: Row[] = [
  ...VARIANTS.map(
    ({ what, at = "uplink_a", frame }): Row => ({
      description: `differs in ${what}: another last hop, and the first one again afterwards`,
      make: (f) => {
        const first: Step = { at: "uplink_a", packet: cu(f, BASE), reason: "relearn", check: firstIndex(f) };
        const other: Step = { at, packet: cu(f, frame), reason: "relearn", check: keys(2) };
        return {
          tuple: talk.udpTuple(f),
          given: knowsAll,
          steps: [
            { ...first, reason: "learn", check: keys(1) },
            { ...first, reason: "refresh", check: keys(1) },
            other,
            { ...other, reason: "refresh" },
            first,
            other,
            first,
          ],
        };
      },
    }),
  ),
  {
    description: "all of them at once are as many last hops",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      given: knowsAll,
      steps: VARIANTS.map(
        ({ at = "uplink_a", frame }, index): Step => ({
          at,
          packet: cu(f, frame),
          reason: index === 0 ? "learn" : "relearn",
          check: keys(index + 1),
        }),
      ),
    }),
  },
];
