// SPDX-License-Identifier: Apache-2.0
// Which tunnels are to be made, changed, made anew and removed, and what is left of others. Pure.

import type { TunnelConfig } from "../config/tunnels.ts";
import { LasthopError } from "../errors.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { placeKey, type TunnelAttachment, type TunnelPlace } from "../kernel/tunnelAttachment.ts";
import { deviceOf, fitsType } from "../kernel/tunnelDevice.ts";
import { isHiddenEnd, isMadeByLasthop } from "../kernel/tunnelNames.ts";
import type { TunnelKey, TunnelRow, TunnelRowInput } from "../tables/index.ts";
import { type Failure, failure } from "./failure.ts";
import { builtinChanges, type TunnelChange } from "./tunnelChanges.ts";
import { deviceChanges } from "./tunnelDeviceChanges.ts";
import type { ObservedTunnels, TunnelSight } from "./tunnelObserve.ts";
import { endsOf, kindOf, placesOf, placesOnNetdevs } from "./tunnelSpec.ts";

/** What there is of a tunnel that is to go, or to be made anew. */
export interface TunnelRemains {
  ifindex: number;
  name: string;
  /** Its netdev, if lasthop made it. */
  link: Link | undefined;
  row: TunnelRow | undefined;
  keys: readonly TunnelKey[];
}

export type TunnelAction = {
  /** Name of the tunnel, or of what is left of one. */
  object: string;
  /** One line for people. */
  text: string;
  /** Key in the configuration file, as "tunnels[0]"; null for what nobody configured. */
  config: string | null;
} & (
  | { kind: "tunnel-add"; tunnel: TunnelConfig }
  | { kind: "tunnel-change"; tunnel: TunnelConfig; changes: readonly TunnelChange[] }
  /** It has to be made anew. */
  | { kind: "tunnel-replace"; tunnel: TunnelConfig; remains: TunnelRemains }
  | { kind: "tunnel-remove"; remains: TunnelRemains }
  /** A program of ours where no tunnel needs it. */
  | { kind: "tunnel-repair"; stray: TunnelAttachment }
);

export interface TunnelPlan {
  /** In the order in which they are to be done. */
  actions: TunnelAction[];
  failed: Failure[];
}

export function planTunnels(tunnels: readonly TunnelConfig[], observed: ObservedTunnels): TunnelPlan {
  const wanted = inOrder(tunnels);
  const actions: TunnelAction[] = [];
  const failed: Failure[] = [];
  for (const [index, tunnel] of wanted) {
    const config = `tunnels[${index}]`;
    try {
      const action = planTunnel(tunnel, tunnels, observed);
      if (action) actions.push({ ...action, object: tunnel.name, config });
    } catch (error) {
      if (!(error instanceof LasthopError)) throw error;
      failed.push(failure(tunnel.name, config, error));
    }
  }
  const removals = planRemovals(new Set(tunnels.map(({ name }) => name)), observed);
  const strays = planStrays(tunnels, observed, [...removals, ...actions]);
  return { actions: [...removals, ...actions, ...strays], failed };
}

/** Those that others are within come first. */
function inOrder(tunnels: readonly TunnelConfig[]): [number, TunnelConfig][] {
  const byName = new Map(tunnels.map((tunnel, index) => [tunnel.name, [index, tunnel] as const]));
  const ordered = new Map<string, [number, TunnelConfig]>();
  const add = (name: string): void => {
    const found = byName.get(name);
    if (!found || ordered.has(name)) return;
    // The configuration has no loops.
    if (found[1].underlay !== undefined) add(found[1].underlay);
    ordered.set(name, [...found]);
  };
  for (const { name } of tunnels) add(name);
  return [...ordered.values()];
}

type Planned =
  | { kind: "tunnel-add"; tunnel: TunnelConfig; text: string }
  | { kind: "tunnel-change"; tunnel: TunnelConfig; changes: readonly TunnelChange[]; text: string }
  | { kind: "tunnel-replace"; tunnel: TunnelConfig; remains: TunnelRemains; text: string };

function planTunnel(
  tunnel: TunnelConfig,
  all: readonly TunnelConfig[],
  observed: ObservedTunnels,
): Planned | null {
  const { host, sight } = observed;
  const { name } = tunnel;
  const link = host.links.find((one) => one.name === name);
  const underlay = host.links.find((one) => one.name === tunnel.underlay);
  if (!link) {
    if (!underlay && !all.some((other) => other.name === tunnel.underlay)) requireUnderlay(tunnel, underlay);
    return { kind: "tunnel-add", tunnel, text: `tunnel ${name}: make (${description(tunnel)})` };
  }
  if (!isOurs(link, sight)) return planForeign(tunnel, link, observed);
  const isBuiltin = link.kind === "veth";
  if (isBuiltin !== wantsBuiltin(tunnel, isBuiltin)) {
    const how = isBuiltin ? "the kernel's driver" : "lasthop's own programs";
    return replacement(tunnel, link, observed, `by ${how} instead`);
  }
  if (!isBuiltin) {
    requireUnderlay(tunnel, underlay);
    const changes = deviceChanges(tunnel, link, underlay, sight);
    const same = changes !== null && link.kind === deviceOf(endsOf(tunnel, null)).kind;
    return same ? changed(tunnel, changes) : replacement(tunnel, link, observed, "other parameters");
  }
  const hidden = link.linkNetns === null && link.lower !== null ? host.link(link.lower) : undefined;
  if (!hidden) return replacement(tunnel, link, observed, "its hidden end is gone");
  if (underlay) requireFitUnderlay(tunnel, underlay);
  // Its settings would have to be taken back: offloads, and whether it has neighbours.
  const row = sight.row(link.ifindex);
  if (row && row.kind !== kindOf(tunnel))
    return replacement(tunnel, link, observed, `of type ${tunnel.type} now`);
  return changed(tunnel, builtinChanges(tunnel, { tunnel: link, hidden, underlay }, sight));
}

