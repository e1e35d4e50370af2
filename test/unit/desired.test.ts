// SPDX-License-Identifier: Apache-2.0
// Which interface is which by the configuration, and how it is to be attached.

import { describe, expect, test } from "vitest";
import { decode } from "../../src/abi/codec.ts";
import { INTERFACE_FLAG, ORIGIN } from "../../src/abi/layout.gen.ts";
import { formatAddress } from "../../src/addresses.ts";
import {
  type Desired,
  desiredOf,
  encodeExclusions,
  type Guests,
  isAwaited,
} from "../../src/controller/desired.ts";
import type { FdbEntry, Link } from "../../src/kernel/rtnetlink.ts";
import { config, type HostOptions, host, link } from "../support/planModel.ts";

const NOBODY: Guests = new Map();

function desired(text: string, links: readonly Link[], options: HostOptions = {}, guests = NOBODY): Desired {
  return desiredOf(config(text), host(links, options), guests);
}

/** NAME → KEY */
function matched(wanted: Desired, links: readonly Link[]): Record<string, string> {
  const name = (ifindex: number) => links.find((one) => one.ifindex === ifindex)!.name;
  return Object.fromEntries(wanted.interfaces.map((item) => [name(item.ifindex), item.config!]));
}

const GUEST = "52:54:00:aa:00:01";
const TAP = link(20, "vnet0", { kind: "tun", mac: "fe:54:00:aa:00:01" });
const OTHER = link(21, "vnet1", { kind: "tun", mac: "fe:54:00:aa:00:02" });
const NIC = link(30, "eth0", { kind: null, parentDevice: "0000:01:00.0" });
const ALL = [TAP, OTHER, NIC];
const fdb = (ifindex: number, more: Partial<FdbEntry> = {}): FdbEntry => ({
  ifindex,
  master: 3,
  mac: GUEST,
  vlan: null,
  local: false,
  ...more,
});

describe("an interface matches", () => {
  const rows: [
    what: string,
    config: string,
    expected: Record<string, string>,
    options?: HostOptions,
    guests?: Guests,
  ][] = [
    ["nothing", "uplinks: []", {}],
    ["its name", "uplinks: [{name: eth0}]", { eth0: "uplinks[0]" }],
    ["no other name", "uplinks: [{name: eth}, {name: eth00}, {name: ETH0}]", {}],
    ["a star", "taps: [{name: 'vnet*'}]", { vnet0: "taps[0]", vnet1: "taps[0]" }],
    ["a question mark", "taps: [{name: 'vnet?'}]", { vnet0: "taps[0]", vnet1: "taps[0]" }],
    ["a star in the middle", "taps: [{name: 'v*1'}]", { vnet1: "taps[0]" }],
    ["no pattern of more characters", "taps: [{name: 'vnet??'}]", {}],
    ["what is special elsewhere only as itself", "taps: [{name: 'vnet.'}, {name: 'vnet[01]'}]", {}],
    [
      "the first of two entries",
      "taps: [{name: vnet1}, {name: 'vnet*'}]",
      { vnet1: "taps[0]", vnet0: "taps[1]" },
    ],
    [
      "uplinks before taps",
      "{uplinks: [{name: vnet0}], taps: [{name: 'vnet*'}]}",
      { vnet0: "uplinks[0]", vnet1: "taps[0]" },
    ],
    ["a guest by the tap's own MAC", `taps: [{guest_mac: "${GUEST}"}]`, { vnet0: "taps[0]" }],
    ["a guest, however its MAC is written", 'taps: [{guest_mac: "52-54-0-AA-0-1"}]', { vnet0: "taps[0]" }],
    [
      "a guest that the bridge knows there",
      `taps: [{guest_mac: "${GUEST}"}]`,
      { vnet0: "taps[0]", vnet1: "taps[0]" },
      { fdb: [fdb(21)] },
    ],
    [
      "a guest that was seen there",
      `taps: [{guest_mac: "${GUEST}"}]`,
      { vnet0: "taps[0]", vnet1: "taps[0]" },
      {},
      new Map([[21, new Set([GUEST])]]),
    ],
    [
      "no guest whose MAC the port itself has",
      `taps: [{guest_mac: "${GUEST}"}]`,
      { vnet0: "taps[0]" },
      { fdb: [fdb(21, { local: true })] },
    ],
    [
      "no guest that is behind a network card: it is elsewhere",
      `taps: [{guest_mac: "${GUEST}"}]`,
      { vnet0: "taps[0]" },
      { fdb: [fdb(30)] },
    ],
    [
      "its domain",
      "taps: [{domain: web}]",
      { vnet1: "taps[0]" },
      {
        domains: [
          {
            name: "web",
            interfaces: [
              { target: "vnet1", mac: null },
              { target: "vnet9", mac: null },
            ],
          },
        ],
      },
    ],
    [
      "no other domain",
      "taps: [{domain: web}]",
      {},
      { domains: [{ name: "web2", interfaces: [{ target: "vnet1", mac: null }] }] },
    ],
    [
      "no domain that has no tap yet",
      "taps: [{domain: web}]",
      {},
      { domains: [{ name: "web", interfaces: [{ target: null, mac: GUEST }] }] },
    ],
  ];
  test.each(rows)("%s", (_, text, expected, options, guests) => {
    const wanted = desired(text, ALL, options, guests);
    expect(matched(wanted, ALL)).toEqual(expected);
    expect(wanted.failed).toEqual([]);
  });
});

