// SPDX-License-Identifier: Apache-2.0
// A segment whose VM is down, of a service that says so, becomes the reset that the VM's host would send.

import { describe, expect, test } from "vitest";
import { FLOW_FLAG, FLOW_STATE, HOOK, INTERFACE_FLAG } from "../../src/abi/layout.gen.ts";
import { ipBytes, onesSum, pseudoHeader } from "./support/bytes.ts";
import { decodeFrame } from "./support/decode.ts";
import { IFINDEX, PORTS } from "./support/devices.ts";
import { useWorld, world } from "./support/fixture.ts";
import { fragmentHeader, hopByHop, icmpError, ipOf, type Tag, tcp } from "./support/packet.ts";
import { type Row, type Step, testRows, withDestination } from "./support/rows.ts";
import { FAMILIES, type Family, type FrameOptions, MAC, request } from "./support/scene.ts";
import { down, expectCounts, h, handed, opening, passed, tcpCase } from "./support/serviceSteps.ts";
import { serve, servicesOf, TO_HOST, TO_HOST_B, TO_VM1, TO_VM2 } from "./support/services.ts";
import * as talk from "./support/talk.ts";
import {
  A,
  B,
  CLIENT_ISN,
  CLIENT_PORT,
  c,
  ce,
  cs,
  cu,
  VM_ISN,
  VM_PORT,
  VM1,
  VM2,
  v,
} from "./support/talk.ts";
import type { RunOptions } from "./support/testRun.ts";
import type { UplinkProgram } from "./support/world.ts";

useWorld();

const { udpTuple, sctpTuple, pingTuple } = talk;

// ---- reset ------------------------------------------------------------------------------------------

/** Of bpf/xfrm.h: an interface id follows. */
const XFRM_MARK = 0x6c687866;

/** What the client gets in the VM's name. */
function resetOf(
  f: Family,
  seq: number,
  ack: number | null,
  frame: FrameOptions = {},
  back: FrameOptions = {},
): Buffer {
  const segment = tcp({
    ...{ sourcePort: VM_PORT, destinationPort: CLIENT_PORT, window: 0 },
    ...{ seq, ack: ack ?? 0, flags: ack === null ? "R" : "RA" },
  });
  const addresses = { source: f.vm, destination: f.client, ttl: 64, v4: { dontFragment: true } };
  return request(f, segment, { ...frame, ...addresses, from: PORTS.uplink_a.mac, to: MAC.deviceA, ...back });
}

/** The segment's number, with the acknowledgement that it has; without one its own end is acknowledged. */
const RESETS: Record<
  string,
  { flags: string; fields?: Parameters<typeof c>[2]; seq: number; ack: number | null }
> = {
  "an ACK": { flags: "A", seq: VM_ISN + 1, ack: null },
  data: { flags: "PA", fields: { payload: Buffer.alloc(1000, 7) }, seq: VM_ISN + 1, ack: null },
  "an odd number of bytes": {
    flags: "PA",
    fields: { payload: Buffer.alloc(333, 7), ack: 0xffff_ffff },
    seq: 0xffff_ffff,
    ack: null,
  },
  "a FIN": { flags: "FA", seq: VM_ISN + 1, ack: null },
  options: { flags: "A", fields: { options: Buffer.alloc(40, 1) }, seq: VM_ISN + 1, ack: null },
  "no ACK": { flags: "P", fields: { payload: Buffer.from("abc") }, seq: 0, ack: CLIENT_ISN + 1 + 3 },
  "a FIN and no ACK": { flags: "F", seq: 0, ack: CLIENT_ISN + 2 },
  "no flag at all, at the end of the numbers": {
    flags: "",
    fields: { seq: 0xffff_fffe, payload: Buffer.alloc(10) },
    seq: 0,
    ack: 8,
  },
};

const STACKS: Record<string, Tag[]> = {
  "one tag": [{ vid: 10, priority: 5 }],
  "two tags": [{ proto: 0x88a8, vid: 100 }, { vid: 10 }],
};

const isReset = (packet: Buffer, out: Buffer, more: Partial<Step> = {}): Step =>
  passed(packet, "vm_reset", { out, ...more });

