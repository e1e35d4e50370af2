// SPDX-License-Identifier: Apache-2.0
// `plan` and `apply`: a host is brought to its configuration, once; what fails is as it was before.

import { readdirSync } from "node:fs";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { InterfaceStatus } from "../../src/ops/types.ts";
import { Configured, told } from "../support/configured.ts";
import { TC_HOOK } from "../support/kernel.ts";
import { Lab, type Namespace } from "../support/lab.ts";
import { Lasthop } from "../support/lasthop.ts";
import { repositoryPath } from "../support/paths.ts";
import { must } from "../support/run.ts";

let lab: Lab;
let host: Namespace;
let lasthop: Lasthop;
let configured: Configured;

beforeAll(async () => {
  lab = new Lab();
  host = lab.namespace("host");
  await must(["ip", "netns", "add", host.name]);
  await host.ip(
    "link set lo up",
    "link add br0 type bridge",
    "link set br0 up",
    ...["up0", "up1", "vnet0", "vnet1", "other"].flatMap(makeVeth),
    "link set vnet0 master br0",
  );
  lasthop = await Lasthop.on(lab, host);
  configured = new Configured(lasthop);
});
afterEach(() => lasthop.must("detach", "--all", "--purge"));
afterAll(async () => {
  configured?.close();
  await lab?.close();
});

function makeVeth(name: string): string[] {
  return [`link add ${name} type veth peer name p-${name}`, `link set ${name} up`, `link set p-${name} up`];
}

const BOTH = "{uplinks: [{name: 'up?'}], taps: [{name: 'vnet?'}]}";

async function interfaces(): Promise<Record<string, InterfaceStatus>> {
  const { interfaces } = await lasthop.status();
  return Object.fromEntries(interfaces.map((item) => [item.interface, item]));
}

describe("two uplinks and taps by pattern", () => {
  it("are attached by the first apply; the second does nothing, and plan says so all the while", async () => {
    const before = await configured.plan(BOTH);
    expect(before.status).toBe(3);
    expect(told(before)).toEqual([
      `create-instance ${lab.pinRoot}`,
      "zone zone 0",
      "attach up0",
      "attach up1",
      "attach vnet0",
      "attach vnet1",
    ]);
    // Nothing was changed.
    expect(readdirSync("/sys/fs/bpf")).not.toContain(lab.id);

    const first = await configured.apply(BOTH);
    expect(first).toMatchObject({ status: 0, failed: [], warnings: [] });
    expect(told(first)).toEqual(told(before));
    expect(first.done.filter((line) => line.includes(`attached by ${TC_HOOK}`))).toHaveLength(4);
    const attached = await interfaces();
    expect(Object.keys(attached).sort()).toEqual(["up0", "up1", "vnet0", "vnet1"]);
    for (const item of Object.values(attached)) expect(item).toMatchObject({ state: "ok", hook: TC_HOOK });

    expect(await configured.apply(BOTH)).toMatchObject({ status: 0, actions: [], done: [] });
    expect(await configured.plan(BOTH)).toMatchObject({ status: 0, actions: [] });
    expect(await interfaces()).toEqual(attached);
    expect((await configured.run("plan", BOTH)).stdout).toBe("nothing to do\n");
  });

  it("are changed and detached as the configuration is", async () => {
    await configured.apply(BOTH);
    const text =
      "{zones: {red: 7}, uplinks: [{name: up0, zone: red}], taps: [{name: vnet1, policy: observe}]}";
    const planned = await configured.run("plan", text);
    expect(planned).toMatchObject({ status: 3, stderr: "" });
    expect(planned.stdout.split("\n")).toEqual(
      expect.arrayContaining([
        "up0: zone 7 instead of 0 (uplinks[0])",
        "vnet1: policy observe (taps[0])",
        "up1: detach (uplinks[0])",
        "br0: no tap is on it any more",
      ]),
    );
    expect(told(await configured.apply(text))).toEqual([
      "zone zone 7",
      "change up0",
      "change vnet1",
      "detach up1",
      "detach vnet0",
      "bridge br0",
    ]);
    const now = await interfaces();
    expect(Object.keys(now).sort()).toEqual(["up0", "vnet1"]);
    expect(now).toMatchObject({ up0: { zone: 7 }, vnet1: { policy: "observe", zone: 0 } });
    expect(await host.must(["bpftool", "net", "show", "dev", "up1"])).not.toContain("learn_");
    expect((await configured.plan(text)).status).toBe(0);
  });

  it("keep their place when the configuration comes and goes", async () => {
    await configured.apply(BOTH);
    const before = await interfaces();
    await configured.apply("uplinks: []");
    expect(await interfaces()).toEqual({});
    await configured.apply(BOTH);
    expect(await interfaces()).toEqual(before);
  });
});

