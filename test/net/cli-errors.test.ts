// SPDX-License-Identifier: Apache-2.0
// The command line tool on a real host where something is wrong: a clear error, and nothing has changed.

import { mkdirSync, readdirSync, rmSync } from "node:fs";
import { afterAll, beforeAll, beforeEach, describe, expect, it, onTestFinished } from "vitest";
import type { StatusReport } from "../../src/ops/types.ts";
import { BPFFS, Lab, type Namespace } from "../support/lab.ts";
import { Lasthop } from "../support/lasthop.ts";
import { repositoryPath } from "../support/paths.ts";
import { must, type Output, run, sleep } from "../support/run.ts";

let lab: Lab;
let host: Namespace;
let lasthop: Lasthop;

beforeAll(async () => {
  await must(["make", "-s", "-C", repositoryPath("."), "build/test/net/xdp-pass.bpf.o"]);
  lab = new Lab();
  host = lab.namespace("host");
  await must(["ip", "netns", "add", host.name]);
  const pair = (name: string) => `link add ${name} type veth peer name ${name}p`;
  await host.ip(
    "link set lo up",
    ...["up-a", "up-b", "tap1"].flatMap((name) => [
      pair(name),
      `link set ${name} up`,
      `link set ${name}p up`,
    ]),
    "link add plain type bridge",
    "link add br0 type bridge",
  );
  lasthop = await Lasthop.on(lab, host);
});
afterAll(() => lab?.close());

interface Failure {
  code: string;
  message: string;
  hint: string | null;
}

/** The one error object that a failed command writes. */
function failure(output: Output, status = 1): Failure {
  expect(output.stdout).toBe("");
  expect(output.status).toBe(status);
  const lines = output.stderr.trimEnd().split("\n");
  const errors = lines.map((line) => JSON.parse(line)).filter((line) => "code" in line);
  expect(errors).toHaveLength(1);
  expect(Object.keys(errors[0])).toEqual(["code", "message", "hint"]);
  return errors[0] as Failure;
}

async function fails(...args: string[]): Promise<Failure> {
  return failure(await lasthop.run("--json", ...args));
}

/** Everything that a command could have left: pins, links and filters on interfaces. */
async function traces(): Promise<unknown> {
  const pins = readdirSync(BPFFS, { recursive: true, encoding: "utf8" }).filter((path) =>
    path.startsWith(lab.id),
  );
  const net = JSON.parse(await host.must(["bpftool", "-j", "net", "show"])) as unknown;
  const qdiscs = await host.must(["tc", "qdisc", "show"]);
  return { pins: pins.sort(), net, qdiscs };
}

/** As `run`, but with other rights or mounts; `wrapper` ends where the command begins. */
function runIn(wrapper: string[], ...args: string[]): Promise<Output> {
  return host.run([...wrapper, ...lasthop.argv("--json", ...args)]);
}

describe("where nothing is attached", () => {
  it.each([
    ["status"],
    ["flows", "list"],
    ["flows", "show", "tcp", "192.0.2.1:1", "192.0.2.2:2"],
    ["flows", "flush", "--all"],
    ["last-hops", "list"],
    ["trace", "tcp", "192.0.2.1:1", "192.0.2.2:2"],
    ["stats"],
    ["sweep"],
    ["bypass", "on"],
    ["detach", "up-a"],
  ])("%s %s: E_NO_TABLES", async (...args) => {
    const error = await fails(...args);
    expect(error).toMatchObject({ code: "E_NO_TABLES", message: expect.stringContaining(lab.pinRoot) });
    expect(error.hint).toMatch(/lasthop attach/);
  });

  it("detach --all has nothing to do, and that is no error", async () => {
    for (const args of [["--all"], ["--all", "--purge"]]) {
      expect(await lasthop.must("detach", ...args)).toBe("nothing was attached\n");
    }
  });
});

