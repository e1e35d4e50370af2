// SPDX-License-Identifier: Apache-2.0
// TCP connections from device A to the VM of a lane, frame by frame, for runs of the programs alone.

import type { Drive } from "./fixtures.ts";
import { type FrameOptions, frame, TCP } from "./frames.ts";
import { type Lane, REMOTE_BASE, REMOTE_PORT, VM_ADDRESS, VM_PORT } from "./lanes.ts";
import type { ProgramRuns } from "./programRuns.ts";

/** Of one connection, in this order. */
export type Step = "syn" | "syn_ack" | "request" | "reply";
export type Family = 4 | 6;

/** What requests are addressed to. */
export interface Callee {
  address: Readonly<Record<Family, string>>;
  mac: string;
}

const REMOTE = { 4: REMOTE_BASE, 6: "2001:db8:b::1" } as const;
const ISN = { remote: 1000, vm: 5000 } as const;
/** As many as pass through the embryonic tier without any being evicted. */
const CHUNK = 16_384;

const TCP_OF_STEP: Record<Step, { flags: number; seq: number; ack: number }> = {
  syn: { flags: TCP.SYN, seq: ISN.remote, ack: 0 },
  syn_ack: { flags: TCP.SYN | TCP.ACK, seq: ISN.vm, ack: ISN.remote + 1 },
  request: { flags: TCP.PSH | TCP.ACK, seq: ISN.remote + 1, ack: ISN.vm + 1 },
  reply: { flags: TCP.PSH | TCP.ACK, seq: ISN.vm + 1, ack: ISN.remote + 1 },
};

export const directionOf = (step: Step): Drive["direction"] =>
  step === "reply" || step === "syn_ack" ? "reply" : "request";

export class Conversation {
  readonly #lane: Lane;
  readonly #callee: Callee;

  /** With the VM itself if `callee` is left out. */
  constructor(lane: Lane, callee?: Callee) {
    this.#lane = lane;
    this.#callee = callee ?? { address: { 4: VM_ADDRESS, 6: "2001:db8:a::2" }, mac: lane.mac("vm") };
  }

  options(step: Step, family: Family = 4): FrameOptions {
    const { address, mac } = this.#callee;
    const lane = this.#lane;
    const toVm = {
      destinationMac: mac,
      sourceMac: lane.mac("a"),
      source: REMOTE[family],
      destination: address[family],
      sourcePort: REMOTE_PORT,
      destinationPort: VM_PORT,
    };
    // The VM's own choice is the other device.
    const fromVm = {
      destinationMac: lane.mac("b"),
      sourceMac: lane.mac("vm"),
      source: address[family],
      destination: REMOTE[family],
      sourcePort: VM_PORT,
      destinationPort: REMOTE_PORT,
    };
    return { ...(directionOf(step) === "reply" ? fromVm : toVm), tcp: TCP_OF_STEP[step], family };
  }

  frame(step: Step, family: Family = 4): Buffer {
    return frame(this.options(step, family));
  }

  drive(step: Step, order: Drive["order"], flows: number, first = 0): Drive {
    return {
      frame: this.frame(step),
      remote: REMOTE_BASE,
      direction: directionOf(step),
      order,
      flows,
      first,
    };
  }

  establishOne(runs: ProgramRuns, family: Family): void {
    // The first makes the VM known.
    for (const step of ["reply", "syn", "syn_ack", "request"] as const) {
      const data = this.frame(step, family);
      if (directionOf(step) === "reply") runs.run("tc", runs.program("reply_tc"), "reply", data, 1);
      else runs.run("xdp", runs.program("learn_xdp"), "request", data, 1);
    }
  }

  establishMany(runs: ProgramRuns, flows: number): void {
    for (let first = 0; first < flows; first += CHUNK) {
      const count = Math.min(CHUNK, flows - first);
      for (const step of ["syn", "syn_ack", "request"] as const) {
        const drive = this.drive(step, "sequential", flows, first);
        if (step === "syn_ack") runs.drive("tc", runs.program("reply_tc"), drive, count);
        else runs.drive("xdp", runs.program("learn_xdp"), drive, count);
      }
    }
  }
}
