// SPDX-License-Identifier: Apache-2.0
// Devices by hand, without a daemon: last hops that are known beforehand or taken over, what becomes of their
// flows when a device is taken down, and what cannot be asked for.

import { beforeAll, describe, expect, it } from "vitest";
import type { DeviceChange, DeviceDetails, DeviceEntry } from "../../src/ops/types.ts";
import { attachAll, FAMILIES, useSite } from "../support/fixture.ts";
import { Speaker } from "../support/speaker.ts";

// b is the VMs' default gateway. Clients ask through a; the second one through c.
const firewalls = [{ name: "a" }, { name: "b" }, { name: "c", loose: true }];
const GONE_MAC = "02:00:00:00:0f:99";

describe.each([
  { host: "bridged", uplinks: "separate" },
  { host: "bridged", uplinks: "shared" },
  { host: "routed", uplinks: "separate" },
] as const)("a $host host with $uplinks uplinks", ({ host, uplinks }) => {
  const ground = useSite({ host, uplinks, firewalls, vms: 1, clients: 2 }, async (ground) => {
    await attachAll(ground);
    await ground.site.routeClientsBy("c", ground.site.clients.slice(1));
  });
  let speaker: Speaker;
  beforeAll(async () => {
    speaker = await Speaker.start(ground.site);
  });
  const show = (name: string) => ground.lasthop.json<DeviceDetails>("devices", "show", name);
  const to = (name: string, mac = ground.site.firewall(name).mac) => [
    { firewall: name, destination_mac: mac },
  ];
  const heard = async (...ports: number[]) => {
    const all = await speaker.heard(...ports);
    return ports.map((port) => all.get(port)!);
  };
  /** For MACs that nobody has: a switch floods them. */
  const macs = async (...ports: number[]) =>
    new Set((await heard(...ports)).flat().map(({ destination_mac }) => destination_mac));

  it("takes over what was learned: same index, same flows", async () => {
    const { lasthop, site } = ground;
    const ports = [];
    for (const family of FAMILIES) ports.push(await speaker.open(site.client, family));
    const before = (await lasthop.lastHops()).find(({ mac }) => mac === site.a.mac)!;
    expect(before).toMatchObject({ origin: "learned", device: null });
    const change = await lasthop.json<DeviceChange>("devices", "add", "fw-a", "--mac", site.a.mac);
    expect(change).toMatchObject({ name: "fw-a", state: "up", cause: null });
    const after = (await lasthop.lastHops()).filter(({ mac }) => mac === site.a.mac);
    expect(after.find(({ index }) => index === before.index)).toMatchObject({
      generation: before.generation,
      origin: "manual",
      device: "fw-a",
      state: "up",
    });
    // One on each uplink where it may be.
    expect(after).toHaveLength(site.uplinks.length);
    expect(await heard(...ports)).toEqual([to("a"), to("a")]);
    expect(await show("fw-a")).toMatchObject({
      flows: 2,
      macs: [site.a.mac],
      interface: null,
      on_down: "route",
    });
  });

  it.each(FAMILIES)(
    "IPv%i: does what on_down says, and leaves other devices' flows alone",
    async (family) => {
      const { lasthop, site } = ground;
      await lasthop.must("devices", "add", "fw-c", "--mac", site.firewall("c").mac);
      const port = await speaker.open(site.client, family);
      const other = await speaker.open(site.clients[1]!, family);
      // c, like a, is known from its traffic; b has the VM's own route.
      for (const [onDown, where] of [
        ["hold", to("a")],
        ["peer:fw-c", to("c")],
        ["drop", []],
        ["route", to("b")],
      ] as const) {
        await lasthop.must("devices", "set", "fw-a", "--on-down", onDown);
        expect(await heard(port, other), `up, ${onDown}`).toEqual([to("a"), to("c")]);
        expect(await lasthop.json("devices", "down", "fw-a")).toMatchObject({
          state: "down",
          cause: "operator",
        });
        const routed = onDown === "route" && host === "routed";
        const expected = routed ? [{ firewall: "b", destination_mac: site.b.mac }] : where;
        expect(await heard(port, other), `down, ${onDown}`).toEqual([expected, to("c")]);
        // A second time it changes nothing.
        await lasthop.must("devices", "down", "fw-a");
        expect(await lasthop.json("devices", "up", "fw-a")).toMatchObject({ state: "up", cause: null });
      }
      expect(await heard(port)).toEqual([to("a")]);
      // The peer is down too.
      await lasthop.must("devices", "set", "fw-a", "--on-down", "peer:fw-c");
      await lasthop.must("devices", "down", "fw-c");
      await lasthop.must("devices", "down", "fw-a");
      expect(await heard(port)).toEqual([to("b")]);
      await lasthop.must("devices", "up", "fw-c");
      expect(await heard(port)).toEqual([to("c")]);
      await lasthop.must("devices", "up", "fw-a");
      await lasthop.must("devices", "set", "fw-a", "--on-down", "route");
      await lasthop.must("devices", "remove", "fw-c");
      expect(await heard(port, other)).toEqual([to("a"), to("c")]);
    },
  );

  it.each(FAMILIES)(
    "IPv%i: another MAC takes all flows along, before any request came from it",
    async (family) => {
      const { lasthop, site } = ground;
      const port = await speaker.open(site.client, family);
      await lasthop.must("devices", "set", "fw-a", "--mac", GONE_MAC);
      try {
        expect(await macs(port)).toEqual(new Set([GONE_MAC]));
      } finally {
        await lasthop.must("devices", "set", "fw-a", "--mac", site.a.mac);
      }
      expect(await heard(port)).toEqual([to("a")]);
    },
  );

  it("answers a pair at its virtual MAC, whichever of its MACs asks", async () => {
    const { lasthop, site } = ground;
    const virtual = "00:00:5e:00:01:0a";
    const ports = [];
    for (const family of FAMILIES) ports.push(await speaker.open(site.client, family));
    await lasthop.must(
      "devices",
      "set",
      "fw-a",
      "--mac",
      `${site.a.mac},${GONE_MAC}`,
      "--reply-mac",
      virtual,
    );
    const own = (await show("fw-a")).last_hops.filter(({ mac, state }) => mac === virtual && state === "up");
    expect(own).toHaveLength(site.uplinks.length);
    expect(await macs(...ports)).toEqual(new Set([virtual]));
    await lasthop.must("devices", "set", "fw-a", "--mac", site.a.mac, "--reply-mac", "none");
    expect(await heard(...ports)).toEqual([to("a"), to("a")]);
  });

  it("is forgotten without its flows", async () => {
    const { lasthop, site } = ground;
    const port = await speaker.open(site.client, 4);
    await lasthop.must("devices", "down", "fw-a");
    await lasthop.must("devices", "remove", "fw-a");
    expect(await lasthop.json("devices", "list")).toEqual({ devices: [] });
    expect(await heard(port)).toEqual([to("a")]);
    const entries = (await lasthop.lastHops()).filter(({ flows }) => flows > 0);
    expect(entries.every(({ origin, device }) => origin === "learned" && device === null)).toBe(true);
  });
});

