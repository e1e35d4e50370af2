// SPDX-License-Identifier: Apache-2.0
// What requests for a service come in: tags, labels, no link layer, fragments, ICMP errors; and from which hook a VM's
// tap can be reached.

import { describe, expect, test } from "vitest";
import { HOOK, INTERFACE_FLAG, POLICY, VM_FLAG } from "../../src/abi/layout.gen.ts";
import { macBytes } from "./support/bytes.ts";
import { IFINDEX, PORTS } from "./support/devices.ts";
import { useWorld, world } from "./support/fixture.ts";
import {
  destinationOptions,
  ETH_P,
  ethernet,
  fragmentHeader,
  hopByHop,
  icmpError,
  ipOf,
  raw,
  type Tag,
  udp,
} from "./support/packet.ts";
import { type Row, type Step, testRows, withDestination } from "./support/rows.ts";
import { FAMILIES, type Family, type FrameOptions, MAC, request } from "./support/scene.ts";
import { expectCounts, h, handed, passed, replied, tcpCase } from "./support/serviceSteps.ts";
import { serve, servicesOf, TO_HOST, TO_HOST_B, TO_VM1, TO_VM2 } from "./support/services.ts";
import * as talk from "./support/talk.ts";
import { A, c, cs, cu, VM1, VM2, v } from "./support/talk.ts";
import type { LastHopSpec, World } from "./support/world.ts";

useWorld();

const { tcpTuple, udpTuple, sctpTuple } = talk;

// ---- tags, labels -----------------------------------------------------------------------------------

const STACKS: Record<string, Tag[]> = {
  "one tag": [{ vid: 10 }],
  "a priority tag": [{ vid: 0, priority: 5 }],
  "two tags": [
    { proto: ETH_P.qinq, vid: 100 },
    { vid: 10, priority: 3 },
  ],
};

const learnedTags = (tags: readonly Tag[]) =>
  tags.filter(({ vid }) => vid !== 0).map(({ proto, vid }) => ({ proto, vid }));

const tagged: Row[] = Object.entries(STACKS).flatMap(([what, tags]): Row[] => {
  const frame = { tags };
  const lastHop: LastHopSpec = learnedTags(tags).length > 0 ? { ...A, tags: learnedTags(tags) as Tag[] } : A;
  const out = (f: Family, flags: string, seq = 1000) =>
    withDestination(h(f, flags, { seq: seq + (flags === "S" ? 0 : 1) }), MAC.vm1);
  return [
    {
      description: `${what}: the VM gets its frames without, and its replies have them again`,
      programs: ["learn_tc"],
      make: (f) =>
        tcpCase(f, [
          handed(h(f, "S", { frame }), "learn", TO_VM1, { out: out(f, "S"), flow: { vm: VM1, lastHop } }),
          handed(h(f, "S", { frame }), "deliver", TO_VM1, { out: out(f, "S") }),
          handed(h(f, "PA", { frame }), "deliver", TO_VM1, { out: out(f, "PA") }),
        ]),
    },
    {
      description: `${what}: XDP cannot take them off, and passes the frame on`,
      programs: ["learn_xdp"],
      make: (f) =>
        tcpCase(f, [
          passed(h(f, "S", { frame }), "deliver_hook", { flow: { vm: VM1, lastHop, flags: ["SERVICE"] } }),
          passed(h(f, "PA", { frame }), "deliver_hook", {
            check: (world) => expectCounts(servicesOf(world).vmStats(VM1), { flows: 1, request_packets: 0 }),
          }),
        ]),
    },
  ];
});

const labelled: Row[] = [
  {
    description: "labels: neither hook takes them off",
    make: (f) => {
      const frame = { labels: [{ label: 100 }, { label: 200 }] };
      return tcpCase(f, [
        passed(h(f, "S", { frame }), "unknown_labels", { flow: null }),
        passed(h(f, "S", { frame }), "deliver_hook", {
          before: (world) => world.putLabelStack([100, 200], 17),
          flow: { vm: VM1, lastHop: { ...A, kind: "stack", mark: 17, labels: [100, 200] } },
        }),
        passed(h(f, "PA", { frame }), "deliver_hook", {
          check: (world) => expectCounts(servicesOf(world).vmStats(VM1), { request_packets: 0 }),
        }),
      ]);
    },
  },
];

