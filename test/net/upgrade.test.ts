// SPDX-License-Identifier: Apache-2.0
// Other programs, other sizes, another layout, while TCP and UDP run over the host and one firewall would drop
// every reply that goes astray.

import { existsSync, readdirSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Build, brokenObject, otherLayout, otherObject } from "../support/builds.ts";
import { attachAll, type Ground, useSite } from "../support/fixture.ts";
import { Lasthop } from "../support/lasthop.ts";
import { Load } from "../support/load.ts";

interface Changes {
  changes: { kind: string; text: string }[];
}

interface LinkDump {
  id: number;
  prog_id: number;
}

const pins = (ground: Ground): string => {
  const [version] = readdirSync(ground.lab.pinRoot).filter((name) => name.startsWith("v1-"));
  return `${ground.lab.pinRoot}/${version}`;
};

/** Of every pinned link, by name. */
async function links(ground: Ground): Promise<Record<string, LinkDump>> {
  const directory = `${pins(ground)}/links`;
  const found: Record<string, LinkDump> = {};
  for (const name of readdirSync(directory)) {
    const text = await ground.site.host.must([
      "bpftool",
      "-j",
      "link",
      "show",
      "pinned",
      `${directory}/${name}`,
    ]);
    found[name] = JSON.parse(text) as LinkDump;
  }
  return found;
}

const ids = (all: Record<string, LinkDump>) =>
  Object.fromEntries(Object.entries(all).map(([name, { id }]) => [name, id]));

/** Nothing went astray: the other firewall saw no reply, and no connection noticed. */
async function quietly<T>(ground: Ground, change: () => Promise<T>, mayStray = 0): Promise<T> {
  const { site } = ground;
  const load = await Load.start(site);
  await new Promise((resolve) => setTimeout(resolve, 300));
  await site.resetCounts();
  let result: T;
  let dropped: number;
  try {
    result = await change();
    await new Promise((resolve) => setTimeout(resolve, 300));
    dropped = (await site.b.counts()).packets("dropped");
  } finally {
    const report = await load.stop();
    expect(report.errors).toEqual([]);
    expect(report.rounds).toBeGreaterThan(100);
    expect(report.connections).toBeGreaterThan(5);
    expect(report.datagrams).toBeGreaterThan(5);
  }
  expect(dropped).toBeLessThanOrEqual(mayStray);
  return result;
}

async function tableSize(lasthop: Lasthop, name: string): Promise<{ entries: number; max_entries: number }> {
  const tables = await lasthop.json<{ table: string; entries: number; max_entries: number }[]>(
    "tables",
    "list",
  );
  return tables.find(({ table }) => table === name)!;
}

async function expectSettled(ground: Ground, lasthop: Lasthop): Promise<void> {
  expect(readdirSync(pins(ground)).sort()).toEqual(["links", "maps", "programs"]);
  const status = await lasthop.status();
  const ids = new Map(status.programs.map(({ name, id }) => [name, id]));
  for (const item of status.interfaces) {
    expect(item.state).toBe("ok");
    expect(item.program_id).toBe(ids.get(item.role === "tap" ? "reply_tc" : "learn_tc"));
    expect(item.foreign_program_ids).toEqual([]);
  }
  const control = await ground.site.host.must([
    "bpftool",
    "-j",
    "map",
    "dump",
    "pinned",
    `${pins(ground)}/maps/control`,
  ]);
  expect(control).not.toContain('"migrating":1');
  for (const table of ["flows4", "flows6", "embryos4", "embryos6"]) {
    const path = `${pins(ground)}/maps/previous_${table}`;
    expect(await ground.site.host.must(["bpftool", "-j", "map", "dump", "pinned", path])).not.toContain(
      "inner_map_id",
    );
  }
}

