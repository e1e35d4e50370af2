// SPDX-License-Identifier: Apache-2.0
// Nanoseconds per packet of the programs alone, by BPF_PROG_TEST_RUN, over a program that returns at once.

import type { BpfProgram } from "../../src/libbpf/index.ts";
import { Conversation, type Family } from "./conversation.ts";
import type { Drive, Fixtures } from "./fixtures.ts";
import { frame } from "./frames.ts";
import type { Lane } from "./lanes.ts";
import { MEASURING_CPU, pinToCpu } from "./machine.ts";
import {
  type Case,
  type Hook,
  type Loaded,
  NEW_REMOTE_BASE,
  ProgramRuns,
  type RunEffort,
  UNKNOWN_MAC,
} from "./programRuns.ts";
import type { Report, Target } from "./report.ts";

export interface Effort extends RunEffort {
  flows: number;
}

type Reason = NonNullable<Case["reason"]>;

const AT_MOST_75: Target = { of: "comparison", bound: "at_most", value: 75 };

export class HotPath {
  readonly #lane: Lane;
  readonly #runs: ProgramRuns;
  readonly #conversation: Conversation;

  constructor(fixtures: Fixtures, lane: Lane, loaded: Loaded) {
    this.#lane = lane;
    this.#runs = new ProgramRuns(fixtures, lane, loaded);
    this.#conversation = new Conversation(lane);
  }

  async measure(report: Report, effort: Effort): Promise<void> {
    pinToCpu(MEASURING_CPU);
    try {
      this.#conversation.establishOne(this.#runs, 4);
      this.#conversation.establishOne(this.#runs, 6);
      const one = "Hot path over a bare program, 1 flow";
      await this.#runs.measure(report, one, "hot_path", this.#direct(), effort);
      // Each case sees its packets rewritten before every run, and so does its baseline.
      this.#conversation.establishMany(this.#runs, effort.flows);
      const many = `Hot path over a bare program, ${effort.flows.toLocaleString("en-GB")} flows at random`;
      await this.#runs.measure(report, many, "hot_path", this.#driven(effort.flows), effort);
    } finally {
      pinToCpu(null);
    }
  }

  /** The same packet again and again, as it is. On a bridge: nothing that the program does changes the key. */
  #direct(): Case[] {
    const runs = this.#runs;
    const [learnXdp, learnTc, replyTc] = this.#programs();
    const one = (
      id: string,
      title: string,
      hook: Hook,
      at: BpfProgram,
      reason: Reason,
      data: Buffer,
    ): Case => ({
      id: `${id}_1`,
      title,
      reason,
      run: (packets) => runs.run(hook, at, at.name === "reply_tc" ? "reply" : "request", data, packets),
      against: [{ id: `bare_${hook}`, title: "bare", target: AT_MOST_75 }],
    });
    const bare = (hook: Hook): Case => {
      const data = this.#conversation.frame("request");
      return {
        id: `bare_${hook}`,
        run: (packets) => runs.run(hook, runs.bare(hook), "request", data, packets),
      };
    };
    const stranger = frame({
      ...this.#conversation.options("request"),
      source: NEW_REMOTE_BASE,
      destinationMac: UNKNOWN_MAC,
    });
    const unasked = frame({ ...this.#conversation.options("reply"), destination: NEW_REMOTE_BASE });
    const request = (family: Family) => this.#conversation.frame("request", family);
    const reply = (family: Family) => this.#conversation.frame("reply", family);
    return [
      bare("xdp"),
      bare("tc"),
      one("learn_hit_xdp", "learn hit, XDP", "xdp", learnXdp, "REFRESH", request(4)),
      one("learn_hit_tc", "learn hit, TC", "tc", learnTc, "REFRESH", request(4)),
      one("learn_miss_xdp", "learn miss, not for a VM, XDP", "xdp", learnXdp, "NOT_FOR_VM", stranger),
      one("learn_miss_tc", "learn miss, not for a VM, TC", "tc", learnTc, "NOT_FOR_VM", stranger),
      one("reply_hit_tc", "reply hit, TC", "tc", replyTc, "REDIRECT", reply(4)),
      one("reply_miss_tc", "reply miss, TC", "tc", replyTc, "NO_FLOW", unasked),
      one("learn_hit_xdp_ipv6", "learn hit, IPv6, XDP", "xdp", learnXdp, "REFRESH", request(6)),
      one("reply_hit_tc_ipv6", "reply hit, IPv6, TC", "tc", replyTc, "REDIRECT", reply(6)),
    ];
  }

  #driven(flows: number): Case[] {
    const runs = this.#runs;
    const [learnXdp, learnTc, replyTc] = this.#programs();
    const one = (
      id: string,
      title: string,
      hook: Hook,
      at: BpfProgram,
      reason: Reason | undefined,
      drive: () => Drive,
    ): Case => ({
      id: `${id}_random`,
      title,
      run: (packets) => runs.drive(hook, at, drive(), packets),
      ...(reason !== undefined && { reason, against: [{ id: `bare_${hook}_random`, title: "bare" }] }),
    });
    const request = () => this.#conversation.drive("request", "random", flows);
    const reply = () => this.#conversation.drive("reply", "random", flows);
    const routed = () => ({
      ...reply(),
      frame: frame({ ...this.#conversation.options("reply"), destinationMac: this.#lane.gatewayMac }),
    });
    const fresh = () => ({ ...this.#conversation.drive("syn", "sequential", 1), remote: NEW_REMOTE_BASE });
    return [
      one("bare_xdp", "bare", "xdp", runs.bare("xdp"), undefined, request),
      one("bare_tc", "bare", "tc", runs.bare("tc"), undefined, reply),
      one("learn_hit_xdp", "learn hit, XDP", "xdp", learnXdp, "REFRESH", request),
      one("learn_hit_tc", "learn hit, TC", "tc", learnTc, "REFRESH", request),
      one("learn_new_xdp", "learn a new flow each time, XDP", "xdp", learnXdp, "LEARN", fresh),
      one("reply_hit_tc", "reply hit, bridged, TC", "tc", replyTc, "REDIRECT", reply),
      one("reply_hit_routed_tc", "reply hit, routed, TC", "tc", replyTc, "REDIRECT", routed),
    ];
  }

  #programs(): [BpfProgram, BpfProgram, BpfProgram] {
    const runs = this.#runs;
    return [runs.program("learn_xdp"), runs.program("learn_tc"), runs.program("reply_tc")];
  }
}
