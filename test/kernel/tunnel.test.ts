// SPDX-License-Identifier: Apache-2.0
// tunnel_in and tunnel_out frame by frame: what goes in, which verdict, and every byte of what comes out. What GSO
// and VLAN metadata do a test run cannot show; test/net/tunnel-wire.test.ts does.

import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { StructValue } from "../../src/abi/codec.ts";
import { type BpfObject, isErrno } from "../../src/libbpf/index.ts";
import {
  type Device,
  enter,
  entries,
  loadPrograms,
  statsOf,
  type TunnelSpec,
} from "../support/tunnelByHand.ts";
import { internetChecksum, ipBytes } from "./support/bytes.ts";
import { describeFrame } from "./support/decode.ts";
import { enterPrivateNamespace } from "./support/devices.ts";
import { mutate } from "./support/mutate.ts";
import {
  arp,
  destinationOptions,
  ETH_P,
  type Extension,
  ethernet,
  hopByHop,
  IPPROTO,
  type Ipv4,
  type Ipv6,
  icmpEcho,
  ipv4,
  ipv6,
  type Network,
  raw,
  udp,
} from "./support/packet.ts";
import { Random } from "./support/random.ts";
import { skbContext, TC_VERDICT } from "./support/testRun.ts";

const UNDERLAY: Device = { ifindex: 300, mac: "02:00:00:00:77:01", mtu: 1500 };
/** Attached like the other, but no tunnel's. */
const ELSEWHERE: Device = { ifindex: 302, mac: "02:00:00:00:77:03", mtu: 1500 };
const NEIGHBOUR = "02:00:00:00:77:02";
const SOURCE_MAC = "02:6c:68:00:00:01";
const STRANGER = "02:00:00:00:77:99";

const OUTER = {
  4: { local: "192.0.2.1", remote: "192.0.2.2", other: "192.0.2.3", unreachable: "198.51.100.1" },
  6: { local: "2001:db8::1", remote: "2001:db8::2", other: "2001:db8::3", unreachable: "2001:db8:ffff::1" },
} as const;
const FAMILIES = [4, 6] as const;
type Family = (typeof FAMILIES)[number];

const LABELS = { request: [100, 101], reply: [200, 201, 202] };

/** By name: a netdev each, from ifindex 310 on. */
const SPECS = {
  vxlan4: { type: "vxlan", ...ends(4), id: 0xabcdef, ttl: 33, tos: 0x28 },
  vxlan6: { type: "vxlan", ...ends(6), id: 0xabcdef, ttl: 33, tos: 0x28 },
  nvgre4: { type: "nvgre", ...ends(4), id: 5001 },
  nvgre6: { type: "nvgre", ...ends(6), id: 5001 },
  gretap4: { type: "nvgre", ...ends(4) },
  gre4: { type: "gre", ...ends(4) },
  gre6: { type: "gre", ...ends(6) },
  greKey4: { type: "gre", ...ends(4), id: 0xdeadbeef },
  greKey6: { type: "gre", ...ends(6), id: 0 },
  ipip4: { type: "ipip", ...ends(4), ttl: 9 },
  ipip6: { type: "ipip", ...ends(6), ttl: 9, tos: 0xb8 },
  uniform: { type: "mpls", ...ends(4), labels: LABELS, nextHop: NEIGHBOUR, uniform: true, ttl: 77, tos: 5 },
  pipe: { type: "mpls", ...ends(4), labels: { request: [300], reply: [301] }, nextHop: NEIGHBOUR, ttl: 77 },
  unreachable: { type: "gre", ...ends(4), remote: OUTER[4].unreachable },
} satisfies Record<string, TunnelSpec>;
type Name = keyof typeof SPECS;

function ends(family: Family) {
  return { local: OUTER[family].local, remote: OUTER[family].remote, underlay: "u" };
}

const MTU = 1400;
const X = Object.fromEntries(
  Object.keys(SPECS).map((name, index) => [
    name,
    { ifindex: 310 + 2 * index, mac: `02:00:00:00:88:${(index + 16).toString(16)}`, mtu: MTU },
  ]),
) as Record<Name, Device>;
const peerOf = (name: Name) => X[name].ifindex + 1;

let object: BpfObject;

function ip(lines: string[]): void {
  const run = spawnSync("ip", ["-batch", "-"], { input: `${lines.join("\n")}\n`, encoding: "utf8" });
  if (run.status !== 0) throw new Error(`ip -batch: ${run.error?.message ?? run.stderr}`);
}

function forward(on: boolean): void {
  for (const family of ["ipv4", "ipv6"]) {
    writeFileSync(`/proc/sys/net/${family}/conf/all/forwarding`, on ? "1" : "0");
  }
}

