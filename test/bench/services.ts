// SPDX-License-Identifier: Apache-2.0
// What services cost: a packet, a connection, and a change.

import type { Lab } from "../support/lab.ts";
import type { Fixtures } from "./fixtures.ts";
import { measureMaglevTables } from "./maglevTables.ts";
import type { RoutedHost } from "./replyRate.ts";
import type { Report } from "./report.ts";
import { type Effort as ConnectionsEffort, measureServiceConnections } from "./serviceConnections.ts";
import { measureServicePath, type Effort as PathEffort } from "./servicePath.ts";
import { measureServiceRate, type Effort as RateEffort } from "./serviceRate.ts";
import { measureServiceUpdates } from "./serviceUpdates.ts";

export interface Effort {
  path: PathEffort;
  rate: RateEffort;
  connections: ConnectionsEffort;
  /** Rounds of tables that are built, and of changes. */
  updates: number;
}

export async function measureServices(
  report: Report,
  lab: Lab,
  fixtures: Fixtures,
  { lane, product }: RoutedHost,
  effort: Effort,
): Promise<void> {
  await measureServicePath(report, fixtures, lane, product, effort.path);
  await measureServiceRate(report, lab, fixtures, effort.rate);
  await measureServiceConnections(report, effort.connections);
  await measureMaglevTables(report, effort.updates);
  await measureServiceUpdates(report, lab, effort.updates);
}
