// SPDX-License-Identifier: Apache-2.0
// The steps that bring the right program to the right hook of an interface, and take every other one of ours away.

import {
  type Attachment,
  attachAt,
  changeProgram,
  detachAt,
  finishLink,
  NEW_SUFFIX,
  type Place,
  programFor,
  removeQdiscIfEmpty,
  reopenLink,
} from "../kernel/attachment.ts";
import type { Instance } from "../kernel/instance.ts";
import { clsact } from "../libbpf/index.ts";
import type { Hook } from "../ops/types.ts";
import type { Current } from "./attachSteps.ts";
import type { WantedAt } from "./interfaceEntry.ts";
import type { Surroundings } from "./observe.ts";
import type { Step } from "./steps.ts";

/** What only becomes known while the steps run. */
export interface Progress {
  /** The clsact qdisc was not there before us. */
  qdiscOurs: boolean;
}

export interface HookSteps {
  /** Before the entry is written. */
  before: Step[];
  /** When all tables are right. */
  after: Step[];
}

const nothing = (): void => undefined;

/** For people; empty if the hook stays as it is. `programId`: what it is to run. */
export function hookChanges(now: Current, { role, hook }: WantedAt, programId: number): string[] {
  const [old, ...others] = now.attachments ?? [];
  const changes = others.map((other) => `one program less (${other.hook})`);
  if (!now.entry) return changes;
  if (!old?.alive) return [`attached again, by ${hook}`, ...changes];
  if (old.hook !== hook) return [`by ${hook} instead of ${old.hook}`, ...changes];
  // A role that changes is told as such.
  if (old.role === role && old.programId !== programId) return ["the program that is pinned", ...changes];
  return changes;
}

export function hookSteps(
  around: Surroundings,
  now: Current,
  wanted: WantedAt,
  why: string,
  progress: Progress,
): HookSteps {
  const { instance } = around;
  const [old, ...others] = now.attachments ?? [];
  const main = mainSteps(around, now, old, wanted, why, progress);
  const surplus = others.map((other) => surplusStep(instance, wanted, other));
  // First: a link that is left may have the name that the new one gets. The right one still works.
  return { before: [...surplus, ...main.before], after: main.after };
}

/** Both would count what comes in. What was one too many is not put back. */
function surplusStep(instance: Instance, { link }: WantedAt, { role, hook, alive }: Attachment): Step {
  return {
    done: alive ? `${link.name}: one program less (${hook})` : null,
    do: () => detachAt(instance, { ifindex: link.ifindex, role, hook }),
    undo: nothing,
  };
}

function mainSteps(
  around: Surroundings,
  now: Current,
  old: Attachment | undefined,
  wanted: WantedAt,
  why: string,
  progress: Progress,
): HookSteps {
  const { instance } = around;
  const to: Place = { ifindex: wanted.link.ifindex, role: wanted.role, hook: wanted.hook };
  const done = `${wanted.link.name}: attached by ${wanted.hook}, since ${why}`;
  const qdisc =
    to.hook === "clsact" && old?.hook !== "clsact" ? [qdiscStep(around, to.ifindex, progress)] : [];
  const attach = (suffix = ""): Step => ({
    done,
    do: () => attachAt(instance, to, { suffix, replace: now.orphan }),
    undo: () => detachAt(instance, to, suffix),
  });
  if (!old?.alive) {
    const clear: Step = { done: null, do: () => detachAt(instance, { ...to, ...old }), undo: nothing };
    return { before: qdisc, after: old ? [clear, attach()] : [attach()] };
  }
  const from: Place = { ifindex: to.ifindex, role: old.role, hook: old.hook };
  if (from.hook === to.hook) return { before: [], after: sameHookSteps(instance, old, from, to) };
  const detach: Step = {
    done: `${wanted.link.name}: detached from ${from.hook}`,
    do: () => detachAt(instance, from),
    undo: () => attachAt(instance, from),
  };
  // The kernel does not have native and generic XDP on one interface at the same time.
  if (isXdp(from.hook) && isXdp(to.hook)) return { before: [], after: [detach, attach()] };
  const leave = from.hook === "clsact" ? [leaveQdiscStep(around, to.ifindex, progress)] : [];
  if (to.hook === "clsact") return { before: [...qdisc, attach()], after: [detach] };
  return { before: [attach(NEW_SUFFIX)], after: [detach, renameStep(instance, to), ...leave] };
}

function sameHookSteps(instance: Instance, old: Attachment, from: Place, to: Place): Step[] {
  if (from.role !== to.role) {
    const undo = () => changeProgram(instance, to, from.role);
    return [{ done: null, do: () => changeProgram(instance, from, to.role), undo }];
  }
  if (old.programId === programFor(instance, to.role, to.hook).info().id) return [];
  // What it ran before is no longer pinned.
  return [
    { done: "the program that is pinned", do: () => changeProgram(instance, from, to.role), undo: nothing },
  ];
}

function qdiscStep({ netlink }: Surroundings, ifindex: number, progress: Progress): Step {
  let created = false;
  return {
    done: null,
    do: () => {
      created = clsact.create(ifindex);
      progress.qdiscOurs ||= created;
    },
    undo: () => {
      if (created) removeQdiscIfEmpty(netlink, ifindex);
    },
  };
}

function leaveQdiscStep({ netlink }: Surroundings, ifindex: number, progress: Progress): Step {
  let removed = false;
  return {
    done: null,
    do: () => {
      removed = progress.qdiscOurs && removeQdiscIfEmpty(netlink, ifindex);
    },
    undo: () => {
      if (removed) clsact.create(ifindex);
    },
  };
}

function renameStep(instance: Instance, { role, ifindex }: Place): Step {
  return {
    done: null,
    do: () => finishLink(instance, role, ifindex),
    undo: () => reopenLink(instance, role, ifindex),
  };
}

export function isXdp(hook: Hook): boolean {
  return hook === "xdp_native" || hook === "xdp_generic";
}
