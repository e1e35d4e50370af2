// SPDX-License-Identifier: Apache-2.0
// Others on the same host: what their rules and programs do to us and we to them, and that doctor says so.

import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { DoctorCheck, DoctorReport } from "../../src/ops/types.ts";
import { attachAll, FAMILIES, type Ground, useSite } from "../support/fixture.ts";
import { repositoryPath } from "../support/paths.ts";
import { addFilter, counted, keepTags, removeFilter } from "../support/tools.ts";

const report = ({ lasthop }: Ground) => lasthop.json<DoctorReport>("doctor");
async function checkOf(ground: Ground, name: string): Promise<DoctorCheck> {
  return (await report(ground)).checks.find((check) => check.name === name)!;
}
async function notesOf(ground: Ground, device: string): Promise<string> {
  return (await report(ground)).interfaces.find((item) => item.interface === device)!.notes.join("\n");
}
const flush = ({ site }: Ground) => site.host.must(["nft", "flush", "ruleset"]);
const load = ({ site }: Ground, rules: string) => site.host.must(["nft", "-f", "-"], { input: rules });

/** Packets of all `counter` statements in a chain. */
async function packets({ site }: Ground, ...chain: string[]): Promise<number> {
  const text = await site.host.must(["nft", "list", "chain", ...chain]);
  return [...text.matchAll(/counter packets (\d+)/g)].reduce((sum, match) => sum + Number(match[1]), 0);
}

/** A TCP connection from the client to the VM: whether data comes back. */
async function echoes({ site }: Ground, family: 4 | 6): Promise<boolean> {
  const key = `coexist${family}`;
  const agent = site.client.agent;
  await agent.call("open", { key, host: site.vm.address[family], port: 7 });
  const failed = await agent.call("echo", { key, timeoutMs: 1_000 }).then(
    () => false,
    () => true,
  );
  await agent.call("close", { key, reset: true });
  return !failed;
}

