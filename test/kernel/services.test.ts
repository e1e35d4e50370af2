// SPDX-License-Identifier: Apache-2.0
// Requests for the address of a service: which of them are, and the VM that each flow stays with.

import { describe } from "vitest";
import { PORTS } from "./support/devices.ts";
import { useWorld, world } from "./support/fixture.ts";
import { IPPROTO, icmpEcho, icmpError, ipOf, udp } from "./support/packet.ts";
import { type Row, type Step, testRows } from "./support/rows.ts";
import { type Family, MAC, request } from "./support/scene.ts";
import { expectCounts, h, handed, opening, passed, replied, tcpCase } from "./support/serviceSteps.ts";
import {
  SERVICE,
  type ServiceAddress,
  serve,
  servicesOf,
  TO_HOST,
  TO_VM1,
  TO_VM2,
} from "./support/services.ts";
import * as talk from "./support/talk.ts";
import { A, byVm2, c, ce, cs, cu, VM1, VM2, v, ve, vs, vu } from "./support/talk.ts";
import type { Tuple } from "./support/world.ts";

useWorld();

const { tcpTuple, udpTuple, sctpTuple, pingTuple } = talk;

const requests: Row[] = [
  {
    description: "a connection: to the service's VM from the SYN on, back by the last hop",
    make: (f) =>
      tcpCase(f, [
        handed(h(f, "S"), "learn", TO_VM1, {
          flow: { tier: "embryonic", state: "syn", lastHop: A, vm: VM1, flags: ["SERVICE"] },
        }),
        handed(h(f, "S"), "deliver", TO_VM1),
        replied(v(f, "SA"), { flow: { state: "syn_ack", vm: VM1, flags: ["ANSWERED", "SERVICE"] } }),
        handed(h(f, "A"), "promote", TO_VM1, {
          flow: { tier: "established", state: "established", vm: VM1, lastHop: A },
        }),
        handed(h(f, "PA", { payload: Buffer.alloc(1000) }), "deliver", TO_VM1),
        replied(v(f, "PA"), {
          check: (world) => {
            const services = servicesOf(world);
            const bytes = 3 * h(f, "A").length + h(f, "PA").length + 1000;
            expectCounts(services.counted(), { flows: 1 });
            expectCounts(services.vmStats(VM1), {
              flows: 1,
              request_packets: 4,
              request_bytes: bytes,
              response_packets: 0,
            });
            expectCounts(services.vmStats(VM2), { flows: 0, request_packets: 0 });
          },
        }),
      ]),
  },
  {
    description: "UDP, SCTP and echo requests, and the VM's next flow is another's",
    make: (f) => ({
      tuple: udpTuple(f),
      given: serve(f, { cells: [VM1, VM1, VM1, VM2] }),
      steps: [
        handed(cu(f, TO_HOST), "learn", TO_VM1, { flow: { state: "new", vm: VM1, flags: ["SERVICE"] } }),
        handed(cs(f, "init", TO_HOST), "learn", TO_VM1, {
          tuple: sctpTuple(f),
          flow: { state: "syn", vm: VM1 },
        }),
        handed(ce(f, "request", TO_HOST), "learn", TO_VM1, { tuple: pingTuple(f), flow: { vm: VM1 } }),
        handed(h(f, "S"), "learn", TO_VM2, { tuple: tcpTuple(f), flow: { vm: VM2 } }),
        replied(vu(f)),
        replied(vs(f, "initAck"), { tuple: sctpTuple(f) }),
        replied(ve(f, "reply"), { tuple: pingTuple(f) }),
        handed(cu(f, TO_HOST), "promote", TO_VM1, { flow: { tier: "established", state: "established" } }),
        handed(cs(f, "cookieEcho", TO_HOST), "promote", TO_VM1, { tuple: sctpTuple(f) }),
        handed(ce(f, "request", TO_HOST), "promote", TO_VM1, { tuple: pingTuple(f) }),
        handed(ce(f, "request", TO_HOST), "deliver", TO_VM1, { tuple: pingTuple(f) }),
      ],
    }),
  },
  {
    description: "addressed to a VM's MAC: handed to the one that is chosen, which may be another",
    make: (f) =>
      tcpCase(
        f,
        [
          handed(c(f, "S"), "learn", TO_VM2, { flow: { vm: VM2 } }),
          handed(c(f, "PA"), "deliver", TO_VM2),
          handed(c(f, "PA", { frame: talk.toVm2 }), "deliver", TO_VM2),
        ],
        serve(f, { cells: [VM2] }),
      ),
  },
  {
    description: "addressed neither to the host nor to a VM: flooded, and not for us",
    make: (f) =>
      tcpCase(f, [
        passed(h(f, "S", { frame: { to: MAC.unknown } }), "not_for_vm", { flow: null }),
        passed(h(f, "S", { frame: { to: MAC.deviceB } }), "not_for_vm", { flow: null }),
        handed(h(f, "S"), "learn", TO_VM1),
        passed(h(f, "S", { frame: { to: MAC.unknown } }), "not_for_vm", { flow: { vm: VM1 } }),
        replied(v(f, "SA")),
        handed(h(f, "A"), "promote", TO_VM1),
        // Of a live connection as well: it may be in transit, to another host of the same service.
        passed(h(f, "PA", { frame: { to: MAC.unknown } }), "not_for_vm"),
        passed(h(f, "R", { frame: { to: MAC.unknown } }), "not_for_vm"),
        passed(
          request(f, icmpError(f.version, "timeExceeded", ipOf(v(f, "PA"))), { to: MAC.unknown }),
          "not_for_vm",
        ),
      ]),
  },
];

