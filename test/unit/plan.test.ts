// SPDX-License-Identifier: Apache-2.0
// Which actions lead from what is there to what is wanted: by table, and for random hosts and configurations.

import { describe, expect, test } from "vitest";
import { ENCAPSULATION_FLAG, INTERFACE_FLAG, LAST_HOP_KIND, ORIGIN, ROLE } from "../../src/abi/layout.gen.ts";
import { prepare, settingsOf, takenSlots } from "../../src/controller/attachInterface.ts";
import { desiredOf } from "../../src/controller/desired.ts";
import { deviceFromConfig } from "../../src/controller/devices.ts";
import type { InterfaceLastHops } from "../../src/controller/lastHopFacts.ts";
import type { Observed } from "../../src/controller/observe.ts";
import { attachAction, type Plan, plan, type TableAction } from "../../src/controller/plan.ts";
import type { Link } from "../../src/kernel/rtnetlink.ts";
import type { Role } from "../../src/ops/types.ts";
import { Random } from "../kernel/support/random.ts";
import {
  byName,
  carryOut,
  config,
  empty,
  type HostOptions,
  host,
  link,
  onHost,
} from "../support/planModel.ts";

function planFor(text: string, observed: Observed): Plan<TableAction> {
  return plan(desiredOf(config(text), observed.host, observed.guests), observed);
}

/** What the configuration makes of it; throws if something fails. */
function applied(text: string, observed: Observed): Observed {
  const { actions, failed } = planFor(text, observed);
  expect(failed).toEqual([]);
  return carryOut(observed, actions);
}

function attachedByHand(observed: Observed, name: string, role: Role): Observed {
  const own = observed.host.links.find((one) => one.name === name)!;
  const unit = prepare(observed, own, settingsOf({}, role), takenSlots(observed));
  return carryOut(observed, [attachAction(unit)!]);
}

const told = (actions: readonly TableAction[]) =>
  actions
    .filter(({ kind }) => kind !== "control" && kind !== "zone")
    .map(({ kind, object }) => `${kind} ${object}`);

const UP = link(10, "up0");
const TAP = link(20, "vnet0", { kind: "tun" });
const TWO = "{uplinks: [{name: 'up*'}], taps: [{name: 'vnet*'}]}";

function lastHops(ifindex: number, more: Partial<InterfaceLastHops>): Pick<Observed, "lastHops"> {
  const own = { count: 1, sources: [], up: [], down: [], ...more };
  const none = { count: 0, sources: [], up: [], down: [] };
  return { lastHops: { of: (asked) => (asked === ifindex ? own : none), slots: new Set() } };
}

