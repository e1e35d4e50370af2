// SPDX-License-Identifier: Apache-2.0
// What services cost the programs alone: to those who are for one, and to those who are not.

import { Tables } from "../../src/tables/index.ts";
import { Conversation } from "./conversation.ts";
import type { Drive, Fixtures } from "./fixtures.ts";
import { frame } from "./frames.ts";
import { HOST_ADDRESS, type Lane } from "./lanes.ts";
import { MEASURING_CPU, pinToCpu } from "./machine.ts";
import {
  type Baseline,
  type Case,
  type Hook,
  type Loaded,
  NEW_REMOTE_BASE,
  ProgramRuns,
  type RunEffort,
  UNKNOWN_MAC,
} from "./programRuns.ts";
import type { Report, Target } from "./report.ts";
import { DISTRIBUTED, ServiceEntries, SINGLE } from "./serviceEntries.ts";

export interface Effort extends RunEffort {
  flows: number;
}

const MANY = 1000;
/** The two that are asked here. */
const FEW = 2;
/** The kernel frees what has gone some time later, on whichever processor. */
const SETTLING_MS = 100;
const STILL = new Int32Array(new SharedArrayBuffer(4));
const HOOKS: readonly Hook[] = ["xdp", "tc"];
const NAME = { xdp: "XDP", tc: "TC" } as const;
const AT_MOST_40: Target = { of: "comparison", bound: "at_most", value: 40 };

export async function measureServicePath(
  report: Report,
  fixtures: Fixtures,
  lane: Lane,
  loaded: Loaded,
  effort: Effort,
): Promise<void> {
  pinToCpu(MEASURING_CPU);
  const path = new ServicePath(fixtures, lane, loaded);
  try {
    await path.measure(report, effort);
  } finally {
    path.close();
    pinToCpu(null);
  }
}

class ServicePath {
  readonly #lane: Lane;
  readonly #runs: ProgramRuns;
  readonly #entries: ServiceEntries;
  readonly #toVm: Conversation;
  readonly #toService: Conversation;
  readonly #toSingle: Conversation;

  constructor(fixtures: Fixtures, lane: Lane, loaded: Loaded) {
    this.#lane = lane;
    this.#runs = new ProgramRuns(fixtures, lane, loaded);
    this.#toVm = new Conversation(lane);
    this.#toService = this.#calling(DISTRIBUTED);
    this.#toSingle = this.#calling(SINGLE);
    this.#toVm.establishOne(this.#runs, 4);
    this.#entries = new ServiceEntries(new Tables(loaded), lane);
  }

