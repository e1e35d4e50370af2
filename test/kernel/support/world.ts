// SPDX-License-Identifier: Apache-2.0
// One loaded, unpinned copy of the BPF object and its tables; runs packets through its programs.

import { fileURLToPath } from "node:url";
import {
  decode,
  encode,
  joinLastHop,
  REASON_NAMES,
  type ReasonName,
  type StructInput,
  type StructName,
  type StructValue,
  secondsToTicks,
  sizeOf,
  splitLastHop,
} from "../../../src/abi/codec.ts";
import {
  ENCAPSULATION_FLAG,
  INTERFACE_FLAG,
  LABELS_MAX,
  LAST_HOP_KIND,
  NEAR_INTERFACES,
  POLICY,
  REASONS,
  ROLE,
  TIMEOUTS,
} from "../../../src/abi/layout.gen.ts";
import { jiffiesClock } from "../../../src/kernel/clock.ts";
import { type BpfMap, BpfObject, type BpfProgram, RingBuffer } from "../../../src/libbpf/index.ts";
import { ipBytes, macBytes } from "./bytes.ts";
import { IFINDEX, PORTS, type PortName } from "./devices.ts";
import type { Tag } from "./packet.ts";
import { MAC } from "./scene.ts";
import {
  cbOf,
  markOf,
  type RunOptions,
  SKB_CONTEXT_BYTES,
  skbContext,
  TC_VERDICT,
  type Verdict,
  XDP_VERDICT,
  xdpContext,
} from "./testRun.ts";

export const OBJECT_PATH = fileURLToPath(new URL("../../../dist/bpf/lasthop.bpf.o", import.meta.url));

/** Small tables load fast. The hash tables stay large enough that an LRU does not evict by itself. */
const SLOTS = 16;
export const LAST_HOPS = 64;
/** Also pools. */
export const SERVICES = 16;
export const POOL_LINES = 64;
const MAX_ENTRIES = {
  flows4: 8192,
  flows6: 8192,
  embryos4: 8192,
  embryos6: 8192,
  fragments: 8192,
  last_hops: LAST_HOPS,
  last_hop_alias: LAST_HOPS,
  last_hop_free: LAST_HOPS,
  last_hop_index: LAST_HOPS,
  last_hop_stats: LAST_HOPS,
  verdicts: SLOTS * REASONS,
  interfaces: 64,
  near_interfaces: NEAR_INTERFACES,
  taps: SLOTS,
  budgets: SLOTS,
  egress_devices: SLOTS,
  vms: 256,
  services: SERVICES,
  service_stats: SERVICES,
  pools: SERVICES,
  pool_cursors: SERVICES,
  pool_lines: POOL_LINES,
  events: 65536,
};

export type UplinkProgram = "learn_xdp" | "learn_tc";
export const UPLINK_PROGRAMS: readonly UplinkProgram[] = ["learn_xdp", "learn_tc"];

/** One cell of the verdict table that a run changed. */
export interface Count {
  slot: number;
  reason: ReasonName;
  packets: number;
  bytes: number;
}

export interface Run {
  verdict: Verdict;
  out: Buffer;
  /** Of the packet afterwards; 0 under XDP, which has none. */
  mark: number;
  /** skb->cb as the program left it; empty after XDP. */
  cb: number[];
  counts: Count[];
  events: StructValue<"event">[];
}

/** A flow's key, whatever the family: the VM's side is `local`. */
export interface Tuple {
  local: string;
  remote: string;
  localPort: number;
  remotePort: number;
  proto: number;
  zone?: number;
}

export interface FoundFlow {
  tier: "embryonic" | "established";
  flow: StructValue<"flow">;
  embryo: StructValue<"embryo"> | null;
}

export interface LastHopSpec {
  port: PortName;
  mac: string;
  tags?: Tag[];
  /** By default `ethernet`. */
  kind?: "ip" | "stack";
  mark?: number;
  /** Of the requests, outer first. */
  labels?: number[];
  tunnel?: { remote: string; local: string; id: number };
}

