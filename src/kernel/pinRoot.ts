// SPDX-License-Identifier: Apache-2.0
// The directory on bpffs under which everything is pinned: checks, creation, and the lock.

import {
  closeSync,
  existsSync,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  rmdirSync,
  statfsSync,
  statSync,
} from "node:fs";
import { dirname, isAbsolute, normalize } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { DEFAULT_PIN_ROOT } from "../config/defaults.ts";
import { LasthopError } from "../errors.ts";
import { tryFlock } from "../libc/flock.ts";
import { requireCapabilities } from "./probe.ts";

const BPF_FS_MAGIC = 0xcafe4a11;
const MOUNT_HINT = "Mount it: `mount -t bpf bpf /sys/fs/bpf`.";
const LOCK_WAIT_MS = 5_000;
const LOCK_RETRY_MS = 50;

/** Throws E_BPFFS unless the path is on a bpf file system, whether it exists or not. */
export function requireBpffs(pinRoot: string): void {
  if (!isAbsolute(pinRoot)) {
    throw new LasthopError("E_BPFFS", `the pin path ${pinRoot} is not absolute`, {
      hint: `The usual one is ${DEFAULT_PIN_ROOT}.`,
    });
  }
  if (isBpffs(nearestDirectory(pinRoot))) return;
  const mounted = existsSync("/sys/fs/bpf") && isBpffs("/sys/fs/bpf");
  throw new LasthopError(
    "E_BPFFS",
    mounted
      ? `the pin path ${pinRoot} is not on a bpf file system`
      : "no bpf file system is mounted on /sys/fs/bpf",
    { hint: mounted ? "Choose a --pin-root below /sys/fs/bpf." : MOUNT_HINT },
  );
}

export function isBpffs(path: string): boolean {
  try {
    return statfsSync(path).type >>> 0 === BPF_FS_MAGIC;
  } catch (error) {
    throw pinPathError(`cannot look at ${path}`, error);
  }
}

function nearestDirectory(path: string): string {
  let directory = normalize(path);
  while (!existsSync(directory) && directory !== "/") directory = dirname(directory);
  return directory;
}

/** Makes a directory and its parents; returns how to take back what was made. */
export function makeDirectories(path: string): () => void {
  const missing: string[] = [];
  for (let directory = normalize(path); !existsSync(directory); directory = dirname(directory)) {
    missing.unshift(directory);
  }
  try {
    // One by one: Node's recursive mkdir hides why it failed.
    for (const directory of missing) makeDirectory(directory);
  } catch (error) {
    throw pinPathError(`cannot make the pin path ${path}`, error);
  }
  return () => {
    for (const directory of missing.toReversed()) if (!removeIfEmpty(directory)) return;
  };
}

function makeDirectory(directory: string): void {
  try {
    mkdirSync(directory, { mode: 0o700 });
  } catch (error) {
    // Another command was quicker.
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  }
}

/** False if it is not empty, or somebody mounted it there. */
export function removeIfEmpty(directory: string): boolean {
  try {
    rmdirSync(directory);
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT") return true;
    if (code === "ENOTEMPTY" || code === "EBUSY" || code === "EEXIST") return false;
    throw pinPathError(`cannot remove ${directory}`, error);
  }
}

/** Names in a directory; none if it does not exist. */
export function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory).sort();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw pinPathError(`cannot read ${directory}`, error);
  }
}

export function pinPathError(attempt: string, cause: unknown): LasthopError {
  const { code = "", message } = cause as NodeJS.ErrnoException;
  const why: Record<string, string> = {
    EACCES: "permission denied",
    EPERM: "not permitted (bpffs takes no name with a dot)",
    EROFS: "the file system is read-only",
    ENOTDIR: "a part of it is not a directory",
    ENAMETOOLONG: "the name is too long",
  };
  const hint =
    code === "EROFS"
      ? "Remount it: `mount -o remount,rw /sys/fs/bpf`."
      : "Choose another --pin-root below /sys/fs/bpf, or run as root.";
  return new LasthopError("E_BPFFS", `${attempt}: ${why[code] ?? message}`, { cause, hint });
}

/**
 * Runs `change` while no other command changes what is pinned there. Waits up to 5 seconds, then E_LOCKED. The
 * directory must exist; E_NO_TABLES if it does not.
 */
export async function withLock<T>(pinRoot: string, change: () => T | Promise<T>): Promise<T> {
  const fd = await lockDirectory(pinRoot);
  try {
    return await change();
  } finally {
    closeSync(fd);
  }
}

async function lockDirectory(pinRoot: string): Promise<number> {
  requireCapabilities("change what is attached", ["CAP_BPF"]);
  requireBpffs(pinRoot);
  const deadline = performance.now() + LOCK_WAIT_MS;
  for (;;) {
    const fd = openDirectory(pinRoot);
    try {
      // Who had the lock may have removed the directory, and a third made it anew.
      if (tryFlock(fd, "exclusive") && isSame(fd, pinRoot)) return fd;
    } catch (error) {
      closeSync(fd);
      throw error;
    }
    closeSync(fd);
    if (performance.now() >= deadline) {
      throw new LasthopError(
        "E_LOCKED",
        `another command has been changing ${pinRoot} for ${LOCK_WAIT_MS / 1000} s`,
        {
          hint: `Wait for it to end; \`fuser -v ${pinRoot}\` shows who it is.`,
        },
      );
    }
    await sleep(LOCK_RETRY_MS);
  }
}

function openDirectory(pinRoot: string): number {
  try {
    return openSync(pinRoot, "r");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") throw noTables(pinRoot);
    throw pinPathError(`cannot open ${pinRoot}`, error);
  }
}

function isSame(fd: number, path: string): boolean {
  const now = statSync(path, { throwIfNoEntry: false });
  return now !== undefined && now.ino === fstatSync(fd).ino;
}

export function noTables(pinRoot: string): LasthopError {
  return new LasthopError("E_NO_TABLES", `nothing is attached: there are no tables in ${pinRoot}`, {
    hint: "Attach an interface first: `lasthop attach IFACE --role uplink|tap`.",
  });
}
