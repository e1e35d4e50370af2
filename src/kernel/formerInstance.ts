// SPDX-License-Identifier: Apache-2.0
// Another version's pinned tables, read by their own description of themselves.

import { join } from "node:path";
import type { Layout } from "../abi/convert.ts";
import { ABI_VERSION } from "../abi/layout.gen.ts";
import { LasthopError } from "../errors.ts";
import { BpfMap } from "../libbpf/index.ts";
import { readLayout } from "./build.ts";
import { Instance } from "./instance.ts";
import { namesIn } from "./pinRoot.ts";

export class FormerInstance extends Instance {
  readonly layout: Layout;

  /** Throws E_ABI if the tables do not describe themselves. */
  constructor(pinRoot: string, version: string) {
    super(pinRoot, version);
    const layout = describedLayout(pinRoot, version);
    if (!layout) {
      throw new LasthopError(
        "E_ABI",
        `the tables in ${this.path} do not describe themselves: nothing can be taken over`,
        { hint: "Remove them: `lasthop detach --all --purge`." },
      );
    }
    this.layout = layout;
  }

  has(name: string): boolean {
    return this.mapNames().includes(name);
  }
}

function describedLayout(pinRoot: string, version: string): Layout | undefined {
  const maps = join(pinRoot, version, "maps");
  if (!namesIn(maps).includes("layout")) return undefined;
  using map = BpfMap.openPinned(join(maps, "layout"));
  return readLayout(map);
}

/** Only of the same ABI version: in another one equal names may mean something else. */
export function canTakeOver(pinRoot: string, version: string): boolean {
  return version.startsWith(`v${ABI_VERSION}-`) && describedLayout(pinRoot, version) !== undefined;
}
