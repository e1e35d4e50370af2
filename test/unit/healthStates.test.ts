// SPDX-License-Identifier: Apache-2.0
// From what is seen of a device to its state: evidence, neighbours that are asked twice, probes, MACs that take turns.

import { describe, expect, it } from "vitest";
import { CAUSE, DEVICE_STATE } from "../../src/abi/layout.gen.ts";
import {
  MAC_CHANGES_WINDOW_SECONDS,
  MAC_CHANGES_WITHIN_WINDOW,
  MAC_HOLD_MAX_SECONDS,
  MAC_HOLD_SECONDS,
} from "../../src/config/defaults.ts";
import type { Uplink } from "../../src/controller/deviceFleet.ts";
import { stackInterfaces } from "../../src/controller/deviceStack.ts";
import {
  type Evidence,
  judge,
  macHistory,
  macSeen,
  neighbourStep,
  probed,
  probeHistory,
  type Reachability,
  UNKNOWN_REACHABILITY,
} from "../../src/controller/deviceStates.ts";
import { addressOctets } from "../../src/controller/devices.ts";
import { DeviceWatch } from "../../src/controller/deviceWatch.ts";
import { sourceFor } from "../../src/controller/probes.ts";
import type { Netlink } from "../../src/kernel/netlink.ts";
import { encodeAttributes } from "../../src/kernel/netlinkMessage.ts";
import { decodeLink, type Neighbour, type NeighbourState } from "../../src/kernel/rtnetlink.ts";
import { entryOf, whole } from "../../src/ops/deviceSpec.ts";

const UP = { state: DEVICE_STATE.UP, cause: CAUSE.NONE };
const UNKNOWN = { state: DEVICE_STATE.UNKNOWN, cause: CAUSE.NONE };
const down = (cause: keyof typeof CAUSE) => ({ state: DEVICE_STATE.DOWN, cause: CAUSE[cause] });

describe("the verdict", () => {
  const healthy = { operatorDown: false, uplink: true, neighbours: [], probe: null };
  it.each<[what: string, Partial<Parameters<typeof judge>[0]>, ReturnType<typeof judge>]>([
    ["of a device of which nothing can be observed", {}, UP],
    ["without an uplink", { uplink: false }, down("INTERFACE")],
    [
      "with the operator's word against it",
      { operatorDown: true, neighbours: ["good"], probe: "good" },
      down("OPERATOR"),
    ],
    ["with the operator's word and no uplink", { operatorDown: true, uplink: false }, down("OPERATOR")],
    ["with an address not heard of yet", { neighbours: ["unknown"] }, UNKNOWN],
    ["with an address that answers", { neighbours: ["good"] }, UP],
    ["with one of two that answers", { neighbours: ["bad", "good"] }, UP],
    ["with one of two that failed", { neighbours: ["bad", "unknown"] }, UNKNOWN],
    ["with all that failed", { neighbours: ["bad", "bad"] }, down("NEIGHBOUR")],
    ["with all that failed and a good probe", { neighbours: ["bad"], probe: "good" }, down("NEIGHBOUR")],
    ["with a probe that is not answered yet", { probe: "unknown" }, UNKNOWN],
    ["with a probe that is answered", { probe: "good" }, UP],
    ["with a failed probe", { probe: "bad" }, down("PROBE")],
    ["with a failed probe of a good neighbour", { neighbours: ["good"], probe: "bad" }, down("PROBE")],
    ["with a probe that cannot be sent to a good neighbour", { neighbours: ["good"], probe: "unknown" }, UP],
    ["with a failed probe and no uplink", { uplink: false, probe: "bad" }, down("INTERFACE")],
  ])("%s", (_what, seen, verdict) => {
    expect(judge({ ...healthy, ...seen })).toEqual(verdict);
  });
});

