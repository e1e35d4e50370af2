// SPDX-License-Identifier: Apache-2.0
// Tunnels that lasthop makes: on the wire to a firewall that has nothing but the kernel's VXLAN, through every change
// of the configuration and of the host, and killed at every step of the making.

import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { TunnelDetails, TunnelEntry } from "../../src/ops/types.ts";
import { type Build, otherLayout, otherObject } from "../support/builds.ts";
import { Configured, told } from "../support/configured.ts";
import { cleanUpDaemons, Daemon, programsOn } from "../support/daemon.ts";
import { DecodedCapture } from "../support/decoded.ts";
import { FAMILIES, type Ground, useSite } from "../support/fixture.ts";
import { Lasthop } from "../support/lasthop.ts";
import { repositoryPath } from "../support/paths.ts";
import { until } from "../support/run.ts";
import {
  bothEnds,
  moveFarEnd,
  OUTER,
  TUNNEL,
  tunnelConfig,
  tunnelFirewall,
  useFarEnd,
  useTunnel,
  VNI,
  wireFirewall,
} from "../support/tunnelSite.ts";

cleanUpDaemons();

const daemons: Daemon[] = [];
async function start(ground: Ground, config: string): Promise<Daemon> {
  const daemon = await Daemon.start(ground, config);
  daemons.push(daemon);
  return daemon;
}
afterEach(async () => {
  for (const daemon of daemons.splice(0)) await daemon.stop();
});

function useConfigured(ground: Ground): { readonly now: Configured } {
  let configured: Configured | undefined;
  beforeAll(() => {
    configured = new Configured(ground.lasthop);
  });
  afterAll(() => configured?.close());
  return {
    get now() {
      return configured!;
    },
  };
}

interface LinkJson {
  ifindex: number;
  ifname: string;
  mtu: number;
  flags: string[];
  ifalias?: string;
  linkinfo?: { info_kind?: string };
}

async function links({ site }: Ground): Promise<LinkJson[]> {
  return JSON.parse(await site.host.must(["ip", "-j", "-d", "link"])) as LinkJson[];
}

async function link(ground: Ground, name: string): Promise<LinkJson | undefined> {
  return (await links(ground)).find((one) => one.ifname === name);
}

async function tunnel({ lasthop }: Ground): Promise<TunnelEntry> {
  const { tunnels } = await lasthop.json<{ tunnels: TunnelEntry[] }>("tunnels", "list");
  expect(tunnels.map(({ name }) => name)).toEqual([TUNNEL]);
  return tunnels[0]!;
}

/** New connections, datagrams and pings of both families go by firewall a both ways: b drops nothing. */
async function expectSymmetric({ site }: Ground, name: string): Promise<void> {
  await site.resetCounts();
  for (const family of FAMILIES) {
    const host = site.vm.address[family];
    const key = `${name}${family}`;
    await site.client.agent.call("open", { key, host, port: 7 });
    await site.client.agent.call("echo", { key, bytes: 20_000 });
    await site.client.agent.call("close", { key });
    await site.client.agent.call("udp", { host, port: 7, text: "hello" });
    await site.client.namespace.must(["ping", "-c", "1", "-W", "2", host]);
  }
  const [a, b] = await Promise.all([site.a.counts(), site.b.counts()]);
  expect(b.packets("dropped")).toBe(0);
  expect(b.packets("carried")).toBe(0);
  for (const family of FAMILIES) {
    expect(a.packets("carried", { direction: "reply", family })).toBeGreaterThan(0);
  }
}

