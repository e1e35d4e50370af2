// SPDX-License-Identifier: Apache-2.0
// Built-in tunnels on a wire: real connections through them, and what the wire shows, as tshark reads it. The far
// end is the kernel's own driver where this kernel has one, else a built-in tunnel too.
//
//   near [t] ── tunnel ── [t] far        near [u] ── underlay ── [u] far

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { loadFfi } from "../../src/ffi/index.ts";
import type { Agent } from "../support/agent.ts";
import { Capture } from "../support/capture.ts";
import { Lab, type Namespace } from "../support/lab.ts";
import { Plan } from "../support/plan.ts";
import { must } from "../support/run.ts";
import { inside, overhead, TunnelHost, type TunnelSpec } from "../support/tunnelByHand.ts";
import { type Frame, readFrames } from "../support/tunnelFrames.ts";
import { hasKernelDriver, KernelEnd } from "../support/tunnelKernel.ts";

const FAMILIES = [4, 6] as const;
type Family = (typeof FAMILIES)[number];

const UNDERLAY_MTU = 1500;
const OUTER = { 4: ["10.77.0.1", "10.77.0.2"], 6: ["fd77::1", "fd77::2"] } as const;
const INNER = { 4: ["172.30.0.1", "172.30.0.2"], 6: ["fd30::1", "fd30::2"] } as const;
const MACS = { near: "02:00:00:00:77:01", far: "02:00:00:00:77:02" };
const BYTES = 24 << 20;

interface Case {
  name: string;
  /** From the near end. */
  spec: TunnelSpec;
  /** Does the near host forward? Without, the neighbour layer finds the way. */
  forwarding: boolean;
}

function outer(family: Family): Pick<TunnelSpec, "local" | "remote" | "underlay"> {
  return { local: OUTER[family][0], remote: OUTER[family][1], underlay: "u" };
}

const CASES: Case[] = [
  ...FAMILIES.flatMap((family): Case[] =>
    [true, false].map((forwarding) => ({
      name: `VXLAN over IPv${family}, ${forwarding ? "with" : "without"} forwarding`,
      spec: { type: "vxlan", ...outer(family), id: 0xabcdef, tos: 0x28, ttl: 33 },
      forwarding,
    })),
  ),
  ...FAMILIES.flatMap((family): Case[] => [
    {
      name: `NVGRE over IPv${family}`,
      spec: { type: "nvgre", ...outer(family), id: 5001 },
      forwarding: true,
    },
    { name: `GRETAP over IPv${family}`, spec: { type: "nvgre", ...outer(family) }, forwarding: false },
    {
      name: `GRE with a key over IPv${family}`,
      spec: { type: "gre", ...outer(family), id: 0xdeadbeef, tos: 0x10 },
      forwarding: false,
    },
    { name: `GRE over IPv${family}`, spec: { type: "gre", ...outer(family) }, forwarding: true },
    {
      name: `IP in IPv${family}`,
      spec: { type: "ipip", ...outer(family), ttl: 9 },
      forwarding: family === 4,
    },
  ]),
  ...[true, false].map(
    (uniform): Case => ({
      name: `MPLS, TTL ${uniform ? "uniform" : "pipe"}`,
      spec: {
        ...{ type: "mpls", ...outer(4), nextHop: MACS.far, uniform, ttl: 77, tos: 5 },
        labels: uniform ? { request: [100, 101], reply: [200, 201] } : { request: [100], reply: [200] },
      },
      forwarding: true,
    }),
  ),
];

/** The same tunnel from the other end. */
function mirrored(spec: TunnelSpec): TunnelSpec {
  return {
    ...spec,
    ...{ local: spec.remote, remote: spec.local, nextHop: MACS.near },
    ...(spec.labels ? { labels: { request: spec.labels.reply, reply: spec.labels.request } } : {}),
  };
}

let lab: Lab;
let near: Namespace;
let far: Namespace;
let nearHost: TunnelHost;
let farHost: TunnelHost;
let nearAgent: Agent;
let farAgent: Agent;
/** Undoes what was made for a case, newest first. */
const undo: (() => Promise<unknown>)[] = [];

beforeAll(async () => {
  lab = new Lab();
  [near, far] = [lab.namespace("near"), lab.namespace("far")];
  const plan = new Plan();
  const ends = [near, far];
  plan.veth({ namespace: near, name: "u", mac: MACS.near }, { namespace: far, name: "u", mac: MACS.far });
  ends.forEach((namespace, index) => {
    plan.add(
      namespace,
      "link set dev lo up",
      `addr add ${OUTER[4][index]}/24 dev u`,
      `addr add ${OUTER[6][index]}/64 dev u nodad`,
      `link set dev u mtu ${UNDERLAY_MTU} up`,
    );
  });
  await must(["sh"], { input: plan.script(ends) });
  [nearAgent, farAgent] = [near.agent(), far.agent()];
  await nearAgent.call("serve", { name: "near" });
  await farAgent.call("serve", { name: "far" });
  nearHost = new TunnelHost(near);
  farHost = new TunnelHost(far);
});

