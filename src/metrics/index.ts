// SPDX-License-Identifier: Apache-2.0
// What lasthop tells Prometheus.

export { DaemonMetrics, type SweptPass } from "./daemon.ts";
export type { FamilyData } from "./family.ts";
export { type RenderOptions, readMetrics, renderMetrics } from "./render.ts";
export { type MetricsServer, type MetricsServerOptions, startMetricsServer } from "./server.ts";
export type { MetricsInstance } from "./source.ts";
