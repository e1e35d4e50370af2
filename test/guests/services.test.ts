// SPDX-License-Identifier: Apache-2.0
// Two virtual machines that serve one address. One is killed, the other hangs and is reset: new connections go to the
// one that is there, connections of that one stay, and who comes back gets new ones again.

import { beforeAll, beforeEach, expect, it } from "vitest";
import type { VmDetails } from "../../src/ops/types.ts";
import { type Addresses, type Family, prefixLength, vmAddress } from "../support/addresses.ts";
import { attachedOnce, cleanUpDaemons, Daemon } from "../support/daemon.ts";
import { bracket, FAMILIES, useSite } from "../support/fixture.ts";
import { QemuGuest } from "../support/qemuGuest.ts";
import { until } from "../support/run.ts";
import { describeGuests, get, guestOptions, LIMIT } from "./prepared.ts";

const SERVICE = vmAddress(100);
/** Of the host's bridge: from there the daemon asks the guests. */
const HOST = vmAddress(253);
const ECHO_PORT = 7;
/** So many that each of two VMs gets some, but for one time in 2^23. */
const CONNECTIONS = 24;
/** Emulated guests boot, and are asked twice before they are up. */
const STATE_MS = 120_000;

const vm = (number: number) =>
  `{ name: guest${number}, tap: vnet${number}, address: ${vmAddress(20 + number)[4]}, ` +
  "check: { kind: http, interval_seconds: 0.5, timeout_seconds: 2, fall: 2, rise: 2 } }";
const service = (family: Family) =>
  `{ name: web${family}, address: "${SERVICE[family]}", pool: [{ vm: guest1 }, { vm: guest2 }] }`;
const CONFIG = `
uplinks: [{ name: 'up-*' }]
taps: [{ name: 'vnet*' }]
vms: [${[1, 2].map(vm).join(", ")}]
services: [${FAMILIES.map(service).join(", ")}]
`;

cleanUpDaemons();

