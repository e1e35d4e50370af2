// SPDX-License-Identifier: Apache-2.0
// scripts/setup.sh on machines that lack one thing or another: apt, dpkg, npm and sudo are stand-ins.

import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, describe, expect, test } from "vitest";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const LIST = readFileSync(`${ROOT}scripts/packages.txt`, "utf8");
const LINES = LIST.split("\n")
  .map((line) => line.replace(/[#?].*/, "").trim())
  .filter((line) => line !== "");

const directories: string[] = [];
afterEach(() => {
  for (const directory of directories.splice(0)) rmSync(directory, { recursive: true });
});

interface Machine {
  /** What dpkg says is installed. */
  installed: string[];
  /** What apt could install. */
  available?: string[];
  /** Commands that are not there at all. */
  without?: string[];
  /** Exit statuses of commands. */
  failing?: Record<string, number>;
  nodeVersion?: string;
  /** node_modules is not what the lock file says. */
  outdated?: boolean;
}

function setUp(machine: Machine, ...args: string[]) {
  const directory = mkdtempSync(join(tmpdir(), "lasthop-setup-"));
  directories.push(directory);
  const bin = join(directory, "bin");
  const log = join(directory, "log");
  mkdirSync(bin);
  const command = (name: string, body: string) => {
    if (machine.without?.includes(name)) return;
    const status = machine.failing?.[name] ?? 0;
    writeFileSync(join(bin, name), `#!/bin/sh\n${body}\nexit ${status}\n`);
    chmodSync(join(bin, name), 0o755);
  };
  const words = (list: string[]) => ` ${list.join(" ")} `;
  const last = 'for name; do :; done; case "$LIST" in *" $name "*)';
  command("dpkg-query", `LIST='${words(machine.installed)}'; ${last} printf installed; exit;; esac; exit 1`);
  command(
    "apt-cache",
    `LIST='${words(machine.available ?? [])}'; ${last} echo '  Candidate: 1.0'; exit;; esac; echo '  Candidate: (none)'`,
  );
  command("apt-get", `echo "apt-get $DEBIAN_FRONTEND $*" >> ${log}`);
  command("systemctl", `echo "systemctl $*" >> ${log}`);
  command("npm", `echo "npm $*" >> ${log}`);
  command("id", "echo 0");
  const [major, minor] = (machine.nodeVersion ?? "20.19.0").split(".").map(Number) as [number, number];
  const tooOld = major < 20 || (major === 20 && minor < 19);
  command(
    "node",
    `case "$*" in --version) echo v${machine.nodeVersion};; -e*) exit ${tooOld ? 1 : 0};; ` +
      `*lockfile.mjs*) exit ${machine.outdated ? 1 : 0};; esac`,
  );
  for (const tool of ["sh", "dirname", "sed", "tr", "grep", "env"]) {
    command(tool, `exec /usr/bin/${tool} "$@"`);
  }
  const run = spawnSync("/bin/sh", [`${ROOT}scripts/setup.sh`, ...args], {
    env: { PATH: bin },
    encoding: "utf8",
  });
  const calls = existsSync(log) ? readFileSync(log, "utf8").trim().split("\n") : [];
  return { status: run.status, stdout: run.stdout, stderr: run.stderr, calls };
}

const firsts = LINES.map((line) => line.split("|")[0]!.trim());

describe("set-up", () => {
  test("does nothing where everything is there", () => {
    expect(setUp({ installed: firsts })).toEqual({ status: 0, stdout: "", stderr: "", calls: [] });
  });

  test("takes either of two alternatives", () => {
    const lasts = LINES.map((line) => line.split("|").at(-1)!.trim());
    expect(lasts).not.toEqual(firsts);
    expect(setUp({ installed: lasts }).calls).toEqual([]);
  });

  test("installs what is missing and no more, without asking", () => {
    const installed = firsts.filter((name) => name !== "tshark" && name !== "clang");
    const { status, calls } = setUp({ installed, available: ["tshark", "clang"] });
    expect(status).toBe(0);
    expect(calls).toEqual([
      "apt-get  update -q",
      "apt-get noninteractive install -y -q --no-install-recommends clang tshark",
    ]);
  });

  test("does not let a server start that comes with a package", () => {
    const installed = firsts.filter((name) => name !== "prometheus");
    expect(setUp({ installed, available: ["prometheus"] }).calls).toEqual([
      "apt-get  update -q",
      "systemctl mask --quiet prometheus.service",
      "apt-get noninteractive install -y -q --no-install-recommends prometheus",
    ]);
    const unmasked = setUp({ installed, available: ["prometheus"], failing: { systemctl: 1 } });
    expect([unmasked.status, unmasked.calls.at(-1)]).toEqual([
      1,
      "systemctl mask --quiet prometheus.service",
    ]);
    expect(unmasked.stderr).toMatch(/could not mask prometheus\.service/);
    const without = setUp({ installed, available: ["prometheus"], without: ["systemctl"] });
    expect([without.status, without.calls.length]).toEqual([0, 2]);
  });

  test("chooses the alternative that apt has", () => {
    const installed = firsts.filter((name) => name !== "libelf1");
    const { calls } = setUp({ installed, available: ["libelf1t64"] });
    expect(calls.at(-1)).toMatch(/ libelf1t64$/);
  });

  test("names what it could not install", () => {
    const installed = firsts.filter((name) => name !== "tshark");
    const failed = setUp({ installed, failing: { "apt-get": 100 } });
    expect(failed.status).toBe(1);
    expect(failed.stderr).toMatch(/apt-get update failed: is there a network\?.*tshark/s);
    const foreign = setUp({ installed, without: ["apt-get"] });
    expect(foreign.status).toBe(1);
    expect(foreign.stderr).toMatch(/no apt-get.*tshark/s);
  });

  test("goes on without what only some tests need, and says so", () => {
    const installed = firsts.filter((name) => name !== "qemu-system-x86" && name !== "zstd");
    const { status, calls } = setUp({ installed });
    expect([status, calls.at(-1)]).toEqual([
      0,
      "apt-get noninteractive install -y -q --no-install-recommends qemu-system-x86 zstd",
    ]);
    for (const machine of [{ failing: { "apt-get": 100 } }, { without: ["apt-get"] }]) {
      const without = setUp({ installed, ...machine });
      expect(without.status).toBe(0);
      expect(without.stderr).toMatch(
        /without qemu-system-x86 zstd tests that need it are skipped: .*apt-get/,
      );
    }
    // What everything needs is asked for by itself.
    const both = setUp({ installed: installed.filter((name) => name !== "tshark"), available: ["tshark"] });
    expect(both.calls.slice(1)).toEqual([
      "apt-get noninteractive install -y -q --no-install-recommends tshark",
      "apt-get noninteractive install -y -q --no-install-recommends qemu-system-x86 zstd",
    ]);
  });

  test("asks for a newer Node.js", () => {
    const { status, stderr } = setUp({ installed: firsts, nodeVersion: "18.19.0" });
    expect([status, stderr]).toEqual([
      1,
      "lasthop: Node.js v18.19.0 is too old: install version 20.19 or later\n",
    ]);
    expect(setUp({ installed: firsts, without: ["node"] }).stderr).toMatch(/Node.js is missing/);
    expect(setUp({ installed: firsts, without: ["npm"] }).stderr).toMatch(/npm is missing/);
  });

  test("installs Node.js packages when they are not those of the lock file", () => {
    const { status, calls } = setUp({ installed: firsts, outdated: true });
    expect([status, calls]).toEqual([0, ["npm ci --ignore-scripts --no-audit --no-fund"]]);
    const failed = setUp({ installed: firsts, outdated: true, failing: { npm: 1 } });
    expect(failed.status).toBe(1);
    expect(failed.stderr).toMatch(/npm ci failed/);
  });
});