describe.each(["bridged", "routed"] as const)("a %s host", (host) => {
  const ground = useSite({ host, vms: 1 }, attachAll);
  let next: Build;

  beforeAll(async () => {
    next = await otherObject("9.9.1", "quote_skb", "quoted_skb");
  });
  afterAll(() => next?.remove());

  it("exchanges the programs: one update a link, no reply astray, no flow lost", async () => {
    const before = await links(ground);
    const newer = await Lasthop.on(ground.lab, ground.site.host, next.program);
    const { changes } = await quietly(ground, async () => {
      const result = await newer.json<Changes>("upgrade");
      expect(await newer.json<Changes>("upgrade")).toEqual({ changes: [] });
      return result;
    });
    expect(changes.map(({ kind }) => kind)).toEqual(["programs"]);
    expect(changes[0]!.text).toContain("9.9.1");
    const after = await links(ground);
    expect(ids(after)).toEqual(ids(before));
    for (const [name, link] of Object.entries(after)) expect(link.prog_id).not.toBe(before[name]!.prog_id);
    await expectSettled(ground, newer);
    // And back.
    const { changes: back } = await quietly(ground, () => ground.lasthop.json<Changes>("upgrade"));
    expect(back.map(({ kind }) => kind)).toEqual(["programs"]);
  });

  it("gives tables another size, larger and smaller", async () => {
    const { lasthop } = ground;
    for (const [table, entries] of [
      ["flows4", 2_097_152],
      ["flows6", 4096],
      ["embryos4", 2048],
      ["embryos6", 131_072],
    ] as const) {
      const { changes } = await quietly(ground, () =>
        lasthop.json<Changes>("tables", "resize", table, String(entries)),
      );
      expect(changes.map(({ kind }) => kind)).toEqual(["resize"]);
      expect((await tableSize(lasthop, table)).max_entries).toBe(entries);
    }
    await expectSettled(ground, lasthop);
    expect(await lasthop.json<Changes>("tables", "resize", "flows6", "4096")).toEqual({ changes: [] });
  });
});

