// SPDX-License-Identifier: Apache-2.0
// The parts of doctor that can be asked without a kernel: what is refused, what files say, what is made of it.

import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ROLE } from "../../src/abi/layout.gen.ts";
import {
  type HostFacts,
  isHostNetns,
  readHost,
  readPort,
  readSriov,
  whyNotAttachable,
} from "../../src/kernel/coexistence.ts";
import type { Link } from "../../src/kernel/rtnetlink.ts";
import { fillCheck, sweepCheck } from "../../src/ops/doctor/instance.ts";
import { foreignNotes } from "../../src/ops/doctor/interfaces.ts";
import {
  libvirtCheck,
  networkdCheck,
  networkManagerCheck,
  openvswitchCheck,
  type Surroundings,
} from "../../src/ops/doctor/network.ts";
import { clockSourceCheck, limitsCheck, lockdownCheck } from "../../src/ops/doctor/system.ts";
import type { InterfaceEntry } from "../../src/tables/index.ts";
import { repositoryPath } from "../support/paths.ts";

/** Without a link layer. */
const BARE: Partial<Link> = { ethernet: false, bareIp: true, mac: null };
const LINK: Link = {
  ifindex: 7,
  name: "if7",
  mac: "02:00:00:00:00:07",
  mtu: 1500,
  ethernet: true,
  flags: { up: true, running: true, loopback: false },
  kind: null,
  lower: null,
  master: null,
  masterKind: null,
  parentDevice: null,
  portState: null,
  linkNetns: null,
  xdp: null,
  txQueues: 1,
};
const link = (more: Partial<Link>): Link => ({ ...LINK, ...more });

describe("kinds of interfaces", () => {
  const links = { link: (ifindex: number) => (ifindex === 9 ? link({ name: "eth9" }) : undefined) };

  test.each<[string, Partial<Link>, "uplink" | "tap" | undefined]>([
    ["hardware", { parentDevice: "0000:01:00.0" }, "uplink"],
    ["a veth", { kind: "veth" }, "tap"],
    ["a tap", { kind: "tun" }, "tap"],
    ["a VLAN", { kind: "vlan", lower: 9 }, "uplink"],
    ["a bond", { kind: "bond" }, "uplink"],
    ["a team", { kind: "team" }, "uplink"],
    ["a port of a bridge", { master: 9, masterKind: "bridge" }, "tap"],
    ["a port of Open vSwitch", { master: 9, masterKind: "openvswitch" }, "uplink"],
    ["an interface of a VRF", { master: 9, masterKind: "vrf" }, "uplink"],
    ["a macvlan as uplink", { kind: "macvlan", lower: 9 }, "uplink"],
    ["a macvlan in some role", { kind: "macvlan", lower: 9 }, undefined],
    ["a netkit in mode l2", { kind: "netkit" }, "tap"],
    ["a bridge", { kind: "bridge" }, "uplink"],
    ["a VXLAN device", { kind: "vxlan" }, "uplink"],
    ["a shared VXLAN device", { kind: "vxlan", external: true }, "uplink"],
    ["a tun", { ...BARE, kind: "tun" }, "uplink"],
    ["a GRE", { ...BARE, kind: "gre" }, "uplink"],
    ["an XFRM interface", { ...BARE, kind: "xfrm" }, "uplink"],
    ["a WireGuard in some role", { ...BARE, kind: "wireguard" }, undefined],
    ["an ipvlan in mode l2", { kind: "ipvlan", lower: 9 }, "uplink"],
  ])("%s can be attached", (_, more, role) => {
    expect(whyNotAttachable(links, link(more), role)).toBeNull();
  });

  test.each<[string, Partial<Link>, "uplink" | "tap" | undefined, string]>([
    ["loopback", { flags: { up: true, running: true, loopback: true } }, undefined, "the loopback interface"],
    ["a slave of a bond", { master: 9, masterKind: "bond" }, "uplink", "it is a slave of eth9"],
    [
      "a slave of a bond that has gone",
      { master: 8, masterKind: "bond" },
      "uplink",
      "it is a slave of its bond",
    ],
    ["a port of a team", { master: 9, masterKind: "team" }, "uplink", "it is a slave of eth9"],
    ["a tun as tap", { ...BARE, kind: "tun" }, "tap", "no Ethernet header"],
    ["a bridge as tap", { kind: "bridge" }, "tap", "it is a bridge"],
    ["a VRF", { kind: "vrf" }, undefined, "it is a VRF"],
    ["an ifb", { kind: "ifb" }, "uplink", "comes in by another interface"],
    ["a dummy", { kind: "dummy" }, "uplink", "nothing ever comes in"],
    ["what is neither Ethernet nor IP", { ethernet: false, mac: null }, "uplink", "neither with an Ethernet"],
    ["a GRE without a remote", { ...BARE, kind: "gre", anyRemote: true }, "uplink", "without a remote end"],
    ["a shared ERSPAN", { kind: "erspan", external: true }, "uplink", "shared ERSPAN"],
    ["an ipvlan in mode l3", { kind: "ipvlan", lower: 9, routesItself: true }, "uplink", "mode l3"],
    ["a WireGuard as tap", { ...BARE, kind: "wireguard" }, "tap", "no Ethernet header"],
    ["Open vSwitch's own", { kind: "openvswitch", name: "ovs-system" }, "uplink", "Open vSwitch's own"],
    ["a macvtap", { kind: "macvtap", lower: 9 }, "tap", "it is a macvtap"],
    ["a macvtap as uplink", { kind: "macvtap", lower: 9 }, "uplink", "leaves by the interface below"],
    ["an ipvtap", { kind: "ipvtap" }, undefined, "it is an ipvtap"],
    ["a macvlan as tap", { kind: "macvlan", lower: 9 }, "tap", "what eth9 received"],
    ["an ipvlan as tap", { kind: "ipvlan", lower: 3 }, "tap", "what the interface below received"],
    ["a netkit in mode l3", { kind: "netkit", mac: "00:00:00:00:00:00" }, "tap", "mode l3"],
  ])("%s is refused", (_, more, role, why) => {
    const refusal = whyNotAttachable(links, link(more), role);
    expect(refusal?.why).toContain(why);
    expect(refusal?.hint.length).toBeGreaterThan(15);
  });
});