describe.each([
  { host: "routed", outer: 4 },
  { host: "routed", outer: 6 },
  { host: "bridged", outer: 4 },
] as const)("VXLAN of our own over IPv$outer on a $host host", ({ host, outer }) => {
  const ground = useSite({ host, vms: 1 }, ({ site }) => tunnelFirewall(site, { outer }));

  it("carries requests and replies, and the replies are on the wire as they should be", async () => {
    const { site, lasthop } = ground;
    await start(ground, tunnelConfig(site, outer));
    await useTunnel(ground);
    await until(async () => {
      const { interfaces } = await lasthop.status();
      return interfaces.some((one) => one.interface === TUNNEL && one.state === "ok");
    }, "the tunnel to be attached and forwarding");
    // What is left unfinished is finished on the way out, from the offsets that came along.
    await site.host.must(["ethtool", "-K", site.uplinkOf("a"), "tx", "off"]);
    const capture = await DecodedCapture.start(site.host, site.uplinkOf("a"), "out", "udp port 4789");
    await expectSymmetric(ground, "first");
    const ip = outer === 4 ? "ip" : "ipv6";
    const fields = [
      ...["vxlan.vni", "udp.dstport", `${ip}.src`, `${ip}.dst`, "ip.src", "ipv6.src", "tcp.srcport"],
      ...["eth.dst", "ip.checksum.status", "tcp.checksum.status"],
    ];
    const frames = await capture.stop(fields);
    await site.host.must(["ethtool", "-K", site.uplinkOf("a"), "tx", "on"]);
    for (const family of FAMILIES) {
      const vm = site.vm.address[family];
      const replies = frames.filter(
        (frame) =>
          frame[family === 4 ? "ip.src" : "ipv6.src"]!.at(-1) === vm && frame["tcp.srcport"]![0] === "7",
      );
      expect(replies.length, `replies by IPv${family}`).toBeGreaterThan(3);
      for (const reply of replies) {
        expect(reply["vxlan.vni"]).toEqual([String(VNI)]);
        expect(reply["udp.dstport"]![0]).toBe("4789");
        expect(reply[`${ip}.src`]![0]).toBe(OUTER.host[outer]);
        expect(reply[`${ip}.dst`]![0]).toBe(OUTER.firewall[outer]);
        // tshark: 0 is bad.
        for (const status of ["ip.checksum.status", "tcp.checksum.status"]) {
          expect(reply[status]).not.toContain("0");
        }
      }
    }
    const counted = await tunnel(ground);
    expect(counted).toMatchObject({ encapsulation: "builtin", state: "ok", id: VNI, received_errors: 0 });
    expect(counted.received_packets).toBeGreaterThan(10);
    expect(counted.sent_packets).toBeGreaterThan(10);
  });

  it("goes on without the daemon, however that ends, and the next start finds nothing to do", async () => {
    const { site } = ground;
    const config = tunnelConfig(site, outer);
    const first = await start(ground, config);
    await first.kill();
    await expectSymmetric(ground, "killed");
    const second = await start(ground, config);
    expect(second.lines.filter((line) => line.includes("tunnel") || line.includes(TUNNEL))).toEqual([]);
    await second.stop();
    await expectSymmetric(ground, "stopped");
  });
});

