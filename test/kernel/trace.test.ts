// SPDX-License-Identifier: Apache-2.0
// `trace` over pinned tables: what the programs decide is told, and nothing stays behind.

import { rmdirSync } from "node:fs";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { encode } from "../../src/abi/codec.ts";
import { HOOK, ROLE } from "../../src/abi/layout.gen.ts";
import { parseMac } from "../../src/addresses.ts";
import { createInstance, type Instance, removeInstance } from "../../src/kernel/instance.ts";
import { makeDirectories } from "../../src/kernel/pinRoot.ts";
import { removeFlows } from "../../src/ops/flows.ts";
import { type TraceOptions, trace } from "../../src/ops/trace.ts";
import type { TraceEvent } from "../../src/ops/types.ts";
import { Tables } from "../../src/tables/index.ts";
import { parseTuple } from "../../src/tuple.ts";
import { FAMILIES, MAC } from "./support/scene.ts";
import { c } from "./support/talk.ts";

const PIN_ROOT = `/sys/fs/bpf/lasthop-trace-${process.pid}`;
/** Programs that are run by hand without a context see this interface. */
const LOOPBACK = 1;
const SIZES = { flows4: 1024, flows6: 1024, embryos4: 1024, embryos6: 1024 };

let instance: Instance;
let tables: Tables;
let warnings: string[];
const context = { pinRoot: PIN_ROOT, warn: (message: string) => void warnings.push(message) };

beforeAll(() => {
  makeDirectories(PIN_ROOT);
  instance = createInstance(PIN_ROOT, { maxEntries: SIZES });
  tables = new Tables(instance);
  const mac = parseMac("02:00:00:00:ff:01")!;
  const uplink = { slot: 1, role: ROLE.UPLINK, hook: HOOK.TCX, name: "uplink", mac, host_mac: mac };
  tables.interfaces.set(LOOPBACK, uplink);
  tables.budgets.set(1, { last_hops_max: 10, vms_max: 10 });
  tables.vms.set({ mac: parseMac(MAC.vm1)! }, { id: 1 });
});

afterAll(() => {
  instance?.close();
  removeInstance(PIN_ROOT);
  rmdirSync(PIN_ROOT);
});

beforeEach(() => {
  warnings = [];
  removeFlows(tables, {});
});

/** A SYN of the client comes in from device A. */
function learn(family: keyof typeof FAMILIES, flags = "S"): void {
  instance.program("learn_tc").testRun({ data: c(FAMILIES[family], flags) });
}

const TUPLES = {
  ipv4: parseTuple(`tcp ${FAMILIES.ipv4.client}:40000 ${FAMILIES.ipv4.vm}:80`),
  ipv6: parseTuple(`tcp [${FAMILIES.ipv6.client}]:40000 [${FAMILIES.ipv6.vm}]:80`),
};

/** Runs a trace until it has told `count` decisions, or ended by itself. */
function start(family: keyof typeof FAMILIES, count: number, options: TraceOptions = {}) {
  const stop = new AbortController();
  const events: TraceEvent[] = [];
  const done = (async () => {
    for await (const event of trace(context, TUPLES[family], { signal: stop.signal, ...options })) {
      events.push(event);
      if (events.length === count) break;
    }
    return events;
  })();
  return { done, stop };
}

async function watching(): Promise<void> {
  while (tables.control.get().traces === 0) await new Promise((resolve) => setTimeout(resolve, 5));
}

function expectNothingLeft(): void {
  expect([...tables.traces.keys()]).toEqual([]);
  expect(tables.control.get().traces).toBe(0);
}

for (const family of ["ipv4", "ipv6"] as const) {
  describe(family, () => {
    it("tells each decision on the flow, and on no other", async () => {
      const { done } = start(family, 2);
      await watching();
      learn(family === "ipv4" ? "ipv6" : "ipv4");
      learn(family);
      learn(family);
      const events = await done;
      expect(events.map((event) => event.reason)).toEqual(["learn", "refresh"]);
      expect(events[0]).toEqual({
        time_seconds: expect.any(Number),
        hook: "tcx",
        interface: "uplink",
        direction: "request",
        verdict: "pass",
        reason: "learn",
        explanation: "a new flow was learned",
        mac_before: MAC.vm1,
        mac_after: MAC.vm1,
        interface_after: null,
        flow_state: "syn",
        tcp_flags: "S",
        length_bytes: c(FAMILIES[family], "S").length,
      });
      expect(events[1]!.time_seconds).toBeGreaterThanOrEqual(events[0]!.time_seconds);
      expectNothingLeft();
    });
  });
}

it("ends on its signal with what was decided before", async () => {
  const { done, stop } = start("ipv4", 10);
  await watching();
  learn("ipv4");
  stop.abort();
  expect(await done).toHaveLength(1);
  expectNothingLeft();
});

it("ends after its time", async () => {
  const before = performance.now();
  const { done } = start("ipv4", 10, { seconds: 0.3 });
  expect(await done).toEqual([]);
  expect(performance.now() - before).toBeGreaterThan(290);
  expect(performance.now() - before).toBeLessThan(2000);
  expectNothingLeft();
});

it("takes one at a time, and leaves the first alone", async () => {
  const first = start("ipv4", 1);
  await watching();
  await expect(start("ipv6", 1).done).rejects.toMatchObject({ code: "E_LOCKED" });
  learn("ipv4");
  expect(await first.done).toHaveLength(1);
  expectNothingLeft();
});

it("clears what a killed trace left: keys and events", async () => {
  tables.traces.set({ zone: 9 }, 1);
  tables.control.set({ traces: 1 });
  const { done } = start("ipv4", 1);
  while (tables.traces.get({ zone: 9 }) !== undefined) await new Promise((resolve) => setTimeout(resolve, 5));
  await watching();
  learn("ipv4");
  expect(await done).toHaveLength(1);
  expectNothingLeft();
});

it("says that nothing will come while bypass is on", async () => {
  tables.control.set({ bypass: 1 });
  try {
    const { done } = start("ipv4", 1, { seconds: 0.1 });
    await done;
    expect(warnings).toEqual([expect.stringMatching(/^bypass is on/)]);
  } finally {
    tables.control.set({ bypass: 0 });
  }
});

it("counts the decisions that the ring had no room for", async () => {
  const { done } = start("ipv4", Number.POSITIVE_INFINITY, { seconds: 1 });
  await watching();
  const event = encode("event", {}).length + 8;
  const room = Math.floor(instance.map("events").info().maxEntries / event);
  instance.program("learn_tc").testRun({ data: c(FAMILIES.ipv4, "S"), repeat: room + 100 });
  expect((await done).length).toBeLessThan(room + 100);
  expect(warnings).toEqual([expect.stringMatching(/^\d+ decisions are missing/)]);
});

it("without tables there is nothing to watch", async () => {
  const other = trace({ ...context, pinRoot: `${PIN_ROOT}-none` }, TUPLES.ipv4);
  await expect(other.next()).rejects.toMatchObject({ code: "E_NO_TABLES" });
});
