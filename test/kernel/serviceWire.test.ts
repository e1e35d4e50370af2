// SPDX-License-Identifier: Apache-2.0
// Services on real devices: requests come out of the tap of the VM, answers and resets where they were asked for, by
// each hook; with tags in the metadata; and a tap that is deleted.

import { spawnSync } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { HOOK, VM_FLAG } from "../../src/abi/layout.gen.ts";
import { IFINDEX, PEER_IFINDEX, PORTS } from "./support/devices.ts";
import { useWire, wire, world } from "./support/fixture.ts";
import { arp, ETH_P, ethernet, type Tag, tcp } from "./support/packet.ts";
import { FAMILIES, type Family, type FrameOptions, MAC, request } from "./support/scene.ts";
import { h } from "./support/serviceSteps.ts";
import { answering, type OnVmDown, type Services, serve, servicesOf, TO_HOST } from "./support/services.ts";
import * as talk from "./support/talk.ts";
import { cu, VM_ISN, VM1, VM2, v } from "./support/talk.ts";

const TICK_MS = 2 ** 28 / 1e6;

let services: Services;

useWire();

function tap(): void {
  for (const port of ["tap_1", "tap_2"] as const) wire.attachTc(world.program("reply_tc"), IFINDEX[port]);
}

function xdp(mode: "generic" | "native"): void {
  tap();
  wire.attachXdp(world.program("learn_xdp"), IFINDEX.uplink_a, mode);
  world.changeInterface("uplink_a", { hook: mode === "native" ? HOOK.XDP_NATIVE : HOOK.XDP_GENERIC });
  if (mode === "generic") return;
  // A veth takes frames from native XDP if its far end runs a program too: one that knows it not, and passes all.
  for (const port of ["tap_1", "tap_2", "uplink_a"] as const) {
    wire.attachXdp(world.program("learn_xdp"), PEER_IFINDEX[port], mode);
  }
}

const HOOKS: Record<string, () => void> = {
  "TC (TCX where the kernel has it)": () => {
    tap();
    wire.attachTc(world.program("learn_tc"), IFINDEX.uplink_a);
  },
  clsact: () => {
    tap();
    wire.attachClsact(world.program("learn_tc"), IFINDEX.uplink_a);
  },
  "generic XDP": () => xdp("generic"),
  "native XDP": () => xdp("native"),
};

const scene = (f: Family, onVmDown: OnVmDown = "REBALANCE") => {
  services = serve(f, { onVmDown, vm: { flags: VM_FLAG.XDP } })(world);
};

function resetOf(f: Family, frame: FrameOptions = {}): Buffer {
  const ports = { sourcePort: talk.VM_PORT, destinationPort: talk.CLIENT_PORT };
  const segment = tcp({ ...ports, window: 0, seq: VM_ISN + 1, flags: "R" });
  const addresses = { source: f.vm, destination: f.client, v4: { dontFragment: true } };
  return request(f, segment, { ...addresses, from: PORTS.uplink_a.mac, to: MAC.deviceA, ...frame });
}