describe("changes", () => {
  const ground = useSite({ host: "routed", vms: 1 }, ({ site }) => tunnelFirewall(site, { outer: 4 }));
  let config = "";
  beforeAll(() => {
    config = tunnelConfig(ground.site, 4);
  });
  const begin = async (): Promise<Daemon> => {
    const daemon = await start(ground, config);
    await useTunnel(ground);
    return daemon;
  };

  it("of the remote end take effect with a reload, and the interface and its flows stay", async () => {
    const { site } = ground;
    const daemon = await begin();
    const before = await tunnel(ground);
    const { client, vm } = site;
    await client.agent.call("open", { key: "moved", host: vm.address[4], port: 7 });
    await client.agent.call("echo", { key: "moved" });
    await moveFarEnd(site, 4, "172.16.1.77");
    config = tunnelConfig(site, 4, { remote: "172.16.1.77" });
    const lines = await daemon.reload(config);
    expect(lines.join("\n")).toContain(`tunnel ${TUNNEL}: to 172.16.1.77 instead of ${OUTER.firewall[4]}`);
    const after = await tunnel(ground);
    expect(after).toMatchObject({ ifindex: before.ifindex, remote: "172.16.1.77", state: "ok" });
    await client.agent.call("echo", { key: "moved" });
    await client.agent.call("close", { key: "moved" });
    await expectSymmetric(ground, "moved");
  });

  it("of the underlay's MTU are followed", async () => {
    const { site } = ground;
    await begin();
    expect((await link(ground, TUNNEL))?.mtu).toBe(1450);
    await site.host.ip(`link set dev ${site.uplinkOf("a")} mtu 1400`);
    await until(async () => (await link(ground, TUNNEL))?.mtu === 1350, "the tunnel's MTU to follow");
    await until(async () => (await tunnel(ground)).mtu === 1350, "the table to have it");
    await site.host.ip(`link set dev ${site.uplinkOf("a")} mtu 1500`);
    await until(async () => (await link(ground, TUNNEL))?.mtu === 1450, "the tunnel's MTU to be back");
  });

  it("made by hand are taken back: MTU, a hidden end that is down, offloads, programs, the alias", async () => {
    const { site, lasthop } = ground;
    const daemon = await begin();
    const { hidden_interface: hidden } = await lasthop.json<TunnelDetails>("tunnels", "show", TUNNEL);
    const since = daemon.mark();
    await site.host.must(["ethtool", "-K", hidden!, "tso", "on", "gso", "on", "tx", "on"]);
    await site.host.ip(
      `link set dev ${TUNNEL} mtu 1300`,
      `link set dev ${TUNNEL} alias mine`,
      `link set dev ${hidden} mtu 1500`,
      `link set dev ${hidden} down`,
    );
    await until(async () => {
      const [own, other] = [await link(ground, TUNNEL), await link(ground, hidden!)];
      return own?.mtu === 1450 && own.ifalias?.startsWith("lasthop ") && other?.mtu === 65_535;
    }, "MTUs and alias to be as before");
    await until(async () => (await link(ground, hidden!))?.flags.includes("UP"), "the hidden end to be up");
    const features = await site.host.must(["ethtool", "-k", hidden!]);
    expect(features).toMatch(/^tx-checksumming: off/m);
    expect(features).toMatch(/^tcp-segmentation-offload: off/m);
    expect(since().join("\n")).toMatch(new RegExp(`tunnel ${TUNNEL}: .*MTU 1450 instead of 1300`));
    await until(async () => (await tunnel(ground)).state === "ok", "the tunnel to be in order");
    await expectSymmetric(ground, "repaired");
  });

  it("of its underlay: while that is down the tunnel has no carrier, and replies go another way", async () => {
    const { site, lasthop } = ground;
    await begin();
    await expectSymmetric(ground, "up");
    await site.a.namespace.ip("link set dev wire down");
    await until(
      async () => !(await link(ground, TUNNEL))?.flags.includes("LOWER_UP"),
      "the tunnel to lose its carrier",
    );
    expect((await tunnel(ground)).state).toBe("underlay_down");
    await until(
      async () =>
        (await lasthop.lastHops()).every((one) => one.interface !== TUNNEL || one.state === "route"),
      "its last hops to be out of use",
    );
    await site.a.namespace.ip("link set dev wire up");
    await until(async () => (await tunnel(ground)).state === "ok", "the tunnel to be back");
    await until(
      async () => (await lasthop.lastHops()).some((one) => one.interface === TUNNEL && one.state === "up"),
      "its last hops to be in use",
    );
  });

  it("that remove its interface: it is made again, and open connections go on", async () => {
    const { site } = ground;
    const { client, vm } = site;
    await begin();
    for (const family of FAMILIES) {
      await client.agent.call("open", { key: `again${family}`, host: vm.address[family], port: 7 });
      await client.agent.call("echo", { key: `again${family}` });
    }
    const before = await tunnel(ground);
    await site.host.ip(`link del dev ${TUNNEL}`);
    await until(async () => (await tunnel(ground)).ifindex !== before.ifindex, "another interface");
    await until(async () => (await tunnel(ground)).state === "ok", "the tunnel to be in order");
    await useTunnel(ground);
    await site.resetCounts();
    for (const family of FAMILIES) await client.agent.call("echo", { key: `again${family}` });
    expect((await site.b.counts()).packets("dropped")).toBe(0);
    for (const family of FAMILIES) await client.agent.call("close", { key: `again${family}` });
    const left = (await links(ground)).filter(({ ifname }) => ifname.startsWith("lh-"));
    expect(left.map(({ ifname }) => ifname)).toEqual([`lh-${(await tunnel(ground)).ifindex}`]);
  });

  it("of the configuration that leave it out: nothing of it is left", async () => {
    const { site, lasthop } = ground;
    const daemon = await begin();
    expect(await pinnedLinks(ground)).toHaveLength(2);
    await daemon.reload("uplinks: [{name: up-b}]\ntaps: [{name: 'tap*'}]\n");
    const present = (await links(ground)).map(({ ifname }) => ifname);
    expect(present.filter((name) => name === TUNNEL || name.startsWith("lh-"))).toEqual([]);
    expect(await lasthop.json("tunnels", "list")).toEqual({ tunnels: [] });
    expect(await pinnedLinks(ground)).toEqual([]);
    expect(await programsOn(ground, [site.uplinkOf("a")])).toEqual([[]]);
  });
});

