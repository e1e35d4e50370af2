// SPDX-License-Identifier: Apache-2.0
import { loadFfi, type NativeFunction } from "../ffi/index.ts";
import { libc } from "./library.ts";
import { withDatagramSocket } from "./socket.ts";

const SIOCETHTOOL = 0x8946n;
const IFNAMSIZ = 16;
const IFREQ_BYTES = 40;

let native: NativeFunction<"i32", readonly ["i32", "u64", "pointer"]> | undefined;

/** An ethtool command on an interface; `data` is the command's struct, and takes the answer. Returns 0 or an errno. */
export function ethtoolIoctl(name: string, data: Buffer): number {
  native ??= libc().function("ioctl", "i32", ["i32", "u64", "pointer"]);
  const ioctl = native;
  const ffi = loadFfi();
  const request = Buffer.alloc(IFREQ_BYTES);
  request.write(name, 0, IFNAMSIZ - 1);
  request.writeBigUInt64LE(ffi.addressOf(data), IFNAMSIZ);
  return withDatagramSocket((fd) => (ioctl(fd, SIOCETHTOOL, request) < 0 ? ffi.errno() : 0));
}
