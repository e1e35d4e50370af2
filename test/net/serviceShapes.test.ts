// SPDX-License-Identifier: Apache-2.0
// VMs that serve by themselves, that forward to servers as they got it, and that ask servers on their own behalf: each
// behind the same service, and whoever answers the client, the answer leaves by the firewall of the request.

import { beforeAll, describe, expect, it } from "vitest";
import { type Addresses, FAMILIES, type Family, HOST_GATEWAY } from "../support/addresses.ts";
import { Capture, type Packet } from "../support/capture.ts";
import {
  apply,
  askAnew,
  expectThrough,
  PORT,
  ping,
  SERVICE,
  type ServiceGround,
  type ServiceSiteOptions,
  type Shape,
  showVm,
  tally,
  useServiceSite,
} from "../support/serviceSite.ts";
import type { Vm } from "../support/site.ts";

/** Each VM has its turn. */
const IN_TURN = { service: { policy: "round-robin" } };

/** Everything that a client may want of the service, in one family, through one firewall alone. */
async function exchange(ground: ServiceGround, family: Family, shape: Shape, through: string): Promise<void> {
  const { site } = ground;
  await site.resetCounts();
  const names = await askAnew(ground, family, 6);
  const expected = shape === "answering" ? { vm1: 2, vm2: 2, vm3: 2 } : { server1: 6 };
  expect(tally(names)).toEqual(expected);
  if (shape !== "proxying") {
    // More than a frame each way.
    const texts = ["small", "l".repeat(4000), "small again"];
    const asked = { host: SERVICE[family], port: PORT, texts };
    const answered = await site.client.agent.call("askByUdp", asked);
    expect(new Set(answered.names).size).toBe(1);
  }
  await ping(ground, family);
  await expectThrough(ground, through, family, shape === "proxying" ? ["tcp", "icmp"] : undefined);
}

const OF_SERVICE = `(host ${SERVICE[4]} or host ${SERVICE[6]})`;
const SYN = 0x02;
const ACK = 0x10;

/** What passed a VM's tap, by the client's ports. */
interface AtTap {
  /** SYNs that the VM got, those that it gave, and the same of SYN-ACKs. */
  asked: number[];
  forwarded: number[];
  answered: number[];
  returned: number[];
  /** MACs to which SYN-ACKs for the VM were addressed. */
  macs: Set<string>;
}

type Seen = Record<Family, Record<string, AtTap>>;

async function atTaps({ site }: ServiceGround, work: () => Promise<unknown>): Promise<Seen> {
  const filter = `tcp and ${OF_SERVICE}`;
  const captures = await Promise.all(site.vms.map(({ tap }) => Capture.start(site.host, tap, { filter })));
  await work();
  const all = await Promise.all(captures.map((capture) => capture.stop()));
  const seen = (family: Family) =>
    Object.fromEntries(site.vms.map((vm, at) => [vm.name, sortOut(vm, family, all[at]!)]));
  return { 4: seen(4), 6: seen(6) };
}

function sortOut(vm: Vm, family: Family, packets: readonly Packet[]): AtTap {
  const flags = (packet: Packet) => packet.tcp_flags & (SYN | ACK);
  const opening = packets.filter((p) => p.destination === SERVICE[family] && flags(p) === SYN);
  const answering = packets.filter((p) => p.source === SERVICE[family] && flags(p) === (SYN | ACK));
  const given = (packet: Packet) => packet.source_mac === vm.mac;
  const of = (some: readonly Packet[], wanted: boolean, port: "source_port" | "destination_port") =>
    some
      .filter((packet) => given(packet) === wanted)
      .map((packet) => packet[port])
      .sort((a, b) => a - b);
  return {
    asked: of(opening, false, "source_port"),
    forwarded: of(opening, true, "source_port"),
    answered: of(answering, false, "destination_port"),
    returned: of(answering, true, "destination_port"),
    macs: new Set(answering.filter((packet) => !given(packet)).map((packet) => packet.destination_mac)),
  };
}

/** Where a server may be told to send what it answers to. */
function gateways({ site, servers }: ServiceGround, bridgeAddress = false): [string, Addresses][] {
  if (site.kind !== "bridged") return [["the host", servers[0]!.gateway]];
  return [
    ["the firewall of the request", site.a.address],
    ["a VM", site.vms[2]!.address],
    ...(bridgeAddress ? ([["the host", HOST_GATEWAY]] as [string, Addresses][]) : []),
    ["the default gateway", site.b.address],
  ];
}

const SITES: [string, ServiceSiteOptions][] = [
  ["bridged host", { host: "bridged" }],
  ["bridged host with an address", { host: "bridged", bridgeAddress: true }],
  ["routed host", { host: "routed" }],
  ["routed host with a bridge of taps", { host: "routed_bridge" }],
];
const SHAPES: Record<string, Shape[]> = {
  "bridged host with an address": ["transparent"],
  "routed host with a bridge of taps": ["answering", "transparent"],
};

const cases = SITES.flatMap(([name, options]) =>
  (SHAPES[name] ?? ["answering", "transparent", "proxying"]).map((shape) => ({ name, shape, options })),
);

