// SPDX-License-Identifier: Apache-2.0
// Every kind of interface that this kernel can make: which can be attached and how, what lasthop knows of each, and how
// that follows the host. A kind that the kernel lacks is a skipped test, so a kernel with more of them proves more.

import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { StructValue } from "../../src/abi/codec.ts";
import type { AttachResult, InterfaceStatus, LastHopEntry } from "../../src/ops/types.ts";
import { Configured, told } from "../support/configured.ts";
import { kernelIsAtLeast } from "../support/kernel.ts";
import { Lab, type Namespace } from "../support/lab.ts";
import { Lasthop } from "../support/lasthop.ts";
import { repositoryPath } from "../support/paths.ts";
import { type Background, must, until } from "../support/run.ts";

let lab: Lab;
let host: Namespace;
let lasthop: Lasthop;
let configured: Configured;
const daemons: Background[] = [];

beforeAll(async () => {
  lab = new Lab();
  host = lab.namespace("host");
  await must(["ip", "netns", "add", host.name]);
  lasthop = await Lasthop.on(lab, host);
  configured = new Configured(lasthop);
  await host.ip(
    "link set lo up",
    "link add u0 type veth peer name u1",
    "link set u0 up",
    "link set u1 up",
    "address add 192.0.2.1/24 dev u0",
    "address add 2001:db8::1/64 dev u0 nodad",
  );
});
afterEach(async () => {
  for (const daemon of daemons.splice(0)) await daemon.stop("SIGTERM");
  await lasthop.must("detach", "--all", "--purge");
  for (const name of await linkNames()) if (/^t\d/.test(name)) await host.run(["ip", "link", "del", name]);
});
afterAll(async () => {
  configured?.close();
  await lab?.close();
});

async function linkNames(): Promise<string[]> {
  const links = JSON.parse(await host.must(["ip", "-json", "link", "show"])) as { ifname: string }[];
  return links.map(({ ifname }) => ifname);
}

async function mtuOf(name: string): Promise<number> {
  const [link] = JSON.parse(await host.must(["ip", "-json", "link", "show", "dev", name])) as {
    mtu: number;
  }[];
  return link!.mtu;
}

async function statusOf(name: string): Promise<InterfaceStatus> {
  const found = (await lasthop.status()).interfaces.find((item) => item.interface === name);
  if (!found) throw new Error(`${name} is not attached`);
  return found;
}

/** Runs a module over the tables, in the host's namespace. Prints JSON. */
async function inTables<T>(program: string): Promise<T> {
  const text = `
    import { openInstance } from "${repositoryPath("dist/kernel/instance.js")}";
    import { Tables } from "${repositoryPath("dist/tables/index.js")}";
    const instance = openInstance(${JSON.stringify(lab.pinRoot)});
    const tables = new Tables(instance);
    const result = await (async () => { ${program} })();
    instance.close();
    process.stdout.write(JSON.stringify(result ?? null));`;
  return JSON.parse(await host.must([process.execPath, "--input-type=module", "-e", text])) as T;
}

type Entry = Omit<StructValue<"interface">, "icmp_source6"> & { icmp_source6: { data: number[] } };

function entryOf(name: string): Promise<Entry> {
  return inTables(`return tables.interfaces.list().find((entry) => entry.name === ${JSON.stringify(name)});`);
}

async function run(config: string): Promise<Background> {
  configured.write(config);
  const daemon = host.start(lasthop.argv("run", "--config", configured.file));
  daemons.push(daemon);
  await daemon.writes(/ started /, "stderr", 30_000);
  return daemon;
}

/** Makes it, or says why this kernel cannot. */
async function make(lines: readonly string[]): Promise<string | null> {
  for (const line of lines) {
    const output = await host.run(["ip", ...line.split(" ")]);
    if (output.status === 0) continue;
    const isLacking = /not supported|Unknown device type|No such device|No such file/i.test(output.stderr);
    if (!isLacking) throw new Error(`ip ${line}: ${output.stderr}`);
    return `this kernel has none: ip ${line}: ${output.stderr.trim()}`;
  }
  return null;
}

interface Kind {
  /** The last one makes t0. */
  make: string[];
  link_layer?: "none";
  shared?: true;
  /** The kernel that can be told of its packets. */
  since?: [major: number, minor: number];
}

const REMOTE4 = "local 192.0.2.1 remote 192.0.2.2";
const REMOTE6 = "local 2001:db8::1 remote 2001:db8::2";

