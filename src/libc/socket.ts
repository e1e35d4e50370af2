// SPDX-License-Identifier: Apache-2.0
// Netlink sockets: Node's own refuse their descriptors.

import { LasthopError } from "../errors.ts";
import { loadFfi, type PollHandle } from "../ffi/index.ts";
import { ERRNO, errnoText } from "./errno.ts";
import { libc } from "./library.ts";

export const NETLINK_ROUTE = 0;

const AF_INET = 2;
const AF_NETLINK = 16;
const SOCK_DGRAM = 2;
const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_RCVTIMEO = 20;
const SO_RCVBUFFORCE = 33;
const SOL_NETLINK = 270;
const NETLINK_EXT_ACK = 11;
const MSG_TRUNC = 0x20;
const MSG_DONTWAIT = 0x40;
const SOCKADDR_NL_BYTES = 12;

/** More than the kernel puts into one datagram of a dump. */
const RECEIVE_BYTES = 256 * 1024;
const RECEIVE_TIMEOUT_SECONDS = 5;

function bindFunctions() {
  const library = libc();
  return {
    socket: library.function("socket", "i32", ["i32", "i32", "i32"]),
    bind: library.function("bind", "i32", ["i32", "pointer", "u32"]),
    setsockopt: library.function("setsockopt", "i32", ["i32", "i32", "i32", "pointer", "u32"]),
    send: library.function("send", "i64", ["i32", "pointer", "size_t", "i32"]),
    recv: library.function("recv", "i64", ["i32", "pointer", "size_t", "i32"]),
    close: library.function("close", "i32", ["i32"]),
  };
}

let functions: ReturnType<typeof bindFunctions> | undefined;

function native(): ReturnType<typeof bindFunctions> {
  functions ??= bindFunctions();
  return functions;
}

function failure(what: string): LasthopError {
  return new LasthopError("E_NETLINK", `cannot ${what}: ${errnoText(loadFfi().errno())}`);
}

/** Closed on exec; the caller closes it with closeSocket. Throws E_NETLINK. (socket) */
export function openSocket(domain: number, type: number, protocol: number): number {
  const fd = native().socket(domain, type | SOCK_CLOEXEC, protocol);
  if (fd < 0) throw failure("open a socket");
  return fd;
}

export function closeSocket(fd: number): void {
  native().close(fd);
}

/** Any socket of this network namespace will do for interface ioctls. */
export function withDatagramSocket<T>(use: (fd: number) => T): T {
  const fd = openSocket(AF_INET, SOCK_DGRAM, 0);
  try {
    return use(fd);
  } finally {
    native().close(fd);
  }
}

/** Whether this kernel has this part of netlink. Throws E_NETLINK. */
export function hasNetlink(protocol: number): boolean {
  const fd = native().socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
  if (fd < 0) {
    if (loadFfi().errno() === ERRNO.EPROTONOSUPPORT) return false;
    throw failure("open a socket");
  }
  native().close(fd);
  return true;
}

export class NetlinkSocket {
  readonly #buffer = Buffer.allocUnsafe(RECEIVE_BYTES);
  #fd: number;

  /** `groups` is the mask of multicast groups whose events come in; 0 for questions and answers only. */
  constructor(protocol: number, groups = 0) {
    this.#fd = openSocket(AF_NETLINK, SOCK_RAW, protocol);
    try {
      const address = Buffer.alloc(SOCKADDR_NL_BYTES);
      address.writeUInt16LE(AF_NETLINK, 0);
      address.writeUInt32LE(groups, 8);
      if (native().bind(this.#fd, address, address.length) < 0) throw failure("bind a netlink socket");
      this.#setOption(SOL_NETLINK, NETLINK_EXT_ACK, u32(1), "ask netlink for its error texts");
      const timeout = Buffer.alloc(16);
      timeout.writeBigInt64LE(BigInt(RECEIVE_TIMEOUT_SECONDS));
      this.#setOption(SOL_SOCKET, SO_RCVTIMEO, timeout, "set a time limit on a netlink socket");
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** For polling; stays this socket's own. */
  get fd(): number {
    return this.#fd;
  }

  send(message: Buffer): void {
    if (native().send(this.#fd, message, message.length, 0) !== message.length)
      throw failure("send to netlink");
  }

  /** One datagram; undefined if none came within the time limit. */
  receive(): Buffer | undefined {
    const received = this.#receive(0);
    if (typeof received !== "number") return received;
    if (received === ERRNO.EAGAIN) return undefined;
    throw receiveFailure(received);
  }

  /** One datagram that is there already; `empty` if none is, `overrun` if the kernel had no room for some. */
  receiveNow(): Buffer | "empty" | "overrun" {
    const received = this.#receive(MSG_DONTWAIT);
    if (typeof received !== "number") return received;
    if (received === ERRNO.EAGAIN) return "empty";
    if (received === ERRNO.ENOBUFS) return "overrun";
    throw receiveFailure(received);
  }

  /** Room for events that have not been read, in bytes of the kernel's accounting. Needs CAP_NET_ADMIN. */
  setReceiveBuffer(bytes: number): void {
    this.#setOption(SOL_SOCKET, SO_RCVBUFFORCE, u32(bytes), "enlarge the buffer of a netlink socket");
  }

  /** Calls back whenever there is something to receive; close the handle before the socket. */
  watch(onReadable: () => void): PollHandle {
    return loadFfi().poll(this.#fd, { readable: true }, onReadable);
  }

  /** A datagram, or a positive errno. */
  #receive(flags: number): Buffer | number {
    for (;;) {
      const length = native().recv(this.#fd, this.#buffer, this.#buffer.length, MSG_TRUNC | flags);
      if (length >= 0) {
        if (length <= this.#buffer.length) return Buffer.from(this.#buffer.subarray(0, length));
        throw new LasthopError(
          "E_NETLINK",
          `netlink sent ${length} bytes at once, more than ${RECEIVE_BYTES}`,
        );
      }
      const errno = loadFfi().errno();
      if (errno !== ERRNO.EINTR) return errno;
    }
  }

  close(): void {
    if (this.#fd < 0) return;
    native().close(this.#fd);
    this.#fd = -1;
  }

  #setOption(level: number, option: number, value: Buffer, what: string): void {
    if (native().setsockopt(this.#fd, level, option, value, value.length) < 0) throw failure(what);
  }
}

function receiveFailure(errno: number): LasthopError {
  return new LasthopError("E_NETLINK", `cannot receive from netlink: ${errnoText(errno)}`);
}

function u32(value: number): Buffer {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32LE(value);
  return buffer;
}
