// SPDX-License-Identifier: Apache-2.0
// A million flows: expiring them, listing them, what they cost in memory.

import { execFileSync } from "node:child_process";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { currentTick, encode, secondsToTicks } from "../../src/abi/codec.ts";
import { FLOW_STATE, FLOW4_KEY, FLOW6_KEY, LAST_HOP_INDEX_BITS } from "../../src/abi/layout.gen.ts";
import { configSchema } from "../../src/config/schema.ts";
import { type SweepResult, sweepInstance } from "../../src/controller/sweep.ts";
import type { BpfMap } from "../../src/libbpf/index.ts";
import { address4 } from "./frames.ts";
import { kernelMemory, type Product } from "./product.ts";
import type { Report, RowOptions } from "./report.ts";

export interface Effort {
  rounds: number;
  flows: number;
}

const IPPROTO_TCP = 6;
const FRESH_SECONDS = 5;
/** Well beyond the timeout of established TCP. */
const IDLE_SECONDS = 86_400;
/** Generation 1, index 0. */
const FIRST_LAST_HOP = 1 << LAST_HOP_INDEX_BITS;
const CHUNK = 50_000;
/** A deletion between two reads moves its bucket's other entries: a walk may pass a few of a million. */
const MISSED = 1000;
const IDLE_PERCENT = [0, 10, 100] as const;
const PACED_IDLE_PERCENT = 10;
/** The event loop is looked at so often while its delay is measured. */
const LOOK_MS = 1;

export class FlowTable {
  readonly #product: Product;
  readonly #map: BpfMap;
  readonly #map6: BpfMap;

  constructor(product: Product) {
    this.#product = product;
    this.#map = product.map("flows4");
    this.#map6 = product.map("flows6");
  }

  async measure(report: Report, effort: Effort): Promise<void> {
    // What other parts left: a list has all four tables.
    await this.#product.run("flows", "flush", "--all");
    this.#memory(report);
    await this.#sweeps(report, effort);
    await this.#pacedSweeps(report, effort);
    this.#listing(report, effort);
    this.#clear(this.#map);
    this.#map.close();
    this.#map6.close();
  }

