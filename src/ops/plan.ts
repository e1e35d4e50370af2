// SPDX-License-Identifier: Apache-2.0

import { loadConfig } from "../config/load.ts";
import { type Failure, type Plan, planConfig } from "../controller/reconcile.ts";
import { bridgeNetfilter, bypassWarnings, replyPaths } from "../kernel/bypass.ts";
import { readRuleset } from "../kernel/netfilter.ts";
import { Netlink } from "../kernel/netlink.ts";
import type { ConfigFailure, OpContext, PlannedAction, PlanReport } from "./types.ts";

/** What would bring the host to a configuration. Changes nothing. Throws E_CONFIG for a file that is wrong. */
export async function plan(context: OpContext, file: string): Promise<PlanReport> {
  const config = loadConfig(file);
  const planned = await planConfig(context, config);
  return {
    ...report(file, planned),
    warnings: [...planned.warnings, ...(await bypassed(planned.attached))],
  };
}

export function report(
  file: string,
  { actions, failed, warnings }: Pick<Plan, "actions" | "failed" | "warnings">,
): PlanReport {
  return { file, actions: actions.map(plannedAction), failed: failed.map(configFailure), warnings };
}

function plannedAction({ kind, object, text, config }: Plan["actions"][number]): PlannedAction {
  return { kind, object, text, config };
}

function configFailure({ object, config, code, message, hint }: Failure): ConfigFailure {
  return { object, config, code, message, hint };
}

/** Rules of the host that replies will go past. */
async function bypassed(attached: Plan["attached"]): Promise<string[]> {
  const redirecting = attached.filter(({ role, policy }) => role === "uplink" || policy === "enforce");
  using netlink = new Netlink();
  const paths = replyPaths(netlink.links(), redirecting, bridgeNetfilter());
  if (paths.length === 0) return [];
  const ruleset = await readRuleset();
  return [
    ...bypassWarnings(ruleset, paths).map(({ text, hint }) => `${text}. ${hint}`),
    ...ruleset.unknown.map((what) => `whether replies go past filters of this host cannot be told: ${what}`),
  ];
}
