// SPDX-License-Identifier: Apache-2.0
// The way back has an MTU: the MSS of SYN and SYN-ACK is lowered to it, and a reply that does not fit becomes
// the ICMP error that tells the VM.

import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { ReasonName } from "../../src/abi/codec.ts";
import { INTERFACE_FLAG, POLICY, VERDICT } from "../../src/abi/layout.gen.ts";
import { internetChecksum, ipBytes, macBytes, onesSum, pseudoHeader } from "./support/bytes.ts";
import { decodeFrame, describeFrame } from "./support/decode.ts";
import { createDevices, enterPrivateNamespace, IFINDEX, PORTS, type PortName } from "./support/devices.ts";
import {
  destinationOptions,
  fragmentHeader,
  hopByHop,
  icmp,
  icmpError,
  ipOf,
  raw,
  type Tag,
  type Transport,
  udp,
} from "./support/packet.ts";
import { Random } from "./support/random.ts";
import { FAMILIES, type Family, type FrameOptions, MAC, reply } from "./support/scene.ts";
import * as talk from "./support/talk.ts";
import { c, cu, v, vu } from "./support/talk.ts";
import type { RunOptions } from "./support/testRun.ts";
import { type Run, UPLINK_PROGRAMS, type UplinkProgram, World } from "./support/world.ts";

const MTU = 1400;

let world: World;

beforeAll(() => {
  enterPrivateNamespace();
  createDevices();
  world = new World();
});

afterAll(() => world?.close());

/** The way back by uplink A, for every test below. */
beforeEach(() => {
  world.reset();
  setPath({});
});

function setPath({ mtu = MTU, flags = INTERFACE_FLAG.CLAMP_MSS }: { mtu?: number; flags?: number }): void {
  world.changeInterface("uplink_a", { mtu, flags });
}

function runAt(
  port: PortName,
  frame: Buffer,
  program: UplinkProgram = "learn_tc",
  options: RunOptions = {},
): Run & { reason: ReasonName } {
  const run = world.run(PORTS[port].role === "TAP" ? "reply_tc" : program, IFINDEX[port], frame, options);
  const [{ reason, slot, packets, bytes }] = run.counts as [Run["counts"][0]];
  expect(run.counts, describeFrame(frame)).toHaveLength(1);
  expect({ slot, packets, bytes }).toEqual({ slot: PORTS[port].slot, packets: 1, bytes: frame.length });
  return { ...run, reason };
}

function expectFrame(out: Buffer, wanted: Buffer, what?: string): void {
  expect(describeFrame(out), what).toBe(describeFrame(wanted));
  expect(out.toString("hex"), what).toBe(wanted.toString("hex"));
}

const families = Object.entries(FAMILIES);
const headersOf = (f: Family): number => (f.version === 4 ? 40 : 60);
const boundOf = (f: Family, mtu = MTU): number => mtu - headersOf(f);

// ---- MSS ------------------------------------------------------------------------------------------

