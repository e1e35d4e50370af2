// SPDX-License-Identifier: Apache-2.0

import { ROLE } from "../abi/layout.gen.ts";
import { isAttached } from "../controller/detach.ts";
import { decideHook } from "../controller/hook.ts";
import { LasthopError } from "../errors.ts";
import { attachmentsOn } from "../kernel/attachment.ts";
import { driver, vlanStripping } from "../kernel/ethtool.ts";
import { type Instance, objectPath, openInstance } from "../kernel/instance.ts";
import {
  type BaseChain,
  bypassedChains,
  legacyTables,
  readChains,
  readIfThere,
} from "../kernel/netfilter.ts";
import { Netlink } from "../kernel/netlink.ts";
import { requireBpffs } from "../kernel/pinRoot.ts";
import { kernelVersion, missingCapabilities, requireKernel } from "../kernel/probe.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { usesTcx } from "../kernel/tc.ts";
import { libbpfVersion, tcxQuery } from "../libbpf/index.ts";
import { type InterfaceEntry, InterfaceTable } from "../tables/index.ts";
import { whyNotAttachable } from "./interfaces.ts";
import type { DoctorCheck, DoctorReport, OpContext } from "./types.ts";

const OLDEST_LIBBPF = { major: 1, minor: 1 };
const LOOPBACK = 1;
/** rp_filter: the route back to the source must leave by the interface of arrival. */
const STRICT = "1";

type Found = Omit<DoctorCheck, "name">;

const ok = (found: string): Found => ({ level: "ok", found, hint: null });
const warn = (found: string, hint: string): Found => ({ level: "warn", found, hint });
const fail = (found: string, hint: string | null): Found => ({ level: "fail", found, hint });

/** What this host offers and lacks. Changes nothing; a check that cannot be made says so. */
export async function doctor(context: OpContext): Promise<DoctorReport> {
  const opened = tryOpen(context.pinRoot);
  try {
    const attached = "instance" in opened ? attachedEntries(opened.instance) : [];
    const chains = await readChains();
    const checks: DoctorCheck[] = [
      check("kernel", kernelCheck),
      check("bpffs", () => bpffsCheck(context.pinRoot)),
      check("capabilities", capabilitiesCheck),
      check("libbpf", libbpfCheck),
      check("bpf object", () => ok(objectPath())),
      check("jit", jitCheck),
      check("unprivileged bpf", unprivilegedCheck),
      check("tcx", tcxCheck),
      check("tables", () => opened.found),
      check("netfilter", () => netfilterCheck(chains)),
      check("nat", () => natCheck(chains)),
      check("rp_filter", () => rpFilterCheck(attached)),
      check("bridge-nf", bridgeNetfilterCheck),
    ];
    return {
      checks,
      interfaces: interfaceReports("instance" in opened ? opened.instance : undefined, checks),
    };
  } finally {
    if ("instance" in opened) opened.instance.close();
  }
}

/** One that fails is a finding, not the end. */
function check(name: string, look: () => Found): DoctorCheck {
  try {
    return { name, ...look() };
  } catch (error) {
    if (!(error instanceof LasthopError)) throw error;
    return { name, ...fail(error.message, error.hint ?? null) };
  }
}

// What lasthop needs

function kernelCheck(): Found {
  requireKernel();
  return ok(`Linux ${kernelVersion().text}, with BTF`);
}

function bpffsCheck(pinRoot: string): Found {
  requireBpffs(pinRoot);
  return ok(`${pinRoot} is on a bpf file system`);
}

