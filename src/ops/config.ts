// SPDX-License-Identifier: Apache-2.0
// The configuration file by itself: nothing here looks at the kernel.

import { configJsonSchema } from "../config/jsonSchema.ts";
import { ConfigError, loadConfig } from "../config/load.ts";
import { zoneNumbers } from "../config/parts.ts";
import type { Config } from "../config/schema.ts";
import type { ConfigCheck } from "./types.ts";

/** Says what a file has, or everything that is wrong with it. Throws E_CONFIG if it cannot be read. */
export function checkConfig(file: string): ConfigCheck {
  try {
    return { file, valid: true, problems: [], has: summary(loadConfig(file)) };
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return { file, valid: false, problems: [...error.problems], has: null };
  }
}

function summary(config: Config): NonNullable<ConfigCheck["has"]> {
  return {
    zones: Object.fromEntries(zoneNumbers(config)),
    uplinks: config.uplinks.map((uplink) => uplink.name),
    taps: config.taps.map(({ name, guest_mac, domain }) => name ?? guest_mac ?? `domain ${domain}`),
    devices: config.devices.map((device) => device.name),
    vms: config.vms.map((vm) => vm.name),
    services: config.services.map((service) => service.name),
    tunnels: config.tunnels.map((tunnel) => tunnel.name),
    metrics: config.metrics.enabled ? config.metrics.listen : null,
  };
}

/** The configuration with every default filled in. */
export function showConfig(file: string): Config {
  return loadConfig(file);
}

export function configSchema(): Record<string, unknown> {
  return configJsonSchema();
}