describe("rules on a routed host", () => {
  const ground = useSite({ host: "routed" }, attachAll);
  afterEach(() => flush(ground));

  const guard = (first: string) => `
    table inet guard {
      chain fw { type filter hook forward priority 0; policy accept
        ${first}
        ct state invalid counter drop
      }
    }`;

  it.each(FAMILIES)("IPv%i: by connection state drop what they have seen half of", async (family) => {
    await load(ground, guard(""));
    expect(await echoes(ground, family)).toBe(false);
    expect(await checkOf(ground, "connection state")).toMatchObject({
      level: "warn",
      found: "inet guard fw (forward)",
      hint: expect.stringContaining("notrack"),
    });
  });

  it.each(FAMILIES)("IPv%i: that accept the uplinks first do not", async (family) => {
    const uplinks = ground.site.uplinks.map((name) => `"${name}"`).join(", ");
    await load(ground, guard(`iifname { ${uplinks} } accept`));
    expect(await echoes(ground, family)).toBe(true);
    expect(await checkOf(ground, "connection state")).toMatchObject({ level: "ok" });
  });

  it.each(FAMILIES)("IPv%i: nor those that do not track the uplinks", async (family) => {
    const uplinks = ground.site.uplinks.map((name) => `"${name}"`).join(", ");
    await load(
      ground,
      `${guard("")}
      table inet raw {
        chain in { type filter hook prerouting priority raw; iifname { ${uplinks} } notrack
        }
      }`,
    );
    expect(await echoes(ground, family)).toBe(true);
    expect(await checkOf(ground, "connection state")).toMatchObject({ level: "ok" });
  });

  it.each(FAMILIES)("IPv%i: see requests and no replies, at every hook that is named", async (family) => {
    const { site } = ground;
    const [tap, uplink] = [site.vm.tap, site.uplinkOf("a")];
    const address = site.vm.address[family];
    const from = `${family === 4 ? "ip" : "ip6"} saddr ${address} tcp sport 7 counter`;
    await load(
      ground,
      `table netdev n {
        chain tapin { type filter hook ingress device "${tap}" priority 0; ${from}
        }
        chain upout { type filter hook egress device "${uplink}" priority 0; ${from}
        }
      }
      table inet i {
        chain pre { type filter hook prerouting priority 0; ${from}
        }
        chain fw { type filter hook forward priority 0; ${from}
        }
        chain post { type filter hook postrouting priority 0; ${from}
        }
      }`,
    );
    await addFilter(site.host, uplink, "egress", "count");
    const before = await counted(site.host, uplink, "egress");
    expect(await echoes(ground, family)).toBe(true);
    // TC egress does see them; netfilter's egress hook does not.
    expect((await counted(site.host, uplink, "egress")) - before).toBeGreaterThan(2);
    const hooks = [
      ["netdev", "n", "tapin"],
      ["netdev", "n", "upout"],
      ["inet", "i", "pre"],
      ["inet", "i", "fw"],
      ["inet", "i", "post"],
    ];
    for (const hook of hooks) expect(await packets(ground, ...hook), hook.join(" ")).toBe(0);
    const { found } = await checkOf(ground, "netfilter");
    for (const hook of hooks) expect(found).toContain(hook.join(" "));
    await removeFilter(site.host, uplink, "egress");
  });

  it("that name others are none of ours", async () => {
    await load(
      ground,
      `table inet theirs {
        chain fw { type filter hook forward priority 0; iifname "docker0" drop; oifname "virbr*" ct state invalid drop
        }
        chain local { type filter hook input priority 0; policy drop;
        }
      }
      table netdev wan {
        chain in { type filter hook ingress device "${ground.site.uplinkOf("a")}" priority 0; counter
        }
      }`,
    );
    for (const name of ["netfilter", "connection state", "nat"]) {
      expect(await checkOf(ground, name), name).toMatchObject({ level: "ok" });
    }
  });

  it("that name what is attached come first", async () => {
    await load(
      ground,
      `table inet every {
        chain fw { type filter hook forward priority 0; meta mark 7 drop
        }
      }
      table ip firewalld {
        chain mine { type filter hook forward priority 9; iifname "${ground.site.vm.tap}" log
        }
      }`,
    );
    expect(await checkOf(ground, "netfilter")).toMatchObject({
      level: "warn",
      found: `ip firewalld mine (forward): of firewalld, names ${ground.site.vm.tap}, inet every fw (forward)`,
    });
  });
});

describe("what docs/coexistence.md tells to set", () => {
  const ground = useSite({ host: "routed" }, attachAll);
  const document = readFileSync(repositoryPath("docs/coexistence.md"), "utf8");
  const snippets = [...document.matchAll(/^```nft\n(.*?)^```/gms)].map((match) => match[1]!);
  afterEach(() => flush(ground));

  it("are two rulesets", () => {
    expect(snippets).toHaveLength(2);
  });

  it.each(snippets)("is taken by nft, and ends the warning: %#", async (snippet) => {
    const { site } = ground;
    const [a, b] = site.uplinks;
    const guard = `table inet guard {
      chain fw { type filter hook forward priority 10; ct state invalid drop
      }
    }`;
    const rules = snippet.replaceAll('"eth0"', `"${a}"`).replaceAll('"eth1"', `"${b}"`);
    // The first holds for its own chain; the second for all.
    await load(ground, rules.includes("notrack") ? rules + guard : rules);
    expect(await checkOf(ground, "connection state")).toMatchObject({ level: "ok" });
    expect(await echoes(ground, 4)).toBe(true);
  });
});

