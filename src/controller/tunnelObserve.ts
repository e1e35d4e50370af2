// SPDX-License-Identifier: Apache-2.0
// What is there of tunnels: netdevs, table rows and programs. Reads only, and what takes a call a tunnel only when asked.

import { TUNNEL_FILTER } from "../config/defaults.ts";
import { LasthopError } from "../errors.ts";
import { sendOffloads } from "../kernel/ethtool.ts";
import { isHeld } from "../kernel/holder.ts";
import type { Instance } from "../kernel/instance.ts";
import { type LinkDetails, linkDetails } from "../kernel/linkCreate.ts";
import type { Netlink } from "../kernel/netlink.ts";
import { usesTcx } from "../kernel/tc.ts";
import {
  DIRECTIONS,
  hasTunnelName,
  PARENTS,
  placeKey,
  type TunnelAttachment,
  type TunnelPlace,
  type TunnelProgram,
  tunnelAttachmentAt,
  tunnelAttachments,
} from "../kernel/tunnelAttachment.ts";
import { type TunnelNames, tunnelNames } from "../kernel/tunnelNames.ts";
import { Tables, type TunnelKey, type TunnelRow } from "../tables/index.ts";
import { type HostFacts, once } from "./hostFacts.ts";
import type { Surroundings } from "./observe.ts";
import { placesOf, xfrmPlacesOf } from "./tunnelSpec.ts";

/** One tunnel's surroundings, as they are when they are asked for. */
export interface TunnelSight {
  names: TunnelNames;
  /** TC means TCX on this host. */
  tcx: boolean;
  /** A daemon has the instance: it will see when an underlay that is down comes up. */
  followed: boolean;
  row(ifindex: number): TunnelRow | undefined;
  /** The netdev that a key leads to. */
  target(key: TunnelKey): number | undefined;
  keysOf(ifindex: number): readonly TunnelKey[];
  isCounted(ifindex: number): boolean;
  programId(program: TunnelProgram): number;
  attachmentAt(place: TunnelPlace): TunnelAttachment | undefined;
  details(ifindex: number): LinkDetails | undefined;
  /** What can be switched off of segmentation and checksums, and is on. */
  sendOffloads(name: string): readonly string[];
}

export interface ObservedTunnels {
  host: HostFacts;
  rows: readonly TunnelRow[];
  /** All keys, and where they lead. */
  keys: readonly (readonly [TunnelKey, number])[];
  attachments: readonly TunnelAttachment[];
  /** Where the attached interfaces need programs of tunnels. */
  xfrm: readonly TunnelPlace[];
  sight: TunnelSight;
}

const LOOPBACK = 1;

export function observeTunnels(around: Surroundings, host: HostFacts): ObservedTunnels {
  const { tables, instance, netlink } = around;
  const keys = [...tables.tunnels.index.entries()];
  return {
    host,
    rows: tables.tunnels.list(),
    keys,
    attachments: tunnelAttachments(instance, netlink),
    xfrm: tables.interfaces.list().flatMap(xfrmPlacesOf),
    sight: {
      ...tunnelSight(around),
      keysOf: (ifindex) => keys.filter(([, to]) => to === ifindex).map(([key]) => key),
    },
  };
}

/** Where there are no tables; netdevs may be left of some that were. */
export function observeNoTunnels(host: HostFacts, pinRoot: string): ObservedTunnels {
  const nothing = () => undefined;
  return {
    host,
    rows: [],
    keys: [],
    attachments: [],
    xfrm: [],
    sight: {
      names: tunnelNames(pinRoot),
      tcx: usesTcx(LOOPBACK),
      followed: false,
      row: nothing,
      target: nothing,
      keysOf: () => [],
      isCounted: () => false,
      programId: () => 0,
      attachmentAt: nothing,
      details: nothing,
      sendOffloads: () => [],
    },
  };
}

/** Live: each answer is of the moment of the question. */
export function tunnelSight({ instance, tables, netlink }: Surroundings): TunnelSight {
  const { tunnels } = tables;
  const tcx = once(() => usesTcx(LOOPBACK));
  const followed = once(() => isHeld(instance.pinRoot));
  return {
    names: tunnelNames(instance.pinRoot),
    get tcx() {
      return tcx();
    },
    get followed() {
      return followed();
    },
    row: (ifindex) => tunnels.rows.get(ifindex),
    target: (key) => tunnels.index.get(key),
    keysOf: (ifindex) => tunnels.keysOf(ifindex),
    isCounted: (ifindex) => tunnels.isCounted(ifindex),
    programId: (program) => instance.program(program).info().id,
    attachmentAt: (place) => {
      refuseForeign(netlink, place);
      return tunnelAttachmentAt(instance, place);
    },
    details: (ifindex) => linkDetails(netlink, ifindex),
    sendOffloads: (name) => sendOffloads(name) ?? [],
  };
}

/** Those that run for the tunnels and the shared XFRM interfaces of the tables, each where it belongs. */
export function tunnelPrograms(instance: Instance): TunnelAttachment[] {
  const { tunnels, interfaces } = new Tables(instance);
  const builtin = tunnels.list().filter((row) => row.peer_ifindex !== 0);
  const places = [...builtin.flatMap(placesOf), ...interfaces.list().flatMap(xfrmPlacesOf)];
  const one = new Map(places.map((place) => [placeKey(place), place]));
  return [...one.values()].flatMap((place) => {
    const found = tunnelAttachmentAt(instance, place);
    return found?.alive ? [found] : [];
  });
}

/** Throws E_FOREIGN where another filter has the place of ours. */
export function refuseForeign(netlink: Netlink, { ifindex, program }: TunnelPlace): void {
  const { handle, priority } = TUNNEL_FILTER;
  const direction = DIRECTIONS[program];
  const found = netlink
    .filters(ifindex, PARENTS[direction])
    .find((filter) => filter.handle === handle && filter.priority === priority);
  if (!found || hasTunnelName(found)) return;
  throw new LasthopError(
    "E_FOREIGN",
    `another filter has handle ${handle} of priority ${priority} on interface ${ifindex}`,
    {
      hint: `See whose it is: \`tc filter show dev IFACE ${direction}\`. Its owner can give it another priority.`,
    },
  );
}
