// SPDX-License-Identifier: Apache-2.0
// The product of all kinds, or the ring, from the building to the result.

import { mkdtempSync, rmSync } from "node:fs";
import { release, tmpdir } from "node:os";
import { join } from "node:path";
import { Lab } from "../support/lab.ts";
import type { Result } from "./document.ts";
import { FAMILIES } from "./kinds/kind.ts";
import { KINDS, missingKinds } from "./kinds.ts";
import { Matrix, type Pair, pairName, product, ring, SLOWER, type Verdict } from "./matrix.ts";

const BYTES = SLOWER > 1 ? 100_000 : 400_000;
/** Pairs that are played side by side. */
const ABREAST = 8;
const BYPASSED = 6;

/** In groups that have one default route each. */
function groups(pairs: readonly Pair[]): Pair[][] {
  const byDefault = new Map<string, Pair[]>();
  for (const pair of pairs) {
    const key = `${pair.egress.place.number} ${pair.family}`;
    byDefault.set(key, [...(byDefault.get(key) ?? []), pair]);
  }
  return [...byDefault.values()].flatMap((same) =>
    Array.from({ length: Math.ceil(same.length / ABREAST) }, (_, at) =>
      same.slice(at * ABREAST, (at + 1) * ABREAST),
    ),
  );
}

export interface PlayOptions {
  /** Each kind once, instead of all pairs. */
  ring?: boolean;
  /** Only these kinds. */
  kinds?: readonly string[] | undefined;
  /** Only pairs that one of these kinds is in. */
  involving?: readonly string[] | undefined;
  /** Only every `of`th group of pairs, from the `nth`, counted from 0: a long run's parts. */
  part?: { nth: number; of: number };
}

export async function play(options: PlayOptions): Promise<Result> {
  const { ring: onlyRing = false, kinds: wanted, involving, part = { nth: 0, of: 1 } } = options;
  const probe = new Lab();
  const missing = await missingKinds(probe.namespace("probe")).finally(() => probe.close());
  const kinds = KINDS.filter(
    (kind) => !missing.some((one) => one.kind === kind) && (wanted?.includes(kind.name) ?? true),
  );
  const lacks = new Set(missing.map(({ kind }) => kind.name));
  const began = Date.now();
  const folder = mkdtempSync(join(tmpdir(), "lasthop-matrix-"));
  const matrix = await Matrix.build({ kinds, lacks, copies: onlyRing ? 1 : 2, bytes: BYTES });
  try {
    await matrix.attach(folder);
    const seconds = () => Math.round((Date.now() - began) / 1000);
    console.log(`${kinds.length} kinds, built and attached after ${seconds()} s`);
    const { stands } = matrix.ground;
    const all = FAMILIES.flatMap((family) => (onlyRing ? ring : product)(stands, family)).filter(
      ({ ingress, egress }) =>
        involving === undefined || [ingress, egress].some(({ kind }) => involving.includes(kind.name)),
    );
    const chosen = groups(all).filter((_, at) => at % part.of === part.nth);
    const pairs = chosen.flat();
    let played = 0;
    for (const group of chosen) {
      await matrix.play(group);
      played += group.length;
      console.log(`${played} of ${pairs.length} pairs after ${seconds()} s`);
    }
    await matrix.playBypassed(pairs.filter((_, at) => at % Math.ceil(pairs.length / BYPASSED) === 0));
    const verdicts = await matrix.verdicts();
    console.log(`done after ${seconds()} s`);
    return toResult(verdicts, missing, seconds());
  } finally {
    await matrix.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

function toResult(
  verdicts: readonly Verdict[],
  missing: Awaited<ReturnType<typeof missingKinds>>,
  seconds: number,
): Result {
  for (const verdict of verdicts) {
    if (verdict.failures.length > 0) console.log(`${pairName(verdict)}: ${verdict.failures.join("; ")}`);
  }
  return {
    kernel: release(),
    seconds,
    missing: missing.map(({ kind, reason }) => ({ kind: kind.name, reason })),
    pairs: verdicts.map(({ run, ingress, egress, family, failures }) => ({
      ...{ run, ingress: ingress.kind.name, egress: egress.kind.name, family, failures },
    })),
  };
}
