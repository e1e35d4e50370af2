// SPDX-License-Identifier: Apache-2.0
// The last hops of devices that are given by their VTEPs, in tables of the real programs; what forwarding tables say
// is this test's word.

import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { joinLastHop, type StructInput } from "../../src/abi/codec.ts";
import {
  DEVICE_STATE,
  ENCAPSULATION_FLAG,
  INTERFACE_FLAG,
  LAST_HOP_KIND,
  ORIGIN,
  ROLE,
} from "../../src/abi/layout.gen.ts";
import { parseMac } from "../../src/addresses.ts";
import { settle } from "../../src/controller/deviceLastHops.ts";
import { vtepOf } from "../../src/controller/deviceRecords.ts";
import { addressOctets } from "../../src/controller/devices.ts";
import { atOnce } from "../../src/controller/pieces.ts";
import type { VtepSource } from "../../src/controller/vtepMacs.ts";
import { objectPath } from "../../src/kernel/instance.ts";
import type { Netlink } from "../../src/kernel/netlink.ts";
import type { Link } from "../../src/kernel/rtnetlink.ts";
import { type VxlanEntry, vtepKey } from "../../src/kernel/vxlanEntry.ts";
import { BpfObject } from "../../src/libbpf/index.ts";
import { entryOf } from "../../src/ops/deviceSpec.ts";
import type { DeviceSpec } from "../../src/ops/types.ts";
import { ownerId, ownerOf, Tables } from "../../src/tables/index.ts";

const UPLINK = 11;
const VTEP_A = "192.0.2.2";
const VTEP_B = "2001:db8::2";
const [A1, A2, B1] = ["02:00:00:00:0a:01", "02:00:00:00:0a:02", "02:00:00:00:0b:01"] as const;
const HOST = "02:00:00:00:00:01";
const SIZE = 64;

let object: BpfObject;
let tables: Tables;
let fdb: VxlanEntry[];
let withdrawn: Set<string>;

const octets = (mac: string) => parseMac(mac)!;
const hex = (mac: string) => octets(mac).toString("hex");

beforeEach(() => {
  const names = ["flows4", "flows6", "embryos4", "embryos6", "fragments", "last_hops", "last_hop_alias"];
  const sizes = [...names, "last_hop_free", "last_hop_index", "last_hop_stats"].map((name) => [name, SIZE]);
  object = BpfObject.open(objectPath(), { mapMaxEntries: Object.fromEntries(sizes) });
  object.load();
  tables = new Tables(object);
  fdb = [];
  withdrawn = new Set();
  attach();
});

afterEach(() => object.close());

function attach(flags = 0): void {
  tables.interfaces.set(UPLINK, {
    name: "vxlan0",
    slot: 1,
    role: ROLE.UPLINK,
    flags,
    l3_ifindex: UPLINK,
    mac: octets(HOST),
    host_mac: octets(HOST),
  });
}

function settleAll(moves: ReadonlyMap<string, Buffer> = new Map()): string[] {
  const link = { ifindex: UPLINK, name: "vxlan0", kind: "vxlan", lower: null, master: null };
  const links = [{ ...link, flags: { up: true, running: true, loopback: false } } as Link];
  const netlink = { links: () => links, fdb: () => [], neighbours: () => [] } as unknown as Netlink;
  const vteps: VtepSource = {
    entries: () => [fdb],
    find: (_vxlan, mac) => fdb.find((entry) => entry.mac === mac),
    isWithdrawn: (_vxlan, mac) => withdrawn.has(mac),
  };
  return atOnce(settle({ tables, netlink, vteps }, moves)).lines;
}

function setDevice(name: string, spec: DeviceSpec, state: number = DEVICE_STATE.UP): void {
  tables.devices.set({ name }, { ...entryOf(spec, undefined), origin: ORIGIN.CONFIG, state });
}

function behind(vtep: string, mac: string, more: Partial<VxlanEntry> = {}): VxlanEntry {
  const place = { ifindex: UPLINK, mac: hex(mac), vtep: vtepKey(addressOctets(vtep)), nexthop: null };
  return { ...place, sourceVni: null, vni: null, permanent: true, ...more };
}

