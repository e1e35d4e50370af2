// SPDX-License-Identifier: Apache-2.0
// The last hops of devices and of interfaces that return, in tables of the real programs.

import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { joinLastHop, type StructInput } from "../../src/abi/codec.ts";
import {
  CAUSE,
  DEVICE_STATE,
  INTERFACE_FLAG,
  LAST_HOP_KIND,
  ORIGIN,
  ROLE,
} from "../../src/abi/layout.gen.ts";
import { parseMac } from "../../src/addresses.ts";
import { settleDevices } from "../../src/controller/devices.ts";
import { countLastHops, markRoute, markUp, remapLastHops } from "../../src/controller/lastHops.ts";
import { objectPath } from "../../src/kernel/instance.ts";
import type { Netlink } from "../../src/kernel/netlink.ts";
import type { FdbEntry, Link, Neighbour } from "../../src/kernel/rtnetlink.ts";
import { BpfObject } from "../../src/libbpf/index.ts";
import { entryOf } from "../../src/ops/deviceSpec.ts";
import type { DeviceSpec } from "../../src/ops/types.ts";
import { ownerId, ownerOf, Tables } from "../../src/tables/index.ts";

const LAST_HOPS = 32;
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
const A = "02:00:00:00:0f:01";
const B = "02:00:00:00:0f:02";
const C = "02:00:00:00:0f:03";
const VIRTUAL = "00:00:5e:00:01:0a";
const HOST = "02:00:00:00:0a:01";
const UPLINKS = { eth0: { ifindex: 11, slot: 1 }, eth1: { ifindex: 12, slot: 2 } } as const;
type UplinkName = keyof typeof UPLINKS;

let object: BpfObject;
let tables: Tables;
let links: Link[];
let fdb: FdbEntry[];
let neighbours: Neighbour[];

beforeEach(() => {
  object = BpfObject.open(objectPath(), { mapMaxEntries: SIZES });
  object.load();
  tables = new Tables(object);
  links = [];
  fdb = [];
  neighbours = [];
  for (const name of Object.keys(UPLINKS) as UplinkName[]) attach(name);
});

afterEach(() => object.close());

const bytes = (text: string) => parseMac(text)!;

function attach(name: UplinkName, changes: StructInput<"interface"> = {}): void {
  const { ifindex, slot } = UPLINKS[name];
  const entry = {
    name,
    slot,
    role: ROLE.UPLINK,
    l3_ifindex: ifindex,
    mac: bytes(HOST),
    host_mac: bytes(HOST),
  };
  tables.interfaces.set(ifindex, { ...entry, ...changes });
  setLink(name, true);
}

function setLink(name: UplinkName, up: boolean): void {
  const { ifindex } = UPLINKS[name];
  links = links.filter((link) => link.ifindex !== ifindex);
  links.push({ ifindex, name, flags: { up, running: up, loopback: false } } as Link);
}

function settle(): string[] {
  const netlink = { links: () => links, fdb: () => fdb, neighbours: () => neighbours };
  return settleDevices({ tables, netlink: netlink as unknown as Netlink });
}

/** As the programs learn one. */
function learn(name: UplinkName, mac: string, tags: StructInput<"last_hop">["tags"] = []): number {
  const { ifindex, slot } = UPLINKS[name];
  const record = { ifindex, slot, mac: bytes(mac), source_mac: bytes(HOST), tags };
  const { index } = tables.lastHops.create(record)!;
  tables.lastHops.keys.set({ ifindex, mac: bytes(mac), tags }, index);
  return index;
}

function setDevice(name: string, spec: DeviceSpec, state: number = DEVICE_STATE.UP): void {
  tables.devices.set({ name }, { ...entryOf(spec, undefined), origin: ORIGIN.CONFIG, state });
}

function keyed(
  name: UplinkName,
  mac: string,
  tags: StructInput<"last_hop">["tags"] = [],
): number | undefined {
  return tables.lastHops.keys.get({ ifindex: UPLINKS[name].ifindex, mac: bytes(mac), tags });
}

/** Where flows that name an index go: interface and MAC, or why not. */
function way(index: number): string {
  const record = tables.lastHops.records.get(index)!;
  const found = tables.lastHops.resolve(joinLastHop(record.generation, index));
  if (found.state === "stale") return "stale";
  if (found.state === "route" || found.state === "drop") return found.state;
  const target = tables.lastHops.records.get(found.target)!;
  return `${target.ifindex} ${target.mac.toString("hex")}`;
}

const at = (name: UplinkName, mac: string) => `${UPLINKS[name].ifindex} ${bytes(mac).toString("hex")}`;

