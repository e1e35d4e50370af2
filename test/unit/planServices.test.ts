// SPDX-License-Identifier: Apache-2.0
// Which actions lead from the VMs and services that are there to those that are wanted.

import { describe, expect, test } from "vitest";
import { ORIGIN } from "../../src/abi/layout.gen.ts";
import { desiredOf } from "../../src/controller/desired.ts";
import type { Observed } from "../../src/controller/observe.ts";
import { type Plan, plan, type TableAction } from "../../src/controller/plan.ts";
import { NO_SPECS } from "../../src/controller/servicePlan.ts";
import { carryOut, config, empty, host, link } from "../support/planModel.ts";

function planFor(text: string, observed: Observed): Plan<TableAction> {
  return plan(desiredOf(config(text), observed.host, observed.guests), observed);
}

/** What the configuration makes of it; throws if something fails. */
function applied(text: string, observed: Observed): Observed {
  const { actions, failed } = planFor(text, observed);
  expect(failed).toEqual([]);
  return carryOut(observed, actions);
}

const told = (actions: readonly TableAction[]) =>
  actions.filter(({ kind }) => kind !== "control").map(({ kind, object }) => `${kind} ${object}`);

describe("VMs and services", () => {
  const VM = "{name: a, tap: vnet1, labels: [web]}";
  const WEB = "{name: web, address: 192.0.2.80, port: 443, pool: [{label: web}]}";
  const one = `{vms: [${VM}], services: [${WEB}]}`;
  const byHand = (observed: Observed, text: string): Observed => {
    const { vms, services } = desiredOf(config(text), observed.host, new Map());
    const common = { text: "", config: null };
    return carryOut(observed, [
      ...[...vms.values()].map(({ name, spec }): TableAction => {
        return { kind: "vm-add", object: name, name, spec: { ...spec, origin: ORIGIN.MANUAL }, ...common };
      }),
      ...[...services.values()].map(({ name, spec }): TableAction => {
        return {
          kind: "service-add",
          object: name,
          name,
          spec: { ...spec, origin: ORIGIN.MANUAL },
          ...common,
        };
      }),
    ]);
  };
  const broken = (observed: Observed, origin: number): Observed => {
    const specs = { named: [], broken: [{ name: "a", why: "its text is not JSON", origin, number: 7 }] };
    return { ...observed, specs: { vms: specs, services: { named: [], broken: [] } } };
  };

  test("come, VMs first, change, and go, VMs last", () => {
    const { actions } = planFor(one, empty(host([])));
    expect(told(actions)).toEqual(["vm-add a", "service-add web"]);
    expect(actions.slice(-2).map(({ text, config }) => [text, config])).toEqual([
      ["VM a: add", "vms[0]"],
      ["service web: add", "services[0]"],
    ]);
    const there = applied(one, empty(host([])));
    expect(told(planFor(one, there).actions)).toEqual([]);
    const other = one.replace("vnet1", "vnet2").replace("443", "80");
    expect(told(planFor(other, there).actions)).toEqual(["vm-change a", "service-change web"]);
    expect(told(planFor("{}", there).actions)).toEqual(["service-remove web", "vm-remove a"]);
    const red = `{zones: {red: 7}, vms: [{zone: red, ${VM.slice(1)}]}`;
    expect(told(planFor(red, there).actions)).toEqual(["vm-change a", "service-remove web"]);
  });

  test("that were entered by hand stay, unless the configuration has one of that name", () => {
    const there = byHand(empty(host([])), one);
    expect(told(planFor("{}", there).actions)).toEqual([]);
    const { actions } = planFor(one, there);
    expect(actions.map(({ text }) => text)).toEqual(
      expect.arrayContaining([
        "VM a: by the configuration from now on",
        "service web: by the configuration from now on",
      ]),
    );
    const removed = planFor("{}", carryOut(there, actions)).actions;
    expect(told(removed)).toEqual(["service-remove web", "vm-remove a"]);
  });

  test("that clash with some entered by hand are refused, and the rest is done", () => {
    const there = byHand(empty(host([])), one);
    const text = `{
      vms: [{name: b, tap: vnet1}, {name: c, tap: vnet3}],
      services: [
        {name: s, address: 192.0.2.80, port: 443, pool: [{vm: c}]},
        {name: t, address: 192.0.2.80, port: 80, pool: [{vm: c}]},
      ],
    }`;
    const { actions, failed } = planFor(text, there);
    expect(told(actions)).toEqual(["vm-add c", "service-add t"]);
    expect(failed).toEqual([
      expect.objectContaining({
        code: "E_VM",
        config: "vms[0]",
        message: expect.stringContaining("vnet1 too"),
      }),
      expect.objectContaining({ code: "E_SERVICE", config: "services[0]", object: "s" }),
    ]);
  });

  test("that cannot be read are made right by the configuration, or go with it, or are told", () => {
    const ours = broken(empty(host([])), ORIGIN.CONFIG);
    expect(told(planFor(`{vms: [${VM}]}`, ours).actions)).toEqual(["vm-change a"]);
    expect(told(planFor("{}", ours).actions)).toEqual(["vm-remove a"]);
    const { actions, warnings } = planFor("{}", broken(empty(host([])), ORIGIN.MANUAL));
    expect(told(actions)).toEqual([]);
    expect(warnings).toEqual(["VM a cannot be read, and is left as it is: its text is not JSON"]);
  });

  test("of a zone have its uplinks by TC, which reaches every tap", () => {
    const nic = link(30, "eth0", { kind: null, parentDevice: "0000:01:00.0" });
    const hookOf = (text: string, observed: Observed) => {
      const { actions } = planFor(text, observed);
      return actions.flatMap((action) =>
        action.kind === "attach" || action.kind === "change" ? action.unit.decision.hook : [],
      );
    };
    const uplink = (zone: string) => `uplinks: [{name: eth0, zone: ${zone}}], zones: {red: 7}`;
    const services = `vms: [${VM}], services: [${WEB}]`;
    const bare = empty(host([nic]));
    expect(hookOf(`{${uplink("default")}}`, bare)).toEqual(["xdp_native"]);
    expect(hookOf(`{${uplink("default")}, ${services}}`, bare)).toEqual(["tcx"]);
    expect(hookOf(`{${uplink("red")}, ${services}}`, bare)).toEqual(["xdp_native"]);
    expect(hookOf(`{${uplink("default")}}`, byHand(bare, one))).toEqual(["tcx"]);
    // One that is attached already goes over to it, and stays there.
    const there = applied(`{${uplink("default")}}`, bare);
    expect(hookOf(`{${uplink("default")}, ${services}}`, there)).toEqual(["tcx"]);
    const after = applied(`{${uplink("default")}, ${services}}`, there);
    expect(hookOf(`{${uplink("default")}}`, after)).toEqual([]);
  });

  test("by the thousand are planned at once", () => {
    const text = (letter: string, count: number) =>
      JSON.stringify({
        vms: [{ name: "a", tap: "vnet1", labels: ["web"] }],
        services: Array.from({ length: count }, (_, number) => ({
          name: `${letter}${number}`,
          address: `10.${letter === "s" ? 0 : 9}.${number >> 8}.${number & 255}`,
          port: 443,
          pool: [{ label: "web" }],
        })),
      });
    const manual = byHand(empty(host([])), text("m", 300));
    const there = applied(text("s", 600), { ...manual, specs: { ...manual.specs, vms: NO_SPECS.vms } });
    expect(told(planFor(text("s", 600), there).actions)).toEqual([]);
    const { actions } = planFor(text("s", 400), there);
    expect(actions.filter(({ kind }) => kind === "service-remove")).toHaveLength(200);
  });
});
