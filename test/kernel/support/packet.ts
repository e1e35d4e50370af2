// SPDX-License-Identifier: Apache-2.0
// Builds frames from typed layers. Everything has a correct default; every length and checksum can be
// overridden to make a wrong packet. Nothing is random and nothing depends on the clock.

import { crc32c, internetChecksum, ipBytes, macBytes, pseudoHeader } from "./bytes.ts";

export const ETH_P = {
  ip: 0x0800,
  arp: 0x0806,
  ipv6: 0x86dd,
  vlan: 0x8100,
  qinq: 0x88a8,
  mpls: 0x8847,
} as const;

export const IPPROTO = {
  hopByHop: 0,
  icmp: 1,
  igmp: 2,
  tcp: 6,
  udp: 17,
  routing: 43,
  fragment: 44,
  gre: 47,
  esp: 50,
  ah: 51,
  icmp6: 58,
  noNext: 59,
  destinationOptions: 60,
  sctp: 132,
  mobility: 135,
} as const;

/** A transport layer: its protocol number, and its bytes once the addresses are known. */
export interface Transport {
  protocol: number;
  encode(source: Buffer, destination: Buffer): Buffer;
}

/** A network layer: its EtherType and its bytes. */
export interface Network {
  etherType: number;
  bytes: Buffer;
}

export interface Tag {
  vid: number;
  proto?: number;
  priority?: number;
}

/** An MPLS label stack entry. */
export interface Label {
  label: number;
  ttl?: number;
  trafficClass?: number;
  /** Bottom of stack; by default the last one is. */
  bottom?: boolean;
}

export interface Ethernet {
  from: string;
  to: string;
  /** Outer first. */
  tags?: Tag[];
  /** Outer first, behind the tags. */
  labels?: Label[];
  etherType?: number;
  /** Bytes after the IP packet, as a NIC pads short frames. */
  trailer?: number;
}

export function ethernet(header: Ethernet, network: Network): Buffer {
  const parts = [macBytes(header.to), macBytes(header.from)];
  for (const tag of header.tags ?? []) {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt16BE(tag.proto ?? ETH_P.vlan, 0);
    bytes.writeUInt16BE(((tag.priority ?? 0) << 13) | tag.vid, 2);
    parts.push(bytes);
  }
  const labels = header.labels ?? [];
  const type = Buffer.alloc(2);
  type.writeUInt16BE(header.etherType ?? (labels.length > 0 ? ETH_P.mpls : network.etherType));
  const stack = labels.map((entry, index) => labelEntry(entry, index === labels.length - 1));
  parts.push(type, ...stack, network.bytes, Buffer.alloc(header.trailer ?? 0));
  return Buffer.concat(parts);
}

function labelEntry({ label, ttl = 64, trafficClass = 0, bottom }: Label, last: boolean): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(((label << 12) | (trafficClass << 9) | ((bottom ?? last) ? 0x100 : 0) | ttl) >>> 0);
  return bytes;
}

export interface Ipv4 {
  source: string;
  destination: string;
  ttl?: number;
  id?: number;
  tos?: number;
  dontFragment?: boolean;
  moreFragments?: boolean;
  /** In bytes, a multiple of 8. */
  fragmentOffset?: number;
  options?: Buffer;
  protocol?: number;
  version?: number;
  /** Header length in 32-bit words. */
  ihl?: number;
  totalLength?: number;
  checksum?: number;
}

export function ipv4(header: Ipv4, transport: Transport): Network {
  const source = ipBytes(header.source);
  const destination = ipBytes(header.destination);
  const payload = transport.encode(source, destination);
  const options = header.options ?? Buffer.alloc(0);
  const bytes = Buffer.alloc(20 + options.length);
  bytes[0] = ((header.version ?? 4) << 4) | (header.ihl ?? bytes.length / 4);
  bytes[1] = header.tos ?? 0;
  bytes.writeUInt16BE(header.totalLength ?? bytes.length + payload.length, 2);
  bytes.writeUInt16BE(header.id ?? 0, 4);
  const flags = (header.dontFragment ? 0x4000 : 0) | (header.moreFragments ? 0x2000 : 0);
  bytes.writeUInt16BE(flags | ((header.fragmentOffset ?? 0) >> 3), 6);
  bytes[8] = header.ttl ?? 64;
  bytes[9] = header.protocol ?? transport.protocol;
  source.copy(bytes, 12);
  destination.copy(bytes, 16);
  options.copy(bytes, 20);
  bytes.writeUInt16BE(header.checksum ?? internetChecksum(bytes), 10);
  return { etherType: ETH_P.ip, bytes: Buffer.concat([bytes, payload]) };
}

/** One extension header without its first byte (next header), which the builder fills in. */
export interface Extension {
  protocol: number;
  rest: Buffer;
}

/** `extra` more units of 8 bytes than the least. */
function optionsHeader(protocol: number, extra: number): Extension {
  const rest = Buffer.alloc(7 + extra * 8);
  rest[0] = extra;
  rest[1] = 1; // PadN
  rest[2] = rest.length - 3;
  return { protocol, rest };
}