/** What no command shows: pinned links of tunnels. */
async function pinnedLinks({ lab, site }: Ground): Promise<string[]> {
  const text = await site.host.must(["find", lab.pinRoot, "-name", "tunnel_*-*"]);
  return text.split("\n").filter(Boolean);
}

describe("encap", () => {
  const ground = useSite({ host: "routed", vms: 1 }, ({ site }) => tunnelFirewall(site, { outer: 4 }));
  const configured = useConfigured(ground);
  const nothing = "taps: [{name: 'tap*'}]";

  it("auto: this kernel's VXLAN is an interface of its driver, and carries as well", async () => {
    const { site } = ground;
    const config = tunnelConfig(site, 4, { encap: "auto" });
    const planned = await configured.now.plan(config);
    expect(told(planned)).toEqual(
      expect.arrayContaining([`tunnel-add ${TUNNEL}`, `attach ${TUNNEL}`, "attach tap1"]),
    );
    const report = await configured.now.apply(config);
    expect(report.failed).toEqual([]);
    expect(report.done).toContain(`tunnel ${TUNNEL}: made, by the kernel's driver (vxlan)`);
    expect((await link(ground, TUNNEL))?.linkinfo?.info_kind).toBe("vxlan");
    await useTunnel(ground);
    await expectSymmetric(ground, "device");
    expect(await tunnel(ground)).toMatchObject({ encapsulation: "device", state: "ok" });
    expect((await tunnel(ground)).received_packets).toBeGreaterThan(5);
    expect((await configured.now.plan(config)).actions).toEqual([]);
  });

  it("a change of what the driver cannot change makes it anew; builtin instead of device too", async () => {
    const { site } = ground;
    const before = await tunnel(ground);
    const other = tunnelConfig(site, 4, { encap: "auto", more: ", port: 4790" });
    expect(told(await configured.now.apply(other))).toContain(`tunnel-replace ${TUNNEL}`);
    const device = await tunnel(ground);
    expect(device).toMatchObject({ port: 4790, encapsulation: "device" });
    expect(device.ifindex).not.toBe(before.ifindex);
    await configured.now.apply(tunnelConfig(site, 4, { encap: "builtin" }));
    expect(await tunnel(ground)).toMatchObject({ port: 4789, encapsulation: "builtin", state: "ok" });
    // What it once became it stays.
    const config = tunnelConfig(site, 4, { encap: "auto" });
    expect((await configured.now.plan(config)).actions).toEqual([]);
    await useTunnel(ground);
    await expectSymmetric(ground, "anew");
  });

  it("auto: without a driver, as of GRE here, lasthop's own programs; device: says that there is none", async () => {
    const { site } = ground;
    const made = await configured.now.apply(tunnelConfig(site, 4, { encap: "auto", type: "gre" }));
    expect(made.failed).toEqual([]);
    expect(await tunnel(ground)).toMatchObject({ type: "gre", encapsulation: "builtin", state: "ok" });
    expect((await link(ground, TUNNEL))?.flags).toContain("NOARP");
    await configured.now.apply(nothing);
    const again = await configured.now.apply(tunnelConfig(site, 4, { encap: "auto", type: "gre" }));
    expect(again.done).toContain(`tunnel ${TUNNEL}: made, by lasthop's own programs`);
    await configured.now.apply(nothing);
    const refused = await configured.now.apply(tunnelConfig(site, 4, { encap: "device", type: "gre" }));
    expect(refused.status).toBe(1);
    expect(refused.failed).toEqual([
      expect.objectContaining({ object: TUNNEL, config: "tunnels[0]", code: "E_TUNNEL" }),
    ]);
    expect(refused.failed[0]!.message).toContain("this kernel has no driver for gre");
    expect(await link(ground, TUNNEL)).toBeUndefined();
  });

  it("an interface that is there already is used as it is, and stays when the tunnel goes", async () => {
    const { site, lasthop } = ground;
    await site.host.ip(
      `link add ${TUNNEL} type vxlan id ${VNI} local ${OUTER.host[4]} remote ${OUTER.firewall[4]} dstport 4789 nolearning`,
      `link set dev ${TUNNEL} mtu 1450 up`,
    );
    await configured.now.apply(tunnelConfig(site, 4, { encap: "auto" }));
    expect(await lasthop.json("tunnels", "show", TUNNEL)).toMatchObject({ made_by_lasthop: false });
    await useTunnel(ground);
    // It has another MAC than the one before it.
    await site.a.namespace.ip("neigh flush dev in");
    await expectSymmetric(ground, "foreign");
    await configured.now.apply(nothing);
    expect(await link(ground, TUNNEL)).toBeDefined();
    for (const keys of [{ encap: "auto", type: "gre" }, { encap: "builtin" }]) {
      const { failed } = await configured.now.apply(tunnelConfig(site, 4, keys));
      expect(failed).toEqual([expect.objectContaining({ object: TUNNEL, code: "E_TUNNEL" })]);
      expect(failed[0]!.message).toContain(`${TUNNEL} is there already`);
    }
    await site.host.ip(`link del dev ${TUNNEL}`);
  });

  it("an underlay that is not there is said to be missing, and detach --all --purge removes every tunnel", async () => {
    const { site, lasthop } = ground;
    const missing = tunnelConfig(site, 4).replace(site.uplinkOf("a"), "nowhere0");
    const { failed } = await configured.now.apply(missing);
    expect(failed).toEqual([expect.objectContaining({ object: TUNNEL, code: "E_NO_INTERFACE" })]);
    await configured.now.apply(tunnelConfig(site, 4));
    expect(await link(ground, TUNNEL)).toBeDefined();
    await lasthop.detachAll();
    const names = (await links(ground)).map(({ ifname }) => ifname);
    expect(names.filter((name) => name === TUNNEL || name.startsWith("lh-"))).toEqual([]);
  });
});

