// SPDX-License-Identifier: Apache-2.0
// Requests by one kind while the VM's default route leaves by another: traffic, and the verdict on each pair from
// three sides: the sockets, every firewall's counters, and what tshark says of every cable.

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Family } from "../support/addresses.ts";
import { Lab } from "../support/lab.ts";
import { Lasthop } from "../support/lasthop.ts";
import { TrafficAgent } from "./agents.ts";
import { type Seen, seenBy } from "./counts.ts";
import { FarEnds } from "./far.ts";
import type { Proof } from "./kinds/kind.ts";
import { PROOF_FIELDS } from "./kinds/kind.ts";
import { clientAddress, type Run, VM } from "./place.ts";
import {
  buildGround,
  type Ground,
  type GroundOptions,
  route,
  type Stand,
  setDefault,
  uplinksOf,
} from "./topology.ts";
import { type Frame, Wires } from "./wire.ts";

/** Emulated machines are slower by that. */
export const SLOWER = Number(process.env.LASTHOP_TIMEOUT_FACTOR ?? 1);

const PORT = 4000;
/** An IP packet of 1500 bytes, the VM's own MTU: too big for every kind's path. */
const FULL_SIZE: Record<Family, number> = { 4: 1472, 6: 1452 };

export interface Pair {
  ingress: Stand;
  egress: Stand;
  family: Family;
}

export interface Verdict extends Pair {
  run: Run;
  /** Empty if the pair works. */
  failures: string[];
}

interface Played extends Pair {
  run: Run;
  addresses: string[];
  began: number;
  ended: number;
  failures: string[];
}

export interface MatrixOptions extends GroundOptions {
  /** Bytes of each direction's TCP transfer. */
  bytes: number;
}

type Protocol = "tcp" | "udp" | "icmp";
const PROTOCOLS: readonly Protocol[] = ["tcp", "udp", "icmp"];

export function pairName({ ingress, egress, family }: Pair): string {
  return `IPv${family}, ${ingress.kind.name} while the default is ${egress.kind.name}`;
}

export class Matrix {
  readonly ground: Ground;
  readonly #lasthop: Lasthop;
  readonly #bytes: number;
  readonly #client: TrafficAgent;
  readonly #wires: Wires;
  readonly #played: Played[] = [];
  readonly #far = new FarEnds();

  private constructor(ground: Ground, lasthop: Lasthop, wires: Wires, client: TrafficAgent, bytes: number) {
    this.ground = ground;
    this.#lasthop = lasthop;
    this.#wires = wires;
    this.#client = client;
    this.#bytes = bytes;
  }

  /** Builds everything; `close` takes it away. */
  static async build(options: MatrixOptions): Promise<Matrix> {
    const lab = new Lab();
    try {
      const ground = await buildGround(lab, options);
      const { host, vm, client, stands } = ground;
      const lasthop = await Lasthop.on(lab, host);
      const [server, asking] = [new TrafficAgent(vm), new TrafficAgent(client)];
      await server.call("serve", { port: PORT });
      const cables = stands.map(({ place }) => place.wire);
      const wires = await Wires.start(host, cables, 10_000 * SLOWER);
      return new Matrix(ground, lasthop, wires, asking, options.bytes);
    } catch (error) {
      await lab.close();
      throw error;
    }
  }

  async close(): Promise<void> {
    await this.ground.lab.close();
    await this.#far.close();
    this.#wires.remove();
  }

  /** Makes tunnels and attaches everything by one configuration; then there can be routes. */
  async attach(folder: string): Promise<void> {
    await this.#far.start(this.ground, folder);
    const path = join(folder, "matrix.yaml");
    writeFileSync(path, JSON.stringify(this.configuration(), undefined, 2));
    await this.#command("apply", "-c", path);
    await route(this.ground);
  }

  async #command(...args: string[]): Promise<void> {
    await this.ground.host.must(this.#lasthop.argv(...args), { timeoutMs: 30_000 * SLOWER });
  }

  configuration(): object {
    const tunnels = this.ground.stands.flatMap(({ ends }) => ends.host.tunnel ?? []);
    const stacks = this.ground.stands.flatMap(({ kind, place }) => kind.labelStacks?.(place) ?? []);
    return {
      uplinks: uplinksOf(this.ground).map(({ interface: name, ...rest }) => ({ name, ...rest })),
      taps: [{ name: this.ground.tap }],
      ...(tunnels.length > 0 && { tunnels }),
      ...(stacks.length > 0 && { mpls: { label_stacks: stacks } }),
    };
  }

