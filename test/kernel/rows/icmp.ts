// SPDX-License-Identifier: Apache-2.0
// ICMP errors follow the flow that they quote, in both directions. Echo is a flow of its own.

import { PORTS } from "../support/devices.ts";
import {
  destinationOptions,
  fragmentHeader,
  hopByHop,
  ICMP_ERROR,
  icmp,
  icmpError,
  ipOf,
  raw,
} from "../support/packet.ts";
import type { Row, Step } from "../support/rows.ts";
import { type Family, MAC, reply, request } from "../support/scene.ts";
import * as talk from "../support/talk.ts";
import { A, B, c, ce, cs, cu, VM1, v, ve, viaB, vs, vu } from "../support/talk.ts";
import type { Tuple } from "../support/world.ts";
import { datagrams, handshake } from "./moving.ts";

type ErrorName = keyof (typeof ICMP_ERROR)[4];
const ERRORS = Object.keys(ICMP_ERROR[4]) as ErrorName[];
const UNMOVED = { state: "established", lastHop: A, vm: VM1 } as const;

/** An error from a router on the way (not the flow's remote side), about what the VM sent. */
function fromRouter(f: Family, error: ErrorName, quoted: Buffer, frame = {}, bytes?: number): Buffer {
  return request(f, icmpError(f.version, error, ipOf(quoted), bytes), { source: f.client2, ...frame });
}

/** An error from the VM about what the client sent. */
function fromVm(f: Family, error: ErrorName, quoted: Buffer, frame = {}, bytes?: number): Buffer {
  return reply(f, icmpError(f.version, error, ipOf(quoted), bytes), frame);
}

/** An established flow of each protocol, and what both sides send on it. */
const PROTOCOLS: Record<
  string,
  (f: Family) => { tuple: Tuple; ours: Buffer; theirs: Buffer; begin: Step[] }
> = {
  TCP: (f) => ({ tuple: talk.tcpTuple(f), ours: v(f, "PA"), theirs: c(f, "PA"), begin: handshake(f) }),
  UDP: (f) => ({ tuple: talk.udpTuple(f), ours: vu(f), theirs: cu(f), begin: datagrams(f) }),
  SCTP: (f) => ({
    tuple: talk.sctpTuple(f),
    ours: vs(f, "data"),
    theirs: cs(f, "data"),
    begin: [
      { at: "uplink_a", packet: cs(f, "init"), reason: "learn" },
      { at: "tap_1", packet: vs(f, "initAck"), reason: "redirect", to: A },
      { at: "uplink_a", packet: cs(f, "cookieEcho"), reason: "promote" },
    ],
  }),
  echo: (f) => ({
    tuple: talk.pingTuple(f),
    ours: ve(f, "reply"),
    theirs: ce(f, "request"),
    begin: [
      { at: "uplink_a", packet: ce(f, "request"), reason: "learn" },
      { at: "tap_1", packet: ve(f, "reply"), reason: "redirect", to: A },
      { at: "uplink_a", packet: ce(f, "request"), reason: "promote" },
    ],
  }),
};