// Files

let root: string;
beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), `lasthop-doctor-${process.pid}-`));
  const put = (path: string, text: string) => {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
  };
  put("run/NetworkManager/devices/7", "[device]\nmanaged=true\n");
  put("run/NetworkManager/devices/8", "[device]\nmanaged=false\n");
  put("run/systemd/netif/links/7", "# private\nADMIN_STATE=configured\nOPER_STATE=routable\n");
  put("run/systemd/netif/links/8", "ADMIN_STATE=unmanaged\n");
  put("run/systemd/netif/links/9", "nothing of the kind");
  put("run/libvirt/libvirt-sock", "");
  put(
    "run/libvirt/nwfilter-binding/if7.xml",
    `<!-- generated --><filterbindingb><portdev name="if7"/><filterref filter="no-ip-spoofing"/></filterbindingb>`,
  );
  put(
    "run/libvirt/network/default.xml",
    "<networkstatus><network><forward/><bridge name='virbr0'/></network></networkstatus>",
  );
  put("run/libvirt/network/alone.xml", "<network><name>alone</name><bridge name='virbr1'/></network>");
  put("run/libvirt/network/vf.xml", "<network><forward mode='hostdev'/></network>");
  put("run/libvirt/network/broken.xml", "<network><bridge name='virbr9'/>");
  put("run/libvirt/network/default.pid", "12");
  put(
    "run/libvirt/qemu/web.xml",
    `<domstatus><domain><name>web</name><devices>
       <interface type='bridge'><source bridge='br0'/><target dev='if7'/></interface>
       <interface type='direct'><source dev='eth0' mode='passthrough'/><target dev='macvtap0'/></interface>
       <interface type='hostdev' managed='yes'><source><address type='pci'/></source></interface>
     </devices></domain></domstatus>`,
  );
  put("etc/libvirt/hooks/qemu", "#!/bin/sh\nexit 0\n");
  put("etc/libvirt/hooks/qemu.d/10-lasthop", '#!/bin/sh\nlasthop attach "$tap" --role tap\n');
  // Our own.
  put("etc/libvirt/hooks/qemu.d/20-lasthop", readFileSync(repositoryPath("packaging/libvirt/qemu"), "utf8"));
  put("run/openvswitch/db.sock", "");
  const pci = "sys/bus/pci/devices";
  for (const [device, driver] of [
    ["0000:01:10.0", "vfio-pci"],
    ["0000:01:10.2", "iavf"],
  ] as const) {
    put(`sys/bus/pci/drivers/${driver}/bind`, "");
    mkdirSync(join(root, pci, device), { recursive: true });
    symlinkSync(`../../drivers/${driver}`, join(root, pci, device, "driver"));
  }
  mkdirSync(join(root, pci, "0000:01:00.0"), { recursive: true });
  mkdirSync(join(root, pci, "0000:02:00.0"), { recursive: true });
  symlinkSync("../0000:01:10.0", join(root, pci, "0000:01:00.0/virtfn0"));
  symlinkSync("../0000:01:10.2", join(root, pci, "0000:01:00.0/virtfn1"));
  symlinkSync("../0000:01:00.0", join(root, pci, "0000:01:10.2/physfn"));
  put("sys/class/net/if7/ifindex", "7\n");
  put("sys/class/net/wlan0/phy80211/name", "phy0");
  put("sys/class/net/rep0/phys_port_name", "pf0vf1\n");
  put("sys/class/net/port0/phys_port_name", "p0\n");
});
afterAll(() => rmSync(root, { recursive: true, force: true }));

