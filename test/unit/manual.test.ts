// SPDX-License-Identifier: Apache-2.0
// The man page, read by groff, and the completions, run in the shells that they are for.

import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { COMMANDS } from "../../src/cli/commands/index.ts";
import { manualFiles } from "../../src/cli/manual/index.ts";
import { leavesOf } from "../../src/cli/manual/tree.ts";
import { GLOBAL_OPTIONS } from "../../src/cli/parse.ts";

const files = manualFiles(readFileSync(new URL("../../scripts/completion.bash", import.meta.url), "utf8"));
const directory = mkdtempSync(join(tmpdir(), `lasthop-manual-${process.pid}-`));
for (const [name, text] of Object.entries(files)) {
  mkdirSync(dirname(join(directory, name)), { recursive: true });
  writeFileSync(join(directory, name), text);
}
afterAll(() => rmSync(directory, { recursive: true }));
const PAGE = join(directory, "man/lasthop.8");
const BASH = join(directory, "completion/lasthop.bash");

const LEAVES = leavesOf(COMMANDS).map(({ path, command }) => ({ name: path.join(" "), command }));
const GLOBAL = [...Object.keys(GLOBAL_OPTIONS), "help", "version"];

function interfaces(): string[] {
  const lines = readFileSync("/proc/self/net/dev", "utf8").trimEnd().split("\n").slice(2);
  return lines.map((line) => line.slice(0, line.indexOf(":")).trim());
}

describe("the man page", () => {
  // As man runs it, with every warning, and without colours and overstrikes.
  const argv = ["-k", "-man", "-Tutf8", "-ww", "-P-cbou", "-rLL=200n", PAGE];
  const { stdout, stderr, status } = spawnSync("groff", argv, { encoding: "utf8" });
  const page = stdout.replace(/\s+/g, " ");

  test("is read without a warning", () => {
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    expect(page).toContain("LASTHOP(8)");
  });

  test.each(LEAVES)("has $name, with its words, options and examples", ({ name, command }) => {
    const start = page.indexOf(` lasthop ${name} lasthop ${name} `);
    expect(start).toBeGreaterThan(0);
    const end = page.indexOf("Example", start);
    const part = page.slice(start, end);
    const plain = (text: string) => text.replaceAll("`", "").replace(/\s+/g, " ").slice(1);
    expect(part).toContain(plain(command.describe));
    if (command.details !== undefined) expect(part).toContain(plain(command.details));
    for (const [word, { describe }] of Object.entries(command.words ?? {})) {
      expect(part).toContain(` ${word} `);
      expect(part).toContain(plain(describe));
    }
    for (const [option, { value, describe }] of Object.entries(command.options ?? {})) {
      expect(part).toContain(`--${option}${value === undefined ? "" : ` ${value}`} `);
      expect(part).toContain(plain(describe));
    }
    for (const [line, does] of command.examples) {
      expect(page.slice(end)).toContain(`lasthop ${line} `.replace(/\s+/g, " "));
      expect(page.slice(end)).toContain(plain(does));
    }
  });

  test("has the options of every command, files and exit statuses", () => {
    const rest = page.slice(page.indexOf("OPTIONS OF EVERY COMMAND"));
    for (const option of GLOBAL) expect(rest).toContain(`--${option}`);
    expect(rest).toContain("-j, --json");
    for (const text of ["/etc/lasthop/lasthop.yaml", "EXIT STATUS", "/sys/fs/bpf/lasthop"])
      expect(rest).toContain(text);
  });
});

/** As readline splits a line: at blanks, and with "=" and ":" as words of their own. */
function readlineWords(line: string): string[] {
  const words = line.match(/[=:]+|[^\s=:]+/g) ?? [];
  return /\s$/.test(line) ? [...words, ""] : words;
}

const PRINT = `printf '%s\\n' "\${COMPREPLY[@]}"`;

