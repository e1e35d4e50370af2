// SPDX-License-Identifier: Apache-2.0
// A change of VMs or services by hand: under the lock, with pools and cells made so at once.

import type { Surroundings } from "../controller/observe.ts";
import { atOnce } from "../controller/pieces.ts";
import { type Settled, settleServicesInPieces } from "../controller/serviceSettle.ts";
import { runSteps, type Step, settled } from "../controller/steps.ts";
import { openInstance, withLock } from "../kernel/instance.ts";
import { Netlink } from "../kernel/netlink.ts";
import { requireCapabilities } from "../kernel/probe.ts";
import { Tables } from "../tables/index.ts";
import type { OpContext } from "./types.ts";

/** What came of a change. */
export interface Changed {
  /** What was done, for people. */
  actions: string[];
  /** What stands in the way of something, of this VM or service or of others. */
  problems: readonly string[];
}

/** `attempt` is what was tried, for errors. On an error nothing has changed. `tell` looks at what came of it. */
export async function changeServices<T>(
  { pinRoot }: OpContext,
  attempt: string,
  make: (around: Surroundings) => Step[],
  tell: (around: Surroundings, changed: Changed) => T,
): Promise<T> {
  requireCapabilities(attempt, ["CAP_BPF", "CAP_NET_ADMIN"]);
  return await withLock(pinRoot, () => {
    using instance = openInstance(pinRoot);
    using netlink = new Netlink();
    const around = { instance, tables: new Tables(instance), netlink };
    const steps = make(around);
    let { lines, problems }: Settled = { lines: [], problems: [] };
    const settle = (): void => {
      ({ lines, problems } = atOnce(settleServicesInPieces(around)));
    };
    const done = runSteps(settled(steps, settle));
    return tell(around, { actions: [...done, ...lines], problems });
  });
}

/** What stands in the way of one of them: `VM web1: …`. */
export function problemsOf(
  what: `VM ${string}` | `service ${string}`,
  problems: readonly string[],
): string[] {
  return problems.filter((problem) => problem.startsWith(`${what}:`) || problem.startsWith(`${what} `));
}
