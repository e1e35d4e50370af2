// SPDX-License-Identifier: Apache-2.0
// The daemon with other parts: in which order it starts and closes, what it does with failures and signals.

import { EventEmitter } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { parseConfig } from "../../src/config/load.ts";
import type { Config } from "../../src/config/schema.ts";
import type { ReconcileResult } from "../../src/controller/reconcile.ts";
import { type DaemonOptions, type DaemonParts, runDaemon } from "../../src/daemon/daemon.ts";
import type { Services } from "../../src/daemon/services.ts";
import type { WatcherOptions } from "../../src/daemon/watch.ts";
import { LasthopError } from "../../src/errors.ts";
import { DatagramListener } from "../support/datagrams.ts";
import { until } from "../support/run.ts";

const CONFIG = "uplinks: [{ name: eth0 }]\ntaps: [{ name: 'vnet*' }]\n";
const NOTHING: ReconcileResult = { actions: [], done: [], failed: [], warnings: [] };
const action = { kind: "create-instance", object: "/pins", text: "make tables", config: null } as const;
const failure = (message: string) => ({
  object: "eth0",
  config: "uplinks[0]",
  code: "E_INTERFACE" as const,
  message,
  hint: "Plug it in.",
  cause: null,
});

type Reconcile = DaemonParts["reconcile"];

/** A daemon whose parts write down what is asked of them. */
class Bench {
  readonly calls: string[] = [];
  readonly lines: string[] = [];
  readonly signals = new EventEmitter();
  readonly #abort = new AbortController();
  text = CONFIG;
  reconcile: Reconcile = async () => NOTHING;
  pinsInOrder = true;
  watcher: WatcherOptions | undefined;
  exchanged: (() => void) | undefined;
  render: (() => Promise<string>) | undefined;
  /** The part with this name does not start. */
  refuses = "";
  running: Promise<void> | undefined;
  ended = false;

  start(more: Partial<DaemonOptions> = {}): void {
    this.running = runDaemon({
      configPath: "/etc/test.yaml",
      pinRoot: "/pins",
      detachOnExit: false,
      signal: this.#abort.signal,
      write: (line) => this.lines.push(line.trimEnd()),
      journal: false,
      signals: this.signals,
      environment: {},
      parts: this.#parts(),
      ...more,
    }).finally(() => {
      this.ended = true;
    });
    // Whoever waits for it later sees the error.
    this.running.catch(() => undefined);
  }

  async started(): Promise<void> {
    await until(() => this.ended || this.lines.some((line) => line.includes("started")), "the start");
    if (this.ended) await this.running;
  }

  async stop(): Promise<void> {
    this.#abort.abort();
    await this.running;
  }

  #note(call: string): void {
    if (this.refuses === call) throw new LasthopError("E_LISTEN", `${call} was refused`);
    this.calls.push(call);
  }

  #parts(): DaemonParts {
    return {
      load: () => parseConfig(this.text, "/etc/test.yaml"),
      hold: () => {
        this.#note("hold");
        return { renew: () => this.#note("renew"), close: () => this.#note("let go") };
      },
      reconcile: async (context, config) => {
        this.#note(`reconcile ${config.uplinks.length}+${config.taps.length}`);
        return await this.reconcile(context, config);
      },
      watch: (options) => {
        this.watcher = options;
        return {
          configure: (config) => this.#note(`watch ${(config as Config).taps.length} taps`),
          start: () => this.#note("follow events"),
          stop: () => this.#note("events end"),
        };
      },
      countStart: async () => 7,
      startServices: async (options): Promise<Services> => {
        this.#note("services");
        this.exchanged = options.onExchanged;
        return {
          instance: {} as never,
          health: {
            devicesChanged: () => this.#note("devices"),
            neighbourChanged: () => this.#note("neighbour"),
            linkChanged: () => this.#note("link"),
            vxlanChanged: () => this.#note("vxlan"),
          },
          vms: {
            vmsChanged: () => this.#note("VMs"),
            neighbourChanged: () => this.#note("neighbour of VMs"),
            linkChanged: () => this.#note("link of VMs"),
          },
          checkPins: async () => this.pinsInOrder,
          changed: () => this.#note("changed"),
          configure: () => this.#note("configure"),
          attached: () => 2,
          close: async () => this.#note("services end"),
        };
      },
      serveMetrics: async (listen, _log, render) => {
        this.#note(`serve ${listen}`);
        this.render = render;
        return { address: listen, close: async () => this.#note(`served ${listen}`) };
      },
      render: async () => "metrics\n",
    };
  }
}