/** What bash would offer after this line. */
function bash(line: string, wordbreaks = "=:"): string[] {
  const words = wordbreaks === "" ? line.split(" ") : readlineWords(line);
  const script = `source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _lasthop; ${PRINT}`;
  const prepared = `COMP_WORDBREAKS='${wordbreaks}'; ${script}`;
  const { stdout, stderr } = spawnSync("bash", ["--norc", "-c", prepared, "bash", BASH, ...words], {
    encoding: "utf8",
    cwd: directory,
  });
  expect(stderr).toBe("");
  return stdout.split("\n").filter(Boolean).sort();
}

describe("completion in bash", () => {
  const names = COMMANDS.map((entry) => entry.name).sort();

  test("of commands", () => {
    expect(bash("lasthop ")).toEqual(names);
    expect(bash("lasthop atta")).toEqual(["attach"]);
    expect(bash("lasthop --pin-root /x --debug at")).toEqual(["attach"]);
    expect(bash("lasthop --pin-root=/x at")).toEqual(["attach"]);
    for (const entry of COMMANDS) {
      if (!("commands" in entry)) continue;
      expect(bash(`lasthop ${entry.name} `)).toEqual(entry.commands.map(({ name }) => name).sort());
    }
  });

  test.each(LEAVES)("of the options of $name", ({ name, command }) => {
    const own = Object.keys(command.options ?? {}).map((option) => `--${option}`);
    const all = [...own, ...GLOBAL.map((option) => `--${option}`)].sort();
    expect(bash(`lasthop ${name} --`)).toEqual(all);
    for (const [option, { short }] of Object.entries(command.options ?? {})) {
      expect(bash(`lasthop ${name} --${option}`)).toContain(`--${option}`);
      if (short !== undefined) expect(bash(`lasthop ${name} -`)).toContain(`-${short}`);
    }
  });

  test("of interfaces, where a word or a value is one", () => {
    const all = interfaces().sort();
    expect(bash("lasthop attach ")).toEqual(all);
    expect(bash("lasthop attach l")).toContain("lo");
    expect(bash("lasthop attach lo ")).toEqual([]);
    expect(bash("lasthop detach lo ")).toEqual(all);
    expect(bash("lasthop flows list --interface ")).toEqual(all);
    expect(bash("lasthop flows list --interface=l")).toContain("lo");
    expect(bash("lasthop vms add web1 --tap ")).toEqual(all);
  });

  test("of values that are one of a few", () => {
    expect(bash("lasthop attach lo --role ")).toEqual(["tap", "uplink"]);
    expect(bash("lasthop attach lo --role=")).toEqual(["tap", "uplink"]);
    expect(bash("lasthop attach lo --role=u")).toEqual(["uplink"]);
    expect(bash("lasthop attach lo --role=u", "")).toEqual(["--role=uplink"]);
    expect(bash("lasthop bypass ")).toEqual(["off", "on"]);
    expect(bash("lasthop bypass on ")).toEqual([]);
    expect(bash("lasthop attach lo --zone ")).toEqual([]);
  });

  test("of file names, also with blanks", () => {
    writeFileSync(join(directory, "my host.yaml"), "");
    writeFileSync(join(directory, "my-other.yaml"), "");
    mkdirSync(join(directory, "my-folder"), { recursive: true });
    const found = ["my host.yaml", "my-folder", "my-other.yaml"];
    for (const line of ["plan -c my", "plan --config my", "run --config=my", "config check my"]) {
      expect(bash(`lasthop ${line}`), line).toEqual(found);
    }
    expect(bash("lasthop --pin-root my")).toEqual(["my-folder"]);
    expect(bash("lasthop explain tcp my")).toEqual([]);
  });

  test("after an address, which bash takes for many words", () => {
    expect(bash("lasthop flows list --device-mac 02:00:00:00:0a:01 --sta")).toEqual(["--state"]);
    expect(bash("lasthop flows list --device-mac 02:00:")).toEqual([]);
  });

  test("of an interface whose name is shell code does not run it", () => {
    const evil = "$(touch x)`id`".slice(0, 10);
    const script = readFileSync(BASH, "utf8").replace("/proc/self/net/dev", join(directory, "net-dev"));
    writeFileSync(join(directory, "net-dev"), `head\nhead\n  ${evil}: 1 2\n    lo: 1 2\n`);
    writeFileSync(join(directory, "evil.bash"), script);
    const run = `source "$1"; COMP_WORDS=(lasthop attach ""); COMP_CWORD=2; _lasthop; ${PRINT}`;
    const output = execFileSync("bash", ["--norc", "-c", run, "bash", join(directory, "evil.bash")], {
      encoding: "utf8",
      cwd: directory,
    });
    expect(output.split("\n")).toContain("lo");
    expect(output).toContain("\\$\\(touch");
    expect(() => readFileSync(join(directory, "x"))).toThrow("ENOENT");
  });

  test("at a prompt, by the tab key", () => {
    const typed = [
      "PS1=; bind 'set bell-style none'; lasthop() { printf 'ran:'; printf '<%s>' \"$@\"; echo; }",
      `source ${BASH}`,
      "lasthop atta\tl\t--ro\t tap --policy=ob\t",
      "lasthop plan --conf\tmy-o\t",
      "exit",
    ];
    const { stdout } = spawnSync("script", ["-qec", "bash --norc --noprofile -i", "/dev/null"], {
      input: `${typed.join("\n")}\n`,
      encoding: "utf8",
      cwd: directory,
      env: { ...process.env, TERM: "dumb", HISTFILE: "", INPUTRC: "/dev/null" },
      timeout: 30_000,
    });
    expect(stdout).toContain("ran:<plan><--config><my-other.yaml>");
    expect(stdout).toContain("ran:<attach><lo><--role><tap><--policy=observe>");
  });
});

