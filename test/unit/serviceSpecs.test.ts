// SPDX-License-Identifier: Apache-2.0
// VMs and services that are asked for by hand: what is refused as no value, what as not going together, and in which
// words.

import { describe, expect, test } from "vitest";
import { LasthopError } from "../../src/errors.ts";
import { findNamed } from "../../src/ops/named.ts";
import { checkZone, serviceConfigOf, vmConfigOf } from "../../src/ops/serviceSpecs.ts";
import type { ServiceSpecInput, VmSpecInput } from "../../src/ops/types.ts";

/** Whatever types say: an API may be given anything. */
const any = <T>(value: unknown): T => value as T;

function refusal(act: () => unknown): { code: string; message: string; hint: string | undefined } {
  try {
    act();
  } catch (error) {
    if (error instanceof LasthopError) return { code: error.code, message: error.message, hint: error.hint };
    throw error;
  }
  throw new Error("it was not refused");
}

test("what is left out has the defaults of the configuration", () => {
  expect(vmConfigOf("web1", { tap: "vnet3", check: { kind: "icmp", address: "10.0.0.11" } })).toEqual({
    name: "web1",
    zone: "default",
    tap: "vnet3",
    labels: [],
    check: {
      kind: "icmp",
      address: "10.0.0.11",
      interval_seconds: 5,
      timeout_seconds: 2,
      fall: 3,
      rise: 2,
    },
  });
  const spec: ServiceSpecInput = { address: "192.0.2.80", pool: [{ vm: "a" }], zone: 7 };
  expect(serviceConfigOf("www", spec)).toEqual({
    name: "www",
    zone: "default",
    address: "192.0.2.80",
    protocol: "tcp",
    policy: "maglev",
    pool: [{ vm: "a", weight: 1 }],
    associations: [],
    affinity_seconds: 0,
    on_vm_down: "rebalance",
    answer: "host",
  });
});

describe("of a VM", () => {
  test.each<[what: string, name: string, spec: VmSpecInput, code: string, message: RegExp]>([
    ["nothing at all", "x", {}, "E_VM", /^a VM needs a tap, a mac or an address$/],
    ["a name with a blank", "web 1", { tap: "a" }, "E_USAGE", /^name: expected a name of up to 31 letters/],
    [
      "a name that is too long",
      "x".repeat(32),
      { tap: "a" },
      "E_USAGE",
      /^name: expected a name of up to 31/,
    ],
    ["a MAC that is none", "x", { mac: "02:00" }, "E_USAGE", /^mac: expected a MAC address/],
    ["a multicast MAC", "x", { mac: "01:00:5e:00:00:01" }, "E_USAGE", /not the address of one network card/],
    ["a tap that cannot be", "x", { tap: "a/b" }, "E_USAGE", /^tap: expected the name of an interface/],
    [
      "an address that is none",
      "x",
      { address: "10.0.0.256" },
      "E_USAGE",
      /^address: expected an IP address/,
    ],
    ["an address of nobody", "x", { address: "0.0.0.0" }, "E_USAGE", /not the address of one host/],
    [
      "a label that cannot be",
      "x",
      { tap: "a", labels: ["a b"] },
      "E_USAGE",
      /^labels\[0\]: expected a name/,
    ],
    [
      "too many labels",
      "x",
      { tap: "a", labels: Array.from({ length: 17 }, (_, at) => `l${at}`) },
      "E_USAGE",
      /^labels: expected at most 16 labels, not 17/,
    ],
    ["a check of nobody", "x", { tap: "a", check: { kind: "icmp" } }, "E_VM", /nobody to ask/],
    [
      "a TCP check without a port",
      "x",
      { address: "10.0.0.1", check: { kind: "tcp" } },
      "E_USAGE",
      /^check: a TCP check needs a port$/,
    ],
    [
      "an interval that is too short",
      "x",
      { address: "10.0.0.1", check: { kind: "icmp", interval_seconds: 0.01 } },
      "E_USAGE",
      /^check\.interval_seconds: expected a number of seconds/,
    ],
    [
      "a key that is none",
      "x",
      any({ tap: "a", tpa: "b" }),
      "E_USAGE",
      /unknown key – did you mean "tap"\?$/,
    ],
    ["two that are wrong", "x", { tap: "a/b", mac: "z" }, "E_USAGE", /^tap: .*; mac: expected a MAC address/],
  ])("%s", (_what, name, spec, code, message) => {
    expect(refusal(() => vmConfigOf(name, spec))).toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
  });
});