describe("a plan", () => {
  test("attaches what is there, uplinks first", () => {
    const { actions } = planFor(TWO, empty(host([TAP, UP])));
    expect(told(actions)).toEqual(["attach up0", "attach vnet0"]);
    expect(actions.map(({ text, config }) => [text, config]).slice(-2)).toEqual([
      ["up0: attach as uplink by tcx, zone 0", "uplinks[0]"],
      ["vnet0: attach as tap by tcx, zone 0, policy enforce", "taps[0]"],
    ]);
  });

  test("does nothing when all is as wanted", () => {
    const there = applied(TWO, empty(host([TAP, UP])));
    expect(planFor(TWO, there).actions).toEqual([]);
  });

  const changes: [what: string, config: string, text: RegExp, key: string][] = [
    ["a policy", "taps: [{name: vnet0, policy: observe}]", /policy observe/, "taps[0]"],
    ["a zone", "{zones: {red: 7}, taps: [{name: vnet0, zone: red}]}", /zone 7 instead of 0/, "taps[0]"],
    ["a role", "uplinks: [{name: vnet0}]", /role uplink/, "uplinks[0]"],
    ["a budget", "taps: [{name: vnet0, vms_max: 3}]", /at most 3 VMs/, "taps[0]"],
    ["exclusions", "taps: [{name: vnet0, exclude: [{port: 22}]}]", /exclusions/, "taps[0]"],
    [
      "its place in the file",
      "taps: [{name: x}, {name: vnet0}]",
      /taps\[1\] in the configuration now/,
      "taps[1]",
    ],
  ];
  test.each(changes)("changes %s", (_, text, expected, key) => {
    const there = applied("taps: [{name: vnet0}]", empty(host([TAP])));
    const { actions } = planFor(text, there);
    expect(told(actions)).toEqual(["change vnet0"]);
    const change = actions.find(({ kind }) => kind === "change")!;
    expect(change.text).toMatch(expected);
    expect(change.config).toBe(key);
    expect(told(planFor(text, carryOut(there, actions)).actions)).toEqual([]);
  });

  const drifts: [what: string, drift: (item: Observed["interfaces"][number]) => object, text: RegExp][] = [
    ["a program that is gone", () => ({ attachments: [] }), /attached again, by tcx/],
    [
      "a second program",
      (item) => ({ attachments: [...item.attachments, { ...item.attachments[0]!, hook: "clsact" }] }),
      /one program less \(clsact\)/,
    ],
    [
      "a program that is not the pinned one",
      (item) => ({ attachments: [{ ...item.attachments[0]!, programId: 99 }] }),
      /the program that is pinned/,
    ],
    ["a cell that was emptied", () => ({ egress: undefined }), /replies can leave by it again/],
    ["a budget", (item) => ({ budget: { ...item.budget, vms_max: 1 } }), /at most 256 VMs/],
    ["a name", (item) => ({ entry: { ...item.entry, name: "old" } }), /was called old/],
    ["a MAC", (item) => ({ entry: { ...item.entry, mac: Buffer.alloc(6) } }), /what has changed/],
    [
      "a port that did not forward",
      (item) => ({ entry: { ...item.entry, flags: INTERFACE_FLAG.PORT_BLOCKED } }),
      /what has changed/,
    ],
  ];
  test.each(drifts)("repairs %s", (_, drift, text) => {
    const there = applied("taps: [{name: vnet0}]", empty(host([TAP])));
    const [item] = there.interfaces;
    const drifted = { ...there, interfaces: [{ ...item!, ...drift(item!) }] } as Observed;
    const { actions } = planFor("taps: [{name: vnet0}]", drifted);
    expect(told(actions)).toEqual(["change vnet0"]);
    expect(actions[0]!.text).toMatch(text);
  });

  test("says what fails, and goes on", () => {
    const observed = { ...empty(host([UP, TAP])), vlanStripping: () => ["rx-vlan-hw-parse"] };
    const { actions, failed } = planFor(
      "{uplinks: [{name: up0, mode: native}], taps: [{name: vnet0}]}",
      observed,
    );
    expect(told(actions)).toEqual(["attach vnet0"]);
    expect(failed).toEqual([
      expect.objectContaining({ object: "up0", config: "uplinks[0]", code: "E_MODE" }),
    ]);
  });

  test("leaves an interface whose change is refused as it is", () => {
    const there = applied("uplinks: [{name: up0}]", empty(host([UP])));
    const foreign = onHost(there, host([{ ...UP, xdp: { mode: "native", programId: 5 } }]));
    const { actions, failed } = planFor("uplinks: [{name: up0, mode: native}]", foreign);
    expect(told(actions)).toEqual([]);
    expect(failed).toEqual([expect.objectContaining({ code: "E_FOREIGN" })]);
  });

  test("detaches what has become a slave of a bond", () => {
    const there = applied("uplinks: [{name: up0}]", empty(host([UP])));
    const bond = link(5, "bond0", { kind: "bond" });
    const enslaved = onHost(there, host([bond, { ...UP, master: 5, masterKind: "bond" }]));
    const { actions, failed } = planFor("uplinks: [{name: up0}]", enslaved);
    expect(told(actions)).toEqual(["detach up0"]);
    expect(failed).toEqual([expect.objectContaining({ code: "E_INTERFACE" })]);
  });
});

describe("the mode auto", () => {
  const NIC = link(10, "up0", { kind: null, parentDevice: "0000:01:00.0" });
  const text = "uplinks: [{name: up0}]";

  test("stays with TC where a driver refused XDP", () => {
    const there = applied(text, { ...empty(host([NIC])), vlanStripping: () => ["rx-vlan-hw-parse"] });
    expect(there.interfaces[0]!.attachments[0]!.hook).toBe("tcx");
    expect(planFor(text, { ...there, vlanStripping: () => [] }).actions).toEqual([]);
  });

  test("leaves XDP when tags are stripped by now", () => {
    const there = applied(text, empty(host([NIC])));
    expect(there.interfaces[0]!.attachments[0]!.hook).toBe("xdp_native");
    const { actions } = planFor(text, { ...there, vlanStripping: () => ["rx-vlan-hw-parse"] });
    expect(actions.map((action) => action.text)).toEqual(["up0: another hook, by tcx instead of xdp_native"]);
  });
});