/** As the programs learn one; `remote`: with the tunnel key of a shared device. */
function learn(mac: string, remote?: string, id = 100): number {
  const key = keyFor(mac, remote, id);
  const record = { ifindex: UPLINK, slot: 1, mac: octets(mac), source_mac: octets(HOST), tags: [] };
  const tunnel = {
    remote: key.tunnel_remote ?? Buffer.alloc(16),
    id,
    local: addressOctets("192.0.2.1"),
    tos: 8,
  };
  const way =
    remote === undefined ? {} : { encapsulated: ENCAPSULATION_FLAG.TUNNEL, encapsulation: { tunnel } };
  const { index } = tables.lastHops.create({ ...record, ...way })!;
  tables.lastHops.keys.set(key, index);
  return index;
}

function keyFor(mac: string, remote?: string, id = 100): StructInput<"last_hop_key"> {
  const key = { ifindex: UPLINK, mac: octets(mac), tags: [] };
  if (remote === undefined) return key;
  return {
    ...key,
    encapsulated: ENCAPSULATION_FLAG.TUNNEL,
    tunnel_remote: addressOctets(remote),
    tunnel_id: id,
  };
}

const keyed = (mac: string, remote?: string, id = 100) => tables.lastHops.keys.get(keyFor(mac, remote, id));
const record = (index: number) => tables.lastHops.records.get(index)!;
const isOf = (index: number, name: string | null) =>
  expect(ownerOf(record(index))).toBe(name === null ? 0n : ownerId(name));

/** The MAC that flows of an index go to, or why not. */
function way(index: number): string {
  const found = tables.lastHops.resolve(joinLastHop(record(index).generation, index));
  if (found.state === "stale" || found.state === "route" || found.state === "drop") return found.state;
  return record(found.target).mac.toString("hex");
}

