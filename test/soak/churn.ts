// SPDX-License-Identifier: Apache-2.0
// What happens to the host, one thing after another, in an order that the seed decides.

import type { Random } from "../kernel/support/random.ts";
import { mac } from "../support/addresses.ts";
import type { Lasthop } from "../support/lasthop.ts";
import { type Output, sleep } from "../support/run.ts";
import type { Site } from "../support/site.ts";
import { replugTap, replugUplink } from "../support/topology.ts";
import { bad, configuration, type Variant } from "./configuration.ts";
import type { SoakDaemon } from "./daemon.ts";
import { synFlood } from "./traffic.ts";

const PAUSE_MS = 400;
const FLOOD = 12_000;

interface Deed {
  weight: number;
  do(): Promise<void>;
}

export class Churn {
  readonly #site: Site;
  readonly #lasthop: Lasthop;
  readonly #daemon: SoakDaemon;
  readonly #random: Random;
  readonly #deeds: Record<string, Deed>;
  readonly counts = new Map<string, number>();
  #variant: Variant = {};
  /** Forbidden later, so that memory is looked at over one long life. */
  kills = true;

  constructor(site: Site, lasthop: Lasthop, daemon: SoakDaemon, random: Random) {
    this.#site = site;
    this.#lasthop = lasthop;
    this.#daemon = daemon;
    this.#random = random;
    this.#deeds = this.#list();
  }

