// SPDX-License-Identifier: Apache-2.0
// The way back by firewall a carries less than the VM's own link: TCP by a lower MSS or by the answers that a
// router would give, UDP by those answers, and nothing on that way is larger than it carries.

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parseAddress } from "../../src/addresses.ts";
import { Instance } from "../../src/kernel/instance.ts";
import { Tables } from "../../src/tables/index.ts";
import type { Family } from "../support/addresses.ts";
import { Capture, type Packet } from "../support/capture.ts";
import { attachAll, FAMILIES, type Ground, useSite } from "../support/fixture.ts";
import { Sender } from "../support/sender.ts";
import type { Site } from "../support/site.ts";
import { addFilter, keepTags, removeFilter } from "../support/tools.ts";

const MTU = 1400;
const ETHERNET = 14;
/** As much as a capture is read in a second. */
const BYTES = 1 << 20;
const UNREACHABLE_OR_TOO_BIG = { 4: 3, 6: 2 };
/** Of an ICMP error that quotes as much as it may. */
const ANSWER_BYTES = { 4: 576, 6: 1280 };

/**
 * The link between host and firewall a carries less. The host knows, or was told wrongly; and it lowers the MSS of
 * what goes there, or does not.
 */
async function narrow({ site, lasthop }: Ground, path: { known: number; clamp: boolean }): Promise<void> {
  const uplink = site.uplinkOf("a");
  await setLink(site, MTU);
  const clamp = path.clamp ? "--clamp-mss" : "--no-clamp-mss";
  await lasthop.must("attach", uplink, "--role", "uplink", "--mtu", String(path.known), clamp);
}

async function setLink(site: Site, mtu: number): Promise<void> {
  await site.host.ip(`link set dev ${site.uplinkOf("a")} mtu ${mtu}`);
  await site.a.namespace.ip(`link set dev in mtu ${mtu}`);
}

/** Where the answers to the VM come from, if not from whom it sent to. */
function setSource({ site, lab }: Ground, four: string | null, six: string | null): void {
  using instance = new Instance(lab.pinRoot);
  const { interfaces } = new Tables(instance);
  const tap = interfaces.list().find(({ name }) => name === site.vm.tap)!;
  interfaces.set(tap.ifindex, {
    ...tap,
    icmp_source4: four === null ? 0 : parseAddress(four)!.readUInt32BE(),
    icmp_source6: six === null ? Buffer.alloc(16) : parseAddress(six)!,
  });
}

async function forgetPaths({ site }: Ground): Promise<void> {
  for (const { namespace } of [site.vm, site.client])
    for (const family of FAMILIES) await namespace.must(["ip", `-${family}`, "route", "flush", "cache"]);
}

async function pathMtu({ site }: Ground, family: Family): Promise<number | null> {
  const route = await site.vm.namespace.must([
    "ip",
    `-${family}`,
    "route",
    "get",
    site.client.address[family],
  ]);
  return Number(/\bmtu (\d+)/.exec(route)?.[1] ?? Number.NaN) || null;
}

/** What a capture saw of ICMP errors about size. */
function tooBig(packets: Packet[], family: Family): Packet[] {
  return packets.filter((packet) => packet.icmp_type === UNREACHABLE_OR_TOO_BIG[family]);
}

