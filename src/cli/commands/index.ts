// SPDX-License-Identifier: Apache-2.0

import type { Command, CommandGroup } from "../command.ts";
import { attachCommand } from "./attach.ts";
import { bypassCommand } from "./bypass.ts";
import { detachCommand } from "./detach.ts";
import { doctorCommand } from "./doctor.ts";
import { explainCommand } from "./explain.ts";
import { flowsGroup } from "./flows.ts";
import { lastHopsGroup } from "./lastHops.ts";
import { statsCommand } from "./stats.ts";
import { statusCommand } from "./status.ts";
import { sweepCommand } from "./sweep.ts";
import { traceCommand } from "./trace.ts";

/** In the order of --help. */
export const COMMANDS: readonly (Command | CommandGroup)[] = [
  attachCommand,
  detachCommand,
  statusCommand,
  flowsGroup,
  lastHopsGroup,
  explainCommand,
  traceCommand,
  statsCommand,
  sweepCommand,
  bypassCommand,
  doctorCommand,
];
