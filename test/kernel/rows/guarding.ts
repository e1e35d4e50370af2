// SPDX-License-Identifier: Apache-2.0
// What the operator excluded, and flows whose last hops take turns.

import type { StructInput } from "../../../src/abi/codec.ts";
import { INTERFACE_FLAG } from "../../../src/abi/layout.gen.ts";
import { IPPROTO } from "../support/packet.ts";
import type { Case, Row, Step } from "../support/rows.ts";
import type { Family } from "../support/scene.ts";
import * as talk from "../support/talk.ts";
import { A, B, c, ce, cu, VM1, v, ve, viaB, vu } from "../support/talk.ts";
import { mappedBytes, type World } from "../support/world.ts";
import { datagrams, handshake } from "./moving.ts";

type Rule = StructInput<"exclusion">;

const ANY: Rule = { port_first: 0, port_last: 65535 };

function remote(f: Family, address: string, bits: number): Rule {
  return { ...ANY, remote: mappedBytes(address), prefix_bits: f.version === 4 ? 96 + bits : bits };
}

const asSeen = (f: Family): Step[] => [
  { at: "uplink_a", packet: c(f, "S"), reason: "learn" },
  { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: A },
];

/** Flows of the rules pass on both sides, and nothing is learned from them. */
const leftAlone = (f: Family): Step[] => [
  { at: "uplink_a", packet: c(f, "S"), reason: "excluded", flow: null },
  { at: "tap_1", packet: v(f, "SA"), reason: "excluded", flow: null },
];

function excluding(rules: Rule[], steps: (f: Family) => Step[]) {
  return (f: Family): Case => ({
    tuple: talk.tcpTuple(f),
    given(world) {
      world.exclude("uplink_a", rules);
      world.exclude("tap_1", rules);
    },
    steps: steps(f),
  });
}

const byFamily = (f: Family, four: number, six: number) => (f.version === 4 ? four : six);

/** The first bit of an address turned. */
const otherNet = (f: Family) => (f.version === 4 ? "70.51.100.10" : "a001:db8:c::10");

interface Exclusion {
  description: string;
  rules(f: Family): Rule[];
  excluded: boolean;
}

const EXCLUSIONS: Exclusion[] = [
  { description: "everything", rules: () => [ANY], excluded: true },
  {
    description: "the client's own address",
    rules: (f) => [remote(f, f.client, byFamily(f, 32, 128))],
    excluded: true,
  },
  {
    description: "another client's address",
    rules: (f) => [remote(f, f.client2, byFamily(f, 32, 128))],
    excluded: false,
  },
  {
    description: "the client's network",
    rules: (f) => [remote(f, f.client2, byFamily(f, 24, 64))],
    excluded: true,
  },
  {
    description: "a network that differs in its first bit",
    rules: (f) => [remote(f, otherNet(f), 1)],
    excluded: false,
  },
  { description: "the family", rules: (f) => [remote(f, otherNet(f), 0)], excluded: true },
  { description: "the VM's port", rules: () => [{ port_first: 80, port_last: 80 }], excluded: true },
  { description: "ports up to the VM's", rules: () => [{ port_first: 79, port_last: 80 }], excluded: true },
  { description: "ports below the VM's", rules: () => [{ port_first: 0, port_last: 79 }], excluded: false },
  {
    description: "the client's port",
    rules: () => [{ port_first: 40000, port_last: 40000 }],
    excluded: false,
  },
  { description: "the protocol", rules: () => [{ ...ANY, proto: IPPROTO.tcp }], excluded: true },
  { description: "another protocol", rules: () => [{ ...ANY, proto: IPPROTO.udp }], excluded: false },
  {
    description: "network, port and protocol, one of which differs",
    rules: (f) => [
      { ...remote(f, f.client, byFamily(f, 24, 64)), port_first: 80, port_last: 80, proto: IPPROTO.udp },
      { ...remote(f, f.client, byFamily(f, 24, 64)), port_first: 81, port_last: 81, proto: IPPROTO.tcp },
      { ...remote(f, otherNet(f), 8), port_first: 80, port_last: 80, proto: IPPROTO.tcp },
    ],
    excluded: false,
  },
  {
    description: "the last of sixteen rules",
    rules: (f) => [
      ...Array.from({ length: 15 }, (_, index) => ({ ...ANY, proto: 200 + index })),
      { ...remote(f, f.client, byFamily(f, 24, 64)), port_first: 80, port_last: 80, proto: IPPROTO.tcp },
    ],
    excluded: true,
  },
];

const flagsOff = (world: World) => {
  world.changeInterface("uplink_a", { flags: 0 });
  world.changeInterface("tap_1", { flags: 0 });
};