beforeAll(() => {
  enterPrivateNamespace();
  const pair = (name: string, { ifindex, mac, mtu }: Device) => [
    `link add name ${name} index ${ifindex} address ${mac} type veth peer name ${name}_p index ${ifindex + 1}`,
    ...[name, `${name}_p`].map((one) => `link set dev ${one} addrgenmode none mtu ${mtu} up`),
  ];
  ip([
    ...pair("u", UNDERLAY),
    ...pair("elsewhere", ELSEWHERE),
    ...Object.entries(X).flatMap(([name, device]) => pair(name, device)),
    `addr add ${OUTER[4].local}/24 dev u`,
    `addr add ${OUTER[6].local}/64 dev u nodad`,
    ...FAMILIES.map((family) => `neigh add ${OUTER[family].remote} lladdr ${NEIGHBOUR} dev u nud permanent`),
  ]);
  forward(true);
  object = loadPrograms();
  for (const name of Object.keys(SPECS) as Name[]) {
    enter(object, entries(SPECS[name], X[name], { ...X[name], ifindex: peerOf(name) }, UNDERLAY));
  }
});

afterAll(() => object?.close());

const PROGRAMS = { in: "tunnel_in", out: "tunnel_out", labels: "tunnel_out_labels" } as const;

interface Outcome {
  verdict: string;
  out: Buffer;
  /** What it added to the statistics, those that are not zero. */
  counted: Partial<StructValue<"tunnel_stats">>;
}

function run(program: keyof typeof PROGRAMS, ifindex: number, frame: Buffer, name: Name): Outcome {
  const before = statsOf(object, X[name].ifindex);
  const result = object
    .program(PROGRAMS[program])
    .testRun({ data: frame, ctx: skbContext(ifindex, {}), dataOutSize: frame.length + 256 });
  const after = statsOf(object, X[name].ifindex);
  const counted = Object.fromEntries(
    Object.entries(after)
      .map(([key, value]) => [key, value - before[key as keyof typeof before]])
      .filter(([, value]) => value !== 0),
  );
  return { verdict: TC_VERDICT[result.retval] ?? `${result.retval}`, out: result.dataOut, counted };
}

const bytes32 = (...values: number[]): Buffer => {
  const bytes = Buffer.alloc(4 * values.length);
  values.forEach((value, index) => {
    bytes.writeUInt32BE(value >>> 0, 4 * index);
  });
  return bytes;
};

type Around = Partial<Ipv4> & Partial<Ipv6> & { to?: string; trailer?: number };

/** The frame with the outer IP header, as the other end sends it, unless told otherwise. */
function around(family: Family, protocol: number, payload: Buffer, header: Around = {}): Buffer {
  const { remote: source, local: destination } = OUTER[family];
  const content = raw(protocol, payload);
  const network =
    family === 4
      ? ipv4({ source, destination, dontFragment: true, ...header }, content)
      : ipv6({ source, destination, ...header }, content);
  return ethernet({ from: NEIGHBOUR, to: header.to ?? UNDERLAY.mac, trailer: header.trailer ?? 0 }, network);
}

function vxlan(
  inner: Buffer,
  options: { flags?: number; vni?: number; port?: number; check?: number } = {},
): Buffer {
  const head = Buffer.alloc(16);
  head.writeUInt16BE(50000, 0);
  head.writeUInt16BE(options.port ?? 4789, 2);
  head.writeUInt16BE(16 + inner.length, 4);
  head.writeUInt16BE(options.check ?? 0, 6);
  head.writeUInt32BE(options.flags ?? 0x08000000, 8);
  head.writeUInt32BE(((options.vni ?? 0xabcdef) << 8) >>> 0, 12);
  return Buffer.concat([head, inner]);
}

function gre(proto: number, inner: Buffer, flags = 0, ...words: number[]): Buffer {
  return Buffer.concat([bytes32(((flags << 16) | proto) >>> 0, ...words), inner]);
}

const TEB = 0x6558;
const GRE = { checksum: 0x8000, routing: 0x4000, key: 0x2000, sequence: 0x1000, source: 0x0800, version1: 1 };

const INNER = { 4: ["10.0.0.2", "10.0.0.1"], 6: ["fd00::2", "fd00::1"] } as const;

type Inside = { ecn?: number; ttl?: number; bytes?: number };

function packet(family: Family, { ecn = 0, ttl = 60, bytes }: Inside = {}): Network {
  const [source, destination] = INNER[family];
  const content =
    bytes === undefined
      ? icmpEcho(family, "request", 7)
      : raw(
          IPPROTO.udp,
          udp({ sourcePort: 1, destinationPort: 2, payload: Buffer.alloc(bytes, 1) }).encode(
            ipBytes(source),
            ipBytes(destination),
          ),
        );
  return family === 4
    ? ipv4({ source, destination, ttl, tos: 0x40 | ecn }, content)
    : ipv6({ source, destination, hopLimit: ttl, trafficClass: 0x40 | ecn }, content);
}

const MACS = { from: "02:00:00:00:00:a1", to: "02:00:00:00:01:01" };
const frameOf = (network: Network): Buffer => ethernet(MACS, network);
const ARP = ethernet(
  { ...MACS, to: "ff:ff:ff:ff:ff:ff" },
  arp("request", { mac: MACS.from, ip: "10.0.0.2" }, { mac: "00:00:00:00:00:00", ip: "10.0.0.1" }),
);

