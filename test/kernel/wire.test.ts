// SPDX-License-Identifier: Apache-2.0
// The programs attached to real devices, for what a test run can neither set nor show: VLAN metadata, the device
// that a redirect really goes to, and what happens when that device is gone.

import { spawnSync } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { INTERFACE_FLAG } from "../../src/abi/layout.gen.ts";
import { IFINDEX, PORTS } from "./support/devices.ts";
import { useWire, wire, world } from "./support/fixture.ts";
import { ETH_P, type Tag } from "./support/packet.ts";
import { FAMILIES, type Family, MAC } from "./support/scene.ts";
import * as talk from "./support/talk.ts";
import { c, v, viaB } from "./support/talk.ts";
import type { Wire } from "./support/wire.ts";
import { vlanTags } from "./support/world.ts";

const TICK_MS = 2 ** 28 / 1e6;

const send: Wire["send"] = (...arguments_) => wire.send(...arguments_);
const captured: Wire["captured"] = (...arguments_) => wire.captured(...arguments_);
const expectOut: Wire["expectOut"] = (...arguments_) => wire.expectOut(...arguments_);

function learnedTags(f: Family): Tag[] {
  return vlanTags(world.lastHop(world.flow(talk.tcpTuple(f))!.flow.last_hop));
}

useWire();

const HOOKS: Record<string, () => void> = {
  "TC (TCX where the kernel has it)": () => {
    for (const port of ["uplink_a", "uplink_b"] as const) {
      wire.attachTc(world.program("learn_tc"), IFINDEX[port]);
    }
    wire.attachTc(world.program("reply_tc"), IFINDEX.tap_1);
  },
  clsact: () => {
    for (const port of ["uplink_a", "uplink_b"] as const) {
      wire.attachClsact(world.program("learn_tc"), IFINDEX[port]);
    }
    wire.attachClsact(world.program("reply_tc"), IFINDEX.tap_1);
  },
  "generic XDP": () => {
    for (const port of ["uplink_a", "uplink_b"] as const) {
      wire.attachXdp(world.program("learn_xdp"), IFINDEX[port], "generic");
    }
    wire.attachTc(world.program("reply_tc"), IFINDEX.tap_1);
  },
  "native XDP": () => {
    for (const port of ["uplink_a", "uplink_b"] as const) {
      wire.attachXdp(world.program("learn_xdp"), IFINDEX[port], "native");
    }
    wire.attachTc(world.program("reply_tc"), IFINDEX.tap_1);
  },
};

