// SPDX-License-Identifier: Apache-2.0
/*
 * Follows the operator's devices: whether they are up, and where their addresses are. What it finds out goes first
 * into the aliases of their last hops, one write each, and then, under the lock, into their entries.
 */

import { CAUSE_NAMES, currentTick, DEVICE_STATE_NAMES, encode } from "../abi/codec.ts";
import { CAUSE, DEVICE_STATE, PROBE_KIND } from "../abi/layout.gen.ts";
import { parseMac } from "../addresses.ts";
import { append } from "../append.ts";
import { NEIGHBOUR_PROBE_SECONDS } from "../config/defaults.ts";
import { type Instance, openInstance } from "../kernel/instance.ts";
import { Netlink } from "../kernel/netlink.ts";
import type { Link, Neighbour } from "../kernel/rtnetlink.ts";
import type { VxlanEntry } from "../kernel/vxlanEntry.ts";
import type { Logger } from "../log.ts";
import { type Device, DeviceReader, ownerId, Tables } from "../tables/index.ts";
import { applyStates, type Fleet, isOn, isUsable, readUplinks, type Uplink } from "./deviceFleet.ts";
import { settle } from "./deviceLastHops.ts";
import { askAnew, stackInterfaces } from "./deviceStack.ts";
import { probeTarget, sameDevice } from "./devices.ts";
import { DeviceWatch, hasProbe, type Sighting } from "./deviceWatch.ts";
import { Complaints, LockedWork } from "./lockedWork.ts";
import { inPieces } from "./pieces.ts";
import { type ProbeOutcome, Prober, sourceFor } from "./probes.ts";
import { Rounds } from "./rounds.ts";
import { VtepMonitor } from "./vtepMonitor.ts";

/** How often what the command line may have changed is looked at. */
const TICK_MS = 1_000;
/** How often learned last hops that are a device's are looked for. */
const SETTLE_TICKS = 10;

export interface HealthOptions {
  pinRoot: string;
  log: Logger;
  metrics: { probed(device: string, ok: boolean, seconds: number): void };
}

interface Opened {
  instance: Instance;
  tables: Tables;
  netlink: Netlink;
  reader: DeviceReader;
}