describe.each(["bridged", "routed"] as const)("a %s host", (host) => {
  const ground = useSite({ host, vms: 1 }, async (prepared) => {
    const { site } = prepared;
    await attachAll(prepared);
    // The VM's offloads stay on. Behind the uplink every segment is a frame of its own, to be measured.
    await site.host.must(["ethtool", "-K", site.uplinkOf("a"), "tso", "off", "gso", "off", "tx", "off"]);
  });

  const onTheWayBack = () =>
    Capture.start(ground.site.a.namespace, "in", { direction: "in", filter: "ip or ip6" });

  function expectToFit(packets: Packet[]): void {
    expect(packets.length).toBeGreaterThan(0);
    expect(Math.max(...packets.map(({ length_bytes }) => length_bytes))).toBeLessThanOrEqual(MTU + ETHERNET);
    expect(packets.filter(({ checksum }) => checksum === "bad")).toEqual([]);
  }

  async function transfer(family: Family): Promise<void> {
    const { client, vm } = ground.site;
    const target = { host: vm.address[family], bytes: BYTES, timeoutMs: 20_000 };
    const expected = await client.agent.call("expected", { bytes: BYTES });
    expect(await client.agent.call("download", target)).toEqual(expected);
    expect(await client.agent.call("upload", target)).toEqual(expected);
  }

  it.each(FAMILIES)("IPv%i: TCP with a lowered MSS needs no answers", async (family) => {
    await narrow(ground, { known: MTU, clamp: true });
    await forgetPaths(ground);
    const { vm, client, a, b } = ground.site;
    await ground.site.resetCounts();
    const before = await ground.lasthop.packets("too_big");
    const captures = await Promise.all([
      onTheWayBack(),
      Capture.start(vm.namespace, "eth0", { filter: "icmp or icmp6" }),
      Capture.start(client.namespace, "to-a", { filter: "icmp or icmp6" }),
    ]);
    await transfer(family);
    const [back, ...errors] = await Promise.all(captures.map((capture) => capture.stop()));
    expectToFit(back!);
    // Full segments, not tiny ones.
    const sizes = back!.map(({ length_bytes }) => length_bytes);
    expect(sizes.filter((size) => size === MTU + ETHERNET).length).toBeGreaterThan(BYTES / MTU / 2);
    expect(errors.flatMap((packets) => tooBig(packets, family))).toEqual([]);
    expect(await ground.lasthop.packets("too_big")).toBe(before);
    expect((await a.counts()).bytes("carried", { family, direction: "reply" })).toBeGreaterThan(BYTES);
    expect((await b.counts()).packets("dropped")).toBe(0);
  });

  it.each(FAMILIES)("IPv%i: TCP without it finds the MTU by the answers", async (family) => {
    await narrow(ground, { known: MTU, clamp: false });
    await forgetPaths(ground);
    const { vm, a, b } = ground.site;
    await ground.site.resetCounts();
    const before = await ground.lasthop.packets("too_big", vm.tap);
    const captures = await Promise.all([
      onTheWayBack(),
      Capture.start(vm.namespace, "eth0", { direction: "in", filter: "icmp or icmp6" }),
    ]);
    await transfer(family);
    const [back, icmp] = await Promise.all(captures.map((capture) => capture.stop()));
    expectToFit(back!);
    const answers = tooBig(icmp!, family);
    expect(answers.length).toBeGreaterThan(0);
    // A burst was under way when the first was answered; after that the VM knows.
    expect(answers.length).toBeLessThan(30);
    for (const answer of answers)
      expect(answer).toMatchObject({
        length_bytes: ANSWER_BYTES[family] + ETHERNET,
        destination_mac: vm.mac,
        source_mac: host === "bridged" ? b.mac : ground.site.tapMac,
        destination: vm.address[family],
        ttl: 64,
      });
    expect(await ground.lasthop.packets("too_big", vm.tap)).toBe(before + answers.length);
    expect(await pathMtu(ground, family)).toBe(MTU);
    expect((await a.counts()).bytes("carried", { family, direction: "reply" })).toBeGreaterThan(BYTES);
    expect((await b.counts()).packets("dropped")).toBe(0);
  });

  it.each(FAMILIES)("IPv%i: an answer comes from the host's address for the VM", async (family) => {
    await narrow(ground, { known: MTU, clamp: false });
    const { vm, client } = ground.site;
    const own = { 4: "192.0.2.66", 6: "2001:db8:66::1" };
    for (const source of [own[family], client.address[family]]) {
      await forgetPaths(ground);
      // Without one, from whom the VM sent to.
      if (source === own[family]) setSource(ground, own[4], own[6]);
      else setSource(ground, null, null);
      const capture = await Capture.start(vm.namespace, "eth0", { direction: "in", filter: "icmp or icmp6" });
      const target = { host: vm.address[family], bytes: BYTES, timeoutMs: 10_000 };
      await client.agent.call("download", target);
      const answers = tooBig(await capture.stop(), family);
      expect(answers.length).toBeGreaterThan(0);
      expect(new Set(answers.map((answer) => answer.source))).toEqual(new Set([source]));
      expect(await pathMtu(ground, family)).toBe(MTU);
    }
  });

  it.each(FAMILIES)("IPv%i: a connection that stands when the way becomes narrow", async (family) => {
    await narrow(ground, { known: 1500, clamp: false });
    await setLink(ground.site, 1500);
    await forgetPaths(ground);
    const { client, vm } = ground.site;
    const key = `held${family}`;
    await client.agent.call("open", { key, host: vm.address[family], port: 7 });
    await client.agent.call("echo", { key, bytes: 100_000 });
    await narrow(ground, { known: MTU, clamp: true });
    await client.agent.call("echo", { key, bytes: 100_000, timeoutMs: 10_000 });
    await client.agent.call("close", { key });
    expect(await pathMtu(ground, family)).toBe(MTU);
  });

  describe.each(FAMILIES)("IPv%i: UDP", (family) => {
    const headers = family === 4 ? 28 : 48;

    beforeAll(() => narrow(ground, { known: MTU, clamp: true }));

    /** What the VM was told of each of its datagrams, and what the client got. */
    async function exchange(port: number, bytes: number, discovery: "do" | "want" | "dont") {
      const { client, vm } = ground.site;
      const sender = await Sender.start(vm, { family, port, bytes, discovery });
      const target = { host: vm.address[family], port, text: "asked", timeoutMs: 600 };
      const heard = await client.agent.call("udp", target).then(
        ({ text }) => text,
        (error: Error) => error.message,
      );
      return { heard, results: await sender.results() };
    }

    it("what may not be cut up is refused after the first answer", async () => {
      await forgetPaths(ground);
      const before = await ground.lasthop.packets("too_big");
      const { heard, results } = await exchange(2000, MTU - headers + 1, "do");
      expect(results).toEqual(["sent", "EMSGSIZE", "EMSGSIZE"]);
      expect(heard).toMatch(/timeout/);
      expect(await ground.lasthop.packets("too_big")).toBe(before + 1);
      expect(await pathMtu(ground, family)).toBe(MTU);
    });

    it("what fits goes", async () => {
      await forgetPaths(ground);
      const capture = await onTheWayBack();
      const { heard, results } = await exchange(2001, MTU - headers, "do");
      expect(results).toEqual(["sent", "sent", "sent"]);
      expect(heard).toBe("A".repeat(MTU - headers));
      expectToFit(await capture.stop());
    });

    it.each(["want", "dont"] as const)(
      "what may be cut up (%s) is cut up by the VM after the first answer",
      async (discovery) => {
        await forgetPaths(ground);
        const capture = await onTheWayBack();
        const port = discovery === "want" ? 2002 : 2003;
        const { heard, results } = await exchange(port, MTU - headers + 1, discovery);
        expect(results).toEqual(["sent", "sent", "sent"]);
        // The first was lost.
        expect(heard).toBe("B".repeat(MTU - headers + 1));
        expectToFit(await capture.stop());
      },
    );

    it("what the VM cuts up for its own link is cut up smaller", async () => {
      await forgetPaths(ground);
      const { heard, results } = await exchange(2004, 4000, "want");
      expect(results).toEqual(["sent", "sent", "sent"]);
      expect(heard).toBe("B".repeat(4000));
      expect(await pathMtu(ground, family)).toBe(MTU);
    });
  });

  it.each(FAMILIES)(
    "IPv%i: ping with a large body, which only the way back is too narrow for",
    async (family) => {
      await narrow(ground, { known: MTU, clamp: true });
      // Only the way back is narrow: the firewall would otherwise answer the client.
      await ground.site.a.namespace.ip("link set dev in mtu 1500");
      await ground.site.host.ip(`link set dev ${ground.site.uplinkOf("a")} mtu 1500`);
      await forgetPaths(ground);
      const { client, vm, a, b } = ground.site;
      const capture = await onTheWayBack();
      const ping = ["ping", "-n", "-c", "3", "-i", "0.1", "-W", "1", "-s", "1450", vm.address[family]];
      const { stdout } = await client.namespace.run(ping);
      // The VM learned from the first, and cuts up the answers to the others.
      expect(stdout).toContain("3 packets transmitted, 2 received");
      expectToFit(await capture.stop());
      expect(await pathMtu(ground, family)).toBe(MTU);
      expect((await b.counts()).packets("dropped")).toBe(0);
      await a.namespace.ip(`link set dev in mtu ${MTU}`);
    },
  );

  // The last: the VM goes on trying.
  it.each(FAMILIES)("IPv%i: with an MTU that is not true, large replies are lost", async (family) => {
    await narrow(ground, { known: 1500, clamp: true });
    await forgetPaths(ground);
    const { client, vm } = ground.site;
    const target = { host: vm.address[family], bytes: 1 << 20, timeoutMs: 1500 };
    expect(await client.agent.failure("download", target)).toBe("timeout");
  });
});