for (const [family, f] of Object.entries(FAMILIES)) {
  describe.each(Object.entries(HOOKS))(`${family}, %s`, (_, attach) => {
    test("requests come out of the VM's tap, its replies of the uplink", async () => {
      scene(f);
      attach();
      expect(await wire.send("uplink_a", h(f, "S"))).toBe("learn");
      await wire.expectOut("tap_1", h(f, "S"), MAC.vm1);
      expect(await wire.send("tap_1", v(f, "SA"))).toBe("redirect");
      await wire.expectOut("uplink_a", v(f, "SA"), MAC.deviceA);
      expect(await wire.send("uplink_a", h(f, "A"))).toBe("promote");
      await wire.expectOut("tap_1", h(f, "A"), MAC.vm1);
      expect(await wire.send("uplink_a", cu(f, TO_HOST))).toBe("learn");
      await wire.expectOut("tap_2", cu(f, TO_HOST), MAC.vm2);
      expect(await wire.send("uplink_a", h(f, "PA", { payload: Buffer.alloc(1400) }))).toBe("deliver");
      await wire.expectOut("tap_1", h(f, "PA", { payload: Buffer.alloc(1400) }), MAC.vm1);
    });

    test("a reset, and what is dropped", async () => {
      scene(f, "RESET");
      attach();
      await wire.send("uplink_a", h(f, "S"));
      await wire.expectOut("tap_1", h(f, "S"), MAC.vm1);
      services.setState(VM1, "DOWN");
      expect(await wire.send("uplink_a", h(f, "PA", { payload: Buffer.alloc(1000) }))).toBe("vm_reset");
      await wire.expectOut("uplink_a", resetOf(f), null);
      expect(await wire.send("uplink_a", h(f, "R"))).toBe("vm_held");
      services.setState(VM2, "DOWN");
      expect(await wire.send("uplink_a", cu(f, TO_HOST))).toBe("service_empty");
      expect(await wire.captured()).toEqual([]);
    });

    test("the answer to whoever asks for the address", async () => {
      if (f.version === 6) return;
      scene(f);
      answering(world, f.vm);
      attach();
      const [asker, us] = [MAC.deviceA, PORTS.uplink_a.mac];
      const ends = [
        { mac: asker, ip: f.client },
        { mac: MAC.zero, ip: f.vm },
      ] as const;
      const question = ethernet({ from: asker, to: MAC.broadcast }, arp("request", ...ends));
      const answer = ethernet({ from: us, to: asker }, arp("reply", { mac: us, ip: f.vm }, ends[0]));
      expect(await wire.send("uplink_a", question)).toBe("address_answer");
      await wire.expectOut("uplink_a", answer, null);
    });
  });

  test(`${family}: a frame of which little is linear, as large ones are`, async () => {
    scene(f, "RESET");
    HOOKS["TC (TCX where the kernel has it)"]!();
    const payload = Buffer.alloc(6000);
    expect(await wire.send("uplink_a", h(f, "PA", { payload }))).toBe("learn");
    await wire.expectOut("tap_1", h(f, "PA", { payload }), MAC.vm1);
    services.setState(VM1, "DOWN");
    expect(await wire.send("uplink_a", h(f, "PA", { payload }))).toBe("vm_reset");
    await wire.expectOut("uplink_a", resetOf(f), null);
  });

  describe(`${family}, VLAN metadata`, () => {
    const stacks: [string, Tag | undefined, Tag[]][] = [
      ["one tag in the metadata", { vid: 10 }, []],
      ["one tag in the frame, which the kernel strips", undefined, [{ vid: 10 }]],
      ["a priority tag", { vid: 0, priority: 5 }, []],
      ["the outer in the metadata, the inner in the frame", { proto: ETH_P.qinq, vid: 100 }, [{ vid: 10 }]],
    ];

    test.each(stacks)(
      "%s: the VM's frames have none, a reply and a reset have it again",
      async (_, metadata, tags) => {
        const all = [...(metadata && metadata.vid !== 0 ? [metadata] : []), ...tags];
        scene(f, "RESET");
        HOOKS["TC (TCX where the kernel has it)"]!();
        expect(await wire.send("uplink_a", h(f, "S", { frame: { tags } }), metadata)).toBe("learn");
        await wire.expectOut("tap_1", h(f, "S"), MAC.vm1);
        await wire.send("tap_1", v(f, "SA"));
        await wire.expectOut("uplink_a", v(f, "SA"), MAC.deviceA, all);
        services.setState(VM1, "DOWN");
        expect(await wire.send("uplink_a", h(f, "PA", { frame: { tags } }), metadata)).toBe("vm_reset");
        // As it came, a priority tag too.
        const kept = [...(metadata ? [metadata] : []), ...tags].map(({ proto, vid }) =>
          proto ? { proto, vid } : { vid },
        );
        await wire.expectOut("uplink_a", resetOf(f), null, kept);
      },
    );

    test("XDP sees no metadata that the kernel has not stripped yet: a tag is in the frame", async () => {
      scene(f);
      HOOKS["native XDP"]!();
      expect(await wire.send("uplink_a", h(f, "S", { frame: { tags: [{ vid: 10 }] } }))).toBe("deliver_hook");
      expect(await wire.captured()).toEqual([]);
    });
  });

  test(`${family}: a question with a tag in the metadata is answered with it`, async () => {
    if (f.version === 6) return;
    scene(f);
    answering(world, f.vm, MAC.vm2);
    HOOKS["TC (TCX where the kernel has it)"]!();
    const ends = [
      { mac: MAC.deviceA, ip: f.client },
      { mac: MAC.zero, ip: f.vm },
    ] as const;
    const question = ethernet({ from: MAC.deviceA, to: MAC.broadcast }, arp("request", ...ends));
    const answer = ethernet(
      { from: MAC.vm2, to: MAC.deviceA },
      arp("reply", { mac: MAC.vm2, ip: f.vm }, ends[0]),
    );
    expect(await wire.send("uplink_a", question, { vid: 10 })).toBe("address_answer");
    await wire.expectOut("uplink_a", answer, null, [{ vid: 10 }]);
  });
}

test("a tap that went: its flows get another VM, before the controller has said anything", async () => {
  const f = FAMILIES.ipv4;
  scene(f);
  HOOKS["TC (TCX where the kernel has it)"]!();
  await wire.send("uplink_a", h(f, "S"));
  await wire.expectOut("tap_1", h(f, "S"), MAC.vm1);
  expect(spawnSync("ip", ["link", "del", "tap_1"]).status).toBe(0);
  await sleep(2 * TICK_MS);
  expect(await wire.send("uplink_a", h(f, "PA"))).toBe("deliver");
  await wire.expectOut("tap_2", h(f, "PA"), MAC.vm2);
  expect(world.flow(talk.tcpTuple(f))!.flow.vm).toBe(VM2);
  expect(servicesOf(world).counted()).toMatchObject({ rebalanced: 1 });
});
