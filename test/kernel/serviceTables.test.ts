// SPDX-License-Identifier: Apache-2.0
// What the controller makes of VMs and services, in tables of the real programs.

import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { encode, sizeOf } from "../../src/abi/codec.ts";
import {
  CAUSE,
  FLOW_FLAG,
  FLOW_STATE,
  ON_VM_DOWN,
  ORIGIN,
  POOL_LINES_MAX,
  SERVICE_FLAG,
  SERVICE_KEY_BITS,
  SERVICE_POLICY,
  SERVICE_PROTO_ANSWER,
  TIMEOUTS,
  VM_FLAG,
  VM_STATE,
  VMS_MAX,
} from "../../src/abi/layout.gen.ts";
import { formatMac, mapIpv4, parseAddress, parseMac } from "../../src/addresses.ts";
import { inPieces } from "../../src/controller/pieces.ts";
import { settleServicesInPieces } from "../../src/controller/serviceSettle.ts";
import { sweepInstance } from "../../src/controller/sweep.ts";
import type { Neighbour } from "../../src/kernel/rtnetlink.ts";
import { BpfMap } from "../../src/libbpf/index.ts";
import { cellsFor, encodeFlowKey } from "../../src/tables/index.ts";
import { BRIDGE, ServiceHost } from "./support/serviceHost.ts";

const [TCP, UDP, SCTP, ICMP, ICMPV6] = [6, 17, 132, 1, 58];
const { UP, DRAIN, DOWN } = VM_STATE;
const MACS = [1, 2, 3, 4, 5].map((number) => `52:54:00:00:00:0${number}`);

let usual: ServiceHost;
let host: ServiceHost;

beforeAll(() => {
  usual = new ServiceHost();
});

beforeEach(() => {
  host = usual;
});

afterEach(() => {
  vi.restoreAllMocks();
  if (host === usual) host.clear();
  else host.close();
});

afterAll(() => usual.close());

/** The same, of which the hot path has seen none. */
function threeNew(): void {
  for (const number of [1, 2, 3]) {
    host.addTap(100 + number, `vnet${number}`);
    host.setVm({ name: `web${number}`, tap: `vnet${number}`, mac: MACS[number - 1]! });
  }
}

/** web1 to web3 on vnet1 to vnet3, with the label web; ids as the hot path gave them. */
function threeVms(): void {
  for (const number of [1, 2, 3]) {
    host.addTap(100 + number, `vnet${number}`);
    host.see(100 + number, MACS[number - 1]!, number);
    host.setVm({ name: `web${number}`, tap: `vnet${number}`, mac: MACS[number - 1]!, labels: ["web"] });
  }
}

const WEB = { name: "web", address: "192.0.2.80", port: 443, pool: [{ label: "web" }] };

function serviceOf(address: string, proto: number, port = 0, zone = 0): number | undefined {
  const bytes = parseAddress(address)!;
  const key = { prefix_bits: SERVICE_KEY_BITS + 128, zone, proto, port };
  const octets = bytes.length === 4 ? mapIpv4(bytes) : bytes;
  return host.tables.services.index.get({ ...key, address: octets });
}

/** Index of the pool that is stored for a client. */
function poolFor(service: string, client: string): number | undefined {
  const key = {
    prefix_bits: 32 + 128,
    service: host.indexOf(service),
    client: mapIpv4(parseAddress(client)!),
  };
  return host.tables.services.associations.get(key);
}

/** Calls that change a map while `act` runs. */
function writesOf(act: () => void): number {
  const spies = (["update", "updateBatch", "delete", "push", "takeInto"] as const).map((name) =>
    vi.spyOn(BpfMap.prototype, name),
  );
  act();
  const count = spies.reduce((sum, spy) => sum + spy.mock.calls.length, 0);
  for (const spy of spies) spy.mockRestore();
  return count;
}

function vmAt(name: string): string {
  const { id, state, cause } = host.tables.guests.specs.get({ name })!;
  const named = host.tables.guests.cellOf(id);
  const words = ["unknown", "up", "drain", "down"];
  const because = Object.keys(CAUSE)[cause]!.toLowerCase();
  return `${words[state]} ${because}, cell ${named ? `${words[named.vm.state]} ${named.vm.ifindex}` : "none"}`;
}

