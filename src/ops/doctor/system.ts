// SPDX-License-Identifier: Apache-2.0
// What lasthop needs of the kernel and the machine, and what it is better with.

import { join } from "node:path";
import { objectPath } from "../../kernel/build.ts";
import { readIfThere } from "../../kernel/netfilter.ts";
import { requireBpffs } from "../../kernel/pinRoot.ts";
import { kernelVersion, missingCapabilities, requireKernel } from "../../kernel/probe.ts";
import { usesTcx } from "../../kernel/tc.ts";
import { libbpfVersion, tcxQuery } from "../../libbpf/index.ts";
import type { DoctorCheck } from "../types.ts";
import { check, type Finding, fail, ok, warn } from "./finding.ts";

const OLDEST_LIBBPF = { major: 1, minor: 1 };
const LOOPBACK = 1;
/** Maps, programs, links, sockets and Node's own, with room to spare. */
const OPEN_FILES = 256;
/** The tables of the default sizes, and the daemon. */
const MEMORY_BYTES = 1024 ** 3;
/** Read by an instruction, or by a page shared with the hypervisor. Others cost a microsecond a packet. */
const QUICK_CLOCKS = ["tsc", "arch_sys_counter", "kvm-clock", "hyperv_clocksource_tsc_page", "xen"];

export function systemChecks(pinRoot: string): DoctorCheck[] {
  return [
    check("kernel", kernelCheck),
    check("bpffs", () => bpffsCheck(pinRoot)),
    check("capabilities", capabilitiesCheck),
    check("libbpf", libbpfCheck),
    check("bpf object", () => ok(objectPath())),
    check("jit", jitCheck),
    check("unprivileged bpf", unprivilegedCheck),
    check("lockdown", () => lockdownCheck(readIfThere("/sys/kernel/security/lockdown"))),
    check("clock source", () =>
      clockSourceCheck(readIfThere("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
    ),
    check("limits", () => limitsCheck(readIfThere("/proc/self/limits") ?? "", memoryLimit())),
    check("tcx", tcxCheck),
  ];
}

function kernelCheck(): Finding {
  requireKernel();
  return ok(`Linux ${kernelVersion().text}, with BTF`);
}

function bpffsCheck(pinRoot: string): Finding {
  requireBpffs(pinRoot);
  return ok(`${pinRoot} is on a bpf file system`);
}

function capabilitiesCheck(): Finding {
  const missing = missingCapabilities(["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
  if (missing.length === 0) return ok("CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON");
  return fail(`lacking ${missing.join(", ")}`, "Run it as root (sudo).");
}

function libbpfCheck(): Finding {
  const version = libbpfVersion();
  const { major, minor } = OLDEST_LIBBPF;
  if (version.major > major || (version.major === major && version.minor >= minor))
    return ok(`libbpf ${version.text}`);
  return fail(`libbpf ${version.text}`, `lasthop needs libbpf ${major}.${minor} or later.`);
}

function jitCheck(): Finding {
  const value = readIfThere("/proc/sys/net/core/bpf_jit_enable");
  if (value === undefined) return warn("cannot be told", "Look at the sysctl net.core.bpf_jit_enable.");
  if (value === "0") {
    return warn(
      "off: programs are interpreted, many times slower",
      "`sysctl -w net.core.bpf_jit_enable=1`, before the interfaces are attached.",
    );
  }
  if (readIfThere("/proc/sys/net/core/bpf_jit_harden") !== "2") return ok("on");
  return warn(
    "on, but hardened for root's programs too, which makes them slower",
    "`sysctl -w net.core.bpf_jit_harden=1` hardens those of other users only.",
  );
}

function unprivilegedCheck(): Finding {
  const value = readIfThere("/proc/sys/kernel/unprivileged_bpf_disabled");
  if (value === undefined)
    return warn("cannot be told", "Look at the sysctl kernel.unprivileged_bpf_disabled.");
  if (value !== "0") return ok("disabled");
  return warn(
    "any user may load programs",
    "`sysctl -w kernel.unprivileged_bpf_disabled=2`, unless somebody needs it.",
  );
}

/** "none [integrity] confidentiality": the mode stands in brackets. */
export function lockdownCheck(text: string | undefined): Finding {
  const mode = /\[(\w+)\]/.exec(text ?? "")?.[1];
  if (mode === undefined) return ok("not in this kernel");
  if (mode !== "confidentiality") return ok(mode);
  return warn(
    "confidentiality: some distributions' kernels refuse BPF then",
    "If loading the programs fails (E_BPF, E_LOAD), boot with `lockdown=integrity`; lasthop reads no kernel memory.",
  );
}

export function clockSourceCheck(name: string | undefined): Finding {
  if (name === undefined) {
    return warn("cannot be told", "`cat /sys/devices/system/clocksource/clocksource0/current_clocksource`");
  }
  if (QUICK_CLOCKS.includes(name)) return ok(name);
  return warn(
    `${name}: reading the time is slow, and every packet does`,
    "Find out why the kernel gave up a quicker one: `dmesg | grep -i clocksource`.",
  );
}

/** `limits` is /proc/self/limits, `memory` what this control group may use in bytes. */
export function limitsCheck(limits: string, memory: number | null): Finding {
  const soft = (name: string) => {
    const value = new RegExp(`^${name} +(\\S+)`, "m").exec(limits)?.[1];
    return value === undefined || value === "unlimited" ? Number.POSITIVE_INFINITY : Number(value);
  };
  const files = soft("Max open files");
  if (files < OPEN_FILES) {
    return warn(`${files} open files`, `\`ulimit -n ${OPEN_FILES}\`, or LimitNOFILE= of the service.`);
  }
  if (soft("Max address space") !== Number.POSITIVE_INFINITY) {
    return warn("the address space is limited, and Node.js reserves much of it", "`ulimit -v unlimited`");
  }
  if (memory !== null && memory < MEMORY_BYTES) {
    return warn(
      `${Math.floor(memory / 1024 ** 2)} MiB of memory for this control group, which the tables count against`,
      "Raise MemoryMax= of the service, or make `tables` smaller in the configuration.",
    );
  }
  // Since Linux 5.11 maps count against the control group, not against locked memory.
  return ok(
    `${files === Number.POSITIVE_INFINITY ? "any number of" : files} open files, locked memory not needed`,
  );
}

/** The smallest memory.max from this control group up; null if there is none. */
function memoryLimit(): number | null {
  const path = /^0::(.*)$/m.exec(readIfThere("/proc/self/cgroup") ?? "")?.[1];
  if (path === undefined) return null;
  let least: number | null = null;
  for (let at = join("/sys/fs/cgroup", path); at.startsWith("/sys/fs/cgroup"); at = join(at, "..")) {
    const limit = Number(readIfThere(join(at, "memory.max")) ?? Number.NaN);
    if (Number.isFinite(limit) && (least === null || limit < least)) least = limit;
  }
  return least;
}

function tcxCheck(): Finding {
  if (tcxQuery(LOOPBACK, "ingress") === undefined) {
    return ok("not in this kernel (before 6.6): clsact is used");
  }
  return usesTcx(LOOPBACK) ? ok("TC programs are attached by TCX links") : ok("there, but LASTHOP_TC=clsact");
}
