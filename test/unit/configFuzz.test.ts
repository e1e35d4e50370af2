// SPDX-License-Identifier: Apache-2.0
// Whatever becomes of a configuration by mutation: it is accepted and means what it says, or it is refused
// with a place in the text. The seeds are fixed, so a failure can be repeated.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { parseAddress, parseMac, parsePrefix } from "../../src/addresses.ts";
import { ConfigError, loadConfig, parseConfig } from "../../src/config/load.ts";
import { parseExclusion, parseListen, peerOf, zoneNumbers } from "../../src/config/parts.ts";
import type { Config } from "../../src/config/schema.ts";
import { serviceOverlaps } from "../../src/config/serviceChecks.ts";
import { answeringVm } from "../../src/config/services.ts";
import { configYaml } from "../../src/config/show.ts";

const read = (name: string) => readFileSync(new URL(`../../${name}`, import.meta.url), "utf8");
const SEEDS = [
  "examples/bridged-two-firewalls.yaml",
  "examples/routed.yaml",
  "examples/services.yaml",
  "examples/tenants.yaml",
  "test/unit/fixtures/config/full.yaml",
].map((name) => [name, read(name)] as const);

const TEXTS = 800;
const FILES = 150;

/** mulberry32 */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const WORDS = [
  ..."[ ] { } , : - ? & * ! | > ' \" % @ ` # \t \r \n \0 \u0085 \u2028 \ufeff \ud800 ~ << --- ...".split(" "),
  ...[
    "",
    " ",
    "  ",
    "null",
    "true",
    "-1",
    "0",
    "65536",
    "1e400",
    ".nan",
    "0x7f",
    "&a",
    "*a",
    "!!binary",
    "!!set",
  ],
  ...[
    "__proto__",
    "constructor",
    "toString",
    "default",
    "name",
    "zone",
    "peer:",
    "peer:firewall-a",
    "*",
    "?",
  ],
  ...[
    "02:00:00:00:00:01",
    "ff:ff:ff:ff:ff:ff",
    "::",
    "10.0.0.0/8",
    "10.0.0.1",
    "::ffff:1.2.3.4",
    "1-2",
    "drop",
    "vm:web-1",
    "web-1",
    "any",
    "::/0",
  ],
];