// What the VM's and the host's ends of its link leave to the other: the checksum in the quote is finished or not.
describe.each([
  ["on", "on", ["untagged"]],
  ["on", "off", ["untagged", "tagged", "tagged twice"]],
  ["off", "off", ["untagged"]],
  ["off", "on", ["untagged", "tagged twice"]],
] as const)("VM with offloads %s, tap with offloads %s", (vmOffload, tapOffload, tags) => {
  const ground = useSite({ vms: 1 }, async (prepared) => {
    const { site } = prepared;
    const { vm } = site;
    await attachAll(prepared);
    const features = (state: string) => ["tx", state, "tso", state, "gso", state];
    await vm.namespace.must(["ethtool", "-K", "eth0", ...features(vmOffload)]);
    await site.host.must(["ethtool", "-K", vm.tap, ...features(tapOffload)]);
    await narrow(prepared, { known: MTU, clamp: false });
    // Tags are pushed onto the VM's ARP too, where nobody expects them.
    for (const family of FAMILIES) {
      const [gateway, mac] = [site.b.address[family], site.b.mac];
      await vm.namespace.ip(`neigh replace ${gateway} lladdr ${mac} dev eth0 nud permanent`);
      await site.a.namespace.ip(`neigh replace ${vm.address[family]} lladdr ${vm.mac} dev in nud permanent`);
    }
  });

  describe.each(tags)("%s frames", (tag) => {
    const push = { untagged: undefined, tagged: "push100", "tagged twice": "push200_100" } as const;
    const vids = { untagged: [], tagged: [100], "tagged twice": [200, 100] }[tag];

    beforeAll(async () => {
      const { namespace } = ground.site.vm;
      if (push[tag] === undefined) return;
      await addFilter(namespace, "eth0", "egress", push[tag]);
      await addFilter(namespace, "eth0", "ingress", "pop");
    });

    afterAll(async () => {
      const { namespace } = ground.site.vm;
      if (push[tag] === undefined) return;
      await removeFilter(namespace, "eth0", "egress");
      await removeFilter(namespace, "eth0", "ingress");
    });

    async function expectAnswers(family: Family, send: () => Promise<void>): Promise<void> {
      await forgetPaths(ground);
      const before = await ground.lasthop.packets("too_big");
      const capture = await Capture.start(ground.site.vm.namespace, "eth0", { direction: "in" });
      await send();
      expect(await pathMtu(ground, family)).toBe(MTU);
      const answers = tooBig(await capture.stop(), family);
      expect(answers.length).toBeGreaterThan(0);
      expect(await ground.lasthop.packets("too_big")).toBe(before + answers.length);
      for (const answer of answers) expect(answer.vids).toEqual(vids);
      // With both left to the VM the capture sees a quote that is not finished.
      if (vmOffload === "off" || tapOffload === "off")
        expect(new Set(answers.map(({ checksum }) => checksum))).toEqual(new Set(["good"]));
    }

    it.each(FAMILIES)("IPv%i: the VM's TCP takes the answers", async (family) => {
      const { vm, client } = ground.site;
      await expectAnswers(family, async () => {
        const target = { host: vm.address[family], bytes: BYTES, timeoutMs: 10_000 };
        const expected = await client.agent.call("expected", { bytes: BYTES });
        expect(await client.agent.call("download", target)).toEqual(expected);
      });
    });

    it.each(FAMILIES)("IPv%i: the VM's UDP takes the answers", async (family) => {
      const { vm, client } = ground.site;
      const port = 3000;
      await expectAnswers(family, async () => {
        const sender = await Sender.start(vm, { family, port, bytes: MTU, discovery: "do" });
        const target = { host: vm.address[family], port, text: "asked", timeoutMs: 400 };
        expect(await client.agent.failure("udp", target)).toBe("timeout");
        expect(await sender.results()).toEqual(["sent", "EMSGSIZE", "EMSGSIZE"]);
      });
    });
  });
});

