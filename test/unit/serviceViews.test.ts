// SPDX-License-Identifier: Apache-2.0
// What is made of the tables of services and VMs for people: pools, why a VM is not up, and what explain says of a
// request.

import { beforeEach, describe, expect, test } from "vitest";
import { currentTick, decode, encode, secondsToTicks } from "../../src/abi/codec.ts";
import { CAUSE, FLOW_FLAG, FLOW_STATE, VM_STATE } from "../../src/abi/layout.gen.ts";
import { parseAddress, parseMac } from "../../src/addresses.ts";
import { explainService } from "../../src/ops/explainService.ts";
import { FlowView } from "../../src/ops/flowView.ts";
import { ServiceView, vmPlace, whyNotUp } from "../../src/ops/serviceView.ts";
import type { ServiceSpecInput } from "../../src/ops/types.ts";
import type { Flow } from "../../src/tables/index.ts";
import { parseTuple } from "../../src/tuple.ts";
import { link } from "../support/planModel.ts";
import { MAC, octets, ServiceGround, TAP, VIP, type VmAsked } from "../support/serviceGround.ts";

const { DRAIN, DOWN, UNKNOWN } = VM_STATE;
const CLIENT = "198.51.100.7";
const WWW = 3;

let ground: ServiceGround;
beforeEach(() => {
  ground = new ServiceGround();
});

const view = () => new ServiceView(ground.tables);

describe("a pool", () => {
  beforeEach(() => {
    ground.addVm("web1", 1, { labels: ["web", "new"] });
    ground.addVm("web2", 2, { labels: ["web"], state: DRAIN });
    ground.addVm("far", 3, { zone: 7, labels: ["web"] });
  });

  test.each<[what: string, pool: ServiceSpecInput["pool"], members: string[]]>([
    ["by name", [{ vm: "web2" }, { vm: "web1", weight: 5 }], ["web2 1", "web1 5"]],
    ["by label, of its zone only", [{ label: "web", weight: 2 }], ["web1 2 web", "web2 2 web"]],
    ["a name counts before a label", [{ label: "web", weight: 9 }, { vm: "web1" }], ["web1 1", "web2 9 web"]],
    ["of labels the first", [{ label: "new", weight: 3 }, { label: "web" }], ["web1 3 new", "web2 1 web"]],
    ["of two names the first", [{ vm: "web1", weight: 4 }, { vm: "web1" }], ["web1 4"]],
    ["a VM of another zone is not in it", [{ vm: "far" }, { vm: "web1" }], ["web1 1"]],
  ])("%s", (_what, pool, members) => {
    ground.addService("www", WWW, { pool });
    const known = view();
    const found = known.members(known.services[0]!);
    expect(found.map(({ vm, weight, label }) => [vm.name, weight, label ?? ""].join(" ").trim())).toEqual(
      members,
    );
  });

  test("who uses a VM, and which services have none", () => {
    ground.addService("www", WWW, { pool: [{ label: "web" }] });
    ground.addService("other", 4, {
      pool: [{ vm: "web2" }],
      associations: [{ client: "10.0.0.0/8", vm: "web1" }],
    });
    const known = view();
    expect(["web1", "web2", "far"].map((name) => known.servicesOf(name))).toEqual([
      ["other", "www"],
      ["other", "www"],
      [],
    ]);
    expect(known.empty().map(({ name }) => name)).toEqual(["other"]);
    expect(known.vmCounts()).toEqual({ total: 3, up: 2, drain: 1, down: 0, unknown: 0 });
  });

  test("flows show their VM's name", () => {
    const flows = new FlowView(ground.tables);
    expect(flows.vm(1)).toEqual({ vm: "web1", vm_mac: MAC(1) });
    ground.tables.vms.set({ zone: 0, mac: parseMac(MAC(9))! }, { id: 9 });
    expect(flows.vm(0)).toEqual({ vm: null, vm_mac: null });
    expect(new FlowView(ground.tables).vm(9)).toEqual({ vm: null, vm_mac: MAC(9) });
  });
});

