// SPDX-License-Identifier: Apache-2.0
// Programs of ours that nobody has any more, or that are there twice: adopted, replaced or removed, never doubled.

import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { AttachResult } from "../../src/ops/types.ts";
import { Configured, told } from "../support/configured.ts";
import { Lab, type Namespace } from "../support/lab.ts";
import { Lasthop } from "../support/lasthop.ts";
import { repositoryPath } from "../support/paths.ts";
import { must, type Output } from "../support/run.ts";
import { addFilter } from "../support/tools.ts";

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
    "link add vnet0 type veth peer name p-vnet0",
    "link set vnet0 up",
    "link set p-vnet0 up",
  );
  lasthop = await Lasthop.on(lab, host);
  configured = new Configured(lasthop);
});
afterEach(async () => {
  await lasthop.must("detach", "--all", "--purge");
  await host.run(["tc", "qdisc", "del", "dev", "vnet0", "clsact"]);
});
afterAll(async () => {
  configured?.close();
  await lab?.close();
});

const TAP = "taps: [{name: vnet0}]";

/** As on a kernel before 6.6. */
function clsact(...args: string[]): Promise<Output> {
  return host.run(["env", "LASTHOP_TC=clsact", ...lasthop.argv("--json", ...args)]);
}

async function attachByClsact(): Promise<AttachResult> {
  const output = await clsact("attach", "vnet0", "--role", "tap");
  expect(output).toMatchObject({ status: 0, stderr: "" });
  return JSON.parse(output.stdout) as AttachResult;
}

/** As when the bpf file system was mounted anew: filters stay, links do not. */
async function losePins(): Promise<void> {
  await must(["rm", "-r", lab.pinRoot]);
}

/** Ids by hook. */
async function programs(): Promise<{ tcx: number[]; clsact: number[] }> {
  const output = await host.must([
    process.execPath,
    "--input-type=module",
    "-e",
    `import { Netlink } from "${repositoryPath("dist/kernel/netlink.js")}";
     import { tcxQuery } from "${repositoryPath("dist/libbpf/index.js")}";
     const netlink = new Netlink();
     const { ifindex } = netlink.link("vnet0");
     const clsact = netlink.filters(ifindex, 0xfffffff2).flatMap((filter) => filter.programId ?? []);
     process.stdout.write(JSON.stringify({ tcx: tcxQuery(ifindex, "ingress") ?? [], clsact }));`,
  ]);
  return JSON.parse(output) as { tcx: number[]; clsact: number[] };
}

describe("a filter of an instance that has lost its pins", () => {
  it("is replaced by ours at its place, when attached by hand", async () => {
    const old = await attachByClsact();
    await losePins();
    expect((await programs()).clsact).toEqual([old.program_id]);
    const now = await attachByClsact();
    expect(now.program_id).not.toBe(old.program_id);
    expect(await programs()).toEqual({ tcx: [], clsact: [now.program_id] });
    expect((await lasthop.status()).interfaces).toEqual([
      expect.objectContaining({ interface: "vnet0", state: "ok", foreign_program_ids: [] }),
    ]);
  });

  it("is replaced at its place by apply, and plan says what is up", async () => {
    const old = await attachByClsact();
    await losePins();
    configured.write(TAP);
    const output = await clsact("apply", "-c", configured.file);
    expect(output).toMatchObject({ status: 0, stderr: "" });
    const { clsact: ids } = await programs();
    expect(ids).toHaveLength(1);
    expect(ids).not.toContain(old.program_id);
    expect(JSON.parse((await clsact("plan", "-c", configured.file)).stdout)).toMatchObject({ actions: [] });
  });

  it("goes when ours is attached elsewhere, by hand or by apply", async () => {
    await attachByClsact();
    await losePins();
    const byHand = await lasthop.attach("vnet0", "tap");
    expect(byHand.hook).toBe("tcx");
    expect(byHand.actions.join("\n")).toContain("of which nothing else is left");
    expect(await programs()).toEqual({ tcx: [byHand.program_id], clsact: [] });

    await lasthop.must("detach", "vnet0");
    await attachByClsact();
    await losePins();
    expect(told(await configured.plan(TAP))).toEqual(
      expect.arrayContaining(["attach vnet0", "repair vnet0"]),
    );
    expect((await configured.apply(TAP)).failed).toEqual([]);
    const { tcx, clsact: left } = await programs();
    expect(left).toEqual([]);
    expect(tcx).toHaveLength(1);
  });

  it("goes where nothing is attached any more, with the qdisc", async () => {
    await attachByClsact();
    await losePins();
    expect(told(await configured.apply("{}"))).toEqual([`create-instance ${lab.pinRoot}`, "repair vnet0"]);
    expect(await programs()).toEqual({ tcx: [], clsact: [] });
    expect(await host.must(["tc", "qdisc", "show", "dev", "vnet0"])).not.toContain("clsact");
  });
});