/** The frame that X receives of an inner packet without a link layer. */
const received = (name: Name, network: Network): Buffer =>
  ethernet({ from: SOURCE_MAC, to: X[name].mac }, network);

interface Row {
  what: string;
  tunnel: Name;
  frame: Buffer;
  /** What X receives; "pass": the kernel gets the frame as it is; "drop": nobody does. */
  becomes: Buffer | "pass" | "drop";
  at?: number;
}

const VX = frameOf(packet(4));

function vxlanRows(family: Family): Row[] {
  const tunnel = `vxlan${family}` as const;
  const row = (what: string, payload: Buffer, becomes: Row["becomes"], header: Around = {}): Row => ({
    what: `VXLAN over IPv${family}: ${what}`,
    tunnel,
    frame: around(family, IPPROTO.udp, payload, header),
    becomes,
  });
  const extension = (one: Extension): Around => ({ extensions: [one] });
  const limit: Extension = { protocol: IPPROTO.destinationOptions, rest: Buffer.from([0, 4, 1, 4, 1, 1, 0]) };
  const tagged = ethernet({ ...MACS, tags: [{ vid: 100 }] }, packet(6));
  return [
    row("IPv4 inside", vxlan(VX), VX),
    row("IPv6 inside", vxlan(frameOf(packet(6))), frameOf(packet(6))),
    row("ARP inside", vxlan(ARP), ARP),
    row("a tagged frame inside", vxlan(tagged), tagged),
    row(
      "another EtherType inside",
      vxlan(ethernet(MACS, { etherType: 0x88cc, bytes: Buffer.alloc(46) })),
      ethernet(MACS, { etherType: 0x88cc, bytes: Buffer.alloc(46) }),
    ),
    row("reserved bits are ignored", vxlan(VX, { flags: 0xf8123456 }), VX),
    row("a checksum is not looked at", vxlan(VX, { check: 0x1234 }), VX),
    row("the outer TTL does not matter", vxlan(VX), VX, { ttl: 1, hopLimit: 1 }),
    row("another VNI", vxlan(VX, { vni: 0xabcdee }), "pass"),
    row("without the flag that says there is a VNI", vxlan(VX, { flags: 0 }), "pass"),
    row("another port", vxlan(VX, { port: 4790 }), "pass"),
    row("another remote address", vxlan(VX), "pass", { source: OUTER[family].other }),
    row("another local address", vxlan(VX), "pass", { destination: OUTER[family].other }),
    row("another host's MAC", vxlan(VX), "pass", { to: STRANGER }),
    row("to everybody's MAC", vxlan(VX), "pass", { to: "ff:ff:ff:ff:ff:ff" }),
    row("a header that is cut", vxlan(Buffer.alloc(0)).subarray(0, 15), "pass"),
    row("nothing inside", vxlan(Buffer.alloc(0)), "drop"),
    row("half an Ethernet header inside", vxlan(VX.subarray(0, 13)), "drop"),
    row("half an IP header inside", vxlan(VX.subarray(0, 14 + 19)), "drop"),
    row("half a tag inside", vxlan(tagged.subarray(0, 17)), "drop"),
    { ...row("at another netdev", vxlan(VX), "pass", { to: ELSEWHERE.mac }), at: ELSEWHERE.ifindex },
    ...(family === 4
      ? [
          row("a first fragment", vxlan(VX), "pass", { moreFragments: true, dontFragment: false }),
          row("a later fragment", vxlan(VX), "pass", { fragmentOffset: 8, dontFragment: false }),
          row("IP options", vxlan(VX), "pass", { options: Buffer.from([1, 1, 1, 0]) }),
          row("a wrong header checksum", vxlan(VX), "pass", { checksum: 0x1234 }),
          row("a length beyond the frame", vxlan(VX), "pass", { totalLength: 20 + 16 + VX.length + 1 }),
          row("a length of less than its header", vxlan(VX), "pass", { totalLength: 19 }),
          row("a length that ends in the inner frame's header", vxlan(VX), "drop", {
            totalLength: 20 + 16 + 10,
          }),
          row("a length that ends in the VXLAN header", vxlan(VX), "pass", { totalLength: 20 + 12 }),
          row("an IP header of 16 bytes", vxlan(VX), "pass", { ihl: 4 }),
        ]
      : [
          row("the limit of nested tunnels", vxlan(VX), VX, extension(limit)),
          row("other destination options", vxlan(VX), "pass", extension(destinationOptions())),
          row("long destination options", vxlan(VX), "pass", extension(destinationOptions(1))),
          row("hop-by-hop options", vxlan(VX), "pass", extension(hopByHop())),
          row("a length beyond the frame", vxlan(VX), "pass", { payloadLength: 16 + VX.length + 1 }),
          row("a length that ends in the inner frame's header", vxlan(VX), "drop", {
            payloadLength: 16 + 10,
          }),
          row("a version that is not 6", vxlan(VX), "pass", { version: 7 }),
        ]),
  ];
}

