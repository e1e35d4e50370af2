// SPDX-License-Identifier: Apache-2.0
// Every kind of routing interface that the kernel has, once with the request and once as the default route that the
// replies must not take. The whole product is `make test-matrix`; docs/matrix.md has its result.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FAMILIES } from "../matrix/kinds/kind.ts";
import { KINDS, missingKinds } from "../matrix/kinds.ts";
import { Matrix, pairName, ring, SLOWER, type Verdict } from "../matrix/matrix.ts";
import { Lab } from "../support/lab.ts";

const BYTES = SLOWER > 1 ? 100_000 : 400_000;
/** Of the kinds, which pairs are also tried without lasthop. */
const BYPASSED = 3;

const lab = new Lab();
const missing = await missingKinds(lab.namespace("probe")).finally(() => lab.close());
const lacks = new Set(missing.map(({ kind }) => kind.name));
const kinds = KINDS.filter(({ name }) => !lacks.has(name));

describe("requests by one kind while the default route leaves by another", () => {
  let matrix: Matrix | undefined;
  const folder = mkdtempSync(join(tmpdir(), "lasthop-matrix-"));
  const verdicts: Verdict[] = [];
  let bypassed: Verdict[] = [];

  beforeAll(
    async () => {
      matrix = await Matrix.build({ kinds, lacks, bytes: BYTES });
      await matrix.attach(folder);
      const { stands } = matrix.ground;
      const pairs = FAMILIES.flatMap((family) => ring(stands, family));
      for (const stand of stands) {
        const ofStand = pairs.filter(({ ingress }) => ingress === stand);
        await matrix.play(ofStand);
      }
      const step = Math.max(1, Math.floor(pairs.length / BYPASSED));
      const control = pairs.filter((_, index) => index % step === 0).slice(0, BYPASSED);
      await matrix.playBypassed(control);
      const all = await matrix.verdicts();
      bypassed = all.splice(pairs.length);
      verdicts.push(...all);
    },
    300_000 + 60_000 * SLOWER,
  );

  afterAll(async () => {
    await matrix?.close();
    rmSync(folder, { recursive: true, force: true });
  }, 60_000 * SLOWER);

  for (const kind of KINDS) {
    const without = missing.find((one) => one.kind === kind);
    for (const family of FAMILIES) {
      if (!kind.inside.includes(family)) continue;
      it(`IPv${family} by ${kind.name}: ${kind.title}`, (context) => {
        if (without !== undefined) return context.skip(`this kernel lacks it: ${without.reason}`);
        const ofKind = verdicts.filter(({ ingress, family: of }) => ingress.kind === kind && of === family);
        expect(ofKind.length).toBe(1);
        for (const verdict of ofKind) expect(verdict.failures, pairName(verdict)).toEqual([]);
      });
    }
  }

  it("none of it works without lasthop", () => {
    expect(bypassed.length).toBe(BYPASSED);
    for (const verdict of bypassed) expect(verdict.failures, pairName(verdict)).toEqual([]);
  });
});
