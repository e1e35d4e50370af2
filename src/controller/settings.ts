// SPDX-License-Identifier: Apache-2.0
// How an interface is to be attached, as far as the operator says: by the configuration or by hand.

import { INTERFACE_FLAG } from "../abi/layout.gen.ts";
import type { Mode, Policy, Role } from "../ops/types.ts";

/** Every flag of an interface that the operator chooses. */
export const CHOSEN_FLAGS =
  INTERFACE_FLAG.LEARN_DEVICES |
  INTERFACE_FLAG.RELEARN_NEVER |
  INTERFACE_FLAG.PICKUP_NO |
  INTERFACE_FLAG.EXCLUDES;

/** How an interface is to be attached, as far as the operator says. */
export interface Settings {
  role: Role;
  /** Undefined: the hook stays as it is, or is the best one. */
  mode: Mode | undefined;
  zone: number;
  policy: Policy;
  /** Of CHOSEN_FLAGS. */
  flags: number;
  lastHopsMax: number;
  vmsMax: number;
  /** struct exclusions, encoded. */
  exclusions: Buffer;
  /** enum origin */
  origin: number;
  /** "taps[2]"; null if it was attached by hand. */
  config: string | null;
  configIndex: number;
}
