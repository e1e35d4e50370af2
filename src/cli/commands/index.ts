// SPDX-License-Identifier: Apache-2.0

import type { Command, CommandGroup } from "../command.ts";
import { applyCommand } from "./apply.ts";
import { attachCommand } from "./attach.ts";
import { bypassCommand } from "./bypass.ts";
import { configGroup } from "./config.ts";
import { detachCommand } from "./detach.ts";
import { devicesGroup } from "./devices.ts";
import { doctorCommand } from "./doctor.ts";
import { explainCommand } from "./explain.ts";
import { flowsGroup } from "./flows.ts";
import { lastHopsGroup } from "./lastHops.ts";
import { metricsCommand } from "./metrics.ts";
import { planCommand } from "./plan.ts";
import { runCommand } from "./run.ts";
import { servicesGroup } from "./services.ts";
import { statsCommand } from "./stats.ts";
import { statusCommand } from "./status.ts";
import { sweepCommand } from "./sweep.ts";
import { tablesGroup, upgradeCommand } from "./tables.ts";
import { traceCommand } from "./trace.ts";
import { tunnelsGroup } from "./tunnels.ts";
import { vmsGroup } from "./vms.ts";

/** In the order of --help. */
export const COMMANDS: readonly (Command | CommandGroup)[] = [
  attachCommand,
  detachCommand,
  planCommand,
  applyCommand,
  runCommand,
  statusCommand,
  flowsGroup,
  lastHopsGroup,
  devicesGroup,
  servicesGroup,
  vmsGroup,
  tunnelsGroup,
  explainCommand,
  traceCommand,
  statsCommand,
  metricsCommand,
  sweepCommand,
  tablesGroup,
  upgradeCommand,
  bypassCommand,
  configGroup,
  doctorCommand,
];
