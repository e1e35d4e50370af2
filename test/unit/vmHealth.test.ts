// SPDX-License-Identifier: Apache-2.0
// From what is seen of a VM to its state: answers in a row, taps that go and come back, neighbours; who is asked when,
// and what is read anew.

import { afterEach, beforeEach, describe, expect, it, test, vi } from "vitest";
import { currentTick, decode, encode, type StructInput } from "../../src/abi/codec.ts";
import { CAUSE, ORIGIN, VM_STATE } from "../../src/abi/layout.gen.ts";
import { parseMac } from "../../src/addresses.ts";
import { vm } from "../../src/config/services.ts";
import { Rounds } from "../../src/controller/rounds.ts";
import { type NamedVm, vmSpecOf } from "../../src/controller/serviceSpec.ts";
import { vmReader } from "../../src/controller/vmReader.ts";
import { VmRoster } from "../../src/controller/vmRoster.ts";
import { VmStack } from "../../src/controller/vmStack.ts";
import { VmWatch } from "../../src/controller/vmWatch.ts";
import type { Link, Neighbour, NeighbourState } from "../../src/kernel/rtnetlink.ts";
import { ChangeReader, Tables } from "../../src/tables/index.ts";
import { memorySource } from "../support/tableSource.ts";

const [A, B] = ["02:00:00:00:00:0a", "02:00:00:00:00:0b"];
const ADDRESS = "192.0.2.9";
const TAP = 7;
const BRIDGE = 3;
const there = new Set([BRIDGE]);

type State = keyof typeof VM_STATE;
type Cause = keyof typeof CAUSE;
const is = (state: State, cause: Cause = "NONE") => ({ state: VM_STATE[state], cause: CAUSE[cause] });

/** An entry as settling leaves it: on its tap, and up. */
function named(given: object, found: StructInput<"vm_spec"> = {}): NamedVm {
  const config = vm.parse({ name: "web", ...given });
  const settled = { id: 5, ifindex: TAP, mac: parseMac(A)!, state: VM_STATE.UP };
  const input = { ...vmSpecOf(config, 0, ORIGIN.MANUAL), ...settled, ...found };
  return { name: "web", config, spec: decode("vm_spec", encode("vm_spec", input)) };
}

const http = { kind: "http", path: "/health", fall: 3, rise: 2 };
const checked = (found: StructInput<"vm_spec"> = {}) =>
  new VmWatch(named({ tap: "vnet0", address: ADDRESS, check: http }, found));
const plain = (found: StructInput<"vm_spec"> = {}) => new VmWatch(named({ tap: "vnet0" }, found));
const addressed = (found: StructInput<"vm_spec"> = {}) => new VmWatch(named({ address: ADDRESS }, found));

const neighbour = (state: NeighbourState, mac: string | null = null, ifindex = BRIDGE): Neighbour => ({
  ifindex,
  family: 4,
  address: ADDRESS,
  mac,
  state,
});

const judged = (watch: VmWatch, tapThere = true) => watch.judge(watch.finding(there, true), tapThere).now;