function capabilitiesCheck(): Found {
  const missing = missingCapabilities(["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
  if (missing.length === 0) return ok("CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON");
  return fail(`lacking ${missing.join(", ")}`, "Run it as root (sudo).");
}

function libbpfCheck(): Found {
  const version = libbpfVersion();
  const { major, minor } = OLDEST_LIBBPF;
  if (version.major > major || (version.major === major && version.minor >= minor))
    return ok(`libbpf ${version.text}`);
  return fail(`libbpf ${version.text}`, `lasthop needs libbpf ${major}.${minor} or later.`);
}

// What it is better with

function jitCheck(): Found {
  const value = readIfThere("/proc/sys/net/core/bpf_jit_enable");
  if (value === undefined) return warn("cannot be told", "Look at the sysctl net.core.bpf_jit_enable.");
  if (value !== "0") return ok("on");
  return warn("off: programs are interpreted, many times slower", "`sysctl -w net.core.bpf_jit_enable=1`");
}

function unprivilegedCheck(): Found {
  const value = readIfThere("/proc/sys/kernel/unprivileged_bpf_disabled");
  if (value === undefined)
    return warn("cannot be told", "Look at the sysctl kernel.unprivileged_bpf_disabled.");
  if (value !== "0") return ok("disabled");
  return warn(
    "any user may load programs",
    "`sysctl -w kernel.unprivileged_bpf_disabled=2`, unless somebody needs it.",
  );
}

function tcxCheck(): Found {
  if (tcxQuery(LOOPBACK, "ingress") === undefined) {
    return ok("not in this kernel (before 6.6): clsact is used");
  }
  return usesTcx(LOOPBACK) ? ok("TC programs are attached by TCX links") : ok("there, but LASTHOP_TC=clsact");
}

type Opened = { found: Found; instance: Instance } | { found: Found };

function tryOpen(pinRoot: string): Opened {
  try {
    const instance = openInstance(pinRoot);
    return { instance, found: ok(instance.path) };
  } catch (error) {
    if (!(error instanceof LasthopError)) throw error;
    if (error.code === "E_NO_TABLES") return { found: ok("none: nothing is attached") };
    return { found: warn(error.message, error.hint ?? "") };
  }
}

function attachedEntries(instance: Instance): InterfaceEntry[] {
  return new InterfaceTable(instance).list().filter(isAttached);
}

// What a redirected reply goes past

function netfilterCheck(chains: BaseChain[] | { unknown: string }): Found {
  const legacy = legacyTables();
  const hint =
    "A reply that lasthop redirects passes neither the bridge nor these: what they filter, log or count " +
    "must not depend on replies. `policy off` leaves a VM to them.";
  if ("unknown" in chains) return warn(`cannot be checked: ${chains.unknown}`, hint);
  const filters = bypassedChains(chains).filter((chain) => chain.type !== "nat");
  const names = [
    ...filters.map((chain) => `${chain.family} ${chain.table} ${chain.name} (${chain.hook})`),
    ...legacy.map((table) => `${table} (legacy iptables; whether it has rules cannot be checked)`),
  ];
  return names.length === 0
    ? ok("no rules that a redirected reply would go past")
    : warn(names.join(", "), hint);
}

function natCheck(chains: BaseChain[] | { unknown: string }): Found {
  const hint =
    "A redirected reply is not translated back. Flows that this host translates have another key on the tap " +
    "and pass; make sure that no VM's traffic is translated by a rule that sees one direction only.";
  if ("unknown" in chains) return warn(`cannot be checked: ${chains.unknown}`, hint);
  const nat = chains.filter((chain) => chain.type === "nat" && chain.rules > 0);
  if (nat.length === 0) return ok("no rules");
  return warn(
    nat.map((chain) => `${chain.family} ${chain.table} ${chain.name} (${chain.hook})`).join(", "),
    hint,
  );
}

function rpFilterCheck(attached: readonly InterfaceEntry[]): Found {
  const all = readIfThere("/proc/sys/net/ipv4/conf/all/rp_filter");
  const uplinks = attached.filter((entry) => entry.role === ROLE.UPLINK);
  const names = uplinks.length > 0 ? uplinks.map((entry) => entry.name) : ["default"];
  // The greater of the two counts.
  const strict = names.filter((name) => {
    const own = readIfThere(`/proc/sys/net/ipv4/conf/${name}/rp_filter`);
    return (own === STRICT || all === STRICT) && own !== "2" && all !== "2";
  });
  if (strict.length === 0) return ok("not strict");
  return warn(
    `strict on ${strict.join(", ")}`,
    "On a routed host it drops requests whose client is routed by another interface: " +
      `${strict.map((name) => `\`sysctl -w net.ipv4.conf.${name}.rp_filter=2\``).join(", ")}.`,
  );
}

function bridgeNetfilterCheck(): Found {
  const on = ["arp", "ip", "ip6"].filter(
    (family) => readIfThere(`/proc/sys/net/bridge/bridge-nf-call-${family}tables`) === "1",
  );
  if (on.length === 0) return ok("off");
  return warn(
    `bridged frames pass ${on.map((family) => `${family}tables`).join(", ")}`,
    "The host's connection tracking sees requests of bridged VMs but not their redirected replies: " +
      "`sysctl -w net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0`, unless it is needed.",
  );
}

// Interfaces

function interfaceReports(
  instance: Instance | undefined,
  checks: readonly DoctorCheck[],
): DoctorReport["interfaces"] {
  // Without it nothing can be asked about them.
  if (checks.some(({ name, level }) => name === "libbpf" && level === "fail")) return [];
  using netlink = new Netlink();
  return netlink
    .links()
    .filter((link) => whyNotAttachable(netlink, link) === null)
    .map((link) => interfaceReport(instance, link));
}

function interfaceReport(instance: Instance | undefined, link: Link): DoctorReport["interfaces"][number] {
  const attachments = instance ? attachmentsOn(instance, link.ifindex, link.xdp?.mode ?? null) : [];
  const ours = attachments.find((attachment) => attachment.alive && attachment.hook.startsWith("xdp"));
  const stripping = vlanStripping(link.name);
  const hardware = link.parentDevice !== null;
  const { hook, reason } = decideHook(
    {
      name: link.name,
      role: "uplink",
      kind: link.kind,
      hardware,
      xdp: link.xdp,
      ownXdpProgramId: ours?.programId ?? null,
      vlanStripping: stripping,
      tcx: usesTcx(link.ifindex),
    },
    "auto",
  );
  const notes: string[] = [];
  if (hardware && stripping && stripping.length > 0) {
    notes.push(
      `for native XDP turn VLAN stripping off: \`ethtool -K ${link.name} ${stripping.map((feature) => `${feature} off`).join(" ")}\``,
    );
  }
  if (link.portState === "blocking") notes.push("the bridge port is blocking: nothing is learned there");
  return { interface: link.name, driver: driver(link.name), auto_mode: hook, reason, notes };
}
