// SPDX-License-Identifier: Apache-2.0
// Nanoseconds per packet of the programs alone, by BPF_PROG_TEST_RUN, over a program that returns at once.

import { REASON } from "../../src/abi/layout.gen.ts";
import type { BpfMap, BpfProgram } from "../../src/libbpf/index.ts";
import { VerdictTable } from "../../src/tables/verdicts.ts";
import { type Drive, type Fixtures, skbContext, xdpContext } from "./fixtures.ts";
import { type FrameOptions, frame, TCP } from "./frames.ts";
import { type Lane, REMOTE_BASE, REMOTE_PORT, VM_ADDRESS, VM_PORT } from "./lanes.ts";
import { inNamespace, MEASURING_CPU, pinToCpu, uninterrupted } from "./machine.ts";
import type { Report, RowOptions, Target } from "./report.ts";
import { interleave, type Subject } from "./stats.ts";

/** What is loaded and pinned. */
export interface Loaded {
  map(name: string): BpfMap;
  program(name: "learn_xdp" | "learn_tc" | "reply_tc"): BpfProgram;
}

export interface Effort {
  rounds: number;
  packets: number;
  flows: number;
}

type Hook = "xdp" | "tc";
type Reason = keyof typeof REASON;
/** Of one connection, in this order. */
type Step = "syn" | "syn_ack" | "request" | "reply";

const NEW_REMOTE_BASE = "11.0.0.0";
const UNKNOWN_MAC = "02:00:be:ff:ff:ff";
const ISN = { remote: 1000, vm: 5000 } as const;
/** As many as pass through the embryonic tier without any being evicted. */
const CHUNK = 16_384;
const PROBE = 1000;

const TCP_OF_STEP: Record<Step, { flags: number; seq: number; ack: number }> = {
  syn: { flags: TCP.SYN, seq: ISN.remote, ack: 0 },
  syn_ack: { flags: TCP.SYN | TCP.ACK, seq: ISN.vm, ack: ISN.remote + 1 },
  request: { flags: TCP.PSH | TCP.ACK, seq: ISN.remote + 1, ack: ISN.vm + 1 },
  reply: { flags: TCP.PSH | TCP.ACK, seq: ISN.vm + 1, ack: ISN.remote + 1 },
};

interface Case {
  id: string;
  title: string;
  /** How each packet must have left the program; a case that is a baseline has none. */
  reason?: Reason;
  /** The mean of so many packets, in nanoseconds. */
  run(packets: number): number;
  baseline?: string;
  target?: Target;
}

const AT_MOST_75: Target = { of: "comparison", bound: "at_most", value: 75 };

const directionOf = (step: Step): Drive["direction"] =>
  step === "reply" || step === "syn_ack" ? "reply" : "request";

export class HotPath {
  readonly #fixtures: Fixtures;
  readonly #lane: Lane;
  readonly #loaded: Loaded;
  readonly #verdicts: VerdictTable;
  #nextNewFlow = 0;

  constructor(fixtures: Fixtures, lane: Lane, loaded: Loaded) {
    this.#fixtures = fixtures;
    this.#lane = lane;
    this.#loaded = loaded;
    this.#verdicts = new VerdictTable(loaded);
  }

  async measure(report: Report, effort: Effort): Promise<void> {
    pinToCpu(MEASURING_CPU);
    try {
      this.#establishOne(4);
      this.#establishOne(6);
      await this.#measureCases(report, "Hot path over a bare program, 1 flow", this.#direct(), effort);
      // Each case sees its packets rewritten before every run, and so does its baseline.
      this.#establishMany(effort.flows);
      const title = `Hot path over a bare program, ${effort.flows.toLocaleString("en-GB")} flows at random`;
      await this.#measureCases(report, title, this.#driven(effort.flows), effort);
    } finally {
      pinToCpu(null);
    }
  }