for (const [family, f] of Object.entries(FAMILIES)) {
  describe.each(Object.entries(HOOKS))(`${family}, %s`, (_, attach) => {
    test("a reply leaves by the device that its request came from, and no other", async () => {
      attach();
      expect(await send("uplink_a", c(f, "S"))).toBe("learn");
      expect(await captured(), "a request goes to nobody here").toEqual([]);
      expect(await send("tap_1", v(f, "SA"))).toBe("redirect");
      await expectOut("uplink_a", v(f, "SA"), MAC.deviceA);
      await send("uplink_b", c(f, "A", { frame: viaB }));
      await send("tap_1", v(f, "PA"));
      await expectOut("uplink_b", v(f, "PA"), MAC.deviceB);
    });

    test("what passes is not sent anywhere by us", async () => {
      attach();
      expect(await send("tap_1", v(f, "PA"))).toBe("no_flow");
      expect(await captured()).toEqual([]);
      expect(world.flowCount()).toBe(0);
    });
  });

  test(`${family}: a frame of which little is linear, as large ones are`, async () => {
    HOOKS["TC (TCX where the kernel has it)"]!();
    // Of more than a page a packet socket puts only the Ethernet header into the linear part.
    const payload = Buffer.alloc(6000);
    expect(await send("uplink_a", c(f, "PA", { payload }))).toBe("learn");
    expect(await send("tap_1", v(f, "PA", { payload }))).toBe("redirect");
    await expectOut("uplink_a", v(f, "PA", { payload }), MAC.deviceA);
    const routed = { to: PORTS.tap_1.mac, ttl: 64 };
    expect(await send("tap_1", v(f, "PA", { payload, frame: routed }))).toBe("redirect");
    await expectOut(
      "uplink_a",
      v(f, "PA", { payload, frame: { from: PORTS.uplink_a.mac, ttl: 63 } }),
      MAC.deviceA,
    );
    const tagged = v(f, "PA", { payload, frame: { tags: [{ vid: 44 }, { vid: 45 }] } });
    expect(await send("tap_1", tagged)).toBe("redirect");
    await expectOut("uplink_a", v(f, "PA", { payload }), MAC.deviceA);
  });

  describe(`${family}, VLAN metadata`, () => {
    beforeEach(() => HOOKS["TC (TCX where the kernel has it)"]!());

    const stacks: [string, Tag | undefined, Tag[]][] = [
      ["one tag in the metadata", { vid: 10 }, []],
      ["one tag in the frame, which the kernel strips", undefined, [{ vid: 10 }]],
      ["an 802.1ad tag", { proto: ETH_P.qinq, vid: 30 }, []],
      ["the outer in the metadata, the inner in the frame", { proto: ETH_P.qinq, vid: 100 }, [{ vid: 10 }]],
      ["802.1Q twice", { vid: 100 }, [{ vid: 10 }]],
    ];
    test.each(stacks)("%s: remembered, and given back to the reply", async (_, metadata, tags) => {
      const all = [...(metadata ? [metadata] : []), ...tags];
      await send("uplink_a", c(f, "S", { frame: { tags } }), metadata);
      expect(learnedTags(f)).toEqual(all.map(({ proto, vid }) => ({ proto: proto ?? ETH_P.vlan, vid })));
      await send("tap_1", v(f, "SA"));
      await expectOut("uplink_a", v(f, "SA"), MAC.deviceA, all);
    });

    test("a priority tag tells no networks apart", async () => {
      await send("uplink_a", c(f, "S"), { vid: 0, priority: 5 });
      expect(learnedTags(f)).toEqual([]);
      await send("uplink_a", c(f, "S"), { vid: 0, priority: 3 });
      await send("tap_1", v(f, "SA"));
      await expectOut("uplink_a", v(f, "SA"), MAC.deviceA, []);
    });

    test("the same device with another tag is another last hop", async () => {
      await send("uplink_a", c(f, "S"), { vid: 10 });
      await send("uplink_a", c(f, "PA"), { vid: 20 });
      await send("tap_1", v(f, "A"));
      await expectOut("uplink_a", v(f, "A"), MAC.deviceA, [{ vid: 20 }]);
    });

    const ofVm: [string, Tag | undefined, Tag[]][] = [
      ["one tag", { vid: 33 }, []],
      ["two tags", { vid: 33 }, [{ vid: 44 }]],
      ["a priority tag", { vid: 0, priority: 2 }, []],
    ];
    test.each(ofVm)("a VM's %s gives way to those of the last hop", async (_, metadata, tags) => {
      await send("uplink_a", c(f, "S"));
      await send("tap_1", v(f, "SA", { frame: { tags } }), metadata);
      await expectOut("uplink_a", v(f, "SA"), MAC.deviceA, []);
      await send("uplink_a", c(f, "PA", { frame: { tags: [{ vid: 10 }] } }), { proto: ETH_P.qinq, vid: 100 });
      await send("tap_1", v(f, "A", { frame: { tags } }), metadata);
      await expectOut("uplink_a", v(f, "A"), MAC.deviceA, [{ proto: ETH_P.qinq, vid: 100 }, { vid: 10 }]);
    });

    test("routed host: the TTL is found behind a VM's tags", async () => {
      await send("uplink_a", c(f, "S"));
      const frame = { to: PORTS.tap_1.mac, ttl: 64, tags: [{ vid: 44 }] };
      await send("tap_1", v(f, "SA", { frame }), { vid: 33 });
      const routed = v(f, "SA", { frame: { from: PORTS.uplink_a.mac, ttl: 63 } });
      await expectOut("uplink_a", routed, MAC.deviceA, []);
    });

    test("three tags are too many", async () => {
      const frame = c(f, "S", { frame: { tags: [{ vid: 2 }, { vid: 3 }] } });
      expect(await send("uplink_a", frame, { vid: 1 })).toBe("vlan_depth");
      expect(world.flowCount()).toBe(0);
    });
  });
}

/** Packets to the client that have this mark leave by uplink B, to device B. */
const MARK = 17;

function ip(family: Family["version"], ...words: string[]): void {
  const { status, stderr } = spawnSync("ip", [`-${family}`, ...words], { encoding: "utf8" });
  expect(status, `ip ${words.join(" ")}: ${stderr}`).toBe(0);
}