/** What the keys of services say about one SYN, or datagram. */
interface Match {
  keys: (f: Family) => [service: number, key: ServiceAddress][];
  /** Index of the service; 0: none. */
  found: number;
  packet?: (f: Family) => Buffer;
  tuple?: (f: Family) => Tuple;
  at?: "uplink_z";
}

const wider = (f: Family, bits4: number, bits6: number) => `${f.vm}/${f.version === 4 ? bits4 : bits6}`;

const MATCHES: Record<string, Match> = {
  "the port": { keys: (f) => [[1, { prefix: f.vm, proto: 6, port: 80 }]], found: 1 },
  "any port": { keys: (f) => [[1, { prefix: f.vm, proto: 6 }]], found: 1 },
  "the port before any": {
    keys: (f) => [
      [1, { prefix: f.vm, proto: 6 }],
      [2, { prefix: f.vm, proto: 6, port: 80 }],
    ],
    found: 2,
  },
  "the port before a longer prefix": {
    keys: (f) => [
      [1, { prefix: f.vm, proto: 6 }],
      [2, { prefix: wider(f, 8, 16), proto: 6, port: 80 }],
    ],
    found: 2,
  },
  "the longer prefix before the shorter": {
    keys: (f) => [
      [1, { prefix: wider(f, 8, 16), proto: 6, port: 80 }],
      [2, { prefix: wider(f, 24, 64), proto: 6, port: 80 }],
      [3, { prefix: wider(f, 16, 32), proto: 6, port: 80 }],
    ],
    found: 2,
  },
  "every address": {
    keys: (f) => [[1, { prefix: f.version === 4 ? "0.0.0.0/0" : "::/0", proto: 6 }]],
    found: 1,
  },
  // IPv4 stands in the same table, as ::ffff:a.b.c.d.
  "not every address of the other family": {
    keys: (f) => [[1, { prefix: f.version === 4 ? "2000::/3" : "0.0.0.0/0", proto: 6 }]],
    found: 0,
  },
  "not a neighbour's address": { keys: (f) => [[1, { prefix: f.vm2, proto: 6 }]], found: 0 },
  "not the client's address": { keys: (f) => [[1, { prefix: f.client, proto: 6 }]], found: 0 },
  "not another port": { keys: (f) => [[1, { prefix: f.vm, proto: 6, port: 81 }]], found: 0 },
  "not the client's port": { keys: (f) => [[1, { prefix: f.vm, proto: 6, port: 40000 }]], found: 0 },
  "not another protocol": { keys: (f) => [[1, { prefix: f.vm, proto: 17, port: 80 }]], found: 0 },
  "not another zone": { keys: (f) => [[1, { prefix: f.vm, proto: 6, zone: 7 }]], found: 0 },
  "its own zone": {
    keys: (f) => [
      [1, { prefix: f.vm, proto: 6 }],
      [2, { prefix: f.vm, proto: 6, zone: 7 }],
    ],
    found: 2,
    at: "uplink_z",
    packet: (f) => h(f, "S", { frame: { to: PORTS.uplink_z.mac } }),
    tuple: (f) => tcpTuple(f, { zone: 7 }),
  },
  "UDP by its own port": {
    keys: (f) => [
      [1, { prefix: f.vm, proto: 17 }],
      [2, { prefix: f.vm, proto: 17, port: 53 }],
    ],
    found: 2,
    packet: (f) => request(f, udp({ sourcePort: 53, destinationPort: 53 }), TO_HOST),
    tuple: (f) => udpTuple(f, { localPort: 53, remotePort: 53 }),
  },
  "echo has no port, whatever its identifier": {
    keys: (f) => [
      [1, { prefix: f.vm, proto: f.icmp }],
      [2, { prefix: f.vm, proto: f.icmp, port: 80 }],
    ],
    found: 1,
    packet: (f) => request(f, icmpEcho(f.version, "request", 80), TO_HOST),
    tuple: (f) => ({ ...pingTuple(f), remotePort: 80 }),
  },
  "a service that no longer has a pool": {
    keys: (f) => [[5, { prefix: f.vm, proto: 6 }]],
    found: 5,
  },
};

