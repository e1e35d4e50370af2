// SPDX-License-Identifier: Apache-2.0
// Makes the cells of the operator's VMs what their entries and the host ask for: who each one is, where, and in which
// state.

import { currentTick } from "../abi/codec.ts";
import { CAUSE, INTERFACE_FLAG, ORIGIN, ROLE, VM_FLAG, VM_STATE } from "../abi/layout.gen.ts";
import { formatMac } from "../addresses.ts";
import { isHeld } from "../kernel/holder.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { isErrno } from "../libbpf/index.ts";
import { type InterfaceEntry, isZero, type Tables, type VmCell } from "../tables/index.ts";
import { once } from "./hostFacts.ts";
import type { Surroundings } from "./observe.ts";
import type { Pieces } from "./pieces.ts";
import type { BrokenSpec, NamedVm } from "./serviceSpec.ts";
import { type CellPlan, type CellRequest, planCells } from "./vmCells.ts";
import { type PlaceFacts, type Tap, type VmPlace, vmKeyOf, vmPlaces } from "./vmPlaces.ts";
import { type VmCondition, vmStateOf } from "./vmState.ts";

const NO_MAC = Buffer.alloc(6);
/** Entries between two pauses. */
const SEVERAL = 64;
/** The hot path may enter a VM at the same moment, under an id of its own. */
const ATTEMPTS = 8;

/** A VM as services may use it. */
export interface SettledVm {
  name: string;
  config: NamedVm["config"];
  zone: number;
  /** 0 until its MAC is known. */
  id: number;
  cell: number | null;
  /** enum vm_state */
  state: number;
  mac: Buffer | null;
}

export interface VmsSettled {
  vms: SettledVm[];
  /** Cells in use. */
  cells: number;
  /** Something was written. */
  changed: boolean;
  /** What was done, for the log. */
  lines: string[];
  /** What stands in the way of something. */
  problems: string[];
}

/** Idempotent. The caller holds the lock, and sets control.vm_cells when services are done too. */
export function* settleVms(
  around: Surroundings,
  named: readonly NamedVm[],
  broken: readonly BrokenSpec[],
): Pieces<VmsSettled> {
  const { tables } = around;
  const cells = tables.guests.inUse();
  const result: VmsSettled = { vms: [], cells: cells.size, changed: false, lines: [], problems: [] };
  if (named.length === 0 && cells.size === 0) return result;
  const facts = yield* readFacts(around);
  const places = vmPlaces(named, facts);
  yield;
  const { plans, full } = yield* enter(tables, named, places, facts, cells);
  for (const name of full) result.problems.push(`VM ${name}: there are too many VMs for it (E_VM)`);
  const ids = new Map([...plans].map(([name, { id }]) => [name, id]));
  const settled = new Set<number>();
  let count = 0;
  for (const vm of named) {
    const place = places.get(vm.name)!;
    const plan = plans.get(vm.name);
    const condition = conditionOf(vm, place, plan);
    for (const warning of place.warnings) result.problems.push(`VM ${vm.name}: ${warning}`);
    result.problems.push(...problemsOf(vm, place, plan, ids));
    if (plan && plan.cell !== null) {
      settled.add(plan.cell);
      const wanted = cellOf(plan.id, place, condition.state, ids.get(vm.config.responses ?? "") ?? 0);
      const own = wanted.responses === plan.id ? { ...wanted, responses: 0 } : wanted;
      if (writeCell(tables, plan.cell, own, cells.get(plan.cell))) result.changed = true;
    }
    if (writeSpec(tables, vm, place, plan, condition, result.lines)) result.changed = true;
    result.vms.push(settledVm(vm, place, plan, condition));
    if (++count % SEVERAL === 0) yield;
  }
  // What nobody can read is left as it is.
  const kept = new Set(broken.map(({ number }) => number));
  for (const [cell, vm] of cells) {
    if (settled.has(cell) || kept.has(vm.id)) continue;
    if (writeCell(tables, cell, leaving(vm, facts), vm)) result.changed = true;
  }
  result.cells = new Set([...cells.keys(), ...settled]).size;
  return result;
}

// What the host and the hot path know

type Facts = PlaceFacts & { known: Map<string, { id: number; ifindex: number }> };