describe("a neighbour", () => {
  const good: Reachability = { evidence: "good", asked: false };
  const suspect: Reachability = { evidence: "good", asked: true };
  const bad: Reachability = { evidence: "bad", asked: true };
  it.each<
    [
      from: Reachability,
      state: NeighbourState | "gone",
      mac: boolean,
      evidence: Evidence,
      asked: boolean,
      ask: boolean,
    ]
  >([
    [UNKNOWN_REACHABILITY, "reachable", true, "good", false, false],
    [UNKNOWN_REACHABILITY, "permanent", true, "good", false, false],
    [UNKNOWN_REACHABILITY, "noarp", true, "good", false, false],
    [UNKNOWN_REACHABILITY, "incomplete", false, "unknown", false, false],
    [UNKNOWN_REACHABILITY, "failed", false, "unknown", true, true],
    [UNKNOWN_REACHABILITY, "none", false, "unknown", false, true],
    [good, "stale", true, "good", false, false],
    [good, "probe", true, "good", false, false],
    // It may only have another MAC.
    [good, "failed", false, "good", true, true],
    [good, "gone", false, "good", false, true],
    [suspect, "incomplete", false, "good", true, false],
    [suspect, "failed", false, "bad", true, false],
    [suspect, "reachable", true, "good", false, false],
    [bad, "incomplete", false, "bad", true, false],
    [bad, "failed", false, "bad", true, false],
    [bad, "none", false, "bad", true, true],
    // Heard of, though not asked.
    [bad, "stale", true, "good", false, false],
    [bad, "reachable", true, "good", false, false],
  ])("%j that is %s (MAC: %s) is %s, asked %s, ask %s", (from, state, mac, evidence, asked, ask) => {
    expect(neighbourStep(from, state, mac)).toEqual({ evidence, asked, ask });
  });
});

describe("a probe", () => {
  const bounds = { fall: 3, rise: 2 };
  const run = (wasDown: boolean, answers: string) =>
    [...answers].reduce((history, answer) => probed(history, answer === "+", bounds), probeHistory(wasDown))
      .evidence;
  it.each<[wasDown: boolean, answers: string, Evidence]>([
    [false, "", "unknown"],
    [false, "+", "good"],
    [false, "--", "unknown"],
    [false, "---", "bad"],
    [false, "--+--", "good"],
    [false, "+--", "good"],
    [false, "+---", "bad"],
    [false, "+--+--+--", "good"],
    [false, "---+", "bad"],
    [false, "---++", "good"],
    [false, "---+-+", "bad"],
    [true, "", "bad"],
    [true, "+", "bad"],
    [true, "++", "good"],
  ])("that was down before: %s, with answers %j is %s", (wasDown, answers, evidence) => {
    expect(run(wasDown, answers)).toBe(evidence);
  });
});

describe("a MAC", () => {
  const [A, B, C] = ["02:00:00:00:00:0a", "02:00:00:00:00:0b", "02:00:00:00:00:0c"];
  const second = 1000;

  it("is taken when it is the first, and when it changes seldom", () => {
    let step = macSeen(macHistory(null), A, 0);
    expect(step).toMatchObject({ mac: A, outcome: "taken", flap: false });
    let now = 0;
    for (const mac of [B, A, C, B, A, C, B, A]) {
      now += MAC_CHANGES_WINDOW_SECONDS * second + 1;
      step = macSeen(step, mac, now);
      expect(step).toMatchObject({ mac, outcome: "taken", flap: false });
    }
  });

  it("is held when it changes too often, each time for twice as long, up to a limit", () => {
    let step = macSeen(macHistory(A), A, 0);
    let now = 0;
    const change = (mac: string) => {
      now += second;
      step = macSeen(step, mac, now);
      return step;
    };
    let expected = MAC_HOLD_SECONDS;
    for (let round = 0; round < 8; round++) {
      const macs = Array.from({ length: MAC_CHANGES_WITHIN_WINDOW }, () => (step.mac === A ? B : A));
      for (const _ of macs) expect(change(step.mac === A ? B : A)).toMatchObject({ outcome: "taken" });
      const kept = step.mac;
      expect(change(kept === A ? B : A)).toMatchObject({
        outcome: "held",
        began: true,
        flap: true,
        mac: kept,
      });
      expect(step.holdMs).toBe(Math.min(expected, MAC_HOLD_MAX_SECONDS) * second);
      // Turns that it takes meanwhile are counted and change nothing.
      expect(macSeen(step, kept!, now + 1)).toMatchObject({ outcome: "same", flap: false });
      expect(change(C)).toMatchObject({ outcome: "held", began: false, flap: true, mac: kept });
      now = step.heldUntil;
      expected *= 2;
    }
    // Long after, it begins with the shortest again.
    now += (MAC_HOLD_MAX_SECONDS + MAC_CHANGES_WINDOW_SECONDS) * second;
    for (let at = 0; at < MAC_CHANGES_WITHIN_WINDOW; at++) change(step.mac === A ? B : A);
    expect(change(step.mac === A ? B : A)).toMatchObject({ holdMs: MAC_HOLD_SECONDS * second });
  });
});

