// SPDX-License-Identifier: Apache-2.0
// The firewalls' ends of built-in tunnels that the kernel has no driver for: an instance of lasthop each.

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { Lab } from "../support/lab.ts";
import { Lasthop } from "../support/lasthop.ts";
import type { Ground } from "./topology.ts";

export class FarEnds {
  /** Each has a pin root, nothing else. */
  readonly #labs: Lab[] = [];

  async start({ stands }: Ground, folder: string): Promise<void> {
    for (const { namespace, ends, place } of stands) {
      if (ends.firewall.tunnel === undefined) continue;
      const lab = new Lab();
      this.#labs.push(lab);
      const lasthop = await Lasthop.on(lab, namespace);
      const path = join(folder, `firewall-${place.number}.yaml`);
      writeFileSync(path, JSON.stringify({ tunnels: [ends.firewall.tunnel] }, undefined, 2));
      await lasthop.must("apply", "-c", path);
    }
  }

  async close(): Promise<void> {
    for (const lab of this.#labs.splice(0)) await lab.close();
  }
}
