// SPDX-License-Identifier: Apache-2.0
export { type DaemonOptions, type DaemonParts, runDaemon } from "./daemon.ts";
export { HOST_PARTS } from "./parts.ts";