describe("what managers leave in files", () => {
  test("is read where they are", () => {
    const host = readHost(true, root);
    expect(host.networkManager).toEqual({ running: true, managed: new Set([7]) });
    expect([...host.networkd]).toEqual([
      [7, "configured"],
      [8, "unmanaged"],
    ]);
    expect(host.openvswitch).toEqual({ running: true });
    expect(host.libvirt.running).toBe(true);
    expect([...host.libvirt.filters]).toEqual([["if7", "no-ip-spoofing"]]);
    expect(host.libvirt.networks).toEqual([
      { name: "alone", bridge: "virbr1", forward: null },
      { name: "default", bridge: "virbr0", forward: "nat" },
    ]);
    expect(host.libvirt.interfaces).toEqual([
      { domain: "web", type: "bridge", target: "if7", source: "br0" },
      { domain: "web", type: "direct", target: "macvtap0", source: "eth0" },
      { domain: "web", type: "hostdev", target: null, source: null },
    ]);
    expect(host.libvirt.hooks.map(({ path }) => path.slice(root.length))).toEqual([
      "/etc/libvirt/hooks/qemu",
      "/etc/libvirt/hooks/qemu.d/10-lasthop",
      "/etc/libvirt/hooks/qemu.d/20-lasthop",
    ]);
  });

  test("is nothing of another namespace's, and nothing where nobody is", () => {
    for (const host of [readHost(false, root), readHost(true, join(root, "none"))]) {
      expect(host.networkManager).toEqual({ running: false, managed: new Set() });
      expect(host.networkd.size).toBe(0);
      expect(host.libvirt).toMatchObject({ running: false, networks: [], interfaces: [], hooks: [] });
      expect(host.openvswitch.running).toBe(false);
    }
  });

  test("process 1 that cannot be looked at is told by what /sys shows", () => {
    expect(isHostNetns([LINK], root)).toBe(true);
    expect(isHostNetns([LINK, link({ ifindex: 8, name: "if8" })], root)).toBe(false);
    expect(isHostNetns([link({ ifindex: 6 })], root)).toBe(false);
  });

  test("functions of network cards", () => {
    expect(readSriov("0000:01:00.0", root)).toEqual({ functions: 2, passedThrough: 1, isFunction: false });
    expect(readSriov("0000:01:10.2", root)).toEqual({ functions: 0, passedThrough: 0, isFunction: true });
    for (const device of ["0000:02:00.0", "virtio0", "../../x", null]) {
      expect(readSriov(device, root)).toBeNull();
    }
  });

  test("radios and representors", () => {
    expect(readPort("wlan0", root)).toEqual({ wireless: true, representor: false });
    expect(readPort("rep0", root)).toEqual({ wireless: false, representor: true });
    for (const name of ["port0", "if7", "gone"]) {
      expect(readPort(name, root)).toEqual({ wireless: false, representor: false });
    }
  });
});