let bench: Bench;
beforeEach(() => {
  bench = new Bench();
});
afterEach(async () => {
  await bench.stop().catch(() => undefined);
});

const STARTED = [
  "hold",
  "watch 1 taps",
  "follow events",
  "reconcile 1+1",
  "services",
  "serve 127.0.0.1:9469",
];
const CLOSED = ["served 127.0.0.1:9469", "services end", "events end", "let go"];

describe("a daemon", () => {
  test("starts in order, and closes in the reverse one", async () => {
    bench.start();
    await bench.started();
    expect(bench.calls).toEqual(STARTED);
    expect(bench.lines).toEqual([
      "lasthop: info: started config=/etc/test.yaml starts=7 metrics=127.0.0.1:9469",
    ]);
    await bench.stop();
    expect(bench.calls).toEqual([...STARTED, ...CLOSED]);
    expect(bench.lines.at(-1)).toBe('lasthop: info: stopping forwarding="goes on"');
    expect(["SIGHUP", "SIGUSR1", "SIGUSR2"].map((name) => bench.signals.listenerCount(name))).toEqual([
      0, 0, 0,
    ]);
  });

  test.each([
    ["hold", []],
    ["follow events", ["hold", "watch 1 taps", "let go"]],
    [
      "serve 127.0.0.1:9469",
      [...STARTED.filter((call) => !call.startsWith("serve ")), "services end", "events end", "let go"],
    ],
  ])("closes what it had started when it cannot %s", async (refused, calls) => {
    bench.refuses = refused;
    bench.start();
    await expect(bench.started()).rejects.toMatchObject({ code: "E_LISTEN" });
    expect(bench.calls).toEqual(calls);
    expect(bench.signals.listenerCount("SIGHUP")).toBe(0);
  });

  test("does not begin with a configuration that is wrong", async () => {
    bench.text = "uplinkz: []\n";
    bench.start();
    await expect(bench.started()).rejects.toMatchObject({ code: "E_CONFIG" });
    expect(bench.calls).toEqual([]);
  });

  test("detaches at the end what is configured, if asked to, while it still holds the instance", async () => {
    bench.start({ detachOnExit: true });
    await bench.started();
    bench.calls.length = 0;
    await bench.stop();
    expect(bench.calls.slice(-3)).toEqual(["events end", "reconcile 0+0", "let go"]);
    expect(bench.lines.at(-1)).toBe("lasthop: info: stopping forwarding=detached");
  });

  test("serves no metrics when told not to", async () => {
    bench.text = `${CONFIG}metrics: { enabled: false }\n`;
    bench.start();
    await bench.started();
    expect(bench.calls.join()).not.toContain("serve ");
    expect(bench.lines.at(-1)).toBe("lasthop: info: started config=/etc/test.yaml starts=7");
  });

  test("makes what works on the tables anew when these were exchanged", async () => {
    bench.start();
    await bench.started();
    bench.calls.length = 0;
    bench.exchanged?.();
    await until(() => bench.calls.includes("services"), "other services");
    expect(bench.calls).toEqual(["reconcile 1+1", "services end", "services"]);
    bench.watcher?.reconcile();
    await until(() => bench.calls.length === 4, "another look");
    expect(bench.calls.at(-1)).toBe("reconcile 1+1");
  });

  test("hands events on to devices and VMs", async () => {
    bench.start();
    await bench.started();
    bench.calls.length = 0;
    bench.watcher?.neighbourChanged({} as never);
    bench.watcher?.linkChanged({} as never);
    bench.watcher?.addressesChanged();
    bench.watcher?.overrun();
    expect(bench.calls).toEqual([
      ...["neighbour", "neighbour of VMs"],
      ...["link", "link of VMs"],
      ...["devices", "VMs"],
      ...["devices", "VMs"],
    ]);
  });
});

