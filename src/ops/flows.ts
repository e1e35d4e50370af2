// SPDX-License-Identifier: Apache-2.0

import { decode } from "../abi/codec.ts";
import { FLOW_STATES } from "../abi/layout.gen.ts";
import { openInstance, withLock } from "../kernel/instance.ts";
import { decodeFlowKey, type Flow, stateAt, Tables } from "../tables/index.ts";
import { FlowLines, type FlowLinesChunk } from "./flowLines.ts";
import { compileFilter, type FlowBatch, parseFilter, scanFlows, scanTable } from "./flowScan.ts";
import { FlowView } from "./flowView.ts";
import { findFlow, flowNotFound } from "./tupleKeys.ts";
import type { FlowEntry, FlowFilter, OpContext, Tuple } from "./types.ts";

/** Flows as they are read, in no order. */
export function* listFlows(context: OpContext, filter: FlowFilter = {}): Generator<FlowEntry> {
  const instance = openInstance(context.pinRoot);
  try {
    yield* flowEntries(new Tables(instance), filter);
  } finally {
    instance.close();
  }
}

/** The same as JSON lines, ready to be written, and much faster: chunks of whole lines. */
export function* listFlowLines(context: OpContext, filter: FlowFilter = {}): Generator<FlowLinesChunk> {
  const instance = openInstance(context.pinRoot);
  try {
    yield* flowLines(new Tables(instance), filter);
  } finally {
    instance.close();
  }
}

/** The flow of a five-tuple. For ICMP, whoever sent the echo requests. */
export function showFlow(context: OpContext, tuple: Tuple, zone = 0): FlowEntry {
  const instance = openInstance(context.pinRoot);
  try {
    const tables = new Tables(instance);
    const flow = findFlow(tables, tuple, zone);
    if (!flow) throw flowNotFound(tables, tuple, zone);
    return new FlowView(tables).entry(flow);
  } finally {
    instance.close();
  }
}

/** Removes the flows that the filter wants; without a filter, all. Takes the lock, as it counts them. */
export function flushFlows(context: OpContext, filter: FlowFilter = {}): Promise<{ removed: number }> {
  return withLock(context.pinRoot, () => {
    using instance = openInstance(context.pinRoot);
    return { removed: removeFlows(new Tables(instance), filter) };
  });
}

export function* flowEntries(
  tables: Tables,
  filter: FlowFilter,
  view: FlowView = new FlowView(tables),
): Generator<FlowEntry> {
  for (const batch of scanFlows(tables, view, parseFilter(filter, view))) {
    for (let place = 0; place < batch.count; place++) yield view.entry(flowAt(batch, batch.selected[place]!));
  }
}

export function* flowLines(
  tables: Tables,
  filter: FlowFilter,
  view: FlowView = new FlowView(tables),
): Generator<FlowLinesChunk> {
  const lines = new FlowLines(view);
  for (const batch of scanFlows(tables, view, parseFilter(filter, view))) yield* lines.format(batch);
}

/** The caller has the lock. */
export function removeFlows(tables: Tables, filter: FlowFilter): number {
  const view = new FlowView(tables);
  const parsed = parseFilter(filter, view);
  let left = parsed.limit;
  let removed = 0;
  // Embryos first: one that is promoted meanwhile is met again in the other tier.
  for (const table of tables.flows.all.toReversed()) {
    const wanted = compileFilter(table, view, parsed);
    for (const batch of scanTable(table, wanted, left)) {
      left -= batch.count;
      // A step of the walk gives whole buckets and does not come back to them.
      removed += deleteCounted(tables, batch);
    }
  }
  return removed;
}

/**
 * Deletes what was picked of a batch. What user space deletes must not pass for evicted, so it is counted as it
 * was read, before, and set right after: killed in between, too few evictions are shown and never too many.
 */
function deleteCounted(tables: Tables, { table, keys, values, selected, count }: FlowBatch): number {
  const { balance } = tables.sweep;
  const read = new Array<number>(FLOW_STATES).fill(0);
  for (let place = 0; place < count; place++) countState(read, values, selected[place]! * table.valueSize);
  balance.remove(table.table, read);
  const deleted = new Array<number>(FLOW_STATES).fill(0);
  const value = Buffer.alloc(table.map.valueBytes);
  let removed = 0;
  for (let place = 0; place < count; place++) {
    const at = selected[place]! * table.keySize;
    if (!table.map.takeInto(keys.subarray(at, at + table.keySize), value)) continue;
    removed++;
    countState(deleted, value, 0);
  }
  balance.remove(
    table.table,
    deleted.map((number, state) => number - read[state]!),
  );
  return removed;
}

function countState(states: number[], values: Buffer, at: number): void {
  const state = stateAt(values, at);
  if (state < states.length) states[state]!++;
}

function flowAt({ table, keys, values }: FlowBatch, index: number): Flow {
  const key = decodeFlowKey(table.family, keys, index * table.keySize);
  return { key, tier: table.tier, value: decode("flow", values, index * table.valueSize) };
}