describe("what is behind a device's VTEPs", () => {
  beforeEach(() => {
    setDevice("fw-a", { vteps: [VTEP_A] });
    setDevice("fw-b", { vteps: [VTEP_B], on_down: "drop" });
  });

  it("is its own before any frame, and taken over if it was learned; again nothing is done", () => {
    const learned = learn(A1);
    fdb = [behind(VTEP_A, A1), behind(VTEP_A, A2), behind(VTEP_B, B1)];
    expect(settleAll()).toEqual([
      "device fw-a: 1 last hop entered",
      "device fw-a: 1 last hop taken over",
      "device fw-b: 1 last hop entered",
    ]);
    expect(keyed(A1)).toBe(learned);
    for (const [mac, name] of [
      [A1, "fw-a"],
      [A2, "fw-a"],
      [B1, "fw-b"],
    ] as const) {
      isOf(keyed(mac)!, name);
      expect(way(keyed(mac)!)).toBe(hex(mac));
    }
    expect(record(keyed(B1)!)).toMatchObject({
      origin: ORIGIN.CONFIG,
      kind: LAST_HOP_KIND.ETHERNET,
      encapsulated: 0,
    });
    expect(vtepOf({ record: record(keyed(B1)!) })).toEqual(addressOctets(VTEP_B));
    expect(settleAll()).toEqual([]);
  });

  it("that was not heard of for long is kept for its flows, and goes when it is idle", () => {
    fdb = [behind(VTEP_A, A1), behind(VTEP_A, A2)];
    settleAll();
    const index = keyed(A1)!;
    fdb = [behind(VTEP_A, A2)];
    settleAll();
    expect(keyed(A1)).toBe(index);
    isOf(index, "fw-a");
    expect(way(index)).toBe(hex(A1));
    // As learned ones: released once no flow uses it.
    expect(record(index).origin).toBe(ORIGIN.LEARNED);
    expect(settleAll()).toEqual([]);
    fdb = [behind(VTEP_A, A1), behind(VTEP_A, A2)];
    settleAll();
    expect(record(index).origin).toBe(ORIGIN.CONFIG);
    // When the device is down all of it is.
    fdb = [];
    setDevice("fw-a", { vteps: [VTEP_A], on_down: "drop" }, DEVICE_STATE.DOWN);
    settleAll();
    expect([way(index), way(keyed(A2)!)]).toEqual(["drop", "drop"]);
  });

  it("that was taken back leaves its flows to what else the device has, now or later", () => {
    fdb = [behind(VTEP_A, A1)];
    settleAll();
    const index = keyed(A1)!;
    fdb = [];
    withdrawn.add(hex(A1));
    settleAll();
    expect(keyed(A1)).toBeUndefined();
    expect(way(index)).toBe(hex(A1));
    withdrawn.clear();
    fdb = [behind(VTEP_A, A2)];
    settleAll();
    expect(way(index)).toBe(hex(A2));
    // It is entered again.
    fdb = [behind(VTEP_A, A1)];
    settleAll();
    expect(way(keyed(A1)!)).toBe(hex(A1));
  });

  it("that is behind another's VTEP is that one's with its flows, and behind nobody's nobody's", () => {
    fdb = [behind(VTEP_A, A1), behind(VTEP_A, A2)];
    settleAll();
    const index = keyed(A1)!;
    setDevice("fw-b", { vteps: [VTEP_B], on_down: "drop" }, DEVICE_STATE.DOWN);
    fdb = [behind(VTEP_B, A1), behind(VTEP_A, A2)];
    settleAll();
    isOf(index, "fw-b");
    expect(way(index)).toBe("drop");
    fdb = [behind("192.0.2.9", A1), behind(VTEP_A, A2)];
    settleAll();
    isOf(index, null);
    expect(keyed(A1)).toBe(index);
    expect(way(index)).toBe(hex(A1));
    expect(record(index).origin).toBe(ORIGIN.LEARNED);
  });

  it("belongs to whom its MAC was given, if to another", () => {
    setDevice("fw-c", { macs: [A1] });
    fdb = [behind(VTEP_A, A1), behind(VTEP_A, A2)];
    settleAll();
    isOf(keyed(A1)!, "fw-c");
    isOf(keyed(A2)!, "fw-a");
  });

  it("is answered at the device's MAC for replies", () => {
    setDevice("fw-a", { vteps: [VTEP_A], reply_mac: "00:00:5e:00:01:0a" });
    fdb = [behind(VTEP_A, A1), behind(VTEP_A, A2)];
    settleAll();
    expect(keyed(A1)).toBe(keyed(A2));
    expect(way(keyed(A1)!)).toBe("00005e00010a");
    fdb = [behind(VTEP_A, A2)];
    settleAll();
    expect(keyed(A1)).toBe(keyed(A2));
  });

  it("is no longer its own when the VTEP is not, and learned when it is removed", () => {
    fdb = [behind(VTEP_A, A1)];
    settleAll();
    const index = keyed(A1)!;
    setDevice("fw-a", { vteps: ["192.0.2.99"] });
    settleAll();
    expect(keyed(A1)).toBeUndefined();
    setDevice("fw-a", { vteps: [VTEP_A] });
    settleAll();
    isOf(keyed(A1)!, "fw-a");
    expect(way(index)).toBe(hex(A1));
    tables.devices.delete({ name: "fw-a" });
    settleAll();
    isOf(keyed(A1)!, null);
  });

  it("that its address has left follows the address, though the table has it for some time yet", () => {
    const spec: DeviceSpec = { vteps: [VTEP_A], addresses: ["10.0.0.2"] };
    setDevice("fw-a", spec);
    fdb = [behind(VTEP_A, A1)];
    settleAll();
    const index = keyed(A1)!;
    const device = tables.devices.get({ name: "fw-a" })!;
    device.addresses[0]!.mac = octets(A2);
    tables.devices.set({ name: "fw-a" }, device);
    settleAll(new Map([[hex(A1), octets(A2)]]));
    expect(way(index)).toBe(hex(A2));
    // The next time nobody speaks of the move any longer.
    settleAll();
    expect(way(index)).toBe(hex(A2));
    expect(keyed(A1)).toBeUndefined();
    // A frame from there: it is there again.
    const learned = learn(A1);
    settleAll();
    expect(way(learned)).toBe(hex(A1));
    isOf(learned, "fw-a");
  });

  it("serves as a peer's where the table has it", () => {
    setDevice("fw-a", { vteps: [VTEP_A], on_down: "peer:fw-b" }, DEVICE_STATE.DOWN);
    fdb = [behind(VTEP_A, A1), behind(VTEP_B, B1)];
    settleAll();
    expect(way(keyed(A1)!)).toBe(hex(B1));
  });
});

