// SPDX-License-Identifier: Apache-2.0
// Mutated packets against services, VMs and pools that change all the time. Whatever comes in: no program fails, each
// packet is counted once, what is handed on is the frame that came, to a VM of the table, what is answered goes back
// to whoever sent it with right checksums, and nothing is dropped but what a service has dropped.
//
// A failure prints the seed: LASTHOP_FUZZ_SEED=n repeats the run, LASTHOP_FUZZ_PACKETS=n makes it longer.

import { expect } from "vitest";
import { decode, type ReasonName, sizeOf } from "../../src/abi/codec.ts";
import {
  FLOW_FLAG,
  HOOK,
  INTERFACE_FLAG,
  ON_VM_DOWN,
  ROLE,
  SERVICE_FLAG,
  SERVICE_POLICY,
  VERDICT,
  VM_STATE,
} from "../../src/abi/layout.gen.ts";
import { ipBytes, macBytes, macText } from "./support/bytes.ts";
import { decodeFrame } from "./support/decode.ts";
import { IFINDEX, PORTS, type PortName } from "./support/devices.ts";
import { useWorld, world } from "./support/fixture.ts";
import { answer, answerUdp, sent, sentUdp } from "./support/forwarding.ts";
import { testFuzzer } from "./support/fuzz.ts";
import { mutate } from "./support/mutate.ts";
import { arp, ethernet, fragmentHeader, icmp, icmpError, ipOf, ipv6, raw, udp } from "./support/packet.ts";
import { Random } from "./support/random.ts";
import { withDestination } from "./support/rows.ts";
import { FAMILIES, type Family, MAC, request } from "./support/scene.ts";
import { h } from "./support/serviceSteps.ts";
import {
  answering,
  POOL,
  SERVICE,
  type Services,
  serve,
  TO_HOST,
  TO_HOST_B,
  TO_VM1,
  TO_VM2,
} from "./support/services.ts";
import * as talk from "./support/talk.ts";
import { byVm2, c, ce, cs, cu, VM1, VM2, v, ve, vs, vu } from "./support/talk.ts";
import type { Run, UplinkProgram } from "./support/world.ts";

const CHECK_EVERY = 1000;
const CHANGE_EVERY = 20;
/** Longer than any frame here and its rest: what a test run of TC refuses. */
const TC_LEAST = 54;

let services: Services;

useWorld();

type Packet = [PortName, Buffer];

const part = (offset: number, more: boolean) => ({
  v4: { id: 7, fragmentOffset: offset, moreFragments: more },
  v6: { extensions: [fragmentHeader(7, offset, more)] },
});

/** Whole conversations, so that flows come to life. */
function conversations(f: Family): Packet[][] {
  const up = (...packets: Buffer[]): Packet[] => packets.map((packet) => ["uplink_a", packet]);
  const ports = { sourcePort: talk.CLIENT_PORT, destinationPort: talk.VM_PORT };
  const tcpTalk = (frame: object): Packet[] => [
    ["uplink_a", c(f, "S", { frame })],
    ["tap_1", v(f, "SA")],
    ["tap_2", v(f, "SA", { frame: byVm2 })],
    ["uplink_a", c(f, "A", { frame })],
    ["uplink_a", c(f, "PA", { frame, payload: Buffer.alloc(50, 7) })],
    ["tap_1", v(f, "PA")],
    ["tap_2", v(f, "PA", { frame: byVm2 })],
  ];
  return [
    ...[
      TO_HOST,
      { to: MAC.vm1 },
      { ...TO_HOST, tags: [{ vid: 10 }] },
      { ...TO_HOST, labels: [{ label: 100 }] },
    ].map(tcpTalk),
    [
      ...tcpTalk(TO_HOST),
      ["uplink_b", h(f, "PA", { frame: TO_HOST_B })],
      ["tap_1", v(f, "FA")],
      ...up(h(f, "FA")),
    ],
    [...up(cu(f, TO_HOST)), ["tap_1", vu(f)], ["tap_2", vu(f, byVm2)], ...up(cu(f, TO_HOST), cu(f, TO_HOST))],
    [...up(cs(f, "init", TO_HOST)), ["tap_1", vs(f, "initAck")], ...up(cs(f, "cookieEcho", TO_HOST))],
    [...up(ce(f, "request", TO_HOST)), ["tap_1", ve(f, "reply")], ...up(ce(f, "request", TO_HOST))],
    up(
      request(f, udp({ ...ports, length: 3000, payload: Buffer.alloc(1192) }), {
        ...part(0, true),
        ...TO_HOST,
      }),
      request(f, raw(17, Buffer.alloc(60)), { ...part(1200, false), ...TO_HOST }),
    ),
    [
      ...tcpTalk(TO_HOST).slice(0, 4),
      ...up(request(f, icmpError(f.version, "timeExceeded", ipOf(v(f, "PA"))), TO_HOST)),
    ],
    [
      ["tap_1", sent(f, "S")],
      ["uplink_b", answer(f, "SA")],
      ["tap_1", sent(f, "A")],
      ["uplink_b", answer(f, "PA")],
    ],
    [
      ["tap_1", sentUdp(f)],
      ["uplink_b", answerUdp(f)],
      ["tap_1", sentUdp(f)],
      ["uplink_b", answerUdp(f)],
    ],
    up(question(f), question(f), question(f)),
  ];
}

