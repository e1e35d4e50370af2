// SPDX-License-Identifier: Apache-2.0
// What only the daemon knows: its own counters and histograms, which live as long as it does.

import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";
import { NOTICE_KIND } from "../abi/layout.gen.ts";
import type { SweepResult } from "../controller/sweep.ts";
import { ERROR_CODES } from "../errors.ts";
import type { Pace } from "./pace.ts";
import { ServiceAccounts } from "./services.ts";
import { TrafficAccounts } from "./traffic.ts";
import { VmAccounts, VmCheckAccounts } from "./vms.ts";

/** Gauges whose names end as only counters' may; the sums of the gauges without `_total`. */
const MISNAMED = [
  "nodejs_active_handles_total",
  "nodejs_active_requests_total",
  "nodejs_active_resources_total",
];

const RECONCILE_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];
const PROBE_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 5];
const SWEEP_SECONDS = [0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];
const SWEEP_BUSY_SECONDS = [0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1];
const SWEEP_CALL_SECONDS = [0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05];
const SWEEP_ENTRIES = [100, 1_000, 10_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 4_000_000];

const RESULTS = ["ok", "error"] as const;
const NOTICE_KINDS = Object.keys(NOTICE_KIND).map((name) => name.toLowerCase());
/** What a caller says that we do not know goes under this, so that no label grows without bound. */
const OTHER = "other";

/** What is counted of a sweep. */
export type SweptPass = Pick<
  SweepResult,
  "durationNs" | "busyNs" | "longestCallNs" | "lastHopsReleased" | "clockRepaired"
> & {
  tables: readonly Pick<SweepResult["tables"][number], "name" | "report">[];
};

export class DaemonMetrics {
  /** What devices' counters are made of from scrape to scrape. */
  readonly traffic = new TrafficAccounts();
  /** And those of VMs and of services. */
  readonly vmTraffic = new VmAccounts();
  readonly serviceTraffic = new ServiceAccounts();
  readonly vmChecks = new VmCheckAccounts();
  readonly #registry = new Registry();
  readonly #evicted = new Map<string, { total: number; last: number | undefined }>();
  readonly #probed = new Set<string>();
  readonly #lost = { count: 0, seen: 0 };