describe("as clsact filters", () => {
  const ground = useSite({ host: "routed", vms: 1 }, ({ site }) => tunnelFirewall(site, { outer: 4 }));

  it("it carries, is adopted, and leaves no qdisc behind", async () => {
    const { site } = ground;
    const prefix = ["env", "LASTHOP_TC=clsact"];
    const config = tunnelConfig(site, 4);
    for (const name of ["clsact", "adopted"]) {
      const daemon = await Daemon.start(ground, config, { prefix });
      daemons.push(daemon);
      if (name === "adopted") expect(daemon.lines.filter((line) => line.includes(TUNNEL))).toEqual([]);
      await useTunnel(ground);
      await expectSymmetric(ground, name);
      await daemon.stop();
    }
    const shown = await ground.lasthop.json<TunnelDetails>("tunnels", "show", TUNNEL);
    expect(shown.programs.map(({ hook }) => hook)).toEqual(["clsact", "clsact"]);
    const last = await Daemon.start(ground, config, { prefix, flags: ["--detach-on-exit"] });
    await last.stop();
    const qdiscs = await site.host.must(["tc", "qdisc", "show"]);
    expect(qdiscs).not.toContain("clsact");
    expect(await link(ground, TUNNEL)).toBeUndefined();
  });
});

describe("an upgrade", () => {
  const ground = useSite({ host: "routed", vms: 1 }, ({ site }) => tunnelFirewall(site, { outer: 4 }));
  const configured = useConfigured(ground);
  let builds: Build[] = [];
  beforeAll(async () => {
    builds = await Promise.all([
      otherObject("9.9.1", "departure_read", "departed_read"),
      otherLayout("9.9.2", (header) =>
        header
          .replace("struct tunnel {\n", "struct tunnel {\n\t__u32 formerly;\n")
          .replace(/(ASSERT_BYTES\(struct tunnel, )(\d+)/, (_, text, bytes) => `${text}${Number(bytes) + 4}`),
      ),
    ]);
  });
  afterAll(() => {
    for (const build of builds) build.remove();
  });
  const programs = async (): Promise<(number | null)[]> => {
    const shown = await ground.lasthop.json<TunnelDetails>("tunnels", "show", TUNNEL);
    expect(shown.state).toBe("ok");
    return shown.programs.map(({ program_id }) => program_id);
  };

  it.each([
    ["tcx", "other programs", 0],
    ["tcx", "another layout", 1],
    ["clsact", "other programs", 0],
    ["clsact", "another layout", 1],
  ] as const)("by %s to and from %s: the tunnel and its connections go on", async (hook, what, number) => {
    const { site, lab, lasthop } = ground;
    const tool = (lasthop: Lasthop, ...args: string[]) =>
      site.host.must(["env", `LASTHOP_TC=${hook}`, ...lasthop.argv(...args)]);
    configured.now.write(tunnelConfig(site, 4));
    await tool(lasthop, "apply", "-c", configured.now.file);
    await useTunnel(ground);
    const key = `${hook} ${what}`;
    await site.client.agent.call("open", { key, host: site.vm.address[4], port: 7 });
    await site.client.agent.call("echo", { key });
    const before = await programs();
    const { ifindex } = await tunnel(ground);
    await site.resetCounts();
    await tool(await Lasthop.on(lab, site.host, builds[number]!.program), "upgrade");
    await site.client.agent.call("echo", { key });
    await tool(lasthop, "upgrade");
    await site.client.agent.call("echo", { key });
    const after = await programs();
    expect(after).not.toContain(null);
    for (const id of before) expect(after).not.toContain(id);
    expect((await tunnel(ground)).ifindex).toBe(ifindex);
    expect((await site.b.counts()).packets("dropped")).toBe(0);
    await site.client.agent.call("close", { key });
    expect(await lasthop.run("plan", "-c", configured.now.file)).toMatchObject({ status: 0 });
    await lasthop.detachAll();
  });
});

describe("between two hosts with lasthop", () => {
  const ground = useSite({ host: "routed", vms: 1 });
  const configured = useConfigured(ground);
  /** The firewall's own instance. */
  const far = (...args: string[]): Promise<string> => {
    const { lab, lasthop, site } = ground;
    const argv = lasthop.argv(...args).map((word) => (word === lab.pinRoot ? `${lab.pinRoot}-far` : word));
    return site.a.namespace.must(argv);
  };
  beforeAll(() => wireFirewall(ground.site));
  afterAll(() => far("detach", "--all", "--purge"));

  it.each([
    ["nvgre", 4, 42],
    ["gre", 4, 28],
    ["gre", 6, 48],
    ["ipip", 4, 20],
    ["ipip", 6, 40],
    ["mpls", 4, 8],
  ] as const)("%s over IPv%i: requests and replies, small and large", async (type, outer, overhead) => {
    const { site } = ground;
    const ends = bothEnds(site, type, outer);
    configured.now.write(ends.far);
    await far("apply", "-c", configured.now.file);
    const { failed } = await configured.now.apply(ends.near);
    expect(failed).toEqual([]);
    await useTunnel(ground);
    await useFarEnd(site);
    expect(await tunnel(ground)).toMatchObject({ type, encapsulation: "builtin", mtu: 1500 - overhead });
    await expectSymmetric(ground, `${type}${outer}`);
    const shown = await tunnel(ground);
    expect(shown).toMatchObject({ state: "ok", received_errors: 0, sent_errors: 0 });
    expect(shown.sent_bytes).toBeGreaterThan(40_000);
  });
});

describe("interrupted at each step", () => {
  const ground = useSite({ host: "routed", vms: 1 }, ({ site }) => tunnelFirewall(site, { outer: 4 }));
  const configured = useConfigured(ground);
  const nothing = "metrics: {enabled: false}";

  interface Outcome {
    actions: string[];
    failed: { code: string }[];
    again: { actions: string[] } | null;
    links: { name: string; programs: number[] }[];
    tunnels: { name: string; ifindex: number; state: string }[];
  }
  /** Null if it was killed. */
  const reconcile = async (
    config: string,
    mode: "kill" | "fail" | "settle",
    number = -1,
  ): Promise<Outcome | null> => {
    const { site, lab } = ground;
    configured.now.write(config);
    const script = repositoryPath("test/support/tunnelFaults.mjs");
    const argv = [process.execPath, script, lab.pinRoot, configured.now.file, mode, String(number)];
    const { status, stdout, stderr } = await site.host.run(argv);
    if (status === 137) return null;
    if (status !== 0) throw new Error(`${mode} ${number}: ${stderr}`);
    return JSON.parse(stdout) as Outcome;
  };
  /** Of the tunnel alone, since each of the other actions is a unit for itself. */
  const alone = (): string => tunnelConfig(ground.site, 4).split("\n")[0]!;
  const own = ({ links }: Outcome) =>
    links.map(({ name }) => name).filter((name) => /^(lh-|fw-a)/.test(name));
  /** Exactly one pair, whole, and nothing to do. */
  const expectWhole = (outcome: Outcome | null, what: string): void => {
    expect(outcome?.failed, what).toEqual([]);
    expect(outcome?.again?.actions, what).toEqual([]);
    const { ifindex } = outcome!.tunnels[0]!;
    expect(outcome?.tunnels, what).toEqual([{ name: TUNNEL, ifindex, state: "ok" }]);
    expect(own(outcome!).sort(), what).toEqual([TUNNEL, `lh-${ifindex}`].sort());
  };
  const expectNone = async (outcome: Outcome | null, what: string): Promise<void> => {
    expect(own(outcome!), what).toEqual([]);
    expect(outcome?.tunnels, what).toEqual([]);
    const underlay = outcome?.links.find(({ name }) => name === ground.site.uplinkOf("a"));
    expect(underlay?.programs, what).toEqual([]);
    expect(await pinnedLinks(ground), what).toEqual([]);
  };

  it("of the making by SIGKILL: the next one makes it whole, and packets go", async () => {
    await reconcile(nothing, "settle");
    for (let number = 0; ; number++) {
      const outcome = await reconcile(alone(), "kill", number);
      expectWhole(await reconcile(alone(), "settle"), `killed at step ${number}`);
      if (outcome !== null) {
        expect(number).toBeGreaterThan(10);
        break;
      }
      await reconcile(nothing, "settle");
    }
    await reconcile(tunnelConfig(ground.site, 4), "settle");
    await useTunnel(ground);
    await expectSymmetric(ground, "whole");
  }, 240_000);

  it("of the removal by SIGKILL: the next one removes what is left", async () => {
    for (let number = 0; ; number++) {
      await reconcile(alone(), "settle");
      const outcome = await reconcile(nothing, "kill", number);
      const after = await reconcile(nothing, "settle");
      expect(after?.failed).toEqual([]);
      await expectNone(after, `killed at step ${number}`);
      if (outcome !== null) {
        expect(number).toBeGreaterThan(3);
        break;
      }
    }
  }, 240_000);

  it("of the making by an error: nothing is left of it", async () => {
    await reconcile(nothing, "settle");
    for (let number = 0; ; number++) {
      const outcome = await reconcile(alone(), "fail", number);
      if (outcome?.failed.length === 0) {
        expect(number).toBeGreaterThan(10);
        break;
      }
      expect(outcome?.failed).toEqual([expect.objectContaining({ code: "E_BPF" })]);
      await expectNone(outcome, `failed at step ${number}`);
    }
    await reconcile(nothing, "settle");
  }, 240_000);
});
