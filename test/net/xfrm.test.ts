// SPDX-License-Identifier: Apache-2.0
// One XFRM interface for all firewalls (`type xfrm external`): only the interface id of a request's security
// association tells them apart. The wire is the matrix's: strict firewalls, captures decoded by tshark.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FAMILIES, type Kind } from "../matrix/kinds/kind.ts";
import { KINDS, missingKinds } from "../matrix/kinds.ts";
import { Matrix, pairName, SLOWER } from "../matrix/matrix.ts";
import type { Stand } from "../matrix/topology.ts";
import type { Family } from "../support/addresses.ts";
import { type Build, otherLayout } from "../support/builds.ts";
import { Configured, told } from "../support/configured.ts";
import { HAS_TCX } from "../support/kernel.ts";
import { Lab } from "../support/lab.ts";
import { Lasthop } from "../support/lasthop.ts";
import { must, TIMEOUT_FACTOR } from "../support/run.ts";

const DEVICE = "x-xfrm";
const NAMES = ["xfrm-external", "nic"];

const probe = new Lab();
const missing = await missingKinds(probe.namespace("probe")).finally(() => probe.close());
const lacks = new Set(missing.map(({ kind }) => kind.name));
const kinds = NAMES.map((name) => KINDS.find((kind) => kind.name === name)!);
const lacking = missing.find(({ kind }) => kinds.includes(kind));

if (lacking === undefined) {
  describe("one XFRM interface for all firewalls", sharing);
  describe("an upgrade of a host with a shared XFRM interface", upgrading);
} else {
  it("one XFRM interface for all firewalls", ({ skip }) => skip(`this kernel lacks it: ${lacking.reason}`));
}

function sharing(): void {
  const folder = mkdtempSync(join(tmpdir(), `lasthop-xfrm-${process.pid}-`));
  let matrix: Matrix;
  let lasthop: Lasthop;
  let configured: Configured;
  let configuration: string;

  const standsOf = (kind: Kind): Stand[] => matrix.ground.stands.filter((stand) => stand.kind === kind);

  beforeAll(
    async () => {
      matrix = await Matrix.build({ kinds, lacks, copies: 2, bytes: 100_000 });
      await matrix.attach(folder);
      lasthop = await Lasthop.on(matrix.ground.lab, matrix.ground.host);
      configured = new Configured(lasthop);
      configuration = JSON.stringify(matrix.configuration());
    },
    300_000 + 60_000 * SLOWER,
  );
  afterAll(async () => {
    configured?.close();
    await matrix?.close();
    rmSync(folder, { recursive: true, force: true });
  }, 60_000 * SLOWER);

  /** Each of the two with the other as default route. An address is one pair's, so each is played once. */
  async function play(...families: Family[]): Promise<void> {
    const [one, other] = standsOf(kinds[0]!) as [Stand, Stand];
    for (const family of families) {
      await matrix.play([{ ingress: one, egress: other, family }]);
      await matrix.play([{ ingress: other, egress: one, family }]);
    }
  }

  /** The same with another interface as default route. */
  async function playByNic(...families: Family[]): Promise<void> {
    const [egress] = standsOf(kinds[1]!) as [Stand];
    for (const family of families) {
      for (const ingress of standsOf(kinds[0]!)) await matrix.play([{ ingress, egress, family }]);
    }
  }

  const linkPins = async (): Promise<string[]> =>
    (await must(["sh", "-c", `ls ${matrix.ground.lab.pinRoot}/v*/links`]))
      .split("\n")
      .filter((name) => name.startsWith("xfrm_"));

  it("has programs that follow its interface ids, and is shown as shared", async () => {
    const status = await lasthop.status();
    expect(status.interfaces.find((item) => item.interface === DEVICE)).toMatchObject({
      ...{ shared_tunnel: true, link_layer: "none", state: "ok", foreign_program_ids: [] },
    });
    expect(await configured.plan(configuration)).toMatchObject({ actions: [], status: 0 });
  });

  it("carries replies to the firewall that asked, each under its own id", async () => {
    await play(4);
    const hops = (await lasthop.lastHops()).filter((hop) => hop.interface === DEVICE);
    const ids = standsOf(kinds[0]!).map(({ place }) => place.number);
    expect(hops.map(({ tunnel }) => tunnel)).toEqual(
      expect.arrayContaining(ids.map((id) => ({ remote: null, local: null, id }))),
    );
    expect(hops.length).toBe(ids.length);
    expect(await lasthop.must("last-hops", "list")).toContain(`if_id ${ids[0]}`);
  });

  it("goes on while programs and tables are exchanged", async () => {
    const resized = JSON.stringify({ ...matrix.configuration(), tables: { flows4: 8192 } });
    expect((await configured.apply(resized)).status).toBe(0);
    expect(await configured.plan(resized)).toMatchObject({ actions: [], status: 0 });
    await play(6);
  });

  it.skipIf(!HAS_TCX)("gets back what somebody has taken away", async () => {
    const [pin] = await linkPins();
    const path = `${matrix.ground.lab.pinRoot}/v*/links/${pin}`;
    await must(["sh", "-c", `bpftool link detach pinned ${path} && rm ${path}`]);
    const status = await lasthop.status();
    expect(status.interfaces.find((item) => item.interface === DEVICE)!.state).toBe("program_gone");
    const plan = await configured.plan(configuration);
    expect(told(plan)).toContain(`change ${DEVICE}`);
    expect((await configured.apply(configuration)).status).toBe(0);
    expect(await linkPins()).toHaveLength(2);
    await playByNic(...FAMILIES);
  });

  it("every reply was in the right form, and no other firewall saw one", async () => {
    const verdicts = await matrix.verdicts();
    expect(verdicts.length).toBe(HAS_TCX ? 8 : 4);
    for (const verdict of verdicts) expect(verdict.failures, pairName(verdict)).toEqual([]);
  });

  it("leaves nothing on it when it is detached", async () => {
    await lasthop.must("detach", DEVICE);
    expect(await linkPins()).toEqual([]);
    const { host } = matrix.ground;
    const shown = await host.must(["bpftool", "net", "show", "dev", DEVICE]);
    expect(shown).not.toMatch(/xfrm_|learn_tc/);
    for (const side of ["ingress", "egress"]) {
      expect((await host.run(["tc", "filter", "show", "dev", DEVICE, side])).stdout).toBe("");
    }
  });
}

