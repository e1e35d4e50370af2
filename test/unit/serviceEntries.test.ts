// SPDX-License-Identifier: Apache-2.0
// VMs and services as entries of the tables: as they were given, and what two of them may not share.

import { describe, expect, it } from "vitest";
import { ORIGIN, SERVICE_SPEC_BYTES, VM_SPEC_BYTES } from "../../src/abi/layout.gen.ts";
import { parseService, parseVm, serviceText, vmText } from "../../src/config/entries.ts";
import { service, vm } from "../../src/config/services.ts";
import {
  sameSpec,
  serviceConflict,
  serviceSpecOf,
  vmConflict,
  vmSpecOf,
} from "../../src/controller/serviceSpec.ts";
import { LasthopError } from "../../src/errors.ts";

const MAC = "52:54:00:00:00:0a";

describe("a text", () => {
  it.each<[string, object]>([
    ['{"tap":"vnet1"}', { tap: "vnet1" }],
    ['{"tap":"x"}', { tap: "x" }],
    ['{"tap":"vnet1","labels":["a"]}', { tap: "vnet1", labels: ["a"], zone: "default" }],
    ['{"address":"192.0.2.1","check":{"kind":"icmp"}}', { address: "192.0.2.1", check: { kind: "icmp" } }],
    [
      '{"zone":"red","mac":"52:54:00:00:00:0a","responses":"b","check":{"kind":"tcp","address":"192.0.2.1","port":80,"fall":7}}',
      {
        zone: "red",
        mac: MAC,
        responses: "b",
        check: { kind: "tcp", address: "192.0.2.1", port: 80, fall: 7, rise: 2 },
      },
    ],
  ])("%s is a VM", (text, given) => {
    const config = vm.parse({ name: "a", ...given });
    expect(vmText(config)).toBe(text);
    expect(parseVm("a", text)).toEqual({ entry: config });
  });

  it.each<[string, object]>([
    [
      '{"address":"192.0.2.80","pool":[{"vm":"a"}],"port":443}',
      { port: 443, pool: [{ vm: "a", weight: 1 }] },
    ],
    [
      '{"address":"192.0.2.80","pool":[{"label":"web","weight":3},{"vm":"a"}],"protocol":"any","policy":"least-flows","on_vm_down":"hold","answer":"vm:a"}',
      {
        protocol: "any",
        policy: "least-flows",
        pool: [{ label: "web", weight: 3 }, { vm: "a" }],
        on_vm_down: "hold",
        answer: "vm:a",
      },
    ],
    [
      '{"address":"192.0.2.80","pool":[{"vm":"a"}],"associations":[{"client":"10.0.0.0/8","vm":"b"}],"affinity_seconds":60}',
      { pool: [{ vm: "a" }], associations: [{ client: "10.0.0.0/8", vm: "b" }], affinity_seconds: 60 },
    ],
  ])("%s is a service", (text, given) => {
    const config = service.parse({ name: "s", address: "192.0.2.80", ...given });
    expect(serviceText(config)).toBe(text);
    expect(parseService("s", text)).toEqual({ entry: config });
  });

  it.each<[string, RegExp]>([
    ["", /not JSON/],
    ["{", /not JSON/],
    ["null", /no entry/],
    ["[]", /no entry/],
    ['"web"', /no entry/],
    ["{}", /pool|address/],
    ['{"address":"x","pool":[{"vm":"a"}]}', /^address: /],
    ['{"address":"192.0.2.80","pool":[]}', /^pool: /],
    ['{"address":"192.0.2.80","pool":[{"vm":"a"}],"__proto__":{"port":1}}', /./],
    ['{"address":"192.0.2.80","pool":[{"vm":"a"}],"more":1}', /./],
  ])("%s is neither", (text, why) => {
    expect(parseService("s", text)).toEqual({ why: expect.stringMatching(why) });
    expect(parseVm("s", text)).toEqual({ why: expect.any(String) });
  });

  it("as long as the configuration allows has room, and a longer one is refused", () => {
    const labels = Array.from({ length: 16 }, (_, number) => `label-${number}`.padEnd(31, "x"));
    const check = {
      kind: "https",
      address: "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff",
      port: 65_535,
      path: `/${"p".repeat(254)}`,
      host: `${"h".repeat(249)}:8443`,
      status: "200-399",
      verify: true,
      interval_seconds: 1234.567,
      timeout_seconds: 59.123,
      fall: 100,
      rise: 100,
    };
    const names = { zone: "z".repeat(31), tap: "t".repeat(15), responses: "r".repeat(31) };
    const largest = vm.parse({
      name: "n".repeat(31),
      mac: MAC,
      address: check.address,
      labels,
      check,
      ...names,
    });
    expect(vmSpecOf(largest, 1, ORIGIN.CONFIG).bytes).toBeLessThanOrEqual(VM_SPEC_BYTES);
    const pool = Array.from({ length: 256 }, (_, number) => ({
      vm: `vm${number}`.padEnd(31, "x"),
      weight: 200,
    }));
    const config = service.parse({ name: "s", address: "192.0.2.80", pool });
    expect(() => serviceSpecOf(config, 0, ORIGIN.CONFIG)).toThrow(LasthopError);
    expect(() => serviceSpecOf(config, 0, ORIGIN.CONFIG)).toThrow(
      new RegExp(`service s takes \\d+ bytes, and ${SERVICE_SPEC_BYTES} is the most`),
    );
    const short = service.parse({ ...config, pool: pool.map(({ vm: name }) => ({ vm: name.slice(0, 8) })) });
    expect(serviceSpecOf(short, 0, ORIGIN.CONFIG).bytes).toBeLessThanOrEqual(SERVICE_SPEC_BYTES);
  });

  it("is what two entries have in common, whatever was observed", () => {
    const spec = vmSpecOf(vm.parse({ name: "a", tap: "vnet1" }), 0, ORIGIN.CONFIG);
    expect(sameSpec(spec, { ...spec, id: 7, state: 1, health: 2 })).toBe(true);
    expect(sameSpec(spec, { ...spec, text: Buffer.concat([spec.text!, Buffer.alloc(8)]) })).toBe(true);
    expect(sameSpec(spec, { ...spec, zone: 7 })).toBe(false);
    expect(sameSpec(spec, { ...spec, origin: ORIGIN.MANUAL })).toBe(false);
    expect(sameSpec(spec, vmSpecOf(vm.parse({ name: "a", tap: "vnet2" }), 0, ORIGIN.CONFIG))).toBe(false);
  });
});