describe("reconciling", () => {
  test("tells what was done, once, and is silent when nothing is to be done", async () => {
    const results = [{ ...NOTHING, actions: [action], done: ["vnet1: attached by tcx"] }];
    bench.reconcile = async () => results.shift() ?? NOTHING;
    bench.start({ periodMs: 5 });
    await bench.started();
    await until(() => bench.calls.filter((call) => call.startsWith("reconcile")).length > 5, "several looks");
    expect(bench.lines).toEqual([
      "lasthop: info: vnet1: attached by tcx",
      expect.stringContaining("started"),
    ]);
  });

  test("a condition that stands is told when it comes, and what went wrong when it is over", async () => {
    let failed = [failure("cannot attach eth0: it is down")];
    bench.reconcile = async () => ({ ...NOTHING, failed, warnings: ["vnet1 matches taps[0] and taps[1]"] });
    bench.start();
    await bench.started();
    const look = async () => {
      const before = bench.calls.length;
      bench.watcher?.reconcile();
      await until(() => bench.calls.length > before, "a look");
    };
    await look();
    await look();
    expect(bench.lines).toEqual([
      "lasthop: warning: vnet1 matches taps[0] and taps[1]".replace(/$/, ""),
      'lasthop: error: cannot attach eth0: it is down code=E_INTERFACE object=eth0 config=uplinks[0] hint="Plug it in."',
      expect.stringContaining("started"),
    ]);
    failed = [];
    await look();
    await until(() => bench.lines.length === 4, "the end of it");
    expect(bench.lines[3]).toBe("lasthop: info: the host is as configured again attempts=3");
  });

  test("an error does not end it: it is told once, and tried again", async () => {
    let broken = true;
    bench.reconcile = async () => {
      if (broken) throw new LasthopError("E_LOCKED", "another command has been changing things");
      return NOTHING;
    };
    bench.start();
    await bench.started();
    expect(bench.calls).not.toContain("services");
    await expect(bench.render?.()).rejects.toMatchObject({ code: "E_NO_TABLES" });
    bench.watcher?.reconcile();
    await until(() => bench.calls.filter((call) => call.startsWith("reconcile")).length === 2, "another try");
    broken = false;
    // The back-off: after a second.
    await until(() => bench.calls.includes("services"), "the tables");
    expect(bench.lines.filter((line) => line.includes("error"))).toEqual([
      "lasthop: error: another command has been changing things code=E_LOCKED",
    ]);
    expect(await bench.render?.()).toBe("metrics\n");
  });

  test.each(["E_NOT_ROOT", "E_KERNEL", "E_NETNS"] as const)("%s at the start ends it", async (code) => {
    bench.reconcile = async () => {
      throw new LasthopError(code, "it will not get better");
    };
    bench.start();
    await expect(bench.started()).rejects.toMatchObject({ code });
    expect(bench.calls.slice(-2)).toEqual(["events end", "let go"]);
  });

  test("changes nothing while pins are missing that cannot be made again", async () => {
    bench.start({ periodMs: 5 });
    await bench.started();
    bench.pinsInOrder = false;
    // One may be under way.
    await new Promise((resolve) => setTimeout(resolve, 50));
    bench.calls.length = 0;
    bench.watcher?.reconcile();
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(bench.calls).toEqual([]);
    bench.pinsInOrder = true;
    bench.watcher?.reconcile();
    await until(() => bench.calls.includes("reconcile 1+1"), "another look");
  });
});

