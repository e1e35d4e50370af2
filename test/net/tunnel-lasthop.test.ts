// SPDX-License-Identifier: Apache-2.0
// Built-in tunnels and the rest of lasthop and of the host: requests that come by a tunnel are learned there, and
// their replies go back by it, against the host's routes; the host routes from one tunnel to another; frames with
// tags inside.
//
//   client ── [c] device [t] ── tunnel ── [t] host [tap] ── vm

import { afterEach, describe, expect, it } from "vitest";
import type { Agent } from "../support/agent.ts";
import { Lab, type Namespace } from "../support/lab.ts";
import { Lasthop } from "../support/lasthop.ts";
import { FORWARDING, Plan } from "../support/plan.ts";
import { must } from "../support/run.ts";
import { addFilter } from "../support/tools.ts";
import { TunnelHost, type TunnelSpec } from "../support/tunnelByHand.ts";
import { hasKernelDriver, KernelEnd } from "../support/tunnelKernel.ts";

const FAMILIES = [4, 6] as const;
const BYTES = 16 << 20;
const OUTER = { 4: ["10.77.0.1", "10.77.0.2"], 6: ["fd77::1", "fd77::2"] } as const;
const INNER = { 4: ["172.30.0.1", "172.30.0.2"], 6: ["fd30::1", "fd30::2"] } as const;
const VM = { 4: "203.0.113.11", 6: "2001:db8:113::11" };
const GATEWAY = { 4: "203.0.113.254", 6: "2001:db8:113::fe" };
const CLIENT = { 4: "198.51.100.10", 6: "2001:db8:c::10" };
const CLIENT_GATEWAY = { 4: "198.51.100.1", 6: "2001:db8:c::1" };
const MACS = { host: "02:00:00:00:77:01", device: "02:00:00:00:77:02" };
/** Of clients and VMs, so that no one's segments are too large for any of the tunnels. */
const MTU = 1400;
const TUNNEL_SOURCE = "02:6c:68:00:00:01";

let lab: Lab | undefined;
const hosts: TunnelHost[] = [];

afterEach(async () => {
  for (const host of hosts.splice(0)) host.close();
  await lab?.close();
});

function tunnelHost(namespace: Namespace): TunnelHost {
  const host = new TunnelHost(namespace);
  hosts.push(host);
  return host;
}

type Kind = { name: string; spec: Omit<TunnelSpec, "local" | "remote" | "underlay">; outer: 4 | 6 };

const VXLAN4: Kind = { name: "VXLAN over IPv4", spec: { type: "vxlan", id: 7 }, outer: 4 };
const VXLAN6: Kind = { name: "VXLAN over IPv6", spec: { type: "vxlan", id: 7 }, outer: 6 };
const NVGRE: Kind = { name: "NVGRE", spec: { type: "nvgre", id: 7 }, outer: 4 };
const GRE: Kind = { name: "GRE over IPv6", spec: { type: "gre", id: 7 }, outer: 6 };
const IPIP: Kind = { name: "IP in IPv4", spec: { type: "ipip" }, outer: 4 };
const MPLS: Kind = {
  name: "MPLS",
  spec: { type: "mpls", labels: { request: [100], reply: [200] }, nextHop: MACS.device },
  outer: 4,
};

function specOf({ spec, outer }: Kind, underlay = "u"): TunnelSpec {
  return { ...spec, local: OUTER[outer][0], remote: OUTER[outer][1], underlay };
}

function mirrored(spec: TunnelSpec): TunnelSpec {
  return {
    ...spec,
    ...{ local: spec.remote, remote: spec.local, nextHop: MACS.host },
    ...(spec.labels ? { labels: { request: spec.labels.reply, reply: spec.labels.request } } : {}),
  };
}

/** The end that is not the host's: the kernel's driver where there is one. */
async function addFarEnd(namespace: Namespace, spec: TunnelSpec): Promise<void> {
  if (await hasKernelDriver(namespace, spec)) return new KernelEnd(namespace).add("t", spec, INNER);
  await tunnelHost(namespace).add("t", spec);
  await addresses(namespace, "t", INNER[4][1], INNER[6][1]);
}

function addresses(namespace: Namespace, device: string, four: string, six: string): Promise<string> {
  return namespace.ip(`addr add ${four}/24 dev ${device}`, `addr add ${six}/64 dev ${device} nodad`);
}

