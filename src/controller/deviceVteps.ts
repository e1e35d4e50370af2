// SPDX-License-Identifier: Apache-2.0
/*
 * Follows the forwarding tables of VXLAN devices, as far as they have MACs behind devices' VTEPs: read once, then kept
 * by the kernel's events, and read again when events were lost. Of ten thousands of entries only those are kept.
 *
 * A MAC that changes its VTEP again and again, as in a loop, stays where it was for a while: its flows would otherwise
 * change their device each time.
 */

import type { VxlanEntry } from "../kernel/vxlanEntry.ts";
import { type MacHistory, macHistory, macSeen } from "./deviceStates.ts";
import type { Pieces } from "./pieces.ts";
import { KernelVteps, type VtepSource } from "./vtepMacs.ts";

const SEVERAL = 512;

interface Followed {
  /** As the kernel has it. */
  entry: VxlanEntry;
  /** Where it counts as being. */
  vtep: string;
  /** Once it has moved. */
  history: MacHistory | null;
  /** The reading in which it was last seen. */
  reading: number;
}

/** What follows from an entry that was seen. VTEPs are keys as in VxlanEntry. */
export interface VtepSighting {
  vxlan: number;
  mac: string;
  /** Where it counts as being; null for nowhere. */
  at: string | null;
  /** What devices have behind their VTEPs is not what it was. */
  changed: boolean;
  moved: { from: string; to: string } | null;
  /** It has moved too often: it counts as where it is for so long. */
  held: { other: string; seconds: number } | null;
  flap: boolean;
  /** It is where a nexthop group says, which is not followed. */
  nexthop: number | null;
}

export class VtepFollower implements VtepSource {
  readonly #kernel: Pick<KernelVteps, "entries" | "find" | "close">;
  #watched: ReadonlySet<string> = new Set();
  /** By VXLAN device. */
  #tables = new Map<number, Map<string, Followed>>();
  readonly #withdrawn = new Set<string>();
  #reading = 0;

  constructor(kernel: Pick<KernelVteps, "entries" | "find" | "close"> = new KernelVteps()) {
    this.#kernel = kernel;
  }