const reset: Row[] = [
  ...Object.entries(RESETS).map(
    ([what, { flags, fields, seq, ack }]): Row => ({
      description: `reset: ${what} is answered as the VM's host would`,
      make: (f) =>
        tcpCase(
          f,
          [
            ...opening(f),
            isReset(h(f, flags, fields), resetOf(f, seq, ack), {
              before: down(VM1),
              flow: { vm: VM1, lastHop: A },
              check: (world, run) => {
                const { ip, transport } = decodeFrame(run.out);
                expect([ip!.headerChecksumOk, transport!.checksumOk]).toEqual([true, true]);
                expectCounts(servicesOf(world).counted(), { flows: 1, reset: 1 });
                expectCounts(servicesOf(world).vmStats(VM1), { request_packets: 2 });
              },
            }),
          ],
          serve(f, { onVmDown: "RESET" }),
        ),
    }),
  ),
  {
    description: "reset: by the interface that it came by, to whoever sent it",
    make: (f) =>
      tcpCase(
        f,
        [
          ...opening(f),
          isReset(
            h(f, "A", { frame: TO_HOST_B }),
            resetOf(f, VM_ISN + 1, null, {}, { from: PORTS.uplink_b.mac, to: MAC.deviceB }),
            {
              at: "uplink_b",
              before: down(VM1),
              flow: { lastHop: B },
            },
          ),
          // The frame was for the VM's MAC.
          isReset(c(f, "A"), resetOf(f, VM_ISN + 1, null, {}, { from: MAC.vm1 })),
          isReset(h(f, "A", { frame: { trailer: 6 } }), resetOf(f, VM_ISN + 1, null)),
        ],
        serve(f, { onVmDown: "RESET" }),
      ),
  },
  ...Object.entries(STACKS).map(
    ([what, tags]): Row => ({
      description: `reset: ${what} of the frame is kept`,
      programs: ["learn_tc"],
      make: (f) => {
        const frame = { tags };
        return tcpCase(
          f,
          [
            handed(h(f, "S", { frame }), "learn", TO_VM1, { out: withDestination(h(f, "S"), MAC.vm1) }),
            isReset(h(f, "A", { frame }), resetOf(f, VM_ISN + 1, null, frame), { before: down(VM1) }),
          ],
          serve(f, { onVmDown: "RESET" }),
        );
      },
    }),
  ),
  {
    description: "reset: what is no TCP, and a new connection, gets another VM",
    make: (f) => ({
      tuple: udpTuple(f),
      given: serve(f, { onVmDown: "RESET", cells: [VM1, VM1, VM1, VM1, VM2] }),
      steps: [
        handed(cu(f, TO_HOST), "learn", TO_VM1),
        handed(cs(f, "init", TO_HOST), "learn", TO_VM1, { tuple: sctpTuple(f) }),
        handed(ce(f, "request", TO_HOST), "learn", TO_VM1, { tuple: pingTuple(f) }),
        handed(h(f, "S"), "learn", TO_VM1, { tuple: talk.tcpTuple(f) }),
        handed(cu(f, TO_HOST), "deliver", TO_VM2, { before: down(VM1), flow: { vm: VM2 } }),
        handed(cs(f, "cookieEcho", TO_HOST), "deliver", TO_VM2, { tuple: sctpTuple(f) }),
        handed(ce(f, "request", TO_HOST), "deliver", TO_VM2, { tuple: pingTuple(f) }),
        handed(h(f, "S"), "deliver", TO_VM2, {
          tuple: talk.tcpTuple(f),
          flow: { state: "syn", vm: VM2 },
          check: (world) => expectCounts(servicesOf(world).stats(), { rebalanced: 4, reset: 0 }),
        }),
      ],
    }),
  },
  {
    description:
      "reset: what cannot be answered is dropped, and counted as that: an RST, an error, a fragment, options",
    make: (f) => {
      const part = (offset: number, more: boolean): FrameOptions => ({
        v4: { id: 7, fragmentOffset: offset, moreFragments: more },
        v6: { extensions: [fragmentHeader(7, offset, more)] },
      });
      const long: FrameOptions = { v4: { options: Buffer.alloc(4, 1) }, v6: { extensions: [hopByHop()] } };
      const held = (packet: Buffer, more: Partial<Step> = {}) => passed(packet, "vm_held", more);
      return tcpCase(
        f,
        [
          ...opening(f),
          held(h(f, "R"), { before: down(VM1) }),
          held(h(f, "RA")),
          held(request(f, icmpError(f.version, "unreachable", ipOf(v(f, "PA"))), TO_HOST)),
          held(h(f, "PA", { frame: long })),
          held(h(f, "PA", { frame: part(0, true), payload: Buffer.alloc(12) }), {
            check: (world) => expectCounts(servicesOf(world).stats(), { held: 5, reset: 0 }),
          }),
        ],
        serve(f, { onVmDown: "RESET" }),
      );
    },
  },
  {
    description: "reset: a new SYN of a client that was reset gets a VM that is up",
    make: (f) =>
      tcpCase(
        f,
        [
          ...opening(f),
          isReset(h(f, "PA"), resetOf(f, VM_ISN + 1, null), { before: down(VM1) }),
          handed(h(f, "S", { seq: 9000 }), "restart", TO_VM2, { flow: { vm: VM2, state: "syn" } }),
        ],
        serve(f, { onVmDown: "RESET" }),
      ),
  },
  {
    description: "reset: without a link layer it leaves as it came",
    programs: ["learn_tc"],
    make: (f) => {
      const client = f.version === 4 ? "8.0.100.10" : "2001:db8:86dd::10";
      const bare = ipOf(c(f, "A", { frame: { source: client } }));
      const out = ipOf(resetOf(f, VM_ISN + 1, null, {}, { destination: client }));
      return {
        tuple: { ...talk.tcpTuple(f), remote: client },
        given: (world) => {
          serve(f, { onVmDown: "RESET" })(world);
          world.changeInterface("uplink_a", { flags: INTERFACE_FLAG.NO_LINK_LAYER });
          const last_hop = world.putLastHop(5, { port: "uplink_a", mac: MAC.zero, kind: "ip" });
          world.putFlow({ ...talk.tcpTuple(f), remote: client }, { last_hop, state: 4, vm: VM1, flags: 32 });
          down(VM1)(world);
        },
        steps: [
          isReset(bare, out, { bare: true }),
          // What IPsec protected gets no answer in the clear, whether or not it has an interface of its own.
          ...[7, 0].map(
            (id): Step =>
              passed(bare, "vm_held", {
                bare: true,
                options: { cb: [XFRM_MARK, id] },
                before: (world) =>
                  world.changeInterface("uplink_a", {
                    flags: INTERFACE_FLAG.NO_LINK_LAYER | INTERFACE_FLAG.XFRM_ID,
                  }),
              }),
          ),
        ],
      };
    },
  },
];