describe("a service", () => {
  it("is there for its requests, with a table of its VMs", () => {
    threeVms();
    host.setService(WEB);
    const { lines, problems } = host.settle();
    expect(problems).toEqual([]);
    expect(lines).toEqual([
      "VM web1 is up on vnet1",
      "VM web2 is up on vnet2",
      "VM web3 is up on vnet3",
      "service web: 3 of 3 VMs",
    ]);
    expect(host.indexOf("web")).toBe(1);
    expect(serviceOf("192.0.2.80", TCP, 443)).toBe(1);
    expect(serviceOf("192.0.2.80", TCP, 80)).toBeUndefined();
    expect(serviceOf("192.0.2.80", TCP, 443, 7)).toBeUndefined();
    expect(serviceOf("192.0.2.81", TCP, 443)).toBeUndefined();
    expect(host.tables.services.entries.get(1)).toMatchObject({
      affinity_ticks: 0,
      on_vm_down: ON_VM_DOWN.REBALANCE,
      flags: SERVICE_FLAG.ANSWERED,
    });
    const pool = host.poolOf("web");
    expect(host.tables.services.pools.get(pool)).toMatchObject({ policy: SERVICE_POLICY.MAGLEV, size: 509 });
    const vms = ["web1", "web2", "web3"].map((name) => host.vm(name).cell);
    expect(new Set(host.cells(pool))).toEqual(new Set(vms));
    expect(host.tables.control.get().vm_cells).toBe(3);
    expect(host.vm("web2").vm).toEqual({
      id: 2,
      ifindex: 102,
      slot: 2,
      mac: parseMac(MACS[1]!),
      state: UP,
      flags: VM_FLAG.XDP,
      responses: 0,
    });
  });

  it.each([
    [
      "tcp with a port",
      { protocol: "tcp", port: 443 },
      [
        [TCP, 443],
        [ICMP, 0],
      ],
    ],
    [
      "tcp of any port",
      { protocol: "tcp" },
      [
        [TCP, 0],
        [ICMP, 0],
      ],
    ],
    [
      "udp",
      { protocol: "udp", port: 53 },
      [
        [UDP, 53],
        [ICMP, 0],
      ],
    ],
    [
      "sctp",
      { protocol: "sctp", port: 53 },
      [
        [SCTP, 53],
        [ICMP, 0],
      ],
    ],
    ["icmp", { protocol: "icmp" }, [[ICMP, 0]]],
    [
      "any",
      { protocol: "any" },
      [
        [TCP, 0],
        [UDP, 0],
        [SCTP, 0],
        [ICMP, 0],
      ],
    ],
    ["one of IPv6", { address: "2001:db8::1", protocol: "icmp" }, [[ICMPV6, 0]]],
    ["one without an answer", { answer: "none", protocol: "icmp" }, [[ICMP, 0]], false],
    [
      "a prefix of IPv4",
      { address: "192.0.2.99/28", protocol: "any" },
      [
        [TCP, 0],
        [UDP, 0],
        [SCTP, 0],
        [ICMP, 0],
      ],
    ],
  ])("%s has its keys", (_, more, expected, answered = true) => {
    threeVms();
    host.setService({ name: "s", address: "192.0.2.80", pool: [{ vm: "web1" }], ...more });
    host.settle();
    const keys = [...host.tables.services.index.keys()];
    const own = expected as number[][];
    expect(keys.map(({ proto, port }) => `${proto} ${port}`).sort()).toEqual(
      [...own, ...(answered ? [[SERVICE_PROTO_ANSWER, 0]] : [])]
        .map(([proto, port]) => `${proto} ${port}`)
        .sort(),
    );
    const bits = "address" in more ? (more.address.includes("/") ? 64 + 96 + 28 : 192) : 192;
    expect(new Set(keys.map(({ prefix_bits }) => prefix_bits))).toEqual(new Set([bits]));
    if ("address" in more && more.address.includes("/")) expect(serviceOf("192.0.2.111", TCP)).toBe(1);
  });

  it("shares echo requests and answers of an address with the others there: the first has them", () => {
    threeVms();
    for (const [name, port] of [
      ["b", 80],
      ["a", 443],
      ["c", 8080],
    ] as const) {
      host.setService({ name, address: "192.0.2.80", port, pool: [{ vm: "web1" }] });
    }
    host.setService({ name: "z", address: "192.0.2.81", protocol: "icmp", pool: [{ vm: "web1" }] });
    host.setService({ name: "y", address: "192.0.2.81", pool: [{ vm: "web2" }], answer: "vm:web3" });
    host.settle();
    expect(serviceOf("192.0.2.80", ICMP)).toBe(host.indexOf("a"));
    expect(serviceOf("192.0.2.80", SERVICE_PROTO_ANSWER)).toBe(host.indexOf("a"));
    expect(serviceOf("192.0.2.81", ICMP)).toBe(host.indexOf("z"));
    expect(serviceOf("192.0.2.81", SERVICE_PROTO_ANSWER)).toBe(host.indexOf("y"));
    const { entries } = host.tables.services;
    expect(entries.get(host.indexOf("b"))!.flags).toBe(0);
    expect(formatMac(entries.get(host.indexOf("y"))!.answer_mac)).toBe(MACS[2]);
    expect(formatMac(entries.get(host.indexOf("a"))!.answer_mac)).toBe("00:00:00:00:00:00");
  });

  it.each([
    [
      "round-robin",
      [
        { vm: "web1", weight: 2 },
        { vm: "web2", weight: 4 },
      ],
      [2, 1, 2],
      SERVICE_POLICY.ROUND_ROBIN,
    ],
    ["least-flows", [{ vm: "web1", weight: 2 }, { vm: "web2" }], [1, 2, 2, 1], SERVICE_POLICY.LEAST_FLOWS],
    ["source-hash", [{ vm: "web2" }], [2], SERVICE_POLICY.SOURCE_HASH],
    ["maglev", [{ vm: "web3", weight: 7 }], [3], SERVICE_POLICY.MAGLEV],
  ])("by %s has its pool so", (policy, pool, expected, number) => {
    threeVms();
    host.setService({ ...WEB, policy, pool });
    host.settle();
    const index = host.poolOf("web");
    expect(host.tables.services.pools.get(index)!.policy).toBe(number);
    expect(host.cells(index, expected.length)).toEqual(expected);
  });

  it("has its associations, the longest prefix first, without those whose VMs are down", () => {
    threeVms();
    const associations = [
      { client: "203.0.113.0/24", vm: "web2" },
      { client: "203.0.113.128/25", vm: "web3" },
      { client: "198.51.100.7", label: "web" },
    ];
    host.setService({ ...WEB, pool: [{ vm: "web1" }], associations });
    host.settle();
    expect(host.tables.services.entries.get(1)!.flags & SERVICE_FLAG.ASSOCIATED).not.toBe(0);
    expect(host.cells(poolFor("web", "203.0.113.1")!)).toEqual([host.vm("web2").cell]);
    expect(host.cells(poolFor("web", "203.0.113.200")!)).toEqual([host.vm("web3").cell]);
    expect(new Set(host.cells(poolFor("web", "198.51.100.7")!)).size).toBe(3);
    expect(poolFor("web", "198.51.100.8")).toBeUndefined();
    host.setOperatorState("web3", DOWN);
    host.settle();
    expect(host.cells(poolFor("web", "203.0.113.200")!)).toEqual([host.vm("web2").cell]);
    host.setService({ ...WEB, pool: [{ vm: "web1" }] });
    host.settle();
    expect([...host.tables.services.associations.keys()]).toEqual([]);
    expect(host.tables.services.entries.get(1)!.flags & SERVICE_FLAG.ASSOCIATED).toBe(0);
  });

  it("has no pool without a VM that is up", () => {
    threeVms();
    host.setService(WEB);
    for (const name of ["web1", "web2"]) host.setOperatorState(name, DOWN);
    host.setOperatorState("web3", DRAIN);
    expect(host.settle().lines.slice(-2)).toEqual(["VM web3 is drained on vnet3", "service web: 0 of 3 VMs"]);
    expect(host.poolOf("web")).toBe(0);
    expect(serviceOf("192.0.2.80", TCP, 443)).toBe(1);
  });

  it("is gone when it is removed, and its index is not given out in the same change", () => {
    threeVms();
    host.setService({ ...WEB, affinity_seconds: 60, associations: [{ client: "0.0.0.0/0", vm: "web1" }] });
    host.settle();
    const client = { client: mapIpv4(parseAddress("203.0.113.1")!), service: 1 };
    host.tables.services.affinities.set(client, { vm: 2, last_seen: 1 });
    host.removeService("web");
    host.setService({ ...WEB, name: "web4", port: 444 });
    host.settle();
    expect(host.indexOf("web4")).toBe(2);
    expect(serviceOf("192.0.2.80", TCP, 443)).toBeUndefined();
    expect(serviceOf("192.0.2.80", ICMP)).toBe(2);
    expect([...host.tables.services.associations.keys()]).toEqual([]);
    expect([...host.tables.services.affinities.keys()]).toEqual([]);
    expect(encode("service", host.tables.services.entries.get(1)!)).toEqual(encode("service", {}));
    host.setService({ ...WEB, name: "web5", port: 445 });
    host.settle();
    expect(host.indexOf("web5")).toBe(1);
  });

  it("forgets whose clients went to a VM that it has no more", () => {
    threeVms();
    host.setService({ ...WEB, affinity_seconds: 60, pool: [{ vm: "web1" }, { vm: "web2" }] });
    host.setService({ ...WEB, name: "other", port: 80, pool: [{ vm: "web1" }] });
    host.settle();
    const client = mapIpv4(parseAddress("203.0.113.1")!);
    const { affinities } = host.tables.services;
    const index = host.indexOf("web");
    const clients = [
      [client, index, 1],
      [mapIpv4(Buffer.from([9, 9, 9, 9])), index, 2],
      [client, 7, 1],
    ] as const;
    for (const [address, service, vm] of clients)
      affinities.set({ client: address, service }, { vm, last_seen: 1 });
    host.setService({ ...WEB, affinity_seconds: 60, pool: [{ vm: "web2" }, { vm: "web3" }] });
    host.settle();
    expect([...affinities.entries()].map(([, { vm }]) => vm)).toEqual([2]);
  });

  it("takes what is given of it only if it can be read", () => {
    threeVms();
    host.setService(WEB);
    host.settle();
    const { specs } = host.tables.services;
    const good = specs.get({ name: "web" })!;
    const broken = [
      ["it is no JSON", { text: Buffer.from("{address"), bytes: 8 }, "its text is not JSON"],
      ["it is no entry", { text: Buffer.from("[1]"), bytes: 3 }, "its text is no entry"],
      ["it is of another form", { text: Buffer.from('{"pool":7}'), bytes: 10 }, "address: "],
      [
        "it is longer than its text can be",
        { bytes: 8177 },
        "its text has 8177 bytes, where there is room for 8176",
      ],
      ["nothing is there", { bytes: 0 }, "its text is not JSON"],
    ] as const;
    for (const [, fields, why] of broken) {
      specs.set({ name: "web" }, { ...good, ...fields });
      const { lines, problems } = host.settle();
      expect(lines).toEqual([]);
      expect(problems).toEqual([
        expect.stringContaining(`service web cannot be read, and is left as it is: ${why}`),
      ]);
      expect(serviceOf("192.0.2.80", TCP, 443)).toBe(1);
      expect(host.tables.services.entries.get(1)!.pool).not.toBe(0);
    }
    // Its index is not another's meanwhile.
    host.setService({ ...WEB, name: "new", port: 80 });
    host.settle();
    expect(host.indexOf("new")).toBe(2);
    specs.set({ name: "web" }, good);
    expect(host.settle().problems).toEqual([]);
  });

  it("without room for its pool keeps the one that it has", () => {
    host = new ServiceHost({ pools: 3, pool_cursors: 3, services: 8, service_stats: 8 });
    threeVms();
    for (const number of [1, 2]) {
      host.setService({ ...WEB, name: `s${number}`, port: number, pool: [{ vm: `web${number}` }] });
    }
    expect(host.settle().problems).toEqual([]);
    host.setService({ ...WEB, name: "s3", port: 3, pool: [{ vm: "web3" }] });
    const before = host.poolOf("s1");
    host.setService({ ...WEB, name: "s1", port: 1, pool: [{ vm: "web3" }] });
    expect(host.settle().problems).toEqual([
      "service s1: there is no room for its pool (E_SERVICE)",
      "service s3: there is no room for its pool (E_SERVICE)",
    ]);
    expect(host.poolOf("s1")).toBe(before);
    host.removeService("s2");
    host.settle();
    // What s2 had is free now, but was not in the change that freed it.
    expect(host.settle().problems).toEqual([]);
    expect(host.poolOf("s1")).toBe(host.poolOf("s3"));
  });
});

