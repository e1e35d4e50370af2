// SPDX-License-Identifier: Apache-2.0
// Keeps what devices have behind their VTEPs current, and tells of what moves there.

import type { Link } from "../kernel/rtnetlink.ts";
import { macText, type VxlanEntry, vtepText } from "../kernel/vxlanEntry.ts";
import type { Logger } from "../log.ts";
import type { NamedDevice } from "../tables/index.ts";
import type { Uplink } from "./deviceFleet.ts";
import { VtepFollower, type VtepSighting } from "./deviceVteps.ts";
import { inPieces } from "./pieces.ts";
import { vtepOwners, vxlansOf, watchedVteps } from "./vtepMacs.ts";

/** Changes come in bursts: what is behind a host appears at once. */
const CHANGE_MS = 50;

export interface VtepMonitorOptions {
  log: Logger;
  /** Devices' last hops are to be settled. */
  onChange(): void;
  /** A MAC of the device's moves too often. */
  onFlap(device: string): void;
  onError(error: unknown): void;
}

export class VtepMonitor {
  readonly follower = new VtepFollower();
  readonly #options: VtepMonitorOptions;
  /** Devices by VXLAN device and VTEP. */
  #owners = new Map<string, string>();
  #links: ReadonlyMap<number, Link> = new Map();
  #reading: Promise<void> | undefined;
  #isStale = false;
  #changed: NodeJS.Timeout | undefined;
  #stopped = false;
  /** VXLAN devices of which it was said that they have nexthop groups. */
  readonly #nexthopsTold = new Set<number>();

  constructor(options: VtepMonitorOptions) {
    this.#options = options;
  }

  /** Devices, uplinks or links may have changed. */
  watch(
    devices: readonly NamedDevice[],
    uplinks: ReadonlyMap<number, Uplink>,
    links: ReadonlyMap<number, Link>,
  ): void {
    this.#links = links;
    const beneath = vxlansOf(devices, uplinks.values(), [...links.values()]);
    this.#owners = new Map();
    for (const [key, { name }] of vtepOwners(devices, beneath.keys(), uplinks)) {
      const [uplink, vtep] = key.split(" ");
      for (const vxlan of beneath.get(Number(uplink))!) this.#owners.set(`${vxlan} ${vtep}`, name);
    }
    if (this.follower.watch([...beneath.values()].flat(), watchedVteps(devices))) this.read();
  }

  /** Reads everything anew, in pieces; once more if asked meanwhile. */
  read(): void {
    this.#isStale = true;
    this.#reading ??= this.#readAll().finally(() => {
      this.#reading = undefined;
    });
  }

  /** An entry of a forwarding table; `gone`: as it was. */
  seen(entry: VxlanEntry, gone: boolean): void {
    const sighting = this.follower.seen(entry, gone, performance.now());
    if (sighting) this.#follow(sighting);
  }

  /** Now and then: what was held may be due. */
  tick(): void {
    for (const sighting of this.follower.due(performance.now())) this.#follow(sighting);
  }

  /** The follower is the caller's to close, when nothing settles any longer. */
  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#changed);
    await this.#reading;
  }

  async #readAll(): Promise<void> {
    while (this.#isStale && !this.#stopped) {
      this.#isStale = false;
      try {
        await inPieces(
          this.follower.read(
            (sighting) => this.#follow(sighting),
            () => performance.now(),
          ),
        );
      } catch (error) {
        this.#options.onError(error);
      }
    }
  }

  #follow({ vxlan, mac, at, changed, moved, held, flap, nexthop }: VtepSighting): void {
    const { log, onFlap, onChange } = this.#options;
    const where = this.#links.get(vxlan)?.name ?? `if${vxlan}`;
    const whose = (vtep: string) => this.#owners.get(`${vxlan} ${vtep}`);
    const named = (vtep: string) => whose(vtep) ?? vtepText(vtep);
    const fields = { interface: where, mac: macText(mac) };
    if (nexthop !== null && !this.#nexthopsTold.has(vxlan)) {
      this.#nexthopsTold.add(vxlan);
      const message = `${where} has MACs behind nexthop groups, which are not followed: give them to their devices as macs`;
      log.warning(message, { ...fields, nexthop });
    }
    if (moved) {
      const text = `${fields.mac} on ${where} has moved from ${named(moved.from)} to ${named(moved.to)}`;
      log.info(text, fields);
    }
    if (held && at !== null) {
      const text = `${fields.mac} on ${where} changes its VTEP too often: it stays ${named(at)}'s for ${held.seconds} s`;
      log.warning(text, fields);
    }
    const device = at === null ? undefined : (whose(at) ?? (moved ? whose(moved.from) : undefined));
    if (flap && device !== undefined) onFlap(device);
    if (!changed || this.#stopped) return;
    this.#changed ??= setTimeout(() => {
      this.#changed = undefined;
      onChange();
    }, CHANGE_MS);
  }
}
