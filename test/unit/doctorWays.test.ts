// SPDX-License-Identifier: Apache-2.0
// What doctor says of forwarding, marks, IPsec and MTUs.

import { describe, expect, test } from "vitest";
import { decode, encode, type StructInput } from "../../src/abi/codec.ts";
import { HOOK, INTERFACE_FLAG, ROLE } from "../../src/abi/layout.gen.ts";
import { decodeIpsecPolicy, decodeMarkRule, meetsRule } from "../../src/kernel/policyRouting.ts";
import {
  forwardingCheck,
  ipsecCheck,
  markCheck,
  mtuCheck,
  type WaysAround,
} from "../../src/ops/doctor/ways.ts";
import type { InterfaceEntry } from "../../src/tables/index.ts";
import { link } from "../support/planModel.ts";

const { NO_LINK_LAYER, VIA_STACK, CLAMP_MSS } = INTERFACE_FLAG;

function entry(name: string, ifindex: number, more: StructInput<"interface"> = {}): InterfaceEntry {
  const own = { name, ifindex, l3_ifindex: ifindex, role: ROLE.UPLINK, mtu: 1500, flags: CLAMP_MSS };
  return decode("interface", encode("interface", { ...own, ...more }));
}

const ETH = entry("eth0", 10);
const TAP = entry("vnet0", 20, { role: ROLE.TAP, flags: 0, l3_ifindex: 30 });
const LINKS = [link(10, "eth0"), link(11, "gre1"), link(20, "vnet0"), link(30, "br0")];

function around(more: Partial<WaysAround> = {}): WaysAround {
  return {
    links: LINKS,
    attached: [ETH, TAP],
    labelStacks: new Map(),
    rules: () => [],
    policies: () => [],
    sysctl: () => "0",
    ...more,
  };
}

const GRE = entry("gre1", 11, { flags: NO_LINK_LAYER });
const STACK = entry("eth0", 10, { flags: VIA_STACK, mark: 0x11 });
const LABELS = new Map([["00", 0x12]]);

describe("forwarding", () => {
  const rows: [what: string, more: Partial<WaysAround>, found: RegExp][] = [
    ["is not needed where nothing is routed", {}, /^not needed/],
    ["of an uplink without a link layer", { attached: [GRE, TAP] }, /^off for gre1 \(IPv4\), gre1 \(IPv6\)$/],
    [
      "of the taps' bridge for replies by the stack",
      { attached: [STACK, TAP] },
      /^off for br0 \(IPv4\), br0/,
    ],
    ["of the taps' bridge for labels", { labelStacks: LABELS }, /^off for br0/],
    [
      "of one family",
      { attached: [GRE], sysctl: (path) => (path === "ipv6/conf/gre1/forwarding" ? "0" : "1") },
      /^off for gre1 \(IPv6\)$/,
    ],
    ["that is on", { attached: [GRE], sysctl: () => "1" }, /^on for gre1$/],
    [
      "on a host without IPv6",
      { attached: [GRE], sysctl: (path) => (path.startsWith("ipv4") ? "1" : undefined) },
      /^on/,
    ],
  ];
  test.each(rows)("%s", (_, more, found) => {
    const result = forwardingCheck(around(more));
    expect(result.found).toMatch(found);
    expect(result.level).toBe(/^off/.test(result.found) ? "warn" : "ok");
    if (result.level === "warn") expect(result.hint).toMatch(/sysctl -w net\.ipv[46]\.conf\./);
  });
});