describe("a VM", () => {
  it("that the hot path has not seen gets an id of the upper half", () => {
    host.addTap(101, "vnet1", { kind: "veth" });
    host.setVm({ name: "web1", tap: "vnet1", mac: MACS[0]! });
    expect(host.settle()).toEqual({ lines: ["VM web1 is up on vnet1"], problems: [] });
    const { vm } = host.vm("web1");
    expect(vm).toMatchObject({ ifindex: 101, slot: 1, state: UP, flags: 0 });
    expect(vm.id).toBeGreaterThanOrEqual(2 ** 31);
    expect(host.tables.vms.get({ zone: 0, mac: parseMac(MACS[0]!)! })).toMatchObject({
      id: vm.id,
      ifindex: 101,
    });
  });

  it("keeps its id when the hot path has forgotten it", () => {
    threeVms();
    host.settle();
    host.tables.vms.delete({ zone: 0, mac: parseMac(MACS[0]!)! });
    host.settle();
    expect(host.vm("web1").vm.id).toBe(1);
    expect(host.tables.vms.get({ zone: 0, mac: parseMac(MACS[0]!)! })!.id).toBe(1);
  });

  it("goes to the next cell if another has the first, and to none if all are others'", () => {
    host.addTap(101, "vnet1");
    const id = 5;
    const others = cellsFor(id).map((cell) => ({ cell, id: cell + VMS_MAX }));
    for (const { cell, id: other } of others.slice(0, 3)) host.tables.guests.cells.set(cell, { id: other });
    host.see(101, MACS[0]!, id);
    host.setVm({ name: "web1", tap: "vnet1", mac: MACS[0]! });
    host.settle();
    expect(host.vm("web1").cell).toBe(8);
    host.tables.guests.cells.set(8, { id: 8 + VMS_MAX });
    const { problems } = host.settle();
    expect(problems).toEqual([expect.stringMatching(/^VM web1 gets no frames: .*its id 5 allows \(E_VM\)/)]);
    expect(vmAt("web1")).toBe("down none, cell none");
  });

  it("has no place among those that are known if there are too many", () => {
    host = new ServiceHost({ vms: 2 });
    threeNew();
    expect(host.settle().problems).toEqual(["VM web3: there are too many VMs for it (E_VM)"]);
    expect(vmAt("web3")).toBe("down none, cell none");
    expect(vmAt("web2")).toBe("up none, cell up 102");
  });

  it("is down while its tap is gone, keeps its cell, and is up with the next one", () => {
    threeVms();
    host.setService(WEB);
    host.settle();
    const before = host.vm("web3").cell;
    const pool = host.cells(host.poolOf("web"));
    host.removeTap(103);
    expect(host.settle().lines).toEqual([
      "VM web3 is down: vnet3 is not attached as a tap in zone 0",
      "service web: 2 of 3 VMs",
    ]);
    expect(vmAt("web3")).toBe("down interface, cell down 0");
    const without = host.cells(host.poolOf("web"));
    expect(without).not.toContain(before);
    // Of the same size, so that the others keep their places.
    expect(
      without.filter((cell, place) => cell !== pool[place] && pool[place] !== before).length,
    ).toBeLessThan(509 / 20);
    host.addTap(113, "vnet3");
    expect(host.settle().lines).toEqual(["VM web3 is up on vnet3", "service web: 3 of 3 VMs"]);
    expect(host.vm("web3")).toMatchObject({ cell: before, vm: { id: 3, ifindex: 113, slot: 13, state: UP } });
    expect(host.cells(host.poolOf("web"))).toEqual(pool);
  });

  it.each([
    ["drained", DRAIN, "drain operator, cell drain 101"],
    ["taken down", DOWN, "down operator, cell down 101"],
  ])("is %s by the operator, through other changes", (_, state, expected) => {
    threeVms();
    host.setService(WEB);
    host.settle();
    host.setOperatorState("web1", state);
    host.settle();
    expect(vmAt("web1")).toBe(expected);
    expect(host.cells(host.poolOf("web"))).not.toContain(host.vm("web1").cell);
    host.setVm({ name: "web1", tap: "vnet1", mac: MACS[0]!, labels: ["web", "new"] });
    host.settle();
    expect(vmAt("web1")).toBe(expected);
    host.setOperatorState("web1", VM_STATE.UNKNOWN);
    host.settle();
    expect(vmAt("web1")).toBe("up none, cell up 101");
  });

  it("is down when its check has found it so, until its check is another", () => {
    threeVms();
    const check = { kind: "icmp", interval_seconds: 5, timeout_seconds: 2, fall: 3, rise: 2 } as const;
    host.setVm({ name: "web1", tap: "vnet1", mac: MACS[0]!, address: "192.0.2.1", check });
    host.settle();
    const { specs } = host.tables.guests;
    specs.set({ name: "web1" }, { ...specs.get({ name: "web1" })!, health: DOWN });
    host.settle();
    expect(vmAt("web1")).toBe("down probe, cell down 101");
    host.setVm({ name: "web1", tap: "vnet1", mac: MACS[0]!, address: "192.0.2.1", check, labels: ["web"] });
    host.settle();
    expect(vmAt("web1")).toBe("down probe, cell down 101");
    host.setVm({ name: "web1", tap: "vnet1", mac: MACS[0]! });
    host.settle();
    expect(vmAt("web1")).toBe("up none, cell up 101");
  });

  it("is followed by its address", () => {
    host.addTap(101, "vnet1");
    host.setVm({ name: "web1", tap: "vnet1", address: "192.0.2.1" });
    expect(host.settle().problems).toEqual(["VM web1: its MAC is not known yet"]);
    expect(vmAt("web1")).toBe("down neighbour, cell none");
    const neighbour = { ifindex: BRIDGE, family: 4, address: "192.0.2.1", state: "reachable" } as const;
    host.neighbours = [{ ...neighbour, mac: MACS[0]! } as Neighbour];
    expect(host.settle().lines).toEqual(["VM web1 is up on vnet1"]);
    const first = host.vm("web1");
    host.neighbours = [{ ...neighbour, mac: MACS[1]! } as Neighbour];
    host.settle();
    const second = host.vm("web1");
    expect(formatMac(second.vm.mac)).toBe(MACS[1]);
    // Flows of the first one keep their way.
    expect(host.tables.guests.cellOf(first.vm.id)!.vm).toMatchObject({ state: DRAIN, ifindex: 101 });
    expect(host.tables.control.get().vm_cells).toBe(2);
  });

  it("gets its responses, or another one does", () => {
    threeVms();
    host.setVm({ name: "web1", tap: "vnet1", mac: MACS[0]!, responses: "web2" });
    host.setVm({ name: "web2", tap: "vnet2", mac: MACS[1]!, responses: "web2" });
    host.setVm({ name: "web3", tap: "vnet3", mac: MACS[2]!, responses: "nobody" });
    expect(host.settle().problems).toEqual([
      "VM web3: nothing is known of nobody, so it gets its responses itself",
    ]);
    expect(["web1", "web2", "web3"].map((name) => host.vm(name).vm.responses)).toEqual([2, 0, 0]);
  });

  it("that cannot be read is left as it is", () => {
    threeVms();
    host.setService(WEB);
    host.settle();
    const { specs } = host.tables.guests;
    specs.set({ name: "web1" }, { ...specs.get({ name: "web1" })!, text: Buffer.from("?"), bytes: 1 });
    const { problems } = host.settle();
    expect(problems).toContain("VM web1 cannot be read, and is left as it is: its text is not JSON");
    expect(host.tables.guests.cellOf(1)!.vm.state).toBe(UP);
  });
});

