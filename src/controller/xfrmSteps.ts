// SPDX-License-Identifier: Apache-2.0
// The programs of a shared XFRM interface, which come and go with its uplink.

import { TUNNEL_FILTER } from "../config/defaults.ts";
import { detachLink } from "../kernel/attachment.ts";
import {
  attachTunnelProgram,
  DIRECTIONS,
  placeKey,
  renewTunnelProgram,
  type TunnelAttachment,
  type TunnelPlace,
  tunnelAttachmentAt,
} from "../kernel/tunnelAttachment.ts";
import { pinXfrmPrograms } from "../kernel/xfrmObject.ts";
import { clsact } from "../libbpf/index.ts";
import type { Current } from "./attachSteps.ts";
import { entryOf, type WantedAt } from "./interfaceEntry.ts";
import type { Observed, ObservedInterface, Surroundings } from "./observe.ts";
import type { Step } from "./steps.ts";
import { refuseForeign } from "./tunnelObserve.ts";
import { xfrmPlacesOf } from "./tunnelSpec.ts";

const nothing = (): void => undefined;

/** For people; empty if all is there. A new interface has none. */
export function xfrmChanges(
  { entry, xfrm = [] }: Current,
  wanted: WantedAt,
  programs: Observed["xfrmPrograms"],
): string[] {
  if (!entry) return [];
  const isThere = ({ program }: TunnelPlace): boolean =>
    xfrm.some((one) => one.program === program && one.alive && one.programId === programs.get(one.program));
  return placesOf(wanted).every(isThere) ? [] : ["the programs that follow its interface ids"];
}

/** Before the uplink's own program, which reads what xfrm_in leaves. */
export function xfrmSteps(around: Surroundings, wanted: WantedAt): Step[] {
  const places = placesOf(wanted);
  if (places.length === 0) return [];
  const { instance } = around;
  const pin: Step = { done: null, do: () => pinXfrmPrograms(instance), undo: nothing };
  return [pin, ...places.map((place) => placeStep(around, place, wanted.hook === "clsact"))];
}

function placesOf(wanted: WantedAt): TunnelPlace[] {
  const { flags } = entryOf(wanted, 0);
  return xfrmPlacesOf({ ifindex: wanted.link.ifindex, flags });
}

function placeStep({ instance, netlink }: Surroundings, place: TunnelPlace, isClsact: boolean): Step {
  let made: TunnelAttachment | undefined;
  return {
    done: null,
    do: () => {
      refuseForeign(netlink, place);
      const there = tunnelAttachmentAt(instance, place);
      if (there?.alive) renewTunnelProgram(instance, there);
      else {
        const hook = isClsact ? "clsact" : "tcx";
        attachTunnelProgram(instance, place, hook);
        made = { ...place, hook, programId: 0, alive: true };
      }
    },
    undo: () => {
      if (made) detach(instance, made);
    },
  };
}

/** With the uplink's program; the qdisc is that one's to leave. */
export function xfrmDetachSteps({ instance }: Surroundings, { xfrm, link }: ObservedInterface): Step[] {
  return xfrm.map((one) => ({
    done: null,
    do: () => detach(instance, one),
    undo: one.alive && link ? () => attachTunnelProgram(instance, one, one.hook) : nothing,
  }));
}

function detach(instance: Surroundings["instance"], { ifindex, program, hook }: TunnelAttachment): void {
  if (hook === "tcx") detachLink(instance, placeKey({ ifindex, program }));
  else clsact.detach({ ifindex, direction: DIRECTIONS[program], ...TUNNEL_FILTER });
}
