// SPDX-License-Identifier: Apache-2.0
// VMs and services that go together, which do not, and how many there may be. fixtures/config/badServices.ts has
// what is refused of a few.

import { describe, expect, test } from "vitest";
import { ASSOCIATIONS_MAX, SERVICE_SPEC_BYTES, VM_SPEC_BYTES } from "../../src/abi/layout.gen.ts";
import { parseVm, serviceText, vmText } from "../../src/config/entries.ts";
import { ConfigError, parseConfig } from "../../src/config/load.ts";
import { type ServiceSelector, serviceOverlap, serviceOverlaps } from "../../src/config/serviceChecks.ts";
import {
  ASSOCIATIONS_PER_SERVICE,
  answeringVm,
  POOL_MAX,
  SERVICES_MAX,
  VM_SPECS_MAX,
} from "../../src/config/services.ts";
import { configYaml } from "../../src/config/show.ts";
import { Random } from "../kernel/support/random.ts";

const VMS = "vms: [{name: a, tap: t0, labels: [web]}, {name: b, tap: t1, labels: [web, db]}]\n";
const times = <T>(count: number, make: (index: number) => T) =>
  Array.from({ length: count }, (_, i) => make(i));

function problemsOf(text: string): string[] {
  try {
    parseConfig(text, "F");
  } catch (error) {
    if (error instanceof ConfigError) return error.problems.map(({ path, message }) => `${path}: ${message}`);
    throw error;
  }
  return [];
}

describe("VMs and services", () => {
  const pool = "pool: [{vm: a}]";
  const GOOD: Record<string, string> = {
    "of one address, told apart by port": `${VMS}services:
      - {name: s, address: 192.0.2.1, port: 80, ${pool}}
      - {name: t, address: 192.0.2.1, port: 443, ${pool}}`,
    "of one port, told apart by protocol": `${VMS}services:
      - {name: s, address: 192.0.2.1, port: 53, protocol: udp, ${pool}}
      - {name: t, address: 192.0.2.1, port: 53, ${pool}}
      - {name: u, address: 192.0.2.1, protocol: icmp, ${pool}}`,
    "the longer prefix before the shorter one": `${VMS}services:
      - {name: s, address: 192.0.2.0/24, protocol: any, ${pool}}
      - {name: t, address: 192.0.2.1, protocol: any, ${pool}}
      - {name: u, address: 192.0.2.1, port: 80, ${pool}}`,
    "one address in two zones": `zones: {red: 1}
vms: [{name: a, mac: 02:00:00:00:00:01}, {name: b, zone: red, mac: 02:00:00:00:00:01, address: 10.0.0.1}]
services:
      - {name: s, address: 192.0.2.1, ${pool}}
      - {name: t, address: 192.0.2.1, zone: red, pool: [{vm: b}]}`,
    "every IPv4 address, of which none is answered for": `${VMS}devices: [{name: f, addresses: [192.0.2.1]}]
services: [{name: s, address: 0.0.0.0/0, protocol: any, answer: none, ${pool}}]`,
    "a device beside what is answered for": `${VMS}devices: [{name: f, addresses: [192.0.2.1]}]
services: [{name: s, address: 192.0.2.2/31, ${pool}}]`,
    "a VM by its name and by its label": `${VMS}services:
      - {name: s, address: 192.0.2.1, pool: [{vm: a, weight: 256}, {label: web}, {label: db, weight: 1}]}`,
    "clients within clients": `${VMS}services:
      - name: s
        address: "2001:db8::/64"
        ${pool}
        associations: [{client: "::/0", label: db}, {client: "2001:db8::/32", vm: a}, {client: "2001:db8::/48", vm: a}]`,
    "an answer with the MAC of a VM that has yet to be seen": `${VMS}services:
      - {name: s, address: 192.0.2.1, answer: vm:b, ${pool}}`,
    "two VMs on a tap that their MACs tell apart": `vms:
      - {name: a, tap: t0, mac: 02:00:00:00:00:01}
      - {name: b, tap: t0, address: 10.0.0.1}`,
    "two sides of a transparent VM": `zones: {inner: 1}
vms:
      - {name: outside, tap: t0, mac: 02:00:00:00:00:01, responses: inside}
      - {name: inside, tap: t1, mac: 02:00:00:00:00:02, responses: outside, zone: inner}`,
    "checks of every kind": `vms:
      - {name: a, address: 10.0.0.1, check: {kind: neighbour}}
      - {name: b, tap: t0, check: {kind: tcp, address: 10.0.0.9, port: 22}}
      - {name: c, address: 10.0.0.3, check: {kind: http, status: 204, host: "web.example:8080", path: "/a?b=c"}}
      - {name: d, address: 10.0.0.4, check: {kind: https, port: 8443, status: 200-299, verify: true}}`,
  };

  test.each(Object.entries(GOOD))("%s", (_, text) => {
    const config = parseConfig(text, "F");
    expect(parseConfig(configYaml(config), "shown")).toEqual(config);
  });

  test("have the documented defaults", () => {
    const { vms, services } = parseConfig(
      "vms: [{name: a, address: 10.0.0.1, check: {kind: icmp}}]\nservices: [{name: s, address: 192.0.2.1, pool: [{vm: a}]}]",
      "F",
    );
    expect(vms).toEqual([
      {
        name: "a",
        zone: "default",
        address: "10.0.0.1",
        labels: [],
        check: { kind: "icmp", interval_seconds: 5, timeout_seconds: 2, fall: 3, rise: 2 },
      },
    ]);
    expect(services).toEqual([
      {
        name: "s",
        zone: "default",
        address: "192.0.2.1",
        protocol: "tcp",
        policy: "maglev",
        pool: [{ vm: "a", weight: 1 }],
        associations: [],
        affinity_seconds: 0,
        on_vm_down: "rebalance",
        answer: "host",
      },
    ]);
  });

  test.each([
    ["vm:web-1", "web-1"],
    ["host", undefined],
    ["none", undefined],
  ])("the answer %j is of the VM %j", (answer, name) => {
    expect(answeringVm(answer)).toBe(name);
  });
});

