// SPDX-License-Identifier: Apache-2.0
// A daemon, a real Prometheus that scrapes it with the examples' rules, and queries by its HTTP API.

import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parse } from "yaml";
import { cleanUpDaemons, Daemon } from "../support/daemon.ts";
import { FAMILIES, useSite } from "../support/fixture.ts";
import { repositoryPath } from "../support/paths.ts";
import { type Background, must, run, until } from "../support/run.ts";

cleanUpDaemons();

const example = (name: string) => repositoryPath(`examples/${name}`);
const RULES = example("alerts.yaml");

describe("promtool", () => {
  it.each([
    ["check", "rules", RULES],
    ["test", "rules", example("alerts.test.yaml")],
    ["check", "config", example("prometheus.yaml")],
  ])("%s %s %s", async (...args) => {
    const { status, stdout, stderr } = await run(["promtool", ...args]);
    expect({ status, output: stdout + stderr }).toEqual({
      status: 0,
      output: expect.stringContaining("SUCCESS"),
    });
  });

  it("finds what is wrong with a test that does not hold", async () => {
    const directory = mkdtempSync(join(tmpdir(), `lasthop-promtool-${process.pid}-`));
    try {
      const tests = readFileSync(example("alerts.test.yaml"), "utf8");
      const wrong = tests.replace("- alerts.yaml", `- ${RULES}`).replace(/severity: \w+/, "severity: none");
      writeFileSync(join(directory, "wrong.yaml"), wrong);
      expect((await run(["promtool", "test", "rules", join(directory, "wrong.yaml")])).status).toBe(1);
    } finally {
      rmSync(directory, { recursive: true });
    }
  });
});

interface Sample {
  metric: Record<string, string>;
  value: [time: number, value: string];
}