describe("why a VM is not up", () => {
  const links = new Map(
    [link(TAP(1), "vnet1"), { ...link(TAP(2), "vnet2"), flags: { ...link(1, "x").flags, up: false } }].map(
      (one) => [one.ifindex, one],
    ),
  );

  test.each<[what: string, number: number, asked: VmAsked, why: RegExp | null]>([
    ["is nothing if it is", 1, {}, null],
    [
      "the operator drained it",
      1,
      { state: DRAIN, cause: CAUSE.OPERATOR },
      /^drained by hand: .* `lasthop vms up x`$/,
    ],
    ["the operator took it down", 1, { state: DOWN, cause: CAUSE.OPERATOR }, /^taken down by hand/],
    [
      "its tap is not there",
      0,
      { state: DOWN, cause: CAUSE.INTERFACE, tap: "gone0" },
      /^its tap gone0 is not there$/,
    ],
    [
      "nobody saw it",
      0,
      { state: DOWN, cause: CAUSE.INTERFACE, mac: MAC(5) },
      /^02:00:00:00:01:05 is on no attached tap of zone 0$/,
    ],
    [
      "its address is all that is known",
      0,
      { state: DOWN, cause: CAUSE.INTERFACE, address: "10.0.0.1" },
      /^neither its MAC address nor its tap is known yet$/,
    ],
    [
      "its tap is of another zone",
      1,
      { state: DOWN, cause: CAUSE.INTERFACE, zone: 7 },
      /^its tap vnet1 is not attached as a tap of zone 7$/,
    ],
    ["its tap is down", 2, { state: DOWN, cause: CAUSE.INTERFACE }, /^its tap vnet2 is down$/],
    [
      "its MAC is not known",
      0,
      { tap: "vnet1", state: DOWN, cause: CAUSE.NEIGHBOUR },
      /^its MAC address is not known yet$/,
    ],
    [
      "nobody answers",
      1,
      { state: DOWN, cause: CAUSE.NEIGHBOUR, address: "10.0.0.1" },
      /^10\.0\.0\.1 does not answer ARP$/,
    ],
    [
      "nobody answers IPv6",
      1,
      { state: DOWN, cause: CAUSE.NEIGHBOUR, address: "2001:db8::1" },
      /neighbour discovery$/,
    ],
    [
      "its check fails",
      1,
      {
        state: DOWN,
        cause: CAUSE.PROBE,
        address: "10.0.0.1",
        check: { kind: "http", port: 8080, path: "/up" },
      },
      /^its check fails: http:8080\/up of 10\.0\.0\.1$/,
    ],
    ["there is no place for it", 1, { state: DOWN }, /^other VMs have all places/],
    ["it was not looked at", 1, { state: UNKNOWN }, /^nothing is known of it yet$/],
  ])("%s", (_what, number, asked, why) => {
    ground.attach("vnet1", TAP(1));
    ground.attach("vnet2", TAP(2));
    ground.addVm("x", number, asked);
    const vm = view().vm("x")!;
    const said = whyNotUp(vm, vmPlace(ground.tables, links, vm));
    if (why === null) expect(said).toBeNull();
    else expect(said).toMatch(why);
  });
});

