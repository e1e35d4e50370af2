// SPDX-License-Identifier: Apache-2.0
// The programs alone, by BPF_PROG_TEST_RUN: nanoseconds a packet, where every packet of a case must be decided as the
// case says.

import { REASON } from "../../src/abi/layout.gen.ts";
import type { BpfMap, BpfProgram } from "../../src/libbpf/index.ts";
import { VerdictTable } from "../../src/tables/verdicts.ts";
import { type Drive, type Fixtures, skbContext, xdpContext } from "./fixtures.ts";
import type { Lane } from "./lanes.ts";
import { inNamespace, uninterrupted } from "./machine.ts";
import type { Report, RowOptions, Target } from "./report.ts";
import { interleave, type Subject } from "./stats.ts";

/** What is loaded and pinned. */
export interface Loaded {
  map(name: string): BpfMap;
  program(name: ProgramName): BpfProgram;
}

export type ProgramName = "learn_xdp" | "learn_tc" | "reply_tc";
export type Hook = "xdp" | "tc";

export interface Case {
  id: string;
  /** Of its row; a case that is only a baseline needs none. */
  title?: string;
  /** How each packet must have left the program; of a bare program nothing is counted. */
  reason?: keyof typeof REASON;
  /** The mean of so many packets, in nanoseconds. */
  run(packets: number): number;
  /** What it is held against, each in a row of its own. */
  against?: readonly Baseline[];
}

export interface Baseline {
  /** Id of another case. */
  id: string;
  title: string;
  /** Of the row; from the case's if left out. */
  row?: string;
  target?: Target;
}

export interface RunEffort {
  rounds: number;
  packets: number;
}

/** Flows of remotes from here on are nobody's yet. */
export const NEW_REMOTE_BASE = "11.0.0.0";
/** Nobody's. */
export const UNKNOWN_MAC = "02:00:be:ff:ff:ff";
const PROBE = 1000;
const SLOTS = 8;

export class ProgramRuns {
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

  program(name: ProgramName): BpfProgram {
    return this.#loaded.program(name);
  }

  /** Returns at once. */
  bare(hook: Hook): BpfProgram {
    return this.#fixtures.program(`bare_${hook}`);
  }

  /** One row for each case and baseline. Ids of rows begin with `prefix`. */
  async measure(
    report: Report,
    group: string,
    prefix: string,
    cases: readonly Case[],
    { rounds, packets }: RunEffort,
  ): Promise<void> {
    for (const one of cases) this.#prove(one);
    const subjects = cases.map<Subject>(({ id, run }) => ({ id, run: () => run(packets) }));
    const samples = await interleave(subjects, rounds);
    const rows = cases.flatMap(({ id, title = id, against = [] }) =>
      against.map<RowOptions>((baseline) => ({
        id: `${prefix}_${baseline.row ?? id}`,
        subject: id,
        title,
        baseline: { subject: baseline.id, title: baseline.title },
        comparison: "difference",
        ...(baseline.target !== undefined && { target: baseline.target }),
      })),
    );
    report.add(group, "ns a packet", samples, rows);
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
    for (let slot = 0; slot < SLOTS; slot++) {
      for (const { reason, packets } of this.#verdicts.read(slot)) sum[reason] = (sum[reason] ?? 0) + packets;
    }
    return sum;
  }

  /** What a driver writes, before each packet. Sequential flows of NEW_REMOTE_BASE are new ones each time. */
  drive(hook: Hook, program: BpfProgram, drive: Drive, packets: number): number {
    const isNew = drive.remote === NEW_REMOTE_BASE;
    this.#fixtures.setTarget(hook, program);
    this.#fixtures.setDrive(isNew ? { ...drive, first: this.#nextNewFlow } : drive);
    if (isNew) this.#nextNewFlow += packets;
    return this.run(hook, this.#fixtures.program(`drive_${hook}`), drive.direction, drive.frame, packets);
  }

  /** By the kernel's own clock: around the runs of an XDP program it waits for other processors. */
  run(hook: Hook, program: BpfProgram, direction: Drive["direction"], data: Buffer, packets: number): number {
    const ifindex = direction === "reply" ? this.#lane.ends.tap : this.#lane.ends.uplinkA;
    const ctx = hook === "xdp" ? xdpContext(ifindex, data.length) : skbContext(ifindex);
    const run = { data, ctx, repeat: packets, dataOutSize: 0 };
    return inNamespace(this.#lane.host.path, () => uninterrupted(() => program.testRun(run).durationNs));
  }
}
