// SPDX-License-Identifier: Apache-2.0
// MPLS: requests behind a label stack, whose replies the host's own routing labels.

import { INTERFACE_FLAG } from "../../../src/abi/layout.gen.ts";
import { PORTS } from "../support/devices.ts";
import {
  destinationOptions,
  fragmentHeader,
  hopByHop,
  icmpError,
  ipOf,
  type Label,
  raw,
  tcp,
  udp,
} from "../support/packet.ts";
import type { Row, Step } from "../support/rows.ts";
import { type Family, type FrameOptions, MAC, request } from "../support/scene.ts";
import * as talk from "../support/talk.ts";
import { A, B, c, ce, cu, VM1, v, ve, vu } from "../support/talk.ts";
import { type LastHopSpec, u32, type World } from "../support/world.ts";

export const MARK = 17;
const OTHER_MARK = 18;

export const stackOf = (...labels: number[]): Label[] => labels.map((label) => ({ label }));

/** The last hop of requests with these labels. */
export function behind(labels: number[], mark = MARK, at: LastHopSpec = A): LastHopSpec {
  return { ...at, kind: "stack", mark, labels };
}

const known =
  (...stacks: number[][]) =>
  (world: World): void => {
    for (const labels of stacks) {
      world.putLabelStack(labels, MARK);
    }
  };

function nothingLearned(world: World): void {
  if (world.flowCount() !== 0 || world.lastHopKeys().length !== 0) {
    throw new Error("something was learned");
  }
  if (world.get("budgets", u32(PORTS.uplink_a.slot), "budget")!.last_hops !== 0) {
    throw new Error("it counts against the budget");
  }
}

/** A request that passes with this reason, from which nothing is learned. */
function refused(packet: Buffer, reason: Step["reason"]): Step {
  return { at: "uplink_a", packet, reason, flow: null, check: nothingLearned };
}

/** Each length from behind the EtherType to just before the end of the TCP header. */
function cuts(f: Family, labels: number[], from: number): Step[] {
  const whole = c(f, "S", { frame: { labels: stackOf(...labels) } });
  return Array.from({ length: whole.length - from }, (_, index) =>
    refused(Buffer.from(whole.subarray(0, from + index)), "malformed"),
  );
}

/** Request, reply and request over TCP, with this around the request's IP packet. */
function conversation(f: Family, frame: FrameOptions, lastHop: LastHopSpec): Step[] {
  const { mark } = lastHop;
  return [
    {
      at: "uplink_a",
      packet: c(f, "S", { frame }),
      reason: "learn",
      flow: { tier: "embryonic", state: "syn", lastHop },
    },
    { at: "tap_1", packet: v(f, "SA"), reason: "stack", mark: mark ?? 0 },
    {
      at: "uplink_a",
      packet: c(f, "A", { frame }),
      reason: "promote",
      flow: { tier: "established", state: "established", lastHop, vm: VM1 },
    },
    { at: "uplink_a", packet: c(f, "PA", { frame, payload: Buffer.alloc(1000) }), reason: "refresh" },
    { at: "tap_1", packet: v(f, "PA", { payload: Buffer.alloc(1000) }), reason: "stack", mark: mark ?? 0 },
  ];
}

const STACKS = [[100], [100, 200], [100, 200, 300], [16, 0xfffff, 0, 3]];