  /** Pairs of one default route, side by side. The verdict comes with all others. */
  async play(pairs: readonly Pair[]): Promise<void> {
    const defaults = new Map(pairs.map(({ family, egress }) => [family, egress]));
    if (pairs.some(({ family, egress }) => defaults.get(family) !== egress)) {
      throw new Error("pairs that are played together have one default route");
    }
    for (const [family, egress] of defaults) await setDefault(this.ground, family, egress);
    await Promise.all(pairs.map((pair) => this.#playOne(pair)));
  }

  async #playOne(pair: Pair): Promise<void> {
    const { ingress, egress, family } = pair;
    const by = (run: Run) => ({
      ...{ host: VM[family], port: PORT },
      from: clientAddress(run, ingress.place.number, egress.place.number)[family],
    });
    const target = by("redirected");
    const oversized = by("oversized");
    const began = Date.now() / 1000;
    const failures = await Promise.all([
      this.#client.failure("tcp", {
        ...{ ...target, up: this.#bytes, down: this.#bytes, timeoutMs: 5_000 * SLOWER },
      }),
      this.#client.failure("udp", { ...target, bytes: 100, timeoutMs: 2_000 * SLOWER }),
      this.#client.failure("ping", { ...target, timeoutMs: 2_000 * SLOWER }),
      this.#pathMtu(oversized, family),
    ]);
    this.#played.push({
      ...{ ...pair, run: "redirected", addresses: [target.from, oversized.from] },
      ...{ began, ended: Date.now() / 1000, failures: failures.filter((one) => one !== undefined) },
    });
  }

  /** The first reply is too big for the way back; that is told to the VM, which sends the next in fragments. */
  async #pathMtu(target: { host: string; port: number; from: string }, family: Family) {
    const asked = { ...target, bytes: FULL_SIZE[family], tries: 4, timeoutMs: 250 * SLOWER };
    try {
      const { tried } = await this.#client.call("udp", asked);
      return tried > 1 ? undefined : "path MTU: a reply larger than it arrived";
    } catch (error) {
      return `path MTU: ${error instanceof Error ? error.message : String(error)}`;
    }
  }

  /** Without lasthop: only a connection is tried, and the verdict says whether it failed as it has to. */
  async playBypassed(pairs: readonly Pair[]): Promise<void> {
    await this.#command("bypass", "on");
    for (const pair of pairs) {
      const { ingress, egress, family } = pair;
      await setDefault(this.ground, family, egress);
      const from = clientAddress("bypassed", ingress.place.number, egress.place.number)[family];
      const began = Date.now() / 1000;
      const target = { host: VM[family], port: PORT, from, up: 1, down: 1 };
      const failure = await this.#client.failure("tcp", { ...target, timeoutMs: 700 * SLOWER });
      this.#played.push({
        ...{ ...pair, run: "bypassed", addresses: [from], began, ended: Date.now() / 1000 },
        failures: failure === undefined ? ["it works without lasthop: the pair proves nothing"] : [],
      });
    }
    await this.#command("bypass", "off");
  }

  /** Ends the capture, and judges what was played. */
  async verdicts(): Promise<Verdict[]> {
    await this.#wires.stop();
    const watches = this.#played.map((played) => new Watch(played));
    const watch = new Map(watches.flatMap((one) => one.played.addresses.map((address) => [address, one])));
    const opaque = watches.filter(({ played }) => played.ingress.kind.opaque);
    const firewalls = new Map(this.ground.stands.map(({ place }) => [place.wire, place.wireMac.firewall]));
    await this.#wires.read((frame) => {
      if (frame.values["eth.src"][0] === firewalls.get(frame.wire)) return;
      for (const address of new Set([...frame.values["ip.dst"], ...frame.values["ipv6.dst"]])) {
        watch.get(address)?.see(frame);
      }
      for (const one of opaque) one.seeOpaque(frame);
    });
    const seen = new Map<Stand, Seen>();
    for (const stand of this.ground.stands) seen.set(stand, await seenBy(stand));
    return watches.map((one) => one.verdict(seen, this.#bytes));
  }
}

/** What the cables showed of one pair's replies. */
class Watch {
  readonly played: Played;
  readonly #proof: Proof;
  readonly #good = new Map<Protocol, number>();
  readonly #bad: string[] = [];
  #opaqueBytes = 0;

  constructor(played: Played) {
    this.played = played;
    this.#proof = played.ingress.kind.proof(played.ingress.place);
  }