  /** Every hundredth part of the table has the same share of idle flows. */
  #fill(flows: number, idlePercent: number, map = this.#map): void {
    this.#clear(map);
    const now = currentTick();
    const value = { last_hop: FIRST_LAST_HOP, vm: 1, state: FLOW_STATE.ESTABLISHED } as const;
    const fresh = encode("flow", { ...value, last_seen: (now - secondsToTicks(FRESH_SECONDS)) >>> 0 });
    // Ticks wrap, and the machine may be younger than that.
    const idle = encode("flow", { ...value, last_seen: (now - secondsToTicks(IDLE_SECONDS)) >>> 0 });
    const local = address4("10.200.0.2");
    const v4 = map === this.#map;
    const key = v4
      ? encode("flow4_key", { local, local_port: 443, proto: IPPROTO_TCP })
      : encode("flow6_key", { local: Buffer.alloc(16, 0x20), local_port: 443, proto: IPPROTO_TCP });
    const { remote: remoteField, remote_port: portField } = v4 ? FLOW4_KEY.fields : FLOW6_KEY.fields;
    const keys = Buffer.alloc(CHUNK * key.length);
    const values = Buffer.alloc(CHUNK * fresh.length);
    const remote = address4("10.0.0.0");
    for (let first = 0; first < flows; first += CHUNK) {
      const count = Math.min(CHUNK, flows - first);
      for (let index = 0; index < count; index++) {
        const at = index * key.length;
        key.copy(keys, at);
        keys.writeUInt32BE(remote + first + index, at + remoteField.offset);
        keys.writeUInt16BE(0x8000 | ((first + index) & 0x7fff), at + portField.offset);
        (index % 100 < idlePercent ? idle : fresh).copy(values, index * fresh.length);
      }
      map.updateBatch(keys, values, count);
    }
    const entries = this.#count(map);
    if (entries !== flows) throw new Error(`${flows} flows written, ${entries} in the table`);
  }

  #count(map = this.#map): number {
    let entries = 0;
    for (const { count } of map.batches(CHUNK)) entries += count;
    return entries;
  }

  #clear(map: BpfMap): void {
    const stale: Buffer[] = [];
    for (const { count, keys } of map.batches(CHUNK)) {
      stale.push(Buffer.from(keys.subarray(0, count * map.keySize)));
    }
    for (const keys of stale) map.deleteBatch(keys, keys.length / map.keySize);
  }

  async #sweeps(report: Report, effort: Effort): Promise<void> {
    const samples = new Map<string, number[]>();
    const note = (id: string, value: number) => samples.set(id, [...(samples.get(id) ?? []), value]);
    for (let round = 0; round < effort.rounds; round++) {
      for (const percent of IDLE_PERCENT) {
        this.#fill(effort.flows, percent);
        const result = await sweepInstance(this.#product);
        requireSwept(result, "flows4", effort.flows, percent);
        note(`entry_${percent}`, result.durationNs / effort.flows);
        note(`all_${percent}`, result.durationNs / 1e6);
        note(`call_${percent}`, result.longestCallNs / 1e6);
      }
    }
    const name = (percent: number) => (percent === 0 ? "none idle" : `${percent} % idle`);
    const group = `Sweep of ${effort.flows.toLocaleString("en-GB")} flows`;
    const each = (id: string, what: string, target: (percent: number) => RowOptions["target"]) =>
      IDLE_PERCENT.map<RowOptions>((percent) => {
        const wanted = target(percent);
        return {
          id: `sweep_${id}_${percent}`,
          subject: `${id}_${percent}`,
          title: `${name(percent)}, ${what}`,
          ...(wanted !== undefined && { target: wanted }),
        };
      });
    report.add(
      group,
      "ns",
      samples,
      each("entry", "an entry", (percent) =>
        percent === 0 ? { of: "value", bound: "at_most", value: 200 } : undefined,
      ),
    );
    report.add(group, "ms", samples, [
      ...each("all", "in all", () => undefined),
      ...each("call", "longest kernel call", () => ({ of: "value", bound: "at_most", value: 10 })),
    ]);
  }

  /**
   * As the daemon does it, both families full. The share counts all that this process and the kernel for it spend; the
   * look at the event loop costs, so it has a pass of its own.
   */
  async #pacedSweeps(report: Report, effort: Effort): Promise<void> {
    const samples = new Map<string, number[]>(["share", "call", "delay", "pass"].map((id) => [id, []]));
    const { cpu_percent, piece_ms } = configSchema.parse({}).sweep;
    const pass = async () => {
      this.#fill(effort.flows, PACED_IDLE_PERCENT);
      this.#fill(effort.flows, PACED_IDLE_PERCENT, this.#map6);
      const cpu = process.cpuUsage();
      const start = process.hrtime.bigint();
      const result = await sweepInstance(this.#product, {
        cpuPercent: () => cpu_percent,
        pieceNs: piece_ms * 1e6,
      });
      const elapsedNs = Number(process.hrtime.bigint() - start);
      const { user, system } = process.cpuUsage(cpu);
      for (const name of ["flows4", "flows6"]) requireSwept(result, name, effort.flows, PACED_IDLE_PERCENT);
      samples.get("call")!.push(result.longestCallNs / 1e6);
      return { share: ((user + system) * 1e5) / elapsedNs, seconds: elapsedNs / 1e9 };
    };
    for (let round = 0; round < effort.rounds; round++) {
      const { share, seconds } = await pass();
      samples.get("share")!.push(share);
      samples.get("pass")!.push(seconds);
      const delay = monitorEventLoopDelay({ resolution: LOOK_MS });
      // Filling the tables is not what is measured.
      setImmediate(() => delay.enable());
      await pass();
      delay.disable();
      samples.get("delay")!.push(Math.max(0, delay.max / 1e6 - LOOK_MS));
    }
    this.#clear(this.#map6);
    const of = (id: string, title: string, unit: string, bound?: number): RowOptions => ({
      id: `paced_${id}`,
      subject: id,
      title,
      unit,
      ...(bound !== undefined && { target: { of: "value", bound: "at_most", value: bound } }),
    });
    const flows = effort.flows.toLocaleString("en-GB");
    report.add(`Paced sweep of ${flows} flows of each family, ${PACED_IDLE_PERCENT} % idle`, "ms", samples, [
      of("share", "share of a core", "%", 5),
      of("call", "longest kernel call", "ms", 10),
      of("delay", "longest event loop delay", "ms", 10),
      of("pass", "the pass", "s"),
    ]);
  }

  /** The whole command, start-up too, into a pipe that counts the lines. */
  #listing(report: Report, effort: Effort): void {
    this.#fill(effort.flows, 0);
    const samples = new Map<string, number[]>([
      ["list", []],
      ["walk", []],
    ]);
    const command = this.#product.argv("flows", "list", "--json");
    for (let round = 0; round <= effort.rounds; round++) {
      const start = process.hrtime.bigint();
      const lines = execFileSync("sh", ["-c", '"$@" | wc -l', "sh", ...command], { encoding: "utf8" });
      const listed = process.hrtime.bigint();
      const walked = this.#count();
      const end = process.hrtime.bigint();
      if (Number(lines) !== effort.flows || walked !== effort.flows) {
        throw new Error(
          `flows list: ${lines.trim()} lines for ${effort.flows} flows, ${walked} in the table`,
        );
      }
      if (round === 0) continue;
      samples.get("list")!.push(effort.flows / (Number(listed - start) / 1e9));
      samples.get("walk")!.push(effort.flows / (Number(end - listed) / 1e9));
    }
    report.add(`List of ${effort.flows.toLocaleString("en-GB")} flows`, "flows/s", samples, [
      {
        id: "list",
        title: "flows list --json",
        baseline: { subject: "walk", title: "reading the table only" },
        comparison: "ratio",
        target: { of: "value", bound: "at_least", value: 500_000 },
      },
    ]);
  }

  #memory(report: Report): void {
    const flows6 = this.#product.map("flows6");
    try {
      const each = (map: BpfMap) => [kernelMemory(map) / map.maxEntries];
      const samples = new Map([
        ["flow4", each(this.#map)],
        ["flow6", each(flows6)],
      ]);
      report.add("Kernel memory of a flow", "bytes", samples, [
        {
          id: "memory_ipv4",
          subject: "flow4",
          title: "IPv4",
          target: { of: "value", bound: "at_most", value: 97 },
        },
        { id: "memory_ipv6", subject: "flow6", title: "IPv6" },
      ]);
    } finally {
      flows6.close();
    }
  }
}

function requireSwept(result: SweepResult, name: string, flows: number, idlePercent: number): void {
  const { expired, entries } = result.tables.find((table) => table.name === name)!.report;
  const wanted = (flows * idlePercent) / 100;
  if (Math.abs(entries - flows) <= MISSED && Math.abs(expired - wanted) <= MISSED) return;
  throw new Error(`sweep of ${name}: ${entries} of ${flows} flows seen, ${expired} of ${wanted} expired`);
}