function greRows(family: Family): Row[] {
  const [plain, keyed, ethernetInside] = [`gre${family}`, `greKey${family}`, `nvgre${family}`] as const;
  const key = SPECS[keyed].id;
  const four = packet(4);
  const six = packet(6);
  const row = (
    what: string,
    tunnel: Name,
    payload: Buffer,
    becomes: Row["becomes"],
    header: Around = {},
  ): Row => ({
    what: `GRE over IPv${family}: ${what}`,
    tunnel,
    frame: around(family, IPPROTO.gre, payload, header),
    becomes,
  });
  const p = (network: Network, change: (bytes: Buffer) => void): Buffer => {
    const bytes = Buffer.from(network.bytes);
    change(bytes);
    return bytes;
  };
  const { checksum, sequence } = GRE;
  const all = checksum | GRE.key | sequence;
  return [
    row("IPv4 inside", plain, gre(ETH_P.ip, four.bytes), received(plain, four)),
    row("IPv6 inside", plain, gre(ETH_P.ipv6, six.bytes), received(plain, six)),
    row(
      "the shortest packet inside",
      plain,
      gre(ETH_P.ip, packet(4, { bytes: 0 }).bytes),
      received(plain, packet(4, { bytes: 0 })),
    ),
    row("a key", keyed, gre(ETH_P.ip, four.bytes, GRE.key, key), received(keyed, four)),
    row("a checksum", plain, gre(ETH_P.ip, four.bytes, checksum, 0xbad00000), received(plain, four)),
    row("a sequence number", plain, gre(ETH_P.ip, four.bytes, sequence, 99), received(plain, four)),
    row("all three", keyed, gre(ETH_P.ip, four.bytes, all, 0xbad00000, key, 99), received(keyed, four)),
    row("another key", keyed, gre(ETH_P.ip, four.bytes, GRE.key, 0x11111111), "pass"),
    row(
      "the key after a checksum",
      keyed,
      gre(ETH_P.ip, four.bytes, checksum | GRE.key, key + 1, 12345),
      "pass",
    ),
    row("routing", plain, gre(ETH_P.ip, four.bytes, GRE.routing), "pass"),
    row("strict source routing", plain, gre(ETH_P.ip, four.bytes, GRE.source), "pass"),
    row("version 1", plain, gre(ETH_P.ip, four.bytes, GRE.version1), "pass"),
    row("another protocol inside", plain, gre(ETH_P.arp, Buffer.alloc(28)), "pass"),
    row("half a header", plain, Buffer.alloc(3), "pass"),
    row("a key that is cut", keyed, gre(ETH_P.ip, Buffer.alloc(0), GRE.key), "pass"),
    row("nothing inside", plain, gre(ETH_P.ip, Buffer.alloc(0)), "drop"),
    row("IPv4 that is IPv6", plain, gre(ETH_P.ip, six.bytes), "drop"),
    row(
      "IPv6 that is IPv4",
      plain,
      gre(
        ETH_P.ipv6,
        p(packet(4, { bytes: 40 }), () => {}),
      ),
      "drop",
    ),
    row(
      "an IHL of 4",
      plain,
      gre(
        ETH_P.ip,
        p(four, (b) => b.writeUInt8(0x44, 0)),
      ),
      "drop",
    ),
    row(
      "a length below the header",
      plain,
      gre(
        ETH_P.ip,
        p(four, (b) => b.writeUInt16BE(19, 2)),
      ),
      "drop",
    ),
    row(
      "a length beyond the outer packet",
      plain,
      gre(
        ETH_P.ip,
        p(four, (b) => b.writeUInt16BE(b.length + 1, 2)),
      ),
      "drop",
    ),
    row(
      "an IPv6 length beyond it",
      plain,
      gre(
        ETH_P.ipv6,
        p(six, (b) => b.writeUInt16BE(b.length - 39, 4)),
      ),
      "drop",
    ),
    row(
      "a length beyond the outer packet, but within the frame",
      plain,
      gre(
        ETH_P.ip,
        p(four, (b) => b.writeUInt16BE(b.length + 4, 2)),
      ),
      "drop",
      { trailer: 10 },
    ),
    row("Ethernet inside", ethernetInside, gre(TEB, VX, GRE.key, 5001 << 8), VX),
    row("a FlowID", ethernetInside, gre(TEB, VX, GRE.key, (5001 << 8) | 0x5a), VX),
    row("another VSID", ethernetInside, gre(TEB, VX, GRE.key, 5002 << 8), "pass"),
    row("ARP inside", ethernetInside, gre(TEB, ARP, GRE.key, 5001 << 8), ARP),
    row(
      "half an Ethernet header inside",
      ethernetInside,
      gre(TEB, VX.subarray(0, 13), GRE.key, 5001 << 8),
      "drop",
    ),
  ];
}

