// SPDX-License-Identifier: Apache-2.0
// Frames of the least size, as bytes.

export const TCP = { SYN: 0x02, PSH: 0x08, ACK: 0x10 } as const;

export interface FrameOptions {
  destinationMac: string;
  sourceMac: string;
  source: string;
  destination: string;
  sourcePort: number;
  destinationPort: number;
  /** UDP if left out. */
  tcp?: { flags: number; seq: number; ack: number };
  family?: 4 | 6;
}

const ETHERNET = 14;
const IP4 = 20;
const IP6 = 40;

export function macBytes(mac: string): Buffer {
  return Buffer.from(mac.replaceAll(":", ""), "hex");
}

export function address4(text: string): number {
  return text.split(".").reduce((value, part) => value * 256 + Number(part), 0);
}

/** 16 bytes of an address written in full groups, with at most one `::`. */
function address6(text: string): Buffer {
  const [head = "", tail = ""] = text.split("::");
  const groups = (part: string) => (part === "" ? [] : part.split(":"));
  const middle = 8 - groups(head).length - groups(tail).length;
  const all = [...groups(head), ...Array<string>(middle).fill("0"), ...groups(tail)];
  return Buffer.from(all.map((group) => group.padStart(4, "0")).join(""), "hex");
}

/** The one's complement sum of 16-bit words, not yet folded. */
export function wordSum(bytes: Buffer): number {
  let sum = 0;
  for (let at = 0; at < bytes.length; at += 2) sum += bytes.readUInt16BE(at);
  return sum;
}

/** 64 bytes (IPv6 with TCP: 74) with a right IPv4 header checksum. Transport checksums stay 0. */
export function frame(options: FrameOptions): Buffer {
  const six = options.family === 6;
  const network = six ? IP6 : IP4;
  const transport = options.tcp === undefined ? 8 : 20;
  const bytes = Buffer.alloc(Math.max(64, ETHERNET + network + transport));
  macBytes(options.destinationMac).copy(bytes, 0);
  macBytes(options.sourceMac).copy(bytes, 6);
  bytes.writeUInt16BE(six ? 0x86dd : 0x0800, 12);
  const proto = options.tcp === undefined ? 17 : 6;
  const ip = bytes.subarray(ETHERNET);
  if (six) {
    ip.writeUInt8(0x60, 0);
    ip.writeUInt16BE(ip.length - IP6, 4);
    ip.writeUInt8(proto, 6);
    ip.writeUInt8(64, 7);
    address6(options.source).copy(ip, 8);
    address6(options.destination).copy(ip, 24);
  } else {
    ip.writeUInt8(0x45, 0);
    ip.writeUInt16BE(ip.length, 2);
    ip.writeUInt8(64, 8);
    ip.writeUInt8(proto, 9);
    ip.writeUInt32BE(address4(options.source), 12);
    ip.writeUInt32BE(address4(options.destination), 16);
    ip.writeUInt16BE(foldedComplement(wordSum(ip.subarray(0, IP4))), 10);
  }
  writeTransport(ip.subarray(network), options);
  return bytes;
}

function writeTransport(bytes: Buffer, { sourcePort, destinationPort, tcp }: FrameOptions): void {
  bytes.writeUInt16BE(sourcePort, 0);
  bytes.writeUInt16BE(destinationPort, 2);
  if (tcp === undefined) {
    bytes.writeUInt16BE(bytes.length, 4);
    return;
  }
  bytes.writeUInt32BE(tcp.seq, 4);
  bytes.writeUInt32BE(tcp.ack, 8);
  bytes.writeUInt8(0x50, 12);
  bytes.writeUInt8(tcp.flags, 13);
  bytes.writeUInt16BE(0xffff, 14);
}

function foldedComplement(sum: number): number {
  let folded = sum;
  while (folded > 0xffff) folded = (folded & 0xffff) + Math.floor(folded / 0x10000);
  return ~folded & 0xffff;
}
