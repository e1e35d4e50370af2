// SPDX-License-Identifier: Apache-2.0
// Every row, for both families, through both uplink programs, traced and not.

import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { REASON_NAMES, type ReasonName } from "../../src/abi/codec.ts";
import { allRows, ROW_GROUPS } from "./rows/index.ts";
import { createDevices, enterPrivateNamespace } from "./support/devices.ts";
import { runRow, seenReasons } from "./support/rows.ts";
import { FAMILIES } from "./support/scene.ts";
import { UPLINK_PROGRAMS, World } from "./support/world.ts";

let world: World;

beforeAll(() => {
  enterPrivateNamespace();
  createDevices();
  world = new World();
});

afterAll(() => world?.close());

for (const [group, rows] of Object.entries(ROW_GROUPS)) {
  describe(group, () => {
    for (const row of rows) {
      for (const [name, family] of Object.entries(FAMILIES)) {
        for (const program of UPLINK_PROGRAMS) {
          if (row.families?.includes(family.version) === false || row.programs?.includes(program) === false) {
            continue;
          }
          test(`${row.description} (${name}, ${program})`, () => {
            runRow(world, row, family, program, false);
            runRow(world, row, family, program, true);
          });
        }
      }
    }
  });
}

test("descriptions tell rows apart", () => {
  const all = allRows.map((row) => row.description);
  expect(all.filter((one, index) => all.indexOf(one) !== index)).toEqual([]);
});

/** Reasons that no row produces, and the file beside this one whose tests expect them. */
const PROVEN_BY: Partial<Record<ReasonName, string>> = { too_big: "mtu.test.ts" };

test("every reason was produced at least once", () => {
  expect(REASON_NAMES.filter((reason) => !seenReasons.has(reason)).sort()).toEqual(
    Object.keys(PROVEN_BY).sort(),
  );
});

test.each(Object.entries(PROVEN_BY))("%s is produced by %s", (reason, file) => {
  expect(readFileSync(new URL(file, import.meta.url), "utf8")).toMatch(
    new RegExp(`reason: "${reason}"|toBe\\("${reason}"\\)`),
  );
});
