// SPDX-License-Identifier: Apache-2.0
// What the data of a link's kind says: of messages as Linux 6.18 sent them, and for kinds that this kernel lacks of
// attributes as their drivers write them (the fill_info functions of drivers/net and net/ipv4, net/ipv6).

import { describe, expect, test } from "vitest";
import { beneath } from "../../src/controller/beneath.ts";
import { decodeKind, type LinkKindFacts } from "../../src/kernel/linkKind.ts";
import {
  decodeAttributes,
  encodeAttributes,
  type NetlinkAttribute,
} from "../../src/kernel/netlinkMessage.ts";
import type { Link } from "../../src/kernel/rtnetlink.ts";
import { host, link } from "../support/planModel.ts";

const u8 = (...bytes: number[]): Buffer => Buffer.from(bytes);
const FLAG = Buffer.alloc(0);
const NO4 = Buffer.alloc(4);
const NO6 = Buffer.alloc(16);
const A4 = u8(192, 0, 2, 2);
const A6 = Buffer.from("20010db8000000000000000000000002", "hex");

/** IFLA_INFO_DATA of `ip link add vx type vxlan external`, captured. */
const VXLAN_EXTERNAL =
  "0800010000000000050005000000000005001c0000000000050006000000000005001d000000000008001a0000000000080020000000000005" +
  "0007000000000005000b000000000005000c000000000005000d000000000005000e00000000000500190001000000080008002c0100000800" +
  "09000000000006000f0012b500000500120001000000050013000000000005001400000000000500150000000000050016000000000005001f" +
  "000100000008000a0000000000";

const ETHER = 1;

describe("a link of a kind", () => {
  type Row = [
    what: string,
    kind: string | null,
    type: number,
    data: NetlinkAttribute[],
    facts: LinkKindFacts,
  ];
  const rows: Row[] = [
    ["a NIC", null, ETHER, [], {}],
    ["a tun", "tun", 0xfffe, [{ type: 3, value: u8(1) }], { bareIp: true }],
    [
      "a VXLAN",
      "vxlan",
      ETHER,
      [
        { type: 1, value: 5 },
        { type: 25, value: u8(0) },
      ],
      {},
    ],
    [
      "a shared VXLAN",
      "vxlan",
      ETHER,
      [
        { type: 1, value: 0 },
        { type: 25, value: u8(1) },
      ],
      { external: true },
    ],
    [
      "a GENEVE",
      "geneve",
      ETHER,
      [
        { type: 1, value: 5 },
        { type: 2, value: A4 },
      ],
      {},
    ],
    [
      "a shared GENEVE",
      "geneve",
      ETHER,
      [
        { type: 1, value: 0 },
        { type: 6, value: FLAG },
      ],
      { external: true },
    ],
    ["a GRE", "gre", 778, [{ type: 7, value: A4 }], { bareIp: true }],
    ["a GRE without a remote", "gre", 778, [{ type: 7, value: NO4 }], { bareIp: true, anyRemote: true }],
    [
      "a shared GRE",
      "gre",
      0xfffe,
      [
        { type: 7, value: NO4 },
        { type: 18, value: FLAG },
      ],
      { bareIp: true, external: true },
    ],
    ["a GRETAP", "gretap", ETHER, [{ type: 7, value: A4 }], {}],
    ["a shared GRETAP", "gretap", ETHER, [{ type: 18, value: FLAG }], { external: true }],
    ["an ip6gre", "ip6gre", 823, [{ type: 7, value: A6 }], { bareIp: true }],
    [
      "an ip6gre without a remote",
      "ip6gre",
      823,
      [{ type: 7, value: NO6 }],
      { bareIp: true, anyRemote: true },
    ],
    ["a shared ip6gretap", "ip6gretap", ETHER, [{ type: 18, value: FLAG }], { external: true }],
    ["a shared ERSPAN", "erspan", ETHER, [{ type: 18, value: FLAG }], { external: true }],
    ["an IPIP", "ipip", 768, [{ type: 3, value: A4 }], { bareIp: true }],
    ["tunl0", "ipip", 768, [{ type: 3, value: NO4 }], { bareIp: true, anyRemote: true }],
    [
      "a shared IPIP",
      "ipip",
      768,
      [
        { type: 3, value: NO4 },
        { type: 19, value: FLAG },
      ],
      { bareIp: true, external: true },
    ],
    ["a SIT", "sit", 776, [{ type: 3, value: A4 }], { bareIp: true }],
    ["an ip6tnl", "ip6tnl", 769, [{ type: 3, value: A6 }], { bareIp: true }],
    ["a shared ip6tnl", "ip6tnl", 769, [{ type: 19, value: FLAG }], { bareIp: true, external: true }],
    ["a VTI without a remote: policies say where", "vti", 768, [{ type: 5, value: NO4 }], { bareIp: true }],
    ["an XFRM interface", "xfrm", 0xfffe, [{ type: 2, value: 7 }], { bareIp: true }],
    ["a shared XFRM interface", "xfrm", 0xfffe, [{ type: 3, value: FLAG }], { bareIp: true, external: true }],
    ["a WireGuard", "wireguard", 0xfffe, [], { bareIp: true }],
    ["a CAN bus", "vcan", 280, [], {}],
    ["a PPP link", "ppp", 512, [], {}],
    [
      "a VLAN",
      "vlan",
      ETHER,
      [
        { type: 1, value: u8(10, 0) },
        { type: 5, value: u8(0x88, 0xa8) },
      ],
      { vlanId: 10, vlanProtocol: 0x88a8 },
    ],
    ["an ipvlan in mode l2", "ipvlan", ETHER, [{ type: 1, value: u8(0, 0) }], {}],
    ["an ipvlan in mode l3", "ipvlan", ETHER, [{ type: 1, value: u8(1, 0) }], { routesItself: true }],
  ];
  test.each(rows)("%s", (_, kind, type, data, facts) => {
    expect(decodeKind(kind, type, decodeAttributes(encodeAttributes(data)))).toEqual(facts);
  });

  test("a shared VXLAN, as the kernel says it", () => {
    const data = Buffer.from(VXLAN_EXTERNAL.slice(0, 2 * 0xc4), "hex");
    expect(decodeKind("vxlan", ETHER, decodeAttributes(data))).toEqual({ external: true });
  });
});

