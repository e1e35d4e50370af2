// SPDX-License-Identifier: Apache-2.0
// What is made of a configured device, and which devices cannot stand beside each other.

import { describe, expect, it } from "vitest";
import { DEVICE_STATE, ON_DOWN, ORIGIN, PROBE_KIND } from "../../src/abi/layout.gen.ts";
import type { DeviceConfig } from "../../src/config/schema.ts";
import {
  deviceConflict,
  deviceFromConfig,
  probeTarget,
  sameDevice,
  withObserved,
} from "../../src/controller/devices.ts";
import { entryOf, specOf, whole } from "../../src/ops/deviceSpec.ts";
import type { DeviceSpec } from "../../src/ops/types.ts";
import { deviceMacs, ownerId, ownerOf, ownership, replyMac } from "../../src/tables/index.ts";

const CONFIG: DeviceConfig = {
  name: "fw",
  zone: "default",
  macs: ["02:00:00:00:0f:01", "02-00-00-00-0F-02"],
  addresses: ["192.0.2.1", "2001:db8::1"],
  vteps: ["192.0.2.9", "2001:db8::9"],
  interface: "eth*",
  vlans: [100, 7],
  reply_mac: "00:00:5e:00:01:0a",
  on_down: "peer:other",
  probe: { kind: "tcp", port: 443, interval_seconds: 0.5, timeout_seconds: 2, fall: 4, rise: 1 },
};

const bytes = (text: string) => Buffer.from(text.replaceAll(/[:-]/g, ""), "hex");
const device = (spec: DeviceSpec) => whole(entryOf(spec, undefined));

it("a configured device becomes an entry with all that it says", () => {
  const entry = whole(deviceFromConfig(CONFIG, 9));
  expect(entry).toMatchObject({
    peer: "other",
    interface: "eth*",
    zone: 9,
    origin: ORIGIN.CONFIG,
    on_down: ON_DOWN.PEER,
    state: DEVICE_STATE.UNKNOWN,
    probe: { kind: PROBE_KIND.TCP, port: 443, interval_ms: 500, timeout_ms: 2000, fall: 4, rise: 1 },
  });
  expect(entry.tags).toEqual([
    { proto: 0x8100, vid: 100 },
    { proto: 0x8100, vid: 7 },
  ]);
  expect(specOf(entry)).toEqual({
    macs: ["02:00:00:00:0f:01", "02:00:00:00:0f:02"],
    addresses: ["192.0.2.1", "2001:db8::1"],
    vteps: ["192.0.2.9", "2001:db8::9"],
    interface: "eth*",
    vlans: [100, 7],
    zone: 9,
    reply_mac: "00:00:5e:00:01:0a",
    on_down: "peer:other",
    probe: {
      kind: "tcp",
      port: 443,
      address: null,
      interval_seconds: 0.5,
      timeout_seconds: 2,
      fall: 4,
      rise: 1,
    },
  });
});

it("the MACs of a device are those given, those resolved, and the one that it is answered at, each once", () => {
  const entry = whole(deviceFromConfig(CONFIG, 0));
  entry.addresses[0]!.mac = bytes("02:00:00:00:0f:02");
  entry.addresses[1]!.mac = bytes("02:00:00:00:0f:03");
  const macs = ["02:00:00:00:0f:01", "02:00:00:00:0f:02", "02:00:00:00:0f:03", "00:00:5e:00:01:0a"];
  expect(deviceMacs(entry)).toEqual(macs.map(bytes));
  expect(replyMac(entry)).toEqual(bytes("00:00:5e:00:01:0a"));
  expect(replyMac(device({ macs: ["02:00:00:00:0f:01"] }))).toBeNull();
});

it("a probe asks its own address, else the device's first", () => {
  const address = "192.0.2.1";
  const probe = { kind: "icmp", port: null } as const;
  expect(
    probeTarget(device({ addresses: [address], probe: { ...probe, address: "192.0.2.9" } }))?.at(-1),
  ).toBe(9);
  expect(probeTarget(device({ addresses: [address], probe }))?.at(-1)).toBe(1);
  expect(probeTarget(device({ macs: ["02:00:00:00:0f:01"] }))).toBeNull();
});

