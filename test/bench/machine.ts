// SPDX-License-Identifier: Apache-2.0
// What the measuring thread does to itself: change its network namespace, stay on one CPU.

import { closeSync, openSync } from "node:fs";
import os from "node:os";
import { loadFfi } from "../../src/ffi/index.ts";
import { isErrno } from "../../src/libbpf/index.ts";
import { libc } from "../../src/libc/index.ts";

const CLONE_NEWNET = 0x40000000;

let bound: ReturnType<typeof bind> | undefined;

function bind() {
  return {
    setns: libc().function("setns", "i32", ["i32", "i32"]),
    schedSetaffinity: libc().function("sched_setaffinity", "i32", ["i32", "size_t", "pointer"]),
  };
}

function calls() {
  bound ??= bind();
  return bound;
}

function enter(fd: number, what: string): void {
  if (calls().setns(fd, CLONE_NEWNET) !== 0) throw new Error(`setns ${what}: errno ${loadFfi().errno()}`);
}

/**
 * Runs `task` with this thread in another network namespace. It must not wait for anything: other work of
 * the event loop would then run in there too.
 */
export function inNamespace<T>(path: string, task: () => T): T {
  const home = openSync("/proc/thread-self/ns/net", "r");
  const there = openSync(path, "r");
  try {
    enter(there, path);
    try {
      return task();
    } finally {
      enter(home, "back");
    }
  } finally {
    closeSync(there);
    closeSync(home);
  }
}

/** Keeps this thread, and processes started from now on, on one CPU; null gives all back. */
export function pinToCpu(cpu: number | null): void {
  const mask = Buffer.alloc(128);
  const cpus = cpu === null ? os.cpus().map((_, index) => index) : [cpu];
  for (const index of cpus) mask[index >> 3]! |= 1 << (index & 7);
  if (calls().schedSetaffinity(0, mask.length, mask) !== 0) {
    throw new Error(`sched_setaffinity ${cpus}: errno ${loadFfi().errno()}`);
  }
}

/** The last CPU: the first has most of the interrupts. */
export const MEASURING_CPU = os.cpus().length - 1;

/** A test run that a signal cut short is begun again. */
export function uninterrupted<T>(task: () => T): T {
  for (;;) {
    try {
      return task();
    } catch (error) {
      if (!isErrno(error, "EINTR")) throw error;
    }
  }
}

/** Seconds that a task takes by the wall clock. */
export function seconds(task: () => void): number {
  const start = process.hrtime.bigint();
  task();
  return Number(process.hrtime.bigint() - start) / 1e9;
}
