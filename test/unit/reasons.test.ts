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

  it("an uplink does something else than pass for services only, a tap with replies", () => {
    const others = Object.values(REASON)
      .map(reasonOf)
      .filter(({ verdict }) => verdict !== "pass");
    expect(others.map(({ name, verdict, roles }) => [...roles, name, verdict])).toEqual([
      ["tap", "redirect", "redirect"],
      ["tap", "device_drop", "drop"],
      ["tap", "stack", "stack"],
      ["tap", "too_big", "answer"],
      ["uplink", "deliver", "redirect"],
      ["uplink", "service_empty", "drop"],
      ["uplink", "vm_held", "drop"],
      ["uplink", "vm_reset", "answer"],
      ["uplink", "address_answer", "answer"],
    ]);
  });

  it("a value from the future is a pass that says so", () => {
    expect(reasonOf(250)).toMatchObject({ name: "reason_250", verdict: "pass" });
  });
});
