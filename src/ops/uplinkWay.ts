// SPDX-License-Identifier: Apache-2.0

import { INTERFACE_FLAG } from "../abi/layout.gen.ts";
import type { UplinkWay } from "./types.ts";

/** `flags`: enum interface_flag. */
export function uplinkWay(mtu: number, flags: number, mark: number): Required<UplinkWay> {
  return {
    mtu,
    clamp_mss: (flags & INTERFACE_FLAG.CLAMP_MSS) !== 0,
    via: (flags & INTERFACE_FLAG.VIA_STACK) !== 0 ? "stack" : "redirect",
    mark,
  };
}