// ---- hooks ------------------------------------------------------------------------------------------

const inHook = (hook: keyof typeof HOOK) => (world: World) =>
  world.changeInterface("uplink_a", { hook: HOOK[hook] });

const hooks: Row[] = [
  {
    description: "native XDP reaches only a tap that takes frames from it, generic XDP and TC reach all",
    make: (f) =>
      tcpCase(
        f,
        [
          handed(h(f, "S"), "learn", TO_VM1, { before: inHook("XDP_GENERIC") }),
          handed(h(f, "S"), "deliver", TO_VM1, {
            before: (world) => {
              inHook("XDP_NATIVE")(world);
              servicesOf(world).changeVm(VM1, { flags: VM_FLAG.XDP });
            },
          }),
        ],
        serve(f, { vm: { flags: 0 } }),
      ),
  },
  {
    description: "what native XDP cannot hand over passes, and is not counted as handed over",
    programs: ["learn_xdp"],
    make: (f) =>
      tcpCase(
        f,
        [
          passed(h(f, "S"), "deliver_hook", {
            before: inHook("XDP_NATIVE"),
            flow: { state: "syn", vm: VM1, flags: ["SERVICE"], lastHop: A },
          }),
          replied(v(f, "SA")),
          passed(h(f, "A"), "deliver_hook", { flow: { tier: "established" } }),
          passed(h(f, "PA"), "deliver_hook", {
            check: (world) =>
              expectCounts(servicesOf(world).vmStats(VM1), {
                flows: 1,
                request_packets: 0,
                request_bytes: 0,
              }),
          }),
        ],
        serve(f, { vm: { flags: 0 } }),
      ),
  },
  {
    description: "what was learned beneath and could not be handed over from there is handed over on top",
    programs: ["learn_xdp"],
    make: (f) => {
      const onTop = (packet: Buffer, reason: "deliver", to = TO_VM1, more: Partial<Step> = {}) =>
        handed(packet, reason, to, { at: "uplink_b", ...more });
      return tcpCase(
        f,
        [
          passed(h(f, "S"), "deliver_hook", { flow: { vm: VM1, lastHop: A } }),
          onTop(h(f, "S"), "deliver", TO_VM1, { flow: { state: "syn", vm: VM1, lastHop: A } }),
          replied(v(f, "SA")),
          passed(h(f, "A"), "deliver_hook", { flow: { tier: "established" } }),
          onTop(h(f, "A"), "deliver"),
          passed(h(f, "S", { seq: 9000 }), "deliver_hook", { flow: { vm: VM2 } }),
          onTop(h(f, "S", { seq: 9000 }), "deliver", TO_VM2, { flow: { state: "syn", vm: VM2, lastHop: A } }),
        ],
        (world) => {
          serve(f, { vm: { flags: 0 } })(world);
          inHook("XDP_NATIVE")(world);
          world.changeInterface("uplink_b", {
            hook: HOOK.XDP_GENERIC,
            flags: INTERFACE_FLAG.LOWER,
            lower_ifindex: IFINDEX.uplink_a,
            host_mac: macBytes(PORTS.uplink_a.mac),
          });
        },
      );
    },
  },
];

// ---- no link layer ----------------------------------------------------------------------------------

/** Their source address has the EtherType where a test run looks for it, see rows/linkLayer.ts. */
const bareClient = (f: Family) => (f.version === 4 ? "8.0.100.10" : "2001:db8:86dd::10");

const onLink = (f: Family, frame: Buffer): Buffer =>
  ethernet(
    { from: PORTS.tap_1.mac, to: MAC.vm1 },
    { etherType: f.version === 4 ? ETH_P.ip : ETH_P.ipv6, bytes: ipOf(frame) },
  );

