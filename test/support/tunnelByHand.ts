// SPDX-License-Identifier: Apache-2.0
// A built-in tunnel without the controller: the pair of netdevs, the entries and the programs, made by the test
// itself. The programs are a copy of this test's own, so two ends can be on one machine.

import { closeSync, openSync } from "node:fs";
import { decode, encode, type StructValue, sizeOf } from "../../src/abi/codec.ts";
import { REASONS, TUNNEL_FLAG, TUNNEL_KIND } from "../../src/abi/layout.gen.ts";
import { loadFfi } from "../../src/ffi/index.ts";
import {
  BpfLink,
  BpfObject,
  type BpfProgram,
  clsact,
  type Direction,
  possibleCpus,
  tcxQuery,
} from "../../src/libbpf/index.ts";
import { ipBytes, macBytes } from "../kernel/support/bytes.ts";
import type { Namespace } from "./lab.ts";
import { repositoryPath } from "./paths.ts";

const OBJECT_PATH = repositoryPath("dist/bpf/lasthop.bpf.o");
const CLONE_NEWNET = 0x40000000;
const PAIR_MTU = 65535;

/** Tables that these programs do not use, as small as they may be. */
const SMALL = {
  ...{ flows4: 64, flows6: 64, embryos4: 64, embryos6: 64, fragments: 64, vms: 16 },
  ...{ last_hops: 16, last_hop_alias: 16, last_hop_free: 16, last_hop_index: 16, last_hop_stats: 16 },
  ...{ verdicts: 16 * REASONS },
};

export type TunnelType = "vxlan" | "nvgre" | "gre" | "ipip" | "mpls";

export interface TunnelSpec {
  type: TunnelType;
  local: string;
  remote: string;
  underlay: string;
  /** VNI, VSID, or GRE key; left out for a GRE header without a key. */
  id?: number;
  port?: number;
  ttl?: number;
  tos?: number;
  mtu?: number;
  labels?: { request: number[]; reply: number[] };
  nextHop?: string;
  uniform?: boolean;
}

export const VXLAN_PORT = 4789;

/** Bytes that a tunnel puts between the underlay's MTU and its own. */
export function overhead(spec: TunnelSpec): number {
  const outer = spec.local.includes(":") ? 40 : 20;
  const gre = spec.id === undefined ? 4 : 8;
  switch (spec.type) {
    case "vxlan":
      return outer + 16 + 14;
    case "nvgre":
      return outer + gre + 14;
    case "gre":
      return outer + gre;
    case "ipip":
      return outer;
    case "mpls":
      return 4 * spec.labels!.reply.length;
  }
}

const mapped = (address: string): Buffer =>
  address.includes(":")
    ? ipBytes(address)
    : Buffer.concat([Buffer.from("00000000000000000000ffff", "hex"), ipBytes(address)]);

const isIpInside = (type: TunnelType) => type === "gre" || type === "ipip" || type === "mpls";

const padded = (labels: readonly number[]) => Array.from({ length: 4 }, (_, index) => labels[index] ?? 0);

/** Runs `work` with this thread in another network namespace. It must not wait for anything. */
export function inside<T>(namespace: string, work: () => T): T {
  const setns = loadFfi().open("libc.so.6").function("setns", "i32", ["i32", "i32"]);
  const enter = (fd: number) => {
    if (setns(fd, CLONE_NEWNET) !== 0)
      throw new Error(`cannot enter ${namespace}: errno ${loadFfi().errno()}`);
  };
  const [own, other] = [openSync("/proc/thread-self/ns/net", "r"), openSync(namespace, "r")];
  try {
    enter(other);
    try {
      return work();
    } finally {
      enter(own);
    }
  } finally {
    closeSync(own);
    closeSync(other);
  }
}

export interface Device {
  ifindex: number;
  mac: string;
  mtu: number;
}

export async function device(namespace: Namespace, name: string): Promise<Device> {
  const [link] = JSON.parse(await namespace.must(["ip", "-j", "link", "show", "dev", name]));
  return { ifindex: link.ifindex, mac: link.address, mtu: link.mtu };
}

/** The two entries of the tables that say what a tunnel is. */
export interface Entries {
  tunnel: Parameters<typeof encode<"tunnel">>[1];
  keys: Parameters<typeof encode<"tunnel_index_key">>[1][];
}

