// SPDX-License-Identifier: Apache-2.0
// Which hook an interface gets on a real kernel, how that changes, and what is left when it fails.

import { readdirSync } from "node:fs";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { AttachResult, DoctorCheck, DoctorReport, InterfaceStatus } from "../../src/ops/types.ts";
import { HAS_TCX, NO_TCX, TC_HOOK } from "../support/kernel.ts";
import { Lab, type Namespace } from "../support/lab.ts";
import { type AttachFlags, Lasthop } from "../support/lasthop.ts";
import { repositoryPath } from "../support/paths.ts";
import { must, type Output } from "../support/run.ts";
import { addFilter, keepTags } from "../support/tools.ts";

let lab: Lab;
let host: Namespace;
let lasthop: Lasthop;

beforeAll(async () => {
  await must([
    "make",
    "-s",
    "-C",
    repositoryPath("."),
    "build/test/net/xdp-pass.bpf.o",
    "build/test/net/tc-pass.bpf.o",
  ]);
  lab = new Lab();
  host = lab.namespace("host");
  await must(["ip", "netns", "add", host.name]);
  await host.ip("link set lo up", ...makeVeth("wan"), ...makeVeth("tap"));
  lasthop = await Lasthop.on(lab, host);
});
afterEach(() => lasthop.must("detach", "--all", "--purge"));
afterAll(() => lab?.close());

function makeVeth(name: string): string[] {
  return [
    `link add ${name} type veth peer name ${name}-peer`,
    `link set ${name} up`,
    `link set ${name}-peer up`,
  ];
}

function withClsact(...args: string[]): Promise<Output> {
  return host.run(["env", "LASTHOP_TC=clsact", ...lasthop.argv("--json", ...args)]);
}

async function attachByClsact(device: string, role: string): Promise<AttachResult> {
  const output = await withClsact("attach", device, "--role", role, "--mode", "tc");
  expect(output).toMatchObject({ status: 0, stderr: "" });
  return JSON.parse(output.stdout) as AttachResult;
}

async function statusOf(name: string): Promise<InterfaceStatus | undefined> {
  return (await lasthop.status()).interfaces.find((item) => item.interface === name);
}

/** Names of the programs that the kernel runs on the interface's ingress, by hook and in their order. */
async function programsOn(device: string): Promise<Record<string, string[]>> {
  const [found] = await lasthop.ask<Record<string, (string | { name: string })[]>[]>("programs.mjs", [
    device,
  ]);
  const names = Object.entries(found!).map(([hook, programs]) => {
    return [hook, programs.map((program) => (typeof program === "string" ? program : program.name))] as const;
  });
  return Object.fromEntries(names.filter(([, programs]) => programs.length > 0));
}

async function qdiscs(device: string): Promise<string> {
  return await host.must(["tc", "qdisc", "show", "dev", device]);
}

/** Runs a module in the host's namespace with the built library. */
async function inHost(program: string): Promise<Output> {
  const text = program.replaceAll("DIST", repositoryPath("dist"));
  return await host.run([process.execPath, "--input-type=module", "-e", text]);
}

/** attach() with `warn` doing something in between; prints the error's code and message. */
function attachWhile(options: object, meanwhile: string): Promise<Output> {
  return inHost(`
    import { execFileSync } from "node:child_process";
    import { attach } from "DIST/ops/attach.js";
    let done = false;
    const warn = () => { if (!done) { done = true; ${meanwhile}; } };
    try {
      const result = await attach({ pinRoot: ${JSON.stringify(lab.pinRoot)}, warn }, ${JSON.stringify(options)});
      process.stdout.write(JSON.stringify(result));
    } catch (error) {
      process.stdout.write(JSON.stringify({ code: error.code, message: error.message, hint: error.hint, stack: error.code ? "" : error.stack }));
    }
  `);
}

