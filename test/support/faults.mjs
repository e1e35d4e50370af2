// SPDX-License-Identifier: Apache-2.0
// Runs in the host's namespace: makes every step of every action of a scenario fail once, and says whether everything
// was as before afterwards. One JSON object a line.
//
//   node faults.mjs PIN_ROOT

import { execFileSync } from "node:child_process";
import { parseConfig } from "../../dist/config/load.js";
import { apply } from "../../dist/controller/apply.js";
import { desiredOf } from "../../dist/controller/desired.js";
import { readHost } from "../../dist/controller/hostFacts.js";
import { observe } from "../../dist/controller/observe.js";
import { plan } from "../../dist/controller/plan.js";
import { reconcile } from "../../dist/controller/reconcile.js";
import { runSteps } from "../../dist/controller/steps.js";
import { LasthopError } from "../../dist/errors.js";
import { holdInstance } from "../../dist/kernel/holder.js";
import { openInstance } from "../../dist/kernel/instance.js";
import { Netlink } from "../../dist/kernel/netlink.js";
import { BpfLink, tcxQuery } from "../../dist/libbpf/index.js";
import { Tables } from "../../dist/tables/index.js";

const [pinRoot] = process.argv.slice(2);
const netlink = new Netlink();

function ip(...lines) {
  execFileSync("ip", ["-batch", "-"], { input: `${lines.join("\n")}\n` });
}

/** A world of its own for each scenario; it gets rid of what the one before has left. */
const BASE = [
  "link add up0 type veth peer name up0-p",
  "link set up0 up",
  "link set up0-p up",
  "link add vnet0 type veth peer name vnet0-p",
  "link set vnet0 up",
  "link set vnet0-p up",
  "link add br0 type bridge",
  "link set br0 up",
];

const UPLINK = "uplinks: [{name: up0, mode: tc}]";
const TAP = "taps: [{name: vnet0}]";

/** From what is configured to what is then, with what is done to the host in between. */
const SCENARIOS = {
  "an uplink is attached": { to: UPLINK },
  "an uplink is attached by generic XDP": { to: "uplinks: [{name: up0, mode: generic}]" },
  "an uplink is attached by clsact": { to: UPLINK, clsact: "to" },
  "a tap on a bridge is attached, with a guest and exclusions": {
    before: ["link set vnet0 master br0"],
    prepare: () =>
      execFileSync("bridge", ["fdb", "add", "52:54:00:00:00:01", "dev", "vnet0", "master", "static"]),
    to: "taps: [{name: vnet0, exclude: [{port: 22}]}]",
  },
  "an uplink becomes a tap": { from: UPLINK, to: "taps: [{name: up0}]", lastHops: ["up0"] },
  "a tap becomes an uplink": { from: "taps: [{name: up0}]", to: UPLINK, vms: ["up0"] },
  "a tap changes its zone, policy, budget and exclusions": {
    from: "taps: [{name: vnet0, exclude: [{port: 22}]}]",
    to: "{zones: {red: 7}, taps: [{name: vnet0, zone: red, policy: observe, vms_max: 3, exclude: [{port: 23}]}]}",
    vms: ["vnet0"],
  },
  "an uplink changes what it learns": {
    from: UPLINK,
    to: "uplinks: [{name: up0, mode: tc, learn: devices, relearn: never, pickup: false, last_hops_max: 9}]",
    lastHops: ["up0"],
  },
  "from TC to XDP": { from: UPLINK, to: "uplinks: [{name: up0, mode: generic}]" },
  "from XDP to TC": { from: "uplinks: [{name: up0, mode: generic}]", to: UPLINK },
  "from clsact to TCX": { from: UPLINK, to: UPLINK, clsact: "from" },
  "from TCX to clsact": { from: UPLINK, to: UPLINK, clsact: "to" },
  "an uplink is detached": { from: UPLINK, to: "uplinks: []", lastHops: ["up0"] },
  "an uplink is detached from clsact": { from: UPLINK, to: "uplinks: []", clsact: "both" },
  "a tap on a bridge is detached": {
    before: ["link set vnet0 master br0"],
    from: "taps: [{name: vnet0, exclude: [{port: 22}]}]",
    to: "taps: []",
    vms: ["vnet0"],
  },
  "an uplink has gone": { from: UPLINK, to: UPLINK, lastHops: ["up0"], meanwhile: ["link del up0"] },
  "a tap has gone": { from: TAP, to: TAP, vms: ["vnet0"], meanwhile: ["link del vnet0"] },
  "an uplink has returned": {
    from: UPLINK,
    to: UPLINK,
    lastHops: ["up0"],
    meanwhile: ["link del up0", ...BASE.slice(0, 3)],
  },
  "an uplink has another MAC": {
    from: UPLINK,
    to: UPLINK,
    lastHops: ["up0"],
    meanwhile: ["link set up0 address 02:00:00:00:00:77"],
  },
  "an uplink is down": { from: UPLINK, to: UPLINK, lastHops: ["up0"], meanwhile: ["link set up0 down"] },
  "an uplink was renamed": {
    from: "uplinks: [{name: 'up*', mode: tc}]",
    to: "uplinks: [{name: 'up*', mode: tc}]",
    meanwhile: ["link set up0 down", "link set up0 name up9", "link set up9 up"],
  },
  "devices come, change and go": {
    from: 'devices: [{name: a, macs: ["02:00:00:00:00:0a"]}, {name: b, macs: ["02:00:00:00:00:0b"]}]',
    to: 'devices: [{name: b, macs: ["02:00:00:00:00:1b"]}, {name: c, macs: ["02:00:00:00:00:0c"]}]',
  },
  "timeouts and zones": { to: `{timeouts: {tcp: 100}, relearn_damping_seconds: 5, ${UPLINK}}` },
};