function vmEntry(name: string, given: object, zone = 0) {
  return { name, config: vm.parse({ name, ...given }), spec: { zone } };
}

describe("two VMs", () => {
  it.each<[string, object, object, string | null]>([
    ["are two", { mac: MAC }, { mac: "52:54:00:00:00:0b" }, null],
    ["with one MAC", { mac: MAC }, { mac: "52-54-0-0-0-A" }, `${MAC} is the VM b's`],
    [
      "with one address",
      { address: "2001:db8::1" },
      { address: "2001:DB8:0::1" },
      "2001:db8::1 is the VM b's",
    ],
    ["on one tap, told apart", { tap: "vnet1", mac: MAC }, { tap: "vnet1", address: "192.0.2.1" }, null],
    [
      "on one tap, of which one is whoever is there",
      { tap: "vnet1", mac: MAC },
      { tap: "vnet1" },
      "the VM b is on vnet1 too, and it takes a mac or an address to tell them apart",
    ],
    ["of which one gets the other's responses", { tap: "vnet1", responses: "b" }, { tap: "vnet2" }, null],
    ["of which one gets its own", { tap: "vnet1", responses: "a" }, { tap: "vnet2" }, null],
    ["without a third", { tap: "vnet1", responses: "c" }, { tap: "vnet2" }, 'no VM is called "c"'],
  ])("%s", (_, one, other, expected) => {
    expect(vmConflict(vmEntry("a", one), [vmEntry("a", { mac: MAC }), vmEntry("b", other)])).toBe(expected);
  });

  it("of different zones share what they like", () => {
    const given = { mac: MAC, address: "192.0.2.1", tap: "vnet1" };
    expect(vmConflict(vmEntry("a", given, 7), [vmEntry("b", given)])).toBeNull();
    expect(vmConflict(vmEntry("a", { ...given, responses: "b" }, 7), [vmEntry("b", given)])).toBeNull();
  });
});

function serviceEntry(name: string, given: object, zone = 0) {
  const config = service.parse({ name, address: "192.0.2.80", port: 443, pool: [{ vm: "a" }], ...given });
  return { name, config, spec: { zone } };
}

describe("a service", () => {
  const vms = [
    vmEntry("a", { tap: "vnet1", labels: ["web"] }),
    vmEntry("b", { tap: "vnet2", labels: ["red"] }, 7),
  ];

  it.each<[string, object, RegExp | null]>([
    ["beside another", {}, null],
    ["that asks for the same", { port: 80 }, /"s" and "other" are both for tcp port 80 of 192.0.2.80/],
    ["of a label", { pool: [{ label: "web" }] }, null],
    ["without such a VM", { pool: [{ vm: "a" }, { vm: "x" }] }, /^no VM is called "x"$/],
    ["without such a label", { pool: [{ label: "x" }] }, /^no VM of its zone has the label "x"$/],
    ["of a VM of another zone", { pool: [{ vm: "b" }] }, /^the VM b is in another zone$/],
    ["of a label of another zone", { pool: [{ label: "red" }] }, /^no VM of its zone has the label "red"$/],
    ["with an association to nobody", { associations: [{ client: "10.0.0.0/8", vm: "x" }] }, /called "x"/],
    ["answered for by nobody", { answer: "vm:x" }, /called "x"/],
    ["answered for by a VM", { answer: "vm:a" }, null],
  ])("%s", (_, given, expected) => {
    const conflict = serviceConflict(serviceEntry("s", given), [serviceEntry("other", { port: 80 })], vms);
    if (expected === null) expect(conflict).toBeNull();
    else expect(conflict).toMatch(expected);
  });

  it("does not meet one of another zone, whatever the zones are called", () => {
    const other = serviceEntry("other", { zone: "red" });
    expect(serviceConflict(serviceEntry("s", {}), [serviceEntry("other", {}, 7)], vms)).toBeNull();
    expect(serviceConflict(serviceEntry("s", {}), [other], vms)).toMatch(/are both for/);
  });
});
