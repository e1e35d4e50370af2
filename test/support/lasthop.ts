// SPDX-License-Identifier: Apache-2.0
// The command line tool, run where an operator runs it: on the host, with tables of this test's own.

import { existsSync, statfsSync } from "node:fs";
import { dirname } from "node:path";
import type {
  AttachResult,
  FlowEntry,
  LastHopEntry,
  Policy,
  Role,
  StatusReport,
  TraceEvent,
  VerdictCount,
} from "../../src/ops/types.ts";
import { BPFFS, type Lab, type Namespace } from "./lab.ts";
import { repositoryPath } from "./paths.ts";
import { RESIDENT, Resident } from "./resident.ts";
import { type Background, must, type Output } from "./run.ts";

const PROGRAM = repositoryPath("dist/cli/main.js");

const BPF_FS_MAGIC = 0xcafe4a11;

/** Mounts bpffs where it belongs unless it is; two at once do not mount it twice. */
export async function ensureBpffs(): Promise<void> {
  if (statfsSync(BPFFS).type === BPF_FS_MAGIC) return;
  const once = `[ "$(stat -f -c %T ${BPFFS})" = bpf_fs ] || mount -t bpf bpf ${BPFFS}`;
  await must(["flock", "/run/lock/lasthop-test-bpffs", "sh", "-c", once]);
}

export interface AttachFlags {
  mode?: string;
  zone?: number;
  policy?: Policy;
}

export class Lasthop {
  readonly #host: Namespace;
  readonly #pinRoot: string;
  readonly #program: string;
  #resident: Resident | undefined;

  private constructor(host: Namespace, pinRoot: string, program: string) {
    this.#host = host;
    this.#pinRoot = pinRoot;
    this.#program = program;
  }

  /** `program` is another build's. */
  static async on(lab: Lab, host: Namespace, program: string = PROGRAM): Promise<Lasthop> {
    if (!existsSync(program)) throw new Error(`${program} is missing: run \`make build\``);
    await ensureBpffs();
    return new Lasthop(host, lab.pinRoot, program);
  }

  argv(...args: string[]): string[] {
    return [process.execPath, this.#program, "--pin-root", this.#pinRoot, ...args];
  }

  /** Whatever its status. */
  run(...args: string[]): Promise<Output> {
    if (!RESIDENT) return this.#host.run(this.argv(...args));
    return this.#residing().run(["--pin-root", this.#pinRoot, ...args]);
  }

  async must(...args: string[]): Promise<string> {
    const output = await this.run(...args);
    if (output.status !== 0) {
      throw new Error(
        `lasthop ${args.join(" ")} ended with ${output.status}: ${output.stderr}${output.stdout}`,
      );
    }
    return output.stdout;
  }

  /** What the default function of a module of test/support answers on the host, to the build's folder and `args`. */
  async ask<T>(module: string, ...args: unknown[]): Promise<T> {
    const path = repositoryPath(`test/support/${module}`);
    if (RESIDENT) return (await this.#residing().ask(path, args)) as T;
    const program = `
      import answer from ${JSON.stringify(path)};
      const [dist, args] = process.argv.slice(1);
      process.stdout.write(JSON.stringify(await answer(dist, ...JSON.parse(args))));
    `;
    const node = [process.execPath, "--input-type=module", "-e", program];
    return JSON.parse(await this.#host.must([...node, this.#dist, JSON.stringify(args)])) as T;
  }

  get #dist(): string {
    return dirname(dirname(this.#program));
  }

  #residing(): Resident {
    this.#resident ??= new Resident(this.#host, this.#dist);
    return this.#resident;
  }

  /** One document. */
  async json<T>(...args: string[]): Promise<T> {
    return JSON.parse(await this.must("--json", ...args)) as T;
  }

  /** One object a line. */
  async lines<T>(...args: string[]): Promise<T[]> {
    const text = await this.must("--json", ...args);
    return text
      .split("\n")
      .filter(Boolean)
      .map((line) => JSON.parse(line) as T);
  }

  attach(device: string, role: Role, flags: AttachFlags = {}): Promise<AttachResult> {
    const more = Object.entries(flags).flatMap(([name, value]) => [`--${name}`, String(value)]);
    return this.json("attach", device, "--role", role, ...more);
  }

  /** All uplinks, then all taps; one after another, as each takes the lock. */
  async attachAll(
    uplinks: readonly string[],
    taps: readonly string[],
    flags: AttachFlags = {},
  ): Promise<void> {
    const { policy, ...forUplinks } = flags;
    const { mode: _mode, ...forTaps } = flags;
    for (const uplink of uplinks) await this.attach(uplink, "uplink", forUplinks);
    for (const tap of taps)
      await this.attach(tap, "tap", policy === undefined ? forTaps : { ...forTaps, policy });
  }

  detachAll(): Promise<string> {
    return this.must("detach", "--all", "--purge");
  }

  status(): Promise<StatusReport> {
    return this.json("status");
  }

  flows(...filters: string[]): Promise<FlowEntry[]> {
    return this.lines("flows", "list", ...filters);
  }

  async lastHops(): Promise<LastHopEntry[]> {
    return (await this.json<{ last_hops: LastHopEntry[] }>("last-hops", "list")).last_hops;
  }

  async stats(): Promise<VerdictCount[]> {
    return (await this.json<{ counters: VerdictCount[] }>("stats")).counters;
  }

  /** Packets counted for a reason, at one interface or at all. */
  async packets(reason: string, device?: string): Promise<number> {
    const counts = await this.stats();
    return counts
      .filter((count) => count.reason === reason && (device === undefined || count.interface === device))
      .reduce((sum, count) => sum + count.packets, 0);
  }

  /** Follows a tuple in the background; ready when the trace has been set up. */
  trace(seconds: number, ...tuple: string[]): Background {
    return this.#host.start(this.argv("--json", "trace", ...tuple, "--seconds", String(seconds)));
  }

  static events(trace: Background): TraceEvent[] {
    return trace.stdout
      .split("\n")
      .filter(Boolean)
      .map((line) => JSON.parse(line) as TraceEvent);
  }
}
