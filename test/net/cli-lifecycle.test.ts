// SPDX-License-Identifier: Apache-2.0
// Every command on a small site with live flows: what programs read (JSON), what people read, how it ends.

import { readdirSync } from "node:fs";
import { beforeAll, describe, expect, it } from "vitest";
import type { DoctorReport, Explanation, FlowEntry, StatusReport, SweepReport } from "../../src/ops/types.ts";
import { attachAll, bracket, FAMILIES, useSite } from "../support/fixture.ts";
import { BPFFS } from "../support/lab.ts";
import { Lasthop } from "../support/lasthop.ts";
import { run, until } from "../support/run.ts";

const ground = useSite({ host: "bridged", clients: 1, vms: 1 }, attachAll);

const FLOWS = 2_000;

const keysOf = (value: object) => Object.keys(value).sort();

beforeAll(async () => {
  const { site, lasthop } = ground;
  for (const family of FAMILIES) {
    await site.client.agent.call("open", { key: `open${family}`, host: site.vm.address[family], port: 7 });
    await site.client.agent.call("echo", { key: `open${family}` });
  }
  // Many requests without an answer: embryos.
  const script = `for port in $(seq 20001 ${20_000 + FLOWS}); do echo x >/dev/udp/${site.vm.address[4]}/$port; done`;
  await site.client.namespace.must(["bash", "-c", script]);
  await until(
    async () => (await lasthop.flows("--limit", String(FLOWS))).length >= FLOWS,
    "the flows to be learned",
  );
});

/** A shell pipeline in the host's namespace, whose status is that of its first part. */
function pipeline(argv: string[], rest: string) {
  const { site } = ground;
  return run([...site.host.prefix, "bash", "-c", `"$@" | ${rest}; exit \${PIPESTATUS[0]}`, "bash", ...argv]);
}

describe("JSON", () => {
  it("of status", async () => {
    const report = await ground.lasthop.json<StatusReport>("status");
    expect(keysOf(report)).toEqual([
      "abi",
      "bypass",
      "interfaces",
      "last_pass",
      "pin_path",
      "programs",
      "services",
      "tables",
      "tiers",
      "vms",
    ]);
    const { site, lab } = ground;
    expect(report.pin_path.startsWith(`${lab.pinRoot}/v`)).toBe(true);
    expect(report.interfaces.map((item) => [item.interface, item.role, item.state]).sort()).toEqual(
      [
        ...site.uplinks.map((name) => [name, "uplink", "ok"]),
        ...site.taps.map((name) => [name, "tap", "ok"]),
      ].sort(),
    );
    for (const item of report.interfaces) {
      const ofUplinks = item.role === "uplink" ? ["clamp_mss", "mark", "mtu", "via"] : [];
      expect(keysOf(item)).toEqual(
        [
          ...["beneath", "foreign_program_ids", "hook", "ifindex", "interface", "link_layer", "policy"],
          ...["program_id", "role", "shared_tunnel", "state", "zone", ...ofUplinks],
        ].sort(),
      );
    }
    const names = report.tables.map((table) => table.table);
    for (const name of ["flows4", "flows6", "embryos4", "embryos6"]) expect(names).toContain(name);
    const fill = (name: string) => report.tables.find((table) => table.table === name)!.entries;
    expect(fill("flows4")).toBeGreaterThanOrEqual(1);
    expect(fill("embryos4")).toBeGreaterThanOrEqual(FLOWS);
  });

  it("of flows list: one object a line, each flow once", async () => {
    const flows = await ground.lasthop.flows();
    expect(flows.length).toBeGreaterThanOrEqual(FLOWS + 2);
    const names = flows.map((flow) =>
      [
        flow.protocol,
        flow.zone,
        flow.remote_address,
        flow.remote_port,
        flow.local_address,
        flow.local_port,
        flow.icmp_id,
      ].join(),
    );
    expect(new Set(names).size).toBe(names.length);
    for (const flow of flows) {
      expect(Object.keys(flow)).toEqual([
        "protocol",
        "zone",
        "remote_address",
        "remote_port",
        "local_address",
        "local_port",
        "icmp_id",
        "tier",
        "state",
        "origin",
        "flags",
        "last_hop",
        "stale",
        "vm",
        "vm_mac",
        "idle_seconds",
      ]);
    }
  });

  it("of flows list takes filters and a limit", async () => {
    const { site, lasthop } = ground;
    expect(await lasthop.flows("--limit", "7")).toHaveLength(7);
    const established = await lasthop.flows("--state", "established", "--address", site.client.address[6]);
    expect(established.map((flow) => [flow.tier, flow.local_address])).toEqual([
      ["established", site.vm.address[6]],
    ]);
    expect(await lasthop.flows("--device-mac", site.b.mac)).toEqual([]);
    expect(await lasthop.flows("--zone", "9")).toEqual([]);
    const count = (await lasthop.flows()).length;
    expect(await lasthop.flows("--device-mac", site.a.mac.toUpperCase())).toHaveLength(count);
    expect(await lasthop.flows("--interface", site.uplinkOf("a"))).toHaveLength(count);
  });

  it("of last-hops list, stats, explain, sweep, bypass, doctor", async () => {
    const { site, lasthop } = ground;
    const [hop, ...others] = await lasthop.lastHops();
    expect(others).toEqual([]);
    expect(hop).toMatchObject({ mac: site.a.mac, interface: site.uplinkOf("a"), tags: [], state: "up" });
    expect(hop!.flows).toBeGreaterThanOrEqual(FLOWS);
    const counters = await lasthop.stats();
    expect(
      counters.filter((item) => item.interface === site.uplinkOf("a") && item.reason === "learn"),
    ).toHaveLength(1);
    for (const counter of counters) {
      expect(keysOf(counter)).toEqual([
        "bytes",
        "ifindex",
        "interface",
        "packets",
        "reason",
        "role",
        "verdict",
      ]);
    }
    const [flow] = await lasthop.flows("--state", "established", "--address", site.client.address[4]);
    const tuple = [
      "tcp",
      `${flow!.remote_address}:${flow!.remote_port}`,
      `${flow!.local_address}:${flow!.local_port}`,
    ];
    expect(await lasthop.json<FlowEntry>("flows", "show", ...tuple)).toMatchObject({
      remote_port: flow!.remote_port,
    });
    const explanation = await lasthop.json<Explanation>("explain", ...tuple);
    expect(keysOf(explanation)).toEqual([
      "conclusion",
      "delivery",
      "flow",
      "host",
      "notes",
      "reason",
      "route",
      "service",
      "tuple",
      "verdict",
      "zone",
    ]);
    const swept = await lasthop.json<SweepReport>("sweep");
    expect(keysOf(swept)).toEqual([
      "calls",
      "clock_repaired",
      "duration_seconds",
      "last_hops_released",
      "longest_call_seconds",
      "tables",
      "zones",
    ]);
    for (const on of [true, false]) {
      expect(await lasthop.json("bypass", on ? "on" : "off")).toEqual({ bypass: on });
      expect((await lasthop.status()).bypass).toBe(on);
    }
    const report = await lasthop.json<DoctorReport>("doctor");
    expect(keysOf(report)).toEqual(["checks", "interfaces"]);
    expect(report.checks.filter((check) => check.level === "fail")).toEqual([]);
  });
});

