// SPDX-License-Identifier: Apache-2.0
// A million flows: expiring them, listing them, what they cost in memory.

import { execFileSync } from "node:child_process";
import { currentTick, encode, secondsToTicks } from "../../src/abi/codec.ts";
import { FLOW_STATE, FLOW4_KEY, LAST_HOP_INDEX_BITS } from "../../src/abi/layout.gen.ts";
import { sweepInstance } from "../../src/controller/sweep.ts";
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

export class FlowTable {
  readonly #product: Product;
  readonly #map: BpfMap;

  constructor(product: Product) {
    this.#product = product;
    this.#map = product.map("flows4");
  }

  async measure(report: Report, effort: Effort): Promise<void> {
    // What other parts left: a list has all four tables.
    await this.#product.run("flows", "flush", "--all");
    this.#memory(report);
    await this.#sweeps(report, effort);
    this.#listing(report, effort);
    this.#clear();
    this.#map.close();
  }

  /** Every hundredth part of the table has the same share of idle flows. */
  #fill(flows: number, idlePercent: number): void {
    this.#clear();
    const now = currentTick();
    const value = { last_hop: FIRST_LAST_HOP, vm: 1, state: FLOW_STATE.ESTABLISHED } as const;
    const fresh = encode("flow", { ...value, last_seen: (now - secondsToTicks(FRESH_SECONDS)) >>> 0 });
    // Ticks wrap, and the machine may be younger than that.
    const idle = encode("flow", { ...value, last_seen: (now - secondsToTicks(IDLE_SECONDS)) >>> 0 });
    const local = address4("10.200.0.2");
    const key = encode("flow4_key", { local, local_port: 443, proto: IPPROTO_TCP });
    const keys = Buffer.alloc(CHUNK * key.length);
    const values = Buffer.alloc(CHUNK * fresh.length);
    const remote = address4("10.0.0.0");
    for (let first = 0; first < flows; first += CHUNK) {
      const count = Math.min(CHUNK, flows - first);
      for (let index = 0; index < count; index++) {
        const at = index * key.length;
        key.copy(keys, at);
        keys.writeUInt32BE(remote + first + index, at + FLOW4_KEY.fields.remote.offset);
        keys.writeUInt16BE(0x8000 | ((first + index) & 0x7fff), at + FLOW4_KEY.fields.remote_port.offset);
        (index % 100 < idlePercent ? idle : fresh).copy(values, index * fresh.length);
      }
      this.#map.updateBatch(keys, values, count);
    }
    const entries = this.#count();
    if (entries !== flows) throw new Error(`${flows} flows written, ${entries} in the table`);
  }

  #count(): number {
    let entries = 0;
    for (const { count } of this.#map.batches(CHUNK)) entries += count;
    return entries;
  }

  #clear(): void {
    const stale: Buffer[] = [];
    for (const { count, keys } of this.#map.batches(CHUNK)) {
      stale.push(Buffer.from(keys.subarray(0, count * this.#map.keySize)));
    }
    for (const keys of stale) this.#map.deleteBatch(keys, keys.length / this.#map.keySize);
  }

  async #sweeps(report: Report, effort: Effort): Promise<void> {
    const samples = new Map<string, number[]>();
    const note = (id: string, value: number) => samples.set(id, [...(samples.get(id) ?? []), value]);
    for (let round = 0; round < effort.rounds; round++) {
      for (const percent of IDLE_PERCENT) {
        this.#fill(effort.flows, percent);
        const result = await sweepInstance(this.#product);
        const { expired, entries } = result.tables.find(({ name }) => name === "flows4")!.report;
        const wanted = (effort.flows * percent) / 100;
        if (Math.abs(entries - effort.flows) > MISSED || Math.abs(expired - wanted) > MISSED) {
          throw new Error(`sweep: ${entries} of ${effort.flows} flows seen, ${expired} of ${wanted} expired`);
        }
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