describe("a VM's check", () => {
  const answer = (watch: VmWatch, answers: string) => {
    for (const one of answers) {
      if (one === "0") watch.lost();
      else if (one === "?") watch.notAsked();
      else watch.checked(one === "+" ? null : "status 503");
    }
    return watch.finding(there, true).health;
  };

  it.each<[before: State, answers: string, health: State]>([
    // One that was never asked: the first answer counts.
    ["UNKNOWN", "", "UNKNOWN"],
    ["UNKNOWN", "+", "UP"],
    ["UNKNOWN", "-", "DOWN"],
    ["UNKNOWN", "-+", "DOWN"],
    ["UNKNOWN", "-++", "UP"],
    ["UNKNOWN", "+--", "UP"],
    ["UNKNOWN", "+---", "DOWN"],
    ["UP", "", "UP"],
    ["UP", "--", "UP"],
    ["UP", "--+--", "UP"],
    ["UP", "---", "DOWN"],
    ["DOWN", "", "DOWN"],
    ["DOWN", "+", "DOWN"],
    ["DOWN", "+-+", "DOWN"],
    ["DOWN", "++", "UP"],
    // Its tap goes and comes back.
    ["UP", "0", "DOWN"],
    ["UP", "0+", "UP"],
    ["UP", "0-+", "DOWN"],
    ["UP", "0-++", "UP"],
    // That nobody can ask says nothing, neither before nor after; its network may be there a little later.
    ["UP", "0??", "DOWN"],
    ["UP", "0???", "UNKNOWN"],
    ["UP", "0??+", "UP"],
    ["UP", "0??-???", "DOWN"],
    ["UP", "0???-", "DOWN"],
    ["UP", "?", "UP"],
    ["DOWN", "?", "DOWN"],
    ["UP", "---?", "DOWN"],
    ["UNKNOWN", "?", "UNKNOWN"],
  ])("that found it %s, then %j: %s", (before, answers, health) => {
    expect(answer(checked({ health: VM_STATE[before] }), answers)).toBe(VM_STATE[health]);
  });

  it("says what was asked and what came of it", () => {
    const watch = checked({ health: VM_STATE.UP });
    answer(watch, "---");
    expect(watch.finding(there, true)).toEqual({
      health: VM_STATE.DOWN,
      cause: CAUSE.PROBE,
      why: "GET /health: status 503",
    });
  });

  it("that is another one begins anew, and only then", () => {
    const watch = checked({ health: VM_STATE.UP });
    answer(watch, "--");
    const same = { tap: "vnet0", address: ADDRESS, check: http };
    expect(watch.change(named({ ...same, labels: ["new"] }, { state: VM_STATE.DRAIN }))).toBe(false);
    expect(answer(watch, "-")).toBe(VM_STATE.DOWN);
    expect(watch.change(named({ ...same, check: { ...http, path: "/" } }))).toBe(true);
    expect(watch.finding(there, true).health).toBe(VM_STATE.UNKNOWN);
    expect(watch.change(named({ ...same, check: { ...http, path: "/" }, address: "192.0.2.10" }))).toBe(true);
    expect(watch.asked).toMatchObject({ address: "192.0.2.10" });
    expect(watch.change(named({ tap: "vnet0" }))).toBe(true);
    expect(watch.asked).toBeNull();
    expect(answer(watch, "---")).toBe(VM_STATE.UNKNOWN);
  });
});

describe("a VM's address", () => {
  it("that is not answered for takes it down, once everybody was asked", () => {
    const watch = addressed();
    expect(watch.finding(there, true).health).toBe(VM_STATE.UNKNOWN);
    expect(watch.neighbourSeen(neighbour("reachable", A), 0)).toMatchObject({ ask: false, change: null });
    expect(watch.finding(there, true).health).toBe(VM_STATE.UP);
    expect(watch.neighbourSeen(neighbour("failed"), 1)).toMatchObject({ ask: true });
    expect(judged(watch)).toEqual(is("UP"));
    watch.neighbourSeen(neighbour("failed"), 2);
    expect(watch.finding(there, true)).toMatchObject({ why: `nobody answers for ${ADDRESS}` });
    expect(judged(watch)).toEqual(is("DOWN", "NEIGHBOUR"));
    watch.neighbourSeen(neighbour("reachable", A), 3);
    // Settling brings it up again, or in this case never took it down.
    expect(judged(watch)).toEqual(is("UP"));
  });

  it("counts for nothing where the host has no address to ask from, or nobody asks", () => {
    const watch = addressed();
    for (const _ of [1, 2]) watch.neighbourSeen(neighbour("failed"), 0);
    expect(watch.finding(there, false).health).toBe(VM_STATE.UNKNOWN);
    expect(watch.finding(there, true).health).toBe(VM_STATE.DOWN);
    expect(watch.finding(new Set([8]), true).health).toBe(VM_STATE.UNKNOWN);
  });

  it("that was not answered for when the daemon ended is down until it is", () => {
    const watch = addressed({ health: VM_STATE.DOWN, state: VM_STATE.DOWN, cause: CAUSE.PROBE });
    expect(watch.finding(there, true)).toMatchObject({ health: VM_STATE.DOWN, cause: CAUSE.NEIGHBOUR });
    watch.neighbourSeen(neighbour("reachable", A), 0);
    expect(watch.finding(there, true).health).toBe(VM_STATE.UP);
  });

  it("tells of another MAC, and of nobody else's", () => {
    const watch = addressed();
    expect(watch.neighbourSeen(neighbour("reachable", A), 0)?.change).toBeNull();
    expect(watch.neighbourSeen(neighbour("reachable", B), 1)?.change).toMatchObject({ from: A, to: B });
    expect(watch.neighbourSeen({ ...neighbour("reachable", A), address: "192.0.2.1" }, 2)).toBeNull();
    const [third, fourth] = [3, 4].map((at) =>
      watch.neighbourSeen(neighbour("reachable", at % 2 ? A : B), at),
    );
    expect(third?.change).toMatchObject({ outcome: "taken" });
    expect(fourth?.change).toMatchObject({ outcome: "taken" });
    // They take turns.
    expect(watch.neighbourSeen(neighbour("reachable", A), 5)?.change).toMatchObject({
      outcome: "held",
      began: true,
    });
    expect(watch.due(6)).toBeNull();
    expect(watch.due(1e9)).toMatchObject({ outcome: "taken", to: A });
  });
});

