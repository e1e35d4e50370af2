// SPDX-License-Identifier: Apache-2.0
// Addresses and checksums as bytes. Independent of src/ on purpose: a test must not share a bug with the code.

export function macBytes(mac: string): Buffer {
  const bytes = Buffer.from(mac.replaceAll(":", ""), "hex");
  if (bytes.length !== 6) {
    throw new Error(`not a MAC address: ${mac}`);
  }
  return bytes;
}

export function macText(bytes: Buffer): string {
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(":");
}

function ipv6Groups(text: string): number[] {
  return text === "" ? [] : text.split(":").map((group) => Number.parseInt(group, 16));
}

/** 4 or 16 bytes; IPv6 with at most one "::" and without a dotted tail. */
export function ipBytes(address: string): Buffer {
  if (!address.includes(":")) {
    return Buffer.from(address.split(".").map(Number));
  }
  const [head, tail] = address.split("::");
  const left = ipv6Groups(head!);
  const right = tail === undefined ? [] : ipv6Groups(tail);
  const groups =
    tail === undefined ? left : [...left, ...Array(8 - left.length - right.length).fill(0), ...right];
  const bytes = Buffer.alloc(16);
  groups.forEach((group, index) => {
    bytes.writeUInt16BE(group, index * 2);
  });
  return bytes;
}

export function ipText(bytes: Buffer): string {
  if (bytes.length === 4) {
    return [...bytes].join(".");
  }
  const groups = Array.from({ length: 8 }, (_, index) => bytes.readUInt16BE(index * 2));
  let best = { start: 0, length: 0 };
  for (let start = 0; start < 8; start++) {
    let end = start;
    while (end < 8 && groups[end] === 0) {
      end++;
    }
    if (end - start > best.length) {
      best = { start, length: end - start };
    }
  }
  const text = (part: number[]) => part.map((group) => group.toString(16)).join(":");
  return best.length < 2
    ? text(groups)
    : `${text(groups.slice(0, best.start))}::${text(groups.slice(best.start + best.length))}`;
}

/** The ones' complement sum of RFC 1071 over all parts, folded; a correct packet sums to 0xffff. */
export function onesSum(...parts: Buffer[]): number {
  let sum = 0;
  for (const part of parts) {
    for (let index = 0; index + 1 < part.length; index += 2) {
      sum += part.readUInt16BE(index);
    }
    if (part.length % 2 === 1) {
      sum += part[part.length - 1]! << 8;
    }
  }
  while (sum > 0xffff) {
    sum = (sum & 0xffff) + Math.floor(sum / 0x10000);
  }
  return sum;
}

export function internetChecksum(...parts: Buffer[]): number {
  return ~onesSum(...parts) & 0xffff;
}

const CRC32C = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) {
    value = value & 1 ? (value >>> 1) ^ 0x82f63b78 : value >>> 1;
  }
  return value >>> 0;
});

/** SCTP's checksum (RFC 9260 appendix A). */
export function crc32c(bytes: Buffer): number {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc = CRC32C[(crc ^ byte) & 0xff]! ^ (crc >>> 8);
  }
  return ~crc >>> 0;
}

/** The pseudo header of TCP, UDP and ICMPv6. */
export function pseudoHeader(source: Buffer, destination: Buffer, protocol: number, length: number): Buffer {
  if (source.length === 4) {
    const bytes = Buffer.alloc(4);
    bytes[1] = protocol;
    bytes.writeUInt16BE(length, 2);
    return Buffer.concat([source, destination, bytes]);
  }
  const bytes = Buffer.alloc(8);
  bytes.writeUInt32BE(length, 0);
  bytes[7] = protocol;
  return Buffer.concat([source, destination, bytes]);
}