// What is made of it

const entry = (ifindex: number, role: number): InterfaceEntry =>
  ({ ifindex, role, name: `if${ifindex}`, zone: 0, policy: 0 }) as InterfaceEntry;

function around(more: Partial<Surroundings> = {}, host: Partial<HostFacts> = {}): Surroundings {
  return {
    links: [LINK, link({ ifindex: 8, name: "eth0" }), link({ ifindex: 10, name: "virbr0", kind: "bridge" })],
    attached: [entry(7, ROLE.TAP), entry(8, ROLE.UPLINK)],
    ruleset: { chains: [], unknown: [] },
    host: { ...readHost(true, join(root, "none")), ...host },
    ...more,
  };
}

describe("managers", () => {
  test("NetworkManager may have uplinks, not taps", () => {
    const managing = (...managed: number[]) =>
      networkManagerCheck(around({}, { networkManager: { running: true, managed: new Set(managed) } }));
    expect(managing(8)).toMatchObject({ level: "ok" });
    expect(managing(7)).toMatchObject({
      level: "warn",
      found: expect.stringContaining("manages if7"),
      hint: expect.stringContaining("unmanaged-devices=interface-name:if7"),
    });
    expect(networkManagerCheck(around())).toMatchObject({ level: "ok", found: "not running" });
  });

  test.each([
    ["configured", "warn"],
    ["configuring", "warn"],
    ["unmanaged", "ok"],
  ])("networkd's state %s of a tap is at %s", (state, level) => {
    expect(networkdCheck(around({}, { networkd: new Map([[7, state]]) })).level).toBe(level);
    expect(networkdCheck(around({}, { networkd: new Map([[8, state]]) })).level).toBe("ok");
  });

  test("libvirt: filters, networks behind NAT, guests that go past the host, hooks", () => {
    const found = libvirtCheck(
      around(
        {
          links: [
            link({ master: 10, masterKind: "bridge" }),
            link({ ifindex: 8, name: "eth0" }),
            link({ ifindex: 10, name: "virbr0", kind: "bridge" }),
          ],
        },
        { libvirt: readHost(true, root).libvirt },
      ),
    );
    expect(found.level).toBe("warn");
    for (const text of [
      "nwfilter no-ip-spoofing on if7",
      "if7 is in the network default (virbr0)",
      "web has a macvtap (macvtap0) on eth0",
      "web has a virtual function",
      "10-lasthop calls lasthop",
    ]) {
      expect(found.found).toContain(text);
    }
    expect(found.found).not.toContain("20-lasthop");
    const nothing = { ...readHost(true, root).libvirt, filters: new Map(), interfaces: [], hooks: [] };
    expect(libvirtCheck(around({}, { libvirt: nothing }))).toMatchObject({ level: "ok" });
  });

  test("Open vSwitch: its ports", () => {
    expect(openvswitchCheck(around())).toMatchObject({ level: "ok", found: "not running" });
    const ports = [
      link({ master: 10, masterKind: "openvswitch" }),
      link({ ifindex: 10, name: "ovs-system", kind: "openvswitch" }),
    ];
    expect(openvswitchCheck(around({ links: ports }))).toMatchObject({
      level: "warn",
      found: expect.stringContaining("if7"),
    });
    expect(openvswitchCheck(around({ links: ports, attached: [] }))).toMatchObject({
      level: "ok",
      found: expect.stringContaining("running"),
    });
  });
});

