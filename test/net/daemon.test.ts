// SPDX-License-Identifier: Apache-2.0
// `lasthop run` from the outside: start, traffic, reload, signals, stop, and being killed at any moment.

import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import {
  attachedOnce,
  cleanUpDaemons,
  Daemon,
  type DaemonOptions,
  programsOn,
  WHOLE_SITE,
} from "../support/daemon.ts";
import { DatagramListener } from "../support/datagrams.ts";
import { FAMILIES, type Ground, useSite } from "../support/fixture.ts";
import { sleep, until } from "../support/run.ts";

cleanUpDaemons();

const daemons: Daemon[] = [];
async function start(ground: Ground, config = WHOLE_SITE, options: DaemonOptions = {}): Promise<Daemon> {
  const daemon = Daemon.launch(ground, config, options);
  daemons.push(daemon);
  await daemon.started();
  return daemon;
}
afterEach(async () => {
  for (const daemon of daemons.splice(0)) await daemon.stop();
});

/** New connections and datagrams of both families go by firewall a both ways: b sees nothing. */
async function expectSymmetric({ site }: Ground, name: string): Promise<void> {
  await site.resetCounts();
  for (const family of FAMILIES) {
    const key = `${name}${family}`;
    await site.client.agent.call("open", { key, host: site.vm.address[family], port: 7 });
    await site.client.agent.call("echo", { key });
    await site.client.agent.call("close", { key });
  }
  expect((await site.b.counts()).packets("dropped")).toBe(0);
  expect((await site.a.counts()).packets("carried", { direction: "reply" })).toBeGreaterThan(0);
}

describe.each(["bridged", "routed"] as const)("on a %s host", (host) => {
  const ground = useSite({ host });

  it("attaches what is configured; traffic goes right, also when it has stopped; with --detach-on-exit it is gone", async () => {
    const { site, lasthop } = ground;
    const daemon = await start(ground);
    await expectSymmetric(ground, "running");
    expect((await lasthop.status()).interfaces.map((one) => one.interface).sort()).toEqual(
      [...site.uplinks, ...site.taps].sort(),
    );
    expect(await daemon.stop()).toBe(0);
    await expectSymmetric(ground, "stopped");
    const last = await start(ground, WHOLE_SITE, { flags: ["--detach-on-exit"] });
    expect(await last.stop()).toBe(0);
    const devices = [...site.uplinks, ...site.taps];
    expect(await programsOn(ground, devices)).toEqual(devices.map(() => []));
  });

  it("counts its starts, and does nothing when all is as configured", async () => {
    const first = await start(ground);
    expect(first.lines.at(-1)).toMatch(/ starts=3 /);
    await first.stop();
    const second = await start(ground);
    expect(second.lines).toEqual([expect.stringMatching(/^lasthop: info: started .* starts=4 /)]);
  });
});

describe("a second daemon", () => {
  const ground = useSite({ vms: 1 });

  it("is refused, until the first has ended, however it did", async () => {
    const first = await start(ground);
    const second = Daemon.launch(ground, WHOLE_SITE);
    expect(await second.process.exited).toBe(1);
    expect(second.process.stderr).toMatch(/another `lasthop run` holds/);
    await first.kill();
    const third = await start(ground);
    await expectSymmetric(ground, "third");
    await third.stop();
    expect(existsSync(join(ground.lab.pinRoot, "daemon"))).toBe(false);
  });
});

describe("while it runs", () => {
  const ground = useSite({});

  it("what is configured cannot be changed by hand; what was made by hand stays, whatever is reloaded", async () => {
    const { site, lasthop } = ground;
    const [tap1, tap2] = site.taps as [string, string];
    const config = `uplinks: [{ name: 'up*' }]\ntaps: [{ name: ${tap1} }]\n`;
    const daemon = await start(ground, config);
    for (const args of [
      ["detach", tap1],
      ["attach", tap1, "--role", "tap", "--zone", "3"],
      ["detach", "--all", "--purge"],
    ]) {
      const refused = await lasthop.run("--json", ...args);
      expect(refused.status, args.join(" ")).toBe(1);
      expect(JSON.parse(refused.stderr.trim().split("\n").at(-1)!), args.join(" ")).toMatchObject({
        code: "E_HELD",
      });
    }
    expect((await lasthop.run("detach", tap1)).stderr).toContain("taps[0]");
    await lasthop.attach(tap2, "tap", { policy: "observe" });
    await daemon.reload(config);
    await daemon.stop();
    await start(ground, config);
    const { interfaces } = await lasthop.status();
    expect(interfaces.find((one) => one.interface === tap2)).toMatchObject({
      policy: "observe",
      state: "ok",
    });
  });
});

