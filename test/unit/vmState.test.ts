// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import { CAUSE, VM_STATE } from "../../src/abi/layout.gen.ts";
import { vmStateOf } from "../../src/controller/vmState.ts";

type State = keyof typeof VM_STATE;
type Cause = keyof typeof CAUSE;

describe("the state of a VM", () => {
  it.each<[string, State, State, boolean, boolean, State, Cause]>([
    ["nobody says anything bad", "UNKNOWN", "UNKNOWN", true, true, "UP", "NONE"],
    ["its check succeeds", "UNKNOWN", "UP", true, true, "UP", "NONE"],
    ["its check fails", "UNKNOWN", "DOWN", true, true, "DOWN", "PROBE"],
    ["its tap is gone", "UNKNOWN", "UP", false, true, "DOWN", "INTERFACE"],
    ["its MAC is not known yet", "UNKNOWN", "UP", true, false, "DOWN", "NEIGHBOUR"],
    ["neither tap nor MAC is known", "UNKNOWN", "UNKNOWN", false, false, "DOWN", "INTERFACE"],
    ["the operator drains it", "DRAIN", "UP", true, true, "DRAIN", "OPERATOR"],
    ["it is drained, and its check fails", "DRAIN", "DOWN", true, true, "DOWN", "PROBE"],
    ["it is drained, and its tap goes", "DRAIN", "UP", false, true, "DOWN", "INTERFACE"],
    ["the operator takes it down", "DOWN", "UP", true, true, "DOWN", "OPERATOR"],
    ["the operator has taken it down, and it is gone", "DOWN", "DOWN", false, false, "DOWN", "OPERATOR"],
  ])("when %s", (_, operator, health, tapThere, macKnown, state, cause) => {
    const spec = { operator_state: VM_STATE[operator], health: VM_STATE[health] };
    expect(vmStateOf(spec, { tapThere, macKnown })).toEqual({ state: VM_STATE[state], cause: CAUSE[cause] });
  });

  it.each<[string, Cause, Cause]>([
    ["nobody answered for its address", "NEIGHBOUR", "NEIGHBOUR"],
    ["its check failed", "PROBE", "PROBE"],
    ["it was something else before", "INTERFACE", "PROBE"],
  ])("is told with what was found: %s", (_, found, cause) => {
    const spec = { operator_state: 0, health: VM_STATE.DOWN, cause: CAUSE[found] };
    expect(vmStateOf(spec, { tapThere: true, macKnown: true }).cause).toBe(CAUSE[cause]);
  });
});
