// SPDX-License-Identifier: Apache-2.0
/*
 * Follows the operator's VMs: whether their taps are there, what their checks say, and where their addresses are. That
 * one is down goes first into its cell, one word, so that it gets no packet more; then, under the lock, into its entry
 * and the pools of services. Up one comes in that second way only.
 */

import { CAUSE_NAMES, VM_STATE_NAMES } from "../abi/codec.ts";
import { VM_STATE } from "../abi/layout.gen.ts";
import { formatMac } from "../addresses.ts";
import { NEIGHBOUR_PROBE_SECONDS } from "../config/defaults.ts";
import { type Instance, openInstance } from "../kernel/instance.ts";
import { Netlink } from "../kernel/netlink.ts";
import type { Link, Neighbour } from "../kernel/rtnetlink.ts";
import type { Logger } from "../log.ts";
import { Tables } from "../tables/index.ts";
import type { AddressSighting } from "./addressWatch.ts";
import { askAnew } from "./deviceStack.ts";
import { addressOctets } from "./devices.ts";
import { Complaints, LockedWork } from "./lockedWork.ts";
import { inPieces, type Pieces } from "./pieces.ts";
import { type ProbeOutcome, sourceFor } from "./probes.ts";
import { Rounds } from "./rounds.ts";
import { settleServicesInPieces } from "./serviceSettle.ts";
import { sameSpec } from "./serviceSpec.ts";
import { VmChecker } from "./vmChecks.ts";
import { vmReader } from "./vmReader.ts";
import { VmRoster } from "./vmRoster.ts";
import { VmStack } from "./vmStack.ts";
import type { VmCondition } from "./vmState.ts";
import type { VmFinding, VmWatch } from "./vmWatch.ts";

/** How often what the command line may have changed is looked at. */
const TICK_MS = 1_000;

export interface VmMonitorOptions {
  pinRoot: string;
  log: Logger;
  metrics: { checked(vm: string, ok: boolean, seconds: number): void };
}

interface Opened {
  instance: Instance;
  tables: Tables;
  netlink: Netlink;
  roster: VmRoster;
  checker: VmChecker;
  stack: VmStack;
}

