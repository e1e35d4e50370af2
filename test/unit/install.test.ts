// SPDX-License-Identifier: Apache-2.0
// scripts/install.sh, into a directory of its own.

import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parseConfig } from "../../src/config/load.ts";
import { repositoryPath } from "../support/paths.ts";
import { must, run } from "../support/run.ts";

const SCRIPT = repositoryPath("scripts/install.sh");
const CONFIG = "etc/lasthop/lasthop.yaml";
/** What hypervisors may call. */
const SCRIPTS = ["libvirt/qemu", "libvirt/lasthop-shutdown", "qemu/lasthop-ifup", "qemu/lasthop-ifdown"];

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), `lasthop-install-${process.pid}-`));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** Below DESTDIR, directories with a slash at their end. */
function list(root: string): string[] {
  return readdirSync(root, { recursive: true, withFileTypes: true })
    .map(
      (entry) => join(entry.parentPath, entry.name).slice(root.length + 1) + (entry.isDirectory() ? "/" : ""),
    )
    .sort();
}

const environment = (variables: Record<string, string>) => ({ ...process.env, ...variables });
const script = (word: string, variables: Record<string, string>, path = SCRIPT) =>
  run([path, word], { env: environment(variables), timeoutMs: 60_000 });

describe("install and uninstall", () => {
  const place = (name: string) => join(directory, "root", name);
  const variables = () => ({ DESTDIR: join(directory, "root") });
  let before: string[];

  beforeAll(async () => {
    // Others have been there before.
    mkdirSync(place("usr/local/share/man/man8"), { recursive: true });
    writeFileSync(place("usr/local/share/man/man8/other.8"), "");
    before = list(join(directory, "root"));
    const { status, stderr } = await script("install", variables());
    expect([status, stderr]).toEqual([0, ""]);
  });

  test("puts everything in its place", () => {
    for (const path of [
      "usr/local/bin/lasthop",
      "usr/local/lib/lasthop/dist/bpf/lasthop.bpf.o",
      "usr/local/lib/lasthop/dist/bpf/xfrm.bpf.o",
      "usr/local/lib/lasthop/node_modules/koffi/package.json",
      "usr/local/lib/lasthop/docs/runbook.md",
      "usr/local/lib/lasthop/LICENSE",
      "usr/local/lib/systemd/system/lasthop.service",
      "usr/local/share/man/man8/lasthop.8",
      "usr/local/share/bash-completion/completions/lasthop",
      "usr/local/share/zsh/site-functions/_lasthop",
      "usr/local/share/fish/vendor_completions.d/lasthop.fish",
      ...SCRIPTS.map((name) => `usr/local/share/lasthop/${name}`),
      CONFIG,
    ]) {
      expect(existsSync(place(path)), path).toBe(true);
    }
    expect(readlinkSync(place("usr/local/bin/lasthop"))).toBe("../lib/lasthop/dist/cli/main.js");
    // Only what runs.
    for (const module of ["typescript", "vitest", "@biomejs"]) {
      expect(existsSync(place(`usr/local/lib/lasthop/node_modules/${module}`)), module).toBe(false);
    }
  });

  test("the command runs from there", async () => {
    const version = JSON.parse(readFileSync(repositoryPath("package.json"), "utf8")).version;
    expect((await must([place("usr/local/bin/lasthop"), "--version"])).trim()).toBe(version);
    const checked = await run([place("usr/local/bin/lasthop"), "config", "check", place(CONFIG)]);
    expect([checked.status, checked.stderr]).toEqual([0, ""]);
  });

  test("the unit starts this command with this configuration", () => {
    const unit = readFileSync(place("usr/local/lib/systemd/system/lasthop.service"), "utf8");
    expect(unit).toMatch(/^ExecStart=\/usr\/local\/bin\/lasthop run\b/m);
    expect(unit).not.toContain("/usr/bin/lasthop");
  });

  test.each(SCRIPTS)("%s calls this command with this configuration", async (name) => {
    const path = place(`usr/local/share/lasthop/${name}`);
    expect(statSync(path).mode & 0o777).toBe(0o755);
    await must(["sh", "-n", path]);
    const text = readFileSync(path, "utf8");
    expect(text).toContain("{LASTHOP:=/usr/local/bin/lasthop}");
    for (const [, config] of text.matchAll(/LASTHOP_CONFIG:=([^}]*)/g)) expect(config).toBe(`/${CONFIG}`);
  });

  test("again, it leaves the operator's configuration and nothing of the version before", async () => {
    const changed = "uplinks: [{ name: eth7 }]\n";
    writeFileSync(place(CONFIG), changed);
    const first = list(join(directory, "root"));
    const stale = "usr/local/lib/lasthop/dist/cli/stale.js";
    writeFileSync(place(stale), "");
    const manifest = place("usr/local/lib/lasthop/installed");
    writeFileSync(manifest, `/${stale}\n${readFileSync(manifest, "utf8")}`);
    expect((await script("install", variables())).status).toBe(0);
    expect(list(join(directory, "root"))).toEqual(first);
    expect(readFileSync(place(CONFIG), "utf8")).toBe(changed);
  });

  test("uninstall takes away just that", async () => {
    const { status, stdout } = await script("uninstall", variables());
    expect(status).toBe(0);
    expect(stdout).toContain("what is attached stays attached");
    const left = list(join(directory, "root")).filter((path) => !path.startsWith("etc/"));
    expect(left).toEqual(before);
    expect(existsSync(place(CONFIG))).toBe(true);
    const again = await script("uninstall", variables());
    expect([again.status, again.stderr]).toEqual([1, expect.stringContaining("nothing is installed below")]);
  });
});

