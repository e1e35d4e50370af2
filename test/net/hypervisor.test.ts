// SPDX-License-Identifier: Apache-2.0
// What libvirt and QEMU call, called as they do, on a host with real taps. QEMU itself calls its scripts in test/guests.

import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { VmDetails } from "../../src/ops/types.ts";
import { attachedOnce, cleanUpDaemons, Daemon } from "../support/daemon.ts";
import { useSite } from "../support/fixture.ts";
import { repositoryPath } from "../support/paths.ts";
import type { Output } from "../support/run.ts";
import { must, run } from "../support/run.ts";

const HOOK = repositoryPath("packaging/libvirt/qemu");
const SHUTDOWN = repositoryPath("packaging/libvirt/lasthop-shutdown");
const IFUP = repositoryPath("packaging/qemu/lasthop-ifup");
const IFDOWN = repositoryPath("packaging/qemu/lasthop-ifdown");
const TAPS = ["vnet7", "vnet8"];
const CONFIG = "uplinks: [{ name: 'up-*' }]\ntaps: [{ name: 'vnet*', policy: observe }]\n";

/** As libvirt 9 writes it, with what might be taken for a tap. */
const DOMAIN = `<domain type='kvm' id='3'>
  <name>web</name>
  <devices>
    <disk type='file' device='disk'>
      <source file='/var/lib/libvirt/images/web.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:07'/>
      <source bridge='br'/>
      <target dev='vnet7'/>
      <model type='virtio'/>
    </interface>
    <interface type='ethernet'>
      <mac address='52:54:00:00:00:08'/>
      <target dev='vnet8' managed='no'/>
    </interface>
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
  </devices>
</domain>
`;

cleanUpDaemons();
let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), `lasthop-hypervisor-${process.pid}-`));
});
afterAll(() => rmSync(directory, { recursive: true }));

const place = (name: string) => join(directory, name);

/** A `lasthop` that writes down what it is asked for; `says` is a case of what it answers. */
function recorder(says: string): { LASTHOP: string; calls: () => string[] } {
  const [program, record] = [place("recorder"), place("record")];
  rmSync(record, { force: true });
  writeFileSync(program, `#!/bin/sh\necho "$*" >>${record}\ncase "$*" in\n${says}\nesac\n`);
  chmodSync(program, 0o755);
  const calls = () => (existsSync(record) ? readFileSync(record, "utf8").trim().split("\n") : []);
  return { LASTHOP: program, calls };
}

function withEnvironment(environment: Record<string, string>, argv: readonly string[]): string[] {
  return ["env", ...Object.entries(environment).map(([name, value]) => `${name}=${value}`), ...argv];
}

const NO_CONFIG = { LASTHOP_CONFIG: "/nowhere/lasthop.yaml" };

describe("libvirt's hook", () => {
  const call = (operation: string, environment: Record<string, string>, extra = "-"): Promise<Output> => {
    const phase = ["stopped", "release"].includes(operation) ? "end" : "begin";
    return run(withEnvironment(environment, [HOOK, "web", operation, phase, extra]), { input: DOMAIN });
  };

  it.each(["prepare", "start", "stopped", "migrate", "restore", "reconnect", "attach"])(
    "does nothing on %s, and leaves the domain as it is",
    async (operation) => {
      const { LASTHOP, calls } = recorder("");
      expect(await call(operation, { LASTHOP })).toEqual({ status: 0, stdout: "", stderr: "" });
      expect(calls()).toEqual([]);
    },
  );

  it("takes back a VM that was drained, but none that was set down", async () => {
    for (const [operator, taken] of [
      ['"operator": "drain"', ["--json vms show web", "--json vms up web"]],
      ['"operator": "down"', ["--json vms show web"]],
      ['"operator": null', ["--json vms show web"]],
    ] as const) {
      const { LASTHOP, calls } = recorder(`*"vms show"*) echo '{ "name": "web", ${operator} }' ;;`);
      expect(await call("started", { LASTHOP, ...NO_CONFIG })).toEqual({ status: 0, stdout: "", stderr: "" });
      expect(calls()).toEqual(taken);
    }
  });

  it.each(["started", "release"])(
    "lets a guest go on, %s, whatever fails, and says what",
    async (operation) => {
      const config = place("any.yaml");
      writeFileSync(config, CONFIG);
      const { LASTHOP } = recorder(
        `*apply*) echo '{"code":"E_BPF","message":"no"}' >&2; exit 1 ;; *) exit 1 ;;`,
      );
      const { status, stdout, stderr } = await call(operation, { LASTHOP, LASTHOP_CONFIG: config });
      expect([status, stdout]).toEqual([0, ""]);
      expect(stderr).toContain(
        `guest web, ${operation}: lasthop apply --config ${config} failed: {"code":"E_BPF"`,
      );
    },
  );
});