describe("a VM that nobody names any more", () => {
  /** A request of a service that was handed to a VM. */
  function putFlow(vm: number, state: number = FLOW_STATE.ESTABLISHED): Buffer {
    const key = encodeFlowKey({
      family: 4,
      local: Buffer.from([192, 0, 2, 80]),
      remote: Buffer.from([203, 0, 113, vm]),
      localPort: 443,
      remotePort: 1000 + state,
      zone: 0,
      proto: TCP,
    });
    host.tables.flows
      .table(4, "established")
      .map.update(key, encode("flow", { vm, state, flags: FLOW_FLAG.SERVICE, last_seen: 1 }));
    return key;
  }

  const sweep = () => sweepInstance(host.object, { countOnly: true });

  beforeEach(() => {
    threeVms();
    host.tables.control.set({ timeouts: Array(TIMEOUTS).fill(0xffff_ffff) });
    host.setService(WEB);
    host.settle();
  });

  it("keeps its flows, and its cell is free when a sweep that began later finds none", async () => {
    const key = putFlow(1);
    host.removeVm("web1");
    expect(host.settle().lines).toEqual(["service web: 2 of 2 VMs"]);
    const { cell } = host.tables.guests.cellOf(1)!;
    expect(host.tables.guests.cellOf(1)!.vm).toMatchObject({ state: DRAIN, ifindex: 101 });
    await sweep();
    expect(host.tables.guests.cellOf(1)).toBeDefined();
    expect(host.tables.control.get().vm_cells).toBe(3);
    host.tables.flows.table(4, "established").map.delete(key);
    await sweep();
    expect(host.tables.guests.cellOf(1)).toBeUndefined();
    expect(host.tables.guests.cells.get(cell)!.id).toBe(0);
    expect(host.tables.control.get().vm_cells).toBe(2);
    expect(writesOf(() => host.settle())).toBe(0);
  });

  it("is down when its tap goes too", () => {
    host.removeVm("web1");
    host.settle();
    host.removeTap(101);
    host.settle();
    expect(host.tables.guests.cellOf(1)!.vm).toMatchObject({ state: DOWN, ifindex: 0 });
  });

  it("keeps its cell when it is named again before", async () => {
    host.removeVm("web1");
    host.settle();
    host.setVm({ name: "again", tap: "vnet1", mac: MACS[0]!, labels: ["web"] });
    host.settle();
    await sweep();
    expect(host.vm("again").vm).toMatchObject({ id: 1, state: UP });
  });

  it("is not taken for one by a sweep that began before", async () => {
    const slow = sweepInstance(host.object, {
      countOnly: true,
      cpuPercent: () => {
        // Once, when the pass is on its way.
        if (host.tables.guests.specs.get({ name: "web1" })) {
          host.removeVm("web1");
          host.settle();
        }
        return 100;
      },
    });
    await slow;
    expect(host.tables.guests.cellOf(1)).toBeDefined();
    await sweep();
    expect(host.tables.guests.cellOf(1)).toBeUndefined();
  });

  it("stays while a flow of its is closed: what repeats the last packets must find it", async () => {
    const key = putFlow(1, FLOW_STATE.CLOSED);
    host.removeVm("web1");
    host.settle();
    await sweep();
    expect(host.tables.guests.cellOf(1)).toBeDefined();
    host.tables.flows.table(4, "established").map.delete(key);
    await sweep();
    expect(host.tables.guests.cellOf(1)).toBeUndefined();
  });

  it("and those that are named have their flows counted right", async () => {
    for (const vm of [1, 2]) putFlow(vm);
    putFlow(2, FLOW_STATE.CLOSED);
    putFlow(2, FLOW_STATE.REPLIED);
    host.tables.guests.flows.set(host.vm("web3").cell, 77);
    await sweep();
    const counts = ["web1", "web2", "web3"].map((name) => host.tables.guests.flows.get(host.vm(name).cell));
    expect(counts).toEqual([1, 2, 0]);
  });
});

