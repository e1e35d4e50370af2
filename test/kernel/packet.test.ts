// SPDX-License-Identifier: Apache-2.0
// The builder and the decoder that the other kernel tests stand on.

import { describe, expect, test } from "vitest";
import { crc32c, internetChecksum, ipBytes, ipText } from "./support/bytes.ts";
import { decodeFrame } from "./support/decode.ts";
import { authentication, destinationOptions, fragmentHeader, hopByHop, routing } from "./support/packet.ts";
import { FAMILIES } from "./support/scene.ts";
import { c, ce, cs, cu, v } from "./support/talk.ts";

test("checksums of the standards' own examples", () => {
  // RFC 1071 section 3, and the check value of CRC-32C.
  expect(internetChecksum(Buffer.from("0001f203f4f5f6f7", "hex"))).toBe(~0xddf2 & 0xffff);
  expect(crc32c(Buffer.from("123456789"))).toBe(0xe3069283);
});

test("an IPv4 header with a published checksum", () => {
  const header = Buffer.from("450000730000400040110000c0a80001c0a800c7", "hex");
  expect(internetChecksum(header)).toBe(0xb861);
});

test.each(["10.0.0.5", "::1", "fd00::5", "2001:db8:c::10", "::", "fe80::1:0:0:1"])(
  "address %s",
  (address) => {
    expect(ipText(ipBytes(address))).toBe(address);
  },
);

describe.each(Object.values(FAMILIES))("IPv$version", (f) => {
  test.each([
    ["TCP", c(f, "PA", { payload: Buffer.from("odd") })],
    ["UDP", cu(f)],
    ["SCTP", cs(f, ["data", "sack"])],
    ["echo", ce(f, "request")],
  ])("%s decodes as built, with right checksums", (_, frame) => {
    const { ip, transport } = decodeFrame(frame);
    expect(ip).toMatchObject({ source: f.client, destination: f.vm, ttl: 64, headerChecksumOk: true });
    expect(transport!.checksumOk).toBe(true);
    const broken = Buffer.from(frame);
    broken[broken.length - 1] = broken[broken.length - 1]! ^ 1;
    expect(decodeFrame(broken).transport!.checksumOk).toBe(false);
  });

  test("TCP fields", () => {
    const frame = v(f, "SAE", {
      seq: 7,
      ack: 9,
      payload: Buffer.from("xy"),
      frame: { ttl: 3, tags: [{ vid: 5, priority: 2 }] },
    });
    const decoded = decodeFrame(frame);
    expect(decoded.tags).toEqual([{ proto: 0x8100, vid: 5, priority: 2 }]);
    expect(decoded.ip).toMatchObject({ source: f.vm, ttl: 3 });
    expect(decoded.transport).toMatchObject({
      sourcePort: 80,
      destinationPort: 40000,
      flags: "SAE",
      seq: 7,
      ack: 9,
    });
    expect(decoded.transport!.payload.toString()).toBe("xy");
  });
});

test("IPv6 extension headers", () => {
  const extensions = [hopByHop(1), destinationOptions(), routing(), authentication(), fragmentHeader(77)];
  const { ip, transport } = decodeFrame(c(FAMILIES.ipv6, "S", { frame: { v6: { extensions } } }));
  expect(ip!.extensions).toEqual([0, 60, 43, 51, 44]);
  expect(ip!.fragment).toEqual({ id: 77, offset: 0, more: false });
  expect(transport).toMatchObject({ sourcePort: 40000, flags: "S" });
});
