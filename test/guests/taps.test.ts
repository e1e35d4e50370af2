// SPDX-License-Identifier: Apache-2.0
// Virtual machines behind real taps: their requests come through firewall a, their default gateway is firewall b, and
// what they answer goes back through a. Their cards leave checksums and segmentation to the host, or do not.

import { createHash, randomBytes } from "node:crypto";
import { beforeAll, describe, expect, it } from "vitest";
import { Capture } from "../support/capture.ts";
import { attachedOnce, cleanUpDaemons, Daemon } from "../support/daemon.ts";
import { FAMILIES, useSite } from "../support/fixture.ts";
import { repositoryPath } from "../support/paths.ts";
import { QemuGuest } from "../support/qemuGuest.ts";
import { until } from "../support/run.ts";
import { describeGuests, get, guestOptions, LIMIT, named } from "./prepared.ts";

const CONFIG = "uplinks: [{ name: 'up-*' }]\ntaps: [{ name: 'vnet*' }]\n";
const DIGEST_PORT = 9;
const RSS_MAX_BYTES = 250 << 20;
/** Of a frame of 1500 bytes of IP. */
const FRAME_BYTES = 1514;

cleanUpDaemons();

await describeGuests("guests on taps", (image) => {
  const guests: QemuGuest[] = [];
  let daemon: Daemon;
  const ground = useSite({ vms: 0 });

  beforeAll(async () => {
    const { site } = ground;
    const start = (number: number, offloads: boolean) =>
      QemuGuest.start(site.host, image, guestOptions(site, number, { offloads }));
    guests.push(...(await Promise.all([start(1, true), start(2, false)])));
    await Promise.all(guests.map((guest) => guest.answers(site.b.namespace)));
  }, LIMIT.timeout);

  it.each(FAMILIES)("IPv%i: without lasthop firewall b drops what they answer", LIMIT, async (family) => {
    const { site } = ground;
    await site.resetCounts();
    for (const guest of guests) {
      expect((await get(site.client.namespace, guest.address[family], "/", 2)).status).not.toBe(0);
    }
    expect((await site.b.counts()).packets("dropped", { family, protocol: "tcp" })).toBeGreaterThan(0);
    expect((await site.a.counts()).packets("carried", { family, direction: "reply" })).toBe(0);
  });

  it("take little memory", () => {
    for (const guest of guests) expect(guest.rssBytes).toBeLessThan(RSS_MAX_BYTES);
  });

  describe("under a daemon that attaches vnet*", () => {
    beforeAll(async () => {
      daemon = await Daemon.start(ground, CONFIG);
      await attachedOnce(
        ground,
        guests.map(({ tap }) => tap),
      );
    }, LIMIT.timeout);

    it.each(FAMILIES)("IPv%i: a answers for each, on the wire and in the counts", LIMIT, async (family) => {
      const { site } = ground;
      await site.resetCounts();
      const filter = "tcp port 80";
      const capture = await Capture.start(site.a.namespace, "in", { direction: "in", filter });
      for (const guest of guests) {
        expect(await named(site.client.namespace, guest.address, family)).toBe(guest.name);
        const ping = ["ping", "-n", "-q", "-c", "2", "-i", "0.1", "-W", "5", guest.address[family]];
        expect(await site.client.namespace.run(ping)).toMatchObject({ status: 0 });
      }
      const replies = await capture.stop();
      for (const guest of guests) {
        const own = replies.filter(({ source }) => source === guest.address[family]);
        expect(own.length).toBeGreaterThan(3);
        expect(new Set(own.map((packet) => packet.destination_mac))).toEqual(new Set([site.a.mac]));
        expect(new Set(own.map((packet) => packet.source_mac))).toEqual(new Set([guest.mac]));
      }
      const [a, b] = await Promise.all([site.a.counts(), site.b.counts()]);
      for (const protocol of ["tcp", "icmp"]) {
        expect(a.packets("carried", { family, protocol, direction: "reply" })).toBeGreaterThan(3);
      }
      expect(a.packets("dropped")).toBe(0);
      expect(b.packets("carried") + b.packets("dropped")).toBe(0);
    });

    it.each(FAMILIES)("IPv%i: megabytes arrive as they were sent, both ways", LIMIT, async (family) => {
      const { site } = ground;
      const { client, a } = site;
      // What a guest left unfinished is finished before it is captured.
      await a.namespace.must(["ethtool", "-K", "c1", "tx", "off"]);
      try {
        for (const guest of guests) {
          const host = guest.address[family];
          const leaving = await Capture.start(site.host, "up-a", { direction: "out", filter: "tcp port 80" });
          const arriving = await Capture.start(client.namespace, "to-a", {
            direction: "in",
            filter: "tcp port 80",
          });
          const digest = ["sh", "-c", 'curl -sSf --noproxy "*" "$1" | sha256sum | cut -c 1-64', "sh"];
          const url = `http://${family === 6 ? `[${host}]` : host}/bulk`;
          const down = await client.namespace.must([...digest, url], { timeoutMs: 120_000 });
          expect(down).toBe((await get(client.namespace, host, "/bulk.sha256")).stdout);

          const frames = await leaving.stop();
          const largest = Math.max(...frames.map((packet) => packet.length_bytes));
          if (guest.options.offloads) expect(largest).toBeGreaterThan(FRAME_BYTES);
          else expect(largest).toBe(FRAME_BYTES);
          const packets = await arriving.stop();
          expect(packets.length).toBeGreaterThan(1000);
          expect(packets.filter((packet) => packet.checksum !== "good")).toEqual([]);

          const content = randomBytes(8 << 20);
          const upload = ["nc", "-N", host, `${DIGEST_PORT}`];
          const up = await client.namespace.must(upload, { input: content, timeoutMs: 120_000 });
          expect(up.trim()).toBe(createHash("sha256").update(content).digest("hex"));
        }
      } finally {
        await a.namespace.must(["ethtool", "-K", "c1", "tx", "on"]);
      }
    });

    it("one that does its own routing is left alone by the policy off", LIMIT, async () => {
      const { site, lasthop } = ground;
      const [first, second] = guests as [QemuGuest, QemuGuest];
      await daemon.reload(CONFIG.replace("taps: [", `taps: [{ name: ${second.tap}, policy: off }, `));
      await site.resetCounts();
      const off = await lasthop.packets("off", second.tap);
      expect((await get(site.client.namespace, second.address[4], "/", 2)).status).not.toBe(0);
      expect((await site.b.counts()).packets("dropped", { protocol: "tcp" })).toBeGreaterThan(0);
      expect(await lasthop.packets("off", second.tap)).toBeGreaterThan(off);
      expect(await named(site.client.namespace, first.address, 4)).toBe(first.name);
      await daemon.reload(CONFIG);
      expect(await named(site.client.namespace, second.address, 4)).toBe(second.name);
    });

    it("one that is killed and started again is served on its new tap", LIMIT, async () => {
      const { site } = ground;
      const [guest] = guests as [QemuGuest];
      const before = await indexOf(guest);
      await guest.kill();
      await until(
        async () => (await get(site.client.namespace, guest.address[4], "/", 1)).status !== 0,
        "it",
      );
      await guest.startAgain();
      await attachedOnce(ground, [guest.tap]);
      expect(await indexOf(guest)).not.toBe(before);
      await guest.answers(site.client.namespace);
    });

    async function indexOf(guest: QemuGuest): Promise<number> {
      const text = await ground.site.host.must(["ip", "-j", "link", "show", "dev", guest.tap]);
      return (JSON.parse(text) as [{ ifindex: number }])[0].ifindex;
    }
  });

  it("one is attached by the scripts that QEMU calls, and detached when it ends", LIMIT, async () => {
    const { site, lasthop } = ground;
    await daemon.stop();
    await lasthop.detachAll();
    await lasthop.attachAll(site.uplinks, []);
    const scripts = {
      up: repositoryPath("packaging/qemu/lasthop-ifup"),
      down: repositoryPath("packaging/qemu/lasthop-ifdown"),
      environment: {
        LASTHOP: lasthop.argv().join(" "),
        LASTHOP_CONFIG: "/nowhere/lasthop.yaml",
        LASTHOP_BRIDGE: "br",
        LASTHOP_POLICY: "enforce",
      },
    };
    const guest = await QemuGuest.start(site.host, image, guestOptions(site, 3, { scripts }));
    const attached = async () => (await lasthop.status()).interfaces.map((item) => item.interface);
    await guest.answers(site.client.namespace);
    expect(await attached()).toContain(guest.tap);
    await guest.stop();
    expect(await attached()).not.toContain(guest.tap);
  });
});