describe("the state of a VM", () => {
  it.each<[what: string, VmWatch, tapThere: boolean, ReturnType<typeof is>]>([
    ["of which nobody says anything", plain(), true, is("UP")],
    ["whose tap is gone", plain(), false, is("DOWN", "INTERFACE")],
    [
      "that is drained",
      plain({ operator_state: VM_STATE.DRAIN, ...is("DRAIN", "OPERATOR") }),
      true,
      is("DRAIN", "OPERATOR"),
    ],
    [
      "that is drained, and whose tap is gone",
      plain({ operator_state: VM_STATE.DRAIN, ...is("DRAIN", "OPERATOR") }),
      false,
      is("DOWN", "INTERFACE"),
    ],
    [
      "that the operator took down, and whose tap is gone",
      plain({ operator_state: VM_STATE.DOWN, ...is("DOWN", "OPERATOR") }),
      false,
      is("DOWN", "OPERATOR"),
    ],
    // What settling said stands.
    ["that is on no tap", plain({ ifindex: 0, ...is("DOWN", "INTERFACE") }), false, is("DOWN", "INTERFACE")],
    ["whose MAC is not known", plain({ id: 0, ...is("DOWN", "NEIGHBOUR") }), true, is("DOWN", "NEIGHBOUR")],
    ["for which there is no room", plain(is("DOWN")), true, is("DOWN")],
    // Well again, but not settled yet.
    [
      "that was found well",
      checked({ health: VM_STATE.UP, ...is("DOWN", "PROBE") }),
      true,
      is("DOWN", "PROBE"),
    ],
  ])("%s", (_what, watch, tapThere, condition) => {
    expect(judged(watch, tapThere)).toEqual(condition);
  });

  it.each<[what: string, found: StructInput<"vm_spec">, finding: [State, Cause], differs: boolean]>([
    ["the same", { health: VM_STATE.UP }, ["UP", "NONE"], false],
    ["nothing known, and then well", {}, ["UP", "NONE"], true],
    ["well, and then not", { health: VM_STATE.UP }, ["DOWN", "PROBE"], true],
    ["the same reason", { health: VM_STATE.DOWN, ...is("DOWN", "PROBE") }, ["DOWN", "PROBE"], false],
    ["another reason", { health: VM_STATE.DOWN, ...is("DOWN", "PROBE") }, ["DOWN", "NEIGHBOUR"], true],
    // These come first, whatever its health is.
    ["no tap", { health: VM_STATE.DOWN, ...is("DOWN", "INTERFACE") }, ["DOWN", "PROBE"], false],
    ["the operator's word", { health: VM_STATE.DOWN, ...is("DOWN", "OPERATOR") }, ["DOWN", "PROBE"], false],
    [
      "no MAC",
      { health: VM_STATE.DOWN, mac: Buffer.alloc(6), ...is("DOWN", "NEIGHBOUR") },
      ["DOWN", "PROBE"],
      false,
    ],
  ])("is written anew when it differs: %s", (_what, found, [health, cause], differs) => {
    const finding = { health: VM_STATE[health], cause: CAUSE[cause], why: null };
    expect(plain(found).differs(finding)).toBe(differs);
  });

  it("is news once", () => {
    const watch = plain();
    const finding = watch.finding(there, true);
    expect(watch.judge(finding, true).before).toBeNull();
    expect(watch.judge(finding, false).before).toEqual(is("UP"));
    expect(watch.judge(finding, false).before).toBeNull();
    expect(watch.judge(finding, true)).toEqual({ now: is("UP"), before: is("DOWN", "INTERFACE") });
  });

  it("has a reason that people understand", () => {
    const watch = checked();
    const finding = watch.finding(there, true);
    const texts = Object.values(CAUSE).map((cause) => watch.why({ state: VM_STATE.DOWN, cause }, finding));
    expect(texts).toEqual([
      "there is no place for it in the tables",
      "the operator took it down",
      "vnet0 is not there, not up, or not attached",
      "its MAC is not known",
      "its check failed",
    ]);
  });
});

