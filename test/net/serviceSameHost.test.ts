// SPDX-License-Identifier: Apache-2.0
// Transparent VMs in front of a server that is a VM of the same host: what works, and what does not and is told.

import { describe, expect, it } from "vitest";
import type { DoctorReport } from "../../src/ops/types.ts";
import { FAMILIES } from "../support/addresses.ts";
import {
  apply,
  askAnew,
  expectThrough,
  PORT,
  SERVICE,
  type ServiceGround,
  serverTap,
  showVm,
  useServiceSite,
} from "../support/serviceSite.ts";

const IN_TURN = { policy: "round-robin" };
const SERVER_TAP = "up-s1";

async function expectServed(ground: ServiceGround): Promise<void> {
  await ground.site.resetCounts();
  for (const family of FAMILIES) {
    expect(new Set(await askAnew(ground, family, 6))).toEqual(new Set(["server1"]));
    await expectThrough(ground, "a", family, ["tcp"]);
  }
}

describe("a server on the same bridge", () => {
  const ground = useServiceSite({ shape: "transparent" });

  it("is served if its tap is an uplink, in the one zone that there is", async () => {
    await apply(ground, { service: IN_TURN });
    await expectServed(ground);
  });

  it("is not if its tap is one, and that is explained", async () => {
    const { site, lasthop } = ground;
    const uplinks = site.uplinks.filter((name) => name !== SERVER_TAP).map((name) => ({ name }));
    const taps = [...site.taps, SERVER_TAP].map((name) => ({ name }));
    await apply(ground, { service: IN_TURN, more: { uplinks, taps } });
    await site.resetCounts();
    const before = await lasthop.packets("vm_mismatch", SERVER_TAP);
    const asked = { key: "mismatch", host: SERVICE[4], port: PORT, timeoutMs: 300 };
    expect(await site.client.agent.failure("openAsking", asked)).toBe("timeout");
    expect(await lasthop.packets("vm_mismatch", SERVER_TAP)).toBeGreaterThan(before);
    // The server's own route leads there.
    expect((await site.b.counts()).packets("dropped", { protocol: "tcp" })).toBeGreaterThan(0);
    const { stdout } = await lasthop.run("--json", "doctor");
    const { checks } = JSON.parse(stdout) as DoctorReport;
    const zones = checks.find(({ name }) => name === "vm zones");
    expect(zones).toMatchObject({ level: "warn", found: expect.stringContaining(SERVER_TAP) });
    expect(zones?.hint).toMatch(/--zone/);
    await apply(ground, { service: IN_TURN });
    await expectServed(ground);
  });
});

describe("a server on a bridge of its own, each VM with a card there", () => {
  const ground = useServiceSite({ shape: "transparent", serverBridge: true });
  const uplinks = () => ground.site.uplinks.filter((name) => name !== SERVER_TAP).map((name) => ({ name }));
  const taps = () => [
    ...ground.site.taps.map((name) => ({ name })),
    ...ground.site.vms.map((vm) => ({ name: serverTap(vm).tap, zone: "servers" })),
  ];
  const zones = { servers: 7 };

  it("is served if that is another zone, and its routing leads back to the VM", async () => {
    const all = [...taps(), { name: SERVER_TAP, zone: "servers" }];
    await apply(ground, {
      service: { pool: [{ vm: "vm1" }] },
      more: { zones, uplinks: uplinks(), taps: all },
    });
    await expectServed(ground);
    expect(await ground.lasthop.packets("vm_mismatch")).toBe(0);
  });

  it("and from several VMs if its tap is an uplink there: responses go to the card of the one that forwarded", async () => {
    const { site } = ground;
    const cards = site.vms.map((vm) => ({ name: `${vm.name}-in`, zone: "servers", ...cardOf(vm) }));
    const vms = site.vms.map(({ name, tap, mac }) => ({ name, tap, mac }));
    await apply(ground, {
      service: IN_TURN,
      more: {
        zones,
        uplinks: [...uplinks(), { name: SERVER_TAP, zone: "servers" }],
        taps: taps(),
        vms: [...vms, ...cards],
      },
    });
    await expectServed(ground);
    for (const { name } of site.vms) {
      const inner = await showVm(ground, `${name}-in`);
      expect({ name, flows: (await showVm(ground, name)).flows_started > 0 }).toEqual({ name, flows: true });
      // Its routing has vm1 as the way back to all.
      if (name !== "vm1") expect(inner.response_packets).toBeGreaterThan(0);
    }
  });
});

function cardOf(vm: Parameters<typeof serverTap>[0]): { tap: string; mac: string } {
  const { tap, mac } = serverTap(vm);
  return { tap, mac };
}
