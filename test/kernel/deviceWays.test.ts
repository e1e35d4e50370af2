// SPDX-License-Identifier: Apache-2.0
// Last hops that are more than a MAC address, or less: those of devices, and when the way back changes. In tables of
// the real programs.

import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { joinLastHop, type StructInput, type StructValue } from "../../src/abi/codec.ts";
import {
  DEVICE_STATE,
  ENCAPSULATION_FLAG,
  INTERFACE_FLAG,
  LAST_HOP_KIND,
  ORIGIN,
  ROLE,
} from "../../src/abi/layout.gen.ts";
import { mapIpv4, parseAddress, parseMac } from "../../src/addresses.ts";
import { deviceConflict, settleDevices } from "../../src/controller/devices.ts";
import { labelStackId } from "../../src/controller/labelStacks.ts";
import { lastHopFacts } from "../../src/controller/lastHopFacts.ts";
import { isAsNew, remapLastHops } from "../../src/controller/lastHops.ts";
import { objectPath } from "../../src/kernel/instance.ts";
import type { Netlink } from "../../src/kernel/netlink.ts";
import type { Link } from "../../src/kernel/rtnetlink.ts";
import { BpfObject } from "../../src/libbpf/index.ts";
import { entryOf, whole } from "../../src/ops/deviceSpec.ts";
import { lastHopEntries } from "../../src/ops/lastHops.ts";
import type { DeviceSpec } from "../../src/ops/types.ts";
import { ownerId, ownerOf, Tables } from "../../src/tables/index.ts";

const { NO_LINK_LAYER, TUNNEL_KEY, VIA_STACK, LEARN_DEVICES } = INTERFACE_FLAG;
const { ETHERNET, IP, STACK } = LAST_HOP_KIND;
const { TUNNEL, LABELS, IPSEC } = ENCAPSULATION_FLAG;
const LAST_HOPS = 64;
const SIZES = {
  flows4: 256,
  flows6: 256,
  embryos4: 256,
  embryos6: 256,
  fragments: 64,
  last_hops: LAST_HOPS,
  last_hop_alias: LAST_HOPS,
  last_hop_free: LAST_HOPS,
  last_hop_index: LAST_HOPS,
  last_hop_stats: LAST_HOPS,
};
const A = parseMac("02:00:00:00:0f:01")!;
const VIRTUAL = parseMac("00:00:5e:00:01:0a")!;
const HOST = parseMac("02:00:00:00:0a:01")!;

let object: BpfObject;
let tables: Tables;
let links: Link[];

beforeEach(() => {
  object = BpfObject.open(objectPath(), { mapMaxEntries: SIZES });
  object.load();
  tables = new Tables(object);
  links = [];
});
afterEach(() => object.close());

function attach(name: string, ifindex: number, more: StructInput<"interface"> = {}): void {
  const bare = ((more.flags ?? 0) & NO_LINK_LAYER) !== 0;
  const mac = bare ? Buffer.alloc(6) : HOST;
  const own = { name, slot: ifindex - 10, role: ROLE.UPLINK, l3_ifindex: ifindex, mac, host_mac: mac };
  tables.interfaces.set(ifindex, { ...own, ...more });
  links = links.filter((link) => link.ifindex !== ifindex);
  links.push({ ifindex, name, flags: { up: true, running: true, loopback: false } } as Link);
}

function settle(): string[] {
  const netlink = { links: () => links, fdb: () => [], neighbours: () => [] };
  return settleDevices({ tables, netlink: netlink as unknown as Netlink });
}

function setDevice(name: string, spec: DeviceSpec, state: number = DEVICE_STATE.UP): void {
  tables.devices.set({ name }, { ...entryOf(spec, undefined), origin: ORIGIN.CONFIG, state });
}

const mapped = (text: string) => mapIpv4(parseAddress(text)!);

/** As the programs learn one. */
function learn(
  ifindex: number,
  record: StructInput<"last_hop">,
  key: StructInput<"last_hop_key"> = {},
): number {
  const own = { ifindex, slot: ifindex - 10, origin: ORIGIN.LEARNED, ...record };
  const { index } = tables.lastHops.create({ source_mac: HOST, ...own })!;
  const { mac = Buffer.alloc(6), encapsulated = 0 } = record;
  tables.lastHops.keys.set({ ifindex, mac, encapsulated, ...key }, index);
  return index;
}

function learnInTunnel(ifindex: number, remote: string, id: number, mac: Buffer = A): number {
  const tunnel = { remote: mapped(remote), local: mapped("192.0.2.1"), id, flags: 0x04, tos: 0x28 };
  return learn(
    ifindex,
    { mac, encapsulated: TUNNEL, encapsulation: { tunnel } },
    { tunnel_remote: tunnel.remote, tunnel_id: id },
  );
}

const record = (index: number): StructValue<"last_hop"> => tables.lastHops.records.get(index)!;