describe("what is somebody's stays:", () => {
  it("a filter of another instance, which has its pins", async () => {
    const other = `${lab.pinRoot}-other`;
    const program = repositoryPath("dist/cli/main.js");
    const alone = ["env", "LASTHOP_TC=clsact", process.execPath, program, "--pin-root", other, "--json"];
    try {
      await host.must([...alone, "attach", "vnet0", "--role", "tap"]);
      const before = await programs();
      const refused = await clsact("attach", "vnet0", "--role", "tap");
      expect(JSON.parse(refused.stderr)).toMatchObject({ code: "E_FOREIGN" });
      configured.write(TAP);
      const applied = JSON.parse((await clsact("apply", "-c", configured.file)).stdout) as object;
      expect(applied).toMatchObject({ failed: [{ object: "vnet0", code: "E_FOREIGN" }] });
      expect(told(await configured.plan("{}"))).toEqual([]);
      expect(await programs()).toEqual(before);
    } finally {
      await host.must([...alone, "detach", "--all", "--purge"]);
    }
  });

  it("a filter with another name", async () => {
    await addFilter(host, "vnet0", "ingress", "count", 0x6c68);
    const before = await programs();
    expect(told(await configured.apply(TAP))).toEqual(expect.arrayContaining(["attach vnet0"]));
    expect((await programs()).clsact).toEqual(before.clsact);
  });
});

/** Attaches the pinned tap program once more by TCX, pinned as the link of an index. */
function addLink(pinnedFor: string): Promise<string> {
  return host.must([
    process.execPath,
    "--input-type=module",
    "-e",
    `import { Netlink } from "${repositoryPath("dist/kernel/netlink.js")}";
     import { openInstance } from "${repositoryPath("dist/kernel/instance.js")}";
     import { BpfLink } from "${repositoryPath("dist/libbpf/index.js")}";
     const instance = openInstance(${JSON.stringify(lab.pinRoot)});
     const { ifindex } = new Netlink().link("vnet0");
     const link = BpfLink.attachTcx(instance.program("reply_tc"), ifindex, "ingress");
     link.pin(instance.linkPath("tap-" + ${pinnedFor}));`,
  ]);
}

describe("two programs of ours on one interface", () => {
  it("become the one that the table knows", async () => {
    await attachByClsact();
    await addLink("ifindex");
    expect(await programs()).toMatchObject({ tcx: [expect.any(Number)], clsact: [expect.any(Number)] });
    configured.write(TAP);
    const output = JSON.parse((await clsact("apply", "-c", configured.file)).stdout) as { done: string[] };
    expect(output.done.join("\n")).toContain("vnet0: one program less (tcx)");
    expect(await programs()).toMatchObject({ tcx: [], clsact: [expect.any(Number)] });
    expect(JSON.parse((await clsact("plan", "-c", configured.file)).stdout)).toMatchObject({ actions: [] });
  });

  it("become one when the mode changes at the same time", async () => {
    await attachByClsact();
    await addLink("ifindex");
    expect((await configured.apply(TAP)).failed).toEqual([]);
    const { tcx, clsact: left } = await programs();
    expect(tcx.length + left.length).toBe(1);
    const { hook } = await lasthop.attach("vnet0", "tap", { mode: "tc" });
    expect(hook).toBe("tcx");
    expect(await programs()).toEqual({ tcx: [expect.any(Number)], clsact: [] });
  });
});

describe("a link that belongs to no interface of the table", () => {
  it("is removed", async () => {
    await configured.apply("taps: [{name: p-vnet0}]");
    await addLink("ifindex");
    expect(told(await configured.apply("taps: [{name: p-vnet0}]"))).toEqual(["repair vnet0"]);
    expect(await programs()).toEqual({ tcx: [], clsact: [] });
  });

  it("is removed, whatever index it is pinned for", async () => {
    await configured.apply("taps: [{name: p-vnet0}]");
    await addLink("987654");
    expect(told(await configured.apply("taps: [{name: p-vnet0}]"))).toEqual(["repair if987654"]);
    expect(await programs()).toEqual({ tcx: [], clsact: [] });
  });
});