describe("Prometheus", () => {
  // Its own network namespace has the default port free.
  const address = "127.0.0.1:9090";
  const ground = useSite({ host: "bridged" });
  let directory: string;
  let daemon: Daemon;
  let prometheus: Background;

  async function api<T>(path: string, query: Record<string, string> = {}): Promise<T> {
    const values = Object.entries(query).flatMap(([key, value]) => ["--data-urlencode", `${key}=${value}`]);
    const text = await ground.site.host.must([
      ...["curl", "-sS", "--noproxy", "*", "-G", `http://${address}/api/v1/${path}`],
      ...values,
    ]);
    const answer = JSON.parse(text) as { status: string; data: T; error?: string };
    if (answer.status !== "success") throw new Error(`${path} ${JSON.stringify(query)}: ${answer.error}`);
    return answer.data;
  }

  const query = async (expr: string) => (await api<{ result: Sample[] }>("query", { query: expr })).result;
  const value = async (expr: string) => Number((await query(expr))[0]?.value[1]);

  beforeAll(async () => {
    const { site } = ground;
    const devices = [site.a, site.b].map(
      ({ mac }, place) => `{ name: fw-${"ab"[place]}, macs: ["${mac}"], on_down: hold }`,
    );
    const sweep = "sweep: { interval_min_seconds: 1, interval_max_seconds: 1 }";
    const config = `uplinks: [{ name: 'up*' }]\ntaps: [{ name: 'tap*' }]\ndevices: [${devices}]\n${sweep}\n`;
    daemon = await Daemon.start(ground, config);
    directory = mkdtempSync(join(tmpdir(), `lasthop-prometheus-${process.pid}-`));
    writeFileSync(join(directory, "prometheus.yml"), scrapeEverySecond());
    mkdirSync(join(directory, "data"));
    prometheus = site.host.start([
      "prometheus",
      `--config.file=${join(directory, "prometheus.yml")}`,
      `--storage.tsdb.path=${join(directory, "data")}`,
      `--web.listen-address=${address}`,
    ]);
    await prometheus.writes(/Server is ready to receive web requests/, "stderr", 30_000);
  });

  afterAll(async () => {
    await prometheus?.stop("SIGKILL");
    await daemon?.stop();
    if (directory !== undefined) rmSync(directory, { recursive: true });
  });

  /** That of the examples, as it is but for its pace and the place of the rules. */
  function scrapeEverySecond(): string {
    const text = readFileSync(example("prometheus.yaml"), "utf8");
    const hurried = text.replaceAll("interval: 15s", "interval: 1s").replace("- alerts.yaml", `- ${RULES}`);
    expect(hurried.match(/interval: 1s/g)?.length).toBe(2);
    return hurried;
  }

  it("scrapes the endpoint, in the format that it prefers", async () => {
    await until(async () => (await value('up{job="lasthop"}')) === 1, "Prometheus to scrape");
    const { activeTargets } = await api<{ activeTargets: { lastError: string; health: string }[] }>(
      "targets",
    );
    expect(activeTargets).toMatchObject([{ lastError: "", health: "up" }]);
    expect(await query("scrape_samples_scraped > 300")).toHaveLength(1);
    const text = await daemon.scrape();
    expect(await must(["promtool", "check", "metrics"], { input: text })).toBe("");
  });

  it("has the packets, the flows and the devices' traffic as lasthop has them", async () => {
    const { site, lasthop } = ground;
    for (const family of FAMILIES) {
      const key = `prometheus${family}`;
      await site.client.agent.call("open", { key, host: site.vm.address[family], port: 7 });
      await site.client.agent.call("echo", { key, bytes: 50_000 });
    }
    const redirected = await lasthop.packets("redirect");
    expect(redirected).toBeGreaterThan(0);
    await until(
      async () => (await value('sum(lasthop_packets_total{reason="redirect", role="tap"})')) === redirected,
      "Prometheus to have the packets",
    );
    const established = (await lasthop.flows("--state", "established")).length;
    expect(established).toBeGreaterThanOrEqual(2);
    await until(
      async () =>
        (await value('sum(lasthop_flows{tier="established", state="established"})')) === established,
      "Prometheus to have the flows",
    );
    await until(
      async () => (await value('lasthop_device_flows{device="fw-a"}')) === established,
      "a's flows",
    );
    expect(await value('lasthop_device_reply_packets_total{device="fw-a"}')).toBe(redirected);
    expect(await value('lasthop_device_flows{device="fw-b"}')).toBe(0);
    expect(await value("sum(lasthop_device_up)")).toBe(2);
    expect(await value("lasthop_daemon_running")).toBe(1);
    expect(await value('increase(lasthop_packets_total{reason="error"}[1m]) > 0')).toBeNaN();
  });

  it("takes every query of the dashboard", async () => {
    const dashboard = JSON.parse(readFileSync(example("grafana-dashboard.json"), "utf8")) as {
      panels: { title: string; targets?: { expr: string }[] }[];
      annotations: { list: { expr: string }[] };
    };
    const queries = [
      ...dashboard.panels.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr)),
      ...dashboard.annotations.list.map(({ expr }) => expr),
    ].map((expr) => expr.replaceAll("$__rate_interval", "1m").replaceAll("$instance", ".*"));
    let answered = 0;
    for (const expr of queries) if ((await query(expr)).length > 0) answered++;
    // Some have nothing to show where nothing is wrong, and no device is probed.
    expect(answered).toBeGreaterThan(queries.length / 2);
  });

  it("has loaded the alert rules, and no alert is pending; when the daemon goes, one is", async () => {
    const { groups: wanted } = parse(readFileSync(RULES, "utf8")) as {
      groups: { rules: { alert: string }[] }[];
    };
    const rules = async () =>
      (await api<{ groups: { rules: LoadedRule[] }[] }>("rules")).groups.flatMap(loaded);
    const names = wanted.flatMap((group) => group.rules.map(({ alert }) => alert));
    expect((await rules()).map(({ name }) => name).sort()).toEqual(names.sort());
    await until(
      async () => (await rules()).every(({ health }) => health === "ok"),
      "every rule to be evaluated",
    );
    const alerts = async () => {
      const found = await api<{ alerts: { labels: { alertname: string } }[] }>("alerts");
      return found.alerts.map(({ labels }) => labels.alertname);
    };
    expect(await alerts()).toEqual([]);
    await daemon.stop();
    await until(async () => (await alerts()).includes("LasthopDaemonAbsent"), "the alert");
  });
});

interface LoadedRule {
  name: string;
  health: string;
}

const loaded = (group: { rules: LoadedRule[] }) => group.rules;
