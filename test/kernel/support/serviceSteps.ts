// SPDX-License-Identifier: Apache-2.0
// Short names for the steps of rows about services: requests that are handed to a VM, and its replies.

import { expect } from "vitest";
import type { ReasonName } from "../../../src/abi/codec.ts";
import type { Case, Step } from "./rows.ts";
import type { Family } from "./scene.ts";
import { serve, servicesOf, TO_HOST, TO_VM1 } from "./services.ts";
import { A, c, tcpTuple, v } from "./talk.ts";
import type { LastHopSpec, World } from "./world.ts";

/** A segment of the client's for the host's MAC. */
export function h(f: Family, flags: string, { frame, ...fields }: Parameters<typeof c>[2] = {}): Buffer {
  return c(f, flags, { ...fields, frame: { ...TO_HOST, ...frame } });
}

/** The next packet of a row by uplink A, which is handed to a VM. */
export function handed(packet: Buffer, reason: ReasonName, to: LastHopSpec, more: Partial<Step> = {}): Step {
  return { at: "uplink_a", packet, reason, to, ...more };
}

/** The same, but it goes on as it came. */
export function passed(packet: Buffer, reason: ReasonName, more: Partial<Step> = {}): Step {
  return { at: "uplink_a", packet, reason, ...more };
}

/** A reply of VM 1, sent back by uplink A. */
export function replied(packet: Buffer, more: Partial<Step> = {}): Step {
  return { at: "tap_1", packet, reason: "redirect", to: A, ...more };
}

/** Of a step: before it the VM goes down. */
export const down = (vm: number) => (world: World) => servicesOf(world).setState(vm, "DOWN");

/** Whatever else is counted there; of nothing wanted nothing may be. */
export function expectCounts(found: object, wanted: object): void {
  if (Object.keys(wanted).length === 0) expect(found).toEqual({});
  else expect(found).toMatchObject(wanted);
}

/** An established connection with VM 1, which is the first that the service chooses. */
export const opening = (f: Family): Step[] => [
  handed(h(f, "S"), "learn", TO_VM1),
  replied(v(f, "SA")),
  handed(h(f, "A"), "promote", TO_VM1),
];

export function tcpCase(f: Family, steps: Step[], given: Case["given"] = serve(f)): Case {
  return { tuple: tcpTuple(f), given, steps };
}