class Injected extends LasthopError {
  constructor() {
    super("E_BPF", "this step fails for the test");
  }
}

/** runSteps, of which the step with this number fails. */
function failing(number) {
  let count = 0;
  const state = { failed: false };
  state.run = (steps) =>
    runSteps(
      steps.map((step) => ({
        get done() {
          return step.done;
        },
        do() {
          if (count++ === number) {
            state.failed = true;
            throw new Injected();
          }
          step.do();
        },
        undo: () => step.undo(),
      })),
    );
  return state;
}

const hex = (buffer) => Buffer.from(buffer).toString("hex");

/** Everything that counts, as text. */
function snapshot({ instance, tables, netlink }, references) {
  const used = (table) =>
    entriesOf(table)
      .filter(([, value]) => /[^0]/.test(value))
      .map((pair) => pair.join("="));
  const entriesOf = (table) => {
    const { keySize } = table.map.info();
    const found = [];
    for (const { count, keys, values } of table.map.batches()) {
      for (let at = 0; at < count; at++) {
        found.push([
          hex(keys.subarray(at * keySize, (at + 1) * keySize)),
          hex(values.subarray(at * table.map.valueBytes, (at + 1) * table.map.valueBytes)),
        ]);
      }
    }
    return found;
  };
  const near = { map: instance.map("near_interfaces") };
  const lastHop = ({ ifindex, slot, mac, source_mac }) =>
    [ifindex, slot, hex(mac), hex(source_mac)].join("/");
  const resolved = (reference) => {
    const found = tables.lastHops.resolve(reference);
    if (found.state === "stale" || found.state === "route") return found.state;
    return `${found.state === "drop" ? "drop" : "up"} ${lastHop(tables.lastHops.records.get(found.target))}`;
  };
  const programs = netlink.links().map((link) => {
    const filters = [0xfffffff2, 0xfffffff3].flatMap((parent) => netlink.filters(link.ifindex, parent));
    return [
      link.name,
      (tcxQuery(link.ifindex, "ingress") ?? []).join(),
      link.xdp?.programId ?? "",
      filters.map(({ programId, priority }) => `${programId}@${priority}`).join(),
      netlink.qdiscs(link.ifindex).filter(({ kind }) => kind === "clsact").length,
    ].join(" ");
  });
  const links = instance.linkNames().flatMap((name) => {
    const link = BpfLink.openPinned(instance.linkPath(name));
    const { ifindex, programId, type } = link.info();
    link.close();
    // A shell whose netdev has gone holds nothing.
    return ifindex === 0 ? [] : [[name, type, ifindex, programId].join(" ")];
  });
  const slots = tables.interfaces.list().map(({ slot }) => slot);
  return {
    interfaces: used(tables.interfaces).sort(),
    near: used(near),
    budgets: used(tables.budgets),
    // What a slot without exclusions has there does not count.
    taps: used(tables.taps),
    egress: [...new Set(slots)].map((slot) => `${slot}=${tables.egressDevices.get(slot)}`),
    vms: used(tables.vms).sort(),
    zones: used(tables.zones).sort(),
    devices: used(tables.devices).sort(),
    control: used({ map: instance.map("control") }),
    keys: [...tables.lastHops.keys.entries()]
      .map(([key, index]) => `${key.ifindex}/${hex(key.mac)} ${lastHop(tables.lastHops.records.get(index))}`)
      .sort(),
    flows: references.map(resolved),
    programs,
    links,
  };
}