interface Ground {
  host: Namespace;
  device: Namespace;
  client: Agent;
  lasthop: Lasthop;
  tunnels: TunnelHost;
}

/** The host has no route to the client: a reply that it routes itself is lost. */
async function build(kind: Kind): Promise<Ground> {
  const [host, device] = [lab!.namespace("host"), lab!.namespace("device")];
  const [vm, client] = [lab!.namespace("vm"), lab!.namespace("client")];
  const plan = new Plan();
  const all = [host, device, vm, client];
  plan.veth(
    { namespace: host, name: "u", mac: MACS.host },
    { namespace: device, name: "u", mac: MACS.device },
  );
  plan.veth(
    { namespace: host, name: "tap", mac: "02:00:00:00:77:03" },
    { namespace: vm, name: "eth0", mac: "02:00:00:00:77:04" },
  );
  plan.veth(
    { namespace: device, name: "c", mac: "02:00:00:00:77:05" },
    { namespace: client, name: "eth0", mac: "02:00:00:00:77:06" },
  );
  const at = (namespace: Namespace, name: string, four: string, six: string) =>
    plan.add(namespace, `addr add ${four}/24 dev ${name}`, `addr add ${six}/64 dev ${name} nodad`);
  for (const namespace of all) plan.add(namespace, "link set dev lo up");
  at(host, "u", OUTER[4][0], OUTER[6][0]);
  at(device, "u", OUTER[4][1], OUTER[6][1]);
  at(host, "tap", GATEWAY[4], GATEWAY[6]);
  at(vm, "eth0", VM[4], VM[6]);
  at(device, "c", CLIENT_GATEWAY[4], CLIENT_GATEWAY[6]);
  at(client, "eth0", CLIENT[4], CLIENT[6]);
  plan.add(host, "link set dev u up", `link set dev tap mtu ${MTU} up`);
  plan.add(device, "link set dev u up", `link set dev c mtu ${MTU} up`);
  plan.add(vm, `link set dev eth0 mtu ${MTU} up`);
  plan.add(client, `link set dev eth0 mtu ${MTU} up`);
  for (const family of FAMILIES) {
    plan.add(vm, `route add default via ${GATEWAY[family]}`);
    plan.add(client, `route add default via ${CLIENT_GATEWAY[family]}`);
  }
  for (const namespace of [host, device]) plan.sysctls.set(namespace, FORWARDING);
  await must(["sh"], { input: plan.script(all) });

  const spec = specOf(kind);
  const tunnels = tunnelHost(host);
  await tunnels.add("t", spec);
  await addresses(host, "t", INNER[4][0], INNER[6][0]);
  await addFarEnd(device, mirrored(spec));
  if (spec.type === "mpls" && (await hasKernelDriver(device, spec))) {
    const label = spec.labels!.request.join("/");
    const mtu = 1500 - 4 * spec.labels!.request.length;
    await device.ip(
      `route add ${VM[4]} mtu ${mtu} encap mpls ${label} via inet ${OUTER[4][0]} dev u`,
      `route add ${VM[6]} mtu ${mtu} encap mpls ${label} via inet6 fd77:7::1 dev u onlink`,
    );
  } else {
    await device.ip(...FAMILIES.map((family) => `route add ${VM[family]} via ${INNER[family][0]} dev t`));
  }
  const [vmAgent, clientAgent] = [vm.agent(), client.agent()];
  await vmAgent.call("serve", { name: "vm" });
  const lasthop = await Lasthop.on(lab!, host);
  await lasthop.attachAll(["t"], ["tap"], { mode: "tc" });
  return { host, device, client: clientAgent, lasthop, tunnels };
}

