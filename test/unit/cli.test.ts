// SPDX-License-Identifier: Apache-2.0

import { describe, expect, test } from "vitest";
import { COMMANDS } from "../../src/cli/commands/index.ts";
import { parseCommandLine } from "../../src/cli/parse.ts";
import { runCli } from "../support/cli.ts";

const commands = COMMANDS.flatMap((entry) =>
  "commands" in entry
    ? entry.commands.map((command) => ({ path: `${entry.name} ${command.name}`, command }))
    : [{ path: entry.name, command: entry }],
);

/** As a shell would split it; quotes are all that the examples use. */
function words(line: string): string[] {
  return [...line.matchAll(/'([^']*)'|(\S+)/g)].map((match) => match[1] ?? match[2]!);
}

describe("help", () => {
  test("--help lists every command", async () => {
    const { status, stdout, stderr } = await runCli(["--help"]);
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    for (const entry of COMMANDS) expect(stdout).toContain(`lasthop ${entry.name}`);
  });

  test.each(commands)("$path --help has its options and examples", async ({ path, command }) => {
    const { status, stdout, stderr } = await runCli([...path.split(" "), "--help"]);
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    for (const option of Object.keys(command.options ?? {})) expect(stdout).toContain(`--${option}`);
    for (const global of ["--json", "--pin-root", "--debug"]) expect(stdout).toContain(global);
    expect(command.examples.length).toBeGreaterThan(0);
    for (const [line] of command.examples) expect(stdout).toContain(`lasthop ${line}`);
  });

  const examples = commands.flatMap(({ path, command }) =>
    command.examples.map(([line]) => ({ path, command, line: line.split(" | ")[0]! })),
  );
  test.each(examples)("the example `lasthop $line` is accepted", async ({ path, command, line }) => {
    expect(line.startsWith(path)).toBe(true);
    const parsed = await parseCommandLine(words(line), { version: "0", columns: 80 });
    expect("command" in parsed && parsed.command).toBe(command);
  });

  test("--version says the package's version and nothing else", async () => {
    const { default: manifest } = await import("../../package.json", { with: { type: "json" } });
    for (const argv of [["--version"], ["--json", "--version"], ["status", "--version"]]) {
      expect(await runCli(argv)).toEqual({ status: 0, stdout: `${manifest.version}\n`, stderr: "" });
    }
  });
});

interface BadLine {
  line: string;
  message: RegExp;
  hint?: RegExp;
}