afterAll(async () => {
  nearHost?.close();
  farHost?.close();
  await lab?.close();
});

async function forward(namespace: Namespace, on: boolean): Promise<void> {
  const value = on ? 1 : 0;
  await namespace.must([
    ...["sysctl", "-qw", `net.ipv4.ip_forward=${value}`, `net.ipv6.conf.all.forwarding=${value}`],
  ]);
}

/** Meanwhile every frame is on the wire as a NIC would send it. */
async function withoutOffloads<T>(work: () => Promise<T>): Promise<T> {
  const set = (value: "on" | "off") =>
    near.must(["ethtool", "-K", "u", "tso", value, "gso", value, "tx", value]);
  await set("off");
  try {
    return await work();
  } finally {
    await set("on");
  }
}

async function addAddresses(namespace: Namespace, index: 0 | 1): Promise<void> {
  await namespace.ip(`addr add ${INNER[4][index]}/24 dev t`, `addr add ${INNER[6][index]}/64 dev t nodad`);
}

/** Both ends up, and the neighbours forgotten: the first packet finds nothing prepared. */
async function build({ spec, forwarding }: Case): Promise<void> {
  await forward(near, forwarding);
  undo.push(() => forward(near, false));
  const there = mirrored(spec);
  const kernel = await hasKernelDriver(far, there);
  await nearHost.add("t", spec);
  undo.push(() => nearHost.remove("t"));
  if (kernel) {
    const end = new KernelEnd(far);
    await end.add("t", there, INNER);
    undo.push(() => end.remove("t", there));
  } else {
    await farHost.add("t", there);
    undo.push(() => farHost.remove("t"));
    await addAddresses(far, 1);
  }
  await addAddresses(near, 0);
  for (const namespace of [near, far]) await namespace.ip("neigh flush dev u");
}

async function ping(family: Family, ...options: string[]) {
  return near.run(["ping", `-${family}`, "-n", "-c", "1", "-W", "2", ...options, INNER[family][1]]);
}

function mtuOf(spec: TunnelSpec): number {
  return UNDERLAY_MTU - overhead(spec);
}

/** Frames on the far side of the wire, where they are as they were sent; `bytes` of them at least. */
async function seen(bytes: number, work: () => Promise<unknown>): Promise<Frame[]> {
  const capture = await Capture.start(far, "u", { direction: "in" });
  await work();
  await capture.holds(bytes);
  return readFrames(capture);
}

const isTunnelled = (frame: Frame) => frame.layers >= 2;

describe.each(CASES)("$name", (given) => {
  const { spec } = given;
  beforeAll(() => build(given));
  afterAll(async () => {
    for (const step of undo.splice(0).reverse()) await step();
  });

  it("carries connections both ways, with all offloads on", { timeout: 120_000 }, async () => {
    for (const family of FAMILIES) {
      const reached = await ping(family, "-c", "3", "-i", "0.2");
      expect(reached.status, `IPv${family}: ${reached.stdout}${reached.stderr}`).toBe(0);
      expect(reached.stdout).toContain(" 0% packet loss");
      const host = INNER[family][1];
      const target = { host, bytes: BYTES, timeoutMs: 20_000 };
      const expected = await nearAgent.call("expected", { bytes: BYTES });
      expect(await nearAgent.call("download", target), `IPv${family} download`).toEqual(expected);
      expect(await nearAgent.call("upload", target), `IPv${family} upload`).toEqual(expected);
      const text = "datagram ".repeat(100);
      expect(await nearAgent.call("udp", { host, port: 7, text })).toMatchObject({ text });
    }
    const stats = nearHost.stats("t");
    expect(stats.sent_bytes).toBeGreaterThan(2 * BYTES);
    expect(stats.received_bytes).toBeGreaterThan(2 * BYTES);
    expect(stats).toMatchObject({ received_errors: 0, sent_errors: 0 });
  });

  it("its frames are well-formed, complete and no larger than the wire allows", async () => {
    const bytes = 1 << 20;
    const expected = await nearAgent.call("expected", { bytes });
    for (const family of FAMILIES) {
      await ping(family);
      const upload = async () => {
        const target = { host: INNER[family][1], bytes, timeoutMs: 10_000 };
        expect(await nearAgent.call("upload", target)).toEqual(expected);
      };
      const all = await withoutOffloads(() => seen(bytes, upload));
      const frames = all.filter((frame) => isTunnelled(frame) && frame.tcp);
      expect(frames.length).toBeGreaterThan(bytes / UNDERLAY_MTU);
      expect(Math.max(...frames.map((frame) => frame.length))).toBe(UNDERLAY_MTU + 14);
      for (const frame of frames) expect(frame).toMatchObject(expectedFrame(spec, family));
      if (spec.type === "vxlan") {
        const ports = new Set(frames.map((frame) => frame.udpSource));
        expect(ports.size, "one connection, one port").toBe(1);
        for (const port of ports) expect(port).toBeGreaterThanOrEqual(49152);
      }
    }
  });

  it("takes packets of its MTU and none larger", async () => {
    for (const family of FAMILIES) {
      const payload = mtuOf(spec) - (family === 4 ? 28 : 48);
      await ping(family);
      expect((await ping(family, "-M", "do", "-s", `${payload}`)).status).toBe(0);
      const larger = await ping(family, "-M", "do", "-s", `${payload + 1}`);
      expect(larger.status).not.toBe(0);
      expect(larger.stdout + larger.stderr).toMatch(/message too long|Message too long/);
      // Without the prohibition it goes in fragments.
      expect((await ping(family, "-s", "4000")).status).toBe(0);
    }
    expect(nearHost.stats("t")).toMatchObject({ received_errors: 0, sent_errors: 0 });
  });

  it("segments UDP that is sent as one", async () => {
    for (const family of FAMILIES) {
      await ping(family);
      const send = async () => sendSegmented(family, 10, 1000);
      const frames = await withoutOffloads(() => seen(10_000, send));
      const parts = frames.filter((frame) => isTunnelled(frame) && frame.innerUdpDestination === 9);
      expect(parts.length).toBe(10);
      const length = 14 + overhead(spec) + (family === 4 ? 28 : 48) + 1000;
      for (const part of parts) expect(part).toMatchObject({ ...expectedFrame(spec, family), length });
    }
    expect(nearHost.stats("t").sent_errors).toBe(0);
  });
});