function question(f: Family): Buffer {
  const asker = { mac: MAC.deviceA, ip: f.client };
  if (f.version === 4) {
    return ethernet(
      { from: MAC.deviceA, to: MAC.broadcast },
      arp("request", asker, { mac: MAC.zero, ip: f.vm }),
    );
  }
  const body = Buffer.concat([ipBytes(f.vm), Buffer.from([1, 1]), macBytes(MAC.deviceA)]);
  const message = icmp({ version: 6, type: 135, body });
  const network = ipv6({ source: f.client, destination: "ff02::1:ff00:5", hopLimit: 255 }, message);
  return ethernet({ from: MAC.deviceA, to: "33:33:ff:00:00:05" }, network);
}

class Traffic {
  readonly #random: Random;
  readonly #conversations = Object.values(FAMILIES).flatMap(conversations);
  readonly #all = this.#conversations.flat();
  #rest: Packet[] = [];

  constructor(random: Random) {
    this.#random = random;
  }

  next(): Packet {
    const random = this.#random;
    if (random.chance(4)) {
      const [port, frame] = random.pick(this.#all);
      return [port, this.#damage(frame, random.below(6))];
    }
    while (this.#rest.length === 0) this.#rest = [...random.pick(this.#conversations)];
    const [port, frame] = this.#rest.shift()!;
    return [port, this.#damage(frame, random.chance(5) ? 1 : 0)];
  }

  #damage(frame: Buffer, times: number): Buffer {
    return mutate(frame, times, this.#random, () => this.#random.pick(this.#all)[1]);
  }
}

/** Uplinks whose packets begin with their IP header at the moment. */
const bare = new Set<PortName>();

function become(port: PortName, random: Random): void {
  const flags = random.pick([
    ...[0, 0, 0, INTERFACE_FLAG.PORT_BLOCKED, INTERFACE_FLAG.NO_LINK_LAYER, INTERFACE_FLAG.LOWER],
    ...[INTERFACE_FLAG.RELEARN_NEVER, INTERFACE_FLAG.LEARN_DEVICES, INTERFACE_FLAG.PICKUP_NO],
  ]);
  const hook = random.pick([HOOK.NONE, HOOK.XDP_NATIVE, HOOK.XDP_GENERIC]);
  world.changeInterface(port, { flags, hook, lower_ifindex: IFINDEX.uplink_a });
  if (flags & INTERFACE_FLAG.NO_LINK_LAYER) bare.add(port);
  else bare.delete(port);
}

const CHANGES: ((random: Random) => void)[] = [
  (random) => services.changeVm(random.pick([VM1, VM2]), { state: random.pick(Object.values(VM_STATE)) }),
  () => services.setState(VM1, "UP"),
  () => services.setState(VM2, "UP"),
  (random) => services.changeVm(VM1, { ifindex: random.pick([0, IFINDEX.tap_1, IFINDEX.tap_1]) }),
  (random) => services.changeVm(VM2, { flags: random.below(2), responses: random.pick([0, VM1, VM2, 77]) }),
  (random) => services.changeService(SERVICE, { on_vm_down: random.pick(Object.values(ON_VM_DOWN)) }),
  () => {
    services.changeService(SERVICE, { on_vm_down: ON_VM_DOWN.RESET });
    services.setState(VM1, "DOWN");
  },
  (random) => services.changeService(SERVICE, { pool: random.pick([POOL, POOL, POOL, 2, 0, 99_999]) }),
  (random) => {
    const policy = random.pick(Object.keys(SERVICE_POLICY) as (keyof typeof SERVICE_POLICY)[]);
    services.putPool(POOL, policy, random.pick([[VM1, VM2], [VM2], [VM1, VM2, 40, 9], []]));
  },
  (random) => services.changeService(SERVICE, { affinity_ticks: random.pick([0, 5, 5000]) }),
  (random) => services.changeService(SERVICE, { flags: random.below(4) | SERVICE_FLAG.ANSWERED }),
  (random) => {
    const f = random.pick(Object.values(FAMILIES));
    const key = { prefix: f.vm, proto: random.pick([6, 17]), port: talk.VM_PORT };
    if (random.chance(3)) services.removeKey(key);
    else services.putKey(SERVICE, key);
  },
  (random) => become(random.pick(["uplink_a", "uplink_b"]), random),
  () => become("uplink_a", new Random(0)),
  () => world.clearFlows(),
  (random) => world.changeControl({ vm_cells: random.chance(6) ? 0 : 2 }),
];

const VM_MACS = [TO_VM1, TO_VM2].map(({ mac }) => mac);
const TAPS = [TO_VM1, TO_VM2].map(({ port }) => IFINDEX[port]);

function untagged(frame: Buffer): Buffer {
  let offset = 12;
  while ([0x8100, 0x88a8].includes(frame.readUInt16BE(offset))) offset += 4;
  return Buffer.concat([frame.subarray(0, 12), frame.subarray(offset)]);
}

/** What may come out if it is handed to a VM. */
function deliveries(port: PortName, frame: Buffer): Buffer[] {
  const type = frame.subarray(12, 14);
  const header = (mac: string, tap: PortName) =>
    Buffer.from((mac + PORTS[tap].mac).replaceAll(":", ""), "hex");
  if (!bare.has(port)) return VM_MACS.map((mac) => withDestination(untagged(frame), mac));
  return [TO_VM1, TO_VM2].flatMap(({ mac, port: tap }) =>
    [frame, frame.subarray(14)].map((packet) => Buffer.concat([header(mac, tap), type, packet])),
  );
}

/** An ARP or ND answer, or a reset: back to whoever sent it. */
function checkAnswer(port: PortName, frame: Buffer, out: Buffer): void {
  if (bare.has(port)) {
    expect(out.subarray(0, 1)).toEqual(frame.subarray(0, 1));
    return;
  }
  const { source, destination, ip, transport, tags } = decodeFrame(out);
  const before = decodeFrame(frame);
  expect(destination).toBe(before.source);
  expect(tags).toEqual(before.tags);
  if (ip?.protocol === 6) {
    expect(source).toBe(before.destination);
    expect({ source: ip.source, destination: ip.destination, ok: ip.headerChecksumOk }).toEqual({
      ...{ source: before.ip!.destination, destination: before.ip!.source, ok: true },
    });
    expect([true, null]).toContain(transport!.checksumOk);
    expect(["R", "RA"]).toContain(transport!.flags);
    return;
  }
  expect(source).toBe(PORTS[port].mac);
  expect(out.length).toBe(frame.length);
  if (ip) expect(transport).toMatchObject({ checksumOk: true, icmp: { type: 136 } });
}

type Outcome = Pick<Run, "verdict" | "out" | "mark">;
/** What became of those that are to be found among the counts. */
const became = { dropped: 0, answered: 0 };

function checkUplink(port: PortName, frame: Buffer, { verdict, out, mark }: Outcome): void {
  if (verdict === "drop") {
    became.dropped++;
  } else if (verdict === "pass") {
    if (!out.equals(frame) || mark !== 0) throw new Error(`passed, but changed to ${out.toString("hex")}`);
  } else if (verdict === "redirect" && deliveries(port, frame).some((one) => one.equals(out))) {
    return;
  } else if (verdict === "redirect" || verdict === "tx") {
    became.answered++;
    checkAnswer(port, frame, out);
  } else {
    throw new Error(`verdict ${verdict}`);
  }
}

/** Flows of services name a VM, and events a tap of one. */
function checkTables(): void {
  for (const [name, struct] of [
    ["flows4", "flow"],
    ["flows6", "flow"],
  ] as const) {
    for (const { count, values } of world.map(name).batches(8192)) {
      for (let index = 0; index < count; index++) {
        const { flags, vm } = decode(struct, values, index * sizeOf(struct));
        if (flags & FLOW_FLAG.SERVICE) expect([VM1, VM2]).toContain(vm);
      }
    }
  }
  for (const event of world.takeEvents()) {
    if (event.role !== ROLE.UPLINK) continue;
    if (event.verdict === VERDICT.REDIRECT) {
      expect(TAPS).toContain(event.out_ifindex);
      expect(VM_MACS).toContain(macText(event.out_mac));
    } else {
      expect(event.out_ifindex).toBe(event.verdict === VERDICT.ANSWER ? event.ifindex : 0);
    }
  }
}

function prepare(): void {
  world.reset();
  bare.clear();
  services = serve(FAMILIES.ipv4)(world);
  for (const f of Object.values(FAMILIES)) {
    for (const proto of [6, 17, 132]) {
      services.putKey(SERVICE, { prefix: f.vm, proto, port: talk.VM_PORT });
      const ends = { local: f.vm, remote: f.client, localPort: talk.VM_PORT, remotePort: talk.CLIENT_PORT };
      world.trace({ ...ends, proto });
    }
    services.putKey(SERVICE, { prefix: f.vm, proto: f.icmp });
    answering(world, f.vm);
  }
  services.putPool(2, "ROUND_ROBIN", [VM2]);
  world.putLabelStack([100], 17);
}

function fuzz(program: UplinkProgram, seed: number, packets: number): Map<ReasonName, number> {
  const random = new Random(seed);
  const traffic = new Traffic(random);
  const seen = new Map<ReasonName, number>();
  let [ran, bytes] = [0, 0];
  prepare();
  for (let number = 1; number <= packets; number++) {
    if (random.chance(CHANGE_EVERY)) random.pick(CHANGES)(random);
    const [port, frame] = traffic.next();
    const tap = PORTS[port].role === "TAP";
    if (frame.length >= TC_LEAST || (program === "learn_xdp" && !tap)) {
      try {
        const run = world.runFast(tap ? "reply_tc" : program, IFINDEX[port], frame);
        if (!tap) checkUplink(port, frame, run);
        else expect(["pass", "redirect"]).toContain(run.verdict);
      } catch (error) {
        throw new Error(
          `packet ${number}, ${program} on ${port}, ${frame.toString("hex")}: ${String(error)}`,
        );
      }
      ran++;
      bytes += frame.length;
    }
    if (number % CHECK_EVERY === 0 || number === packets) {
      const sum = { packets: 0, bytes: 0, dropped: 0, answered: 0 };
      for (const count of world.takeCounts()) {
        sum.packets += count.packets;
        sum.bytes += count.bytes;
        if (count.reason === "service_empty" || count.reason === "vm_held") sum.dropped += count.packets;
        if (count.reason === "vm_reset" || count.reason === "address_answer") sum.answered += count.packets;
        seen.set(count.reason, (seen.get(count.reason) ?? 0) + count.packets);
      }
      expect(sum, `up to packet ${number}`).toEqual({ packets: ran, bytes, ...became });
      [ran, bytes, became.dropped, became.answered] = [0, 0, 0, 0];
      checkTables();
      for (const key of [...services.tables.vms.keys()]) {
        if (![MAC.vm1, MAC.vm2, MAC.vmZ].includes(macText(key.mac) as never))
          world.forgetVm(macText(key.mac), key.zone);
      }
    }
  }
  return seen;
}

const REACHED: ReasonName[] = [
  ...(["deliver", "service_empty", "vm_held", "vm_reset", "address_answer"] as const),
  ...(["learn", "promote", "restart", "relearn", "port_blocked", "deliver_hook"] as const),
];

testFuzzer("%s keeps its promises to services whatever comes", {
  seed: 20240901,
  packets: 80_000,
  run: fuzz,
  missed: (seen, packets) => REACHED.filter((reason) => (seen.get(reason) ?? 0) < packets / 8000),
});
