// SPDX-License-Identifier: Apache-2.0
// The configurations among which the soak changes.

import type { Random } from "../kernel/support/random.ts";
import type { Site } from "../support/site.ts";

export interface Variant {
  observeThird?: boolean;
  withoutDevices?: boolean;
  exclude?: boolean;
  withoutC?: boolean;
}

/** Timeouts and passes are short, so that much expires in little time; small embryonic tables are full soon. */
export function configuration(site: Site, variant: Variant = {}): string {
  const uplinks = variant.withoutC ? ["up-a", "up-b"] : ["up-*"];
  const exclude = variant.exclude ? ", exclude: [{ remote: 192.0.2.0/24, port: 99, protocol: tcp }]" : "";
  const devices = variant.withoutDevices
    ? []
    : [
        `{ name: fw-a, macs: ["${site.a.mac}"], interface: up-a, on_down: hold }`,
        `{ name: fw-c, macs: ["${site.firewall("c").mac}"], interface: "up-*", on_down: route }`,
        `{ name: fw-b, addresses: ["${site.b.address[4]}", "${site.b.address[6]}"], interface: up-b }`,
      ];
  return [
    `uplinks: [${uplinks.map((name) => `{ name: "${name}"${exclude} }`).join(", ")}]`,
    `taps: [{ name: "tap3", policy: ${variant.observeThird ? "observe" : "enforce"} }, { name: "tap*"${exclude} }]`,
    `devices: [${devices.join(", ")}]`,
    "timeouts: { syn: 2, tcp: 3600, closed: 1, udp: 3, udp_provisional: 1, icmp: 2 }",
    "tables: { flows4: 16384, flows6: 16384, embryos4: 4096, embryos6: 4096 }",
    "sweep: { interval_min_seconds: 1, interval_max_seconds: 3, cpu_percent: 10 }",
    "",
  ].join("\n");
}

const BAD = [
  "uplinks: [{ nam: up-a }]\n",
  "taps: [{ name: tap1, policy: sometimes }]\n",
  "timeouts: { tcp: never }\n",
  "uplinks: [\n",
  "sweep: { cpu_percent: 0 }\nunknown: true\n",
];

export function bad(random: Random): string {
  return random.pick(BAD);
}
