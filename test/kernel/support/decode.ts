// SPDX-License-Identifier: Apache-2.0
// Reads frames back for assertions, and says whether every checksum in them is right.

import { crc32c, ipText, macText, onesSum, pseudoHeader } from "./bytes.ts";
import { ETH_P, IPPROTO } from "./packet.ts";

export interface DecodedTag {
  proto: number;
  vid: number;
  priority: number;
}

export interface DecodedIp {
  version: 4 | 6;
  source: string;
  destination: string;
  /** TTL or hop limit. */
  ttl: number;
  /** Of the transport layer, behind extension headers. */
  protocol: number;
  headerBytes: number;
  extensions: number[];
  fragment: { id: number; offset: number; more: boolean } | null;
  /** Of the IPv4 header; IPv6 has none. */
  headerChecksumOk: boolean;
}

export interface DecodedTransport {
  /** null where the packet is a later fragment, cut, or of a protocol without one. */
  checksumOk: boolean | null;
  sourcePort?: number;
  destinationPort?: number;
  flags?: string;
  seq?: number;
  ack?: number;
  icmp?: { type: number; code: number; id: number };
  payload: Buffer;
}

export interface Decoded {
  destination: string;
  source: string;
  tags: DecodedTag[];
  etherType: number;
  ip: DecodedIp | null;
  transport: DecodedTransport | null;
}

export function decodeFrame(frame: Buffer): Decoded {
  let offset = 12;
  const tags: DecodedTag[] = [];
  const isTag = () => [ETH_P.vlan, ETH_P.qinq].some((proto) => proto === frame.readUInt16BE(offset));
  while (offset + 6 <= frame.length && isTag()) {
    const tci = frame.readUInt16BE(offset + 2);
    tags.push({ proto: frame.readUInt16BE(offset), vid: tci & 0xfff, priority: tci >> 13 });
    offset += 4;
  }
  const etherType = frame.readUInt16BE(offset);
  const network = frame.subarray(offset + 2);
  const ip =
    etherType === ETH_P.ip ? decodeIpv4(network) : etherType === ETH_P.ipv6 ? decodeIpv6(network) : null;
  return {
    destination: macText(frame.subarray(0, 6)),
    source: macText(frame.subarray(6, 12)),
    tags,
    etherType,
    ip,
    transport: ip && decodeTransport(network, ip),
  };
}

function ipLength(network: Buffer): number {
  return network[0]! >> 4 === 4 ? network.readUInt16BE(2) : 40 + network.readUInt16BE(4);
}

function decodeIpv4(network: Buffer): DecodedIp | null {
  if (network.length < 20 || network[0]! >> 4 !== 4) {
    return null;
  }
  const headerBytes = (network[0]! & 15) * 4;
  const fragment = network.readUInt16BE(6);
  const offset = (fragment & 0x1fff) * 8;
  const more = (fragment & 0x2000) !== 0;
  return {
    version: 4,
    source: ipText(network.subarray(12, 16)),
    destination: ipText(network.subarray(16, 20)),
    ttl: network[8]!,
    protocol: network[9]!,
    headerBytes,
    extensions: [],
    fragment: offset > 0 || more ? { id: network.readUInt16BE(4), offset, more } : null,
    headerChecksumOk: onesSum(network.subarray(0, headerBytes)) === 0xffff,
  };
}

const EXTENSIONS: number[] = [
  IPPROTO.hopByHop,
  IPPROTO.routing,
  IPPROTO.fragment,
  IPPROTO.ah,
  IPPROTO.destinationOptions,
];

function decodeIpv6(network: Buffer): DecodedIp | null {
  if (network.length < 40 || network[0]! >> 4 !== 6) {
    return null;
  }
  let protocol = network[6]!;
  let headerBytes = 40;
  const extensions: number[] = [];
  let fragment: DecodedIp["fragment"] = null;
  while (EXTENSIONS.includes(protocol) && headerBytes + 8 <= network.length) {
    extensions.push(protocol);
    const header = network.subarray(headerBytes);
    if (protocol === IPPROTO.fragment) {
      const bits = header.readUInt16BE(2);
      fragment = { id: header.readUInt32BE(4), offset: bits & 0xfff8, more: (bits & 1) === 1 };
      headerBytes += 8;
    } else {
      headerBytes += protocol === IPPROTO.ah ? (header[1]! + 2) * 4 : (header[1]! + 1) * 8;
    }
    protocol = header[0]!;
    if (fragment && fragment.offset > 0) {
      break;
    }
  }
  return {
    version: 6,
    source: ipText(network.subarray(8, 24)),
    destination: ipText(network.subarray(24, 40)),
    ttl: network[7]!,
    protocol,
    headerBytes,
    extensions,
    fragment,
    headerChecksumOk: true,
  };
}

