// SPDX-License-Identifier: Apache-2.0
// What is pinned: whether it is of this build, whole, kept up, and alone.

import { readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { POLICY_NAMES } from "../../abi/codec.ts";
import { ROLE, TABLES } from "../../abi/layout.gen.ts";
import { observeInstance } from "../../controller/ensure.ts";
import { isAttached } from "../../controller/interfaceEntry.ts";
import { clockIsRight, readClock } from "../../controller/tickClock.ts";
import { LasthopError } from "../../errors.ts";
import { attachmentsOn } from "../../kernel/attachment.ts";
import { isHeld } from "../../kernel/holder.ts";
import { type Instance, openInstance, pinnedVersions, programIds } from "../../kernel/instance.ts";
import type { Netlink } from "../../kernel/netlink.ts";
import { isBpffs } from "../../kernel/pinRoot.ts";
import { type Link, TC_PARENT_EGRESS, TC_PARENT_INGRESS } from "../../kernel/rtnetlink.ts";
import { TUNNEL_PROGRAMS } from "../../kernel/tunnelAttachment.ts";
import { BpfProgram, type Direction, isErrno, tcxQuery } from "../../libbpf/index.ts";
import { type InterfaceEntry, Tables } from "../../tables/index.ts";
import { tableFills } from "../status.ts";
import { tunnelEntries } from "../tunnels.ts";
import type { DoctorCheck, TableFill, TunnelEntry } from "../types.ts";
import { check, type Finding, fail, ok, warn } from "./finding.ts";

/** Names of our programs on interfaces. */
const OUR_PROGRAMS: readonly string[] = ["learn_tc", "learn_xdp", "reply_tc", ...TUNNEL_PROGRAMS];
const FULL = 0.9;
/** The configuration's longest interval is a minute by default. */
const SWEEP_AGE_SECONDS = 300;

export type Opened = { instance: Instance; found: Finding } | { instance: null; found: Finding };

/** What cannot be opened is a finding. */
export function tryOpen(pinRoot: string): Opened {
  try {
    const instance = openInstance(pinRoot);
    return { instance, found: ok(instance.path) };
  } catch (error) {
    if (!(error instanceof LasthopError)) throw error;
    if (error.code === "E_NO_TABLES") return { instance: null, found: ok("none: nothing is attached") };
    return { instance: null, found: warn(error.message, error.hint ?? null) };
  }
}

export function attachedEntries(instance: Instance | null): InterfaceEntry[] {
  return instance ? new Tables(instance).interfaces.list().filter(isAttached) : [];
}

export function instanceChecks(pinRoot: string, opened: Opened, netlink: Netlink | null): DoctorCheck[] {
  const { instance } = opened;
  const checks = [check("tables", () => opened.found)];
  // Without the pin root nothing can be held; the check of bpffs says why.
  const held = opened.found.level === "ok" && isHeld(pinRoot);
  if (instance) {
    const tables = new Tables(instance);
    const attached = attachedEntries(instance);
    checks.push(
      check("daemon", () => daemonCheck(held, attached.length)),
      check("build", () => buildCheck(pinRoot)),
      check("fill", () => fillCheck(tableFills(instance))),
      check("sweep", () => sweepCheck(lastSweepSeconds(tables), held)),
      check("clock", () => clockCheck(tables, instance)),
      check("bypass", () => bypassCheck(tables)),
    );
    if (netlink) checks.push(check("bridge ageing", () => ageingCheck(attached, netlink, held)));
    if (netlink) checks.push(check("tunnels", () => tunnelsCheck(tunnelEntries(instance, netlink))));
  }
  if (netlink) checks.push(check("programs", () => programsCheck(pinRoot, instance, netlink)));
  return checks;
}

function daemonCheck(held: boolean, attached: number): Finding {
  if (held) return ok("`lasthop run` holds this instance");
  if (attached === 0) return ok("not running, and nothing is attached");
  return warn(
    "not running: forwarding goes on, but idle flows stay, new taps are not attached and dead devices not noticed",
    "`systemctl enable --now lasthop`, or `lasthop run`.",
  );
}

function buildCheck(pinRoot: string): Finding {
  const changes = observeInstance(pinRoot, { maxEntries: {} });
  if (changes.length === 0) return ok("the pinned programs are of this build");
  return warn(
    `the pinned programs are of another build: ${changes.map(({ text }) => text).join("; ")}`,
    "`systemctl restart lasthop` exchanges them while traffic runs, without losing a flow.",
  );
}

export function fillCheck(fills: readonly TableFill[]): Finding {
  const percent = ({ entries, max_entries }: TableFill) => Math.round((entries / max_entries) * 100);
  const full = fills.filter(({ entries, max_entries }) => entries >= FULL * max_entries);
  if (full.length === 0) {
    const [fullest] = fills.toSorted((a, b) => percent(b) - percent(a));
    return ok(fullest ? `${fullest.table} is the fullest, ${percent(fullest)} %` : "no tables");
  }
  return warn(
    full.map((fill) => `${fill.table} ${percent(fill)} %`).join(", "),
    "A table of flows that is full evicts the least recently used: `lasthop stats` shows what comes in, " +
      "`lasthop sweep` removes what is idle, `tables:` in the configuration makes it larger without losing a flow.",
  );
}

/** Seconds since the last pass over all tables ended; null if there was none. */
function lastSweepSeconds(tables: Tables): number | null {
  const finished = Array.from({ length: TABLES }, (_, table) => tables.sweep.ended(table).finished_ns);
  const oldest = Math.min(...finished);
  return oldest === 0 ? null : (Number(process.hrtime.bigint()) - oldest) / 1e9;
}

export function sweepCheck(seconds: number | null, held: boolean): Finding {
  if (seconds !== null && seconds <= SWEEP_AGE_SECONDS) return ok(`${Math.round(seconds)} s ago`);
  const hint = held
    ? "The daemon should do it: look at its log, `journalctl -u lasthop`."
    : "Run the daemon, or `lasthop sweep` from a timer, every minute or so.";
  const found = seconds === null ? "never: idle flows stay" : `${Math.round(seconds)} s ago: idle flows stay`;
  // A daemon that has just started has not come round yet.
  return seconds === null && held ? ok("not yet since the tables were made") : warn(found, hint);
}

function clockCheck(tables: Tables, instance: Instance): Finding {
  if (clockIsRight(tables.control.get(), readClock(instance.program("read_clock")))) {
    return ok("the programs' time is right");
  }
  return warn(
    "the programs' time has gone astray, so flows look idle that are not",
    "`lasthop sweep`, and the daemon every time, set it right.",
  );
}

function bypassCheck(tables: Tables): Finding {
  if (tables.control.get().bypass === 0) return ok("off");
  return warn(
    "on: every packet passes, and no reply is sent back",
    "`lasthop bypass off` when you are done.",
  );
}

function ageingCheck(attached: readonly InterfaceEntry[], netlink: Netlink, held: boolean): Finding {
  const enforced = attached.filter(
    (entry) => entry.role === ROLE.TAP && POLICY_NAMES[entry.policy] === "enforce",
  );
  const masters = new Set(enforced.flatMap(({ ifindex }) => netlink.link(ifindex)?.master ?? []));
  const bridges = [...masters].flatMap((ifindex) => netlink.bridge(ifindex) ?? []);
  if (bridges.length === 0) return ok("no tap is on a bridge");
  if (held) return ok("the daemon keeps VMs' entries fresh");
  const names = bridges.map(
    ({ ifindex, ageingSeconds }) => `${netlink.link(ifindex)?.name ?? ifindex} after ${ageingSeconds} s`,
  );
  return warn(
    `bridges forget VMs whose replies they do not see (${names.join(", ")}) and flood their requests`,
    "Run the daemon, which keeps the entries fresh; or raise the ageing time: " +
      "`ip link set BRIDGE type bridge ageing_time 360000`.",
  );
}

export function tunnelsCheck(tunnels: readonly Pick<TunnelEntry, "name" | "state">[]): Finding {
  if (tunnels.length === 0) return ok("none");
  const wrong = tunnels.filter(({ state }) => state !== "ok");
  if (wrong.length === 0) return ok(`${tunnels.length}, in order`);
  return warn(
    wrong.map(({ name, state }) => `${name}: ${state.replaceAll("_", " ")}`).join(", "),
    "`lasthop tunnels show NAME` says more; `lasthop apply`, or the daemon, puts right what is lasthop's.",
  );
}

// Our programs on interfaces

interface Stray {
  interface: string;
  programId: number;
  /** The pin root of the instance that it belongs to; null if nobody pins it. */
  owner: string | null;
}

function programsCheck(pinRoot: string, instance: Instance | null, netlink: Netlink): Finding {
  const links = netlink.links();
  const doubled = links.filter((link) => instance && aliveOn(instance, link) > 1).map(({ name }) => name);
  if (doubled.length > 0) {
    return fail(
      `more than one of our programs on ${doubled.join(", ")}`,
      "`lasthop attach IFACE --role ROLE` again leaves one; the daemon does so when it starts.",
    );
  }
  const own = new Set(pinnedVersions(pinRoot).flatMap((version) => programIds(pinRoot, version)));
  const strays = straysOn(netlink, links, own);
  if (strays === null) {
    return warn("whether others are ours cannot be told without CAP_SYS_ADMIN", "Run doctor as root (sudo).");
  }
  const orphans = strays.filter(({ owner }) => owner === null);
  if (orphans.length > 0) {
    const names = orphans.map((stray) => `${stray.interface} (program ${stray.programId})`);
    return warn(
      `programs of lasthop that no pin leads to: ${names.join(", ")}`,
      "Somebody removed the pins, or holds the links. `bpftool link show` has the link of a program and who holds " +
        "it: `bpftool link detach id LINK`. A clsact filter goes with `tc filter del dev IFACE ingress pref 27752`.",
    );
  }
  const others = strays.map((stray) => `${stray.interface} (${stray.owner})`);
  return ok(others.length === 0 ? "no strays" : `other instances: ${others.join(", ")}`);
}

function aliveOn(instance: Instance, link: Link): number {
  return attachmentsOn(instance, link.ifindex, link.xdp?.mode ?? null).filter(({ alive }) => alive).length;
}

/** Programs with our names that are not of this pin root; null if they cannot be looked at. */
function straysOn(netlink: Netlink, links: readonly Link[], own: ReadonlySet<number>): Stray[] | null {
  const strays: Stray[] = [];
  const owners = new Map<number, string>();
  const names = new Map<number, string | null>();
  for (const link of links) {
    for (const programId of programsOn(netlink, link).filter((id) => !own.has(id))) {
      if (!names.has(programId)) {
        const name = programName(programId);
        if (name === undefined) return null;
        names.set(programId, name);
      }
      if (!OUR_PROGRAMS.includes(names.get(programId) ?? "")) continue;
      if (owners.size === 0) for (const [id, root] of otherInstances()) owners.set(id, root);
      strays.push({ interface: link.name, programId, owner: owners.get(programId) ?? null });
    }
  }
  return strays;
}

function programsOn(netlink: Netlink, link: Link): number[] {
  const filters = [TC_PARENT_INGRESS, TC_PARENT_EGRESS].flatMap((parent) =>
    netlink.filters(link.ifindex, parent),
  );
  const xdp = link.xdp?.programId ?? null;
  return [
    ...(tcxQueryIfThere(link.ifindex, "ingress") ?? []),
    ...(tcxQueryIfThere(link.ifindex, "egress") ?? []),
    ...filters.flatMap(({ programId }) => (programId === null ? [] : [programId])),
    ...(xdp === null ? [] : [xdp]),
  ];
}

function tcxQueryIfThere(ifindex: number, direction: Direction): number[] | undefined {
  try {
    return tcxQuery(ifindex, direction);
  } catch (error) {
    if (isErrno(error, "ENODEV")) return undefined;
    throw error;
  }
}

/** Null if it has gone, undefined if this process may not look. */
function programName(id: number): string | null | undefined {
  try {
    using program = BpfProgram.fromId(id);
    return program.name;
  } catch (error) {
    if (isErrno(error, "ENOENT")) return null;
    if (isErrno(error, "EPERM", "EACCES")) return undefined;
    throw error;
  }
}

/** Program id → pin root, of the instances in the usual place. */
function otherInstances(): Map<number, string> {
  const directory = dirname("/sys/fs/bpf/lasthop");
  const found = new Map<number, string>();
  if (!isBpffs(directory)) return found;
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    if (!entry.isDirectory()) continue;
    const root = join(directory, entry.name);
    for (const version of pinnedVersions(root)) {
      for (const id of programIds(root, version)) found.set(id, root);
    }
  }
  return found;
}
