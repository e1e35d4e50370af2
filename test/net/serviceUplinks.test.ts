// SPDX-License-Identifier: Apache-2.0
// Services by uplinks of other kinds: without a link layer, with generic XDP, with native XDP.

import { describe, expect, it } from "vitest";
import type { DoctorReport } from "../../src/ops/types.ts";
import { describeFrame } from "../kernel/support/decode.ts";
import { FAMILIES, type Family, mac } from "../support/addresses.ts";
import { Capture } from "../support/capture.ts";
import { macBytes } from "../support/frames.ts";
import { repositoryPath } from "../support/paths.ts";
import { newIndex } from "../support/plan.ts";
import { must } from "../support/run.ts";
import {
  apply,
  askAnew,
  askByUdp,
  BRIDGE_MAC,
  bothFamilies,
  expectThrough,
  PORT,
  ping,
  SERVICE,
  type ServiceGround,
  type Shape,
  serveOn,
  tally,
  useServiceSite,
} from "../support/serviceSite.ts";
import { keepTags } from "../support/tools.ts";
import { plugTun } from "../support/tun.ts";
import { tunnelFirewall } from "../support/tunnelSite.ts";
import { VnetTap } from "../support/vnetTap.ts";

const IN_TURN = { policy: "round-robin" };
const RESET_PORT = 1001;
/** What is left of 1500 bytes. */
const TUNNEL_MTU = { 4: 1450, 6: 1430 };

/** What clients want of a service, and its large segments, through firewall a alone. */
async function exchange(ground: ServiceGround, family: Family, shape: Shape): Promise<void> {
  const { site } = ground;
  await site.resetCounts();
  const names = tally(await askAnew(ground, family, 6));
  expect(names).toEqual(shape === "answering" ? { vm1: 2, vm2: 2, vm3: 2 } : { server1: 6 });
  const answered = await askByUdp(ground, family, ["small", "l".repeat(4000), "small again"]);
  expect(new Set(answered).size).toBe(1);
  await ping(ground, family);
  if (shape === "answering") {
    const target = { host: SERVICE[family], bytes: 4 << 20, timeoutMs: 20_000 };
    const expected = await site.client.agent.call("expected", { bytes: target.bytes });
    expect(await site.client.agent.call("download", target)).toEqual(expected);
    expect(await site.client.agent.call("upload", target)).toEqual(expected);
  }
  await expectThrough(ground, "a", family);
}

/** A VM is set down: its connection is reset by the host, and what firewall a carries of that it finds in order. */
async function expectReset(ground: ServiceGround, family: Family): Promise<void> {
  const { site, lasthop } = ground;
  const { agent } = site.client;
  const key = `reset${family}`;
  await agent.call("openAsking", { key, host: SERVICE[family], port: RESET_PORT });
  const name = await agent.call("ask", { key });
  const capture = await Capture.start(site.a.namespace, "in", {
    direction: "in",
    filter: `tcp and src host ${SERVICE[family]}`,
  });
  const before = await lasthop.packets("vm_reset");
  await lasthop.must("vms", "down", name);
  expect(await agent.failure("ask", { key })).toBe("ECONNRESET");
  expect(await lasthop.packets("vm_reset")).toBe(before + 1);
  const resets = (await capture.stop()).filter((packet) => packet.tcp_flags & 0x04);
  expect(resets).toMatchObject([{ source_port: RESET_PORT, payload_bytes: 0 }]);
  await lasthop.must("vms", "up", name);
}

const services = () => {
  const pool = [{ vm: "vm1" }, { vm: "vm2" }, { vm: "vm3" }];
  return [
    ...bothFamilies({ protocol: "any", pool, ...IN_TURN }),
    ...bothFamilies({ name: "reset", protocol: "tcp", port: RESET_PORT, pool, on_vm_down: "reset" }),
  ];
};

describe.each(["answering", "transparent"] as const)("an uplink without a link layer, %s VMs", (shape) => {
  const ground = useServiceSite({ host: "routed", shape }, async (made) => {
    await plugTun(made.lab, made.site);
    await apply(made, { services: services() });
    if (shape === "answering") await serveOn(made, RESET_PORT);
  });

  it.each(FAMILIES)("IPv%i: all goes both ways by it alone", (family) => exchange(ground, family, shape));

  if (shape !== "answering") return;

  it.each(FAMILIES)("IPv%i: VMs get frames that are addressed to them", async (family) => {
    const { site } = ground;
    const filter = `tcp and dst host ${SERVICE[family]}`;
    const captures = await Promise.all(site.vms.map(({ tap }) => Capture.start(site.host, tap, { filter })));
    await askAnew(ground, family, 3);
    for (const [at, capture] of captures.entries()) {
      const packets = await capture.stop();
      expect(packets.length).toBeGreaterThan(3);
      const [link] = JSON.parse(await site.host.must(["ip", "-j", "link", "show", site.vms[at]!.tap])) as [
        { address: string },
      ];
      const ends = { source_mac: link.address, destination_mac: site.vms[at]!.mac };
      for (const packet of packets) expect(packet).toMatchObject(ends);
    }
  });

  it.each(FAMILIES)("IPv%i: the host resets by it", (family) => expectReset(ground, family));
});

