// SPDX-License-Identifier: Apache-2.0
// How long a change takes until the hot path has it, with 1,000 services. Each has a pool of its own: one VM is in all
// of them, another in one only.

import { ORIGIN, VM_STATE } from "../../src/abi/layout.gen.ts";
import { configSchema } from "../../src/config/schema.ts";
import type { Surroundings } from "../../src/controller/observe.ts";
import { settleServices } from "../../src/controller/serviceSettle.ts";
import {
  removeService,
  serviceSpecOf,
  setOperatorState,
  setService,
} from "../../src/controller/serviceSpec.ts";
import { runSteps, type Step } from "../../src/controller/steps.ts";
import { openInstance } from "../../src/kernel/instance.ts";
import { Netlink } from "../../src/kernel/netlink.ts";
import { Tables } from "../../src/tables/index.ts";
import type { Lab } from "../support/lab.ts";
import { buildLanes, type Lane } from "./lanes.ts";
import { inNamespace, seconds } from "./machine.ts";
import { Product, withFile } from "./product.ts";
import type { Report, RowOptions } from "./report.ts";
import { commandTime } from "./startUp.ts";
import { interleave, type Subject } from "./stats.ts";

const SERVICES = 1000;
const VMS = 100;
const POOL = 8;
const EVERYWHERE = "vm-0";
const ONCE = `vm-${VMS - 1}`;
const GROUP = `Services: a change, ${SERVICES.toLocaleString("en-GB")} services, ${VMS} VMs`;
const PLACE = { outside: "out-updates", first: 20 };

export async function measureServiceUpdates(report: Report, lab: Lab, rounds: number): Promise<void> {
  const options = { name: "updates", way: "lasthop", bridge: true, bridgedUplinks: true } as const;
  const [lane] = await buildLanes(lab, [options], PLACE);
  const product = new Product(lab, lane!.host, lane!.name);
  const text = configuration();
  await product.apply(text);
  const updates = new Updates(lane!, product);
  try {
    report.add(GROUP, "ms", await interleave(updates.subjects(), rounds), ROWS);
  } finally {
    updates.close();
  }
  await product.apply(text);
  const applied = await withFile(text, (path) =>
    interleave([commandTime("apply", product.argv("apply", "--config", path))], rounds),
  );
  report.add(GROUP, "ms", applied, [
    { id: "services_apply_unchanged", subject: "apply", title: "lasthop apply, nothing has changed" },
  ]);
}

const ROWS = [
  { id: "none", title: "nothing has changed" },
  { id: "weight_once", title: "weight of a VM in one pool" },
  { id: "weight_everywhere", title: "weight of a VM in all pools" },
  { id: "down_once", title: "a VM goes down that one service uses" },
  { id: "down_everywhere", title: "a VM goes down that all services use" },
  { id: "add", title: "one service more" },
].map<RowOptions>(({ id, title }) => ({ id: `services_update_${id}`, subject: id, title }));

type Weights = Readonly<Record<string, number>>;

/** As in a configuration file. */
function service(number: number, weights: Weights = {}) {
  // Another set in each of them.
  const step = 1 + (number % 13);
  const others = Array.from({ length: POOL - 1 }, (_, place) => 1 + ((number + place * step) % (VMS - 2)));
  const names = [EVERYWHERE, ...others.map((vm) => `vm-${vm}`), ...(number === 0 ? [ONCE] : [])];
  return {
    name: `service-${number}`,
    address: `10.201.${number >> 8}.${number & 0xff}`,
    port: 443,
    pool: names.map((vm) => ({ vm, weight: weights[vm] ?? 1 })),
  };
}

function configuration(): string {
  const vms = Array.from({ length: VMS }, (_, number) => ({
    name: `vm-${number}`,
    tap: "tap",
    mac: `02:00:be:aa:00:${number.toString(16).padStart(2, "0")}`,
  }));
  const services = Array.from({ length: SERVICES }, (_, number) => service(number));
  return JSON.stringify({
    uplinks: [{ name: "up-a" }, { name: "up-b" }],
    taps: [{ name: "tap" }],
    vms,
    services,
  });
}

class Updates {
  readonly #lane: Lane;
  readonly #around: Surroundings;
  #weight = 1;

  constructor(lane: Lane, { pinRoot }: Product) {
    this.#lane = lane;
    this.#around = inNamespace(lane.host.path, () => {
      const instance = openInstance(pinRoot);
      return { instance, tables: new Tables(instance), netlink: new Netlink() };
    });
  }

  subjects(): Subject[] {
    const around = this.#around;
    const state = (name: string, wanted: number) => setOperatorState(around, name, wanted);
    const goesDown = (id: string, vm: string): Subject => ({
      id,
      run: () => {
        const elapsed = this.#change(state(vm, VM_STATE.DOWN));
        this.#change(state(vm, VM_STATE.UNKNOWN));
        return elapsed;
      },
    });
    const all = Array.from({ length: SERVICES }, (_, number) => number);
    return [
      { id: "none", run: () => this.#settled([], false) },
      { id: "weight_once", run: () => this.#change(this.#weigh([0], ONCE)) },
      { id: "weight_everywhere", run: () => this.#change(this.#weigh(all, EVERYWHERE)) },
      goesDown("down_once", ONCE),
      goesDown("down_everywhere", EVERYWHERE),
      {
        id: "add",
        run: () => {
          const elapsed = this.#change(this.#enter(SERVICES));
          this.#settled(removeService(around, `service-${SERVICES}`), false);
          return elapsed;
        },
      },
    ];
  }

  close(): void {
    this.#around.netlink.close();
    this.#around.instance.close();
  }

  /** Each time another weight than before. */
  #weigh(numbers: readonly number[], vm: string): Step[] {
    this.#weight = 1 + (this.#weight % 3);
    return numbers.flatMap((number) => this.#enter(number, { [vm]: this.#weight }));
  }

  #enter(number: number, weights: Weights = {}): Step[] {
    const { services } = configSchema.parse({ services: [service(number, weights)] });
    return setService(this.#around, `service-${number}`, serviceSpecOf(services[0]!, 0, ORIGIN.CONFIG));
  }

  #change(steps: readonly Step[]): number {
    return this.#settled(steps, true);
  }

  /** Milliseconds until all of it is in the tables. `other`: services distribute to others than before. */
  #settled(steps: readonly Step[], other: boolean): number {
    let lines: string[] = [];
    const elapsed = inNamespace(this.#lane.host.path, () =>
      seconds(() => {
        runSteps(steps);
        lines = settleServices(this.#around);
      }),
    );
    if (lines.some((line) => line.includes("service")) !== other) {
      throw new Error(`${steps.length} steps of an update settled as: ${lines.join("; ") || "nothing"}`);
    }
    return elapsed * 1000;
  }
}