  async measure(report: Report, effort: Effort): Promise<void> {
    const measure = (group: string, cases: Case[]) =>
      this.#runs.measure(report, `Services: hot path, ${group}`, "services", cases, effort);
    this.#entries.present(FEW);
    this.#toSingle.establishOne(this.#runs, 4);
    await measure(
      "1 flow",
      HOOKS.flatMap((hook) => [...this.#hits(hook), ...this.#misses(hook)]),
    );
    await measure(
      "a new flow each time",
      HOOKS.flatMap((hook) => this.#newFlows(hook)),
    );
    this.#entries.present(FEW);
    this.#toVm.establishMany(this.#runs, effort.flows);
    this.#toSingle.establishMany(this.#runs, effort.flows);
    const flows = effort.flows.toLocaleString("en-GB");
    await measure(
      `${flows} flows at random`,
      HOOKS.flatMap((hook) => this.#randomHits(hook, effort.flows)),
    );
  }

  close(): void {
    this.#entries.clear();
  }

  #calling(service: string): Conversation {
    return new Conversation(this.#lane, { address: { 4: service, 6: "::" }, mac: this.#lane.mac("up-a") });
  }

  #present(services: number): void {
    if (this.#entries.present(services)) Atomics.wait(STILL, 0, 0, SETTLING_MS);
  }

  /** With so many services present, and `data` again and again. */
  #again(hook: Hook, id: string, reason: NonNullable<Case["reason"]>, services: number, data: Buffer): Case {
    const program = this.#runs.program(`learn_${hook}`);
    return {
      id: `${id}_${hook}`,
      reason,
      run: (packets) => {
        this.#present(services);
        return this.#runs.run(hook, program, "request", data, packets);
      },
    };
  }

  #driven(
    hook: Hook,
    id: string,
    reason: NonNullable<Case["reason"]>,
    services: number,
    drive: () => Drive,
  ): Case {
    const program = this.#runs.program(`learn_${hook}`);
    return {
      id: `${id}_${hook}`,
      reason,
      run: (packets) => {
        this.#present(services);
        return this.#runs.drive(hook, program, drive(), packets);
      },
    };
  }

  /** The frame is written anew each time: what is handed to a VM has another destination MAC then. */
  #hits(hook: Hook): Case[] {
    const one = (conversation: Conversation) => () => conversation.drive("request", "random", 1);
    const hit = { id: `hit_${hook}`, title: "learn hit" };
    return [
      this.#driven(hook, "hit", "REFRESH", 0, one(this.#toVm)),
      titled(
        this.#driven(hook, "hit_served", "DELIVER", MANY, one(this.#toSingle)),
        `request of a service's flow, ${NAME[hook]}`,
        [{ ...hit, target: AT_MOST_40 }],
      ),
      titled(
        this.#driven(hook, "hit_beside", "REFRESH", MANY, one(this.#toVm)),
        `request of another flow, beside 1,000 services, ${NAME[hook]}`,
        [hit],
      ),
    ];
  }

  #misses(hook: Hook): Case[] {
    const stranger = { ...this.#toVm.options("syn"), source: NEW_REMOTE_BASE };
    const toStranger = frame({ ...stranger, destinationMac: UNKNOWN_MAC });
    const toHost = frame({
      ...stranger,
      destinationMac: this.#lane.mac("up-a"),
      destination: HOST_ADDRESS,
    });
    const pair = (id: string, title: string, reason: "NOT_FOR_VM" | "FOR_HOST", data: Buffer): Case[] => [
      this.#again(hook, id, reason, 0, data),
      titled(
        this.#again(hook, `${id}_beside`, reason, MANY, data),
        `${title}, beside 1,000 services, ${NAME[hook]}`,
        [{ id: `${id}_${hook}`, title: "no services" }],
      ),
    ];
    return [
      ...pair("miss", "learn miss, not for a VM", "NOT_FOR_VM", toStranger),
      ...pair("miss_host", "learn miss, for the host", "FOR_HOST", toHost),
    ];
  }

  #newFlows(hook: Hook): Case[] {
    const fresh = (conversation: Conversation) => () => ({
      ...conversation.drive("syn", "sequential", 1),
      remote: NEW_REMOTE_BASE,
    });
    const [plain, served] = [fresh(this.#toVm), fresh(this.#toService)];
    const none: Baseline = { id: `new_${hook}`, title: "no services" };
    const beside = (count: string): Baseline => ({
      id: `new_beside_${count}_${hook}`,
      row: `new_served_${count}_over_beside_${hook}`,
      title: "for another address",
    });
    const of8 = "learn a new flow each time, for a service of 8 VMs";
    return [
      this.#driven(hook, "new", "LEARN", 0, plain),
      titled(this.#driven(hook, "new_served_few", "LEARN", FEW, served), `${of8}, ${NAME[hook]}`, [
        none,
        beside("few"),
      ]),
      titled(
        this.#driven(hook, "new_beside_few", "LEARN", FEW, plain),
        `learn a new flow each time, beside ${FEW} services, ${NAME[hook]}`,
        [none],
      ),
      titled(
        this.#driven(hook, "new_served_many", "LEARN", MANY, served),
        `${of8}, of 1,000 services, ${NAME[hook]}`,
        [none, beside("many")],
      ),
      titled(
        this.#driven(hook, "new_beside_many", "LEARN", MANY, plain),
        `learn a new flow each time, beside 1,000 services, ${NAME[hook]}`,
        [none],
      ),
    ];
  }

  #randomHits(hook: Hook, flows: number): Case[] {
    const hits = (conversation: Conversation) => () => conversation.drive("request", "random", flows);
    return [
      this.#driven(hook, "random_hit", "REFRESH", 0, hits(this.#toVm)),
      titled(
        this.#driven(hook, "random_hit_served", "DELIVER", MANY, hits(this.#toSingle)),
        `request of a service's flow, ${NAME[hook]}`,
        [{ id: `random_hit_${hook}`, title: "learn hit" }],
      ),
    ];
  }
}

function titled(one: Case, title: string, against: readonly Baseline[]): Case {
  return { ...one, title, against };
}