function addLastHops({ tables, netlink }, names) {
  return names.flatMap((name) => {
    const { ifindex } = netlink.link(name);
    const entry = tables.interfaces.get(ifindex);
    return ["a1", "a2"].map((last) => {
      const mac = Buffer.from(`0200000000${last}`, "hex");
      const made = tables.lastHops.create({
        origin: 0,
        ifindex,
        slot: entry.slot,
        mac,
        source_mac: entry.host_mac,
      });
      tables.lastHops.keys.set({ ifindex, mac }, made.index);
      return ((made.generation << 20) | made.index) >>> 0;
    });
  });
}

function addVms({ tables, netlink }, names) {
  for (const [at, name] of names.entries()) {
    const { ifindex } = netlink.link(name);
    tables.vms.set({ zone: 0, mac: Buffer.from([0x52, 0x54, 0, 0, 1, at]) }, { id: 100 + at, ifindex });
  }
}

function setTc(scenario, when) {
  process.env.LASTHOP_TC = scenario.clsact === when || scenario.clsact === "both" ? "clsact" : "tcx";
}

function planNow(around, config) {
  const host = readHost(around.netlink);
  const observed = observe(around, host);
  return plan(desiredOf(config, host, observed.guests), observed);
}

async function run(name, scenario) {
  for (const kind of ["up0", "up9", "vnet0", "br0"]) {
    if (netlink.link(kind)) ip(`link del ${kind}`);
  }
  ip(...BASE, ...(scenario.before ?? []));
  // XDP would not see tags that the driver takes out.
  execFileSync("ethtool", ["-K", "up0", "rx-vlan-hw-parse", "off", "rx-vlan-stag-hw-parse", "off"]);
  scenario.prepare?.();
  setTc(scenario, "from");
  await reconcile({ pinRoot, warn() {} }, parseConfig(scenario.from ?? "uplinks: []", name));
  const instance = openInstance(pinRoot);
  const around = { instance, tables: new Tables(instance), netlink };
  const references = addLastHops(around, scenario.lastHops ?? []);
  addVms(around, scenario.vms ?? []);
  ip(...(scenario.meanwhile ?? ["link set lo up"]));
  setTc(scenario, "to");
  const config = parseConfig(scenario.to, name);
  const report = { scenario: name, actions: [], steps: 0, differences: [] };
  // One action after another, as later ones build on it.
  for (let guard = 0; guard < 20; guard++) {
    const [action] = planNow(around, config).actions;
    if (!action) break;
    report.actions.push(action.kind);
    for (let number = 0; ; number++) {
      const before = snapshot(around, references);
      const [same] = planNow(around, config).actions;
      const fault = failing(number);
      const { failed } = apply(around, [same], { warn() {}, run: fault.run });
      if (!fault.failed) {
        if (failed.length > 0) throw failed[0].cause;
        break;
      }
      report.steps++;
      const after = snapshot(around, references);
      for (const key of Object.keys(before)) {
        if (JSON.stringify(before[key]) === JSON.stringify(after[key])) continue;
        report.differences.push({ action: action.text, number, key, before: before[key], after: after[key] });
      }
      if (failed[0]?.code !== "E_BPF") report.differences.push({ action: action.text, number, failed });
    }
  }
  report.left = planNow(around, config).actions.map(({ text }) => text);
  process.stdout.write(`${JSON.stringify(report)}\n`);
  instance.close();
  // Nothing of one scenario is left for the next.
  await reconcile({ pinRoot, warn() {} }, parseConfig("uplinks: []", name));
}

// As the daemon: who only applies once does not mark what is down.
const holder = holdInstance(pinRoot);
// Nobody says anything of his own, so that nothing is learned in between.
execFileSync("sysctl", ["-qw", "net.ipv6.conf.default.disable_ipv6=1"]);
for (const [name, scenario] of Object.entries(SCENARIOS)) await run(name, scenario);
netlink.close();
holder.close();
