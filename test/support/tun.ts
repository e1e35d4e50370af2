// SPDX-License-Identifier: Apache-2.0
// A routed host's uplink without a link layer: tun devices at both ends of a cable that is a process.

import { FAMILIES, transfer, VM_PREFIX } from "./addresses.ts";
import { INSIDE } from "./firewall.ts";
import type { Lab } from "./lab.ts";
import type { Site } from "./site.ts";
import { tool } from "./tools.ts";

/** In place of the veth pair between host and firewall a, with the same names, addresses and routes. */
export async function plugTun(lab: Lab, site: Site): Promise<void> {
  const { host, a } = site;
  const device = site.uplinkOf("a");
  await host.ip(`link del dev ${device}`);
  const cable = host.start([await tool("tun-cable.c"), host.path, device, a.namespace.path, INSIDE]);
  lab.keep(cable);
  await cable.writes(/^ready$/m);
  for (const [namespace, name, end] of [
    [host, device, "host"],
    [a.namespace, INSIDE, "firewall"],
  ] as const) {
    await namespace.ip(
      ...FAMILIES.map((family) => {
        const bits = family === 4 ? 24 : 64;
        return `addr add ${transfer(false, 0, end)[family]}/${bits} dev ${name}${family === 6 ? " nodad" : ""}`;
      }),
      `link set dev ${name} up`,
    );
  }
  await a.namespace.ip(
    ...FAMILIES.map((family) => `route add ${VM_PREFIX[family]} via ${transfer(false, 0, "host")[family]}`),
  );
}
