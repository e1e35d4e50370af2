// SPDX-License-Identifier: Apache-2.0
// Firewalls behind one VXLAN device, named by their VTEPs: which MACs are theirs is what the forwarding table says,
// whoever entered it. What leaves is read off the outer wire by tshark.
//
//   firewall a ── vxlan ─┐                           ┌ tap1 ── eth0 [vm]
//                        ├─ switch ── u0 [host] vxlan0 ─┤
//   firewall b ── vxlan ─┘                           └ the bridge br
//
// Both have the client's address. The VM's default route leads to b; requests come by a.

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { DeviceDetails, DeviceEntry, LastHopEntry } from "../../src/ops/types.ts";
import { cleanUpDaemons, Daemon } from "../support/daemon.ts";
import { FAMILIES } from "../support/fixture.ts";
import { repositoryPath } from "../support/paths.ts";
import { until } from "../support/run.ts";
import { type Outer, VTEP, VtepGround } from "../support/vtepGround.ts";

cleanUpDaemons();

const HOSTILE = "02:00:00:00:0f:77";
const GROUPED = "02:00:00:00:0f:78";

const devices = (outer: 4 | 6, more = "") => `
devices:
  - { name: fw-a, interface: "vx*", vteps: ["${VTEP.a[outer]}"], on_down: "peer:fw-b"${more} }
  - { name: fw-b, interface: "vx*", vteps: ["${VTEP.b[outer]}"], on_down: drop${more} }
`;
const config = (outer: 4 | 6, learn = "any") =>
  `uplinks: [{ name: "vx*", learn: ${learn} }]\ntaps: [{ name: "tap*" }]\n${devices(outer)}`;

/** By the name of a device, which MAC is behind which VTEP. */
async function behind(ground: VtepGround): Promise<Record<string, string[]>> {
  const { devices } = await ground.lasthop.json<{ devices: DeviceEntry[] }>("devices", "list");
  return Object.fromEntries(
    devices.map(({ name, vtep_macs }) => [name, vtep_macs.map(({ mac, vtep }) => `${mac} ${vtep}`)]),
  );
}

async function owned(ground: VtepGround): Promise<Record<string, string | null>> {
  const all = await ground.lasthop.lastHops();
  return Object.fromEntries(all.map(({ mac, device }) => [mac, device]));
}

const isOwner = (ground: VtepGround, mac: string, device: string | null, timeoutMs = 5000) =>
  until(async () => (await owned(ground))[mac] === device, `${mac} to be ${device}'s`, timeoutMs);