export class HealthMonitor {
  readonly #options: HealthOptions;
  readonly #watches = new Map<string, DeviceWatch>();
  /** The entries as they were read last. */
  readonly #seen = new Map<string, Device>();
  #byAddress = new Map<string, DeviceWatch[]>();
  /** MACs that devices had, until their flows have followed. */
  readonly #moves = new Map<string, Buffer>();
  readonly #dirty = new Set<string>();
  /** Why probes were not possible, as far as it was logged. */
  readonly #unavailable = new Set<string>();
  readonly #prober = new Prober();
  readonly #probing = new Rounds<ProbeOutcome>({
    ask: (name) => this.#outcome(name),
    answered: (name, outcome) => this.#guard(() => this.#probeEnded(name, outcome)),
    failed: (error) => this.#complaints.tell(error),
  });
  readonly #complaints: Complaints;
  readonly #settling: LockedWork;
  readonly #vteps: VtepMonitor;
  #opened: Opened | undefined;
  #links = new Map<number, Link>();
  #uplinks = new Map<number, Uplink>();
  #fleet: Fleet | undefined;
  #tick: NodeJS.Timeout | undefined;
  #ticks = 0;
  /** Something else was asked for since the last tick. */
  #changed = false;

  constructor(options: HealthOptions) {
    this.#options = options;
    this.#complaints = new Complaints(options.log, "devices cannot be followed");
    this.#settling = new LockedWork({
      pinRoot: options.pinRoot,
      work: () => this.#settleLocked(),
      failed: (error) => this.#complaints.tell(error),
    });
    this.#vteps = new VtepMonitor({
      log: options.log,
      onChange: () => this.#settling.soon(),
      onFlap: (device) => {
        this.#watches.get(device)?.flapped();
        this.#dirty.add(device);
      },
      onError: (error) => this.#complaints.tell(error),
    });
  }

  /** Throws what opening the instance throws. */
  start(): void {
    const instance = openInstance(this.#options.pinRoot);
    try {
      const tables = new Tables(instance);
      this.#opened = { instance, tables, netlink: new Netlink(), reader: new DeviceReader(tables.devices) };
      this.#refresh();
      this.#askNeighbours();
    } catch (error) {
      this.#close();
      throw error;
    }
    this.#settling.soon();
    this.#tick = setInterval(() => this.#guard(() => this.#onTick()), TICK_MS);
  }

  async stop(): Promise<void> {
    clearInterval(this.#tick);
    this.#probing.close();
    this.#prober.close();
    await this.#vteps.stop();
    await this.#settling.stop();
    this.#close();
  }

  /** Devices or interfaces were changed. */
  devicesChanged(): void {
    this.#guard(() => {
      this.#refresh();
      this.#askNeighbours();
      // Perhaps events were lost.
      this.#vteps.read();
      this.#settling.soon();
    });
  }

  /** An entry of the neighbour table; state "none" without a MAC: it is gone. */
  neighbourChanged(neighbour: Neighbour): void {
    if (!this.#byAddress.has(neighbour.address)) return;
    this.#guard(() => {
      this.#neighbourSeen(neighbour);
      this.#mark();
    });
  }

  /** A link that is gone is one that is down. */
  linkChanged(link: Link): void {
    this.#guard(() => {
      this.#links.set(link.ifindex, link);
      const uplink = this.#uplinks.get(link.ifindex);
      if (!uplink) return;
      uplink.usable = isUsable(link);
      const settled = this.#fleet?.uplinks.get(link.ifindex);
      if (settled) settled.usable = uplink.usable;
      this.#judgeAll();
      this.#mark();
    });
  }

  /** An entry of a VXLAN device's forwarding table; `gone`: as it was. */
  vxlanChanged(entry: VxlanEntry, gone: boolean): void {
    this.#guard(() => this.#vteps.seen(entry, gone));
  }

  #guard(work: () => void): void {
    if (this.#opened) this.#complaints.guard(work);
  }

  #close(): void {
    this.#vteps.follower.close();
    this.#opened?.netlink.close();
    this.#opened?.instance.close();
    this.#opened = undefined;
  }

  #onTick(): void {
    this.#ticks++;
    this.#readDevices();
    const changed = this.#changed;
    this.#changed = false;
    for (const watch of this.#watches.values()) {
      for (const sighting of watch.due(performance.now())) this.#follow(watch, sighting);
    }
    this.#vteps.tick();
    if (this.#ticks % NEIGHBOUR_PROBE_SECONDS === 0) {
      this.#refresh();
      this.#askNeighbours();
    } else if (changed) {
      this.#askNeighbours();
    }
    this.#judgeAll();
    this.#mark();
    if (changed || this.#dirty.size > 0 || this.#ticks % SETTLE_TICKS === 0) this.#settling.soon();
  }

  /** Everything that is asked of the kernel and the tables at once. */
  #refresh(): void {
    const { tables, netlink } = this.#opened!;
    const links = netlink.links();
    this.#links = new Map(links.map((link) => [link.ifindex, link]));
    this.#prober.keep(this.#links);
    this.#uplinks = readUplinks(tables, links);
    for (const uplink of this.#uplinks.values()) {
      const settled = this.#fleet?.uplinks.get(uplink.ifindex);
      if (settled) settled.usable = uplink.usable;
    }
    this.#readDevices();
    this.#watchVteps();
    this.#judgeAll();
    this.#mark();
  }

  #watchVteps(): void {
    const devices = [...this.#watches.values()].map(({ name, device }) => ({
      name,
      id: ownerId(name),
      device,
    }));
    this.#vteps.watch(devices, this.#uplinks, this.#links);
  }

  /** What the command line or the configuration has changed by now; true if anything. */
  #takeUp(): boolean {
    if (!this.#readDevices()) return false;
    this.#judgeAll();
    this.#settling.soon();
    return true;
  }

  /** True if something else is asked for than before. */
  #readDevices(): boolean {
    const found = new Map(this.#opened!.reader.read().map(({ name, device }) => [name, device]));
    let changed = false;
    for (const name of [...this.#watches.keys()]) {
      if (found.has(name)) continue;
      this.#seen.delete(name);
      this.#watches.delete(name);
      this.#dirty.delete(name);
      this.#probing.stop(name);
      this.#fleet?.devices.delete(ownerId(name));
      changed = true;
    }
    for (const [name, device] of found) {
      const watch = this.#watches.get(name);
      if (!watch) {
        this.#seen.set(name, device);
        this.#watches.set(name, new DeviceWatch(name, device));
        this.#startProbing(name);
        changed = true;
        continue;
      }
      if (device === this.#seen.get(name)) continue;
      this.#seen.set(name, device);
      const same = sameDevice(watch.device, device);
      if (same && watch.device.operator_down === device.operator_down) {
        if (!sameEntry(watch.device, device)) this.#dirty.add(name);
        continue;
      }
      watch.change(device);
      if (!same) {
        this.#probing.stop(name);
        this.#startProbing(name);
      }
      changed = true;
    }
    if (changed) {
      this.#changed = true;
      this.#byAddress = byAddress(this.#watches.values());
      this.#watchVteps();
    }
    return changed;
  }

  // Neighbours

  #neighbourSeen(neighbour: Neighbour): void {
    for (const watch of this.#byAddress.get(neighbour.address) ?? []) {
      if (!this.#stackInterfaces(watch).has(neighbour.ifindex)) continue;
      const sighting = watch.neighbourSeen(neighbour, performance.now());
      if (sighting.ask) this.#opened!.netlink.askNeighbour(neighbour.ifindex, neighbour.address, "resolve");
      this.#follow(watch, sighting);
      this.#judge(watch);
    }
  }

  #follow(watch: DeviceWatch, { moved, held, flaps }: Sighting): void {
    const { log } = this.#options;
    if (flaps > 0) this.#dirty.add(watch.name);
    if (held) {
      const message = `device ${watch.name}: its MAC changes too often; ${held.kept} is kept for ${held.seconds} s`;
      log.warning(message, { device: watch.name, mac: held.kept, other_mac: held.other });
    }
    if (!moved) return;
    const from = moved.from === null ? {} : { from: moved.from };
    log.info(`device ${watch.name}: its MAC is ${moved.to}`, { device: watch.name, mac: moved.to, ...from });
    if (moved.from !== null) {
      this.#moves.set(moved.from.replaceAll(":", ""), parseMac(moved.to)!);
      this.#askOthers(watch, moved.from);
    }
    this.#dirty.add(watch.name);
    this.#settling.soon();
  }

  /** Addresses that were at the MAC that one has left: probably they have left it too. */
  #askOthers(watch: DeviceWatch, mac: string): void {
    const { netlink } = this.#opened!;
    for (const address of watch.addressesAt(mac)) {
      for (const ifindex of this.#stackInterfaces(watch)) {
        netlink.askNeighbour(ifindex, address, "forget");
        netlink.askNeighbour(ifindex, address, "resolve");
      }
    }
  }

  /** Has the kernel look whether the devices' addresses are still there, and reads what it knows. */
  #askNeighbours(): void {
    const watched = [...this.#watches.values()].filter(({ addresses }) => addresses.length > 0);
    if (watched.length === 0) return;
    const { netlink } = this.#opened!;
    const known = new Map(netlink.neighbours().map((entry) => [`${entry.ifindex} ${entry.address}`, entry]));
    for (const watch of watched) {
      for (const ifindex of this.#stackInterfaces(watch)) {
        for (const address of watch.addresses) {
          const entry = known.get(`${ifindex} ${address}`);
          if (entry) this.#neighbourSeen(entry);
          askAnew(netlink, ifindex, address, entry?.state ?? "none");
        }
      }
    }
  }

  #stackInterfaces({ device }: DeviceWatch): Set<number> {
    const { netlink } = this.#opened!;
    return stackInterfaces(netlink, device, this.#uplinks.values(), this.#links.values());
  }

  // States

  #judgeAll(): void {
    for (const watch of this.#watches.values()) this.#judge(watch);
  }

  #judge(watch: DeviceWatch): void {
    const uplink = [...this.#uplinks.values()].some((one) => one.usable && isOn(watch.device, one));
    const before = watch.device.state;
    if (!watch.enter(watch.judge(uplink, this.#stackInterfaces(watch)), currentTick())) return;
    this.#dirty.add(watch.name);
    const { state, cause } = watch.device;
    const named = this.#fleet?.devices.get(ownerId(watch.name));
    if (named) named.device = watch.device;
    const fields = { device: watch.name, state: DEVICE_STATE_NAMES[state]!, cause: CAUSE_NAMES[cause]! };
    const text = `device ${watch.name} is ${fields.state}`;
    if (state === DEVICE_STATE.DOWN) this.#options.log.warning(`${text}: ${CAUSE_TEXTS[cause]}`, fields);
    else if (before === DEVICE_STATE.DOWN) this.#options.log.info(text, fields);
    else this.#options.log.debug(text, fields);
  }

  /**
   * Without the lock: aliases of what is a device's already. A command may write them at the same time; it writes the
   * entry first, so that one of both readings of the entries sees it, and what was read before does not stay.
   */
  #mark(): void {
    const { tables, netlink } = this.#opened!;
    const fleet = this.#fleet;
    if (!fleet) return;
    this.#takeUp();
    do {
      for (const named of fleet.devices.values()) {
        const watch = this.#watches.get(named.name);
        if (watch) named.device = watch.device;
      }
      applyStates(tables, netlink, fleet);
    } while (this.#takeUp());
    if (this.#dirty.size > 0) this.#settling.soon();
  }

  // Entries and last hops

  async #settleLocked(): Promise<void> {
    const opened = this.#opened;
    if (!opened) return;
    this.#writeEntries(opened.tables);
    const moves = new Map(this.#moves);
    const { follower } = this.#vteps;
    const withdrawn = follower.withdrawn();
    const { fleet, lines } = await inPieces(settle({ ...opened, vteps: follower }, moves));
    follower.settled(withdrawn);
    for (const [mac, to] of moves) if (this.#moves.get(mac) === to) this.#moves.delete(mac);
    this.#fleet = fleet;
    for (const line of lines) this.#options.log.debug(line);
    // Something may have changed while the pieces ran.
    this.#guard(() => this.#mark());
  }

  /** What was observed. An entry that was changed or removed meanwhile keeps what was asked. */
  #writeEntries(tables: Tables): void {
    for (const name of this.#dirty) {
      const watch = this.#watches.get(name);
      const entry = tables.devices.get({ name });
      if (!watch || !entry || !sameDevice(entry, watch.device)) continue;
      if (entry.operator_down !== watch.device.operator_down) continue;
      tables.devices.set({ name }, watch.device);
    }
    this.#dirty.clear();
  }

  // Probes

  #startProbing(name: string): void {
    const device = this.#watches.get(name)?.device;
    if (device && hasProbe(device)) this.#probing.start(name, device.probe.interval_ms);
  }

  #probeEnded(name: string, outcome: ProbeOutcome): void {
    const watch = this.#watches.get(name);
    if (!watch) return;
    if (outcome.kind === "unavailable") {
      this.#cannotProbe(watch.name, outcome.why);
      return;
    }
    this.#options.metrics.probed(watch.name, outcome.kind === "ok", outcome.seconds);
    watch.probed(outcome.kind === "ok");
    this.#judge(watch);
    this.#mark();
  }

  /** That says nothing of the device. The same reason is told once, whichever device it was first. */
  #cannotProbe(device: string, why: string): void {
    if (this.#unavailable.has(why)) return;
    this.#unavailable.add(why);
    this.#options.log.warning(`device ${device} cannot be probed: ${why}`, { device });
  }

  async #outcome(name: string): Promise<ProbeOutcome> {
    const watch = this.#watches.get(name);
    if (!watch) return { kind: "unavailable", why: "it was removed" };
    const { probe } = watch.device;
    const target = probeTarget(watch.device);
    const [ifindex] = this.#stackInterfaces(watch);
    const link = ifindex === undefined ? undefined : this.#links.get(ifindex);
    if (target === null) return { kind: "unavailable", why: "it has no address" };
    if (!link) return { kind: "unavailable", why: "none of its interfaces is up" };
    return await this.#prober.probe({
      kind: probe.kind === PROBE_KIND.TCP ? "tcp" : "icmp",
      target,
      port: probe.port,
      timeoutMs: probe.timeout_ms,
      link,
      source: sourceFor(target, this.#opened!.netlink.addresses(), link.ifindex),
    });
  }
}

function byAddress(watches: Iterable<DeviceWatch>): Map<string, DeviceWatch[]> {
  const found = new Map<string, DeviceWatch[]>();
  for (const watch of watches) {
    for (const address of watch.addresses) append(found, address, watch);
  }
  return found;
}

/** Of two entries that ask for the same. */
function sameEntry(a: Device, b: Device): boolean {
  return encode("device", a).equals(encode("device", b));
}

const CAUSE_TEXTS: Readonly<Record<number, string>> = {
  [CAUSE.OPERATOR]: "the operator took it down",
  [CAUSE.INTERFACE]: "none of its interfaces is attached and up",
  [CAUSE.NEIGHBOUR]: "nobody answers for its address",
  [CAUSE.PROBE]: "its probe failed",
};