describe("what was attached by hand", () => {
  test("is never removed by the configuration", () => {
    const there = attachedByHand(empty(host([UP, TAP])), "vnet0", "tap");
    expect(told(planFor("uplinks: []", there).actions)).toEqual([]);
    expect(told(planFor("uplinks: [{name: up0}]", there).actions)).toEqual(["attach up0"]);
  });

  test("becomes the configuration's when that names it, and then goes with it", () => {
    const there = attachedByHand(empty(host([TAP])), "vnet0", "tap");
    const { actions } = planFor("taps: [{name: vnet0}]", there);
    expect(actions.map((action) => action.text)).toContain(
      "vnet0: by the configuration from now on (taps[0])",
    );
    const after = carryOut(there, actions);
    expect(byName(after, "vnet0")).toMatchObject({ origin: ORIGIN.CONFIG, config_index: 0 });
    expect(told(planFor("taps: []", after).actions)).toEqual(["detach vnet0"]);
  });

  test("is kept in repair", () => {
    const there = attachedByHand(empty(host([TAP])), "vnet0", "tap");
    const moved = onHost(there, host([{ ...TAP, name: "renamed", mac: "02:00:00:00:00:99" }]));
    expect(told(planFor("taps: []", moved).actions)).toEqual(["change renamed"]);
  });
});

describe("an interface that is gone", () => {
  const there = applied(TWO, empty(host([UP, TAP])));

  test("is forgotten if it was a tap, or an uplink without last hops", () => {
    const { actions } = planFor(TWO, onHost(there, host([])));
    expect(told(actions)).toEqual(["gone up0", "gone vnet0"]);
    expect(actions.map((action) => action.text)).toEqual([
      "up0 is gone: forgotten",
      "vnet0 is gone: forgotten",
    ]);
  });

  test("is kept if it was an uplink with last hops, and only once", () => {
    const without = { ...onHost(there, host([TAP])), ...lastHops(10, {}) };
    const { actions } = planFor(TWO, without);
    expect(actions).toMatchObject([{ kind: "gone", object: "up0", keep: true }]);
    const after = carryOut(without, actions);
    expect(planFor(TWO, after).actions).toEqual([]);
    // Its last hops were released.
    expect(planFor(TWO, { ...after, ...lastHops(10, { count: 0 }) }).actions).toMatchObject([
      { kind: "gone", keep: false },
    ]);
    // Nobody waits for it any more.
    expect(planFor("taps: [{name: 'vnet*'}]", after).actions).toMatchObject([{ kind: "gone", keep: false }]);
  });

  test.each([
    ["after it was missed", true],
    ["between two looks", false],
  ])("takes its last hops up again when it returns %s", (_, missed) => {
    const without = { ...onHost(there, host([TAP])), ...lastHops(10, {}) };
    const before = missed ? carryOut(without, planFor(TWO, without).actions) : without;
    const back = onHost(before, host([TAP, link(77, "up0")]));
    const { actions } = planFor(TWO, { ...back, ...lastHops(10, {}) });
    expect(told(actions)).toEqual(missed ? ["attach up0"] : ["gone up0", "attach up0"]);
    const attach = actions.at(-1) as Extract<TableAction, { kind: "attach" }>;
    expect(attach.unit.now.returned?.ifindex).toBe(10);
    expect(attach.unit.wanted.slot).toBe(byName(there, "up0")!.slot);
    const after = carryOut(back, actions);
    expect(after.interfaces.map(({ entry }) => entry.ifindex).sort()).toEqual([20, 77]);
    expect(told(planFor(TWO, after).actions)).toEqual([]);
  });

  test("and was attached by hand is attached again as it was", () => {
    const manual = attachedByHand(empty(host([UP])), "up0", "uplink");
    const without = { ...onHost(manual, host([])), ...lastHops(10, {}) };
    const after = carryOut(without, planFor("uplinks: []", without).actions);
    const back = { ...onHost(after, host([link(77, "up0")])), ...lastHops(10, {}) };
    const { actions } = planFor("uplinks: []", back);
    expect(told(actions)).toEqual(["attach up0"]);
    expect(byName(carryOut(back, actions), "up0")).toMatchObject({ ifindex: 77, origin: ORIGIN.MANUAL });
  });

  test("is forgotten when another attached interface has taken its name", () => {
    const two = applied("uplinks: [{name: 'up*'}]", empty(host([UP, link(11, "up1")])));
    const without = { ...onHost(two, host([link(11, "up1")])), ...lastHops(10, {}) };
    const after = carryOut(without, planFor("uplinks: [{name: 'up*'}]", without).actions);
    expect(after.interfaces.map(({ entry }) => entry.ifindex).sort()).toEqual([10, 11]);
    const renamed = { ...onHost(after, host([link(11, "up0")])), ...lastHops(10, {}) };
    const { actions } = planFor("uplinks: [{name: 'up*'}]", renamed);
    expect(told(actions)).toEqual(["gone up0", "change up0"]);
    const settled = carryOut(renamed, actions);
    expect(settled.interfaces.map(({ entry }) => entry.ifindex)).toEqual([11]);
  });

  test("and returns as a tap leaves its last hops alone", () => {
    const without = { ...onHost(there, host([TAP])), ...lastHops(10, {}) };
    const text = "taps: [{name: up0}, {name: 'vnet*'}]";
    const { actions } = planFor(text, onHost(without, host([TAP, link(77, "up0")])));
    const attach = actions.find(({ kind }) => kind === "attach") as Extract<TableAction, { kind: "attach" }>;
    expect(attach.unit.now.returned).toBeUndefined();
  });
});

