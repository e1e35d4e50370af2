// SPDX-License-Identifier: Apache-2.0

import { closeSync, openSync } from "node:fs";
import { join } from "node:path";
import { decode, HOOK_NAMES, type StructValue, VERDICT_NAMES } from "../abi/codec.ts";
import { FLOW_FLAG, ROLE, VERDICT } from "../abi/layout.gen.ts";
import { reasonOf } from "../abi/reasons.ts";
import { formatMac, mapIpv4 } from "../addresses.ts";
import { LasthopError } from "../errors.ts";
import { type Instance, openInstance, withLock } from "../kernel/instance.ts";
import { RingBuffer } from "../libbpf/index.ts";
import { tryFlock } from "../libc/flock.ts";
import { type FlowKey, isZero, Tables } from "../tables/index.ts";
import { FlowView, stateName } from "./flowView.ts";
import { tupleKeys } from "./tupleKeys.ts";
import type { Hook, OpContext, TraceEvent, Tuple } from "./types.ts";

export interface TraceOptions {
  zone?: number;
  /** Without it, until the signal. */
  seconds?: number;
  /** Ends the trace; what was decided before is still given. */
  signal?: AbortSignal;
}

/** How long a signal may go unnoticed, should the ring stay silent. */
const POLL_MS = 200;

type Event = StructValue<"event">;

/**
 * Every decision on one flow from now on. The programs report only what is in `traces`; whatever ends the
 * trace takes the flow out again. One trace at a time: the ring has one reading position.
 */
export async function* trace(
  context: OpContext,
  tuple: Tuple,
  options: TraceOptions = {},
): AsyncGenerator<TraceEvent> {
  const instance = openInstance(context.pinRoot);
  try {
    const lock = lockRing(instance);
    try {
      yield* watch(context, instance, tupleKeys(tuple, options.zone ?? 0), options);
    } finally {
      closeSync(lock);
    }
  } finally {
    instance.close();
  }
}

/** Held as long as the descriptor is open, so that a trace that was killed is in nobody's way. */
function lockRing(instance: Instance): number {
  const fd = openSync(join(instance.path, "maps"), "r");
  try {
    if (tryFlock(fd, "exclusive")) return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
  closeSync(fd);
  throw new LasthopError("E_LOCKED", "another trace is running, and events can be read by one at a time", {
    hint: "wait for it to end, or end it with Ctrl-C where it runs",
  });
}

async function* watch(
  context: OpContext,
  instance: Instance,
  flowKeys: readonly FlowKey[],
  { seconds, signal }: TraceOptions,
): AsyncGenerator<TraceEvent> {
  const tables = new Tables(instance);
  if (tables.control.get().bypass)
    context.warn("bypass is on: nothing is decided, so there is nothing to show");
  const keys = flowKeys.map(traceKey);
  // Tells our events from those of a trace that was killed.
  const number = 1 + Math.floor(Math.random() * 0xffff_fffe);
  const ring = new RingBuffer(instance.map("events"));
  try {
    ring.consume(() => undefined);
    const lostBefore = tables.allocations.get(0)!.trace_lost;
    await withLock(context.pinRoot, () => {
      // The ring is ours, so what stands here is what a killed trace left.
      for (const key of [...tables.traces.keys()]) tables.traces.delete(key);
      for (const key of keys) tables.traces.set(key, number);
      tables.control.set({ traces: keys.length });
    });
    const show = eventShower(tables);
    const started = process.hrtime.bigint();
    const deadline = seconds === undefined ? undefined : started + BigInt(Math.round(seconds * 1e9));
    for (;;) {
      // Looked at first: what came before the end is read once more.
      const now = process.hrtime.bigint();
      const ended = signal?.aborted === true || (deadline !== undefined && now >= deadline);
      const events: Event[] = [];
      ring.consume((record) => events.push(decode("event", record)));
      for (const event of events) if (event.trace === number) yield show(event, started);
      if (ended) break;
      const left = deadline === undefined ? POLL_MS : Number(deadline - now) / 1e6;
      await ring.poll(Math.max(1, Math.min(POLL_MS, left)));
    }
    const lost = tables.allocations.get(0)!.trace_lost - lostBefore;
    if (lost > 0) context.warn(`${lost} decisions are missing: they came faster than they could be read`);
  } finally {
    ring.close();
    for (const key of keys) tables.traces.delete(key);
    await withLock(context.pinRoot, () => tables.control.set({ traces: 0 }));
  }
}

function traceKey(key: FlowKey) {
  const address = (bytes: Buffer) => (bytes.length === 4 ? mapIpv4(bytes) : bytes);
  return {
    local: address(key.local),
    remote: address(key.remote),
    local_port: key.localPort,
    remote_port: key.remotePort,
    zone: key.zone,
    proto: key.proto,
  };
}

function eventShower(tables: Tables): (event: Event, started: bigint) => TraceEvent {
  const view = new FlowView(tables);
  const names = vmNames(tables);
  return (event, started) => {
    const reason = reasonOf(event.reason);
    const redirected = event.out_ifindex !== 0;
    const macBefore = formatMac(event.destination_mac);
    const macAfter = macAfterOf(event, macBefore);
    const interfaceAfter = redirected ? view.interfaceName(event.out_ifindex) : null;
    const isReply = event.role === ROLE.TAP;
    const vm = isReply ? undefined : names.get(`${event.key.zone} ${macAfter}`);
    const whom = vm === undefined ? macAfter : `${vm} (${macAfter})`;
    const to = macAfter === null ? interfaceAfter : `${whom} on ${interfaceAfter}`;
    const same = isReply && macAfter === macBefore ? ", as the VM chose" : "";
    const detail = redirected ? `: ${to}${same}` : "";
    return {
      time_seconds: Math.max(0, (event.time_ns - Number(started)) / 1e9),
      hook: (HOOK_NAMES[event.hook] ?? "none") as Hook,
      interface: view.interfaceName(event.ifindex),
      direction: isReply ? "reply" : "request",
      verdict: VERDICT_NAMES[event.verdict] ?? reason.verdict,
      reason: reason.name,
      explanation: reason.text + detail,
      mac_before: macBefore,
      mac_after: macAfter,
      interface_after: interfaceAfter,
      flow_state: hasFlow(event) ? stateName(event.state) : null,
      tcp_flags: event.key.proto === 6 ? tcpFlags(event.tcp_flags) : null,
      length_bytes: event.length_bytes,
    };
  };
}

/** By zone and MAC. */
function vmNames({ guests }: Tables): Map<string, string> {
  const specs = [...guests.specs.entries()];
  return new Map(specs.map(([{ name }, { zone, mac }]) => [`${zone} ${formatMac(mac)}`, name]));
}

/** Null without a link layer, and where only the host's routing will tell. */
function macAfterOf({ out_ifindex, out_mac, verdict }: Event, before: string): string | null {
  if (verdict === VERDICT.STACK || verdict === VERDICT.ANSWER) return null;
  if (out_ifindex === 0) return before;
  return isZero(out_mac) ? null : formatMac(out_mac);
}

/** A decision about no flow has all of these zero; a flow has a last hop or is of local origin. */
function hasFlow({ last_hop, flags }: Event): boolean {
  return last_hop !== 0 || (flags & FLOW_FLAG.LOCAL_ORIGIN) !== 0;
}

/** In the order of the header's bits, as capture tools show them: "S", "SA", "FA". */
function tcpFlags(bits: number): string {
  return [..."FSRPAUEW"].filter((_, bit) => bits & (1 << bit)).join("");
}
