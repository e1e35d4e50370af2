// SPDX-License-Identifier: Apache-2.0
// The product in a guest (test/vm): no part of any suite, `make test-matrix` names it. What came of each part is left
// beside the guest's own results as soon as it is known.

import { writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import { play } from "./play.ts";

/** The product takes hours in a guest; so much of it is not lost when that is interrupted. */
const PARTS = 4;

const results = process.env.LASTHOP_GUEST_RESULTS;
if (results === undefined) throw new Error("this is for guests: `make test-matrix` runs it");
const onlyRing = process.env.LASTHOP_MATRIX === "ring";
const involving = process.env.LASTHOP_MATRIX_INVOLVING?.split(",");
const parts = onlyRing || involving !== undefined ? 1 : PARTS;

describe(onlyRing ? "every kind as ingress and as egress" : "every pair", () => {
  for (let nth = 0; nth < parts; nth++) {
    it(`works, part ${nth + 1} of ${parts}`, { timeout: 6 * 3_600_000 }, async () => {
      const result = await play({ ring: onlyRing, involving, part: { nth, of: parts } });
      const path = join(dirname(results), `matrix-${nth + 1}.json`);
      writeFileSync(path, `${JSON.stringify(result, undefined, 1)}\n`);
      expect(result.pairs.length).toBeGreaterThan(0);
      expect(result.pairs.filter(({ failures }) => failures.length > 0)).toEqual([]);
    });
  }
});
