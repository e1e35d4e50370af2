// SPDX-License-Identifier: Apache-2.0
// IPv4, IPv6 and MAC addresses between bytes and text. Text is what people write: RFC 5952 for IPv6,
// lower case everywhere. Parsers return undefined for what is not an address; messages are the caller's.

import { isIPv4 } from "node:net";
import ipaddr from "ipaddr.js";

/** An address with the number of leading bits that count. */
export interface Prefix {
  family: 4 | 6;
  bytes: Buffer;
  bits: number;
}

export function formatIpv4(bytes: Uint8Array, offset = 0): string {
  return `${bytes[offset]}.${bytes[offset + 1]}.${bytes[offset + 2]}.${bytes[offset + 3]}`;
}

export function formatIpv6(bytes: Uint8Array, offset = 0): string {
  // The longest run of zero groups, the first among equals, but never a single group (RFC 5952, 4.2).
  let start = -1;
  let length = 1;
  for (let group = 0; group < 8; ) {
    let end = group;
    while (end < 8 && groupAt(bytes, offset, end) === 0) end++;
    if (end - group > length) {
      start = group;
      length = end - group;
    }
    group = end + 1;
  }
  let text = "";
  for (let group = 0; group < 8; group++) {
    if (group === start) {
      text += "::";
      group += length - 1;
      continue;
    }
    if (group > 0 && !text.endsWith(":")) text += ":";
    text += groupAt(bytes, offset, group).toString(16);
  }
  return text;
}

function groupAt(bytes: Uint8Array, offset: number, group: number): number {
  return (bytes[offset + group * 2]! << 8) | bytes[offset + group * 2 + 1]!;
}

/** Of 4 or 16 bytes. */
export function formatAddress(bytes: Uint8Array): string {
  return bytes.length === 4 ? formatIpv4(bytes) : formatIpv6(bytes);
}

const HEX = Array.from({ length: 256 }, (_, value) => value.toString(16).padStart(2, "0"));

export function formatMac(bytes: Uint8Array, offset = 0): string {
  let text = HEX[bytes[offset]!]!;
  for (let index = 1; index < 6; index++) text += `:${HEX[bytes[offset + index]!]}`;
  return text;
}

/** Four decimal parts, nothing shorter and no octal. */
export function parseIpv4(text: string): Buffer | undefined {
  return isIPv4(text) ? Buffer.from(text.split(".").map(Number)) : undefined;
}

/** No zone id, no brackets. */
export function parseIpv6(text: string): Buffer | undefined {
  if (text.includes("%") || !text.includes(":") || !ipaddr.IPv6.isValid(text)) return undefined;
  return Buffer.from(ipaddr.IPv6.parse(text).toByteArray());
}

export function parseAddress(text: string): Buffer | undefined {
  return parseIpv4(text) ?? parseIpv6(text);
}

/** Six pairs of hexadecimal digits with `:` or `-` between. */
export function parseMac(text: string): Buffer | undefined {
  const separator = text.includes("-") ? "-" : ":";
  const parts = text.split(separator);
  if (parts.length !== 6 || !parts.every((part) => /^[0-9a-f]{1,2}$/i.test(part))) return undefined;
  return Buffer.from(parts.map((part) => Number.parseInt(part, 16)));
}

/** `10.0.0.0/8`, `2001:db8::/32`, or an address alone. Bits after the prefix are ignored. */
export function parsePrefix(text: string): Prefix | undefined {
  const [address = "", length, ...rest] = text.split("/");
  const bytes = parseAddress(address);
  if (!bytes || rest.length > 0) return undefined;
  const most = bytes.length * 8;
  if (length !== undefined && !/^\d{1,3}$/.test(length)) return undefined;
  const bits = length === undefined ? most : Number(length);
  if (bits > most) return undefined;
  return { family: bytes.length === 4 ? 4 : 6, bytes, bits };
}

/** Whether an address is one of a prefix; never of the other family. */
export function inPrefix({ bytes, bits }: Prefix, address: Uint8Array): boolean {
  if (address.length !== bytes.length) return false;
  const whole = bits >> 3;
  for (let index = 0; index < whole; index++) if (address[index] !== bytes[index]) return false;
  const mask = (0xff << (8 - (bits & 7))) & 0xff;
  return mask === 0 || ((bytes[whole]! ^ address[whole]!) & mask) === 0;
}

/** ::ffff:a.b.c.d, as the trace keys have IPv4. */
export function mapIpv4(bytes: Uint8Array): Buffer {
  const mapped = Buffer.alloc(16);
  mapped.fill(0xff, 10, 12);
  mapped.set(bytes, 12);
  return mapped;
}

export function isMappedIpv4(bytes: Uint8Array): boolean {
  return (
    bytes.length === 16 &&
    bytes[10] === 0xff &&
    bytes[11] === 0xff &&
    bytes.subarray(0, 10).every((byte) => byte === 0)
  );
}