describe("programs of others", () => {
  const place = { name: "if7", ours: 40, xdp: null, tcx: [40], filters: [] };

  test("that come after ours are none of our business", () => {
    expect(foreignNotes({ ...place, tcx: [40, 41] })).toEqual([]);
    const late = [{ priority: 27752, kind: "bpf", programId: 40 }];
    expect(foreignNotes({ ...place, tcx: [], filters: late })).toEqual([]);
  });

  test.each([
    ["TCX", { tcx: [39, 40] }, "TCX programs of somebody else run first (39)"],
    ["TCX where ours is not yet", { ours: null, tcx: [38, 39] }, "run first (38, 39)"],
    ["XDP", { xdp: 12 }, "XDP program 12 of somebody else runs first"],
    [
      "clsact",
      { filters: [{ priority: 1, kind: "flower", programId: null }] },
      "filters of somebody else run first (flower of preference 1)",
    ],
  ])("that come before are named: %s", (_, more, text) => {
    const notes = foreignNotes({ ...place, ...more });
    expect(notes).toHaveLength(1);
    expect(notes[0]).toContain(text);
  });
});

describe("the machine", () => {
  test.each([
    [undefined, "ok"],
    ["[none] integrity confidentiality", "ok"],
    ["none [integrity] confidentiality", "ok"],
    ["none integrity [confidentiality]", "warn"],
  ])("lockdown %s is at %s", (text, level) => {
    expect(lockdownCheck(text).level).toBe(level);
  });

  test.each([
    ["tsc", "ok"],
    ["kvm-clock", "ok"],
    ["arch_sys_counter", "ok"],
    ["hpet", "warn"],
    ["acpi_pm", "warn"],
    [undefined, "warn"],
  ])("clock source %s is at %s", (name, level) => {
    expect(clockSourceCheck(name).level).toBe(level);
  });

  const limits = (files: string, space = "unlimited") =>
    `Limit                     Soft Limit           Hard Limit           Units\nMax address space         ${space}            unlimited            bytes\nMax open files            ${files}                 4096                 files\n`;
  test.each([
    ["1024", "unlimited", null, "ok", "1024 open files"],
    ["unlimited", "unlimited", 8 * 1024 ** 3, "ok", "any number of open files"],
    ["64", "unlimited", null, "warn", "64 open files"],
    ["1024", "4000000000", null, "warn", "address space"],
    ["1024", "unlimited", 256 * 1024 ** 2, "warn", "256 MiB"],
  ])("%s files, %s of addresses, %s of memory is at %s", (files, space, memory, level, found) => {
    expect(limitsCheck(limits(files, space), memory)).toMatchObject({
      level,
      found: expect.stringContaining(found),
    });
  });
});

describe("the tables", () => {
  const fill = (table: string, entries: number) => ({ table, entries, max_entries: 100, memory_bytes: 0 });

  test("are warned of before they are full", () => {
    expect(fillCheck([fill("flows4", 89), fill("vms", 2)])).toMatchObject({
      level: "ok",
      found: "flows4 is the fullest, 89 %",
    });
    expect(fillCheck([fill("flows4", 89), fill("vms", 90)])).toMatchObject({
      level: "warn",
      found: "vms 90 %",
    });
  });

  test.each([
    [3, true, "ok", "3 s ago"],
    [3, false, "ok", "3 s ago"],
    [301, false, "warn", "301 s ago"],
    [301, true, "warn", "301 s ago"],
    [null, false, "warn", "never"],
    [null, true, "ok", "not yet"],
  ])("were swept %s s ago, daemon %s: %s", (seconds, held, level, found) => {
    expect(sweepCheck(seconds, held)).toMatchObject({ level, found: expect.stringContaining(found) });
  });
});
