// SPDX-License-Identifier: Apache-2.0
// TCP bulk with offloads on: large segments with unfinished checksums enter at the tap, and what
// arrives is byte for byte what was sent, in frames whose checksums are right.

import { describe, expect, it } from "vitest";
import { Capture } from "../support/capture.ts";
import { FAMILIES, useSite } from "../support/fixture.ts";
import type { Namespace } from "../support/lab.ts";
import { keepTags } from "../support/tools.ts";

const BYTES = 48 << 20;

async function checksumErrors(namespace: Namespace): Promise<Record<string, number>> {
  const text = await namespace.must(["cat", "/proc/net/snmp", "/proc/net/snmp6"]);
  const errors: Record<string, number> = {};
  for (const line of text.split("\n")) {
    const six = /^(\w+InCsumErrors)\s+(\d+)/.exec(line);
    if (six) errors[six[1]!] = Number(six[2]);
  }
  const lines = text.split("\n");
  for (let at = 0; at + 1 < lines.length; at++) {
    const [names, values] = [lines[at]!.split(" "), lines[at + 1]!.split(" ")];
    if (names[0] !== values[0]) continue;
    const column = names.indexOf("InCsumErrors");
    if (column > 0) errors[`${names[0]!.replace(":", "")}InCsumErrors`] = Number(values[column]);
  }
  return errors;
}

describe.each([
  ["bridged", "tc"],
  ["bridged", "generic"],
  ["routed", "tc"],
] as const)("a %s host, uplinks in mode %s", (host, mode) => {
  const ground = useSite({ host }, async ({ site, lasthop }) => {
    for (const uplink of site.uplinks) if (mode !== "tc") await keepTags(site.host, uplink);
    await lasthop.attachAll(site.uplinks, [], { mode });
    await lasthop.attachAll([], site.taps);
  });

  it.each(FAMILIES)("IPv%i: what is sent is what arrives, both ways", async (family) => {
    const { client, vm } = ground.site;
    const features = await vm.namespace.must(["ethtool", "-k", "eth0"]);
    expect(features).toMatch(/tcp-segmentation-offload: on/);
    expect(features).toMatch(/tx-checksumming: on/);
    await ground.site.resetCounts();
    const target = { host: vm.address[family], bytes: BYTES, timeoutMs: 20_000 };
    const expected = await client.agent.call("expected", { bytes: BYTES });
    expect(await client.agent.call("download", target)).toEqual(expected);
    expect(await client.agent.call("upload", target)).toEqual(expected);

    const [a, b] = await Promise.all([ground.site.a.counts(), ground.site.b.counts()]);
    expect(a.bytes("carried", { family, direction: "reply" })).toBeGreaterThan(BYTES);
    expect(a.bytes("carried", { family, direction: "request" })).toBeGreaterThan(BYTES);
    expect(b.packets("carried")).toBe(0);
    expect(b.packets("dropped")).toBe(0);
    // Large segments stayed large on the way: far fewer packets than frames of 1500 bytes.
    const packets = a.packets("carried", { family, protocol: "tcp", direction: "reply" });
    expect(packets).toBeLessThan(BYTES / 1448 / 2);
    for (const party of [client, vm]) {
      const errors = await checksumErrors(party.namespace);
      expect(Object.keys(errors)).toContain("TcpInCsumErrors");
      expect(Object.values(errors).every((count) => count === 0)).toBe(true);
    }
  });

  it.each(FAMILIES)("IPv%i: every checksum of the reply is right after segmentation", async (family) => {
    const { client, vm, a } = ground.site;
    // The firewall's kernel now finishes what the VM left unfinished, from the offsets that came along.
    await a.namespace.must(["ethtool", "-K", "c1", "tx", "off"]);
    const capture = await Capture.start(client.namespace, "to-a", { direction: "in", filter: "tcp port 80" });
    const target = { host: vm.address[family], bytes: 1 << 20, timeoutMs: 10_000 };
    await client.agent.call("download", target);
    const packets = await capture.stop();
    await a.namespace.must(["ethtool", "-K", "c1", "tx", "on"]);
    expect(packets.length).toBeGreaterThan(700);
    expect(packets.filter((packet) => packet.checksum !== "good")).toEqual([]);
    expect(Math.max(...packets.map((packet) => packet.length_bytes))).toBeLessThanOrEqual(1514);
  });
});