/** What a sender writes who leaves the checksum to its device. */
function unfinished(f: Family, frame: Buffer): Buffer {
  const copy = Buffer.from(frame);
  const segment = ipOf(copy).subarray(f.version === 4 ? 20 : 40);
  segment.writeUInt16BE(onesSum(pseudoHeader(ipBytes(f.client), ipBytes(f.vm), 6, segment.length)), 16);
  return copy;
}

describe.each(Object.entries(FAMILIES))("a checksum that somebody else finishes, %s", (_, f) => {
  const data = h(f, "PA", { payload: Buffer.alloc(3000, 7) });
  const answer = resetOf(f, VM_ISN + 1, null);

  function run(
    program: UplinkProgram,
    frame: Buffer,
    options: RunOptions = {},
    hook: number = HOOK.NONE,
  ): Buffer {
    world.reset();
    world.changeInterface("uplink_a", { hook });
    serve(f, { onVmDown: "RESET" })(world);
    down(VM1)(world);
    const last_hop = world.putLastHop(5, A);
    world.putFlow(talk.tcpTuple(f), {
      last_hop,
      state: FLOW_STATE.ESTABLISHED,
      vm: VM1,
      flags: FLOW_FLAG.SERVICE,
    });
    return world.run(program, IFINDEX.uplink_a, frame, options).out;
  }

  test("under TC the reset's is unfinished, too", () => {
    expect(run("learn_tc", unfinished(f, data))).toEqual(unfinished(f, answer));
    expect(run("learn_tc", data)).toEqual(answer);
  });

  test("under TC a large frame is of that kind, and the reset is not segmented", () => {
    expect(run("learn_tc", data, { gsoSize: 1448, gsoSegments: 3 })).toEqual(unfinished(f, answer));
  });

  test("native XDP knows no such thing: the reset's is whole", () => {
    expect(run("learn_xdp", unfinished(f, data), {}, HOOK.XDP_NATIVE)).toEqual(answer);
  });

  test("generic XDP leaves it to whoever it was left to", () => {
    const generic = (frame: Buffer) => run("learn_xdp", frame, {}, HOOK.XDP_GENERIC);
    expect(generic(unfinished(f, data))).toEqual(unfinished(f, answer));
    expect(generic(data)).toEqual(answer);
  });
});

describe("reset", () => testRows(() => world, reset));
