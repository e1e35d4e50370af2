// SPDX-License-Identifier: Apache-2.0

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { readDocument } from "../../src/config/document.ts";
import { ConfigError, loadConfig, parseConfig } from "../../src/config/load.ts";
import {
  globsMeet,
  matchesGlob,
  parseExclusion,
  parseListen,
  parsePortRange,
  zoneNumbers,
} from "../../src/config/parts.ts";
import { configYaml } from "../../src/config/show.ts";
import { LasthopError } from "../../src/errors.ts";
import { BAD_CONFIGS } from "./fixtures/config/bad.ts";
import { BAD_SERVICES } from "./fixtures/config/badServices.ts";

const directory = mkdtempSync(join(tmpdir(), `lasthop-config-${process.pid}-`));
afterAll(() => rmSync(directory, { recursive: true }));

function refusal(act: () => unknown): LasthopError {
  try {
    act();
  } catch (error) {
    if (error instanceof LasthopError) return error;
    throw error;
  }
  throw new Error("was accepted");
}

function problemsOf(text: string): string[] {
  const error = refusal(() => parseConfig(text, "F"));
  if (!(error instanceof ConfigError)) throw error;
  return error.problems.map(({ line, column, path, message }) => {
    return `${line}:${column} ${path === "" ? "" : `${path}: `}${message}`;
  });
}

describe("a bad configuration", () => {
  test("comes in many kinds", () => {
    expect(BAD_CONFIGS.length).toBeGreaterThanOrEqual(60);
    expect(BAD_SERVICES.length).toBeGreaterThanOrEqual(90);
  });

  test.each([...BAD_CONFIGS, ...BAD_SERVICES])("$text", ({ text, problems }) => {
    expect(problemsOf(text)).toEqual(problems);
  });

  test("is refused with its first problem, how many more there are, and all of them as details", () => {
    const error = refusal(() => parseConfig("log: {level: loud}\ntaps: 5\nfoo: 1\n", "/etc/x.yaml"));
    expect(error.code).toBe("E_CONFIG");
    expect(error.message).toBe(
      '/etc/x.yaml:1:14: log.level: expected debug, info, warning or error, not "loud" (and 2 more problems)',
    );
    expect(error.hint).toBe("`lasthop config check /etc/x.yaml` lists them all.");
    expect(error.details?.trimEnd().split("\n")).toEqual([
      '/etc/x.yaml:1:14: log.level: expected debug, info, warning or error, not "loud"',
      "/etc/x.yaml:2:7: taps: expected a list, not 5",
      expect.stringContaining("/etc/x.yaml:3:1: foo: unknown key"),
    ]);
    expect(refusal(() => parseConfig("taps: 5", "f")).message).toBe("f:1:7: taps: expected a list, not 5");
    expect(refusal(() => parseConfig("taps: 5\nlog: 1", "f")).message).toMatch(/\(and 1 more problem\)$/);
  });

  test("is cut and made visible where it is shown", () => {
    const [problem] = problemsOf(`log: {level: "${"x".repeat(100)}"}`);
    expect(problem).toBe(`1:14 log.level: expected debug, info, warning or error, not "${"x".repeat(40)}…"`);
    expect(problemsOf('"a\\e[2Jb": 1')[0]).toContain('"a\\u001b[2Jb": unknown key');
  });

  test("points at characters, whatever their width and the ends of lines are", () => {
    expect(problemsOf("# äöü\r\nlog: {format: text, level: ü}\r\n")[0]).toMatch(/^2:28 log.level/);
    expect(problemsOf("\ufefflog: 1")[0]).toMatch(/^1:[67] log: /);
  });
});

describe("hostile text", () => {
  const size = 256 * 1024;
  const fill = (text: string) => text.repeat(Math.floor(size / text.length));
  const texts: Record<string, string> = {
    "open lists": fill("["),
    "lists in lists": fill("- "),
    "open mappings": fill("{a: "),
    "keys in keys": fill("? "),
    "mappings in a line": fill("a: "),
    "deeper at each line": Array.from({ length: 1400 }, (_, depth) => `${" ".repeat(depth)}a:\n`).join(""),
    "closing brackets": fill("]"),
    quotes: fill('"'),
    documents: fill("---\n"),
    directives: fill("%\n"),
    tags: `zones: ${fill("!a ").slice(0, -8)}`,
    keys: Array.from({ length: 20_000 }, (_, index) => `a${index}: 1\n`).join(""),
    "the same key": fill("zones: {}\n"),
    "control characters": fill("\0"),
    "aliases of aliases": [
      "a0: &a0 [1,1,1,1,1,1,1,1,1]",
      ...Array.from(
        { length: 9 },
        (_, index) => `a${index + 1}: &a${index + 1} [${Array(9).fill(`*a${index}`).join(",")}]`,
      ),
    ].join("\n"),
    "too long": `# ${"x".repeat(8 * 1024 * 1024)}`,
  };

  test.each(Object.entries(texts))("%s", (_, text) => {
    expect(problemsOf(text).length).toBeGreaterThan(0);
  });

  test.each([
    ["lexemes", "taps:\n  - name: a\n  - name: b\n", { lexemes: 12, nodes: 100 }, 2],
    ["nodes", "x: &x [1, 1]\ny: [*x, *x]\n", { lexemes: 100, nodes: 8 }, 1],
  ])("of more %s than there may be", (_, text, limits, line) => {
    const messages = readDocument(text, limits).problems.map((problem) => [problem.line, problem.message]);
    expect(messages).toEqual([[line, "too many entries"]]);
    expect(readDocument(text).problems).toEqual([]);
  });
});