describe("a device as it is followed", () => {
  const [A, B] = ["02:00:00:00:00:0a", "02:00:00:00:00:0b"];
  const [V4, V6] = ["192.0.2.1", "2001:db8::1"];
  const watched = (addresses: string[]) => new DeviceWatch("fw", whole(entryOf({ addresses }, undefined)));
  const neighbour = (address: string, state: NeighbourState, mac: string | null, ifindex = 7): Neighbour => ({
    ifindex,
    family: address === V4 ? 4 : 6,
    address,
    mac,
    state,
  });
  const here = new Set([7]);

  it("tells where its MAC went, and which other addresses were there", () => {
    const watch = watched([V4, V6]);
    expect(watch.neighbourSeen(neighbour(V4, "reachable", A), 0).moved).toEqual({ from: null, to: A });
    expect(watch.neighbourSeen(neighbour(V6, "reachable", A), 0).moved).toEqual({ from: null, to: A });
    expect(watch.judge(true, here)).toEqual(UP);
    expect(watch.neighbourSeen(neighbour(V4, "reachable", B), 1).moved).toEqual({ from: A, to: B });
    expect(watch.addressesAt(A)).toEqual([V6]);
    expect(watch.device.addresses.map(({ mac }) => mac.at(-1)).slice(0, 2)).toEqual([0x0b, 0x0a]);
    expect(watch.neighbourSeen(neighbour("192.0.2.9", "reachable", A), 2)).toEqual({
      ask: false,
      moved: null,
      held: null,
      flaps: 0,
    });
  });

  it("an address that nobody answers for follows one that answers elsewhere", () => {
    const watch = watched([V4, V6]);
    watch.neighbourSeen(neighbour(V4, "reachable", A), 0);
    watch.neighbourSeen(neighbour(V6, "reachable", A), 0);
    watch.neighbourSeen(neighbour(V4, "reachable", B), 1);
    expect(watch.neighbourSeen(neighbour(V6, "failed", null), 2)).toMatchObject({ ask: true, moved: null });
    expect(watch.neighbourSeen(neighbour(V6, "failed", null), 3)).toMatchObject({
      moved: { from: A, to: B },
    });
    expect(watch.judge(true, here)).toEqual(UP);
  });

  it("counts what takes turns, and comes back to what was held when it may", () => {
    const watch = watched([V4]);
    const show = (mac: string, at: number) => watch.neighbourSeen(neighbour(V4, "reachable", mac), at);
    show(A, 0);
    expect([show(B, 1), show(A, 2), show(B, 3)].map(({ flaps }) => flaps)).toEqual([0, 1, 1]);
    expect(show(A, 4)).toMatchObject({ held: { kept: B, other: A, seconds: MAC_HOLD_SECONDS }, moved: null });
    expect(watch.device.flaps).toBe(3);
    expect(watch.due(5)).toEqual([]);
    expect(watch.due(5 + MAC_HOLD_SECONDS * 1000)).toMatchObject([{ moved: { from: B, to: A } }]);
    expect(watch.due(6 + MAC_HOLD_SECONDS * 1000)).toEqual([]);
  });

  it("goes by what the interfaces say where it is asked for", () => {
    const watch = watched([V4]);
    const fail = (ifindex: number) => {
      watch.neighbourSeen(neighbour(V4, "failed", null, ifindex), 0);
      watch.neighbourSeen(neighbour(V4, "failed", null, ifindex), 0);
    };
    fail(7);
    expect(watch.judge(true, here)).toEqual(down("NEIGHBOUR"));
    expect(watch.judge(true, new Set([7, 8]))).toEqual(UNKNOWN);
    fail(8);
    expect(watch.judge(true, new Set([7, 8]))).toEqual(down("NEIGHBOUR"));
    watch.neighbourSeen(neighbour(V4, "reachable", A, 8), 0);
    expect(watch.judge(true, new Set([7, 8]))).toEqual(UP);
    expect(watch.judge(true, here)).toEqual(down("NEIGHBOUR"));
  });

  it("that was down when the daemon ended is down until it is seen again", () => {
    const before = whole(entryOf({ addresses: [V4] }, undefined));
    const watch = new DeviceWatch("fw", { ...before, ...down("NEIGHBOUR") });
    expect(watch.judge(true, here)).toEqual(down("NEIGHBOUR"));
    watch.neighbourSeen(neighbour(V4, "incomplete", null), 0);
    expect(watch.judge(true, here)).toEqual(down("NEIGHBOUR"));
    watch.neighbourSeen(neighbour(V4, "reachable", A), 1);
    expect(watch.judge(true, here)).toEqual(UP);
    // Where nothing was seen yet it is no longer taken for dead.
    expect(watch.judge(true, new Set([8]))).toEqual(UNKNOWN);
    const fresh = new DeviceWatch("fw", { ...before, ...down("INTERFACE") });
    expect(fresh.judge(true, here)).toEqual(UNKNOWN);
  });

  it("keeps what was seen of what stays when it is changed", () => {
    const probe = { kind: "icmp", port: null, fall: 1 } as const;
    const watch = new DeviceWatch("fw", whole(entryOf({ addresses: [V4], probe }, undefined)));
    watch.neighbourSeen(neighbour(V4, "reachable", A), 0);
    watch.probed(false);
    expect(watch.enter(watch.judge(true, here), 5)).toBe(true);
    expect(watch.device).toMatchObject({ ...down("PROBE"), changed: 5 });
    expect(watch.enter(watch.judge(true, here), 6)).toBe(false);
    watch.change(whole(entryOf({ on_down: "drop", addresses: [V4, V6] }, watch.device)));
    expect(watch.judge(true, here)).toEqual(down("PROBE"));
    expect(watch.addressesAt(A)).toEqual([V4]);
    // Another probe has said nothing yet.
    watch.change(
      whole(entryOf({ probe: { kind: "tcp", port: 80 } }, { ...watch.device, state: DEVICE_STATE.UP })),
    );
    expect(watch.judge(true, here)).toEqual(UP);
  });
});