// It comes after GRO, and the kernel does not redirect what is larger than the tap's MTU: a bridge takes that.
describe.each(["bridged", "routed"] as const)("generic XDP at the uplinks of a %s host", (host) => {
  const ground = useServiceSite({ host }, async (made) => {
    const { site } = made;
    for (const uplink of site.uplinks) await keepTags(site.host, uplink);
    if (host === "routed") {
      const off = ["tso", "gso"].flatMap((feature) => [feature, "off"]);
      for (const { namespace } of site.firewalls.values())
        await namespace.must(["ethtool", "-K", "in", ...off]);
    }
    await serveOn(made, RESET_PORT);
    const interfaces = Object.fromEntries(site.uplinks.map((name) => [name, { mode: "generic" }]));
    await apply(made, { services: services(), interfaces });
    const { interfaces: attached } = await made.lasthop.status();
    const hooks = attached.filter(({ role }) => role === "uplink").map(({ hook }) => hook);
    expect(new Set(hooks)).toEqual(new Set(["xdp_generic"]));
  });

  it.each(FAMILIES)("IPv%i: all goes both ways through firewall a", (family) =>
    exchange(ground, family, "answering"),
  );

  it.each(FAMILIES)("IPv%i: the host resets", (family) => expectReset(ground, family));
});

describe("native XDP", () => {
  const TAP = "vnet0";
  const GUEST = mac(0x0e, 77);
  let tap: VnetTap;
  const ground = useServiceSite({}, async (made) => {
    const { site } = made;
    tap = await VnetTap.open(site.host, TAP, true);
    await site.host.ip(`link set dev ${TAP} master br`, `link set dev ${TAP} up`);
    for (const uplink of site.uplinks) await keepTags(site.host, uplink);
    // A wire has finished checksums.
    await site.a.namespace.must(["ethtool", "-K", "in", "tx", "off"]);
    // The kernel's veth takes what XDP sends back only if the other end has a program, too.
    const object = repositoryPath("build/test/net/xdp-pass.bpf.o");
    await must(["make", "-s", "-C", repositoryPath("."), "build/test/net/xdp-pass.bpf.o"]);
    await site.a.namespace.ip(`link set dev in xdp obj ${object} sec xdp`);
    const guest = { name: "guest", tap: TAP, mac: GUEST };
    await apply(made, {
      services: [
        ...bothFamilies({ protocol: "tcp", port: PORT, pool: [{ vm: "guest" }] }),
        ...bothFamilies({ name: "veth", protocol: "tcp", port: RESET_PORT, pool: [{ vm: "vm1" }] }),
      ],
      more: {
        uplinks: site.uplinks.map((name) => ({ name, mode: "native" })),
        taps: [...site.taps, TAP].map((name) => ({ name })),
        vms: [guest, { name: "vm1", tap: site.vm.tap, mac: site.vm.mac }],
      },
    });
  });

  it.each(FAMILIES)("IPv%i: hands requests to a VM on a tap of the kernel's tun driver", async (family) => {
    const { site, lasthop } = ground;
    const { agent } = site.client;
    const wanted = (frame: Buffer) =>
      frame.subarray(0, 6).equals(macBytes(GUEST)) && describeFrame(frame).includes(`>${PORT} `);
    // Nobody answers.
    const asked = { key: "native", host: SERVICE[family], port: PORT, timeoutMs: 300 };
    expect(await agent.failure("openAsking", asked)).toBe("timeout");
    const { frame } = await tap.receive(wanted, "a SYN for the service");
    expect(frame.readUInt16BE(12)).toBe(family === 4 ? 0x0800 : 0x86dd);
    const { hook } = (await lasthop.status()).interfaces.find(({ interface: name }) => name === "up-a")!;
    expect(hook).toBe("xdp_native");
  });

  it("passes what it cannot hand to a tap of another driver, and that is explained", async () => {
    const { site, lasthop } = ground;
    const before = await lasthop.packets("deliver_hook");
    const asked = { key: "veth", host: SERVICE[4], port: RESET_PORT, timeoutMs: 300 };
    expect(await site.client.agent.failure("openAsking", asked)).toBe("timeout");
    expect(await lasthop.packets("deliver_hook")).toBeGreaterThan(before);
    const { stdout } = await lasthop.run("--json", "doctor");
    const { checks } = JSON.parse(stdout) as DoctorReport;
    const finding = checks.find(({ name }) => name === "service hooks");
    expect(finding).toMatchObject({ level: "warn", found: expect.stringContaining("vm1") });
    expect(finding?.hint).toContain("--mode tc");
  });
});

describe.each(FAMILIES)("a shared VXLAN device over IPv%i, a port of the host's bridge", (outer) => {
  const DEVICE = "vxs";
  const ground = useServiceSite({}, async (made) => {
    const { site } = made;
    await tunnelFirewall(site, { outer });
    await site.host.ip(
      `link add name ${DEVICE} index ${newIndex()} type vxlan external dstport 4789`,
      `link set dev ${DEVICE} mtu ${TUNNEL_MTU[outer]} master br up`,
    );
    // No datagram is lost to find that out.
    await site.client.namespace.ip(`link set dev to-a mtu ${TUNNEL_MTU[outer]}`);
    for (const { namespace } of site.vms) await namespace.ip(`link set dev eth0 mtu ${TUNNEL_MTU[outer]}`);
    await serveOn(made, RESET_PORT);
    await apply(made, { services: services(), more: { uplinks: [{ name: DEVICE }, { name: "up-b" }] } });
  });

  it.each(FAMILIES)("IPv%i: questions, requests, and resets are answered into the tunnel", async (family) => {
    await exchange(ground, family, "answering");
    await expectReset(ground, family);
    const argv = ["ip", "-j", `-${family}`, "neigh", "show", SERVICE[family], "dev", "in"];
    expect(JSON.parse(await ground.site.a.namespace.must(argv))).toMatchObject([{ lladdr: BRIDGE_MAC }]);
  });
});