describe("the roster of VMs", () => {
  const source = memorySource();
  const tables = new Tables(source);
  const set = (name: string, given: object, found: StructInput<"vm_spec"> = {}) => {
    const config = vm.parse({ name, ...given });
    tables.guests.specs.set({ name }, { ...vmSpecOf(config, 2, ORIGIN.MANUAL), ...found });
  };
  const roster = new VmRoster(vmReader(tables));
  const read = () => {
    const { asked, gone, otherChecks } = roster.read();
    return [asked, gone.map(({ name }) => name).join(), otherChecks.map(({ name }) => name).join()];
  };

  test("follows the entries: what is asked for, and what was found out", () => {
    expect(read()).toEqual([false, "", ""]);
    set("a", { tap: "vnet0", address: "2001:DB8::A" });
    set("b", { mac: B });
    expect(read()).toEqual([true, "", ""]);
    const a = roster.get("a")!;
    const { spec } = a;
    expect(read()).toEqual([false, "", ""]);
    expect(a.spec).toBe(spec);
    expect([...roster.all()].map(({ name }) => name).sort()).toEqual(["a", "b"]);
    expect(roster.addresses()).toEqual(["2001:db8::a"]);
    expect(roster.at("2001:db8::a")).toEqual([a]);

    set("a", { tap: "vnet0", address: "2001:DB8::A" }, { state: VM_STATE.UP, changed: currentTick() });
    expect(read()).toEqual([false, "", ""]);
    expect(a.spec.state).toBe(VM_STATE.UP);
    set("a", { tap: "vnet0", address: "2001:DB8::A" }, { operator_state: VM_STATE.DRAIN });
    expect(read()).toEqual([true, "", ""]);
    set("a", { tap: "vnet0", address: "192.0.2.1", check: { kind: "icmp" } });
    expect(read()).toEqual([true, "", "a"]);
    expect(roster.addresses()).toEqual(["192.0.2.1"]);
    tables.guests.specs.delete({ name: "b" });
    expect(read()).toEqual([true, "b", ""]);
    expect(roster.size).toBe(1);
  });

  test("knows whom a frame concerns", () => {
    set("by-tap", { tap: "vnet1" });
    set("by-mac", { mac: B, tap: "vnet2" });
    set("found", { address: "192.0.2.7" }, { mac: parseMac(A)! });
    read();
    const nobody = parseMac("02:00:00:00:00:99")!;
    const concerns: [number, Buffer, string | undefined][] = [
      [2, nobody, "vnet1"],
      [2, parseMac(B)!, "vnet9"],
      [2, parseMac(A)!, undefined],
    ];
    for (const [zone, mac, tap] of concerns) {
      expect(roster.concerns(zone, mac, tap)).toBe(true);
      expect(roster.concerns(3, mac, tap)).toBe(false);
    }
    expect(roster.concerns(2, nobody, "vnet2")).toBe(false);
    expect(roster.concerns(2, nobody, undefined)).toBe(false);
  });

  test("leaves out what it cannot read, until it can", () => {
    const text = Buffer.from("{");
    tables.guests.specs.set({ name: "broken" }, { zone: 2, bytes: text.length, text });
    tables.guests.specs.set({ name: "odd" }, { zone: 2, bytes: 0xffff, text });
    read();
    expect([roster.get("broken"), roster.get("odd")]).toEqual([undefined, undefined]);
    set("broken", { mac: "02:00:00:00:00:77" });
    expect(read()).toEqual([true, "", ""]);
    expect(roster.get("broken")).toBeDefined();
  });
});