const NOP = [1];
const END = [0];
const SACK_OK = [4, 2];
const SCALE = [3, 3, 7];
const TIMESTAMP = [8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
const mss = (value: number): number[] => [2, 4, value >> 8, value & 255];
const nops = (count: number): number[] => Array(count).fill(1);

/** Padded with the end of the list to whole words, as a header has to be. */
function options(...parts: number[][]): Buffer {
  const all = parts.flat();
  return Buffer.from([...all, ...Array((4 - (all.length % 4)) % 4).fill(0)]);
}

type List = (value: number) => Buffer;

/** The MSS is found wherever it stands. */
const FOUND: Record<string, List> = {
  alone: (value) => options(mss(value)),
  "as Linux sends it": (value) => options(mss(value), SACK_OK, TIMESTAMP, NOP, SCALE),
  "as Windows sends it": (value) => options(mss(value), NOP, SCALE, NOP, NOP, SACK_OK),
  "after others": (value) => options(SACK_OK, TIMESTAMP, mss(value)),
  "at an odd offset": (value) => options(NOP, mss(value)),
  "at an odd offset, after an option": (value) => options(SCALE, mss(value)),
  "as the last of forty bytes": (value) => options(nops(36), mss(value)),
  "after an unknown option": (value) => options([254, 6, 1, 2, 3, 4], mss(value)),
  "after an option as long as there can be": (value) => options([253, 36, ...nops(34)], mss(value)),
  "before the end of the list": (value) => options(mss(value), END, [2, 4, 255, 255]),
  "before an option that runs over the end": (value) => options(mss(value), [8, 10, 1, 2]),
};

/** Lists without an MSS that one could trust, each at its worst: a large value stands in them. */
const LEFT: Record<string, Buffer> = {
  "no options": Buffer.alloc(0),
  "no MSS": options(SACK_OK, TIMESTAMP),
  "the list ends before it": options(END, nops(3), mss(9000)),
  "too short to be one": options([2, 3, 255, 255]),
  "too long to be one": options([2, 5, 255, 255, 255]),
  "no length": options([2, 0, 255, 255]),
  "length 1": options([2, 1, 255, 255]),
  "an option before it has no length": options([8, 0], mss(9000)),
  "an option before it has length 1": options([8, 1], mss(9000)),
  "an option before it runs over the end": options([8, 255], mss(9000)),
  "an option before it ends with the header": options([8, 8, 1, 2], mss(9000)),
  "its value is beyond the header": Buffer.from([1, 1, 2, 4]),
  "half of its value is beyond the header": Buffer.from([1, 2, 4, 255]),
  "its length is beyond the header": Buffer.from([1, 1, 1, 2]),
  "nothing but padding": Buffer.from(nops(40)),
};

/** A data offset that says more than the packet has is malformed long before. */
const PAYLOAD = Buffer.from([0xff, 0xff, 0xff, 0xff, 2, 4, 0xff, 0xff]);

describe.each(families)("the MSS of a SYN over %s", (_, f) => {
  const bound = boundOf(f);

  describe.each(UPLINK_PROGRAMS)("%s", (program) => {
    /** What comes out in place of these options. */
    function expectOptions(before: Buffer, after: Buffer, more: Parameters<typeof c>[2] = {}): void {
      world.clearFlows();
      const run = runAt("uplink_a", c(f, "S", { options: before, ...more }), program);
      expect(run.reason).toBe("learn");
      expect(run.verdict).toBe("pass");
      expectFrame(run.out, c(f, "S", { options: after, ...more }));
    }

    test.each(Object.entries(FOUND))("%s: lowered if it is larger, and the checksum with it", (__, list) => {
      for (const value of [bound + 1, 1460, 0x8000, 0xffff]) expectOptions(list(value), list(bound));
      for (const value of [0, 1, 87, 88, 536, bound - 1, bound]) expectOptions(list(value), list(value));
    });

    test.each(Object.entries(LEFT))("%s: left alone", (__, list) => {
      expectOptions(list, list);
      expectOptions(list, list, { payload: PAYLOAD });
    });

    test("a SYN with data", () => {
      for (const payload of [Buffer.from("a"), Buffer.alloc(1000, 7)])
        expectOptions(options(mss(1460)), options(mss(bound)), { payload });
    });

    test("of two only the first: the list is broken", () => {
      expectOptions(options(mss(9000), mss(9000)), options(mss(bound), mss(9000)));
    });

    test("found behind tags, IPv4 options and IPv6 extension headers", () => {
      const frames: FrameOptions[] = [
        { tags: [{ vid: 5 }] },
        { tags: [{ vid: 5 }, { vid: 6 }] },
        f.version === 4
          ? { v4: { options: Buffer.from(nops(40)) } }
          : { v6: { extensions: [hopByHop(2), destinationOptions()] } },
      ];
      for (const frame of frames) expectOptions(options(NOP, mss(1460)), options(NOP, mss(bound)), { frame });
    });

    test.each([
      ["not asked for", { flags: 0 }, 1460],
      ["no MTU is known", { mtu: 0 }, 1460],
      ["an MTU that leaves nothing", { mtu: headersOf(f) + 87 }, 1460],
      ["an MTU that leaves the least", { mtu: headersOf(f) + 88 }, 88],
      ["an MTU over the value", { mtu: 9000 }, 1460],
      ["an MTU beyond all packets", { mtu: 0xffffffff }, 1460],
    ] as const)("%s", (__, path, after) => {
      setPath(path);
      expectOptions(options(mss(1460)), options(mss(after)));
    });

    test("of what is learned again, moved or restarted", () => {
      const [before, after] = [options(mss(1460)), options(mss(bound))];
      const send = (reason: ReasonName) => {
        const run = runAt("uplink_a", c(f, "S", { options: before }), program);
        expect(run.reason).toBe(reason);
        expectFrame(run.out, c(f, "S", { options: after }), reason);
      };
      send("learn");
      send("refresh");
      expect(runAt("tap_1", v(f, "SA")).reason).toBe("redirect");
      send("refresh");
      expect(runAt("uplink_a", c(f, "A"), program).reason).toBe("promote");
      expect(runAt("uplink_a", c(f, "A"), program).reason).toBe("refresh");
      expect(runAt("tap_1", v(f, "R")).reason).toBe("redirect");
      send("restart");
    });

    test("nothing but a SYN is looked at", () => {
      const frames = [
        c(f, "A", { options: options(mss(9000)) }),
        c(f, "PA", { options: options(mss(9000)), payload: PAYLOAD }),
        c(f, "FA", { options: options(mss(9000)) }),
        c(f, "R", { options: options(mss(9000)) }),
        cu(f),
      ];
      for (const frame of frames) expectFrame(runAt("uplink_a", frame, program).out, frame);
    });

    test("not of a SYN that is not learned, or is another uplink's", () => {
      const syn = (frame: FrameOptions) => c(f, "S", { options: options(mss(1460)), frame });
      for (const [reason, frame] of [
        ["not_for_vm", { to: MAC.unknown }],
        ["source_mac", { from: MAC.zero }],
        ["source_vm", { from: MAC.vm2 }],
      ] as const) {
        const run = runAt("uplink_a", syn(frame), program);
        expect(run.reason).toBe(reason);
        expectFrame(run.out, syn(frame));
      }
      const run = runAt("uplink_b", syn({ from: MAC.deviceB }), program);
      expect(run.reason).toBe("learn");
      expectFrame(run.out, syn({ from: MAC.deviceB }));
    });

    test("not of the answer to a connection that the VM opened", () => {
      expect(runAt("tap_1", v(f, "S")).reason).toBe("local_origin");
      const answer = c(f, "SA", { options: options(mss(1460)) });
      const run = runAt("uplink_a", answer, program);
      expect(run.reason).toBe("answer");
      expectFrame(run.out, answer);
    });

    test.each([
      ["enforce", POLICY.ENFORCE, true],
      ["observe", POLICY.OBSERVE, false],
      ["off", POLICY.OFF, false],
    ] as const)("for a VM whose tap's policy is %s", (__, policy, changed) => {
      world.changeInterface("tap_1", { policy });
      const routes: [string, FrameOptions][] = [
        ["bridged", {}],
        ["routed to the tap", { to: PORTS.uplink_a.mac, destination: f.routedVm }],
        ["routed to the tap's bridge", { to: PORTS.uplink_a.mac, destination: f.bridgedVm }],
      ];
      for (const [route, frame] of routes) {
        const [before, after] = [mss(1460), mss(changed ? bound : 1460)];
        const run = runAt("uplink_a", c(f, "S", { options: options(before), frame }), program);
        expect(run.reason, route).toBe("learn");
        expectFrame(run.out, c(f, "S", { options: options(after), frame }), route);
      }
    });

    test("not for a VM that is not known yet: its tap may only observe", () => {
      world.forgetVm(MAC.vm1);
      const frame = { to: PORTS.uplink_a.mac, destination: f.bridgedVm };
      const syn = c(f, "S", { options: options(mss(1460)), frame });
      const run = runAt("uplink_a", syn, program);
      expect(run.reason).toBe("learn");
      expectFrame(run.out, syn);
    });

    test("any list of options: what a plain reading of it says", () => {
      const random = new Random(f.version);
      for (let count = 0; count < 3000; count++) {
        const list = randomOptions(random);
        expectOptions(list, clamped(list, bound));
      }
    });
  });

  test("learn_xdp leaves alone what may have an unfinished checksum", () => {
    const fields = { options: options(mss(1460)) };
    const bytes = 24;
    const [source, destination] = [ipBytes(f.client), ipBytes(f.vm)];
    const checksum = onesSum(pseudoHeader(source, destination, 6, bytes));
    const syn = c(f, "S", { ...fields, checksum });
    const run = runAt("uplink_a", syn, "learn_xdp");
    expect(run.reason).toBe("learn");
    expectFrame(run.out, syn);
  });

  test("a wrong checksum stays as wrong as it was", () => {
    for (const program of UPLINK_PROGRAMS) {
      world.clearFlows();
      const right = (value: number) => c(f, "S", { options: options(mss(value)) });
      const at = (frame: Buffer) => frame.length - 24 + 16;
      const wrong = (frame: Buffer) => {
        const copy = Buffer.from(frame);
        const sum = onesSum(Buffer.from([copy[at(copy)]!, copy[at(copy) + 1]!]), Buffer.from([0x12, 0x34]));
        copy.writeUInt16BE(sum, at(copy));
        return copy;
      };
      expectFrame(runAt("uplink_a", wrong(right(1460)), program).out, wrong(right(bound)), program);
    }
  });
});

/** Lists that are mostly made of options, with bytes changed here and there. */
function randomOptions(random: Random): Buffer {
  const parts: number[] = [];
  const bytes = 4 * random.below(11);
  while (parts.length < bytes) {
    parts.push(
      ...random.pick([
        NOP,
        NOP,
        END,
        SACK_OK,
        SCALE,
        TIMESTAMP,
        mss(random.below(65536)),
        mss(1460),
        [5, 10],
      ]),
    );
  }
  const list = Buffer.from(parts.slice(0, bytes));
  for (let times = random.below(4); times > 0 && bytes > 0; times--) {
    list[random.below(bytes)] = random.chance(2) ? random.below(6) : random.below(256);
  }
  return list;
}

/** RFC 9293 3.1, read option by option. */
function clamped(list: Buffer, bound: number): Buffer {
  const result = Buffer.from(list);
  for (let at = 0; at < list.length; ) {
    const kind = list[at]!;
    if (kind === 0) break;
    if (kind === 1) {
      at++;
      continue;
    }
    const length = list[at + 1] ?? 0;
    if (length < 2) break;
    if (kind === 2) {
      if (length === 4 && at + 4 <= list.length && list.readUInt16BE(at + 2) > bound)
        result.writeUInt16BE(bound, at + 2);
      break;
    }
    at += length;
  }
  return result;
}

describe.each(families)("the MSS of a VM's SYN-ACK over %s", (_, f) => {
  const bound = boundOf(f);
  const syn = () => expect(runAt("uplink_a", c(f, "S")).reason).toBe("learn");

  function expectOptions(before: Buffer, after: Buffer, flags = "SA"): void {
    const run = runAt("tap_1", v(f, flags, { options: before }));
    expect(run.reason).toBe("redirect");
    expectFrame(run.out, v(f, flags, { options: after, frame: { to: MAC.deviceA } }));
  }

  test.each(Object.entries(FOUND))("%s: lowered if it is larger", (__, list) => {
    syn();
    for (const value of [bound + 1, 1460, 0xffff]) expectOptions(list(value), list(bound));
    for (const value of [0, 536, bound]) expectOptions(list(value), list(value));
  });

  test.each(Object.entries(LEFT))("%s: left alone", (__, list) => {
    syn();
    expectOptions(list, list);
  });

  test("its own SYN to the client is bound as well (both open at once)", () => {
    syn();
    expectOptions(options(mss(1460)), options(mss(bound)), "S");
  });

  test("routed: with the TTL", () => {
    syn();
    const before = v(f, "SA", { options: options(mss(1460)), frame: { to: PORTS.tap_1.mac, ttl: 64 } });
    const frame = { to: MAC.deviceA, from: PORTS.uplink_a.mac, ttl: 63 };
    expectFrame(runAt("tap_1", before).out, v(f, "SA", { options: options(mss(bound)), frame }));
  });

  test.each([
    ["not asked for", { flags: 0 }],
    ["no MTU is known", { mtu: 0 }],
  ] as const)("%s", (__, path) => {
    setPath(path);
    syn();
    expectOptions(options(mss(1460)), options(mss(1460)));
  });

  test("lowered too where the host's routing sends it", () => {
    setPath({ flags: INTERFACE_FLAG.CLAMP_MSS | INTERFACE_FLAG.VIA_STACK });
    syn();
    const run = runAt("tap_1", v(f, "SA", { options: options(mss(1460)) }));
    expect(run.reason).toBe("stack");
    expectFrame(run.out, v(f, "SA", { options: options(mss(bound)), frame: { to: PORTS.tap_1.mac } }));
  });

  test("observe changes nothing, off neither, nor what passes", () => {
    const answer = v(f, "SA", { options: options(mss(1460)) });
    expectFrame(runAt("tap_1", answer).out, answer);
    syn();
    for (const policy of [POLICY.OBSERVE, POLICY.OFF]) {
      world.changeInterface("tap_1", { policy });
      const run = runAt("tap_1", answer);
      expect(run.verdict).toBe("pass");
      expectFrame(run.out, answer);
    }
  });
});

// ---- too big --------------------------------------------------------------------------------------

/** A datagram of the VM that is this long from the IP header on. */
function datagram(f: Family, bytes: number, frame: FrameOptions = {}): Buffer {
  const headers = vu(f, frame).length - 4 - 14 - 4 * (frame.tags?.length ?? 0);
  const payload = Buffer.alloc(bytes - headers, 0xa5);
  payload.forEach((_, at) => {
    payload[at] = at * 7;
  });
  return reply(f, udp({ sourcePort: talk.VM_PORT, destinationPort: talk.CLIENT_PORT, payload }), {
    ...(f.version === 4 ? { v4: { dontFragment: true, ...frame.v4 } } : {}),
    ...frame,
  });
}

function segment(f: Family, bytes: number, fields: Parameters<typeof v>[2] = {}): Buffer {
  return v(f, "PA", {
    payload: Buffer.alloc(bytes - headersOf(f) - (fields.options?.length ?? 0), 0x5a),
    ...fields,
  });
}

const QUOTE = { 4: 548, 6: 1232 };
const TOO_BIG = { 4: { type: 3, code: 4 }, 6: { type: 2, code: 0 } };
/** What any link carries: an answer never says less. */
const LEAST = { 4: 0, 6: 1280 };

interface Answer {
  mtu?: number;
  source?: string;
  /** The transport checksum of the quoted packet is unfinished: somebody finishes it later. */
  unfinished?: boolean;
}

/** Checks a frame that was turned around, byte for byte. */
function expectAnswer(
  f: Family,
  run: Run & { reason: ReasonName },
  frame: Buffer,
  wanted: Answer = {},
): void {
  expect({ reason: run.reason, verdict: run.verdict }).toEqual({ reason: "too_big", verdict: "redirect" });
  const ethernet = frame.length - ipOf(frame).length;
  const out = Buffer.from(run.out);
  expect(out.subarray(0, 6), "to the VM").toEqual(frame.subarray(6, 12));
  expect(out.subarray(6, 12), "from whom it sent to").toEqual(frame.subarray(0, 6));
  expect(out.subarray(12, ethernet), "in its networks").toEqual(frame.subarray(12, ethernet));
  const quoteAt = ethernet + (f.version === 4 ? 28 : 48);
  const quote = out.subarray(quoteAt);
  expect(quote.toString("hex"), "what it quotes").toBe(
    ipOf(frame).subarray(0, QUOTE[f.version]).toString("hex"),
  );
  if (wanted.unfinished) finish(f, quote);
  const { ip, transport } = decodeFrame(out);
  expect(ip).toMatchObject({
    source: wanted.source ?? f.client,
    destination: f.vm,
    ttl: 64,
    protocol: f.icmp,
    fragment: null,
    headerChecksumOk: true,
  });
  const icmpAt = quoteAt - 8;
  expect({ ...transport?.icmp, checksumOk: transport?.checksumOk }).toMatchObject({
    ...TOO_BIG[f.version],
    checksumOk: true,
  });
  expect(out.readUInt32BE(icmpAt + 4), "the next hop's MTU").toBe(
    Math.max(wanted.mtu ?? MTU, LEAST[f.version]),
  );
  expect(out.length - ethernet).toBe(f.version === 4 ? 576 : 1280);
}

/** As a device does it: over what is there, from the transport header on. */
function finish(f: Family, quote: Buffer): void {
  const at = f.version === 4 ? (quote[0]! & 15) * 4 : 40;
  const field = at + (quote[f.version === 4 ? 9 : 6] === 6 ? 16 : 6);
  quote.writeUInt16BE(internetChecksum(quote.subarray(at)) || 0xffff, field);
}

/** The sum that a sender writes who leaves the checksum to the device. */
function unfinished(f: Family, frame: Buffer): Buffer {
  const copy = Buffer.from(frame);
  const ip = copy.subarray(copy.length - ipOf(copy).length);
  const at = f.version === 4 ? (ip[0]! & 15) * 4 : 40;
  const protocol = ip[f.version === 4 ? 9 : 6]!;
  const pseudo = pseudoHeader(ipBytes(f.vm), ipBytes(f.client), protocol, ip.length - at);
  ip.writeUInt16BE(onesSum(pseudo), at + (protocol === 6 ? 16 : 6));
  return copy;
}

describe.each(families)("a reply over %s that does not fit", (_, f) => {
  const other = f.version === 4 ? "192.0.2.77" : "2001:db8:77::1";

  beforeEach(() => {
    for (const frame of [c(f, "S"), cu(f)]) expect(runAt("uplink_a", frame).reason).toBe("learn");
  });

  const expectSent = (run: Run & { reason: ReasonName }, frame: Buffer) => {
    expect(run.reason).toBe("redirect");
    expectFrame(run.out, Buffer.concat([macBytes(MAC.deviceA), frame.subarray(6)]));
  };

  test.each([
    ["UDP", datagram],
    ["TCP", segment],
  ] as const)("%s: answered above the MTU, sent at it and below", (__, build) => {
    for (const bytes of [600, MTU - 1, MTU]) expectSent(runAt("tap_1", build(f, bytes)), build(f, bytes));
    for (const bytes of [MTU + 1, MTU + 2, MTU + 3, 1500, 3000])
      expectAnswer(f, runAt("tap_1", build(f, bytes)), build(f, bytes));
  });

  test("an unfinished checksum: the answer is right once somebody has finished it", () => {
    for (const whole of [segment(f, 1500), datagram(f, 1500)]) {
      const frame = unfinished(f, whole);
      expectAnswer(f, runAt("tap_1", frame), frame, { unfinished: true });
    }
  });

  test("a large frame: what counts is one segment", () => {
    const size = MTU - headersOf(f) - 12;
    const frame = (bytes: number) => segment(f, bytes, { options: options(NOP, NOP, TIMESTAMP) });
    for (const bytes of [MTU + 1, 3000]) {
      expectSent(runAt("tap_1", frame(bytes), "learn_tc", { gsoSize: size, gsoSegments: 2 }), frame(bytes));
      const run = runAt("tap_1", frame(bytes), "learn_tc", { gsoSize: size + 1, gsoSegments: 2 });
      expectAnswer(f, run, frame(bytes), { unfinished: true });
    }
    const udpSize = MTU - (headersOf(f) - 20) - 8;
    expectSent(
      runAt("tap_1", datagram(f, 3000), "learn_tc", { gsoSize: udpSize, gsoSegments: 3 }),
      datagram(f, 3000),
    );
    const run = runAt("tap_1", datagram(f, 3000), "learn_tc", { gsoSize: udpSize + 1, gsoSegments: 3 });
    expectAnswer(f, run, datagram(f, 3000), { unfinished: true });
  });

  test("a frame that is to be segmented, but is one segment", () => {
    const frame = segment(f, MTU);
    expectSent(runAt("tap_1", frame, "learn_tc", { gsoSize: 8000, gsoSegments: 1 }), frame);
  });

  test("the answer comes from the interface's own address where it has one", () => {
    world.changeInterface(
      "tap_1",
      f.version === 4 ? { icmp_source4: ipBytes(other).readUInt32BE() } : { icmp_source6: ipBytes(other) },
    );
    expectAnswer(f, runAt("tap_1", segment(f, 1500)), segment(f, 1500), { source: other });
  });

  test("tags are kept", () => {
    const stacks: Tag[][] = [
      [{ vid: 5 }],
      [
        { proto: 0x88a8, vid: 5 },
        { vid: 6, priority: 3 },
      ],
    ];
    for (const tags of stacks) {
      for (const bytes of [MTU, MTU + 1]) {
        const frame = segment(f, bytes, { frame: { tags } });
        const run = runAt("tap_1", frame);
        if (bytes > MTU) expectAnswer(f, run, frame);
        else expect(run.reason).toBe("redirect");
      }
    }
  });

  test("IPv4 options and IPv6 extension headers count, and are quoted", () => {
    const frame: FrameOptions =
      f.version === 4
        ? { v4: { options: Buffer.from(nops(40)) } }
        : { v6: { extensions: [hopByHop(3), destinationOptions(1)] } };
    const build = (bytes: number) => datagram(f, bytes, frame);
    expectSent(runAt("tap_1", build(MTU)), build(MTU));
    expectAnswer(f, runAt("tap_1", build(MTU + 1)), build(MTU + 1));
  });

  test("a routed host's as well; what may go no further is not looked at", () => {
    const frame = (ttl: number) => segment(f, 1500, { frame: { to: PORTS.tap_1.mac, ttl } });
    expectAnswer(f, runAt("tap_1", frame(64)), frame(64));
    expect(runAt("tap_1", frame(1))).toMatchObject({ reason: "ttl", verdict: "pass", out: frame(1) });
  });

  test("an echo reply", () => {
    expect(runAt("uplink_a", talk.ce(f, "request")).reason).toBe("learn");
    const rest = Buffer.alloc(4);
    rest.writeUInt16BE(talk.ECHO_ID, 0);
    const build = (bytes: number) =>
      reply(
        f,
        icmp({
          version: f.version,
          type: f.version === 4 ? 0 : 129,
          rest,
          body: Buffer.alloc(bytes - headersOf(f) + 12, 3),
        }),
      );
    expectSent(runAt("tap_1", build(MTU)), build(MTU));
    expectAnswer(f, runAt("tap_1", build(MTU + 1)), build(MTU + 1));
  });

  test("an error is never answered", () => {
    const quoted = ipOf(cu(f, {}));
    const body = Buffer.concat([quoted, Buffer.alloc(1500)]);
    const frame = reply(f, icmpError(f.version, "unreachable", body, 1500));
    expectSent(runAt("tap_1", frame), frame);
  });

  test("the first of its fragments is answered, a later one never", () => {
    const fragment = (offset: number, transport: Transport): Buffer =>
      reply(
        f,
        transport,
        f.version === 4
          ? { v4: { id: 7, fragmentOffset: offset, moreFragments: true } }
          : { v6: { extensions: [fragmentHeader(7, offset, true)] } },
      );
    const payload = Buffer.alloc(1448 - 8, 9);
    const ports = { sourcePort: talk.VM_PORT, destinationPort: talk.CLIENT_PORT };
    const first = fragment(0, udp({ ...ports, payload, length: 2000 }));
    expectAnswer(f, runAt("tap_1", first), first);
    const later = fragment(1448, raw(17, Buffer.alloc(1448, 9)));
    expectSent(runAt("tap_1", later), later);
  });

  test("whether or not it may be cut up", () => {
    if (f.version === 6) return expectAnswer(f, runAt("tap_1", datagram(f, 1500)), datagram(f, 1500));
    const frame = datagram(f, 1500, { v4: { dontFragment: false } });
    expectAnswer(f, runAt("tap_1", frame), frame);
  });

  test("an MTU that is not known bounds nothing", () => {
    setPath({ mtu: 0 });
    expectSent(runAt("tap_1", segment(f, 3000)), segment(f, 3000));
  });

  test("an MTU below what every host and link takes", () => {
    const least = f.version === 4 ? 576 : 1280;
    for (const mtu of [1, 100, 575, least - 1]) {
      setPath({ mtu });
      expectSent(runAt("tap_1", segment(f, least)), segment(f, least));
      expectAnswer(f, runAt("tap_1", segment(f, least + 1)), segment(f, least + 1), { mtu });
    }
  });

  test("an MTU beyond what IPv4 can say", () => {
    setPath({ mtu: 70_000 });
    expectSent(runAt("tap_1", segment(f, 3000)), segment(f, 3000));
  });

  test("observe and off change nothing", () => {
    for (const [policy, reason] of [
      [POLICY.OBSERVE, "observe_change"],
      [POLICY.OFF, "off"],
    ] as const) {
      world.changeInterface("tap_1", { policy });
      const run = runAt("tap_1", segment(f, 1500));
      expect(run).toMatchObject({ reason, verdict: "pass" });
      expectFrame(run.out, segment(f, 1500));
    }
  });

  test("what the host's routing sends is measured there", () => {
    world.reset();
    setPath({ flags: INTERFACE_FLAG.VIA_STACK });
    expect(runAt("uplink_a", c(f, "S")).reason).toBe("learn");
    expect(runAt("tap_1", segment(f, 1500)).reason).toBe("stack");
  });

  test("it is not counted as sent, and its trace says what became of it", () => {
    const { index } = world.lastHop(world.flow(talk.tcpTuple(f))!.flow.last_hop);
    world.trace(talk.tcpTuple(f));
    const run = runAt("tap_1", segment(f, 1500));
    expectAnswer(f, run, segment(f, 1500));
    expect(world.stats(index).reply_packets).toBe(0);
    expect(run.events).toMatchObject([
      {
        verdict: VERDICT.ANSWER,
        ifindex: IFINDEX.tap_1,
        out_ifindex: IFINDEX.tap_1,
        out_mac: macBytes(MAC.vm1),
        length_bytes: segment(f, 1500).length,
      },
    ]);
  });

  test("the way back of another uplink is another's", () => {
    expect(runAt("uplink_b", c(f, "PA", { frame: { from: MAC.deviceB } })).reason).toBe("relearn");
    const run = runAt("tap_1", segment(f, 1500));
    expect(run.reason).toBe("redirect");
  });

  test("whatever is in its headers: sent, or answered with right checksums", () => {
    const random = new Random(17 + f.version);
    let answered = 0;
    for (let count = 0; count < 2000; count++) {
      const frame = datagram(f, MTU - 20 + random.below(60));
      // Not the addresses and ports, or it would be nobody's.
      for (let times = 1 + random.below(3); times > 0; times--) {
        const at = 14 + random.below(f.version === 4 ? 12 : 8);
        frame[at] = random.below(256);
      }
      const run = runAt("tap_1", frame);
      if (run.reason === "redirect") expectSent(run, frame);
      else if (run.reason === "too_big") {
        answered++;
        const out = decodeFrame(run.out);
        expect(out.ip).toMatchObject({ headerChecksumOk: true, protocol: f.icmp, destination: f.vm });
        expect(out.transport?.checksumOk, describeFrame(frame)).toBe(true);
      } else expectFrame(run.out, frame, run.reason);
    }
    expect(answered).toBeGreaterThan(100);
  });
});
