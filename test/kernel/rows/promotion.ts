// SPDX-License-Identifier: Apache-2.0
// DESIGN section 3: what proves an embryonic flow, and what does not.

import { fragmentHeader, udp } from "../support/packet.ts";
import type { Row, Step } from "../support/rows.ts";
import { type Family, request } from "../support/scene.ts";
import * as talk from "../support/talk.ts";
import { A, B, c, ce, cs, cu, VM_ISN, VM1, v, ve, viaB, vs, vu } from "../support/talk.ts";

const begun = (f: Family): Step[] => [
  { at: "uplink_a", packet: c(f, "S"), reason: "learn" },
  { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: A },
];

const unproven = { tier: "embryonic", state: "syn_ack" } as const;
const proven = { tier: "established", state: "established", lastHop: A, vm: VM1 } as const;

export const promotionRows: Row[] = [
  {
    description: "TCP: the SYN-ACK is acknowledged by a request with the matching number",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...begun(f),
        {
          at: "uplink_a",
          packet: c(f, "A"),
          reason: "promote",
          flow: proven,
          check: (world) => {
            if (world.flowCount() !== 1) {
              throw new Error("still in the embryonic tier too");
            }
          },
        },
        { at: "uplink_a", packet: c(f, "PA"), reason: "refresh", flow: proven },
        { at: "tap_1", packet: v(f, "PA"), reason: "redirect", to: A, flow: proven },
      ],
    }),
  },
  {
    description: "TCP: the request that acknowledges may carry data, or a FIN",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...begun(f),
        {
          at: "uplink_a",
          packet: c(f, "PA", { payload: Buffer.from("GET") }),
          reason: "promote",
          flow: proven,
        },
      ],
    }),
  },
  {
    description: "TCP: a FIN that is the first to acknowledge proves the flow as well",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...begun(f),
        {
          at: "uplink_a",
          packet: c(f, "FPA", { payload: Buffer.from("GET") }),
          reason: "promote",
          flow: { tier: "established", state: "half_closed", lastHop: A, vm: VM1, flags: ["FIN_REMOTE"] },
        },
      ],
    }),
  },
  {
    description: "TCP: acknowledging what the VM sent after its SYN-ACK proves the flow",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...begun(f),
        {
          at: "tap_1",
          packet: v(f, "PA", { payload: Buffer.alloc(100) }),
          reason: "redirect",
          to: A,
          flow: { ...unproven, vmIsn: VM_ISN, vmNext: VM_ISN + 101 },
        },
        { at: "uplink_a", packet: c(f, "A", { ack: VM_ISN + 102 }), reason: "refresh", flow: unproven },
        { at: "uplink_a", packet: c(f, "A", { ack: VM_ISN + 101 }), reason: "promote", flow: proven },
      ],
    }),
  },
  {
    description: "TCP: sequence numbers wrap",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "S"), reason: "learn" },
        { at: "tap_1", packet: v(f, "SA", { seq: 0xffffffff }), reason: "redirect", to: A },
        { at: "tap_1", packet: v(f, "PA", { seq: 0, payload: Buffer.alloc(9) }), reason: "redirect", to: A },
        { at: "uplink_a", packet: c(f, "A", { ack: 0xffffffff }), reason: "refresh", flow: unproven },
        { at: "uplink_a", packet: c(f, "A", { ack: 10 }), reason: "refresh", flow: unproven },
        { at: "uplink_a", packet: c(f, "A", { ack: 9 }), reason: "promote", flow: proven },
      ],
    }),
  },
  {
    description: "TCP: the number that wraps to 0 proves the flow",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "S"), reason: "learn" },
        { at: "tap_1", packet: v(f, "SA", { seq: 0xffffffff }), reason: "redirect", to: A },
        { at: "uplink_a", packet: c(f, "A", { ack: 0 }), reason: "promote", flow: proven },
      ],
    }),
  },
  ...([0, VM_ISN, VM_ISN + 2, VM_ISN + 0x80000000, 0xffffffff] as const).map(
    (ack): Row => ({
      description: `TCP: a blind ACK (${ack - VM_ISN} from the VM's number) does not promote`,
      make: (f) => ({
        tuple: talk.tcpTuple(f),
        steps: [
          ...begun(f),
          { at: "uplink_a", packet: c(f, "A", { ack: ack >>> 0 }), reason: "refresh", flow: unproven },
          {
            at: "uplink_a",
            packet: c(f, "PA", { ack: ack >>> 0, payload: Buffer.from("GET") }),
            reason: "refresh",
            flow: unproven,
          },
        ],
      }),
    }),
  ),
  {
    description: "TCP: an ACK before the SYN-ACK does not promote",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "S"), reason: "learn" },
        {
          at: "uplink_a",
          packet: c(f, "A", { ack: 1 }),
          reason: "refresh",
          flow: { tier: "embryonic", state: "syn" },
        },
        { at: "uplink_a", packet: c(f, "A"), reason: "refresh", flow: { tier: "embryonic", state: "syn" } },
      ],
    }),
  },
  {
    description: "TCP: a request without ACK does not promote",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...begun(f),
        { at: "uplink_a", packet: c(f, "P", { ack: VM_ISN + 1 }), reason: "refresh", flow: unproven },
        { at: "uplink_a", packet: c(f, "S", { ack: VM_ISN + 1 }), reason: "refresh", flow: unproven },
      ],
    }),
  },
  {
    description: "TCP: an RST never promotes, whatever it acknowledges",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...begun(f),
        { at: "uplink_a", packet: c(f, "RA"), reason: "refresh", flow: { tier: "embryonic" } },
        {
          at: "uplink_a",
          packet: c(f, "R", { ack: VM_ISN + 1 }),
          reason: "refresh",
          flow: { tier: "embryonic" },
        },
      ],
    }),
  },
  {
    description: "TCP: a blind RST does not keep the handshake from proving the flow",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...begun(f),
        { at: "uplink_a", packet: c(f, "R", { seq: 1 }), reason: "refresh", flow: { tier: "embryonic" } },
        {
          at: "uplink_a",
          packet: c(f, "A"),
          reason: "promote",
          flow: { tier: "established", lastHop: A, vm: VM1 },
        },
        { at: "tap_1", packet: v(f, "PA"), reason: "redirect", to: A, flow: proven },
      ],
    }),
  },
  {
    description: "TCP: nor when the VM's data came in between",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...begun(f),
        { at: "uplink_a", packet: c(f, "R", { seq: 1 }), reason: "refresh", flow: { tier: "embryonic" } },
        { at: "tap_1", packet: v(f, "PA", { payload: Buffer.from("hello") }), reason: "redirect", to: A },
        { at: "uplink_a", packet: c(f, "A", { ack: VM_ISN + 6 }), reason: "promote", flow: proven },
      ],
    }),
  },
  {
    description: "TCP: a VM that has sent all, and its FIN, before the acknowledgement (Fast Open)",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "S", { payload: Buffer.from("GET") }), reason: "learn" },
        { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: A },
        { at: "tap_1", packet: v(f, "FPA", { payload: Buffer.alloc(50) }), reason: "redirect", to: A },
        {
          at: "uplink_a",
          packet: c(f, "A", { ack: VM_ISN + 52 }),
          reason: "promote",
          flow: { tier: "established", state: "half_closed", lastHop: A, vm: VM1, flags: ["FIN_LOCAL"] },
        },
      ],
    }),
  },
  {
    description: "TCP: a SYN-ACK from the device does not promote",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...begun(f),
        { at: "uplink_a", packet: c(f, "SA"), reason: "refresh", flow: { tier: "embryonic" } },
      ],
    }),
  },
  {
    description: "TCP: a VM that refuses by RST closes the embryonic flow, and its RST goes to the device",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "S"), reason: "learn" },
        {
          at: "tap_1",
          packet: v(f, "RA"),
          reason: "redirect",
          to: A,
          flow: { tier: "embryonic", state: "closed", vm: VM1 },
        },
        { at: "uplink_a", packet: c(f, "A"), reason: "refresh", flow: { tier: "embryonic" } },
      ],
    }),
  },
  {
    description: "TCP: the acknowledging request from another last hop moves the flow and proves it",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...begun(f),
        {
          at: "uplink_b",
          packet: c(f, "A", { frame: viaB }),
          reason: "relearn",
          flow: { tier: "established", state: "established", lastHop: B, vm: VM1 },
        },
      ],
    }),
  },
  {
    description: "TCP: only the SYN-ACK of the flow's VM counts",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...begun(f),
        {
          at: "tap_2",
          packet: v(f, "SA", { seq: 77000, frame: talk.byVm2 }),
          reason: "vm_mismatch",
          flow: { ...unproven, vm: VM1, vmIsn: VM_ISN },
        },
        { at: "uplink_a", packet: c(f, "A", { ack: 77001 }), reason: "refresh", flow: unproven },
        { at: "uplink_a", packet: c(f, "A"), reason: "promote", flow: proven },
      ],
    }),
  },
  {
    description: "TCP picked up: the VM's reply and one more request",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "PA"), reason: "learn", flow: { flags: ["PICKUP"] } },
        { at: "uplink_a", packet: c(f, "PA"), reason: "refresh", flow: { tier: "embryonic", state: "new" } },
        { at: "uplink_a", packet: c(f, "A"), reason: "refresh", flow: { tier: "embryonic", state: "new" } },
        {
          at: "tap_1",
          packet: v(f, "A"),
          reason: "redirect",
          to: A,
          flow: { tier: "embryonic", state: "replied" },
        },
        {
          at: "tap_1",
          packet: v(f, "A"),
          reason: "redirect",
          to: A,
          flow: { tier: "embryonic", state: "replied" },
        },
        { at: "uplink_a", packet: c(f, "A"), reason: "promote", flow: { ...proven, flags: ["PICKUP"] } },
      ],
    }),
  },
  {
    description: "TCP picked up: an RST never promotes",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "PA"), reason: "learn" },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: A },
        {
          at: "uplink_a",
          packet: c(f, "RA"),
          reason: "refresh",
          flow: { tier: "embryonic", state: "closed" },
        },
      ],
    }),
  },
  {
    description: "TCP picked up: a VM that answers by RST knows of no connection, whatever follows",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "PA"), reason: "learn" },
        {
          at: "tap_1",
          packet: v(f, "R"),
          reason: "redirect",
          to: A,
          flow: { tier: "embryonic", state: "closed" },
        },
        {
          at: "uplink_a",
          packet: c(f, "PA"),
          reason: "refresh",
          flow: { tier: "embryonic", state: "closed" },
        },
        { at: "tap_1", packet: v(f, "R"), reason: "redirect", to: A, flow: { tier: "embryonic" } },
      ],
    }),
  },
  {
    description: "TCP picked up: a FIN is one more request",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "PA"), reason: "learn" },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: A },
        {
          at: "uplink_a",
          packet: c(f, "FA"),
          reason: "promote",
          flow: { tier: "established", state: "half_closed", flags: ["PICKUP", "FIN_REMOTE"] },
        },
      ],
    }),
  },
  {
    description: "TCP picked up: the VM's reply may be its FIN",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "PA"), reason: "learn" },
        { at: "tap_1", packet: v(f, "FA"), reason: "redirect", to: A, flow: { tier: "embryonic" } },
        {
          at: "uplink_a",
          packet: c(f, "A"),
          reason: "promote",
          flow: { tier: "established", state: "half_closed", flags: ["PICKUP", "FIN_LOCAL"] },
        },
      ],
    }),
  },
  {
    description:
      "TCP picked up: a blind RST does not keep the VM's reply and one more request from proving the flow",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "PA"), reason: "learn" },
        { at: "uplink_a", packet: c(f, "R", { seq: 1 }), reason: "refresh", flow: { tier: "embryonic" } },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: A, flow: { tier: "embryonic" } },
        { at: "uplink_a", packet: c(f, "A"), reason: "promote", flow: { ...proven, flags: ["PICKUP"] } },
      ],
    }),
  },
  {
    description: "UDP: request, reply, request",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        { at: "uplink_a", packet: cu(f), reason: "learn" },
        { at: "uplink_a", packet: cu(f), reason: "refresh", flow: { tier: "embryonic", state: "new" } },
        { at: "uplink_a", packet: cu(f), reason: "refresh", flow: { tier: "embryonic", state: "new" } },
        {
          at: "tap_1",
          packet: vu(f),
          reason: "redirect",
          to: A,
          flow: { tier: "embryonic", state: "replied" },
        },
        {
          at: "tap_1",
          packet: vu(f),
          reason: "redirect",
          to: A,
          flow: { tier: "embryonic", state: "replied" },
        },
        { at: "uplink_a", packet: cu(f), reason: "promote", flow: proven },
        { at: "uplink_a", packet: cu(f), reason: "refresh", flow: proven },
      ],
    }),
  },
  {
    description: "UDP: a request in fragments is a request",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        { at: "uplink_a", packet: cu(f), reason: "learn" },
        { at: "tap_1", packet: vu(f), reason: "redirect", to: A },
        {
          at: "uplink_a",
          packet: request(
            f,
            udp({ sourcePort: 40000, destinationPort: 80, length: 3000, payload: Buffer.alloc(1200) }),
            {
              v4: { id: 7, moreFragments: true },
              v6: { extensions: [fragmentHeader(7, 0, true)] },
            },
          ),
          reason: "promote",
          flow: proven,
        },
      ],
    }),
  },
  {
    description: "echo: request, reply, request",
    make: (f) => ({
      tuple: talk.pingTuple(f),
      steps: [
        { at: "uplink_a", packet: ce(f, "request"), reason: "learn" },
        {
          at: "uplink_a",
          packet: ce(f, "request"),
          reason: "refresh",
          flow: { tier: "embryonic", state: "new" },
        },
        {
          at: "tap_1",
          packet: ve(f, "reply"),
          reason: "redirect",
          to: A,
          flow: { tier: "embryonic", state: "replied" },
        },
        { at: "uplink_a", packet: ce(f, "request"), reason: "promote", flow: proven },
      ],
    }),
  },
  {
    description: "SCTP: INIT, INIT-ACK, COOKIE-ECHO",
    make: (f) => ({
      tuple: talk.sctpTuple(f),
      steps: [
        { at: "uplink_a", packet: cs(f, "init"), reason: "learn" },
        {
          at: "uplink_a",
          packet: cs(f, "cookieEcho"),
          reason: "refresh",
          flow: { tier: "embryonic", state: "syn" },
        },
        {
          at: "tap_1",
          packet: vs(f, "initAck"),
          reason: "redirect",
          to: A,
          flow: { tier: "embryonic", state: "syn_ack" },
        },
        { at: "uplink_a", packet: cs(f, "cookieEcho"), reason: "promote", flow: proven },
      ],
    }),
  },
  {
    description: "SCTP: an ABORT never promotes",
    make: (f) => ({
      tuple: talk.sctpTuple(f),
      steps: [
        { at: "uplink_a", packet: cs(f, "init"), reason: "learn" },
        { at: "tap_1", packet: vs(f, "initAck"), reason: "redirect", to: A },
        {
          at: "uplink_a",
          packet: cs(f, "abort"),
          reason: "refresh",
          flow: { tier: "embryonic", state: "closed" },
        },
      ],
    }),
  },
  {
    description: "SCTP picked up: the VM's reply and one more request",
    make: (f) => ({
      tuple: talk.sctpTuple(f),
      steps: [
        { at: "uplink_a", packet: cs(f, "data"), reason: "learn", flow: { state: "new", flags: ["PICKUP"] } },
        { at: "tap_1", packet: vs(f, "sack"), reason: "redirect", to: A, flow: { state: "replied" } },
        { at: "uplink_a", packet: cs(f, "data"), reason: "promote", flow: { ...proven, flags: ["PICKUP"] } },
      ],
    }),
  },
  {
    description: "a VM that is known before its tap answers nothing does not prove a flow",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        { at: "uplink_a", packet: cu(f), reason: "learn" },
        {
          at: "tap_1",
          packet: vu(f, { destination: f.client2 }),
          reason: "local_origin",
          flow: { state: "new", vm: 0 },
        },
        { at: "uplink_a", packet: cu(f), reason: "refresh", flow: { tier: "embryonic", state: "new" } },
      ],
    }),
  },
];