export const icmpRows: Row[] = [
  ...Object.entries(PROTOCOLS).map(
    ([name, make]): Row => ({
      description: `${name}: errors of routers quote the VM's packet, errors of the VM the client's`,
      make: (f) => {
        const { tuple, ours, theirs, begin } = make(f);
        return {
          tuple,
          steps: [
            ...begin,
            ...ERRORS.flatMap((error): Step[] => [
              { at: "uplink_a", packet: fromRouter(f, error, ours), reason: "quoted", flow: UNMOVED },
              { at: "uplink_b", packet: fromRouter(f, error, ours, viaB), reason: "quoted", flow: UNMOVED },
              { at: "tap_1", packet: fromVm(f, error, theirs), reason: "redirect", to: A, flow: UNMOVED },
            ]),
          ],
        };
      },
    }),
  ),
  {
    description: "an error is redirected before the VM ever replied, and claims the flow for nobody",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        { at: "uplink_a", packet: cu(f), reason: "learn" },
        {
          at: "tap_1",
          packet: fromVm(f, "unreachable", cu(f)),
          reason: "redirect",
          to: A,
          flow: { tier: "embryonic", state: "new", lastHop: A, vm: 0 },
        },
        { at: "uplink_a", packet: cu(f), reason: "refresh", flow: { tier: "embryonic", state: "new" } },
      ],
    }),
  },
  {
    description: "an error of another VM about the flow passes",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        ...datagrams(f),
        {
          at: "tap_2",
          packet: fromVm(f, "unreachable", cu(f), talk.byVm2),
          reason: "vm_mismatch",
          flow: UNMOVED,
        },
      ],
    }),
  },
  {
    description: "an error creates nothing from an uplink",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: ERRORS.map(
        (error): Step => ({
          at: "uplink_a",
          packet: fromRouter(f, error, v(f, "PA")),
          reason: "not_request",
          flow: null,
          check: (world) => {
            if (world.flowCount() !== 0) {
              throw new Error("an entry was made");
            }
          },
        }),
      ),
    }),
  },
  {
    description: "an error that quotes the packet's own direction is about no flow of ours",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        ...datagrams(f),
        // From the uplink, quoting what the client sent: its sides are the wrong way round.
        { at: "uplink_a", packet: fromRouter(f, "unreachable", cu(f)), reason: "not_request", flow: UNMOVED },
        { at: "tap_1", packet: fromVm(f, "unreachable", vu(f)), reason: "no_flow", flow: UNMOVED },
      ],
    }),
  },
  {
    description: "an error about a connection that the VM opened",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "tap_1", packet: v(f, "S"), reason: "local_origin" },
        {
          at: "uplink_a",
          packet: fromRouter(f, "timeExceeded", v(f, "S")),
          reason: "quoted",
          flow: { state: "syn" },
        },
        { at: "uplink_a", packet: c(f, "SA"), reason: "answer" },
        {
          at: "tap_1",
          packet: fromVm(f, "unreachable", c(f, "PA")),
          reason: "local_origin",
          flow: { lastHop: null },
        },
      ],
    }),
  },
  {
    description: "an error about the VM's own ping",
    make: (f) => ({
      tuple: talk.localPingTuple(f),
      steps: [
        { at: "tap_1", packet: ve(f, "request"), reason: "local_origin" },
        {
          at: "uplink_b",
          packet: fromRouter(f, "timeExceeded", ve(f, "request"), viaB),
          reason: "quoted",
          flow: { lastHop: null, flags: ["LOCAL_ORIGIN"] },
        },
      ],
    }),
  },
  {
    description: "an error does not renew or close a flow",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...handshake(f),
        {
          before: (world) => world.changeFlow(talk.tcpTuple(f), { last_seen: 7 }),
          at: "uplink_a",
          packet: fromRouter(f, "unreachable", v(f, "PA")),
          reason: "quoted",
          flow: UNMOVED,
          check: (world) => {
            if (world.flow(talk.tcpTuple(f))!.flow.last_seen !== 7) {
              throw new Error("renewed");
            }
          },
        },
      ],
    }),
  },
  {
    description: "a quoted packet with IPv4 options",
    families: [4],
    make: (f) => {
      const options = Buffer.from([1, 1, 1, 1, 148, 4, 0, 0]);
      return {
        tuple: talk.tcpTuple(f),
        steps: [
          ...handshake(f),
          {
            at: "uplink_a",
            packet: fromRouter(f, "tooBig", v(f, "PA", { frame: { v4: { options } } }), {}, 36),
            reason: "quoted",
            flow: UNMOVED,
          },
          {
            at: "tap_1",
            packet: fromVm(f, "unreachable", c(f, "PA", { frame: { v4: { options } } }), {}, 36),
            reason: "redirect",
            to: A,
          },
        ],
      };
    },
  },
  {
    description: "a quoted packet with IPv6 extension headers",
    families: [6],
    make: (f) => {
      const v6 = { extensions: [hopByHop(), destinationOptions(1)] };
      return {
        tuple: talk.tcpTuple(f),
        steps: [
          ...handshake(f),
          {
            at: "uplink_a",
            packet: fromRouter(f, "tooBig", v(f, "PA", { frame: { v6 } })),
            reason: "quoted",
          },
          {
            at: "tap_1",
            packet: fromVm(f, "unreachable", c(f, "PA", { frame: { v6 } })),
            reason: "redirect",
            to: A,
          },
        ],
      };
    },
  },
  {
    description: "the error itself behind IPv4 options or IPv6 extension headers",
    make: (f) => {
      const header = {
        v4: { options: Buffer.alloc(40, 1) },
        v6: { extensions: [hopByHop(2), destinationOptions()] },
      };
      return {
        tuple: talk.udpTuple(f),
        steps: [
          ...datagrams(f),
          { at: "uplink_a", packet: fromRouter(f, "tooBig", vu(f), header), reason: "quoted", flow: UNMOVED },
          { at: "tap_1", packet: fromVm(f, "unreachable", cu(f), header), reason: "redirect", to: A },
        ],
      };
    },
  },
  {
    description: "a quote of just the ports is enough",
    make: (f) => {
      const bytes = f.version === 4 ? 28 : 48;
      return {
        tuple: talk.tcpTuple(f),
        steps: [
          ...handshake(f),
          { at: "uplink_a", packet: fromRouter(f, "tooBig", v(f, "PA"), {}, bytes), reason: "quoted" },
          { at: "tap_1", packet: fromVm(f, "unreachable", c(f, "PA"), {}, bytes), reason: "redirect", to: A },
        ],
      };
    },
  },
  {
    description: "a quote without its ports is malformed",
    make: (f) => {
      const header = f.version === 4 ? 20 : 40;
      return {
        tuple: talk.tcpTuple(f),
        steps: [
          ...handshake(f),
          ...[0, 8, header - 1, header, header + 3].flatMap((bytes): Step[] => [
            {
              at: "uplink_a",
              packet: fromRouter(f, "tooBig", v(f, "PA"), {}, bytes),
              reason: "malformed",
              flow: UNMOVED,
            },
            {
              at: "tap_1",
              packet: fromVm(f, "unreachable", c(f, "PA"), {}, bytes),
              reason: "malformed",
              flow: UNMOVED,
            },
          ]),
        ],
      };
    },
  },
  {
    description: "quotes of fragments: the first by its ports, a later one by its first",
    make: (f) => {
      const first = { v4: { id: 9, moreFragments: true }, v6: { extensions: [fragmentHeader(9, 0, true)] } };
      const later = { v4: { id: 9, fragmentOffset: 1200 }, v6: { extensions: [fragmentHeader(9, 1200)] } };
      return {
        tuple: talk.udpTuple(f),
        steps: [
          ...datagrams(f),
          { at: "uplink_a", packet: fromRouter(f, "timeExceeded", vu(f, first)), reason: "quoted" },
          {
            at: "uplink_a",
            packet: fromRouter(f, "timeExceeded", reply(f, raw(17), later)),
            reason: "fragment",
          },
          { at: "tap_1", packet: vu(f, first), reason: "redirect", to: A },
          {
            at: "uplink_a",
            packet: fromRouter(f, "timeExceeded", reply(f, raw(17), later)),
            reason: "quoted",
          },
          { at: "tap_1", packet: fromVm(f, "timeExceeded", cu(f, first)), reason: "redirect", to: A },
          { at: "uplink_a", packet: cu(f, first), reason: "refresh" },
          {
            at: "tap_1",
            packet: fromVm(f, "timeExceeded", request(f, raw(17), later)),
            reason: "redirect",
            to: A,
          },
        ],
      };
    },
  },
  {
    description: "an error about an error is about no flow",
    make: (f) => {
      const inner = fromVm(f, "unreachable", cu(f));
      return {
        tuple: talk.udpTuple(f),
        steps: [
          ...datagrams(f),
          {
            at: "uplink_a",
            packet: fromRouter(f, "timeExceeded", inner, {}, 200),
            reason: "protocol",
            flow: UNMOVED,
          },
        ],
      };
    },
  },
  {
    description: "a quote of a protocol that has no flows",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        ...datagrams(f),
        { at: "uplink_a", packet: fromRouter(f, "unreachable", reply(f, raw(47))), reason: "protocol" },
        { at: "tap_1", packet: fromVm(f, "unreachable", request(f, raw(47))), reason: "protocol" },
      ],
    }),
  },
  {
    description: "a quote of the other IP version, or of none, is malformed",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [0x00, f.version === 4 ? 0x60 : 0x40, 0xf5].map((first): Step => {
        const quote = Buffer.from(ipOf(vu(f)));
        quote[0] = first;
        const packet = request(f, icmpError(f.version, "unreachable", quote, quote.length), {
          source: f.client2,
        });
        return { at: "uplink_a", packet, reason: "malformed", flow: null };
      }),
    }),
  },
  {
    description:
      "routed host: an error of the VM takes the device's MAC and loses a TTL, its quote unchanged",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        ...datagrams(f),
        {
          at: "tap_1",
          packet: fromVm(f, "unreachable", cu(f), { to: PORTS.tap_1.mac, ttl: 64 }),
          reason: "redirect",
          to: A,
          out: fromVm(f, "unreachable", cu(f), { to: MAC.deviceA, from: PORTS.uplink_a.mac, ttl: 63 }),
        },
      ],
    }),
  },
  {
    description: "an echo and a UDP flow of the same numbers are two flows",
    make: (f) => ({
      tuple: talk.pingTuple(f),
      steps: [
        { at: "uplink_a", packet: ce(f, "request"), reason: "learn", flow: { lastHop: A } },
        {
          at: "uplink_b",
          packet: ce(f, "request", { ...viaB, source: f.client2 }),
          reason: "learn",
          flow: { lastHop: A },
        },
        {
          at: "tap_1",
          packet: ve(f, "reply", { destination: f.client2 }),
          reason: "redirect",
          to: B,
          tuple: { ...talk.pingTuple(f), remote: f.client2 },
        },
      ],
    }),
  },
  ...(
    [
      ["redirect", { 4: 5, 6: 137 }],
      ["router solicitation", { 4: 10, 6: 133 }],
      ["timestamp, or neighbour solicitation", { 4: 13, 6: 135 }],
      ["unassigned", { 4: 44, 6: 100 }],
    ] as const
  ).map(
    ([name, types]): Row => ({
      description: `other ICMP (${name}) passes and makes no flow`,
      make: (f) => {
        const message = icmp({ version: f.version, type: types[f.version], body: Buffer.alloc(48) });
        return {
          tuple: talk.pingTuple(f),
          steps: [
            { at: "uplink_a", packet: request(f, message), reason: "protocol", flow: null },
            { at: "tap_1", packet: reply(f, message), reason: "protocol", flow: null },
          ],
        };
      },
    }),
  ),
  {
    description: "ICMP of the other family passes",
    make: (f) => {
      const other = icmp({ version: f.version === 4 ? 6 : 4, type: f.version === 4 ? 128 : 8 });
      return {
        tuple: talk.pingTuple(f),
        steps: [
          { at: "uplink_a", packet: request(f, other), reason: "protocol", flow: null },
          { at: "tap_1", packet: reply(f, other), reason: "protocol", flow: null },
        ],
      };
    },
  },
];
