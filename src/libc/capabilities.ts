// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from "node:fs";

/** Bits of those that matter here (linux/capability.h). */
const BITS = {
  CAP_DAC_OVERRIDE: 1,
  CAP_NET_ADMIN: 12,
  CAP_NET_RAW: 13,
  CAP_SYS_ADMIN: 21,
  CAP_PERFMON: 38,
  CAP_BPF: 39,
} as const;

export type Capability = keyof typeof BITS;

/** The effective capabilities of this process, among those that lasthop asks about. */
export function capabilities(): Set<Capability> {
  return parseCapabilities(readFileSync("/proc/self/status", "utf8"));
}

export function parseCapabilities(status: string): Set<Capability> {
  const mask = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? "0"}`);
  const names = Object.keys(BITS) as Capability[];
  return new Set(names.filter((name) => (mask >> BigInt(BITS[name])) & 1n));
}
