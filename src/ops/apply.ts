// SPDX-License-Identifier: Apache-2.0

import { loadConfig } from "../config/load.ts";
import { reconcile } from "../controller/reconcile.ts";
import { LasthopError } from "../errors.ts";
import { isHeld } from "../kernel/holder.ts";
import { requireBpffs } from "../kernel/pinRoot.ts";
import { report } from "./plan.ts";
import type { ApplyReport, OpContext } from "./types.ts";

/**
 * Brings the host to a configuration, once. What fails is undone and told in `failed`; the rest is done. Throws
 * E_CONFIG for a file that is wrong, E_HELD while a daemon does this all the time.
 */
export async function applyConfig(context: OpContext, file: string): Promise<ApplyReport> {
  const config = loadConfig(file);
  const { pinRoot } = context;
  requireBpffs(pinRoot);
  if (isHeld(pinRoot)) {
    throw new LasthopError("E_HELD", `cannot apply ${file}: \`lasthop run\` holds ${pinRoot}`, {
      hint: "It keeps the host to its own configuration: change that, and `systemctl reload lasthop`.",
    });
  }
  const result = await reconcile(context, config);
  return { ...report(file, result), done: result.done };
}
