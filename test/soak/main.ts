// SPDX-License-Identifier: Apache-2.0
// make soak: the daemon under churn of interfaces, devices, flows and configurations, for so many minutes. Ends with
// invariants checked; the status is 1 if one does not hold. The same seed does the same things in the same order.

import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { Instance } from "../../src/kernel/instance.ts";
import { Tables } from "../../src/tables/index.ts";
import { Random } from "../kernel/support/random.ts";
import { FAMILIES } from "../support/addresses.ts";
import { BPFFS, Lab } from "../support/lab.ts";
import { Lasthop } from "../support/lasthop.ts";
import { sleep, until } from "../support/run.ts";
import type { Site } from "../support/site.ts";
import { buildSite } from "../support/topology.ts";
import { Churn } from "./churn.ts";
import { configuration } from "./configuration.ts";
import { SoakDaemon } from "./daemon.ts";
import {
  checkAttached,
  checkBudgets,
  checkDescriptors,
  checkFlows,
  checkIndices,
  checkMemory,
  type Findings,
  memoryOf,
  Objects,
} from "./invariants.ts";
import { HeldConnections, ShortConnections } from "./traffic.ts";

const HELD_EACH = 4;
/** Of the time; afterwards one daemon lives to the end. */
const KILLING = 0.4;
const SAMPLE_MS = 1000;
/** Whatever the daemon says of these is a consequence of what is done to it. */
const EXPECTED = [
  / the configuration was not reloaded: /,
  /lasthop\.yaml:\d+:\d+: /,
  /^lasthop: (warning|error): (up-[abc]|tap\d+x?)(: | is )/,
  /^lasthop: error: (up-[abc]|tap\d+x?) .* code=E_NO_INTERFACE /,
  /^lasthop: warning: device (fw-[abc]|by-hand) is down: /,
  /^lasthop: warning: flows come from two last hops in turn: /,
  /: suppressed \d+ more$/,
];

interface Options {
  minutes: number;
  seed: number;
  host: "bridged" | "routed";
  verbose: boolean;
}

function readOptions(): Options {
  const { values } = parseArgs({
    options: {
      minutes: { type: "string", default: "10" },
      seed: { type: "string", default: String(Date.now() % 1_000_000) },
      host: { type: "string" },
      verbose: { type: "boolean", default: false },
    },
  });
  const minutes = Number(values.minutes);
  const seed = Number(values.seed);
  if (!(minutes > 0)) throw new Error(`--minutes ${values.minutes} is not a number of minutes`);
  if (!Number.isInteger(seed) || seed < 0) throw new Error(`--seed ${values.seed} is not a whole number`);
  const host = values.host ?? (seed % 2 === 0 ? "bridged" : "routed");
  if (host !== "bridged" && host !== "routed") throw new Error(`--host ${host}: bridged or routed`);
  return { minutes, seed, host, verbose: values.verbose };
}

const say = (text: string) => void process.stdout.write(`${text}\n`);

class Soak {
  readonly #options: Options;
  readonly #lab: Lab;
  readonly #site: Site;
  readonly #lasthop: Lasthop;
  readonly #daemon: SoakDaemon;
  readonly #churn: Churn;
  readonly #held: HeldConnections;
  readonly #short: ShortConnections;
  readonly #objects = new Objects();
  readonly findings: Findings = [];

  constructor(options: Options, lab: Lab, site: Site, lasthop: Lasthop, directory: string) {
    this.#options = options;
    this.#lab = lab;
    this.#site = site;
    this.#lasthop = lasthop;
    this.#daemon = new SoakDaemon(site, lasthop, join(directory, "lasthop.yaml"));
    this.#churn = new Churn(site, lasthop, this.#daemon, new Random(options.seed));
    this.#held = new HeldConnections(site);
    this.#short = new ShortConnections(site, new Random(options.seed + 1));
  }

  async run(): Promise<void> {
    await this.#daemon.start(configuration(this.#site));
    await this.#held.open(HELD_EACH);
    this.#short.start();
    try {
      await this.#churnOn();
    } finally {
      await this.#short.stop();
    }
    say(`done: ${[...this.#churn.counts].map(([name, count]) => `${name} ${count}`).join(", ")}`);
    const { connections, datagrams, failed } = this.#short.counts;
    say(`short: ${connections} connections, ${datagrams} datagrams, ${failed} failed meanwhile`);
    await this.#churn.settle();
    await this.#checkRunning();
    await this.#checkStopped();
    await this.#checkPurged();
  }