describe("a second time", () => {
  it("nothing is written", () => {
    threeVms();
    host.setService({ ...WEB, affinity_seconds: 60, associations: [{ client: "10.0.0.0/8", vm: "web1" }] });
    host.setService({
      name: "dns",
      address: "2001:db8::/64",
      protocol: "any",
      pool: [{ vm: "web2" }],
      answer: "vm:web2",
    });
    host.setVm({ name: "lost", tap: "vnet9" });
    expect(writesOf(() => host.settle())).toBeGreaterThan(0);
    expect(writesOf(() => expect(host.settle().lines).toEqual([]))).toBe(0);
  });

  it("nothing is written where there is nothing", () => {
    expect(writesOf(() => expect(host.settle()).toEqual({ lines: [], problems: [] }))).toBe(0);
  });

  it("what a killed one has not come to is done", () => {
    threeVms();
    host.setService(WEB);
    host.settle();
    host.removeService("web");
    const died = vi.spyOn(BpfMap.prototype, "delete").mockImplementation(() => {
      throw new Error("killed");
    });
    expect(() => host.settle()).toThrow("killed");
    died.mockRestore();
    host.settle();
    expect([...host.tables.services.index.keys()]).toEqual([]);
    expect(encode("service", host.tables.services.entries.get(1)!)).toEqual(encode("service", {}));
  });
});

