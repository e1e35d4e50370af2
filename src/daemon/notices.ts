// SPDX-License-Identifier: Apache-2.0
// What programs report of their own accord: one log line each, and never many.

import { decode, type StructValue } from "../abi/codec.ts";
import { NOTICE_KIND } from "../abi/layout.gen.ts";
import { formatMac } from "../addresses.ts";
import { type BpfMap, RingBuffer } from "../libbpf/index.ts";
import type { LogFields, Logger, LogLevel } from "../log.ts";
import { interfaceName, type Tables } from "../tables/index.ts";

/** What is lost is looked at so often when nothing comes. */
const WAIT_MS = 10_000;
const BUDGET_MS = 60_000;

type Notice = StructValue<"notice">;

interface NoticeText {
  /** Name of the kind in metrics. */
  kind: string;
  level: LogLevel;
  message: string;
  /** At most once a minute for an interface. */
  seldom?: true;
}

const TEXTS: ReadonlyMap<number, NoticeText> = new Map([
  [NOTICE_KIND.LAST_HOP, { kind: "last_hop", level: "info", message: "new last hop" }],
  [
    NOTICE_KIND.LAST_HOP_BUDGET,
    {
      kind: "last_hop_budget",
      level: "warning",
      message: "a last hop was not learned: the interface has as many as last_hops_max allows",
      seldom: true,
    },
  ],
  [
    NOTICE_KIND.RELEARN_DAMPED,
    {
      kind: "relearn_damped",
      level: "warning",
      message: "flows come from two last hops in turn: each stays where it is for a while",
      seldom: true,
    },
  ],
  [NOTICE_KIND.VM, { kind: "vm", level: "info", message: "new VM" }],
  [NOTICE_KIND.VM_MOVED, { kind: "vm_moved", level: "info", message: "a VM came to another tap" }],
  [
    NOTICE_KIND.VM_BUDGET,
    {
      kind: "vm_budget",
      level: "warning",
      message: "a VM was not entered: the tap has as many as vms_max allows",
      seldom: true,
    },
  ],
]);

export interface NoticeReport {
  kind: string;
  level: LogLevel;
  message: string;
  fields: LogFields;
}

/** Makes log lines of notices; null for one that was told a moment ago. `nameOf` gives an interface's name. */
export class NoticeReporter {
  readonly #nameOf: (ifindex: number) => string;
  readonly #told = new Map<string, number>();

  constructor(nameOf: (ifindex: number) => string) {
    this.#nameOf = nameOf;
  }

  /** The kind, for counting. A kind that this version does not know is "unknown". */
  static kindOf(notice: Pick<Notice, "kind">): string {
    return TEXTS.get(notice.kind)?.kind ?? "unknown";
  }

  report(notice: Notice, nowMs: number): NoticeReport | null {
    const text = TEXTS.get(notice.kind);
    if (!text || (text.seldom && this.#toldLately(`${text.kind} ${notice.ifindex}`, nowMs))) return null;
    const fields: LogFields = {
      interface: this.#nameOf(notice.ifindex),
      mac: formatMac(notice.mac),
      zone: notice.zone,
    };
    return { kind: text.kind, level: text.level, message: text.message, fields };
  }

  #toldLately(key: string, nowMs: number): boolean {
    for (const [other, at] of this.#told) if (nowMs - at >= BUDGET_MS) this.#told.delete(other);
    if (this.#told.has(key)) return true;
    this.#told.set(key, nowMs);
    return false;
  }
}

/** Of a VM that is new, or on another tap. */
export type SeenVm = Pick<Notice, "ifindex" | "zone" | "mac">;

const VM_KINDS: ReadonlySet<number> = new Set([NOTICE_KIND.VM, NOTICE_KIND.VM_MOVED]);

export interface NoticeReaderOptions {
  map: BpfMap;
  tables: Pick<Tables, "interfaces" | "allocations">;
  log: Logger;
  metrics: { noticeSeen(kind: string): void; noticesLost(total: number): void };
  /** What was noticed before is no news (CLOCK_MONOTONIC): nobody read it then. */
  sinceNs: bigint;
  vmSeen(seen: SeenVm): void;
  onError(error: unknown): void;
}

export class NoticeReader {
  readonly #options: NoticeReaderOptions;
  readonly #ring: RingBuffer;
  readonly #reporter: NoticeReporter;
  #reading: Promise<void> | undefined;
  #stopped = false;

  /** Throws E_BPF if the ring cannot be mapped. */
  constructor(options: NoticeReaderOptions) {
    this.#options = options;
    const { interfaces } = options.tables;
    this.#reporter = new NoticeReporter((ifindex) => interfaceName(interfaces.get(ifindex), ifindex));
    this.#ring = new RingBuffer(options.map);
  }

  start(): void {
    this.#reading ??= this.#read();
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    this.#ring.close();
    await this.#reading;
  }

  async #read(): Promise<void> {
    try {
      while (!this.#stopped) {
        this.#take();
        await this.#ring.poll(WAIT_MS);
      }
    } catch (error) {
      this.#options.onError(error);
    }
  }

  #take(): void {
    const { log, metrics, tables, sinceNs, vmSeen } = this.#options;
    this.#ring.consume((record) => {
      const notice = decode("notice", record);
      if (notice.time_ns < sinceNs) return;
      metrics.noticeSeen(NoticeReporter.kindOf(notice));
      const report = this.#reporter.report(notice, performance.now());
      if (report) log[report.level](report.message, report.fields);
      if (VM_KINDS.has(notice.kind)) vmSeen(notice);
    });
    metrics.noticesLost(tables.allocations.get(0)?.notices_lost ?? 0);
  }
}
