// SPDX-License-Identifier: Apache-2.0
// One expiry pass at a time: passes share their counters. A lock of its own, as a paced pass takes many seconds
// and nobody else should wait for it.

import { closeSync, openSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { LasthopError } from "../errors.ts";
import { tryFlock } from "../libc/flock.ts";
import { noTables } from "./pinRoot.ts";

const RETRY_MS = 50;

export interface SweepLock {
  [Symbol.dispose](): void;
}

/**
 * `path`: of the instance. Waits for as long as it is told, then E_LOCKED; the lock goes with the process, however
 * it ends. E_NO_TABLES if the instance is gone.
 */
export async function lockSweeps(path: string, waitMs: number, signal?: AbortSignal): Promise<SweepLock> {
  const directory = join(path, "maps");
  const deadline = performance.now() + waitMs;
  const fd = openDirectory(directory);
  try {
    while (!tryFlock(fd, "exclusive")) {
      if (performance.now() >= deadline) throw locked(path, waitMs);
      await sleep(RETRY_MS, undefined, { signal });
    }
  } catch (error) {
    closeSync(fd);
    throw error;
  }
  return { [Symbol.dispose]: () => closeSync(fd) };
}

function openDirectory(directory: string): number {
  try {
    return openSync(directory, "r");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") throw noTables(directory);
    throw error;
  }
}

function locked(path: string, waitMs: number): LasthopError {
  const waited = waitMs > 0 ? ` and has not ended within ${waitMs / 1000} s` : "";
  return new LasthopError("E_LOCKED", `another expiry pass goes over the tables in ${path}${waited}`, {
    hint:
      "`lasthop run` makes passes by itself, slowly; `lasthop status` shows what the last one found. " +
      `\`fuser -v ${join(path, "maps")}\` shows who it is.`,
  });
}
