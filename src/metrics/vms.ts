// SPDX-License-Identifier: Apache-2.0
// The operator's VMs: up or down and why, what services hand them, and how their checks go.

import { CAUSE_NAMES, ORIGIN_NAMES, VM_STATE_NAMES } from "../abi/codec.ts";
import { VM_STATE } from "../abi/layout.gen.ts";
import { formatMac } from "../addresses.ts";
import { type NamedVm, vmsInPieces } from "../controller/serviceSpec.ts";
import { isZero } from "../tables/index.ts";
import { Family, Labels } from "./family.ts";
import type { ScrapedInterface } from "./interfaces.ts";
import { CounterReader } from "./perCpu.ts";
import type { ScrapeSource } from "./source.ts";
import { tickUnixSeconds } from "./time.ts";
import { Accounts } from "./traffic.ts";

const COUNTERS = {
  flows: ["flows_started", "Flows of services that were handed to the VM."],
  request_packets: ["request_packets", "Requests of services that were handed to the VM."],
  request_bytes: ["request_bytes", "Bytes of the requests that were handed to the VM."],
  response_packets: ["response_packets", "Responses to what the VM forwarded that were handed to it."],
  response_bytes: ["response_bytes", "Bytes of the responses that were handed to the VM."],
} as const;

type VmCounter = keyof typeof COUNTERS;
const COUNTER_KEYS = Object.keys(COUNTERS) as VmCounter[];

/** By the ids of the cells that a VM has had. */
export class VmAccounts extends Accounts<VmCounter> {
  constructor() {
    super(COUNTER_KEYS);
  }
}

/** By name. */
export async function scrapeVms({ tables, pace }: ScrapeSource): Promise<NamedVm[]> {
  return (await pace.through(vmsInPieces(tables))).named;
}

export async function vmFamilies(
  { pace }: ScrapeSource,
  vms: readonly NamedVm[],
  interfaces: readonly ScrapedInterface[],
): Promise<Family[]> {
  const info = new Family("gauge", "lasthop_vm_info", "A VM that the operator named; always 1.");
  const up = new Family("gauge", "lasthop_vm_up", "0 if the VM is down, else 1.");
  const state = new Family(
    "gauge",
    "lasthop_vm_state",
    "1 for the state that the VM is in, and the cause of it.",
  );
  const changed = new Family(
    "gauge",
    "lasthop_vm_last_change_timestamp_seconds",
    "When the VM's state last changed.",
  );
  const names = new Map(interfaces.map(({ entry, name }) => [entry.ifindex, name]));
  for (const { name, config, spec } of vms) {
    if (pace.due) await pace.rest();
    const labels = new Labels({ vm: name });
    const tap = names.get(spec.ifindex) ?? config.tap ?? "";
    const mac = isZero(spec.mac) ? "" : formatMac(spec.mac);
    info.add(1, labels, new Labels({ zone: spec.zone, origin: ORIGIN_NAMES[spec.origin]!, tap, mac }));
    up.add(spec.state === VM_STATE.DOWN ? 0 : 1, labels);
    const why = { state: VM_STATE_NAMES[spec.state]!, cause: CAUSE_NAMES[spec.cause]! };
    state.add(1, labels, new Labels(why));
    if (spec.changed !== 0) changed.add(tickUnixSeconds(spec.changed), labels);
  }
  return [info, up, state, changed];
}

export async function vmTrafficFamilies(
  { instance, tables, pace }: ScrapeSource,
  vms: readonly NamedVm[],
  accounts: VmAccounts,
): Promise<Family[]> {
  const flows = new Family("gauge", "lasthop_vm_flows", "Flows of services that the VM has now.");
  const counters = COUNTER_KEYS.map((key) => {
    const [name, help] = COUNTERS[key];
    return { key, family: new Family("counter", `lasthop_vm_${name}_total`, help) };
  });
  const reader = new CounterReader(instance.map("vm_stats"), "vm_stats", COUNTER_KEYS);
  for (const { name, spec } of vms) {
    const labels = new Labels({ vm: name });
    const cell = tables.guests.cellOf(spec.id)?.cell;
    flows.add(cell === undefined ? 0 : (tables.guests.flows.get(cell) ?? 0), labels);
    const now = cell === undefined ? [] : [[spec.id, reader.read(cell)] as const];
    const total = accounts.add(name, new Map(now));
    for (const { key, family } of counters) family.add(total[key], labels);
    if (pace.due) await pace.rest();
  }
  accounts.keep(new Set(vms.map(({ name }) => name)));
  return [flows, ...counters.map(({ family }) => family)];
}

/** What the daemon's checks came to. */
export class VmCheckAccounts {
  readonly #checks = new Map<string, { ok: number; error: number; seconds: number | null }>();

  /** `seconds` counts only when the VM answered: otherwise it is the timeout. */
  checked(vm: string, ok: boolean, seconds: number): void {
    const before = this.#checks.get(vm) ?? { ok: 0, error: 0, seconds: null };
    before[ok ? "ok" : "error"]++;
    if (ok) before.seconds = seconds;
    this.#checks.set(vm, before);
  }

  /** Of those that exist; what was counted of others is forgotten. */
  async families(vms: readonly NamedVm[], { pace }: ScrapeSource): Promise<Family[]> {
    const checks = new Family("counter", "lasthop_vm_checks_total", "Checks of the VM, by the daemon.");
    const duration = new Family(
      "gauge",
      "lasthop_vm_check_last_duration_seconds",
      "How long the VM took to answer the last check that it answered.",
    );
    const names = new Set(vms.map(({ name }) => name));
    for (const [vm, { ok, error, seconds }] of this.#checks) {
      if (pace.due) await pace.rest();
      if (!names.has(vm)) {
        this.#checks.delete(vm);
        continue;
      }
      checks.add(ok, { vm, result: "ok" });
      checks.add(error, { vm, result: "error" });
      if (seconds !== null) duration.add(seconds, { vm });
    }
    return [checks, duration];
  }
}
