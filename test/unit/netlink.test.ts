// SPDX-License-Identifier: Apache-2.0

import { describe, expect, test } from "vitest";
import {
  decodeAttributes,
  decodeDone,
  decodeError,
  decodeMessages,
  encodeAttributes,
  encodeMessage,
  NLMSG_DONE,
  NLMSG_ERROR,
} from "../../src/kernel/netlinkMessage.ts";
import {
  decodeAddress,
  decodeFdbEntry,
  decodeFilter,
  decodeLink,
  decodeNeighbour,
  decodeQdisc,
  decodeRoute,
  filtersRequest,
  linkRequest,
  RTM_NEWLINK,
  RTM_NEWNEIGH,
  routeRequest,
  TC_PARENT_INGRESS,
} from "../../src/kernel/rtnetlink.ts";
import { DATAGRAMS } from "./fixtures/netlinkDatagrams.ts";

function messages(name: keyof typeof DATAGRAMS) {
  return decodeMessages(Buffer.from(DATAGRAMS[name], "hex"));
}

function payloads(name: keyof typeof DATAGRAMS): Buffer[] {
  return messages(name)
    .filter((message) => message.type !== NLMSG_DONE)
    .map((message) => message.payload);
}

describe("messages", () => {
  test("are framed and aligned", () => {
    const message = encodeMessage(18, 1, 7, Buffer.alloc(16), [{ type: 3, value: "eth0" }]);
    expect(message.toString("hex")).toBe(
      "2c00000012000100070000000000000000000000000000000000000000000000" + "090003006574683000000000",
    );
    const [decoded] = decodeMessages(message);
    expect(decoded).toMatchObject({ type: 18, flags: 1, sequence: 7, portId: 0 });
  });

  test("nest attributes", () => {
    const bytes = encodeAttributes([{ type: 18, value: [{ type: 1, value: "bond" }] }]);
    const inner = decodeAttributes(decodeAttributes(bytes).get(18)!);
    expect(inner.get(1)).toEqual(Buffer.from("bond\0"));
  });

  test("know numbers as u32, and types without their flags", () => {
    expect(encodeAttributes([{ type: 8, value: 0xfffffff1 }]).toString("hex")).toBe("08000800f1ffffff");
    expect([...decodeAttributes(Buffer.from("0400128004002b80", "hex")).keys()]).toEqual([0x12, 0x2b]);
  });

  test("that are cut off are an error", () => {
    const whole = Buffer.from(DATAGRAMS.route4, "hex");
    expect(() => decodeMessages(whole.subarray(0, 40))).toThrow(RangeError);
    expect(() => decodeAttributes(Buffer.from("0c000100aabb", "hex"))).toThrow(RangeError);
    expect(() => decodeAttributes(Buffer.from("0200010000000000", "hex"))).toThrow(RangeError);
  });

  test("of errors carry the errno, and the kernel's words if there are any", () => {
    const [noSuchLink] = messages("noSuchLink");
    expect(noSuchLink!.type).toBe(NLMSG_ERROR);
    expect(decodeError(noSuchLink!)).toEqual({ errno: 19, text: null });
    expect(decodeError(messages("unknownKind")[0]!)).toEqual({ errno: 95, text: "Unknown device type" });
    expect(decodeError(messages("unreachable")[0]!)).toEqual({ errno: 101, text: null });
  });

  test("end a dump", () => {
    const done = messages("neighbours").at(-1)!;
    expect(done.type).toBe(NLMSG_DONE);
    expect(decodeDone(done)).toEqual({ errno: 0, text: null });
  });
});

describe("a link", () => {
  test("with an XDP program", () => {
    const [message] = messages("vethWithXdp");
    expect(message!.type).toBe(RTM_NEWLINK);
    expect(decodeLink(message!.payload)).toEqual({
      ifindex: 3,
      name: "va",
      mac: "02:00:00:00:00:0a",
      mtu: 1500,
      ethernet: true,
      flags: { up: true, running: true, loopback: false },
      kind: "veth",
      lower: 2,
      master: null,
      masterKind: null,
      parentDevice: null,
      portState: null,
      linkNetns: null,
      xdp: { mode: "native", programId: expect.any(Number) },
      txQueues: 2,
    });
  });

  test("that is a bridge port", () => {
    expect(decodeLink(payloads("bridgePort")[0]!)).toMatchObject({
      ifindex: 2,
      name: "vb",
      master: 4,
      masterKind: "bridge",
      portState: "forwarding",
      xdp: null,
    });
  });

  test("is asked for by name, by index, or all", () => {
    const byName = decodeMessages(linkRequest(5, { name: "eth0" }))[0]!;
    expect(decodeAttributes(byName.payload.subarray(16)).get(3)).toEqual(Buffer.from("eth0\0"));
    expect(decodeMessages(linkRequest(5, { ifindex: 9 }))[0]!.payload.readInt32LE(4)).toBe(9);
    expect(decodeMessages(linkRequest(5, "all"))[0]!.flags & 0x300).toBe(0x300);
  });
});

