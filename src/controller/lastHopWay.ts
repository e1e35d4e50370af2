// SPDX-License-Identifier: Apache-2.0
// How replies leave by a last hop: straight, or by the host's routing with a mark. As the programs decide it when they
// learn one (bpf/last_hop.h).

import { ENCAPSULATION_FLAG, INTERFACE_FLAG, LAST_HOP_KIND } from "../abi/layout.gen.ts";
import { type LabelStacks, labelStackId } from "./labelStacks.ts";

export interface Way {
  /** enum last_hop_kind */
  kind: number;
  mark: number;
}

/** What of an uplink decides about it. */
export interface WayOut {
  /** enum interface_flag */
  flags: number;
  mark: number;
  labelStacks: LabelStacks;
}

export interface Encapsulated extends Way {
  encapsulated: number;
  labels: readonly number[];
}

export function wayOf(record: Encapsulated, { flags, mark, labelStacks }: WayOut): Way {
  const { LABELS, IPSEC } = ENCAPSULATION_FLAG;
  if ((record.encapsulated & LABELS) !== 0) {
    // A stack that is no longer configured keeps the mark that it had.
    return { kind: LAST_HOP_KIND.STACK, mark: labelStacks.get(labelStackId(record.labels)) ?? record.mark };
  }
  if ((flags & INTERFACE_FLAG.VIA_STACK) !== 0 || (record.encapsulated & IPSEC) !== 0) {
    return { kind: LAST_HOP_KIND.STACK, mark };
  }
  const bare = (flags & INTERFACE_FLAG.NO_LINK_LAYER) !== 0;
  return { kind: bare ? LAST_HOP_KIND.IP : LAST_HOP_KIND.ETHERNET, mark };
}

/** Of others than LAST_HOP_STACK nobody looks at the mark. */
export function isSameWay(a: Way, b: Way): boolean {
  return a.kind === b.kind && (a.kind !== LAST_HOP_KIND.STACK || a.mark === b.mark);
}
