// SPDX-License-Identifier: Apache-2.0
// Datagrams larger than a frame, and headers with options: every piece goes the same way.

import { describe, expect, it } from "vitest";
import { Capture } from "../support/capture.ts";
import { attachAll, FAMILIES, useSite } from "../support/fixture.ts";

describe.each(["bridged", "routed"] as const)("a %s host", (host) => {
  const ground = useSite({ host, vms: 1 }, attachAll);

  it.each(FAMILIES)("IPv%i: all fragments of a reply follow the first", async (family) => {
    const { site, lasthop } = ground;
    const { client, vm, a, b } = site;
    await site.resetCounts();
    const from = `src host ${vm.address[family]}`;
    const capture = await Capture.start(a.namespace, "in", { direction: "in", filter: from });
    const text = Array.from({ length: 800 }, (_, at) => String(at).padStart(5, "0")).join("");
    for (let round = 0; round < 3; round++) {
      expect((await client.agent.call("udp", { host: vm.address[family], port: 7, text })).text).toBe(text);
    }
    const fragments = (await capture.stop()).filter((packet) => packet.length_bytes > 800);
    expect(fragments.length).toBeGreaterThanOrEqual(9);
    expect(new Set(fragments.map((packet) => packet.destination_mac))).toEqual(new Set([a.mac]));
    expect(fragments.filter((packet) => packet.checksum === "bad")).toEqual([]);
    expect((await b.counts()).packets("dropped")).toBe(0);
    expect(await lasthop.packets("no_flow", vm.tap)).toBe(0);
  });

  it("IPv4 options do not hide the flow", async () => {
    const { client, vm, a, b } = ground.site;
    await ground.site.resetCounts();
    for (const option of [["-R"], ["-T", "tsonly"]]) {
      const ping = ["ping", "-n", "-c", "2", "-i", "0.02", "-W", "1", ...option, vm.address[4]];
      const { status, stdout } = await client.namespace.run(ping);
      expect({ status, stdout }).toMatchObject({ status: 0 });
    }
    expect((await a.counts()).packets("carried", { family: 4, direction: "reply" })).toBe(4);
    expect((await b.counts()).packets("dropped")).toBe(0);
  });
});