describe("an uplink's last hops", () => {
  const text = "uplinks: [{name: up0}]";
  const there = applied(text, empty(host([UP])));
  const down = (flags: Partial<Link["flags"]>) =>
    onHost(there, host([{ ...UP, flags: { ...UP.flags, ...flags } }]));

  const rows: [
    what: string,
    flags: Partial<Link["flags"]>,
    lastHops: Partial<InterfaceLastHops>,
    state: string[],
  ][] = [
    ["are marked when it is down", { up: false }, { up: [3] }, ["down"]],
    ["are marked when it has no carrier", { running: false }, { up: [3] }, ["down"]],
    ["are marked once", { up: false }, { down: [3] }, []],
    ["are up again when it is", {}, { down: [3] }, ["up"]],
    ["are left alone while it is up", {}, { up: [3] }, []],
  ];
  test.each(rows)("%s", (_, flags, own, states) => {
    const { actions } = planFor(text, { ...down(flags), ...lastHops(10, own) });
    expect(actions.map((action) => action.kind === "last-hops" && action.state)).toEqual(states);
  });

  test("are not marked where no daemon would see it come up", () => {
    const alone = { ...down({ up: false }), followed: false };
    expect(planFor(text, { ...alone, ...lastHops(10, { up: [3] }) }).actions).toEqual([]);
    const { actions } = planFor(text, { ...alone, ...lastHops(10, { down: [3] }) });
    expect(actions).toMatchObject([{ kind: "last-hops", state: "up" }]);
  });

  test("are made anew when the host's MAC is another", () => {
    const own = { slot: 1, sourceMac: Buffer.from("02000000000a", "hex"), ...ETHERNET };
    const other = { ...own, sourceMac: Buffer.from("020000000098", "hex") };
    expect(planFor(text, { ...there, ...lastHops(10, { sources: [own] }) }).actions).toEqual([]);
    const { actions } = planFor(text, { ...there, ...lastHops(10, { sources: [own, other] }) });
    expect(actions.map((action) => action.text)).toEqual(["up0: last hops with the present way back"]);
  });
});

const ETHERNET = { kind: LAST_HOP_KIND.ETHERNET, mark: 0, encapsulated: 0, labels: [] };

describe("bridges", () => {
  const bridge = link(3, "br0", { kind: "bridge" });
  const vlan = link(4, "br0.5", { kind: "vlan", lower: 3 });
  const port = { ...TAP, master: 3, masterKind: "bridge" };
  const text = "taps: [{name: vnet0}]";

  test("come with their taps and go with the last", () => {
    const there = applied(text, empty(host([bridge, port])));
    expect([...there.bridges.keys()]).toEqual([3]);
    expect(told(planFor("taps: []", there).actions)).toEqual(["detach vnet0", "bridge br0"]);
    expect(told(planFor(text, onHost(there, host([bridge, TAP]))).actions)).toEqual([
      "change vnet0",
      "bridge br0",
    ]);
  });

  test("follow their MAC and the VLAN interfaces on them", () => {
    const there = applied(text, empty(host([bridge, port])));
    const { actions } = planFor(text, onHost(there, host([bridge, vlan, port])));
    expect(actions.map((action) => action.text)).toEqual(["vnet0: bridge br0.5 as it is now"]);
    const after = carryOut(there, actions);
    const other = onHost(after, host([{ ...bridge, mac: "02:00:00:00:00:bb" }, vlan, port]));
    const again = planFor(text, other).actions;
    expect(told(again)).toEqual(["change vnet0"]);
    expect(told(planFor(text, carryOut(other, again)).actions)).toEqual([]);
  });
});

