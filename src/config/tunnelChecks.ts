// SPDX-License-Identifier: Apache-2.0
// What a tunnel needs by its type, and which tunnels do not go together.

import { parseAddress } from "../addresses.ts";
import type { Entry, Sound } from "./check.ts";
import { quoted } from "./problems.ts";
import type { TunnelConfig, TunnelType } from "./tunnels.ts";
import type { Complaint } from "./wording.ts";

type Key = keyof TunnelConfig;

/** Keys that not every type has. */
const NEEDS: Readonly<Record<TunnelType, { needed: readonly Key[]; allowed: readonly Key[] }>> = {
  vxlan: { needed: ["local", "remote", "id"], allowed: ["port"] },
  nvgre: { needed: ["local", "remote"], allowed: ["id"] },
  gre: { needed: ["local", "remote"], allowed: ["id"] },
  ipip: { needed: ["local", "remote"], allowed: [] },
  mpls: { needed: ["underlay", "next_hop", "labels"], allowed: ["ttl_model"] },
};
const OF_SOME: readonly Key[] = ["local", "remote", "id", "port", "labels", "next_hop", "ttl_model"];
const ID_24_BITS: readonly (TunnelType | undefined)[] = ["vxlan", "nvgre"];
const ECN_BITS = 3;

export const VXLAN_PORT = 4789;

export function checkTunnels({ tunnels, taps }: Sound): Complaint[] {
  return [
    ...tunnels.flatMap(checkKeys),
    ...tunnels.flatMap(checkValues),
    ...checkNames(tunnels, taps),
    ...checkUnderlays(tunnels),
    ...checkArrivals(tunnels),
  ];
}

type TunnelEntry = Entry<TunnelConfig>;

function complaint(
  index: number,
  key: Key | undefined,
  message: string,
  on: Complaint["on"] = "value",
): Complaint {
  return { path: ["tunnels", index, ...(key === undefined ? [] : [key])], on, message };
}

function isBuiltin({ encap, type }: Partial<TunnelConfig>): boolean {
  return encap === "builtin" || type === "mpls";
}

function checkKeys([index, tunnel]: TunnelEntry): Complaint[] {
  const { type, encap } = tunnel;
  const found: Complaint[] = [];
  if (type !== undefined) {
    const { needed, allowed } = NEEDS[type];
    const missing = needed.filter((key) => key in tunnel && tunnel[key] === undefined);
    if (missing.length > 0) {
      found.push(complaint(index, undefined, `a tunnel of type ${type} needs ${and(missing)}`));
    }
    for (const key of OF_SOME) {
      if (tunnel[key] === undefined || needed.includes(key) || allowed.includes(key)) continue;
      found.push(complaint(index, key, `a tunnel of type ${type} has no ${key}`, "key"));
    }
    if (type === "mpls" && encap === "device") {
      const message =
        "the kernel has no interface for MPLS; its routes with `encap mpls` are used by `via: stack` and mpls.label_stacks";
      found.push(complaint(index, "encap", message));
    }
  }
  if (encap === "builtin" && type !== "mpls" && "underlay" in tunnel && tunnel.underlay === undefined) {
    found.push(complaint(index, "encap", "where lasthop encapsulates it needs underlay"));
  }
  return found;
}