describe("marks", () => {
  const rule = (family: 4 | 6, mark: number, mask = 0xffff_ffff) => ({ family, mark, mask });
  const rows: [what: string, more: Partial<WaysAround>, found: string][] = [
    ["none", {}, "none is used"],
    [
      "that an uplink has for IPsec needs no rule",
      { attached: [entry("eth0", 10, { mark: 5 })] },
      "none is used",
    ],
    ["without a rule", { attached: [STACK] }, "no rule for mark 0x11"],
    [
      "without a rule for IPv6",
      { attached: [STACK], rules: () => [rule(4, 0x11)] },
      "no rule for IPv6 for mark 0x11",
    ],
    ["of labels", { labelStacks: LABELS, rules: () => [rule(4, 0x11)] }, "no rule for mark 0x12"],
    [
      "that a mask covers",
      { attached: [STACK], labelStacks: LABELS, rules: () => [rule(4, 0x10, 0xf0), rule(6, 0x10, 0xf0)] },
      "there is a rule for 0x11, 0x12",
    ],
  ];
  test.each(rows)("%s", (_, more, found) => {
    expect(markCheck(around(more))).toMatchObject({
      found,
      level: found.startsWith("no rule") ? "warn" : "ok",
    });
  });

  test("are compared under the rule's mask", () => {
    expect(meetsRule({ mark: 0xffff_0000, mask: 0xffff_0000 }, 0xffff_1234)).toBe(true);
    expect(meetsRule({ mark: 0x11, mask: 0xff }, 0x12)).toBe(false);
  });
});

describe("IPsec policies", () => {
  const xdp = entry("eth0", 10, { hook: HOOK.XDP_NATIVE });
  const own = { direction: "out", interfaceId: 0 } as const;
  const rows: [what: string, more: Partial<WaysAround>, level: string][] = [
    ["none", { attached: [xdp] }, "ok"],
    ["with an uplink on XDP", { attached: [xdp], policies: () => [own] }, "warn"],
    ["with uplinks on TC", { policies: () => [own] }, "ok"],
    ["of XFRM interfaces only", { attached: [xdp], policies: () => [{ ...own, interfaceId: 7 }] }, "ok"],
  ];
  test.each(rows)("%s", (_, more, level) => {
    expect(ipsecCheck(around(more)).level).toBe(level);
  });
});

test("an uplink that is narrower than a tap of its zone is told, and nothing is wrong", () => {
  const narrow = entry("gre1", 11, { mtu: 1476, flags: NO_LINK_LAYER | CLAMP_MSS });
  expect(mtuCheck(around()).found).toBe("no uplink is narrower than a tap");
  expect(mtuCheck(around({ attached: [narrow, TAP] }))).toMatchObject({
    level: "ok",
    found: expect.stringMatching(/^gre1 \(1476\) is narrower than vnet0 \(1500\): TCP is clamped to it/),
  });
  const other = { ...narrow, zone: 7 };
  expect(mtuCheck(around({ attached: [other, TAP] })).found).toBe("no uplink is narrower than a tap");
});

describe("messages of the kernel", () => {
  test("rules with a mark", () => {
    const message = (family: number, ...attributes: string[]) =>
      decodeMarkRule(
        Buffer.from(`0${family.toString(16)}0000000500000100000000${attributes.join("")}`, "hex"),
      );
    expect(message(2, "08000a0011000000", "08001000ff000000")).toEqual({ family: 4, mark: 0x11, mask: 0xff });
    expect(message(10, "08000a0012000000")).toEqual({ family: 6, mark: 0x12, mask: 0xffff_ffff });
    expect(message(2, "0800060000800000")).toBeNull();
    expect(message(2, "08000a0000000000", "0800100000000000")).toBeNull();
  });

  test("policies, with and without an interface", () => {
    const policy = (direction: number, attributes = "") => {
      const info = Buffer.alloc(168);
      info.writeUInt8(direction, 160);
      return decodeIpsecPolicy(Buffer.concat([info, Buffer.from(attributes, "hex")]));
    };
    expect(policy(1)).toEqual({ direction: "out", interfaceId: 0 });
    expect(policy(2, "08001f0005000000")).toEqual({ direction: "fwd", interfaceId: 5 });
    expect(policy(3)).toBeNull();
  });
});
