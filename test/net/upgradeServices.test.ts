// SPDX-License-Identifier: Apache-2.0
// Services while the version changes: tables that lie otherwise are taken over, and nobody waits for a VM.

import { existsSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { ServiceEntry, VmEntry } from "../../src/ops/types.ts";
import { type Build, otherLayout } from "../support/builds.ts";
import { Configured } from "../support/configured.ts";
import { Lasthop } from "../support/lasthop.ts";
import {
  askAnew,
  bothFamilies,
  MORE_CLIENTS,
  serviceConfig,
  tally,
  useServiceSite,
} from "../support/serviceSite.ts";

interface Standing {
  vms: Pick<VmEntry, "name" | "state">[];
  services: Pick<ServiceEntry, "name">[];
}

describe("a version whose tables of services lie otherwise", () => {
  const ground = useServiceSite({});
  let old: Build;
  let configured: Configured | undefined;

  beforeAll(async () => {
    old = await otherLayout("0.0.9", (header) => {
      const grown = [
        ["vm_cell", "24", "28"],
        ["service", "16", "20"],
        ["pool", "12", "16"],
        ["affinity", "8", "12"],
      ] as const;
      let text = header;
      for (const [name, size, more] of grown) {
        text = text
          .replace(`struct ${name} {\n`, `struct ${name} {\n\t__u32 formerly;\n`)
          .replace(`ASSERT_BYTES(struct ${name}, ${size})`, `ASSERT_BYTES(struct ${name}, ${more})`);
      }
      // The text of a VM's entry is elsewhere.
      return text
        .replace("\t__u8 text[VM_SPEC_BYTES];", "\t__u8 formerly[4];\n\t__u8 text[VM_SPEC_BYTES];")
        .replace("ASSERT_BYTES(struct vm_spec, 28 +", "ASSERT_BYTES(struct vm_spec, 32 +");
    });
  }, 120_000);
  afterAll(() => {
    configured?.close();
    old?.remove();
  });

  it("hands its VMs, services and flows over", async () => {
    const { site, lab, lasthop } = ground;
    const former = await Lasthop.on(lab, site.host, old.program);
    configured = new Configured(former);
    const [first, second, third] = site.vms.map(({ name }) => name) as [string, string, string];
    const services = bothFamilies({
      protocol: "any",
      pool: [{ vm: first, weight: 3 }, { vm: second }],
      associations: [],
    }).map((service, at) => {
      const client = `${MORE_CLIENTS[at === 0 ? 4 : 6][7]}`;
      return { ...service, associations: [{ client, vm: third }] };
    });
    const report = await configured.run("apply", serviceConfig(ground, { services }));
    expect(report.stderr).toBe("");
    const standing = async (tool: Lasthop): Promise<Standing> => ({
      vms: (await tool.lines<VmEntry>("vms", "list")).map(({ name, state }) => ({ name, state })),
      services: (await tool.lines<ServiceEntry>("services", "list")).map(({ name }) => ({ name })),
    });
    const before = await standing(former);
    const asked = async () => {
      const names: string[] = [];
      for (const family of [4, 6] as const) {
        names.push(...(await askAnew(ground, family, 24)));
        const from = { localAddress: MORE_CLIENTS[family][7] };
        expect(tally(await askAnew(ground, family, 2, from))).toEqual({ [third]: 2 });
      }
      return Object.keys(tally(names)).sort();
    };
    expect(await asked()).toEqual([first, second]);
    const asking = asked();
    const { changes } = await lasthop.json<{ changes: { kind: string }[] }>("upgrade");
    expect(changes.map(({ kind }) => kind)).toEqual(["layout"]);
    expect(await asking).toEqual([first, second]);
    expect(await standing(lasthop)).toEqual(before);
    expect(await asked()).toEqual([first, second]);
    // As it is, it is as it was configured.
    const again = new Configured(lasthop);
    try {
      expect((await again.plan(serviceConfig(ground, { services }))).actions).toEqual([]);
    } finally {
      again.close();
    }
  });

  it("has a VM down while its tap is detached, and up with it", async () => {
    const { site, lasthop } = ground;
    const [first, second] = site.vms as [(typeof site.vms)[0], (typeof site.vms)[0]];
    const state = async () => (await lasthop.json<VmEntry>("vms", "show", second.name)).state;
    await lasthop.must("detach", second.tap);
    expect(await state()).toBe("down");
    expect(tally(await askAnew(ground, 4, 8))).toEqual({ [first.name]: 8 });
    await lasthop.attach(second.tap, "tap");
    expect(await state()).toBe("up");
    await lasthop.must("detach", "--all", "--purge");
    expect(existsSync(ground.lab.pinRoot)).toBe(false);
  });
});
