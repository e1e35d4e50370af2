// SPDX-License-Identifier: Apache-2.0

import { describe, expect, test } from "vitest";
import { parseAddress } from "../../src/addresses.ts";
import { icmpSource, NO_ICMP_SOURCE, type SourceQuestion } from "../../src/controller/icmpSource.ts";
import type { Address, Neighbour } from "../../src/kernel/rtnetlink.ts";
import { link } from "../support/planModel.ts";

const BRIDGE = link(3, "br0", { kind: "bridge" });
const VLAN = link(4, "br0.5", { kind: "vlan", lower: 3 });
const VM = "52:54:00:00:00:01";

function address(text: string, more: Partial<Address> = {}): Address {
  const [own = "", length] = text.split("/");
  return {
    ifindex: 3,
    family: own.includes(":") ? 6 : 4,
    address: own,
    prefixLength: Number(length),
    ...more,
  };
}

function neighbour(text: string, more: Partial<Neighbour> = {}): Neighbour {
  return { ifindex: 3, family: text.includes(":") ? 6 : 4, address: text, mac: VM, state: "stale", ...more };
}

function chosen(addresses: Address[], more: Partial<SourceQuestion> = {}): [string | null, string | null] {
  const { v4, v6 } = icmpSource({
    l3: BRIDGE,
    others: [VLAN],
    addresses,
    neighbours: () => [],
    guests: () => new Set([VM]),
    before: NO_ICMP_SOURCE,
    ...more,
  });
  const text = (bytes: Buffer, family: 4 | 6) =>
    addresses.find((item) => item.family === family && parseAddress(item.address)!.equals(bytes))?.address ??
    null;
  const four = Buffer.alloc(4);
  four.writeUInt32BE(v4);
  return [text(four, 4), text(v6, 6)];
}

describe("ICMP errors come from", () => {
  const nobody = (): never => {
    throw new Error("asked though there is no choice");
  };
  const rows: [
    what: string,
    addresses: Address[],
    more: Partial<SourceQuestion>,
    found: [string | null, string | null],
  ][] = [
    ["no address where there is none", [], {}, [null, null]],
    ["no address of another interface", [address("10.0.0.1/24", { ifindex: 9 })], {}, [null, null]],
    [
      "the only one, without further questions",
      [address("10.0.0.1/24")],
      { neighbours: nobody },
      ["10.0.0.1", null],
    ],
    [
      "one of each family",
      [address("10.0.0.1/24"), address("fe80::1/64", { scope: "link" })],
      { neighbours: nobody },
      ["10.0.0.1", "fe80::1"],
    ],
    ["none that is valid on this host only", [address("10.0.0.1/32", { scope: "host" })], {}, [null, null]],
    [
      "one that is valid everywhere",
      [address("fe80::1/64", { scope: "link" }), address("2001:db8::1/64")],
      {},
      [null, "2001:db8::1"],
    ],
    [
      "the first of its network",
      [address("10.0.0.2/24", { secondary: true }), address("10.0.0.1/24")],
      {},
      ["10.0.0.1", null],
    ],
    ["the first", [address("10.0.0.1/24"), address("10.9.0.1/24")], {}, ["10.0.0.1", null]],
    [
      "one in the VM's network",
      [address("10.0.0.1/24"), address("10.9.0.1/17")],
      { neighbours: () => [neighbour("10.9.99.7")] },
      ["10.9.0.1", null],
    ],
    [
      "none for another VM's sake",
      [address("10.0.0.1/24"), address("10.9.0.1/24")],
      {
        neighbours: () => [
          neighbour("10.9.0.7", { mac: "52:54:00:00:00:02" }),
          neighbour("10.9.0.8", { ifindex: 9 }),
        ],
      },
      ["10.0.0.1", null],
    ],
    [
      "the bridge rather than a VLAN interface on it",
      [address("10.5.0.1/24", { ifindex: 4 }), address("10.0.0.1/24")],
      {},
      ["10.0.0.1", null],
    ],
    [
      "that VLAN interface if the VM is there",
      [address("10.5.0.1/24", { ifindex: 4 }), address("10.0.0.1/24")],
      { neighbours: () => [neighbour("10.5.0.7", { ifindex: 4 })] },
      ["10.5.0.1", null],
    ],
    [
      "the former one, where nothing speaks against it",
      [address("10.0.0.1/24"), address("10.9.0.1/24")],
      { before: { v4: 0x0a090001, v6: Buffer.alloc(16) } },
      ["10.9.0.1", null],
    ],
    [
      "another than the former one, when that is gone",
      [address("10.0.0.1/24"), address("10.8.0.1/24")],
      { before: { v4: 0x0a090001, v6: Buffer.alloc(16) } },
      ["10.0.0.1", null],
    ],
  ];
  test.each(rows)("%s", (_, addresses, more, found) => {
    expect(chosen(addresses, more)).toEqual(found);
  });
});
