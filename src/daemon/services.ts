// SPDX-License-Identifier: Apache-2.0
// What works on the tables while the daemon runs. Made anew as a whole when the tables are exchanged for others.

import type { Config } from "../config/schema.ts";
import type { SweepResult } from "../controller/sweep.ts";
import { LasthopError } from "../errors.ts";
import type { Holder } from "../kernel/holder.ts";
import { type Instance, openInstance, withLock } from "../kernel/instance.ts";
import { Netlink } from "../kernel/netlink.ts";
import type { Link, Neighbour } from "../kernel/rtnetlink.ts";
import type { VxlanEntry } from "../kernel/vxlanEntry.ts";
import type { Logger } from "../log.ts";
import type { DaemonMetrics } from "../metrics/daemon.ts";
import { Tables } from "../tables/index.ts";
import { FdbKeeper } from "./fdb.ts";
import { NoticeReader, type SeenVm } from "./notices.ts";
import { PinKeeper } from "./pins.ts";
import { type Stage, startStages } from "./stages.ts";

/** Of the health monitor, what the daemon calls. */
export interface Health {
  start(): Promise<void> | void;
  stop(): Promise<void>;
  devicesChanged(): void;
  neighbourChanged(neighbour: Neighbour): void;
  linkChanged(link: Link): void;
  vxlanChanged(entry: VxlanEntry, gone: boolean): void;
}

/** Of the monitor of VMs, what the daemon calls. */
export interface VmHealth {
  start(): Promise<void> | void;
  stop(): Promise<void>;
  vmsChanged(): void;
  vmSeen(seen: SeenVm): void;
  neighbourChanged(neighbour: Neighbour): void;
  linkChanged(link: Link): void;
}

/** Of the sweeper, what the daemon calls. */
export interface SweepService {
  start(): Promise<void> | void;
  stop(): Promise<void>;
  configure(bounds: Config["sweep"]): void;
}

export interface SweeperSetting {
  pinRoot: string;
  bounds: Config["sweep"];
  log: Logger;
  onPass(result: SweepResult): void;
  onError(error: unknown): void;
}

export interface MonitorSetting {
  pinRoot: string;
  log: Logger;
  metrics: DaemonMetrics;
}

export interface ServiceOptions {
  pinRoot: string;
  config: Config;
  holder: Pick<Holder, "renew">;
  log: Logger;
  metrics: DaemonMetrics;
  /** When the daemon was started, by CLOCK_MONOTONIC. */
  sinceNs: bigint;
  makeHealth(setting: MonitorSetting): Health;
  makeVmHealth(setting: MonitorSetting): VmHealth;
  makeSweeper(setting: SweeperSetting): SweepService;
  /** The tables are others than those that were opened. */
  onExchanged(): void;
}

/** Of services that run, what the daemon calls. */
export interface Services {
  readonly instance: Instance;
  readonly health: Pick<Health, "devicesChanged" | "neighbourChanged" | "linkChanged" | "vxlanChanged">;
  readonly vms: Pick<VmHealth, "vmsChanged" | "neighbourChanged" | "linkChanged">;
  /** False where nothing can be pinned at present. */
  checkPins(): Promise<boolean>;
  /** Interfaces, devices, VMs or services were changed. */
  changed(): void;
  configure(config: Config): void;
  /** Interfaces that are attached. */
  attached(): number;
  close(): Promise<void>;
}

/** Opens the tables and starts, in this order: pins, sweeper, devices, VMs, notices, forwarding entries. */
export async function startServices(options: ServiceOptions): Promise<Services> {
  const { pinRoot, config, holder, log, metrics, sinceNs } = options;
  const instance = openInstance(pinRoot);
  const tables = new Tables(instance);
  const netlink = new Netlink();
  const failed = (what: string) => (error: unknown) =>
    log.error(`${what}: ${(error as Error).message}`, hintOf(error));

  let pins: PinKeeper | undefined;
  let notices: NoticeReader | undefined;
  const sweeper = options.makeSweeper({
    pinRoot,
    bounds: config.sweep,
    log,
    onPass: (result) => metrics.swept(result),
    onError(error) {
      // Whoever keeps the pins tells of a file system that is not there, once.
      if (error instanceof LasthopError && error.code === "E_BPFFS") void pins?.check();
      else failed("the sweep failed")(error);
    },
  });
  const health = options.makeHealth({ pinRoot, log, metrics });
  const vms = options.makeVmHealth({ pinRoot, log, metrics });
  const fdb = new FdbKeeper({
    tables,
    netlink,
    onError: failed("VMs' forwarding entries were not refreshed"),
  });
  const stages: Stage[] = [
    {
      name: "tables",
      start: () => undefined,
      stop: () => {
        netlink.close();
        instance.close();
      },
    },
    {
      name: "pins",
      start() {
        pins = new PinKeeper({ instance, holder, log, onExchanged: options.onExchanged });
        pins.start();
      },
      stop: () => pins?.stop(),
    },
    { name: "sweeper", start: () => sweeper.start(), stop: () => sweeper.stop() },
    { name: "devices", start: () => health.start(), stop: () => health.stop() },
    { name: "VMs", start: () => vms.start(), stop: () => vms.stop() },
    {
      name: "notices",
      start() {
        const onError = failed("notices cannot be read any longer");
        const vmSeen = (seen: SeenVm): void => vms.vmSeen(seen);
        const map = instance.map("notices");
        notices = new NoticeReader({ map, tables, log, metrics, sinceNs, vmSeen, onError });
        notices.start();
      },
      stop: () => notices?.stop(),
    },
    { name: "forwarding entries", start: () => fdb.start(), stop: () => fdb.stop() },
  ];
  const { close } = await startStages(stages);
  return {
    instance,
    health,
    vms,
    checkPins: () => pins!.check(),
    changed() {
      health.devicesChanged();
      vms.vmsChanged();
      fdb.lookNow();
      void pins!.check();
    },
    configure: (changed) => sweeper.configure(changed.sweep),
    attached: () => tables.interfaces.list().filter((entry) => entry.slot !== 0).length,
    close,
  };
}

export function hintOf(error: unknown): { hint?: string } {
  const hint = (error as { hint?: string | null }).hint;
  return hint ? { hint } : {};
}

/** How often a daemon has been started on these tables; returns the number of this start. */
export async function countStart(pinRoot: string): Promise<number> {
  return await withLock(pinRoot, () => {
    using instance = openInstance(pinRoot);
    const { identity } = new Tables(instance);
    const before = identity.get(0)!;
    identity.set(0, { ...before, starts: before.starts + 1 });
    return before.starts + 1;
  });
}
