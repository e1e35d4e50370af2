// SPDX-License-Identifier: Apache-2.0
// A redirected reply does not pass the bridge, which would forget a VM that sends nothing else and flood the
// requests for it to all ports. The tap's program saw the VM send: its entry is made young again.

import { setImmediate as turn } from "node:timers/promises";
import { currentTick, secondsToTicks } from "../abi/codec.ts";
import { ROLE } from "../abi/layout.gen.ts";
import { formatMac } from "../addresses.ts";
import type { Netlink } from "../kernel/netlink.ts";
import type { Bridge, FdbEntry, Link } from "../kernel/rtnetlink.ts";
import type { Tables } from "../tables/index.ts";

/** An entry is looked at so often before its bridge would forget it. */
const LOOKS_PER_AGE = 4;
const PERIOD_SECONDS = { min: 1, max: 60 };
/** Questions to the kernel before others of the event loop have their turn. */
const LINKS_PER_TURN = 32;

/** A VM as the tap's program sees it. */
export interface SeenVm {
  /** Its tap. */
  ifindex: number;
  mac: string;
  /** Ticks. */
  lastSeen: number;
}

/** What a forwarding entry is known by; `vlan` null: whatever VLANs the port has. */
export type Refresh = Pick<FdbEntry, "ifindex" | "mac" | "vlan">;

/** VMs as the tables know them: the usual one of a tap is seen in its cell, the others in vms. */
export function seenVms(tables: Pick<Tables, "interfaces" | "taps" | "vms">): SeenVm[] {
  const seen = new Map<string, SeenVm>();
  const add = (vm: SeenVm): void => {
    const key = `${vm.ifindex} ${vm.mac}`;
    const other = seen.get(key);
    if (!other || other.lastSeen < vm.lastSeen) seen.set(key, vm);
  };
  const taps = tables.interfaces.list().filter((entry) => entry.role === ROLE.TAP);
  for (const { ifindex, slot } of taps) {
    const cell = tables.taps.get(slot);
    if (cell && cell.vm !== 0) add({ ifindex, mac: formatMac(cell.mac), lastSeen: cell.last_seen });
  }
  const attached = new Set(taps.map((entry) => entry.ifindex));
  for (const [key, { ifindex, last_seen }] of tables.vms.entries()) {
    if (attached.has(ifindex)) add({ ifindex, mac: formatMac(key.mac), lastSeen: last_seen });
  }
  return [...seen.values()];
}

/** How long until the next round, for these bridges. Pure. */
export function periodSeconds(bridges: readonly Bridge[]): number {
  const shortest = Math.min(
    ...bridges.filter(({ ageingSeconds }) => ageingSeconds > 0).map(({ ageingSeconds }) => ageingSeconds),
  );
  return Math.min(PERIOD_SECONDS.max, Math.max(PERIOD_SECONDS.min, shortest / LOOKS_PER_AGE));
}

/** Remembers from round to round who has sent since, and in which VLANs. No kernel here. */
export class FdbRounds {
  #lastSeen = new Map<string, number>();
  #vlans = new Map<string, (number | null)[]>();

  /**
   * The entries to refresh. `ports` has the bridge of each port that forwards; a VM that was not known in the round
   * before counts as active if it was seen since `sinceTick`. `elsewhere` tells whether its bridge has the VM at
   * another port, or for good: such an entry is left alone, for the bridge decides where a VM is.
   */
  next(
    vms: readonly SeenVm[],
    ports: ReadonlyMap<number, number>,
    fdb: readonly FdbEntry[],
    sinceTick: number,
    elsewhere: (mac: string, bridge: number) => boolean,
  ): Refresh[] {
    const lastSeen = new Map<string, number>();
    const vlans = new Map<string, (number | null)[]>();
    const aging = agingVlans(fdb, ports);
    const refreshes: Refresh[] = [];
    for (const { ifindex, mac, lastSeen: seen } of vms) {
      const bridge = ports.get(ifindex);
      if (bridge === undefined) continue;
      const key = keyOf(ifindex, mac);
      const here = aging.get(key);
      const known = here ?? this.#vlans.get(key);
      lastSeen.set(key, seen);
      if (known) vlans.set(key, known);
      const before = this.#lastSeen.get(key);
      if (before === undefined ? seen < sinceTick : seen === before) continue;
      if (!here && elsewhere(mac, bridge)) continue;
      refreshes.push(...(known ?? [null]).map((vlan) => ({ ifindex, mac, vlan })));
    }
    this.#lastSeen = lastSeen;
    this.#vlans = vlans;
    return refreshes;
  }
}