describe("two services", () => {
  const selector = (name: string, text: string): ServiceSelector => {
    const [zone = "", protocol, address = "", port] = text.split(" ");
    return {
      name,
      zone,
      address,
      protocol: protocol as ServiceSelector["protocol"],
      ...(port !== undefined && { port: Number(port) }),
    };
  };
  const SAME = 'the services "s" and "t" are both for ';
  const CROSS = "overlap: one has the port, the other the longer prefix";

  test.each([
    ["z tcp 10.0.0.1 80", "z tcp 10.0.0.1 80", `${SAME}tcp port 80 of 10.0.0.1`],
    ["z tcp 10.0.0.9/24", "z tcp 10.0.0.1/24", `${SAME}tcp of 10.0.0.9/24`],
    ["z any 10.0.0.1", "z udp 10.0.0.1", `${SAME}udp of 10.0.0.1`],
    ["z any 10.0.0.1", "z any 10.0.0.1", `${SAME}any protocol of 10.0.0.1`],
    [
      "z tcp 10.0.0.0/8 80",
      "z tcp 10.1.0.0/16",
      `the services "s" (tcp port 80 of 10.0.0.0/8) and "t" (any port of 10.1.0.0/16) ${CROSS}`,
    ],
    [
      "z udp 2001:db8::/32 53",
      "z any 2001:db8::1",
      `the services "s" (udp port 53 of 2001:db8::/32) and "t" (any port of 2001:db8::1) ${CROSS}`,
    ],
    ["z tcp 10.0.0.1 80", "y tcp 10.0.0.1 80", null],
    ["z tcp 10.0.0.1 80", "z udp 10.0.0.1 80", null],
    ["z icmp 10.0.0.1", "z tcp 10.0.0.1", null],
    ["z tcp 10.0.0.1 80", "z tcp 10.0.0.1 81", null],
    ["z tcp 10.0.0.0/24 80", "z tcp 10.0.0.0/25 80", null],
    ["z tcp 10.0.0.0/24", "z tcp 10.0.0.0/25", null],
    ["z tcp 10.0.0.0/25 80", "z tcp 10.0.0.0/24", null],
    ["z tcp 10.0.0.0/24 80", "z tcp 10.0.0.0/24", null],
    ["z tcp 10.0.0.0/25 80", "z tcp 10.0.0.128/25", null],
    ["z any 10.0.0.0/24", "z tcp 10.0.0.1", null],
    ["z any 0.0.0.0/0", "z any 2000::/3", null],
  ])("%s and %s", (a, b, message) => {
    const [s, t] = [selector("s", a), selector("t", b)];
    expect(serviceOverlap(s, t)).toBe(message);
    expect(serviceOverlap(t, s) === null).toBe(message === null);
    const found = message === null ? [] : [{ first: 0, second: 1, message }];
    expect(serviceOverlaps([s, t])).toEqual(found);
  });

  test("overlap among many if they do by themselves", () => {
    const random = new Random(7);
    const outcomes = { none: 0, some: 0 };
    for (let round = 0; round < 400; round++) {
      const services = times(2 + random.below(7), (index) => {
        const host = `${random.pick(["10.0.0", "10.0.1"])}.${random.pick([0, 1, 64, 128])}`;
        const port = random.chance(2) ? [random.pick([80, 443])] : [];
        const protocol = random.pick(port.length > 0 ? ["tcp", "udp"] : ["tcp", "udp", "any", "icmp"]);
        const words = [
          random.pick(["y", "z"]),
          protocol,
          `${host}/${random.pick([16, 24, 25, 32, 32])}`,
          ...port,
        ];
        return selector(`s${index}`, words.join(" "));
      });
      const found = serviceOverlaps(services);
      for (const { first, second, message } of found) {
        expect(first).toBeLessThan(second);
        expect(serviceOverlap(services[first]!, services[second]!)).toBe(message);
      }
      expect(new Set(found.map(({ second }) => second)).size).toBe(found.length);
      const pairs = services.some((a, at) =>
        services.slice(at + 1).some((b) => serviceOverlap(a, b) !== null),
      );
      expect(found.length > 0).toBe(pairs);
      outcomes[pairs ? "some" : "none"]++;
    }
    expect(Math.min(...Object.values(outcomes))).toBeGreaterThan(40);
  });
});