// The SYN comes in with its checksum finished or not, and goes on to the VM by a link that finishes it.
describe.each([
  ["tc", "on", true],
  ["tc", "off", true],
  // XDP cannot tell an unfinished checksum, and leaves the SYN alone.
  ["generic", "on", false],
  ["generic", "off", true],
] as const)("uplinks in mode %s, a client with offloads %s", (mode, offload, lowered) => {
  const ground = useSite({ vms: 1 }, async (prepared) => {
    const { site, lasthop } = prepared;
    for (const uplink of site.uplinks) if (mode !== "tc") await keepTags(site.host, uplink);
    await lasthop.attachAll(site.uplinks, [], { mode });
    await lasthop.attachAll([], site.taps);
    await site.client.namespace.must(["ethtool", "-K", "to-a", "tx", offload]);
    await site.host.must(["ethtool", "-K", site.vm.tap, "tx", "off"]);
    await site.host.must(["ethtool", "-K", site.uplinkOf("a"), "tx", "off"]);
    await narrow(prepared, { known: MTU, clamp: true });
  });

  it.each(FAMILIES)("IPv%i: SYN and SYN-ACK have a lower MSS and right checksums", async (family) => {
    const { vm, client, a } = ground.site;
    const port = 7;
    const handshake = family === 4 ? "tcp[13] & 2 != 0" : "ip6[53] & 2 != 0 and ip6 proto 6";
    const dump = (namespace: typeof vm.namespace, device: string) =>
      namespace.start(["tcpdump", "-nvvl", "-Q", "in", "-c", "1", "-i", device, handshake]);
    const [syn, answer] = [dump(vm.namespace, "eth0"), dump(a.namespace, "in")];
    await Promise.all([syn, answer].map((one) => one.writes(/listening on/, "stderr")));
    await client.agent.call("open", { key: `${family}`, host: vm.address[family], port });
    await client.agent.call("close", { key: `${family}` });
    expect(await Promise.all([syn.exited, answer.exited])).toEqual([0, 0]);
    const full = (mtu: number) => `mss ${mtu - (family === 4 ? 40 : 60)},`;
    expect(syn.stdout).toContain(full(lowered ? MTU : 1500));
    expect(syn.stdout).toMatch(/cksum \S+ \(correct\)/);
    expect(answer.stdout).toContain(full(MTU));
    expect(answer.stdout).toMatch(/cksum \S+ \(correct\)/);
    expect(await ground.lasthop.packets("error")).toBe(0);
  });
});