const KINDS: Record<string, Kind> = {
  veth: { make: ["link add t0 type veth peer name t1"] },
  vlan: { make: ["link add t0 link u0 type vlan id 10"] },
  qinq: {
    make: [
      "link add t1 link u0 type vlan proto 802.1ad id 100",
      "link set t1 up",
      "link add t0 link t1 type vlan id 10",
    ],
  },
  bridge: { make: ["link add t0 type bridge"] },
  "vlan-aware bridge": { make: ["link add t0 type bridge vlan_filtering 1"] },
  bond: { make: ["link add t0 type bond"] },
  team: { make: ["link add t0 type team"] },
  macvlan: { make: ["link add t0 link u0 type macvlan mode bridge"] },
  "ipvlan l2": { make: ["link add t0 link u0 type ipvlan mode l2"] },
  vxlan: { make: [`link add t0 type vxlan id 5 dstport 4789 dev u0 ${REMOTE4}`] },
  "vxlan over IPv6": { make: [`link add t0 type vxlan id 5 dstport 4790 dev u0 ${REMOTE6}`] },
  "shared vxlan": { make: ["link add t0 type vxlan dstport 4791 external"], shared: true },
  geneve: { make: ["link add t0 type geneve id 5 remote 192.0.2.2"] },
  "shared geneve": { make: ["link add t0 type geneve dstport 6082 external"], shared: true },
  gretap: { make: [`link add t0 type gretap key 7 ${REMOTE4}`] },
  ip6gretap: { make: [`link add t0 type ip6gretap key 7 ${REMOTE6}`] },
  "shared gretap": { make: ["link add t0 type gretap external"], shared: true },
  erspan: { make: [`link add t0 type erspan seq key 7 erspan_ver 1 erspan 3 ${REMOTE4}`] },
  tun: { make: ["tuntap add t0 mode tun"], link_layer: "none" },
  gre: { make: [`link add t0 type gre ${REMOTE4}`], link_layer: "none" },
  ip6gre: { make: [`link add t0 type ip6gre ${REMOTE6}`], link_layer: "none" },
  "shared gre": { make: ["link add t0 type gre external"], link_layer: "none", shared: true },
  ipip: { make: [`link add t0 type ipip ${REMOTE4}`], link_layer: "none" },
  "shared ipip": { make: ["link add t0 type ipip external"], link_layer: "none", shared: true },
  sit: { make: [`link add t0 type sit ${REMOTE4}`], link_layer: "none" },
  ip6tnl: { make: [`link add t0 type ip6tnl mode any ${REMOTE6}`], link_layer: "none" },
  "shared ip6tnl": { make: ["link add t0 type ip6tnl external"], link_layer: "none", shared: true },
  vti: { make: [`link add t0 type vti key 7 ${REMOTE4}`], link_layer: "none" },
  vti6: { make: [`link add t0 type vti6 key 7 ${REMOTE6}`], link_layer: "none" },
  xfrm: { make: ["link add t0 type xfrm dev u0 if_id 7"], link_layer: "none" },
  "shared xfrm": {
    make: ["link add t0 type xfrm external"],
    link_layer: "none",
    shared: true,
    since: [6, 2],
  },
  wireguard: { make: ["link add t0 type wireguard"], link_layer: "none" },
};

async function expectTooOld(): Promise<void> {
  const refused = await lasthop.run("--json", "attach", "t0", "--role", "uplink");
  expect(JSON.parse(refused.stderr)).toMatchObject({
    code: "E_INTERFACE",
    message: expect.stringContaining("this kernel does not tell programs"),
  });
  expect((await lasthop.status()).interfaces).toEqual([]);
}

describe("an uplink may be", () => {
  it.for(Object.entries(KINDS))("%s", async ([, kind], { skip }) => {
    const lacking = await make(kind.make);
    if (lacking !== null) return skip(lacking);
    await host.ip("link set t0 up");
    if (kind.since !== undefined && !kernelIsAtLeast(...kind.since)) return await expectTooOld();
    const result = await lasthop.json<AttachResult>("attach", "t0", "--role", "uplink");
    expect(result.hook).toMatch(/^(tcx|clsact)$/);
    const expected = {
      link_layer: kind.link_layer ?? "ethernet",
      shared_tunnel: kind.shared ?? false,
      mtu: await mtuOf("t0"),
      clamp_mss: true,
      via: "redirect",
      mark: 0,
    };
    expect(await statusOf("t0")).toMatchObject({ ...expected, state: "ok", beneath: [] });
    const again = await lasthop.json<AttachResult>("attach", "t0", "--role", "uplink");
    expect(again.actions).toEqual([]);
    // XDP sees neither what has no link layer nor of which tunnel a packet is.
    if (kind.link_layer === "none" || kind.shared) {
      for (const mode of ["native", "generic"]) {
        const refused = await lasthop.run("--json", "attach", "t0", "--role", "uplink", "--mode", mode);
        expect(JSON.parse(refused.stderr)).toMatchObject({
          code: "E_MODE",
          hint: expect.stringContaining("lasthop attach t0 --role uplink --mode tc"),
        });
      }
    }
    if (kind.link_layer === "none") {
      const refused = await lasthop.run("--json", "attach", "t0", "--role", "tap");
      expect(JSON.parse(refused.stderr)).toMatchObject({
        code: "E_INTERFACE",
        message: expect.stringContaining("no Ethernet header"),
      });
    }
    await lasthop.must("detach", "t0");
    expect((await lasthop.status()).interfaces).toEqual([]);
  });
});