  async #churnOn(): Promise<void> {
    const { minutes, verbose } = this.#options;
    const started = performance.now();
    const totalMs = minutes * 60_000;
    const samples = setInterval(() => this.#sample(), SAMPLE_MS);
    try {
      for (let elapsed = 0; elapsed < totalMs; elapsed = performance.now() - started) {
        this.#churn.kills = elapsed < totalMs * KILLING;
        const deed = await this.#churn.step();
        if (verbose) say(`${(elapsed / 1000).toFixed(1)} s: ${deed}`);
        await this.#held.progress();
        if (!this.#daemon.running) throw new Error("the daemon has ended by itself");
      }
    } finally {
      clearInterval(samples);
    }
  }

  #sample(): void {
    this.#daemon.sample();
    for (const [kind, id] of this.#daemon.objects()) this.#objects.add(kind, id);
  }

  /** Of what is pinned. Not by openInstance: this process is in another network namespace. */
  #instance(): Instance {
    return new Instance(this.#lab.pinRoot);
  }

  async #checkRunning(): Promise<void> {
    const site = this.#site;
    using instance = this.#instance();
    this.#objects.addPinned(instance);
    await until(
      async () => (await checkAttached(site, this.#lasthop, instance)).length === 0,
      "all to be attached",
      20_000,
    ).catch(() => undefined);
    this.findings.push(...(await checkAttached(site, this.#lasthop, instance)));
    await this.#checkTraffic();
    this.findings.push(...checkFlows(new Tables(instance)));
    const memory = memoryOf(this.#daemon.samples);
    const mib = (bytes: number) => (bytes / 2 ** 20).toFixed(1);
    say(
      `memory of the last daemon: ${mib(memory.medianBytes)} MiB, ${mib(memory.growthBytes)} MiB more in ` +
        `${memory.seconds.toFixed(0)} s`,
    );
    this.findings.push(...checkMemory(memory));
    this.findings.push(...this.#unexpectedLines());
    await this.#checkDescriptors();
  }

  /** Those that ran throughout run on, and new ones come up by every firewall. */
  async #checkTraffic(): Promise<void> {
    const site = this.#site;
    const before = await this.#held.progress();
    await until(
      async () => (await this.#held.progress()).every((rounds, at) => rounds > before[at]! + 5),
      "the long-lived connections to go on",
      60_000,
    );
    for (const name of site.firewalls.keys()) {
      await site.routeClientsBy(name, [site.clients[1]!]);
      for (const vm of site.vms) {
        for (const family of FAMILIES) {
          const key = `last-${name}-${vm.name}-${family}`;
          const { agent } = site.clients[1]!;
          const host = vm.address[family];
          const failure = await until(
            async () =>
              (await agent.failure("open", { key, host, port: 7 })) === undefined ? "opened" : undefined,
            `a connection to ${vm.name} by firewall ${name}, IPv${family}`,
            20_000,
          ).catch((error: Error) => error.message);
          if (failure !== "opened") {
            this.findings.push(failure);
            continue;
          }
          const broken = await agent.failure("echo", { key });
          if (broken !== undefined) this.findings.push(`${key}: ${broken}`);
          await agent.call("close", { key });
        }
      }
    }
    say(`long-lived: ${before.length} connections, at least ${Math.min(...before)} rounds each, none broken`);
  }

  #unexpectedLines(): Findings {
    const lines = this.#daemon.lines.filter((line) => !line.startsWith("lasthop: info: "));
    const unexpected = lines.filter((line) => !EXPECTED.some((pattern) => pattern.test(line)));
    say(`daemon: ${this.#daemon.starts} starts, ${lines.length} warnings and errors`);
    if (this.#options.verbose) for (const line of new Set(lines)) say(`  ${line}`);
    return [...new Set(unexpected)].map((line) => `the daemon said: ${line}`);
  }

  async #checkDescriptors(): Promise<void> {
    const old = this.#daemon.descriptors();
    await this.#daemon.kill();
    await this.#daemon.start();
    // Until it has done what a start brings.
    await sleep(5000);
    this.findings.push(...checkDescriptors(old, this.#daemon.descriptors()));
  }

  async #checkStopped(): Promise<void> {
    await this.#held.close();
    const status = await this.#daemon.stop();
    if (status !== 0) this.findings.push(`the daemon ended with ${status}`);
    // What is lost is found, and budgets are counted anew; once more for what the first made free.
    for (let pass = 0; pass < 2; pass++) await this.#lasthop.must("sweep", "--idle", "1");
    using instance = this.#instance();
    const tables = new Tables(instance);
    this.findings.push(...checkFlows(tables));
    this.findings.push(...checkIndices(tables, instance.map("last_hop_free")));
    this.findings.push(...checkBudgets(tables));
  }

  async #checkPurged(): Promise<void> {
    await this.#lasthop.detachAll();
    this.findings.push(...(await this.#objects.checkGone()));
    say(`BPF objects: ${this.#objects.size} were there, and are looked for`);
    if (existsSync(this.#lab.pinRoot)) {
      this.findings.push(`left under ${this.#lab.pinRoot}: ${readdirSync(this.#lab.pinRoot)}`);
    }
  }
}

async function main(options: Options): Promise<number> {
  const { minutes, seed, host } = options;
  say(
    `soak: ${minutes} min, seed ${seed}, ${host} host (again: --minutes ${minutes} --seed ${seed} --host ${host})`,
  );
  const directory = mkdtempSync(join(tmpdir(), `lasthop-soak-${process.pid}-`));
  const lab = new Lab();
  const findings: Findings = [];
  try {
    const firewalls = ["a", "b", "c"].map((name) => ({ name }));
    const site = await buildSite(lab, { host, firewalls, clients: 2, vms: 3 });
    const soak = new Soak(options, lab, site, await Lasthop.on(lab, site.host), directory);
    try {
      await soak.run();
    } catch (error) {
      findings.push(`it broke: ${(error as Error).stack}`);
    }
    findings.push(...soak.findings);
  } finally {
    await lab.close();
    rmSync(directory, { recursive: true });
  }
  for (const parent of ["/run/netns", BPFFS]) {
    const left = readdirSync(parent).filter((name) => name.startsWith(lab.id));
    if (left.length > 0) findings.push(`left in ${parent}: ${left}`);
  }
  for (const finding of findings) say(`NOT HELD: ${finding}`);
  say(findings.length === 0 ? "every invariant holds" : `${findings.length} findings`);
  return findings.length === 0 ? 0 : 1;
}

let options: Options;
try {
  options = readOptions();
} catch (error) {
  process.stderr.write(`soak: ${(error as Error).message}\n`);
  process.exit(2);
}
process.exitCode = await main(options);
