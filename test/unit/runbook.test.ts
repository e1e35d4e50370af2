// SPDX-License-Identifier: Apache-2.0
// Holds docs/runbook.md and docs/coexistence.md to the commands, the alerts and the configuration.

import { existsSync, readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { parse } from "yaml";
import { REASON_INFO } from "../../src/abi/reasons.ts";
import { parseCommandLine } from "../../src/cli/parse.ts";
import { parseConfig } from "../../src/config/load.ts";
import { ERROR_CODES } from "../../src/errors.ts";
import { repositoryPath } from "../support/paths.ts";

const read = (path: string) => readFileSync(repositoryPath(path), "utf8");
const DOCUMENTS = ["docs/runbook.md", "docs/coexistence.md"];

/** Texts of fenced blocks, without the indentation that a list gives them. */
function blocks(document: string, language: string): string[] {
  const fences = document.matchAll(new RegExp(`^( *)\`\`\`${language}\\n(.*?)^\\1\`\`\``, "gms"));
  return [...fences].map(([, indent = "", text = ""]) => text.replaceAll(new RegExp(`^${indent}`, "gm"), ""));
}

/** Headings as GitHub makes anchors of them. */
function anchors(document: string): string[] {
  return [...document.matchAll(/^#+ (.*)$/gm)].map(([, title = ""]) =>
    title
      .toLowerCase()
      .replaceAll(/[^\w\- ]/g, "")
      .replaceAll(" ", "-"),
  );
}

/** Every `lasthop …` of the text, in blocks and in the middle of sentences. */
function commandLines(document: string): string[] {
  const inBlocks = blocks(document, "sh").flatMap((block) => block.split("\n"));
  const inText = [...document.matchAll(/`([^`]+)`/g)].map(([, code = ""]) => code.replaceAll(/\s+/g, " "));
  return [...inBlocks, ...inText]
    .map((line) => line.replace(/\s+#.*$/, "").trim())
    .filter((line) => /^lasthop [a-z]/.test(line));
}

describe.each(DOCUMENTS)("%s", (path) => {
  const document = read(path);

  test.each([...new Set(commandLines(document))])("`%s` is accepted", async (line) => {
    const words = line.split(" ").slice(1);
    const parsed = await parseCommandLine(words, { version: "0", columns: 80 });
    expect("command" in parsed).toBe(true);
  });

  test("is about commands", () => {
    expect(commandLines(document).length).toBeGreaterThan(1);
  });

  test("has configurations that are right", () => {
    const configurations = blocks(document, "yaml");
    expect(configurations.length).toBeGreaterThan(0);
    for (const text of configurations) expect(() => parseConfig(text, path), text).not.toThrow();
  });

  test("leads to places that exist", () => {
    for (const [, target = ""] of document.matchAll(/\]\(([^)]+)\)/g)) {
      const [file, anchor] = target.split("#");
      const at = file === "" ? path : `docs/${file}`;
      expect(existsSync(repositoryPath(at)), target).toBe(true);
      if (anchor !== undefined) expect(anchors(read(at)), target).toContain(anchor);
    }
  });

  test("names errors that there are", () => {
    for (const [code] of document.matchAll(/\bE_[A-Z_]+\b/g)) expect(ERROR_CODES).toContain(code);
  });
});

describe("the runbook", () => {
  const runbook = read("docs/runbook.md");
  interface Rules {
    groups: { rules: { alert: string; annotations: { runbook_url: string } }[] }[];
  }
  const alerts = (parse(read("examples/alerts.yaml")) as Rules).groups.flatMap(({ rules }) => rules);
  const sections = runbook
    .slice(runbook.indexOf("\n## Alerts\n"))
    .split(/^### /m)
    .slice(1)
    .map((section) => ({ name: section.split("\n")[0]!, text: section }));

  test("has a section for every alert, and no other", () => {
    expect(alerts.length).toBeGreaterThan(0);
    expect(sections.map(({ name }) => name).sort()).toEqual(alerts.map(({ alert }) => alert).sort());
  });

  test.each(alerts.map(({ alert, annotations }) => [alert, annotations.runbook_url]))(
    "%s leads to its section",
    (alert, url) => {
      expect(url).toBe(`docs/runbook.md#${alert.toLowerCase()}`);
    },
  );

  test.each(sections.map(({ name, text }) => [name, text]))(
    "%s: what it means, how to confirm, what to do",
    (_, text) => {
      const [means = "", ...rest] = text.split("\n").slice(1).join("\n").trim().split("\n\n");
      expect(means.length).toBeGreaterThan(60);
      expect(rest.filter((paragraph) => paragraph.startsWith("Confirm: "))).toHaveLength(1);
      expect(rest.filter((paragraph) => paragraph.startsWith("Do: "))).toHaveLength(1);
    },
  );

  test("names reasons that there are", () => {
    const reasons = Object.keys(REASON_INFO).map((name) => name.toLowerCase());
    const decisions = runbook.slice(runbook.indexOf("| it says |"), runbook.indexOf("All reasons are in"));
    const named = [...decisions.matchAll(/^\| (`[a-z_]+`(?:, `[a-z_]+`)*) \|/gm)].flatMap(([, cell = ""]) =>
      [...cell.matchAll(/[a-z_]+/g)].map(([name]) => name),
    );
    expect(named.length).toBeGreaterThan(6);
    for (const name of named) expect(reasons).toContain(name);
    const inPassing = ["observe_change", "relearn", "relearn_damped", "last_hop_budget", "vm_budget"];
    for (const name of inPassing) {
      expect(runbook).toContain(`\`${name}\``);
      expect(reasons).toContain(name);
    }
  });
});
