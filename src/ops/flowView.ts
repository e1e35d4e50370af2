// SPDX-License-Identifier: Apache-2.0
// How a flow is shown: names for numbers, the last hop and the VM that it refers to.

import { currentTick, FLOW_STATE_NAMES, idleSeconds, type StructValue } from "../abi/codec.ts";
import { ENCAPSULATION_FLAG, FLOW_FLAG, LAST_HOP_KIND } from "../abi/layout.gen.ts";
import { formatAddress, formatMac } from "../addresses.ts";
import { addressText } from "../controller/devices.ts";
import { homeOf } from "../controller/lastHops.ts";
import {
  type Flow,
  type InterfaceEntry,
  interfaceName,
  isZero,
  type LastHopRecord,
  type Tables,
} from "../tables/index.ts";
import type { FlowEntry, LastHopPlace, Protocol, VlanTag } from "./types.ts";

const ETH_P_8021AD = 0x88a8;

const PROTOCOLS: Readonly<Record<number, Protocol>> = {
  1: "icmp",
  6: "tcp",
  17: "udp",
  58: "icmp",
  132: "sctp",
};

const SHOWN_FLAGS = Object.entries(FLOW_FLAG)
  .filter(([, bit]) => bit !== FLOW_FLAG.LOCAL_ORIGIN)
  .map(([name, bit]) => ({ name: name.toLowerCase(), bit }));

export function protocolName(proto: number): FlowEntry["protocol"] {
  return PROTOCOLS[proto] ?? `proto_${proto}`;
}

export function stateName(state: number): string {
  return FLOW_STATE_NAMES[state] ?? `state_${state}`;
}

/** Without local origin, which is shown by itself. */
export function flagNames(flags: number): string[] {
  const names = SHOWN_FLAGS.filter(({ bit }) => flags & bit).map(({ name }) => name);
  const known = Object.values(FLOW_FLAG).reduce((all, bit) => all | bit, 0);
  return flags & ~known ? [...names, `flags_${flags & ~known}`] : names;
}

export function vlanTags(tags: readonly StructValue<"vlan_tag">[]): VlanTag[] {
  return tags
    .filter((tag) => tag.proto !== 0)
    .map((tag) => ({ protocol: tag.proto === ETH_P_8021AD ? "802.1ad" : "802.1q", vid: tag.vid }));
}

/** GRE may go without a key; the others always have an id (include/net/ip_tunnels.h). */
const TUNNEL_KEY = 0x04;

/** What a record says, beside its interface. */
export function lastHopPlace(record: LastHopRecord): Omit<LastHopPlace, "interface"> {
  const { kind, mac, mark, tags, encapsulated, label_count, encapsulation } = record;
  const { tunnel, labels } = encapsulation;
  const has = (flag: number): boolean => (encapsulated & flag) !== 0;
  const isXfrm = has(ENCAPSULATION_FLAG.XFRM);
  const isStack = kind === LAST_HOP_KIND.STACK;
  return {
    mac: isZero(mac) ? null : formatMac(mac),
    tags: vlanTags(tags),
    tunnel: has(ENCAPSULATION_FLAG.TUNNEL)
      ? {
          remote: isXfrm ? null : addressText(tunnel.remote),
          local: isXfrm ? null : addressText(tunnel.local),
          id: isXfrm || tunnel.flags & TUNNEL_KEY ? tunnel.id : null,
        }
      : null,
    labels: has(ENCAPSULATION_FLAG.LABELS) ? labels.slice(0, label_count) : [],
    ipsec: has(ENCAPSULATION_FLAG.IPSEC),
    via: isStack ? "stack" : "redirect",
    mark: isStack && mark !== 0 ? mark : null,
  };
}

/** To a tenth of a second: a tick is longer than that. */
export function roundIdle(seconds: number): number {
  return Math.round(seconds * 10) / 10;
}

type ShownVm = Pick<FlowEntry, "vm" | "vm_mac">;
type ShownLastHop = Pick<FlowEntry, "last_hop" | "stale">;

/**
 * What the tables say at one moment about the things that flows refer to; a list of many flows looks
 * each up once.
 */
export class FlowView {
  /** The tick against which idle times are counted. */
  readonly now: number = currentTick();
  readonly #tables: Tables;
  readonly #interfaces: Map<number, InterfaceEntry>;
  readonly #lastHops = new Map<number, ShownLastHop>();
  #vms: Map<number, ShownVm> | undefined;

  constructor(tables: Tables) {
    this.#tables = tables;
    this.#interfaces = new Map(tables.interfaces.list().map((entry) => [entry.ifindex, entry]));
  }

  interfaceName(ifindex: number): string {
    return interfaceName(this.#interfaces.get(ifindex), ifindex);
  }

  interfaceNames(): string[] {
    return [...this.#interfaces.values()].map((entry) => entry.name);
  }

  interface(ifindex: number): InterfaceEntry | undefined {
    return this.#interfaces.get(ifindex);
  }

  /** What a flow's reference and flags say of its last hop; never throws on garbage. */
  lastHop(reference: number, flags: number): ShownLastHop {
    if (flags & FLOW_FLAG.LOCAL_ORIGIN) return { last_hop: null, stale: false };
    let shown = this.#lastHops.get(reference);
    if (!shown) {
      shown = this.#resolve(reference);
      this.#lastHops.set(reference, shown);
    }
    return shown;
  }

  #resolve(reference: number): ShownLastHop {
    const found = this.#tables.lastHops.resolve(reference);
    if (found.state === "stale") return { last_hop: null, stale: true };
    const { index, generation } = found;
    // An interface that came back, or a device's new MAC: that is where replies go.
    const record = this.#tables.lastHops.records.get(homeOf(this.#tables.lastHops, index)) ?? found.record;
    const last_hop = {
      index,
      generation,
      interface: this.interfaceName(record.ifindex),
      ...lastHopPlace(record),
    };
    return { last_hop, stale: false };
  }

  /** Nothing before a VM was chosen or has replied, and of a VM that is no longer known. */
  vm(id: number): ShownVm {
    this.#vms ??= knownVms(this.#tables);
    return this.#vms.get(id) ?? NO_VM;
  }

  entry({ key, tier, value }: Flow): FlowEntry {
    const protocol = protocolName(key.proto);
    const echo = protocol === "icmp";
    return {
      protocol,
      zone: key.zone,
      remote_address: formatAddress(key.remote),
      remote_port: echo ? 0 : key.remotePort,
      local_address: formatAddress(key.local),
      local_port: echo ? 0 : key.localPort,
      // The identifier stands in the opener's port, the other is 0.
      icmp_id: echo ? key.remotePort || key.localPort : null,
      tier,
      state: stateName(value.state),
      origin: value.flags & FLOW_FLAG.LOCAL_ORIGIN ? "local" : "remote",
      flags: flagNames(value.flags),
      ...this.lastHop(value.last_hop, value.flags),
      ...this.vm(value.vm),
      idle_seconds: roundIdle(idleSeconds(value.last_seen, this.now)),
    };
  }
}

const NO_VM: ShownVm = { vm: null, vm_mac: null };

/** By id, which is never 0. */
function knownVms(tables: Tables): Map<number, ShownVm> {
  const names = new Map([...tables.guests.specs.entries()].map(([{ name }, { id }]) => [id, name]));
  return new Map(
    [...tables.vms.entries()].map(([{ mac }, { id }]) => [
      id,
      { vm: names.get(id) ?? null, vm_mac: formatMac(mac) },
    ]),
  );
}