export function entries(spec: TunnelSpec, x: Device, p: Device, underlay: Device): Entries {
  const kind = TUNNEL_KIND[spec.type.toUpperCase() as keyof typeof TUNNEL_KIND];
  const mpls = spec.type === "mpls";
  const keyed = spec.id !== undefined && (spec.type === "gre" || spec.type === "nvgre");
  const flag = keyed ? TUNNEL_FLAG.KEY_PRESENT : 0;
  const port = spec.type === "vxlan" ? (spec.port ?? VXLAN_PORT) : 0;
  const [local, remote] = mpls
    ? [Buffer.alloc(16), Buffer.alloc(16)]
    : [mapped(spec.local), mapped(spec.remote)];
  const request = padded(spec.labels?.request ?? []);
  return {
    tunnel: {
      kind,
      family: mpls ? 0 : spec.local.includes(":") ? 6 : 4,
      ttl: spec.ttl ?? 64,
      tos: spec.tos ?? 0,
      flags: flag | (spec.uniform ? TUNNEL_FLAG.TTL_UNIFORM : 0),
      label_count: spec.labels?.reply.length ?? 0,
      port,
      id: spec.id ?? 0,
      ifindex: x.ifindex,
      peer_ifindex: p.ifindex,
      underlay: underlay.ifindex,
      ...{ local, remote },
      mac: macBytes(x.mac),
      next_hop: macBytes(spec.nextHop ?? "00:00:00:00:00:00"),
      labels: padded(spec.labels?.reply ?? []),
      request_labels: request,
      mtu: x.mtu,
      underlay_mac: macBytes(underlay.mac),
    },
    keys: mpls
      ? [
          { kind, underlay: underlay.ifindex, labels: request },
          { kind, underlay: p.ifindex },
        ]
      : [{ kind, ...{ local, remote, port }, id: spec.id ?? 0, flags: flag }],
  };
}

const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
};

export function enter(object: BpfObject, { tunnel, keys }: Entries): void {
  const ifindex = u32(tunnel.ifindex!);
  object.map("tunnels").update(ifindex, encode("tunnel", tunnel));
  object.map("tunnel_stats").update(ifindex, Buffer.alloc(sizeOf("tunnel_stats") * possibleCpus()));
  for (const key of keys) object.map("tunnel_index").update(encode("tunnel_index_key", key), ifindex);
}

export function loadPrograms(): BpfObject {
  const object = BpfObject.open(OBJECT_PATH, { mapMaxEntries: SMALL });
  try {
    object.load();
    return object;
  } catch (error) {
    object.close();
    throw error;
  }
}

/** Sums over the CPUs. */
export function statsOf(object: BpfObject, ifindex: number): StructValue<"tunnel_stats"> {
  const size = sizeOf("tunnel_stats");
  const bytes = object.map("tunnel_stats").lookup(u32(ifindex))!;
  const sum = decode("tunnel_stats", bytes);
  for (let at = size; at < bytes.length; at += size) {
    const one = decode("tunnel_stats", bytes, at);
    for (const key of Object.keys(sum) as (keyof typeof sum)[]) sum[key] += one[key];
  }
  return sum;
}

/** Tunnels of one namespace: one copy of the programs. */
export class TunnelHost {
  readonly namespace: Namespace;
  readonly #object = loadPrograms();
  readonly #links: BpfLink[] = [];
  readonly #attached = new Set<string>();
  readonly #indexes = new Map<string, number>();

  constructor(namespace: Namespace) {
    this.namespace = namespace;
  }

  #attach(program: string, ifindex: number, direction: Direction): void {
    const place = `${ifindex} ${direction}`;
    if (this.#attached.has(place)) return;
    this.#attached.add(place);
    const what: BpfProgram = this.#object.program(program);
    inside(this.namespace.path, () => {
      if (tcxQuery(ifindex, direction) !== undefined) {
        this.#links.push(BpfLink.attachTcx(what, ifindex, direction));
        return;
      }
      clsact.create(ifindex);
      clsact.attach({ ifindex, direction, program: what, handle: 1, priority: 1, replace: true });
    });
  }

  /** Makes the netdev `name`, with lasthop's programs around it, and brings it up. */
  async add(name: string, spec: TunnelSpec): Promise<Device> {
    const { namespace } = this;
    const peer = `p-${name}`;
    const underlay = await device(namespace, spec.underlay);
    const mtu = spec.mtu ?? underlay.mtu - overhead(spec);
    await namespace.ip(
      `link add name ${name} type veth peer name ${peer}`,
      `link set dev ${peer} mtu ${PAIR_MTU} addrgenmode none`,
      `link set dev ${name} mtu ${mtu}`,
      `link set dev ${name} arp ${isIpInside(spec.type) ? "off" : "on"}`,
    );
    const off = ["tso", "gso", "tx", "tx-udp-segmentation"].flatMap((feature) => [feature, "off"]);
    for (const one of spec.type === "mpls" ? [name, peer] : [peer]) {
      await namespace.must(["ethtool", "-K", one, ...off]);
    }
    const [x, p] = [await device(namespace, name), await device(namespace, peer)];
    enter(this.#object, entries(spec, x, p, underlay));
    this.#indexes.set(name, x.ifindex);
    this.#attach("tunnel_in", underlay.ifindex, "ingress");
    if (spec.type === "mpls") this.#attach("tunnel_out_labels", p.ifindex, "ingress");
    else this.#attach("tunnel_out", x.ifindex, "egress");
    await namespace.ip(`link set dev ${peer} up`, `link set dev ${name} up`);
    return x;
  }

  async remove(name: string): Promise<void> {
    await this.namespace.ip(`link del dev ${name}`);
  }

  stats(name: string): StructValue<"tunnel_stats"> {
    return statsOf(this.#object, this.#indexes.get(name)!);
  }

  close(): void {
    for (const link of this.#links.splice(0)) link.close();
    this.#object.close();
  }
}
