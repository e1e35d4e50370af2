// SPDX-License-Identifier: Apache-2.0
// The VMs and services that the configuration wants. Pure.

import { ORIGIN } from "../abi/layout.gen.ts";
import type { Config } from "../config/schema.ts";
import type { ServiceConfig, VmConfig } from "../config/services.ts";
import { LasthopError } from "../errors.ts";
import type { ServiceSpecInput, VmSpecInput } from "../tables/index.ts";
import { type Failure, failure } from "./failure.ts";
import { serviceSpecOf, vmSpecOf } from "./serviceSpec.ts";

/** An entry as it is to be. */
export interface DesiredEntry<C, S> {
  name: string;
  /** "vms[2]" */
  key: string;
  config: C;
  spec: S;
}

export type DesiredVm = DesiredEntry<VmConfig, VmSpecInput>;
export type DesiredService = DesiredEntry<ServiceConfig, ServiceSpecInput>;

export interface DesiredServices {
  /** By name. */
  vms: Map<string, DesiredVm>;
  services: Map<string, DesiredService>;
  /** Those whose entry would be too long. */
  failed: Failure[];
}

/** `zoneOf`: the number of a zone. */
export function desiredServices(
  { vms, services }: Pick<Config, "vms" | "services">,
  zoneOf: (name: string) => number,
): DesiredServices {
  const failed: Failure[] = [];
  return {
    vms: entries("vms", vms, (vm) => vmSpecOf(vm, zoneOf(vm.zone), ORIGIN.CONFIG), failed),
    services: entries(
      "services",
      services,
      (service) => serviceSpecOf(service, zoneOf(service.zone), ORIGIN.CONFIG),
      failed,
    ),
    failed,
  };
}

function entries<C extends { name: string }, S>(
  list: string,
  configs: readonly C[],
  specOf: (config: C) => S,
  failed: Failure[],
): Map<string, DesiredEntry<C, S>> {
  const found = new Map<string, DesiredEntry<C, S>>();
  for (const [index, config] of configs.entries()) {
    const { name } = config;
    const key = `${list}[${index}]`;
    try {
      found.set(name, { name, key, config, spec: specOf(config) });
    } catch (error) {
      if (!(error instanceof LasthopError)) throw error;
      failed.push(failure(name, key, error));
    }
  }
  return found;
}