describe("an interface that matches twice is told", () => {
  const rows: [what: string, config: string, warnings: RegExp[]][] = [
    [
      "as uplink and as tap",
      "{uplinks: [{name: vnet0}], taps: [{name: '?net0'}]}",
      [/vnet0 matches uplinks\[0\] and taps\[0\]: uplinks\[0\] counts/],
    ],
    ["in two patterns", "taps: [{name: 'vnet*'}, {name: '*0'}]", [/vnet0 matches taps\[0\] and taps\[1\]/]],
    [
      "by a name that comes too late",
      "taps: [{name: 'vnet*'}, {name: vnet1}]",
      [/vnet1 matches taps\[0\] and taps\[1\]: taps\[0\] counts/],
    ],
    [
      "three times",
      "taps: [{name: 'vnet*'}, {name: '*0'}, {name: '*t0'}]",
      [/taps\[0\] and taps\[1\] and taps\[2\]/],
    ],
    [
      "unless a name stands before a pattern: that is how exceptions are written",
      "taps: [{name: vnet0}, {name: 'vnet*'}]",
      [],
    ],
    ["unless a guest does", `taps: [{guest_mac: "${GUEST}"}, {name: 'vnet*'}]`, []],
  ];
  test.each(rows)("%s", (_, text, warnings) => {
    const found = desired(text, [TAP, OTHER]).warnings;
    expect(found).toHaveLength(warnings.length);
    for (const [index, pattern] of warnings.entries()) expect(found[index]).toMatch(pattern);
  });
});

describe("an interface that cannot be attached", () => {
  const BOND = link(40, "bond0", { kind: "bond" });
  const rows: [what: string, link: Link, role: "uplinks" | "taps", why: RegExp][] = [
    [
      "loopback",
      link(1, "lo", { flags: { up: true, running: true, loopback: true } }),
      "uplinks",
      /loopback/,
    ],
    ["a bond's slave", link(41, "eth1", { master: 40, masterKind: "bond" }), "uplinks", /slave of bond0/],
    ["a bridge", link(42, "br0", { kind: "bridge" }), "taps", /bridge/],
    ["a tun without Ethernet", link(43, "tun0", { kind: "tun", ethernet: false }), "taps", /Ethernet/],
    ["a macvtap", link(44, "macvtap0", { kind: "macvtap" }), "taps", /macvtap/],
  ];
  test.each(rows)("is refused when it is named: %s", (_, one, role, why) => {
    const wanted = desired(`${role}: [{name: ${one.name}}, {name: good}]`, [BOND, one, link(50, "good")]);
    expect(wanted.failed).toEqual([
      expect.objectContaining({
        object: one.name,
        config: `${role}[0]`,
        code: "E_INTERFACE",
        message: expect.stringMatching(why),
      }),
    ]);
    expect(wanted.interfaces.map(({ ifindex }) => ifindex)).toEqual([50]);
  });

  test.each(rows)("is only told when a pattern meets it: %s", (_, one, role, why) => {
    const wanted = desired(`${role}: [{name: '*'}]`, one.name === "lo" ? [BOND] : [BOND, one]);
    expect(wanted.failed).toEqual([]);
    expect(wanted.warnings.join("\n")).toMatch(why);
    expect(wanted.interfaces.map(({ ifindex }) => ifindex)).toEqual([40]);
  });
});

test("status files of libvirt that cannot be read are told where a domain is asked for", () => {
  const unreadable = [{ path: "/run/libvirt/qemu/x.xml", why: "EACCES" }];
  expect(desired("taps: [{domain: web}]", ALL, { unreadable }).warnings).toEqual([
    expect.stringContaining("/run/libvirt/qemu/x.xml"),
  ]);
  expect(desired("taps: [{name: web}]", ALL, { unreadable }).warnings).toEqual([]);
});

