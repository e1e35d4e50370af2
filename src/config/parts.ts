// SPDX-License-Identifier: Apache-2.0
// What stands in single values of the configuration, taken apart. All give undefined for what is not such a value.

import { mapIpv4, type Prefix, parseAddress, parseMac, parsePrefix } from "../addresses.ts";
import type { Config, ExclusionConfig } from "./schema.ts";

export interface PortRange {
  first: number;
  last: number;
}

/** 80, "80" or "8000-8099": from the lower to the higher, within 1 to 65535. */
export function parsePortRange(port: number | string): PortRange | undefined {
  const [, low, high] = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(String(port)) ?? [];
  if (low === undefined) return undefined;
  const first = Number(low);
  const last = Number(high ?? low);
  return first >= 1 && first <= last && last <= 65_535 ? { first, last } : undefined;
}

export interface Listen {
  host: string;
  port: number;
}

/** `127.0.0.1:9469` or `[::1]:9469`. The host is an address, never a name; port 0 is any free port. */
export function parseListen(text: string): Listen | undefined {
  const [, v6, v4, digits] = /^(?:\[([^\]]*)\]|([^:[\]]*)):(\d{1,5})$/.exec(text) ?? [];
  const host = v6 ?? v4;
  const port = Number(digits);
  if (host === undefined || port > 65_535) return undefined;
  return parseAddress(host)?.length === (v6 === undefined ? 4 : 16) ? { host, port } : undefined;
}

export interface Exclusion {
  /** Of the remote side; null for any. */
  remote: Prefix | null;
  /** Of the VM's side; 0 to 65535 for any. */
  ports: PortRange;
  protocol: NonNullable<ExclusionConfig["protocol"]> | null;
}

/** Takes apart an exclusion of a configuration that has been checked. */
export function parseExclusion(rule: ExclusionConfig): Exclusion {
  const remote = rule.remote === undefined ? null : parsePrefix(rule.remote);
  const ports = rule.port === undefined ? { first: 0, last: 65_535 } : parsePortRange(rule.port);
  if (remote === undefined || ports === undefined) {
    throw new Error(`not an exclusion: ${JSON.stringify(rule)}`);
  }
  return { remote, ports, protocol: rule.protocol ?? null };
}

/** Of 0 to 15 only the explicit nulls come with packets of a tunnel (RFC 3032, 2.1; RFC 4182). */
export function isReservedLabel(label: number): boolean {
  return label < 16 && label !== 0 && label !== 2;
}

export const DEFAULT_ZONE = "default";

/** Numbers of zones by name: `default` is 0 unless given. */
export function zoneNumbers(config: Pick<Config, "zones">): Map<string, number> {
  return new Map([[DEFAULT_ZONE, 0], ...Object.entries(config.zones)]);
}

/** The device that `peer:NAME` names. */
export function peerOf(onDown: string): string | undefined {
  return onDown.startsWith("peer:") ? onDown.slice("peer:".length) : undefined;
}

/**
 * Whether an interface's name matches a pattern with `*` (any characters, also none) and `?` (any one).
 * Nothing else is special; a name without either matches itself.
 */
export function matchesGlob(glob: string, name: string): boolean {
  const pattern = glob
    .replace(/[.+^${}()|[\]\\]/g, "\\$&")
    .replaceAll("*", ".*")
    .replaceAll("?", ".");
  return new RegExp(`^${pattern}$`, "su").test(name);
}

/** Whether some name matches both patterns. */
export function globsMeet(a: string, b: string): boolean {
  const left = [...a];
  const right = [...b];
  const memo = new Map<number, boolean>();
  const meet = (i: number, j: number): boolean => {
    const known = memo.get(i * 64 + j);
    if (known !== undefined) return known;
    const [x, y] = [left[i], right[j]];
    let result: boolean;
    if (x === undefined && y === undefined) result = true;
    else if (x === "*") result = meet(i + 1, j) || (y !== undefined && meet(i, j + 1));
    else if (y === "*") result = meet(i, j + 1) || (x !== undefined && meet(i + 1, j));
    else if (x === undefined || y === undefined) result = false;
    else result = (x === y || x === "?" || y === "?") && meet(i + 1, j + 1);
    memo.set(i * 64 + j, result);
    return result;
  };
  return meet(0, 0);
}

/** The same for the same address, however it is written. */
export function macKey(mac: string): string {
  return parseMac(mac)?.toString("hex") ?? mac;
}

/** The same for the same address, however it is written. */
export function addressKey(address: string): string {
  const bytes = parseAddress(address);
  if (bytes === undefined) return address;
  return (bytes.length === 4 ? mapIpv4(bytes) : bytes).toString("hex");
}