  see(frame: Frame): void {
    const { ingress, family } = this.played;
    const wrong =
      frame.wire === ingress.place.wire
        ? mismatch(this.#proof, frame, family)
        : `on the cable ${frame.wire}: ${frame.layers}`;
    const inner = frame.layers.slice(this.#proof.layers.length).split(":");
    const protocol = PROTOCOLS.find((name) => inner.includes(name) || inner.includes(`${name}v6`));
    if (wrong !== undefined) this.#bad.push(wrong);
    else if (protocol) this.#good.set(protocol, (this.#good.get(protocol) ?? 0) + 1);
  }

  seeOpaque(frame: Frame): void {
    const { ingress, began, ended } = this.played;
    if (frame.wire !== ingress.place.wire || frame.time < began || frame.time > ended) return;
    if (matches(this.#proof, frame)) this.#opaqueBytes += frame.bytes;
  }

  verdict(seen: ReadonlyMap<Stand, Seen>, bytes: number): Verdict {
    const { ingress, egress, family, addresses, failures, run } = this.played;
    const found = [...failures];
    const at = (stand: Stand, what: keyof Seen) =>
      addresses.reduce((sum, address) => sum + (seen.get(stand)?.[what].get(address) ?? 0), 0);
    if (run === "bypassed") {
      if (at(egress, "dropped") === 0 && !egress.kind.dropsUncounted)
        found.push("bypassed: the default's firewall has dropped nothing");
      return { run, ingress, egress, family, failures: found };
    }
    if (at(ingress, "carried") === 0) found.push("its firewall has seen no reply");
    for (const stand of seen.keys()) {
      const dropped = at(stand, "dropped");
      if (dropped > 0) found.push(`the firewall of ${stand.kind.name} has dropped ${dropped} replies`);
      if (stand !== ingress && at(stand, "carried") > 0) found.push(`${stand.kind.name} has carried replies`);
    }
    if (ingress.kind.opaque) {
      if (this.#opaqueBytes < bytes) found.push(`wire: only ${this.#opaqueBytes} bytes in the right form`);
    } else {
      for (const protocol of PROTOCOLS) {
        if (!this.#good.has(protocol)) found.push(`wire: no ${protocol} in the right form`);
      }
    }
    if (this.#bad.length > 0) found.push(`wire: ${this.#bad.length} frames, such as ${this.#bad[0]}`);
    return { run, ingress, egress, family, failures: found };
  }
}

function matches({ layers, fields }: Proof, frame: Frame): boolean {
  if (!`${frame.layers}:`.startsWith(`${layers}:`)) return false;
  return PROOF_FIELDS.every((field) =>
    (fields[field] ?? []).every((value, index) => sameValue(frame.values[field][index], value)),
  );
}

/** tshark writes some numbers in hexadecimal. */
function sameValue(shown: string | undefined, wanted: string | number): boolean {
  if (shown === undefined) return false;
  return shown === wanted || (typeof wanted === "number" && Number(shown) === wanted);
}

function mismatch(proof: Proof, frame: Frame, family: Family): string | undefined {
  const inner = (proof.inner ?? { 4: "ip", 6: "ipv6" })[family];
  const layers = `${proof.layers}:${inner}`;
  if (`${frame.layers}:`.startsWith(`${layers}:`) && matches({ ...proof, layers }, frame)) return undefined;
  const shown = PROOF_FIELDS.filter((field) => frame.values[field].length > 0).map(
    (field) => `${field}=${frame.values[field]}`,
  );
  return `${frame.layers} ${shown.join(" ")}, not ${layers} ${JSON.stringify(proof.fields)}`;
}

/** Each kind once with the next one that carries the family as default route. */
export function ring(stands: readonly Stand[], family: Family): Pair[] {
  const able = stands.filter(({ kind }) => kind.inside.includes(family));
  return able.map((ingress, index) => ({ ingress, egress: able[(index + 1) % able.length]!, family }));
}

/** All of them; of one kind with itself, two firewalls of it. */
export function product(stands: readonly Stand[], family: Family): Pair[] {
  const able = stands.filter(({ kind }) => kind.inside.includes(family));
  const isFirst = (stand: Stand) => able.find(({ kind }) => kind === stand.kind) === stand;
  return able
    .filter(isFirst)
    .flatMap((ingress) =>
      able
        .filter((egress) => (egress.kind === ingress.kind ? egress !== ingress : isFirst(egress)))
        .map((egress) => ({ ingress, egress, family })),
    );
}