function ipipRows(family: Family): Row[] {
  const tunnel = `ipip${family}` as const;
  const cases = FAMILIES.map((inner): Row => {
    const protocol = inner === 4 ? 4 : 41;
    return {
      what: `IPv${inner} in IPv${family}`,
      tunnel,
      frame: around(family, protocol, packet(inner).bytes),
      becomes: received(tunnel, packet(inner)),
    };
  });
  const padded = ethernet({ from: SOURCE_MAC, to: X[tunnel].mac, trailer: 6 }, packet(4, { bytes: 0 }));
  return [
    ...cases,
    {
      what: `IPv4 in IPv${family}, padded by a NIC`,
      tunnel,
      frame: around(family, 4, packet(4, { bytes: 0 }).bytes, { trailer: 6 }),
      becomes: padded,
    },
    {
      what: `IPv6 said to be IPv4 in IPv${family}`,
      tunnel,
      frame: around(family, 4, packet(6).bytes),
      becomes: "drop",
    },
    {
      what: `IPv4 said to be IPv6 in IPv${family}`,
      tunnel,
      frame: around(family, 41, packet(4, { bytes: 40 }).bytes),
      becomes: "drop",
    },
    { what: `nothing in IPv${family}`, tunnel, frame: around(family, 4, Buffer.alloc(0)), becomes: "drop" },
  ];
}

function stack(labels: number[], content: Buffer, ttl = 50, to = UNDERLAY.mac): Buffer {
  const entries = bytes32(
    ...labels.map((label, index) => (label << 12) | (index + 1 === labels.length ? 0x100 : 0) | ttl),
  );
  return ethernet(
    { from: NEIGHBOUR, to },
    { etherType: ETH_P.mpls, bytes: Buffer.concat([entries, content]) },
  );
}

function mplsRows(): Row[] {
  const row = (what: string, frame: Buffer, becomes: Row["becomes"], tunnel: Name = "pipe"): Row => ({
    what: `MPLS: ${what}`,
    tunnel,
    frame,
    becomes,
  });
  const [four, six] = [packet(4), packet(6)];
  const bottomless = bytes32((300 << 12) | 50);
  return [
    row("IPv4 inside", stack([300], four.bytes), received("pipe", four)),
    row("IPv6 inside", stack([300], six.bytes), received("pipe", six)),
    row(
      "the shortest packet inside",
      stack([300], packet(4, { bytes: 0 }).bytes),
      received("pipe", packet(4, { bytes: 0 })),
    ),
    row("two labels", stack([100, 101], four.bytes, 200), received("uniform", four), "uniform"),
    row(
      "uniform: a lower TTL goes inside",
      stack([100, 101], four.bytes, 17),
      received("uniform", packet(4, { ttl: 17 })),
      "uniform",
    ),
    row(
      "uniform: the same with IPv6",
      stack([100, 101], six.bytes, 17),
      received("uniform", packet(6, { ttl: 17 })),
      "uniform",
    ),
    row(
      "uniform: IPv6's is not raised",
      stack([100, 101], six.bytes, 255),
      received("uniform", six),
      "uniform",
    ),
    row("pipe: a lower TTL stays outside", stack([300], four.bytes, 1), received("pipe", four)),
    row("the labels in another order", stack([101, 100], four.bytes), "pass", "uniform"),
    row("the first label alone", stack([100], four.bytes), "pass", "uniform"),
    row("another label", stack([301], four.bytes), "pass"),
    row("explicit null for IPv4 on top", stack([0, 300], four.bytes), received("pipe", four)),
    row("explicit null for IPv6 on top", stack([2, 300], six.bytes), received("pipe", six)),
    row("explicit null alone", stack([0], four.bytes), "pass"),
    row("explicit null for IPv4 below", stack([300, 0], four.bytes), received("pipe", four)),
    row("explicit null for IPv6 below", stack([300, 2], six.bytes), received("pipe", six)),
    row(
      "explicit null in between",
      stack([100, 0, 101], four.bytes, 200),
      received("uniform", four),
      "uniform",
    ),
    row("more labels than are known", stack([300, 301, 302, 303, 304], four.bytes), "pass"),
    row("another host's MAC", stack([300], four.bytes, 50, STRANGER), "pass"),
    row(
      "a stack without a bottom",
      ethernet({ from: NEIGHBOUR, to: UNDERLAY.mac }, { etherType: ETH_P.mpls, bytes: bottomless }),
      "pass",
    ),
    row("nothing inside", stack([300], Buffer.alloc(0)), "pass"),
    row("a TTL of 0", stack([300], four.bytes, 0), "drop"),
    row("no IP inside", stack([300], Buffer.alloc(40)), "drop"),
    row("half a header inside", stack([300], four.bytes.subarray(0, 19)), "drop"),
    {
      ...row("at another netdev", stack([300], four.bytes, 50, ELSEWHERE.mac), "pass"),
      at: ELSEWHERE.ifindex,
    },
  ];
}

