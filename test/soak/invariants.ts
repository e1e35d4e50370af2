// SPDX-License-Identifier: Apache-2.0
// What must hold when all is quiet again.

import { joinLastHop, splitLastHop } from "../../src/abi/codec.ts";
import { FLOW, FLOW_FLAG, LAST_HOP_KIND, LAST_HOPS_MAX, ORIGIN } from "../../src/abi/layout.gen.ts";
import { formatMac } from "../../src/addresses.ts";
import type { Instance } from "../../src/kernel/instance.ts";
import type { BpfMap } from "../../src/libbpf/index.ts";
import type { StatusReport, VerdictCount } from "../../src/ops/types.ts";
import { decodeFlowKey, type Tables } from "../../src/tables/index.ts";
import type { Lasthop } from "../support/lasthop.ts";
import { must, until } from "../support/run.ts";
import type { Site } from "../support/site.ts";
import type { ObjectKind, Sample } from "./daemon.ts";

/** Each is a sentence about what is wrong. */
export type Findings = string[];

/** No flow names a last hop that was released, or one that never was. */
export function checkFlows(tables: Tables): Findings {
  const findings: Findings = [];
  for (const table of tables.flows.all) {
    for (const { count, keys, values } of table.batches()) {
      for (let place = 0; place < count; place++) {
        const at = place * table.valueSize;
        if (values[at + FLOW.fields.flags.offset]! & FLOW_FLAG.LOCAL_ORIGIN) continue;
        const reference = values.readUInt32LE(at + FLOW.fields.last_hop.offset);
        if (tables.lastHops.resolve(reference).state !== "stale") continue;
        const { generation, index } = splitLastHop(reference);
        const key = decodeFlowKey(table.family, keys, place * table.keySize);
        findings.push(
          `a flow of ${table.name} (${key.remotePort} -> ${key.localPort}, proto ${key.proto}) names generation ` +
            `${generation} of last hop ${index}, which was released`,
        );
      }
    }
  }
  return findings;
}

/**
 * Every index that was ever given out is free or in use, and not both; free ones are in the queue once. The queue can
 * only be read by emptying it, so nothing may run that takes indices.
 */
export function checkIndices(tables: Tables, free: BpfMap): Findings {
  const findings: Findings = [];
  const queued: number[] = [];
  for (let value = free.pop(); value; value = free.pop()) queued.push(value.readUInt32LE());
  for (const index of queued) {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(index);
    free.push(bytes);
  }
  const { last_hops: used } = tables.allocations.get(0)!;
  const queue = new Set(queued);
  if (queue.size !== queued.length) findings.push("an index of a last hop is free twice");
  if (used > LAST_HOPS_MAX) findings.push(`${used} last hops were given out`);
  for (let index = 0; index < used; index++) {
    const { kind, generation } = tables.lastHops.records.get(index)!;
    const alias = tables.lastHops.aliases.get(index)!;
    const isUsed = kind === LAST_HOP_KIND.ETHERNET && splitLastHop(alias).generation === generation;
    const isFree = queue.has(index) && kind === LAST_HOP_KIND.NONE;
    if (isUsed !== isFree) continue;
    findings.push(
      `last hop ${index} is ${isUsed ? "in use and free" : "neither in use nor free"}: kind ${kind}, generation ` +
        `${generation}, alias ${alias.toString(16)}, ${queue.has(index) ? "in" : "not in"} the queue`,
    );
  }
  for (const index of queued) {
    if (index >= used) findings.push(`last hop ${index} is in the queue, and only ${used} were given out`);
  }
  for (const [key, index] of tables.lastHops.keys.entries()) {
    const record = tables.lastHops.records.get(index)!;
    const reference = joinLastHop(record.generation, index);
    if (queue.has(index) || tables.lastHops.resolve(reference).state === "stale") {
      findings.push(
        `${formatMac(key.mac)} on interface ${key.ifindex} leads to last hop ${index}, which is free`,
      );
    }
  }
  return findings;
}

/** What interfaces may still learn is what they have learned less. After a sweep, which counts anew. */
export function checkBudgets(tables: Tables): Findings {
  const learned = new Map<number, Set<number>>();
  for (const [, index] of tables.lastHops.keys.entries()) {
    const { origin, ifindex } = tables.lastHops.records.get(index)!;
    if (origin !== ORIGIN.LEARNED) continue;
    learned.set(ifindex, (learned.get(ifindex) ?? new Set()).add(index));
  }
  return tables.interfaces.list().flatMap(({ ifindex, name, slot }) => {
    const budget = slot === 0 ? undefined : tables.budgets.get(slot);
    const count = learned.get(ifindex)?.size ?? 0;
    if (!budget || budget.last_hops === count) return [];
    return [`${name} has learned ${count} last hops, and its budget counts ${budget.last_hops}`];
  });
}

