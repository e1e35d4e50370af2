// SPDX-License-Identifier: Apache-2.0

import { describe, expect, it } from "vitest";
import { TICK_SHIFT } from "../../src/abi/layout.gen.ts";
import { jiffiesClock } from "../../src/kernel/clock.ts";

/** What a kernel of this frequency shows so long after boot, its first tick a quarter of a second late. */
function reading(hz: number, seconds: number): [bigint, bigint] {
  const jiffies = 2 ** 32 - 300 * hz + Math.floor((seconds - 0.25) * hz);
  return [BigInt(jiffies), BigInt(Math.round(seconds * 1e9))];
}

describe("jiffiesClock", () => {
  for (const hz of [100, 250, 300, 1000]) {
    for (const seconds of [10, 200, 400, 86_400, 86_400 * 365 * 5]) {
      it(`agrees with the clock at ${hz} Hz, ${seconds} s after boot`, () => {
        const clock = jiffiesClock(...reading(hz, seconds));
        expect(clock).not.toBeNull();
        for (const later of [0, 5, 86_400, 86_400 * 365]) {
          const [jiffies, timeNs] = reading(hz, seconds + later);
          const tick = ((jiffies - clock!.jiffies_base) * BigInt(clock!.jiffies_mult)) >> 32n;
          // At 300 Hz the factor is rounded: a second in five years.
          const exact = timeNs >> BigInt(TICK_SHIFT);
          expect(Number(tick - exact)).toBeGreaterThanOrEqual(-5);
          expect(Number(tick - exact)).toBeLessThanOrEqual(5);
        }
      });
    }
  }

  it("does not choose where two frequencies fit", () => {
    expect(jiffiesClock(...reading(250, 300))).toBeNull();
  });

  it("does not believe a frequency that it does not know", () => {
    expect(jiffiesClock(...reading(64, 5000))).toBeNull();
  });
});
