// SPDX-License-Identifier: Apache-2.0
import { LasthopError } from "../errors.ts";
import { loadFfi, type NativeFunction } from "../ffi/index.ts";
import { ERRNO, errnoText } from "./errno.ts";
import { libc } from "./library.ts";

const LOCK_SH = 1;
const LOCK_EX = 2;
const LOCK_NB = 4;

let native: NativeFunction<"i32", readonly ["i32", "i32"]> | undefined;

/**
 * Locks an open file without waiting; the lock goes with the descriptor. False if another holds it. (A call
 * that waits would stop the event loop, and Node retries what a signal interrupts.)
 */
export function tryFlock(fd: number, kind: "shared" | "exclusive"): boolean {
  native ??= libc().function("flock", "i32", ["i32", "i32"]);
  const operation = (kind === "exclusive" ? LOCK_EX : LOCK_SH) | LOCK_NB;
  if (native(fd, operation) === 0) return true;
  const errno = loadFfi().errno();
  if (errno === ERRNO.EAGAIN) return false;
  throw new LasthopError("E_INTERNAL", `cannot lock descriptor ${fd}: ${errnoText(errno)}`);
}