describe("a good configuration", () => {
  const defaults = parseConfig("", "F");

  test.each(["", "\n\n", "# nothing\n", "---\n", "--- # nothing\n...\n", "{}", "\ufeff"])(
    "%j is all defaults",
    (text) => {
      expect(parseConfig(text, "F")).toEqual(defaults);
    },
  );

  test("has the documented defaults", () => {
    expect(defaults).toEqual({
      zones: { default: 0 },
      uplinks: [],
      taps: [],
      devices: [],
      vms: [],
      services: [],
      tunnels: [],
      mpls: { label_stacks: [] },
      relearn_damping_seconds: 1,
      timeouts: { syn: 30, tcp: 7200, closed: 10, udp: 60, udp_provisional: 5, icmp: 10, sctp: 3600 },
      tables: { flows4: 1_048_576, flows6: 1_048_576, embryos4: 65_536, embryos6: 65_536 },
      sweep: { interval_min_seconds: 5, interval_max_seconds: 60, cpu_percent: 4, piece_ms: 2 },
      metrics: { enabled: true, listen: "127.0.0.1:9469" },
      log: { level: "info", format: "text" },
    });
  });

  const GOOD: Record<string, string> = {
    "two devices that are each other's peer": `devices:
      - {name: a, addresses: [10.0.0.1], on_down: peer:b}
      - {name: b, addresses: [10.0.0.2], on_down: peer:a}`,
    "a MAC in two zones": `zones: {x: 1}
devices:
      - {name: a, macs: [02:00:00:00:00:01]}
      - {name: b, macs: [02:00:00:00:00:01], zone: x}`,
    "a MAC on two VLANs": `devices:
      - {name: a, macs: [02:00:00:00:00:01], vlans: [1]}
      - {name: b, macs: [02:00:00:00:00:01], vlans: [2]}`,
    "a MAC on two interfaces": `devices:
      - {name: a, macs: [02:00:00:00:00:01], interface: eth0}
      - {name: b, macs: [02:00:00:00:00:01], interface: eth1*}`,
    "a zone for everything but the default": "zones: {default: 5, x: 0}\nuplinks: [{name: e, zone: x}]",
    "a name of digits, in quotes": 'zones: {"100": 7}\ntaps: [{name: "7", zone: "100"}]',
    "patterns that overlap": "taps: [{name: vnet0, policy: off}, {name: vnet*}, {name: '*'}]",
    "an exclusion of a port in quotes": 'taps: [{name: v, exclude: [{port: "80"}, {port: 80-80}]}]',
    anchors: "taps: [{name: a, exclude: &e [{port: 1}]}, {name: b, exclude: *e}]",
    "a device with a link-local address": "devices: [{name: a, addresses: ['fe80::1'], interface: eth0}]",
    "a probe of another address":
      "devices: [{name: a, macs: [2:0:0:0:0:1], probe: {kind: icmp, address: 10.9.9.9}}]",
    "any free port": 'metrics: {listen: "[::]:0"}',
    "numbers in other notations": "zones: {a: 0x10, b: 0o17}\ntables: {flows4: 1e6}",
    "a second document that is only the end of the first": "---\nlog: {level: debug}\n...\n",
  };

  test.each(Object.entries(GOOD))("%s", (_, text) => {
    const config = parseConfig(text, "F");
    expect(parseConfig(configYaml(config), "shown")).toEqual(config);
  });
});