describe("many", () => {
  const address = (index: number) => `10.${index >> 16}.${(index >> 8) & 255}.${index & 255}`;
  const short = (index: number) =>
    `  - {name: s${index}, address: ${address(index)}, pool: [{label: web}]}\n`;
  /** With every key. */
  const long = (index: number) => `  - name: service-${index}
    zone: default
    address: ${address(index)}
    port: 443
    protocol: tcp
    policy: source-hash
    pool:
      - vm: a
        weight: 2
      - label: web
    associations:
      - client: 198.51.100.0/24
        label: db
    affinity_seconds: 60
    on_vm_down: reset
    answer: none
`;

  test("services, as many as there may be, each with every key", () => {
    const { services } = parseConfig(`${VMS}services:\n${times(SERVICES_MAX, long).join("")}`, "F");
    expect(services.length).toBe(SERVICES_MAX);
    expect(serviceOverlaps(services)).toEqual([]);
  });

  test("services, more than there may be", () => {
    const text = `${VMS}services:\n${times(20_000, short).join("")}`;
    expect(problemsOf(text)).toEqual(["services: expected at most 16384 services, not 20000"]);
  });

  test("VMs, more than there may be", () => {
    const vms = times(VM_SPECS_MAX + 1, (index) => `  - {name: v${index}, tap: t${index}}\n`);
    expect(problemsOf(`vms:\n${vms.join("")}`)).toEqual(["vms: expected at most 4096 VMs, not 4097"]);
    expect(problemsOf(`vms:\n${vms.slice(1).join("")}`)).toEqual([]);
  });

  test("services that name what there is not are all told of", () => {
    const services = times(2000, (index) => short(index).replace("label: web", "label: wob"));
    const problems = problemsOf(`${VMS}services:\n${services.join("")}`);
    expect(problems.length).toBe(2000);
    const what = 'no VM of the zone default has the label "wob"';
    expect(problems[0]).toBe(`services[0].pool[0].label: ${what} – did you mean "web"?`);
    expect(problems.at(-1)).toBe(`services[1999].pool[0].label: ${what}`);
  });

  test("prefixes of every length, each with and without a port", () => {
    const prefixes = times(33, (bits) => `10.1.2.3/${bits}`).slice(9);
    const services = prefixes.flatMap((prefix, index): ServiceSelector[] => [
      { name: `p${index}`, zone: "z", address: prefix, protocol: "tcp", port: 80 },
      { name: `q${index}`, zone: "z", address: prefix, protocol: "any" },
    ]);
    expect(serviceOverlaps(services).length).toBe(prefixes.length - 1);
    expect(serviceOverlaps(services.filter(({ port }) => port === undefined))).toEqual([]);
    expect(serviceOverlaps(services.filter(({ port }) => port !== undefined))).toEqual([]);
  });

  test.each([
    ["members of a pool", "pool", POOL_MAX + 1, (index: number) => `{vm: v${index}}`, "", "pool"],
    [
      "associations",
      "associations",
      ASSOCIATIONS_PER_SERVICE + 1,
      (index: number) => `{client: ${address(index)}, vm: a}`,
      "pool: [{vm: a}], ",
      "associations",
    ],
  ])("%s, more than there may be", (what, key, count, item, before, path) => {
    const text = `${VMS}services:\n  - {name: s, address: 192.0.2.1, ${before}${key}: [${times(count, item)}]}`;
    expect(problemsOf(text)).toEqual([`services[0].${path}: expected at most 256 ${what}, not 257`]);
  });

  test("members and associations that together have no room", () => {
    const clients = (count: number) =>
      times(
        count,
        (index) => `{client: "2001:db8:${index.toString(16)}:1234:5678::/80", label: ${"l".repeat(31)}}`,
      );
    const text = (count: number) =>
      `vms: [{name: a, tap: t0, labels: [${"l".repeat(31)}]}]\nservices: [{name: s, address: "2001:db8::1", pool: [{vm: a}], associations: [${clients(count)}]}]`;
    expect(problemsOf(text(80))).toEqual([]);
    expect(problemsOf(text(256))).toEqual([
      expect.stringMatching(
        new RegExp(
          `^services\\[0\\]: takes \\d+ bytes in the tables, where ${SERVICE_SPEC_BYTES} have room: name VMs`,
        ),
      ),
    ]);
  });

  test("associations of all services together", () => {
    const clients = times(200, (index) => `{client: ${address(index)}, vm: a}`);
    const services = (count: number) =>
      times(count, (index) => short(index).replace("pool", `associations: *clients, pool`));
    const text = (count: number) =>
      `${VMS}services:\n  - {name: t, address: 192.0.2.1, pool: [{vm: a}], associations: &clients [${clients}]}\n${services(count).join("")}`;
    expect(problemsOf(text(327))).toEqual([
      `services: have 65600 associations together, where ${ASSOCIATIONS_MAX} have room`,
    ]);
    expect(problemsOf(text(326))).toEqual([]);
  });
});