describe("two entries", () => {
  const entry = whole(deviceFromConfig(CONFIG, 0));

  it("ask for the same whatever was observed", () => {
    const seen = { ...entry, state: 2, cause: 3, changed: 77, flaps: 5, operator_down: 1 };
    seen.addresses = entry.addresses.map((address) => ({ ...address, mac: bytes("02:00:00:00:0f:09") }));
    expect(sameDevice(entry, seen)).toBe(true);
    expect(sameDevice(deviceFromConfig(CONFIG, 0), seen)).toBe(true);
    // Of the new entry only what was asked counts; what was observed goes over, address by address.
    const other = deviceFromConfig(
      { ...CONFIG, addresses: ["2001:db8::1", "192.0.2.8"], on_down: "hold" },
      0,
    );
    const changed = whole(withObserved(other, seen));
    expect(changed).toMatchObject({
      state: 2,
      cause: 3,
      changed: 77,
      flaps: 5,
      operator_down: 1,
      on_down: ON_DOWN.HOLD,
    });
    expect(changed.addresses[0]!.mac).toEqual(bytes("02:00:00:00:0f:09"));
    expect(changed.addresses[1]!.mac).toEqual(Buffer.alloc(6));
  });

  it.each<[what: string, change: Partial<DeviceConfig>]>([
    ["MAC", { macs: ["02:00:00:00:0f:07"] }],
    ["address", { addresses: ["192.0.2.7"] }],
    ["VTEP", { vteps: ["192.0.2.9"] }],
    ["interface", { interface: "eth0" }],
    ["VLAN", { vlans: [1] }],
    ["on_down", { on_down: "route" }],
    ["peer", { on_down: "peer:third" }],
    ["probe", { probe: { ...CONFIG.probe!, fall: 5 } }],
  ])("differ by their %s", (_what, change) => {
    expect(sameDevice(entry, deviceFromConfig({ ...CONFIG, ...change }, 0))).toBe(false);
  });

  it("differ by their zone and origin", () => {
    expect(sameDevice(entry, { ...entry, zone: 1 })).toBe(false);
    expect(sameDevice(entry, { ...entry, origin: ORIGIN.MANUAL })).toBe(false);
  });
});