describe("text", () => {
  it.each([
    [["status"], /^INTERFACE +ROLE +HOOK +ZONE +POLICY +MTU +PROGRAM +OTHERS +STATE$/m],
    [
      ["flows", "list", "--limit", "3"],
      /^PROTO +ZONE +REMOTE +LOCAL +STATE +TIER +LAST HOP +VM +IDLE +FLAGS$/m,
    ],
    [["last-hops", "list"], /^INDEX +MAC +INTERFACE +VLAN +STATE +ORIGIN +DEVICE +FLOWS /m],
    [["stats"], /^INTERFACE +ROLE +VERDICT +REASON +PACKETS +BYTES$/m],
    [["sweep"], /^expired \d+ of \d+ flows in /],
    [["doctor"], /^CHECK +LEVEL +FOUND$/m],
  ] as const)("%s is a table without trailing blanks", async (args, expected) => {
    const text = await ground.lasthop.must(...args);
    expect(text).toMatch(expected);
    expect(text).not.toMatch(/[ \t]$/m);
    expect(text).not.toMatch(/\b(undefined|null|NaN|\[object)\b/);
  });

  it.each(FAMILIES)("IPv%i: of a flow can be given back to flows show", async (family) => {
    const { site, lasthop } = ground;
    const [flow] = await lasthop.flows("--state", "established", "--address", site.client.address[family]);
    const remote = `${bracket(flow!.remote_address)}:${flow!.remote_port}`;
    const local = `${bracket(flow!.local_address)}:${flow!.local_port}`;
    const text = await lasthop.must("flows", "show", `tcp ${remote} -> ${local}`);
    expect(text.split("\n")[1]).toMatch(/^tcp /);
    for (const part of [remote, local, site.a.mac, site.vm.mac]) expect(text).toContain(part);
  });
});

describe("a reader that goes away", () => {
  it.each([[["--json"]], [[]]])("ends flows list %s quietly", async (flags) => {
    const output = await pipeline(ground.lasthop.argv(...flags, "flows", "list"), "head -n 2");
    expect(output).toMatchObject({ status: 0, stderr: "" });
    expect(output.stdout.trimEnd().split("\n")).toHaveLength(2);
  });

  it("that is slow gets everything", async () => {
    const { lasthop } = ground;
    const output = await pipeline(lasthop.argv("--json", "flows", "list"), "(sleep 1; wc -l)");
    expect(output).toMatchObject({ status: 0, stderr: "" });
    expect(Number(output.stdout)).toBeGreaterThanOrEqual(FLOWS);
  });
});

describe("what runs until it is told to stop", () => {
  it.each(["SIGINT", "SIGTERM"] as const)("stats --watch ends with status 0 on %s", async (signal) => {
    const { site, lasthop } = ground;
    const watch = site.host.start(lasthop.argv("stats", "--watch"));
    await watch.writes(/PACKETS\/S/);
    expect(await watch.stop(signal)).toBe(0);
    expect(watch.stderr).toBe("");
  });

  it.each(["SIGINT", "SIGTERM"] as const)(
    "trace ends with status 0 on %s, and takes its traces back",
    async (signal) => {
      const { site, lasthop } = ground;
      const [flow] = await lasthop.flows("--state", "established", "--address", site.client.address[4]);
      const tuple = [
        "tcp",
        `${flow!.remote_address}:${flow!.remote_port}`,
        `${flow!.local_address}:${flow!.local_port}`,
      ];
      const trace = lasthop.trace(60, ...tuple);
      await until(async () => {
        await site.client.agent.call("echo", { key: "open4" });
        return Lasthop.events(trace).length >= 2;
      }, "the trace to show packets");
      const [event] = Lasthop.events(trace);
      expect(keysOf(event!)).toEqual([
        "direction",
        "explanation",
        "flow_state",
        "hook",
        "interface",
        "interface_after",
        "length_bytes",
        "mac_after",
        "mac_before",
        "reason",
        "tcp_flags",
        "time_seconds",
        "verdict",
      ]);
      expect(await trace.stop(signal)).toBe(0);
      expect(trace.stderr).toBe("");
      const again = lasthop.trace(1, ...tuple);
      expect(await again.exited).toBe(0);
    },
  );

  it("trace --seconds ends by itself", async () => {
    const started = Date.now();
    await ground.lasthop.must("trace", "udp", "192.0.2.1:1", "192.0.2.2:2", "--seconds", "1");
    expect(Date.now() - started).toBeGreaterThanOrEqual(1_000);
    expect(Date.now() - started).toBeLessThan(5_000);
  });
});

describe("attach and detach", () => {
  it("again is nothing to do, and keeps the program", async () => {
    const { site, lasthop } = ground;
    const before = await lasthop.status();
    const result = await lasthop.attach(site.vm.tap, "tap");
    expect(result.actions).toEqual([]);
    expect((await lasthop.status()).programs.map((program) => program.id)).toEqual(
      before.programs.map((program) => program.id),
    );
    expect(await lasthop.must("attach", site.vm.tap, "--role", "tap")).toMatch(/^nothing to change\n/);
  });

  it("with another policy or zone changes just that", async () => {
    const { site, lasthop } = ground;
    const one = async () =>
      (await lasthop.status()).interfaces.find((item) => item.interface === site.vm.tap);
    const before = await one();
    await lasthop.attach(site.vm.tap, "tap", { policy: "observe" });
    expect(await one()).toEqual({ ...before, policy: "observe" });
    await lasthop.attach(site.vm.tap, "tap", { zone: 4 });
    expect(await one()).toEqual({ ...before, policy: "observe", zone: 4 });
    await lasthop.attach(site.vm.tap, "tap", { policy: "enforce", zone: 0 });
    expect(await one()).toEqual(before);
  });

  it("detach keeps the flows, and attaching again finds them", async () => {
    const { site, lasthop } = ground;
    await site.client.agent.call("open", { key: "kept", host: site.vm.address[4], port: 7 });
    await site.client.agent.call("echo", { key: "kept" });
    const count = (await lasthop.flows("--state", "established")).length;
    expect(count).toBeGreaterThanOrEqual(2);
    expect(await lasthop.must("detach", site.vm.tap)).toBe(`${site.vm.tap}: detached\n`);
    expect(await lasthop.flows("--state", "established")).toHaveLength(count);
    await lasthop.attach(site.vm.tap, "tap");
    await site.client.agent.call("echo", { key: "kept" });
  });

  it("flush removes what the filter says, and says how many", async () => {
    const { lasthop } = ground;
    const count = (await lasthop.flows("--state", "new")).length;
    expect(count).toBeGreaterThan(0);
    expect(await lasthop.json("flows", "flush", "--state", "new")).toEqual({ removed: count });
    expect(await lasthop.flows("--state", "new")).toEqual([]);
  });

  it("detach --all --purge leaves no pin, link, qdisc or program", async () => {
    const { site, lasthop, lab } = ground;
    const programs = (await lasthop.status()).programs.map((program) => program.id);
    const text = await lasthop.must("detach", "--all", "--purge");
    for (const name of [...site.uplinks, ...site.taps]) expect(text).toContain(`${name}: detached`);
    expect(text).toContain("tables removed");
    expect(readdirSync(BPFFS)).not.toContain(lab.id);
    const net = await site.host.must(["bpftool", "-j", "net", "show"]);
    expect(net).not.toMatch(/learn_|reply_/);
    expect(await site.host.must(["tc", "qdisc", "show"])).not.toContain("clsact");
    for (const id of programs) {
      const gone = async () => (await run(["bpftool", "prog", "show", "id", String(id)])).status !== 0;
      await until(gone, `program ${id} to go`);
    }
  });
});