  /** One deed, by weight. Returns its name. */
  async step(): Promise<string> {
    const deeds = Object.entries(this.#deeds).filter(([name]) => this.kills || name !== "kill");
    let left = this.#random.below(deeds.reduce((sum, [, { weight }]) => sum + weight, 0));
    for (const [name, deed] of deeds) {
      left -= deed.weight;
      if (left >= 0) continue;
      await deed.do();
      this.counts.set(name, (this.counts.get(name) ?? 0) + 1);
      await sleep(this.#random.below(PAUSE_MS));
      return name;
    }
    throw new Error("the weights do not add up");
  }

  /** The first VM and firewall a keep their connections, so their links may be away for a moment only. */
  #list(): Record<string, Deed> {
    const site = this.#site;
    const random = this.#random;
    const other = () => random.pick(site.vms.slice(1));
    return {
      "tap replugged": { weight: 4, do: () => replugTap(site, random.pick(site.vms)) },
      "tap renamed": { weight: 3, do: () => this.#rename(other().tap) },
      "tap down and up": { weight: 2, do: () => this.#bounce(other().tap) },
      "tap removed for a while": { weight: 2, do: () => this.#remove() },
      "uplink replugged": { weight: 4, do: () => replugUplink(site, random.pick(["a", "b", "c"])) },
      "uplink down and up": { weight: 2, do: () => this.#bounce(site.uplinkOf(random.pick(["b", "c"]))) },
      "other interfaces": { weight: 2, do: () => this.#strangers() },
      "device's MAC changed": { weight: 3, do: () => this.#changeMac() },
      "device down and up": { weight: 3, do: () => this.#downAndUp() },
      "device by hand": { weight: 2, do: () => this.#byHand() },
      "clients go by another firewall": {
        weight: 3,
        do: () => site.routeClientsBy(random.pick(["a", "b", "c"]), [site.clients[1]!]),
      },
      "SYN flood": { weight: 2, do: async () => void (await synFlood(site, random, FLOOD)) },
      "flows flushed": { weight: 1, do: () => this.#command("flows", "flush", "--state", "new") },
      "sweep by hand": { weight: 1, do: () => this.#command("sweep") },
      reload: { weight: 4, do: () => this.#reload() },
      "wrong configuration": { weight: 1, do: () => this.#wrong() },
      kill: { weight: 2, do: () => this.#kill() },
    };
  }

  /** Links are as they were, and the configuration is the first one. */
  async settle(): Promise<void> {
    const { host } = this.#site;
    for (const name of [...this.#site.taps, ...this.#site.uplinks]) await host.ip(`link set ${name} up`);
    this.#variant = {};
    if (!(await this.#daemon.reload(configuration(this.#site, this.#variant)))) {
      throw new Error("a right configuration was refused");
    }
  }

  async #rename(tap: string): Promise<void> {
    const { host } = this.#site;
    await host.ip(`link set ${tap} down`, `link set ${tap} name ${tap}x`, `link set ${tap}x up`);
    await sleep(this.#random.below(PAUSE_MS));
    await host.ip(`link set ${tap}x down`, `link set ${tap}x name ${tap}`, `link set ${tap} up`);
    await this.#restoreRoutes(tap);
  }

  async #bounce(name: string): Promise<void> {
    await this.#site.host.ip(`link set ${name} down`);
    await sleep(this.#random.below(PAUSE_MS));
    await this.#site.host.ip(`link set ${name} up`);
    await this.#restoreRoutes(name);
  }

  /** A routing host forgets addresses (IPv6) and routes with the link. */
  async #restoreRoutes(name: string): Promise<void> {
    const site = this.#site;
    if (site.kind === "bridged") return;
    const vm = site.vms.find(({ tap }) => tap === name);
    if (vm) return await replugTap(site, vm);
    const firewall = [...site.firewalls.keys()].find((key) => site.uplinkOf(key) === name)!;
    await replugUplink(site, firewall);
  }

  async #remove(): Promise<void> {
    const vm = this.#random.pick(this.#site.vms.slice(1));
    await this.#site.host.ip(`link set ${vm.tap} down`);
    await sleep(this.#random.below(2 * PAUSE_MS));
    await replugTap(this.#site, vm);
  }

  /** Many at once, of which some match the configuration for a moment. */
  async #strangers(): Promise<void> {
    const names = Array.from({ length: 6 }, (_, number) => `${number % 2 === 0 ? "tap" : "odd"}9${number}`);
    await this.#site.host.ip(...names.map((name) => `link add ${name} type veth peer name p${name}`));
    await sleep(this.#random.below(PAUSE_MS));
    await this.#site.host.ip(...names.map((name) => `link del ${name}`));
  }

  async #changeMac(): Promise<void> {
    const firewall = this.#site.firewall("c");
    const changed = mac(0xee, this.#random.below(20));
    await firewall.namespace.ip(`link set in address ${changed}`);
    await sleep(this.#random.below(PAUSE_MS));
    await firewall.namespace.ip(`link set in address ${firewall.mac}`);
  }

  async #downAndUp(): Promise<void> {
    await this.#command("devices", "down", "fw-c");
    await sleep(this.#random.below(PAUSE_MS));
    await this.#command("devices", "up", "fw-c");
  }

  async #byHand(): Promise<void> {
    const uplink = this.#site.uplinkOf("b");
    // Left, if its removal was refused the last time.
    await this.#command("devices", "remove", "by-hand");
    await this.#command("devices", "add", "by-hand", "--mac", mac(0xdd, 1), "--interface", uplink);
    await this.#command("devices", "set", "by-hand", "--on-down", "hold");
    await this.#command("devices", "remove", "by-hand");
  }

  async #reload(): Promise<void> {
    const random = this.#random;
    this.#variant = {
      ...(random.chance(2) && { observeThird: true }),
      ...(random.chance(2) && { withoutDevices: true }),
      ...(random.chance(3) && { exclude: true }),
      ...(random.chance(3) && { withoutC: true }),
    };
    if (!(await this.#daemon.reload(configuration(this.#site, this.#variant)))) {
      throw new Error("a right configuration was refused");
    }
  }

  async #wrong(): Promise<void> {
    if (await this.#daemon.reload(bad(this.#random))) throw new Error("a wrong configuration was taken");
  }

  async #kill(): Promise<void> {
    await this.#daemon.kill();
    await sleep(this.#random.below(PAUSE_MS));
    await this.#daemon.start(configuration(this.#site, this.#variant));
  }

  /** What may be refused at this moment: others change things, or the device is not configured. */
  async #command(...args: string[]): Promise<void> {
    const output = await this.#lasthop.run("--json", ...args);
    if (output.status !== 0 && !isRefusal(output)) {
      throw new Error(`lasthop ${args.join(" ")} ended with ${output.status}: ${output.stderr}`);
    }
  }
}

const REFUSALS = new Set(["E_LOCKED", "E_HELD", "E_NOT_FOUND", "E_NO_INTERFACE"]);

function isRefusal({ stderr }: Output): boolean {
  const code = /"code":"(E_[A-Z_]+)"/.exec(stderr)?.[1];
  return code !== undefined && REFUSALS.has(code);
}
