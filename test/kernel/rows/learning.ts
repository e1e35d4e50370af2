// SPDX-License-Identifier: Apache-2.0
// DESIGN section 2, "What may be learned".

import { encode } from "../../../src/abi/codec.ts";
import { INTERFACE_FLAG, NEAR_INTERFACES, POLICY, ROLE } from "../../../src/abi/layout.gen.ts";
import { macBytes } from "../support/bytes.ts";
import { IFINDEX, PORTS } from "../support/devices.ts";
import { arp, ethernet } from "../support/packet.ts";
import type { Row } from "../support/rows.ts";
import { MAC } from "../support/scene.ts";
import * as talk from "../support/talk.ts";
import { A, C, c, ce, cs, cu, toVm2, VM1, v, ve, vs, vu } from "../support/talk.ts";
import { LAST_HOPS, u32 } from "../support/world.ts";

const HOST_A = PORTS.uplink_a.mac;

export const learningRows: Row[] = [
  {
    description: "a SYN to a known VM is learned, and the VM's SYN-ACK goes back to that device",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S"),
          reason: "learn",
          flow: { tier: "embryonic", state: "syn", lastHop: A, vm: 0, flags: [] },
        },
        {
          at: "tap_1",
          packet: v(f, "SA"),
          reason: "redirect",
          to: A,
          flow: { tier: "embryonic", state: "syn_ack", vm: VM1, vmIsn: talk.VM_ISN, vmNext: talk.VM_ISN + 1 },
        },
      ],
    }),
  },
  {
    description: "a UDP request is learned and answered",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        {
          at: "uplink_a",
          packet: cu(f),
          reason: "learn",
          flow: { tier: "embryonic", state: "new", lastHop: A, vm: 0, flags: [] },
        },
        { at: "tap_1", packet: vu(f), reason: "redirect", to: A, flow: { state: "replied", vm: VM1 } },
      ],
    }),
  },
  {
    description: "an SCTP INIT is learned and answered",
    make: (f) => ({
      tuple: talk.sctpTuple(f),
      steps: [
        {
          at: "uplink_a",
          packet: cs(f, "init"),
          reason: "learn",
          flow: { tier: "embryonic", state: "syn", lastHop: A, vm: 0, flags: [] },
        },
        {
          at: "tap_1",
          packet: vs(f, "initAck"),
          reason: "redirect",
          to: A,
          flow: { state: "syn_ack", vm: VM1 },
        },
      ],
    }),
  },
  {
    description: "an echo request is learned under the remote side's identifier and answered",
    make: (f) => ({
      tuple: talk.pingTuple(f),
      steps: [
        {
          at: "uplink_a",
          packet: ce(f, "request"),
          reason: "learn",
          flow: { tier: "embryonic", state: "new", lastHop: A, vm: 0, flags: [] },
        },
        {
          at: "tap_1",
          packet: ve(f, "reply"),
          reason: "redirect",
          to: A,
          flow: { state: "replied", vm: VM1 },
        },
      ],
    }),
  },
  {
    description: "a VM is known once it was seen on a tap, by any frame",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => world.forgetVm(MAC.vm1),
      steps: [
        { at: "uplink_a", packet: c(f, "S"), reason: "not_for_vm", flow: null },
        {
          at: "tap_1",
          packet: ethernet(
            { from: MAC.vm1, to: MAC.broadcast },
            arp("request", { mac: MAC.vm1, ip: "10.0.0.5" }, { mac: MAC.zero, ip: "10.0.0.1" }),
          ),
          reason: "multicast",
          check: (world) => {
            if (world.vm(MAC.vm1)?.ifindex !== IFINDEX.tap_1) {
              throw new Error("the VM was not entered");
            }
          },
        },
        { at: "uplink_a", packet: c(f, "S"), reason: "learn", flow: { lastHop: A } },
      ],
    }),
  },
  {
    description: "routed host: the host's own MAC and an address that is forwarded to a known VM",
    make: (f) => ({
      tuple: { ...talk.tcpTuple(f), local: f.routedVm },
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { to: HOST_A, destination: f.routedVm } }),
          reason: "learn",
          flow: { lastHop: A },
        },
      ],
    }),
  },
  {
    description: "routed host: forwarded to an attached tap whose VM is not known yet",
    make: (f) => ({
      tuple: { ...talk.tcpTuple(f), local: f.routedVm },
      given: (world) => world.forgetVm(MAC.vm1),
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { to: HOST_A, destination: f.routedVm } }),
          reason: "learn",
          flow: { lastHop: A },
        },
      ],
    }),
  },
  {
    description: "routed host: forwarded to the bridge of attached taps",
    make: (f) => ({
      tuple: { ...talk.tcpTuple(f), local: f.bridgedVm },
      given: (world) => world.forgetVm(MAC.vm1),
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { to: HOST_A, destination: f.bridgedVm } }),
          reason: "learn",
          flow: { lastHop: A },
        },
      ],
    }),
  },
  {
    description: "routed host: forwarded out of an interface that is not ours to a known VM's MAC",
    make: (f) => ({
      tuple: { ...talk.tcpTuple(f), local: f.neighbourVm },
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { to: HOST_A, destination: f.neighbourVm } }),
          reason: "learn",
          flow: { lastHop: A },
        },
      ],
    }),
  },
  {
    description: "routed host: forwarded out of an interface that is not ours to an unknown MAC",
    make: (f) => ({
      tuple: { ...talk.tcpTuple(f), local: f.neighbourVm },
      given: (world) => world.forgetVm(MAC.vm1),
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { to: HOST_A, destination: f.neighbourVm } }),
          reason: "not_for_vm",
          flow: null,
        },
      ],
    }),
  },
  {
    description: "the bridge's MAC is the host's own for a port whose packets the bridge's IP stack sees",
    make: (f) => ({
      tuple: { ...talk.tcpTuple(f), local: f.bridgedVm },
      given: (world) =>
        world.changeInterface("uplink_a", {
          host_mac: macBytes(PORTS.bridge.mac),
          l3_ifindex: IFINDEX.bridge,
        }),
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { to: PORTS.bridge.mac, destination: f.bridgedVm } }),
          reason: "learn",
          flow: { lastHop: A },
        },
      ],
    }),
  },
  {
    description: "never: traffic to the host itself",
    make: (f) => ({
      tuple: { ...talk.tcpTuple(f), local: f.host },
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { to: HOST_A, destination: f.host } }),
          reason: "for_host",
          flow: null,
        },
      ],
    }),
  },
  {
    description: "never: transit between uplinks through a routing host",
    make: (f) => ({
      tuple: { ...talk.tcpTuple(f), local: f.transit },
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { to: HOST_A, destination: f.transit } }),
          reason: "not_for_vm",
          flow: null,
        },
      ],
    }),
  },
  {
    description: "never: what the host would not forward",
    make: (f) => ({
      tuple: { ...talk.tcpTuple(f), local: f.unroutable },
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { to: HOST_A, destination: f.unroutable } }),
          reason: "not_for_vm",
          flow: null,
        },
      ],
    }),
  },
  {
    description: "never: frames to a device (transit between uplinks through a bridge)",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { to: MAC.deviceB } }),
          reason: "not_for_vm",
          flow: null,
        },
      ],
    }),
  },
  {
    description: "never: flooded frames, to a MAC that nobody knows",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { to: MAC.unknown } }),
          reason: "not_for_vm",
          flow: null,
        },
      ],
    }),
  },
  {
    description: "never: broadcast and multicast frames",
    make: (f) => ({
      tuple: talk.udpTuple(f),
      steps: [
        { at: "uplink_a", packet: cu(f, { to: MAC.broadcast }), reason: "multicast", flow: null },
        { at: "uplink_a", packet: cu(f, { to: "01:00:5e:00:00:fb" }), reason: "multicast", flow: null },
        { at: "uplink_a", packet: cu(f, { to: "33:33:00:00:00:fb" }), reason: "multicast", flow: null },
      ],
    }),
  },
  {
    description: "never: a multicast address in a frame to a VM's MAC",
    make: (f) => ({
      tuple: { ...talk.udpTuple(f), local: f.multicast },
      steps: [
        { at: "uplink_a", packet: cu(f, { destination: f.multicast }), reason: "multicast", flow: null },
      ],
    }),
  },
  {
    description: "never: on a bridge port that does not forward",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => world.changeInterface("uplink_a", { flags: INTERFACE_FLAG.PORT_BLOCKED }),
      steps: [{ at: "uplink_a", packet: c(f, "S"), reason: "port_blocked", flow: null }],
    }),
  },
  ...(
    [
      ["multicast", "03:00:00:00:00:a1"],
      ["zero", MAC.zero],
      ["the interface's own", HOST_A],
    ] as const
  ).map(
    ([name, from]): Row => ({
      description: `never: source MAC is ${name}`,
      make: (f) => ({
        tuple: talk.tcpTuple(f),
        steps: [{ at: "uplink_a", packet: c(f, "S", { frame: { from } }), reason: "source_mac", flow: null }],
      }),
    }),
  ),
  {
    description: "never: source MAC is that of the bridge which the uplink is a port of",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) =>
        world.changeInterface("uplink_a", {
          host_mac: macBytes(PORTS.bridge.mac),
          l3_ifindex: IFINDEX.bridge,
        }),
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { from: PORTS.bridge.mac } }),
          reason: "source_mac",
          flow: null,
        },
      ],
    }),
  },
  {
    description: "never: source MAC is that of the uplink itself where the bridge has another",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) =>
        world.changeInterface("uplink_a", {
          host_mac: macBytes(PORTS.bridge.mac),
          l3_ifindex: IFINDEX.bridge,
        }),
      steps: [
        { at: "uplink_a", packet: c(f, "S", { frame: { from: HOST_A } }), reason: "source_mac", flow: null },
      ],
    }),
  },
  {
    description: "never: source MAC is a VM's (a hairpin, or a loop)",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "S", { frame: { from: MAC.vm2 } }), reason: "source_vm", flow: null },
        { at: "uplink_a", packet: c(f, "S", { frame: { from: MAC.vm1 } }), reason: "source_vm", flow: null },
      ],
    }),
  },
  {
    description: "a device that is itself a VM has a tap with role uplink",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        world.attach("tap_2", { role: ROLE.UPLINK });
        world.forgetVm(MAC.vm2);
      },
      steps: [
        {
          at: "tap_2",
          as: "uplink",
          packet: c(f, "S", { frame: { from: MAC.vm2 } }),
          reason: "learn",
          flow: { lastHop: { port: "tap_2", mac: MAC.vm2 } },
        },
        { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: { port: "tap_2", mac: MAC.vm2 } },
      ],
    }),
  },
  {
    description: "an on-link client is its own last hop",
    make: (f) => ({
      tuple: { ...talk.tcpTuple(f), remote: f.client2 },
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { from: "02:00:00:00:cc:01", source: f.client2 } }),
          reason: "learn",
          flow: { lastHop: { port: "uplink_a", mac: "02:00:00:00:cc:01" } },
        },
        {
          at: "tap_1",
          packet: v(f, "SA", { frame: { destination: f.client2 } }),
          reason: "redirect",
          to: { port: "uplink_a", mac: "02:00:00:00:cc:01" },
        },
      ],
    }),
  },
  ...(
    [
      ["a SYN-ACK", (f) => c(f, "SA"), "tcp"],
      ["an RST", (f) => c(f, "R"), "tcp"],
      ["an RST with ACK", (f) => c(f, "RA"), "tcp"],
      ["an SCTP INIT-ACK", (f) => cs(f, "initAck"), "sctp"],
      ["an SCTP ABORT", (f) => cs(f, "abort"), "sctp"],
    ] as [string, (f: Parameters<Row["make"]>[0]) => Buffer, "tcp" | "sctp"][]
  ).map(
    ([name, packet, proto]): Row => ({
      description: `${name} from an uplink creates nothing`,
      make: (f) => ({
        tuple: proto === "tcp" ? talk.tcpTuple(f) : talk.sctpTuple(f),
        steps: [{ at: "uplink_a", packet: packet(f), reason: "not_request", flow: null }],
      }),
    }),
  ),
  {
    description: "an echo reply from an uplink creates nothing",
    make: (f) => ({
      tuple: talk.localPingTuple(f),
      steps: [
        { at: "uplink_a", packet: ce(f, "reply"), reason: "not_request", flow: null },
        {
          at: "uplink_a",
          packet: ce(f, "reply"),
          tuple: talk.pingTuple(f),
          reason: "not_request",
          flow: null,
        },
      ],
    }),
  },
  {
    description: "the middle of a connection is picked up: the next request heals a lost entry",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "PA", { payload: Buffer.from("GET") }),
          reason: "learn",
          flow: { tier: "embryonic", state: "new", lastHop: A, flags: ["PICKUP"] },
        },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: A, flow: { state: "replied", vm: VM1 } },
      ],
    }),
  },
  {
    description: "pickup off: no flow from the middle of a connection, but from its beginning",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => world.changeInterface("uplink_a", { flags: INTERFACE_FLAG.PICKUP_NO }),
      steps: [
        { at: "uplink_a", packet: c(f, "A"), reason: "pickup_off", flow: null },
        { at: "uplink_a", packet: c(f, "FA"), reason: "pickup_off", flow: null },
        { at: "uplink_a", packet: cs(f, "data"), reason: "pickup_off", flow: null, tuple: talk.sctpTuple(f) },
        { at: "uplink_a", packet: c(f, "S"), reason: "learn", flow: { state: "syn" } },
        { at: "uplink_a", packet: cu(f), reason: "learn", tuple: talk.udpTuple(f), flow: { state: "new" } },
        {
          at: "uplink_a",
          packet: ce(f, "request"),
          reason: "learn",
          tuple: talk.pingTuple(f),
          flow: { state: "new" },
        },
      ],
    }),
  },
  {
    description: "learn devices: only last hops that the controller made",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        world.changeInterface("uplink_a", { flags: INTERFACE_FLAG.LEARN_DEVICES });
        world.putLastHop(5, C);
      },
      steps: [
        { at: "uplink_a", packet: c(f, "S"), reason: "unknown_device", flow: null },
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { from: MAC.deviceC } }),
          reason: "learn",
          flow: { lastHop: C },
        },
        { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: C },
      ],
    }),
  },
  {
    description: "several MACs of one device lead to its one reply address",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        world.putLastHop(5, A);
        const other = { ifindex: IFINDEX.uplink_a, mac: macBytes(MAC.deviceC) };
        world.map("last_hop_index").update(encode("last_hop_key", other), u32(5));
      },
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { from: MAC.deviceC } }),
          reason: "learn",
          flow: { lastHop: A },
        },
        { at: "uplink_a", packet: c(f, "S"), reason: "refresh", flow: { lastHop: A } },
        { at: "uplink_a", packet: c(f, "S", { frame: { from: MAC.deviceC } }), reason: "refresh" },
        { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: A },
      ],
    }),
  },
  {
    description: "the budget of an interface bounds new last hops, not new flows of known ones",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => world.put("budgets", u32(1), "budget", { last_hops_max: 1, vms_max: 10 }),
      steps: [
        { at: "uplink_a", packet: c(f, "S"), reason: "learn", flow: { lastHop: A } },
        {
          at: "uplink_a",
          packet: cu(f, { from: MAC.deviceC }),
          reason: "last_hop_budget",
          tuple: talk.udpTuple(f),
          flow: null,
        },
        { at: "uplink_a", packet: cu(f), reason: "learn", tuple: talk.udpTuple(f), flow: { lastHop: A } },
        {
          at: "uplink_a",
          packet: c(f, "PA", { frame: { from: MAC.deviceC } }),
          reason: "last_hop_budget",
          flow: { lastHop: A },
          check: (world) => {
            const used = world.get("budgets", u32(1), "budget")!.last_hops;
            if (used !== 1) {
              throw new Error(`the budget says ${used} last hops`);
            }
          },
        },
        {
          at: "uplink_b",
          packet: cu(f, { from: MAC.deviceB, source: f.client2 }),
          reason: "learn",
          tuple: { ...talk.udpTuple(f), remote: f.client2 },
          flow: { lastHop: { port: "uplink_b", mac: MAC.deviceB } },
        },
      ],
    }),
  },
  {
    description: "a full table of last hops learns no new one",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => world.change("allocations", u32(0), "allocations", { last_hops: LAST_HOPS }),
      steps: [{ at: "uplink_a", packet: c(f, "S"), reason: "last_hop_budget", flow: null }],
    }),
  },
  {
    description: "an index that was given back is used again under the next generation",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        world.put("last_hops", u32(9), "last_hop", { generation: 3 });
        world.map("last_hop_free").push(u32(9));
        world.change("allocations", u32(0), "allocations", { last_hops: 20 });
      },
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S"),
          reason: "learn",
          flow: { lastHop: A },
          check: (world) => {
            const reference = world.flow(talk.tcpTuple(f))!.flow.last_hop;
            if (reference !== ((4 << 20) | 9)) {
              throw new Error(`reference 0x${reference.toString(16)}`);
            }
          },
        },
        { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: A },
      ],
    }),
  },
  {
    description: "generations wrap within 12 bits and are never 0",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        world.put("last_hops", u32(9), "last_hop", { generation: 4095 });
        world.map("last_hop_free").push(u32(9));
      },
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S"),
          reason: "learn",
          flow: { lastHop: A },
          check: (world) => {
            const reference = world.flow(talk.tcpTuple(f))!.flow.last_hop;
            if (reference !== ((1 << 20) | 9)) {
              throw new Error(`reference 0x${reference.toString(16)}`);
            }
          },
        },
        { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: A },
      ],
    }),
  },
  {
    description: "two flows of one device share its record, and its traffic is counted both ways",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S"),
          reason: "learn",
          flow: { lastHop: A },
          check: (world) => {
            const stats = world.stats(world.flow(talk.tcpTuple(f))!.flow.last_hop & 0xfffff);
            if (stats.request_packets !== 1 || stats.request_bytes !== c(f, "S").length) {
              throw new Error(`counted ${JSON.stringify(stats)}`);
            }
          },
        },
        {
          at: "uplink_a",
          packet: cu(f),
          reason: "learn",
          tuple: talk.udpTuple(f),
          check: (world) => {
            const first = world.flow(talk.tcpTuple(f))!.flow.last_hop;
            const second = world.flow(talk.udpTuple(f))!.flow.last_hop;
            if (first !== second) {
              throw new Error("two records for one device");
            }
          },
        },
        {
          at: "tap_1",
          packet: v(f, "SA"),
          reason: "redirect",
          to: A,
          check: (world) => {
            const index = world.flow(talk.tcpTuple(f))!.flow.last_hop & 0xfffff;
            world.clearStats(index);
          },
        },
        { at: "uplink_a", packet: c(f, "A"), reason: "promote" },
        {
          at: "tap_1",
          packet: v(f, "PA", { payload: Buffer.alloc(500) }),
          reason: "redirect",
          to: A,
          check: (world) => {
            const stats = world.stats(world.flow(talk.tcpTuple(f))!.flow.last_hop & 0xfffff);
            const request = c(f, "A").length;
            const reply = v(f, "PA", { payload: Buffer.alloc(500) }).length;
            const { request_packets, request_bytes, reply_packets, reply_bytes } = stats;
            const found = [request_packets, request_bytes, reply_packets, reply_bytes].join();
            if (found !== [1, request, 1, reply].join()) {
              throw new Error(`counted ${found}`);
            }
          },
        },
      ],
    }),
  },
  {
    description: "overlapping addresses in two zones never share a flow",
    make: (f) => {
      const device = { port: "uplink_z", mac: MAC.deviceC } as const;
      const zoned = { ...talk.tcpTuple(f), zone: 7 };
      return {
        tuple: talk.tcpTuple(f),
        steps: [
          { at: "uplink_a", packet: c(f, "S"), reason: "learn", flow: { lastHop: A } },
          { at: "uplink_z", packet: c(f, "S"), reason: "not_for_vm", tuple: zoned, flow: null },
          {
            at: "uplink_z",
            packet: c(f, "S", { frame: { from: MAC.deviceC, to: MAC.vmZ } }),
            reason: "learn",
            tuple: zoned,
            flow: { lastHop: device },
          },
          { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: A },
          {
            at: "tap_z",
            packet: v(f, "SA", { frame: { from: MAC.vmZ } }),
            reason: "redirect",
            to: device,
            tuple: zoned,
            flow: { vm: 3 },
          },
          { at: "uplink_a", packet: c(f, "A"), reason: "promote", flow: { lastHop: A, vm: VM1 } },
        ],
      };
    },
  },
  {
    description: "routed host: a tap of another zone is no VM of this one",
    make: (f) => ({
      tuple: { ...talk.tcpTuple(f), local: f.routedVm },
      given: (world) => {
        world.attach("tap_1", { zone: 7 });
        world.forgetVm(MAC.vm1);
      },
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "S", { frame: { to: HOST_A, destination: f.routedVm } }),
          reason: "not_for_vm",
          flow: null,
        },
      ],
    }),
  },
  {
    description: "requests to two VMs are two flows",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "S"), reason: "learn" },
        {
          at: "uplink_b",
          packet: c(f, "S", { frame: { ...talk.viaB, ...toVm2, destination: f.vm2 } }),
          reason: "learn",
          tuple: { ...talk.tcpTuple(f), local: f.vm2 },
          flow: { lastHop: talk.B },
        },
        { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: A },
        {
          at: "tap_2",
          packet: v(f, "SA", { frame: { ...talk.byVm2, source: f.vm2 } }),
          reason: "redirect",
          to: talk.B,
          tuple: { ...talk.tcpTuple(f), local: f.vm2 },
          flow: { vm: talk.VM2 },
        },
      ],
    }),
  },
  {
    description: "two interfaces that meet in one cell of the near array are told apart",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        const far = world.get("interfaces", u32(IFINDEX.tap_1), "interface")!;
        for (const port of ["uplink_a", "stranger"] as const) {
          const cell = u32(IFINDEX[port] % NEAR_INTERFACES);
          world.put("near_interfaces", cell, "interface", {
            ...far,
            ifindex: IFINDEX[port] + NEAR_INTERFACES,
          });
        }
      },
      steps: [
        { at: "uplink_a", packet: c(f, "S"), reason: "learn", flow: { lastHop: A } },
        { at: "stranger", as: "tap", packet: v(f, "SA"), reason: "not_attached" },
        { at: "tap_1", packet: v(f, "SA"), reason: "redirect", to: A },
      ],
    }),
  },
  {
    description: "an interface that is not attached passes",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "stranger", packet: c(f, "S"), reason: "not_attached", flow: null },
        { at: "tap_1", as: "uplink", packet: c(f, "S"), reason: "not_attached", flow: null },
        { at: "uplink_a", as: "tap", packet: v(f, "S"), reason: "not_attached", flow: null },
        { at: "bridge", packet: c(f, "S"), reason: "not_attached", flow: null },
        { at: "bridge", as: "tap", packet: v(f, "S"), reason: "not_attached", flow: null },
      ],
    }),
  },
  {
    description: "bypass: one write and every program passes everything",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        { at: "uplink_a", packet: c(f, "S"), reason: "learn" },
        {
          before: (world) => world.changeControl({ bypass: 1 }),
          at: "tap_1",
          packet: v(f, "SA"),
          reason: "bypass",
          flow: { state: "syn", vm: 0 },
        },
        { at: "uplink_a", packet: cu(f), reason: "bypass", tuple: talk.udpTuple(f), flow: null },
        {
          before: (world) => world.changeControl({ bypass: 0 }),
          at: "tap_1",
          packet: v(f, "SA"),
          reason: "redirect",
          to: A,
        },
      ],
    }),
  },
  {
    description: "the policy of a tap does not keep an uplink from learning",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => world.changeInterface("tap_1", { policy: POLICY.OFF }),
      steps: [{ at: "uplink_a", packet: c(f, "S"), reason: "learn", flow: { lastHop: A } }],
    }),
  },
  {
    description: "a table in disorder is an error that passes: an index without a record",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      given: (world) => {
        const key = encode("last_hop_key", { ifindex: IFINDEX.uplink_a, mac: macBytes(MAC.deviceA) });
        world.map("last_hop_index").update(key, u32(LAST_HOPS + 1));
      },
      steps: [{ at: "uplink_a", packet: c(f, "S"), reason: "error", flow: null }],
    }),
  },
];
