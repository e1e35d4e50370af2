// SPDX-License-Identifier: Apache-2.0
// The daemon as it runs on a host: its parts put together.

import { loadConfig } from "../config/load.ts";
import { HealthMonitor } from "../controller/health.ts";
import { reconcile } from "../controller/reconcile.ts";
import { Sweeper } from "../controller/sweeper.ts";
import { VmMonitor } from "../controller/vmMonitor.ts";
import { holdInstance } from "../kernel/holder.ts";
import { requireCapabilities } from "../kernel/probe.ts";
import { renderMetrics, startMetricsServer } from "../metrics/index.ts";
import type { DaemonParts } from "./daemon.ts";
import { countStart, startServices } from "./services.ts";
import { Watcher } from "./watch.ts";

export const HOST_PARTS: DaemonParts = {
  load: loadConfig,
  hold(pinRoot) {
    requireCapabilities("keep the host to its configuration", ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
    return holdInstance(pinRoot);
  },
  reconcile,
  watch: (options) => new Watcher(options),
  countStart,
  startServices: (options) =>
    startServices({
      ...options,
      makeHealth: (setting) => new HealthMonitor(setting),
      makeVmHealth: (setting) => new VmMonitor(setting),
      makeSweeper: (setting) => new Sweeper(setting),
    }),
  serveMetrics: (listen, log, render) => startMetricsServer({ listen, log, render }),
  render: renderMetrics,
};