export const labelRows: Row[] = [
  ...STACKS.map(
    (labels): Row => ({
      description: `a stack of ${labels.length}: learned as it is, and its replies go through the host's stack`,
      make: (f) => ({
        tuple: talk.tcpTuple(f),
        given: known(labels),
        steps: conversation(f, { labels: stackOf(...labels) }, behind(labels)),
      }),
    }),
  ),
  {
    description: "labels count, their TTL and traffic class do not",
    make: (f) => {
      const labels = [
        { label: 100, ttl: 3, trafficClass: 5 },
        { label: 200, ttl: 255, trafficClass: 1 },
      ];
      return {
        tuple: talk.tcpTuple(f),
        given: known([100, 200]),
        steps: [
          {
            at: "uplink_a",
            packet: c(f, "PA", { frame: { labels } }),
            reason: "learn",
            flow: { lastHop: behind([100, 200]) },
          },
          {
            at: "uplink_a",
            packet: c(f, "PA", { frame: { labels: stackOf(100, 200) } }),
            reason: "refresh",
            flow: { lastHop: behind([100, 200]) },
          },
        ],
      };
    },
  },
  {
    description: "an IPv4 explicit null (0) at the bottom says nothing, and makes no other stack",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: known([100]),
      steps: [
        { at: "uplink_a", packet: c(f, "PA", { frame: { labels: stackOf(100) } }), reason: "learn" },
        { at: "uplink_a", packet: c(f, "PA", { frame: { labels: stackOf(100, 0) } }), reason: "refresh" },
        {
          at: "uplink_a",
          packet: c(f, "PA", { frame: { labels: stackOf(100, 2) } }),
          reason: "unknown_labels",
          flow: { lastHop: behind([100]) },
        },
      ],
    }),
  },
  {
    description: "tags and labels together are all part of the last hop",
    make: (f) => {
      const tags = [{ vid: 10 }, { vid: 20 }];
      const lastHop = { ...behind([100]), tags };
      return {
        tuple: talk.tcpTuple(f),
        given: known([100]),
        steps: conversation(f, { tags, labels: stackOf(100) }, lastHop),
      };
    },
  },
  {
    description: "a labelled request to the host's MAC is for a VM if the host routes it to one",
    make: (f) => {
      const to = { to: PORTS.uplink_a.mac, labels: stackOf(100) };
      return {
        tuple: { ...talk.tcpTuple(f), local: f.routedVm },
        given: known([100]),
        steps: [
          refused(c(f, "S", { frame: { ...to, destination: f.host } }), "for_host"),
          refused(c(f, "S", { frame: { ...to, destination: f.transit } }), "not_for_vm"),
          {
            at: "uplink_a",
            packet: c(f, "S", { frame: { ...to, destination: f.routedVm } }),
            reason: "learn",
            flow: { lastHop: behind([100]) },
          },
          {
            at: "tap_1",
            packet: v(f, "SA", { frame: { to: PORTS.tap_1.mac, source: f.routedVm } }),
            reason: "stack",
            mark: MARK,
          },
        ],
      };
    },
  },
  {
    description: "UDP, ping and an ICMP error behind labels",
    make: (f) => {
      const frame = { labels: stackOf(100) };
      const quoted = icmpError(f.version, "tooBig", ipOf(vu(f)));
      return {
        tuple: talk.udpTuple(f),
        given: known([100]),
        steps: [
          { at: "uplink_a", packet: cu(f, frame), reason: "learn", flow: { lastHop: behind([100]) } },
          { at: "tap_1", packet: vu(f), reason: "stack", mark: MARK },
          { at: "uplink_a", packet: cu(f, frame), reason: "promote" },
          { at: "uplink_a", packet: request(f, quoted, frame), reason: "quoted" },
          { at: "uplink_a", packet: ce(f, "request", frame), reason: "learn", tuple: talk.pingTuple(f) },
          { at: "tap_1", packet: ve(f, "reply"), reason: "stack", mark: MARK, tuple: talk.pingTuple(f) },
        ],
      };
    },
  },
  {
    description: "fragments behind labels: the later ones follow the first",
    make: (f) => {
      const first =
        f.version === 4
          ? { v4: { id: 7, moreFragments: true } }
          : { v6: { extensions: [fragmentHeader(7, 0, true)] } };
      const later =
        f.version === 4
          ? { v4: { id: 7, fragmentOffset: 1200 } }
          : { v6: { extensions: [fragmentHeader(7, 1200)] } };
      const labels = stackOf(100);
      const datagram = { sourcePort: talk.CLIENT_PORT, destinationPort: talk.VM_PORT };
      const head = udp({ ...datagram, payload: Buffer.alloc(1192), length: 2000, checksum: 1 });
      return {
        tuple: talk.udpTuple(f),
        given: known([100]),
        steps: [
          {
            at: "uplink_a",
            packet: request(f, raw(17, Buffer.alloc(800)), { ...later, labels }),
            reason: "fragment",
            flow: null,
          },
          {
            at: "uplink_a",
            packet: request(f, head, { ...first, labels }),
            reason: "learn",
            flow: { lastHop: behind([100]) },
          },
          {
            at: "uplink_a",
            packet: request(f, raw(17, Buffer.alloc(800)), { ...later, labels }),
            reason: "refresh",
          },
        ],
      };
    },
  },
  {
    description: "IPv6 extension headers behind labels",
    families: [6],
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: known([100]),
      steps: conversation(
        f,
        { labels: stackOf(100), v6: { extensions: [hopByHop(), destinationOptions()] } },
        behind([100]),
      ),
    }),
  },
  {
    description: "a labelled frame with the padding of its NIC",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: known([100]),
      steps: conversation(f, { labels: stackOf(100), trailer: 30 }, behind([100])),
    }),
  },
  {
    description: "two stacks of one device are two last hops; a request by the other moves the flow",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        world.putLabelStack([100], MARK);
        world.putLabelStack([100, 200], OTHER_MARK);
      },
      steps: [
        ...conversation(f, { labels: stackOf(100) }, behind([100])),
        {
          at: "uplink_a",
          packet: c(f, "A", { frame: { labels: stackOf(100, 200) } }),
          reason: "relearn",
          flow: { tier: "established", lastHop: behind([100, 200], OTHER_MARK) },
        },
        { at: "tap_1", packet: v(f, "A"), reason: "stack", mark: OTHER_MARK },
        { at: "uplink_a", packet: c(f, "A"), reason: "relearn", flow: { lastHop: A } },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: A },
        {
          at: "uplink_a",
          packet: c(f, "A", { frame: { labels: stackOf(100) } }),
          reason: "relearn",
          flow: { lastHop: behind([100]) },
        },
        { at: "tap_1", packet: v(f, "A"), reason: "stack", mark: MARK },
      ],
    }),
  },
  {
    description: "a stack without a reply's labels: nothing is learned, whatever part of it is known",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: known([100], [100, 200], [200, 100, 300]),
      steps: [[101], [200], [200, 100], [100, 200, 300], [0, 100], [100, 200, 300, 400]].map((labels) =>
        refused(c(f, "S", { frame: { labels: stackOf(...labels) } }), "unknown_labels"),
      ),
    }),
  },
  {
    description: "a flow is not moved to a stack without a reply's labels, nor begun anew by one",
    make: (f) => {
      const frame = { labels: stackOf(666) };
      const unmoved = { tier: "established", state: "established", lastHop: A, vm: VM1 } as const;
      return {
        tuple: talk.tcpTuple(f),
        given: (world) => {
          const reference = world.putLastHop(5, A);
          world.putFlow(talk.tcpTuple(f), { last_hop: reference, state: 4, vm: VM1 });
        },
        steps: [
          { at: "uplink_a", packet: c(f, "A", { frame }), reason: "unknown_labels", flow: unmoved },
          { at: "uplink_a", packet: c(f, "S", { frame }), reason: "unknown_labels", flow: unmoved },
          { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: A },
        ],
      };
    },
  },
  {
    description: "where only configured devices are learned, a labelled one must be known too",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        world.putLabelStack([100], MARK);
        world.changeInterface("uplink_a", { flags: INTERFACE_FLAG.LEARN_DEVICES });
        world.putLastHop(5, behind([100, 200]));
      },
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { labels: stackOf(100) } }),
          reason: "unknown_device",
          flow: null,
        },
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { labels: stackOf(100, 200) } }),
          reason: "learn",
          flow: { lastHop: behind([100, 200]) },
        },
      ],
    }),
  },
  {
    description: "five labels, or four without a bottom, are too many",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: known([1, 2, 3, 4], [1, 2, 3, 4, 5]),
      steps: [
        refused(c(f, "S", { frame: { labels: stackOf(1, 2, 3, 4, 5) } }), "label_depth"),
        refused(
          c(f, "S", { frame: { labels: [...stackOf(1, 2, 3), { label: 4, bottom: false }] } }),
          "label_depth",
        ),
      ],
    }),
  },
  {
    description: "without a bottom the IP header is read as labels, and comes to nothing",
    make: (f) => {
      const labels = [{ label: 100, bottom: false }];
      // IPv4: no bit at the bottom's place within its first 12 bytes. IPv6: its source ends the stack.
      return {
        tuple: talk.tcpTuple(f),
        given: known([100]),
        steps: [
          refused(
            c(f, "S", { frame: { labels, v4: { checksum: 0 } } }),
            f.version === 4 ? "label_depth" : "not_ip",
          ),
        ],
      };
    },
  },
  {
    description: "behind the labels is neither version of IP: a control word, an Ethernet frame, others",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: known([100]),
      steps: [0, 1, 2, 3, 5, 7, 8, 15].map((version) =>
        refused(c(f, "S", { frame: { labels: stackOf(100), v4: { version }, v6: { version } } }), "not_ip"),
      ),
    }),
  },
  {
    description: "behind the labels is the other version's nibble: its header is read, and is not right",
    make: (f) => {
      const version = f.version === 4 ? 6 : 4;
      const segment = tcp({ sourcePort: 1, destinationPort: 2, flags: "S" });
      const frame = { labels: stackOf(100), v4: { version, totalLength: 65535 }, v6: { version } };
      return {
        tuple: talk.tcpTuple(f),
        given: known([100]),
        // As IPv4 the next header and hop limit would be the identification; its length is 0.
        steps: [
          refused(
            request(f, segment, {
              ...frame,
              ...(f.version === 4 ? { v4: { ...frame.v4, id: 0xffff } } : {}),
            }),
            "malformed",
          ),
        ],
      };
    },
  },
  ...[[100], [100, 200, 300, 400]].flatMap((labels): Row[] => [
    {
      description: `a stack of ${labels.length} that is cut anywhere, or its packet`,
      make: (f) => ({ tuple: talk.tcpTuple(f), given: known(labels), steps: cuts(f, labels, 15) }),
    },
    {
      description: `a stack of ${labels.length} of which nothing is there`,
      programs: ["learn_xdp"],
      make: (f) => ({
        tuple: talk.tcpTuple(f),
        given: known(labels),
        steps: cuts(f, labels, 14).slice(0, 1),
      }),
    },
  ]),
  {
    description: "what is wrong behind labels is as wrong as without",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: known([100]),
      steps: [
        refused(c(f, "SF", { frame: { labels: stackOf(100) } }), "malformed"),
        refused(request(f, raw(47), { labels: stackOf(100) }), "protocol"),
        refused(
          c(f, "S", { frame: { labels: stackOf(100), source: f.version === 4 ? "127.0.0.1" : "::1" } }),
          "malformed",
        ),
        refused(c(f, "S", { frame: { labels: stackOf(100), destination: f.multicast } }), "multicast"),
        refused(c(f, "S", { frame: { labels: stackOf(100), to: "03:00:00:00:00:01" } }), "multicast"),
        refused(c(f, "S", { frame: { labels: stackOf(100), from: MAC.vm2 } }), "source_vm"),
        refused(c(f, "SA", { frame: { labels: stackOf(100) } }), "not_request"),
      ],
    }),
  },
  {
    description: "a VM's labels are another's business",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: known([100]),
      steps: [[100], [1, 2, 3, 4, 5]].map((labels): Step => {
        const packet = v(f, "S", { frame: { labels: stackOf(...labels) } });
        return { at: "tap_1", packet, reason: "not_ip", flow: null, check: nothingLearned };
      }),
    }),
  },
  {
    description: "from a labelled last hop to one without, on another uplink, and back",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      given: known([100]),
      steps: [
        { at: "uplink_a", packet: cu(f, { labels: stackOf(100) }), reason: "learn" },
        { at: "tap_1", packet: vu(f), reason: "stack", mark: MARK },
        { at: "uplink_b", packet: cu(f, talk.viaB), reason: "relearn", flow: { lastHop: B } },
        { at: "tap_1", packet: vu(f), reason: "redirect", to: B },
        {
          at: "uplink_a",
          packet: cu(f, { labels: stackOf(100) }),
          reason: "relearn",
          flow: { lastHop: behind([100]) },
        },
        { at: "tap_1", packet: vu(f), reason: "stack", mark: MARK },
      ],
    }),
  },
];
