// SPDX-License-Identifier: Apache-2.0

import { describe, expect, it } from "vitest";
import { REASON } from "../../src/abi/layout.gen.ts";
import { reasonOf } from "../../src/abi/reasons.ts";

describe("reasons", () => {
  for (const [name, value] of Object.entries(REASON)) {
    it(`${name} has a name, a role and one line for people`, () => {
      const reason = reasonOf(value);
      expect(reason.name).toBe(name.toLowerCase());
      expect(reason.roles.length).toBeGreaterThan(0);
      expect(reason.text).toMatch(/^\S.*[^.\s]$/);
    });
  }

  it("only a tap does anything else than pass", () => {
    const others = Object.values(REASON)
      .map(reasonOf)
      .filter(({ verdict }) => verdict !== "pass");
    expect(others.map(({ name, verdict }) => [name, verdict])).toEqual([
      ["redirect", "redirect"],
      ["device_drop", "drop"],
      ["stack", "stack"],
      ["too_big", "answer"],
    ]);
    for (const { roles } of others) expect(roles).toEqual(["tap"]);
  });

  it("a value from the future is a pass that says so", () => {
    expect(reasonOf(250)).toMatchObject({ name: "reason_250", verdict: "pass" });
  });
});