test("addresses", () => {
  const addresses = payloads("addresses").map(decodeAddress);
  expect(addresses).toContainEqual({ ifindex: 3, family: 4, address: "192.0.2.1", prefixLength: 24 });
  expect(addresses).toContainEqual({ ifindex: 3, family: 6, address: "2001:db8::1", prefixLength: 64 });
});

test("neighbours", () => {
  const neighbours = payloads("neighbours").map(decodeNeighbour);
  const mac = "02:00:00:00:00:fe";
  expect(neighbours).toContainEqual({
    ifindex: 3,
    family: 4,
    address: "192.0.2.254",
    mac,
    state: "permanent",
  });
  expect(neighbours).toContainEqual({ ifindex: 3, family: 6, address: "2001:db8::fe", mac, state: "stale" });
});

test("bridge forwarding entries, learned, made by hand, and the bridge's own", () => {
  expect(messages("fdb")[0]!.type).toBe(RTM_NEWNEIGH);
  const onBridge = payloads("fdb")
    .map(decodeFdbEntry)
    .filter((entry) => entry?.master === 4);
  const port = { ifindex: 2, master: 4, vlan: null };
  expect(onBridge).toContainEqual({ ...port, mac: "02:00:00:00:00:0a", local: false, ages: true });
  expect(onBridge).toContainEqual({ ...port, mac: "02:00:00:00:00:77", local: false });
  expect(onBridge).toContainEqual({ ...port, mac: "02:00:00:00:00:0b", local: true });
});

describe("a route", () => {
  test("by a gateway", () => {
    expect(decodeRoute(payloads("route4")[0]!)).toEqual({
      type: "unicast",
      outIfindex: 3,
      gateway: "192.0.2.254",
      source: "192.0.2.1",
    });
    expect(decodeRoute(payloads("route6")[0]!)).toEqual({
      type: "unicast",
      outIfindex: 3,
      gateway: "2001:db8::fe",
      source: "2001:db8::1",
    });
  });

  test("is asked for with source, interface and mark", () => {
    const request = routeRequest(1, { destination: "192.0.2.9", source: "10.0.0.1", inIfindex: 4, mark: 7 });
    const { payload } = decodeMessages(request)[0]!;
    expect([...payload.subarray(0, 3)]).toEqual([2, 32, 32]);
    const attributes = decodeAttributes(payload.subarray(12));
    expect([...attributes.keys()]).toEqual([1, 2, 3, 16]);
    expect(attributes.get(3)!.readUInt32LE()).toBe(4);
  });

  test("is not asked for with nonsense", () => {
    expect(() => routeRequest(1, { destination: "example.org" })).toThrow("not an address");
  });
});

describe("traffic control", () => {
  test("qdiscs", () => {
    const clsact = payloads("qdiscs")
      .map(decodeQdisc)
      .find((qdisc) => qdisc.kind === "clsact");
    expect(clsact).toEqual({ ifindex: 3, kind: "clsact", handle: 0xffff0000, parent: 0xfffffff1 });
  });

  test("filters with their programs", () => {
    const filters = payloads("filters").map(decodeFilter);
    expect(filters.at(-1)).toEqual({
      ifindex: 3,
      parent: TC_PARENT_INGRESS,
      kind: "bpf",
      priority: 7,
      protocol: 3,
      handle: 3,
      programId: expect.any(Number),
      name: "f.o:[classifier]",
    });
    const { payload } = decodeMessages(filtersRequest(1, 3, TC_PARENT_INGRESS))[0]!;
    expect([payload.readInt32LE(4), payload.readUInt32LE(12)]).toEqual([3, TC_PARENT_INGRESS]);
  });
});