describe("rules on a bridged host", () => {
  const ground = useSite({ host: "bridged" }, attachAll);
  afterEach(() => flush(ground));

  it("of the bridge are gone past, those of the stack are not on the way", async () => {
    await load(
      ground,
      `table bridge nw {
        chain fw { type filter hook forward priority 0; iifname "${ground.site.vm.tap}" ip protocol tcp counter drop
        }
      }
      table inet host {
        chain fw { type filter hook forward priority 0; policy drop; ct state established accept
        }
      }`,
    );
    const before = await packets(ground, "bridge", "nw", "fw");
    expect(await echoes(ground, 4)).toBe(true);
    expect((await packets(ground, "bridge", "nw", "fw")) - before).toBeLessThan(3);
    expect(await checkOf(ground, "netfilter")).toMatchObject({
      level: "warn",
      found: `bridge nw fw (forward): names ${ground.site.vm.tap}`,
    });
    expect(await checkOf(ground, "connection state")).toMatchObject({ level: "ok" });
  });

  it("of the stack are, once frames of the bridge pass it", async () => {
    const { site } = ground;
    const call = "net.bridge.bridge-nf-call-iptables";
    await site.host.must(["sysctl", "-qw", `${call}=1`]);
    await load(
      ground,
      `table ip host {
        chain fw { type filter hook forward priority 0; ct state invalid drop
        }
      }`,
    );
    expect(await echoes(ground, 4)).toBe(false);
    expect(await checkOf(ground, "connection state")).toMatchObject({
      level: "warn",
      found: "ip host fw (forward)",
    });
    await site.host.must(["sysctl", "-qw", `${call}=0`]);
    expect(await echoes(ground, 4)).toBe(true);
  });

  it("a bridge forgets VMs while no daemon keeps them", async () => {
    const found = await checkOf(ground, "bridge ageing");
    expect(found).toMatchObject({ level: "warn", hint: expect.stringContaining("ageing_time") });
    expect(found.found).toContain("br after 300 s");
    for (const tap of ground.site.taps) {
      await ground.lasthop.must("attach", tap, "--role", "tap", "--policy", "observe");
    }
    expect(await checkOf(ground, "bridge ageing")).toMatchObject({ level: "ok" });
    for (const tap of ground.site.taps) {
      await ground.lasthop.must("attach", tap, "--role", "tap", "--policy", "enforce");
    }
  });
});