describe("lasthop-shutdown", () => {
  const virsh = (calls: string[]) => calls.filter((line) => line.startsWith("shutdown"));

  it("waits until the VM has no flows left", async () => {
    const count = place("count");
    writeFileSync(count, "");
    const { LASTHOP, calls } = recorder(
      `*"vms show"*) echo x >>${count}; if [ "$(wc -l <${count})" -gt 1 ]; then n=0; else n=3; fi
      printf '{\\n  "name": "web",\\n  "flows": %s,\\n  "flows_started": 77\\n}\\n' $n ;;`,
    );
    await must(withEnvironment({ LASTHOP, VIRSH: LASTHOP }, [SHUTDOWN, "web"]));
    const show = "--json vms show web";
    expect(calls()).toEqual(["vms drain web", show, show, "shutdown web"]);
  });

  it("does not wait for ever", async () => {
    const { LASTHOP, calls } = recorder(`*"vms show"*) echo '{"flows":3,"flows_started":5}' ;;`);
    const output = await run(withEnvironment({ LASTHOP, VIRSH: LASTHOP }, [SHUTDOWN, "web", "0"]));
    expect(output).toMatchObject({ status: 0, stderr: "lasthop-shutdown: web still has 3 flows\n" });
    expect(virsh(calls())).toEqual(["shutdown web"]);
  });

  it("leaves a guest running of which lasthop knows nothing", async () => {
    const { LASTHOP, calls } = recorder(`*drain*) echo "no VM web" >&2; exit 1 ;;`);
    const output = await run(withEnvironment({ LASTHOP, VIRSH: LASTHOP }, [SHUTDOWN, "web"]));
    expect(output).toMatchObject({ status: 1, stderr: "no VM web\n" });
    expect(virsh(calls())).toEqual([]);
  });
});

