// SPDX-License-Identifier: Apache-2.0

import type { Instance } from "../kernel/instance.ts";
import type { TableMap, Tables } from "../tables/index.ts";
import type { Pace } from "./pace.ts";

/** What the metrics need of an instance. */
export interface MetricsInstance {
  readonly pinRoot: string;
  map(name: string): TableMap;
  programNames(): string[];
  program(name: string): Pick<ReturnType<Instance["program"]>, "info" | "testRun">;
}

/** What a scrape reads from. */
export interface ScrapeSource {
  instance: MetricsInstance;
  tables: Tables;
  pace: Pace;
}