export const hopByHop = (extra = 0): Extension => optionsHeader(IPPROTO.hopByHop, extra);
export const destinationOptions = (extra = 0): Extension => optionsHeader(IPPROTO.destinationOptions, extra);

/** Type 4 (segment routing) with no segments left unless told otherwise. */
export function routing(type = 4, segmentsLeft = 0, addresses = 1): Extension {
  const rest = Buffer.alloc(7 + addresses * 16);
  rest[0] = addresses * 2;
  rest[1] = type;
  rest[2] = segmentsLeft;
  return { protocol: IPPROTO.routing, rest };
}

export function fragmentHeader(id: number, offset = 0, more = false): Extension {
  const rest = Buffer.alloc(7);
  rest.writeUInt16BE((offset & 0xfff8) | (more ? 1 : 0), 1);
  rest.writeUInt32BE(id, 3);
  return { protocol: IPPROTO.fragment, rest };
}

/** AH counts its length in 32-bit words less 2. */
export function authentication(icvBytes = 12): Extension {
  const rest = Buffer.alloc(11 + icvBytes);
  rest[0] = (rest.length + 1) / 4 - 2;
  rest.writeUInt32BE(0x100, 3);
  return { protocol: IPPROTO.ah, rest };
}

export interface Ipv6 {
  source: string;
  destination: string;
  hopLimit?: number;
  trafficClass?: number;
  flowLabel?: number;
  extensions?: Extension[];
  nextHeader?: number;
  version?: number;
  payloadLength?: number;
}

export function ipv6(header: Ipv6, transport: Transport): Network {
  const source = ipBytes(header.source);
  const destination = ipBytes(header.destination);
  const extensions = header.extensions ?? [];
  const chain = extensions.map((extension, index) =>
    Buffer.concat([Buffer.from([extensions[index + 1]?.protocol ?? transport.protocol]), extension.rest]),
  );
  const payload = Buffer.concat([...chain, transport.encode(source, destination)]);
  const bytes = Buffer.alloc(40);
  const first = ((header.version ?? 6) << 28) | ((header.trafficClass ?? 0) << 20) | (header.flowLabel ?? 0);
  bytes.writeUInt32BE(first >>> 0, 0);
  bytes.writeUInt16BE(header.payloadLength ?? payload.length, 4);
  bytes[6] = header.nextHeader ?? extensions[0]?.protocol ?? transport.protocol;
  bytes[7] = header.hopLimit ?? 64;
  source.copy(bytes, 8);
  destination.copy(bytes, 24);
  return { etherType: ETH_P.ipv6, bytes: Buffer.concat([bytes, payload]) };
}

/** F SYN, S ... as tcpdump prints them. */
const TCP_FLAGS: Record<string, number> = { F: 1, S: 2, R: 4, P: 8, A: 16, U: 32, E: 64, W: 128 };

export interface Tcp {
  sourcePort: number;
  destinationPort: number;
  /** Letters of FSRPAUEW. */
  flags: string;
  seq?: number;
  ack?: number;
  window?: number;
  options?: Buffer;
  payload?: Buffer;
  /** In 32-bit words. */
  dataOffset?: number;
  checksum?: number;
}

export function tcp(segment: Tcp): Transport {
  return {
    protocol: IPPROTO.tcp,
    encode(source, destination) {
      const options = segment.options ?? Buffer.alloc(0);
      const bytes = Buffer.concat([Buffer.alloc(20), options, segment.payload ?? Buffer.alloc(0)]);
      bytes.writeUInt16BE(segment.sourcePort, 0);
      bytes.writeUInt16BE(segment.destinationPort, 2);
      bytes.writeUInt32BE(segment.seq ?? 0, 4);
      bytes.writeUInt32BE(segment.ack ?? 0, 8);
      bytes[12] = (segment.dataOffset ?? 5 + options.length / 4) << 4;
      bytes[13] = [...segment.flags].reduce((flags, letter) => flags | TCP_FLAGS[letter]!, 0);
      bytes.writeUInt16BE(segment.window ?? 0xffff, 14);
      const pseudo = pseudoHeader(source, destination, IPPROTO.tcp, bytes.length);
      bytes.writeUInt16BE(segment.checksum ?? internetChecksum(pseudo, bytes), 16);
      return bytes;
    },
  };
}

export interface Udp {
  sourcePort: number;
  destinationPort: number;
  payload?: Buffer;
  length?: number;
  checksum?: number;
}

export function udp(datagram: Udp): Transport {
  return {
    protocol: IPPROTO.udp,
    encode(source, destination) {
      const bytes = Buffer.concat([Buffer.alloc(8), datagram.payload ?? Buffer.from("data")]);
      bytes.writeUInt16BE(datagram.sourcePort, 0);
      bytes.writeUInt16BE(datagram.destinationPort, 2);
      bytes.writeUInt16BE(datagram.length ?? bytes.length, 4);
      const pseudo = pseudoHeader(source, destination, IPPROTO.udp, bytes.length);
      // 0 would mean "no checksum": its complement says the same sum.
      bytes.writeUInt16BE(datagram.checksum ?? (internetChecksum(pseudo, bytes) || 0xffff), 6);
      return bytes;
    },
  };
}

