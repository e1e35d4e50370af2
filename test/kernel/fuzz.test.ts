// SPDX-License-Identifier: Apache-2.0
// Mutated packets against mutated tables. Whatever comes in: no program fails, each packet is counted once,
// what passes is unchanged or addressed to the host and marked as a record says, what is redirected is rewritten from
// a record of the table, and no flow exists that no well-formed packet asked for.
//
// A failure prints the seed: LASTHOP_FUZZ_SEED=n repeats the run, LASTHOP_FUZZ_PACKETS=n makes it longer.

import { expect } from "vitest";
import { decode, type ReasonName, type StructValue, sizeOf, splitLastHop } from "../../src/abi/codec.ts";
import {
  INTERFACE_FLAG,
  LAST_HOP_DROP,
  LAST_HOP_KIND,
  LAST_HOP_ROUTE,
  POLICY,
  VERDICT,
} from "../../src/abi/layout.gen.ts";
import { allRows } from "./rows/index.ts";
import { macText } from "./support/bytes.ts";
import { IFINDEX, PORTS, type PortName } from "./support/devices.ts";
import { useWorld, world } from "./support/fixture.ts";
import { testFuzzer } from "./support/fuzz.ts";
import { mutate } from "./support/mutate.ts";
import { createdKey, keyText, type Side } from "./support/oracle.ts";
import { Random } from "./support/random.ts";
import { expectedOutput } from "./support/rewrite.ts";
import { withDestination } from "./support/rows.ts";
import { FAMILIES, MAC } from "./support/scene.ts";
import { CLIENT_PORT, ECHO_ID, VM_PORT } from "./support/talk.ts";
import { LAST_HOPS, type Run, type UplinkProgram, u32 } from "./support/world.ts";

const CHECK_EVERY = 1000;
const CHANGE_TABLES_EVERY = 50;

const UPLINKS: PortName[] = ["uplink_a", "uplink_b", "uplink_z"];
const TAPS: PortName[] = ["tap_1", "tap_2", "tap_z"];

useWorld();

interface Packet {
  port: PortName;
  frame: Buffer;
}

/** Uplinks whose packets begin with their IP header at the moment. */
const bare = new Set<PortName>();

const MARKS = [0, 1, 17, 0xffffffff];
const STACKS = [[100], [100, 200], [100, 200, 300], [1, 2, 3, 4], [16, 0xfffff, 0, 3]];

/** What the rows send, one conversation a row and family. */
function conversations(): Packet[][] {
  return allRows.flatMap((row) =>
    Object.values(FAMILIES).map((family) =>
      row.make(family).steps.map(({ at, packet }) => ({ port: at, frame: packet })),
    ),
  );
}

/**
 * Conversations of the rows with a packet damaged here and there, so that flows come to life, between packets
 * from anywhere that are damaged beyond recognition.
 */
class Traffic {
  readonly #random: Random;
  readonly #conversations = conversations();
  readonly #all: Packet[];
  #rest: Packet[] = [];

  constructor(random: Random) {
    this.#random = random;
    this.#all = this.#conversations.flat();
  }

