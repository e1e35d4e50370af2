// SPDX-License-Identifier: Apache-2.0
// New TCP connections, one after the other, each with a request and a reply. Client and server are one
// thread with sockets of two namespaces: the path between them runs inside the system calls, so nothing
// but its length is measured.

import { loadFfi } from "../../src/ffi/index.ts";
import { libc } from "../../src/libc/index.ts";
import { address4 } from "./frames.ts";
import { inNamespace } from "./machine.ts";

const AF_INET = 2;
const SOCK_STREAM = 1;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_REUSEADDR = 2;
const SO_RCVTIMEO = 20;
const SO_SNDTIMEO = 21;
const BACKLOG = 128;
const TIMEOUT_SECONDS = 2;
/** Several, so that the client does not run out of ports. */
const LISTENERS = 8;
const FIRST_PORT = 20_000;

let bound: ReturnType<typeof bind> | undefined;

function bind() {
  const c = libc();
  return {
    socket: c.function("socket", "i32", ["i32", "i32", "i32"]),
    setsockopt: c.function("setsockopt", "i32", ["i32", "i32", "i32", "pointer", "u32"]),
    bind: c.function("bind", "i32", ["i32", "pointer", "u32"]),
    listen: c.function("listen", "i32", ["i32", "i32"]),
    connect: c.function("connect", "i32", ["i32", "pointer", "u32"]),
    accept4: c.function("accept4", "i32", ["i32", "pointer", "pointer", "i32"]),
    read: c.function("read", "i64", ["i32", "pointer", "size_t"]),
    write: c.function("write", "i64", ["i32", "pointer", "size_t"]),
    close: c.function("close", "i32", ["i32"]),
  };
}

function calls() {
  bound ??= bind();
  return bound;
}

function checked(result: number, what: string): number {
  if (result < 0) throw new Error(`${what}: errno ${loadFfi().errno()}`);
  return result;
}

function sockaddr(address: string, port: number): Buffer {
  const buffer = Buffer.alloc(16);
  buffer.writeUInt16LE(AF_INET, 0);
  buffer.writeUInt16BE(port, 2);
  buffer.writeUInt32BE(address4(address), 4);
  return buffer;
}

/** Never blocks for good: a lost packet makes the call fail. */
function openSocket(): number {
  const fd = checked(calls().socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  const timeout = Buffer.alloc(16);
  timeout.writeBigInt64LE(BigInt(TIMEOUT_SECONDS), 0);
  for (const option of [SO_RCVTIMEO, SO_SNDTIMEO]) {
    checked(calls().setsockopt(fd, SOL_SOCKET, option, timeout, timeout.length), "setsockopt");
  }
  return fd;
}

export class Connections {
  readonly #client: string;
  readonly #addresses: Buffer[] = [];
  readonly #listeners: number[] = [];
  readonly #byte = Buffer.alloc(1);

  /** Paths of the namespaces; `address` is the server's. */
  constructor(client: string, server: string, address: string) {
    this.#client = client;
    const one = Buffer.alloc(4);
    one.writeUInt32LE(1);
    inNamespace(server, () => {
      for (let index = 0; index < LISTENERS; index++) {
        const name = sockaddr(address, FIRST_PORT + index);
        const fd = openSocket();
        this.#listeners.push(fd);
        this.#addresses.push(name);
        checked(calls().setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, one, one.length), "setsockopt");
        checked(calls().bind(fd, name, name.length), `bind ${address}`);
        checked(calls().listen(fd, BACKLOG), "listen");
      }
    });
  }

  /** New connections per second. */
  rate(count: number): number {
    const start = process.hrtime.bigint();
    inNamespace(this.#client, () => {
      for (let index = 0; index < count; index++) this.#one(index % LISTENERS);
    });
    return count / (Number(process.hrtime.bigint() - start) / 1e9);
  }

  close(): void {
    for (const fd of this.#listeners.splice(0)) calls().close(fd);
  }

  #one(listener: number): void {
    const { connect, accept4, write, read, close } = calls();
    const address = this.#addresses[listener]!;
    const client = openSocket();
    checked(connect(client, address, address.length), "connect");
    const server = checked(accept4(this.#listeners[listener]!, null, null, SOCK_CLOEXEC), "accept");
    this.#transfer(write(client, this.#byte, 1), "request sent");
    this.#transfer(read(server, this.#byte, 1), "request received");
    this.#transfer(write(server, this.#byte, 1), "reply sent");
    this.#transfer(read(client, this.#byte, 1), "reply received");
    close(client);
    close(server);
  }

  #transfer(bytes: number, what: string): void {
    if (bytes !== 1)
      throw new Error(`${what}: ${bytes < 0 ? `errno ${loadFfi().errno()}` : `${bytes} bytes`}`);
  }
}