const ROWS = [
  ...FAMILIES.flatMap((family) => [...vxlanRows(family), ...greRows(family), ...ipipRows(family)]),
  ...mplsRows(),
];

describe("tunnel_in", () => {
  test.each(ROWS)("$what", ({ tunnel, frame, becomes, at }) => {
    const { verdict, out, counted } = run("in", at ?? UNDERLAY.ifindex, frame, tunnel);
    if (becomes === "pass") {
      expect({ verdict, counted }).toEqual({ verdict: "pass", counted: {} });
      expect(out.equals(frame), describeFrame(out)).toBe(true);
    } else if (becomes === "drop") {
      expect({ verdict, counted }).toEqual({ verdict: "drop", counted: { received_errors: 1 } });
    } else {
      expect(out.toString("hex"), describeFrame(out)).toBe(becomes.toString("hex"));
      expect({ verdict, counted }).toEqual({
        verdict: "redirect",
        counted: { received_packets: 1, received_bytes: becomes.length },
      });
    }
  });

  test("what is no tunnel's passes", () => {
    const others = [
      around(4, IPPROTO.tcp, Buffer.alloc(40)),
      around(6, IPPROTO.tcp, Buffer.alloc(40)),
      around(4, IPPROTO.esp, Buffer.alloc(40)),
      ARP,
      ethernet({ from: NEIGHBOUR, to: UNDERLAY.mac, tags: [{ vid: 5 }] }, packet(4)),
      ethernet({ from: NEIGHBOUR, to: UNDERLAY.mac }, { etherType: ETH_P.mpls, bytes: Buffer.alloc(3) }),
      ...[34, 41, 49].map((length) => around(4, IPPROTO.udp, vxlan(VX)).subarray(0, length)),
      ...[54, 61, 69].map((length) => around(6, IPPROTO.udp, vxlan(VX)).subarray(0, length)),
      ...[34, 37].map((length) => around(4, IPPROTO.gre, gre(ETH_P.ip, packet(4).bytes)).subarray(0, length)),
    ];
    for (const frame of others) {
      const { verdict, out } = run("in", UNDERLAY.ifindex, frame, "vxlan4");
      expect(verdict, describeFrame(frame)).toBe("pass");
      expect(out.equals(frame)).toBe(true);
    }
  });

  test("damaged frames pass as they are, go to nobody, or come out whole", () => {
    const random = new Random(0x7e11);
    const frames = ROWS.map(({ frame }) => frame);
    const seen: Record<string, number> = {};
    for (let round = 0; round < 12_000; round++) {
      const frame = mutate(random.pick(frames), 1 + random.below(3), random, () => random.pick(frames));
      // Else the checksum of the outer header would hide most of it.
      if (frame.length >= 34 && frame.readUInt16BE(12) === ETH_P.ip && !random.chance(4)) {
        frame.writeUInt16BE(0, 24);
        frame.writeUInt16BE(internetChecksum(frame.subarray(14, 34)), 24);
      }
      let verdict: string;
      let out: Buffer;
      try {
        ({ verdict, out } = run("in", UNDERLAY.ifindex, frame, "vxlan4"));
      } catch (error) {
        // A frame that says IP and holds none is not run at all.
        if (!isErrno(error, "EINVAL")) throw error;
        verdict = "refused";
        out = frame;
      }
      seen[verdict] = (seen[verdict] ?? 0) + 1;
      const what = `round ${round}: ${frame.toString("hex")}`;
      expect(["pass", "drop", "redirect", "refused"], what).toContain(verdict);
      if (verdict === "pass") expect(out.equals(frame), what).toBe(true);
      if (verdict === "redirect") {
        // What is left is the end of what came in, but for a header, its marks, its TTL and its checksum.
        expect(out.length, what).toBeLessThan(frame.length);
        expect(out.length, what).toBeGreaterThanOrEqual(34);
        const behind = Math.max(out.length - 14 - 40, 0);
        expect(frame.subarray(frame.length - behind).equals(out.subarray(out.length - behind)), what).toBe(
          true,
        );
      }
    }
    for (const verdict of ["pass", "drop", "redirect"]) expect(seen[verdict], verdict).toBeGreaterThan(300);
  });

  /** RFC 6040, figure 4: rows are the inner codepoint, columns the outer; null is a drop. */
  const ECN = [
    [0, 0, 0, null],
    [1, 1, 1, 3],
    [2, 1, 2, 3],
    [3, 3, 3, 3],
  ];
  test.each(FAMILIES.flatMap((outer) => FAMILIES.map((inner) => ({ outer, inner }))))(
    "congestion marks of IPv$outer around IPv$inner",
    ({ outer, inner }) => {
      for (const [kind, tunnel] of [
        ["ipip", `ipip${outer}`],
        ["vxlan", `vxlan${outer}`],
      ] as const) {
        ECN.forEach((columns, innerEcn) => {
          columns.forEach((merged, outerEcn) => {
            const header = { tos: 0x20 | outerEcn, trafficClass: 0x20 | outerEcn };
            const before = packet(inner, { ecn: innerEcn });
            const [frame, after] =
              kind === "ipip"
                ? [
                    around(outer, inner === 4 ? 4 : 41, before.bytes, header),
                    (n: Network) => received(tunnel, n),
                  ]
                : [around(outer, IPPROTO.udp, vxlan(frameOf(before)), header), frameOf];
            const { verdict, out } = run("in", UNDERLAY.ifindex, frame, tunnel);
            const what = `${kind}, inner ${innerEcn}, outer ${outerEcn}`;
            expect(verdict, what).toBe(merged === null ? "drop" : "redirect");
            if (merged !== null) {
              expect(out.toString("hex"), what).toBe(after(packet(inner, { ecn: merged })).toString("hex"));
            }
          });
        });
      }
    },
  );
});