describe("signals", () => {
  test("SIGHUP takes a new configuration, and moves what listens", async () => {
    bench.start();
    await bench.started();
    bench.calls.length = 0;
    bench.text = "taps: []\nmetrics: { listen: '127.0.0.1:9470' }\nlog: { level: debug }\n";
    bench.signals.emit("SIGHUP");
    await until(() => bench.lines.some((line) => line.includes("configuration reloaded")), "the reload");
    expect(bench.calls).toEqual([
      "watch 0 taps",
      "configure",
      "serve 127.0.0.1:9470",
      "served 127.0.0.1:9469",
      "reconcile 0+0",
      "devices",
      "VMs",
    ]);
    bench.calls.length = 0;
    await bench.stop();
    expect(bench.calls[0]).toBe("served 127.0.0.1:9470");
  });

  test("SIGHUP with a wrong file: every problem has a line, and the one before stays", async () => {
    bench.start();
    await bench.started();
    bench.lines.length = 0;
    bench.text = "uplinkz: []\ntaps: [{ policy: sometimes }]\n";
    bench.signals.emit("SIGHUP");
    await until(() => bench.lines.length >= 3, "the problems");
    expect(bench.lines[0]).toMatch(/error: the configuration was not reloaded: the one before stays/);
    expect(bench.lines[1]).toMatch(/error: \/etc\/test.yaml:1:1: .*uplinkz/);
    expect(bench.lines[2]).toMatch(/error: \/etc\/test.yaml:2:\d+: taps\[0\]/);
    bench.calls.length = 0;
    bench.watcher?.reconcile();
    await until(() => bench.calls.length > 0, "a look");
    expect(bench.calls).toEqual(["reconcile 1+1"]);
  });

  test("an address that cannot be had does not take the old one away", async () => {
    bench.start();
    await bench.started();
    bench.calls.length = 0;
    bench.refuses = "serve 127.0.0.1:9470";
    bench.text = `${CONFIG}metrics: { listen: '127.0.0.1:9470' }\n`;
    bench.signals.emit("SIGHUP");
    await until(() => bench.lines.some((line) => line.includes("configuration reloaded")), "the reload");
    expect(bench.lines.some((line) => line.includes("was refused"))).toBe(true);
    expect(bench.calls.join()).not.toContain("served");
    bench.calls.length = 0;
    await bench.stop();
    expect(bench.calls[0]).toBe("served 127.0.0.1:9469");
  });

  test("SIGUSR1 logs in detail, SIGUSR2 as configured", async () => {
    bench.text = `${CONFIG}log: { level: error }\n`;
    bench.start();
    await until(() => bench.calls.length === STARTED.length, "the start");
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(bench.lines).toEqual([]);
    bench.signals.emit("SIGUSR1");
    expect(bench.lines).toEqual(["lasthop: info: log level changed level=debug"]);
    bench.signals.emit("SIGUSR2");
    bench.watcher?.overrun();
    expect(bench.lines).toHaveLength(1);
  });

  test("that come while it starts are not lost", async () => {
    let release = (): void => undefined;
    const wait = new Promise<void>((resolve) => {
      release = resolve;
    });
    bench.reconcile = async () => {
      await wait;
      return NOTHING;
    };
    bench.start();
    await until(() => bench.calls.includes("reconcile 1+1"), "the first look");
    bench.text = "{}\n";
    bench.signals.emit("SIGHUP");
    bench.signals.emit("SIGHUP");
    release();
    await until(() => bench.lines.some((line) => line.includes("configuration reloaded")), "the reload");
    expect(bench.calls.filter((call) => call === "reconcile 0+0")).toHaveLength(1);
  });
});

test("systemd is told when it is ready, reloads and stops", async () => {
  const directory = mkdtempSync(join(tmpdir(), "lasthop-daemon-"));
  const listener = await DatagramListener.on(join(directory, "notify"));
  try {
    bench.start({ environment: { NOTIFY_SOCKET: join(directory, "notify"), WATCHDOG_USEC: "20000" } });
    await listener.hears(/^READY=1\nSTATUS=2 interfaces attached\n/);
    await listener.hears(/^WATCHDOG=1/);
    bench.signals.emit("SIGHUP");
    await listener.hears(/^RELOADING=1\nMONOTONIC_USEC=\d+\n/);
    await until(() => listener.messages.filter((text) => text.startsWith("READY=1")).length === 2, "ready");
    await bench.stop();
    await listener.hears(/^STOPPING=1\n/);
  } finally {
    await listener.close();
    rmSync(directory, { recursive: true });
  }
});