describe("remains", () => {
  const stray = (kind: "orphan" | "foreign"): Partial<Observed> => ({
    strayFilters: [{ ifindex: 20, programId: 5, kind }],
  });

  test("of an instance that is gone are removed; a filter of somebody else's stays", () => {
    const observed = empty(host([TAP]));
    expect(told(planFor("taps: []", { ...observed, ...stray("orphan") }).actions)).toEqual(["repair vnet0"]);
    expect(told(planFor("taps: []", { ...observed, ...stray("foreign") }).actions)).toEqual([]);
  });

  test("at the place of ours are replaced there, and elsewhere removed when ours works", () => {
    const observed = { ...empty(host([TAP])), ...stray("orphan") };
    expect(told(planFor("taps: [{name: vnet0}]", observed).actions)).toEqual([
      "attach vnet0",
      "repair vnet0",
    ]);
    const { actions } = planFor("taps: [{name: vnet0}]", { ...observed, tcx: false });
    expect(told(actions)).toEqual(["attach vnet0"]);
    expect((actions.at(-1) as Extract<TableAction, { kind: "attach" }>).unit.now.orphan).toBe(true);
  });

  test("of an interrupted change come first", () => {
    const left = { name: "tap-20_new", role: "tap" as const, ifindex: 20, unfinished: true };
    const observed = { ...empty(host([TAP])), unfinished: [left] };
    expect(told(planFor("taps: [{name: vnet0}]", observed).actions)).toEqual([
      "repair vnet0",
      "attach vnet0",
    ]);
  });
});

describe("devices", () => {
  const one = 'devices: [{name: a, macs: ["02:00:00:00:00:01"]}]';
  const byHand = (observed: Observed, text: string): Observed => {
    const [given] = config(text).devices;
    const device = { ...deviceFromConfig(given!, 0), origin: ORIGIN.MANUAL };
    const name = given!.name;
    return carryOut(observed, [{ kind: "device-add", object: name, text: "", config: null, name, device }]);
  };

  test("come, change and go with the configuration", () => {
    const there = applied(one, empty(host([])));
    expect(told(planFor(one, there).actions)).toEqual([]);
    const other = 'devices: [{name: a, macs: ["02:00:00:00:00:02"]}]';
    expect(told(planFor(other, there).actions)).toEqual(["device-change a"]);
    expect(told(planFor("devices: []", there).actions)).toEqual(["device-remove a"]);
  });

  test("that were entered by hand stay, unless the configuration has one of that name", () => {
    const there = byHand(empty(host([])), one);
    expect(told(planFor("devices: []", there).actions)).toEqual([]);
    const { actions } = planFor(one, there);
    expect(actions.map(({ text }) => text)).toContain("device a: by the configuration from now on");
    expect(told(planFor("devices: []", carryOut(there, actions)).actions)).toEqual(["device-remove a"]);
  });

  test("that share a MAC with one entered by hand are refused", () => {
    const there = byHand(empty(host([])), one);
    const { actions, failed } = planFor('devices: [{name: b, macs: ["02:00:00:00:00:01"]}]', there);
    expect(told(actions)).toEqual([]);
    expect(failed).toEqual([expect.objectContaining({ code: "E_DEVICE", config: "devices[0]" })]);
  });
});

// Random hosts

const NAMES = ["up0", "up1", "eth0", "vnet0", "vnet1", "vnet2", "tap0", "br0", "bond0"];
const PATTERNS = [...NAMES, "up*", "vnet?", "*0", "*", "v*1", "eth?"];

