// SPDX-License-Identifier: Apache-2.0
import { INTERFACES_MAX } from "../abi/layout.gen.ts";
import { LasthopError } from "../errors.ts";

/**
 * A slot for an interface: that of its own last hops if it had one, since their records name it; else one
 * that no interface has and no last hop names; else one that no interface has.
 */
export function chooseSlot(
  own: number | undefined,
  taken: ReadonlySet<number>,
  named: ReadonlySet<number>,
): number {
  if (own !== undefined && own > 0 && own < INTERFACES_MAX && !taken.has(own)) return own;
  let fallback: number | undefined;
  for (let slot = 1; slot < INTERFACES_MAX; slot++) {
    if (taken.has(slot)) continue;
    if (!named.has(slot)) return slot;
    fallback ??= slot;
  }
  if (fallback !== undefined) return fallback;
  throw new LasthopError("E_INTERFACE", `all ${INTERFACES_MAX - 1} places for interfaces are taken`, {
    hint: "Detach interfaces that are no longer needed.",
  });
}