it("a VLAN interface says which tag it has, so that a tagged device is looked for there", () => {
  const u32 = (value: number) => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(value);
    return bytes;
  };
  const id = Buffer.from([100, 0]);
  const info = (kind: string) => ({
    type: 18,
    value: [
      { type: 1, value: kind },
      { type: 2, value: [{ type: 1, value: id }] },
    ],
  });
  const link = (kind: string) =>
    decodeLink(Buffer.concat([Buffer.alloc(16), encodeAttributes([{ type: 5, value: u32(7) }, info(kind)])]));
  expect(link("vlan")).toMatchObject({ kind: "vlan", lower: 7, vlanId: 100 });
  expect(link("bridge")).not.toHaveProperty("vlanId");

  const tagged = whole(entryOf({ addresses: ["192.0.2.1"], vlans: [100] }, undefined));
  const uplink = { ifindex: 7, name: "eth0", slot: 1, zone: 0, l3Ifindex: 7, hostMac: Buffer.alloc(6) };
  const plain = { bare: false, shared: false, way: { flags: 0, mark: 0, labelStacks: new Map() } };
  const uplinks: Uplink[] = [{ ...uplink, ...plain, usable: true, devicesOnly: false }];
  const links = [
    { ...link("vlan"), ifindex: 20 },
    { ...link("vlan"), ifindex: 21, vlanId: 101 },
  ];
  const nobody = undefined as unknown as Netlink;
  expect(stackInterfaces(nobody, tagged, uplinks, links)).toEqual(new Set([20]));
  expect(stackInterfaces(nobody, tagged, uplinks, [])).toEqual(new Set());
  const untagged = whole(entryOf({ addresses: ["192.0.2.1"] }, undefined));
  expect(stackInterfaces(nobody, untagged, uplinks, links)).toEqual(new Set([7]));
  expect(stackInterfaces(nobody, untagged, [{ ...uplinks[0]!, usable: false }], links)).toEqual(new Set());
});

it.each([
  ["192.0.2.9", [["192.0.2.1", 24]], "192.0.2.1"],
  [
    "192.0.2.9",
    [
      ["198.51.100.1", 24],
      ["192.0.2.1", 24],
    ],
    "192.0.2.1",
  ],
  ["192.0.2.9", [["198.51.100.1", 24]], "198.51.100.1"],
  ["192.0.2.9", [["2001:db8::1", 64]], null],
  [
    "2001:db8::9",
    [
      ["fe80::1", 64],
      ["2001:db8::1", 64],
    ],
    "2001:db8::1",
  ],
  [
    "fe80::9",
    [
      ["2001:db8::1", 64],
      ["fe80::1", 64],
    ],
    "fe80::1",
  ],
  ["2001:db8::9", [["fe80::1", 64]], "fe80::1"],
] as const)("%s is probed from the address of %j that is nearest: %s", (target, own, source) => {
  const addresses = own.map(([address, prefixLength]) => ({
    ifindex: 7,
    family: address.includes(":") ? (6 as const) : (4 as const),
    address,
    prefixLength,
  }));
  expect(sourceFor(addressOctets(target), addresses, 7)).toBe(source);
  expect(sourceFor(addressOctets(target), addresses, 8)).toBeNull();
});