function randomHost(random: Random): ReturnType<typeof host> {
  const links: Link[] = [link(3, "br0", { kind: "bridge" }), link(4, "bond0", { kind: "bond" })];
  for (const name of NAMES.slice(0, -2)) {
    if (random.chance(4)) continue;
    const master = random.pick([null, null, 3, 4]);
    links.push(
      link(10 + random.below(30) * 10 + NAMES.indexOf(name), name, {
        kind: random.pick(["veth", "tun", null]),
        parentDevice: random.chance(3) ? "0000:01:00.0" : null,
        master,
        masterKind: master === 3 ? "bridge" : master === 4 ? "bond" : null,
        portState: master === 3 ? random.pick(["forwarding", "blocking"]) : null,
        flags: { up: !random.chance(5), running: !random.chance(5), loopback: false },
      }),
    );
  }
  if (random.chance(3)) links.push(link(5, "br0.7", { kind: "vlan", lower: 3 }));
  const options: HostOptions = random.chance(2)
    ? { domains: [{ name: "web", interfaces: [{ target: random.pick(NAMES), mac: null }] }] }
    : {};
  return host(links, options);
}

/** No two entries with the same name, which the check of a file refuses. */
function randomConfig(random: Random): string {
  const patterns = [...new Set(Array.from({ length: random.below(6) }, () => random.pick(PATTERNS)))];
  const cut = random.below(patterns.length + 1);
  const zone = () => random.pick(["default", "red"]);
  const uplink = (name: string) => ({
    name,
    zone: zone(),
    mode: random.pick(["auto", "tc", "generic", "native"]),
    relearn: random.pick(["follow", "never"]),
    last_hops_max: 1 + random.below(9),
  });
  const tap = (name: string) => ({
    name,
    zone: zone(),
    policy: random.pick(["enforce", "observe", "off"]),
    exclude: random.chance(3) ? [{ port: 1 + random.below(9) }] : [],
  });
  const devices = ["a", "b"].filter(() => random.chance(2));
  return JSON.stringify({
    zones: { red: 1 + random.below(3) },
    uplinks: patterns.slice(0, cut).map(uplink),
    taps: [...patterns.slice(cut).map(tap), ...(random.chance(3) ? [{ domain: "web" }] : [])],
    devices: devices.map((name) => ({ name, macs: [`02:00:00:00:00:0${name}`] })),
    timeouts: { tcp: 10 + random.below(3) },
  });
}

function randomState(random: Random): Observed {
  let state = empty(randomHost(random));
  for (let round = random.below(3); round >= 0; round--) {
    state = carryOut(state, planFor(randomConfig(random), state).actions);
    const free = state.host.links.filter(
      (own) =>
        !state.interfaces.some(({ entry }) => entry.ifindex === own.ifindex) && /^(up|vnet)/.test(own.name),
    );
    if (free.length > 0) {
      state = attachedByHand(state, random.pick(free).name, random.pick(["uplink", "tap"]));
    }
    state = onHost(state, randomHost(random));
  }
  return state;
}

describe("for random hosts and configurations", () => {
  test.each(Array.from({ length: 300 }, (_, seed) => seed))("seed %i", (seed) => {
    const random = new Random(seed);
    const before = randomState(random);
    const text = randomConfig(random);
    const { actions, failed } = planFor(text, before);
    const about = actions.filter(({ kind }) => kind === "attach" || kind === "change" || kind === "detach");
    // Each interface has one action at most, and what was attached by hand is not detached.
    expect(new Set(about.map(({ object }) => object)).size).toBe(about.length);
    for (const action of actions) {
      if (action.kind === "detach") expect(action.observed.entry.origin).toBe(ORIGIN.CONFIG);
    }
    const after = carryOut(before, actions);
    // Idempotent, also about what is refused.
    const again = planFor(text, after);
    expect(again.actions.map((action) => action.text)).toEqual([]);
    expect(again.failed.map(({ message }) => message)).toEqual(failed.map(({ message }) => message));
    // Slots are nobody else's.
    const slots = after.interfaces.map(({ entry }) => entry.slot);
    expect(new Set(slots).size).toBe(slots.length);
    // What is attached is there, and every bridge has a tap.
    for (const { entry, link: own } of after.interfaces) expect(own?.name).toBe(entry.name);
    for (const { ifindex } of after.bridges.values()) {
      const taps = after.interfaces.filter(({ entry }) => entry.role === ROLE.TAP && entry.l3_ifindex === 3);
      expect(taps.length, `taps of ${ifindex}`).toBeGreaterThan(0);
    }
  });
});