describe("programs of others", () => {
  const ground = useSite({ host: "bridged" });
  const clsact = (...words: string[]) =>
    ground.site.host.must(["env", "LASTHOP_TC=clsact", ...ground.lasthop.argv(...words)]);

  /** A command line with another pin root. */
  const elsewhere = (...words: string[]) =>
    ground.lasthop
      .argv(...words)
      .map((word) => (word === ground.lab.pinRoot ? `${ground.lab.pinRoot}other` : word));

  it("that come before ours on clsact are named", async () => {
    const { site } = ground;
    const device = site.vm.tap;
    await addFilter(site.host, device, "ingress", "count", 10);
    const before = await counted(site.host, device, "ingress");
    await clsact("attach", device, "--role", "tap");
    const output = await site.host.must([
      "env",
      "LASTHOP_TC=clsact",
      ...ground.lasthop.argv("--json", "doctor"),
    ]);
    const item = (JSON.parse(output) as DoctorReport).interfaces.find(
      ({ interface: name }) => name === device,
    )!;
    expect(item.notes.join("\n")).toContain("filters of somebody else run first (program ");
    await site.vm.namespace.run(["ping", "-c", "1", "-W", "1", site.a.address[4]]);
    expect(await counted(site.host, device, "ingress")).toBeGreaterThan(before);
    await removeFilter(site.host, device, "ingress", 10);
    await ground.lasthop.detachAll();
  });

  it("that come before ours by TCX are named; they may be another instance of ours", async () => {
    const { site, lab } = ground;
    const device = site.uplinkOf("a");
    const other = `${lab.pinRoot}other`;
    const second = (...words: string[]) => site.host.must(elsewhere(...words));
    try {
      await second("attach", device, "--role", "uplink");
      expect(await notesOf(ground, device)).toContain("TCX programs of somebody else run first");
      expect(await checkOf(ground, "programs")).toMatchObject({
        level: "ok",
        found: expect.stringContaining(`${device} (${other})`),
      });
      await ground.lasthop.attach(device, "uplink");
      expect(await notesOf(ground, device)).toContain("TCX programs of somebody else run first");
      await second("detach", "--all", "--purge");
      expect(await notesOf(ground, device)).not.toContain("TCX programs");
    } finally {
      rmSync(other, { recursive: true, force: true });
      await ground.lasthop.detachAll();
    }
  });

  it("of XDP are named on what is attached by TC", async () => {
    const { site } = ground;
    const device = site.uplinkOf("b");
    await keepTags(site.host, device);
    await ground.lasthop.attach(device, "uplink", { mode: "generic" });
    expect(await notesOf(ground, device)).not.toContain("XDP program");
    const output = await site.host.must(elsewhere("doctor"));
    expect(output).toMatch(new RegExp(`${device}: XDP program \\d+ of somebody else runs first`));
    await ground.lasthop.detachAll();
  });

  it("of ours that no pin leads to any longer are found", async () => {
    const { site, lab, lasthop } = ground;
    const device = site.uplinkOf("a");
    expect(await checkOf(ground, "programs")).toMatchObject({ level: "ok", found: "no strays" });
    await clsact("attach", device, "--role", "uplink");
    rmSync(lab.pinRoot, { recursive: true, force: true });
    const found = await checkOf(ground, "programs");
    expect(found).toMatchObject({ level: "warn", hint: expect.stringContaining("pref 27752") });
    expect(found.found).toContain(device);
    await site.host.must(["tc", "filter", "del", "dev", device, "ingress", "pref", "27752"]);
    expect(await checkOf(ground, "programs")).toMatchObject({ level: "ok" });
    await lasthop.run("detach", "--all", "--purge");
  });
});

