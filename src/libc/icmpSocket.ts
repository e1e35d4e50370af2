// SPDX-License-Identifier: Apache-2.0
// Raw ICMP sockets, one an address family and interface: echo requests go out of that interface, whatever the
// routes say. Needs CAP_NET_RAW. (raw(7), RFC 792, RFC 4443)

import { isMappedIpv4, mapIpv4 } from "../addresses.ts";
import { LasthopError } from "../errors.ts";
import { loadFfi, type PollHandle } from "../ffi/index.ts";
import { ERRNO, errnoText } from "./errno.ts";
import { libc } from "./library.ts";

const AF_INET = 2;
const AF_INET6 = 10;
const SOCK_RAW = 3;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const IPPROTO_ICMP = 1;
const IPPROTO_ICMPV6 = 58;
const SOL_SOCKET = 1;
const SO_BINDTODEVICE = 25;
const SOL_RAW = 255;
const ICMP_FILTER = 1;
const SOL_ICMPV6 = 58;
const ICMP6_FILTER = 1;

const ECHO = { 4: { request: 8, reply: 0 }, 6: { request: 128, reply: 129 } } as const;
const ICMP_HEADER_BYTES = 8;
const RECEIVE_BYTES = 2048;
/** Answers read at once; then others have their turn. */
const READS_PER_TURN = 64;

export interface EchoReply {
  /** IPv4 mapped. */
  source: Buffer;
  identifier: number;
  sequence: number;
}

export interface EchoRefusal {
  why: string;
  /** The socket is of no use any longer. */
  interfaceGone: boolean;
}

function bindFunctions() {
  const library = libc();
  return {
    socket: library.function("socket", "i32", ["i32", "i32", "i32"]),
    setsockopt: library.function("setsockopt", "i32", ["i32", "i32", "i32", "pointer", "u32"]),
    sendto: library.function("sendto", "i64", ["i32", "pointer", "size_t", "i32", "pointer", "u32"]),
    recvfrom: library.function("recvfrom", "i64", ["i32", "pointer", "size_t", "i32", "pointer", "pointer"]),
    close: library.function("close", "i32", ["i32"]),
  };
}

let functions: ReturnType<typeof bindFunctions> | undefined;

function native(): ReturnType<typeof bindFunctions> {
  functions ??= bindFunctions();
  return functions;
}

export class IcmpSocket {
  readonly #family: 4 | 6;
  readonly #ifindex: number;
  readonly #onReply: (reply: EchoReply) => void;
  readonly #buffer = Buffer.alloc(RECEIVE_BYTES);
  readonly #from = Buffer.alloc(28);
  readonly #fromLength = Buffer.alloc(4);
  #fd: number;
  #poll: PollHandle | undefined;