describe("an uplink cannot be", () => {
  const rows: [what: string, make: string[], why: RegExp][] = [
    ["an ifb", ["link add t0 type ifb"], /by another interface/],
    ["a dummy", ["link add t0 type dummy"], /nothing ever comes in/],
    ["a VRF", ["link add t0 type vrf table 5"], /VRF/],
    ["a macvtap", ["link add t0 link u0 type macvtap"], /macvtap/],
    ["an ipvlan that routes", ["link add t0 link u0 type ipvlan mode l3"], /mode l3/],
    ["a GRE without a remote", ["link add t0 type gre local 192.0.2.1"], /without a remote end/],
    ["an IPIP without a remote", ["link add t0 type ipip local 192.0.2.1"], /without a remote end/],
    ["a shared ERSPAN", ["link add t0 type erspan external"], /ERSPAN/],
    [
      "a slave of a bond",
      ["link add t1 type bond", "link add t0 type veth", "link set t0 master t1"],
      /slave/,
    ],
  ];
  it.for(rows)("%s", async ([, lines, why], { skip }) => {
    const lacking = await make(lines);
    if (lacking !== null) return skip(lacking);
    const output = await lasthop.run("--json", "attach", "t0", "--role", "uplink");
    expect(JSON.parse(output.stderr)).toMatchObject({
      code: "E_INTERFACE",
      message: expect.stringMatching(why),
      hint: expect.stringMatching(/.{15}/),
    });
  });

  it("loopback", async () => {
    const output = await lasthop.run("--json", "attach", "lo", "--role", "uplink");
    expect(JSON.parse(output.stderr)).toMatchObject({ code: "E_INTERFACE" });
  });
});