function decodeTransport(network: Buffer, ip: DecodedIp): DecodedTransport {
  const segment = network.subarray(ip.headerBytes, ipLength(network));
  const whole = network.length >= ipLength(network) && ip.fragment === null;
  if (ip.fragment && ip.fragment.offset > 0) {
    return { checksumOk: null, payload: segment };
  }
  const source = network.subarray(...(ip.version === 4 ? [12, 16] : [8, 24]));
  const destination = network.subarray(...(ip.version === 4 ? [16, 20] : [24, 40]));
  const pseudo = pseudoHeader(source, destination, ip.protocol, segment.length);
  const ones = (withPseudo: boolean) =>
    whole ? onesSum(withPseudo ? pseudo : Buffer.alloc(0), segment) === 0xffff : null;
  switch (ip.protocol) {
    case IPPROTO.tcp:
      return segment.length < 20 ? { checksumOk: null, payload: segment } : decodeTcp(segment, ones(true));
    case IPPROTO.udp:
      return segment.length < 8
        ? { checksumOk: null, payload: segment }
        : { checksumOk: ones(true), ...ports(segment), payload: segment.subarray(8) };
    case IPPROTO.sctp:
      return segment.length < 12
        ? { checksumOk: null, payload: segment }
        : { checksumOk: whole ? sctpOk(segment) : null, ...ports(segment), payload: segment.subarray(12) };
    case IPPROTO.icmp:
    case IPPROTO.icmp6:
      return segment.length < 8
        ? { checksumOk: null, payload: segment }
        : {
            checksumOk: ones(ip.protocol === IPPROTO.icmp6),
            icmp: { type: segment[0]!, code: segment[1]!, id: segment.readUInt16BE(4) },
            payload: segment.subarray(8),
          };
    default:
      return { checksumOk: null, payload: segment };
  }
}

function ports(segment: Buffer): { sourcePort: number; destinationPort: number } {
  return { sourcePort: segment.readUInt16BE(0), destinationPort: segment.readUInt16BE(2) };
}

function sctpOk(segment: Buffer): boolean {
  const copy = Buffer.from(segment);
  copy.writeUInt32LE(0, 8);
  return crc32c(copy) === segment.readUInt32LE(8);
}

function decodeTcp(segment: Buffer, checksumOk: boolean | null): DecodedTransport {
  return {
    checksumOk,
    ...ports(segment),
    flags: [..."FSRPAUEW"].filter((_, bit) => segment[13]! & (1 << bit)).join(""),
    seq: segment.readUInt32BE(4),
    ack: segment.readUInt32BE(8),
    payload: segment.subarray((segment[12]! >> 4) * 4),
  };
}

/** One line for a failed assertion. */
export function describeFrame(frame: Buffer): string {
  if (frame.length < 14) {
    return `${frame.length} bytes: ${frame.toString("hex")}`;
  }
  const { source, destination, tags, etherType, ip, transport } = decodeFrame(frame);
  const vlan = tags.map((tag) => ` vlan ${tag.proto.toString(16)}/${tag.vid}`).join("");
  const head = `${source} > ${destination}${vlan} type ${etherType.toString(16)} ${frame.length} bytes`;
  if (!ip) {
    return head;
  }
  const sums = [
    ip.headerChecksumOk ? "" : " bad IP checksum",
    transport?.checksumOk === false ? " bad checksum" : "",
  ];
  const numbers =
    transport?.sourcePort === undefined ? "" : ` ${transport.sourcePort}>${transport.destinationPort}`;
  return `${head} ${ip.source} > ${ip.destination} proto ${ip.protocol} ttl ${ip.ttl}${numbers} ${transport?.flags ?? ""}${sums.join("")}`;
}
