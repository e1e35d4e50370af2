// SPDX-License-Identifier: Apache-2.0
// `lasthop run` over its lives: it is killed and started again, reloaded, and looked at from outside.

import { readdirSync, readFileSync, readlinkSync, writeFileSync } from "node:fs";
import type { Lasthop } from "../support/lasthop.ts";
import type { Background } from "../support/run.ts";
import { until } from "../support/run.ts";
import type { Site } from "../support/site.ts";

const STARTED_MS = 60_000;

/** Kinds of BPF objects, as fdinfo names their ids. */
export type ObjectKind = "map" | "prog" | "link";

export interface Sample {
  /** Since this process was started. */
  seconds: number;
  rssBytes: number;
}

/** One process. */
interface Life {
  process: Background;
  started: number;
  samples: Sample[];
}

export class SoakDaemon {
  readonly #site: Site;
  readonly #lasthop: Lasthop;
  readonly #configPath: string;
  readonly #lives: Life[] = [];

  constructor(site: Site, lasthop: Lasthop, configPath: string) {
    this.#site = site;
    this.#lasthop = lasthop;
    this.#configPath = configPath;
  }

  get #life(): Life {
    return this.#lives.at(-1)!;
  }

  get pid(): number {
    return this.#life.process.child.pid!;
  }

  get starts(): number {
    return this.#lives.length;
  }

  /** Of all lives. */
  get lines(): string[] {
    return this.#lives.flatMap(({ process }) => process.stderr.split("\n").filter(Boolean));
  }

  /** Of the process that runs, or ran last. */
  get samples(): readonly Sample[] {
    return this.#life.samples;
  }

  get running(): boolean {
    return this.#life.process.running;
  }

  async start(config?: string): Promise<void> {
    if (config !== undefined) writeFileSync(this.#configPath, config);
    const process = this.#site.host.start(this.#lasthop.argv("run", "--config", this.#configPath));
    this.#lives.push({ process, started: performance.now(), samples: [] });
    await process.writes(/ started /, "stderr", STARTED_MS);
  }

  async kill(): Promise<void> {
    await this.#life.process.stop("SIGKILL");
  }

  /** As systemd does it; the exit status. */
  stop(): Promise<number> {
    return this.#life.process.stop("SIGTERM");
  }

  /** Whether the configuration was taken. */
  async reload(config: string): Promise<boolean> {
    const { process } = this.#life;
    const before = process.stderr.length;
    writeFileSync(this.#configPath, config);
    process.child.kill("SIGHUP");
    const answer = await until(
      () => /configuration (was not )?reloaded/.exec(process.stderr.slice(before)) ?? undefined,
      "the configuration to be reloaded or refused",
      STARTED_MS,
    );
    return answer[1] === undefined;
  }

  sample(): void {
    const { started, samples } = this.#life;
    const status = readProcess(this.pid, "status");
    const rss = /^VmRSS:\s+(\d+) kB$/m.exec(status ?? "")?.[1];
    if (rss !== undefined) {
      samples.push({ seconds: (performance.now() - started) / 1000, rssBytes: Number(rss) * 1024 });
    }
  }

  /** Open descriptors by what they are: "anon_inode:bpf-map" → 31. */
  descriptors(): Map<string, number> {
    const counts = new Map<string, number>();
    for (const fd of readdirSync(`/proc/${this.pid}/fd`)) {
      const target = present(() => readlinkSync(`/proc/${this.pid}/fd/${fd}`));
      const kind = target?.replace(/\[.*\]$|:\[\d+\]$/, "");
      if (kind !== undefined) counts.set(kind, (counts.get(kind) ?? 0) + 1);
    }
    return counts;
  }

  /** Ids of BPF objects that it holds by descriptors. */
  *objects(): Generator<[ObjectKind, number]> {
    for (const fd of present(() => readdirSync(`/proc/${this.pid}/fdinfo`)) ?? []) {
      const text = readProcess(this.pid, `fdinfo/${fd}`) ?? "";
      for (const kind of ["map", "prog", "link"] as const) {
        const id = new RegExp(`^${kind}_id:\\s*(\\d+)$`, "m").exec(text)?.[1];
        if (id !== undefined) yield [kind, Number(id)];
      }
    }
  }
}

function readProcess(pid: number, file: string): string | undefined {
  return present(() => readFileSync(`/proc/${pid}/${file}`, "utf8"));
}

/** Undefined for what went while it was looked at. */
function present<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ESRCH") return undefined;
    throw error;
  }
}