const matches: Row[] = Object.entries(MATCHES).map(([what, { keys, found, packet, tuple, at }]) => ({
  description: `a service is found by ${what}`,
  make: (f) => ({
    tuple: (tuple ?? tcpTuple)(f),
    given: (world) => {
      const services = serve(f, { cells: [VM1], keys: [] })(world);
      for (const index of [2, 3]) services.putService(index);
      for (const [service, key] of keys(f)) services.putKey(service, key);
    },
    steps: [
      {
        at: at ?? "uplink_a",
        packet: packet?.(f) ?? h(f, "S"),
        ...(found === 0
          ? { reason: "not_for_vm", flow: null }
          : found === 5
            ? { reason: "service_empty", flow: null }
            : { reason: "learn", to: TO_VM1 }),
        check: (world) => {
          for (const index of [1, 2, 3].filter((one) => one !== found)) {
            expectCounts(servicesOf(world).counted(index), {});
          }
          if (found !== 0) {
            expectCounts(servicesOf(world).stats(found), found === 5 ? { empty: 1 } : { flows: 1, empty: 0 });
          }
        },
      } as Step,
    ],
  }),
}));

const staying: Row[] = [
  {
    description: "a flow stays with its VM when the pool changes, or has nobody",
    make: (f) =>
      tcpCase(f, [
        ...opening(f),
        handed(h(f, "PA"), "deliver", TO_VM1, {
          before: (world) => servicesOf(world).putPool(1, "ROUND_ROBIN", [VM2]),
        }),
        handed(h(f, "PA"), "deliver", TO_VM1, {
          before: (world) => servicesOf(world).changeService(SERVICE, { pool: 0 }),
        }),
        replied(v(f, "PA")),
      ]),
  },
  {
    description: "a VM that drains keeps its flows, embryonic ones too, and gets no new ones",
    make: (f) =>
      tcpCase(f, [
        handed(h(f, "S"), "learn", TO_VM1),
        handed(h(f, "S"), "deliver", TO_VM1, {
          before: (world) => servicesOf(world).setState(VM1, "DRAIN"),
        }),
        replied(v(f, "SA")),
        handed(h(f, "A"), "promote", TO_VM1),
        handed(cu(f, TO_HOST), "learn", TO_VM2, { tuple: udpTuple(f) }),
        handed(cs(f, "init", TO_HOST), "learn", TO_VM2, { tuple: sctpTuple(f) }),
      ]),
  },
  {
    description: "the service goes while its flows live: they stay where they are",
    make: (f) =>
      tcpCase(f, [
        ...opening(f),
        handed(h(f, "PA"), "deliver", TO_VM1, {
          before: (world) => {
            for (const proto of [IPPROTO.tcp, IPPROTO.udp, IPPROTO.sctp]) {
              servicesOf(world).removeKey({ prefix: f.vm, proto, port: talk.VM_PORT });
            }
          },
        }),
        handed(h(f, "FA"), "deliver", TO_VM1),
        passed(cu(f, TO_HOST), "not_for_vm", { tuple: udpTuple(f), flow: null }),
        // The next connection is nobody's: the old flow stands until it expires.
        passed(h(f, "S", { seq: 77 }), "not_for_vm", {
          flow: { vm: VM1, flags: ["FIN_REMOTE", "ANSWERED", "SERVICE"] },
        }),
      ]),
  },
  {
    description: "another VM's reply is not the flow's, before its VM replied and after",
    make: (f) =>
      tcpCase(f, [
        handed(h(f, "S"), "learn", TO_VM1),
        { at: "tap_2", packet: v(f, "SA", { frame: byVm2 }), reason: "vm_mismatch" },
        {
          at: "tap_1",
          packet: v(f, "SA", { frame: byVm2 }),
          reason: "vm_mismatch",
          flow: { state: "syn", flags: ["SERVICE"] },
        },
        replied(v(f, "SA")),
        { at: "tap_2", packet: v(f, "R", { frame: byVm2 }), reason: "vm_mismatch" },
        handed(h(f, "A"), "promote", TO_VM1),
        { at: "tap_2", packet: v(f, "PA", { frame: byVm2 }), reason: "vm_mismatch" },
      ]),
  },
  {
    description: "its VM replies from another tap, as after a move: still its flow",
    make: (f) => tcpCase(f, [handed(h(f, "S"), "learn", TO_VM1), { ...replied(v(f, "SA")), at: "tap_2" }]),
  },
  {
    description: "a new SYN chooses anew: after both FINs, an RST, or on a live connection",
    make: (f) =>
      tcpCase(f, [
        ...opening(f),
        handed(h(f, "S", { seq: 7000 }), "restart", TO_VM2, {
          flow: { state: "syn", vm: VM2, lastHop: A, flags: ["SERVICE"] },
        }),
        { at: "tap_1", packet: v(f, "PA"), reason: "vm_mismatch" },
        { ...replied(v(f, "SA", { frame: byVm2 })), at: "tap_2" },
        handed(h(f, "A"), "deliver", TO_VM2, { flow: { state: "established", vm: VM2 } }),
        handed(h(f, "FA"), "deliver", TO_VM2),
        { ...replied(v(f, "FA", { frame: byVm2 })), at: "tap_2", flow: { state: "closed" } },
        handed(h(f, "S", { seq: 9000 }), "restart", TO_VM1, { flow: { state: "syn", vm: VM1 } }),
        replied(v(f, "RA"), { flow: { state: "closed" } }),
        handed(h(f, "S", { seq: 11000 }), "restart", TO_VM2, {
          flow: { state: "syn", vm: VM2, flags: ["SERVICE"] },
          check: (world) => expectCounts(servicesOf(world).counted(), { flows: 4 }),
        }),
      ]),
  },
  {
    description: "a SYN that is repeated stays with the VM, also for another VM's MAC",
    make: (f) =>
      tcpCase(f, [
        handed(h(f, "S"), "learn", TO_VM1),
        handed(c(f, "S", { frame: talk.toVm2 }), "deliver", TO_VM1),
        replied(v(f, "SA")),
        handed(c(f, "S", { frame: talk.toVm2 }), "deliver", TO_VM1, { flow: { state: "syn_ack", vm: VM1 } }),
      ]),
  },
];

describe("a request for a service", () => testRows(() => world, [...requests, ...matches]));
describe("a flow of a service", () => testRows(() => world, staying));
