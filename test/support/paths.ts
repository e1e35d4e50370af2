// SPDX-License-Identifier: Apache-2.0
// Where things are, whether this runs as TypeScript in test/support or compiled in build/test/support.

import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

function findRoot(): URL {
  for (let at = new URL("./", import.meta.url); at.pathname !== "/"; at = new URL("../", at)) {
    if (existsSync(new URL("bpf/abi.h", at))) return at;
  }
  throw new Error(`no repository around ${import.meta.url}`);
}

/** A URL of the repository's folder, with a slash at its end. */
export const repositoryRoot = findRoot();

export function repositoryPath(relative: string): string {
  return fileURLToPath(new URL(relative, repositoryRoot));
}
