// SPDX-License-Identifier: Apache-2.0
// MACs behind VTEPs: entries as the kernel writes them, and what is followed of them.

import { describe, expect, it, test } from "vitest";
import {
  MAC_CHANGES_WITHIN_WINDOW,
  MAC_HOLD_SECONDS,
  VTEP_LAST_HOPS_PER_DEVICE,
} from "../../src/config/defaults.ts";
import type { Uplink } from "../../src/controller/deviceFleet.ts";
import { addressOctets } from "../../src/controller/devices.ts";
import { VtepFollower, type VtepSighting } from "../../src/controller/deviceVteps.ts";
import { atOnce } from "../../src/controller/pieces.ts";
import { entered, placeVteps, vxlansBeneath } from "../../src/controller/vtepMacs.ts";
import { decodeEvent } from "../../src/kernel/netlinkEvents.ts";
import { encodeAttributes, type NetlinkAttribute } from "../../src/kernel/netlinkMessage.ts";
import type { Link } from "../../src/kernel/rtnetlink.ts";
import {
  decodeVxlanEntry,
  isOfVxlan,
  macText,
  type VxlanEntry,
  vtepKey,
  vtepText,
} from "../../src/kernel/vxlanEntry.ts";
import { entryOf, whole } from "../../src/ops/deviceSpec.ts";
import type { DeviceSpec } from "../../src/ops/types.ts";
import { ownerId } from "../../src/tables/index.ts";

const VXLAN = 7;
const MAC = "020000000f01";
const [A, B, ELSEWHERE] = ["192.0.2.2", "2001:db8::2", "192.0.2.9"].map((text) =>
  vtepKey(addressOctets(text)),
);

const LLADDR: NetlinkAttribute = { type: 2, value: Buffer.from(MAC, "hex") };
const DST4: NetlinkAttribute = { type: 1, value: Buffer.from([192, 0, 2, 2]) };
const DST6: NetlinkAttribute = { type: 1, value: addressOctets("2001:db8::2") };

function payload(attributes: NetlinkAttribute[], { family = 7, state = 0x02, flags = 0x02 } = {}): Buffer {
  const header = Buffer.alloc(12);
  header.writeUInt8(family, 0);
  header.writeInt32LE(VXLAN, 4);
  header.writeUInt16LE(state, 8);
  header.writeUInt8(flags, 10);
  return Buffer.concat([header, encodeAttributes(attributes)]);
}

const entry = (more: Partial<VxlanEntry> = {}): VxlanEntry => ({
  ifindex: VXLAN,
  mac: MAC,
  vtep: A!,
  nexthop: null,
  sourceVni: null,
  vni: null,
  permanent: false,
  ...more,
});

