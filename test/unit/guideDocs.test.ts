// SPDX-License-Identifier: Apache-2.0
// What the guides to services and guests show is accepted, and what they name is there.

import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { ENUMS } from "../../src/abi/layout.gen.ts";
import { parseCommandLine } from "../../src/cli/parse.ts";
import { parseConfig } from "../../src/config/load.ts";
import { repositoryPath } from "../support/paths.ts";

describe.each(["docs/services.md", "docs/guests.md"])("%s", (path) => {
  const text = readFileSync(repositoryPath(path), "utf8");
  const blocks = (language: string) =>
    [...text.matchAll(new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\``, "gms"))].map((match) => match[1]!);

  test.each(blocks("yaml"))("accepts %j", (yaml) => {
    expect(() => parseConfig(yaml, path)).not.toThrow();
  });

  const lines = blocks("sh")
    .flatMap((block) => block.split("\n"))
    .filter((line) => line.startsWith("lasthop "))
    .map((line) => line.replace(/\s+#.*$/, ""));
  const inline = [...text.matchAll(/`(lasthop [a-z][^`]*)`/g)].map((match) => match[1]!);
  const whole = inline.filter((line) => !/^lasthop (run|vms (drain|down|up))$/.test(line));
  test.each([...new Set([...lines, ...whole])])("`%s` is accepted", async (line) => {
    const parsed = await parseCommandLine(line.split(" ").slice(1), { version: "0", columns: 80 });
    expect("command" in parsed).toBe(true);
  });

  test("names only files and headings that exist", () => {
    const anchors = (document: string) =>
      [...document.matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
        heading!
          .toLowerCase()
          .replace(/[^\w\- ]/g, "")
          .replaceAll(" ", "-"),
      );
    for (const [, target, anchor] of text.matchAll(/\]\(([^)#:]*)(?:#([^)]+))?\)/g)) {
      const file = target === "" ? repositoryPath(path) : join(dirname(repositoryPath(path)), target!);
      expect(existsSync(file), file).toBe(true);
      if (anchor !== undefined) expect(anchors(readFileSync(file, "utf8")), target).toContain(anchor);
    }
  });

  test("names only reasons that there are", () => {
    const reasons = Object.keys(ENUMS.reason).map((name) => name.toLowerCase());
    const named = [...text.matchAll(/\(`([a-z]+_[a-z_]+)`/g)].map((match) => match[1]!);
    for (const reason of named) expect(reasons).toContain(reason);
  });
});