function and(words: readonly string[]): string {
  return words.length === 1 ? words[0]! : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

function checkValues([index, { type, local, remote, id, tos }]: TunnelEntry): Complaint[] {
  const found: Complaint[] = [];
  const ends = [local, remote].map((text) => (text === undefined ? undefined : parseAddress(text)));
  if (ends[0] && ends[1]) {
    if (ends[0].length !== ends[1].length) {
      found.push(complaint(index, "remote", `${remote} is not of the same IP version as ${local}`));
    } else if (ends[0].equals(ends[1])) {
      found.push(complaint(index, "remote", `${remote} is local too: a tunnel has two ends`));
    }
  }
  if (id !== undefined && id > 0xff_ffff && ID_24_BITS.includes(type)) {
    const what = type === "vxlan" ? "VNI" : "VSID";
    found.push(complaint(index, "id", `${id} is no ${what}: it has 24 bits, 0 to 16777215`));
  }
  if (tos !== undefined && type === "mpls" && tos > 7) {
    found.push(complaint(index, "tos", `${tos} is no traffic class of MPLS: it has 3 bits, 0 to 7`));
  }
  if (tos !== undefined && type !== undefined && type !== "mpls" && (tos & ECN_BITS) !== 0) {
    found.push(
      complaint(index, "tos", `${tos} is not a multiple of 4: the last two bits are the packets' own (ECN)`),
    );
  }
  return found;
}

function checkNames(tunnels: readonly TunnelEntry[], taps: Sound["taps"]): Complaint[] {
  const found: Complaint[] = [];
  const places = new Map<string, string>(
    taps.flatMap(([index, { name }]) => (name === undefined ? [] : [[name, `taps[${index}]`]])),
  );
  for (const [index, { name, underlay }] of tunnels) {
    if (name === undefined) continue;
    const other = places.get(name);
    if (other !== undefined) {
      const what = other.startsWith("taps")
        ? `is ${other}: a tunnel leads to devices`
        : `is ${other} already`;
      found.push(complaint(index, "name", `${quoted(name)} ${what}`));
    } else places.set(name, `tunnels[${index}]`);
    if (underlay === name) found.push(complaint(index, "underlay", `${quoted(name)} is the tunnel itself`));
  }
  return found;
}

/** The kernel's devices may be on top of each other; ours are not, since a packet is taken apart once. */
function checkUnderlays(tunnels: readonly TunnelEntry[]): Complaint[] {
  const found: Complaint[] = [];
  const byName = new Map(tunnels.map(([, tunnel]) => [tunnel.name, tunnel]));
  for (const [index, tunnel] of tunnels) {
    const { name, underlay } = tunnel;
    if (underlay === undefined || underlay === name || !byName.has(underlay)) continue;
    if (isBuiltin(tunnel)) {
      const message = `${quoted(underlay)} is a tunnel itself: only an interface of the kernel's driver (encap: device) can be within another`;
      found.push(complaint(index, "underlay", message));
    } else if (isInLoop(name, byName)) {
      found.push(complaint(index, "underlay", `${quoted(underlay)} leads back to this tunnel`));
    }
  }
  return found;
}

function isInLoop(
  name: string | undefined,
  byName: ReadonlyMap<string | undefined, Partial<TunnelConfig>>,
): boolean {
  const seen = new Set<string | undefined>();
  let at = byName.get(name)?.underlay;
  while (at !== undefined && !seen.has(at)) {
    if (at === name) return true;
    seen.add(at);
    at = byName.get(at)?.underlay;
  }
  return false;
}

/** Of two tunnels with the same a packet that arrives could be of either. */
function checkArrivals(tunnels: readonly TunnelEntry[]): Complaint[] {
  const found: Complaint[] = [];
  const places = new Map<string, number>();
  for (const [index, tunnel] of tunnels) {
    const shown = arrival(tunnel);
    if (shown === undefined) continue;
    const first = places.get(shown);
    if (first === undefined) places.set(shown, index);
    else
      found.push(complaint(index, undefined, `a packet that arrives could be tunnels[${first}]'s as well`));
  }
  return found;
}

/** What an arriving packet of it shows; undefined as long as something of it is wrong. */
function arrival(tunnel: Partial<TunnelConfig>): string | undefined {
  const { type, local, remote, labels, underlay } = tunnel;
  if (type === undefined || !("id" in tunnel) || !("port" in tunnel)) return undefined;
  if (type === "mpls") {
    if (labels === undefined || underlay === undefined) return undefined;
    return [type, underlay, ...labels.request].join(" ");
  }
  const ends = [local, remote].map((text) => text && parseAddress(text)?.toString("hex"));
  if (ends.includes(undefined)) return undefined;
  return [type, ...ends, tunnel.id, type === "vxlan" ? (tunnel.port ?? VXLAN_PORT) : ""].join(" ");
}