describe("an entry", () => {
  it.each<[what: string, bytes: Buffer, expected: VxlanEntry | null]>([
    ["that was learned", payload([LLADDR, DST4]), entry()],
    ["with an IPv6 VTEP", payload([LLADDR, DST6]), entry({ vtep: B! })],
    ["for good", payload([LLADDR, DST4], { state: 0x80 }), entry({ permanent: true })],
    ["that does not age", payload([LLADDR, DST4], { state: 0x40 }), entry({ permanent: true })],
    [
      "of a shared device",
      payload([LLADDR, DST4, { type: 7, value: 200 }, { type: 8, value: 3 }, { type: 11, value: 100 }]),
      entry({ vni: 200, sourceVni: 100 }),
    ],
    ["of a nexthop group", payload([LLADDR, { type: 13, value: 6 }]), entry({ vtep: null, nexthop: 6 })],
    ["of a bridge", payload([LLADDR, { type: 9, value: 4 }], { flags: 0 }), null],
    ["of a card's filter", payload([LLADDR], { state: 0x80 }), null],
    ["of a neighbour", payload([DST4, LLADDR], { family: 2, flags: 0 }), null],
    ["for floods", payload([{ type: 2, value: Buffer.alloc(6) }, DST4]), null],
    ["for a group's MAC", payload([{ type: 2, value: Buffer.from("01005e000001", "hex") }, DST4]), null],
    ["without a MAC", payload([DST4]), null],
    ["with half an address", payload([LLADDR, { type: 1, value: Buffer.alloc(7) }]), null],
    ["cut off", Buffer.alloc(5), null],
  ])("%s", (_what, bytes, expected) => {
    expect(decodeVxlanEntry(bytes)).toEqual(expected);
    const event = decodeEvent({
      type: 29,
      flags: 0,
      sequence: 0,
      portId: 0,
      payload: bytes.length < 12 ? payload([]) : bytes,
    });
    if (expected) expect(event).toEqual({ kind: "vxlan", gone: true, entry: expected });
    else expect(event?.kind).not.toBe("vxlan");
  });

  it("whose attributes end beyond it is refused", () => {
    const bytes = payload([LLADDR, DST4]);
    bytes.writeUInt16LE(200, 12);
    expect(() => decodeVxlanEntry(bytes)).toThrow(RangeError);
  });

  it("is told from a bridge's without being taken apart", () => {
    expect(isOfVxlan(payload([LLADDR, DST4]))).toBe(true);
    expect(isOfVxlan(payload([{ type: 2, value: Buffer.alloc(6) }, DST4]))).toBe(true);
    expect(isOfVxlan(payload([LLADDR, { type: 9, value: 4 }], { flags: 0 }))).toBe(false);
    expect(isOfVxlan(payload([LLADDR], { state: 0x80 }))).toBe(false);
  });

  it("is shown as people write it", () => {
    expect([vtepText(A!), vtepText(B!), macText(MAC)]).toEqual([
      "192.0.2.2",
      "2001:db8::2",
      "02:00:00:00:0f:01",
    ]);
  });
});

