// SPDX-License-Identifier: Apache-2.0
// Does what was planned. Each action is a unit: when one of its steps fails, those before it are taken back, it is
// reported, and the others have their turn.

import { attachUnit, type RunSteps } from "./attachInterface.ts";
import { stateStep } from "./attachSteps.ts";
import {
  bridgeSteps,
  detachSteps,
  forgetVms,
  goneSteps,
  strayFilterSteps,
  strayLinkSteps,
  unfinishedSteps,
} from "./detach.ts";
import { removeDevice, setDevice } from "./devices.ts";
import { type Failure, failure } from "./failure.ts";
import { labelStackSteps } from "./labelStacks.ts";
import type { Surroundings } from "./observe.ts";
import type { TableAction } from "./plan.ts";
import { removeService, removeVm, setService, setVm } from "./serviceSpec.ts";
import { runSteps, type Step } from "./steps.ts";

export interface Applied {
  /** What was done, in order, for people. */
  done: string[];
  failed: Failure[];
}

export interface ApplyOptions {
  /** Something that happens now and that the operator should know. */
  warn(message: string): void;
  /** How the steps of an action are run. */
  run?: RunSteps;
}

/** The caller has the lock. */
export function apply(around: Surroundings, actions: readonly TableAction[], options: ApplyOptions): Applied {
  const applied: Applied = { done: [], failed: [] };
  for (const action of actions) {
    try {
      applied.done.push(...applyOne(around, action, options));
    } catch (error) {
      applied.failed.push(failure(action.object, action.config, error));
    }
  }
  if (actions.some(({ kind }) => kind === "gone" || kind === "detach")) forgetVms(around.tables);
  return applied;
}

/** All of it, or nothing of it and an error. */
function applyOne(around: Surroundings, action: TableAction, options: ApplyOptions): string[] {
  const { warn, run = runSteps } = options;
  if (action.kind === "attach" || action.kind === "change") {
    for (const warning of action.unit.warnings) warn(warning);
    const { done } = attachUnit(around, action.unit, warn, run);
    // One that is new says how by its last step.
    return done.length > 0 ? done : [action.text];
  }
  if (action.kind === "detach" && action.observed.attachments[0]?.hook === "xdp_native") {
    warn(`${action.object}: detaching native XDP may reset the link for a moment`);
  }
  const done = run(stepsOf(around, action));
  return done.length > 0 ? done : [doneText(action)];
}

function stepsOf(around: Surroundings, action: Exclude<TableAction, { kind: "attach" | "change" }>): Step[] {
  const { tables } = around;
  switch (action.kind) {
    case "control":
      return controlSteps(around, action);
    case "zone":
      return [zoneStep(around, action)];
    case "label-stacks":
      return labelStackSteps(tables, action.changes);
    case "repair": {
      const { left } = action;
      if ("unfinished" in left) return unfinishedSteps(around, left.unfinished);
      return "link" in left ? strayLinkSteps(around, left.link) : strayFilterSteps(around, left.filter);
    }
    case "gone":
      return goneSteps(around, action.observed, action.keep);
    case "detach":
      return detachSteps(around, action.observed);
    case "last-hops":
      return [stateStep(around, action.ifindex, action.state)];
    case "bridge":
      return bridgeSteps(tables, [action.unused]);
    case "device-add":
    case "device-change":
      return setDevice(around, action.name, action.device);
    case "device-remove":
      return removeDevice(around, action.name);
    case "vm-add":
    case "vm-change":
      return setVm(around, action.name, action.spec);
    case "vm-remove":
      return removeVm(around, action.name);
    case "service-add":
    case "service-change":
      return setService(around, action.name, action.spec);
    case "service-remove":
      return removeService(around, action.name);
  }
}

function doneText(action: TableAction): string {
  return action.kind === "detach" ? `${action.object}: detached` : action.text;
}

function controlSteps(
  { tables }: Surroundings,
  { timeouts, relearnDamping }: Extract<TableAction, { kind: "control" }>,
): Step[] {
  const old = tables.control.get();
  return [
    {
      done: null,
      do: () => tables.control.set({ timeouts, relearn_damping: relearnDamping }),
      undo: () => tables.control.set({ timeouts: old.timeouts, relearn_damping: old.relearn_damping }),
    },
  ];
}

function zoneStep({ tables }: Surroundings, { zone, number }: Extract<TableAction, { kind: "zone" }>): Step {
  return {
    done: null,
    do: () => {
      // What is left of the zone that had the number before.
      tables.sweep.resetZone(number, "ended");
      tables.zones.set(zone, number);
    },
    undo: () => {
      tables.zones.delete(zone);
    },
  };
}
