// SPDX-License-Identifier: Apache-2.0
// A site for the tests of one `describe`, taken down after them.

import { afterAll, beforeAll } from "vitest";

export { FAMILIES } from "./addresses.ts";

import { Lab } from "./lab.ts";
import { Lasthop } from "./lasthop.ts";
import type { Site } from "./site.ts";
import { buildSite, type SiteOptions } from "./topology.ts";

export interface Ground {
  lab: Lab;
  site: Site;
  lasthop: Lasthop;
}

/** Builds before the tests; `prepare` follows, for instance to attach. Only tests may read the result. */
export function useSite(options: SiteOptions, prepare?: (ground: Ground) => Promise<unknown>): Ground {
  const ground = {} as Ground;
  let lab: Lab | undefined;
  beforeAll(async () => {
    lab = new Lab();
    const site = await buildSite(lab, options);
    Object.assign(ground, { lab, site, lasthop: await Lasthop.on(lab, site.host) });
    await prepare?.(ground);
  });
  afterAll(() => lab?.close());
  return ground;
}

/** Attaches every uplink and every tap of the site. */
export async function attachAll({ site, lasthop }: Ground): Promise<void> {
  await lasthop.attachAll(site.uplinks, site.taps);
}

export function bracket(address: string): string {
  return address.includes(":") ? `[${address}]` : address;
}
