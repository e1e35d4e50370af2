// SPDX-License-Identifier: Apache-2.0
// ICMP errors follow the flow that they quote, in both directions: through the firewall that knows it.

import { describe, expect, it } from "vitest";
import { Capture } from "../support/capture.ts";
import { attachAll, FAMILIES, useSite } from "../support/fixture.ts";

const UNREACHABLE = { 4: 3, 6: 1 };
const PORT = { 4: 3, 6: 4 };
const TOO_BIG = { 4: 3, 6: 2 };

describe.each(["bridged", "routed"] as const)("a %s host", (host) => {
  const ground = useSite({ host, vms: 1 }, attachAll);

  it.each(FAMILIES)("IPv%i: the VM's port unreachable reaches the client through a", async (family) => {
    const { client, vm, a, b } = ground.site;
    await ground.site.resetCounts();
    const capture = await Capture.start(a.namespace, "in", { direction: "in", filter: "icmp or icmp6" });
    const target = { host: vm.address[family], port: 9999, text: "anyone?" };
    expect(await client.agent.failure("udp", target)).toBe("ECONNREFUSED");
    const errors = (await capture.stop()).filter((packet) => packet.icmp_type === UNREACHABLE[family]);
    expect(errors).toMatchObject([
      {
        icmp_code: PORT[family],
        destination_mac: a.mac,
        destination: client.address[family],
        checksum: "good",
      },
    ]);
    expect((await b.counts()).packets("dropped")).toBe(0);
  });

  it.each(FAMILIES)("IPv%i: traceroute by UDP, ICMP and TCP comes to its end", async (family) => {
    const { client, vm, b } = ground.site;
    await ground.site.resetCounts();
    for (const method of [["-U", "-p", "33434"], ["-I"], ["-T", "-p", "80"]]) {
      const argv = ["traceroute", "-n", "-q", "2", "-w", "0.5", "-m", "5", ...method, vm.address[family]];
      const { status, stdout, stderr } = await client.namespace.run(argv);
      expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
      const hops = stdout.trim().split("\n").slice(1);
      expect(hops.at(-1)).toContain(` ${vm.address[family]} `);
      // Firewall a, then on a routed host the host, then the VM.
      expect(hops).toHaveLength(host === "bridged" ? 2 : 3);
      expect(hops[0]).toMatch(family === 4 ? / 10\.1\.1\.1 / : / fd10:1:1::1 /);
    }
    if (host === "bridged") expect((await b.counts()).packets("dropped")).toBe(0);
  });

  it.each(FAMILIES)("IPv%i: a narrow link behind the firewall is found by the VM", async (family) => {
    const { client, vm, a } = ground.site;
    await a.namespace.ip("link set dev c1 mtu 1400");
    const capture = await Capture.start(vm.namespace, "eth0", { direction: "in", filter: "icmp or icmp6" });
    const before = await ground.lasthop.packets("quoted");
    const target = { host: vm.address[family], bytes: 2 << 20, timeoutMs: 10_000 };
    const result = await client.agent.call("download", target);
    expect(result).toEqual(await client.agent.call("expected", { bytes: target.bytes }));
    const errors = (await capture.stop()).filter((packet) => packet.icmp_type === TOO_BIG[family]);
    expect(errors.length).toBeGreaterThan(0);
    expect(await ground.lasthop.packets("quoted")).toBeGreaterThan(before);
    const route = await vm.namespace.must(["ip", `-${family}`, "route", "get", client.address[family]]);
    expect(route).toContain("mtu 1400");
    await a.namespace.ip("link set dev c1 mtu 1500");
  });
});

describe("a VM with a narrow link behind it, on a bridged host", () => {
  const inner = { 4: "192.0.2.9", 6: "2001:db8:2::9" };
  const ground = useSite({ vms: 1 }, async (prepared) => {
    const { site, lab } = prepared;
    await attachAll(prepared);
    // vm1 forwards to a server behind it; only vm1's end of that link is narrow, so that TCP does not
    // learn the width by its handshake.
    const behind = lab.namespace("behind");
    const { vm, client, a } = site;
    await vm.namespace.must(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]);
    await vm.namespace.must(["ip", "netns", "add", behind.name]);
    await vm.namespace.must([
      "nsenter",
      `--net=${behind.path}`,
      "sysctl",
      "-qw",
      "net.ipv6.conf.default.accept_dad=0",
    ]);
    await vm.namespace.ip(
      `link add name back index 9001 mtu 1300 type veth peer name eth0 index 9002 mtu 1500 netns ${behind.name}`,
      "addr add 192.0.2.1/24 dev back",
      "addr add 2001:db8:2::1/64 dev back nodad",
      "link set dev back up",
    );
    await behind.ip(
      "link set dev lo up",
      `addr add ${inner[4]}/24 dev eth0`,
      `addr add ${inner[6]}/64 dev eth0 nodad`,
      "link set dev eth0 up",
      "route add default via 192.0.2.1",
      "route add default via 2001:db8:2::1",
    );
    for (const [family, prefix] of [
      [4, "192.0.2.0/24"],
      [6, "2001:db8:2::/64"],
    ] as const) {
      await a.namespace.ip(`route add ${prefix} via ${vm.address[family]}`);
      await client.namespace.ip(
        `route add ${prefix} via ${family === 4 ? "10.1.1.1" : "fd10:1:1::1"} src ${client.address[family]}`,
      );
    }
    await behind.agent().call("serve", { name: "behind" });
  });

  it.each(FAMILIES)(
    "IPv%i: its packet-too-big goes back through a, and the client adapts",
    async (family) => {
      const { client, vm, a, b } = ground.site;
      await ground.site.resetCounts();
      const capture = await Capture.start(a.namespace, "in", { direction: "in", filter: "icmp or icmp6" });
      const target = { host: inner[family], bytes: 1 << 20, timeoutMs: 10_000 };
      const result = await client.agent.call("upload", target);
      expect(result).toEqual(await client.agent.call("expected", { bytes: target.bytes }));
      const errors = (await capture.stop()).filter((packet) => packet.icmp_type === TOO_BIG[family]);
      expect(errors.length).toBeGreaterThan(0);
      for (const error of errors) {
        expect(error).toMatchObject({ source_mac: vm.mac, destination_mac: a.mac, checksum: "good" });
      }
      expect((await b.counts()).packets("dropped")).toBe(0);
      const route = await client.namespace.must(["ip", `-${family}`, "route", "get", inner[family]]);
      expect(route).toContain("mtu 1300");
    },
  );
});