describe("attach refuses", () => {
  let before: unknown;
  beforeEach(async () => {
    before = await traces();
  });
  async function refuses(...args: string[]): Promise<Failure> {
    const error = await fails("attach", ...args);
    expect(await traces()).toEqual(before);
    return error;
  }

  it("an unknown interface, and knows which was meant", async () => {
    const error = await refuses("up-aa", "--role", "uplink");
    expect(error.code).toBe("E_NO_INTERFACE");
    expect(error.message).toContain("up-aa");
    expect(error.hint).toContain("up-a");
  });

  it("a name that no interface can have", async () => {
    expect((await refuses("x".repeat(40), "--role", "tap")).code).toBe("E_NO_INTERFACE");
    expect((await refuses("../../etc", "--role", "tap")).code).toBe("E_NO_INTERFACE");
  });

  it.each(["uplink", "tap"])("loopback as %s", async (role) => {
    const error = await refuses("lo", "--role", role);
    expect(error).toMatchObject({ code: "E_INTERFACE", message: expect.stringContaining("loopback") });
  });

  it("a mode that the driver has not", async () => {
    const error = await refuses("plain", "--role", "uplink", "--mode", "native");
    expect(error).toMatchObject({ code: "E_MODE", message: expect.stringContaining("plain") });
    expect(error.hint).toContain("--mode tc");
  });

  it("XDP on a tap", async () => {
    expect(await refuses("tap1", "--role", "tap", "--mode", "generic")).toMatchObject({ code: "E_MODE" });
  });

  it("an interface with a foreign XDP program, naming it", async () => {
    const object = repositoryPath("build/test/net/xdp-pass.bpf.o");
    await host.must(["ip", "link", "set", "up-b", "xdpdrv", "object", object, "section", "xdp"]);
    onTestFinished(async () => void (await host.must(["ip", "link", "set", "up-b", "xdpdrv", "off"])));
    const [shown] = JSON.parse(await host.must(["ip", "-j", "link", "show", "up-b"]));
    const id = shown.xdp.prog.id as number;
    before = await traces();
    for (const mode of ["native", "generic"]) {
      const error = await refuses("up-b", "--role", "uplink", "--mode", mode);
      expect(error.code).toBe("E_FOREIGN");
      expect(error.message).toMatch(new RegExp(`\\b${id}\\b`));
    }
  });

  it.each([
    ["that is no path of a bpf file system", "/tmp", "E_BPFFS"],
    ["that is relative", "lasthop", "E_BPFFS"],
    ["that bpffs cannot have", `${BPFFS}/with.dot`, "E_BPFFS"],
    ["below something that is no directory", "/dev/null/x", "E_BPFFS"],
  ])("a pin root %s", async (_, pinRoot, code) => {
    const argv = [process.execPath, repositoryPath("dist/cli/main.js"), "--json", "--pin-root", pinRoot];
    for (const args of [["attach", "up-a", "--role", "uplink"], ["status"], ["detach", "--all"]]) {
      const error = failure(await host.run([...argv, ...args]));
      expect([args[0], error.code]).toEqual([args[0], code]);
      expect(error.message).toContain(pinRoot);
    }
    expect(await traces()).toEqual(before);
  });

  it("a bpf file system that is not mounted", async () => {
    const script = `umount ${BPFFS} && exec "$@"`;
    const error = failure(
      await runIn(["unshare", "--mount", "sh", "-c", script, "sh"], "attach", "up-a", "--role", "uplink"),
    );
    expect(error.code).toBe("E_BPFFS");
    expect(error.hint).toContain(`mount -t bpf bpf ${BPFFS}`);
    expect(await traces()).toEqual(before);
  });

  it("a bpf file system that is read-only", async () => {
    const script = `mount -t bpf bpf ${BPFFS} && mount -o remount,ro ${BPFFS} && exec "$@"`;
    const error = failure(
      await runIn(["unshare", "--mount", "sh", "-c", script, "sh"], "attach", "up-a", "--role", "uplink"),
    );
    expect(error).toMatchObject({ code: "E_BPFFS", message: expect.stringContaining("read-only") });
    expect(await traces()).toEqual(before);
  });

  it("a process without a capability, naming it", async () => {
    for (const [drop, named] of [
      ["-net_admin", "CAP_NET_ADMIN"],
      ["-bpf,-sys_admin", "CAP_BPF"],
      ["-perfmon,-sys_admin", "CAP_PERFMON"],
    ] as const) {
      const error = failure(
        await runIn(["setpriv", `--bounding-set=${drop}`], "attach", "up-a", "--role", "uplink"),
      );
      expect(error).toMatchObject({ code: "E_NOT_ROOT", message: expect.stringContaining(named) });
      expect(error.hint).toMatch(/root/);
    }
    expect(await traces()).toEqual(before);
  });
});

const NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

describe("somebody who is not root", () => {
  it.each([
    ["attach", "up-a", "--role", "uplink"],
    ["detach", "--all"],
    ["bypass", "on"],
    ["status"],
    ["flows", "list"],
    ["stats"],
    ["sweep"],
  ])("is told so by %s", async (...args) => {
    const readable = await run([...NOBODY, "test", "-r", repositoryPath("dist/cli/main.js")]);
    const wrapper = readable.status === 0 ? NOBODY : ["setpriv", "--bounding-set=-all"];
    const error = failure(await runIn(wrapper, ...args));
    expect(error.code).toMatch(/^E_(NOT_ROOT|BPFFS)$/);
    expect(`${error.message} ${error.hint}`).toMatch(/root/);
  });
});

