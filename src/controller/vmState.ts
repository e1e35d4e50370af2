// SPDX-License-Identifier: Apache-2.0
// What state a VM is in, and because of what. Pure.

import { CAUSE, VM_STATE } from "../abi/layout.gen.ts";
import type { VmSpecInput } from "../tables/index.ts";

/** Where it is at the moment. */
export interface VmStanding {
  /** Its tap is attached. */
  tapThere: boolean;
  macKnown: boolean;
}

export interface VmCondition {
  /** enum vm_state */
  state: number;
  /** enum cause; NONE if it is up. */
  cause: number;
}

/**
 * The operator's word that it is down holds, whatever else; that it is drained holds as long as it is there: without a
 * tap, or found dead, it cannot keep its flows. `cause`: why `health` is bad, PROBE if it does not say. Of a VM that no
 * check asks for nothing bad is known.
 */
export function vmStateOf(
  { operator_state, health, cause }: Pick<VmSpecInput, "operator_state" | "health" | "cause">,
  { tapThere, macKnown }: VmStanding,
): VmCondition {
  const { UP, DRAIN, DOWN } = VM_STATE;
  if (operator_state === DOWN) return { state: DOWN, cause: CAUSE.OPERATOR };
  if (!tapThere) return { state: DOWN, cause: CAUSE.INTERFACE };
  if (!macKnown) return { state: DOWN, cause: CAUSE.NEIGHBOUR };
  if (health === DOWN) {
    return { state: DOWN, cause: cause === CAUSE.NEIGHBOUR ? CAUSE.NEIGHBOUR : CAUSE.PROBE };
  }
  if (operator_state === DRAIN) return { state: DRAIN, cause: CAUSE.OPERATOR };
  return { state: UP, cause: CAUSE.NONE };
}
