// SPDX-License-Identifier: Apache-2.0
// The npm package: made from a clean tree, installed where there is neither compiler nor bpftool, and used there.

import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { AttachResult, DoctorReport, StatusReport } from "../../src/ops/types.ts";
import { Lab, type Namespace } from "../support/lab.ts";
import { ensureBpffs } from "../support/lasthop.ts";
import { repositoryPath } from "../support/paths.ts";
import { must } from "../support/run.ts";

/** All that a machine has on which lasthop is to run: Node.js with npm, a shell, and files can be moved. */
const PROGRAMS = ["node", "npm", "sh", "env", "uname", "rm", "mkdir", "ls", "cat", "cp", "ln", "chmod"];
const BUILD_TOOLS = /^(clang|llvm-.*|gcc|cc|g\+\+|make|bpftool|nft|tc|python3|tsc)$/;

describe("the npm package", () => {
  let directory: string;
  let lab: Lab;
  let host: Namespace;
  let files: string[];
  /** What stands before a command so that it finds nothing but PROGRAMS. */
  const bare = (): string[] => {
    // The way to the registry.
    const kept = Object.entries(process.env).filter(([name]) =>
      /^(home|npm_config_.*|https?_proxy|no_proxy|node_extra_ca_certs)$/i.test(name),
    );
    const path = `PATH=${join(directory, "bin")}`;
    return ["env", "-i", path, ...kept.map(([name, value]) => `${name}=${value}`)];
  };
  const lasthop = (...words: string[]) => {
    const command = join(directory, "app/node_modules/.bin/lasthop");
    return host.must([...bare(), command, "--pin-root", lab.pinRoot, "--json", ...words]);
  };

  beforeAll(async () => {
    lab = new Lab();
    host = lab.namespace("host");
    await must(["ip", "netns", "add", host.name]);
    await host.ip("link add wan type veth peer name far", "link set wan up", "link set far up");
    await ensureBpffs();
    directory = mkdtempSync(join(tmpdir(), `lasthop-pack-${process.pid}-`));
    await packCleanTree();
    mkdirSync(join(directory, "bin"));
    for (const program of PROGRAMS) {
      const path = (await must(["sh", "-c", `command -v ${program}`])).trim();
      symlinkSync(path, join(directory, "bin", program));
    }
    mkdirSync(join(directory, "app"));
    const tarball = join(directory, readdirSync(directory).find((name) => name.endsWith(".tgz"))!);
    const install = 'cd "$1" && npm install --prefer-offline --no-audit --no-fund "$2"';
    await must([...bare(), "sh", "-c", install, "-", join(directory, "app"), tarball], {
      timeoutMs: 240_000,
    });
  }, 480_000);
  afterAll(async () => {
    await lab.close();
    rmSync(directory, { recursive: true, force: true });
  });

  /** What is committed or about to be, without anything that was built. */
  async function packCleanTree(): Promise<void> {
    const tree = join(directory, "tree");
    const root = repositoryPath("");
    const listed = await must(["git", "-C", root, "ls-files", "--cached", "--others", "--exclude-standard"]);
    for (const path of listed.split("\n").filter((name) => name !== "" && !name.startsWith("test/"))) {
      mkdirSync(dirname(join(tree, path)), { recursive: true });
      cpSync(join(root, path), join(tree, path));
    }
    symlinkSync(join(root, "node_modules"), join(tree, "node_modules"));
    await must(["sh", "-c", 'cd "$1" && npm pack --pack-destination ..', "-", tree], { timeoutMs: 240_000 });
    const tarball = readdirSync(directory).filter((name) => name.endsWith(".tgz"));
    expect(tarball).toHaveLength(1);
    files = (await must(["tar", "-tzf", join(directory, tarball[0]!)]))
      .split("\n")
      .filter(Boolean)
      .map((name) => name.replace(/^package\//, ""));
  }

  it("holds what runs and what explains it, and nothing else", () => {
    for (const path of [
      "dist/cli/main.js",
      "dist/bpf/lasthop.bpf.o",
      "dist/bpf/xfrm.bpf.o",
      "dist/man/lasthop.8",
      "dist/completion/lasthop.bash",
      "docs/runbook.md",
      "docs/errors.md",
      "examples/alerts.yaml",
      "packaging/lasthop.service",
      "packaging/lasthop.yaml",
      "packaging/libvirt/qemu",
      "packaging/qemu/lasthop-ifup",
      "LICENSE",
      "LICENSES/GPL-2.0-only.txt",
      "README.md",
    ]) {
      expect(files, path).toContain(path);
    }
    const places = new Set(files.map((path) => path.split("/")[0]));
    expect([...places].sort()).toEqual([
      "CHANGELOG.md",
      "LICENSE",
      "LICENSES",
      "README.md",
      "dist",
      "docs",
      "examples",
      "package.json",
      "packaging",
    ]);
    expect(files.filter((path) => /\.(ts|c|h|tsbuildinfo)$|\/\.[^/]*$/.test(path))).toEqual([]);
  });

  it("is installed without build tools", () => {
    const programs = readdirSync(join(directory, "bin"));
    expect(programs.filter((name) => BUILD_TOOLS.test(name))).toEqual([]);
    const modules = readdirSync(join(directory, "app/node_modules"));
    expect(modules).toContain("koffi");
    expect(modules).not.toContain("ffi-napi");
    expect(modules).not.toContain("typescript");
  });

  it("says its version, and what the host has", async () => {
    expect((await lasthop("--version")).trim()).toMatch(/^\d+\.\d+\.\d+/);
    const report = JSON.parse(await lasthop("doctor")) as DoctorReport;
    expect(report.checks.filter(({ level }) => level === "fail")).toEqual([]);
    const object = report.checks.find(({ name }) => name === "bpf object")!;
    expect(object.found).toBe(join(directory, "app/node_modules/lasthop/dist/bpf/lasthop.bpf.o"));
    expect(report.checks.find(({ name }) => name === "netfilter")!.found).toContain("nft is not installed");
  });

  it("attaches, and detaches again", async () => {
    const attached = JSON.parse(await lasthop("attach", "wan", "--role", "uplink")) as AttachResult;
    expect(attached).toMatchObject({ interface: "wan", role: "uplink" });
    const status = JSON.parse(await lasthop("status")) as StatusReport;
    expect(status.interfaces).toMatchObject([{ interface: "wan", state: "ok" }]);
    await lasthop("detach", "--all", "--purge");
  });
});