describe("a device", () => {
  it("has its last hops before any frame, on each uplink where it may be; again nothing is done", () => {
    setDevice("fw", { macs: [A, B] });
    expect(settle()).toEqual(["device fw: 4 last hops entered"]);
    for (const name of ["eth0", "eth1"] as const) {
      for (const mac of [A, B]) {
        const index = keyed(name, mac)!;
        expect(way(index)).toBe(at(name, mac));
        const record = tables.lastHops.records.get(index)!;
        expect(record).toMatchObject({ origin: ORIGIN.CONFIG, slot: UPLINKS[name].slot });
        expect(record.source_mac).toEqual(bytes(HOST));
        expect(ownerOf(record)).toBe(ownerId("fw"));
      }
    }
    expect(settle()).toEqual([]);
    // They were not learned.
    expect(countLastHops(tables.lastHops, UPLINKS.eth0.ifindex)).toBe(0);
  });

  it("of one uplink, zone and tags has them there", () => {
    attach("eth1", { zone: 7 });
    setDevice("fw", { macs: [A], interface: "eth*", vlans: [100] });
    setDevice("other", { macs: [A], zone: 7 });
    expect(settle()).toHaveLength(2);
    const tags = [{ proto: 0x8100, vid: 100 }];
    expect(keyed("eth0", A)).toBeUndefined();
    expect(tables.lastHops.records.get(keyed("eth0", A, tags)!)!.tags[0]).toEqual(tags[0]);
    expect(keyed("eth1", A, tags)).toBeUndefined();
    expect(ownerOf(tables.lastHops.records.get(keyed("eth1", A)!)!)).toBe(ownerId("other"));
  });

  it("takes over what was learned, also with other tags, and gives it back", () => {
    const tags = [{ proto: 0x8100, vid: 5 }];
    const plain = learn("eth0", A);
    const tagged = learn("eth0", A, tags);
    const stranger = learn("eth0", C);
    setDevice("fw", { macs: [A], interface: "eth0" }, DEVICE_STATE.DOWN);
    settle();
    expect(keyed("eth0", A)).toBe(plain);
    expect([plain, tagged, stranger].map(way)).toEqual(["route", "route", at("eth0", C)]);
    expect(tables.lastHops.records.get(plain)!.origin).toBe(ORIGIN.CONFIG);
    // It goes when it is idle, as learned ones do.
    expect(tables.lastHops.records.get(tagged)!.origin).toBe(ORIGIN.LEARNED);
    tables.devices.delete({ name: "fw" });
    settle();
    expect([plain, tagged].map(way)).toEqual([at("eth0", A), at("eth0", A)]);
    expect(keyed("eth0", A)).toBe(plain);
    expect(tables.lastHops.records.get(plain)!.origin).toBe(ORIGIN.LEARNED);
    expect(settle()).toEqual([]);
  });

  it("with a reply MAC is answered there, whichever MAC or tags its frames have", () => {
    const tags = [{ proto: 0x8100, vid: 5 }];
    const learned = [learn("eth0", A), learn("eth0", B, tags)];
    setDevice("pair", { macs: [A, B], reply_mac: VIRTUAL, interface: "eth0" });
    settle();
    const index = keyed("eth0", A)!;
    expect(learned).not.toContain(index);
    for (const mac of [B, VIRTUAL]) expect(keyed("eth0", mac)).toBe(index);
    expect(learned.map(way)).toEqual([at("eth0", VIRTUAL), at("eth0", VIRTUAL)]);
    expect(way(keyed("eth0", B, tags)!)).toBe(at("eth0", VIRTUAL));
    expect(settle()).toEqual([]);
    // Removed, its MACs are learned for what they are.
    tables.devices.delete({ name: "pair" });
    settle();
    for (const mac of [A, B]) expect(keyed("eth0", mac)).toBeUndefined();
    expect(learned.map(way)).toEqual([at("eth0", VIRTUAL), at("eth0", VIRTUAL)]);
  });

  it("that changes its MAC takes all flows along by one write, there and back", () => {
    setDevice("fw", { macs: [A], interface: "eth0" });
    settle();
    const first = keyed("eth0", A)!;
    setDevice("fw", { macs: [B], interface: "eth0" });
    const writes = vi.spyOn(tables.lastHops.aliases, "set");
    settle();
    const second = keyed("eth0", B)!;
    expect(writes.mock.calls.filter(([index]) => index === first)).toHaveLength(1);
    expect(keyed("eth0", A)).toBeUndefined();
    expect([first, second].map(way)).toEqual([at("eth0", B), at("eth0", B)]);
    // Another that the programs learned meanwhile follows too when the MAC comes back.
    const third = learn("eth0", A);
    setDevice("fw", { macs: [A], interface: "eth0" });
    settle();
    expect([first, second, third].map(way)).toEqual([at("eth0", A), at("eth0", A), at("eth0", A)]);
    const used = tables.lastHops.used();
    for (const mac of [B, A, B, A]) {
      setDevice("fw", { macs: [mac], interface: "eth0" });
      settle();
      expect([first, second, third].map(way)).toEqual(Array(3).fill(at("eth0", mac)));
    }
    expect(tables.lastHops.used()).toBe(used);
  });

  it("that is down leaves its old MACs' flows where on_down says, and finds them again", () => {
    setDevice("fw", { macs: [A], interface: "eth0" });
    settle();
    const first = keyed("eth0", A)!;
    setDevice("fw", { macs: [B], interface: "eth0" });
    settle();
    const second = keyed("eth0", B)!;
    for (const [onDown, ways] of [
      ["route", "route"],
      ["drop", "drop"],
      ["hold", at("eth0", B)],
    ] as const) {
      setDevice("fw", { macs: [B], interface: "eth0", on_down: onDown }, DEVICE_STATE.DOWN);
      settle();
      expect([first, second].map(way), onDown).toEqual([ways, ways]);
      setDevice("fw", { macs: [B], interface: "eth0", on_down: onDown });
      settle();
      expect([first, second].map(way), onDown).toEqual([at("eth0", B), at("eth0", B)]);
    }
  });

  it("falls back on its peer where that is, and on the VM's route when that is down too", () => {
    setDevice("a", { macs: [A], on_down: "peer:b" }, DEVICE_STATE.DOWN);
    setDevice("b", { macs: [B] });
    // Both may be on either uplink; the bridge has seen b's frames on eth1.
    const port = { ifindex: UPLINKS.eth1.ifindex, master: 9, mac: B, vlan: null, local: false };
    fdb = [port];
    settle();
    const own = keyed("eth0", A)!;
    expect(way(own)).toBe(at("eth1", B));
    fdb = [{ ...port, ifindex: UPLINKS.eth0.ifindex }];
    settle();
    expect(way(own)).toBe(at("eth0", B));
    // Where they are routed, its neighbour entry tells.
    fdb = [];
    neighbours = [{ ifindex: UPLINKS.eth1.ifindex, family: 4, address: "192.0.2.2", mac: B, state: "stale" }];
    settle();
    expect(way(own)).toBe(at("eth1", B));
    setLink("eth1", false);
    settle();
    expect(way(own)).toBe(at("eth0", B));
    setDevice("b", { macs: [B] }, DEVICE_STATE.DOWN);
    settle();
    expect(way(own)).toBe("route");
  });

  it("on two uplinks of which one fails: only the flows of that one fall back", () => {
    setDevice("fw", { macs: [A], on_down: "drop" });
    settle();
    const [first, second] = [keyed("eth0", A)!, keyed("eth1", A)!];
    setLink("eth0", false);
    settle();
    expect([first, second].map(way)).toEqual(["drop", at("eth1", A)]);
    setLink("eth0", true);
    attach("eth1", { flags: INTERFACE_FLAG.GONE });
    settle();
    expect([first, second].map(way)).toEqual([at("eth0", A), "drop"]);
    // Detached, then gone for good: the flows do not turn up on another uplink.
    tables.interfaces.delete(UPLINKS.eth1.ifindex);
    settle();
    expect(way(second)).toBe("drop");
    expect(keyed("eth1", A)).toBe(second);
    links = links.filter(({ ifindex }) => ifindex !== UPLINKS.eth1.ifindex);
    settle();
    expect(way(second)).toBe("drop");
    expect(keyed("eth1", A)).toBeUndefined();
  });

  it("is told from one that resolves to its MAC", () => {
    setDevice("fw", { macs: [A], interface: "eth0" });
    const entry = entryOf({ addresses: ["192.0.2.1"], interface: "eth0" }, undefined);
    const addresses = [{ ...entry.addresses![0], mac: bytes(A) }];
    tables.devices.set(
      { name: "address" },
      { ...entry, addresses, state: DEVICE_STATE.DOWN, cause: CAUSE.NEIGHBOUR },
    );
    settle();
    expect(way(keyed("eth0", A)!)).toBe(at("eth0", A));
    expect(settle()).toEqual([]);
  });

  it("on an uplink where only devices are learned loses its keys when it is removed", () => {
    attach("eth0", { flags: INTERFACE_FLAG.LEARN_DEVICES });
    setDevice("fw", { macs: [A], interface: "eth0" });
    settle();
    const index = keyed("eth0", A)!;
    tables.devices.delete({ name: "fw" });
    settle();
    expect(keyed("eth0", A)).toBeUndefined();
    expect(way(index)).toBe(at("eth0", A));
  });

  it("for which no index is left is learned from its traffic, and the log says so", () => {
    for (let count = 0; count < LAST_HOPS - 1; count++) learn("eth0", `02:00:00:00:ee:${count.toString(16)}`);
    setDevice("fw", { macs: [A] });
    expect(settle()).toEqual(["device fw: 1 last hop entered", "device fw: no room for 1 last hop"]);
    expect(tables.lastHops.create({})).toBeUndefined();
  });
});

