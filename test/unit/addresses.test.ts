// SPDX-License-Identifier: Apache-2.0

import { describe, expect, it } from "vitest";
import {
  formatAddress,
  formatMac,
  isMappedIpv4,
  mapIpv4,
  parseAddress,
  parseMac,
  parsePrefix,
} from "../../src/addresses.ts";

describe("addresses", () => {
  // RFC 5952, sections 4 and 5
  const texts: [string, string][] = [
    ["0.0.0.0", "0.0.0.0"],
    ["255.255.255.255", "255.255.255.255"],
    ["::", "::"],
    ["::1", "::1"],
    ["1::", "1::"],
    ["2001:0DB8:0:0:0:0:2:1", "2001:db8::2:1"],
    ["2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"],
    ["2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"],
    ["2001:0:0:1:0:0:0:1", "2001:0:0:1::1"],
    ["0:0:1::", "0:0:1::"],
    ["1:2:3:4:5:6:0:0", "1:2:3:4:5:6::"],
    ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"],
  ];
  for (const [text, formatted] of texts) {
    it(`${text} is ${formatted}`, () => expect(formatAddress(parseAddress(text)!)).toBe(formatted));
  }

  for (const text of [
    "",
    "1",
    "1.2.3",
    "1.2.3.4.5",
    "01.2.3.4",
    "256.1.1.1",
    "0x1.2.3.4",
    ":",
    ":::",
    "1::2::3",
    "fe80::1%eth0",
    "[::1]",
    "12345::",
    "1.2.3.4 ",
  ]) {
    it(`"${text}" is no address`, () => expect(parseAddress(text)).toBeUndefined());
  }

  it("keeps MACs in lower case with colons", () => {
    expect(formatMac(parseMac("02-AB-00-00-00-0F")!)).toBe("02:ab:00:00:00:0f");
    expect(formatMac(parseMac("2:a:0:0:0:f")!)).toBe("02:0a:00:00:00:0f");
    for (const text of ["", "02:00:00:00:00", "02:00:00:00:00:00:00", "02:00:00:00:00:0g", "020000000000"]) {
      expect(parseMac(text)).toBeUndefined();
    }
  });

  it("reads prefixes", () => {
    expect(parsePrefix("10.0.0.0/8")).toEqual({ family: 4, bytes: Buffer.from([10, 0, 0, 0]), bits: 8 });
    expect(parsePrefix("10.0.0.1")).toMatchObject({ family: 4, bits: 32 });
    expect(parsePrefix("2001:db8::/32")).toMatchObject({ family: 6, bits: 32 });
    expect(parsePrefix("::/0")).toMatchObject({ bits: 0 });
    for (const text of [
      "",
      "/8",
      "10.0.0.0/33",
      "::/129",
      "10.0.0.0/",
      "10.0.0.0/-1",
      "10.0.0.0/8/8",
      "10/8",
    ]) {
      expect(parsePrefix(text)).toBeUndefined();
    }
  });

  it("maps IPv4 into IPv6", () => {
    const mapped = mapIpv4(Buffer.from([192, 0, 2, 1]));
    expect(mapped.toString("hex")).toBe("00000000000000000000ffffc0000201");
    expect(isMappedIpv4(mapped)).toBe(true);
    expect(isMappedIpv4(parseAddress("::1")!)).toBe(false);
  });
});
