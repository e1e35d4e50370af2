// SPDX-License-Identifier: Apache-2.0
// Two MACs take turns for one address, as two cards of a team or two masters of a VRRP group: the device is held at
// one of them, and that is told once. Its neighbour is found although the bridge has no address of its own.

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { MAC_CHANGES_WITHIN_WINDOW, MAC_HOLD_SECONDS } from "../../src/config/defaults.ts";
import type { DeviceDetails } from "../../src/ops/types.ts";
import type { Family } from "../support/addresses.ts";
import { cleanUpDaemons, Daemon, WHOLE_SITE } from "../support/daemon.ts";
import { FAMILIES, useSite } from "../support/fixture.ts";
import { sleep, until } from "../support/run.ts";
import { Speaker } from "../support/speaker.ts";

cleanUpDaemons();

describe("two MACs that take turns, on a bridged host without addresses", () => {
  const ground = useSite({ vms: 1 });
  const other = "02:00:00:00:0f:66";
  let daemon: Daemon;
  let speaker: Speaker;
  const config = (families: readonly Family[]) => {
    const addresses = families.map((family) => `'${ground.site.a.address[family]}'`).join(", ");
    return `${WHOLE_SITE}devices:\n  - { name: fw-a, addresses: [${addresses}], interface: up-a }\n`;
  };
  const device = () => ground.lasthop.json<DeviceDetails>("devices", "show", "fw-a");

  beforeAll(async () => {
    daemon = await Daemon.start(ground, config(FAMILIES));
    speaker = await Speaker.start(ground.site);
  });
  afterAll(() => daemon.stop());

  it("is resolved all the same", async () => {
    const { mac } = ground.site.a;
    await until(async () => (await device()).addresses.every((address) => address.mac === mac), "both MACs");
    expect(await device()).toMatchObject({ state: "up", flaps: 0 });
  });

  it.each(FAMILIES)("IPv%i: is held at one, counted, and told in one line", async (family) => {
    const { site, lasthop } = ground;
    await daemon.reload(config([family]));
    const port = await speaker.open(site.client, family);
    const { flaps } = await device();
    const since = daemon.mark();
    const address = site.a.address[family];
    const show = async (mac: string) => {
      await site.host.ip(`neigh replace ${address} lladdr ${mac} dev br nud reachable`);
      await sleep(50);
    };
    const turns = 12;
    for (let turn = 0; turn < turns; turn++) await show(turn % 2 === 0 ? other : site.a.mac);
    const held = await until(async () => {
      const entry = await device();
      return entry.flaps > flaps + MAC_CHANGES_WITHIN_WINDOW ? entry : undefined;
    }, "the flaps to be counted");
    const kept = held.addresses.find((one) => one.address === address)!.mac!;
    const told = since().filter((line) => line.includes("its MAC changes too often"));
    expect(told).toHaveLength(1);
    expect(told[0]).toContain(`${kept} is kept for ${MAC_HOLD_SECONDS} s`);
    expect(since().filter((line) => line.includes("its MAC is "))).toHaveLength(MAC_CHANGES_WITHIN_WINDOW);
    // Whatever the neighbour table says now, replies go to the one.
    await show(kept === other ? site.a.mac : other);
    const macs = (await speaker.heard(port)).get(port)!.map(({ destination_mac }) => destination_mac);
    expect(macs).toEqual([kept]);
    expect((await lasthop.run("devices", "list")).stdout).toMatch(/fw-a .* [1-9]\d* /);
    // Once it may be, the device is again where the kernel knows it to be.
    await until(
      async () => (await device()).addresses.every(({ mac }) => mac === site.a.mac),
      "the MAC that answers",
      (MAC_HOLD_SECONDS + 25) * 1000,
    );
  });
});