describe("what is followed", () => {
  let kernel: VxlanEntry[] = [];
  const found: VxlanEntry[] = [];
  function following(): VtepFollower {
    kernel = [];
    const follower = new VtepFollower({
      *entries() {
        yield kernel;
      },
      find: (_vxlan, mac) => found.find((one) => one.mac === mac),
      close: () => undefined,
    });
    expect(follower.watch([VXLAN], new Set([A!, B!]))).toBe(true);
    return follower;
  }
  const known = (follower: VtepFollower) =>
    [...follower.entries(VXLAN)].flat().map(({ mac, vtep }) => [mac, vtep]);

  it("is what is behind the VTEPs, and nothing else", () => {
    const follower = following();
    expect(follower.seen(entry(), false, 0)).toMatchObject({ changed: true, moved: null });
    expect(follower.seen(entry(), false, 0)).toBeNull();
    expect(follower.seen(entry({ mac: "020000000f02", vtep: ELSEWHERE! }), false, 0)).toBeNull();
    expect(follower.seen(entry({ mac: "020000000f03", ifindex: 9 }), false, 0)).toBeNull();
    expect(known(follower)).toEqual([[MAC, A]]);
    expect(follower.seen(entry(), true, 0)).toMatchObject({ changed: true });
    expect(follower.seen(entry(), true, 0)).toBeNull();
    expect(known(follower)).toEqual([]);
    // It was silent for long. What was entered for good and is no more was taken back.
    expect(follower.isWithdrawn(VXLAN, MAC)).toBe(false);
    follower.seen(entry({ permanent: true }), false, 0);
    follower.seen(entry({ permanent: true }), true, 0);
    expect(follower.isWithdrawn(VXLAN, MAC)).toBe(true);
    follower.settled(follower.withdrawn());
    expect(follower.isWithdrawn(VXLAN, MAC)).toBe(false);
  });

  it("is no longer withdrawn when it is back", () => {
    const follower = following();
    follower.seen(entry({ permanent: true }), false, 0);
    follower.seen(entry({ permanent: true }), true, 0);
    follower.seen(entry(), false, 0);
    expect(follower.withdrawn()).toEqual([]);
  });

  it("is read again when events were lost: what is new, what is gone, what has moved", () => {
    const follower = following();
    follower.seen(entry(), false, 0);
    follower.seen(entry({ mac: "020000000f02", permanent: true }), false, 0);
    kernel = [entry({ vtep: B! }), entry({ mac: "020000000f03" })];
    const told: VtepSighting[] = [];
    atOnce(
      follower.read(
        (one) => told.push(one),
        () => 0,
      ),
    );
    expect(told.map(({ mac, moved }) => [mac, moved])).toEqual([
      [MAC, { from: A, to: B }],
      ["020000000f03", null],
      ["020000000f02", null],
    ]);
    expect(known(follower)).toEqual([
      [MAC, B],
      ["020000000f03", A],
    ]);
    expect(follower.isWithdrawn(VXLAN, "020000000f02")).toBe(true);
  });

  it("while it is read is not forgotten if an event brought it", () => {
    const follower = following();
    const reading = follower.read(
      () => undefined,
      () => 0,
    );
    reading.next();
    follower.seen(entry(), false, 0);
    while (!reading.next().done);
    expect(known(follower)).toEqual([[MAC, A]]);
  });

  it("changes its VTEP, but not again and again", () => {
    const follower = following();
    follower.seen(entry(), false, 0);
    const sightings: VtepSighting[] = [];
    for (let turn = 1; turn <= 10; turn++) {
      sightings.push(follower.seen(entry({ vtep: turn % 2 ? B! : A! }), false, turn)!);
    }
    const moves = sightings.filter((one) => one?.moved);
    expect(moves).toHaveLength(MAC_CHANGES_WITHIN_WINDOW);
    const held = sightings.filter((one) => one?.held);
    expect(held).toMatchObject([{ at: B, held: { other: A, seconds: MAC_HOLD_SECONDS }, changed: false }]);
    expect(sightings.filter((one) => one?.flap).length).toBeGreaterThan(2);
    expect(known(follower)).toEqual([[MAC, B]]);
    expect(follower.find(VXLAN, MAC)?.vtep).toBe(B);
    expect(follower.due(100)).toEqual([]);
    expect(follower.due(MAC_HOLD_SECONDS * 1000 + 100)).toMatchObject([{ moved: { from: B, to: A } }]);
    expect(known(follower)).toEqual([[MAC, A]]);
  });

  it("goes where nobody looks, or behind a nexthop group", () => {
    const follower = following();
    follower.seen(entry(), false, 0);
    expect(follower.seen(entry({ vtep: ELSEWHERE! }), false, 1)).toMatchObject({
      changed: true,
      moved: { from: A, to: ELSEWHERE },
    });
    expect(known(follower)).toEqual([]);
    follower.seen(entry(), false, 2);
    expect(follower.seen(entry({ vtep: null, nexthop: 6 }), false, 3)).toMatchObject({
      changed: true,
      nexthop: 6,
    });
    expect(known(follower)).toEqual([]);
  });

  it("is asked of the kernel where it is not followed", () => {
    found.push(entry({ mac: "020000000f05", vtep: ELSEWHERE! }));
    const follower = following();
    expect(follower.find(VXLAN, "020000000f05")?.vtep).toBe(ELSEWHERE);
    expect(follower.find(VXLAN, "020000000f06")).toBeUndefined();
  });

  it("is what is asked for at present", () => {
    const follower = following();
    follower.seen(entry(), false, 0);
    follower.seen(entry({ mac: "020000000f02", vtep: B! }), false, 0);
    expect(follower.watch([VXLAN], new Set([B!]))).toBe(false);
    expect(known(follower)).toEqual([["020000000f02", B]]);
    expect(follower.watch([VXLAN, 8], new Set([B!]))).toBe(true);
    expect(follower.watch([], new Set())).toBe(false);
    expect(known(follower)).toEqual([]);
  });
});

describe("VXLAN devices beneath an interface", () => {
  const link = (ifindex: number, more: Partial<Link> = {}): Link =>
    ({
      ifindex,
      name: `if${ifindex}`,
      kind: null,
      lower: null,
      master: null,
      linkNetns: null,
      ...more,
    }) as Link;
  const links = new Map(
    [
      link(1),
      link(2, { kind: "vxlan", lower: 1 }),
      link(3, { kind: "bridge" }),
      link(4, { kind: "vxlan", master: 3 }),
      link(5, { kind: "vlan", lower: 2 }),
      link(6, { kind: "veth", lower: 2 }),
      link(7, { kind: "vlan", lower: 3 }),
      link(8, { kind: "vlan", lower: 2, linkNetns: 1 }),
      link(9, { kind: "macvlan", lower: 9 }),
      link(10, { master: 3 }),
    ].map((one) => [one.ifindex, one]),
  );
  test.each<[what: string, ifindex: number, expected: number[]]>([
    ["a card", 1, []],
    ["a VXLAN device, not its underlay", 2, [2]],
    ["a bridge, by its ports", 3, [4]],
    ["a VLAN on a VXLAN device", 5, [2]],
    ["a veth, whose peer is not beneath it", 6, []],
    ["a VLAN on a bridge", 7, [4]],
    ["a VLAN of another network namespace's device", 8, []],
    ["a ring", 9, []],
    ["a port, not its bridge", 10, []],
    ["nothing", 99, []],
  ])("%s", (_what, ifindex, expected) => {
    expect(vxlansBeneath(ifindex, links)).toEqual(expected);
  });
});