describe("what the programs notice", () => {
  const ground = useSite({ vms: 1 });

  it("is a line each: last hops, VMs, and a budget that is used up, once", async () => {
    const { site } = ground;
    const { client, vm, a } = site;
    const daemon = await start(
      ground,
      "uplinks: [{ name: 'up*', last_hops_max: 1 }]\ntaps: [{ name: 'tap*' }]\n",
    );
    const ask = () =>
      client.agent.failure("udp", { host: vm.address[4], port: 7, text: "x", timeoutMs: 300 });
    await ask();
    await daemon.logs(new RegExp(`info: new last hop interface=up-a mac=${a.mac} zone=0`));
    await a.namespace.ip("link set dev in address 02:00:00:00:0f:77");
    for (let round = 0; round < 3; round++) await ask();
    await daemon.logs(/warning: a last hop was not learned: .* interface=up-a mac=02:00:00:00:0f:77/);
    await a.namespace.ip(`link set dev in address ${a.mac}`);
    const other = "02:00:00:00:0e:99";
    await vm.namespace.ip(`link set dev eth0 address ${other}`);
    await ask();
    await daemon.logs(new RegExp(`info: new VM interface=tap1 mac=${other} zone=0`));
    expect(daemon.lines.filter((line) => line.includes("was not learned"))).toHaveLength(1);
    expect(await daemon.metric("lasthop_notices_total", 'kind="last_hop_budget"')).toBeGreaterThan(0);
    expect(await daemon.metric("lasthop_notices_total", 'kind="last_hop"')).toBe(1);
    await vm.namespace.ip(`link set dev eth0 address ${vm.mac}`);
  });
});

describe("a configuration that is reloaded", () => {
  const ground = useSite({ vms: 2 });

  it("changes what differs; a wrong one changes nothing and has a line for each problem", async () => {
    const { site, lasthop } = ground;
    const daemon = await start(ground);
    const policies = async () =>
      (await lasthop.status()).interfaces.filter((one) => one.role === "tap").map((one) => one.policy);
    expect(await policies()).toEqual(["enforce", "enforce"]);

    const observed = "uplinks: [{ name: 'up*' }]\ntaps: [{ name: tap1, policy: observe }, { name: tap2 }]\n";
    await daemon.reload(observed);
    expect(await policies()).toEqual(["observe", "enforce"]);

    const lines = await daemon.reload(
      "uplinks: [{ nam: eth0 }]\ntaps: [{ name: tap1, policy: sometimes }]\n",
    );
    await until(() => daemon.lines.length >= 2, "the problems");
    expect(lines.concat(daemon.lines).join("\n")).toMatch(/the one before stays in force/);
    await daemon.logs(/:1:\d+: .*nam/);
    await daemon.logs(/:2:\d+: .*policy/);
    expect(await policies()).toEqual(["observe", "enforce"]);
    expect(await daemon.metric("lasthop_reloads_total", 'result="error"')).toBe(1);

    await daemon.reload("uplinks: [{ name: 'up*' }]\ntaps: [{ name: tap1 }]\n");
    expect(await policies()).toEqual(["enforce"]);
    expect(await programsOn(ground, site.taps)).toEqual([[expect.any(Number)], []]);
  });

  it("may have tables of another size: the flows stay, and nothing of the old tables is held", async () => {
    const { site, lasthop } = ground;
    const daemon = await start(ground);
    for (const family of FAMILIES) {
      await site.client.agent.call("open", { key: `size${family}`, host: site.vm.address[family], port: 7 });
      await site.client.agent.call("startEchoing", { key: `size${family}` });
    }
    await until(async () => (await lasthop.flows()).length >= 2, "the flows");
    const maps = () => daemon.descriptors().get("anon_inode:bpf-map");
    const before = maps();
    for (const entries of [4096, 1_048_576]) {
      await daemon.reload(`${WHOLE_SITE}tables: { flows4: ${entries} }\n`);
      const { tables } = await lasthop.status();
      expect(tables.find((one) => one.table === "flows4")?.max_entries).toBe(entries);
      const size = () => daemon.metric("lasthop_table_size", 'table="flows4"');
      await until(async () => (await size()) === entries, "the daemon to have the new tables");
      await until(() => maps() === before, "the old ones to be closed");
    }
    for (const family of FAMILIES) {
      const key = `size${family}`;
      expect((await site.client.agent.call("stopEchoing", { key })).error).toBeNull();
      await site.client.agent.call("close", { key });
    }
    expect(daemon.lines.join("\n")).not.toContain("pinned again");
  });

  it("logs in detail on SIGUSR1, and as before on SIGUSR2", async () => {
    const sweeping = "sweep: { interval_min_seconds: 1, interval_max_seconds: 1 }\n";
    const daemon = await start(ground, `${WHOLE_SITE}${sweeping}`);
    daemon.signal("SIGUSR1");
    await daemon.logs(/log level changed level=debug/);
    await daemon.logs(/debug: expiry pass/);
    daemon.signal("SIGUSR2");
    await daemon.logs(/log level changed level=info/);
    const since = daemon.mark();
    await sleep(1500);
    expect(since()).toEqual([]);
  });
});

