// SPDX-License-Identifier: Apache-2.0
// Frames made by hand, for what no socket sends: floods, spoofed sources, tags.

export interface SynOptions {
  sourceMac: string;
  destinationMac: string;
  source: number | bigint;
  destination: string;
  sourcePort: number;
  destinationPort: number;
}

export function macBytes(mac: string): Buffer {
  return Buffer.from(mac.replaceAll(":", ""), "hex");
}

/** An address in the standard text form, `::` allowed, as its 4 or 16 bytes. */
export function addressBytes(address: string): Buffer {
  if (!address.includes(":")) return Buffer.from(address.split(".").map(Number));
  const [head = "", tail] = address.split("::");
  const groups = (text: string) => text.split(":").filter(Boolean);
  const missing = tail === undefined ? 0 : 8 - groups(head).length - groups(tail).length;
  const all = [...groups(head), ...Array<string>(missing).fill("0"), ...groups(tail ?? "")];
  return Buffer.from(all.map((group) => group.padStart(4, "0")).join(""), "hex");
}

function sum16(bytes: Buffer, from: number, to: number): number {
  let sum = 0;
  for (let at = from; at < to; at += 2) sum += bytes.readUInt16BE(at);
  return sum;
}

function fold(sum: number): number {
  let rest = sum;
  while (rest > 0xffff) rest = (rest & 0xffff) + Math.floor(rest / 0x10000);
  return ~rest & 0xffff;
}

const ETHERNET = 14;
const TCP = 20;

/** A TCP SYN with right checksums; the destination's form says which family. */
export function synFrame(options: SynOptions): Buffer {
  const to = addressBytes(options.destination);
  const family = to.length === 4 ? 4 : 6;
  const network = family === 4 ? 20 : 40;
  const frame = Buffer.alloc(ETHERNET + network + TCP);
  macBytes(options.destinationMac).copy(frame, 0);
  macBytes(options.sourceMac).copy(frame, 6);
  frame.writeUInt16BE(family === 4 ? 0x0800 : 0x86dd, 12);
  const addresses = ETHERNET + (family === 4 ? 12 : 8);
  if (family === 4) {
    frame.writeUInt16BE(0x4500, ETHERNET);
    frame.writeUInt16BE(network + TCP, ETHERNET + 2);
    frame.writeUInt16BE(0x4000, ETHERNET + 6);
    frame.writeUInt16BE(0x4006, ETHERNET + 8);
    frame.writeUInt32BE(Number(options.source), addresses);
    to.copy(frame, addresses + 4);
    frame.writeUInt16BE(fold(sum16(frame, ETHERNET, ETHERNET + network)), ETHERNET + 10);
  } else {
    frame.writeUInt8(0x60, ETHERNET);
    frame.writeUInt16BE(TCP, ETHERNET + 4);
    frame.writeUInt16BE(0x0640, ETHERNET + 6);
    const source = BigInt(options.source);
    frame.writeBigUInt64BE(source >> 64n, addresses);
    frame.writeBigUInt64BE(source & 0xffffffffffffffffn, addresses + 8);
    to.copy(frame, addresses + 16);
  }
  const tcp = ETHERNET + network;
  frame.writeUInt16BE(options.sourcePort, tcp);
  frame.writeUInt16BE(options.destinationPort, tcp + 2);
  frame.writeUInt32BE(1, tcp + 4);
  frame.writeUInt16BE(0x5002, tcp + 12);
  frame.writeUInt16BE(0xffff, tcp + 14);
  // The pseudo-header: both addresses, the protocol, the length.
  const pseudo = sum16(frame, addresses, tcp) + 6 + TCP;
  frame.writeUInt16BE(fold(pseudo + sum16(frame, tcp, tcp + TCP)), tcp + 16);
  return frame;
}
