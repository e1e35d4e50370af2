// SPDX-License-Identifier: Apache-2.0
// Which service a packet belongs to where two could take it: the one with the port, else the one with the
// longer prefix. Two of which each is the more specific in one of these would surprise whoever wrote them.

import { type Prefix, parsePrefix } from "../addresses.ts";
import { quoted } from "./problems.ts";
import type { ServiceConfig } from "./services.ts";

/** What of a service tells which packets are its own. */
export type ServiceSelector = Pick<ServiceConfig, "name" | "zone" | "address" | "port" | "protocol">;

/** Why two services do not go together, naming both; null if they do. */
export function serviceOverlap(a: ServiceSelector, b: ServiceSelector): string | null {
  const [p, q] = [parsePrefix(a.address), parsePrefix(b.address)];
  const meet =
    a.zone === b.zone && (a.protocol === b.protocol || a.protocol === "any" || b.protocol === "any");
  if (!meet || p === undefined || q === undefined || p.family !== q.family) return null;
  const bits = Math.min(p.bits, q.bits);
  if (maskedHex(p, bits) !== maskedHex(q, bits)) return null;
  if (a.port === b.port) return p.bits === q.bits ? sameText(a, b) : null;
  if (a.port === undefined) return p.bits > q.bits ? crossText(b, a) : null;
  if (b.port === undefined) return q.bits > p.bits ? crossText(a, b) : null;
  return null;
}

function sameText(a: ServiceSelector, b: ServiceSelector): string {
  const protocol = a.protocol === "any" ? b.protocol : a.protocol;
  const what = `${protocol === "any" ? "any protocol" : protocol}${a.port === undefined ? "" : ` port ${a.port}`}`;
  return `the services ${quoted(a.name)} and ${quoted(b.name)} are both for ${what} of ${a.address}`;
}

function crossText(ported: ServiceSelector, longer: ServiceSelector): string {
  return (
    `the services ${quoted(ported.name)} (${ported.protocol} port ${ported.port} of ${ported.address}) and ` +
    `${quoted(longer.name)} (any port of ${longer.address}) overlap: one has the port, the other the longer prefix`
  );
}

/** Two services that do not go together, as indices into the list, in its order. */
export interface Overlap {
  first: number;
  second: number;
  message: string;
}

/** Of many services some that do not go together: none only if all do. Fast for thousands. */
export function serviceOverlaps(services: readonly ServiceSelector[]): Overlap[] {
  const found = new Map<number, Overlap>();
  const report = (one: number, other: number) => {
    const [first, second] = one < other ? [one, other] : [other, one];
    const message = serviceOverlap(services[first]!, services[second]!);
    if (message !== null && !found.has(second)) found.set(second, { first, second, message });
  };
  const selectors = services.flatMap(selectorsOf);
  const whole = new Map<string, number>();
  const ported = new Map<string, Ported>();
  for (const { index, room, prefix, port } of selectors) {
    const here = prefixKey(prefix, prefix.bits);
    const key = `${room} ${port ?? ""} ${here}`;
    const other = whole.get(key);
    if (other === undefined) whole.set(key, index);
    else report(other, index);
    if (port === undefined) continue;
    const those = ported.get(room) ?? { bits: new Set(), at: new Map() };
    ported.set(room, those);
    those.bits.add(prefix.bits);
    those.at.set(here, those.at.get(here) ?? index);
  }
  for (const { index, room, prefix, port } of selectors) {
    const those = port === undefined ? ported.get(room) : undefined;
    for (const bits of those?.bits ?? []) {
      const other = bits < prefix.bits ? those?.at.get(prefixKey(prefix, bits)) : undefined;
      if (other !== undefined) report(other, index);
    }
  }
  return [...found.values()].sort((a, b) => a.second - b.second);
}

interface Selector {
  index: number;
  /** Zone, protocol and IP version: those of different ones never meet. */
  room: string;
  prefix: Prefix;
  port: number | undefined;
}

interface Ported {
  /** Lengths of their prefixes. */
  bits: Set<number>;
  /** The first with each prefix. */
  at: Map<string, number>;
}

function selectorsOf({ zone, address, port, protocol }: ServiceSelector, index: number): Selector[] {
  const prefix = parsePrefix(address);
  if (prefix === undefined) return [];
  const protocols = protocol === "any" ? ["tcp", "udp", "sctp", "icmp"] : [protocol];
  return protocols.map((word) => ({ index, room: `${zone} ${word} ${prefix.family}`, prefix, port }));
}

function prefixKey(prefix: Prefix, bits: number): string {
  return `${maskedHex(prefix, bits)}/${bits}`;
}

/** Of an address the leading bits, all others 0. */
export function maskedHex({ bytes }: Prefix, bits: number): string {
  const masked = Buffer.alloc(bytes.length);
  bytes.copy(masked, 0, 0, (bits + 7) >> 3);
  if ((bits & 7) !== 0) masked[bits >> 3]! &= 0xff00 >> (bits & 7);
  return masked.toString("hex");
}