describe("where the host sees a VM", () => {
  const up = { up: true, running: true, loopback: false };
  const link = (ifindex: number, more: Partial<Link> = {}) =>
    ({
      ifindex,
      name: `if${ifindex}`,
      flags: up,
      master: null,
      masterKind: null,
      lower: null,
      ...more,
    }) as Link;
  const [LO, ROUTED, VLAN, UNKNOWN] = [1, 8, 20, 9];
  const port = { master: BRIDGE, masterKind: "bridge" };
  const links = [
    link(LO, { flags: { ...up, loopback: true } }),
    link(BRIDGE),
    link(TAP, port),
    link(ROUTED),
    link(VLAN, { kind: "vlan", lower: BRIDGE }),
  ];
  const routes: Record<string, number> = { "192.0.2.9": BRIDGE, "192.0.2.20": VLAN, "127.0.0.2": LO };
  const entries = [
    { ifindex: TAP, l3_ifindex: BRIDGE },
    { ifindex: ROUTED, l3_ifindex: ROUTED },
  ];
  const stack = () => {
    const netlink = {
      links: () => links,
      link: (ifindex: number) => (ifindex === UNKNOWN ? link(UNKNOWN) : undefined),
      addresses: () => [{ ifindex: BRIDGE, family: 4, address: "192.0.2.1", prefixLength: 24 }],
      routeGet: ({ destination }: { destination: string }) => ({ outIfindex: routes[destination] ?? ROUTED }),
    };
    const tables = { interfaces: { list: () => entries } };
    const made = new VmStack(tables as never, netlink as never);
    made.read();
    return made;
  };

  it.each<[what: string, tap: number, address: string, interfaces: number[]]>([
    ["on the bridge of its tap", TAP, "192.0.2.9", [BRIDGE]],
    ["on the VLAN interface of that, if the route says so", TAP, "192.0.2.20", [VLAN]],
    ["not wherever else a route leads", TAP, "198.51.100.1", [BRIDGE]],
    ["on its tap, if that is no port", ROUTED, "192.0.2.9", [ROUTED]],
    ["where the route leads, if it is on no tap", 0, "192.0.2.9", [BRIDGE]],
    ["nowhere, if that is the host itself", 0, "127.0.0.2", []],
  ])("is %s", (_what, tap, address, interfaces) => {
    expect([...stack().interfaces(tap, address)]).toEqual(interfaces);
  });

  it("follows a tap that becomes a port, or is one no longer", () => {
    const made = stack();
    made.changed(link(ROUTED, port));
    expect([...made.interfaces(ROUTED, "192.0.2.9")]).toEqual([BRIDGE]);
    made.changed(link(ROUTED));
    expect([...made.interfaces(ROUTED, "192.0.2.9")]).toEqual([ROUTED]);
  });

  it("knows which interfaces are up, and from where addresses can be asked for", () => {
    const made = stack();
    expect([TAP, UNKNOWN, 99].map((ifindex) => made.isUsable(ifindex))).toEqual([true, true, false]);
    made.changed(link(TAP, { flags: { ...up, running: false } }));
    expect(made.isUsable(TAP)).toBe(false);
    expect(made.mayAsk(new Set([BRIDGE]), "192.0.2.9")).toBe(true);
    expect(made.mayAsk(new Set([BRIDGE]), "2001:db8::9")).toBe(false);
    expect(made.mayAsk(new Set([TAP]), "192.0.2.9")).toBe(false);
  });
});