describe("explain, of requests:", () => {
  beforeEach(() => {
    ground.addVm("web1", 1);
    ground.addVm("web2", 2);
    ground.addVm("web3", 3, { state: DOWN, cause: CAUSE.PROBE });
  });

  function flowOf(vm: number, flags: number): Flow {
    const key = {
      family: 4 as const,
      remote: parseAddress(CLIENT)!,
      local: parseAddress(VIP)!,
      remotePort: 1,
      localPort: 443,
      zone: 0,
      proto: 6,
    };
    return {
      key,
      tier: "established",
      value: decode("flow", encode("flow", { vm, flags, state: FLOW_STATE.ESTABLISHED })),
    };
  }

  function ask(flow?: Flow) {
    const tuple = parseTuple(["tcp", `${CLIENT}:1`, `${VIP}:443`]);
    const mac = flow && MAC(flow.value.vm);
    return explainService({
      tables: ground.tables,
      tuple,
      zone: 0,
      flow,
      mac,
      nameOf: (ifindex) => `vnet${ifindex - TAP(0)}`,
    });
  }

  const pool = [{ vm: "web1" }, { vm: "web2" }, { vm: "web3" }];

  test.each<[what: string, spec: Partial<ServiceSpecInput>, text: string | null]>([
    ["another port", { port: 80 }, null],
    ["another zone", { port: 443, zone: 7 }, null],
    [
      "its port",
      { port: 443 },
      "The next request begins a flow of the service www, for one of 2 VMs (web1, web2), by maglev.",
    ],
    [
      "any port, another policy",
      { policy: "least-flows" },
      "The next request begins a flow of the service www, for one of 2 VMs (web1, web2), by least-flows.",
    ],
    [
      "one VM",
      { pool: [{ vm: "web2" }] },
      "The next request begins a flow of the service www, for web2, by maglev.",
    ],
    [
      "none that is up",
      { pool: [{ vm: "web3" }] },
      "The next request is dropped: no VM of the service www is up.",
    ],
    [
      "associated",
      {
        associations: [
          { client: "198.51.0.0/16", vm: "web1" },
          { client: "198.51.100.0/24", vm: "web2" },
        ],
      },
      "The next request begins a flow of the service www, for web2: its client is in 198.51.100.0/24.",
    ],
    [
      "associated with one that is down",
      { associations: [{ client: "0.0.0.0/0", vm: "web3" }] },
      "The next request begins a flow of the service www, for one of 2 VMs (web1, web2), by maglev.",
    ],
    [
      "associated clients are others",
      { associations: [{ client: "2001:db8::/32", vm: "web1" }] },
      "The next request begins a flow of the service www, for one of 2 VMs (web1, web2), by maglev.",
    ],
  ])("a new flow, %s", (_what, spec, text) => {
    ground.addService("www", WWW, { pool, ...spec });
    const { service, delivery } = ask();
    expect(delivery).toBe(text);
    expect(service?.name).toBe(text === null ? undefined : "www");
  });

  test("a client with a VM", () => {
    ground.addService("www", WWW, { pool, affinity_seconds: 60 });
    const client = octets(CLIENT);
    ground.tables.services.affinities.set({ client, service: WWW }, { vm: 2, last_seen: currentTick() });
    expect(ask().delivery).toBe(
      "The next request begins a flow of the service www, for web2, which had the client's last flow.",
    );
    const old = currentTick() - secondsToTicks(61);
    ground.tables.services.affinities.set({ client, service: WWW }, { vm: 2, last_seen: old });
    expect(ask().delivery).toContain("by maglev");
    ground.tables.services.affinities.set({ client, service: WWW }, { vm: 3, last_seen: currentTick() });
    expect(ask().delivery).toContain("by maglev");
  });

  test.each<[what: string, vm: number, spec: Partial<ServiceSpecInput> | null, text: RegExp]>([
    [
      "whose VM is up",
      1,
      {},
      /^Requests are handed to web1 \(02:00:00:00:01:01 on vnet1\), which the service www chose\.$/,
    ],
    [
      "of a service that has gone",
      1,
      null,
      /^Requests are handed to web1 .*, as a service that has gone chose it\.$/,
    ],
    ["whose VM is drained", 4, {}, /^Requests are handed to web4 .*; it gets no new flows/],
    [
      "whose VM is down",
      3,
      {},
      /^The flow's VM, web3 .*, is not up \(down, probe\): the next request goes to another, one of 2\.$/,
    ],
    [
      "whose VM is down, and all others",
      3,
      { pool: [{ vm: "web3" }] },
      /no VM of the service is up, so the next request is dropped\.$/,
    ],
    [
      "that is reset",
      3,
      { on_vm_down: "reset" },
      /the next segment of TCP is answered with a reset; of another protocol it goes to another, one of 2\.$/,
    ],
    [
      "that is held",
      3,
      { on_vm_down: "hold" },
      /requests are handed to it all the same, and dropped as long as it has no tap\.$/,
    ],
    ["whose VM is down, of a service that has gone", 3, null, /handed to it all the same/],
    [
      "whose VM nobody knows",
      9,
      {},
      /^The flow's VM, 02:00:00:00:01:09, is not up: the next request goes to another/,
    ],
  ])("a flow %s", (_what, vm, spec, text) => {
    ground.addVm("web4", 4, { state: DRAIN, cause: CAUSE.OPERATOR });
    if (spec) ground.addService("www", WWW, { pool, ...spec });
    expect(ask(flowOf(vm, FLOW_FLAG.SERVICE)).delivery).toMatch(text);
  });

  test("a flow that was there before the service", () => {
    ground.addService("www", WWW, { pool });
    expect(ask(flowOf(1, 0)).delivery).toMatch(/^The flow began before the service www/);
  });

  test("a flow that a VM opened: answers go to it only if it forwarded another's packet", () => {
    const { LOCAL_ORIGIN, TRANSPARENT } = FLOW_FLAG;
    expect(ask(flowOf(1, LOCAL_ORIGIN)).delivery).toBeNull();
    expect(ask(flowOf(1, LOCAL_ORIGIN | TRANSPARENT)).delivery).toMatch(
      /^Whichever uplink they come by, answers are handed to the VM that forwarded the connection, web1 \(.* on vnet1\)/,
    );
  });
});
