// SPDX-License-Identifier: Apache-2.0
// One set of namespaces, processes and pins, taken away again whatever happens: by close(), when this
// process ends or is interrupted, and by the next one's sweep if it was killed.

import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, rmSync } from "node:fs";
import { Agent } from "./agent.ts";
import { Background, killNow, must, type Output, type RunOptions, run } from "./run.ts";

const NETNS = "/run/netns";
export const BPFFS = "/sys/fs/bpf";
/** lh, process id, n, number in this process, -, what it is. */
const OWNED = /^lh(\d+)n\d+(-|$)/;

const open = new Set<Lab>();
let counter = 0;

export class Namespace {
  readonly name: string;
  readonly #lab: Lab;

  constructor(lab: Lab, name: string) {
    this.#lab = lab;
    this.name = name;
  }

  get path(): string {
    return `${NETNS}/${this.name}`;
  }

  /** What stands before a command so that it runs in here. `ip netns exec` would hide bpffs. */
  get prefix(): string[] {
    return ["nsenter", `--net=${this.path}`];
  }

  run(argv: readonly string[], options?: RunOptions): Promise<Output> {
    return run([...this.prefix, ...argv], options);
  }

  must(argv: readonly string[], options?: RunOptions): Promise<string> {
    return must([...this.prefix, ...argv], options);
  }

  /** `ip -batch`: many changes, one process. */
  ip(...lines: string[]): Promise<string> {
    return must(["ip", "-n", this.name, "-batch", "-"], { input: `${lines.join("\n")}\n` });
  }

  start(argv: readonly string[]): Background {
    const background = new Background([...this.prefix, ...argv]);
    this.#lab.keep(background);
    return background;
  }

  agent(): Agent {
    const agent = new Agent(this.prefix);
    this.#lab.keep(agent.process);
    return agent;
  }
}

export class Lab {
  readonly id: string;
  readonly #namespaces: Namespace[] = [];
  readonly #processes: Background[] = [];
  #tell: (() => void) | undefined;

  constructor() {
    this.id = `lh${process.pid}n${counter++}`;
    if (open.size === 0) {
      sweepLeftovers();
      watchSignals();
    }
    open.add(this);
  }

  /** A pin root of this lab's own. */
  get pinRoot(): string {
    return `${BPFFS}/${this.id}`;
  }

  namespace(name: string): Namespace {
    const namespace = new Namespace(this, `${this.id}-${name}`);
    this.#namespaces.push(namespace);
    return namespace;
  }

  keep(process: Background): void {
    this.#processes.push(process);
  }

  /** Is told when a signal ends the process, before everything is taken down. */
  onInterrupt(tell: () => void): void {
    this.#tell = tell;
  }

  interrupted(): void {
    this.#tell?.();
  }

  async close(): Promise<void> {
    await Promise.all(this.#processes.splice(0).map((process) => process.stop("SIGKILL")));
    this.removeNow();
  }

  /** The part of close() that cannot wait: for signals and the end of the process. */
  removeNow(): void {
    killNow(this.#processes.map((process) => process.child));
    removeAll(
      this.#namespaces.map((namespace) => namespace.name).filter((name) => existsSync(`${NETNS}/${name}`)),
      [this.pinRoot],
    );
    open.delete(this);
    if (open.size === 0) unwatchSignals();
  }
}

function removeAll(namespaces: string[], pinRoots: string[]): void {
  // Unpinning first: a link's program must not outlive its interface by accident of order.
  for (const root of pinRoots) rmSync(root, { recursive: true, force: true });
  if (namespaces.length > 0) {
    const input = namespaces.map((name) => `netns del ${name}\n`).join("");
    const result = spawnSync("ip", ["-force", "-batch", "-"], { input, encoding: "utf8" });
    // Another process may have swept the same ones; what counts is that they are gone.
    const left = namespaces.filter((name) => existsSync(`${NETNS}/${name}`));
    if (left.length > 0) process.stderr.write(`cleaning up: ${left} are still there: ${result.stderr}\n`);
  }
}

function removeOpen(): void {
  for (const lab of [...open]) lab.removeNow();
}

function onSignal(signal: NodeJS.Signals): void {
  for (const lab of open) lab.interrupted();
  removeOpen();
  // Ends as it would have ended without us.
  process.kill(process.pid, signal);
}

const SIGNALS: NodeJS.Signals[] = ["SIGINT", "SIGTERM", "SIGHUP"];

function watchSignals(): void {
  for (const signal of SIGNALS) process.once(signal, onSignal);
  process.once("exit", removeOpen);
}

function unwatchSignals(): void {
  for (const signal of SIGNALS) process.removeListener(signal, onSignal);
  process.removeListener("exit", removeOpen);
}

function alive(pid: number): boolean {
  return existsSync(`/proc/${pid}`);
}

/** Removes what killed processes of this suite left: namespaces and pins whose process is gone. */
function sweepLeftovers(): void {
  const dead = (directory: string): string[] => {
    if (!existsSync(directory)) return [];
    return readdirSync(directory).filter((name) => {
      const owner = OWNED.exec(name);
      return owner !== null && !alive(Number(owner[1]));
    });
  };
  const namespaces = dead(NETNS);
  const pinRoots = dead(BPFFS).map((name) => `${BPFFS}/${name}`);
  removeAll(namespaces, pinRoots);
}