describe("an interface that returns", () => {
  const TO = { ifindex: 77, slot: 5, sourceMac: bytes("02:00:00:00:0a:77") };
  const there = (mac: string) => `77 ${bytes(mac).toString("hex")}`;

  it("under another index: keys and flows come along, others' stay", () => {
    const [a, b, other] = [learn("eth0", A), learn("eth0", B), learn("eth1", C)];
    expect(markRoute(tables.lastHops, UPLINKS.eth0.ifindex).sort()).toEqual([a, b]);
    expect(remapLastHops(tables.lastHops, UPLINKS.eth0.ifindex, TO)).toBe(2);
    expect([a, b, other].map(way)).toEqual([there(A), there(B), at("eth1", C)]);
    for (const mac of [A, B]) {
      expect(keyed("eth0", mac)).toBeUndefined();
      const index = tables.lastHops.keys.get({ ifindex: TO.ifindex, mac: bytes(mac) })!;
      expect(tables.lastHops.records.get(index)).toMatchObject({ kind: LAST_HOP_KIND.ETHERNET, slot: 5 });
      expect(tables.lastHops.records.get(index)!.source_mac).toEqual(TO.sourceMac);
    }
    // Whoever stood for the old record stands for the new one, also the next time.
    expect(remapLastHops(tables.lastHops, TO.ifindex, { ...TO, ifindex: 78 })).toBe(2);
    expect(way(a)).toBe(`78 ${bytes(A).toString("hex")}`);
    expect(remapLastHops(tables.lastHops, 78, { ...TO, ifindex: 78 })).toBe(0);
    expect(remapLastHops(tables.lastHops, UPLINKS.eth0.ifindex, TO)).toBe(0);
    // Detached and attached: old indices as well as new ones.
    expect(markRoute(tables.lastHops, 78)).toHaveLength(6);
    expect(way(a)).toBe("route");
    expect(markUp(tables.lastHops, 78)).toHaveLength(6);
    expect(way(a)).toBe(`78 ${bytes(A).toString("hex")}`);
  });

  it("with another MAC of the host: the same keys lead to the new records", () => {
    const a = learn("eth0", A);
    const { ifindex, slot } = UPLINKS.eth0;
    const sourceMac = bytes("02:00:00:00:0a:99");
    expect(remapLastHops(tables.lastHops, ifindex, { ifindex, slot, sourceMac })).toBe(1);
    const index = keyed("eth0", A)!;
    expect(index).not.toBe(a);
    expect(tables.lastHops.records.get(index)!.source_mac).toEqual(sourceMac);
    expect(way(a)).toBe(at("eth0", A));
    // And taken back.
    expect(remapLastHops(tables.lastHops, ifindex, { ifindex, slot, sourceMac: bytes(HOST) })).toBe(1);
    expect(tables.lastHops.records.get(keyed("eth0", A)!)!.source_mac).toEqual(bytes(HOST));
  });

  it("a device's last hops stay the device's, down or up, and its peers' flows find it", () => {
    setDevice("a", { macs: [A], interface: "eth0", on_down: "peer:b" }, DEVICE_STATE.DOWN);
    setDevice("b", { macs: [B], interface: "eth1" });
    setDevice("c", { macs: [C], interface: "eth1", on_down: "drop" }, DEVICE_STATE.DOWN);
    settle();
    const [a, b, c] = [keyed("eth0", A)!, keyed("eth1", B)!, keyed("eth1", C)!];
    expect([a, b, c].map(way)).toEqual([at("eth1", B), at("eth1", B), "drop"]);
    remapLastHops(tables.lastHops, UPLINKS.eth1.ifindex, TO);
    expect([a, b, c].map(way)).toEqual([there(B), there(B), "drop"]);
    tables.interfaces.delete(UPLINKS.eth1.ifindex);
    tables.interfaces.set(TO.ifindex, { name: "eth1", slot: 5, role: ROLE.UPLINK, host_mac: TO.sourceMac });
    links.push({ ...links[0]!, ifindex: TO.ifindex });
    expect(settle()).toEqual([]);
    setDevice("a", { macs: [A], interface: "eth0" });
    setDevice("c", { macs: [C], interface: "eth1" });
    settle();
    expect([a, b, c].map(way)).toEqual([at("eth0", A), there(B), there(C)]);
  });

  it("for which no index is left heals with the next requests", () => {
    for (let count = 0; count < LAST_HOPS; count++) learn("eth0", `02:00:00:00:ee:${count.toString(16)}`);
    expect(remapLastHops(tables.lastHops, UPLINKS.eth0.ifindex, TO)).toBe(0);
    expect([...tables.lastHops.keys.keys()]).toEqual([]);
  });
});