describe("the way back of an uplink", () => {
  const TUN = link(11, "gre1", { kind: "gre", ethernet: false, bareIp: true, mac: null, mtu: 1476 });
  const VX = link(12, "vx0", { kind: "vxlan", external: true, mtu: 1450 });
  const text = "{uplinks: [{name: gre1}, {name: vx0, mtu: 1400, via: stack, mark: 17}]}";
  const { NO_LINK_LAYER, TUNNEL_KEY, CLAMP_MSS, VIA_STACK } = INTERFACE_FLAG;

  test("is entered with what the host says of it", () => {
    const there = applied(text, empty(host([TUN, VX])));
    expect(byName(there, "gre1")).toMatchObject({ flags: NO_LINK_LAYER | CLAMP_MSS, mtu: 1476, mark: 0 });
    expect(byName(there, "vx0")).toMatchObject({
      flags: TUNNEL_KEY | CLAMP_MSS | VIA_STACK,
      mtu: 1400,
      mark: 17,
    });
    expect(planFor(text, there).actions).toEqual([]);
  });

  test("follows the interface's MTU, unless another is configured; then that", () => {
    const there = applied(text, empty(host([TUN, VX])));
    const narrower = onHost(
      there,
      host([
        { ...TUN, mtu: 1300 },
        { ...VX, mtu: 1300 },
      ]),
    );
    expect(planFor(text, narrower).actions.map((action) => action.text)).toEqual([
      "gre1: MTU 1300 instead of 1476",
    ]);
    const free = text.replace(" mtu: 1400,", "");
    expect(planFor(free, there).actions.map((action) => action.text)).toEqual([
      "vx0: MTU 1450 instead of 1400",
    ]);
  });

  test("of one that was attached by hand stays as it was asked for", () => {
    const observed = empty(host([VX]));
    const asked = { ...settingsOf({}, "uplink"), mtu: 1400, mark: 3 };
    const unit = prepare(observed, VX, asked, takenSlots(observed));
    const there = carryOut(observed, [attachAction(unit)!]);
    const later = onHost(there, host([{ ...VX, mtu: 1300 }]));
    expect(told(planFor("{}", later).actions)).toEqual([]);
    expect(settingsOf(later.interfaces[0]!, "uplink")).toMatchObject({
      mtu: 1400,
      mark: 3,
      flags: CLAMP_MSS,
    });
  });

  test("an entry of a version that knew none of it has the defaults", () => {
    const there = attachedByHand(empty(host([UP])), "up0", "uplink");
    const [item] = there.interfaces;
    const old = { ...item!, entry: { ...item!.entry, flags: INTERFACE_FLAG.PICKUP_NO, mtu: 0 } };
    const { actions } = planFor("{}", { ...there, interfaces: [old] });
    expect(actions.map((action) => action.text)).toContain("up0: clamps the MSS, MTU 1500");
  });

  test("its last hops follow when it changes", () => {
    const there = applied("{uplinks: [{name: up0}]}", empty(host([UP])));
    const own = { slot: 1, sourceMac: Buffer.from("02000000000a", "hex"), ...ETHERNET };
    const observed = { ...there, ...lastHops(10, { sources: [own] }) };
    const { actions } = planFor("{uplinks: [{name: up0, via: stack, mark: 5}]}", observed);
    expect(actions.map((action) => action.text)).toEqual([
      "up0: replies by the host's routing, mark 0x5, last hops with the present way back",
    ]);
  });
});

describe("what is beneath an uplink", () => {
  const VLAN = link(11, "up0.5", { kind: "vlan", lower: 10, vlanId: 5, vlanProtocol: 0x8100 });
  const both = "{uplinks: [{name: up0}, {name: up0.5}]}";
  const { LOWER } = INTERFACE_FLAG;

  test("is known whichever comes first, and repaired when it goes or is in another zone", () => {
    for (const text of [both, "{uplinks: [{name: up0.5}, {name: up0}]}"]) {
      const there = applied(text, empty(host([UP, VLAN])));
      expect(byName(there, "up0.5")).toMatchObject({
        lower_ifindex: 10,
        lower_tag: { proto: 0x8100, vid: 5 },
      });
      expect(byName(there, "up0.5")!.flags & LOWER).toBe(LOWER);
      expect(byName(there, "up0")!.flags & LOWER).toBe(0);
      expect(planFor(text, there).actions).toEqual([]);
    }
    const there = applied(both, empty(host([UP, VLAN])));
    const alone = planFor("{uplinks: [{name: up0.5}]}", there);
    expect(alone.actions.map((action) => action.text)).toEqual([
      "up0.5: none beneath it is attached any more, uplinks[0] in the configuration now",
      "up0: detach",
    ]);
    const apart = "{zones: {red: 7}, uplinks: [{name: up0, zone: red}, {name: up0.5}]}";
    expect(planFor(apart, there).actions.map((action) => action.text)).toContain(
      "up0.5: none beneath it is attached any more",
    );
  });

  test("a bridge that is attached itself is no drift of its taps", () => {
    const bridge = link(3, "br0", { kind: "bridge" });
    const port = { ...TAP, master: 3, masterKind: "bridge" };
    const text = "{uplinks: [{name: br0}], taps: [{name: vnet0}]}";
    const there = applied(text, empty(host([bridge, port])));
    expect(planFor(text, there).actions).toEqual([]);
  });
});

