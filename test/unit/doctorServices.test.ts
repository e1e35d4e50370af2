// SPDX-License-Identifier: Apache-2.0
// What doctor finds of services and the VMs behind them.

import { beforeEach, describe, expect, test } from "vitest";
import type { StructInput } from "../../src/abi/codec.ts";
import { CAUSE, HOOK, REASON, ROLE, VM_FLAG, VM_STATE } from "../../src/abi/layout.gen.ts";
import { parseMac } from "../../src/addresses.ts";
import {
  addressCheck,
  hookCheck,
  type ServicesAround,
  servicesCheck,
  vmsCheck,
  zoneCheck,
} from "../../src/ops/doctor/services.ts";
import { ServiceView } from "../../src/ops/serviceView.ts";
import { link } from "../support/planModel.ts";
import { MAC, ServiceGround, TAP, VIP } from "../support/serviceGround.ts";

const { DRAIN, DOWN } = VM_STATE;
const WWW = 3;

let ground: ServiceGround;
beforeEach(() => {
  ground = new ServiceGround();
});

describe("doctor", () => {
  const around = (more: Partial<ServicesAround> = {}): ServicesAround => ({
    tables: ground.tables,
    view: new ServiceView(ground.tables),
    attached: ground.attached,
    links: [link(1, "lo"), link(10, "eth0"), link(TAP(1), "vnet1"), link(TAP(2), "vnet2")],
    addresses: () => [],
    ...more,
  });

  test("has nothing to say where there is nothing", () => {
    const checks = [servicesCheck, vmsCheck, hookCheck, addressCheck, zoneCheck];
    expect(checks.map((check) => check(around()).level)).toEqual(checks.map(() => "ok"));
  });

  test("counts what is in order", () => {
    ground.addVm("web1", 1);
    ground.addVm("web2", 2, { state: DRAIN });
    ground.addService("www", WWW, { pool: [{ vm: "web1" }] });
    expect(servicesCheck(around())).toMatchObject({ level: "ok", found: "1, each with a VM that is up" });
    expect(vmsCheck(around())).toMatchObject({ level: "ok", found: "2: 1 up, 1 drained" });
  });

  test("finds services without a VM, VMs that are down, and entries that cannot be read", () => {
    ground.attach("vnet1", TAP(1));
    ground.addVm("web1", 1, { state: DOWN, cause: CAUSE.OPERATOR });
    ground.addService("www", WWW);
    ground.tables.guests.specs.set({ name: "odd" }, { bytes: 3, text: Buffer.from("???") });
    ground.tables.services.specs.set({ name: "odd" }, { bytes: 2, text: Buffer.from("{}") });
    const services = servicesCheck(around());
    expect(services.found).toMatch(
      /^the entry of odd cannot be read \(.*\); no VM of www is up, so requests are dropped$/,
    );
    expect(services.hint).toContain("lasthop services remove");
    expect(vmsCheck(around()).found).toMatch(/^the entry of odd .*; web1 is down: taken down by hand/);
  });

  test("names some of many", () => {
    for (let number = 1; number <= 9; number++)
      ground.addVm(`v${number}`, number, { state: DOWN, cause: CAUSE.PROBE });
    expect(vmsCheck(around()).found).toMatch(/^v1 is down: its check fails, v2 .* and 1 more$/);
  });

  describe("of hooks", () => {
    beforeEach(() => {
      ground.attach("eth0", 10, { role: ROLE.UPLINK, hook: HOOK.XDP_NATIVE });
      ground.addService("www", WWW);
    });

    test.each<[what: string, flags: number, uplink: StructInput<"interface">, found: RegExp | null]>([
      ["a tap that takes frames from XDP", VM_FLAG.XDP, {}, null],
      ["a tap that does not", 0, {}, /^native XDP on eth0 cannot hand frames to the taps of web1$/],
      ["an uplink by TC", 0, { hook: HOOK.TCX }, null],
      ["an uplink of another zone", 0, { zone: 7 }, null],
    ])("%s", (_what, flags, uplink, found) => {
      ground.attach("eth0", 10, { role: ROLE.UPLINK, hook: HOOK.XDP_NATIVE, ...uplink });
      ground.addVm("web1", 1, { flags });
      const check = hookCheck(around());
      expect(check.level).toBe(found === null ? "ok" : "warn");
      if (found)
        expect(check).toEqual({
          level: "warn",
          found: expect.stringMatching(found),
          hint: expect.stringContaining("lasthop attach eth0 --role uplink --mode tc"),
        });
    });

    test("packets that passed", () => {
      ground.addVm("web1", 1, { flags: VM_FLAG.XDP });
      ground.count(10, REASON.DELIVER_HOOK, 7);
      expect(hookCheck(around())).toEqual({
        level: "warn",
        found: "7 packets for VMs of services passed at eth0",
        hint: expect.stringMatching(/VLAN tags.*--mode tc/),
      });
    });
  });

  test.each<[what: string, address: string, own: string, found: RegExp | null]>([
    ["is another", VIP, "192.0.2.81", null],
    ["is of another family", VIP, "2001:db8::1", null],
    ["is the service's", VIP, VIP, /^192\.0\.2\.80 of the service www is the host's own, on eth0$/],
    ["is in its prefix", "192.0.0.0/16", "192.0.2.1", /^192\.0\.2\.1 of the service www is the host's own/],
    ["is IPv6", "2001:db8::/64", "2001:db8::1", /^2001:db8::1 of the service www/],
  ])("of an address of the host that %s", (_what, address, own, found) => {
    ground.addVm("web1", 1);
    ground.addService("www", WWW, { address });
    const family = own.includes(":") ? 6 : 4;
    const addresses = () => [
      { ifindex: 1, family: 4 as const, address: "127.0.0.1", prefixLength: 8, scope: "host" as const },
      { ifindex: 10, family: family as 4 | 6, address: own, prefixLength: 24 },
    ];
    const check = addressCheck(around({ addresses }));
    expect(check.level).toBe(found === null ? "ok" : "warn");
    if (found) expect(check.found).toMatch(found);
  });

  test.each<
    [what: string, asked: { zone?: number; count?: number; service?: boolean }, found: RegExp | null]
  >([
    ["no such packets", { count: 0 }, null],
    ["another zone", { zone: 7 }, null],
    ["no service", { service: false }, null],
    [
      "the same zone",
      {},
      /^5 packets from vnet2 are of flows that are another VM's, perhaps as web1 forwards to it$/,
    ],
  ])(
    "of a server behind a VM that forwards to it: %s",
    (_what, { zone = 0, count: packets = 5, service = true }, found) => {
      ground.attach("vnet1", TAP(1));
      ground.attach("vnet2", TAP(2), { zone });
      ground.addVm("web1", 1);
      ground.tables.vms.set({ zone, mac: parseMac(MAC(2))! }, { id: 2, ifindex: TAP(2) });
      if (service) ground.addService("www", WWW);
      // The VM's own are of flows that were given to another.
      ground.count(TAP(1), REASON.VM_MISMATCH, 3);
      ground.count(TAP(2), REASON.VM_MISMATCH, packets);
      const check = zoneCheck(around());
      expect(check.level).toBe(found === null ? "ok" : "warn");
      if (found)
        expect(check).toMatchObject({
          found: expect.stringMatching(found),
          hint: expect.stringMatching(/--zone.*--role uplink/),
        });
    },
  );
});
