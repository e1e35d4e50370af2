// SPDX-License-Identifier: Apache-2.0
// VMs and services by hand, without traffic: what the command line enters, shows, refuses and takes back, and who may
// change what while a daemon holds the instance.

import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type {
  DoctorReport,
  ServiceChange,
  ServiceDetails,
  ServiceEntry,
  VmChange,
  VmDetails,
  VmEntry,
} from "../../src/ops/types.ts";
import { Configured, told } from "../support/configured.ts";
import { startHolder } from "../support/holder.ts";
import { Lab, type Namespace } from "../support/lab.ts";
import { Lasthop } from "../support/lasthop.ts";
import { type Background, must, until } from "../support/run.ts";

let lab: Lab;
let host: Namespace;
let lasthop: Lasthop;
let configured: Configured;

const MAC = (number: number): string => `02:00:00:00:01:0${number}`;
const NAME_31 = "n".repeat(31);

beforeAll(async () => {
  lab = new Lab();
  host = lab.namespace("host");
  await must(["ip", "netns", "add", host.name]);
  await host.ip(
    "link set lo up",
    // Nobody says anything by himself, so that nothing is found out.
    ...["up0", "vnet0", "vnet1", "vnet2", "vnet7"].flatMap((name) => [
      `link add ${name} type veth peer name p-${name}`,
      `link set ${name} addrgenmode none`,
      `link set p-${name} addrgenmode none`,
      `link set ${name} up`,
      `link set p-${name} up`,
    ]),
  );
  lasthop = await Lasthop.on(lab, host);
  configured = new Configured(lasthop);
});
afterAll(async () => {
  configured?.close();
  await lab?.close();
});

/** vnet2 is left alone. Programs are loaded once: that takes longer than all else here. */
async function attach(): Promise<void> {
  await lasthop.attachAll(["up0"], ["vnet0", "vnet1"]);
  await lasthop.attach("vnet7", "tap", { zone: 7 });
}

const vms = async () => (await lasthop.json<{ vms: VmEntry[] }>("vms", "list")).vms;
const services = async () => (await lasthop.json<{ services: ServiceEntry[] }>("services", "list")).services;
const showVm = (name: string) => lasthop.json<VmDetails>("vms", "show", name);
const showService = (name: string) => lasthop.json<ServiceDetails>("services", "show", name);

/** With nothing that time changes. */
async function everything(): Promise<unknown> {
  const all = (await vms()).map(({ changed_seconds_ago: _, ...vm }) => vm);
  return { vms: all, services: await services() };
}

/** Adds something, and gives what stderr said. */
async function warned(...args: string[]): Promise<string> {
  const { status, stderr } = await lasthop.run(...args);
  expect(status, stderr).toBe(0);
  return stderr;
}

describe("without tables", () => {
  it.each([
    ["vms", "list"],
    ["services", "show", "x"],
    ["vms", "add", "x", "--tap", "vnet0"],
    ["services", "add", "x", "--address", "192.0.2.9", "--vm", "y"],
    ["vms", "drain", "x"],
  ])("%s %s says that nothing is attached", async (...args) => {
    const { status, stderr } = await lasthop.run("--json", ...args);
    expect({ status, code: (JSON.parse(stderr) as { code: string }).code }).toEqual({
      status: 1,
      code: "E_NO_TABLES",
    });
  });
});