describe.each(FAMILIES)("a VXLAN device over IPv%i", (outer) => {
  let ground: VtepGround;
  const to = (firewall: "a" | "b", mac: string = ground.mac(firewall)): Outer => ({
    destination: VTEP[firewall][outer],
    vni: 100,
    inner_destination_mac: mac,
  });

  describe("with static entries", () => {
    let daemon: Daemon;
    beforeAll(async () => {
      ground = await VtepGround.build(outer, { learning: false });
      await ground.enter("a");
      daemon = await Daemon.start(ground.asGround, config(outer));
    });
    afterAll(async () => {
      await daemon?.stop();
      await ground?.close();
    });

    it("names the MACs behind a VTEP, before a frame came, and later ones as they are entered", async () => {
      await isOwner(ground, ground.mac("a"), "fw-a");
      await ground.enter("b");
      await isOwner(ground, ground.mac("b"), "fw-b");
      expect(await behind(ground)).toEqual({
        "fw-a": [`${ground.mac("a")} ${VTEP.a[outer]}`],
        "fw-b": [`${ground.mac("b")} ${VTEP.b[outer]}`],
      });
      const [hop] = (await ground.lasthop.lastHops()).filter(({ mac }) => mac === ground.mac("a"));
      expect(hop).toMatchObject({ vtep: VTEP.a[outer], interface: "vxlan0", device: "fw-a", state: "up" });
      expect((await ground.lasthop.run("last-hops", "list")).stdout).toContain(VTEP.a[outer]);
      expect((await ground.lasthop.run("devices", "list")).stdout).toContain(VTEP.b[outer]);
      expect((await ground.lasthop.run("devices", "show", "fw-a")).stdout).toContain(
        `${VTEP.a[outer]} ${ground.mac("a")} on vxlan0`,
      );
    });

    it.each(FAMILIES)(
      "IPv%i within: replies go to the VTEP that asked, down or up as told",
      async (inner) => {
        const port = await ground.ask("a", inner);
        expect(await ground.heard(port)).toEqual([to("a")]);
        await ground.lasthop.must("devices", "down", "fw-a");
        expect(await ground.heard(port)).toEqual([to("b")]);
        await ground.lasthop.must("devices", "down", "fw-b");
        // Its peer is down too: the VM's own route, which is b.
        expect(await ground.heard(port)).toEqual([to("b")]);
        await ground.lasthop.must("devices", "up", "fw-b");
        await ground.lasthop.must("devices", "up", "fw-a");
        await until(async () => {
          const [first] = await ground.heard(port);
          return first?.inner_destination_mac === ground.mac("a");
        }, "replies to go to a again");
      },
    );

    it.each(FAMILIES)(
      "IPv%i within: another MAC in place of the one takes its flows along",
      async (inner) => {
        const port = await ground.ask("a", inner);
        const old = ground.mac("a");
        const now = `02:00:00:00:0a:a${inner}`;
        await ground.changeMac("a", now);
        await ground.host.must(["bridge", "fdb", "del", old, "dev", "vxlan0"]);
        await ground.enter("a");
        await isOwner(ground, now, "fw-a");
        await until(
          async () => (await ground.heard(port))[0]?.inner_destination_mac === now,
          "the flow to follow",
        );
        expect(await ground.heard(port)).toEqual([to("a", now)]);
        // And a request from there finds its flow.
        await ground.ask("a", inner, port);
        expect(await ground.heard(port)).toEqual([to("a", now)]);
        await ground.changeMac("a", old);
        await ground.host.must(["bridge", "fdb", "del", now, "dev", "vxlan0"]);
        await ground.enter("a");
        await until(async () => (await ground.heard(port))[0]?.inner_destination_mac === old, "the way back");
      },
    );

    it("gives a MAC that moves to another VTEP to the device there, with its flows", async () => {
      const port = await ground.ask("a", 4);
      const mac = ground.mac("a");
      await ground.host.must(["bridge", "fdb", "replace", mac, "dev", "vxlan0", "dst", VTEP.b[outer]]);
      await isOwner(ground, mac, "fw-b");
      await daemon.logs(new RegExp(`${mac} on vxlan0 has moved from fw-a to fw-b`));
      expect(await ground.heard(port)).toEqual([to("b", mac)]);
      // fw-b's word counts for them now: drop.
      await ground.lasthop.must("devices", "down", "fw-b");
      expect(await ground.heard(port)).toEqual([]);
      await ground.lasthop.must("devices", "up", "fw-b");
      // To nobody's: then it is a last hop as any other.
      await ground.host.must(["bridge", "fdb", "replace", mac, "dev", "vxlan0", "dst", VTEP.c[outer]]);
      await isOwner(ground, mac, null);
      expect(await ground.heard(port)).toEqual([{ ...to("a"), destination: VTEP.c[outer] }]);
      await ground.host.must(["bridge", "fdb", "replace", mac, "dev", "vxlan0", "dst", VTEP.a[outer]]);
      await isOwner(ground, mac, "fw-a");
      expect(await ground.heard(port)).toEqual([to("a")]);
    });

    it("holds a MAC that goes to and fro where it was, and counts that", async () => {
      await ground.host.must(["bridge", "fdb", "add", HOSTILE, "dev", "vxlan0", "dst", VTEP.a[outer]]);
      await isOwner(ground, HOSTILE, "fw-a");
      const since = daemon.mark();
      for (let turn = 0; turn < 12; turn++) {
        const vtep = VTEP[turn % 2 === 0 ? "b" : "a"][outer];
        await ground.host.must(["bridge", "fdb", "replace", HOSTILE, "dev", "vxlan0", "dst", vtep]);
      }
      await daemon.logs(/changes its VTEP too often/);
      expect(since().filter((line) => line.includes("changes its VTEP too often"))).toHaveLength(1);
      await until(async () => {
        const { devices } = await ground.lasthop.json<{ devices: DeviceEntry[] }>("devices", "list");
        return devices.reduce((sum, { flaps }) => sum + flaps, 0) >= 8;
      }, "the flaps to be counted");
      await ground.host.must(["bridge", "fdb", "del", HOSTILE, "dev", "vxlan0"]);
    });

    it("says of nexthop groups that they are not followed", async () => {
      const via = VTEP.a[outer];
      await ground.host.ip(`nexthop add id 5 via ${via} fdb`, "nexthop add id 6 group 5 fdb");
      await ground.host.must(["bridge", "fdb", "add", GROUPED, "dev", "vxlan0", "nhid", "6"]);
      await daemon.logs(/vxlan0 has MACs behind nexthop groups, which are not followed/);
      expect((await owned(ground))[GROUPED]).toBeUndefined();
    });
  });

  describe("with learned entries", () => {
    let daemon: Daemon;
    beforeAll(async () => {
      ground = await VtepGround.build(outer, { learning: true, ageingSeconds: 1 });
      daemon = await Daemon.start(ground.asGround, config(outer));
    });
    afterAll(async () => {
      await daemon?.stop();
      await ground?.close();
    });

    it("knows a device from its first frame", async () => {
      for (const inner of FAMILIES) {
        const port = await ground.ask("a", inner);
        await isOwner(ground, ground.mac("a"), "fw-a");
        expect(await ground.heard(port)).toEqual([to("a")]);
      }
    });

    it("keeps it when the table has forgotten it, and does not take it for dead", async () => {
      await ground.ask("b", 4);
      await isOwner(ground, ground.mac("b"), "fw-b");
      const port = await ground.ask("a", 4);
      const show = await until(
        async () => {
          const details = await ground.lasthop.json<DeviceDetails>("devices", "show", "fw-a");
          return details.vtep_macs.length === 0 ? details : undefined;
        },
        "the entry to age out",
        45_000,
      );
      expect(show).toMatchObject({ state: "up", vtep_macs: [] });
      const [hop] = show.last_hops.filter(({ mac }) => mac === ground.mac("a"));
      expect(hop).toMatchObject({
        origin: "learned",
        state: "up",
        vtep: VTEP.a[outer],
      } satisfies Partial<LastHopEntry>);
      // The tables are settled again, by a command that follows nothing.
      await ground.lasthop.must("devices", "down", "fw-b");
      await ground.lasthop.must("devices", "up", "fw-b");
      expect((await owned(ground))[ground.mac("a")]).toBe("fw-a");
      // The kernel floods what it does not know.
      expect(await ground.heard(port)).toContainEqual(to("a"));
      await ground.lasthop.must("devices", "down", "fw-a");
      expect(new Set((await ground.heard(port)).map((one) => one.inner_destination_mac))).toEqual(
        new Set([ground.mac("b")]),
      );
      await ground.lasthop.must("devices", "up", "fw-a");
      await ground.ask("a", 4, port);
      expect(await ground.heard(port)).toEqual([to("a")]);
    });
  });

  describe("with a multicast group", () => {
    let daemon: Daemon;
    beforeAll(async () => {
      ground = await VtepGround.build(outer, { learning: true, group: true });
      daemon = await Daemon.start(ground.asGround, config(outer));
    });
    afterAll(async () => {
      await daemon?.stop();
      await ground?.close();
    });

    it("knows who is behind which VTEP by what the group brought", async () => {
      for (const firewall of ["a", "b"] as const) {
        await ground.ask(firewall, 4);
        await isOwner(ground, ground.mac(firewall), `fw-${firewall}`);
      }
      // The group itself is no device's: where floods go is no MAC.
      expect(await behind(ground)).toEqual({
        "fw-a": [`${ground.mac("a")} ${VTEP.a[outer]}`],
        "fw-b": [`${ground.mac("b")} ${VTEP.b[outer]}`],
      });
      for (const inner of FAMILIES) {
        const port = await ground.ask("a", inner);
        expect(await ground.heard(port)).toEqual([to("a")]);
        await ground.lasthop.must("devices", "down", "fw-a");
        expect(await ground.heard(port)).toEqual([to("b")]);
        await ground.lasthop.must("devices", "up", "fw-a");
      }
    });

    it("does without a daemon what the table says at the moment", async () => {
      await daemon.stop();
      const port = await ground.ask("a", 4);
      const spec = ["--vtep", VTEP.a[outer], "--vtep", VTEP.c[outer], "--interface", "vxlan0"];
      await ground.lasthop.must("devices", "remove", "fw-a");
      expect((await owned(ground))[ground.mac("a")]).toBeNull();
      const added = await ground.lasthop.run("devices", "add", "by-hand", ...spec);
      expect(added.stdout).toMatch(/device by-hand: 1 last hop taken over/);
      expect((await owned(ground))[ground.mac("a")]).toBe("by-hand");
      expect(await ground.heard(port)).toEqual([to("a")]);
      const refused = await ground.lasthop.run("devices", "add", "twin", "--vtep", VTEP.c[outer]);
      expect(refused.stderr).toContain(`the VTEP ${VTEP.c[outer]} is the device by-hand's`);
    });
  });

  describe("that is shared", () => {
    let daemon: Daemon;
    beforeAll(async () => {
      ground = await VtepGround.build(outer, { learning: false, external: true });
      const args = ["dev", "vxlan0", "dst", VTEP.b[outer], "src_vni", "100"];
      await ground.host.must(["bridge", "fdb", "add", ground.mac("b"), ...args]);
      daemon = await Daemon.start(ground.asGround, config(outer));
    });
    afterAll(async () => {
      await daemon?.stop();
      await ground?.close();
    });

    it("tells devices by the tunnel key, and knows beforehand whom the table has in a VNI", async () => {
      const hops = async () => await ground.lasthop.lastHops();
      await until(async () => (await hops()).some(({ device }) => device === "fw-b"), "fw-b's last hop");
      expect((await hops()).filter(({ device }) => device === "fw-b")).toMatchObject([
        { mac: ground.mac("b"), tunnel: { remote: VTEP.b[outer], id: 100 }, vtep: null },
      ]);
      for (const inner of FAMILIES) {
        const port = await ground.ask("a", inner);
        expect(await ground.heard(port)).toEqual([to("a")]);
        await until(async () => (await hops()).some(({ device }) => device === "fw-a"), "fw-a's", 15_000);
        await ground.lasthop.must("devices", "down", "fw-a");
        expect(await ground.heard(port)).toEqual([to("b")]);
        await ground.lasthop.must("devices", "up", "fw-a");
        expect(await ground.heard(port)).toEqual([to("a")]);
      }
    });

    it("lets in where only devices are learned what the table has", async () => {
      await daemon.reload(config(outer, "devices"));
      const port = await ground.ask("b", 4);
      expect(await ground.heard(port)).toEqual([to("b")]);
      expect((await owned(ground))[ground.mac("b")]).toBe("fw-b");
    });
  });
});

it("reads and follows ten thousand entries without holding the event loop", async () => {
  const ground = await VtepGround.build(4, { learning: false });
  try {
    const lines = Array.from({ length: 10_000 }, (_, n) => {
      const mac = `02:00:01:00:${(n >> 8).toString(16)}:${(n & 255).toString(16)}`;
      return `fdb add ${mac} dev vxlan0 dst 192.0.2.${10 + (n % 100)}`;
    });
    const text = await ground.host.must(
      [process.execPath, repositoryPath("test/support/vtep-burst.mjs"), "192.0.2.12"],
      { input: `${lines.join("\n")}\n` },
    );
    const { followed, read, holds_ms } = JSON.parse(text) as Record<string, number> & { holds_ms: number[] };
    // Of all that came only what is behind the one VTEP is kept.
    expect({ followed, read }).toEqual({ followed: 100, read: 100 });
    // The first ones are also those of a program that has not run yet.
    const [, median] = holds_ms.toSorted((a, b) => a - b);
    expect(median, holds_ms.join()).toBeLessThan(10);
  } finally {
    await ground.close();
  }
});
