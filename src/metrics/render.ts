// SPDX-License-Identifier: Apache-2.0

import { Tables } from "../tables/index.ts";
import type { DaemonMetrics } from "./daemon.ts";
import {
  deviceFamilies,
  deviceTrafficFamilies,
  lastHopsByDevice,
  type NamedDevice,
  scrapeDevices,
} from "./devices.ts";
import type { Family, FamilyData } from "./family.ts";
import { endedPasses, flowFamilies, sweepFamilies } from "./flows.ts";
import { instanceFamilies } from "./instance.ts";
import { interfaceFamilies, scrapeInterfaces, trafficFamilies } from "./interfaces.ts";
import { lastHopFamilies, scrapeLastHops } from "./lastHops.ts";
import { Pace } from "./pace.ts";
import { ServiceAccounts, scrapeServices, serviceFamilies, serviceTrafficFamilies } from "./services.ts";
import type { MetricsInstance, ScrapeSource } from "./source.ts";
import { tableFamilies } from "./tables.ts";
import { TrafficAccounts } from "./traffic.ts";
import { tunnelFamilies } from "./tunnels.ts";
import { scrapeVms, VmAccounts, vmFamilies, vmTrafficFamilies } from "./vms.ts";

export interface RenderOptions {
  instance: MetricsInstance;
  /** Without it, only what the tables know is shown. */
  daemon?: DaemonMetrics;
}

/**
 * Everything in Prometheus' text format, read from the tables now. Never walks the flows. Works in slices of some
 * milliseconds, between which the event loop goes on. Throws what reading the tables throws.
 */
export async function renderMetrics({ instance, daemon }: RenderOptions): Promise<string> {
  const source = scrapeSource(instance);
  const devices = await scrapeDevices(source);
  const parts: string[] = [];
  for (const family of await families(source, devices, daemon)) parts.push(await family.text(source.pace));
  if (daemon) parts.push(await daemon.text(new Set(devices.map(({ name }) => name)), source.pace));
  return `${parts.join("\n\n")}\n`;
}

/** The same of the tables alone, as data. */
export async function readMetrics(instance: MetricsInstance): Promise<FamilyData[]> {
  const source = scrapeSource(instance);
  return (await families(source, await scrapeDevices(source), undefined)).map((family) => family.data());
}

function scrapeSource(instance: MetricsInstance): ScrapeSource {
  return { instance, tables: new Tables(instance), pace: new Pace() };
}

async function families(
  source: ScrapeSource,
  devices: readonly NamedDevice[],
  daemon: DaemonMetrics | undefined,
): Promise<Family[]> {
  const interfaces = await scrapeInterfaces(source);
  const lastHops = await scrapeLastHops(source);
  const own = lastHopsByDevice(devices, lastHops);
  const passes = endedPasses(source);
  const vms = await scrapeVms(source);
  const services = await scrapeServices(source);
  const named = { vm_specs: vms.length, service_specs: services.length };
  return [
    ...instanceFamilies(source, daemon),
    ...(await interfaceFamilies(source, interfaces)),
    ...(await trafficFamilies(source, interfaces)),
    ...(await flowFamilies(source, passes)),
    ...(await tableFamilies(source, passes, { last_hops: lastHops.length, ...named }, daemon)),
    ...sweepFamilies(passes),
    ...(await lastHopFamilies(source, lastHops, interfaces)),
    ...(await deviceFamilies(source, devices)),
    ...(await deviceTrafficFamilies(source, devices, own, daemon?.traffic ?? new TrafficAccounts())),
    ...(await tunnelFamilies(source)),
    ...(await vmFamilies(source, vms, interfaces)),
    ...(await vmTrafficFamilies(source, vms, daemon?.vmTraffic ?? new VmAccounts())),
    ...(daemon ? await daemon.vmChecks.families(vms, source) : []),
    ...(await serviceFamilies(source, services, vms)),
    ...(await serviceTrafficFamilies(source, services, daemon?.serviceTraffic ?? new ServiceAccounts())),
  ];
}