describe("two on top of each other", () => {
  const rows: [what: string, make: string[], upper: string, lower: string, tag: object, ports: boolean][] = [
    ["macvlan", ["link add t0 link u0 type macvlan"], "t0", "u0", { proto: 0, vid: 0 }, false],
    ["vlan", ["link add t0 link u0 type vlan id 10"], "t0", "u0", { proto: 0x8100, vid: 10 }, false],
    [
      "qinq, the middle one not attached",
      [
        "link add t1 link u0 type macvlan",
        "link set t1 up",
        "link add t0 link t1 type vlan proto 802.1ad id 9",
      ],
      "t0",
      "u0",
      { proto: 0x88a8, vid: 9 },
      false,
    ],
    [
      "bridge",
      ["link add t0 type bridge", "link add t1 type veth peer name t2", "link set t1 master t0"],
      "t0",
      "t1",
      { proto: 0, vid: 0 },
      true,
    ],
  ];
  it.for(rows)("%s: in either order", async ([, lines, upper, lower, tag, ports], { skip }) => {
    const lacking = await make(lines);
    if (lacking !== null) return skip(lacking);
    // Drivers bring netdevs of their own, some of which cannot be up.
    for (const name of await linkNames()) if (/^[tu]\d/.test(name)) await host.ip(`link set ${name} up`);
    const { ifindex } = (await lasthop.attach(lower, "uplink")) as AttachResult;
    const below = { lower_ifindex: ports ? 0 : ifindex, lower_tag: tag };
    await lasthop.attach(upper, "uplink");
    expect(await statusOf(upper)).toMatchObject({ beneath: [lower] });
    expect(await entryOf(upper)).toMatchObject(below);
    expect(await statusOf(lower)).toMatchObject({ beneath: [] });

    await lasthop.must("detach", lower);
    expect(await statusOf(upper)).toMatchObject({ beneath: [] });
    expect(await entryOf(upper)).toMatchObject({ lower_ifindex: 0, lower_tag: { proto: 0, vid: 0 } });

    // The other way round, and in another zone.
    const { actions } = await lasthop.attach(lower, "uplink");
    expect(actions.join("\n")).toContain(`${upper}: `);
    expect(await entryOf(upper)).toMatchObject(below);
    await lasthop.attach(lower, "uplink", { zone: 7 });
    expect(await statusOf(upper)).toMatchObject({ beneath: [] });
    await lasthop.attach(lower, "uplink", { zone: 0 });
    expect(await statusOf(upper)).toMatchObject({ beneath: [lower] });
    await lasthop.must("detach", upper);
    expect(await statusOf(lower)).toMatchObject({ beneath: [] });
  });

  it("is the same by the configuration, where nothing is left to do afterwards", async () => {
    await make(["link add t0 link u0 type macvlan", "link set t0 up"]);
    const both = "uplinks: [{name: t0}, {name: u0}]";
    await configured.apply(both);
    expect(await statusOf("t0")).toMatchObject({ beneath: ["u0"] });
    expect((await configured.plan(both)).actions).toEqual([]);
    const one = "uplinks: [{name: t0}]";
    expect(told(await configured.plan(one)).sort()).toEqual(["change t0", "detach u0"]);
    await configured.apply(one);
    expect(await statusOf("t0")).toMatchObject({ beneath: [] });
    expect((await configured.plan(one)).actions).toEqual([]);
  });

  it("a tunnel sees other packets than its underlay", async () => {
    await make([`link add t0 type vxlan id 5 dstport 4789 dev u0 ${REMOTE4}`, "link set t0 up"]);
    await lasthop.attachAll(["u0", "t0"], []);
    expect(await statusOf("t0")).toMatchObject({ beneath: [] });
  });

  it("a bridge that is an uplink is one of its taps' again when it is detached", async () => {
    await make([
      "link add t0 type bridge",
      "link set t0 up",
      "link add t1 type veth peer name t2",
      "link set t1 master t0",
      "link set t1 up",
    ]);
    await lasthop.attach("t1", "tap");
    const entry = await entryOf("t0");
    await lasthop.attach("t0", "uplink");
    expect((await lasthop.attach("t1", "tap")).actions).toEqual([]);
    await lasthop.must("detach", "t0");
    expect(await entryOf("t0")).toEqual(entry);
  });
});

describe("the way back", () => {
  it("by hand: is kept, changed and taken back", async () => {
    const attach = (...more: string[]) =>
      lasthop.json<AttachResult>("attach", "u0", "--role", "uplink", ...more);
    await attach("--mtu", "1400", "--no-clamp-mss", "--via", "stack", "--mark", "0x10");
    const way = { mtu: 1400, clamp_mss: false, via: "stack", mark: 16 };
    expect(await statusOf("u0")).toMatchObject(way);
    expect((await attach()).actions).toEqual([]);
    expect(await statusOf("u0")).toMatchObject(way);
    const changed = await attach("--mtu", "auto", "--clamp-mss", "--via", "redirect", "--mark", "0");
    expect(changed.actions).toHaveLength(1);
    expect(await statusOf("u0")).toMatchObject({ mtu: 1500, clamp_mss: true, via: "redirect", mark: 0 });
    for (const wrong of [
      ["--mtu", "67"],
      ["--mark", "0x1ffffffff"],
      ["--clamp-mss", "--no-clamp-mss"],
      ["--via", "route"],
    ]) {
      const output = await lasthop.run("--json", "attach", "u0", "--role", "uplink", ...wrong);
      expect(output.status).toBe(2);
    }
    const tap = await lasthop.run("--json", "attach", "u1", "--role", "tap", "--mtu", "1400");
    expect(JSON.parse(tap.stderr)).toMatchObject({ code: "E_USAGE" });
  });

  it("has the MTU that the interface has, as it changes; or the one that is configured", async () => {
    await make([
      "link add t0 type vxlan dstport 4789 external",
      "link set t0 up",
      "tuntap add t1 mode tun",
      "link set t1 up",
    ]);
    await run("uplinks: [{name: t0}, {name: t1}, {name: u0, mtu: 1300}]");
    expect((await statusOf("t0")).mtu).toBe(await mtuOf("t0"));
    await host.ip("link set t0 mtu 1372", "link set t1 mtu 1280", "link set u0 mtu 1400");
    await until(async () => (await statusOf("t1")).mtu === 1280, "the MTU of t1");
    await until(async () => (await statusOf("t0")).mtu === 1372, "the MTU of t0");
    expect((await statusOf("u0")).mtu).toBe(1300);
    await host.ip("link set u0 mtu 1500");
  });

  it("of label stacks: is written, repaired and removed as its own unit", async () => {
    const text = "mpls: {label_stacks: [{request: [100, 200], mark: 17}, {request: [300], mark: 18}]}";
    const stacks = () =>
      inTables("return [...tables.labelStacks.entries()].map(([k, mark]) => [k.labels, mark]).sort();");
    const both = [
      [[100, 200, 0, 0], 17],
      [[300, 0, 0, 0], 18],
    ];
    const report = await configured.apply(text);
    expect(told(report)).toContain("label-stacks label stacks");
    expect(await stacks()).toEqual(both);
    expect((await configured.plan(text)).actions).toEqual([]);
    await inTables(
      "tables.labelStacks.delete({ labels: [300] }); tables.labelStacks.set({ labels: [9] }, 1);",
    );
    await inTables("tables.labelStacks.set({ labels: [100, 200] }, 99);");
    const { actions } = await configured.plan(text);
    expect(actions.map((action) => action.text)).toEqual([
      "label stacks: 100/200 has mark 0x11, 300 has mark 0x12, 9 removed",
    ]);
    await configured.apply(text);
    expect(await stacks()).toEqual(both);
    await configured.apply("mpls: {label_stacks: []}");
    expect(await stacks()).toEqual([]);
  });
});