describe("what cannot be", () => {
  const ground = useSite({ vms: 1 }, async ({ lasthop, site }) => {
    await lasthop.attachAll(site.uplinks, site.taps);
    await lasthop.must("devices", "add", "fw-a", "--mac", site.a.mac, "--address", site.a.address[4]);
    await lasthop.must("devices", "add", "fw-b", "--mac", site.b.mac, "--on-down", "peer:fw-a");
    before = await devices();
  });
  let before: unknown;
  const MAC = "02:00:00:00:0f:42";
  const many = (count: number) => Array.from({ length: count }, (_, at) => `02:00:00:00:0f:8${at}`).join(",");

  it.each<[what: string, code: string, args: string[]]>([
    ["no MAC and no address", "E_DEVICE", ["add", "x"]],
    ["a MAC that is none", "E_USAGE", ["add", "x", "--mac", "02:00:00:00:0f"]],
    ["a multicast MAC", "E_USAGE", ["add", "x", "--mac", "01:00:5e:00:00:01"]],
    ["the broadcast MAC", "E_USAGE", ["add", "x", "--mac", "ff:ff:ff:ff:ff:ff"]],
    ["a MAC of zeros", "E_USAGE", ["add", "x", "--mac", "00:00:00:00:00:00"]],
    ["a multicast reply MAC", "E_USAGE", ["add", "x", "--mac", MAC, "--reply-mac", "03:00:00:00:00:01"]],
    ["another device's MAC", "E_DEVICE", ["add", "x", "--mac", "02:00:00:00:0f:01"]],
    [
      "another device's MAC for replies",
      "E_DEVICE",
      ["add", "x", "--mac", MAC, "--reply-mac", "02:00:00:00:0f:01"],
    ],
    ["the same MAC twice", "E_DEVICE", ["add", "x", "--mac", `${MAC},${MAC}`]],
    ["too many MACs", "E_USAGE", ["add", "x", "--mac", many(9)]],
    ["an address that is none", "E_USAGE", ["add", "x", "--address", "203.0.113"]],
    ["a multicast address", "E_USAGE", ["add", "x", "--address", "ff02::1"]],
    ["no address in particular", "E_USAGE", ["add", "x", "--address", "0.0.0.0"]],
    ["another device's address", "E_DEVICE", ["add", "x", "--address", "203.0.113.1"]],
    ["the same address twice", "E_DEVICE", ["add", "x", "--address", "2001:db8::7,2001:db8:0::7"]],
    [
      "too many addresses",
      "E_USAGE",
      ["add", "x", "--address", "10.0.0.1,10.0.0.2,10.0.0.3,10.0.0.4,10.0.0.5"],
    ],
    ["a name with a blank", "E_USAGE", ["add", "fire wall", "--mac", MAC]],
    ["a name that begins with a dot", "E_USAGE", ["add", ".x", "--mac", MAC]],
    ["a name that is too long", "E_USAGE", ["add", "x".repeat(32), "--mac", MAC]],
    ["a name that is taken", "E_DEVICE", ["add", "fw-a", "--mac", MAC]],
    [
      "an interface that cannot be",
      "E_USAGE",
      ["add", "x", "--mac", MAC, "--interface", "much-too-long-a-name"],
    ],
    ["an interface that is a tap", "E_DEVICE", ["add", "x", "--mac", MAC, "--interface", "tap1"]],
    [
      "an uplink of another zone",
      "E_DEVICE",
      ["add", "x", "--mac", MAC, "--interface", "up-a", "--zone", "7"],
    ],
    ["an unknown on-down", "E_USAGE", ["add", "x", "--mac", MAC, "--on-down", "hope"]],
    ["an unknown peer", "E_DEVICE", ["add", "x", "--mac", MAC, "--on-down", "peer:y"]],
    ["itself as its peer", "E_DEVICE", ["set", "fw-a", "--on-down", "peer:fw-a"]],
    [
      "a peer of another zone",
      "E_DEVICE",
      ["add", "x", "--mac", MAC, "--zone", "7", "--on-down", "peer:fw-a"],
    ],
    ["a VLAN id that cannot be", "E_USAGE", ["add", "x", "--mac", MAC, "--vlan", "4095"]],
    ["three VLAN tags", "E_USAGE", ["add", "x", "--mac", MAC, "--vlan", "1,2,3"]],
    ["an unknown probe", "E_USAGE", ["add", "x", "--mac", MAC, "--probe", "udp"]],
    ["a TCP probe without a port", "E_USAGE", ["add", "x", "--mac", MAC, "--probe", "tcp"]],
    ["a port that cannot be", "E_USAGE", ["add", "x", "--address", "10.0.0.1", "--probe", "tcp:65536"]],
    ["nobody to probe", "E_DEVICE", ["add", "x", "--mac", MAC, "--probe", "icmp"]],
    ["details of no probe", "E_USAGE", ["set", "fw-a", "--fall", "5"]],
    ["an interval that is too short", "E_USAGE", ["set", "fw-a", "--probe", "icmp", "--interval", "0.01"]],
    ["nothing to change", "E_USAGE", ["set", "fw-a"]],
    ["taking away its last MAC", "E_DEVICE", ["set", "fw-b", "--mac", "none"]],
    ["changing an unknown device", "E_NOT_FOUND", ["set", "fw-x", "--mac", MAC]],
    ["removing an unknown device", "E_NOT_FOUND", ["remove", "fw-aa"]],
    ["removing a device that is a peer", "E_DEVICE", ["remove", "fw-a"]],
    ["taking down an unknown device", "E_NOT_FOUND", ["down", "x"]],
    ["showing an unknown device", "E_NOT_FOUND", ["show", "x"]],
  ])("%s: %s, and nothing has changed", async (_what, code, args) => {
    const { lasthop } = ground;
    const { status, stderr } = await lasthop.run("--json", "devices", ...args);
    expect(JSON.parse(stderr)).toMatchObject({ code, message: expect.stringMatching(/\S/) });
    expect(status).toBe(code === "E_USAGE" ? 2 : 1);
    expect(await devices()).toEqual(before);
  });

  /** With nothing that time changes. */
  async function devices(): Promise<unknown> {
    const { devices } = await ground.lasthop.json<{ devices: DeviceEntry[] }>("devices", "list");
    const keep = ({ changed_seconds_ago, request_packets, request_bytes, ...rest }: DeviceEntry) => rest;
    return devices.map(keep);
  }
});
