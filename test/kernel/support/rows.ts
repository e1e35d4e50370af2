// SPDX-License-Identifier: Apache-2.0
// Rows of {description, state in, packet in -> reason, packet out, state out}, and what runs them.

import { isDeepStrictEqual } from "node:util";
import { expect, test } from "vitest";
import {
  FLOW_STATE_NAMES,
  type FlowStateName,
  REASON_NAMES,
  type ReasonName,
} from "../../../src/abi/codec.ts";
import { FLOW_FLAG, VERDICT } from "../../../src/abi/layout.gen.ts";
import { macBytes, macText } from "./bytes.ts";
import { decodeFrame, describeFrame } from "./decode.ts";
import { IFINDEX, PORTS, type PortName } from "./devices.ts";
import { FAMILIES, type Family, MAC } from "./scene.ts";
import type { RunOptions, Verdict } from "./testRun.ts";
import {
  type Count,
  type LastHopSpec,
  type Run,
  specOf,
  type Tuple,
  UPLINK_PROGRAMS,
  type UplinkProgram,
  type World,
} from "./world.ts";

export interface FlowExpectation {
  tier?: "embryonic" | "established";
  state?: FlowStateName;
  lastHop?: LastHopSpec | null;
  /** Id; 0 before any VM replied. */
  vm?: number;
  flags?: (keyof typeof FLOW_FLAG)[];
  vmIsn?: number;
  vmNext?: number;
}

export interface Step {
  /** Where it comes in: an uplink (learn program) or a tap (reply program). */
  at: PortName;
  packet: Buffer;
  /** It begins with its IP header. */
  bare?: boolean;
  reason: ReasonName;
  /** Runs the uplink program on a tap of this scene, or the other way. */
  as?: "uplink" | "tap";
  /** Where a redirected packet goes; required with reason `redirect`. Of an uplink: it is handed to this VM. */
  to?: LastHopSpec;
  /**
   * The bytes that come out; by default unchanged, or with only the destination MAC rewritten: to that of the last
   * hop or of the VM, or with reason `stack` to the host's. What is answered has to be told.
   */
  out?: Buffer;
  /** Of the packet that comes out of a tap; by default what it came in with. */
  mark?: number;
  /** The entry afterwards; null: there is none. Left out: not looked at. */
  flow?: FlowExpectation | null;
  /** Another flow than the case's to look at. */
  tuple?: Tuple;
  options?: RunOptions;
  /** Something happens before the packet comes. */
  before?(world: World): void;
  check?(world: World, run: Run): void;
}

export interface Case {
  tuple: Tuple;
  given?(world: World): void;
  steps: Step[];
}

export interface Row {
  description: string;
  families?: readonly Family["version"][];
  programs?: readonly UplinkProgram[];
  make(f: Family): Case;
}

/** What any suite of this process has seen; rows.test.ts checks that nothing is missing. */
export const seenReasons = new Set<ReasonName>();

/** What an event calls what a program did. Whatever its reason, what goes to a VM or a last hop is redirected. */
const EVENT_VERDICT: Partial<Record<ReasonName, number>> = {
  device_drop: VERDICT.DROP,
  service_empty: VERDICT.DROP,
  vm_held: VERDICT.DROP,
  vm_reset: VERDICT.ANSWER,
  address_answer: VERDICT.ANSWER,
  stack: VERDICT.STACK,
};

function eventVerdict({ reason, to }: Step): number {
  return to ? VERDICT.REDIRECT : (EVENT_VERDICT[reason] ?? VERDICT.PASS);
}

/** What the kernel does with it. An answer leaves by the interface that it came by. */
function expectedVerdict(step: Step, program: string): Verdict {
  switch (eventVerdict(step)) {
    case VERDICT.REDIRECT:
      return "redirect";
    case VERDICT.ANSWER:
      return program === "learn_xdp" ? "tx" : "redirect";
    case VERDICT.DROP:
      return "drop";
  }
  return "pass";
}

export function withDestination(frame: Buffer, mac: string): Buffer {
  return Buffer.concat([macBytes(mac), frame.subarray(6)]);
}

function expectedOut({ at, packet, to, reason }: Step): Buffer {
  if (to) {
    return withDestination(packet, to.mac);
  }
  return reason === "stack" ? withDestination(packet, PORTS[at].mac) : packet;
}

/** A reader's form of an entry, so that a failed comparison shows names. */
function readFlow(world: World, tuple: Tuple, wanted: FlowExpectation): FlowExpectation | null {
  const found = world.flow(tuple);
  if (!found) {
    return null;
  }
  const { flow, embryo, tier } = found;
  const record = flow.last_hop === 0 ? null : world.lastHop(flow.last_hop);
  const port = record && Object.entries(IFINDEX).find(([, ifindex]) => ifindex === record.ifindex)?.[0];
  const all: FlowExpectation = {
    tier,
    state: FLOW_STATE_NAMES[flow.state]!,
    lastHop: record && {
      port: port as PortName,
      mac: record.fresh ? macText(record.mac) : "stale",
      ...specOf(record),
    },
    vm: flow.vm,
    flags: (Object.keys(FLOW_FLAG) as (keyof typeof FLOW_FLAG)[]).filter(
      (name) => flow.flags & FLOW_FLAG[name],
    ),
    ...(embryo ? { vmIsn: embryo.vm_isn, vmNext: embryo.vm_next } : {}),
  };
  return Object.fromEntries(Object.keys(wanted).map((key) => [key, all[key as keyof FlowExpectation]]));
}