describe("ICMP errors to a VM", () => {
  it("come from an address of the host that the VM can know, as the host's addresses change", async () => {
    await make([
      "link add t0 type bridge",
      "link set t0 up",
      "link add t1 type veth peer name t2",
      "link set t1 master t0",
      "link set t1 up",
      "link set t2 up",
    ]);
    await run("taps: [{name: t1}]");
    const source = async () => {
      const { icmp_source4, icmp_source6 } = await entryOf("t1");
      return [icmp_source4.toString(16), Buffer.from(icmp_source6.data).toString("hex")];
    };
    expect((await source())[0]).toBe("0");
    await host.ip("address add 10.0.0.1/24 dev t0", "address add 2001:db8:1::1/64 dev t0 nodad");
    await until(async () => (await source())[0] === "a000001", "the IPv4 address");
    await until(async () => (await source())[1] === "20010db8000100000000000000000001", "the IPv6 address");
    // The first stays until the VM is known to be in the other's network.
    await host.ip("address add 10.9.0.1/24 dev t0");
    await host.ip("address del 10.0.0.1/24 dev t0");
    await until(async () => (await source())[0] === "a090001", "the other IPv4 address");
  });
});

describe("a device that is the far end of an interface", () => {
  it("has the last hop of a tun, which has no MAC", async () => {
    await make(["tuntap add t0 mode tun", "link set t0 up"]);
    const text = `{uplinks: [{name: t0, learn: devices}, {name: u0}], devices: [{name: fw, interface: "t*"}]}`;
    await configured.apply(text);
    const own = {
      device: "fw",
      mac: null,
      interface: "t0",
      tags: [],
      tunnel: null,
      via: "redirect",
      origin: "config",
    };
    expect(await lasthop.lastHops()).toMatchObject([own]);
    const { index } = (await lasthop.lastHops())[0]!;
    expect(await lasthop.json<LastHopEntry>("last-hops", "show", String(index))).toMatchObject(own);
    expect(await lasthop.must("last-hops", "list")).toMatch(/^ *\d+ {2}- +t0 /m);
    expect((await configured.plan(text)).actions).toEqual([]);

    // Its replies by the host's routing from now on: the same device, another record.
    await configured.apply(text.replace("learn: devices", "learn: devices, via: stack, mark: 0x11"));
    expect(await lasthop.lastHops()).toMatchObject([{ ...own, via: "stack", mark: 17 }]);
    expect(await lasthop.must("last-hops", "show", String((await lasthop.lastHops())[0]!.index))).toContain(
      "stack mark 0x11",
    );
  });

  it("is nobody where there is a link layer, and a second one is refused", async () => {
    const text = "{uplinks: [{name: u0}], devices: [{name: fw, interface: u0}]}";
    const report = await configured.apply(text);
    expect(report.warnings.join("\n")).toMatch(/fw\) has neither macs nor addresses.*u0/);
    expect(await lasthop.lastHops()).toEqual([]);
    const output = await lasthop.run("--json", "devices", "add", "other", "--interface", "u0");
    expect(JSON.parse(output.stderr)).toMatchObject({
      code: "E_DEVICE",
      message: expect.stringContaining("the far end of u0 is the device fw already"),
    });
  });
});