describe("settings", () => {
  const { LEARN_DEVICES, RELEARN_NEVER, PICKUP_NO, EXCLUDES, CLAMP_MSS, VIA_STACK } = INTERFACE_FLAG;

  test("of an uplink", () => {
    const text = `
      zones: {red: 7}
      uplinks:
        - {name: eth0, mode: generic, zone: red, learn: devices, relearn: never, pickup: false, last_hops_max: 9}`;
    expect(desired(text, ALL).interfaces).toEqual([
      expect.objectContaining({
        ifindex: 30,
        role: "uplink",
        mode: "generic",
        zone: 7,
        flags: LEARN_DEVICES | RELEARN_NEVER | PICKUP_NO | CLAMP_MSS,
        lastHopsMax: 9,
        mtu: null,
        mark: 0,
        origin: ORIGIN.CONFIG,
        config: "uplinks[0]",
        configIndex: 0,
      }),
    ]);
  });

  test("of the way back by an uplink", () => {
    const way = "{name: eth0, mtu: 1400, clamp_mss: false, via: stack, mark: 0x10}";
    expect(desired(`uplinks: [${way}]`, ALL).interfaces).toMatchObject([
      { flags: VIA_STACK, mtu: 1400, mark: 16 },
    ]);
  });

  test("of a tap", () => {
    const text = `
      zones: {default: 3}
      taps:
        - {name: none}
        - {name: vnet0, policy: observe, vms_max: 5, exclude: [{port: 22}]}`;
    expect(desired(text, ALL).interfaces).toEqual([
      expect.objectContaining({
        role: "tap",
        mode: undefined,
        zone: 3,
        policy: "observe",
        flags: EXCLUDES,
        vmsMax: 5,
        config: "taps[1]",
        configIndex: 1,
      }),
    ]);
  });

  test("of the host", () => {
    const wanted = desired("{timeouts: {tcp: 100}, relearn_damping_seconds: 0}", []);
    expect(wanted.timeouts).toHaveLength(7);
    // Ticks of 0.268 s.
    expect(wanted.timeouts[1]).toBe(373);
    expect(wanted.relearnDamping).toBe(0);
  });

  test("of devices: by name, with their zone's number", () => {
    const wanted = desired(
      '{zones: {red: 7}, devices: [{name: a, zone: red, macs: ["02:00:00:00:00:01"]}]}',
      [],
    );
    expect([...wanted.devices]).toEqual([
      ["a", { config: "devices[0]", device: expect.objectContaining({ zone: 7, origin: ORIGIN.CONFIG }) }],
    ]);
  });
});

describe("exclusions", () => {
  const rules = (exclude: Parameters<typeof encodeExclusions>[1]) => {
    const { count, rules } = decode("exclusions", encodeExclusions("taps[0]", exclude));
    return rules.slice(0, count).map((rule) => {
      const { remote, prefix_bits, proto, port_first, port_last } = rule;
      return [formatAddress(remote), prefix_bits, proto, port_first, port_last];
    });
  };
  const rows: [what: string, exclude: Parameters<typeof encodeExclusions>[1], rules: unknown[][]][] = [
    ["an IPv4 prefix, mapped", [{ remote: "192.0.2.0/24" }], [["::ffff:c000:200", 120, 0, 0, 65535]]],
    ["an IPv4 address", [{ remote: "192.0.2.1" }], [["::ffff:c000:201", 128, 0, 0, 65535]]],
    ["all of IPv4", [{ remote: "0.0.0.0/0" }], [["::ffff:0:0", 96, 0, 0, 65535]]],
    ["an IPv6 prefix", [{ remote: "2001:db8::/32" }], [["2001:db8::", 32, 0, 0, 65535]]],
    ["a port", [{ port: 22 }], [["::", 0, 0, 22, 22]]],
    ["a range of ports", [{ port: "8000-8099", protocol: "tcp" }], [["::", 0, 6, 8000, 8099]]],
    [
      "UDP and SCTP",
      [{ protocol: "udp" }, { protocol: "sctp" }],
      [
        ["::", 0, 17, 0, 65535],
        ["::", 0, 132, 0, 65535],
      ],
    ],
    [
      "ICMP of both versions",
      [{ protocol: "icmp" }],
      [
        ["::", 0, 1, 0, 65535],
        ["::", 0, 58, 0, 65535],
      ],
    ],
    [
      "ICMP of one version",
      [{ protocol: "icmp", remote: "2001:db8::1" }],
      [["2001:db8::1", 128, 58, 0, 65535]],
    ],
  ];
  test.each(rows)("%s", (_, exclude, expected) => {
    expect(rules(exclude)).toEqual(expected);
  });

  test("are refused when there is no room for all", () => {
    const exclude = Array.from({ length: 9 }, () => ({ protocol: "icmp" as const }));
    expect(() => encodeExclusions("taps[4]", exclude)).toThrow(/taps\[4\] has 18 exclusions/);
  });
});

describe("an uplink that is not here is awaited", () => {
  const rows: [config: string, awaited: boolean][] = [
    ["uplinks: [{name: eth9}]", true],
    ["uplinks: [{name: 'eth*'}]", true],
    ["uplinks: [{name: eth1}]", false],
    ["taps: [{name: eth9}]", false],
    ["{taps: [{name: eth9}], uplinks: [{name: 'e*'}]}", true],
    ['taps: [{guest_mac: "02:00:00:00:00:01"}]', false],
  ];
  test.each(rows)("by %s: %s", (text, awaited) => {
    expect(isAwaited(desired(text, []), "eth9")).toBe(awaited);
  });
});
