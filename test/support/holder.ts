// SPDX-License-Identifier: Apache-2.0

import type { Namespace } from "./lab.ts";
import { repositoryPath } from "./paths.ts";
import type { Background } from "./run.ts";

/** Has the lock as `lasthop run` does, and does nothing. Writes "held" when it has it. */
export function startHolder(host: Namespace, pinRoot: string): Background {
  const program = `
    import { holdInstance } from "${repositoryPath("dist/kernel/holder.js")}";
    holdInstance(${JSON.stringify(pinRoot)});
    process.stdout.write("held\\n");
    setInterval(() => {}, 1000);`;
  return host.start([process.execPath, "--input-type=module", "-e", program]);
}
