// SPDX-License-Identifier: Apache-2.0
// Firewalls on a trunk: a request's 802.1Q or QinQ tags are part of its last hop, and the reply, which
// the VM sends untagged, leaves with the same ones.

import { describe, expect, it } from "vitest";
import { Capture } from "../support/capture.ts";
import { attachAll, FAMILIES, useSite } from "../support/fixture.ts";
import { addFilter, type ForeignProgram } from "../support/tools.ts";

const TRUNKS: { name: string; push: ForeignProgram; vids: number[]; tags: object[] }[] = [
  { name: "802.1Q", push: "push100", vids: [100], tags: [{ protocol: "802.1q", vid: 100 }] },
  {
    name: "QinQ",
    push: "push200_100",
    vids: [200, 100],
    tags: [
      { protocol: "802.1ad", vid: 200 },
      { protocol: "802.1q", vid: 100 },
    ],
  },
];

describe.each(TRUNKS)("an uplink with $name tags", ({ push, vids, tags }) => {
  const ground = useSite({ host: "bridged", vms: 1 }, async (prepared) => {
    const { site } = prepared;
    await attachAll(prepared);
    const uplink = site.uplinkOf("a");
    // In place of the VLAN devices of firewall and host: what one sends tagged, the other untags, after
    // lasthop has seen it.
    await addFilter(site.a.namespace, "in", "egress", push);
    await addFilter(site.a.namespace, "in", "ingress", "pop");
    // Of later priority than ours: without TCX both are clsact filters.
    await addFilter(site.host, uplink, "ingress", "pop", 40_000);
    await addFilter(site.host, uplink, "egress", "count");
  });

  it.each(FAMILIES)("IPv%i: the reply carries the request's tags", async (family) => {
    const { site, lasthop } = ground;
    const { client, vm, a, b } = site;
    await site.resetCounts();
    const capture = await Capture.start(a.namespace, "in", { direction: "in" });
    const key = `tags${family}`;
    const host = vm.address[family];
    await client.agent.call("open", { key, host, port: 7 });
    await client.agent.call("echo", { key });
    await client.agent.call("udp", { host, port: 7, text: "tagged" });
    const bytes = 4 << 20;
    const expected = await client.agent.call("expected", { bytes });
    expect(await client.agent.call("download", { host, bytes })).toEqual(expected);
    expect(await client.agent.call("upload", { host, bytes })).toEqual(expected);

    const flow = (await lasthop.flows("--address", host)).find((entry) => entry.local_port === 7);
    expect(flow?.last_hop).toMatchObject({ mac: a.mac, interface: site.uplinkOf("a"), tags });
    expect((await lasthop.lastHops()).map((hop) => hop.tags)).toContainEqual(tags);
    await client.agent.call("close", { key });

    const replies = (await capture.stop()).filter((packet) => packet.destination === client.address[family]);
    expect(replies.length).toBeGreaterThan(10);
    for (const reply of replies) {
      expect(reply).toMatchObject({ vids, source_mac: vm.mac, destination_mac: a.mac });
    }
    expect((await b.counts()).packets("dropped")).toBe(0);
  });
});