test("a reader takes apart what has changed, and nothing else", () => {
  const source = memorySource();
  const tables = new Tables(source);
  const taken: string[] = [];
  const reader = new ChangeReader<{ name: string; before: boolean }>(tables.guests.specs, {
    key: "vm_name",
    batch: 2,
    length: () => 28,
    take(name, value, before) {
      expect(value.length).toBe(28);
      taken.push(name);
      return { name, before: before !== undefined };
    },
  });
  for (const name of ["a", "b", "c"]) tables.guests.specs.set({ name }, { zone: 1 });
  const first = reader.read();
  expect([...first.keys()].sort()).toEqual(["a", "b", "c"]);
  // Beyond what says something.
  tables.guests.specs.set({ name: "b" }, { zone: 1, text: Buffer.from("x") });
  tables.guests.specs.set({ name: "c" }, { zone: 2 });
  tables.guests.specs.delete({ name: "a" });
  const second = reader.read();
  expect(taken.sort()).toEqual(["a", "b", "c", "c"]);
  expect(second.get("b")).toBe(first.get("b"));
  expect(second.get("c")).toEqual({ name: "c", before: true });
  expect(second.has("a")).toBe(false);
  // A step a batch.
  let steps = 0;
  for (const _ of reader.pieces()) steps++;
  expect(steps).toBe(1);
  expect(encode("vm_spec", {}).length).toBeGreaterThan(28);
});

describe("rounds", () => {
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] });
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  function bench() {
    const asked: string[] = [];
    const answered: string[] = [];
    const failed: unknown[] = [];
    const open: ((answer: string | Error) => void)[] = [];
    const rounds = new Rounds<string>({
      ask(name) {
        asked.push(name);
        return new Promise((resolve, reject) =>
          open.push((answer) => (answer instanceof Error ? reject(answer) : resolve(answer))),
        );
      },
      answered: (name, answer) => answered.push(`${name} ${answer}`),
      failed: (error) => failed.push(error),
    });
    const pass = (ms: number) => vi.advanceTimersByTimeAsync(ms);
    return { asked, answered, failed, open, rounds, pass };
  }

  it("begin within a second, and follow at their interval, a tenth more or less", async () => {
    const { asked, answered, open, rounds, pass } = bench();
    rounds.start("a", 60_000);
    await pass(1_000);
    expect(asked).toEqual(["a"]);
    open.shift()!("well");
    await pass(53_000);
    expect([asked, answered]).toEqual([["a"], ["a well"]]);
    await pass(13_100);
    expect(asked).toEqual(["a", "a"]);
    rounds.close();
    open.shift()!("too late");
    await pass(200_000);
    expect([asked.length, answered.length]).toEqual([2, 1]);
  });

  it("never ask anew before there is an answer, and then at once", async () => {
    const { asked, open, rounds, pass } = bench();
    rounds.start("a", 100);
    await pass(100_000);
    expect(asked).toEqual(["a"]);
    open.shift()!("at last");
    await pass(2);
    expect(asked).toEqual(["a", "a"]);
    rounds.close();
  });

  it("that are begun anew wait for what was asked before, whose answer does not count", async () => {
    const { asked, answered, open, rounds, pass } = bench();
    rounds.start("a", 100);
    await pass(1_000);
    for (const _ of [1, 2, 3]) {
      rounds.start("a", 100);
      await pass(1_000);
    }
    expect(asked).toEqual(["a"]);
    open.shift()!("old");
    await pass(1_000);
    expect([asked, answered]).toEqual([["a", "a"], []]);
    open.shift()!("new");
    await pass(0);
    expect(answered).toEqual(["a new"]);
    rounds.stop("a");
    await pass(10_000);
    expect(asked).toEqual(["a", "a"]);
  });

  it("go on when asking fails", async () => {
    const { asked, answered, failed, open, rounds, pass } = bench();
    rounds.start("a", 100);
    rounds.start("b", 100);
    await pass(1_000);
    expect(asked.toSorted()).toEqual(["a", "b"]);
    const error = new Error("broken");
    for (const answer of open.splice(0)) answer(error);
    await pass(200);
    expect(failed).toEqual([error, error]);
    expect([asked.length, answered]).toEqual([4, []]);
    rounds.close();
  });
});
