// SPDX-License-Identifier: Apache-2.0
// The daemon follows its VMs: each kind of check, taps that go and come back, addresses that nobody answers for, and
// the operator's word. Whom requests are handed to then is for other tests.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { ServiceEntry, VmDetails, VmEntry } from "../../src/ops/types.ts";
import { selfSigned } from "../support/certificate.ts";
import { cleanUpDaemons, Daemon, type DaemonOptions, WHOLE_SITE } from "../support/daemon.ts";
import { FAMILIES, type Ground, useSite } from "../support/fixture.ts";
import { repositoryPath } from "../support/paths.ts";
import { sleep, until } from "../support/run.ts";
import type { Vm } from "../support/site.ts";
import { replugTap } from "../support/topology.ts";

cleanUpDaemons();

const directory = mkdtempSync(join(tmpdir(), `lasthop-vm-health-${process.pid}-`));
afterAll(() => rmSync(directory, { recursive: true }));
const file = (name: string) => join(directory, name);

const [HTTP, HTTPS, ECHO] = [8080, 8443, 7];
const TIMING = "interval_seconds: 0.2, timeout_seconds: 0.5, fall: 2, rise: 2";

/** What the VM's server says from now on. */
function answers(vm: Vm, status: number): void {
  writeFileSync(file(`${vm.name}.status`), String(status));
}

/** Hears nothing of a kind any longer. */
async function deafen({ namespace }: Vm, what: string): Promise<void> {
  const chain = `chain in { type filter hook input priority 0; policy accept; ${what} drop; }`;
  await namespace.must(["nft", "-f", "-"], { input: `table inet deaf {\n${chain}\n}\n` });
}

async function hear({ namespace }: Vm): Promise<void> {
  await namespace.must(["nft", "delete table inet deaf"]);
}

/** Silent to everybody, as a guest that hangs; its tap stays up. */
async function mute({ namespace }: Vm, hook: "ingress" | "egress" = "ingress"): Promise<void> {
  const chain = `chain silent { type filter hook ${hook} device eth0 priority 0; policy drop; }`;
  await namespace.must(["nft", "-f", "-"], { input: `table netdev mute {\n${chain}\n}\n` });
}

async function unmute({ namespace }: Vm): Promise<void> {
  await namespace.must(["nft", "delete table netdev mute"]);
}

const show = (ground: Ground, name: string) => ground.lasthop.json<VmDetails>("vms", "show", name);

function becomes(ground: Ground, name: string, wanted: Partial<VmEntry>): Promise<VmDetails> {
  const matches = (entry: VmDetails) =>
    Object.entries(wanted).every(([key, value]) => entry[key as keyof VmEntry] === value);
  return until(
    async () => {
      const entry = await show(ground, name);
      return matches(entry) ? entry : undefined;
    },
    `${name} to be ${JSON.stringify(wanted)}`,
    20_000,
  );
}

