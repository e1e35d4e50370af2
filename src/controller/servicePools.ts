// SPDX-License-Identifier: Apache-2.0
// Pools of services: which VMs are in one, and what then stands in its lines. Pure, in pieces.

import { createHash } from "node:crypto";
import { SERVICE_POLICY, VM_STATE } from "../abi/layout.gen.ts";
import type { MemberConfig } from "../config/services.ts";
import { linesOf } from "../tables/index.ts";
import { type Backend, maglevSize, maglevTable, roundRobinOrder } from "./maglev.ts";
import type { Pieces } from "./pieces.ts";
import { PoolTargets } from "./poolTargets.ts";
import type { SettledVm } from "./vmSettle.ts";

/** Pools between two pauses. */
const SEVERAL = 64;

export type ModelVm = Pick<SettledVm, "name" | "config" | "zone" | "id" | "cell" | "state" | "mac">;

/** What stands in the lines of a pool, and what is said of it. */
export interface PoolContent {
  /** enum service_policy */
  policy: number;
  size: number;
  /** With LEAST_FLOWS the weights follow, so there are twice as many. */
  cells: Uint16Array;
  /** The same for the same content. */
  digest: string;
}

/** Contents that were made before, by what they are made of: so that the same is not worked out again and again. */
export type KnownPools = Map<string, PoolContent>;

/** The VMs that a pool is made of. */
export interface AskedPool {
  policy: number;
  all: readonly Backend[];
  up: readonly Backend[];
  ids: ReadonlySet<number>;
  /** Of what the content is made, but for its size. */
  made: string;
}

export interface Found {
  vms: readonly { vm: ModelVm; weight: number }[];
  missing: readonly string[];
}

/** Who a pool's members are. */
export class Members {
  readonly #targets: PoolTargets<ModelVm>;
  /** Many services have the same members. */
  readonly #found = new Map<string, Found>();

  constructor(vms: readonly ModelVm[]) {
    this.#targets = new PoolTargets(vms, ({ zone }) => zone);
  }

  get(zone: number, name: string): ModelVm | undefined {
    return this.#targets.of(zone, { vm: name })[0];
  }

  /** Each VM once: with the weight of its name, else with that of the first label. */
  of(zone: number, targets: readonly MemberConfig[]): Found {
    const key = `${zone} ${JSON.stringify(targets)}`;
    const before = this.#found.get(key);
    if (before) return before;
    const weights = new Map<ModelVm, number>();
    const missing: string[] = [];
    for (const { vm: name, weight } of targets) {
      if (name === undefined) continue;
      const vm = this.get(zone, name);
      if (vm) weights.set(vm, weights.get(vm) ?? weight);
      else missing.push(`no VM of its zone is called ${name}`);
    }
    for (const { label, weight } of targets) {
      if (label === undefined) continue;
      const those = this.#targets.of(zone, { label });
      for (const vm of those) weights.set(vm, weights.get(vm) ?? weight);
      if (those.length === 0) missing.push(`no VM of its zone has the label ${label}`);
    }
    const found = { vms: [...weights].map(([vm, weight]) => ({ vm, weight })), missing };
    this.#found.set(key, found);
    return found;
  }
}

/** Each content once, whoever wants it, and no larger than there is room for. */
export class Pools {
  readonly #known: KnownPools;
  readonly #asked = new Map<Found, Map<number, AskedPool>>();
  readonly #used = new Set<string>();
  #placesPerVm: number | undefined;

  constructor(known: KnownPools) {
    this.#known = known;
  }

  ask(policy: number, found: Found): AskedPool {
    const byPolicy = this.#asked.get(found) ?? new Map<number, AskedPool>();
    this.#asked.set(found, byPolicy);
    const before = byPolicy.get(policy);
    if (before) return before;
    const backends = found.vms.map(({ vm, weight }) => ({
      vm,
      backend: { cell: vm.cell ?? 0, key: vm.name, weight },
    }));
    const up = backends
      .filter(({ vm }) => vm.state === VM_STATE.UP && vm.cell !== null)
      .map(({ backend }) => backend)
      .sort((a, b) => (a.key < b.key ? -1 : 1));
    const asked = {
      policy,
      all: backends.map(({ backend }) => backend),
      up,
      ids: new Set(found.vms.flatMap(({ vm }) => (vm.id === 0 ? [] : [vm.id]))),
      made: `${policy} ${up.map(({ key, cell, weight }) => `${key} ${cell} ${weight}`).join()}`,
    };
    byPolicy.set(policy, asked);
    return asked;
  }

  /**
   * While old contents give way to new ones both need room. Where all would take more than half of it, the tables of
   * all pools become smaller: shares are less exact then.
   */
  *chooseSizes(room: number): Pieces<void> {
    const asked = [...this.#asked.values()].flatMap((byPolicy) => [...byPolicy.values()]);
    for (const places of [undefined, 50, 25, 10, 5, 2, 1]) {
      this.#placesPerVm = places;
      const distinct = new Set<string>();
      let lines = 0;
      for (const [count, pool] of asked.entries()) {
        const key = `${this.#size(pool)} ${pool.made}`;
        if (!distinct.has(key)) lines += linesOf(this.#length(pool));
        distinct.add(key);
        if (count % SEVERAL === 0) yield;
      }
      if (lines <= room / 2) return;
    }
  }

  content(asked: AskedPool): PoolContent | null {
    if (asked.up.length === 0) return null;
    const size = this.#size(asked);
    const key = `${size} ${asked.made}`;
    this.#used.add(key);
    let content = this.#known.get(key);
    if (!content) {
      content = contentOf(asked.policy, asked.up, size);
      this.#known.set(key, content);
    }
    return content;
  }

  /** What nobody has asked for this time. */
  forgetOthers(): void {
    for (const key of this.#known.keys()) if (!this.#used.has(key)) this.#known.delete(key);
  }

  /** By all its VMs: when one goes down and comes up again, the others keep their places. */
  #size({ policy, all, up }: AskedPool): number {
    if (policy === SERVICE_POLICY.LEAST_FLOWS || policy === SERVICE_POLICY.ROUND_ROBIN) return up.length;
    if (up.length <= 1) return up.length;
    const weights = all.map(({ weight }) => weight);
    return maglevSize(all.length, weights, this.#placesPerVm);
  }

  #length(asked: AskedPool): number {
    const { policy, up } = asked;
    if (policy === SERVICE_POLICY.LEAST_FLOWS) return up.length * 2;
    if (policy !== SERVICE_POLICY.ROUND_ROBIN) return this.#size(asked);
    return up.reduce((sum, { weight }) => sum + weight, 0);
  }
}

/** `up`: in the order of their names. */
function contentOf(policy: number, up: readonly Backend[], size: number): PoolContent {
  let cells: Uint16Array;
  if (policy === SERVICE_POLICY.LEAST_FLOWS) {
    cells = Uint16Array.from([...up.map(({ cell }) => cell), ...up.map(({ weight }) => weight)]);
    return { policy, size, cells, digest: poolDigest(policy, size, cells) };
  }
  cells = policy === SERVICE_POLICY.ROUND_ROBIN ? roundRobinOrder(up) : maglevTable(up, size);
  return { policy, size: cells.length, cells, digest: poolDigest(policy, cells.length, cells) };
}

export function poolDigest(policy: number, size: number, cells: Uint16Array): string {
  return createHash("sha256").update(`${policy} ${size} `).update(cells).digest("base64");
}

/** Numbers that a pool has in its lines. */
export function poolLength(policy: number, size: number): number {
  return policy === SERVICE_POLICY.LEAST_FLOWS ? size * 2 : size;
}