describe.each([VXLAN4, GRE, IPIP, MPLS])("requests that come by $name", (kind) => {
  it("are learned there, and answered there", { timeout: 90_000 }, async () => {
    lab = new Lab();
    const { client, lasthop, tunnels, host } = await build(kind);
    for (const family of FAMILIES) {
      const key = `held${family}`;
      await client.call("open", { key, host: VM[family], port: 7 });
      await client.call("echo", { key });
      expect(await client.call("udp", { host: VM[family], port: 7, text: "by" })).toMatchObject({
        text: "by",
      });
      const expected = await client.call("expected", { bytes: BYTES });
      const target = { host: VM[family], bytes: BYTES, timeoutMs: 15_000 };
      expect(await client.call("download", target)).toEqual(expected);
      expect(await client.call("upload", target)).toEqual(expected);
      const flow = (await lasthop.flows("--address", VM[family])).find((one) => one.local_port === 7);
      expect(flow?.last_hop?.interface).toBe("t");
      if (["gre", "ipip", "mpls"].includes(kind.spec.type)) expect(flow?.last_hop?.mac).toBe(TUNNEL_SOURCE);
      const routes = await host.run(["ip", "route", "get", CLIENT[family]]);
      expect(routes.status, "the host itself knows no way").not.toBe(0);
    }
    expect(await lasthop.packets("redirect")).toBeGreaterThan(0);
    const stats = tunnels.stats("t");
    expect(stats.sent_bytes).toBeGreaterThan(2 * BYTES);
    expect(stats).toMatchObject({ sent_errors: 0, received_errors: 0 });
  });
});

/** Two tunnels of one host, and a namespace at the other end of each. */
async function buildChain(first: Kind, second: Kind) {
  const ends = ["left", "middle", "right"].map((name) => lab!.namespace(name));
  const [left, middle, right] = ends as [Namespace, Namespace, Namespace];
  const plan = new Plan();
  plan.veth(
    { namespace: middle, name: "u", mac: MACS.host },
    { namespace: left, name: "u", mac: MACS.device },
  );
  plan.veth(
    { namespace: middle, name: "w", mac: "02:00:00:00:78:01" },
    { namespace: right, name: "u", mac: "02:00:00:00:78:02" },
  );
  for (const namespace of ends) plan.add(namespace, "link set dev lo up", "link set dev u up");
  plan.add(middle, "link set dev w up");
  const at = (namespace: Namespace, name: string, index: 0 | 1, net: number) =>
    plan.add(
      namespace,
      `addr add 10.${net}.0.${index + 1}/24 dev ${name}`,
      `addr add fd${net}::${index + 1}/64 dev ${name} nodad`,
    );
  at(middle, "u", 0, 77);
  at(left, "u", 1, 77);
  at(middle, "w", 0, 78);
  at(right, "u", 1, 78);
  plan.sysctls.set(middle, FORWARDING);
  await must(["sh"], { input: plan.script(ends) });

  const other = (address: string) => address.replace("77", "78");
  const specs = [specOf(first), specOf(second)].map((spec, index) =>
    index === 0 ? spec : { ...spec, local: other(spec.local), remote: other(spec.remote), underlay: "w" },
  );
  const tunnels = tunnelHost(middle);
  await tunnels.add("t", specs[0]!);
  await tunnels.add("s", specs[1]!);
  await addresses(middle, "t", INNER[4][0], INNER[6][0]);
  await addresses(middle, "s", "172.31.0.1", "fd31::1");
  await addFarEnd(left, mirrored(specs[0]!));
  const there = { ...mirrored(specs[1]!), underlay: "u" };
  const inner = { 4: ["172.31.0.1", "172.31.0.2"], 6: ["fd31::1", "fd31::2"] } as const;
  if (await hasKernelDriver(right, there)) await new KernelEnd(right).add("t", there, inner);
  else {
    await tunnelHost(right).add("t", there);
    await addresses(right, "t", inner[4][1], inner[6][1]);
  }
  await left.ip(
    `route add 172.31.0.0/24 via ${INNER[4][0]} dev t`,
    `route add fd31::/64 via ${INNER[6][0]} dev t`,
  );
  await right.ip("route add 172.30.0.0/24 via 172.31.0.1 dev t", "route add fd30::/64 via fd31::1 dev t");
  return { left, right, tunnels };
}