describe.each([
  ["fish", "completion/lasthop.fish", ["--no-config", "--no-execute"]],
  ["zsh", "completion/_lasthop", ["-n"]],
] as const)("completion in %s", (shell, file, check) => {
  const text = files[file]!;

  test("has every command and every option", () => {
    for (const { name, command } of LEAVES) {
      for (const word of name.split(" ")) expect(text).toContain(word);
      for (const option of Object.keys(command.options ?? {})) {
        expect(text).toMatch(
          shell === "fish" ? new RegExp(` -l ${option} `) : new RegExp(`--${option}[=['}]`),
        );
      }
    }
    for (const option of GLOBAL) expect(text).toContain(shell === "fish" ? `-l ${option} ` : `--${option}`);
  });

  test("is understood by the shell", (context) => {
    const result = spawnSync(shell, [...check, join(directory, file)], { encoding: "utf8" });
    context.skip(
      (result.error as NodeJS.ErrnoException | undefined)?.code === "ENOENT",
      `${shell} is not installed`,
    );
    expect({ status: result.status, stderr: result.stderr }).toEqual({ status: 0, stderr: "" });
  });
});

test("completion in fish offers what it should", (context) => {
  const offers = (line: string) => {
    const script = `source ${join(directory, "completion/lasthop.fish")}; complete -C '${line}'`;
    const result = spawnSync("fish", ["--no-config", "-c", script], { encoding: "utf8", cwd: directory });
    context.skip(
      (result.error as NodeJS.ErrnoException | undefined)?.code === "ENOENT",
      "fish is not installed",
    );
    expect(result.stderr).toBe("");
    return result.stdout
      .split("\n")
      .filter(Boolean)
      .map((offer) => offer.split("\t")[0]!)
      .sort();
  };
  expect(offers("lasthop ")).toEqual(COMMANDS.map((entry) => entry.name).sort());
  expect(offers("lasthop flows ")).toEqual(["flush", "list", "show"]);
  expect(offers("lasthop --pin-root /x flows l")).toEqual(["list"]);
  expect(offers("lasthop attach ")).toEqual(interfaces().sort());
  expect(offers("lasthop attach lo --role ")).toEqual(["tap", "uplink"]);
  expect(offers("lasthop bypass ")).toEqual(["off", "on"]);
  expect(offers("lasthop flows list --sta")).toEqual(["--state"]);
  expect(offers("lasthop flows show --sta")).toEqual([]);
  expect(offers("lasthop plan -c /etc/host")).toContain("/etc/hosts");
});
