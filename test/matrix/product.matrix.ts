// SPDX-License-Identifier: Apache-2.0
// The product in a guest (test/vm): no part of any suite, `make test-matrix` names it. Its result is left beside the
// guest's own.

import { writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, it } from "vitest";
import { play } from "./play.ts";

it("every pair works", { timeout: 6 * 3_600_000 }, async () => {
  const results = process.env.LASTHOP_GUEST_RESULTS;
  if (results === undefined) throw new Error("this is for guests: `make test-matrix` runs it");
  const result = await play({});
  writeFileSync(join(dirname(results), "matrix.json"), `${JSON.stringify(result, undefined, 1)}\n`);
  expect(result.pairs.filter(({ failures }) => failures.length > 0)).toEqual([]);
});