describe("by hand", () => {
  beforeAll(attach);
  afterAll(async () => {
    await lasthop.must("services", "remove", "www");
    for (const name of ["web1", "web2", "far"]) await lasthop.must("vms", "remove", name);
  });

  it("nothing is there at first", async () => {
    expect(await lasthop.must("vms", "list")).toBe("no VM has a name\n");
    expect(await lasthop.must("services", "list")).toBe("there is no service\n");
    expect(await lasthop.status()).toMatchObject({ services: { total: 0 }, vms: { total: 0 } });
  });

  it("a VM is up as soon as its tap and its MAC are known", async () => {
    const change = await lasthop.json<VmChange>("vms", "add", "web1", "--tap", "vnet0", "--mac", MAC(1));
    expect(change).toMatchObject({ name: "web1", state: "up", cause: null });
    expect(change.actions[0]).toBe("VM web1: entered");
    expect(await showVm("web1")).toMatchObject({
      origin: "manual",
      zone: 0,
      tap: "vnet0",
      mac: MAC(1),
      why: null,
      operator: null,
      health: "unknown",
      services: [],
      flows: 0,
      id: expect.any(Number),
      given: { tap: "vnet0", mac: MAC(1) },
      attached: true,
      check: null,
    });
    expect(await lasthop.must("vms", "show", "web1")).toMatch(/^ {2}state +up$/m);
  });

  it("one whose MAC nobody knows is down, and says why", async () => {
    expect(await lasthop.json("vms", "add", NAME_31, "--tap", "vnet1")).toMatchObject({
      state: "down",
      cause: "neighbour",
    });
    expect(await showVm(NAME_31)).toMatchObject({ mac: null, id: null, why: expect.stringContaining("MAC") });
    await lasthop.must("vms", "remove", NAME_31);
  });

  it("has what was asked for, and by its tap's zone", async () => {
    const flags = ["--label", "web,linux", "--label", "prod", "--address", "10.7.0.7"];
    const check = ["--check", "http:8080/health", "--check-interval", "0.5", "--check-host", "a.example"];
    await lasthop.must("vms", "add", "far", "--tap", "vnet7", "--mac", MAC(7), ...flags, ...check);
    expect(await showVm("far")).toMatchObject({
      zone: 7,
      labels: ["web", "linux", "prod"],
      address: "10.7.0.7",
      check: {
        kind: "http",
        port: 8080,
        path: "/health",
        host: "a.example",
        interval_seconds: 0.5,
        timeout_seconds: 2,
        fall: 3,
        rise: 2,
      },
    });
    expect((await vms()).map(({ name }) => name)).toEqual(["far", "web1"]);
  });

  it("says so if its tap is not attached", async () => {
    const said = await warned("vms", "add", "lost", "--tap", "vnet2", "--mac", MAC(3));
    expect(said).toMatch(/vnet2 is not attached .*lasthop attach vnet2 --role tap/);
    expect(await showVm("lost")).toMatchObject({
      state: "down",
      cause: "interface",
      attached: false,
      why: expect.stringContaining("vnet2 is not attached"),
    });
  });

  it("a service without a VM that is up says so", async () => {
    const said = await warned("services", "add", "empty", "--address", "192.0.2.9", "--vm", "lost");
    expect(said).toMatch(/no VM of empty is up/);
    expect(await lasthop.status()).toMatchObject({ services: { total: 1, empty: 1 } });
    await lasthop.must("services", "remove", "empty");
    await lasthop.must("vms", "remove", "lost");
  });

  it("a service has a pool, with shares of those that are up", async () => {
    await lasthop.must("vms", "add", "web2", "--tap", "vnet1", "--mac", MAC(2), "--label", "web");
    const flags = [
      "--vm",
      "web1=3",
      "--label",
      "web",
      "--associate",
      "10.1.0.0/16=web2,2001:db8::/32=label:web",
    ];
    const address = ["--address", "192.0.2.80", "--port", "443", "--affinity", "60", "--on-vm-down", "reset"];
    const change = await lasthop.json<ServiceChange>("services", "add", "www", ...address, ...flags);
    expect(change).toMatchObject({ name: "www", vms_up: 2, vms_total: 2 });
    expect(await showService("www")).toMatchObject({
      origin: "manual",
      address: "192.0.2.80",
      port: 443,
      protocol: "tcp",
      policy: "maglev",
      on_vm_down: "reset",
      answer: "host",
      affinity_seconds: 60,
      flows_started: 0,
      pool: [
        { vm: "web1", label: null, weight: 3, share: 0.75, state: "up" },
        { vm: "web2", label: "web", weight: 1, share: 0.25, state: "up" },
      ],
      associations: [
        { client: "10.1.0.0/16", vm: "web2", label: null, vms_up: 1, vms_total: 1 },
        { client: "2001:db8::/32", vm: null, label: "web", vms_up: 1, vms_total: 1 },
      ],
    });
    expect((await showVm("web2")).services).toEqual(["www"]);
    expect(await lasthop.must("services", "show", "www")).toMatch(/^web1 +- +up +3 +75\.0% +0$/m);
  });

  it("explain tells which VMs a request may go to", async () => {
    const explain = async (client: string) =>
      (await lasthop.json<{ delivery: string }>("explain", "tcp", `${client}:1000`, "192.0.2.80:443"))
        .delivery;
    expect(await explain("198.51.100.7")).toMatch(/service www, for one of 2 VMs \(web1, web2\), by maglev/);
    expect(await explain("10.1.2.3")).toMatch(/for web2: its client is in 10\.1\.0\.0\/16/);
    const other = ["explain", "tcp", "198.51.100.7:1000", "192.0.2.80:80"];
    expect(await lasthop.json(...other)).toMatchObject({ service: null, delivery: null });
    expect(await lasthop.must("explain", "tcp", "10.1.2.3:1", "192.0.2.80:443")).toMatch(
      /^service: +www, maglev, 2 of 2 VMs up, on VM down reset$/m,
    );
  });

  it("a drained VM is in no pool, a VM taken down neither, until it is up again", async () => {
    for (const [verb, state] of [
      ["drain", "drain"],
      ["down", "down"],
    ] as const) {
      expect(await lasthop.json("vms", verb, "web1")).toMatchObject({ state, cause: "operator" });
      // A second time it changes nothing.
      expect(await lasthop.json("vms", verb, "web1")).toMatchObject({ state, cause: "operator" });
      expect(await showVm("web1")).toMatchObject({
        state,
        operator: state,
        why: expect.stringContaining("vms up"),
      });
      const { pool, vms_up } = await showService("www");
      expect({ vms_up, shares: pool.map(({ share }) => share) }).toEqual({ vms_up: 1, shares: [0, 1] });
    }
    expect(await lasthop.status()).toMatchObject({
      vms: { total: 3, up: 2, down: 1 },
      services: { empty: 0 },
    });
    expect(await lasthop.json("vms", "up", "web1")).toMatchObject({ state: "up", cause: null });
    expect((await showService("www")).vms_up).toBe(2);
  });

  it("doctor has a word for each, and finds a service of which no VM is up", async () => {
    const found = async () => {
      const { stdout } = await lasthop.run("--json", "doctor");
      const { checks } = JSON.parse(stdout) as DoctorReport;
      return new Map(checks.map((check) => [check.name, check]));
    };
    const names = ["services", "vms", "service hooks", "service addresses", "vm zones"];
    const before = await found();
    for (const name of names) expect(before.get(name), name).toMatchObject({ level: "ok" });
    await lasthop.must("vms", "down", "web1");
    await lasthop.must("vms", "drain", "web2");
    await host.ip("address add 192.0.2.80/32 dev lo");
    const after = await found();
    expect(after.get("services")).toMatchObject({ level: "warn", found: expect.stringContaining("www") });
    expect(after.get("vms")).toMatchObject({
      level: "warn",
      found: expect.stringMatching(/web1 is down: taken/),
    });
    expect(after.get("service addresses")).toMatchObject({
      level: "warn",
      found: "192.0.2.80 of the service www is the host's own, on lo",
    });
    await host.ip("address del 192.0.2.80/32 dev lo");
    await lasthop.must("vms", "up", "web1");
    await lasthop.must("vms", "up", "web2");
  });

  it("says where native XDP cannot hand frames to a tap", async () => {
    // As for any uplink: native XDP does not see a tag that was taken out.
    await host.must(["ethtool", "-K", "up0", "rx-vlan-hw-parse", "off", "rx-vlan-stag-hw-parse", "off"]);
    await lasthop.attach("up0", "uplink", { mode: "native" });
    const where = ["--address", "192.0.2.53", "--protocol", "udp"];
    const said = await warned("services", "add", "dns", ...where, "--vm", "web1,web2");
    expect(said).toContain(
      "by up0 (native XDP) does not reach the taps of web1, web2: attach it with --mode tc",
    );
    const { stdout } = await lasthop.run("--json", "doctor");
    const { checks } = JSON.parse(stdout) as DoctorReport;
    expect(checks.find(({ name }) => name === "service hooks")).toMatchObject({
      level: "warn",
      found: "native XDP on up0 cannot hand frames to the taps of web1, web2",
      hint: expect.stringContaining("`lasthop attach up0 --role uplink --mode tc`"),
    });
    await lasthop.must("services", "remove", "dns");
    await lasthop.attach("up0", "uplink", { mode: "tc" });
  });

  it("what is removed is gone, and its name and address are free again", async () => {
    const before = await everything();
    await lasthop.must("services", "add", "dns", "--address", "192.0.2.53", "--port", "53", "--vm", "web1");
    expect(await lasthop.json("services", "remove", "dns")).toMatchObject({ name: "dns", vms_up: null });
    await lasthop.must("services", "add", "dns", "--address", "192.0.2.53", "--port", "53", "--vm", "web2");
    await lasthop.must("services", "remove", "dns");
    expect(await everything()).toEqual(before);
  });
});