export class VmMonitor {
  readonly #options: VmMonitorOptions;
  /** Those whose taps are there and up. */
  readonly #there = new Set<VmWatch>();
  /** Why checks were not possible, as far as it was logged. */
  readonly #unavailable = new Set<string>();
  readonly #rounds = new Rounds<ProbeOutcome>({
    ask: (name) => this.#check(name),
    answered: (name, outcome) => this.#guard(() => this.#checked(name, outcome)),
    failed: (error) => this.#complaints.tell(error),
  });
  readonly #complaints: Complaints;
  readonly #settling: LockedWork;
  /** Health to be written, by the names of the VMs. */
  readonly #dirty = new Set<string>();
  /** Services may have other VMs than before. */
  #unsettled = false;
  #opened: Opened | undefined;
  #tick: NodeJS.Timeout | undefined;
  #ticks = 0;
  #looking: NodeJS.Immediate | undefined;
  #asking: Promise<void> | undefined;

  constructor(options: VmMonitorOptions) {
    this.#options = options;
    this.#complaints = new Complaints(options.log, "VMs cannot be followed");
    this.#settling = new LockedWork({
      pinRoot: options.pinRoot,
      work: () => this.#settle(),
      failed: (error) => this.#complaints.tell(error),
    });
  }

  /** Throws what opening the instance throws. */
  start(): void {
    const instance = openInstance(this.#options.pinRoot);
    try {
      const tables = new Tables(instance);
      const netlink = new Netlink();
      this.#opened = {
        ...{ instance, tables, netlink },
        roster: new VmRoster(vmReader(tables)),
        checker: new VmChecker(netlink),
        stack: new VmStack(tables, netlink),
      };
      this.#look();
    } catch (error) {
      if (this.#opened) this.#close();
      else instance.close();
      throw error;
    }
    this.#tick = setInterval(() => this.#guard(() => this.#onTick()), TICK_MS);
  }

  async stop(): Promise<void> {
    clearInterval(this.#tick);
    clearImmediate(this.#looking);
    this.#rounds.close();
    this.#opened?.checker.close();
    await this.#asking;
    await this.#settling.stop();
    this.#close();
  }

  /** VMs, services or interfaces were changed, and settled, or events were lost. Looks once for many. */
  vmsChanged(): void {
    this.#looking ??= setImmediate(() => {
      this.#looking = undefined;
      this.#guard(() => this.#look());
    });
  }

  /** The hot path has seen a VM for the first time, or on another tap. */
  vmSeen({ ifindex, zone, mac }: { ifindex: number; zone: number; mac: Buffer }): void {
    this.#guard(() => {
      const { roster, stack } = this.#opened!;
      if (!roster.concerns(zone, mac, stack.links.get(ifindex)?.name)) return;
      this.#unsettled = true;
      this.vmsChanged();
    });
  }

  /** An entry of the neighbour table; state "none" without a MAC: it is gone. */
  neighbourChanged(neighbour: Neighbour): void {
    if (!this.#opened?.roster.at(neighbour.address).length) return;
    this.#guard(() => {
      this.#neighbourSeen(neighbour);
      this.#settleSoon();
    });
  }

  /** A link that is gone is one that is down. */
  linkChanged(link: Link): void {
    this.#guard(() => {
      const { roster, stack } = this.#opened!;
      stack.changed(link);
      for (const watch of roster.all()) {
        if (watch.spec.ifindex === link.ifindex) this.#judge(watch);
      }
      this.#settleSoon();
    });
  }

  #guard(work: () => void): void {
    if (this.#opened) this.#complaints.guard(work);
  }

  #close(): void {
    const opened = this.#opened;
    this.#opened = undefined;
    opened?.netlink.close();
    opened?.instance.close();
  }

  /** Everything anew. */
  #look(): void {
    this.#refresh();
    this.#askNeighbours();
    this.#settleSoon();
  }

  #onTick(): void {
    this.#ticks++;
    const { roster } = this.#opened!;
    const changed = this.#readVms();
    // What asked for a change may have been killed before it was settled.
    if (changed) this.#unsettled = true;
    for (const watch of roster.all()) this.#follow(watch, watch.due(performance.now()));
    if (changed || (roster.size > 0 && this.#ticks % NEIGHBOUR_PROBE_SECONDS === 0)) {
      this.#refresh();
      this.#askNeighbours();
    } else {
      this.#judgeAll();
    }
    this.#settleSoon();
  }

  /** All that is asked of the kernel and the tables at once. */
  #refresh(): void {
    const { stack, checker } = this.#opened!;
    stack.read();
    checker.keep(stack.links);
    this.#readVms();
    this.#judgeAll();
  }

  /** True if something else is asked for than before; all else is what was found out. */
  #readVms(): boolean {
    const { asked, gone, otherChecks } = this.#opened!.roster.read();
    for (const watch of gone) {
      this.#there.delete(watch);
      this.#dirty.delete(watch.name);
      this.#rounds.stop(watch.name);
    }
    for (const watch of otherChecks) {
      this.#rounds.stop(watch.name);
      if (this.#there.has(watch)) this.#startChecks(watch);
    }
    return asked;
  }

  // Neighbours

  #interfaces(watch: VmWatch, address = watch.address): ReadonlySet<number> {
    return address === null ? NONE : this.#opened!.stack.interfaces(watch.spec.ifindex, address);
  }

  #neighbourSeen(neighbour: Neighbour): void {
    const { netlink, roster } = this.#opened!;
    for (const watch of roster.at(neighbour.address)) {
      if (!this.#interfaces(watch).has(neighbour.ifindex)) continue;
      const sighting = watch.neighbourSeen(neighbour, performance.now());
      if (sighting?.ask) netlink.askNeighbour(neighbour.ifindex, neighbour.address, "resolve");
      this.#follow(watch, sighting?.change ?? null);
      this.#judge(watch);
    }
  }

  /** Of a VM whose MAC was given, nobody follows what its address has. */
  #follow(watch: VmWatch, change: AddressSighting["change"]): void {
    const { name, config, spec } = watch;
    if (change === null || config.mac !== undefined) return;
    const { from, to, began, holdMs, outcome } = change;
    const { log } = this.#options;
    if (began) {
      const message = `VM ${name}: its MAC changes too often, and is not followed for ${holdMs / 1000} s`;
      log.warning(message, { vm: name, mac: from ?? "", other_mac: to });
    }
    if (outcome !== "taken" || to === formatMac(spec.mac)) return;
    log.info(`VM ${name}: its MAC is ${to}`, { vm: name, mac: to, ...(from !== null && { from }) });
    this.#unsettled = true;
  }

  /** Has the kernel look whether the VMs' addresses are still there, and reads what it knows. */
  #askNeighbours(): void {
    if (this.#opened!.roster.addresses().length === 0) return;
    this.#asking ??= inPieces(this.#asked())
      .catch((error: unknown) => this.#complaints.tell(error))
      .finally(() => {
        this.#asking = undefined;
      });
  }

  *#asked(): Pieces<void> {
    const { netlink, roster } = this.#opened!;
    const known = new Map(netlink.neighbours().map((entry) => [`${entry.ifindex} ${entry.address}`, entry]));
    for (const address of roster.addresses()) {
      yield;
      if (!this.#opened) return;
      const interfaces = roster.at(address).flatMap((watch) => [...this.#interfaces(watch)]);
      for (const ifindex of new Set(interfaces)) {
        const entry = known.get(`${ifindex} ${address}`);
        if (entry) this.#neighbourSeen(entry);
        askAnew(netlink, ifindex, address, entry?.state ?? "none");
      }
    }
    this.#settleSoon();
  }

  // States

  #judgeAll(): void {
    for (const watch of this.#opened!.roster.all()) this.#judge(watch);
  }

  #judge(watch: VmWatch): void {
    const { ifindex, health } = watch.spec;
    const isThere = ifindex !== 0 && this.#opened!.stack.isUsable(ifindex);
    if (isThere !== this.#there.has(watch)) this.#cameOrWent(watch, isThere);
    const finding = this.#finding(watch);
    if (watch.differs(finding)) {
      this.#dirty.add(watch.name);
      if (finding.health === VM_STATE.DOWN || health === VM_STATE.DOWN) this.#unsettled = true;
    }
    const { now, before } = watch.judge(finding, isThere);
    if (before === null) return;
    if (now.state === VM_STATE.DOWN && before.state !== VM_STATE.DOWN) this.#takeDown(watch);
    this.#tell(watch, now, before, finding);
  }

  #finding(watch: VmWatch): VmFinding {
    const { address } = watch;
    const interfaces = this.#interfaces(watch);
    const mayAsk = address !== null && this.#opened!.stack.mayAsk(interfaces, address);
    return watch.finding(interfaces, mayAsk);
  }

  #cameOrWent(watch: VmWatch, isThere: boolean): void {
    this.#unsettled = true;
    if (isThere) {
      this.#there.add(watch);
      this.#startChecks(watch);
    } else {
      this.#there.delete(watch);
      this.#rounds.stop(watch.name);
      watch.lost();
    }
  }

  /** Without the lock: one word, which settling sets again. */
  #takeDown({ spec }: VmWatch): void {
    this.#unsettled = true;
    const { guests } = this.#opened!.tables;
    const found = guests.cellOf(spec.id);
    if (found && found.vm.state !== VM_STATE.DOWN) {
      guests.cells.set(found.cell, { ...found.vm, state: VM_STATE.DOWN });
    }
  }

  #tell(watch: VmWatch, now: VmCondition, before: VmCondition, finding: VmFinding): void {
    const { log } = this.#options;
    const { name } = watch;
    const fields = { vm: name, state: VM_STATE_NAMES[now.state]!, cause: CAUSE_NAMES[now.cause]! };
    const text = `VM ${name} is ${fields.state}`;
    if (now.state === VM_STATE.DOWN) {
      const wasDown = before.state === VM_STATE.DOWN;
      log[wasDown ? "debug" : "warning"](`${text}: ${watch.why(now, finding)}`, fields);
    } else if (now.state === VM_STATE.DRAIN) {
      log.info(`VM ${name} is drained: it keeps its flows and gets no new ones`, fields);
    } else log[before.state === VM_STATE.UNKNOWN ? "debug" : "info"](text, fields);
  }

  // Entries and services

  #settleSoon(): void {
    if (this.#unsettled || this.#dirty.size > 0) this.#settling.soon();
  }

  async #settle(): Promise<void> {
    const opened = this.#opened;
    if (!opened) return;
    this.#writeHealth(opened.tables);
    if (this.#unsettled) {
      this.#unsettled = false;
      await this.#settleServices(opened);
    }
    // Something may have changed while the pieces ran.
    this.#guard(() => {
      this.#readVms();
      this.#judgeAll();
      this.#settleSoon();
    });
  }

  async #settleServices(opened: Opened): Promise<void> {
    try {
      const { lines, problems } = await inPieces(settleServicesInPieces(opened));
      for (const line of [...lines, ...problems]) this.#options.log.debug(line);
    } catch (error) {
      this.#unsettled = true;
      throw error;
    }
  }

  /** What was observed, into the entries as they are now. */
  #writeHealth({ guests }: Tables): void {
    for (const name of this.#dirty) {
      const watch = this.#opened!.roster.get(name);
      const spec = guests.specs.get({ name });
      // What was asked of another check, or of somebody else, is not its health.
      if (!watch || !spec || !sameSpec(watch.spec, spec)) continue;
      const { health, cause } = this.#finding(watch);
      // Settling keeps the cause, if that is what it comes to.
      const because = health === VM_STATE.DOWN ? { cause } : {};
      guests.specs.set({ name }, { ...spec, health, ...because });
    }
    this.#dirty.clear();
  }

  // Checks

  #startChecks(watch: VmWatch): void {
    const { asked } = watch;
    if (asked) this.#rounds.start(watch.name, asked.check.interval_seconds * 1000);
  }

  async #check(name: string): Promise<ProbeOutcome> {
    const watch = this.#opened?.roster.get(name);
    const asked = watch?.asked;
    if (!watch || !asked || !this.#opened) return { kind: "unavailable", why: "it was removed" };
    const { checker, stack } = this.#opened;
    const [ifindex] = this.#interfaces(watch, asked.address);
    const link = ifindex === undefined ? undefined : stack.links.get(ifindex);
    if (!link) return { kind: "unavailable", why: `the host has no way to ${asked.address}` };
    const target = addressOctets(asked.address);
    const source = sourceFor(target, stack.addresses, link.ifindex);
    return await checker.check({ check: asked.check, target, link, source });
  }

  #checked(name: string, outcome: ProbeOutcome): void {
    const watch = this.#opened!.roster.get(name);
    if (!watch) return;
    if (outcome.kind === "unavailable") {
      this.#cannotCheck(name, outcome.why);
      watch.notAsked();
    } else {
      this.#options.metrics.checked(name, outcome.kind === "ok", outcome.seconds);
      watch.checked(outcome.kind === "ok" ? null : outcome.why);
    }
    this.#judge(watch);
    this.#settleSoon();
  }

  /** That says nothing of the VM. The same reason is told once, whichever VM it was first. */
  #cannotCheck(vm: string, why: string): void {
    if (this.#unavailable.has(why)) return;
    this.#unavailable.add(why);
    this.#options.log.warning(`VM ${vm} cannot be checked: ${why}`, { vm });
  }
}

const NONE: ReadonlySet<number> = new Set();