describe("what a change does not concern", () => {
  it("stays where it is", () => {
    threeVms();
    host.setService(WEB);
    host.setService({ ...WEB, name: "same", port: 80 });
    host.setService({ ...WEB, name: "other", port: 81, pool: [{ vm: "web1" }] });
    host.settle();
    // The same content is there once.
    const shared = host.poolOf("web");
    expect(host.poolOf("same")).toBe(shared);
    const other = host.poolOf("other");
    const place = host.tables.services.pools.get(other)!;
    host.setService({ ...WEB, name: "more", port: 82, pool: [{ vm: "web2" }] });
    host.setOperatorState("web3", DOWN);
    host.settle();
    expect(host.poolOf("other")).toBe(other);
    expect(host.tables.services.pools.get(other)).toEqual(place);
    // What was read a moment ago has not been written over.
    expect(host.poolOf("web")).not.toBe(shared);
    expect(new Set(host.cells(shared)).size).toBe(3);
  });
});

describe("what programs count", () => {
  it("is summed over the processors, of one cell or service alone", () => {
    const { guests, services } = host.tables;
    const put = (name: "vm_stats" | "service_stats", row: number, values: object[]): void => {
      const map = host.object.map(name);
      const bytes = Buffer.alloc(map.valueBytes);
      for (const [cpu, value] of values.entries()) encode(name, value, bytes, cpu * sizeOf(name));
      const key = Buffer.alloc(4);
      key.writeUInt32LE(row);
      map.update(key, bytes);
    };
    put("vm_stats", 7, [
      { flows: 1, request_packets: 10, response_bytes: 5, last_seen: 3 },
      { flows: 2, request_packets: 20, last_seen: 9 },
    ]);
    put("service_stats", 7, [
      { flows: 1, empty: 4 },
      { flows: 2, held: 1 },
    ]);
    expect(guests.stats(7)).toMatchObject({ flows: 3, request_packets: 30, response_bytes: 5, last_seen: 9 });
    expect(services.stats(7)).toMatchObject({ flows: 3, empty: 4, held: 1, reset: 0 });
    expect(guests.stats(8)).toMatchObject({ flows: 0, last_seen: 0 });
    guests.clearStats(7);
    services.clearStats(7);
    expect(guests.stats(7).flows + services.stats(7).flows).toBe(0);
  });

  it.each([
    ["nothing", 0, 0],
    ["half a line", 5, 16],
    ["a line", 0, 32],
    ["more than a line, at the end", POOL_LINES_MAX - 2, 33],
    ["the largest table", 100, 65_537],
  ])("and %s of a pool is read as it was written", (_, line, count) => {
    const { services } = host.tables;
    const cells = Uint16Array.from({ length: count }, (_, at) => (at * 7 + 1) % VMS_MAX);
    services.writeCells(line, cells);
    expect(services.readCells(line, count)).toEqual(cells);
    services.writeCells(line, new Uint16Array(count));
  });
});