  async #measureCases(report: Report, group: string, cases: Case[], effort: Effort): Promise<void> {
    for (const one of cases) this.#prove(one);
    const subjects = cases.map<Subject>(({ id, run }) => ({
      id,
      run: () => run(effort.packets),
    }));
    const samples = await interleave(subjects, effort.rounds);
    const rows = cases.filter((one) => one.baseline !== undefined);
    report.add(
      group,
      "ns a packet",
      samples,
      rows.map<RowOptions>(({ id, title, baseline, target }) => ({
        id: `hot_path_${id}`,
        subject: id,
        title,
        baseline: { subject: baseline!, title: "bare" },
        comparison: "difference",
        ...(target !== undefined && { target }),
      })),
    );
  }

  /** Every packet of a case must be decided as its title says. */
  #prove({ id, reason, run }: Case): void {
    if (reason === undefined) return;
    run(PROBE);
    const before = this.#counts();
    run(PROBE);
    const after = this.#counts();
    const counted = after.map((count, index) => count - before[index]!);
    if (counted[REASON[reason]] === PROBE) return;
    const names = Object.entries(REASON).filter(([, value]) => counted[value]! > 0);
    const seen = names.map(([name, value]) => `${counted[value]} ${name}`).join(", ");
    throw new Error(`${id}: ${PROBE} packets should be ${reason}, but are ${seen || "not counted"}`);
  }

  #counts(): number[] {
    const sum: number[] = [];
    for (let slot = 0; slot < 8; slot++) {
      for (const { reason, packets } of this.#verdicts.read(slot)) sum[reason] = (sum[reason] ?? 0) + packets;
    }
    return sum;
  }

  /** The same packet again and again, as it is. On a bridge: nothing that the program does changes the key. */
  #direct(): Case[] {
    const program = (name: "learn_xdp" | "learn_tc" | "reply_tc") => this.#loaded.program(name);
    const [learnXdp, learnTc, replyTc] = [program("learn_xdp"), program("learn_tc"), program("reply_tc")];
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
      run: (packets) => this.#run(hook, at, at.name === "reply_tc" ? "reply" : "request", data, packets),
      baseline: `bare_${hook}`,
      target: AT_MOST_75,
    });
    const bare = (hook: Hook): Case => {
      const at = this.#fixtures.program(`bare_${hook}`);
      const data = frame(this.#options("request", 4));
      return {
        id: `bare_${hook}`,
        title: "bare",
        run: (packets) => this.#run(hook, at, "request", data, packets),
      };
    };
    const stranger = frame({
      ...this.#options("request", 4),
      source: NEW_REMOTE_BASE,
      destinationMac: UNKNOWN_MAC,
    });
    const unasked = frame({ ...this.#options("reply", 4), destination: NEW_REMOTE_BASE });
    const request = (family: 4 | 6) => frame(this.#options("request", family));
    const reply = (family: 4 | 6) => frame(this.#options("reply", family));
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
    const program = (name: "learn_xdp" | "learn_tc" | "reply_tc") => this.#loaded.program(name);
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
      run: (packets) => this.#drive(hook, at, drive(), packets),
      ...(reason !== undefined && { reason, baseline: `bare_${hook}_random` }),
    });
    const request = () => this.#driveOf("request", "random", flows);
    const reply = () => this.#driveOf("reply", "random", flows);
    const routed = () => ({
      ...reply(),
      frame: frame({ ...this.#options("reply", 4), destinationMac: this.#lane.gatewayMac }),
    });
    const fresh = (): Drive => {
      const first = this.#nextNewFlow;
      return { ...this.#driveOf("syn", "sequential", 1), remote: NEW_REMOTE_BASE, first };
    };
    const bare = (hook: Hook) => this.#fixtures.program(`bare_${hook}`);
    const [learnXdp, learnTc, replyTc] = [program("learn_xdp"), program("learn_tc"), program("reply_tc")];
    return [
      one("bare_xdp", "bare", "xdp", bare("xdp"), undefined, request),
      one("bare_tc", "bare", "tc", bare("tc"), undefined, reply),
      one("learn_hit_xdp", "learn hit, XDP", "xdp", learnXdp, "REFRESH", request),
      one("learn_hit_tc", "learn hit, TC", "tc", learnTc, "REFRESH", request),
      one("learn_new_xdp", "learn a new flow each time, XDP", "xdp", learnXdp, "LEARN", fresh),
      one("reply_hit_tc", "reply hit, bridged, TC", "tc", replyTc, "REDIRECT", reply),
      one("reply_hit_routed_tc", "reply hit, routed, TC", "tc", replyTc, "REDIRECT", routed),
    ];
  }

  #establishOne(family: 4 | 6): void {
    // The first makes the VM known.
    for (const step of ["reply", "syn", "syn_ack", "request"] as const) {
      const data = frame(this.#options(step, family));
      if (directionOf(step) === "reply") this.#run("tc", this.#loaded.program("reply_tc"), "reply", data, 1);
      else this.#run("xdp", this.#loaded.program("learn_xdp"), "request", data, 1);
    }
  }

  #establishMany(flows: number): void {
    const learn = this.#loaded.program("learn_xdp");
    const reply = this.#loaded.program("reply_tc");
    for (let first = 0; first < flows; first += CHUNK) {
      const count = Math.min(CHUNK, flows - first);
      for (const step of ["syn", "syn_ack", "request"] as const) {
        const drive = this.#driveOf(step, "sequential", flows, first);
        if (step === "syn_ack") this.#drive("tc", reply, drive, count);
        else this.#drive("xdp", learn, drive, count);
      }
    }
  }

  #options(step: Step, family: 4 | 6): FrameOptions {
    const lane = this.#lane;
    const vm = family === 4 ? VM_ADDRESS : "2001:db8:a::2";
    const remote = family === 4 ? REMOTE_BASE : "2001:db8:b::1";
    const toVm = {
      destinationMac: lane.mac("vm"),
      sourceMac: lane.mac("a"),
      source: remote,
      destination: vm,
    };
    // The VM's own choice is the other device.
    const fromVm = {
      destinationMac: lane.mac("b"),
      sourceMac: lane.mac("vm"),
      source: vm,
      destination: remote,
    };
    const isReply = directionOf(step) === "reply";
    return {
      ...(isReply ? fromVm : toVm),
      sourcePort: isReply ? VM_PORT : REMOTE_PORT,
      destinationPort: isReply ? REMOTE_PORT : VM_PORT,
      tcp: TCP_OF_STEP[step],
      family,
    };
  }

  #driveOf(step: Step, order: Drive["order"], flows: number, first = 0): Drive {
    return {
      frame: frame(this.#options(step, 4)),
      remote: REMOTE_BASE,
      direction: directionOf(step),
      order,
      flows,
      first,
    };
  }

  #drive(hook: Hook, program: BpfProgram, drive: Drive, packets: number): number {
    if (drive.remote === NEW_REMOTE_BASE) this.#nextNewFlow += packets;
    this.#fixtures.setTarget(hook, program);
    this.#fixtures.setDrive(drive);
    return this.#run(hook, this.#fixtures.program(`drive_${hook}`), drive.direction, drive.frame, packets);
  }

  /** By the kernel's own clock: around the runs of an XDP program it waits for other processors. */
  #run(
    hook: Hook,
    program: BpfProgram,
    direction: Drive["direction"],
    data: Buffer,
    packets: number,
  ): number {
    const ifindex = direction === "reply" ? this.#lane.ends.tap : this.#lane.ends.uplinkA;
    const ctx = hook === "xdp" ? xdpContext(ifindex, data.length) : skbContext(ifindex);
    const run = { data, ctx, repeat: packets, dataOutSize: 0 };
    return inNamespace(this.#lane.host.path, () => uninterrupted(() => program.testRun(run).durationNs));
  }
}