  /** What is to be followed from now on; true if something of it has not been read yet. */
  watch(vxlans: Iterable<number>, vteps: ReadonlySet<string>): boolean {
    const before = this.#tables;
    let isNew = [...vteps].some((vtep) => !this.#watched.has(vtep));
    this.#watched = vteps;
    this.#tables = new Map();
    for (const vxlan of vxlans) {
      const known = before.get(vxlan);
      if (!known) isNew = true;
      this.#tables.set(vxlan, known ?? new Map());
    }
    if (vteps.size === 0) return false;
    for (const table of this.#tables.values()) {
      for (const [key, followed] of table) if (!this.#isWanted(followed)) table.delete(key);
    }
    return isNew && this.#tables.size > 0;
  }

  /** The tables as the kernel has them. What an event tells meanwhile is newer, and stays. */
  *read(tell: (sighting: VtepSighting) => void, nowMs: () => number): Pieces<void> {
    const reading = ++this.#reading;
    for (const [vxlan, table] of [...this.#tables]) {
      for (const entries of this.#kernel.entries(vxlan)) {
        for (const entry of entries) {
          const sighting = this.seen(entry, false, nowMs());
          if (sighting) tell(sighting);
        }
        yield;
      }
      let looked = 0;
      for (const { entry, reading: last } of [...table.values()]) {
        if (++looked % SEVERAL === 0) yield;
        const sighting = last < reading ? this.seen(entry, true, nowMs()) : null;
        if (sighting) tell(sighting);
      }
    }
  }

  /** An entry as it is now; `gone`: as it was. Null: it is no matter. */
  seen(entry: VxlanEntry, gone: boolean, nowMs: number): VtepSighting | null {
    const table = this.#tables.get(entry.ifindex);
    if (!table) return null;
    const key = keyOf(entry);
    const followed = table.get(key);
    if (gone) return followed ? this.#remove(table, key, followed) : null;
    const { vtep } = entry;
    if (vtep === null) {
      const wasOurs = followed !== undefined && this.#watched.has(followed.vtep);
      table.delete(key);
      return { ...sighting(entry), changed: wasOurs, nexthop: entry.nexthop };
    }
    if (!followed) {
      if (!this.#watched.has(vtep)) return null;
      table.set(key, { entry, vtep, history: null, reading: this.#reading });
      this.#withdrawn.delete(placeOf(entry));
      return { ...sighting(entry), changed: true };
    }
    const sameVni = followed.entry.vni === entry.vni;
    followed.entry = entry;
    followed.reading = this.#reading;
    if (vtep !== followed.vtep) return this.#step(followed, nowMs);
    return sameVni ? null : { ...sighting(entry), changed: true };
  }

  /** What was held may be due; what moved away some time ago is forgotten. */
  due(nowMs: number): VtepSighting[] {
    const found: VtepSighting[] = [];
    for (const table of this.#tables.values()) {
      for (const [key, followed] of table) {
        const { history, entry, vtep } = followed;
        if (history === null || nowMs < history.heldUntil) continue;
        if (entry.vtep !== vtep) found.push(this.#step(followed, nowMs));
        else if (macSeen(history, "", nowMs).flap) continue;
        else if (!this.#watched.has(vtep)) table.delete(key);
      }
    }
    return found.filter(({ moved }) => moved !== null);
  }

  *entries(vxlan: number): Iterable<readonly VxlanEntry[]> {
    let some: VxlanEntry[] = [];
    for (const { entry, vtep } of this.#tables.get(vxlan)?.values() ?? []) {
      if (this.#watched.has(vtep)) some.push(entry.vtep === vtep ? entry : { ...entry, vtep });
      if (some.length < SEVERAL) continue;
      yield some;
      some = [];
    }
    yield some;
  }

  find(vxlan: number, mac: string): VxlanEntry | undefined {
    const known = this.#tables.get(vxlan)?.get(keyOf({ mac, sourceVni: null }));
    return known ? { ...known.entry, vtep: known.vtep } : this.#kernel.find(vxlan, mac);
  }

  isWithdrawn(vxlan: number, mac: string): boolean {
    return this.#withdrawn.has(placeOf({ ifindex: vxlan, mac }));
  }

  /** What is withdrawn at present, for `settled`. */
  withdrawn(): string[] {
    return [...this.#withdrawn];
  }

  /** These need not be told again. */
  settled(withdrawn: readonly string[]): void {
    for (const place of withdrawn) this.#withdrawn.delete(place);
  }

  close(): void {
    this.#kernel.close();
  }

  #isWanted({ entry, vtep }: Followed): boolean {
    return this.#watched.has(vtep) || (entry.vtep !== null && this.#watched.has(entry.vtep));
  }

  #remove(table: Map<string, Followed>, key: string, { entry, vtep }: Followed): VtepSighting {
    table.delete(key);
    const changed = this.#watched.has(vtep);
    if (changed && entry.permanent) this.#withdrawn.add(placeOf(entry));
    return { ...sighting(entry), changed };
  }

  #step(followed: Followed, nowMs: number): VtepSighting {
    const { entry, vtep: from } = followed;
    const to = entry.vtep!;
    const { outcome, began, flap, ...history } = macSeen(followed.history ?? macHistory(from), to, nowMs);
    followed.history = history;
    if (outcome !== "taken") {
      const held = began ? { other: to, seconds: history.holdMs / 1000 } : null;
      return { ...sighting(entry, from), held, flap };
    }
    followed.vtep = to;
    return { ...sighting(entry, to), changed: true, moved: { from, to }, flap };
  }
}

function sighting({ ifindex, mac }: VxlanEntry, at: string | null = null): VtepSighting {
  return { vxlan: ifindex, mac, at, changed: false, moved: null, held: null, flap: false, nexthop: null };
}

function keyOf({ mac, sourceVni }: Pick<VxlanEntry, "mac" | "sourceVni">): string {
  return sourceVni === null ? mac : `${mac} ${sourceVni}`;
}

function placeOf({ ifindex, mac }: Pick<VxlanEntry, "ifindex" | "mac">): string {
  return `${ifindex} ${mac}`;
}
