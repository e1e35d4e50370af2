// SPDX-License-Identifier: Apache-2.0
// What doctor says of an instance: whether it is kept up, of this build, and has room.

import { rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { ABI_NAME } from "../../src/kernel/instance.ts";
import type { DoctorCheck, DoctorReport } from "../../src/ops/types.ts";
import { attachAll, useSite } from "../support/fixture.ts";
import { must } from "../support/run.ts";

const HAS_TABLES = [
  "daemon",
  "build",
  "fill",
  "sweep",
  "clock",
  "bypass",
  "bridge ageing",
  "tunnels",
  "services",
];

describe("doctor", () => {
  const ground = useSite({ host: "bridged" });
  const config = join(tmpdir(), `lasthop-doctor-${process.pid}.yaml`);
  afterAll(() => rmSync(config, { force: true }));

  const checks = async (): Promise<Map<string, DoctorCheck>> => {
    const report = await ground.lasthop.json<DoctorReport>("doctor");
    return new Map(report.checks.map((check) => [check.name, check]));
  };

  it("has nothing to say of tables that there are not", async () => {
    const found = await checks();
    expect(found.get("tables")).toMatchObject({ level: "ok", found: "none: nothing is attached" });
    for (const name of HAS_TABLES) expect(found.has(name), name).toBe(false);
    expect(found.get("programs")).toMatchObject({ level: "ok", found: "no strays" });
  });

  it("warns of what nobody keeps up", async () => {
    await attachAll(ground);
    const found = await checks();
    for (const name of HAS_TABLES) expect(found.has(name), name).toBe(true);
    expect(found.get("daemon")).toMatchObject({
      level: "warn",
      found: expect.stringContaining("not running"),
    });
    expect(found.get("sweep")).toMatchObject({ level: "warn", found: expect.stringContaining("never") });
    expect(found.get("bridge ageing")).toMatchObject({ level: "warn" });
    expect(found.get("build")).toMatchObject({ level: "ok" });
    expect(found.get("clock")).toMatchObject({ level: "ok" });
    expect(found.get("fill")).toMatchObject({ level: "ok" });
    await ground.lasthop.must("sweep");
    expect((await checks()).get("sweep")).toMatchObject({
      level: "ok",
      found: expect.stringMatching(/^\d s ago/),
    });
  });

  it("warns of bypass", async () => {
    await ground.lasthop.must("bypass", "on");
    expect((await checks()).get("bypass")).toMatchObject({ level: "warn" });
    await ground.lasthop.must("bypass", "off");
    expect((await checks()).get("bypass")).toMatchObject({ level: "ok", found: "off" });
  });

  it("tells another build's programs, until they are exchanged", async () => {
    const pin = join(ground.lab.pinRoot, ABI_NAME, "maps/identity");
    // The first byte of the object's SHA-256 is turned; the rest of the record stays.
    const [record] = JSON.parse(await must(["bpftool", "-j", "map", "dump", "pinned", pin])) as {
      value: string[];
    }[];
    const other = record!.value.map((byte, at) =>
      at === 0 ? `0x${(255 - Number(byte)).toString(16)}` : byte,
    );
    await must(["bpftool", "map", "update", "pinned", pin, "key", "0", "0", "0", "0", "value", ...other]);
    expect((await checks()).get("build")).toMatchObject({
      level: "warn",
      found: expect.stringContaining("another build"),
      hint: expect.stringContaining("restart"),
    });
    await ground.lasthop.must("upgrade");
    expect((await checks()).get("build")).toMatchObject({ level: "ok" });
  });

  it("finds more than one of our programs on an interface", async () => {
    const { site, lasthop } = ground;
    const device = site.uplinkOf("a");
    const { ifindex } = (await lasthop.status()).interfaces.find((item) => item.interface === device)!;
    const links = join(ground.lab.pinRoot, ABI_NAME, "links");
    // As a change of role leaves it when it is interrupted between its two steps.
    const program = join(ground.lab.pinRoot, ABI_NAME, "programs/reply_tc");
    await site.host.must(["tc", "qdisc", "add", "dev", device, "clsact"]);
    const filter = ["dev", device, "ingress", "protocol", "all", "pref", "27752", "handle", "1"];
    await site.host.must([
      "tc",
      "filter",
      "add",
      ...filter,
      "bpf",
      "direct-action",
      "object-pinned",
      program,
    ]);
    expect((await must(["ls", links])).split("\n")).toContain(`uplink-${ifindex}`);
    const found = (await checksWhateverTheStatus()).get("programs")!;
    expect(found).toMatchObject({ level: "fail", found: expect.stringContaining(device) });
    await lasthop.must("attach", device, "--role", "uplink");
    expect((await checks()).get("programs")).toMatchObject({ level: "ok" });
  });

  async function checksWhateverTheStatus(): Promise<Map<string, DoctorCheck>> {
    const output = await ground.lasthop.run("--json", "doctor");
    expect(output.status).toBe(1);
    const report = JSON.parse(output.stdout) as DoctorReport;
    return new Map(report.checks.map((check) => [check.name, check]));
  }

  it("is content with a daemon", async () => {
    const { site, lasthop } = ground;
    await lasthop.detachAll();
    const lines = [
      "uplinks:",
      ...site.uplinks.map((name) => `  - name: ${name}`),
      "taps:",
      ...site.taps.map((name) => `  - name: ${name}`),
      "metrics: { enabled: false }",
    ];
    writeFileSync(config, `${lines.join("\n")}\n`);
    const daemon = site.host.start(lasthop.argv("run", "--config", config));
    let found = new Map<string, DoctorCheck>();
    for (
      let tries = 0;
      tries < 50 && found.get("daemon")?.found !== "`lasthop run` holds this instance";
      tries++
    ) {
      found = await checks();
    }
    expect(found.get("daemon"), daemon.stderr).toMatchObject({
      level: "ok",
      found: "`lasthop run` holds this instance",
    });
    expect(found.get("bridge ageing")).toMatchObject({ level: "ok" });
    expect(found.get("sweep")).toMatchObject({ level: "ok" });
    expect(await daemon.stop()).toBe(0);
    expect((await checks()).get("daemon")).toMatchObject({ level: "warn" });
    await lasthop.detachAll();
  });
});
