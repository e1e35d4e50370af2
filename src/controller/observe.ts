// SPDX-License-Identifier: Apache-2.0
// What is there: tables, pinned links and filters, beside what the host says of its interfaces. Reads only.

import { encode, type StructValue, secondsToTicks } from "../abi/codec.ts";
import { HOOK, INTERFACE_FLAG, ROLE, TIMEOUT } from "../abi/layout.gen.ts";
import { formatMac } from "../addresses.ts";
import { RELEARN_DAMPING_SECONDS, TIMEOUT_SECONDS } from "../config/defaults.ts";
import {
  type Attachment,
  type AttachmentHook,
  type AttachmentRole,
  filtersAtOurPlace,
  hasOurName,
  linkAttachment,
  linkName,
  type PinnedLink,
  pinnedLinks,
  pinnedProgramIds,
  programFor,
} from "../kernel/attachment.ts";
import { vlanStripping } from "../kernel/ethtool.ts";
import { isHeld } from "../kernel/holder.ts";
import type { Instance } from "../kernel/instance.ts";
import type { Netlink } from "../kernel/netlink.ts";
import type { Filter, Link } from "../kernel/rtnetlink.ts";
import { usesTcx } from "../kernel/tc.ts";
import { type TunnelAttachment, type TunnelProgram, tunnelAttachmentAt } from "../kernel/tunnelAttachment.ts";
import { xfrmProgramIds } from "../kernel/xfrmObject.ts";
import type { Device, InterfaceEntry, Tables } from "../tables/index.ts";
import type { Guests } from "./desired.ts";
import { type HostFacts, once } from "./hostFacts.ts";
import { isAttached, isGone } from "./interfaceEntry.ts";
import { type LabelStacks, readLabelStacks } from "./labelStacks.ts";
import { type LastHopFacts, lastHopFacts, NO_LAST_HOPS } from "./lastHopFacts.ts";
import { atOnce, type Pieces } from "./pieces.ts";
import { NO_SPECS, type ObservedSpecs } from "./servicePlan.ts";
import { servicesInPieces, vmsInPieces } from "./serviceSpec.ts";
import { xfrmPlacesOf } from "./tunnelSpec.ts";

export interface Surroundings {
  instance: Instance;
  tables: Tables;
  netlink: Netlink;
}

export interface ObservedInterface {
  entry: InterfaceEntry;
  /** Undefined when its netdev is gone, also if another has its index now. */
  link: Link | undefined;
  /** Ours, those that count first; more than one only after a change that was interrupted. */
  attachments: Attachment[];
  budget: StructValue<"budget">;
  /** struct exclusions, encoded; null if there are none. */
  exclusions: Buffer | null;
  /** Where its slot sends. */
  egress: number | undefined;
  /** Of a shared XFRM interface: the programs that follow its interface ids. */
  xfrm: readonly TunnelAttachment[];
}

/** A clsact filter at the place of ours that is not attached to an entry. */
export interface StrayFilter {
  ifindex: number;
  programId: number | null;
  /** `orphan`: of us or of an instance of which nothing else is left; `foreign`: somebody's. */
  kind: "orphan" | "foreign";
}

/** Ids of the programs, by role and kind of hook. */
export type Programs = (role: AttachmentRole, hook: AttachmentHook) => number;

export interface Observed {
  host: HostFacts;
  /** Null: there are no tables yet. */
  programs: Programs | null;
  /** Ids of those that are pinned. */
  xfrmPrograms: ReadonlyMap<TunnelProgram, number>;
  interfaces: ObservedInterface[];
  /** By ifindex. */
  bridges: ReadonlyMap<number, InterfaceEntry>;
  /** Links that an interrupted change left. */
  unfinished: PinnedLink[];
  /** Links that belong to no entry. */
  strayLinks: PinnedLink[];
  strayFilters: StrayFilter[];
  lastHops: LastHopFacts;
  readonly guests: Guests;
  timeouts: readonly number[];
  relearnDamping: number;
  zones: ReadonlyMap<number, number>;
  labelStacks: LabelStacks;
  devices: ReadonlyMap<string, Device>;
  /** VMs and services. */
  specs: ObservedSpecs;
  /** A daemon has the instance: it will see when what is down comes up. */
  followed: boolean;
  /** TC means TCX on this host. */
  tcx: boolean;
  /** Features that take VLAN tags out of received frames; null if it does not say. */
  vlanStripping(link: Link): readonly string[] | null;
}