describe("beside another device", () => {
  const MAC = "02:00:00:00:0f:01";
  const OTHER = "02:00:00:00:0f:02";
  it.each<[what: string, own: DeviceSpec, other: DeviceSpec, conflict: RegExp | null]>([
    ["nothing in common", { macs: [MAC] }, { macs: [OTHER] }, null],
    ["the same MAC", { macs: [MAC] }, { macs: [OTHER, MAC] }, /02:00:00:00:0f:01 is the device other's/],
    ["the same MAC in other zones", { macs: [MAC], zone: 1 }, { macs: [MAC] }, null],
    [
      "the same MAC on other uplinks",
      { macs: [MAC], interface: "eth0" },
      { macs: [MAC], interface: "eth1" },
      null,
    ],
    [
      "the same MAC where patterns meet",
      { macs: [MAC], interface: "eth*" },
      { macs: [MAC], interface: "*1" },
      /other's/,
    ],
    [
      "the same MAC anywhere and on one uplink",
      { macs: [MAC] },
      { macs: [MAC], interface: "eth1" },
      /other's/,
    ],
    ["the same MAC with other tags", { macs: [MAC], vlans: [1] }, { macs: [MAC], vlans: [2] }, null],
    [
      "its MAC for replies",
      { macs: [MAC], reply_mac: OTHER },
      { macs: [OTHER] },
      /0f:02 is the device other's/,
    ],
    [
      "one MAC for replies",
      { macs: [MAC], reply_mac: "02:00:00:00:0f:09" },
      { macs: [OTHER], reply_mac: "02:00:00:00:0f:09" },
      /other's/,
    ],
    [
      "the same address",
      { addresses: ["::ffff:192.0.2.1"] },
      { addresses: ["192.0.2.1"] },
      /192\.0\.2\.1 is the device other's/,
    ],
    [
      "the same address in other zones",
      { addresses: ["192.0.2.1"], zone: 1 },
      { addresses: ["192.0.2.1"] },
      null,
    ],
    [
      "the same VTEP",
      { vteps: ["192.0.2.9"] },
      { vteps: ["::ffff:192.0.2.9"] },
      /VTEP 192\.0\.2\.9 is the device other's/,
    ],
    [
      "the same VTEP, of IPv6",
      { vteps: ["2001:db8::9"] },
      { vteps: ["2001:db8:0::9"] },
      /2001:db8::9 is the device other's/,
    ],
    [
      "the same VTEP on other uplinks",
      { vteps: ["192.0.2.9"], interface: "vxlan1" },
      { vteps: ["192.0.2.9"], interface: "vxlan2" },
      null,
    ],
    ["the same VTEP in other zones", { vteps: ["192.0.2.9"], zone: 1 }, { vteps: ["192.0.2.9"] }, null],
    [
      "the same VTEP with other tags within",
      { vteps: ["192.0.2.9"], vlans: [1] },
      { vteps: ["192.0.2.9"] },
      /other's/,
    ],
    ["another's address as its VTEP", { vteps: ["192.0.2.1"] }, { addresses: ["192.0.2.1"] }, null],
    [
      "one VTEP twice",
      { vteps: ["192.0.2.9", "192.0.2.9"] },
      { macs: [OTHER] },
      /192\.0\.2\.9 is given twice/,
    ],
    ["that one as its peer", { macs: [MAC], on_down: "peer:other" }, { macs: [OTHER] }, null],
    [
      "each the other's peer",
      { macs: [MAC], on_down: "peer:other" },
      { macs: [OTHER], on_down: "peer:own" },
      null,
    ],
    ["itself as its peer", { macs: [MAC], on_down: "peer:own" }, { macs: [OTHER] }, /its own peer/],
    [
      "a peer that is not there",
      { macs: [MAC], on_down: "peer:third" },
      { macs: [OTHER] },
      /no device is called "third"/,
    ],
    [
      "a peer of another zone",
      { macs: [MAC], on_down: "peer:other" },
      { macs: [OTHER], zone: 3 },
      /another zone/,
    ],
  ])("%s", (_what, own, other, conflict) => {
    const others = [["own", device({ macs: [MAC] })] as const, ["other", device(other)] as const];
    const found = deviceConflict("own", device(own), others);
    if (conflict === null) expect(found).toBeNull();
    else expect(found).toMatch(conflict);
  });
});

it("a changed probe keeps what is not said, unless its kind is another", () => {
  const probe = { kind: "tcp", port: 443, address: "192.0.2.9", fall: 7 } as const;
  const before = device({ addresses: ["192.0.2.1"], probe });
  expect(specOf(whole(entryOf({ probe: { rise: 4 } }, before))).probe).toMatchObject({ ...probe, rise: 4 });
  expect(specOf(whole(entryOf({ probe: { kind: "tcp", port: 80 } }, before))).probe).toMatchObject({
    port: 80,
    fall: 7,
  });
  expect(specOf(whole(entryOf({ probe: { kind: "icmp" } }, before))).probe).toMatchObject({
    kind: "icmp",
    port: null,
    address: null,
    fall: 3,
  });
  expect(specOf(whole(entryOf({ probe: null }, before))).probe).toBeNull();
});

it("a record says whose it is, and what took its place", () => {
  const owner = ownerId("fw-a");
  expect(owner).not.toBe(ownerId("fw-b"));
  const said = ownership(owner, 0x0030_0007);
  expect(said.owner).toHaveLength(8);
  expect(ownerOf(said)).toBe(owner);
  expect(said.successor).toBe(0x0030_0007);
});
