// SPDX-License-Identifier: Apache-2.0
// What the running kernel has, asked of the kernel and not of lasthop: a test must not share a bug with the code.

import { release } from "node:os";

const [major = 0, minor = 0] = release().split(".").map(Number);

export function kernelIsAtLeast(wantedMajor: number, wantedMinor: number): boolean {
  return major > wantedMajor || (major === wantedMajor && minor >= wantedMinor);
}

/** Linux 6.6 brought it. */
export const HAS_TCX = kernelIsAtLeast(6, 6);

/** The hook that TC means here. */
export const TC_HOOK = HAS_TCX ? "tcx" : "clsact";

/** For `context.skip`. */
export const NO_TCX = "this kernel has no TCX: it came with Linux 6.6";