await describeGuests("two guests in a service", (image) => {
  let first: QemuGuest;
  let second: QemuGuest;
  const ground = useSite({ vms: 0 });

  beforeAll(async () => {
    const { site } = ground;
    await site.host.ip(
      ...FAMILIES.map(
        (family) =>
          `addr add ${HOST[family]}/${prefixLength(family, true)} dev br${family === 6 ? " nodad" : ""}`,
      ),
    );
    const start = (number: number) =>
      QemuGuest.start(site.host, image, guestOptions(site, number, { services: [SERVICE] }));
    [first, second] = await Promise.all([start(1), start(2)]);
    for (const guest of [first, second]) await guest.answers(site.b.namespace);
    await Daemon.start(ground, CONFIG);
    await attachedOnce(ground, [first.tap, second.tap]);
  }, LIMIT.timeout);

  // Whatever a test before has left.
  beforeEach(async () => {
    for (const guest of [first, second]) await becomes(guest, "up");
  }, LIMIT.timeout);

  const show = (guest: QemuGuest) => ground.lasthop.json<VmDetails>("vms", "show", guest.name);

  async function becomes(guest: QemuGuest, state: VmDetails["state"]): Promise<void> {
    await until(async () => (await show(guest)).state === state, `${guest.name} to be ${state}`, STATE_MS);
  }

  /** The names that as many new connections are answered with. Each must be answered. */
  async function ask(family: Family, count = CONNECTIONS): Promise<string[]> {
    const url = `http://${bracket(SERVICE[family])}/`;
    const { status, stdout, stderr } = await ground.site.client.namespace.run([
      ...["curl", "-sS", "--noproxy", "*", "--max-time", "10", "--fail-early"],
      ...Array.from({ length: count }, () => url),
    ]);
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    const names = stdout.trim().split("\n");
    expect(names.length).toBe(count);
    return names;
  }

  const whoAnswers = async (family: Family) => new Set(await ask(family));

  async function comesBack(guest: QemuGuest): Promise<void> {
    await becomes(guest, "up");
    for (const family of FAMILIES) expect(await whoAnswers(family)).toContain(guest.name);
  }

  /** Opens as many, and tells which has which guest. */
  async function openLive(label: string): Promise<Map<string, QemuGuest>> {
    const { agent, address } = ground.site.client;
    const ports = new Map<number, string>();
    for (const family of FAMILIES) {
      for (let number = 0; number < CONNECTIONS / 2; number++) {
        const key = `${label}${family}-${number}`;
        const target = { key, host: SERVICE[family], port: ECHO_PORT, timeoutMs: 10_000 };
        ports.set((await agent.call("open", target)).local_port, key);
        await agent.call("echo", { key });
      }
    }
    const live = new Map<string, QemuGuest>();
    for (const family of FAMILIES) {
      for (const { remote_port, local_port, vm_mac } of await ground.lasthop.flows(
        "--address",
        address[family],
      )) {
        const key = ports.get(remote_port ?? 0);
        const guest = [first, second].find(({ mac }) => mac === vm_mac);
        if (local_port === ECHO_PORT && key !== undefined && guest) live.set(key, guest);
      }
    }
    expect(live.size).toBe(CONNECTIONS);
    return live;
  }

  async function stillEcho(live: Map<string, QemuGuest>, of: readonly QemuGuest[]): Promise<void> {
    const keys = [...live].filter(([, guest]) => of.includes(guest)).map(([key]) => key);
    expect(keys.length).toBeGreaterThan(0);
    for (const key of keys) {
      expect(await ground.site.client.agent.failure("echo", { key, timeoutMs: 20_000 }), key).toBeUndefined();
    }
  }

  async function closeAll(live: Map<string, QemuGuest>): Promise<void> {
    for (const key of live.keys()) await ground.site.client.agent.failure("close", { key, reset: true });
  }

  it.each(FAMILIES)("IPv%i: both get connections, by firewall a alone", LIMIT, async (family) => {
    const { site } = ground;
    await site.resetCounts();
    expect(await whoAnswers(family)).toEqual(new Set([first.name, second.name]));
    const [a, b] = await Promise.all([site.a.counts(), site.b.counts()]);
    expect(a.packets("carried", { family, protocol: "tcp", direction: "reply" })).toBeGreaterThan(
      CONNECTIONS,
    );
    expect(a.packets("dropped")).toBe(0);
    expect(b.packets("carried") + b.packets("dropped")).toBe(0);
  });

  it.each(FAMILIES)("IPv%i: megabytes of either arrive as they were sent", LIMIT, async (family) => {
    const { namespace } = ground.site.client;
    const digests = new Map<string, string>();
    for (const guest of [first, second]) {
      const { stdout } = await get(namespace, (guest.address as Addresses)[family], "/bulk.sha256");
      digests.set(stdout, guest.name);
    }
    const script = 'curl -sSf --noproxy "*" "$1" | sha256sum | cut -c 1-64';
    const url = `http://${bracket(SERVICE[family])}/bulk`;
    const seen = new Set<string | undefined>();
    // The one after the other may go to the same.
    for (let tries = 0; tries < CONNECTIONS && seen.size < 2; tries++) {
      const digest = await namespace.must(["sh", "-c", script, "sh", url], { timeoutMs: 120_000 });
      expect(digests.has(digest)).toBe(true);
      seen.add(digests.get(digest));
    }
    expect(seen).toEqual(new Set([first.name, second.name]));
  });

  it("one that is drained keeps its connections, and gets no new ones", LIMIT, async () => {
    const live = await openLive("drain");
    await ground.lasthop.must("vms", "drain", first.name);
    for (const family of FAMILIES) expect(await whoAnswers(family)).toEqual(new Set([second.name]));
    await stillEcho(live, [first, second]);
    await ground.lasthop.must("vms", "up", first.name);
    await comesBack(first);
    await closeAll(live);
  });

  it("one that is killed is no longer asked; started again, on a new tap, it is", LIMIT, async () => {
    const live = await openLive("kill");
    await first.kill();
    await becomes(first, "down");
    for (const family of FAMILIES) expect(await whoAnswers(family)).toEqual(new Set([second.name]));
    await stillEcho(live, [second]);
    await first.startAgain();
    await comesBack(first);
    await stillEcho(live, [second]);
    await closeAll(live);
  });

  it("one that hangs is no longer asked, though its tap is up; reset, it is", LIMIT, async () => {
    const live = await openLive("reset");
    second.freeze();
    await becomes(second, "down");
    const { attached, cause } = await show(second);
    expect(attached).toBe(true);
    // Its check fails, or the neighbour table gives it up first.
    expect(["probe", "neighbour"]).toContain(cause);
    for (const family of FAMILIES) expect(await whoAnswers(family)).toEqual(new Set([first.name]));
    await stillEcho(live, [first]);
    second.reset();
    await comesBack(second);
    await stillEcho(live, [first]);
    await closeAll(live);
  });
});