describe("what goes wrong", () => {
  const ground = useSite({ vms: 1 }, attachAll);
  const builds: Build[] = [];
  afterAll(() => {
    for (const build of builds) build.remove();
  });

  const installed = async (build: Build | Promise<Build>): Promise<Lasthop> => {
    const made = await build;
    builds.push(made);
    return Lasthop.on(ground.lab, ground.site.host, made.program);
  };

  it.each([
    ["no object file", () => brokenObject("9.9.2"), /not a valid BPF object/],
    [
      "a program that the verifier refuses",
      () =>
        otherObject(
          "9.9.3",
          "ROLE_TAP))\n\t\treturn TC_ACT_UNSPEC;",
          "ROLE_TAP))\n\t\treturn *(int *)(long)skb->mark;",
        ),
      /refused/,
    ],
    // Taps are switched by then and must be put back.
    ["a program that is missing", () => otherObject("9.9.4", "learn_tc", "learn_other"), /learn_tc/],
  ])("with %s everything stays as it was", async (_what, make, message) => {
    const before = await links(ground);
    const newer = await installed(make());
    const output = await quietly(ground, () => newer.run("--json", "upgrade"));
    expect(output.status).toBe(1);
    expect(JSON.parse(output.stderr)).toMatchObject({
      code: "E_UPGRADE",
      message: expect.stringMatching(message),
    });
    expect(await links(ground)).toEqual(before);
    await expectSettled(ground, ground.lasthop);
  });

  it.each([
    [["tables", "resize", "flows5", "4096"], "E_NOT_FOUND", "flows4"],
    [["tables", "resize", "vms", "4096"], "E_NOT_FOUND", "flows4"],
    [["tables", "resize", "flows4", "0"], "E_USAGE", "1024"],
    [["tables", "resize", "flows4", "1023"], "E_USAGE", "1024"],
    [["tables", "resize", "flows4", "999999999999"], "E_USAGE", "67108864"],
    [["tables", "resize", "flows4", "many"], "E_USAGE", ""],
    [["tables", "resize", "flows4", "-5"], "E_USAGE", ""],
    [["tables", "resize", "flows4"], "E_USAGE", "Usage"],
  ])("%j is refused and changes nothing", async (args, code, hint) => {
    const before = await links(ground);
    const output = await ground.lasthop.run("--json", ...args);
    expect(output.status).not.toBe(0);
    const error = JSON.parse(output.stderr) as { code: string; hint: string | null };
    expect(error.code).toBe(code);
    expect(error.hint ?? "").toContain(hint);
    expect(await links(ground)).toEqual(before);
  });

  it("without tables there is nothing to resize or upgrade", async () => {
    const elsewhere = { ...process.env };
    const argv = [
      process.execPath,
      ground.lasthop.argv()[1]!,
      "--json",
      "--pin-root",
      `${ground.lab.pinRoot}-none`,
    ];
    for (const words of [["upgrade"], ["tables", "resize", "flows4", "4096"], ["tables", "list"]]) {
      const output = await ground.site.host.run([...argv, ...words], { env: elsewhere });
      expect(JSON.parse(output.stderr)).toMatchObject({ code: "E_NO_TABLES" });
    }
    expect(existsSync(`${ground.lab.pinRoot}-none`)).toBe(false);
  });

  it("killed at any moment, the next one brings it to an end, and nothing is lost", async () => {
    const newer = await installed(otherObject("9.9.5", "quote_skb", "quoted_skb"));
    await quietly(ground, async () => {
      let interrupted = 0;
      for (let round = 0; round < 14; round++) {
        const tool = round % 2 === 0 ? newer : ground.lasthop;
        const size = String(8192 + round * 1024);
        const process = ground.site.host.start(tool.argv("tables", "resize", "flows4", size));
        await new Promise((resolve) => setTimeout(resolve, 60 + ((round * 97) % 360)));
        await process.stop("SIGKILL");
        if ((await tableSize(tool, "flows4")).max_entries !== Number(size)) interrupted++;
        const settle = await tool.run("--json", "upgrade");
        expect(settle.stderr).toBe("");
      }
      expect(interrupted).toBeGreaterThan(2);
    });
    await ground.lasthop.must("upgrade");
    await expectSettled(ground, ground.lasthop);
  });
});