describe("systemd", () => {
  const ground = useSite({ vms: 1 });

  it("is told when all is attached, on reload and at the end, and that the daemon is alive", async () => {
    // An abstract name would be one of this network namespace.
    const name = join(mkdtempSync(join(tmpdir(), "lasthop-notify-")), "socket");
    const listener = await DatagramListener.on(name);
    try {
      const daemon = Daemon.launch(ground, WHOLE_SITE, {
        prefix: ["env", `NOTIFY_SOCKET=${name}`, "WATCHDOG_USEC=200000"],
      });
      daemons.push(daemon);
      await listener.hears(/^READY=1\nSTATUS=3 interfaces attached\n/, 30_000);
      await attachedOnce(ground, [...ground.site.uplinks, ...ground.site.taps]);
      await listener.hears(/^WATCHDOG=1\n/);
      await daemon.reload("uplinks: [{ name: up-a }]\n");
      await listener.hears(/^RELOADING=1\nMONOTONIC_USEC=\d+\n/);
      await listener.hears(/^READY=1\nSTATUS=1 interfaces attached\n/);
      await daemon.stop();
      await listener.hears(/^STOPPING=1\n/);
    } finally {
      await listener.close();
      rmSync(dirname(name), { recursive: true });
    }
  });
});

describe("when nothing happens", () => {
  const ground = useSite({});

  it("writes nothing, whatever goes on that is not its business", async () => {
    const { site } = ground;
    const often = "sweep: { interval_min_seconds: 1, interval_max_seconds: 1 }\n";
    const daemon = await start(ground, WHOLE_SITE + often);
    await expectSymmetric(ground, "before");
    // What the first frames brought up has been told.
    await sleep(500);
    const since = daemon.mark();
    const reconciled = await daemon.metric("lasthop_reconciles_total");
    await expectSymmetric(ground, "quiet");
    const neighbours = Array.from({ length: 100 }, (_, at) => `192.0.2.${at + 1} lladdr 02:00:00:00:99:01`);
    for (const verb of ["replace", "del"]) {
      await site.host.ip(...neighbours.map((neighbour) => `neigh ${verb} ${neighbour} dev up-a`));
    }
    await site.host.ip("link add unrelated type veth peer name related", "link del unrelated");
    const swept = await daemon.metric("lasthop_sweep_duration_seconds_count");
    await until(
      async () => (await daemon.metric("lasthop_sweep_duration_seconds_count")) > swept + 2,
      "sweeps",
    );
    expect(since()).toEqual([]);
    // The links that came and went, not the neighbours.
    expect((await daemon.metric("lasthop_reconciles_total")) - reconciled).toBeLessThan(10);
  });
});

describe("killed at any moment", () => {
  const ground = useSite({ vms: 1 });
  const ROUNDS = 20;

  it("and started again: no packet is lost, no program is there twice, every flow is", {
    timeout: 120_000,
  }, async () => {
    const { site, lasthop } = ground;
    await (await start(ground)).stop();
    const devices = [...site.uplinks, ...site.taps];
    const keys = FAMILIES.map((family) => `kill${family}`);
    for (const family of FAMILIES) {
      const key = `kill${family}`;
      await site.client.agent.call("open", { key, host: site.vm.address[family], port: 7 });
      await site.client.agent.call("startEchoing", { key });
    }
    const flows = async () =>
      (await lasthop.flows()).map((flow) => `${flow.remote_address} ${flow.remote_port}`).sort();
    await until(async () => (await flows()).length >= 2, "the flows");
    const before = await flows();
    await site.resetCounts();
    const ids = (await lasthop.status()).interfaces.map((one) => one.program_id);
    for (let round = 0; round < ROUNDS; round++) {
      // Each time with another policy, so that there is something to change.
      const policy = round % 2 === 0 ? "vms_max: 100" : "vms_max: 200";
      const daemon = Daemon.launch(
        ground,
        `uplinks: [{ name: 'up*' }]\ntaps: [{ name: 'tap*', ${policy} }]\n`,
      );
      await sleep(Math.random() * 1200);
      await daemon.kill();
    }
    await start(ground);
    await attachedOnce(ground, devices);
    expect(await flows()).toEqual(expect.arrayContaining(before));
    expect((await lasthop.status()).interfaces.map((one) => one.program_id)).toEqual(ids);
    for (const key of keys) {
      const echo = await site.client.agent.call("stopEchoing", { key });
      expect(echo.error).toBeNull();
      expect(echo.rounds).toBeGreaterThan(100);
      await site.client.agent.call("close", { key });
    }
    // A reply that was not sent back would have gone there.
    expect((await site.b.counts()).packets("dropped")).toBe(0);
  });

  it("also when it had attached nothing yet", { timeout: 120_000 }, async () => {
    const { lasthop, site } = ground;
    for (const daemon of daemons.splice(0)) await daemon.stop();
    for (let round = 0; round < 6; round++) {
      await lasthop.detachAll();
      const daemon = Daemon.launch(ground, WHOLE_SITE);
      await sleep(300 + Math.random() * 900);
      await daemon.kill();
      const next = await start(ground);
      await attachedOnce(ground, [...site.uplinks, ...site.taps]);
      expect((await lasthop.status()).interfaces.every((one) => one.state === "ok")).toBe(true);
      await next.stop();
    }
    await start(ground);
    await expectSymmetric(ground, "after");
  });
});
