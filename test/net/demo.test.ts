// SPDX-License-Identifier: Apache-2.0
// `make demo` as a person gets it: it shows the main job, it judges itself, and it leaves nothing.

import { existsSync, readdirSync } from "node:fs";
import { beforeAll, describe, expect, it } from "vitest";
import { BPFFS } from "../support/lab.ts";
import { repositoryPath } from "../support/paths.ts";
import { Background, must, run } from "../support/run.ts";

const DEMO = repositoryPath("build/scripts/demo.js");

function leftovers(pid: number | undefined): string[] {
  return ["/run/netns", BPFFS]
    .filter((directory) => existsSync(directory))
    .flatMap((directory) => readdirSync(directory))
    .filter((name) => name.startsWith(`lh${pid}n`));
}

describe("the demo", () => {
  beforeAll(async () => {
    await must([
      process.execPath,
      repositoryPath("node_modules/typescript/bin/tsc"),
      "-p",
      repositoryPath("scripts"),
    ]);
  });

  it("shows the main job in plain text, well under a minute", async () => {
    const began = Date.now();
    const demo = new Background([process.execPath, DEMO]);
    const status = await demo.exited;
    expect({ status, stderr: demo.stderr, stdout: demo.stdout }).toMatchObject({ status: 0, stderr: "" });
    expect(Date.now() - began).toBeLessThan(60_000);
    expect(demo.stdout).not.toContain("\x1b");
    expect(demo.stdout).not.toContain("FAILED");
    for (const heading of ["Without lasthop", "Attach", "With lasthop it works", "has learned", "Detach"]) {
      expect(demo.stdout).toContain(heading);
    }
    expect(leftovers(demo.child.pid)).toEqual([]);
  });

  it.each(["SIGINT", "SIGTERM"] as const)("takes everything down on %s", async (signal) => {
    const demo = new Background([process.execPath, DEMO]);
    await demo.writes(/\$ lasthop attach tap1/, "stdout", 20_000);
    expect(leftovers(demo.child.pid)).toContain(`lh${demo.child.pid}n0-host`);
    demo.child.kill(signal);
    await demo.exited;
    expect(demo.child.signalCode).toBe(signal);
    expect(demo.stdout).toContain("interrupted");
    expect(leftovers(demo.child.pid)).toEqual([]);
  });

  it.each([
    // A user namespace changes the id and nothing else: the files stay readable.
    ["not root", ["unshare", "--user", "--map-user=1000"], [/not root/, /sudo/]],
    ["a kernel that is too old", ["setarch", "--uname-2.6"], [/2\.6\S* is too old/, /boot a newer kernel/]],
    [
      "no BTF and no bpffs",
      [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'umount -l /sys/fs/bpf; mount -t tmpfs none /sys && exec "$@"',
        "sh",
      ],
      [/no BTF/, /CONFIG_DEBUG_INFO_BTF/, /no bpf file system/, /mount -t bpf/],
    ],
  ])("says what is missing: %s", async (_name, prefix, messages) => {
    const { status, stdout, stderr } = await run([...prefix, process.execPath, DEMO]);
    for (const message of messages) expect(stderr).toMatch(message);
    expect(stdout).toBe("");
    expect(status).toBe(1);
  });
});
