// SPDX-License-Identifier: Apache-2.0
// The operator's services: what they are, how many of their VMs are up, and what they did. There may be 10,000.

import { ORIGIN_NAMES, VM_STATE_NAMES } from "../abi/codec.ts";
import { VM_STATE } from "../abi/layout.gen.ts";
import { type PoolTarget, PoolTargets } from "../controller/poolTargets.ts";
import { type NamedService, type NamedVm, servicesInPieces } from "../controller/serviceSpec.ts";
import { Family, Labels } from "./family.ts";
import { CounterReader } from "./perCpu.ts";
import type { ScrapeSource } from "./source.ts";
import { Accounts } from "./traffic.ts";

const COUNTERS = {
  flows: ["flows_started", "Flows for which the service chose a VM."],
  associated: ["flows_associated", "Flows of the service whose VM a stored association chose."],
  affine: ["flows_affine", "Flows of the service whose VM the client's affinity chose."],
  rebalanced: ["flows_rebalanced", "Flows of the service that got another VM when theirs was down."],
  empty: ["requests_empty", "Requests of the service that were dropped, as no VM was up."],
  reset: ["requests_reset", "TCP segments that were answered with a reset, as their VM was down."],
  held: ["requests_held", "Packets that were dropped, as their flow waits for its VM."],
  answered: ["addresses_answered", "Answers to ARP and neighbour discovery for the service's addresses."],
} as const;

type ServiceCounter = keyof typeof COUNTERS;
const COUNTER_KEYS = Object.keys(COUNTERS) as ServiceCounter[];
/**
 * Shown from the start, so that the first of them is seen as an increase. The others have a series once they have
 * occurred: 10,000 services make 10,000 of each.
 */
export const SERVICE_COUNTERS_FROM_THE_START: ReadonlySet<string> = new Set<ServiceCounter>([
  "flows",
  "empty",
]);

/** By index of the service. */
export class ServiceAccounts extends Accounts<ServiceCounter> {
  constructor() {
    super(COUNTER_KEYS);
  }
}

/** By name. */
export async function scrapeServices({ tables, pace }: ScrapeSource): Promise<NamedService[]> {
  return (await pace.through(servicesInPieces(tables))).named;
}

const STATES = [VM_STATE.UP, VM_STATE.DRAIN, VM_STATE.DOWN] as const;
const STATE_LABELS = STATES.map((state) => new Labels({ state: VM_STATE_NAMES[state]! }));

export async function serviceFamilies(
  { pace }: ScrapeSource,
  services: readonly NamedService[],
  vms: readonly NamedVm[],
): Promise<Family[]> {
  const info = new Family("gauge", "lasthop_service_info", "A service; always 1.");
  const members = new Family("gauge", "lasthop_service_vms", "VMs in the pool of the service, by state.");
  const pools = new Pools(vms);
  for (const { name, config, spec } of services) {
    if (pace.due) await pace.rest();
    const labels = new Labels({ service: name });
    const { address, protocol, policy } = config;
    const { zone, origin } = spec;
    const port = config.port ?? "any";
    const what = { zone, address, port, protocol, policy, origin: ORIGIN_NAMES[origin]! };
    info.add(1, labels, new Labels(what));
    pools.states(zone, config.pool).forEach((count, place) => {
      members.add(count, labels, STATE_LABELS[place]);
    });
  }
  return [info, members];
}

/** Many services have the same VMs: each pool is looked up once. */
class Pools {
  readonly #targets: PoolTargets<NamedVm>;
  readonly #known = new Map<string, number[]>();

  constructor(vms: readonly NamedVm[]) {
    this.#targets = new PoolTargets(vms, ({ spec }) => spec.zone);
  }

  /** How many of its VMs are in each of STATES. One of which nothing is known yet gets no flows: it counts as down. */
  states(zone: number, pool: readonly PoolTarget[]): number[] {
    const key = `${zone} ${JSON.stringify(pool)}`;
    let counts = this.#known.get(key);
    if (counts) return counts;
    const members = new Set(pool.flatMap((target) => this.#targets.of(zone, target)));
    counts = STATES.map(
      (state) => [...members].filter(({ spec }) => shownState(spec.state) === state).length,
    );
    this.#known.set(key, counts);
    return counts;
  }
}

function shownState(state: number): number {
  return state === VM_STATE.UNKNOWN ? VM_STATE.DOWN : state;
}

export async function serviceTrafficFamilies(
  { instance, pace }: ScrapeSource,
  services: readonly NamedService[],
  accounts: ServiceAccounts,
): Promise<Family[]> {
  const counters = COUNTER_KEYS.map((key) => {
    const [name, help] = COUNTERS[key];
    return { key, family: new Family("counter", `lasthop_service_${name}_total`, help) };
  });
  const reader = new CounterReader(instance.map("service_stats"), "service_stats", COUNTER_KEYS);
  for (const { name, spec } of services) {
    if (pace.due) await pace.rest();
    const labels = new Labels({ service: name });
    const now = spec.index === 0 ? [] : [[spec.index, reader.read(spec.index)] as const];
    const total = accounts.add(name, new Map(now));
    for (const { key, family } of counters) {
      if (total[key] > 0 || SERVICE_COUNTERS_FROM_THE_START.has(key)) family.add(total[key], labels);
    }
  }
  accounts.keep(new Set(services.map(({ name }) => name)));
  return counters.map(({ family }) => family);
}
