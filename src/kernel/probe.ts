// SPDX-License-Identifier: Apache-2.0
// What this process may do, and where it is.

import { existsSync, readdirSync, readlinkSync, statSync } from "node:fs";
import { release } from "node:os";
import { LasthopError } from "../errors.ts";
import { type Capability, capabilities } from "../libc/capabilities.ts";

const OLDEST_KERNEL = { major: 6, minor: 1 };
const KERNEL_BTF = "/sys/kernel/btf/vmlinux";
const NAMED_NETNS = "/run/netns";

/** Those of `needed` that this process lacks. CAP_SYS_ADMIN stands for the BPF ones, as in the kernel. */
export function missingCapabilities(needed: readonly Capability[]): Capability[] {
  const held = capabilities();
  const substitute = held.has("CAP_SYS_ADMIN") ? new Set<Capability>(["CAP_BPF", "CAP_PERFMON"]) : new Set();
  return needed.filter((name) => !held.has(name) && !substitute.has(name));
}

/** Throws E_NOT_ROOT. `what` is what could not be done: "attach an interface". */
export function requireCapabilities(what: string, needed: readonly Capability[]): void {
  const missing = missingCapabilities(needed);
  if (missing.length === 0) return;
  throw new LasthopError("E_NOT_ROOT", `cannot ${what}: this process lacks ${missing.join(", ")}`, {
    hint: "Run it as root (sudo).",
  });
}

/** Major and minor of the running kernel. */
export function kernelVersion(): { major: number; minor: number; text: string } {
  const text = release();
  const [, major = "0", minor = "0"] = /^(\d+)\.(\d+)/.exec(text) ?? [];
  return { major: Number(major), minor: Number(minor), text };
}

/** Throws E_KERNEL. */
export function requireKernel(): void {
  const { major, minor, text } = kernelVersion();
  if (major < OLDEST_KERNEL.major || (major === OLDEST_KERNEL.major && minor < OLDEST_KERNEL.minor)) {
    throw new LasthopError("E_KERNEL", `Linux ${text} is too old`, {
      hint: `lasthop needs Linux ${OLDEST_KERNEL.major}.${OLDEST_KERNEL.minor} or later.`,
    });
  }
  if (!existsSync(KERNEL_BTF)) {
    throw new LasthopError("E_KERNEL", `this kernel does not describe its types (${KERNEL_BTF} is missing)`, {
      hint: "Use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions' are.",
    });
  }
}

/** The inode that names the network namespace of this thread. */
export function netnsInode(): number {
  return statSync("/proc/thread-self/ns/net").ino;
}

/** A path by which a network namespace can be entered; undefined when nobody seems to be in it. */
export function netnsPath(inode: number): string | undefined {
  const named = entries(NAMED_NETNS).map((name) => `${NAMED_NETNS}/${name}`);
  const found = named.find((path) => inodeOf(path) === inode);
  if (found !== undefined) return found;
  const processes = entries("/proc").filter((name) => /^\d+$/.test(name));
  return processes.map((pid) => `/proc/${pid}/ns/net`).find((path) => linkInode(path) === inode);
}

function entries(directory: string): string[] {
  return unlessGone(() => readdirSync(directory)) ?? [];
}

function inodeOf(path: string): number | undefined {
  return unlessGone(() => statSync(path).ino);
}

/** Cheaper than stat, which would open the namespace of each process. */
function linkInode(path: string): number | undefined {
  const target = unlessGone(() => readlinkSync(path));
  return target === undefined ? undefined : Number(/^net:\[(\d+)\]$/.exec(target)?.[1]);
}

/** Processes end while they are being listed, and others' are not ours to see. */
function unlessGone<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? "";
    if (["ENOENT", "ESRCH", "EACCES", "EPERM", "ENOTDIR", "EINVAL"].includes(code)) return undefined;
    throw error;
  }
}
