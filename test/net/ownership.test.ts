// SPDX-License-Identifier: Apache-2.0
// Who may change what: what was made by hand, what the configuration has, and what a daemon holds.

import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { DeviceChange } from "../../src/ops/types.ts";
import { Configured, told } from "../support/configured.ts";
import { startHolder } from "../support/holder.ts";
import { Lab, type Namespace } from "../support/lab.ts";
import { Lasthop } from "../support/lasthop.ts";
import { type Background, must, until } from "../support/run.ts";

let lab: Lab;
let host: Namespace;
let lasthop: Lasthop;
let configured: Configured;

beforeAll(async () => {
  lab = new Lab();
  host = lab.namespace("host");
  await must(["ip", "netns", "add", host.name]);
  await host.ip(
    "link set lo up",
    ...["up0", "vnet0", "vnet1"].flatMap((name) => [
      `link add ${name} type veth peer name p-${name}`,
      `link set ${name} up`,
      `link set p-${name} up`,
    ]),
  );
  lasthop = await Lasthop.on(lab, host);
  configured = new Configured(lasthop);
});
afterEach(() => lasthop.must("detach", "--all", "--purge"));
afterAll(async () => {
  configured?.close();
  await lab?.close();
});

const TAP0 = "{taps: [{name: vnet0, exclude: [{port: 22}]}]}";

async function attached(): Promise<string[]> {
  return (await lasthop.status()).interfaces.map((item) => `${item.interface} ${item.policy}`).sort();
}

describe("what was attached by hand", () => {
  it("stays whatever is configured, and its repair too", async () => {
    await lasthop.attach("vnet1", "tap", { policy: "observe", zone: 4 });
    for (const config of ["{}", TAP0, "{}"]) await configured.apply(config);
    expect(await attached()).toEqual(["vnet1 observe"]);
    await must(["sh", "-c", `rm ${lab.pinRoot}/v*/links/*`]);
    expect(told(await configured.apply("{}"))).toEqual(["change vnet1"]);
    expect((await lasthop.status()).interfaces).toEqual([
      expect.objectContaining({ interface: "vnet1", zone: 4, state: "ok" }),
    ]);
  });

  it("is the configuration's as soon as that names it, which it says, and goes with it", async () => {
    await lasthop.attach("vnet0", "tap", { policy: "observe" });
    const report = await configured.apply(TAP0);
    expect(report.done.join("\n")).toContain("by the configuration from now on (taps[0])");
    expect(await attached()).toEqual(["vnet0 enforce"]);
    expect(told(await configured.apply("{}"))).toContain("detach vnet0");
    expect(await attached()).toEqual([]);
  });

  it("is so again when a configured one is attached by hand while no daemon runs", async () => {
    await configured.apply(TAP0);
    const { actions } = await lasthop.attach("vnet0", "tap", { policy: "off" });
    expect(actions).toEqual(["vnet0: policy off, by hand from now on"]);
    expect(told(await configured.apply("{}"))).toEqual([]);
    expect(await attached()).toEqual(["vnet0 off"]);
  });
});

describe("devices", () => {
  const device = (macs: string) => `{devices: [{name: fw, macs: ["${macs}"]}]}`;

  it("entered by hand stay; those of the configuration come and go with it", async () => {
    await configured.apply(device("02:00:00:00:00:01"));
    await lasthop.json<DeviceChange>("devices", "add", "other", "--mac", "02:00:00:00:00:02");
    expect(told(await configured.apply("{}"))).toEqual(["device-remove fw"]);
    expect(told(await configured.plan("{}"))).toEqual([]);
    const clash = await configured.apply(device("02:00:00:00:00:02"));
    expect(clash).toMatchObject({ status: 1, failed: [{ code: "E_DEVICE", config: "devices[0]" }] });
  });
});

describe("while a daemon holds the instance", () => {
  let holder: Background | undefined;

  async function hold(): Promise<void> {
    holder = startHolder(host, lab.pinRoot);
    await until(() => holder!.stdout.includes("held"), "the hold");
  }
  afterEach(async () => {
    await holder?.stop("SIGKILL");
    holder = undefined;
  });

  it("a configured interface is refused by hand, with its key; one made by hand is not", async () => {
    await configured.apply(`{uplinks: [{name: up0}], taps: [{name: nobody}, {name: vnet0}]}`);
    await lasthop.attach("vnet1", "tap");
    await hold();
    const rows: [args: string[], message: RegExp][] = [
      [["detach", "vnet0"], /cannot detach vnet0: .*taps\[1\]/],
      [["detach", "vnet1", "up0"], /cannot detach up0: .*uplinks\[0\]/],
      [["detach", "--all"], /cannot detach (up0|vnet0)/],
      [["detach", "--all", "--purge"], /cannot remove the tables/],
      [["attach", "vnet0", "--role", "tap"], /cannot attach vnet0: .*taps\[1\]/],
      [["attach", "up0", "--role", "tap", "--zone", "3"], /cannot attach up0: .*uplinks\[0\]/],
      [["apply", "-c", configured.file], /cannot apply/],
    ];
    const before = await lasthop.status();
    for (const [args, message] of rows) {
      const output = await lasthop.run("--json", ...args);
      expect(output.status, args.join(" ")).toBe(1);
      expect(JSON.parse(output.stderr), args.join(" ")).toMatchObject({
        code: "E_HELD",
        message: expect.stringMatching(message),
        hint: expect.stringMatching(/reload|stop/),
      });
    }
    expect((await lasthop.status()).interfaces).toEqual(before.interfaces);
    expect(await configured.plan("{}")).toMatchObject({ status: 3 });
    await lasthop.attach("vnet1", "tap", { policy: "off" });
    await lasthop.must("detach", "vnet1");
  });

  it("that has died, it is as if there were none", async () => {
    await configured.apply(TAP0);
    await hold();
    await holder!.stop("SIGKILL");
    expect((await configured.apply("{}")).status).toBe(0);
    expect(await attached()).toEqual([]);
  });
});
