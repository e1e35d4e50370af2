// SPDX-License-Identifier: Apache-2.0
// Single changes of tunnels as steps that can be taken back.

import { switchFeatures } from "../kernel/ethtool.ts";
import { changeLink, deleteLink, type LinkSettings } from "../kernel/linkCreate.ts";
import {
  attachTunnelProgram,
  detachTunnelProgram,
  placeKey,
  renewTunnelProgram,
  type TunnelAttachment,
} from "../kernel/tunnelAttachment.ts";
import type { Surroundings } from "./observe.ts";
import type { Step } from "./steps.ts";
import type { TunnelChange } from "./tunnelChanges.ts";
import type { TunnelRemains } from "./tunnelPlan.ts";
import { placesOf, placesOnNetdevs, xfrmPlacesOf } from "./tunnelSpec.ts";

const nothing = (): void => undefined;

export function changeStep(around: Surroundings, change: TunnelChange): Step {
  return { done: null, ...actOf(around, change) };
}

function actOf(around: Surroundings, change: TunnelChange): Pick<Step, "do" | "undo"> {
  const { netlink, tables } = around;
  switch (change.kind) {
    case "link": {
      const { link, to, back } = change;
      const set = (settings: LinkSettings): void => {
        // Before Linux 6.7 one that is up keeps its name.
        if (settings.up === false) changeLink(netlink, link.ifindex, link.name, { up: false });
        changeLink(netlink, link.ifindex, link.name, settings);
      };
      return { do: () => set(to), undo: () => set(back) };
    }
    case "offloads": {
      // By its present name, which a change before this one may have made another.
      const set = (on: boolean): void => {
        const link = netlink.link(change.link.ifindex);
        if (link) switchFeatures(link.name, change.features, on);
      };
      return { do: () => set(false), undo: () => set(true) };
    }
    case "row": {
      const { row, old } = change;
      const { rows } = tables.tunnels;
      const undo = () => void (old ? rows.set(old.ifindex, old) : rows.delete(row.ifindex!));
      return { do: () => rows.set(row.ifindex!, row), undo };
    }
    case "count":
      return {
        do: () => tables.tunnels.beginCounting(change.ifindex),
        undo: () => void tables.tunnels.endCounting(change.ifindex),
      };
    case "program":
      return programAct(around, change);
    case "key": {
      const { key, to, from } = change;
      return { do: () => setKey(around, key, to), undo: () => setKey(around, key, from) };
    }
  }
}

function setKey(
  { tables }: Surroundings,
  key: Extract<TunnelChange, { kind: "key" }>["key"],
  to: number | null,
): void {
  if (to === null) tables.tunnels.index.delete(key);
  else tables.tunnels.index.set(key, to);
}

function programAct(
  around: Surroundings,
  { place, hook, old }: Extract<TunnelChange, { kind: "program" }>,
): Pick<Step, "do" | "undo"> {
  const { instance, netlink } = around;
  // What it ran before is no longer pinned.
  if (old) return { do: () => renewTunnelProgram(instance, old), undo: nothing };
  return {
    do: () => attachTunnelProgram(instance, place, hook),
    undo: () => detachTunnelProgram(instance, netlink, { ...place, hook }),
  };
}

/**
 * First nothing leads there any more, then the netdev goes, with its other end and the programs on both, and last what
 * told of it: who is killed in between is understood by the next. A netdev that has gone does not come back.
 */
export function removalSteps(around: Surroundings, remains: TunnelRemains): Step[] {
  const { tables, netlink, instance } = around;
  const { ifindex, name, link, row, keys } = remains;
  const { rows } = tables.tunnels;
  return [
    ...keys.map((key): Step => {
      return { done: null, do: () => setKey(around, key, null), undo: () => setKey(around, key, ifindex) };
    }),
    ...(link ? [{ done: null, do: () => void deleteLink(netlink, ifindex, name), undo: nothing }] : []),
    // With the netdevs gone only dead links are left.
    ...placesOnNetdevs(row).map(
      (place): Step => ({
        done: null,
        do: () => detachTunnelProgram(instance, netlink, { ...place, hook: "tcx" }),
        undo: nothing,
      }),
    ),
    {
      done: null,
      do: () => {
        if (row) rows.delete(ifindex);
        tables.tunnels.endCounting(ifindex);
      },
      undo: () => {
        if (row) rows.set(ifindex, row);
      },
    },
  ];
}

export function strayStep(around: Surroundings, stray: TunnelAttachment): Step {
  const { instance, netlink, tables } = around;
  const remove = (): void => {
    // A tunnel that was made meanwhile may have the place.
    const rows = tables.tunnels.list().filter((row) => row.peer_ifindex !== 0);
    const places = [...rows.flatMap(placesOf), ...tables.interfaces.list().flatMap(xfrmPlacesOf)];
    const needed = places.some((place) => placeKey(place) === placeKey(stray));
    if (!(needed && stray.alive)) detachTunnelProgram(instance, netlink, stray);
  };
  return { done: null, do: remove, undo: nothing };
}
