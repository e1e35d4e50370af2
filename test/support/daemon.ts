// SPDX-License-Identifier: Apache-2.0
// `lasthop run` as a process on the host of a site, with a configuration of the test's own.

import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll } from "vitest";
import type { Ground } from "./fixture.ts";
import { TC_HOOK } from "./kernel.ts";
import type { Background } from "./run.ts";
import { must, until } from "./run.ts";

/** Attaches whatever a site has. */
export const WHOLE_SITE = "uplinks: [{ name: 'up*' }]\ntaps: [{ name: 'tap*' }]\n";

export interface DaemonOptions {
  /** Between `nsenter` and the command: other privileges, an environment. */
  prefix?: readonly string[];
  flags?: readonly string[];
  pinRoot?: string;
}

export class Daemon {
  readonly process: Background;
  readonly #ground: Ground;
  readonly #configPath: string;

  private constructor(ground: Ground, process: Background, configPath: string) {
    this.#ground = ground;
    this.process = process;
    this.#configPath = configPath;
  }

  /** Returns at once; `started` waits. */
  static launch(ground: Ground, config: string, options: DaemonOptions = {}): Daemon {
    const configPath = join(directory(), `${ground.lab.id}-${count++}.yaml`);
    writeFileSync(configPath, config);
    const flags = ["run", "--config", configPath, ...(options.flags ?? [])];
    const argv = ground.lasthop.argv(...flags).map((word) => {
      return options.pinRoot !== undefined && word === ground.lab.pinRoot ? options.pinRoot : word;
    });
    const process = ground.site.host.start([...(options.prefix ?? []), ...argv]);
    return new Daemon(ground, process, configPath);
  }

  static async start(
    ground: Ground,
    config: string = WHOLE_SITE,
    options: DaemonOptions = {},
  ): Promise<Daemon> {
    const daemon = Daemon.launch(ground, config, options);
    await daemon.started();
    return daemon;
  }

  async started(): Promise<void> {
    await this.process.writes(/ started /, "stderr", 30_000);
  }

  /** The process itself, not one that started it. */
  get pid(): number {
    return this.process.child.pid!;
  }

  get lines(): string[] {
    return this.process.stderr.split("\n").filter(Boolean);
  }

  /** Lines that are written from now on. */
  mark(): () => string[] {
    const before = this.lines.length;
    return () => this.lines.slice(before);
  }

  logs(pattern: RegExp, timeoutMs?: number): Promise<void> {
    return this.process.writes(pattern, "stderr", timeoutMs);
  }

  /** Writes another configuration, and has the daemon read it. */
  async reload(config: string): Promise<string[]> {
    const since = this.mark();
    writeFileSync(this.#configPath, config);
    this.process.child.kill("SIGHUP");
    await until(() => since().some((line) => /configuration (was not )?reloaded/.test(line)), "the reload");
    return since();
  }

  signal(name: NodeJS.Signals): void {
    this.process.child.kill(name);
  }

  /** Sum of the samples of a metric whose labels contain `labels`; from 127.0.0.1:9469 of the host. */
  async metric(name: string, labels = ""): Promise<number> {
    const text = await this.scrape();
    const samples = text.split("\n").filter((line) => line.startsWith(name) && line.includes(labels));
    const own = samples.filter((line) => /^[{ ]/.test(line.slice(name.length)));
    if (own.length === 0) throw new Error(`no metric ${name} with ${labels}`);
    return own.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" ") + 1)), 0);
  }

  async scrape(): Promise<string> {
    return await this.#ground.site.host.must(["curl", "-sSf", "http://127.0.0.1:9469/metrics"]);
  }

  /** Open descriptors, by what they are: "anon_inode:bpf-map". */
  descriptors(): Map<string, number> {
    const counts = new Map<string, number>();
    for (const fd of readdirSync(`/proc/${this.pid}/fd`)) {
      const target = linkTarget(`/proc/${this.pid}/fd/${fd}`);
      if (target !== undefined) counts.set(target, (counts.get(target) ?? 0) + 1);
    }
    return counts;
  }

  get rssBytes(): number {
    return Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${this.pid}/status`, "utf8"))?.[1]) * 1024;
  }

  /** As systemd does it. */
  async stop(): Promise<number> {
    return await this.process.stop("SIGTERM");
  }

  async kill(): Promise<void> {
    await this.process.stop("SIGKILL");
  }
}

let count = 0;
let made: string | undefined;

function directory(): string {
  made ??= mkdtempSync(join(tmpdir(), `lasthop-daemon-${process.pid}-`));
  return made;
}

/** To be called once in a file that starts daemons: removes their configurations. */
export function cleanUpDaemons(): void {
  afterAll(() => {
    if (made !== undefined) rmSync(made, { recursive: true });
    made = undefined;
  });
}

function linkTarget(path: string): string | undefined {
  try {
    return readlink(path);
  } catch (error) {
    // Closed since the directory was read.
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

function readlink(path: string): string {
  return readlinkSync(path).replace(/\[.*\]$/, "");
}

interface Programs {
  xdp: string[];
  tcx: { id: number; name: string }[];
  clsact: { id: number; name: string }[];
}

/** Ids of the programs that interfaces have by TC for what comes in; none for one that is not there. */
export async function programsOn({ lasthop }: Ground, devices: readonly string[]): Promise<number[][]> {
  const found = await lasthop.ask<(Programs | null)[]>("programs.mjs", devices);
  return found.map((programs) => (programs?.[TC_HOOK] ?? []).map(({ id }) => id));
}

/** How many BPF programs with these names the kernel has loaded. */
export async function loadedPrograms(names: RegExp): Promise<number> {
  const programs = JSON.parse(await must(["bpftool", "-j", "prog", "show"])) as { name?: string }[];
  return programs.filter((program) => names.test(program.name ?? "")).length;
}

/** Waits until each of the interfaces has exactly one program. */
export async function attachedOnce(ground: Ground, devices: readonly string[]): Promise<void> {
  await until(
    async () => (await programsOn(ground, devices)).every((ids) => ids.length === 1),
    `one program on each of ${devices}`,
  );
}
