// SPDX-License-Identifier: Apache-2.0
// One device as the monitor follows it: what was seen of its addresses and its probe. No kernel, no clock.

import { CAUSE, DEVICE_STATE, PROBE_KIND } from "../abi/layout.gen.ts";
import { formatMac, parseMac } from "../addresses.ts";
import type { Neighbour } from "../kernel/rtnetlink.ts";
import { type Device, deviceAddresses, isZero } from "../tables/index.ts";
import { AddressWatch, type MacChange } from "./addressWatch.ts";
import {
  type Evidence,
  judge,
  type ProbeHistory,
  probed,
  probeHistory,
  type Verdict,
} from "./deviceStates.ts";
import { addressText } from "./devices.ts";

/** What follows from something that was seen. */
export interface Sighting {
  /** Everybody on the link is to be asked for the address. */
  ask: boolean;
  /** The device's MAC is another one now. */
  moved: { from: string | null; to: string } | null;
  /** The MAC has changed too often: it stays what it is for so long. */
  held: { kept: string; other: string; seconds: number } | null;
  /** Flaps to add to the device's count. */
  flaps: number;
}

const NOTHING: Sighting = { ask: false, moved: null, held: null, flaps: 0 };

export class DeviceWatch {
  readonly name: string;
  #device: Device;
  #addresses: Map<string, AddressWatch>;
  #probe: ProbeHistory | null;
  /** Of an address of which nothing was seen yet: one that was down when a daemon ended is not up until it is seen. */
  #assumed: Evidence;

  constructor(name: string, device: Device) {
    this.name = name;
    this.#device = device;
    this.#addresses = watchedAddresses(device, new Map());
    this.#assumed = isDownBy(device, CAUSE.NEIGHBOUR) ? "bad" : "unknown";
    this.#probe = hasProbe(device) ? probeHistory(isDownBy(device, CAUSE.PROBE)) : null;
  }

  /** As in the table, with what was observed since. */
  get device(): Device {
    return this.#device;
  }

  get addresses(): string[] {
    return [...this.#addresses.keys()];
  }

  /** Those that were last seen at a MAC. */
  addressesAt(mac: string): string[] {
    return [...this.#addresses.values()].filter(({ shown }) => shown === mac).map(({ text }) => text);
  }

  /** The operator, or the configuration, has changed it. What was seen of an address that stays is kept. */
  change(device: Device): void {
    const sameProbe = this.#probe !== null && sameAsked(this.#device, device);
    this.#addresses = watchedAddresses(device, this.#addresses);
    if (!sameProbe) this.#probe = hasProbe(device) ? probeHistory(isDownBy(device, CAUSE.PROBE)) : null;
    const { state, cause, changed, flaps } = this.#device;
    this.#device = { ...device, state, cause, changed, flaps };
    this.#writeMacs();
  }

  /** The neighbour table says something of one of its addresses; `gone`: that it no longer has it. */
  neighbourSeen(neighbour: Neighbour, nowMs: number): Sighting {
    const address = this.#addresses.get(neighbour.address);
    if (!address) return NOTHING;
    const { evidence, ask, change } = address.seen(neighbour, this.#assumed, nowMs);
    if (evidence === "good") this.#assumed = "unknown";
    if (evidence === "bad") return { ...NOTHING, ask, moved: this.#abandon(address) };
    return change ? { ...this.#macChanged(change), ask } : { ...NOTHING, ask };
  }

  /** What was held back may be due. */
  due(nowMs: number): Sighting[] {
    return [...this.#addresses.values()].flatMap((address) => {
      const change = address.due(nowMs);
      const sighting = change && this.#macChanged(change);
      return sighting?.moved ? [sighting] : [];
    });
  }

  /** A MAC behind one of its VTEPs moves too often. */
  flapped(): void {
    this.#device = { ...this.#device, flaps: this.#device.flaps + 1 };
  }

  probed(ok: boolean): void {
    if (this.#probe) this.#probe = probed(this.#probe, ok, this.#device.probe);
  }

  /** `ifindexes`: where its addresses are asked for; what other interfaces said is forgotten. */
  judge(uplink: boolean, ifindexes: ReadonlySet<number>): Verdict {
    const neighbours = [...this.#addresses.values()].map((one) => one.evidence(ifindexes, this.#assumed));
    const probe = this.#probe === null ? null : this.#probe.evidence;
    return judge({ operatorDown: this.#device.operator_down !== 0, uplink, neighbours, probe });
  }

  /** False if it is in that state already. */
  enter({ state, cause }: Verdict, tick: number): boolean {
    if (this.#device.state === state && this.#device.cause === cause) return false;
    const changed = this.#device.state === state ? this.#device.changed : tick;
    this.#device = { ...this.#device, state, cause, changed };
    return true;
  }

  #macChanged({ outcome, began, flap, from, to, holdMs }: MacChange): Sighting {
    const flaps = flap ? 1 : 0;
    this.#device = { ...this.#device, flaps: this.#device.flaps + flaps };
    if (outcome !== "taken") {
      const held = began ? { kept: from!, other: to, seconds: holdMs / 1000 } : null;
      return { ...NOTHING, held, flaps };
    }
    this.#writeMacs();
    return { ...NOTHING, moved: { from, to }, flaps };
  }

  /** Nobody answers for an address: another of the device's tells where it is, if that has another MAC. */
  #abandon(address: AddressWatch): Sighting["moved"] {
    const from = address.mac;
    const alive = [...this.#addresses.values()].filter((other) => other.isGood && other.mac !== null);
    const to = alive[0]?.mac ?? null;
    if (address.isGood || from === null || to === null) return null;
    if (alive.some(({ mac }) => mac === from)) return null;
    address.forgetMac();
    this.#writeMacs();
    return { from, to };
  }

  #writeMacs(): void {
    const addresses = this.#device.addresses.map((entry) => {
      const mac = this.#addresses.get(addressText(entry.octets))?.mac ?? null;
      return { ...entry, mac: mac === null ? Buffer.alloc(6) : parseMac(mac)! };
    });
    this.#device = { ...this.#device, addresses };
  }
}

function watchedAddresses(
  device: Device,
  known: ReadonlyMap<string, AddressWatch>,
): Map<string, AddressWatch> {
  return new Map(
    deviceAddresses(device).map(({ octets, mac }) => {
      const text = addressText(octets);
      return [text, known.get(text) ?? new AddressWatch(text, isZero(mac) ? null : formatMac(mac))];
    }),
  );
}

export function hasProbe(device: Device): boolean {
  return device.probe.kind !== PROBE_KIND.NONE;
}

function isDownBy(device: Device, cause: number): boolean {
  return device.state === DEVICE_STATE.DOWN && device.cause === cause;
}

/** Whether both have the same probe. */
function sameAsked(a: Device, b: Device): boolean {
  const key = ({ probe, addresses }: Device): string =>
    JSON.stringify([
      probe.kind,
      probe.port,
      probe.fall,
      probe.rise,
      probe.target.octets,
      addresses[0]?.octets,
    ]);
  return key(a) === key(b);
}
