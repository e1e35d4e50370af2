// SPDX-License-Identifier: Apache-2.0
// `lasthop run`: brings the host to its configuration and keeps it there, until it is told to stop. Forwarding
// does not depend on it: programs and tables are pinned, and go on without.

import type { EventEmitter } from "node:events";
import { ConfigError } from "../config/load.ts";
import type { Config } from "../config/schema.ts";
import type { ReconcileContext, ReconcileResult } from "../controller/reconcile.ts";
import { type ErrorCode, LasthopError } from "../errors.ts";
import type { Holder } from "../kernel/holder.ts";
import type { Instance } from "../kernel/instance.ts";
import { createLogger, type Logger, type LogLevel, type RunningLogger } from "../log.ts";
import { DaemonMetrics } from "../metrics/daemon.ts";
import { Notifier, type NotifyEnvironment } from "./notify.ts";
import { type Outcome, Reconciler } from "./reconciler.ts";
import { hintOf, type ServiceOptions, type Services } from "./services.ts";
import { type Stage, startStages } from "./stages.ts";
import { Standing } from "./standing.ts";
import type { Watcher, WatcherOptions } from "./watch.ts";

const DEFAULT_PERIOD_MS = 30_000;
/** A reconciliation that takes longer hangs: the watchdog is let know by silence. */
const STUCK_MS = 60_000;
const LINES_PER_MINUTE = 20;
/** Of a configuration that is refused. */
const PROBLEM_LINES = 20;
/** What trying again does not heal. */
const FATAL: ReadonlySet<ErrorCode> = new Set([
  "E_NOT_ROOT",
  "E_KERNEL",
  "E_LIBBPF_MISSING",
  "E_FFI",
  "E_NETNS",
  "E_ABI",
  "E_LOAD",
]);

/** What the daemon is made of; tests give others. */
export interface DaemonParts {
  load(path: string): Config;
  hold(pinRoot: string): Holder;
  reconcile(context: ReconcileContext, config: Config): Promise<ReconcileResult>;
  watch(options: WatcherOptions): Pick<Watcher, "configure" | "start" | "stop">;
  countStart(pinRoot: string): Promise<number>;
  startServices(
    options: Omit<ServiceOptions, "makeHealth" | "makeVmHealth" | "makeSweeper">,
  ): Promise<Services>;
  render(options: { instance: Instance; daemon: DaemonMetrics }): Promise<string>;
  serveMetrics(
    listen: string,
    log: Logger,
    render: () => Promise<string>,
  ): Promise<{ address: string; close(): Promise<void> }>;
}

export interface DaemonOptions {
  configPath: string;
  pinRoot: string;
  /** At the end, detach what is configured. */
  detachOnExit: boolean;
  /** Ends the daemon. */
  signal: AbortSignal;
  /** Where log lines go. */
  write(line: string): void;
  /** Lines of text go to journald. */
  journal: boolean;
  /** Instead of what the configuration says. */
  log?: Partial<Config["log"]>;
  /** SIGHUP, SIGUSR1 and SIGUSR2 come from here. */
  signals: Pick<EventEmitter, "on" | "off">;
  environment: NotifyEnvironment;
  /** Between reconciliations for which there is no occasion. */
  periodMs?: number;
  parts: DaemonParts;
}

/**
 * Runs until the signal. Throws what keeps it from starting: E_CONFIG, E_HELD, E_BPFFS, E_NOT_ROOT, E_KERNEL,
 * E_NETNS, E_LISTEN, …. What cannot be attached is no such thing: it is logged, and tried again.
 */
export async function runDaemon(options: DaemonOptions): Promise<void> {
  const config = options.parts.load(options.configPath);
  const log = createLogger({
    ...config.log,
    ...options.log,
    write: options.write,
    journal: options.journal,
    perMinute: LINES_PER_MINUTE,
    now: () => new Date(),
  });
  try {
    await new Daemon(options, config, log).run();
  } finally {
    log.close();
  }
}