/** All that is configured is attached, once, and nothing else is. */
export async function checkAttached(site: Site, lasthop: Lasthop, instance: Instance): Promise<Findings> {
  const findings: Findings = [];
  const wanted = [...site.uplinks, ...site.taps].sort();
  const status = await lasthop.json<StatusReport>("status");
  const attached = status.interfaces.map((one) => one.interface).sort();
  if (attached.join() !== wanted.join()) findings.push(`attached are ${attached}, and not ${wanted}`);
  for (const { interface: name, state, foreign_program_ids: others } of status.interfaces) {
    if (state !== "ok") findings.push(`the state of ${name} is ${state}`);
    if (others.length > 0) findings.push(`${name} has other programs: ${others}`);
  }
  const links = instance.linkNames();
  if (links.length !== wanted.length) {
    findings.push(`${wanted.length} interfaces are attached by ${links.length} links: ${links}`);
  }
  const evicted = status.tiers.find(({ tier }) => tier === "established")!.evicted;
  if (evicted !== 0) findings.push(`${evicted} established flows are said to be evicted, and there is room`);
  const { counters } = await lasthop.json<{ counters: VerdictCount[] }>("stats");
  for (const { interface: name, reason, verdict, packets } of counters) {
    if (verdict === "drop" && packets > 0) findings.push(`${name} has dropped ${packets} packets: ${reason}`);
  }
  return findings;
}

/** BPF objects that belong to this instance: what is pinned, and what its daemons held. */
export class Objects {
  readonly #ids: Record<ObjectKind, Set<number>> = { map: new Set(), prog: new Set(), link: new Set() };

  add(kind: ObjectKind, id: number): void {
    this.#ids[kind].add(id);
  }

  addPinned(instance: Instance): void {
    for (const name of instance.mapNames()) this.add("map", instance.map(name).info().id);
    for (const name of instance.programNames()) this.add("prog", instance.program(name).info().id);
  }

  get size(): number {
    return Object.values(this.#ids).reduce((sum, ids) => sum + ids.size, 0);
  }

  /** Those that the kernel has still. It frees them some time after the last reference went. */
  async checkGone(): Promise<Findings> {
    let left: Findings = [];
    try {
      await until(
        async () => {
          left = await this.#left();
          return left.length === 0;
        },
        "BPF objects to go",
        15_000,
      );
    } catch (error) {
      if (left.length === 0) throw error;
    }
    return left;
  }

  async #left(): Promise<Findings> {
    const left: Findings = [];
    for (const kind of ["map", "prog", "link"] as const) {
      const present = JSON.parse(await must(["bpftool", "-j", kind, "show"])) as {
        id: number;
        name?: string;
      }[];
      for (const { id, name } of present) {
        if (this.#ids[kind].has(id)) left.push(`the kernel still has ${kind} ${id} (${name ?? "no name"})`);
      }
    }
    return left;
  }
}

/** Growth of memory beyond which it is taken for a leak, over all that was looked at. */
const GROWTH_BYTES = 24 * 2 ** 20;
/** At first a process grows. */
const WARM_UP = 0.4;

export interface Memory {
  seconds: number;
  medianBytes: number;
  /** By a straight line through the samples. */
  growthBytes: number;
}

export function memoryOf(samples: readonly Sample[]): Memory {
  const first = samples[0]?.seconds ?? 0;
  const last = samples.at(-1)?.seconds ?? 0;
  const warm = samples.filter(({ seconds }) => seconds >= first + (last - first) * WARM_UP);
  if (warm.length < 3) throw new Error(`memory was looked at ${warm.length} times only`);
  const sorted = warm.map(({ rssBytes }) => rssBytes).sort((a, b) => a - b);
  const meanTime = mean(warm.map(({ seconds }) => seconds));
  const meanBytes = mean(sorted);
  let covariance = 0;
  let variance = 0;
  for (const { seconds, rssBytes } of warm) {
    covariance += (seconds - meanTime) * (rssBytes - meanBytes);
    variance += (seconds - meanTime) ** 2;
  }
  const seconds = warm.at(-1)!.seconds - warm[0]!.seconds;
  const growthBytes = variance === 0 ? 0 : (covariance / variance) * seconds;
  return { seconds, medianBytes: sorted[sorted.length >> 1]!, growthBytes };
}

export function checkMemory({ growthBytes, seconds }: Memory): Findings {
  if (growthBytes <= GROWTH_BYTES) return [];
  return [`the daemon grew by ${Math.round(growthBytes / 2 ** 20)} MiB in ${Math.round(seconds)} s`];
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Descriptors of one daemon that has lived through it all against those of a fresh one. */
export function checkDescriptors(
  old: ReadonlyMap<string, number>,
  fresh: ReadonlyMap<string, number>,
): Findings {
  return [...old].flatMap(([kind, count]) => {
    const wanted = fresh.get(kind) ?? 0;
    // A connection, or a pass that is under way.
    const slack = /bpf/.test(kind) ? 0 : 3;
    return count <= wanted + slack
      ? []
      : [`the daemon has ${count} descriptors of ${kind}, a fresh one ${wanted}`];
  });
}