/** Nobody has moved for so many ticks. */
const quietFor = (f: Family, ticks: number) => (world: World) => {
  const { moved } = world.flow(talk.tcpTuple(f))!.flow;
  world.changeFlow(talk.tcpTuple(f), { moved: (moved - ticks) & 0xffff });
};

const damped = (world: World) => world.changeControl({ relearn_damping: 400 });

const atA = { tier: "established", lastHop: A, vm: VM1 } as const;
const atB = { tier: "established", lastHop: B, vm: VM1 } as const;

export const guardingRows: Row[] = [
  ...EXCLUSIONS.map(({ description, rules, excluded }) => ({
    description: `excluded by ${description}: ${excluded ? "passes" : "does not apply"}`,
    make: (f: Family) => excluding(rules(f), excluded ? leftAlone : asSeen)(f),
  })),
  {
    description: "of a list only so many rules count as it says",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        world.exclude("uplink_a", [ANY], 0);
        world.exclude("tap_1", [ANY], 0);
      },
      steps: asSeen(f),
    }),
  },
  {
    description: "a count beyond the list is no harm",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => world.exclude("uplink_a", [{ ...ANY, proto: 99 }], 0xffffffff),
      // The rules that were never written match port 0 only.
      steps: [{ at: "uplink_a", packet: c(f, "S"), reason: "learn" }],
    }),
  },
  {
    description: "rules without the flag do not count",
    make: (f) => {
      const { given, ...rest } = excluding([ANY], asSeen)(f);
      return {
        ...rest,
        given(world) {
          given?.(world);
          flagsOff(world);
        },
      };
    },
  },
  {
    description: "an exclusion applies to a flow that exists, and its end gives the flow back",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...handshake(f),
        {
          at: "tap_1",
          packet: v(f, "A"),
          reason: "excluded",
          before: (world) => world.exclude("tap_1", [ANY]),
        },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: A, before: flagsOff },
      ],
    }),
  },
  {
    description: "an excluded UDP flow and an excluded ping pass",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      given: (world) => {
        world.exclude("uplink_a", [
          { ...ANY, proto: IPPROTO.udp },
          { ...ANY, proto: f.icmp },
        ]);
        world.exclude("tap_1", [
          { ...ANY, proto: IPPROTO.udp },
          { ...ANY, proto: f.icmp },
        ]);
      },
      steps: [
        { at: "uplink_a", packet: cu(f), reason: "excluded", flow: null },
        { at: "tap_1", packet: vu(f), reason: "excluded", flow: null },
        {
          at: "uplink_a",
          packet: ce(f, "request"),
          reason: "excluded",
          tuple: talk.pingTuple(f),
          flow: null,
        },
        { at: "tap_1", packet: ve(f, "reply"), reason: "excluded", tuple: talk.pingTuple(f), flow: null },
      ],
    }),
  },
  {
    description: "damping: the first move is at once, the next waits",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: damped,
      steps: [
        ...handshake(f),
        { at: "uplink_b", packet: c(f, "A", { frame: viaB }), reason: "relearn", flow: atB },
        { at: "uplink_a", packet: c(f, "A"), reason: "relearn_damped", flow: atB },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: B },
        { at: "uplink_a", packet: c(f, "A"), reason: "relearn_damped", flow: atB, before: quietFor(f, 200) },
        { at: "uplink_a", packet: c(f, "A"), reason: "relearn", flow: atA, before: quietFor(f, 400) },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: A },
      ],
    }),
  },
  {
    description: "damping does not hold a new connection",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: damped,
      steps: [
        ...handshake(f),
        { at: "uplink_b", packet: c(f, "A", { frame: viaB }), reason: "relearn", flow: atB },
        { at: "uplink_a", packet: c(f, "S"), reason: "restart", flow: { lastHop: A } },
        { at: "uplink_b", packet: c(f, "A", { frame: viaB }), reason: "relearn", flow: { lastHop: B } },
      ],
    }),
  },
  {
    description: "damping of 0 damps nothing",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        ...datagrams(f),
        { at: "uplink_b", packet: cu(f, viaB), reason: "relearn", flow: { lastHop: B } },
        { at: "uplink_a", packet: cu(f), reason: "relearn", flow: { lastHop: A } },
      ],
    }),
  },
  {
    description: "where relearning is off, it says so rather than damped",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given(world) {
        damped(world);
        world.changeInterface("uplink_b", { flags: INTERFACE_FLAG.RELEARN_NEVER });
      },
      steps: [
        ...handshake(f),
        { at: "uplink_b", packet: c(f, "A", { frame: viaB }), reason: "relearn_off", flow: atA },
      ],
    }),
  },
];