class Daemon {
  readonly #options: DaemonOptions;
  readonly #parts: DaemonParts;
  readonly #log: RunningLogger;
  readonly #notifier: Notifier;
  readonly #metrics = new DaemonMetrics();
  readonly #sinceNs = process.hrtime.bigint();
  readonly #watcher: Pick<Watcher, "configure" | "start" | "stop">;
  readonly #reconciler: Reconciler;
  readonly #warnings = new Standing();
  readonly #failures = new Standing();
  #config: Config;
  #holder: Holder | undefined;
  #services: Services | undefined;
  /** The services are to be made anew: the tables were exchanged. */
  #exchanged = false;
  #starts = 0;
  #attempts = 0;
  #fatal: unknown;
  #metricsServer: { address: string; close(): Promise<void> } | undefined;
  /** Reloads, one after another; undefined until all is started. */
  #reloads: Promise<void> | undefined;
  #wantsReload = false;

  constructor(options: DaemonOptions, config: Config, log: RunningLogger) {
    this.#options = options;
    this.#parts = options.parts;
    this.#config = config;
    this.#log = log;
    this.#notifier = new Notifier(options.environment, log);
    this.#reconciler = new Reconciler({
      run: () => this.#reconcile(),
      periodMs: options.periodMs ?? DEFAULT_PERIOD_MS,
    });
    this.#watcher = options.parts.watch({
      reconcile: () => this.#reconciler.request(),
      neighbourChanged: (neighbour) => {
        this.#services?.health.neighbourChanged(neighbour);
        this.#services?.vms.neighbourChanged(neighbour);
      },
      linkChanged: (link) => {
        this.#services?.health.linkChanged(link);
        this.#services?.vms.linkChanged(link);
      },
      vxlanChanged: (entry, gone) => this.#services?.health.vxlanChanged(entry, gone),
      addressesChanged: () => this.#lookAtAll(),
      overrun: () => {
        this.#metrics.netlinkOverrun();
        this.#lookAtAll();
        log.warning("the kernel had more events than there was room for: everything is looked at anew");
      },
      onError: (error) => log.error(`events of the kernel cannot be followed: ${(error as Error).message}`),
    });
  }

  async run(): Promise<void> {
    const { signal } = this.#options;
    const running = await startStages(this.#stages());
    // What came while starting is done now.
    this.#reloads = this.#wantsReload ? this.#reload() : Promise.resolve();
    this.#notifier.ready(this.#status());
    this.#notifier.watch(() => this.#reconciler.busyMs < STUCK_MS);
    this.#log.info("started", {
      config: this.#options.configPath,
      starts: this.#starts,
      ...(this.#metricsServer && { metrics: this.#metricsServer.address }),
    });
    if (!signal.aborted) {
      await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
    }
    this.#notifier.stopping();
    this.#log.info("stopping", { forwarding: this.#options.detachOnExit ? "detached" : "goes on" });
    try {
      await running.close();
    } finally {
      this.#notifier.close();
    }
  }

  /** In the order of starting. */
  #stages(): Stage[] {
    const { pinRoot, detachOnExit } = this.#options;
    return [
      // First, since a signal that nobody listens to ends the process.
      { name: "signals", start: () => this.#listen(), stop: () => this.#unlisten() },
      {
        name: "holder",
        start: () => {
          this.#holder = this.#parts.hold(pinRoot);
        },
        stop: () => this.#holder?.close(),
      },
      { name: "detach", start: () => undefined, stop: () => (detachOnExit ? this.#detach() : undefined) },
      {
        // Before the first look, so that nothing that changes after it goes unnoticed.
        name: "events",
        start: () => {
          this.#watcher.configure(this.#config);
          this.#watcher.start();
        },
        stop: () => this.#watcher.stop(),
      },
      {
        name: "reconciler",
        start: async () => {
          await this.#reconciler.now();
          if (this.#fatal === undefined) return;
          await this.#stopReconciling();
          throw this.#fatal;
        },
        stop: () => this.#stopReconciling(),
      },
      {
        name: "metrics",
        start: () => this.#serveMetrics(),
        stop: () => this.#metricsServer?.close(),
      },
    ];
  }

  async #stopReconciling(): Promise<void> {
    await this.#reconciler.stop();
    await this.#services?.close();
    this.#services = undefined;
  }

  // Reconciling

  /** Never throws. */
  async #reconcile(): Promise<Outcome> {
    const started = performance.now();
    try {
      // With pins missing, what is there would be taken for nothing, and made once more.
      if (this.#services && !(await this.#services.checkPins())) {
        this.#metrics.reconcileFailed("E_BPFFS");
        return "failed";
      }
      const { pinRoot } = this.#options;
      const warn = (message: string): void => this.#log.warning(message);
      const result = await this.#parts.reconcile({ pinRoot, warn }, this.#config);
      this.#tell(result, (performance.now() - started) / 1000);
      await this.#serve(result.actions.length > 0);
      this.#notifier.status(this.#status());
      if (result.failed.length > 0) return this.#missed();
      if (this.#attempts > 0) this.#log.info("the host is as configured again", { attempts: this.#attempts });
      this.#attempts = 0;
      return "done";
    } catch (error) {
      this.#reconcileFailed(error);
      return this.#missed();
    }
  }

  #missed(): Outcome {
    this.#attempts++;
    return "failed";
  }

  #tell(result: ReconcileResult, seconds: number): void {
    const { actions, done, failed, warnings } = result;
    if (failed.length === 0) this.#metrics.reconciled(actions, seconds);
    for (const { code } of failed) this.#metrics.reconcileFailed(code);
    for (const line of done) this.#log.info(line);
    for (const warning of this.#warnings.news(warnings)) this.#log.warning(warning);
    const news = new Set(this.#failures.news(failed.map(({ object, message }) => `${object}: ${message}`)));
    for (const { object, config, code, message, hint } of failed) {
      if (!news.delete(`${object}: ${message}`)) continue;
      this.#log.error(message, { code, object, ...(config && { config }), ...(hint && { hint }) });
    }
  }

  #reconcileFailed(error: unknown): void {
    const known = error instanceof LasthopError;
    const code = known ? error.code : "E_INTERNAL";
    this.#metrics.reconcileFailed(code);
    if (this.#reloads === undefined && known && FATAL.has(code)) {
      // Whoever started us is told.
      this.#fatal = error;
      return;
    }
    const { message, stack } = error as Error;
    if (this.#failures.news([message]).length === 0) return;
    this.#log.error(message, { code, ...hintOf(error) });
    if (!known) this.#log.debug(stack ?? message);
  }

  /** Starts what works on the tables when there are any, and again when they are others. */
  async #serve(changed: boolean): Promise<void> {
    if (this.#services && !this.#exchanged) {
      if (changed) this.#services.changed();
      return;
    }
    await this.#services?.close();
    this.#services = undefined;
    this.#exchanged = false;
    const { pinRoot } = this.#options;
    if (this.#starts === 0) this.#starts = await this.#parts.countStart(pinRoot);
    this.#services = await this.#parts.startServices({
      pinRoot,
      config: this.#config,
      holder: this.#holder!,
      log: this.#log,
      metrics: this.#metrics,
      sinceNs: this.#sinceNs,
      onExchanged: () => {
        this.#exchanged = true;
        this.#reconciler.request();
      },
    });
  }

  /** At devices and VMs. */
  #lookAtAll(): void {
    this.#services?.health.devicesChanged();
    this.#services?.vms.vmsChanged();
  }

  #status(): string {
    const attached = this.#services?.attached();
    const count = attached === undefined ? "no tables" : `${attached} interfaces attached`;
    const problems = this.#failures.size;
    return problems === 0 ? count : `${count}, ${problems} problems`;
  }

  /** Configured interfaces, tunnels, devices, VMs and services go; what was made by hand, and the flows, stay. */
  async #detach(): Promise<void> {
    const { pinRoot } = this.#options;
    const lists = { uplinks: [], taps: [], devices: [], tunnels: [], vms: [], services: [] };
    const nothing = { ...this.#config, ...lists };
    const warn = (message: string): void => this.#log.warning(message);
    const { done, failed } = await this.#parts.reconcile({ pinRoot, warn }, nothing);
    for (const line of done) this.#log.info(line);
    for (const { message, code } of failed) this.#log.error(message, { code });
  }

  // Metrics

  async #serveMetrics(): Promise<void> {
    const { enabled, listen } = this.#config.metrics;
    if (!enabled) return;
    this.#metricsServer = await this.#parts.serveMetrics(listen, this.#log, async () => {
      const instance = this.#services?.instance;
      if (instance) return await this.#parts.render({ instance, daemon: this.#metrics });
      throw new LasthopError("E_NO_TABLES", "there are no tables yet: the first reconciliation failed");
    });
  }

  /** The old address is given up only for one that can be had. */
  async #moveMetrics(before: Config["metrics"]): Promise<void> {
    const { enabled, listen } = this.#config.metrics;
    if (before.enabled === enabled && before.listen === listen) return;
    const old = this.#metricsServer;
    this.#metricsServer = undefined;
    try {
      await this.#serveMetrics();
    } catch (error) {
      this.#metricsServer = old;
      this.#log.error((error as Error).message, hintOf(error));
      return;
    }
    await old?.close();
  }

  // Signals

  readonly #handlers = {
    SIGHUP: () => {
      this.#wantsReload = true;
      this.#reloads = this.#reloads?.then(() => this.#reload());
    },
    SIGUSR1: () => this.#setLevel("debug"),
    SIGUSR2: () => this.#setLevel(this.#options.log?.level ?? this.#config.log.level),
  };

  #listen(): void {
    for (const [name, handler] of Object.entries(this.#handlers)) this.#options.signals.on(name, handler);
  }

  async #unlisten(): Promise<void> {
    for (const [name, handler] of Object.entries(this.#handlers)) this.#options.signals.off(name, handler);
    await this.#reloads;
  }

  #setLevel(level: LogLevel): void {
    this.#log.configure({ level });
    this.#log.info("log level changed", { level });
  }

  /** Never throws. */
  async #reload(): Promise<void> {
    // Another signal before this one was heeded asked for the same.
    if (!this.#wantsReload) return;
    this.#wantsReload = false;
    this.#notifier.reloading();
    try {
      const config = this.#parts.load(this.#options.configPath);
      await this.#use(config);
      this.#metrics.reloaded(true);
    } catch (error) {
      this.#metrics.reloaded(false);
      this.#log.error("the configuration was not reloaded: the one before stays in force");
      for (const line of problems(error)) this.#log.error(line);
    }
    this.#notifier.ready(this.#status());
  }

  async #use(config: Config): Promise<void> {
    const { metrics } = this.#config;
    this.#config = config;
    this.#log.configure({ ...config.log, ...this.#options.log });
    this.#watcher.configure(config);
    this.#services?.configure(config);
    await this.#moveMetrics(metrics);
    await this.#reconciler.now();
    this.#lookAtAll();
    this.#log.info("configuration reloaded");
  }
}

/** One line each: a configuration may be wrong in several places. */
function problems(error: unknown): string[] {
  if (!(error instanceof ConfigError)) return [(error as Error).message];
  const lines = (error.details ?? error.message).split("\n").filter((line) => line !== "");
  const more = error.problems.length - PROBLEM_LINES;
  return [...lines.slice(0, PROBLEM_LINES), ...(more > 0 ? [`and ${more} more problems`] : [])];
}
