// SPDX-License-Identifier: Apache-2.0
// How an interface is to be attached, as far as the operator says: by the configuration or by hand.

import type { StructValue } from "../abi/codec.ts";
import { INTERFACE_FLAG } from "../abi/layout.gen.ts";
import type { Mode, Policy, Role } from "../ops/types.ts";

const { LEARN_DEVICES, RELEARN_NEVER, PICKUP_NO, EXCLUDES, CLAMP_MSS, VIA_STACK } = INTERFACE_FLAG;

/** Flags that the operator chooses and that stay when an interface changes its role. */
export const LASTING_FLAGS = LEARN_DEVICES | RELEARN_NEVER | PICKUP_NO | EXCLUDES;
/** Every flag of an interface that the operator chooses. */
export const CHOSEN_FLAGS = LASTING_FLAGS | CLAMP_MSS | VIA_STACK;

/** What an uplink has without a word. */
export const DEFAULT_UPLINK_FLAGS = CLAMP_MSS;

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
  /** Of the way back by an uplink; null: that of the netdev, as it changes. */
  mtu: number | null;
  /** Of the replies that go through the host's routing; 0 for none. */
  mark: number;
  /** struct exclusions, encoded. */
  exclusions: Buffer;
  /** enum origin */
  origin: number;
  /** "taps[2]"; null if it was attached by hand. */
  config: string | null;
  configIndex: number;
}

/** In an entry's `mtu_chosen`: its MTU was asked for. Programs do not look there. */
const MTU_ASKED = 1;

/** How an entry says that its MTU was asked for. */
export function mtuFields(
  asked: number | null,
  own: number,
): Pick<StructValue<"interface">, "mtu" | "mtu_chosen"> {
  return asked === null ? { mtu: own, mtu_chosen: 0 } : { mtu: asked, mtu_chosen: MTU_ASKED };
}

export function askedMtu({
  mtu,
  mtu_chosen,
}: Pick<StructValue<"interface">, "mtu" | "mtu_chosen">): number | null {
  return (mtu_chosen & MTU_ASKED) === 0 ? null : mtu;
}