  readonly #reconciles = this.#counter(
    "lasthop_reconciles_total",
    "Reconciliations after which everything was as configured.",
  );
  readonly #actions = this.#counter("lasthop_reconcile_actions_total", "Actions of reconciliations.", "kind");
  readonly #errors = this.#counter(
    "lasthop_reconcile_errors_total",
    "What could not be done in reconciliations, by error.",
    "code",
  );
  readonly #reconcileSeconds = this.#histogram(
    "lasthop_reconcile_duration_seconds",
    "How long successful reconciliations took.",
    RECONCILE_SECONDS,
  );
  readonly #reconciled = new Gauge({
    name: "lasthop_reconcile_last_success_timestamp_seconds",
    help: "When the last reconciliation succeeded; 0 if none has since the daemon started.",
    registers: [this.#registry],
  });
  readonly #reloads = this.#counter("lasthop_reloads_total", "Reloads of the configuration.", "result");
  readonly #overruns = this.#counter(
    "lasthop_netlink_overruns_total",
    "Times that the kernel had to drop events to us, each followed by a full look.",
  );
  readonly #notices = this.#counter("lasthop_notices_total", "Notices that the programs sent.", "kind");
  readonly #probes = this.#counter("lasthop_device_probes_total", "Probes of a device.", "device", "result");
  readonly #probeSeconds = this.#histogram(
    "lasthop_device_probe_duration_seconds",
    "How long a device took to answer a probe.",
    PROBE_SECONDS,
    "device",
  );
  readonly #sweepSeconds = this.#histogram(
    "lasthop_sweep_duration_seconds",
    "How long a sweep of all tables took, its pauses included.",
    SWEEP_SECONDS,
  );
  readonly #sweepCallSeconds = this.#histogram(
    "lasthop_sweep_longest_call_seconds",
    "The longest call into the kernel of each sweep.",
    SWEEP_CALL_SECONDS,
  );
  readonly #sweepBusySeconds = this.#histogram(
    "lasthop_sweep_busy_seconds",
    "How long the kernel was at work in each sweep of a table.",
    SWEEP_BUSY_SECONDS,
    "table",
  );
  readonly #sweepEntries = this.#histogram(
    "lasthop_sweep_entries",
    "Entries that each sweep of a table saw.",
    SWEEP_ENTRIES,
    "table",
  );
  readonly #busy = this.#counter(
    "lasthop_sweep_cpu_seconds_total",
    "Time that sweeps spent in calls into the kernel: its rate is their share of a core.",
  );
  readonly #clockRepairs = this.#counter(
    "lasthop_clock_repairs_total",
    "Times that a sweep found the programs' clock wrong, and set it right.",
  );
  readonly #expired = this.#counter(
    "lasthop_sweep_expired_total",
    "Idle entries that sweeps removed.",
    "table",
  );
  readonly #released = this.#counter(
    "lasthop_sweep_last_hops_released_total",
    "Last hops that sweeps gave back.",
  );

  constructor() {
    // From the start, so that the first of them is seen as an increase.
    for (const result of RESULTS) this.#reloads.inc({ result }, 0);
    for (const code of ERROR_CODES) this.#errors.inc({ code }, 0);
    for (const kind of NOTICE_KINDS) this.#notices.inc({ kind }, 0);
    collectDefaultMetrics({ register: this.#registry });
    for (const name of MISNAMED) this.#registry.removeSingleMetric(name);
  }

  #counter(name: string, help: string, ...labelNames: string[]): Counter {
    return new Counter({ name, help, labelNames, registers: [this.#registry] });
  }

  #histogram(name: string, help: string, buckets: number[], ...labelNames: string[]): Histogram {
    return new Histogram({ name, help, buckets, labelNames, registers: [this.#registry] });
  }

  reconciled(actions: readonly { kind: string }[], seconds: number): void {
    this.#reconciles.inc();
    this.#reconcileSeconds.observe(seconds);
    this.#reconciled.setToCurrentTime();
    for (const { kind } of actions) this.#actions.inc({ kind });
  }

  /** `code`: of a LasthopError; anything else counts as E_INTERNAL. */
  reconcileFailed(code: string): void {
    const known = (ERROR_CODES as readonly string[]).includes(code);
    this.#errors.inc({ code: known ? code : "E_INTERNAL" });
  }

  swept(result: SweptPass): void {
    this.#busy.inc(result.busyNs / 1e9);
    this.#clockRepairs.inc(Number(result.clockRepaired));
    this.#sweepSeconds.observe(result.durationNs / 1e9);
    this.#sweepCallSeconds.observe(result.longestCallNs / 1e9);
    this.#released.inc(result.lastHopsReleased);
    for (const { name, report } of result.tables) {
      const labels = { table: name };
      this.#sweepBusySeconds.observe(labels, report.busy_ns / 1e9);
      this.#sweepEntries.observe(labels, report.entries);
      this.#expired.inc(labels, report.expired);
      const total = report.evicted.reduce((sum, count) => sum + count, 0);
      const before = this.#evicted.get(name)?.total;
      const last = before === undefined ? undefined : Math.max(0, total - before);
      this.#evicted.set(name, { total, last });
    }
  }

  /** Flows that a table lost to its size between the last two sweeps; undefined before the second. */
  evictedInLastPass(table: string): number | undefined {
    return this.#evicted.get(table)?.last;
  }

  noticeSeen(kind: string): void {
    this.#notices.inc({ kind: NOTICE_KINDS.includes(kind) ? kind : OTHER });
  }

  /** `total`: as the tables have it, which begin anew when they are exchanged. */
  noticesLost(total: number): void {
    this.#lost.count += total < this.#lost.seen ? total : total - this.#lost.seen;
    this.#lost.seen = total;
  }

  get lostNotices(): number {
    return this.#lost.count;
  }

  netlinkOverrun(): void {
    this.#overruns.inc();
  }

  /** `seconds` counts only when the device answered: otherwise it is the timeout. */
  probed(device: string, ok: boolean, seconds: number): void {
    this.#probed.add(device);
    for (const result of RESULTS) this.#probes.inc({ device, result }, Number(ok === (result === "ok")));
    if (ok) this.#probeSeconds.observe({ device }, seconds);
  }

  /** `seconds` counts only when the VM answered. */
  checked(vm: string, ok: boolean, seconds: number): void {
    this.vmChecks.checked(vm, ok, seconds);
  }

  reloaded(ok: boolean): void {
    this.#reloads.inc({ result: ok ? "ok" : "error" });
  }

  /** All of it in the text format. `devices`: those that exist; what was counted of others is forgotten. */
  async text(devices: ReadonlySet<string>, pace: Pace): Promise<string> {
    for (const device of this.#probed) {
      if (devices.has(device)) continue;
      for (const result of RESULTS) this.#probes.remove({ device, result });
      this.#probeSeconds.remove({ device });
      this.#probed.delete(device);
    }
    const parts: string[] = [];
    for (const { name } of this.#registry.getMetricsAsArray()) {
      parts.push(await this.#registry.getSingleMetricAsString(name));
      await pace.rest();
    }
    return parts.join("\n\n");
  }
}
