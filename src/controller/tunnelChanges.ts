// SPDX-License-Identifier: Apache-2.0
// From how a tunnel's netdevs, rows and programs are to how they should be, as a list of single changes in the order in
// which they are to be made: settings, tables, programs, and last what lets packets in. Pure, but for what it asks of
// the sight. The same list makes a tunnel, repairs it, and changes what it does.

import { formatAddress, parseMac } from "../addresses.ts";
import type { TunnelConfig } from "../config/tunnels.ts";
import type { LinkSettings } from "../kernel/linkCreate.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import type { TunnelAttachment, TunnelPlace } from "../kernel/tunnelAttachment.ts";
import { hiddenName } from "../kernel/tunnelNames.ts";
import type { TunnelKey, TunnelRow, TunnelRowInput } from "../tables/index.ts";
import type { TunnelSight } from "./tunnelObserve.ts";
import { carriesIp, isMadeAs, keysOf, mtuOf, placesOf, rowOf, sameKey, sameRow } from "./tunnelSpec.ts";

/** `text` for people: what is other than it should be; null for what another change tells. */
export type TunnelChange = { text: string | null } & (
  | { kind: "link"; link: Link; to: LinkSettings; back: LinkSettings }
  | { kind: "offloads"; link: Link; features: readonly string[] }
  | { kind: "row"; row: TunnelRowInput; old: TunnelRow | undefined }
  | { kind: "count"; ifindex: number }
  | { kind: "program"; place: TunnelPlace; hook: TunnelAttachment["hook"]; old: TunnelAttachment | undefined }
  /** `to` null: it is to lead nowhere. */
  | { kind: "key"; key: TunnelKey; to: number | null; from: number | null }
);

export interface BuiltinEnds {
  /** What the operator sees. */
  tunnel: Link;
  /** The other end of its pair. */
  hidden: Link;
  /** Undefined while it is not there. */
  underlay: Link | undefined;
}

/** What the hidden end takes must fit whatever size the kernel put together. */
const HIDDEN_MTU = 65_535;

export function builtinChanges(config: TunnelConfig, ends: BuiltinEnds, sight: TunnelSight): TunnelChange[] {
  const { tunnel, hidden, underlay } = ends;
  const mtu = mtuOf(config, underlay) ?? tunnel.mtu;
  const row = rowOf(config, {
    ifindex: tunnel.ifindex,
    peer: hidden.ifindex,
    underlay: underlay?.ifindex ?? 0,
    mac: macBytes(tunnel.mac),
    underlayMac: macBytes(underlay?.mac ?? null),
    mtu,
  });
  return [
    ...tunnelSettings(config, ends, sight, mtu),
    ...hiddenSettings(ends, sight),
    ...rowChanges(row, sight),
    ...programChanges(row, sight, underlay),
    ...hiddenState(ends, sight),
    ...nameChanges(config, tunnel),
    ...keyChanges(row, sight),
  ];
}

export function macBytes(mac: string | null): Buffer {
  return (mac !== null && parseMac(mac)) || Buffer.alloc(6);
}

function tunnelSettings(
  config: TunnelConfig,
  { tunnel }: BuiltinEnds,
  sight: TunnelSight,
  mtu: number,
): TunnelChange[] {
  const isIp = carriesIp(config.type);
  const found =
    tunnel.mtu === mtu ? [] : [linkChange(tunnel, { mtu }, { mtu: tunnel.mtu }, mtuText(tunnel, mtu))];
  if (tunnel.alias !== sight.names.alias) found.push(aliasChange(tunnel, sight.names.alias));
  found.push(...lonelySettings(tunnel, isIp, sight));
  if (config.type === "mpls") found.push(...offloadChanges(tunnel, sight));
  return found;
}

const mtuText = (from: Link, mtu: number): string => `MTU ${mtu} instead of ${from.mtu}`;

/** An interface on which nobody is asked for by ARP or ND, nor says anything of his own. */
function lonelySettings(link: Link, lonely: boolean, sight: TunnelSight): TunnelChange[] {
  const details = sight.details(link.ifindex);
  if (!details) return [];
  const found: TunnelChange[] = [];
  const { noArp, ipv6LinkLocal } = details;
  if (noArp !== lonely) {
    const text = lonely ? "needs no neighbours" : "has neighbours";
    found.push(linkChange(link, { noArp: lonely }, { noArp }, text));
  }
  if (lonely && ipv6LinkLocal === true) {
    found.push(linkChange(link, { ipv6LinkLocal: false }, { ipv6LinkLocal }, "no IPv6 address of its own"));
  }
  return found;
}

