// SPDX-License-Identifier: Apache-2.0
// The daemon with the privileges that its systemd unit leaves it, and the unit itself.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { attachedOnce, cleanUpDaemons, Daemon, WHOLE_SITE } from "../support/daemon.ts";
import { FAMILIES, useSite } from "../support/fixture.ts";
import { repositoryPath } from "../support/paths.ts";
import { run, until } from "../support/run.ts";

cleanUpDaemons();

let daemon: Daemon | undefined;
afterEach(async () => {
  await daemon?.stop();
  daemon = undefined;
});

const UNIT = readFileSync(repositoryPath("packaging/lasthop.service"), "utf8");

/** Of the unit: ["bpf", "net_admin", …]. */
function unitCapabilities(): string[] {
  const set = /^CapabilityBoundingSet=(.*)$/m.exec(UNIT)?.[1] ?? "";
  return set.split(" ").map((name) => name.replace("CAP_", "").toLowerCase());
}

describe("root with nothing but the unit's capabilities", () => {
  const ground = useSite({ vms: 1 });

  it("attaches, forwards, expires and is measured", async () => {
    const { site, lasthop } = ground;
    const names = unitCapabilities();
    expect(names).toEqual(["bpf", "net_admin", "perfmon"]);
    const bounding = ["-all", ...names.map((name) => `+${name}`)].join(",");
    const sweeping = "sweep: { interval_min_seconds: 1, interval_max_seconds: 1 }\ntimeouts: { udp: 1 }\n";
    daemon = await Daemon.start(ground, WHOLE_SITE + sweeping, {
      prefix: ["setpriv", "--bounding-set", bounding, "--inh-caps=-all", "--no-new-privs"],
    });
    const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(
      readFileSync(`/proc/${daemon.pid}/status`, "utf8"),
    )?.[1];
    // CAP_NET_ADMIN 12, CAP_PERFMON 38, CAP_BPF 39.
    expect(BigInt(`0x${effective}`)).toBe((1n << 12n) | (1n << 38n) | (1n << 39n));

    for (const family of FAMILIES) {
      const key = `few${family}`;
      await site.client.agent.call("open", { key, host: site.vm.address[family], port: 7 });
      await site.client.agent.call("echo", { key });
      await site.client.agent.call("udp", { host: site.vm.address[family], port: 7, text: "x" });
    }
    expect((await site.b.counts()).packets("dropped")).toBe(0);

    await site.host.ip("link add tap9 up type veth peer name peer9", "link set peer9 up");
    await attachedOnce(ground, [...site.uplinks, ...site.taps, "tap9"]);
    await site.host.ip("link del tap9");
    await until(
      async () => (await lasthop.status()).interfaces.every((one) => one.interface !== "tap9"),
      "tap9 to be forgotten",
    );
    await until(async () => (await lasthop.flows()).every((flow) => flow.protocol !== "udp"), "the sweep");
    expect(await daemon.metric("lasthop_daemon_running")).toBe(1);
    expect(daemon.lines.filter((line) => /: error:/.test(line))).toEqual([]);
    expect(await daemon.stop()).toBe(0);
  });

  it("without one of them it says which, and ends", async () => {
    for (const name of unitCapabilities()) {
      const rest = unitCapabilities().filter((other) => other !== name);
      const bounding = ["-all", ...rest.map((other) => `+${other}`)].join(",");
      const poor = Daemon.launch(ground, WHOLE_SITE, {
        prefix: ["setpriv", "--bounding-set", bounding, "--inh-caps=-all", "--no-new-privs"],
      });
      expect(await poor.process.exited).toBe(1);
      expect(poor.process.stderr).toContain(`CAP_${name.toUpperCase()}`);
    }
  });
});

describe("the unit", () => {
  it("is accepted by systemd", async () => {
    const analyze = await run(["systemd-analyze", "--version"]).catch(() => undefined);
    expect(analyze?.status, "systemd-analyze is needed").toBe(0);
    const directory = mkdtempSync(join(tmpdir(), "lasthop-unit-"));
    try {
      const path = join(directory, "lasthop.service");
      writeFileSync(path, UNIT.replace("/usr/bin/lasthop", "/bin/true"));
      const output = await run(["systemd-analyze", "verify", "--man=no", path]);
      expect(output.stderr + output.stdout).toBe("");
      expect(output.status).toBe(0);
      writeFileSync(path, UNIT.replace("/usr/bin/lasthop", "/bin/true").replace("Type=notify", "Typ=notify"));
      expect((await run(["systemd-analyze", "verify", "--man=no", path])).stderr).toContain("Typ");
    } finally {
      rmSync(directory, { recursive: true });
    }
  });

  it("says what the daemon relies on", () => {
    for (const line of [
      "Type=notify",
      "NotifyAccess=main",
      "Restart=on-failure",
      "NoNewPrivileges=yes",
      "Before=libvirtd.service virtqemud.service",
      "ExecStart=/usr/bin/lasthop run --config /etc/lasthop/lasthop.yaml",
    ]) {
      expect(UNIT.split("\n")).toContain(line);
    }
    expect(UNIT).toMatch(/^WatchdogSec=\d+$/m);
    expect(UNIT).toMatch(/^After=.*sys-fs-bpf\.mount/m);
    // What would keep it from its work.
    expect(UNIT).not.toMatch(
      /^(ProtectKernelTunables|MemoryDenyWriteExecute|PrivateNetwork|PrivateUsers)=yes/m,
    );
  });
});