const BAD_LINES: BadLine[] = [
  { line: "", message: /a command is missing/, hint: /attach, detach, plan/ },
  { line: "flows", message: /a command is missing/, hint: /list, show, flush/ },
  { line: "atach eth0 --role tap", message: /unknown command "atach"/, hint: /Did you mean "attach"\?/ },
  { line: "frobnicate", message: /unknown command "frobnicate"/, hint: /Commands: attach/ },
  { line: "flows lst", message: /unknown command "flows lst"/, hint: /Did you mean "flows list"\?/ },
  { line: "last-hop list", message: /unknown command "last-hop"/, hint: /Did you mean "last-hops"\?/ },
  { line: "--jsn status", message: /unknown option --jsn/, hint: /Did you mean "--json"\?/ },
  { line: "status -x", message: /unknown option -x/, hint: /lasthop status --help/ },
  { line: "status --no-json", message: /unknown option --no-json/ },
  { line: "status eth0", message: /"eth0" is too much/, hint: /Usage: lasthop status/ },
  { line: "status -- eth0", message: /"eth0" is too much/ },
  { line: "--pin-root", message: /--pin-root needs a value/ },
  { line: "status --pin-root=", message: /--pin-root is empty/ },
  { line: "status --pin-root /a --pin-root /b", message: /--pin-root is given more than once/ },
  {
    line: "attach",
    message: /attach: the interface is missing/,
    hint: /Usage: lasthop attach <interface> --role/,
  },
  { line: "attach eth0", message: /--role is missing/, hint: /--role uplink\|tap/ },
  { line: "attach eth0 --role", message: /--role needs a value/ },
  { line: "attach eth0 --role=", message: /--role is empty/ },
  { line: "attach eth0 --rol tap", message: /unknown option --rol/, hint: /Did you mean "--role"\?/ },
  { line: "attach eth0 --role up", message: /--role: "up" is not uplink or tap/ },
  { line: "attach eth0 --role tpa", message: /"tpa" is not uplink or tap/, hint: /Did you mean "tap"\?/ },
  { line: "attach eth0 --role tap --role tap", message: /--role is given more than once/ },
  { line: "attach eth0 eth1 --role tap", message: /"eth1" is too much/ },
  {
    line: "attach eth0 --role uplink --mode nativ",
    message: /--mode: "nativ" is not auto, native, generic or tc/,
    hint: /"native"/,
  },
  { line: "attach eth0 --role tap --policy on", message: /--policy: "on" is not enforce, observe or off/ },
  {
    line: "attach eth0 --role tap --zone 65536",
    message: /--zone: "65536" is not a whole number from 0 to 65535/,
  },
  { line: "attach eth0 --role tap --zone -1", message: /--zone: "-1" is not/ },
  { line: "attach eth0 --role tap --zone 1.5", message: /--zone: "1.5" is not/ },
  { line: "attach eth0 --role tap --zone 0x10", message: /--zone: "0x10" is not/ },
  { line: "detach", message: /no interface is named/, hint: /--all/ },
  { line: "detach eth0 --all", message: /interfaces and --all exclude each other/ },
  { line: "detach eth0 --purge", message: /--purge goes with --all only/, hint: /detach --all --purge/ },
  { line: "flows list --limit 0", message: /--limit: "0" is not a whole number/ },
  { line: "flows list --limit many", message: /--limit: "many" is not a whole number/ },
  { line: "flows list tcp", message: /"tcp" is too much/ },
  { line: "flows show", message: /flows show: the tuple is missing/ },
  { line: "flows show tcp 10.0.0.1:1", message: /local side is missing/, hint: /for example/ },
  { line: "flows flush", message: /nothing says which flows/, hint: /--all/ },
  { line: "flows flush --all --state syn", message: /filters and --all exclude each other/ },
  { line: "flows flush --limit 5", message: /unknown option --limit/ },
  { line: "explain", message: /explain: the tuple is missing/ },
  { line: "explain tcp 10.0.0.1:1 10.0.0.2:70000", message: /local port "70000"/ },
  { line: "explain tcp 10.0.0.1 10.0.0.2:80", message: /has no port/ },
  { line: "explain tcp 2001:db8::1:80 [2001:db8::2]:80", message: /lacks brackets/ },
  { line: "explain tcp 10.0.0.1:1 [2001:db8::2]:80", message: /IPv4 and the local side is IPv6/ },
  { line: "explain gre 10.0.0.1 10.0.0.2", message: /unknown protocol "gre"/ },
  { line: "trace icmp 10.0.0.1 10.0.0.2", message: /identifier is missing/ },
  { line: "trace tcp 10.0.0.1:1 10.0.0.2:2 --seconds soon", message: /--seconds: "soon" is not/ },
  { line: "stats --watch=5s", message: /--watch takes no value/ },
  { line: "sweep --idle 0", message: /--idle: "0" is not a whole number/ },
  { line: "sweep --idle 5m", message: /--idle: "5m" is not a whole number/ },
  { line: "bypass", message: /bypass: the switch is missing/ },
  { line: "bypass onn", message: /bypass: "onn" is not on or off/, hint: /Did you mean "on"\?/ },
  { line: "bypass on off", message: /"off" is too much/ },
];

describe("a bad command line", () => {
  test.each(BAD_LINES)("lasthop $line", async ({ line, message, hint }) => {
    const { status, stdout, stderr } = await runCli(words(line));
    expect({ status, stdout }).toEqual({ status: 2, stdout: "" });
    const [first, second = "", ...rest] = stderr.trimEnd().split("\n");
    expect(first).toMatch(/^lasthop: /);
    expect(first).toMatch(message);
    if (hint) expect(second).toMatch(hint);
    expect(rest).toEqual([]);
  });

  test.each(BAD_LINES)("--json with lasthop $line", async ({ line, message, hint }) => {
    const { status, stdout, stderr } = await runCli(["-j", ...words(line)]);
    expect({ status, stdout }).toEqual({ status: 2, stdout: "" });
    const error = JSON.parse(stderr);
    expect(Object.keys(error)).toEqual(["code", "message", "hint"]);
    expect(error.code).toMatch(/^E_(USAGE|TUPLE)$/);
    expect(error.message).toMatch(message);
    if (hint) expect(error.hint).toMatch(hint);
  });

  test("has a stack trace with --debug only", async () => {
    const plain = await runCli(["sweep", "--idle", "x"]);
    const debug = await runCli(["sweep", "--idle", "x", "--debug"]);
    expect(plain.stderr).not.toMatch(/^ +at /m);
    expect(debug.stderr).toMatch(/^ +at /m);
    expect(debug.status).toBe(2);
  });
});