export class World {
  readonly #object: BpfObject;
  readonly #ring: RingBuffer;
  readonly #maps = new Map<string, BpfMap>();
  readonly #programs = new Map<string, BpfProgram>();
  readonly #cpus: number;
  #counted: Buffer;
  #near = true;

  constructor(path: string = OBJECT_PATH) {
    this.#object = BpfObject.open(path, { mapMaxEntries: MAX_ENTRIES });
    this.#object.load();
    this.#ring = new RingBuffer(this.map("events"));
    this.#cpus = this.map("verdicts").valueBytes / sizeOf("verdict_count");
    this.#counted = this.#readVerdicts();
  }

  close(): void {
    this.#ring.close();
    this.#object.close();
  }

  map(name: string): BpfMap {
    let map = this.#maps.get(name);
    if (!map) {
      map = this.#object.map(name);
      this.#maps.set(name, map);
    }
    return map;
  }

  program(name: string): BpfProgram {
    let program = this.#programs.get(name);
    if (!program) {
      program = this.#object.program(name);
      this.#programs.set(name, program);
    }
    return program;
  }

  programNames(): string[] {
    return this.#object.programNames();
  }

  // ---- tables -------------------------------------------------------------------------------------

  put<S extends StructName>(map: string, key: Buffer, struct: S, value: StructInput<S>): void {
    this.map(map).update(key, encode(struct, value));
  }

  get<S extends StructName>(map: string, key: Buffer, struct: S): StructValue<S> | undefined {
    const value = this.map(map).lookup(key);
    return value && decode(struct, value);
  }

  /** Changes some fields of an entry that exists. */
  change<S extends StructName>(map: string, key: Buffer, struct: S, value: Partial<StructInput<S>>): void {
    const old = this.get(map, key, struct);
    if (!old) {
      throw new Error(`${map} has no such entry`);
    }
    this.put(map, key, struct, { ...old, ...value } as StructInput<S>);
  }