  /** Throws E_NOT_ROOT without the capability, E_NO_INTERFACE if the interface is gone, E_NETLINK otherwise. */
  constructor(family: 4 | 6, bound: { name: string; ifindex: number }, onReply: (reply: EchoReply) => void) {
    this.#family = family;
    this.#ifindex = bound.ifindex;
    this.#onReply = onReply;
    const [domain, protocol] = family === 4 ? [AF_INET, IPPROTO_ICMP] : [AF_INET6, IPPROTO_ICMPV6];
    this.#fd = native().socket(domain, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol);
    if (this.#fd < 0) throw failure("open a raw ICMP socket", bound.name);
    try {
      this.#setOption(SOL_SOCKET, SO_BINDTODEVICE, Buffer.from(`${bound.name}\0`), bound.name);
      if (family === 4) this.#setOption(SOL_RAW, ICMP_FILTER, only4(ECHO[4].reply), bound.name);
      else this.#setOption(SOL_ICMPV6, ICMP6_FILTER, only6(ECHO[6].reply), bound.name);
      this.#poll = loadFfi().poll(this.#fd, { readable: true }, () => this.#read());
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Sends one echo request. `target` has 16 bytes, IPv4 mapped. Null, or why the kernel refused to. */
  request(target: Buffer, identifier: number, sequence: number): EchoRefusal | null {
    const packet = Buffer.alloc(ICMP_HEADER_BYTES);
    packet.writeUInt8(ECHO[this.#family].request, 0);
    packet.writeUInt16BE(identifier, 4);
    packet.writeUInt16BE(sequence, 6);
    // That of ICMPv6 covers addresses: the kernel fills it in.
    if (this.#family === 4) packet.writeUInt16BE(checksum(packet), 2);
    const address = this.#family === 4 ? sockaddr4(target) : sockaddr6(target, this.#ifindex);
    const sent = native().sendto(this.#fd, packet, packet.length, 0, address, address.length);
    if (sent >= 0) return null;
    const errno = loadFfi().errno();
    return { why: errnoText(errno), interfaceGone: errno === ERRNO.ENODEV || errno === ERRNO.ENXIO };
  }

  close(): void {
    if (this.#fd < 0) return;
    this.#poll?.close();
    native().close(this.#fd);
    this.#fd = -1;
  }

  #read(): void {
    for (let count = 0; count < READS_PER_TURN && this.#fd >= 0; count++) {
      this.#fromLength.writeUInt32LE(this.#from.length);
      const length = native().recvfrom(
        this.#fd,
        this.#buffer,
        this.#buffer.length,
        0,
        this.#from,
        this.#fromLength,
      );
      if (length >= 0) {
        const reply = this.#decode(length);
        if (reply) this.#onReply(reply);
        continue;
      }
      // Nothing left, an ICMP error that came back, or the interface went: probes time out by themselves.
      if (loadFfi().errno() !== ERRNO.EINTR) return;
    }
  }

  #decode(length: number): EchoReply | undefined {
    // An IPv4 raw socket gives the IP header too.
    const offset = this.#family === 4 ? (this.#buffer[0]! & 0x0f) * 4 : 0;
    if (length < offset + ICMP_HEADER_BYTES) return undefined;
    if (this.#buffer[offset] !== ECHO[this.#family].reply) return undefined;
    return {
      source:
        this.#family === 4 ? mapIpv4(this.#from.subarray(4, 8)) : Buffer.from(this.#from.subarray(8, 24)),
      identifier: this.#buffer.readUInt16BE(offset + 4),
      sequence: this.#buffer.readUInt16BE(offset + 6),
    };
  }

  #setOption(level: number, option: number, value: Buffer, name: string): void {
    if (native().setsockopt(this.#fd, level, option, value, value.length) < 0) {
      throw failure("set up a raw ICMP socket", name);
    }
  }
}

function failure(what: string, name: string): LasthopError {
  const errno = loadFfi().errno();
  const message = `cannot ${what} on ${name}: ${errnoText(errno)}`;
  if (errno === ERRNO.EPERM || errno === ERRNO.EACCES) {
    return new LasthopError("E_NOT_ROOT", message, { hint: "ICMP probes need CAP_NET_RAW." });
  }
  if (errno === ERRNO.ENODEV) return new LasthopError("E_NO_INTERFACE", message);
  return new LasthopError("E_NETLINK", message);
}

/** struct icmp_filter: a bit keeps a type out. */
function only4(type: number): Buffer {
  const filter = Buffer.alloc(4);
  filter.writeUInt32LE(~(1 << type) >>> 0);
  return filter;
}

/** struct icmp6_filter: a bit keeps a type out. */
function only6(type: number): Buffer {
  const filter = Buffer.alloc(32, 0xff);
  const word = (type >> 5) * 4;
  filter.writeUInt32LE((filter.readUInt32LE(word) & ~(1 << (type & 31))) >>> 0, word);
  return filter;
}

function sockaddr4(target: Buffer): Buffer {
  if (!isMappedIpv4(target)) throw new RangeError("not an IPv4 address");
  const address = Buffer.alloc(16);
  address.writeUInt16LE(AF_INET, 0);
  target.copy(address, 4, 12);
  return address;
}

/** The scope matters for link-local addresses only. */
function sockaddr6(target: Buffer, ifindex: number): Buffer {
  const address = Buffer.alloc(28);
  address.writeUInt16LE(AF_INET6, 0);
  target.copy(address, 8);
  address.writeUInt32LE(ifindex, 24);
  return address;
}

/** RFC 1071. */
function checksum(packet: Buffer): number {
  let sum = 0;
  for (let at = 0; at < packet.length; at += 2) sum += packet.readUInt16BE(at);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}