describe("beneath an uplink", () => {
  const NO_TAG = { proto: 0, vid: 0 };
  const tag = (vid: number, proto = 0x8100) => ({ proto, vid });
  const on = (ifindex: number, name: string, lower: number, kind: string, more: Partial<Link> = {}) =>
    link(ifindex, name, { kind, lower, ...more });
  const vlan = (ifindex: number, lower: number, vlanId: number, vlanProtocol = 0x8100) =>
    on(ifindex, `v${ifindex}`, lower, "vlan", { vlanId, vlanProtocol });
  const port = (ifindex: number, master: number, masterKind = "bridge", more: Partial<Link> = {}) =>
    link(ifindex, `p${ifindex}`, { master, masterKind, ...more });
  const NIC = link(10, "eth0", { kind: null });
  const BRIDGE = link(30, "br0", { kind: "bridge" });

  type Row = [what: string, links: Link[], of: number, uplinks: number[], found: object | null];
  const rows: Row[] = [
    ["is nothing of a NIC", [NIC], 10, [10], null],
    ["a VLAN is its NIC", [NIC, vlan(11, 10, 5)], 11, [10, 11], { ifindex: 10, tag: tag(5) }],
    ["a VLAN whose NIC is not attached is nothing", [NIC, vlan(11, 10, 5)], 11, [11], null],
    ["a VLAN with id 0 has no tag", [NIC, vlan(11, 10, 0)], 11, [10], { ifindex: 10, tag: NO_TAG }],
    [
      "QinQ is the outer VLAN",
      [NIC, vlan(11, 10, 100, 0x88a8), vlan(12, 11, 5)],
      12,
      [10, 11, 12],
      { ifindex: 11, tag: tag(5) },
    ],
    [
      "QinQ with the outer VLAN left out is nothing: two tags",
      [NIC, vlan(11, 10, 100, 0x88a8), vlan(12, 11, 5)],
      12,
      [10, 12],
      null,
    ],
    [
      "a macvlan on a VLAN that is left out is the NIC",
      [NIC, vlan(11, 10, 7), on(12, "mv0", 11, "macvlan")],
      12,
      [10, 12],
      { ifindex: 10, tag: tag(7) },
    ],
    ["an ipvlan is its parent", [NIC, on(12, "iv0", 10, "ipvlan")], 12, [10], { ifindex: 10, tag: NO_TAG }],
    [
      "a bridge is its ports, by the flag alone",
      [BRIDGE, port(31, 30), port(32, 30)],
      30,
      [32],
      { ifindex: 0, tag: NO_TAG },
    ],
    [
      "a VLAN on a bridge is the bridge, if a port is attached",
      [BRIDGE, port(31, 30), vlan(33, 30, 9)],
      33,
      [31],
      { ifindex: 30, tag: tag(9) },
    ],
    [
      "a bridge over a VLAN that is left out is the NIC",
      [NIC, BRIDGE, { ...vlan(11, 10, 7), master: 30, masterKind: "bridge" }, port(31, 30)],
      30,
      [10],
      { ifindex: 10, tag: tag(7) },
    ],
    [
      "a bond is its attached slave",
      [link(40, "bond0", { kind: "bond" }), port(41, 40, "bond"), port(42, 40, "bond")],
      40,
      [42],
      { ifindex: 42, tag: NO_TAG },
    ],
    ["a tunnel is nothing", [NIC, on(12, "vx0", 10, "vxlan"), on(13, "gre1", 10, "gre")], 12, [10], null],
    ["a veth is not its peer", [link(10, "a", { lower: 11 }), link(11, "b", { lower: 10 })], 10, [11], null],
    [
      "what is in another namespace is nothing",
      [NIC, on(12, "mv0", 10, "macvlan", { linkNetns: 0 })],
      12,
      [10],
      null,
    ],
  ];
  test.each(rows)("%s", (_, links, of, uplinks, found) => {
    const facts = host(links);
    const zones = new Map(uplinks.map((ifindex) => [ifindex, 3]));
    expect(beneath(facts, facts.link(of)!, 3, zones)).toEqual(found);
    expect(beneath(facts, facts.link(of)!, 4, zones)).toBeNull();
  });

  test("a ring ends", () => {
    const facts = host([on(12, "a", 13, "macvlan"), on(13, "b", 12, "macvlan")]);
    expect(beneath(facts, facts.link(12)!, 0, new Map())).toBeNull();
  });
});