function hiddenSettings({ tunnel, hidden }: BuiltinEnds, sight: TunnelSight): TunnelChange[] {
  const found: TunnelChange[] = [];
  const set = (to: LinkSettings, back: LinkSettings, text: string) =>
    found.push(linkChange(hidden, to, back, `hidden end: ${text}`));
  if (hidden.alias !== sight.names.hiddenAlias) found.push(aliasChange(hidden, sight.names.hiddenAlias));
  if (hidden.mtu !== HIDDEN_MTU) set({ mtu: HIDDEN_MTU }, { mtu: hidden.mtu }, mtuText(hidden, HIDDEN_MTU));
  found.push(...lonelySettings(hidden, true, sight), ...offloadChanges(hidden, sight));
  const name = hiddenName(tunnel.ifindex);
  if (hidden.name !== name) set({ name }, { name: hidden.name }, `called ${name}`);
  return found;
}

function linkChange(link: Link, to: LinkSettings, back: LinkSettings, text: string | null): TunnelChange {
  return { kind: "link", link, to, back, text };
}

function aliasChange(link: Link, alias: string): TunnelChange {
  return linkChange(link, { alias }, { alias: link.alias ?? "" }, "marked as lasthop's");
}

/** The kernel is to segment and to sum up on the way between the ends. */
function offloadChanges(link: Link, sight: TunnelSight): TunnelChange[] {
  const features = sight.sendOffloads(link.name);
  return features.length === 0 ? [] : [{ kind: "offloads", link, features, text: "offloads off" }];
}

function rowChanges(row: TunnelRowInput, sight: TunnelSight): TunnelChange[] {
  const ifindex = row.ifindex!;
  const old = sight.row(ifindex);
  return [
    ...(old && sameRow(old, row)
      ? []
      : [{ kind: "row" as const, row, old, text: old ? rowText(old, row) : null }]),
    ...(sight.isCounted(ifindex) ? [] : [{ kind: "count" as const, ifindex, text: null }]),
  ];
}

function rowText(old: TunnelRow, row: TunnelRowInput): string | null {
  const found: string[] = [];
  if (old.underlay !== row.underlay)
    found.push(row.underlay === 0 ? "its underlay is gone" : "another underlay");
  if (!old.remote.equals(row.remote!))
    found.push(`to ${ipText(row.remote!)} instead of ${ipText(old.remote)}`);
  if (!old.local.equals(row.local!)) found.push(`from ${ipText(row.local!)} instead of ${ipText(old.local)}`);
  if (old.id !== row.id) found.push(`id ${row.id} instead of ${old.id}`);
  if (found.length > 0) return found.join(", ");
  // What follows the netdevs is told by whoever changes those.
  return isMadeAs(old, row) ? null : "other parameters";
}

function ipText(bytes: Uint8Array): string {
  const mapped =
    bytes.subarray(0, 10).every((byte) => byte === 0) && bytes[10] === 0xff && bytes[11] === 0xff;
  return formatAddress(mapped ? bytes.subarray(12) : bytes);
}

function programChanges(row: TunnelRowInput, sight: TunnelSight, underlay: Link | undefined): TunnelChange[] {
  return placesOf(row).flatMap((place): TunnelChange[] => {
    const old = sight.attachmentAt(place);
    if (old?.alive && old.programId === sight.programId(place.program)) return [];
    const where = place.ifindex === underlay?.ifindex ? ` on ${underlay.name}` : "";
    const text = `${old?.alive ? "the pinned program" : "program"} ${place.program}${where}`;
    const hook = old?.alive ? old.hook : sight.tcx ? "tcx" : "clsact";
    return [{ kind: "program", place, hook, old: old?.alive ? old : undefined, text }];
  });
}

/** With its hidden end down the tunnel has no carrier, and whoever sends by it knows. */
function hiddenState({ hidden, underlay }: BuiltinEnds, { followed }: TunnelSight): TunnelChange[] {
  const up = isUnderlayUsable(underlay, followed);
  if (hidden.flags.up === up) return [];
  const why = underlay ? `${underlay.name} is ${up ? "up" : "down"}` : "its underlay is gone";
  return [linkChange(hidden, { up }, { up: !up }, up ? "carries" : `carries nothing, since ${why}`)];
}

/** Nobody would see it come up again without a daemon, so it counts as up then. */
export function isUnderlayUsable(underlay: Link | undefined, followed: boolean): boolean {
  if (!underlay) return false;
  return !followed || (underlay.flags.up && underlay.flags.running);
}

/** In one change: who looks for it by name finds it whole. */
function nameChanges({ name }: TunnelConfig, tunnel: Link): TunnelChange[] {
  if (tunnel.name === name) return [];
  return [linkChange(tunnel, { name, up: true }, { name: tunnel.name, up: tunnel.flags.up }, null)];
}

function keyChanges(row: TunnelRowInput, sight: TunnelSight): TunnelChange[] {
  const ifindex = row.ifindex!;
  const wanted = keysOf(row);
  const others = sight.keysOf(ifindex).filter((other) => !wanted.some((key) => sameKey(key, other)));
  return [
    ...wanted.flatMap((key): TunnelChange[] => {
      const from = sight.target(key) ?? null;
      return from === ifindex
        ? []
        : [{ kind: "key", key, to: ifindex, from, text: "known by what arrives for it" }];
    }),
    ...others.map((key) => ({ kind: "key" as const, key, to: null, from: ifindex, text: null })),
  ];
}
