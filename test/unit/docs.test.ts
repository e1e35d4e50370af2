// SPDX-License-Identifier: Apache-2.0
// Holds the documents to the code.

import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { REASON_INFO } from "../../src/abi/reasons.ts";
import { COMMANDS } from "../../src/cli/commands/index.ts";
import { parseCommandLine } from "../../src/cli/parse.ts";
import { TIMEOUT_SECONDS } from "../../src/config/defaults.ts";
import { ERROR_CODES } from "../../src/errors.ts";

const read = (path: string) => readFileSync(new URL(`../../${path}`, import.meta.url), "utf8");

describe("docs/errors.md", () => {
  const sections = read("docs/errors.md").split(/^## /m).slice(1);

  test("has a section for every code, in their order, and no other", () => {
    expect(sections.map((section) => section.split("\n")[0])).toEqual([...ERROR_CODES]);
  });

  test.each(sections.map((section) => [section.split("\n")[0], section]))(
    "says something on %s",
    (_, section) => {
      expect(section!.split("\n").slice(1).join(" ").trim().length).toBeGreaterThan(60);
    },
  );
});

/** `make docs` writes it. */
test("docs/reasons.md is what the code says", async () => {
  await expect(reasonsDocument()).toMatchFileSnapshot("../../docs/reasons.md");
});

function reasonsDocument(): string {
  const rows = Object.entries(REASON_INFO).map(([name, { verdict, roles, text }]) => {
    return `| \`${name.toLowerCase()}\` | ${roles.join(", ")} | ${verdict} | ${text} |`;
  });
  return `# Reasons

Every packet that leaves a program of lasthop is counted once, with the reason why it left as it did:
\`lasthop stats\` shows the counts by interface, \`lasthop trace\` the reason of each packet of one flow.
A packet that passes goes on as it would without lasthop.

| reason | role of the interface | verdict | meaning |
|---|---|---|---|
${rows.join("\n")}

This file is written by \`make docs\` from src/abi/reasons.ts.
`;
}

describe("README.md", () => {
  const readme = read("README.md");
  const blocks = [...readme.matchAll(/^```sh\n(.*?)^```/gms)].map((match) => match[1]!);
  const lines = blocks
    .flatMap((block) => block.split("\n"))
    .map((line) => line.replace(/\s+#.*$/, "").replace(/^(sudo )?/, ""));

  const commandLines = lines.filter((line) => line.startsWith("lasthop "));
  test.each(commandLines)("`%s` is accepted", async (line) => {
    const [command = ""] = line.slice("lasthop ".length).split(" | ");
    const words = [...command.matchAll(/'([^']*)'|(\S+)/g)].map((match) => match[1] ?? match[2]!);
    const parsed = await parseCommandLine(words, { version: "0", columns: 80 });
    expect("command" in parsed || words.includes("--help")).toBe(true);
  });

  test("shows every command", () => {
    for (const entry of COMMANDS) {
      const names =
        "commands" in entry ? entry.commands.map((item) => `${entry.name} ${item.name}`) : [entry.name];
      for (const name of names) expect(readme, name).toContain(`lasthop ${name}`);
    }
  });

  test("names only make targets that exist", () => {
    const targets = [...read("Makefile").matchAll(/^([a-z-]+):.*## /gm)].map((match) => match[1]!);
    const named = [...readme.matchAll(/`make ([a-z-]+)`|^make ([a-z-]+)/gm)].map(
      (match) => match[1] ?? match[2]!,
    );
    expect(named.length).toBeGreaterThan(0);
    for (const name of named) expect(targets).toContain(name);
  });

  test("names only files that exist", () => {
    const links = [...readme.matchAll(/\]\(([^)#:]+)\)/g)].map((match) => match[1]!);
    for (const link of links) expect(() => read(link), link).not.toThrow();
  });

  test("has the timeouts as they are", () => {
    const rows = [...readme.matchAll(/^\| .+ \| `(\w+)` \| (\d+) (s|h) \|$/gm)];
    const seconds = rows.map(([, name, count, unit]) => [name, Number(count) * (unit === "h" ? 3600 : 1)]);
    const expected = Object.entries(TIMEOUT_SECONDS).map(([name, value]) => [name.toLowerCase(), value]);
    expect(seconds).toEqual(expected);
  });
});