for (const [family, f] of Object.entries(FAMILIES)) {
  describe(`${family}, the host's stack`, () => {
    const { version, client } = f;
    const there = [client, "dev", "uplink_b"];
    const rule = ["fwmark", String(MARK), "lookup", String(MARK)];

    beforeAll(() => {
      ip(version, "rule", "add", ...rule);
      ip(version, "route", "add", ...there, "table", String(MARK));
      ip(version, "neigh", "add", ...there, "lladdr", MAC.deviceB, "nud", "permanent");
    });

    afterAll(() => {
      ip(version, "rule", "del", ...rule);
      ip(version, "route", "del", ...there, "table", String(MARK));
      ip(version, "neigh", "del", ...there);
    });

    beforeEach(() => HOOKS["TC (TCX where the kernel has it)"]!());

    /** As the host forwards it by the rule. */
    const forwarded = v(f, "SA", { frame: { from: PORTS.uplink_b.mac, ttl: 63 } });

    test("a reply is routed by its mark, whomever the VM sent it to", async () => {
      world.changeInterface("uplink_a", { flags: INTERFACE_FLAG.VIA_STACK, mark: MARK });
      expect(await send("uplink_a", c(f, "S"))).toBe("learn");
      expect(await send("tap_1", v(f, "SA"))).toBe("stack");
      await expectOut("uplink_b", forwarded, MAC.deviceB);
      expect(await send("tap_1", v(f, "SA", { frame: { to: PORTS.tap_1.mac } }))).toBe("stack");
      await expectOut("uplink_b", forwarded, MAC.deviceB);
    });

    test("without a mark the host's own routes say where", async () => {
      world.changeInterface("uplink_a", { flags: INTERFACE_FLAG.VIA_STACK });
      await send("uplink_a", c(f, "S"));
      expect(await send("tap_1", v(f, "SA"))).toBe("stack");
      // Its default route is device A.
      const frame = { from: PORTS.uplink_a.mac, ttl: 63 };
      await expectOut("uplink_a", v(f, "SA", { frame }), MAC.deviceA);
    });

    const tags: [string, Tag | undefined][] = [
      ["untagged", undefined],
      ["tagged", { vid: 10 }],
    ];
    test.each(tags)("labels, %s: the reply has the mark of its stack", async (_, metadata) => {
      world.putLabelStack([100, 200], MARK);
      const labels = [{ label: 100 }, { label: 200 }];
      expect(await send("uplink_a", c(f, "S", { frame: { labels } }), metadata)).toBe("learn");
      expect(learnedTags(f)).toEqual(metadata ? [{ proto: ETH_P.vlan, ...metadata }] : []);
      expect(await send("tap_1", v(f, "SA"))).toBe("stack");
      await expectOut("uplink_b", forwarded, MAC.deviceB);
    });

    test("labels of a frame of which little is linear", async () => {
      world.putLabelStack([100], MARK);
      const frame = { labels: [{ label: 100 }] };
      expect(await send("uplink_a", c(f, "PA", { frame, payload: Buffer.alloc(6000) }))).toBe("learn");
    });
  });

  test(`${family}: learned beneath, where the tag is in the metadata`, async () => {
    HOOKS["TC (TCX where the kernel has it)"]!();
    world.changeInterface("uplink_b", {
      flags: INTERFACE_FLAG.LOWER,
      lower_ifindex: IFINDEX.uplink_a,
      lower_tag: { proto: ETH_P.qinq, vid: 30 },
    });
    const inner = { vid: 40 };
    const tags = [{ proto: ETH_P.qinq, vid: 30 }, inner];
    // The inner tag is in the frame below, and in the metadata on top.
    expect(await send("uplink_a", c(f, "S", { frame: { tags: [inner] } }), tags[0])).toBe("learn");
    expect(await send("uplink_b", c(f, "S"), inner)).toBe("learned_below");
    expect(await send("uplink_b", c(f, "S"))).toBe("restart");
    expect(await send("uplink_a", c(f, "S", { frame: { tags: [inner] } }), tags[0])).toBe("restart");
    await send("tap_1", v(f, "SA"));
    await expectOut("uplink_a", v(f, "SA"), MAC.deviceA, tags);
  });
}

test("a device that went is never redirected to: the kernel empties its cell, and the packet passes", async () => {
  const f = FAMILIES.ipv4;
  HOOKS["TC (TCX where the kernel has it)"]!();
  await send("uplink_b", c(f, "S", { frame: viaB }));
  await send("tap_1", v(f, "SA"));
  await expectOut("uplink_b", v(f, "SA"), MAC.deviceB);
  expect(spawnSync("ip", ["link", "del", "uplink_b"]).status).toBe(0);
  await sleep(2 * TICK_MS);
  expect(await send("tap_1", v(f, "PA"))).toBe("interface_gone");
  expect(await captured()).toEqual([]);
});