function* readFacts({ instance, tables, netlink }: Surroundings): Pieces<Facts> {
  const links = netlink.links();
  yield;
  const isFollowed = isHeld(instance.pinRoot);
  const byIndex = new Map(links.map((link) => [link.ifindex, link]));
  const vlans = links.filter(({ kind }) => kind === "vlan");
  const taps = tables.interfaces.list().flatMap((entry): Tap[] => {
    const link = byIndex.get(entry.ifindex);
    const isTap = entry.role === ROLE.TAP && (entry.flags & INTERFACE_FLAG.GONE) === 0;
    return link && isTap ? [tapOf(tables, entry, link, vlans, isFollowed)] : [];
  });
  yield;
  const known: Facts["known"] = new Map();
  for (const [{ zone, mac }, { id, ifindex }] of tables.vms.entries()) {
    known.set(vmKeyOf(zone, mac), { id, ifindex });
  }
  yield;
  return {
    taps,
    seen: known,
    known,
    fdb: once(() => netlink.fdb()),
    neighbours: once(() => netlink.neighbours()),
  };
}

function tapOf(
  tables: Tables,
  entry: InterfaceEntry,
  link: Link,
  vlans: readonly Link[],
  isFollowed: boolean,
): Tap {
  const { ifindex, slot, zone, l3_ifindex } = entry;
  const first = tables.taps.get(slot);
  const tagged = vlans.filter(({ lower }) => lower === l3_ifindex);
  return {
    link,
    slot,
    zone,
    hostMac: formatMac(entry.host_mac),
    stack: [...new Set([ifindex, l3_ifindex, ...tagged.map((vlan) => vlan.ifindex)])],
    // When nobody would see it come up, it counts as up.
    usable: !isFollowed || (link.flags.up && link.flags.running),
    firstVm: first && first.vm !== 0 && !isZero(first.mac) ? first.mac : null,
  };
}

// Who they are

/** Ids and cells, and an entry for each VM that the hot path has not seen yet. */
function* enter(
  tables: Tables,
  named: readonly NamedVm[],
  places: ReadonlyMap<string, VmPlace>,
  facts: Facts,
  cells: ReadonlyMap<number, VmCell>,
): Pieces<{ plans: Map<string, CellPlan>; full: string[] }> {
  const requests = named.flatMap(({ name, spec }): CellRequest[] => {
    const { mac, tap } = places.get(name)!;
    if (!mac) return [];
    const id = spec.mac.equals(mac) ? spec.id : 0;
    return [{ name, zone: spec.zone, mac, hasTap: tap !== null, id }];
  });
  for (let attempt = 1; ; attempt++) {
    const plans = planCells(requests, { known: facts.known, cells });
    const full: string[] = [];
    let isSettled = true;
    for (const { name, zone, mac } of requests) {
      const { tap } = places.get(name)!;
      const plan = plans.get(name);
      const key = vmKeyOf(zone, mac);
      if (!plan || !tap || facts.known.has(key)) continue;
      const entry = {
        id: plan.id,
        ifindex: tap.link.ifindex,
        last_seen: currentTick(),
        origin: ORIGIN.LEARNED,
      };
      try {
        const isNew = tables.vms.insert({ zone, mac }, entry);
        if (!isNew) isSettled = false;
        const { id, ifindex } = isNew ? entry : (tables.vms.get({ zone, mac }) ?? entry);
        facts.known.set(key, { id, ifindex });
      } catch (error) {
        if (!isErrno(error, "E2BIG")) throw error;
        full.push(name);
        plans.delete(name);
      }
    }
    if (isSettled || attempt === ATTEMPTS) return { plans, full };
    yield;
  }
}

function conditionOf({ spec }: NamedVm, place: VmPlace, plan: CellPlan | undefined): VmCondition {
  const tapThere = place.tap?.usable === true;
  const condition = vmStateOf(spec, { tapThere, macKnown: place.mac !== null });
  const isLost = condition.state !== VM_STATE.DOWN && (plan === undefined || plan.cell === null);
  return isLost ? { state: VM_STATE.DOWN, cause: CAUSE.NONE } : condition;
}