describe.each(cases)("$shape VMs of a $name", ({ shape, options }) => {
  const ground = useServiceSite({ ...options, shape });

  describe("with lasthop", () => {
    beforeAll(() => apply(ground, IN_TURN));

    it.each(FAMILIES)("IPv%i: all goes through firewall a, though b is the default gateway", (family) =>
      exchange(ground, family, shape, "a"),
    );

    it.each(FAMILIES)("IPv%i: and through b, when that is whom clients come through", async (family) => {
      const { site } = ground;
      await site.routeClientsBy("b");
      await site.routeRepliesBy("a");
      await exchange(ground, family, shape, "b");
      await site.routeClientsBy("a");
      await site.routeRepliesBy("b");
    });

    it("what the VM gives leaves with a's MAC, and by a alone", async () => {
      const { site } = ground;
      const filter = `tcp and ${OF_SERVICE}`;
      const captures = await Promise.all(
        [...site.firewalls.values()].map(({ namespace }) =>
          Capture.start(namespace, "in", { direction: "in", filter }),
        ),
      );
      for (const family of FAMILIES) await askAnew(ground, family, 6);
      const [a, b] = await Promise.all(captures.map((capture) => capture.stop()));
      expect(b).toEqual([]);
      const senders = site.kind === "bridged" ? site.vms.map(({ mac }) => mac) : [site.uplinkMac("a")];
      for (const family of FAMILIES) {
        const given = a!.filter(({ source }) => source === SERVICE[family]);
        expect(given.length).toBeGreaterThan(6 * 3);
        expect(new Set(given.map((packet) => packet.destination_mac))).toEqual(new Set([site.a.mac]));
        expect(new Set(given.map((packet) => packet.source_mac))).toEqual(new Set(senders));
      }
    });

    if (shape !== "transparent") return;

    it("responses go to the VM that forwarded, whoever the server addresses them to", async () => {
      const { site } = ground;
      const ways = gateways(ground, options.bridgeAddress);
      const each = ways.length * 2;
      await site.resetCounts();
      const before = await Promise.all(site.vms.map(({ name }) => showVm(ground, name)));
      const taps = await atTaps(ground, async () => {
        for (const [, gateway] of ways) {
          await ground.servers[0]!.routeBy(gateway);
          for (const family of FAMILIES) await askAnew(ground, family, 6);
        }
      });
      for (const [at, { name, mac }] of site.vms.entries()) {
        for (const family of FAMILIES) {
          const { asked, forwarded, answered, returned, macs } = taps[family][name]!;
          expect(asked).toHaveLength(each);
          // As many connections as the VM was given, and none of another's.
          const expected = { name, forwarded: asked, answered: asked, returned: asked };
          expect({ name, forwarded, answered, returned }).toEqual(expected);
          expect(macs).toEqual(new Set([mac]));
        }
        const { flows_started, request_packets, response_packets } = await showVm(ground, name);
        expect(flows_started - before[at]!.flows_started).toBe(each * 2);
        expect(request_packets - before[at]!.request_packets).toBeGreaterThanOrEqual(each * 2 * 3);
        // Those that were addressed to it went by themselves.
        const handed = ways.filter(([whom]) => whom !== "a VM" || name !== "vm3").length * 2;
        expect(response_packets - before[at]!.response_packets).toBeGreaterThanOrEqual(handed * 2 * 3);
      }
      for (const family of FAMILIES) await expectThrough(ground, "a", family, ["tcp"]);
    });

    it.each(FAMILIES)("IPv%i: and UDP, ping and fragments likewise", async (family) => {
      for (const [, gateway] of gateways(ground, options.bridgeAddress)) {
        await ground.servers[0]!.routeBy(gateway);
        await exchange(ground, family, shape, "a");
      }
    });

    it("a stored policy sends responses to another VM", async () => {
      const pool = [{ vm: "vm1" }, { vm: "vm3" }];
      await apply(ground, { vms: { vm1: { responses: "vm2" } }, service: { ...IN_TURN.service, pool } });
      await ground.site.resetCounts();
      const taps = await atTaps(ground, async () => {
        for (const family of FAMILIES) await askAnew(ground, family, 8);
      });
      for (const family of FAMILIES) {
        const { vm1, vm2, vm3 } = taps[family];
        expect([vm1!.asked.length, vm2!.asked.length, vm3!.asked.length]).toEqual([4, 0, 4]);
        // vm1 forwards requests, and vm2 nothing but the responses to them.
        expect([vm1!.answered, vm2!.answered, vm3!.answered]).toEqual([[], vm1!.asked, vm3!.asked]);
        expect([vm1!.returned, vm2!.returned, vm3!.returned]).toEqual([[], vm1!.asked, vm3!.asked]);
        await expectThrough(ground, "a", family, ["tcp"]);
      }
      await apply(ground, IN_TURN);
    });
  });

  // Last: what firewalls and hosts found out about nobody would be in the way.
  it("have no clients without lasthop", async () => {
    await ground.lasthop.detachAll();
    const { agent } = ground.site.client;
    const failed = await Promise.all(
      FAMILIES.map((family) =>
        agent.failure("openAsking", { key: "no", host: SERVICE[family], port: PORT, timeoutMs: 300 }),
      ),
    );
    for (const failure of failed) expect(failure).toMatch(/^(timeout|EHOSTUNREACH)$/);
  });
});