/** By port and MAC, the VLANs of the entries that the bridge will forget. */
function agingVlans(
  fdb: readonly FdbEntry[],
  ports: ReadonlyMap<number, number>,
): Map<string, (number | null)[]> {
  const found = new Map<string, (number | null)[]>();
  for (const { ifindex, master, mac, vlan, ages } of fdb) {
    if (!ages || master === null || master !== ports.get(ifindex)) continue;
    const key = keyOf(ifindex, mac);
    found.set(key, [...(found.get(key) ?? []), vlan]);
  }
  return found;
}

function keyOf(ifindex: number, mac: string): string {
  return `${ifindex} ${mac}`;
}

/** The bridge of a port that forwards, or learns in order to. */
export function forwardingBridge({ master, masterKind, portState, flags }: Link): number | undefined {
  if (masterKind !== "bridge" || master === null || !flags.up) return undefined;
  return portState === "forwarding" || portState === "learning" ? master : undefined;
}

export interface FdbKeeperOptions {
  tables: Pick<Tables, "interfaces" | "taps" | "vms">;
  netlink: Netlink;
  onError(error: unknown): void;
}

/** Keeps the entries of VMs that send; those of silent ones age as ever. */
export class FdbKeeper {
  readonly #options: FdbKeeperOptions;
  readonly #rounds = new FdbRounds();
  #timer: NodeJS.Timeout | undefined;
  #periodSeconds: number = PERIOD_SECONDS.max;
  #round: Promise<void> | undefined;
  #stopped = false;

  constructor(options: FdbKeeperOptions) {
    this.#options = options;
  }

  start(): void {
    this.lookNow();
  }

  /** Taps or bridges have changed, and with them perhaps when to look. */
  lookNow(): void {
    if (this.#stopped || this.#round) return;
    clearTimeout(this.#timer);
    this.#round = this.#look().finally(() => {
      this.#round = undefined;
      if (!this.#stopped) this.#timer = setTimeout(() => this.lookNow(), this.#periodSeconds * 1000);
    });
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    await this.#round;
  }

  async #look(): Promise<void> {
    try {
      await this.#refresh();
    } catch (error) {
      this.#options.onError(error);
    }
  }

  async #refresh(): Promise<void> {
    const { tables, netlink } = this.#options;
    const since = currentTick() - secondsToTicks(this.#periodSeconds);
    const vms = seenVms(tables);
    const ports = new Map<number, number>();
    const taps = [...new Set(vms.map((vm) => vm.ifindex))];
    for (const [count, ifindex] of taps.entries()) {
      if (count % LINKS_PER_TURN === LINKS_PER_TURN - 1) await turn();
      const link = netlink.link(ifindex);
      const bridge = link && forwardingBridge(link);
      if (bridge !== undefined) ports.set(ifindex, bridge);
    }
    const bridges = [...new Set(ports.values())].map((ifindex) => netlink.bridge(ifindex));
    this.#periodSeconds = periodSeconds(bridges.filter((bridge) => bridge !== undefined));
    if (ports.size === 0) return;
    const fdb = netlink.fdb(new Set(ports.keys()));
    await turn();
    let all: FdbEntry[] | undefined;
    const elsewhere = (mac: string, bridge: number): boolean => {
      all ??= netlink.fdb();
      return all.some((entry) => entry.mac === mac && entry.master === bridge);
    };
    for (const refresh of this.#rounds.next(vms, ports, fdb, since, elsewhere)) netlink.refreshFdb(refresh);
  }
}