const linkLayer: Row[] = [
  {
    description: "without a link layer: an Ethernet header is put in front, as the host's",
    programs: ["learn_tc"],
    make: (f) => {
      const frame = { source: bareClient(f) };
      const TUN: LastHopSpec = { port: "uplink_a", mac: MAC.zero, kind: "ip" };
      const bare = (flags: string, reason: "learn" | "deliver" | "promote", more: Partial<Step> = {}) =>
        handed(ipOf(c(f, flags, { frame })), reason, TO_VM1, {
          bare: true,
          out: onLink(f, c(f, flags, { frame })),
          ...more,
        });
      const answer = { to: PORTS.tap_1.mac, destination: bareClient(f) };
      return {
        tuple: { ...tcpTuple(f), remote: bareClient(f) },
        given: (world) => {
          serve(f)(world);
          world.changeInterface("uplink_a", { flags: INTERFACE_FLAG.NO_LINK_LAYER });
        },
        steps: [
          bare("S", "learn", { flow: { lastHop: TUN, vm: VM1 } }),
          {
            ...replied(v(f, "SA", { frame: answer })),
            to: TUN,
            out: v(f, "SA", { frame: { ...answer, ttl: 63 } }),
          },
          bare("A", "promote"),
          bare("PA", "deliver"),
        ],
      };
    },
  },
  {
    description: "an Ethernet header that IPsec has left in front is written over",
    programs: ["learn_tc"],
    make: (f) =>
      tcpCase(
        f,
        [
          handed(c(f, "S", { frame: { to: MAC.unknown } }), "learn", TO_VM1, {
            bare: true,
            out: onLink(f, c(f, "S")),
          }),
        ],
        (world) => {
          serve(f)(world);
          world.changeInterface("uplink_a", { flags: INTERFACE_FLAG.NO_LINK_LAYER });
        },
      ),
  },
];

// ---- fragments, errors ------------------------------------------------------------------------------

function part(offset: number, more: boolean): FrameOptions {
  return {
    v4: { id: 7, fragmentOffset: offset, moreFragments: more },
    v6: { extensions: [fragmentHeader(7, offset, more)] },
  };
}

const first = (f: Family, more: FrameOptions = {}) =>
  request(
    f,
    udp({
      sourcePort: talk.CLIENT_PORT,
      destinationPort: talk.VM_PORT,
      length: 3000,
      payload: Buffer.alloc(1192),
    }),
    { ...part(0, true), ...TO_HOST, ...more },
  );
const later = (f: Family, more: FrameOptions = {}) =>
  request(f, raw(17, Buffer.alloc(600)), { ...part(1200, false), ...TO_HOST, ...more });

const fragments: Row[] = [
  {
    description: "fragments follow their first one to the VM, whose choice does not hang on them",
    make: (f) => ({
      tuple: udpTuple(f),
      given: serve(f),
      steps: [
        passed(later(f), "fragment", { flow: null }),
        handed(first(f), "learn", TO_VM1, { flow: { vm: VM1 } }),
        handed(later(f), "deliver", TO_VM1),
        handed(first(f), "deliver", TO_VM1),
        // By another way than the first one: it moves nothing.
        handed(later(f, TO_HOST_B), "deliver", TO_VM1, { at: "uplink_b", flow: { lastHop: A } }),
        passed(later(f, { to: MAC.unknown }), "not_for_vm"),
        passed(later(f), "not_request", { before: (world) => world.deleteFlow(udpTuple(f)), flow: null }),
      ],
    }),
  },
  {
    description: "IPv4 options and IPv6 extension headers",
    make: (f) => {
      const frame: FrameOptions = {
        ...TO_HOST,
        v4: { options: Buffer.alloc(40, 1) },
        v6: { extensions: [hopByHop(2), destinationOptions()] },
      };
      return tcpCase(f, [
        handed(h(f, "S", { frame }), "learn", TO_VM1, { flow: { vm: VM1 } }),
        handed(cu(f, frame), "learn", TO_VM2, { tuple: udpTuple(f) }),
        handed(cs(f, "init", frame), "learn", TO_VM1, { tuple: sctpTuple(f) }),
      ]);
    },
  },
];

const error = (
  f: Family,
  quoted: Buffer,
  more: FrameOptions = {},
  kind: "tooBig" | "unreachable" = "tooBig",
) => request(f, icmpError(f.version, kind, ipOf(quoted)), { ...TO_HOST, ...more });