/** The record that flows use which name an index; undefined if none. */
function target(index: number): StructValue<"last_hop"> | undefined {
  const found = tables.lastHops.resolve(joinLastHop(record(index).generation, index));
  return found.state === "up" || found.state === "alias" ? record(found.target) : undefined;
}

describe("the far end of an interface without a link layer", () => {
  it("is its one last hop, before any packet; again nothing is done", () => {
    attach("gre1", 21, { flags: NO_LINK_LAYER | LEARN_DEVICES });
    attach("eth0", 22);
    setDevice("fw", { interface: "*" });
    setDevice("other", { macs: ["02:00:00:00:0f:01"] });
    expect(settle().sort()).toEqual(["device fw: 1 last hop entered", "device other: 1 last hop entered"]);
    const index = tables.lastHops.keys.get({ ifindex: 21 })!;
    expect(record(index)).toMatchObject({ kind: IP, ifindex: 21, origin: ORIGIN.CONFIG });
    expect(ownerOf(record(index))).toBe(ownerId("fw"));
    // A MAC is nobody's there, and a far end is nobody's where there are MACs.
    expect([...tables.lastHops.keys.keys()].map(({ ifindex }) => ifindex).sort()).toEqual([21, 22]);
    expect(settle()).toEqual([]);
  });

  it("has what was learned there, and goes down with all of it", () => {
    attach("gre1", 21, { flags: NO_LINK_LAYER });
    const index = learn(21, { kind: IP, source_mac: Buffer.alloc(6) });
    setDevice("fw", { interface: "gre1" }, DEVICE_STATE.DOWN);
    settle();
    expect(tables.lastHops.keys.get({ ifindex: 21 })).toBe(index);
    expect(target(index)).toBeUndefined();
    tables.devices.delete({ name: "fw" });
    settle();
    expect(target(index)).toMatchObject({ kind: IP });
    expect(ownerOf(record(index))).toBe(0n);
  });

  it("has every tunnel of a shared device, each as it was learned", () => {
    attach("gre0", 21, { flags: NO_LINK_LAYER | TUNNEL_KEY });
    const none = Buffer.alloc(6);
    const [one, two] = [learnInTunnel(21, "192.0.2.2", 7, none), learnInTunnel(21, "192.0.2.3", 7, none)];
    for (const index of [one, two])
      tables.lastHops.records.set(index, { ...record(index), kind: IP, source_mac: none });
    setDevice("fw", { interface: "gre0" });
    settle();
    expect([one, two].map((index) => ownerOf(record(index)))).toEqual([ownerId("fw"), ownerId("fw")]);
    expect([...tables.lastHops.keys.entries()]).toHaveLength(2);
    expect(target(one)!.encapsulation.tunnel).toMatchObject({
      remote: mapped("192.0.2.2"),
      id: 7,
      tos: 0x28,
    });
    expect(settle()).toEqual([]);
  });

  it("is one device only", () => {
    const spec = (pattern: string) => whole(entryOf({ interface: pattern }, undefined));
    const others = [["fw", spec("gre*")]] as const;
    expect(deviceConflict("b", spec("gre1"), others)).toBe("the far end of gre1 is the device fw already");
    expect(deviceConflict("b", spec("ipip1"), others)).toBeNull();
    expect(deviceConflict("fw", spec("gre1"), others)).toBeNull();
  });
});

describe("a device with a MAC", () => {
  it("on a shared tunnel device has what is learned, with its tunnel key, and nothing before", () => {
    attach("vxlan0", 21, { flags: TUNNEL_KEY });
    setDevice("fw", { macs: ["02:00:00:00:0f:01"] });
    expect(settle()).toEqual([]);
    expect([...tables.lastHops.keys.keys()]).toEqual([]);
    const [one, two] = [learnInTunnel(21, "192.0.2.2", 100), learnInTunnel(21, "192.0.2.2", 200)];
    settle();
    for (const [index, id] of [
      [one, 100],
      [two, 200],
    ] as const) {
      expect(ownerOf(record(index))).toBe(ownerId("fw"));
      expect(target(index)).toMatchObject({ encapsulated: TUNNEL, encapsulation: { tunnel: { id } } });
    }
    expect(settle()).toEqual([]);
  });

  it("is answered at its reply MAC in the same tunnel", () => {
    attach("vxlan0", 21, { flags: TUNNEL_KEY });
    const index = learnInTunnel(21, "192.0.2.2", 100);
    setDevice("fw", { macs: ["02:00:00:00:0f:01"], reply_mac: "00:00:5e:00:01:0a" });
    settle();
    const { mac, encapsulated, encapsulation } = target(index)!;
    expect({ mac, encapsulated }).toEqual({ mac: VIRTUAL, encapsulated: TUNNEL });
    const { local, flags, tos, id } = encapsulation.tunnel;
    expect({ local, flags, tos, id }).toEqual({
      local: mapped("192.0.2.1"),
      flags: 0x04,
      tos: 0x28,
      id: 100,
    });
    expect(settle()).toEqual([]);
  });

  it("on an uplink whose replies go by the stack is entered so, with the mark; with labels by theirs", () => {
    attach("eth0", 21, { flags: VIA_STACK, mark: 0x11 });
    tables.labelStacks.set({ labels: [100] }, 0x64);
    const labelled = learn(
      21,
      {
        kind: STACK,
        mark: 0x64,
        mac: A,
        encapsulated: LABELS,
        label_count: 1,
        encapsulation: { labels: [100] },
      },
      { labels: [100] },
    );
    setDevice("fw", { macs: ["02:00:00:00:0f:01"] });
    settle();
    expect(record(tables.lastHops.keys.get({ ifindex: 21, mac: A })!)).toMatchObject({
      kind: STACK,
      mark: 0x11,
    });
    expect(target(labelled)).toMatchObject({ kind: STACK, mark: 0x64, label_count: 1 });
    expect(settle()).toEqual([]);
    // Another mark for the same labels.
    tables.labelStacks.set({ labels: [100] }, 0x65);
    settle();
    expect(target(labelled)).toMatchObject({ kind: STACK, mark: 0x65, label_count: 1 });
    expect(settle()).toEqual([]);
  });
});

