// SPDX-License-Identifier: Apache-2.0
// Datagrams to AF_UNIX sockets, which Node has no way to send.

import { LasthopError } from "../errors.ts";
import { loadFfi, type NativeFunction } from "../ffi/index.ts";
import { errnoText } from "./errno.ts";
import { libc } from "./library.ts";
import { closeSocket, openSocket } from "./socket.ts";

const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
/** sizeof(sun_path) of struct sockaddr_un. */
const PATH_BYTES = 108;

let native: NativeFunction<"i64", readonly ["i32", "pointer", "size_t", "i32", "pointer", "u32"]> | undefined;

/**
 * Sends one datagram without waiting. A path that begins with "@" is a name in the abstract namespace
 * (unix(7)). Throws E_USAGE if it is too long, E_INTERNAL with the kernel's reason if nobody takes it.
 */
export function sendUnixDatagram(path: string, data: Uint8Array): void {
  native ??= libc().function("sendto", "i64", ["i32", "pointer", "size_t", "i32", "pointer", "u32"]);
  const address = unixAddress(path);
  const fd = openSocket(AF_UNIX, SOCK_DGRAM, 0);
  try {
    const sent = native(fd, data, data.length, MSG_DONTWAIT | MSG_NOSIGNAL, address, address.length);
    if (sent >= 0) return;
    const errno = loadFfi().errno();
    throw new LasthopError("E_INTERNAL", `cannot send a datagram to ${path}: ${errnoText(errno)}`);
  } finally {
    closeSocket(fd);
  }
}

/** struct sockaddr_un, as long as its name: an abstract one is not ended by a NUL. */
export function unixAddress(path: string): Buffer {
  const abstract = path.startsWith("@");
  const name = abstract ? Buffer.from(`\0${path.slice(1)}`) : Buffer.from(`${path}\0`);
  if (path === "" || path === "@" || name.length > PATH_BYTES) {
    throw new LasthopError("E_USAGE", `not the name of a socket: ${JSON.stringify(path)}`);
  }
  const address = Buffer.alloc(2 + name.length);
  address.writeUInt16LE(AF_UNIX, 0);
  name.copy(address, 2);
  return address;
}
