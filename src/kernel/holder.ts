// SPDX-License-Identifier: Apache-2.0
// Which daemon has an instance: the one that has locked the directory PIN_ROOT/daemon. The kernel lets go of
// the lock when the daemon dies, however it does.

import { closeSync, fstatSync, openSync, statSync } from "node:fs";
import { join } from "node:path";
import { LasthopError } from "../errors.ts";
import { tryFlock } from "../libc/flock.ts";
import { makeDirectories, pinPathError, removeIfEmpty, requireBpffs } from "./pinRoot.ts";

const NAME = "daemon";
/** Who only asks whether it is held has the lock for a moment. */
const ATTEMPTS = 20;
const RETRY_MS = 5;

/** The hold of this process on an instance. */
export interface Holder {
  /** Holds the directory that is there now, should it have been removed or covered by another mount. */
  renew(): void;
  /** Lets go; a second close does nothing. */
  close(): void;
}

/** Throws E_HELD if another daemon has it, E_BPFFS if the directory cannot be made. */
export function holdInstance(pinRoot: string): Holder {
  const path = holderPath(pinRoot);
  let fd = lock(pinRoot, path);
  return {
    renew() {
      if (fd < 0 || isSame(fd, path)) return;
      const renewed = lock(pinRoot, path);
      closeSync(fd);
      fd = renewed;
    },
    close() {
      if (fd < 0) return;
      try {
        // Before the lock is let go, so that nobody else's directory is removed.
        if (isSame(fd, path)) removeIfEmpty(path);
      } finally {
        closeSync(fd);
        fd = -1;
      }
    },
  };
}

/** Whether a daemon is running on this instance. */
export function isHeld(pinRoot: string): boolean {
  const fd = openIfPresent(holderPath(pinRoot));
  if (fd === undefined) return false;
  try {
    return !tryFlock(fd, "shared");
  } finally {
    closeSync(fd);
  }
}

/**
 * Throws E_HELD while a daemon has the instance. `what` is what was to be done ("detach eth0"), `key` the place in
 * the configuration that has it so ("uplinks[0]").
 */
export function requireNotHeld(pinRoot: string, what: string, key: string): void {
  if (!isHeld(pinRoot)) return;
  throw new LasthopError(
    "E_HELD",
    `cannot ${what}: \`lasthop run\` holds ${pinRoot}, and its configuration has it (${key})`,
    { hint: `Change ${key} in the configuration file, and reload: \`systemctl reload lasthop\`.` },
  );
}

/** Removes what a daemon that was killed left; nothing while one is running. */
export function removeHolder(pinRoot: string): void {
  if (!isHeld(pinRoot)) removeIfEmpty(holderPath(pinRoot));
}

function holderPath(pinRoot: string): string {
  return join(pinRoot, NAME);
}

function lock(pinRoot: string, path: string): number {
  requireBpffs(pinRoot);
  for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
    makeDirectories(path);
    const fd = openIfPresent(path);
    // It was removed by the one that held it before: once more.
    if (fd === undefined) continue;
    try {
      if (tryFlock(fd, "exclusive") && isSame(fd, path)) return fd;
    } catch (error) {
      closeSync(fd);
      throw error;
    }
    closeSync(fd);
    pause(RETRY_MS);
  }
  throw new LasthopError("E_HELD", `another \`lasthop run\` holds ${pinRoot}`, {
    hint: `\`fuser -v ${path}\` shows which process; each daemon needs a --pin-root of its own.`,
  });
}

function openIfPresent(path: string): number | undefined {
  try {
    return openSync(path, "r");
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    throw pinPathError(`cannot open ${path}`, error);
  }
}

function isSame(fd: number, path: string): boolean {
  const now = statSync(path, { throwIfNoEntry: false });
  const held = fstatSync(fd);
  return now !== undefined && now.ino === held.ino && now.dev === held.dev;
}

/** Only while starting: whoever calls is not serving anything yet. */
function pause(milliseconds: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds);
}