const LOOPBACK = 1;

/** Where there are no tables; filters may be left of some that were. */
export function observeNothing(host: HostFacts, netlink: Netlink): Observed {
  return { ...nothing(host), strayFilters: strayFilters(filtersAtOurPlace(netlink), new Map(), () => -1) };
}

function nothing(host: HostFacts): Observed {
  return {
    host,
    programs: null,
    xfrmPrograms: new Map(),
    interfaces: [],
    bridges: new Map(),
    unfinished: [],
    strayLinks: [],
    strayFilters: [],
    lastHops: NO_LAST_HOPS,
    guests: new Map(),
    // As tables are made.
    timeouts: defaultTimeouts(),
    relearnDamping: secondsToTicks(RELEARN_DAMPING_SECONDS),
    zones: new Map(),
    labelStacks: new Map(),
    devices: new Map(),
    specs: NO_SPECS,
    followed: false,
    tcx: usesTcx(LOOPBACK),
    vlanStripping: ({ name }) => vlanStripping(name),
  };
}

function defaultTimeouts(): number[] {
  const ticks: number[] = [];
  for (const [name, index] of Object.entries(TIMEOUT)) {
    ticks[index] = secondsToTicks(TIMEOUT_SECONDS[name as keyof typeof TIMEOUT]);
  }
  return ticks;
}

/** VMs and services as they are entered: thousands of them are some 80 MB. */
export function* observeSpecs({ tables }: Pick<Surroundings, "tables">): Pieces<ObservedSpecs> {
  return { vms: yield* vmsInPieces(tables), services: yield* servicesInPieces(tables) };
}

/** `specs`: if they have been read already. */
export function observe(
  { instance, tables, netlink }: Surroundings,
  host: HostFacts,
  specs?: ObservedSpecs,
): Observed {
  const entries = tables.interfaces.list();
  const pinned = pinnedLinks(instance);
  const filters = filtersAtOurPlace(netlink);
  const programs = programsOf(instance);
  const present = new Map(entries.filter(isAttached).map((entry) => [entry.ifindex, entry]));
  const attachments = attachmentsBy(instance, host, pinned, filters, programs);
  const control = tables.control.get();
  const guests = once(() => guestsOf(tables, present));
  return {
    ...nothing(host),
    programs,
    xfrmPrograms: xfrmProgramIds(instance),
    interfaces: [...present.values()].map((entry) => ({
      ...observeInterface(tables, host, entry, attachments.get(entry.ifindex) ?? []),
      xfrm: xfrmPlacesOf(entry).flatMap((place) => tunnelAttachmentAt(instance, place) ?? []),
    })),
    bridges: new Map(
      entries.filter((entry) => entry.role === ROLE.BRIDGE).map((entry) => [entry.ifindex, entry]),
    ),
    unfinished: pinned.filter((link) => link.unfinished),
    strayLinks: pinned.filter((link) => !link.unfinished && !present.has(link.ifindex)),
    strayFilters: strayFilters(filters, present, programs),
    lastHops: lastHopFacts(tables.lastHops),
    get guests() {
      return guests();
    },
    followed: isHeld(instance.pinRoot),
    timeouts: control.timeouts,
    relearnDamping: control.relearn_damping,
    zones: new Map(tables.zones.entries()),
    labelStacks: readLabelStacks(tables),
    devices: new Map([...tables.devices.entries()].map(([{ name }, device]) => [name, device])),
    specs: specs ?? atOnce(observeSpecs({ tables })),
  };
}

function programsOf(instance: Instance): Programs {
  const ids = new Map<string, number>();
  return (role, hook) => {
    const key = `${role} ${hook}`;
    const id = ids.get(key) ?? programFor(instance, role, hook).info().id;
    ids.set(key, id);
    return id;
  };
}