describe("label stacks", () => {
  const text = "mpls: {label_stacks: [{request: [100], mark: 1}, {request: [100, 200], mark: 2}]}";

  test("are entered, changed and removed as one unit", () => {
    const before = empty(host([]));
    const { actions } = planFor(text, before);
    expect(actions.find(({ kind }) => kind === "label-stacks")).toMatchObject({
      text: "label stacks: 100 has mark 0x1, 100/200 has mark 0x2",
      config: "mpls.label_stacks",
    });
    const there = carryOut(before, actions);
    expect(planFor(text, there).actions).toEqual([]);
    const other = planFor("mpls: {label_stacks: [{request: [100], mark: 3}]}", there);
    expect(other.actions.map((action) => action.text)).toEqual([
      "label stacks: 100 has mark 0x3, 100/200 removed",
    ]);
    expect(planFor("{}", there).actions).toHaveLength(1);
  });

  test("with another mark take their last hops along", () => {
    const there = carryOut(applied("{uplinks: [{name: up0}]}", empty(host([UP]))), []);
    const own = {
      slot: 1,
      sourceMac: Buffer.from("02000000000a", "hex"),
      kind: LAST_HOP_KIND.STACK,
      mark: 1,
    };
    const sources = [{ ...own, encapsulated: ENCAPSULATION_FLAG.LABELS, labels: [100, 0, 0, 0] }];
    const observed = { ...there, ...lastHops(10, { sources }) };
    const changed = "{uplinks: [{name: up0}], mpls: {label_stacks: [{request: [100], mark: 2}]}}";
    expect(planFor(changed, observed).actions.map(({ kind }) => kind)).toEqual(["label-stacks", "change"]);
    const same = changed.replace("mark: 2", "mark: 1");
    expect(planFor(same, observed).actions.map(({ kind }) => kind)).toEqual(["label-stacks"]);
  });
});

describe("a shared XFRM interface", () => {
  const XFRM = link(40, "ipsec0", { kind: "xfrm", external: true, ethernet: false, bareIp: true, mac: null });
  const there = attachedByHand(empty(host([XFRM])), "ipsec0", "uplink");
  const [item] = there.interfaces;
  const [inward, outward] = item!.xfrm;

  test("has a flag of its own, and needs programs of its own", () => {
    expect(item!.entry.flags & INTERFACE_FLAG.XFRM_ID).not.toBe(0);
    expect(item!.entry.flags & INTERFACE_FLAG.TUNNEL_KEY).toBe(0);
    expect(item!.xfrm.map(({ program }) => program)).toEqual(["xfrm_in", "xfrm_out"]);
    const { external: _, ...own } = XFRM;
    const fixed = attachedByHand(empty(host([own])), "ipsec0", "uplink");
    expect(fixed.interfaces[0]!.xfrm).toEqual([]);
    expect(fixed.interfaces[0]!.entry.flags & INTERFACE_FLAG.XFRM_ID).toBe(0);
  });

  test.each([
    ["all is there", [inward!, outward!], []],
    ["one is missing", [inward!], ["change ipsec0"]],
    ["the other is missing", [outward!], ["change ipsec0"]],
    ["one is dead", [inward!, { ...outward!, alive: false }], ["change ipsec0"]],
    ["one is a former build's", [{ ...inward!, programId: 7 }, outward!], ["change ipsec0"]],
  ])("%s", (_, xfrm, expected) => {
    const { actions } = planFor("{}", { ...there, interfaces: [{ ...item!, xfrm }] });
    expect(told(actions)).toEqual(expected);
    for (const action of actions.filter(({ kind }) => kind === "change")) {
      expect(action.text).toBe("ipsec0: the programs that follow its interface ids");
    }
  });
});