describe("what devices have behind their VTEPs", () => {
  const uplink = (ifindex: number, more: Partial<Uplink> = {}): [number, Uplink] => [
    ifindex,
    { ifindex, name: `vxlan${ifindex}`, zone: 0, usable: true, shared: false, ...more } as Uplink,
  ];
  const named = (name: string, spec: DeviceSpec) => ({
    name,
    id: ownerId(name),
    device: whole(entryOf(spec, undefined)),
  });
  const links = [1, 2].map((ifindex) => ({ ifindex, kind: "vxlan", lower: null, master: null }) as Link);
  const place = (devices: ReturnType<typeof named>[], uplinks: [number, Uplink][], entries: VxlanEntry[]) =>
    atOnce(
      placeVteps({
        devices,
        uplinks: new Map(uplinks),
        links,
        source: {
          entries: (vxlan) => [entries.filter(({ ifindex }) => ifindex === vxlan)],
          find: () => undefined,
          isWithdrawn: () => false,
        },
      }),
    );

  it("is told apart by VTEP and uplink", () => {
    const devices = [
      named("a", { vteps: ["192.0.2.2"], interface: "vxlan1" }),
      named("b", { vteps: ["192.0.2.2"], interface: "vxlan2" }),
      named("c", { vteps: ["192.0.2.9"], zone: 5 }),
    ];
    const entries = [1, 2].flatMap((ifindex) => [
      entry({ ifindex }),
      entry({ ifindex, mac: "020000000f02", vtep: ELSEWHERE! }),
    ]);
    const places = place(devices, [uplink(1), uplink(2)], entries);
    const whose = [...places.byUplink].flatMap(([ifindex, macs]) =>
      [...macs].map(([mac, list]) => [ifindex, mac, list.map(({ owner }) => owner.name)]),
    );
    expect(whose).toEqual([
      [1, MAC, ["a"]],
      [2, MAC, ["b"]],
    ]);
    expect(places.owner(1, A!)?.name).toBe("a");
    expect(places.owner(1, ELSEWHERE!)).toBeUndefined();
  });

  it("on a shared device has a VNI, and one without is nobody's", () => {
    const shared = [uplink(1, { shared: true })];
    const devices = [named("a", { vteps: ["192.0.2.2"] })];
    const entries = [
      entry({ ifindex: 1 }),
      entry({ ifindex: 1, mac: "020000000f02", sourceVni: 100, vni: 200 }),
      entry({ ifindex: 1, mac: "020000000f02", sourceVni: 101 }),
    ];
    const macs = place(devices, shared, entries).byUplink.get(1)!;
    expect([...macs.keys()]).toEqual(["020000000f02"]);
    expect(macs.get("020000000f02")!.map(({ vni }) => vni)).toEqual([
      { source: 100, sent: 200 },
      { source: 101, sent: 101 },
    ]);
  });

  it("may be thousands of MACs, of which some have last hops beforehand", () => {
    const entries = Array.from({ length: 3000 }, (_, n) =>
      entry({ ifindex: 1, mac: (0x020000100000 + n).toString(16).padStart(12, "0") }),
    );
    const places = place([named("a", { vteps: ["192.0.2.2"] })], [uplink(1)], entries);
    expect(places.byUplink.get(1)!.size).toBe(3000);
    expect([...entered(places)]).toHaveLength(VTEP_LAST_HOPS_PER_DEVICE);
  });
});