describe("elsewhere", () => {
  const variables = () => ({
    DESTDIR: join(directory, "opt"),
    PREFIX: "/opt/lasthop",
    SYSCONFDIR: "/opt/etc",
  });

  test("PREFIX and SYSCONFDIR are honoured, and somebody's files survive", async () => {
    expect((await script("install", variables())).status).toBe(0);
    const root = join(directory, "opt/opt");
    const unit = readFileSync(join(root, "lasthop/lib/systemd/system/lasthop.service"), "utf8");
    expect(unit).toContain("ExecStart=/opt/lasthop/bin/lasthop run");
    expect(existsSync(join(root, "etc/lasthop/lasthop.yaml"))).toBe(true);
    const hook = readFileSync(join(root, "lasthop/share/lasthop/libvirt/qemu"), "utf8");
    expect(hook).toContain("{LASTHOP:=/opt/lasthop/bin/lasthop}");
    expect(hook).toContain("LASTHOP_CONFIG:=/opt/etc/lasthop/lasthop.yaml");
    writeFileSync(join(root, "lasthop/lib/lasthop/notes.txt"), "mine");
    expect((await script("uninstall", variables())).status).toBe(0);
    expect(list(root)).toEqual([
      "etc/",
      "etc/lasthop/",
      "etc/lasthop/lasthop.yaml",
      "lasthop/",
      "lasthop/lib/",
      "lasthop/lib/lasthop/",
      "lasthop/lib/lasthop/notes.txt",
    ]);
  });
});

describe("refuses", () => {
  test.each([
    ["an unknown word", "remove", {}, "usage: install.sh install|uninstall"],
    ["a relative DESTDIR", "install", { DESTDIR: "here" }, "here is not an absolute path"],
    ["a relative PREFIX", "install", { PREFIX: "usr" }, "usr is not an absolute path"],
    ["a blank", "install", { DESTDIR: "/tmp/a b" }, "paths of letters"],
    ["what sed would take for something else", "install", { PREFIX: "/opt/a|b" }, "paths of letters"],
  ])("%s", async (_, word, variables, message) => {
    const { status, stderr } = await script(word, variables);
    expect([status, stderr]).toEqual([1, expect.stringContaining(message)]);
  });

  test("a tree in which nothing is built", async () => {
    const tree = join(directory, "bare");
    mkdirSync(join(tree, "scripts"), { recursive: true });
    cpSync(SCRIPT, join(tree, "scripts/install.sh"));
    const { status, stderr } = await script(
      "install",
      { DESTDIR: join(directory, "none") },
      join(tree, "scripts/install.sh"),
    );
    expect([status, stderr]).toEqual([1, expect.stringContaining("run `make build`")]);
    expect(existsSync(join(directory, "none"))).toBe(false);
  });

  test("to leave half of it when something is missing", async () => {
    const tree = join(directory, "half");
    mkdirSync(tree);
    for (const name of ["dist", "scripts", "packaging", "package.json", "package-lock.json"]) {
      cpSync(repositoryPath(name), join(tree, name), { recursive: true });
    }
    symlinkSync(repositoryPath("node_modules"), join(tree, "node_modules"));
    const root = join(directory, "half-root");
    mkdirSync(root);
    const { status } = await script("install", { DESTDIR: root }, join(tree, "scripts/install.sh"));
    expect(status).not.toBe(0);
    expect(list(root)).toEqual([]);
  });
});

test("the example attaches nothing", () => {
  const text = readFileSync(repositoryPath("packaging/lasthop.yaml"), "utf8");
  const config = parseConfig(text, "packaging/lasthop.yaml");
  expect([config.uplinks, config.taps, config.devices]).toEqual([[], [], []]);
});
