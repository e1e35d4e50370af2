// SPDX-License-Identifier: Apache-2.0

import { parseAddress } from "../addresses.ts";
import { LasthopError } from "../errors.ts";
import type { Flow, FlowKey, Tables } from "../tables/index.ts";
import { formatTuple } from "../tuple.ts";
import type { Protocol, Tuple } from "./types.ts";

const NUMBERS: Readonly<Record<Exclude<Protocol, "icmp">, number>> = { tcp: 6, udp: 17, sctp: 132 };
const ICMP = { 4: 1, 6: 58 } as const;

/**
 * The keys that a five-tuple can have. For echo these are two: the identifier stands in the port of the
 * side that asked, and the tuple does not say which.
 */
export function tupleKeys(tuple: Tuple, zone: number): FlowKey[] {
  const base = {
    family: tuple.family,
    remote: bytes(tuple.remote_address),
    local: bytes(tuple.local_address),
    zone,
  };
  if (tuple.protocol !== "icmp") {
    const proto = NUMBERS[tuple.protocol];
    return [{ ...base, proto, remotePort: tuple.remote_port, localPort: tuple.local_port }];
  }
  const proto = ICMP[tuple.family];
  const asked = { ...base, proto, remotePort: tuple.icmp_id ?? 0, localPort: 0 };
  if (!tuple.icmp_id) return [asked];
  return [asked, { ...base, proto, remotePort: 0, localPort: tuple.icmp_id }];
}

export function findFlow(tables: Tables, tuple: Tuple, zone: number): Flow | undefined {
  for (const key of tupleKeys(tuple, zone)) {
    const flow = tables.flows.lookup(key);
    if (flow) return flow;
  }
  return undefined;
}

function bytes(text: string): Buffer {
  const address = parseAddress(text);
  if (!address) throw new LasthopError("E_TUPLE", `"${text}" is neither IPv4 nor IPv6`);
  return address;
}

/** E_NOT_FOUND with what could help. */
export function flowNotFound(tables: Tables, tuple: Tuple, zone: number): LasthopError {
  const other = tables.interfaces
    .zones()
    .find((candidate) => findFlow(tables, tuple, candidate) !== undefined);
  const hint =
    other === undefined
      ? "the remote side comes first; `lasthop flows list --address` shows what there is"
      : `there is one in zone ${other}: add --zone ${other}`;
  return new LasthopError("E_NOT_FOUND", `no flow ${formatTuple(tuple)} in zone ${zone}`, { hint });
}