describe("managers of the host", () => {
  const ground = useSite({ host: "bridged" }, attachAll);
  let fake: string;
  beforeAll(() => {
    fake = mkdtempSync(join(tmpdir(), `lasthop-run-${process.pid}-`));
  });
  afterAll(() => rmSync(fake, { recursive: true, force: true }));

  const put = (path: string, text: string) => {
    mkdirSync(dirname(join(fake, path)), { recursive: true });
    writeFileSync(join(fake, path), text);
  };

  /** With a /run of its own, and as if the host's process 1 were in the host's namespace. */
  async function doctorWithRun(): Promise<DoctorReport> {
    const script = 'mount -t tmpfs tmpfs /run && cp -r "$1/." /run/ && shift && exec "$@"';
    const argv = ["unshare", "-m", "-p", "-f", "--mount-proc", "sh", "-c", script, "-", fake];
    return JSON.parse(
      await ground.site.host.must([...argv, ...ground.lasthop.argv("--json", "doctor")]),
    ) as DoctorReport;
  }

  it("that are not there are not", async () => {
    const { checks } = await doctorWithRun();
    for (const name of ["libvirt", "networkmanager", "networkd", "openvswitch"]) {
      expect(checks.find((check) => check.name === name)).toMatchObject({
        level: "ok",
        found: "not running",
      });
    }
  });

  it("are seen by what they leave in /run", async () => {
    const { site, lasthop } = ground;
    const { tap } = site.vm;
    const index = (name: string) =>
      lasthop.status().then((status) => status.interfaces.find((item) => item.interface === name)!.ifindex);
    const [tapIndex, uplink] = [await index(tap), site.uplinkOf("a")];
    put(`NetworkManager/devices/${tapIndex}`, "[device]\nmanaged=true\nconnection-uuid=1-2\n");
    put(`NetworkManager/devices/${await index(uplink)}`, "[device]\nmanaged=true\n");
    put(`systemd/netif/links/${tapIndex}`, "# This is private data. Do not parse.\nADMIN_STATE=configured\n");
    put("libvirt/virtqemud-sock", "");
    put(
      `libvirt/nwfilter-binding/${tap}.xml`,
      `<filterbindingb><portdev name='${tap}'/><filterref filter='clean-traffic'/></filterbindingb>`,
    );
    put(
      "libvirt/network/default.xml",
      "<networkstatus><class_id bitmap='0-2'/><network><name>default</name><forward mode='nat'/><bridge name='br' stp='on'/></network></networkstatus>",
    );
    put(
      "libvirt/qemu/web.xml",
      `<domstatus><domain><devices>
        <interface type='direct'><source dev='${uplink}' mode='bridge'/><target dev='macvtap0'/></interface>
        <interface type='hostdev' managed='yes'><source/></interface>
      </devices></domain></domstatus>`,
    );
    const { checks } = await doctorWithRun();
    const find = (name: string) => checks.find((check) => check.name === name)!;
    expect(find("networkmanager")).toMatchObject({
      level: "warn",
      found: expect.stringContaining(`manages ${tap}:`),
      hint: expect.stringContaining(`unmanaged-devices=interface-name:${tap} `),
    });
    expect(find("networkmanager").found).not.toContain(uplink);
    expect(find("networkd")).toMatchObject({ level: "warn", hint: expect.stringContaining("Unmanaged=yes") });
    const { found } = find("libvirt");
    expect(found).toContain(`nwfilter clean-traffic on ${tap}`);
    expect(found).toContain(`${tap} is in the network default (br)`);
    expect(found).toContain(`web has a macvtap (macvtap0) on ${uplink}`);
    expect(found).toContain("web has a virtual function");
  });

  it("of another network namespace say nothing about this one", async () => {
    const script = 'mount -t tmpfs tmpfs /run && cp -r "$1/." /run/ && shift && exec "$@"';
    const argv = ["unshare", "-m", "sh", "-c", script, "-", fake, ...ground.lasthop.argv("--json", "doctor")];
    const output = await ground.site.host.must(argv);
    const { checks } = JSON.parse(output) as DoctorReport;
    expect(checks.find(({ name }) => name === "networkmanager")).toMatchObject({ found: "not running" });
  });
});

describe("kinds of interfaces", () => {
  const ground = useSite({ host: "bridged" });

  it("that cannot be attached are refused with the reason, and doctor says the same", async () => {
    await ground.site.host.ip("link add funnel type ifb");
    const { interfaces } = await report(ground);
    const funnel = interfaces.find((item) => item.interface === "funnel")!;
    const why = "it is an ifb";
    expect(funnel).toMatchObject({ auto_mode: null, reason: expect.stringContaining(why) });
    const refused = await ground.lasthop.run("attach", "funnel", "--role", "uplink");
    expect([refused.status, refused.stderr]).toEqual([1, expect.stringContaining(why)]);
  });

  it("a macvtap is one of them, a macvlan is no tap", async (context) => {
    const { site } = ground;
    const uplink = site.uplinkOf("a");
    const probe = await site.host.run([
      "ip",
      "link",
      "add",
      "mvt",
      "link",
      uplink,
      "type",
      "macvtap",
      "mode",
      "bridge",
    ]);
    if (probe.status !== 0) context.skip("this kernel has no macvtap");
    const tap = await ground.lasthop.run("attach", "mvt", "--role", "tap");
    expect([tap.status, tap.stderr]).toEqual([1, expect.stringContaining("it is a macvtap")]);
    await site.host.ip("link del mvt", `link add mvl link ${uplink} type macvlan mode bridge`);
    const asTap = await ground.lasthop.run("attach", "mvl", "--role", "tap");
    expect([asTap.status, asTap.stderr]).toEqual([1, expect.stringContaining("not what a VM sent")]);
    await ground.lasthop.attach("mvl", "uplink");
    await ground.lasthop.detachAll();
    await site.host.ip("link del mvl");
  });
});
