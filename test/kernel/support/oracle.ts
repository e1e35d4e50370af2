// SPDX-License-Identifier: Apache-2.0
// What one frame by itself may enter into the flow tables, decided without looking at the programs: a second,
// slow and plain reading of the same packets. Used by the fuzzer: nothing may be in a table that no well-formed
// frame asked for.

import { ETH_P, IPPROTO } from "./packet.ts";

export type Side = "uplink" | "tap";

/** Labels that are followed. */
const LABELS = 4;

interface Inner {
  version: 4 | 6;
  source: Buffer;
  destination: Buffer;
  protocol: number;
  /** The transport header and what follows, as long as the IP header says. */
  segment: Buffer;
  moreFragments: boolean;
}

/**
 * zone, protocol, addresses and ports as one text; null if the frame may create no flow. `bare`: the interface has no
 * link layer, so the frame is an IP packet; what stands where a frame has its EtherType is its protocol.
 */
export function createdKey(frame: Buffer, side: Side, zone: number, bare: boolean): string | null {
  const inner = bare ? bareOf(frame) : networkOf(frame, side);
  if (inner === null || (side === "uplink" && !bare && !isDevice(frame.subarray(6, 12)))) {
    return null;
  }
  const ports = openingPorts(inner, side);
  if (ports === null) {
    return null;
  }
  const [source, destination] = ports;
  return side === "uplink"
    ? keyText(zone, inner.protocol, inner.destination, inner.source, destination, source)
    : keyText(zone, inner.protocol, inner.source, inner.destination, source, destination);
}

export function keyText(
  zone: number,
  proto: number,
  local: Buffer,
  remote: Buffer,
  localPort: number,
  remotePort: number,
): string {
  return `${zone} ${proto} ${local.toString("hex")} ${remote.toString("hex")} ${localPort} ${remotePort}`;
}

function isDevice(mac: Buffer): boolean {
  return (mac[0]! & 1) === 0 && mac.some((byte) => byte !== 0);
}

/** null unless it is a whole, sane IP packet to one receiver, and no later fragment. */
function networkOf(frame: Buffer, side: Side): Inner | null {
  if (frame.length < 14 || (frame[0]! & 1) === 1) {
    return null;
  }
  let offset = 12;
  let tags = 0;
  let type = frame.readUInt16BE(offset);
  while (type === 0x8100 || type === 0x88a8) {
    tags++;
    offset += 4;
    if (tags > 2 || offset + 2 > frame.length) {
      return null;
    }
    type = frame.readUInt16BE(offset);
  }
  const network = frame.subarray(offset + 2);
  return type === ETH_P.mpls && side === "uplink" ? labelledOf(network) : ipOf(type, network);
}

/** Of an interface without a link layer; those of IPsec leave the header of the encrypted frame in front. */
function bareOf(frame: Buffer): Inner | null {
  const type = frame.readUInt16BE(12);
  const version = type === ETH_P.ip ? 4 : 6;
  if (frame.length < 20 || frame[14]! >> 4 !== version) return ipOf(type, frame);
  const length = version === 4 ? frame.readUInt16BE(2) : frame.readUInt16BE(4) + 40;
  const beginsWithIp = frame[0]! >> 4 === version && length === frame.length;
  return ipOf(type, beginsWithIp ? frame : frame.subarray(14));
}

function ipOf(type: number, network: Buffer): Inner | null {
  return type === ETH_P.ip ? ipv4Of(network) : type === ETH_P.ipv6 ? ipv6Of(network) : null;
}

/** What is behind an MPLS label stack says itself what it is. */
function labelledOf(network: Buffer): Inner | null {
  for (let count = 1; count <= LABELS && count * 4 < network.length; count++) {
    if ((network[count * 4 - 2]! & 1) === 1) {
      const inner = network.subarray(count * 4);
      return inner[0]! >> 4 === 4 ? ipv4Of(inner) : inner[0]! >> 4 === 6 ? ipv6Of(inner) : null;
    }
  }
  return null;
}