describe("when the way back changes", () => {
  const SOURCE = { ifindex: 21, slot: 11, sourceMac: HOST };
  const straight = { ...SOURCE, way: { flags: 0, mark: 0, labelStacks: new Map<string, number>() } };

  it("flows follow: by the stack, with another mark, and back", () => {
    attach("eth0", 21);
    const index = learn(21, { mac: A });
    const ipsec = learn(21, { mac: A, kind: STACK, encapsulated: IPSEC });
    const isNew = (to: Parameters<typeof isAsNew>[1]) =>
      lastHopFacts(tables.lastHops)
        .of(21)
        .sources.every((source) => isAsNew(source, to));
    expect(isNew(straight)).toBe(true);
    const stack = { ...SOURCE, way: { ...straight.way, flags: VIA_STACK, mark: 0x11 } };
    expect(isNew(stack)).toBe(false);
    expect(remapLastHops(tables.lastHops, 21, stack)).toBe(2);
    expect(isNew(stack)).toBe(true);
    expect([index, ipsec].map((one) => target(one))).toMatchObject([
      { kind: STACK, mark: 0x11, mac: A },
      { kind: STACK, mark: 0x11, encapsulated: IPSEC },
    ]);
    expect(remapLastHops(tables.lastHops, 21, stack)).toBe(0);
    expect(remapLastHops(tables.lastHops, 21, straight)).toBe(2);
    expect([index, ipsec].map((one) => target(one)!.kind)).toEqual([ETHERNET, STACK]);
  });

  it("labels that have another mark now have it at once; those that are no longer configured keep theirs", () => {
    attach("eth0", 21);
    const labels = { kind: STACK, mac: A, encapsulated: LABELS, label_count: 1 };
    const one = learn(21, { ...labels, mark: 1, encapsulation: { labels: [100] } }, { labels: [100] });
    const two = learn(21, { ...labels, mark: 2, encapsulation: { labels: [200] } }, { labels: [200] });
    const labelStacks = new Map([[labelStackId([100]), 9]]);
    expect(remapLastHops(tables.lastHops, 21, { ...SOURCE, way: { ...straight.way, labelStacks } })).toBe(1);
    expect([one, two].map((index) => target(index)!.mark)).toEqual([9, 2]);
  });
});

describe("what people see", () => {
  it("of each kind of last hop", () => {
    attach("gre1", 21, { flags: NO_LINK_LAYER });
    attach("vxlan0", 22, { flags: TUNNEL_KEY });
    attach("eth0", 23);
    learn(21, { kind: IP });
    learnInTunnel(22, "192.0.2.2", 100);
    const labels = { encapsulated: LABELS, label_count: 2, encapsulation: { labels: [100, 200] } };
    learn(23, { kind: STACK, mac: A, mark: 0x11, ...labels }, { labels: [100, 200] });
    learn(23, { kind: STACK, mac: A, encapsulated: IPSEC });
    const mac = "02:00:00:00:0f:01";
    const plain = { tags: [], tunnel: null, labels: [], ipsec: false, via: "redirect", mark: null };
    expect(lastHopEntries(tables, [])).toMatchObject([
      { ...plain, mac: null, interface: "gre1" },
      { ...plain, mac, interface: "vxlan0", tunnel: { remote: "192.0.2.2", local: "192.0.2.1", id: 100 } },
      { ...plain, mac, interface: "eth0", labels: [100, 200], via: "stack", mark: 0x11 },
      { ...plain, mac, interface: "eth0", ipsec: true, via: "stack" },
    ]);
  });
});
