// SPDX-License-Identifier: Apache-2.0
// Every program loads with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON alone, and stays within the instruction counts
// that instructions.json records.
//
// `instructions` is the program's size after the verifier's rewriting, `verified` what the verifier walked: its
// limit is 1,000,000. Both depend on the kernel, so they are recorded by release family, and only growth fails: a
// quarter over what is recorded for this family, or three times the largest of all on a family that is not. A
// growth that is meant is recorded by LASTHOP_RECORD_INSTRUCTIONS=1 vitest run test/kernel/load.test.ts.

import { readFileSync, writeFileSync } from "node:fs";
import { release } from "node:os";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { loadFfi } from "../../src/ffi/index.ts";
import { World } from "./support/world.ts";

const RECORD_PATH = fileURLToPath(new URL("./instructions.json", import.meta.url));
const FAMILY = release().split(".").slice(0, 2).join(".");
const VERIFIER_LIMIT = 1_000_000;
const SAME_KERNEL = 1.25;
const OTHER_KERNEL = 3;

/** Bits of linux/capability.h */
const CAPABILITIES = { CAP_NET_ADMIN: 12, CAP_PERFMON: 38, CAP_BPF: 39 } as const;
const CAPABILITY_VERSION_3 = 0x20080522;

interface Counts {
  instructions: number;
  /** null before Linux 5.16, which does not tell. */
  verified: number | null;
}

type Recorded = Record<string, Record<string, Counts>>;

let world: World;

/** This thread keeps these capabilities and can never get another back. */
function keepCapabilities(bits: readonly number[]): void {
  const header = Buffer.alloc(8);
  header.writeUInt32LE(CAPABILITY_VERSION_3);
  const data = Buffer.alloc(24); // two of {effective, permitted, inheritable}
  for (const bit of bits) {
    const word = Math.floor(bit / 32) * 12;
    for (const set of [0, 4]) {
      data.writeUInt32LE((data.readUInt32LE(word + set) | (1 << (bit % 32))) >>> 0, word + set);
    }
  }
  const capset = loadFfi().open("libc.so.6").function("capset", "i32", ["pointer", "pointer"]);
  expect(capset(header, data), "capset").toBe(0);
}

function capabilitySet(name: string): bigint {
  const line = readFileSync("/proc/thread-self/status", "utf8")
    .split("\n")
    .find((one) => one.startsWith(`${name}:`));
  return BigInt(`0x${line!.split(/\s+/)[1]}`);
}

beforeAll(() => {
  keepCapabilities(Object.values(CAPABILITIES));
  world = new World();
});

afterAll(() => world?.close());

test("this thread has the three capabilities and no other", () => {
  const wanted = Object.values(CAPABILITIES).reduce((set, bit) => set | (1n << BigInt(bit)), 0n);
  expect(capabilitySet("CapEff")).toBe(wanted);
  expect(capabilitySet("CapPrm")).toBe(wanted);
});

test("every program of the object is loaded", () => {
  const names = world.programNames();
  expect(names).toEqual(expect.arrayContaining(["learn_xdp", "learn_tc", "reply_tc"]));
  for (const table of ["flows4", "flows6", "embryos4", "embryos6"]) {
    expect(names).toContain(`sweep_${table}`);
  }
  for (const name of names) {
    const info = world.program(name).info();
    expect(info.id, name).toBeGreaterThan(0);
    expect(info.jitedBytes, `${name} is compiled to machine code`).toBeGreaterThan(0);
  }
});

test("instruction counts stay near those recorded", () => {
  const counts: Record<string, Counts> = {};
  for (const name of world.programNames()) {
    const info = world.program(name).info();
    counts[name] = { instructions: info.xlatedBytes / 8, verified: info.verifiedInsns };
  }
  const recorded = JSON.parse(readFileSync(RECORD_PATH, "utf8")) as Recorded;
  if (process.env.LASTHOP_RECORD_INSTRUCTIONS) {
    recorded[FAMILY] = counts;
    writeFileSync(RECORD_PATH, `${JSON.stringify(recorded, null, 2)}\n`);
    return;
  }
  for (const [name, count] of Object.entries(counts)) {
    expect(count.verified ?? 0, `${name}: the verifier's limit`).toBeLessThan(VERIFIER_LIMIT);
    for (const kind of ["instructions", "verified"] as const) {
      const here = recorded[FAMILY]?.[name]?.[kind];
      const all = Object.values(recorded).map((family) => family[name]?.[kind] ?? 0);
      const bound = here ? here * SAME_KERNEL : Math.max(...all) * OTHER_KERNEL;
      expect(bound, `${name} is not recorded in instructions.json`).toBeGreaterThan(0);
      expect(
        count[kind] ?? 0,
        `${name}: ${kind}, recorded ${here ?? `on other kernels ${all}`}`,
      ).toBeLessThan(bound);
    }
  }
});