function changed(tunnel: TunnelConfig, changes: readonly TunnelChange[]): Planned | null {
  if (changes.length === 0) return null;
  const told = [...new Set(changes.flatMap(({ text }) => text ?? []))];
  const text = `tunnel ${tunnel.name}: ${told.length > 0 ? told.join(", ") : "entered again"}`;
  return { kind: "tunnel-change", tunnel, changes, text };
}

function replacement(tunnel: TunnelConfig, link: Link, observed: ObservedTunnels, why: string): Planned {
  const text = `tunnel ${tunnel.name}: make anew (${why})`;
  return { kind: "tunnel-replace", tunnel, remains: remainsOf(link.ifindex, tunnel.name, observed), text };
}

function remainsOf(ifindex: number, name: string, { host, rows, sight }: ObservedTunnels): TunnelRemains {
  const link = host.link(ifindex);
  return {
    ifindex,
    name,
    link: link && isOurs(link, sight) ? link : undefined,
    row: rows.find((row) => row.ifindex === ifindex),
    keys: sight.keysOf(ifindex),
  };
}

/** What `auto` once became it stays: else each look would ask the kernel for a driver that it has not. */
function wantsBuiltin({ type, encap }: TunnelConfig, isBuiltin: boolean): boolean {
  return type === "mpls" || encap === "builtin" || (encap === "auto" && isBuiltin);
}

/** By its alias, by its name while it is made, or by the table where somebody wrote over the alias. */
export function isOurs(link: Link, { names, row }: Pick<TunnelSight, "names" | "row">): boolean {
  if (link.alias === names.alias || link.alias === names.hiddenAlias) return true;
  if (Object.values(names.making).includes(link.name)) return true;
  const peer = row(link.ifindex)?.peer_ifindex ?? 0;
  return peer !== 0 && link.kind === "veth" && link.lower === peer;
}

/** A netdev that is there already is used as it is. */
function planForeign(tunnel: TunnelConfig, link: Link, observed: ObservedTunnels): Planned | null {
  const { name, type, encap } = tunnel;
  const kind = link.kind === null ? "an interface of hardware" : `of the kind ${link.kind}`;
  const refuse = (why: string, hint: string): never => {
    throw new LasthopError("E_TUNNEL", `cannot make the tunnel ${name}: ${why}`, { hint });
  };
  if (isMadeByLasthop(link)) {
    refuse(
      `${name} is there already, and another instance of lasthop made it`,
      "Give it another name: the alias of the interface says which instance (`ip -d link`).",
    );
  }
  if (encap === "builtin" || type === "mpls") {
    refuse(
      `${name} is there already, and lasthop did not make it`,
      "Remove it or give the tunnel another name; with `encap: auto` an interface that fits is used as it is.",
    );
  }
  if (!fitsType(type, link.kind)) {
    refuse(
      `${name} is there already, and is ${kind}, not a tunnel of type ${type}`,
      "Remove it, give the tunnel another name, or leave it out of `tunnels:` and name the interface in `uplinks:`.",
    );
  }
  const underlay = observed.host.links.find((one) => one.name === tunnel.underlay);
  const changes = deviceChanges(tunnel, link, underlay, observed.sight, "as it is");
  if (changes === null || changes.length === 0) return null;
  const text = `tunnel ${name}: uses the ${link.kind} interface that is there`;
  return { kind: "tunnel-change", tunnel, changes, text };
}

function requireUnderlay(tunnel: TunnelConfig, underlay: Link | undefined): void {
  if (tunnel.underlay === undefined || underlay) return;
  const { name } = tunnel;
  throw new LasthopError(
    "E_NO_INTERFACE",
    `cannot make the tunnel ${name}: there is no interface ${tunnel.underlay}`,
    { hint: "While the daemon runs, it makes the tunnel when its underlay comes." },
  );
}

