// SPDX-License-Identifier: Apache-2.0
// What is parsed, what cannot be parsed and passes, counted, and never learned.

import { IFINDEX } from "../support/devices.ts";
import {
  arp,
  authentication,
  destinationOptions,
  ETH_P,
  type Extension,
  ethernet,
  fragmentHeader,
  hopByHop,
  IPPROTO,
  raw,
  routing,
  tcp,
  udp,
} from "../support/packet.ts";
import type { Row, Step } from "../support/rows.ts";
import { type Family, type FrameOptions, MAC, reply, request } from "../support/scene.ts";
import * as talk from "../support/talk.ts";
import { A, c, ce, cs, cu, v, vs, vu } from "../support/talk.ts";
import type { World } from "../support/world.ts";

function nothingLearned(world: World): void {
  if (world.flowCount() !== 0) {
    throw new Error("an entry was made");
  }
}

/** The same bad packet on both sides: passes with this reason, and leaves no entry. */
function both(reason: Step["reason"], make: (side: typeof request) => Buffer): Step[] {
  return [
    { at: "uplink_a", packet: make(request), reason, flow: null, check: nothingLearned },
    { at: "tap_1", packet: make(reply), reason, flow: null, check: nothingLearned },
  ];
}

function bad(description: string, steps: (f: Family) => Step[], families?: Row["families"]): Row {
  return {
    description,
    ...(families ? { families } : {}),
    make: (f) => ({ tuple: talk.tcpTuple(f), steps: steps(f) }),
  };
}

/** A SYN that is right in itself: what is wrong is around it. */
const SYN = tcp({ sourcePort: 1000, destinationPort: 2000, flags: "S", payload: Buffer.alloc(20) });

/** A TCP request is learned, and its reply redirected, with this in both packets. */
function good(description: string, options: FrameOptions, families?: Row["families"]): Row {
  return {
    description,
    ...(families ? { families } : {}),
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: options }),
          reason: "learn",
          flow: { tier: "embryonic", state: "syn", lastHop: A },
        },
        { at: "tap_1", packet: v(f, "SA", { frame: options }), reason: "redirect", to: A },
        { at: "uplink_a", packet: c(f, "A", { frame: options }), reason: "promote" },
        {
          at: "tap_1",
          packet: v(f, "PA", { frame: options, payload: Buffer.alloc(700) }),
          reason: "redirect",
          to: A,
        },
      ],
    }),
  };
}

const chains: [string, Extension[]][] = [
  ["hop-by-hop options", [hopByHop()]],
  ["long hop-by-hop options", [hopByHop(5)]],
  ["destination options", [destinationOptions()]],
  ["a routing header without segments left", [routing()]],
  ["an authentication header", [authentication()]],
  ["an authentication header with a long check value", [authentication(20)]],
  [
    "hop-by-hop, destination, routing, authentication, destination",
    [hopByHop(), destinationOptions(), routing(), authentication(), destinationOptions()],
  ],
];

/**
 * A test run of a TC program refuses an IPv4 or IPv6 frame that is shorter than its IP header, and any without
 * a byte behind the Ethernet header. Behind a priority tag it takes the first.
 */
const TAGGED: FrameOptions = { tags: [{ vid: 0, priority: 1 }] };

/** The frame cut at each length from behind the EtherType to just before `end`. */
function cut(at: Step["at"], frame: Buffer, from: number, end: number): Step[] {
  return Array.from({ length: end - from }, (_, index) => ({
    at,
    packet: Buffer.from(frame.subarray(0, from + index)),
    reason: "malformed",
    check: nothingLearned,
  }));
}

/** Bytes of a frame without options up to the transport header. */
const headers = (f: Family) => 14 + (f.version === 4 ? 20 : 40);