  next(): Packet {
    const random = this.#random;
    if (random.chance(2)) {
      const { port, frame } = random.pick(random.pick(this.#conversations));
      const ports = PORTS[port].role === "TAP" ? TAPS : UPLINKS;
      return {
        port: random.chance(2) ? random.pick(ports) : port,
        frame: this.#damage(frame, random.below(6)),
      };
    }
    while (this.#rest.length === 0) {
      // Some rows are long lists of one thing.
      this.#rest = random.pick(this.#conversations).slice(0, 12);
    }
    const { port, frame } = this.#rest.shift()!;
    return { port, frame: this.#damage(frame, random.chance(4) ? 1 : 0) };
  }

  #damage(frame: Buffer, times: number): Buffer {
    return mutate(frame, times, this.#random, () => this.#random.pick(this.#all).frame);
  }
}

/** The flows that rows talk on are watched, so that events tell the interface of a redirect. */
function traceSome(): void {
  for (const family of Object.values(FAMILIES)) {
    const ends = { local: family.vm, remote: family.client, localPort: VM_PORT, remotePort: CLIENT_PORT };
    for (const proto of [6, 17, 132]) {
      world.trace({ ...ends, proto });
    }
    world.trace({ ...ends, proto: family.icmp, localPort: 0, remotePort: ECHO_ID });
  }
}

function become(port: PortName, flags: number, random: Random): void {
  const lower_tag = random.pick([
    { proto: 0, vid: 0 },
    { proto: 0x8100, vid: 10 },
  ]);
  const lower_ifindex = IFINDEX[random.chance(2) ? "uplink_a" : random.pick(UPLINKS)];
  world.changeInterface(port, { flags, mark: random.pick(MARKS), lower_ifindex, lower_tag });
  if (flags & INTERFACE_FLAG.NO_LINK_LAYER) {
    bare.add(port);
  } else {
    bare.delete(port);
  }
}

const TABLE_CHANGES: ((random: Random) => void)[] = [
  (random) => {
    const index = random.below(8);
    const { generation } = world.lastHop(index);
    const target = random.pick([index, index, index, random.below(8), LAST_HOP_ROUTE, LAST_HOP_DROP, 40000]);
    world.setAlias(index, ((generation << 20) | target) >>> 0);
  },
  (random) => {
    world.changeInterface(random.pick(TAPS), {
      policy: random.pick([POLICY.ENFORCE, POLICY.ENFORCE, POLICY.ENFORCE, POLICY.OBSERVE, POLICY.OFF]),
    });
  },
  (random) => {
    const all = Object.values(INTERFACE_FLAG);
    const flags = random.chance(2) ? 0 : random.pick(all) | (random.chance(2) ? random.pick(all) : 0);
    become(random.pick(UPLINKS), flags, random);
  },
  (random) => become("uplink_a", INTERFACE_FLAG.NO_LINK_LAYER, random),
  (random) => become("uplink_b", INTERFACE_FLAG.LOWER, random),
  (random) => {
    const labels = random.pick(STACKS);
    world.putLabelStack(labels, random.pick(MARKS));
  },
  (random) => {
    const port = random.pick(UPLINKS);
    const cell = u32(PORTS[port].slot);
    if (random.chance(4)) {
      world.map("egress_devices").delete(cell);
    } else {
      world.map("egress_devices").update(cell, u32(IFINDEX[port]));
    }
  },
  () => world.addVm(MAC.vm1, "tap_1", 1),
  () => world.addVm(MAC.vm2, "tap_2", 2),
  () => world.addVm(MAC.vmZ, "tap_z", 3, 7),
  () => world.forgetVm(MAC.vm1),
  () => world.clearFlows(),
  (random) => world.changeControl({ bypass: random.chance(20) ? 1 : 0 }),
  (random) =>
    world.put("budgets", u32(random.below(7)), "budget", { last_hops_max: random.below(30), vms_max: 20 }),
];

/** MACs that guests and devices spoofed: forgotten from time to time, so that the scene stays reachable. */
function forgetSpoofed(): void {
  const map = world.map("vms");
  const keep = [MAC.vm1, MAC.vm2, MAC.vmZ] as string[];
  for (let key = map.nextKey(null); key; ) {
    const next = map.nextKey(key);
    const { mac, zone } = decode("vm_key", key);
    if (!keep.includes(macText(mac))) {
      world.forgetVm(macText(mac), zone);
    }
    key = next;
  }
}

/** Records are only ever added here, so those read before still count. */
let known: StructValue<"last_hop">[] = [];

function readRecords(): void {
  known = Array.from(
    { length: LAST_HOPS },
    (_, index) => world.get("last_hops", u32(index), "last_hop")!,
  ).filter((record) => record.generation !== 0);
}

function checkRedirect(frame: Buffer, out: Buffer, port: PortName): void {
  const own = macText(frame.subarray(0, 6)) === PORTS[port].mac;
  const explanations = () =>
    known
      .filter(({ kind, mac }) => kind === LAST_HOP_KIND.IP || mac.equals(out.subarray(0, 6)))
      .map((record) => expectedOutput(frame, record, own));
  let wanted = explanations();
  if (!wanted.some((one) => one.equals(out))) {
    readRecords();
    wanted = explanations();
  }
  if (!wanted.some((one) => one.equals(out))) {
    const nearest = wanted[0]?.toString("hex") ?? "a MAC of the table";
    throw new Error(`redirected as ${out.toString("hex")}, which no record explains; expected ${nearest}`);
  }
}

function checkRun(
  side: Side,
  port: PortName,
  frame: Buffer,
  { verdict, out, mark }: Omit<Run, "counts" | "events">,
): void {
  if (verdict === "pass") {
    if (!out.equals(frame) || mark !== 0) {
      checkStack(side, port, frame, out, mark);
    }
    return;
  }
  if (side === "uplink" || (verdict !== "redirect" && verdict !== "drop")) {
    throw new Error(`verdict ${verdict}`);
  }
  if (verdict === "redirect") {
    checkRedirect(frame, out, port);
  } else if (!dropIsAsked()) {
    throw new Error("dropped, and nobody asked for it");
  }
}

/** Handed to the host's routing: to its MAC, with the mark of a record that says so, and nothing else changed. */
function checkStack(side: Side, port: PortName, frame: Buffer, out: Buffer, mark: number): void {
  readRecords();
  const explained = known.some((record) => record.kind === LAST_HOP_KIND.STACK && record.mark === mark);
  if (side === "uplink" || !out.equals(withDestination(frame, PORTS[port].mac)) || !explained) {
    throw new Error(`passed with mark ${mark}, but changed to ${out.toString("hex")}`);
  }
}

function dropIsAsked(): boolean {
  const aliases = Array.from(
    { length: LAST_HOPS },
    (_, index) => world.map("last_hop_alias").lookup(u32(index))!,
  );
  return aliases.some((alias) => splitLastHop(alias.readUInt32LE()).index === LAST_HOP_DROP);
}

/** Where the events say that packets went. */
function checkEvents(): void {
  readRecords();
  for (const event of world.takeEvents()) {
    const redirected = event.verdict === VERDICT.REDIRECT;
    const explained = known.some(
      (record) => record.ifindex === event.out_ifindex && record.mac.equals(event.out_mac),
    );
    if (redirected ? !explained : event.out_ifindex !== 0) {
      throw new Error(`an event says out of ${event.out_ifindex} to ${macText(event.out_mac)}`);
    }
  }
}

/** Keys of all four tables. */
function keysInTables(): string[] {
  const keys: string[] = [];
  for (const [name, struct] of [
    ["flows4", "flow4_key"],
    ["embryos4", "flow4_key"],
    ["flows6", "flow6_key"],
    ["embryos6", "flow6_key"],
  ] as const) {
    for (const batch of world.map(name).batches(8192)) {
      for (let index = 0; index < batch.count; index++) {
        const key = decode(struct, batch.keys, index * sizeOf(struct));
        const address = (value: number | Buffer) => {
          if (typeof value !== "number") {
            return value;
          }
          const bytes = Buffer.alloc(4);
          bytes.writeUInt32BE(value);
          return bytes;
        };
        keys.push(
          keyText(
            key.zone,
            key.proto,
            address(key.local),
            address(key.remote),
            key.local_port,
            key.remote_port,
          ),
        );
      }
    }
  }
  return keys;
}

/** A test run of a TC program refuses IP frames that end before their IP header does. */
function runnable(program: string, frame: Buffer): boolean {
  const type = frame.readUInt16BE(12);
  return program === "learn_xdp" || frame.length >= (type === 0x0800 ? 34 : type === 0x86dd ? 54 : 15);
}

function fuzz(program: UplinkProgram, seed: number, packets: number): Map<ReasonName, number> {
  const random = new Random(seed);
  const traffic = new Traffic(random);
  const asked = new Set<string>();
  const seen = new Map<ReasonName, number>();
  let [ran, bytes] = [0, 0];
  world.reset();
  bare.clear();
  for (const labels of STACKS) {
    world.putLabelStack(labels, random.pick(MARKS));
  }
  // Spoofed devices soon take what else there is room for.
  const { zero, deviceA, deviceB } = MAC;
  UPLINKS.forEach((port, index) => {
    world.putLastHop(index, { port, mac: zero, kind: "ip" });
    world.putLastHop(index + 3, { port, mac: deviceA, tags: [{ vid: 10 }] });
  });
  world.putLastHop(6, { port: "uplink_a", mac: deviceA, kind: "stack", mark: 17, labels: [100] });
  world.putLastHop(7, { port: "uplink_b", mac: deviceB, kind: "stack" });
  traceSome();
  for (let number = 1; number <= packets; number++) {
    if (random.chance(CHANGE_TABLES_EVERY)) {
      random.pick(TABLE_CHANGES)(random);
    }
    const { port, frame } = traffic.next();
    const side: Side = PORTS[port].role === "TAP" ? "tap" : "uplink";
    const name = side === "uplink" ? program : "reply_tc";
    if (runnable(name, frame)) {
      const key = createdKey(frame, side, PORTS[port].zone, bare.has(port));
      if (key !== null) {
        asked.add(key);
      }
      try {
        checkRun(side, port, frame, world.runFast(name, IFINDEX[port], frame));
      } catch (error) {
        throw new Error(`packet ${number}, ${name} on ${port}, ${frame.toString("hex")}: ${String(error)}`);
      }
      ran++;
      bytes += frame.length;
    }
    if (number % CHECK_EVERY === 0 || number === packets) {
      const sum = { packets: 0, bytes: 0 };
      for (const count of world.takeCounts()) {
        sum.packets += count.packets;
        sum.bytes += count.bytes;
        seen.set(count.reason, (seen.get(count.reason) ?? 0) + count.packets);
      }
      expect(sum, `counted once each, up to packet ${number}`).toEqual({ packets: ran, bytes });
      [ran, bytes] = [0, 0];
      expect(
        keysInTables().filter((key) => !asked.has(key)),
        `flows that no well-formed packet asked for, up to packet ${number}`,
      ).toEqual([]);
      checkEvents();
      forgetSpoofed();
    }
  }
  return seen;
}

/** Without these the fuzzer would only have tested how packets are refused. */
const REACHED: ReasonName[] = [
  "learn",
  "refresh",
  "relearn",
  "promote",
  "restart",
  "answer",
  "quoted",
  "redirect",
  "stack",
  "label_depth",
  "unknown_labels",
];

/** These need tables as well that happen to fit. */
const REACHED_SELDOM: ReasonName[] = ["learned_below"];

testFuzzer("%s and reply_tc keep their promises whatever comes", {
  seed: 20240601,
  packets: 220_000,
  run: fuzz,
  missed(seen, packets) {
    const fewer = (than: number) => (reason: ReasonName) => (seen.get(reason) ?? 0) < than;
    return [...REACHED.filter(fewer(packets / 2000)), ...REACHED_SELDOM.filter(fewer(packets / 20_000))];
  },
});