/** That link is the only one that is pinned; clsact has none. */
function expectLink(name: string): void {
  const links = pins().filter((path) => path.includes("/links/"));
  expect(links.map((path) => path.replace(/.*\//, ""))).toEqual(HAS_TCX ? [name] : []);
}

function pins(): string[] {
  const all = readdirSync("/sys/fs/bpf", { recursive: true, encoding: "utf8" });
  return all.filter((path) => path.startsWith(lab.id));
}

describe("an uplink", () => {
  it(`that is a veth is attached by TC (${TC_HOOK} here), and says why`, async () => {
    const result = await lasthop.attach("wan", "uplink");
    expect(result).toMatchObject({ hook: TC_HOOK, role: "uplink", zone: 0, policy: "enforce" });
    expect(result.actions).toEqual([expect.stringContaining("veth")]);
    expect(await statusOf("wan")).toMatchObject({ state: "ok", program_id: result.program_id });
    expect(await programsOn("wan")).toEqual({ [TC_HOOK]: ["learn_tc"] });
    expect((await qdiscs("wan")).includes("clsact")).toBe(!HAS_TCX);
  });

  it("whose driver strips VLAN tags is refused XDP, and told how to change that", async () => {
    const output = await lasthop.run("--json", "attach", "wan", "--role", "uplink", "--mode", "native");
    expect(JSON.parse(output.stderr)).toMatchObject({
      code: "E_MODE",
      hint: expect.stringContaining("ethtool -K wan rx-vlan-hw-parse off"),
    });
    expect(pins()).toEqual([]);
  });

  it("goes from hook to hook, with one program at a time and the same place in the tables", async () => {
    await keepTags(host, "wan");
    const first = await lasthop.attach("wan", "uplink");
    const entry = await interfaceEntry();
    for (const [mode, hook, programs] of [
      ["native", "xdp_native", { xdp: ["native"] }],
      ["generic", "xdp_generic", { xdp: ["generic"] }],
      ["tc", TC_HOOK, { [TC_HOOK]: ["learn_tc"] }],
      ["native", "xdp_native", { xdp: ["native"] }],
      ["auto", TC_HOOK, { [TC_HOOK]: ["learn_tc"] }],
    ] as const) {
      const result = await lasthop.attach("wan", "uplink", { mode });
      expect(result).toMatchObject({ hook, ifindex: first.ifindex });
      expect(result.actions.length).toBeGreaterThan(0);
      expect(await programsOn("wan")).toEqual(programs);
      expect(await statusOf("wan")).toMatchObject({ hook, state: "ok", program_id: result.program_id });
      expect((await interfaceEntry()).slot).toBe(entry.slot);
      expect((await lasthop.attach("wan", "uplink", { mode })).actions).toEqual([]);
    }
    expectLink(`uplink-${first.ifindex}`);
  });

  it("says first when native XDP comes or goes, also when it is detached", async () => {
    await keepTags(host, "wan");
    const attach = ["attach", "wan", "--role", "uplink", "--mode"];
    for (const args of [
      [...attach, "native"],
      [...attach, "tc"],
    ]) {
      expect((await lasthop.run(...args)).stderr).toContain("may reset the link");
    }
    expect((await lasthop.run(...attach, "generic")).stderr).not.toContain("reset");
    await lasthop.must(...attach, "native");
    expect((await lasthop.run("detach", "wan")).stderr).toContain("may reset the link");
    expect(await programsOn("wan")).toEqual({});
  });

  it("keeps the hook when no mode is given", async () => {
    await keepTags(host, "wan");
    await lasthop.attach("wan", "uplink", { mode: "generic" });
    expect(await lasthop.attach("wan", "uplink", { zone: 3 })).toMatchObject({
      hook: "xdp_generic",
      zone: 3,
    });
    // XDP has no place on a tap.
    expect(await lasthop.attach("wan", "tap")).toMatchObject({ hook: TC_HOOK, zone: 3, role: "tap" });
    expect(await programsOn("wan")).toEqual({ [TC_HOOK]: ["reply_tc"] });
  });

  it("becomes a tap and an uplink again", async () => {
    const { ifindex } = await lasthop.attach("wan", "uplink");
    for (const [role, program] of [
      ["tap", "reply_tc"],
      ["uplink", "learn_tc"],
    ] as const) {
      const result = await lasthop.attach("wan", role);
      expect(result.actions).toEqual([expect.stringContaining(`role ${role}`)]);
      expect(await programsOn("wan")).toEqual({ [TC_HOOK]: [program] });
      expectLink(`${role}-${ifindex}`);
    }
  });
});

interface Entry {
  slot: number;
  flags: number;
  role: number;
  l3_ifindex: number;
  name: string;
}

/** As the programs see it. */
async function interfaceEntries(): Promise<Entry[]> {
  const [version] = readdirSync(lab.pinRoot);
  const path = `${lab.pinRoot}/${version}/maps/interfaces`;
  const dump = JSON.parse(await must(["bpftool", "-j", "map", "dump", "pinned", path])) as {
    formatted: { value: Entry };
  }[];
  return dump.map((item) => item.formatted.value);
}

/** By MAC. */
async function knownVms(): Promise<{ zone: number; mac: string; id: number }[]> {
  const [version] = readdirSync(lab.pinRoot);
  const path = `${lab.pinRoot}/${version}/maps/vms`;
  const dump = JSON.parse(await must(["bpftool", "-j", "map", "dump", "pinned", path])) as {
    formatted: { key: { zone: number; mac: number[] }; value: { id: number } };
  }[];
  const vms = dump.map(({ formatted: { key, value } }) => ({
    zone: key.zone,
    mac: key.mac.map((byte) => byte.toString(16).padStart(2, "0")).join(":"),
    id: value.id,
  }));
  return vms.sort((a, b) => a.mac.localeCompare(b.mac));
}

async function interfaceEntry(): Promise<Entry> {
  const [entry, ...others] = await interfaceEntries();
  expect(others).toEqual([]);
  return entry!;
}

describe("without TCX, clsact", () => {
  it("has a filter at a fixed place, and takes its qdisc with it", async () => {
    const result = await attachByClsact("tap", "tap");
    expect(result.hook).toBe("clsact");
    expect(await qdiscs("tap")).toContain("clsact");
    expect(await host.must(["tc", "filter", "show", "dev", "tap", "ingress"])).toMatch(
      /pref 27752.*reply_tc/s,
    );
    expect(await statusOf("tap")).toMatchObject({
      hook: "clsact",
      state: "ok",
      program_id: result.program_id,
      foreign_program_ids: [],
    });
    expect((await attachByClsact("tap", "tap")).actions).toEqual([]);
    await lasthop.must("detach", "tap");
    expect(await qdiscs("tap")).not.toContain("clsact");
  });

  it("exchanges the program in place when the role changes", async () => {
    await attachByClsact("tap", "tap");
    await attachByClsact("tap", "uplink");
    expect(await programsOn("tap")).toEqual({ clsact: ["learn_tc"] });
  });

  it("and TCX follow each other with one program left", async ({ skip }) => {
    skip(!HAS_TCX, NO_TCX);
    await attachByClsact("tap", "tap");
    expect((await lasthop.attach("tap", "tap", { mode: "tc" })).hook).toBe("tcx");
    expect(await programsOn("tap")).toEqual({ tcx: ["reply_tc"] });
    expect(await qdiscs("tap")).not.toContain("clsact");
    await attachByClsact("tap", "tap");
    expect(await programsOn("tap")).toEqual({ clsact: ["reply_tc"] });
    expect(pins().filter((path) => path.includes("/links/"))).toEqual([]);
  });

  it("leaves a qdisc that was there before, even an empty one", async () => {
    await host.must(["tc", "qdisc", "add", "dev", "tap", "clsact"]);
    await attachByClsact("tap", "tap");
    await lasthop.must("detach", "--all", "--purge");
    expect(await qdiscs("tap")).toContain("clsact");
    expect(await host.must(["tc", "filter", "show", "dev", "tap", "ingress"])).toBe("");
    await host.must(["tc", "qdisc", "del", "dev", "tap", "clsact"]);
  });

  it("leaves its own qdisc when somebody else uses it by now", async () => {
    await attachByClsact("tap", "tap");
    await addFilter(host, "tap", "egress", "count");
    await lasthop.must("detach", "--all", "--purge");
    expect(await programsOn("tap")).toEqual({ clsact: ["count"] });
    await host.must(["tc", "qdisc", "del", "dev", "tap", "clsact"]);
  });

  it("runs before filters of later priority, which status names", async () => {
    await addFilter(host, "tap", "ingress", "count", 40_000);
    await attachByClsact("tap", "tap");
    expect((await statusOf("tap"))?.foreign_program_ids).toHaveLength(1);
    await lasthop.must("detach", "tap");
    expect(await programsOn("tap")).toEqual({ clsact: ["count"] });
    await host.must(["tc", "qdisc", "del", "dev", "tap", "clsact"]);
  });

  it("never takes the place of a foreign filter", async () => {
    await addFilter(host, "tap", "ingress", "count", 0x6c68);
    const output = await withClsact("attach", "tap", "--role", "tap");
    expect(output.status).toBe(1);
    expect(JSON.parse(output.stderr)).toMatchObject({
      code: "E_FOREIGN",
      message: expect.stringContaining("27752"),
    });
    expect(await programsOn("tap")).toEqual({ clsact: ["count"] });
    expect(pins()).toEqual([]);
    await host.must(["tc", "qdisc", "del", "dev", "tap", "clsact"]);
  });

  it("is chosen by a word that exists", async () => {
    const output = await host.run([
      "env",
      "LASTHOP_TC=tcxx",
      ...lasthop.argv("attach", "tap", "--role", "tap"),
    ]);
    expect(output.status).toBe(2);
    expect(output.stderr).toContain("tcx or clsact");
  });
});

describe("foreign programs", () => {
  it("on TCX stay where they are, and status names them", async ({ skip }) => {
    skip(!HAS_TCX, NO_TCX);
    const object = repositoryPath("build/test/net/tc-pass.bpf.o");
    const pin = `${lab.pinRoot}-foreign`;
    const attached = await inHost(`
      import { BpfLink, BpfObject } from "DIST/libbpf/index.js";
      const object = BpfObject.open(${JSON.stringify(object)});
      object.load();
      const link = BpfLink.attachTcx(object.program("tc_pass"), ${(await lasthop.attach("wan", "uplink")).ifindex}, "ingress");
      link.pin(${JSON.stringify(pin)});
      process.stdout.write(String(object.program("tc_pass").info().id));
    `);
    expect(attached).toMatchObject({ status: 0, stderr: "" });
    try {
      const foreign = Number(attached.stdout);
      expect((await statusOf("wan"))?.foreign_program_ids).toEqual([foreign]);
      await lasthop.attach("wan", "tap");
      expect(await programsOn("wan")).toEqual({ tcx: ["reply_tc", "tc_pass"] });
      await lasthop.must("detach", "--all", "--purge");
      expect(await programsOn("wan")).toEqual({ tcx: ["tc_pass"] });
    } finally {
      await must(["rm", pin]);
    }
  });

  it("on XDP: auto goes beside them by TC, and they stay", async () => {
    const object = repositoryPath("build/test/net/xdp-pass.bpf.o");
    await host.must(["ip", "link", "set", "dev", "wan", "xdp", "obj", object, "sec", "xdp"]);
    try {
      expect(await lasthop.attach("wan", "uplink")).toMatchObject({ hook: TC_HOOK });
      const both = await programsOn("wan");
      expect(both).toEqual({ xdp: ["native"], [TC_HOOK]: ["learn_tc"] });
      const output = await lasthop.run("--json", "attach", "wan", "--role", "uplink", "--mode", "native");
      expect(JSON.parse(output.stderr)).toMatchObject({ code: "E_FOREIGN" });
      expect(await programsOn("wan")).toEqual(both);
      await lasthop.must("detach", "--all");
      expect(await programsOn("wan")).toEqual({ xdp: ["native"] });
    } finally {
      await host.must(["ip", "link", "set", "dev", "wan", "xdp", "off"]);
    }
  });
});

describe("an attach that fails in the middle", () => {
  it("since the interface went leaves nothing", async () => {
    await host.ip(...makeVeth("shortlived"));
    await keepTags(host, "shortlived");
    const output = await attachWhile(
      { interface: "shortlived", role: "uplink", mode: "native" },
      `execFileSync("ip", ["link", "del", "shortlived"])`,
    );
    expect(JSON.parse(output.stdout)).toMatchObject({
      code: "E_NO_INTERFACE",
      message: expect.stringContaining("went away"),
    });
    expect(pins()).toEqual([]);
  });

  it("since the interface went leaves what was there as it was", async () => {
    await lasthop.attach("tap", "tap", { zone: 9 });
    await host.ip(...makeVeth("shortlived"));
    await keepTags(host, "shortlived");
    const [before, pinned] = [await interfaceEntries(), pins()];
    await attachWhile(
      { interface: "shortlived", role: "uplink", mode: "native" },
      `execFileSync("ip", ["link", "del", "shortlived"])`,
    );
    expect(await interfaceEntries()).toEqual(before);
    expect(pins()).toEqual(pinned);
  });

  it("since somebody else's XDP program came first changes nothing", async () => {
    await keepTags(host, "wan");
    await lasthop.attach("wan", "uplink", { zone: 2 });
    const [before, programs, pinned] = [await interfaceEntries(), await programsOn("wan"), pins()];
    const object = repositoryPath("build/test/net/xdp-pass.bpf.o");
    try {
      const output = await attachWhile(
        { interface: "wan", role: "uplink", mode: "native", zone: 5, policy: "observe" },
        `execFileSync("ip", ["link", "set", "dev", "wan", "xdp", "obj", ${JSON.stringify(object)}, "sec", "xdp"])`,
      );
      expect(JSON.parse(output.stdout)).toMatchObject({ code: "E_FOREIGN" });
      expect(await interfaceEntries()).toEqual(before);
      expect(await programsOn("wan")).toEqual({ xdp: ["native"], ...programs });
      expect(pins()).toEqual(pinned);
    } finally {
      await host.must(["ip", "link", "set", "dev", "wan", "xdp", "off"]);
    }
  });
});

/** A hook whose programs links hold, on every kernel. */
const LINKED = HAS_TCX
  ? { mode: "tc", hook: "tcx", programs: { tcx: ["learn_tc"] } }
  : { mode: "generic", hook: "xdp_generic", programs: { xdp: ["generic"] } };

async function attachByLink(flags: AttachFlags = {}): Promise<AttachResult> {
  await keepTags(host, "wan");
  return await lasthop.attach("wan", "uplink", { mode: LINKED.mode, ...flags });
}

describe("what a killed command left", () => {
  it("half-made tables are removed", async () => {
    await lasthop.attach("wan", "uplink");
    const [version] = readdirSync(lab.pinRoot);
    await lasthop.must("detach", "--all", "--purge");
    await must(["mkdir", "-p", `${lab.pinRoot}/${version}_new/links`]);
    await lasthop.attach("wan", "uplink");
    expect(readdirSync(lab.pinRoot)).toEqual([version]);
  });

  it("a link that was to replace another takes its place when that is gone", async () => {
    const { ifindex } = await attachByLink();
    const [version] = readdirSync(lab.pinRoot);
    const path = `${lab.pinRoot}/${version}/links/uplink-${ifindex}`;
    await must(["mv", path, `${path}_new`]);
    expect(await statusOf("wan")).toMatchObject({ state: "program_gone" });
    expect((await lasthop.attach("wan", "uplink")).actions).toEqual([]);
    expect(await statusOf("wan")).toMatchObject({ state: "ok" });
    expect(await programsOn("wan")).toEqual(LINKED.programs);
  });

  it("an entry without a program gets one", async () => {
    const { ifindex } = await attachByLink({ zone: 4 });
    const [version] = readdirSync(lab.pinRoot);
    await must(["rm", `${lab.pinRoot}/${version}/links/uplink-${ifindex}`]);
    expect(await programsOn("wan")).toEqual({});
    expect(await lasthop.attach("wan", "uplink")).toMatchObject({ zone: 4, hook: LINKED.hook });
    expect(await programsOn("wan")).toEqual(LINKED.programs);
  });

  it("an entry without a filter gets one", async () => {
    await attachByClsact("tap", "tap");
    await host.must(["tc", "qdisc", "del", "dev", "tap", "clsact"]);
    expect(await statusOf("tap")).toMatchObject({ state: "program_gone" });
    expect(await attachByClsact("tap", "tap")).toMatchObject({ hook: "clsact" });
    expect(await programsOn("tap")).toEqual({ clsact: ["reply_tc"] });
  });
});

describe("an interface that comes back under its name", () => {
  it("is attached anew, and what was left of the old one is forgotten", async () => {
    await host.ip(...makeVeth("again"));
    const first = await lasthop.attach("again", "uplink");
    await attachByClsact("again-peer", "tap");
    await host.ip("link del again");
    expect((await statusOf("again"))?.state).toBe("interface_gone");
    await host.ip(...makeVeth("again"));
    const second = await lasthop.attach("again", "uplink");
    expect(second.ifindex).not.toBe(first.ifindex);
    expect(second.actions.toSorted()).toEqual([
      "again is gone: forgotten",
      "again-peer is gone: forgotten",
      expect.stringContaining(`attached by ${TC_HOOK}`),
    ]);
    expect((await interfaceEntries()).map((entry) => entry.name)).toEqual(["again"]);
    expectLink(`uplink-${second.ifindex}`);
    await host.ip("link del again");
  });

  it("can be detached while it is gone", async () => {
    await host.ip(...makeVeth("again"));
    await lasthop.attach("again", "uplink");
    await host.ip("link del again");
    expect(await lasthop.must("detach", "again")).toBe("again: detached\n");
    expect((await lasthop.status()).interfaces).toEqual([]);
  });

  it("with the same index is not taken for the old one", async () => {
    await host.ip("link add same index 900 type veth peer name same-peer", "link set same up");
    await lasthop.attach("same", "uplink");
    await host.ip(
      "link del same",
      "link add same index 900 type veth peer name same-peer",
      "link set same up",
    );
    expect(await statusOf("same")).toMatchObject({ state: "interface_gone", program_id: null });
    const result = await lasthop.attach("same", "uplink");
    expect(result.actions[0]).toBe("same is gone: forgotten");
    expect(await statusOf("same")).toMatchObject({ state: "ok" });
    await host.ip("link del same");
  });
});

describe("on a bridge", () => {
  beforeAll(async () => {
    // What is behind the ports speaks when it is told to, and not of its own accord.
    const peers = ["wan-peer", "tap-peer"].map((name) => `net.ipv6.conf.${name}.disable_ipv6=1`);
    await host.must(["sysctl", "-qw", ...peers]);
    await host.ip(
      "link add br0 address 02:00:00:00:00:b0 type bridge",
      "link set br0 up",
      "link set wan master br0",
      "link set tap master br0",
    );
  });
  afterAll(() => host.ip("link del br0"));

  it("a tap brings the bridge into the table until the last one goes", async () => {
    await lasthop.attach("wan", "uplink");
    expect((await interfaceEntries()).map((entry) => entry.name)).toEqual(["wan"]);
    await lasthop.attach("tap", "tap");
    const entries = await interfaceEntries();
    const bridge = entries.find((entry) => entry.name === "br0");
    expect(bridge).toMatchObject({ role: 3, slot: 0 });
    for (const { l3_ifindex } of entries) expect(l3_ifindex).toBe(bridge!.l3_ifindex);
    expect((await lasthop.status()).interfaces.map((item) => item.interface).sort()).toEqual(["tap", "wan"]);
    await lasthop.must("detach", "tap");
    expect((await interfaceEntries()).map((entry) => entry.name)).toEqual(["wan"]);
  });

  it("a tap's VMs are known from the bridge, but not the bridge's own addresses", async () => {
    await host.must(["bridge", "fdb", "replace", "52:54:00:00:00:01", "dev", "tap", "master", "static"]);
    await host.must(["bridge", "fdb", "replace", "52:54:00:00:00:02", "dev", "wan", "master", "static"]);
    const result = await lasthop.attach("tap", "tap", { zone: 6 });
    expect(result.actions.join()).toMatch(/\d VMs? known/);
    const vms = await knownVms();
    expect(vms).toContainEqual({ zone: 6, mac: "52:54:00:00:00:01", id: expect.any(Number) });
    expect(vms.map(({ mac }) => mac)).not.toContain("52:54:00:00:00:02");
    const own = JSON.parse(await host.must(["ip", "-j", "link", "show", "tap"])) as { address: string }[];
    expect(vms.map(({ mac }) => mac)).not.toContain(own[0]!.address);
    // In another zone it is the same VM; as an uplink's it is none.
    await lasthop.attach("tap", "tap", { zone: 7 });
    expect(await knownVms()).toEqual(vms.map((vm) => ({ ...vm, zone: 7 })));
    await lasthop.must("detach", "tap");
    await lasthop.attach("tap", "tap", { zone: 7 });
    expect(await knownVms()).toEqual(vms.map((vm) => ({ ...vm, zone: 7 })));
    await lasthop.attach("tap", "uplink");
    expect(await knownVms()).toEqual([]);
  });

  it("a port that does not forward is told apart, and attached again when it does", async () => {
    await host.must(["bridge", "link", "set", "dev", "wan", "state", "0"]);
    expect((await lasthop.run("attach", "wan", "--role", "uplink")).stderr).toContain("disabled");
    expect((await interfaceEntry()).flags & 1).toBe(1);
    expect((await statusOf("wan"))?.state).toBe("port_blocked");
    await host.must(["bridge", "link", "set", "dev", "wan", "state", "3"]);
    expect((await lasthop.attach("wan", "uplink")).actions).toHaveLength(1);
    expect((await interfaceEntry()).flags & 1).toBe(0);
    expect((await statusOf("wan"))?.state).toBe("ok");
  });

  it("a port that is only down is not called blocked when it comes up", async () => {
    await host.ip("link set wan down");
    expect((await lasthop.run("attach", "wan", "--role", "uplink")).stderr).toContain("wan is down");
    expect((await interfaceEntry()).flags & 1).toBe(0);
    expect((await statusOf("wan"))?.state).toBe("interface_down");
    await host.ip("link set wan up");
    expect((await statusOf("wan"))?.state).toBe("ok");
  });
});

describe("doctor", () => {
  const find = async (name: string, env: readonly string[] = []): Promise<DoctorCheck> => {
    const output = await host.run([...env, ...lasthop.argv("--json", "doctor")]);
    expect(output.status).toBe(0);
    const report = JSON.parse(output.stdout) as DoctorReport;
    return report.checks.find((check) => check.name === name)!;
  };

  it("names the netfilter chains that a redirected reply goes past", async () => {
    expect(await find("netfilter")).toMatchObject({ level: "ok" });
    const rules = `
      table inet guard {
        chain fw { type filter hook forward priority 0; policy accept; ct state invalid drop
        }
        chain local { type filter hook input priority 0; policy drop;
        }
      }
      table ip translate {
        chain out { type nat hook postrouting priority 100; masquerade
        }
      }`;
    await host.must(["nft", "-f", "-"], { input: rules });
    const netfilter = await find("netfilter");
    expect(netfilter).toMatchObject({ level: "warn", found: "inet guard fw (forward)" });
    expect(netfilter.hint).toContain("neither the bridge nor these");
    expect(await find("nat")).toMatchObject({ level: "warn", found: "ip translate out (postrouting)" });
    await host.must(["nft", "flush", "ruleset"]);
  });

  it("says so when it cannot look", async () => {
    const found = await find("netfilter", ["env", "PATH=/nonexistent"]);
    expect(found).toMatchObject({ level: "warn", found: expect.stringContaining("nft is not installed") });
  });

  it("warns of strict reverse path filtering on an uplink", async () => {
    await lasthop.attach("wan", "uplink");
    await host.must(["sysctl", "-qw", "net.ipv4.conf.wan.rp_filter=1"]);
    expect(await find("rp_filter")).toMatchObject({
      level: "warn",
      hint: expect.stringContaining("wan.rp_filter=2"),
    });
    await host.must(["sysctl", "-qw", "net.ipv4.conf.wan.rp_filter=2"]);
    expect(await find("rp_filter")).toMatchObject({ level: "ok" });
  });

  it("says what auto would choose, and why", async () => {
    const report = await lasthop.json<DoctorReport>("doctor");
    const wan = report.interfaces.find((item) => item.interface === "wan");
    expect(wan).toMatchObject({
      driver: "veth",
      auto_mode: TC_HOOK,
      reason: expect.stringContaining("veth"),
    });
    expect(report.interfaces.map((item) => item.interface)).not.toContain("lo");
  });
});