/** Throws E_TUNNEL where packets of a built-in tunnel could not come and go. */
export function requireFitUnderlay({ name }: TunnelConfig, underlay: Link): void {
  const refuse = (why: string, hint: string): never => {
    throw new LasthopError("E_TUNNEL", `cannot make the tunnel ${name}: ${underlay.name} ${why}`, { hint });
  };
  if (!underlay.ethernet || underlay.flags.loopback) {
    refuse(
      "is no Ethernet interface",
      "Where lasthop encapsulates, the underlay is one; others need `encap: device`.",
    );
  }
  if (underlay.masterKind === "bridge" || underlay.masterKind === "bond" || underlay.masterKind === "team") {
    const whose =
      underlay.masterKind === "bridge" ? "a port of a bridge" : `a slave of a ${underlay.masterKind}`;
    refuse(`is ${whose}`, `Name the ${underlay.masterKind}: that is where the host sees the outer packets.`);
  }
  if (isMadeByLasthop(underlay) && underlay.kind === "veth") {
    refuse("is a tunnel itself", "Within another tunnel it needs `encap: device`.");
  }
}

export function description({ type, local, remote, id, labels, underlay }: TunnelConfig): string {
  const path = type === "mpls" ? `labels ${labels?.reply.join(" ")} on ${underlay}` : `${local} to ${remote}`;
  return `${type}, ${path}${id === undefined ? "" : `, id ${id}`}`;
}

// What is left

function planRemovals(wanted: ReadonlySet<string>, observed: ObservedTunnels): TunnelAction[] {
  const { host, rows, keys, sight } = observed;
  const { names } = sight;
  const going = new Map<number, TunnelRemains>();
  const add = (ifindex: number, name: string): void => {
    going.set(ifindex, remainsOf(ifindex, name, observed));
  };
  for (const { ifindex, name } of rows) {
    const link = host.link(ifindex);
    // A tunnel that is wanted has the index by now, and enters itself.
    if (link && wanted.has(link.name) && isOurs(link, sight)) continue;
    if (!wanted.has(name) || link?.name !== name) add(ifindex, name);
  }
  for (const link of host.links) {
    const inMaking = Object.values(names.making).includes(link.name);
    const isTunnel = link.alias === names.alias && !wanted.has(link.name);
    if (inMaking || isTunnel || isAbandoned(link, observed)) add(link.ifindex, link.name);
  }
  for (const [, to] of keys) {
    if (!going.has(to) && !rows.some(({ ifindex }) => ifindex === to)) add(to, `if${to}`);
  }
  return [...going.values()].map((remains) => ({
    kind: "tunnel-remove",
    object: remains.name,
    text: removalText(remains, host.link(remains.ifindex)),
    config: null,
    remains,
  }));
}

/** A hidden end of this instance whose other end is no tunnel here: somebody took that elsewhere. */
function isAbandoned(link: Link, { host, sight }: ObservedTunnels): boolean {
  if (!isHiddenEnd(link) || link.alias !== sight.names.hiddenAlias) return false;
  const other = link.linkNetns === null && link.lower !== null ? host.link(link.lower) : undefined;
  return other === undefined;
}

function removalText({ name, link, row }: TunnelRemains, there: Link | undefined): string {
  if (link) return `tunnel ${name}: remove`;
  if (row && there?.name === name) return `tunnel ${name}: no longer looked after`;
  return row ? `tunnel ${name} is gone: forgotten` : `${name}: remove what is left of a tunnel`;
}

/** Attached where neither a tunnel that is there nor one that comes needs it, or to what has gone. */
function planStrays(
  tunnels: readonly TunnelConfig[],
  observed: ObservedTunnels,
  before: readonly TunnelAction[],
): TunnelAction[] {
  const { host, rows, attachments, xfrm } = observed;
  const names = new Set(tunnels.map(({ name }) => name));
  const changed = new Map(before.flatMap(changedRows).map((row) => [row.ifindex, row]));
  const needed = new Set(
    rows
      .filter((row) => row.peer_ifindex !== 0 && names.has(row.name))
      .flatMap((row) => placesOf(changed.get(row.ifindex) ?? row).map(placeKey)),
  );
  for (const place of xfrm) needed.add(placeKey(place));
  for (const { underlay, encap, type } of tunnels) {
    const link = host.links.find((one) => one.name === underlay);
    if (link && (encap !== "device" || type === "mpls")) {
      needed.add(placeKey({ ifindex: link.ifindex, program: "tunnel_in" }));
    }
  }
  const going = new Set(before.flatMap((action) => ownPlaces(action).map(placeKey)));
  return attachments
    .filter((one) => !going.has(placeKey(one)) && (!one.alive || !needed.has(placeKey(one))))
    .map((stray) => {
      const name = host.link(stray.ifindex)?.name ?? `if${stray.ifindex}`;
      const text = `${name}: remove a tunnel's program, which none needs there (${stray.program})`;
      return { kind: "tunnel-repair", object: name, text, config: null, stray };
    });
}

/** As the tables will have them: another underlay has the program as well, the former no longer. */
function changedRows(action: TunnelAction): TunnelRowInput[] {
  if (action.kind !== "tunnel-change") return [];
  return action.changes.flatMap((change) => (change.kind === "row" ? [change.row] : []));
}

/** What goes with the netdevs that an action removes. */
function ownPlaces(action: TunnelAction): TunnelPlace[] {
  return "remains" in action ? placesOnNetdevs(action.remains.row) : [];
}
