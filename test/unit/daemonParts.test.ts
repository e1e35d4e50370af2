// SPDX-License-Identifier: Apache-2.0
// The decisions of the daemon's parts: which forwarding entries to refresh, what to say of notices.

import { describe, expect, test } from "vitest";
import { NOTICE_KIND } from "../../src/abi/layout.gen.ts";
import { FdbRounds, forwardingBridge, periodSeconds, type SeenVm } from "../../src/daemon/fdb.ts";
import { NoticeReporter } from "../../src/daemon/notices.ts";
import type { FdbEntry, Link } from "../../src/kernel/rtnetlink.ts";

const MAC = "52:54:00:00:00:01";
const BRIDGE = 3;
const TAP = 7;
const ports = new Map([[TAP, BRIDGE]]);
const entry = (more: Partial<FdbEntry> = {}): FdbEntry => ({
  ifindex: TAP,
  master: BRIDGE,
  mac: MAC,
  vlan: null,
  local: false,
  ages: true,
  ...more,
});
const seen = (lastSeen: number, more: Partial<SeenVm> = {}): SeenVm => ({
  ifindex: TAP,
  mac: MAC,
  lastSeen,
  ...more,
});
const nowhere = () => false;
const refresh = { ifindex: TAP, mac: MAC, vlan: null };

describe("forwarding entries to refresh", () => {
  test("are those of VMs that sent since the round before", () => {
    const rounds = new FdbRounds();
    expect(rounds.next([seen(10)], ports, [entry()], 20, nowhere)).toEqual([]);
    expect(rounds.next([seen(11)], ports, [entry()], 20, nowhere)).toEqual([refresh]);
    expect(rounds.next([seen(11)], ports, [entry()], 20, nowhere)).toEqual([]);
    expect(rounds.next([seen(12)], ports, [entry()], 20, nowhere)).toEqual([refresh]);
  });

  test("are also those of VMs that were seen lately, in the first round", () => {
    const rounds = new FdbRounds();
    expect(rounds.next([seen(20)], ports, [entry()], 20, nowhere)).toEqual([refresh]);
    expect(rounds.next([seen(20)], ports, [entry()], 20, nowhere)).toEqual([]);
  });

  test("are in the VLANs where the bridge has them", () => {
    const entries = [entry({ vlan: 5 }), entry({ vlan: 9 })];
    expect(new FdbRounds().next([seen(20)], ports, entries, 20, nowhere)).toEqual([
      { ...refresh, vlan: 5 },
      { ...refresh, vlan: 9 },
    ]);
  });

  test("that were forgotten are made again where they were, or in every VLAN of the port", () => {
    const rounds = new FdbRounds();
    rounds.next([seen(20)], ports, [entry({ vlan: 5 })], 20, nowhere);
    expect(rounds.next([seen(21)], ports, [], 20, nowhere)).toEqual([{ ...refresh, vlan: 5 }]);
    expect(new FdbRounds().next([seen(20)], ports, [], 20, nowhere)).toEqual([refresh]);
  });

  test.each<[string, Partial<FdbEntry>]>([
    ["at another port", { ifindex: 8 }],
    ["static", { ages: undefined as never }],
  ])("are not those that are %s", (_, more) => {
    const there = (mac: string, bridge: number) => mac === MAC && bridge === BRIDGE;
    expect(new FdbRounds().next([seen(20)], ports, [entry(more)], 20, there)).toEqual([]);
  });

  test("are none of a tap that is no port, nor of another bridge", () => {
    expect(new FdbRounds().next([seen(20)], new Map(), [entry()], 20, nowhere)).toEqual([]);
    const entries = [entry({ master: 4, vlan: 5 })];
    expect(new FdbRounds().next([seen(20)], ports, entries, 20, nowhere)).toEqual([refresh]);
  });

  test("forget a VM that is no longer known", () => {
    const rounds = new FdbRounds();
    rounds.next([seen(20)], ports, [entry({ vlan: 5 })], 20, nowhere);
    rounds.next([], ports, [], 20, nowhere);
    expect(rounds.next([seen(21)], ports, [], 22, nowhere)).toEqual([]);
  });
});

test.each<[number[], number]>([
  [[300], 60],
  [[60], 15],
  [[2], 1],
  [[300, 20], 5],
  [[0, 20], 5],
  [[0], 60],
  [[], 60],
])("bridges with ageing times %j are looked at every %s s", (ages, seconds) => {
  expect(periodSeconds(ages.map((ageingSeconds, ifindex) => ({ ifindex, ageingSeconds })))).toBe(seconds);
});

test("a port forwards if it is up and spanning tree lets it", () => {
  const port = (more: object) =>
    forwardingBridge({
      master: BRIDGE,
      masterKind: "bridge",
      portState: "forwarding",
      flags: { up: true, running: true, loopback: false },
      ...more,
    } as Link);
  expect(port({})).toBe(BRIDGE);
  expect(port({ portState: "learning" })).toBe(BRIDGE);
  expect(port({ portState: "blocking" })).toBeUndefined();
  expect(port({ flags: { up: false, running: false, loopback: false } })).toBeUndefined();
  expect(port({ masterKind: "bond" })).toBeUndefined();
  expect(port({ master: null })).toBeUndefined();
});

describe("notices", () => {
  const notice = (kind: number, ifindex = 7) => ({
    time_ns: 0,
    ifindex,
    last_hop: 5,
    zone: 1,
    kind,
    mac: Buffer.from("020000000a01", "hex"),
    reserved: Buffer.alloc(7),
  });
  const reporter = () => new NoticeReporter((ifindex) => `if${ifindex}`);
  const KINDS = Object.entries(NOTICE_KIND);

  test.each(KINDS)("of kind %s have a line, and a kind of the same name", (name, kind) => {
    expect(NoticeReporter.kindOf({ kind })).toBe(name.toLowerCase());
    expect(reporter().report(notice(kind), 0)).toMatchObject({
      kind: name.toLowerCase(),
      fields: { interface: "if7", mac: "02:00:00:00:0a:01", zone: 1 },
    });
  });

  test.each(KINDS)("of kind %s: a warning comes once a minute for each interface", (_, kind) => {
    const reports = reporter();
    const first = reports.report(notice(kind), 0);
    const seldom = first?.level === "warning";
    expect(reports.report(notice(kind), 59_999) === null).toBe(seldom);
    expect(reports.report(notice(kind, 8), 59_999)).not.toBeNull();
    expect(reports.report(notice(kind), 60_000)).not.toBeNull();
  });

  test("of a later version's kind are counted only", () => {
    expect(NoticeReporter.kindOf({ kind: 200 })).toBe("unknown");
    expect(reporter().report(notice(200), 0)).toBeNull();
  });
});