export const SCTP_CHUNK = {
  data: 0,
  init: 1,
  initAck: 2,
  sack: 3,
  heartbeat: 4,
  abort: 6,
  shutdown: 7,
  cookieEcho: 10,
  cookieAck: 11,
  shutdownComplete: 14,
} as const;

/** Bytes of the value of each chunk. */
const CHUNK_BYTES: Partial<Record<keyof typeof SCTP_CHUNK, number>> = {
  data: 16,
  init: 16,
  initAck: 24,
  sack: 12,
  heartbeat: 8,
  shutdown: 4,
  cookieEcho: 8,
};

export interface Sctp {
  sourcePort: number;
  destinationPort: number;
  verificationTag?: number;
  chunks: (keyof typeof SCTP_CHUNK)[];
}

export function sctp(packet: Sctp): Transport {
  return {
    protocol: IPPROTO.sctp,
    encode() {
      const chunks = packet.chunks.map((name) => {
        const value = Buffer.alloc(CHUNK_BYTES[name] ?? 0);
        const head = Buffer.alloc(4);
        head[0] = SCTP_CHUNK[name];
        head.writeUInt16BE(value.length + 4, 2);
        if (name === "initAck") {
          value.writeUInt16BE(7, 16); // a state cookie of 4 bytes
          value.writeUInt16BE(8, 18);
        }
        return Buffer.concat([head, value]);
      });
      const bytes = Buffer.concat([Buffer.alloc(12), ...chunks]);
      bytes.writeUInt16BE(packet.sourcePort, 0);
      bytes.writeUInt16BE(packet.destinationPort, 2);
      bytes.writeUInt32BE(packet.verificationTag ?? 0, 4);
      bytes.writeUInt32LE(crc32c(bytes), 8);
      return bytes;
    },
  };
}

export interface IcmpMessage {
  version: 4 | 6;
  type: number;
  code?: number;
  /** The 4 bytes after the checksum. */
  rest?: Buffer;
  body?: Buffer;
  checksum?: number;
}

export function icmp(message: IcmpMessage): Transport {
  const protocol = message.version === 4 ? IPPROTO.icmp : IPPROTO.icmp6;
  return {
    protocol,
    encode(source, destination) {
      const head = Buffer.alloc(8);
      head[0] = message.type;
      head[1] = message.code ?? 0;
      message.rest?.copy(head, 4);
      const bytes = Buffer.concat([head, message.body ?? Buffer.alloc(0)]);
      const pseudo =
        message.version === 4 ? Buffer.alloc(0) : pseudoHeader(source, destination, protocol, bytes.length);
      bytes.writeUInt16BE(message.checksum ?? internetChecksum(pseudo, bytes), 2);
      return bytes;
    },
  };
}

export function icmpEcho(version: 4 | 6, kind: "request" | "reply", id: number, sequence = 1): Transport {
  const rest = Buffer.alloc(4);
  rest.writeUInt16BE(id, 0);
  rest.writeUInt16BE(sequence, 2);
  const type = { 4: { request: 8, reply: 0 }, 6: { request: 128, reply: 129 } }[version][kind];
  return icmp({ version, type, rest, body: Buffer.from("abcdefgh") });
}

export const ICMP_ERROR = {
  4: { unreachable: [3, 1], tooBig: [3, 4], timeExceeded: [11, 0], parameter: [12, 0] },
  6: { unreachable: [1, 3], tooBig: [2, 0], timeExceeded: [3, 0], parameter: [4, 0] },
} as const;

/** An error about `quoted`, an IP packet that is cut to `quoteBytes`. */
export function icmpError(
  version: 4 | 6,
  error: keyof (typeof ICMP_ERROR)[4],
  quoted: Buffer,
  quoteBytes: number = version === 4 ? 28 : 1232,
): Transport {
  const [type, code] = ICMP_ERROR[version][error];
  const rest = Buffer.alloc(4);
  if (error === "tooBig") {
    rest.writeUInt16BE(1400, 2);
  }
  return icmp({ version, type, code, rest, body: quoted.subarray(0, quoteBytes) });
}

/** Any other protocol, and later fragments. */
export function raw(protocol: number, bytes: Buffer = Buffer.alloc(32)): Transport {
  return { protocol, encode: () => bytes };
}

export function arp(
  kind: "request" | "reply",
  from: { mac: string; ip: string },
  to: { mac: string; ip: string },
): Network {
  const head = Buffer.from([0, 1, 8, 0, 6, 4, 0, kind === "request" ? 1 : 2]);
  const bytes = Buffer.concat([head, macBytes(from.mac), ipBytes(from.ip), macBytes(to.mac), ipBytes(to.ip)]);
  return { etherType: ETH_P.arp, bytes };
}

/** The IP packet of an untagged frame: what an ICMP error quotes. */
export function ipOf(frame: Buffer): Buffer {
  let offset = 12;
  while (frame.readUInt16BE(offset) === ETH_P.vlan || frame.readUInt16BE(offset) === ETH_P.qinq) {
    offset += 4;
  }
  return frame.subarray(offset + 2);
}