describe("many", () => {
  const VMS = 100;

  function manyVms(): void {
    for (let number = 0; number < VMS; number++) {
      const mac = `52:54:00:00:01:${number.toString(16).padStart(2, "0")}`;
      host.addTap(101 + number, `vnet${number}`);
      host.see(101 + number, mac, number + 1);
      host.setVm({ name: `vm${number}`, tap: `vnet${number}`, mac, labels: [`l${number % 10}`] });
    }
  }

  function addresses(count: number): string[] {
    return Array.from(
      { length: count },
      (_, number) => `10.${number >> 16}.${(number >> 8) & 255}.${number & 255}`,
    );
  }

  it("1,000 services with pools of three each, and a VM that dies", async () => {
    manyVms();
    for (const [number, address] of addresses(1000).entries()) {
      const pool = [0, 7, 29].map((step) => ({ vm: `vm${(number + step * number) % VMS}` }));
      const unique = [...new Map(pool.map((member) => [member.vm, member])).values()];
      host.setService({ name: `s${number}`, address, port: 443, pool: unique });
    }
    const first = await inPieces(settleServicesInPieces(host.around));
    expect(first.problems).toEqual([]);
    expect(first.lines.at(-1)).toBe("984 more services: other VMs than before");
    expect(writesOf(() => host.settle())).toBe(0);
    host.removeTap(101 + 42);
    host.settle();
    const dead = host.vm("vm42").cell;
    for (let number = 0; number < 1000; number++) {
      const pool = host.poolOf(`s${number}`);
      if (pool !== 0) expect(host.cells(pool)).not.toContain(dead);
    }
  });

  it("10,000 services of all VMs of a label", async () => {
    manyVms();
    for (const [number, address] of addresses(10_000).entries()) {
      host.setService({ name: `s${number}`, address, port: 443, pool: [{ label: `l${number % 10}` }] });
    }
    const { problems } = await inPieces(settleServicesInPieces(host.around));
    expect(problems).toEqual([]);
    expect(new Set(Array.from({ length: 10_000 }, (_, number) => host.poolOf(`s${number}`))).size).toBe(10);
    expect(writesOf(() => host.settle())).toBe(0);
    for (const number of [0, 1, 255, 256, 9999]) {
      const address = addresses(10_000)[number]!;
      expect(serviceOf(address, TCP, 443)).toBe(host.indexOf(`s${number}`));
    }
    for (let number = 0; number < 10_000; number++) host.removeService(`s${number}`);
    host.settle();
    expect([...host.tables.services.index.keys()]).toEqual([]);
  });

  it("pools that have no room at their best size are smaller, and the others stay as they are", () => {
    host = new ServiceHost({ pool_lines: 256 });
    manyVms();
    const pool = (first: number) => [0, 1, 2].map((step) => ({ vm: `vm${first + step}` }));
    for (let number = 0; number < 8; number++) {
      host.setService({ name: `s${number}`, address: `10.0.0.${number}`, pool: pool(number) });
    }
    expect(host.settle().problems).toEqual([]);
    expect(host.tables.services.pools.get(host.poolOf("s0"))!.size).toBe(509);
    for (let number = 8; number < 16; number++) {
      host.setService({ name: `s${number}`, address: `10.0.0.${number}`, pool: pool(number) });
    }
    expect(host.settle().problems).toEqual([]);
    expect(host.tables.services.pools.get(host.poolOf("s0"))!.size).toBe(251);
    expect(writesOf(() => host.settle())).toBe(0);
  });
});

it("entries keep what was observed, and lose it with what it was observed of", () => {
  host.addTap(101, "vnet1");
  host.see(101, MACS[0]!, 9);
  host.setVm({ name: "web1", tap: "vnet1" }, 0, ORIGIN.MANUAL);
  host.settle();
  const { specs } = host.tables.guests;
  expect(specs.get({ name: "web1" })).toMatchObject({ id: 9, ifindex: 101, origin: ORIGIN.MANUAL });
  host.setVm({ name: "web1", tap: "vnet1", labels: ["a"] });
  expect(specs.get({ name: "web1" })).toMatchObject({ id: 9, ifindex: 101, origin: ORIGIN.CONFIG });
  host.setVm({ name: "web1", tap: "vnet2" });
  expect(specs.get({ name: "web1" })).toMatchObject({ id: 0, ifindex: 0, mac: Buffer.alloc(6) });
});