describe("with something attached", () => {
  beforeAll(async () => {
    await lasthop.attach("up-a", "uplink");
    await lasthop.attach("tap1", "tap");
  });
  afterAll(() => lasthop.detachAll());

  it("another network namespace is refused the tables", async () => {
    const other = lab.namespace("other");
    await must(["ip", "netns", "add", other.name]);
    for (const args of [["status"], ["attach", "lo", "--role", "tap"], ["stats"], ["detach", "--all"]]) {
      const error = failure(await other.run(lasthop.argv("--json", ...args)));
      expect(error.code).toBe(args[1] === "lo" ? "E_INTERFACE" : "E_NETNS");
      if (error.code === "E_NETNS") expect(error.hint).toContain(host.name);
    }
  });

  it("detach names what is attached when it does not know a name", async () => {
    const before = await traces();
    expect(await fails("detach", "tap1", "up-aa")).toMatchObject({
      code: "E_NO_INTERFACE",
      hint: expect.stringContaining("up-a"),
    });
    expect(await fails("detach", "up-b")).toMatchObject({ code: "E_INTERFACE" });
    expect(await traces()).toEqual(before);
  });

  it("a filter that cannot be is refused", async () => {
    for (const filter of [
      ["--state", "foo"],
      ["--address", "1.2.3"],
      ["--address", "10.0.0.0/33"],
      ["--device-mac", "02:00"],
      ["--interface", "nosuch"],
    ]) {
      for (const action of ["list", "flush"]) {
        const output = await lasthop.run("--json", "flows", action, ...filter);
        expect([filter, output.status === 1 || output.status === 2]).toEqual([filter, true]);
        expect(failure(output, output.status).message).toContain(filter[1]);
      }
    }
  });

  it("a flow that is not there is E_NOT_FOUND", async () => {
    expect(await fails("flows", "show", "udp", "[2001:db8::1]:1", "[2001:db8::2]:2")).toMatchObject({
      code: "E_NOT_FOUND",
      message: expect.stringContaining("udp [2001:db8::1]:1 -> [2001:db8::2]:2"),
    });
  });

  it("who waits for the lock gives up after 5 s, and has changed nothing", async () => {
    const before = await traces();
    const holder = host.start(["flock", "--no-fork", lab.pinRoot, "sh", "-c", "echo held; exec sleep 60"]);
    await holder.writes(/held/);
    const [error, other] = await Promise.all([
      fails("attach", "up-b", "--role", "uplink"),
      fails("bypass", "on"),
      // Looking needs no lock.
      lasthop.status(),
    ]);
    expect([error.code, other.code]).toEqual(["E_LOCKED", "E_LOCKED"]);
    expect(await traces()).toEqual(before);
    await holder.stop();
  });

  it("an interface that goes away while attach waits is an error, and leaves nothing", async () => {
    await host.ip("link add shortlived type veth peer name shortlivedp");
    const before = await traces();
    const holder = host.start(["flock", "--no-fork", lab.pinRoot, "sh", "-c", "echo held; exec sleep 60"]);
    await holder.writes(/held/);
    const attaching = fails("attach", "shortlived", "--role", "uplink");
    await sleep(1_000);
    await host.ip("link del shortlived");
    await holder.stop();
    expect(await attaching).toMatchObject({
      code: "E_NO_INTERFACE",
      message: expect.stringContaining("shortlived"),
    });
    const after = (await traces()) as { pins: string[] };
    expect(after.pins).toEqual((before as { pins: string[] }).pins);
  });

  it("attaches at once wait for each other, and all succeed", async () => {
    const policies = ["observe", "off", "enforce", "observe", "off", "enforce"];
    const outputs = await Promise.all(
      policies.map((policy) => lasthop.run("attach", "tap1", "--role", "tap", "--policy", policy)),
    );
    for (const output of outputs) expect(output).toMatchObject({ status: 0, stderr: "" });
    const report = await lasthop.status();
    expect(report.interfaces.filter((item) => item.interface === "tap1")).toHaveLength(1);
  });
});

it("tables of another version are refused, and named", async () => {
  await lasthop.attach("up-a", "uplink");
  const { pin_path: path } = await lasthop.json<StatusReport>("status");
  const other = `${lab.pinRoot}/v1-00000000`;
  await must(["mv", path, other]);
  for (const args of [["status"], ["flows", "list"], ["attach", "up-b", "--role", "uplink"]]) {
    const error = await fails(...args);
    expect(error).toMatchObject({ code: "E_ABI", message: expect.stringContaining("v1-00000000") });
    expect(error.hint).toContain("detach --all --purge");
  }
  await lasthop.must("detach", "--all", "--purge");
  mkdirSync(lab.pinRoot, { recursive: true });
  expect(readdirSync(lab.pinRoot)).toEqual([]);
  rmSync(lab.pinRoot, { recursive: true });
  expect(JSON.stringify(JSON.parse(await host.must(["bpftool", "-j", "net", "show"])))).not.toContain(
    "learn_",
  );
});