/** The outer header that we send, with what depends on the flow's hash as it is in `out`. */
function sent(name: Name, protocol: number, payload: Buffer, ecn: number, out: Buffer): Buffer {
  const { local, remote, ttl = 64, tos = 0 } = SPECS[name] as TunnelSpec;
  const content = raw(protocol, payload);
  const network = local.includes(":")
    ? ipv6(
        {
          source: local,
          destination: remote,
          hopLimit: ttl,
          trafficClass: tos | ecn,
          flowLabel: out.readUInt32BE(14) & 0xfffff,
        },
        content,
      )
    : ipv4({ source: local, destination: remote, ttl, tos: tos | ecn, id: 0, dontFragment: true }, content);
  return ethernet({ from: UNDERLAY.mac, to: NEIGHBOUR }, network);
}

function sentVxlan(inner: Buffer, out: Buffer, outerBytes: number): Buffer {
  const bytes = vxlan(inner);
  const port = out.readUInt16BE(14 + outerBytes);
  expect(port).toBeGreaterThanOrEqual(49152);
  bytes.writeUInt16BE(port, 0);
  return bytes;
}

describe("tunnel_out", () => {
  const insides: [string, Network][] = [
    ...FAMILIES.flatMap((family): [string, Network][] =>
      [0, 1, 2, 3].map((ecn) => [`IPv${family} with ECN ${ecn}`, packet(family, { ecn })]),
    ),
    ["IPv4 of the MTU", packet(4, { bytes: MTU - 28 })],
    ["IPv6 of the MTU", packet(6, { bytes: MTU - 48 })],
  ];
  const ecnOf = ({ etherType, bytes }: Network) =>
    etherType === ETH_P.ip ? bytes[1]! & 3 : etherType === ETH_P.ipv6 ? (bytes.readUInt32BE(0) >> 20) & 3 : 0;
  const others: [string, Network][] = [
    ["ARP", { etherType: ETH_P.arp, bytes: ARP.subarray(14) }],
    ["LLDP", { etherType: 0x88cc, bytes: Buffer.alloc(46, 1) }],
    ["labels", { etherType: ETH_P.mpls, bytes: Buffer.alloc(60, 1) }],
  ];

  const sends = (name: Name, frame: Buffer, expected: (out: Buffer) => Buffer) => {
    const { verdict, out, counted } = run("out", X[name].ifindex, frame, name);
    expect({ verdict, counted }).toEqual({
      verdict: "redirect",
      counted: { sent_packets: 1, sent_bytes: frame.length },
    });
    expect(out.toString("hex"), describeFrame(out)).toBe(expected(out).toString("hex"));
  };

  for (const [what, network] of [...insides, ...others]) {
    test.each(["vxlan4", "vxlan6", "nvgre4", "nvgre6", "gretap4"] as const)(`${what} by %s`, (name) => {
      const frame = frameOf(network);
      sends(name, frame, (out) => {
        const spec: TunnelSpec = SPECS[name];
        const ecn = ecnOf(network);
        if (spec.type === "vxlan") {
          return sent(name, IPPROTO.udp, sentVxlan(frame, out, spec.local.includes(":") ? 40 : 20), ecn, out);
        }
        const header = spec.id === undefined ? gre(TEB, frame) : gre(TEB, frame, GRE.key, spec.id << 8);
        return sent(name, IPPROTO.gre, header, ecn, out);
      });
    });
  }

  for (const [what, network] of insides) {
    test.each(["gre4", "gre6", "greKey4", "greKey6", "ipip4", "ipip6"] as const)(`${what} by %s`, (name) => {
      sends(name, frameOf(network), (out) => {
        const spec: TunnelSpec = SPECS[name];
        const { etherType, bytes } = network;
        if (spec.type === "ipip")
          return sent(name, etherType === ETH_P.ip ? 4 : 41, bytes, ecnOf(network), out);
        const header =
          spec.id === undefined ? gre(etherType, bytes) : gre(etherType, bytes, GRE.key, spec.id);
        return sent(name, IPPROTO.gre, header, ecnOf(network), out);
      });
    });
  }

  test("one flow has one source port, and many flows have many", () => {
    const portOf = (last: number) => {
      const network = ipv4(
        { source: "10.0.0.2", destination: `10.0.1.${last}` },
        udp({ sourcePort: 1000 + last, destinationPort: 53 }),
      );
      return run("out", X.vxlan4.ifindex, frameOf(network), "vxlan4").out.readUInt16BE(34);
    };
    expect(portOf(1)).toBe(portOf(1));
    expect(new Set(Array.from({ length: 50 }, (_, last) => portOf(last))).size).toBeGreaterThan(40);
  });

  const drops = (name: Name, frame: Buffer, program: "out" | "labels" = "out") => {
    const ifindex = program === "out" ? X[name].ifindex : peerOf(name);
    const { verdict, counted } = run(program, ifindex, frame, name);
    expect({ verdict, counted }).toEqual({ verdict: "drop", counted: { sent_errors: 1 } });
  };

  test.each(["gre4", "gre6", "ipip4", "ipip6"] as const)("nothing but IP by %s", (name) => {
    drops(name, ARP);
    drops(name, frameOf(others[1]![1]));
  });

  test.each(["vxlan4", "vxlan6", "nvgre4", "gre4", "gre6", "ipip4", "ipip6"] as const)(
    "nothing that is larger than the MTU by %s",
    (name) => {
      drops(name, frameOf(packet(4, { bytes: MTU - 27 })));
      drops(name, frameOf(packet(6, { bytes: MTU - 47 })));
    },
  );

  test("nothing without two bytes behind its Ethernet header", () =>
    drops("vxlan4", frameOf({ etherType: 0x88cc, bytes: Buffer.alloc(1) })));

  test("nothing where there is no route", () => drops("unreachable", frameOf(packet(4))));

  test("nothing by a netdev that is no tunnel's", () => {
    const frame = frameOf(packet(4));
    const result = object
      .program("tunnel_out")
      .testRun({ data: frame, ctx: skbContext(ELSEWHERE.ifindex, {}), dataOutSize: frame.length + 256 });
    expect(TC_VERDICT[result.retval]).toBe("drop");
  });

  test("without forwarding the neighbour layer finds the way", () => {
    forward(false);
    try {
      for (const name of ["vxlan4", "vxlan6", "gre4", "ipip6"] as const) {
        const { verdict, out } = run("out", X[name].ifindex, frameOf(packet(4)), name);
        expect(verdict).toBe("redirect");
        expect(out.subarray(0, 12).equals(Buffer.alloc(12)), "it writes the MACs").toBe(true);
      }
    } finally {
      forward(true);
    }
  });

  describe("labels", () => {
    const entry = (label: number, traffic: number, bottom: boolean, ttl: number) =>
      ((label << 12) | (traffic << 9) | (bottom ? 0x100 : 0) | ttl) >>> 0;
    const labelled = (network: Network, ...labels: number[]) =>
      ethernet(
        { from: UNDERLAY.mac, to: NEIGHBOUR },
        { etherType: ETH_P.mpls, bytes: Buffer.concat([bytes32(...labels), network.bytes]) },
      );

    test.each(FAMILIES)("uniform: the TTL of IPv%i in every label", (family) => {
      const network = packet(family, { ttl: 41 });
      const { verdict, out } = run("labels", peerOf("uniform"), frameOf(network), "uniform");
      const [a, b, c] = LABELS.reply;
      const wanted = [entry(a!, 5, false, 41), entry(b!, 5, false, 41), entry(c!, 5, true, 41)];
      expect(verdict).toBe("redirect");
      expect(out.toString("hex")).toBe(labelled(network, ...wanted).toString("hex"));
    });

    test.each(FAMILIES)("pipe: the tunnel's own around IPv%i", (family) => {
      const network = packet(family, { ttl: 41 });
      const { verdict, out, counted } = run("labels", peerOf("pipe"), frameOf(network), "pipe");
      expect(verdict).toBe("redirect");
      expect(out.toString("hex")).toBe(labelled(network, entry(301, 0, true, 77)).toString("hex"));
      expect(counted).toEqual({ sent_packets: 1, sent_bytes: frameOf(network).length });
    });

    test("nothing but IP, and nothing larger than the underlay's MTU", () => {
      drops("pipe", ARP, "labels");
      drops("pipe", frameOf(packet(4, { bytes: UNDERLAY.mtu - 4 - 28 + 1 })), "labels");
    });

    test("nothing of a netdev that is no tunnel's, nor by a tunnel of another kind", () => {
      const frame = frameOf(packet(4));
      const result = object
        .program("tunnel_out_labels")
        .testRun({ data: frame, ctx: skbContext(peerOf("gre4"), {}), dataOutSize: frame.length + 256 });
      expect(TC_VERDICT[result.retval]).toBe("drop");
      drops("pipe", frame);
    });
  });
});