describe("VMs of a daemon", () => {
  const ground = useSite({ host: "bridged", vms: 4 }, async ({ site }) => {
    // Checks need an address to ask from.
    await site.host.ip("addr add 203.0.113.200/24 dev br", "addr add 2001:db8:113::200/64 dev br nodad");
    const hurry = ["ipv4", "ipv6"].map((family) => `net.${family}.neigh.br.retrans_time_ms=100`);
    await site.host.must(["sysctl", "-qw", ...hurry]);
  });
  let daemon: Daemon | undefined;
  afterEach(async () => {
    await daemon?.stop();
    daemon = undefined;
    // What was found out by one test is not known to the next.
    await ground.lasthop.detachAll();
  });

  const vm = (number: number) => ground.site.vms[number - 1]!;

  /** Each on its tap, with an address of its own; and a service of all of them. */
  async function start(given: Record<string, string>, options: DaemonOptions = {}): Promise<Daemon> {
    daemon = await Daemon.start(ground, config(given), options);
    return daemon;
  }
  function config(given: Record<string, string>): string {
    const vms = Object.entries(given).map(([name, text]) => `  - { name: ${name}, ${text} }\n`);
    const pool = Object.keys(given).map((name) => `{ vm: ${name} }`);
    const service = `{ name: shop, address: 192.0.2.80, port: 80, pool: [${pool}] }`;
    return `${WHOLE_SITE}vms:\n${vms.join("")}services: [${service}]\n`;
  }
  const own = (number: number, check = "", family: 4 | 6 = 4) =>
    `tap: tap${number}, address: '${vm(number).address[family]}'${check && `, check: { ${check}, ${TIMING} }`}`;
  const upOf = async (): Promise<number> =>
    (await ground.lasthop.json<{ services: ServiceEntry[] }>("services", "list")).services[0]!.vms_up;

  describe("with a server", () => {
    beforeAll(async () => {
      const program = repositoryPath("test/support/statusServer.mjs");
      const { key, cert } = selfSigned(["web.example.com", vm(2).address[4]]);
      writeFileSync(file("key"), key);
      writeFileSync(file("cert"), cert);
      for (const one of ground.site.vms) {
        answers(one, 200);
        const serve = (port: number, ...more: string[]) =>
          one.namespace.start([process.execPath, program, String(port), file(`${one.name}.status`), ...more]);
        for (const server of [serve(HTTP), serve(HTTPS, file("key"), file("cert"))]) {
          await server.writes(/listening/);
        }
      }
    });

    it.each(FAMILIES)(
      "IPv%i: an answer with another status takes a VM down, good ones bring it up",
      async (family) => {
        const check = `kind: http, port: ${HTTP}, path: /health`;
        const { lines } = await start({ web1: own(1, check, family), web2: own(2, check, family) });
        for (const name of ["web1", "web2"]) await becomes(ground, name, { state: "up", health: "up" });
        expect(await upOf()).toBe(2);
        answers(vm(1), 503);
        await becomes(ground, "web1", { state: "down", cause: "probe", health: "down" });
        expect(await upOf()).toBe(1);
        answers(vm(1), 302);
        await becomes(ground, "web1", { state: "up", cause: null });
        expect(await upOf()).toBe(2);
        expect(await show(ground, "web2")).toMatchObject({ state: "up" });
        const told = daemon!.lines.filter((line) => line.includes("vm=web1"));
        expect(told).toEqual([
          expect.stringContaining("VM web1 is down: GET /health: status 503"),
          expect.stringContaining("VM web1 is up"),
        ]);
        expect(lines.filter((line) => line.includes("vm=web2"))).toEqual([]);
        expect(await daemon!.metric("lasthop_vm_checks_total", 'vm="web1",result="ok"')).toBeGreaterThan(1);
        expect(await daemon!.metric("lasthop_vm_checks_total", 'vm="web1",result="error"')).toBeGreaterThan(
          1,
        );
        expect(await daemon!.metric("lasthop_service_vms", 'service="shop",state="up"')).toBe(2);
      },
    );

    it("HTTPS: any certificate will do, unless it is to be verified", async () => {
      const check = `kind: https, port: ${HTTPS}`;
      const prefix = ["env", `SSL_CERT_FILE=${file("cert")}`];
      await start(
        {
          any: own(1, check),
          "by-address": own(2, `${check}, verify: true`),
          "by-name": own(3, `${check}, verify: true, host: web.example.com`),
        },
        { prefix },
      );
      for (const name of ["any", "by-address", "by-name"]) {
        await becomes(ground, name, { state: "up", health: "up" });
      }
      // The same certificate is not good for everybody.
      await daemon!.reload(
        config({
          any: own(1, check),
          "by-address": own(3, `${check}, verify: true`),
          "by-name": own(2, `${check}, verify: true, host: mail.example.com`),
        }),
      );
      for (const name of ["by-address", "by-name"]) {
        await becomes(ground, name, { state: "down", cause: "probe" });
        await daemon!.logs(new RegExp(`VM ${name} is down: GET /: its certificate is refused`));
      }
      expect(await show(ground, "any")).toMatchObject({ state: "up", health: "up" });
    });

    it("one that hangs is noticed as well, and a server that is not there", async () => {
      const check = `kind: http, port: ${HTTP}`;
      await start({ web1: own(1, check), web2: own(2, `kind: http, port: ${HTTP + 1}`) });
      await becomes(ground, "web1", { state: "up", health: "up" });
      await becomes(ground, "web2", { state: "down", cause: "probe" });
      await daemon!.logs(/VM web2 is down: GET \/: ECONNREFUSED/);
      await deafen(vm(1), `tcp dport ${HTTP}`);
      try {
        await becomes(ground, "web1", { state: "down", cause: "probe" });
        await daemon!.logs(/VM web1 is down: GET \/: no answer in time/);
      } finally {
        await hear(vm(1));
      }
      await becomes(ground, "web1", { state: "up" });
    });
  });

  it.each(FAMILIES)("IPv%i: failed ICMP and TCP checks take VMs down, answered ones up", async (family) => {
    const tcp = `kind: tcp, port: ${ECHO}`;
    await start({ web1: own(1, "kind: icmp", family), web2: own(2, tcp, family), web3: own(3, tcp, family) });
    const names = ["web1", "web2", "web3"];
    for (const name of names) await becomes(ground, name, { state: "up", health: "up" });
    await deafen(vm(1), family === 4 ? "icmp type echo-request" : "icmpv6 type echo-request");
    await deafen(vm(2), `tcp dport ${ECHO}`);
    try {
      for (const name of ["web1", "web2"]) await becomes(ground, name, { state: "down", cause: "probe" });
      await daemon!.logs(/VM web1 is down: ICMP: no answer to the echo request/);
      await daemon!.logs(/VM web2 is down: TCP port 7: the connection did not come up in time/);
    } finally {
      for (const number of [1, 2]) await hear(vm(number));
    }
    for (const name of names) await becomes(ground, name, { state: "up", cause: null });
  });

  it("one that no longer answers for its address, or is asked for it by its check", async () => {
    const check = (number: number, family: 4 | 6) =>
      `mac: '${vm(number).mac}', check: { kind: neighbour, address: '${vm(number).address[family]}', ${TIMING} }`;
    await start({ web1: own(1), web2: own(2, "", 6), web3: check(3, 4), web4: check(4, 6) });
    const numbers = [1, 2, 3, 4];
    for (const number of numbers) {
      await becomes(ground, `web${number}`, { state: "up", health: "up", tap: `tap${number}` });
    }
    for (const number of numbers) await mute(vm(number));
    const why = [
      `nobody answers for ${vm(1).address[4]}`,
      `nobody answers for ${vm(2).address[6]}`,
      "neighbour: no answer to ARP",
      "neighbour: no answer to neighbour discovery",
    ];
    try {
      for (const number of numbers) {
        const cause = number < 3 ? "neighbour" : "probe";
        await becomes(ground, `web${number}`, { state: "down", cause });
        await daemon!.logs(new RegExp(`VM web${number} is down: ${why[number - 1]}`));
      }
    } finally {
      for (const number of numbers) await unmute(vm(number));
    }
    for (const number of numbers) await becomes(ground, `web${number}`, { state: "up", cause: null });
  });

  it("one whose tap goes down, is removed, and returns under another index", async () => {
    await start({ web1: own(1), web2: own(2, "kind: icmp") });
    for (const name of ["web1", "web2"]) await becomes(ground, name, { state: "up", health: "up" });
    for (const number of [1, 2]) {
      const { tap } = vm(number);
      const name = `web${number}`;
      await ground.site.host.ip(`link set dev ${tap} down`);
      await becomes(ground, name, { state: "down", cause: "interface" });
      await ground.site.host.ip(`link set dev ${tap} up`);
      await becomes(ground, name, { state: "up", cause: null });
      await ground.site.host.ip(`link del dev ${tap}`);
      await becomes(ground, name, { state: "down", cause: "interface" });
      expect(await upOf()).toBe(1);
      await replugTap(ground.site, vm(number), { unplugged: true });
      const { mac } = await becomes(ground, name, { state: "up", cause: null, tap });
      expect(mac).toBe(vm(number).mac);
      expect(await upOf()).toBe(2);
    }
  });

  it("one whose tap is gone gets nothing from that moment, whoever changes something else", async () => {
    const { lab, lasthop, site } = ground;
    await start({ web1: own(1), web2: own(2) });
    for (const name of ["web1", "web2"]) await becomes(ground, name, { state: "up" });
    const cells = () => lasthop.ask<Record<string, string>>("vmCells.mjs", lab.pinRoot);
    expect(await cells()).toEqual({ web1: "up", web2: "up" });
    // Another command that takes its time.
    const other = site.host.start(["flock", lab.pinRoot, "sh", "-c", "echo has it; cat"]);
    await other.writes(/has it/);
    await site.host.ip("link set dev tap1 down");
    await until(async () => (await cells()).web1 === "down", "its cell to say so");
    expect(await cells()).toEqual({ web1: "down", web2: "up" });
    // The entry has to wait.
    expect(await show(ground, "web1")).toMatchObject({ state: "up" });
    await other.stop();
    await becomes(ground, "web1", { state: "down", cause: "interface" });
    await site.host.ip("link set dev tap1 up");
    await becomes(ground, "web1", { state: "up" });
    expect(await cells()).toEqual({ web1: "up", web2: "up" });
  });

  it("the operator's word holds, whatever is observed, and is not forgotten", async () => {
    await start({ web1: own(1, "kind: icmp"), web2: own(2) });
    const { lasthop } = ground;
    for (const name of ["web1", "web2"]) await becomes(ground, name, { state: "up", health: "up" });
    await lasthop.must("vms", "drain", "web1");
    await lasthop.must("vms", "down", "web2");
    await daemon!.logs(/VM web1 is drained/);
    await daemon!.logs(/VM web2 is down: the operator took it down/);
    await sleep(1500);
    await daemon!.reload(config({ web1: own(1, "kind: icmp"), web2: own(2), web3: own(3) }));
    expect(await show(ground, "web1")).toMatchObject({
      state: "drain",
      cause: "operator",
      operator: "drain",
    });
    expect(await show(ground, "web2")).toMatchObject({ state: "down", cause: "operator", operator: "down" });
    await becomes(ground, "web3", { state: "up" });
    expect(await upOf()).toBe(1);
    // One that is drained and cannot be reached keeps nothing.
    await deafen(vm(1), "icmp type echo-request");
    await becomes(ground, "web1", { state: "down", cause: "probe", operator: "drain" });
    await hear(vm(1));
    await becomes(ground, "web1", { state: "drain", cause: "operator" });
    for (const name of ["web1", "web2"]) await lasthop.must("vms", "up", name);
    for (const name of ["web1", "web2"]) await becomes(ground, name, { state: "up", operator: null });
    expect(await upOf()).toBe(3);
  });

  it("one made by hand is followed within a second, and survives the daemon", async () => {
    const { lasthop } = ground;
    await start({ web1: own(1) });
    const check = `tcp:${ECHO}`;
    await lasthop.must(
      ...["vms", "add", "by-hand", "--tap", "tap2", "--address", vm(2).address[4]],
      ...["--check", check, "--check-interval", "0.2"],
    );
    try {
      await becomes(ground, "by-hand", { state: "up", health: "up", origin: "manual" });
      await deafen(vm(2), `tcp dport ${ECHO}`);
      await becomes(ground, "by-hand", { state: "down", cause: "probe" });
      await daemon!.stop();
      await start({ web1: own(1) });
      expect(await show(ground, "by-hand")).toMatchObject({
        state: "down",
        cause: "probe",
        origin: "manual",
      });
      await hear(vm(2));
      await becomes(ground, "by-hand", { state: "up" });
    } finally {
      await lasthop.must("vms", "remove", "by-hand");
    }
  });

  it("one that is known by its tap alone comes up with its first frame", async () => {
    const { site } = ground;
    await mute(vm(3), "egress");
    await site.host.must(["sh", "-c", "ip link set dev tap3 nomaster && ip link set dev tap3 master br"]);
    await start({ web3: "tap: tap3" });
    await becomes(ground, "web3", { state: "down", cause: "neighbour", mac: null });
    await unmute(vm(3));
    await vm(3).namespace.run(["ping", "-c", "1", "-W", "1", vm(1).address[4]]);
    expect(await becomes(ground, "web3", { state: "up" })).toMatchObject({ mac: vm(3).mac, tap: "tap3" });
  });

  it("one that cannot be asked is left alone, and told of once", async () => {
    const prefix = ["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw"];
    await start({ web1: own(1, "kind: icmp"), web2: own(2, "kind: icmp") }, { prefix });
    await daemon!.logs(/cannot be checked.*CAP_NET_RAW/);
    await sleep(1000);
    expect(daemon!.lines.filter((line) => line.includes("cannot be checked"))).toHaveLength(1);
    expect(await show(ground, "web1")).toMatchObject({ state: "up", health: "unknown" });
    // Nor does it stay down when its tap has gone and come back.
    await ground.site.host.ip("link set dev tap1 down");
    await becomes(ground, "web1", { state: "down", cause: "interface" });
    await ground.site.host.ip("link set dev tap1 up");
    await becomes(ground, "web1", { state: "up" });
  });
});
