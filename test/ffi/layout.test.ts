// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { LAYOUT } from "../../src/libbpf/struct.ts";
import { run } from "./fixtures.ts";

it("structs are laid out as the C headers say", () => {
  const members = Object.entries(LAYOUT).flatMap(([struct, { size, ...offsets }]) =>
    Object.entries(offsets).map(([member, offset]) => ({ struct, member, offset, size })),
  );
  const prints = members.map(
    ({ struct, member }) =>
      `printf("%zu %zu\\n", offsetof(struct ${struct}, ${member}), sizeof(((struct ${struct} *)0)->${member}));`,
  );
  const source = `#include <stddef.h>\n#include <stdio.h>\n#include <bpf/bpf.h>\n#include <bpf/libbpf.h>\nint main(void) { ${prints.join("\n")} return 0; }\n`;
  const directory = mkdtempSync(join(tmpdir(), `lasthop-layout-${process.pid}-`));
  try {
    writeFileSync(`${directory}/layout.c`, source);
    run("clang", "-o", `${directory}/layout`, `${directory}/layout.c`);
    const lines = run(`${directory}/layout`).trim().split("\n");
    const actual = lines.map((line, i) => ({ ...members[i], offset: Number(line.split(" ")[0]) }));
    expect(actual).toEqual(members);
    // Every member that we use lies within the bytes that we pass.
    lines.forEach((line, i) => {
      const [offset, bytes] = line.split(" ").map(Number) as [number, number];
      expect(offset + bytes).toBeLessThanOrEqual(members[i]!.size);
    });
  } finally {
    rmSync(directory, { recursive: true });
  }
});