  #clear(map: string): void {
    const table = this.map(map);
    for (let key = table.nextKey(null); key; key = table.nextKey(null)) {
      table.delete(key);
    }
  }

  /** All cells of an array. */
  #zero(map: string): void {
    const table = this.map(map);
    const count = MAX_ENTRIES[map as keyof typeof MAX_ENTRIES];
    const keys = Buffer.concat(Array.from({ length: count }, (_, index) => u32(index)));
    table.updateBatch(keys, Buffer.alloc(count * table.valueBytes), count);
  }

  /**
   * All interfaces attached, both VMs (and the one of zone 7) known, nothing learned. Interfaces are in the
   * array that the hot path looks into first, and time comes from jiffies, or neither is so.
   */
  reset(near = true): void {
    this.#near = near;
    this.clearFlows();
    for (const map of ["fragments", "vms", "last_hop_index", "interfaces", "traces", "label_stacks"]) {
      this.#clear(map);
    }
    while (this.map("last_hop_free").pop()) {
      // emptied
    }
    for (const map of ["taps", "last_hops", "last_hop_alias", "last_hop_stats"]) {
      this.#zero(map);
    }
    for (const ifindex of Object.values(IFINDEX)) {
      this.put("near_interfaces", u32(ifindex % NEAR_INTERFACES), "interface", {});
    }
    this.setControl({ timeouts: Array(TIMEOUTS).fill(secondsToTicks(60)), ...(near ? this.#jiffies() : {}) });
    this.put("allocations", u32(0), "allocations", { vms: 100 });
    for (const port of Object.keys(PORTS) as PortName[]) {
      this.attach(port);
    }
    this.addVm(MAC.vm1, "tap_1", 1);
    this.addVm(MAC.vm2, "tap_2", 2);
    this.addVm(MAC.vmZ, "tap_z", 3, 7);
    this.takeCounts();
    this.takeEvents();
  }

  #jiffies(): StructInput<"control"> {
    const now = Buffer.alloc(sizeOf("clock"));
    this.program("read_clock").testRun({ ctx: now });
    const clock = jiffiesClock(now.readBigUInt64LE(0), now.readBigUInt64LE(8));
    return clock ? { ...clock, jiffies_base: Number(clock.jiffies_base) } : {};
  }

  setControl(value: StructInput<"control">): void {
    this.put("control", u32(0), "control", value);
  }

  /** What programs have given out: indices of last hops, ids of VMs. */
  setAllocations(value: StructInput<"allocations">): void {
    this.put("allocations", u32(0), "allocations", value);
  }

  allocations(): StructValue<"allocations"> {
    return this.get("allocations", u32(0), "allocations")!;
  }

  changeControl(value: StructInput<"control">): void {
    this.change("control", u32(0), "control", value);
  }

  attach(port: PortName, fields: StructInput<"interface"> = {}): void {
    const { role, slot, zone, mac } = PORTS[port];
    if (role === "NONE") {
      return;
    }
    this.#putInterface({
      ifindex: IFINDEX[port],
      slot,
      l3_ifindex: IFINDEX[port],
      zone,
      role: ROLE[role],
      policy: POLICY.ENFORCE,
      mac: macBytes(mac),
      host_mac: macBytes(mac),
      name: port,
      ...fields,
    });
    if (slot > 0) {
      this.map("egress_devices").update(u32(slot), u32(IFINDEX[port]));
      this.put("budgets", u32(slot), "budget", { last_hops_max: 1000, vms_max: 1000 });
    }
  }

  #putInterface(value: StructInput<"interface"> & { ifindex: number }): void {
    this.put("interfaces", u32(value.ifindex), "interface", value);
    if (this.#near) {
      this.put("near_interfaces", u32(value.ifindex % NEAR_INTERFACES), "interface", value);
    }
  }

  changeInterface(port: PortName, fields: Partial<StructInput<"interface">>): void {
    this.#putInterface({
      ...this.get("interfaces", u32(IFINDEX[port]), "interface")!,
      ...fields,
    } as StructInput<"interface"> & {
      ifindex: number;
    });
  }

  /** Rules for an interface; `count` as it stands in the table. */
  exclude(port: PortName, rules: readonly StructInput<"exclusion">[], count = rules.length): void {
    this.put("exclusions", u32(PORTS[port].slot), "exclusions", { count, rules });
    this.changeInterface(port, { flags: INTERFACE_FLAG.EXCLUDES });
  }

  addVm(mac: string, tap: PortName, id: number, zone = 0): void {
    this.put("vms", encode("vm_key", { zone, mac: macBytes(mac) }), "vm", { id, ifindex: IFINDEX[tap] });
  }

  vm(mac: string, zone = 0): StructValue<"vm"> | undefined {
    return this.get("vms", encode("vm_key", { zone, mac: macBytes(mac) }), "vm");
  }

  /** As the controller does it: also from the cell of its tap. */
  forgetVm(mac: string, zone = 0): void {
    const id = this.vm(mac, zone)?.id;
    this.map("vms").delete(encode("vm_key", { zone, mac: macBytes(mac) }));
    for (let slot = 0; slot < SLOTS; slot++) {
      if (this.get("taps", u32(slot), "tap")!.vm === id) {
        this.put("taps", u32(slot), "tap", {});
      }
    }
  }

  flowKey(tuple: Tuple): Buffer {
    const common = {
      local_port: tuple.localPort,
      remote_port: tuple.remotePort,
      proto: tuple.proto,
      zone: tuple.zone ?? 0,
    };
    const local = ipBytes(tuple.local);
    const remote = ipBytes(tuple.remote);
    return local.length === 4
      ? encode("flow4_key", { ...common, local: local.readUInt32BE(), remote: remote.readUInt32BE() })
      : encode("flow6_key", { ...common, local, remote });
  }

  #flowMap(tuple: Tuple, tier: FoundFlow["tier"]): string {
    return `${tier === "established" ? "flows" : "embryos"}${tuple.local.includes(":") ? 6 : 4}`;
  }

  /** The established entry wins. */
  flow(tuple: Tuple): FoundFlow | undefined {
    const key = this.flowKey(tuple);
    const flow = this.get(this.#flowMap(tuple, "established"), key, "flow");
    if (flow) {
      return { tier: "established", flow, embryo: null };
    }
    const embryo = this.get(this.#flowMap(tuple, "embryonic"), key, "embryo");
    return embryo && { tier: "embryonic", flow: embryo.flow, embryo };
  }

  putFlow(tuple: Tuple, flow: StructInput<"flow">): void {
    this.put(this.#flowMap(tuple, "established"), this.flowKey(tuple), "flow", flow);
  }

  putEmbryo(tuple: Tuple, embryo: StructInput<"embryo">): void {
    this.put(this.#flowMap(tuple, "embryonic"), this.flowKey(tuple), "embryo", embryo);
  }

  /** Changes the entry in whichever tier it is. */
  changeFlow(tuple: Tuple, flow: Partial<StructInput<"flow">>): void {
    const found = this.flow(tuple);
    if (found?.embryo) {
      this.putEmbryo(tuple, { ...found.embryo, flow: { ...found.flow, ...flow } });
    } else if (found) {
      this.putFlow(tuple, { ...found.flow, ...flow });
    } else {
      throw new Error("no such flow");
    }
  }

  deleteFlow(tuple: Tuple): void {
    this.map(this.#flowMap(tuple, "established")).delete(this.flowKey(tuple));
    this.map(this.#flowMap(tuple, "embryonic")).delete(this.flowKey(tuple));
  }

  clearFlows(): void {
    for (const map of ["flows4", "flows6", "embryos4", "embryos6"]) {
      this.#clear(map);
    }
  }

  /** Entries in all four flow tables. */
  flowCount(): number {
    let count = 0;
    for (const name of ["flows4", "flows6", "embryos4", "embryos6"]) {
      const map = this.map(name);
      for (let key = map.nextKey(null); key; key = map.nextKey(key)) {
        count++;
      }
    }
    return count;
  }

  lastHop(reference: number): StructValue<"last_hop"> & { index: number; fresh: boolean } {
    const { index, generation } = splitLastHop(reference);
    const record = this.get("last_hops", u32(index), "last_hop");
    if (!record) {
      throw new Error(`last hop index ${index} is out of the table`);
    }
    return { ...record, index, fresh: record.generation === generation };
  }

  /** A record as the controller makes it; returns the reference that a flow holds. */
  putLastHop(index: number, spec: LastHopSpec, generation = 1): number {
    const tags = [...(spec.tags ?? [])].map((tag) => ({ proto: tag.proto ?? 0x8100, vid: tag.vid }));
    while (tags.length < 2) {
      tags.push({ proto: 0, vid: 0 });
    }
    const { slot, mac } = PORTS[spec.port];
    const ifindex = IFINDEX[spec.port];
    const { kind = "ethernet", mark = 0, labels = [], tunnel } = spec;
    const encapsulated =
      (labels.length > 0 ? ENCAPSULATION_FLAG.LABELS : 0) | (tunnel ? ENCAPSULATION_FLAG.TUNNEL : 0);
    const remote = tunnel ? mappedBytes(tunnel.remote) : Buffer.alloc(16);
    const local = tunnel ? mappedBytes(tunnel.local) : Buffer.alloc(16);
    const id = tunnel?.id ?? 0;
    this.put("last_hops", u32(index), "last_hop", {
      kind: LAST_HOP_KIND[kind.toUpperCase() as keyof typeof LAST_HOP_KIND],
      mark,
      encapsulated,
      label_count: labels.length,
      encapsulation: { tunnel: { remote, local, id }, labels: fourLabels(labels) },
      generation,
      ifindex,
      slot,
      mac: macBytes(spec.mac),
      source_mac: macBytes(mac),
      tags,
    });
    const key = encode("last_hop_key", {
      ifindex,
      mac: macBytes(spec.mac),
      tags,
      encapsulated,
      tunnel_remote: remote,
      tunnel_id: id,
      labels: fourLabels(labels),
    });
    this.map("last_hop_index").update(key, u32(index));
    this.map("last_hop_alias").update(u32(index), u32(joinLastHop(generation, index)));
    const { last_hops } = this.get("allocations", u32(0), "allocations")!;
    this.change("allocations", u32(0), "allocations", { last_hops: Math.max(last_hops, index + 1) });
    return joinLastHop(generation, index);
  }

  /** A further key of a record: another MAC of its device. */
  addLastHopKey(index: number, { port, mac, tags = [] }: LastHopSpec): void {
    const [outer, inner] = tags.map(({ proto, vid }) => ({ proto: proto ?? 0x8100, vid }));
    const none = { proto: 0, vid: 0 };
    const key = { ifindex: IFINDEX[port], mac: macBytes(mac), tags: [outer ?? none, inner ?? none] };
    this.map("last_hop_index").update(encode("last_hop_key", key), u32(index));
  }

  /** Replies to requests with these labels have this mark. */
  putLabelStack(labels: readonly number[], mark: number): void {
    this.map("label_stacks").update(encode("label_stack", { labels: fourLabels(labels) }), u32(mark));
  }

  /** What frames have shown: the keys that lead to last hops. */
  lastHopKeys(): StructValue<"last_hop_key">[] {
    const map = this.map("last_hop_index");
    const keys: StructValue<"last_hop_key">[] = [];
    for (let key = map.nextKey(null); key; key = map.nextKey(key)) {
      keys.push(decode("last_hop_key", key));
    }
    return keys;
  }

  setAlias(index: number, value: number): void {
    this.map("last_hop_alias").update(u32(index), u32(value));
  }

  /** Also makes the programs look again whether its interface is there: they do so once a tick. */
  clearStats(index: number): void {
    const stats = this.map("last_hop_stats");
    stats.update(u32(index), Buffer.alloc(stats.valueBytes));
  }

  stats(index: number): StructValue<"last_hop_stats"> {
    const bytes = this.map("last_hop_stats").lookup(u32(index))!;
    const size = sizeOf("last_hop_stats");
    const all = Array.from({ length: bytes.length / size }, (_, cpu) =>
      decode("last_hop_stats", bytes, cpu * size),
    );
    return all.reduce((sum, one) => ({
      request_packets: sum.request_packets + one.request_packets,
      request_bytes: sum.request_bytes + one.request_bytes,
      reply_packets: sum.reply_packets + one.reply_packets,
      reply_bytes: sum.reply_bytes + one.reply_bytes,
      last_seen: Math.max(sum.last_seen, one.last_seen),
      relearns: sum.relearns + one.relearns,
    }));
  }

  /** Every decision on this flow becomes an event. */
  trace(tuple: Tuple, number = 1): void {
    const key = encode("flow6_key", {
      local: mappedBytes(tuple.local),
      remote: mappedBytes(tuple.remote),
      local_port: tuple.localPort,
      remote_port: tuple.remotePort,
      proto: tuple.proto,
      zone: tuple.zone ?? 0,
    });
    this.map("traces").update(key, u32(number));
    this.changeControl({ traces: 1 });
  }

  // ---- running ------------------------------------------------------------------------------------

  #readVerdicts(): Buffer {
    const parts: Buffer[] = [];
    for (const { count, values } of this.map("verdicts").batches(SLOTS * REASONS)) {
      parts.push(Buffer.from(values.subarray(0, count * this.map("verdicts").valueBytes)));
    }
    return Buffer.concat(parts);
  }

  /** What has been counted since the last call. */
  takeCounts(): Count[] {
    const now = this.#readVerdicts();
    const counts: Count[] = [];
    const row = this.#cpus * 16;
    for (let index = 0; index < SLOTS * REASONS; index++) {
      const start = index * row;
      if (now.compare(this.#counted, start, start + row, start, start + row) === 0) {
        continue;
      }
      const sum = { packets: 0, bytes: 0 };
      for (let offset = start; offset < start + row; offset += 16) {
        sum.packets += Number(now.readBigUInt64LE(offset) - this.#counted.readBigUInt64LE(offset));
        sum.bytes += Number(now.readBigUInt64LE(offset + 8) - this.#counted.readBigUInt64LE(offset + 8));
      }
      counts.push({ slot: Math.floor(index / REASONS), reason: REASON_NAMES[index % REASONS]!, ...sum });
    }
    this.#counted = now;
    return counts;
  }

  takeEvents(): StructValue<"event">[] {
    const events: StructValue<"event">[] = [];
    this.#ring.consume((record) => events.push(decode("event", record)));
    return events;
  }

  /** Only the verdict and the packet: for many runs, counted together by takeCounts(). */
  runFast(
    program: string,
    ifindex: number,
    frame: Buffer,
    options: RunOptions = {},
  ): Omit<Run, "counts" | "events"> {
    const xdp = program === "learn_xdp";
    const { retval, dataOut, ctxOut } = this.program(program).testRun({
      data: frame,
      dataOutSize: frame.length + 256,
      ctx: xdp ? xdpContext(ifindex, frame.length) : skbContext(ifindex, options),
      ctxOutSize: xdp ? 0 : SKB_CONTEXT_BYTES,
    });
    const verdict = (xdp ? XDP_VERDICT : TC_VERDICT)[retval >>> 0] ?? "other";
    return { verdict, out: dataOut!, mark: xdp ? 0 : markOf(ctxOut), cb: xdp ? [] : cbOf(ctxOut) };
  }

  run(program: string, ifindex: number, frame: Buffer, options: RunOptions = {}): Run {
    this.takeCounts();
    const run = this.runFast(program, ifindex, frame, options);
    return { ...run, counts: this.takeCounts(), events: this.takeEvents() };
  }
}

/** IPv4 as ::ffff:a.b.c.d. */
export function mappedBytes(address: string): Buffer {
  if (address.includes(":")) return ipBytes(address);
  return Buffer.concat([Buffer.alloc(10), Buffer.from([255, 255]), ipBytes(address)]);
}

function fourLabels(labels: readonly number[]): number[] {
  return Array.from({ length: LABELS_MAX }, (_, index) => labels[index] ?? 0);
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value >>> 0);
  return bytes;
}

/** A record as the specification that it came from. */
export function specOf(record: StructValue<"last_hop">): Omit<LastHopSpec, "port" | "mac"> {
  const kind = Object.entries(LAST_HOP_KIND)
    .find(([, value]) => value === record.kind)?.[0]
    .toLowerCase();
  const tags = vlanTags(record);
  const labels = record.encapsulation.labels.slice(0, record.label_count);
  return {
    ...(tags.length > 0 ? { tags } : {}),
    ...(kind === "ethernet" ? {} : { kind: kind as "ip" | "stack" }),
    ...(record.mark === 0 ? {} : { mark: record.mark }),
    ...(record.encapsulated & ENCAPSULATION_FLAG.LABELS ? { labels } : {}),
  };
}

export function vlanTags(record: StructValue<"last_hop">): Tag[] {
  return record.tags.filter((tag) => tag.proto !== 0).map(({ proto, vid }) => ({ proto, vid }));
}