describe.each([
  { first: VXLAN4, second: VXLAN6 },
  { first: VXLAN4, second: GRE },
  { first: GRE, second: IPIP },
])("a host between two tunnels, $first.name and $second.name", ({ first, second }) => {
  it("routes from one to the other", { timeout: 90_000 }, async () => {
    lab = new Lab();
    const { left, right, tunnels } = await buildChain(first, second);
    const [asking, answering] = [left.agent(), right.agent()];
    await answering.call("serve", { name: "right" });
    for (const host of ["172.31.0.2", "fd31::2"]) {
      expect((await left.run(["ping", "-n", "-c", "3", "-i", "0.2", "-W", "2", host])).stdout).toContain(
        " 0% packet loss",
      );
      const expected = await asking.call("expected", { bytes: BYTES });
      const target = { host, bytes: BYTES, timeoutMs: 15_000 };
      expect(await asking.call("download", target)).toEqual(expected);
      expect(await asking.call("upload", target)).toEqual(expected);
      expect(await asking.call("udp", { host, port: 7, text: "through" })).toMatchObject({ text: "through" });
    }
    for (const name of ["t", "s"]) {
      expect(tunnels.stats(name)).toMatchObject({ sent_errors: 0, received_errors: 0 });
    }
  });
});

/** A guest behind a bridge at each end of a tunnel. */
async function buildBridged(spec: TunnelSpec) {
  const ends = [lab!.namespace("host"), lab!.namespace("device")] as const;
  const guests = [lab!.namespace("asking"), lab!.namespace("answering")] as const;
  const plan = new Plan();
  plan.veth(
    { namespace: ends[0], name: "u", mac: MACS.host },
    { namespace: ends[1], name: "u", mac: MACS.device },
  );
  for (const index of [0, 1] as const) {
    const [end, guest] = [ends[index], guests[index]];
    plan.veth(
      { namespace: end, name: "tap", mac: `02:00:00:00:79:0${index}` },
      { namespace: guest, name: "eth0", mac: `02:00:00:00:79:1${index}` },
    );
    plan.add(
      end,
      "link set dev lo up",
      `addr add ${OUTER[4][index]}/24 dev u`,
      `addr add ${OUTER[6][index]}/64 dev u nodad`,
      "link add name br type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
      ...["br", "tap", "u"].map((name) => `link set dev ${name} up`),
      "link set dev tap master br",
    );
    plan.add(
      guest,
      `addr add ${INNER[4][index]}/24 dev eth0`,
      `addr add ${INNER[6][index]}/64 dev eth0 nodad`,
      `link set dev eth0 mtu ${MTU} up`,
    );
  }
  await must(["sh"], { input: plan.script([...ends, ...guests]) });
  const tunnels = tunnelHost(ends[0]);
  await tunnels.add("t", spec);
  await addFarEnd(ends[1], mirrored(spec));
  await ends[1].ip("addr flush dev t");
  for (const end of ends) await end.ip("link set dev t master br");
  return { guests, tunnels };
}

describe.each([
  { name: "802.1Q", push: "push100", kind: VXLAN4 },
  { name: "802.1Q", push: "push100", kind: NVGRE },
  { name: "QinQ", push: "push200_100", kind: VXLAN6 },
] as const)("a guest's $name tags", ({ push, kind }) => {
  it(`are inside the frames of ${kind.name}, both ways`, { timeout: 60_000 }, async () => {
    lab = new Lab();
    const { guests, tunnels } = await buildBridged(specOf(kind));
    const [asking, answering] = guests;
    // In place of VLAN devices at both ends: only what has the tags all the way is understood.
    await addFilter(asking, "eth0", "egress", push);
    await addFilter(asking, "eth0", "ingress", "pop");
    for (const family of FAMILIES) {
      const silent = await asking.run(["ping", "-n", "-c", "1", "-W", "1", INNER[family][1]]);
      expect(silent.status, "with its tags on it is another network's").not.toBe(0);
    }
    await addFilter(answering, "eth0", "egress", push);
    await addFilter(answering, "eth0", "ingress", "pop");
    for (const guest of guests) await guest.ip("neigh flush dev eth0");
    const [client, server] = [asking.agent(), answering.agent()];
    await server.call("serve", { name: "answering" });
    for (const family of FAMILIES) {
      const host = INNER[family][1];
      const expected = await client.call("expected", { bytes: BYTES });
      const target = { host, bytes: BYTES, timeoutMs: 15_000 };
      expect(await client.call("download", target)).toEqual(expected);
      expect(await client.call("upload", target)).toEqual(expected);
    }
    expect(tunnels.stats("t")).toMatchObject({ sent_errors: 0, received_errors: 0 });
  });
});