describe("what cannot be", () => {
  it("is refused with its reason while the rest is done", async () => {
    const text = "{uplinks: [{name: up0, mode: native}, {name: lo}], taps: [{name: vnet0}]}";
    const planned = await configured.plan(text);
    expect(planned.status).toBe(1);
    const report = await configured.apply(text);
    expect(report.status).toBe(1);
    expect(report.failed).toEqual(planned.failed);
    expect(report.failed).toEqual([
      expect.objectContaining({ object: "lo", config: "uplinks[1]", code: "E_INTERFACE" }),
      expect.objectContaining({ object: "up0", config: "uplinks[0]", code: "E_MODE" }),
    ]);
    expect(Object.keys(await interfaces())).toEqual(["vnet0"]);
    const output = await configured.run("apply", text);
    expect(output).toMatchObject({ status: 1, stdout: "nothing to do\n" });
    expect(output.stderr).toMatch(/uplinks\[0\]: cannot attach up0 in mode native.*\n {2}Turn it off with/);
  });

  it("is said of a file that is wrong, before anything is touched", async () => {
    const output = await configured.run("apply", "uplinks: [{nam: up0}]");
    expect(output.status).toBe(1);
    expect(output.stderr).toMatch(/nam/);
    expect(readdirSync("/sys/fs/bpf")).not.toContain(lab.id);
    const missing = await lasthop.run("--json", "plan", "--config", "/nonexistent.yaml");
    expect(JSON.parse(missing.stderr)).toMatchObject({ code: "E_CONFIG" });
  });

  it("is said of interfaces that match twice, of which the first entry has them", async () => {
    const text = "{uplinks: [{name: 'up?'}], taps: [{name: '?p0'}]}";
    const report = await configured.apply(text);
    expect(report.warnings).toEqual([expect.stringContaining("up0 matches uplinks[0] and taps[0]")]);
    expect((await interfaces()).up0).toMatchObject({ role: "uplink" });
    expect((await configured.run("apply", text)).stderr).toContain("warning: up0 matches");
  });
});

describe("plan warns", () => {
  it("of filters that replies would go past", async () => {
    const rules = `table bridge guard {
      chain fw { type filter hook forward priority 0; policy accept; ip protocol tcp drop
      }
    }`;
    await host.ip("link set up0 master br0");
    await host.must(["nft", "-f", "-"], { input: rules });
    try {
      const { warnings } = await configured.plan(BOTH);
      expect(warnings.join("\n")).toContain("bridge guard fw");
      expect((await configured.plan("uplinks: [{name: up0}]")).warnings).toEqual([]);
      expect((await configured.plan(BOTH.replace("'vnet?'", "'vnet?', policy: observe"))).warnings).toEqual(
        [],
      );
    } finally {
      await host.must(["nft", "flush", "ruleset"]);
      await host.ip("link set up0 nomaster");
    }
  });
});

describe("taps are found", () => {
  it("by the guest's MAC in the tap's own, and by the bridge that knows it there", async () => {
    await host.ip("link set vnet1 address fe:54:00:00:00:21");
    await host.must(["bridge", "fdb", "add", "52:54:00:00:00:22", "dev", "vnet0", "master", "static"]);
    const text =
      'taps: [{guest_mac: "52:54:00:00:00:21"}, {guest_mac: "52:54:00:00:00:22", policy: observe}]';
    expect((await configured.apply(text)).failed).toEqual([]);
    expect(await interfaces()).toMatchObject({ vnet1: { policy: "enforce" }, vnet0: { policy: "observe" } });
    // The bridge forgets a guest that is silent; it is known here by now.
    await host.must(["bridge", "fdb", "del", "52:54:00:00:00:22", "dev", "vnet0", "master"]);
    expect(await configured.plan(text)).toMatchObject({ status: 0, actions: [] });
  });

  it("by libvirt's domain", async () => {
    const directory = `${configured.file}.d`;
    const status = `<domstatus><domain type='kvm' id='1'><name>web</name><devices>
      <interface type='bridge'><mac address='52:54:00:00:00:31'/><target dev='other'/></interface>
      </devices></domain></domstatus>`;
    await must(["sh", "-c", `mkdir -p ${directory} && cat > ${directory}/web.xml`], { input: status });
    configured.write("taps: [{domain: web}, {domain: off}]");
    const output = await host.run([
      "env",
      `LASTHOP_LIBVIRT=${directory}`,
      ...lasthop.argv("apply", "-c", configured.file),
    ]);
    expect(output).toMatchObject({ status: 0, stderr: "" });
    expect(Object.keys(await interfaces())).toEqual(["other"]);
  });
});

interface FaultReport {
  scenario: string;
  actions: string[];
  steps: number;
  differences: unknown[];
  left: string[];
}

describe("every step that fails", () => {
  it("leaves everything as it was, whatever was to be done", async () => {
    const other = new Lab();
    const output = await (async () => {
      try {
        const faulty = other.namespace("faults");
        await must(["ip", "netns", "add", faulty.name]);
        const program = repositoryPath("test/support/faults.mjs");
        return await faulty.run([process.execPath, program, other.pinRoot], { timeoutMs: 120_000 });
      } finally {
        await other.close();
      }
    })();
    expect(output).toMatchObject({ status: 0, stderr: "" });
    const reports = output.stdout
      .split("\n")
      .filter(Boolean)
      .map((line) => JSON.parse(line) as FaultReport);
    for (const { scenario, steps, differences, left } of reports) {
      expect({ scenario, differences, left }).toEqual({ scenario, differences: [], left: [] });
      expect(steps, scenario).toBeGreaterThan(0);
    }
    // Every kind of action that is not for a kernel or a build of another time.
    const kinds = new Set(reports.flatMap(({ actions }) => actions));
    expect([...kinds].sort()).toEqual([
      "attach",
      "bridge",
      "change",
      "control",
      "detach",
      "device-add",
      "device-change",
      "device-remove",
      "gone",
      "last-hops",
      "zone",
    ]);
  });
});