/** One send of `count` datagrams, which the kernel is to make of it (UDP_SEGMENT). */
function sendSegmented(family: Family, count: number, bytes: number): void {
  const libc = loadFfi().open("libc.so.6");
  const socket = libc.function("socket", "i32", ["i32", "i32", "i32"]);
  const setsockopt = libc.function("setsockopt", "i32", ["i32", "i32", "i32", "pointer", "u32"]);
  const connect = libc.function("connect", "i32", ["i32", "pointer", "u32"]);
  const send = libc.function("send", "i64", ["i32", "pointer", "size_t", "i32"]);
  const close = libc.function("close", "i32", ["i32"]);
  const address = Buffer.alloc(28);
  address.writeUInt16LE(family === 4 ? 2 : 10, 0);
  address.writeUInt16BE(9, 2);
  if (family === 4) Buffer.from(INNER[4][1].split(".").map(Number)).copy(address, 4);
  else Buffer.from("fd300000000000000000000000000002", "hex").copy(address, 8);
  const size = Buffer.alloc(4);
  size.writeUInt32LE(bytes);
  inside(near.path, () => {
    const fd = socket(family === 4 ? 2 : 10, 2, 0);
    expect(fd).toBeGreaterThanOrEqual(0);
    try {
      expect(setsockopt(fd, 17, 103, size, 4), "UDP_SEGMENT").toBe(0);
      expect(connect(fd, address, family === 4 ? 16 : 28)).toBe(0);
      expect(Number(send(fd, Buffer.alloc(count * bytes, 0x5a), count * bytes, 0))).toBe(count * bytes);
    } finally {
      close(fd);
    }
  });
}

function expectedFrame(spec: TunnelSpec, family: Family): Partial<Frame> {
  const inner = {
    ...{ innerSource: INNER[family][0], innerDestination: INNER[family][1] },
    ...{ badChecksums: 0, transportChecked: true, malformed: false },
  };
  if (spec.type === "mpls") {
    const ttl = spec.uniform ? 64 : spec.ttl!;
    const labels = spec.labels!.reply.map((label, at, all) => ({
      ...{ label, trafficClass: 5, bottom: at === all.length - 1, ttl },
    }));
    return { ...inner, labels, protocol: "mpls" };
  }
  return {
    ...inner,
    outerSource: spec.local,
    outerDestination: spec.remote,
    outerTtl: spec.ttl ?? 64,
    outerDscp: (spec.tos ?? 0) >> 2,
    protocol: spec.type === "nvgre" ? "gre" : spec.type,
    ...(spec.type === "vxlan" ? { vni: spec.id!, udpDestination: 4789 } : {}),
    ...(spec.type === "gre" && spec.id !== undefined ? { greKey: spec.id } : {}),
    ...(spec.type === "nvgre" && spec.id !== undefined ? { greKey: spec.id << 8 } : {}),
    ...((spec.type === "gre" || spec.type === "nvgre") && spec.id === undefined ? { greKey: null } : {}),
    dontFragment: spec.local.includes(":") ? null : true,
  };
}