describe("a version whose tables lie otherwise", () => {
  const ground = useSite({ vms: 2 });
  let old: Build;

  beforeAll(async () => {
    old = await otherLayout("0.0.9", (header) =>
      header
        .replace(
          "struct flow {\n",
          "struct flow {\n\t__u32 formerly; /* something that this version no longer has */\n",
        )
        .replace("ASSERT_BYTES(struct flow, 16)", "ASSERT_BYTES(struct flow, 20)")
        .replace("ASSERT_BYTES(struct embryo, 24)", "ASSERT_BYTES(struct embryo, 28)")
        .replace("struct interface {\n", "struct interface {\n\t__u32 formerly;\n")
        .replace("ASSERT_BYTES(struct interface, 92)", "ASSERT_BYTES(struct interface, 96)")
        .replace(/\t__u32 created;.*\n\t__u32 mark;.*\n/, "\t__u32 mark;\n\t__u32 created;\n")
        .replace("struct vm {\n", "struct vm {\n\t__u32 formerly;\n")
        .replace("ASSERT_BYTES(struct vm, 16)", "ASSERT_BYTES(struct vm, 20)"),
    );
  }, 120_000);
  afterAll(() => old?.remove());

  it("stays as it is when a program of ours is missing", async () => {
    const { site, lab } = ground;
    const former = await Lasthop.on(lab, site.host, old.program);
    await former.attachAll(site.uplinks, site.taps);
    const incomplete = await otherObject("9.9.6", "learn_tc", "learn_other");
    try {
      const newer = await Lasthop.on(lab, site.host, incomplete.program);
      const before = await links(ground);
      // For the milliseconds of the switch and back, tables of another layout do not know new flows of each other.
      const output = await quietly(ground, () => newer.run("--json", "upgrade"), 10);
      expect(JSON.parse(output.stderr)).toMatchObject({ code: "E_UPGRADE" });
      expect(await links(ground)).toEqual(before);
      expect(readdirSync(lab.pinRoot).filter((entry) => entry.startsWith("v1-"))).toHaveLength(1);
      expect((await former.status()).interfaces.every(({ state }) => state === "ok")).toBe(true);
    } finally {
      incomplete.remove();
    }
    await former.detachAll();
  });

  it("killed at any moment, the next one takes it over", async () => {
    const { site, lab, lasthop } = ground;
    const former = await Lasthop.on(lab, site.host, old.program);
    for (let round = 0; round < 4; round++) {
      await former.attachAll(site.uplinks, site.taps);
      const load = await Load.start(site, 3);
      const process = site.host.start(lasthop.argv("upgrade"));
      await new Promise((resolve) => setTimeout(resolve, 150 + round * 90));
      await process.stop("SIGKILL");
      expect((await lasthop.run("--json", "upgrade")).stderr).toBe("");
      await expectSettled(ground, lasthop);
      expect((await load.stop()).errors).toEqual([]);
      await lasthop.detachAll();
    }
  });

  it("is taken over under load, with flows, VMs, policies and zones", async () => {
    const { site, lasthop, lab } = ground;
    const former = await Lasthop.on(lab, site.host, old.program);
    await former.attachAll(site.uplinks, site.taps);
    const version = (await former.status()).abi;
    expect(version).toMatch(/^v1-/);
    for (const command of [["status"], ["attach", site.vm.tap, "--role", "tap"]]) {
      const refused = await lasthop.run("--json", ...command);
      expect(JSON.parse(refused.stderr)).toMatchObject({
        code: "E_ABI",
        hint: expect.stringContaining("upgrade"),
      });
    }
    const load = await Load.start(site);
    await former.attach(site.taps[1]!, "tap", { policy: "observe" });
    const before = (await former.flows("--state", "established")).filter((flow) => flow.protocol === "tcp");
    const changes = (await lasthop.json<Changes>("upgrade")).changes;
    expect(changes.map(({ kind }) => kind)).toEqual(["layout"]);
    const after = await lasthop.flows();
    await new Promise((resolve) => setTimeout(resolve, 300));
    const report = await load.stop();
    expect(report.errors).toEqual([]);
    const name = (flow: (typeof before)[number]) =>
      `${flow.remote_address}:${flow.remote_port} ${flow.last_hop?.mac} ${flow.last_hop?.interface}`;
    const kept = new Set(after.map(name));
    expect(before.length).toBeGreaterThanOrEqual(20);
    expect(before.map(name).filter((flow) => !kept.has(flow))).toEqual([]);
    expect(readdirSync(lab.pinRoot).filter((entry) => entry.startsWith("v1-"))).toHaveLength(1);
    await expectSettled(ground, lasthop);
    const status = await lasthop.status();
    expect(status.interfaces.find((item) => item.interface === site.taps[1])).toMatchObject({
      policy: "observe",
    });
    expect(status.interfaces).toHaveLength(site.uplinks.length + site.taps.length);
    // The last hops that were taken over are still in use, and new ones do not get in their way.
    const hops = await lasthop.lastHops();
    expect(new Set(hops.map((hop) => hop.index)).size).toBe(hops.length);
    expect(hops.some((hop) => hop.mac === site.a.mac && hop.flows > 0)).toBe(true);
    const evicted = await lasthop.json<{ tables: { evicted?: Record<string, number> }[] }>("sweep");
    for (const table of evicted.tables) {
      expect(Object.values(table.evicted ?? {}).reduce((sum, count) => sum + count, 0)).toBeLessThan(5);
    }
  });
});