describe("of a service", () => {
  const good: ServiceSpecInput = { address: "192.0.2.80", pool: [{ vm: "a" }] };

  test.each<[what: string, change: Partial<ServiceSpecInput>, code: string, message: RegExp]>([
    [
      "an address that is none",
      { address: "192.0.2" },
      "E_USAGE",
      /^address: expected an address or a prefix/,
    ],
    ["a port that cannot be", { port: 65_536 }, "E_USAGE", /^port: expected a port/],
    ["a protocol that is none", { protocol: any("tpc") }, "E_USAGE", /^protocol: .*did you mean "tcp"\?$/],
    ["a policy that is none", { policy: any("random") }, "E_USAGE", /^policy: expected maglev, round-robin/],
    ["an empty pool", { pool: [] }, "E_USAGE", /^pool: .*at least one VM/],
    [
      "a weight of nothing",
      { pool: [{ vm: "a", weight: 0 }] },
      "E_USAGE",
      /^pool\[0\]\.weight: expected a weight/,
    ],
    ["a weight and a half", { pool: [{ vm: "a", weight: 1.5 }] }, "E_USAGE", /^pool\[0\]\.weight: /],
    ["neither VM nor label", { pool: [any({})] }, "E_USAGE", /exactly one of vm and label/],
    ["VM and label", { pool: [any({ vm: "a", label: "b" })] }, "E_USAGE", /exactly one of vm and label/],
    [
      "clients that are none",
      { associations: [{ client: "10.0.0.0/33", vm: "a" }] },
      "E_USAGE",
      /^associations\[0\]\.client: expected an address or a prefix/,
    ],
    ["an affinity of a year", { affinity_seconds: 31_536_000 }, "E_USAGE", /^affinity_seconds: expected/],
    ["an answer that is none", { answer: any("vm") }, "E_USAGE", /^answer: expected host, none or "vm:NAME"/],
    ["ICMP with a port", { protocol: "icmp", port: 7 }, "E_SERVICE", /^port: ICMP has no ports$/],
    [
      "any protocol with a port",
      { protocol: "any", port: 7 },
      "E_SERVICE",
      /^port: a port goes with one protocol/,
    ],
  ])("%s", (_what, change, code, message) => {
    expect(refusal(() => serviceConfigOf("www", { ...good, ...change }))).toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
  });
});

test.each([-1, 65_536, 0.5, Number.NaN])("%s is no zone", (zone) => {
  expect(refusal(() => checkZone(zone))).toMatchObject({ code: "E_USAGE" });
});

test("who is not there gets the name that was probably meant", () => {
  const specs = {
    get: ({ name }: { name: string }) => (name === "web1" ? 1 : undefined),
    keys: () => [{ name: "web1" }, { name: "fw" }],
  };
  expect(findNamed(specs, "VM", "web1")).toBe(1);
  expect(refusal(() => findNamed(specs, "VM", "wbe1"))).toEqual({
    code: "E_NOT_FOUND",
    message: 'there is no VM "wbe1"',
    hint: "Did you mean web1?",
  });
  expect(refusal(() => findNamed(specs, "service", "other"))).toMatchObject({
    hint: "`lasthop services list` shows them.",
  });
  // Longer than a key has room for.
  expect(refusal(() => findNamed(specs, "VM", "é".repeat(16)))).toMatchObject({ code: "E_NOT_FOUND" });
});