/** Deletes, doubles, swaps or replaces words and lines, or changes single characters. */
function mutate(text: string, next: () => number): string {
  const below = (count: number) => Math.floor(next() * count);
  let mutated = text;
  for (let round = 1 + below(4); round > 0; round--) {
    const byLine = next() < 0.3;
    const parts = mutated.split(byLine ? /(?<=\n)/ : /(?<=\s)|(?=\s)|(?<=[[\]{},:"'-])|(?=[[\]{},:"'-])/);
    const at = below(parts.length);
    const word = WORDS[below(WORDS.length)]!;
    const ways = [
      () => parts.splice(at, 1 + below(3)),
      () => parts.splice(at, 0, parts[below(parts.length)]!),
      () => parts.splice(at, 1, parts[below(parts.length)]!),
      () => parts.splice(at, 1, word),
      () => parts.splice(at, 0, word),
      () => parts.splice(at, 0, String.fromCharCode(below(0x3000))),
      () => parts.splice(at, 1, ...[...(parts[at] ?? "")].reverse()),
      () => parts.splice(at, parts.length, ...(next() < 0.2 ? [] : parts.slice(at).reverse())),
    ];
    // The last one leaves little to parse: seldom.
    ways[below(next() < 0.1 ? ways.length : ways.length - 1)]!();
    mutated = parts.join("");
  }
  return mutated;
}

/** What everything behind the validator relies on. */
function expectSound(config: Config): void {
  const shown = configYaml(config);
  expect(parseConfig(shown, "shown")).toEqual(config);
  const zones = zoneNumbers(config);
  expect(new Set(zones.values()).size).toBe(zones.size);
  const { uplinks, taps, devices, vms, services } = config;
  for (const { zone } of [...uplinks, ...taps, ...devices, ...vms, ...services]) {
    expect(zones.has(zone)).toBe(true);
  }
  for (const { exclude } of [...config.uplinks, ...config.taps]) exclude.forEach(parseExclusion);
  const names = config.devices.map((device) => device.name);
  expect(new Set(names).size).toBe(names.length);
  for (const device of config.devices) {
    const { macs, addresses, vteps, on_down, reply_mac, probe, name } = device;
    expect(macs.length + addresses.length + vteps.length > 0 || device.interface !== undefined).toBe(true);
    for (const mac of [...macs, reply_mac ?? "02:00:00:00:00:01"]) expect(parseMac(mac)![0]! & 1).toBe(0);
    for (const address of addresses) expect(parseAddress(address)).toBeDefined();
    if (probe?.address !== undefined) expect(parseAddress(probe.address)).toBeDefined();
    const peer = peerOf(on_down);
    if (peer !== undefined) expect(names.filter((other) => other !== name)).toContain(peer);
  }
  expectServed(config);
  expect(parseListen(config.metrics.listen)).toBeDefined();
}

function expectServed({ vms, services }: Config): void {
  const byName = new Map(vms.map((vm) => [vm.name, vm]));
  expect(byName.size).toBe(vms.length);
  expect(new Set(services.map((service) => service.name)).size).toBe(services.length);
  for (const { name, tap, mac, address, responses, check } of vms) {
    expect([tap, mac, address]).not.toEqual([undefined, undefined, undefined]);
    if (responses !== undefined) expect(byName.has(responses) && responses !== name).toBe(true);
    if (check !== undefined) expect(check.address ?? address).toBeDefined();
  }
  expect(serviceOverlaps(services)).toEqual([]);
  for (const { zone, address, pool, associations, answer } of services) {
    const prefix = parsePrefix(address);
    for (const { client } of associations) expect(parsePrefix(client)?.family).toBe(prefix?.family);
    expect(answer === "none" || prefix!.bits > 0).toBe(true);
    const answering = answeringVm(answer);
    const targets = [...pool, ...associations, ...(answering === undefined ? [] : [{ vm: answering }])];
    expect(pool.length).toBeGreaterThan(0);
    for (const target of targets) {
      const found =
        "label" in target && target.label !== undefined
          ? vms.filter((vm) => vm.zone === zone && vm.labels.includes(target.label!))
          : vms.filter((vm) => vm.zone === zone && vm.name === target.vm);
      expect(found.length).toBeGreaterThan(0);
    }
  }
}

function expectPlaced(error: unknown, text: string): void {
  if (!(error instanceof ConfigError)) throw error;
  expect(error.code).toBe("E_CONFIG");
  expect(error.problems.length).toBeGreaterThan(0);
  const lines = text.split("\n");
  let before = { line: 1, column: 1 };
  for (const { line, column, message } of error.problems) {
    expect(line).toBeLessThanOrEqual(lines.length);
    expect(column).toBeGreaterThanOrEqual(1);
    expect(column).toBeLessThanOrEqual(lines[line - 1]!.length + 1);
    expect(line > before.line || (line === before.line && column >= before.column)).toBe(true);
    expect(message).not.toBe("");
    expect(message).not.toMatch(/Invalid|Unrecognized|undefined|\[object/);
    before = { line, column };
  }
}

describe.each(SEEDS)("mutations of %s", (_, seed) => {
  test("are accepted and mean what they say, or refused with a place", () => {
    const outcomes = { accepted: 0, refused: 0 };
    for (let number = 0; number < TEXTS; number++) {
      const text = mutate(seed, random(number));
      try {
        const config = parseConfig(text, "F");
        expectSound(config);
        outcomes.accepted++;
      } catch (error) {
        if (!(error instanceof ConfigError)) throw new Error(`seed ${number}:\n${text}`, { cause: error });
        expectPlaced(error, text);
        outcomes.refused++;
      }
    }
    // Both sides are reached.
    expect(outcomes.accepted).toBeGreaterThan(TEXTS / 50);
    expect(outcomes.refused).toBeGreaterThan(TEXTS / 4);
  });
});

describe("files of mutated bytes", () => {
  const directory = mkdtempSync(join(tmpdir(), `lasthop-fuzz-${process.pid}-`));
  afterAll(() => rmSync(directory, { recursive: true }));

  test.each(SEEDS)("of %s", (_, seed) => {
    const path = join(directory, "fuzzed.yaml");
    let notUtf8 = 0;
    for (let number = 0; number < FILES; number++) {
      const next = random(number);
      const bytes = Buffer.from(seed);
      for (let count = 1 + Math.floor(next() * 4); count > 0; count--) {
        bytes[Math.floor(next() * bytes.length)] = Math.floor(next() * 256);
      }
      writeFileSync(path, bytes);
      try {
        expectSound(loadConfig(path));
      } catch (error) {
        expectPlaced(error, bytes.toString("utf8"));
        if ((error as ConfigError).message.includes("not UTF-8")) notUtf8++;
      }
    }
    expect(notUtf8).toBeGreaterThan(FILES / 10);
    expect(notUtf8).toBeLessThan(FILES);
  });
});
