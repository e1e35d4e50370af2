// SPDX-License-Identifier: Apache-2.0
// A SYN flood from random sources, twice the embryonic tier of each family: it churns that tier only.

import { describe, expect, it } from "vitest";
import type { Family } from "../support/addresses.ts";
import { attachAll, useSite } from "../support/fixture.ts";
import { synFrame } from "../support/frames.ts";
import { sendFrames } from "../support/tools.ts";

const EMBRYOS = 65_536;
const SYNS = 2 * EMBRYOS;
const CONNECTIONS = 100;

/** A generator of its own, so that a run can be repeated. */
function randomizer(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state;
  };
}

function* flood(family: Family, destination: string, macs: { from: string; to: string }): Generator<Buffer> {
  const random = randomizer(family);
  for (let count = 0; count < SYNS; count++) {
    // Unicast addresses that are nobody's here.
    const last = BigInt(random());
    yield synFrame({
      sourceMac: macs.from,
      destinationMac: macs.to,
      source:
        family === 4 ? 0x2000_0000 + (random() >>> 3) : (0x2a00n << 112n) | (last << 32n) | BigInt(random()),
      destination,
      sourcePort: 1024 + (random() >>> 17),
      destinationPort: 7,
    });
  }
}

describe("a SYN flood of twice the embryonic tier", () => {
  const ground = useSite({ vms: 1 }, attachAll);

  it("leaves every established connection alive", async () => {
    const { site, lasthop } = ground;
    const { client, vm, a } = site;
    for (const family of [4, 6] as const) {
      const keys = Array.from({ length: CONNECTIONS }, (_, at) => `held${family}-${at}`);
      const target = { keys, host: vm.address[family], port: 7 };
      expect(await client.agent.call("openMany", target)).toEqual({ opened: CONNECTIONS });
    }
    const alive = { alive: 2 * CONNECTIONS, errors: [] };
    expect(await client.agent.call("echoAll", {})).toEqual(alive);
    await client.agent.call("startEchoing", { key: "held4-0", timeoutMs: 5000 });
    const learned = await lasthop.packets("learn");

    for (const family of [4, 6] as const) {
      const macs = { from: a.mac, to: vm.mac };
      expect(await sendFrames(a.namespace, "in", flood(family, vm.address[family], macs))).toBe(SYNS);
    }

    // The flood was learned, not lost on the way.
    expect((await lasthop.packets("learn")) - learned).toBeGreaterThan(2 * SYNS * 0.95);
    expect(await client.agent.call("stopEchoing", { key: "held4-0" })).toMatchObject({ error: null });
    expect(await client.agent.call("echoAll", {})).toEqual(alive);
    const held = await lasthop.flows("--address", client.address[4], "--state", "established");
    expect(held).toHaveLength(CONNECTIONS);
    const held6 = await lasthop.flows("--address", client.address[6], "--state", "established");
    expect(held6).toHaveLength(CONNECTIONS);
    const { tables } = await lasthop.status();
    for (const family of [4, 6]) {
      const embryos = tables.find((table) => table.table === `embryos${family}`);
      expect(embryos?.max_entries).toBe(EMBRYOS);
      expect(embryos?.entries).toBeGreaterThan(EMBRYOS / 2);
      expect(tables.find((table) => table.table === `flows${family}`)?.entries).toBeLessThan(2 * CONNECTIONS);
    }
  });

  it("and new ones still come up", async () => {
    const { client, vm } = ground.site;
    for (const family of [4, 6] as const) {
      const key = `new${family}`;
      await client.agent.call("open", { key, host: vm.address[family], port: 7 });
      await client.agent.call("echo", { key });
    }
  });
});