function ipv4Of(network: Buffer): Inner | null {
  if (network.length < 20 || network[0]! >> 4 !== 4) {
    return null;
  }
  const header = (network[0]! & 15) * 4;
  const total = network.readUInt16BE(2);
  const source = network.subarray(12, 16);
  const destination = network.subarray(16, 20);
  if (header < 20 || total < header || total > network.length || (network.readUInt16BE(6) & 0x1fff) !== 0) {
    return null;
  }
  const isGroup = (address: Buffer) => address[0]! >> 4 === 14 || address.every((byte) => byte === 255);
  if (source.every((byte) => byte === 0) || source[0] === 127 || isGroup(source) || isGroup(destination)) {
    return null;
  }
  const segment = network.subarray(header, total);
  const moreFragments = (network.readUInt16BE(6) & 0x2000) !== 0;
  return { version: 4, source, destination, protocol: network[9]!, segment, moreFragments };
}

function ipv6Of(network: Buffer): Inner | null {
  if (network.length < 40 || network[0]! >> 4 !== 6) {
    return null;
  }
  const source = network.subarray(8, 24);
  const destination = network.subarray(24, 40);
  const unusable = source.subarray(0, 15).every((byte) => byte === 0) && source[15]! < 2;
  if (unusable || source[0] === 255 || destination[0] === 255) {
    return null;
  }
  const length = network.readUInt16BE(4);
  if (40 + length > network.length) {
    return null;
  }
  let rest = network.subarray(40, 40 + length);
  let protocol = network[6]!;
  let moreFragments = false;
  for (;;) {
    const bytes = extensionBytes(protocol, rest);
    if (bytes === null) {
      return { version: 6, source, destination, protocol, segment: rest, moreFragments };
    }
    if (bytes > rest.length || rest.length < 8 || (protocol === IPPROTO.routing && rest[3] !== 0)) {
      return null;
    }
    if (protocol === IPPROTO.fragment) {
      if ((rest.readUInt16BE(2) & 0xfff8) !== 0 || moreFragments) {
        return null;
      }
      moreFragments = (rest.readUInt16BE(2) & 1) === 1;
    }
    protocol = rest[0]!;
    rest = rest.subarray(bytes);
  }
}

/** null: not an extension header. */
function extensionBytes(protocol: number, rest: Buffer): number | null {
  switch (protocol) {
    case IPPROTO.hopByHop:
    case IPPROTO.routing:
    case IPPROTO.destinationOptions:
      return ((rest[1] ?? 255) + 1) * 8;
    case IPPROTO.ah:
      return ((rest[1] ?? 255) + 2) * 4;
    case IPPROTO.fragment:
      return 8;
    default:
      return null;
  }
}

/** Source and destination port of a packet that may open a flow on this side, else null. */
function openingPorts(
  { version, protocol, segment, moreFragments }: Inner,
  side: Side,
): [number, number] | null {
  const ports = (): [number, number] => [segment.readUInt16BE(0), segment.readUInt16BE(2)];
  switch (protocol) {
    case IPPROTO.tcp: {
      if (segment.length < 20) {
        return null;
      }
      const header = (segment[12]! >> 4) * 4;
      const flags = segment[13]!;
      const [fin, syn, rst, ack] = [1, 2, 4, 16].map((bit) => (flags & bit) !== 0);
      if (header < 20 || (!moreFragments && header > segment.length) || (syn && (fin || rst))) {
        return null;
      }
      const opens = side === "tap" ? syn && !ack : !rst && !(syn && ack);
      return opens ? ports() : null;
    }
    case IPPROTO.udp: {
      if (segment.length < 8) {
        return null;
      }
      const length = segment.readUInt16BE(4);
      // A length of 0 is a jumbogram's (RFC 2675), which only IPv6 has.
      const sane = length === 0 ? version === 6 : length >= 8 && (moreFragments || length <= segment.length);
      return sane ? ports() : null;
    }
    case IPPROTO.sctp: {
      if (segment.length < 16) {
        return null;
      }
      const chunk = segment[12]!;
      return (side === "tap" ? chunk === 1 : ![2, 6, 14].includes(chunk)) ? ports() : null;
    }
    case IPPROTO.icmp:
    case IPPROTO.icmp6: {
      const request = version === 4 ? 8 : 128;
      const own = protocol === (version === 4 ? IPPROTO.icmp : IPPROTO.icmp6);
      return own && segment.length >= 8 && segment[0] === request ? [segment.readUInt16BE(4), 0] : null;
    }
    default:
      return null;
  }
}