function problemsOf(
  { name, config }: NamedVm,
  { why }: VmPlace,
  plan: CellPlan | undefined,
  ids: ReadonlyMap<string, number>,
): string[] {
  const { responses } = config;
  const problems: string[] = [];
  if (why !== null) problems.push(`VM ${name}: ${why}`);
  if (plan && plan.cell === null) {
    problems.push(
      `VM ${name} gets no frames: other VMs have all cells that its id ${plan.id} allows (E_VM); ` +
        "with another MAC it gets another id",
    );
  }
  if (responses !== undefined && !ids.has(responses)) {
    problems.push(`VM ${name}: nothing is known of ${responses}, so it gets its responses itself`);
  }
  return problems;
}

function settledVm(
  { name, config, spec }: NamedVm,
  { mac }: VmPlace,
  plan: CellPlan | undefined,
  { state }: VmCondition,
): SettledVm {
  return { name, config, zone: spec.zone, id: plan?.id ?? 0, cell: plan?.cell ?? null, state, mac };
}

// Writing

function cellOf(id: number, { tap, mac }: VmPlace, state: number, responses: number): VmCell {
  return {
    id,
    ifindex: tap?.link.ifindex ?? 0,
    slot: tap?.slot ?? 0,
    mac: mac ?? NO_MAC,
    state,
    flags: tap?.link.kind === "tun" ? VM_FLAG.XDP : 0,
    responses,
  };
}

/** Of a VM that nobody names any more: it keeps its flows until a sweep finds none. */
function leaving(vm: VmCell, { taps }: PlaceFacts): VmCell {
  const isThere = taps.some(({ link, slot }) => link.ifindex === vm.ifindex && slot === vm.slot);
  if (isThere) return { ...vm, state: VM_STATE.DRAIN };
  return { ...vm, state: VM_STATE.DOWN, ifindex: 0, slot: 0, flags: 0 };
}

/** True if that was necessary. */
function writeCell({ guests }: Tables, cell: number, wanted: VmCell, before: VmCell | undefined): boolean {
  if (before && isSameCell(before, wanted)) return false;
  if (!before) {
    guests.clearStats(cell);
    guests.flows.set(cell, 0);
    // All else first: with its id programs find it.
    guests.cells.set(cell, { ...wanted, id: 0 });
  }
  guests.cells.set(cell, wanted);
  return true;
}

function isSameCell(a: VmCell, b: VmCell): boolean {
  const fields = ["id", "ifindex", "slot", "state", "flags", "responses"] as const;
  return a.mac.equals(b.mac) && fields.every((field) => a[field] === b[field]);
}

function writeSpec(
  { guests }: Tables,
  { name, spec }: NamedVm,
  place: VmPlace,
  plan: CellPlan | undefined,
  { state, cause }: VmCondition,
  lines: string[],
): boolean {
  const isKnown = place.mac !== null && spec.mac.equals(place.mac);
  const found = {
    id: plan?.id ?? (isKnown ? spec.id : 0),
    ifindex: place.tap?.link.ifindex ?? 0,
    mac: place.mac ?? NO_MAC,
    state,
    cause,
  };
  const isMoved = spec.ifindex !== found.ifindex;
  const isOther = spec.state !== state || spec.cause !== cause;
  if (!isMoved && !isOther && spec.id === found.id && spec.mac.equals(found.mac)) return false;
  const changed = spec.state === state ? spec.changed : currentTick();
  guests.specs.set({ name }, { ...spec, ...found, changed });
  const text = stateText({ state, cause }, place);
  if (isOther) lines.push(`VM ${name} is ${text}`);
  else if (isMoved && place.tap) lines.push(`VM ${name} is on ${place.tap.link.name} now`);
  return true;
}

const CAUSE_TEXTS: Readonly<Record<number, string>> = {
  [CAUSE.OPERATOR]: "the operator has taken it down",
  [CAUSE.INTERFACE]: "its tap is not there",
  [CAUSE.NEIGHBOUR]: "nobody answers for its address",
  [CAUSE.PROBE]: "its check fails",
};

function stateText({ state, cause }: VmCondition, { tap, why }: VmPlace): string {
  if (state === VM_STATE.UP) return `up on ${tap!.link.name}`;
  if (state === VM_STATE.DRAIN) return `drained on ${tap!.link.name}`;
  const isOfPlace = why !== null && (cause === CAUSE.INTERFACE || cause === CAUSE.NEIGHBOUR);
  const because = isOfPlace ? why : CAUSE_TEXTS[cause];
  return because === undefined ? "down" : `down: ${because}`;
}
