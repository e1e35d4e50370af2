// SPDX-License-Identifier: Apache-2.0
// Every row, for both families, through both uplink programs, traced and not.

import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { REASON_NAMES, type ReasonName } from "../../src/abi/codec.ts";
import { allRows, ROW_GROUPS } from "./rows/index.ts";
import { useWorld, world } from "./support/fixture.ts";
import { seenReasons, testRows } from "./support/rows.ts";

useWorld();

for (const [group, rows] of Object.entries(ROW_GROUPS)) {
  describe(group, () => testRows(() => world, rows));
}

test("descriptions tell rows apart", () => {
  const all = allRows.map((row) => row.description);
  expect(all.filter((one, index) => all.indexOf(one) !== index)).toEqual([]);
});

/** Reasons that no row produces, and the file beside this one whose tests expect them. */
const PROVEN_BY: Partial<Record<ReasonName, string>> = {
  too_big: "mtu.test.ts",
  deliver: "serviceWire.test.ts",
  deliver_hook: "serviceWire.test.ts",
  service_empty: "serviceWire.test.ts",
  vm_held: "serviceWire.test.ts",
  vm_reset: "serviceWire.test.ts",
  address_answer: "serviceWire.test.ts",
};

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