describe("on a shared device", () => {
  beforeEach(() => {
    attach(INTERFACE_FLAG.TUNNEL_KEY);
    setDevice("fw-a", { vteps: [VTEP_A], macs: [B1] });
    setDevice("fw-b", { vteps: [VTEP_B] });
  });

  it("the tunnel key says whose a last hop is, and neither MAC nor VNI do", () => {
    const own = [learn(A1, VTEP_A), learn(A1, VTEP_A, 101), learn(B1, VTEP_A)];
    const others = [learn(A1, VTEP_B), learn(B1, VTEP_B)];
    const stranger = learn(B1, "192.0.2.9");
    settleAll();
    for (const index of own) isOf(index, "fw-a");
    for (const index of others) isOf(index, "fw-b");
    isOf(stranger, null);
    expect(keyed(A1, VTEP_A, 101)).toBe(own[1]);
    // With the key of its request, whole.
    expect(record(own[1]!).encapsulation.tunnel).toMatchObject({
      id: 101,
      tos: 8,
      local: addressOctets("192.0.2.1"),
    });
    expect(settleAll()).toEqual([]);
    setDevice("fw-b", { vteps: [VTEP_B], on_down: "drop" }, DEVICE_STATE.DOWN);
    settleAll();
    expect([...own, ...others].map(way)).toEqual([hex(A1), hex(A1), hex(B1), "drop", "drop"]);
  });

  it("what the table has in a VNI is known before any frame, and what it has in none is not", () => {
    fdb = [
      behind(VTEP_A, A1, { sourceVni: 100, vni: 200 }),
      behind(VTEP_B, B1, { sourceVni: 100 }),
      behind(VTEP_A, A2),
    ];
    settleAll();
    expect(record(keyed(A1, VTEP_A)!)).toMatchObject({
      encapsulated: ENCAPSULATION_FLAG.TUNNEL,
      encapsulation: { tunnel: { remote: addressOctets(VTEP_A), id: 200, local: addressOctets("0.0.0.0") } },
    });
    // A UDP checksum goes with IPv6 only.
    expect(record(keyed(A1, VTEP_A)!).encapsulation.tunnel.flags).toBe(0x04);
    expect(record(keyed(B1, VTEP_B)!).encapsulation.tunnel).toMatchObject({ id: 100, flags: 0x05 });
    for (const mac of [A1, A2, B1]) expect(keyed(mac)).toBeUndefined();
    expect(settleAll()).toEqual([]);
    // Silent for long: as a learned one.
    fdb = [];
    settleAll();
    expect(record(keyed(A1, VTEP_A)!).origin).toBe(ORIGIN.LEARNED);
    isOf(keyed(A1, VTEP_A)!, "fw-a");
  });

  it("a MAC for replies keeps the tunnel of each request", () => {
    setDevice("fw-a", { vteps: [VTEP_A], reply_mac: "00:00:5e:00:01:0a" });
    const learned = learn(A1, VTEP_A);
    settleAll();
    const index = keyed(A1, VTEP_A)!;
    expect(index).not.toBe(learned);
    expect(way(learned)).toBe("00005e00010a");
    expect(record(index).encapsulation.tunnel).toMatchObject({
      remote: addressOctets(VTEP_A),
      id: 100,
      tos: 8,
    });
    expect(settleAll()).toEqual([]);
  });
});