export const parsingRows: Row[] = [
  bad("not IP: ARP, MPLS multicast, LLDP, PPPoE, an 802.3 length", (f) => [
    {
      at: "uplink_a",
      packet: ethernet(
        { from: MAC.deviceA, to: MAC.vm1 },
        arp("request", { mac: MAC.deviceA, ip: "10.0.0.1" }, { mac: MAC.zero, ip: "10.0.0.5" }),
      ),
      reason: "not_ip",
    },
    ...[0x8848, 0x88cc, 0x8864, 0x0026, 0x0800 - 1].flatMap((etherType) =>
      both("not_ip", (side) => side(f, raw(6), { etherType })),
    ),
    ...both("not_ip", (side) => side(f, raw(6), { etherType: ETH_P.arp, tags: [{ vid: 5 }] })),
  ]),
  bad("the EtherType of the other IP version", (f) =>
    both("malformed", (side) => side(f, SYN, { etherType: f.version === 4 ? ETH_P.ipv6 : ETH_P.ip })),
  ),
  bad("a wrong IP version", (f) =>
    [0, 5, 15].flatMap((version) =>
      both("malformed", (side) => side(f, SYN, { v4: { version }, v6: { version } })),
    ),
  ),
  bad(
    "an IPv4 header shorter than 20 bytes",
    (f) => [
      ...[0, 1, 4].flatMap((ihl) => both("malformed", (side) => side(f, SYN, { v4: { ihl } }))),
      // What would then stand where UDP has its length is right.
      ...both("malformed", (side) =>
        side(f, udp({ sourcePort: 12, destinationPort: 2000 }), { v4: { ihl: 4 } }),
      ),
      ...both("malformed", (side) =>
        side(f, udp({ sourcePort: 1000, destinationPort: 2000 }), { v4: { ihl: 0, id: 12 } }),
      ),
    ],
    [4],
  ),
  bad(
    "an IPv4 header longer than the packet",
    (f) => both("malformed", (side) => side(f, SYN, { v4: { ihl: 15 } })),
    [4],
  ),
  bad(
    "an IPv4 total length shorter than the header, or longer than the frame",
    (f) =>
      [1, 19, 61, 65535].flatMap((totalLength) =>
        both("malformed", (side) => side(f, SYN, { v4: { totalLength } })),
      ),
    [4],
  ),
  bad(
    "an IPv4 total length of 0 in a frame that would fit it",
    (f) => both("malformed", (side) => side(f, SYN, { v4: { totalLength: 0 } })),
    [4],
  ),
  bad(
    "an IPv6 payload longer than the frame",
    (f) =>
      [41, 65535].flatMap((payloadLength) =>
        both("malformed", (side) => side(f, SYN, { v6: { payloadLength } })),
      ),
    [6],
  ),
  bad(
    "an IPv6 payload length that cuts the transport header",
    (f) => [
      ...[0, 4, 19].map(
        (payloadLength): Step => ({
          at: "uplink_a",
          packet: c(f, "S", { frame: { v6: { payloadLength } } }),
          reason: "malformed",
          flow: null,
        }),
      ),
      ...[0, 7].map(
        (payloadLength): Step => ({
          at: "uplink_a",
          packet: cu(f, { v6: { payloadLength } }),
          reason: "malformed",
          tuple: talk.udpTuple(f),
          flow: null,
        }),
      ),
    ],
    [6],
  ),
  bad(
    "an IPv4 total length that cuts the transport header",
    (f) => [
      ...[20, 24, 39].map(
        (totalLength): Step => ({
          at: "uplink_a",
          packet: c(f, "S", { frame: { v4: { totalLength } } }),
          reason: "malformed",
          flow: null,
        }),
      ),
      ...[20, 27].map(
        (totalLength): Step => ({
          at: "uplink_a",
          packet: cu(f, { v4: { totalLength } }),
          reason: "malformed",
          tuple: talk.udpTuple(f),
          flow: null,
        }),
      ),
      ...[20, 31].map(
        (totalLength): Step => ({
          at: "uplink_a",
          packet: cs(f, "init", { v4: { totalLength } }),
          reason: "malformed",
          tuple: talk.sctpTuple(f),
          flow: null,
        }),
      ),
      ...[20, 27].map(
        (totalLength): Step => ({
          at: "uplink_a",
          packet: ce(f, "request", { v4: { totalLength } }),
          reason: "malformed",
          tuple: talk.pingTuple(f),
          flow: null,
        }),
      ),
    ],
    [4],
  ),
  ...(
    [
      ["TCP", (f, frame) => c(f, "S", { frame }), 20],
      ["UDP", (f, frame) => cu(f, frame), 8],
      ["SCTP", (f, frame) => cs(f, "init", frame), 16],
      ["echo", (f, frame) => ce(f, "request", frame), 8],
    ] as [string, (f: Family, frame: FrameOptions) => Buffer, number][]
  ).flatMap(([name, make, header]): Row[] => [
    bad(`a packet of ${name} that is cut anywhere before the end of its header`, (f) =>
      cut("uplink_a", make(f, TAGGED), 18, 4 + headers(f) + header),
    ),
    {
      ...bad(`a packet of ${name} that is cut, untagged`, (f) =>
        cut("uplink_a", make(f, {}), 14, headers(f) + header),
      ),
      programs: ["learn_xdp"],
    },
  ]),
  bad("a VM's packet that is cut anywhere before the end of its header", (f) =>
    cut("tap_1", v(f, "S", { frame: TAGGED }), 18, 4 + headers(f) + 20),
  ),
  bad("a tag that is cut", (f) => [
    ...cut("uplink_a", c(f, "S", { frame: { tags: [{ vid: 5 }, { vid: 6 }] } }), 15, 23),
    ...cut("tap_1", v(f, "S", { frame: { tags: [{ vid: 5 }, { vid: 6 }] } }), 15, 23),
  ]),
  bad("a TCP header that says it is shorter than 20 bytes, or longer than the segment", (f) =>
    [0, 4, 6, 15].flatMap((dataOffset): Step[] => [
      { at: "uplink_a", packet: c(f, "S", { dataOffset }), reason: "malformed", flow: null },
      { at: "tap_1", packet: v(f, "S", { dataOffset }), reason: "malformed", flow: null },
    ]),
  ),
  bad("TCP flags that exclude each other", (f) =>
    ["SF", "SR", "SFA", "SRA", "FSRPAU"].flatMap((flags): Step[] => [
      { at: "uplink_a", packet: c(f, flags), reason: "malformed", flow: null },
      { at: "tap_1", packet: v(f, flags), reason: "malformed", flow: null },
    ]),
  ),
  bad("a UDP length shorter than its header, or longer than the packet", (f) =>
    [1, 7, 13, 65535].flatMap((length) => both("malformed", (side) => side(f, raw(17, udpBytes(length))))),
  ),
  bad("a UDP length of 0 over IPv4", (f) => both("malformed", (side) => side(f, raw(17, udpBytes(0)))), [4]),
  bad("sources that nobody can answer: unspecified, loopback, multicast", (f) =>
    (f.version === 4
      ? ["0.0.0.0", "127.0.0.1", "127.255.0.9", "224.0.0.1", "239.1.2.3", "255.255.255.255"]
      : ["::", "::1", "ff02::1", "ff0e::5"]
    ).flatMap((source): Step[] => [
      {
        at: "uplink_a",
        packet: c(f, "S", { frame: { source } }),
        reason: "malformed",
        check: nothingLearned,
      },
      { at: "tap_1", packet: v(f, "S", { frame: { source } }), reason: "malformed", check: nothingLearned },
    ]),
  ),
  bad("destinations that are groups", (f) =>
    (f.version === 4 ? ["224.0.0.1", "239.255.255.250", "255.255.255.255"] : ["ff02::1", "ff05::2"]).flatMap(
      (destination) => both("multicast", (side) => side(f, raw(17, udpBytes(12)), { destination })),
    ),
  ),
  bad("protocols without flows", (f) =>
    [IPPROTO.igmp, IPPROTO.gre, IPPROTO.esp, IPPROTO.noNext, IPPROTO.mobility, 253, 255].flatMap((protocol) =>
      both("protocol", (side) => side(f, raw(protocol))),
    ),
  ),
  good("IPv4 options", { v4: { options: Buffer.from([148, 4, 0, 0]) } }, [4]),
  good("IPv4 options, as many as there can be", { v4: { options: Buffer.alloc(40, 1) } }, [4]),
  ...chains.map(([name, extensions]) => good(`IPv6: ${name}`, { v6: { extensions } }, [6])),
  bad(
    "IPv6: a routing header with segments left: the destination is not the last",
    (f) => both("extension_headers", (side) => side(f, SYN, { v6: { extensions: [routing(4, 1)] } })),
    [6],
  ),
  bad(
    "IPv6: too many extension headers",
    (f) =>
      [8, 20].flatMap((count) =>
        both("extension_headers", (side) =>
          side(f, SYN, { v6: { extensions: Array(count).fill(destinationOptions()) } }),
        ),
      ),
    [6],
  ),
  bad(
    "IPv6: an extension header longer than the packet",
    (f) =>
      [
        { protocol: IPPROTO.hopByHop, rest: Buffer.from([255, 0, 0, 0, 0, 0, 0]) },
        { protocol: IPPROTO.destinationOptions, rest: Buffer.from([20, 0, 0, 0, 0, 0, 0]) },
        { protocol: IPPROTO.ah, rest: Buffer.from([200, 0, 0, 0, 0, 0, 0]) },
      ].flatMap((extension) =>
        both("malformed", (side) => side(f, SYN, { v6: { extensions: [extension] } })),
      ),
    [6],
  ),
  bad(
    "IPv6: an extension header that is cut",
    (f) => {
      const extensions = [hopByHop(), destinationOptions(2), authentication()];
      const whole = c(f, "S", { frame: { ...TAGGED, v6: { extensions } } });
      return cut("uplink_a", whole, 18, whole.length);
    },
    [6],
  ),
  bad(
    "IPv6: two fragment headers of a real fragment",
    (f) =>
      both("malformed", (side) =>
        side(f, raw(17, Buffer.alloc(40)), {
          v6: { extensions: [fragmentHeader(1, 0, true), fragmentHeader(1, 0, true)] },
        }),
      ),
    [6],
  ),
  {
    description: "a short frame with the padding of its NIC: the length is that of the IP packet",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "S", { frame: { trailer: 30 } }), reason: "learn" },
        {
          at: "tap_1",
          packet: v(f, "SA", { frame: { trailer: 30 } }),
          reason: "redirect",
          to: A,
          flow: { vmNext: talk.VM_ISN + 1 },
        },
        {
          at: "uplink_a",
          packet: c(f, "A", { frame: { trailer: 30 }, ack: talk.VM_ISN + 2 }),
          reason: "refresh",
        },
        { at: "uplink_a", packet: c(f, "A", { frame: { trailer: 30 } }), reason: "promote" },
      ],
    }),
  },
  {
    description: "a jumbo frame on an uplink",
    programs: ["learn_xdp"],
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "PA", { payload: Buffer.alloc(8900) }),
          reason: "learn",
          flow: { lastHop: A, flags: ["PICKUP"] },
        },
      ],
    }),
  },
  {
    description: "TCP options do not matter",
    make: (f) => {
      const options = Buffer.from([2, 4, 5, 0xb4, 1, 3, 3, 7, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0]);
      return {
        tuple: talk.tcpTuple(f),
        steps: [
          { at: "uplink_a", packet: c(f, "S", { options }), reason: "learn", flow: { state: "syn" } },
          {
            at: "tap_1",
            packet: v(f, "SA", { options }),
            reason: "redirect",
            to: A,
            flow: { vmNext: talk.VM_ISN + 1 },
          },
          { at: "uplink_a", packet: c(f, "A", { options }), reason: "promote" },
        ],
      };
    },
  },
  {
    description: "ports 0 and 65535, and equal ports, are ports",
    make: (f) => {
      const ends = { sourcePort: 0, destinationPort: 65535 };
      return {
        tuple: { ...talk.tcpTuple(f), remotePort: 0, localPort: 65535 },
        steps: [
          { at: "uplink_a", packet: c(f, "S", ends), reason: "learn", flow: { lastHop: A } },
          {
            at: "tap_1",
            packet: v(f, "SA", { sourcePort: 65535, destinationPort: 0 }),
            reason: "redirect",
            to: A,
          },
        ],
      };
    },
  },
  {
    description: "a malformed packet still makes its VM known, and nothing else",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => world.forgetVm(MAC.vm1),
      steps: [
        {
          at: "tap_1",
          packet: reply(f, raw(6, Buffer.alloc(4))),
          reason: "malformed",
          flow: null,
          check: (world) => {
            nothingLearned(world);
            if (world.vm(MAC.vm1)?.ifindex !== IFINDEX.tap_1) {
              throw new Error("the VM was not entered");
            }
          },
        },
      ],
    }),
  },
  {
    description: "checksums are not looked at: unfinished ones are usual on a tap",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "S", { checksum: 0x1234 }), reason: "learn" },
        { at: "tap_1", packet: v(f, "SA", { checksum: 0 }), reason: "redirect", to: A },
        { at: "uplink_a", packet: cu(f), reason: "learn", tuple: talk.udpTuple(f) },
        { at: "tap_1", packet: vu(f), reason: "redirect", to: A, tuple: talk.udpTuple(f) },
        { at: "uplink_a", packet: cs(f, "init"), reason: "learn", tuple: talk.sctpTuple(f) },
        { at: "tap_1", packet: vs(f, "initAck"), reason: "redirect", to: A, tuple: talk.sctpTuple(f) },
      ],
    }),
  },
];

/** A UDP header and 4 bytes, with this length in it. */
function udpBytes(length: number): Buffer {
  const bytes = Buffer.alloc(12);
  bytes.writeUInt16BE(1000, 0);
  bytes.writeUInt16BE(2000, 2);
  bytes.writeUInt16BE(length, 4);
  return bytes;
}