describe("on a host with taps", () => {
  const ground = useSite({ vms: 0 });
  const config = () => place("lasthop.yaml");

  beforeEach(async () => {
    writeFileSync(config(), CONFIG);
    await makeTaps();
  });

  const makeTaps = () =>
    ground.site.host.ip(
      ...TAPS.flatMap((tap) => [
        `tuntap add dev ${tap} mode tap vnet_hdr`,
        `link set dev ${tap} master br up`,
      ]),
    );
  const removeTaps = () => ground.site.host.ip(...TAPS.map((tap) => `link del dev ${tap}`));

  /** Called by root on the host, with this instance. */
  const call = (program: string, args: string[], environment: Record<string, string>): Promise<Output> =>
    ground.site.host.run(
      withEnvironment({ LASTHOP: ground.lasthop.argv().join(" "), ...environment }, [program, ...args]),
      { input: DOMAIN },
    );
  const hook = async (operation: "started" | "release", environment: Record<string, string>) => {
    const args = ["web", operation, operation === "started" ? "begin" : "end", "-"];
    expect(await call(HOOK, args, environment)).toEqual({ status: 0, stdout: "", stderr: "" });
  };
  const attached = async () => {
    const { stdout } = await ground.lasthop.run("--json", "status");
    const { interfaces } = JSON.parse(stdout || '{ "interfaces": [] }') as {
      interfaces: { interface: string; policy: string; state: string }[];
    };
    return interfaces
      .filter((item) => TAPS.includes(item.interface))
      .map((item) => `${item.interface} ${item.policy}`)
      .sort();
  };

  it("the hook attaches by hand what the domain has, if it is told the policy", async () => {
    await hook("started", NO_CONFIG);
    expect(await attached()).toEqual([]);
    await hook("started", { ...NO_CONFIG, LASTHOP_POLICY: "off" });
    expect(await attached()).toEqual(["vnet7 off", "vnet8 off"]);
    // Another guest has the names next.
    await removeTaps();
    await hook("release", { ...NO_CONFIG, LASTHOP_POLICY: "off" });
    await makeTaps();
    await hook("started", { ...NO_CONFIG, LASTHOP_POLICY: "observe" });
    expect(await attached()).toEqual(["vnet7 observe", "vnet8 observe"]);
    await attachedOnce(ground, TAPS);
    await removeTaps();
    await ground.lasthop.detachAll();
  });

  it("the hook applies the configuration without a daemon", async () => {
    await hook("started", { LASTHOP_CONFIG: config() });
    expect(await attached()).toEqual(["vnet7 observe", "vnet8 observe"]);
    await removeTaps();
    await hook("release", { LASTHOP_CONFIG: config() });
    expect(await attached()).toEqual([]);
    await ground.lasthop.detachAll();
  });

  it.each([
    ["drain", null],
    ["down", "down"],
  ] as const)(
    "the hook turns the operator's word %s into %s when the guest starts again",
    async (word, then) => {
      const vm = "vms: [{ name: web, tap: vnet7, mac: '52:54:00:00:00:07' }]\n";
      writeFileSync(config(), CONFIG + vm);
      await hook("started", { LASTHOP_CONFIG: config() });
      await ground.lasthop.must("vms", word, "web");
      await removeTaps();
      await hook("release", { LASTHOP_CONFIG: config() });
      expect(await web()).toMatchObject({ operator: word, state: "down" });
      await makeTaps();
      await hook("started", { LASTHOP_CONFIG: config() });
      expect(await web()).toMatchObject({ operator: then });
      await removeTaps();
      await ground.lasthop.detachAll();
    },
  );

  const web = () => ground.lasthop.json<VmDetails>("vms", "show", "web");

  it("neither hook nor scripts are in the way of a daemon", async () => {
    const daemon = await Daemon.start(ground, CONFIG);
    await attachedOnce(ground, TAPS);
    for (const policy of ["", "off"]) {
      const environment = { LASTHOP_CONFIG: config(), LASTHOP_POLICY: policy, LASTHOP_BRIDGE: "br" };
      await hook("started", environment);
      expect(await call(IFUP, ["vnet7"], environment)).toEqual({ status: 0, stdout: "", stderr: "" });
      expect(await call(IFDOWN, ["vnet7"], environment)).toEqual({ status: 0, stdout: "", stderr: "" });
      await hook("release", environment);
      expect(await attached()).toEqual(["vnet7 observe", "vnet8 observe"]);
    }
    await removeTaps();
    await daemon.stop();
    await ground.lasthop.detachAll();
  });

  it("QEMU's scripts attach, and take what they attached along", async () => {
    const environment = { ...NO_CONFIG, LASTHOP_POLICY: "enforce", LASTHOP_BRIDGE: "br" };
    await ground.site.host.ip("link set dev vnet7 nomaster down");
    expect(await call(IFUP, ["vnet7"], environment)).toEqual({ status: 0, stdout: "", stderr: "" });
    expect(await ground.site.host.must(["ip", "link", "show", "dev", "vnet7"])).toMatch(
      /[<,]UP[,>].* master br /,
    );
    expect(await attached()).toEqual(["vnet7 enforce"]);
    expect(await call(IFDOWN, ["vnet7"], environment)).toEqual({ status: 0, stdout: "", stderr: "" });
    expect(await attached()).toEqual([]);
    await removeTaps();
    await ground.lasthop.detachAll();
  });

  it("a guest without its bridge does not start; one whose tap cannot be attached does", async () => {
    const bridgeless = await call(IFUP, ["vnet7"], { ...NO_CONFIG, LASTHOP_BRIDGE: "br9" });
    expect(bridgeless.status).not.toBe(0);
    const environment = { LASTHOP: "false", LASTHOP_CONFIG: config(), LASTHOP_BRIDGE: "" };
    const { status, stderr } = await call(IFUP, ["vnet7"], environment);
    expect([status, stderr]).toEqual([0, expect.stringContaining("lasthop-ifup: lasthop apply")]);
    await removeTaps();
  });
});
