// SPDX-License-Identifier: Apache-2.0

import { openInstance } from "../kernel/instance.ts";
import { withLock } from "../kernel/pinRoot.ts";
import { ControlTable } from "../tables/control.ts";
import type { OpContext } from "./types.ts";

/** One write, after which every program passes every packet; or off again. */
export async function setBypass(context: OpContext, on: boolean): Promise<{ bypass: boolean }> {
  return await withLock(context.pinRoot, () => {
    using instance = openInstance(context.pinRoot);
    new ControlTable(instance).set({ bypass: on ? 1 : 0 });
    return { bypass: on };
  });
}