describe("what cannot be", () => {
  let before: unknown;
  beforeAll(async () => {
    await lasthop.must("vms", "add", "web1", "--tap", "vnet0", "--mac", MAC(1), "--label", "one");
    await lasthop.must("vms", "add", "web2", "--tap", "vnet1", "--mac", MAC(2), "--address", "10.0.0.2");
    await lasthop.must("vms", "add", "far", "--tap", "vnet7", "--mac", MAC(1), "--responses", "web2");
    const www = ["--address", "192.0.2.0/24", "--port", "443", "--vm", "web1", "--label", "one"];
    await lasthop.must("services", "add", "www", ...www);
    const other = ["--address", "192.0.2.128/25", "--answer", "vm:far", "--zone", "7", "--vm", "far"];
    await lasthop.must("services", "add", "other", ...other);
    before = await everything();
  });
  afterAll(async () => {
    for (const name of ["www", "other"]) await lasthop.must("services", "remove", name);
    for (const name of ["far", "web1", "web2"]) await lasthop.must("vms", "remove", name);
  });

  const add = (...more: string[]) => ["vms", "add", "x", ...more];
  const serve = (...more: string[]) => ["services", "add", "x", ...more];
  const VIP = ["--address", "198.51.100.9"];

  it.each<[what: string, code: string, message: RegExp, args: string[]]>([
    ["nothing to find a VM by", "E_VM", /needs a tap, a mac or an address/, add()],
    ["a name that is too long", "E_USAGE", /up to 31/, ["vms", "add", "n".repeat(32), "--tap", "vnet2"]],
    ["a name that is taken", "E_VM", /there is a VM web1 already/, ["vms", "add", "web1", "--tap", "vnet2"]],
    ["another VM's MAC", "E_VM", /is the VM web1's/, add("--mac", MAC(1).toUpperCase())],
    ["another VM's address", "E_VM", /is the VM web2's/, add("--address", "10.0.0.2")],
    ["another VM's tap", "E_VM", /web1 is on vnet0 too/, add("--tap", "vnet0")],
    ["an uplink for its tap", "E_VM", /up0 is an uplink/, add("--tap", "up0")],
    ["a tap of another zone", "E_VM", /vnet7 is in zone 7, not 0/, add("--tap", "vnet7", "--zone", "0")],
    ["a zone that cannot be", "E_USAGE", /65536/, add("--tap", "vnet2", "--zone", "65536")],
    ["responses to nobody", "E_VM", /no VM is called "y"/, add("--tap", "vnet2", "--responses", "y")],
    ["a check without anybody to ask", "E_VM", /nobody to ask/, add("--tap", "vnet2", "--check", "icmp")],
    ["an unknown VM to show", "E_NOT_FOUND", /no VM "wbe1"/, ["vms", "show", "wbe1"]],
    ["an unknown VM to remove", "E_NOT_FOUND", /no VM/, ["vms", "remove", "n".repeat(40)]],
    ["removing a VM in use", "E_VM", /the service www names it/, ["vms", "remove", "web1"]],
    ["removing the VM of responses", "E_VM", /responses to the VM far go to it/, ["vms", "remove", "web2"]],
    ["removing an answering VM", "E_VM", /the service other answers with its MAC/, ["vms", "remove", "far"]],

    ["an empty pool", "E_USAGE", /at least one VM/, serve(...VIP)],
    ["a weight of 0", "E_USAGE", /from 1 to 256/, serve(...VIP, "--vm", "web1=0")],
    ["an unknown VM in the pool", "E_SERVICE", /no VM is called "web9"/, serve(...VIP, "--vm", "web9")],
    ["a label that nobody has", "E_SERVICE", /has the label "two"/, serve(...VIP, "--label", "two")],
    ["a VM of another zone", "E_SERVICE", /far is in another zone/, serve(...VIP, "--vm", "far")],
    ["no VM in that zone", "E_SERVICE", /another zone/, serve(...VIP, "--vm", "web1", "--zone", "9")],
    [
      "an unknown associated VM",
      "E_SERVICE",
      /"web9"/,
      serve(...VIP, "--vm", "web1", "--associate", "10.0.0.0/8=web9"),
    ],
    ["an unknown answering VM", "E_SERVICE", /"web9"/, serve(...VIP, "--vm", "web1", "--answer", "vm:web9")],
    [
      "ICMP with a port",
      "E_SERVICE",
      /ICMP has no ports/,
      serve(...VIP, "--vm", "web1", "--protocol", "icmp", "--port", "1"),
    ],
    [
      "the same selectors",
      "E_SERVICE",
      /"?www"?/,
      serve("--address", "192.0.2.0/24", "--port", "443", "--vm", "web1"),
    ],
    ["neither more specific", "E_SERVICE", /overlap/, serve("--address", "192.0.2.9", "--vm", "web1")],
    [
      "a service that is there",
      "E_SERVICE",
      /there is a service www already/,
      ["services", "add", "www", ...VIP, "--vm", "web1"],
    ],
    ["a name of 32", "E_USAGE", /up to 31/, ["services", "add", "n".repeat(32), ...VIP, "--vm", "web1"]],
    ["an unknown service to show", "E_NOT_FOUND", /no service "wwww"/, ["services", "show", "wwww"]],
    ["an unknown service to remove", "E_NOT_FOUND", /no service "wwww"/, ["services", "remove", "wwww"]],
  ])("%s: %s", async (_what, code, message, args) => {
    const { status, stderr } = await lasthop.run("--json", ...args);
    expect(JSON.parse(stderr)).toMatchObject({ code, message: expect.stringMatching(message) });
    expect(status).toBe(code === "E_USAGE" ? 2 : 1);
  });

  it("and after all of that nothing has changed", async () => {
    expect(await everything()).toEqual(before);
  });

  it("an unknown name gets the one that was meant", async () => {
    const { stderr } = await lasthop.run("--json", "vms", "show", "wbe1");
    expect(JSON.parse(stderr)).toMatchObject({ hint: "Did you mean web1?" });
  });
});

describe("beside a configuration", () => {
  const VM = `{name: web1, tap: vnet0, mac: "${MAC(1)}", labels: [web]}`;
  const SERVICE = "{name: www, address: 192.0.2.80, port: 443, pool: [{vm: web1}]}";
  const CONFIG = `{uplinks: [{name: up0}], taps: [{name: vnet0}, {name: vnet1}], vms: [${VM}], services: [${SERVICE}]}`;
  const BARE = "{uplinks: [{name: up0}], taps: [{name: vnet0}, {name: vnet1}]}";
  let holder: Background | undefined;

  async function hold(): Promise<void> {
    holder = startHolder(host, lab.pinRoot);
    await until(() => holder!.stdout.includes("held"), "the hold");
  }
  beforeAll(async () => {
    await lasthop.must("vms", "add", "own", "--tap", "vnet1", "--mac", MAC(2));
    await lasthop.must("services", "add", "mine", "--address", "192.0.2.81", "--vm", "own");
  });
  afterEach(async () => {
    await holder?.stop("SIGKILL");
    holder = undefined;
  });

  it("what was made by hand stays, what was configured comes and goes", async () => {
    await configured.apply(CONFIG);
    expect((await vms()).map(({ name, origin }) => [name, origin])).toEqual([
      ["own", "manual"],
      ["web1", "config"],
    ]);
    expect(told(await configured.plan(CONFIG))).toEqual([]);
    await configured.apply(BARE);
    expect((await vms()).map(({ name }) => name)).toEqual(["own"]);
    expect((await services()).map(({ name }) => name)).toEqual(["mine"]);
  });

  it("the operator's word holds for a configured VM too, and beyond a reload", async () => {
    await configured.apply(CONFIG);
    await hold();
    expect(await lasthop.json("vms", "drain", "web1")).toMatchObject({ state: "drain", cause: "operator" });
    await holder!.stop("SIGKILL");
    await configured.apply(CONFIG.replace("labels: [web]", "labels: [web, more]"));
    expect(await showVm("web1")).toMatchObject({
      state: "drain",
      operator: "drain",
      labels: ["web", "more"],
    });
    expect(await lasthop.json("vms", "up", "web1")).toMatchObject({ state: "up" });
  });

  it("while a daemon holds the instance, what it configured is refused with its key", async () => {
    await hold();
    for (const [args, key] of [
      [["vms", "remove", "web1"], /vms\.web1/],
      [["services", "remove", "www"], /services\.www/],
    ] as const) {
      const { status, stderr } = await lasthop.run("--json", ...args);
      expect(status).toBe(1);
      expect(JSON.parse(stderr)).toMatchObject({ code: "E_HELD", message: expect.stringMatching(key) });
    }
    await lasthop.must("services", "remove", "mine");
    await lasthop.must("vms", "remove", "own");
    expect((await vms()).map(({ name }) => name)).toEqual(["web1"]);
  });
});