function observeInterface(
  tables: Tables,
  host: HostFacts,
  entry: InterfaceEntry,
  attachments: readonly Attachment[],
): Omit<ObservedInterface, "xfrm"> {
  const link = host.link(entry.ifindex);
  // Links that are pinned but dead: the netdev that they were on has gone.
  const isReplaced = attachments.length > 0 && attachments.every(({ alive }) => !alive);
  const excludes = (entry.flags & INTERFACE_FLAG.EXCLUDES) !== 0;
  return {
    entry,
    link: isGone(entry) || isReplaced ? undefined : link,
    attachments: attachments.toSorted((a, b) => rank(entry, b) - rank(entry, a)),
    budget: tables.budgets.get(entry.slot)!,
    exclusions: excludes ? encode("exclusions", tables.exclusions.get(entry.slot)!) : null,
    egress: tables.egressDevices.get(entry.slot),
  };
}

/** Which of several is the right one: it works, and the entry says so. */
function rank(entry: InterfaceEntry, { alive, role, hook }: Attachment): number {
  const wanted = entry.role === ROLE[upper(role)];
  return (alive ? 4 : 0) + (wanted ? 2 : 0) + (entry.hook === HOOK[upper(hook)] ? 1 : 0);
}

function upper<T extends string>(word: T): Uppercase<T> {
  return word.toUpperCase() as Uppercase<T>;
}

/** As they will be when interrupted changes are finished. */
function attachmentsBy(
  instance: Instance,
  host: HostFacts,
  pinned: readonly PinnedLink[],
  filters: ReadonlyMap<number, Filter>,
  programs: Programs,
): Map<number, Attachment[]> {
  const found = new Map<number, Attachment[]>();
  const add = (ifindex: number, attachment: Attachment): void => {
    found.set(ifindex, [...(found.get(ifindex) ?? []), attachment]);
  };
  const names = new Set(pinned.map(({ name }) => name));
  for (const link of pinned) {
    if (link.unfinished && names.has(linkName(link.role, link.ifindex))) continue;
    const mode = host.link(link.ifindex)?.xdp?.mode ?? null;
    add(link.ifindex, linkAttachment(instance, link, mode));
  }
  for (const [ifindex, { programId }] of filters) {
    const role = roleOf(programId, programs);
    if (role) add(ifindex, { role, hook: "clsact", programId: programId!, alive: true });
  }
  return found;
}

/** The role whose program this is by clsact. */
function roleOf(programId: number | null, programs: Programs): AttachmentRole | undefined {
  if (programId === null) return undefined;
  return (["uplink", "tap"] as const).find((role) => programs(role, "clsact") === programId);
}

function strayFilters(
  filters: ReadonlyMap<number, Filter>,
  present: ReadonlyMap<number, unknown>,
  programs: Programs,
): StrayFilter[] {
  let pinned: Set<number> | undefined;
  return [...filters].flatMap(([ifindex, filter]) => {
    const { programId } = filter;
    if (roleOf(programId, programs)) {
      return present.has(ifindex) ? [] : [{ ifindex, programId, kind: "orphan" as const }];
    }
    if (!hasOurName(filter)) return [{ ifindex, programId, kind: "foreign" as const }];
    // Only now, since it walks the bpf file systems.
    pinned ??= pinnedProgramIds();
    const kind = programId !== null && pinned.has(programId) ? ("foreign" as const) : ("orphan" as const);
    return [{ ifindex, programId, kind }];
  });
}

/** Of attached taps only: an index may be another interface's by now. */
function guestsOf(tables: Tables, present: ReadonlyMap<number, InterfaceEntry>): Guests {
  const found = new Map<number, Set<string>>();
  for (const [key, vm] of tables.vms.entries()) {
    if (present.get(vm.ifindex)?.role !== ROLE.TAP) continue;
    const macs = found.get(vm.ifindex) ?? new Set();
    found.set(vm.ifindex, macs.add(formatMac(key.mac)));
  }
  return found;
}