describe("as text in the tables", () => {
  test("every VM has room", () => {
    const name = "n".repeat(31);
    const [vm] = parseConfig(
      JSON.stringify({
        vms: [
          {
            name,
            tap: '"'.repeat(15),
            mac: "02:00:00:00:00:01",
            address: "2001:0db8:0000:0000:0000:ffff:255.255.255.255",
            labels: times(16, (index) => `${index}`.padStart(31, "l")),
            responses: "r".repeat(31),
            check: {
              kind: "https",
              address: "2001:0db8:0000:0000:0000:ffff:255.255.255.254",
              port: 65_535,
              path: `/${'"'.repeat(254)}`,
              host: `${"h".repeat(254)}:65535`,
              status: "200-299",
              verify: false,
              interval_seconds: 1000 / 3,
              timeout_seconds: 10 / 3,
              fall: 100,
              rise: 100,
            },
          },
          { name: "r".repeat(31), tap: "t1" },
        ],
      }),
      "F",
    ).vms;
    const text = vmText(vm!);
    expect(Buffer.byteLength(text)).toBeLessThanOrEqual(VM_SPEC_BYTES);
    expect(parseVm(name, text)).toEqual({ entry: vm });
  });

  test("a service of 128 VMs has room", () => {
    const vms = times(128, (index) => ({ name: `web-server-${index}`, tap: `t${index}` }));
    const pool = vms.map(({ name }) => ({ vm: name, weight: 100 }));
    const services = [{ name: "s", address: "192.0.2.1", pool }];
    const config = parseConfig(JSON.stringify({ vms, services }), "F");
    expect(Buffer.byteLength(serviceText(config.services[0]!))).toBeLessThanOrEqual(SERVICE_SPEC_BYTES);
  });
});