describe("a file", () => {
  const write = (name: string, content: string | Buffer) => {
    writeFileSync(join(directory, name), content);
    return join(directory, name);
  };

  test("is read", () => {
    expect(loadConfig(write("good.yaml", "log: {level: debug}")).log.level).toBe("debug");
  });

  test("that is wrong is named with line and column", () => {
    const path = write("wrong.yaml", "log:\n  level: loud\n");
    expect(refusal(() => loadConfig(path)).message).toMatch(`${path}:2:10: log.level: `);
  });

  test("that is not there", () => {
    const error = refusal(() => loadConfig("/nowhere/lasthop.yaml"));
    expect([error.code, error.message]).toEqual(["E_CONFIG", "there is no file /nowhere/lasthop.yaml"]);
    expect(error.hint).toMatch(/config schema/);
  });

  test("that is a directory", () => {
    mkdirSync(join(directory, "folder"));
    const error = refusal(() => loadConfig(join(directory, "folder")));
    expect(error.message).toMatch(/folder is a directory, not a file$/);
  });

  test("beneath something that is no directory", () => {
    const error = refusal(() => loadConfig(`${write("file", "")}/lasthop.yaml`));
    expect([error.code, error.message]).toEqual(["E_CONFIG", expect.stringMatching(/ENOTDIR/)]);
  });

  test("without an end", () => {
    expect(refusal(() => loadConfig("/dev/zero")).message).toBe(
      "/dev/zero is larger than 8 MiB: this is no configuration of lasthop",
    );
  });

  test("of 8 MiB is read, a larger one is not", () => {
    const line = `# ${"x".repeat(8189)}\n`;
    expect(loadConfig(write("large", line.repeat(1024))).taps).toEqual([]);
    expect(refusal(() => loadConfig(write("larger", `${line.repeat(1024)}#`))).message).toMatch(/8 MiB/);
  });

  test.each([
    [Buffer.from("log: {}\n# \xff\n", "latin1"), "2:3"],
    [Buffer.from([0xff, 0xfe, 0x61, 0x00]), "1:1"],
    [Buffer.concat([Buffer.from("# ä\n# ä"), Buffer.from([0xc3])]), "2:4"],
    [Buffer.from([0x23, 0xe2, 0x82]), "1:2"],
    [Buffer.concat([Buffer.alloc(900_000, "a"), Buffer.from([0x80]), Buffer.alloc(1000, "b")]), "1:900001"],
  ])("that is not UTF-8 %#", (bytes, position) => {
    const path = write("encoding", bytes);
    const error = refusal(() => loadConfig(path));
    expect(error.message).toBe(`${path}:${position}: not UTF-8: save the file in that encoding`);
  });
});

describe("parts", () => {
  test.each([
    [80, { first: 80, last: 80 }],
    ["80", { first: 80, last: 80 }],
    ["1-65535", { first: 1, last: 65_535 }],
    ["0-1", undefined],
    ["2-1", undefined],
    ["1-65536", undefined],
    ["-1", undefined],
    ["", undefined],
    [1.5, undefined],
  ])("ports %j", (text, range) => {
    expect(parsePortRange(text)).toEqual(range);
  });

  test.each([
    ["127.0.0.1:9469", { host: "127.0.0.1", port: 9469 }],
    ["0.0.0.0:0", { host: "0.0.0.0", port: 0 }],
    ["[2001:db8::1]:65535", { host: "2001:db8::1", port: 65_535 }],
    ["[::1]", undefined],
    ["[::1%eth0]:1", undefined],
    ["[]:1", undefined],
    [":9469", undefined],
    ["127.1:9469", undefined],
    ["127.0.0.1:", undefined],
    ["127.0.0.1:9469 ", undefined],
  ])("listen %j", (text, listen) => {
    expect(parseListen(text)).toEqual(listen);
  });

  test("exclusions", () => {
    expect(parseExclusion({ protocol: "tcp" })).toEqual({
      remote: null,
      ports: { first: 0, last: 65_535 },
      protocol: "tcp",
    });
    expect(parseExclusion({ remote: "2001:db8::/32", port: "80-90" })).toEqual({
      remote: { family: 6, bits: 32, bytes: Buffer.from("20010db8000000000000000000000000", "hex") },
      ports: { first: 80, last: 90 },
      protocol: null,
    });
    expect(() => parseExclusion({ port: "9-8" })).toThrow("not an exclusion");
  });

  test("zones", () => {
    expect([...zoneNumbers({ zones: { a: 1 } })]).toEqual([
      ["default", 0],
      ["a", 1],
    ]);
    expect([...zoneNumbers({ zones: { a: 1, default: 9 } })]).toEqual([
      ["default", 9],
      ["a", 1],
    ]);
  });

  test.each([
    ["vnet*", "vnet0", true],
    ["vnet*", "vnet", true],
    ["vnet?", "vnet", false],
    ["vnet?", "vnet10", false],
    ["*", "x", true],
    ["eth0", "eth0", true],
    ["eth0", "eth01", false],
    ["eth.1*", "ethx10", false],
    ["a+(b)[c]", "a+(b)[c]", true],
    ["*0", "eth0\n", false],
  ])("the pattern %j and the name %j", (glob, name, matches) => {
    expect(matchesGlob(glob, name)).toBe(matches);
  });

  test.each([
    ["eth0", "eth0", true],
    ["eth0", "eth1", false],
    ["eth*", "*0", true],
    ["a*b", "*c", false],
    ["a?c", "ab*", true],
    ["a?", "a", false],
    ["*", "*", true],
    ["*a*", "b?", true],
    ["??", "?", false],
  ])("the patterns %j and %j", (a, b, meet) => {
    expect([globsMeet(a, b), globsMeet(b, a)]).toEqual([meet, meet]);
  });
});