/** In the order in which a record is read. */
function inOrder({ port, mac, tags, kind, mark, labels }: LastHopSpec): LastHopSpec {
  return {
    port,
    mac,
    ...(tags ? { tags: tags.map(({ proto, vid }) => ({ proto: proto ?? 0x8100, vid })) } : {}),
    ...(kind ? { kind } : {}),
    ...(mark ? { mark } : {}),
    ...(labels ? { labels } : {}),
  };
}

const NO_MACS = { destination: MAC.zero, source: MAC.zero };

function checkEvents(step: Step, tuple: Tuple, run: Run, traced: boolean): void {
  if (!traced) {
    expect(run.events, "events without a trace").toEqual([]);
    return;
  }
  // A packet without a key of its own (malformed, not IP) is on no flow; one of another flow is not traced.
  for (const event of run.events) {
    const { destination, source } = step.bare ? NO_MACS : decodeFrame(step.packet);
    const sent = step.to ?? (eventVerdict(step) === VERDICT.ANSWER ? { port: step.at, mac: source } : null);
    expect({
      reason: REASON_NAMES[event.reason],
      verdict: event.verdict,
      ifindex: event.ifindex,
      out_ifindex: event.out_ifindex,
      length_bytes: event.length_bytes,
      before: macText(event.destination_mac),
      after: macText(event.out_mac),
      proto: event.key.proto,
    }).toEqual({
      reason: step.reason,
      verdict: eventVerdict(step),
      ifindex: IFINDEX[step.at],
      out_ifindex: sent ? IFINDEX[sent.port] : 0,
      length_bytes: step.packet.length,
      before: destination,
      after: sent ? sent.mac : destination,
      proto: tuple.proto,
    });
  }
  expect(run.events.length, "events").toBeLessThanOrEqual(1);
  if (step.to && step.tuple === undefined) {
    expect(run.events.length, "a redirect on the traced flow is an event").toBe(1);
  }
}

export function runStep(
  world: World,
  program: UplinkProgram,
  tuple: Tuple,
  step: Step,
  traced = false,
): void {
  step.before?.(world);
  const port = PORTS[step.at];
  const on = (step.as ?? (port.role === "TAP" ? "tap" : "uplink")) === "tap" ? "reply_tc" : program;
  const run = world.run(on, IFINDEX[step.at], step.packet, step.options);
  for (const count of run.counts) {
    seenReasons.add(count.reason);
  }
  // A packet of nobody's interface is counted in row 0.
  const slot = step.reason === "not_attached" ? 0 : port.slot;
  const said = (counts: Count[]) =>
    counts.map(
      (count) => `${count.reason} slot ${count.slot}: ${count.packets} packets, ${count.bytes} bytes`,
    );
  expect(said(run.counts).join(), describeFrame(step.packet)).toBe(
    said([{ slot, reason: step.reason, packets: 1, bytes: step.packet.length }]).join(),
  );
  expect(run.verdict).toBe(expectedVerdict(step, on));
  const out = step.out ?? expectedOut(step);
  if (!run.out.equals(out)) {
    expect(describeFrame(run.out), "packet out").toBe(describeFrame(out));
    expect(run.out.toString("hex"), "packet out").toBe(out.toString("hex"));
  }
  const marked = on === "learn_xdp" ? 0 : (step.mark ?? step.options?.mark ?? 0);
  expect(run.mark, "mark").toBe(marked);
  checkEvents(step, step.tuple ?? tuple, run, traced);
  if (step.flow === null) {
    expect(world.flow(step.tuple ?? tuple), "no entry").toBeUndefined();
  } else if (step.flow) {
    const wanted = { ...step.flow, ...(step.flow.lastHop ? { lastHop: inOrder(step.flow.lastHop) } : {}) };
    const found = readFlow(world, step.tuple ?? tuple, wanted);
    if (!isDeepStrictEqual(found, wanted)) {
      expect(JSON.stringify(found), "entry after").toBe(JSON.stringify(wanted));
    }
  }
  step.check?.(world, run);
}

export function runRow(world: World, row: Row, f: Family, program: UplinkProgram, traced: boolean): void {
  world.reset(!traced);
  const { tuple, given, steps } = row.make(f);
  if (traced) {
    world.trace(tuple);
  }
  given?.(world);
  steps.forEach((step, index) => {
    try {
      runStep(world, program, tuple, step, traced);
    } catch (error) {
      if (error instanceof Error) {
        error.message = `step ${index + 1} at ${step.at}${traced ? ", traced" : ""}: ${error.message}`;
      }
      throw error;
    }
  });
}

/** One test a row, for both families, through both uplink programs, traced and not. */
export function testRows(world: () => World, rows: readonly Row[]): void {
  for (const row of rows) {
    for (const [name, family] of Object.entries(FAMILIES)) {
      for (const program of UPLINK_PROGRAMS) {
        if (row.families?.includes(family.version) === false || row.programs?.includes(program) === false) {
          continue;
        }
        test(`${row.description} (${name}, ${program})`, () => {
          runRow(world(), row, family, program, false);
          runRow(world(), row, family, program, true);
        });
      }
    }
  }
}
