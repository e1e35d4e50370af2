// SPDX-License-Identifier: Apache-2.0
// lasthop config: what it prints, and how it ends.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, test } from "vitest";
import { parse } from "yaml";
import { loadConfig } from "../../src/config/load.ts";
import { runCli } from "../support/cli.ts";

const directory = mkdtempSync(join(tmpdir(), `lasthop-config-commands-${process.pid}-`));
afterAll(() => rmSync(directory, { recursive: true }));

const path = (name: string) => fileURLToPath(new URL(`../../${name}`, import.meta.url));
const GOOD = path("examples/tenants.yaml");
const BAD = join(directory, "bad.yaml");
writeFileSync(BAD, 'taps:\n  - name: vnet*\n    policy: enfroce\n"\\e[2J": 1\n');
const BAD_PROBLEMS = [
  {
    line: 3,
    column: 13,
    path: "taps[0].policy",
    message: 'expected enforce, observe or off, not "enfroce" – did you mean "enforce"?',
  },
  {
    line: 4,
    column: 1,
    path: '"\\u001b[2J"',
    message: expect.stringMatching(/^unknown key – known: zones, uplinks, taps, /),
  },
];

describe("config check", () => {
  test("says what a file has", async () => {
    expect(await runCli(["config", "check", GOOD])).toEqual({
      status: 0,
      stderr: "",
      stdout: `${GOOD} is right
zones:    default 0, red 1, blue 2
uplinks:  eth0, eth1
taps:     domain red-web, domain red-db, blue-*
devices:  firewall-red, firewall-blue
vms:      none
services: none
tunnels:  none
metrics:  127.0.0.1:9469
`,
    });
  });

  test("says it to programs", async () => {
    const { status, stdout } = await runCli(["config", "check", GOOD, "--json"]);
    expect(status).toBe(0);
    expect(JSON.parse(stdout)).toEqual({
      file: GOOD,
      valid: true,
      problems: [],
      has: {
        zones: { default: 0, red: 1, blue: 2 },
        uplinks: ["eth0", "eth1"],
        taps: ["domain red-web", "domain red-db", "blue-*"],
        devices: ["firewall-red", "firewall-blue"],
        vms: [],
        services: [],
        tunnels: [],
        metrics: "127.0.0.1:9469",
      },
    });
  });

  test("of an empty file, and of one with much", async () => {
    const file = join(directory, "some.yaml");
    writeFileSync(file, "metrics: {enabled: false}\n");
    expect((await runCli(["config", "check", file])).stdout).toBe(
      `${file} is right\nzones:    default 0\nuplinks:  none\ntaps:     none\ndevices:  none\nvms:      none\nservices: none\ntunnels:  none\nmetrics:  none\n`,
    );
    const taps = Array.from({ length: 15 }, (_, index) => `{name: v${index}}`);
    writeFileSync(file, `taps: [${taps.join(", ")}]\n`);
    expect((await runCli(["config", "check", file])).stdout).toMatch(
      /^taps: {5}v0, v1, .*, v11 and 3 more$/m,
    );
  });

  test("lists every problem, and ends with 1", async () => {
    const { status, stdout, stderr } = await runCli(["config", "check", BAD]);
    expect({ status, stderr }).toEqual({ status: 1, stderr: "" });
    expect(stdout.trimEnd().split("\n")).toEqual(
      BAD_PROBLEMS.map(({ line, column, path, message }) => {
        const start = `${BAD}:${line}:${column}: ${path}: `;
        return typeof message === "string" ? start + message : expect.stringContaining(start);
      }),
    );
  });

  test("lists them for programs", async () => {
    const { status, stdout, stderr } = await runCli(["-j", "config", "check", BAD]);
    expect({ status, stderr }).toEqual({ status: 1, stderr: "" });
    expect(JSON.parse(stdout)).toEqual({ file: BAD, valid: false, problems: BAD_PROBLEMS, has: null });
  });

  test("of a file that is not there is an error", async () => {
    const { status, stdout, stderr } = await runCli(["config", "check", "/nowhere/x.yaml", "--json"]);
    expect({ status, stdout }).toEqual({ status: 1, stdout: "" });
    expect(JSON.parse(stderr)).toEqual({
      code: "E_CONFIG",
      message: "there is no file /nowhere/x.yaml",
      hint: expect.stringContaining("lasthop config schema"),
    });
  });

  test("without a file is of the one in /etc", async () => {
    const { stdout, stderr } = await runCli(["config", "check"]);
    expect(stdout + stderr).toContain("/etc/lasthop/lasthop.yaml");
  });
});

describe("config show", () => {
  test.each(["bridged-two-firewalls", "routed", "services", "tenants"])(
    "of %s is the same again",
    async (name) => {
      const example = path(`examples/${name}.yaml`);
      const { status, stdout } = await runCli(["config", "show", example]);
      expect(status).toBe(0);
      const file = join(directory, `${name}.yaml`);
      writeFileSync(file, stdout);
      expect(loadConfig(file)).toEqual(loadConfig(example));
      const json = await runCli(["config", "show", example, "--json"]);
      expect(JSON.parse(json.stdout)).toEqual(parse(stdout));
    },
  );

  test("of a bad file is an error that names the first problem", async () => {
    const { status, stdout, stderr } = await runCli(["config", "show", BAD]);
    expect({ status, stdout }).toEqual({ status: 1, stdout: "" });
    expect(stderr).toBe(
      `lasthop: ${BAD}:3:13: taps[0].policy: expected enforce, observe or off, not "enfroce" – ` +
        `did you mean "enforce"? (and 1 more problem)\n  \`lasthop config check ${BAD}\` lists them all.\n`,
    );
  });
});

test("config schema is docs/config.schema.json", async () => {
  const published = readFileSync(path("docs/config.schema.json"), "utf8");
  expect(await runCli(["config", "schema"])).toEqual({ status: 0, stdout: published, stderr: "" });
  expect(JSON.parse((await runCli(["config", "schema", "--json"])).stdout)).toEqual(JSON.parse(published));
});