const errors: Row[] = [
  {
    description: "an ICMP error goes to the VM whose packet it quotes, whoever sends it",
    make: (f) =>
      tcpCase(f, [
        handed(h(f, "S"), "learn", TO_VM1),
        handed(error(f, v(f, "SA")), "deliver", TO_VM1, { flow: { tier: "embryonic" } }),
        replied(v(f, "SA")),
        handed(h(f, "A"), "promote", TO_VM1),
        handed(error(f, v(f, "PA")), "deliver", TO_VM1),
        handed(error(f, v(f, "PA"), { source: f.client2 }, "unreachable"), "deliver", TO_VM1),
        handed(error(f, v(f, "PA"), TO_HOST_B), "deliver", TO_VM1, { at: "uplink_b", flow: { lastHop: A } }),
        // Of no flow, and of one that the VM did not send.
        passed(error(f, v(f, "PA", { sourcePort: 81 })), "not_request", {
          tuple: tcpTuple(f, { localPort: 81 }),
        }),
        passed(error(f, c(f, "PA")), "not_request", { tuple: tcpTuple(f) }),
      ]),
  },
];

// ---- MSS --------------------------------------------------------------------------------------------

const mss = (value: number) => Buffer.from([2, 4, value >> 8, value & 255]);

const clamped: Row[] = [
  {
    description: "the MSS of a SYN is lowered if the tap of the VM that is chosen sends replies back",
    make: (f) => {
      const syn = (value: number, seq = 1000) => h(f, "S", { seq, options: mss(value) });
      const lowered = f.version === 4 ? 1360 : 1340;
      const out = (to: LastHopSpec, value: number, seq?: number) => withDestination(syn(value, seq), to.mac);
      return tcpCase(
        f,
        [
          handed(syn(1460), "learn", TO_VM1, { out: out(TO_VM1, 1460) }),
          { at: "tap_1", packet: v(f, "RA"), reason: "observe_change" },
          handed(syn(1460, 7000), "restart", TO_VM2, { out: out(TO_VM2, lowered, 7000), flow: { vm: VM2 } }),
          handed(syn(1460, 7000), "deliver", TO_VM2, { out: out(TO_VM2, lowered, 7000) }),
        ],
        (world) => {
          serve(f)(world);
          world.changeInterface("uplink_a", { mtu: 1400, flags: INTERFACE_FLAG.CLAMP_MSS });
          world.changeInterface("tap_1", { policy: POLICY.OBSERVE });
        },
      );
    },
  },
];

describe("tags and labels", () => testRows(() => world, [...tagged, ...labelled]));
describe("hooks", () => testRows(() => world, hooks));
describe("no link layer", () => testRows(() => world, linkLayer));
describe("fragments and errors", () => testRows(() => world, [...fragments, ...errors]));
describe("MSS", () => testRows(() => world, clamped));

describe.each(Object.entries(FAMILIES))("generic XDP and a frame beyond the MTU of the tap, %s", (_, f) => {
  const data = h(f, "PA", { payload: Buffer.alloc(1200) });

  /** The first frame, which fits, is handed over. */
  function deliverLarge(l3_ifindex: number) {
    world.reset();
    serve(f)(world);
    world.changeInterface("uplink_a", { hook: HOOK.XDP_GENERIC, l3_ifindex });
    world.changeInterface("tap_1", { mtu: data.length - 14 });
    expect(world.run("learn_xdp", IFINDEX.uplink_a, h(f, "S")).verdict).toBe("redirect");
    expect(world.run("learn_xdp", IFINDEX.uplink_a, data).verdict).toBe("redirect");
    world.changeInterface("tap_1", { mtu: data.length - 15 });
    return world.run("learn_xdp", IFINDEX.uplink_a, data);
  }

  test("a bridge takes it, addressed to the VM", () => {
    const run = deliverLarge(IFINDEX.bridge);
    expect(run).toMatchObject({ verdict: "pass", counts: [{ reason: "deliver" }] });
    expect(run.out.toString("hex")).toBe(withDestination(data, MAC.vm1).toString("hex"));
    expectCounts(servicesOf(world).vmStats(VM1), { request_packets: 3 });
  });

  test("without a bridge it passes as it came", () => {
    const run = deliverLarge(IFINDEX.uplink_a);
    expect(run).toMatchObject({ verdict: "pass", counts: [{ reason: "deliver_hook" }] });
    expect(run.out.toString("hex")).toBe(data.toString("hex"));
    expectCounts(servicesOf(world).vmStats(VM1), { request_packets: 2 });
  });
});