function upgrading(): void {
  const lab = new Lab();
  const host = lab.namespace("host");
  let other: Build;
  let lasthop: Lasthop;
  let configured: Configured;

  beforeAll(async () => {
    await must(["ip", "netns", "add", host.name]);
    await host.ip(`link add ${DEVICE} type xfrm external`, `link set dev ${DEVICE} up`);
    lasthop = await Lasthop.on(lab, host);
    configured = new Configured(lasthop);
    other = await otherLayout("9.9.2", (header) =>
      header
        .replace("struct tunnel {\n", "struct tunnel {\n\t__u32 formerly;\n")
        .replace(/(ASSERT_BYTES\(struct tunnel, )(\d+)/, (_, text, bytes) => `${text}${Number(bytes) + 4}`),
    );
  }, 300_000 * TIMEOUT_FACTOR);
  afterAll(async () => {
    configured?.close();
    await lab.close();
    other?.remove();
  });

  it.each(HAS_TCX ? (["tcx", "clsact"] as const) : (["clsact"] as const))(
    "by %s to and from another layout: its programs follow",
    async (hook) => {
      const tool = (of: Lasthop, ...args: string[]) =>
        host.must(["env", `LASTHOP_TC=${hook}`, ...of.argv(...args)], { timeoutMs: 60_000 * TIMEOUT_FACTOR });
      const ids = async () => {
        const { programs, interfaces } = await lasthop.status();
        expect(interfaces).toMatchObject([{ interface: DEVICE, state: "ok", foreign_program_ids: [] }]);
        return programs.filter(({ name }) => name.startsWith("xfrm_")).map(({ id }) => id);
      };
      configured.write(`{uplinks: [{name: ${DEVICE}}]}`);
      await tool(lasthop, "apply", "-c", configured.file);
      const before = await ids();
      expect(before).toHaveLength(2);
      await tool(await Lasthop.on(lab, host, other.program), "upgrade");
      await tool(lasthop, "upgrade");
      const after = await ids();
      expect(after).toHaveLength(2);
      for (const id of before) expect(after).not.toContain(id);
      expect(await tool(lasthop, "plan", "-c", configured.file)).not.toContain(DEVICE);
      await tool(lasthop, "detach", "--all", "--purge");
      for (const side of ["ingress", "egress"]) {
        expect(await host.must(["tc", "filter", "show", "dev", DEVICE, side])).toBe("");
      }
    },
    600_000,
  );
}
