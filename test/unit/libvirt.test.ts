// SPDX-License-Identifier: Apache-2.0
// What is read from the status files of libvirt.

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type LibvirtInterface, parseDomain, readDomains } from "../../src/kernel/libvirt.ts";

const STATUS = `<!--
WARNING: THIS IS AN AUTO-GENERATED FILE. CHANGES TO IT ARE LIKELY TO BE
OVERWRITTEN AND LOST.
-->
<domstatus state='running' reason='booted' pid='4711'>
  <taint flag='custom-argv'/>
  <monitor path='/var/lib/libvirt/qemu/domain-3-web/monitor.sock' type='unix'/>
  <namespaces>
    <mount/>
  </namespaces>
  <vcpus>
    <vcpu id='0' pid='4720'/>
  </vcpus>
  <domain type='kvm' id='3'>
    <name>web</name>
    <uuid>7ee7b1a0-0000-4000-8000-000000000001</uuid>
    <metadata>
      <x:info xmlns:x="http://example.org/x"><name>other</name><interface><target dev="no"/></interface></x:info>
    </metadata>
    <devices>
      <emulator>/usr/bin/qemu-system-x86_64</emulator>
      <disk type='file' device='disk'>
        <target dev='vda' bus='virtio'/>
      </disk>
      <interface type='bridge'>
        <mac address='52:54:00:AA:00:01'/>
        <source bridge='br0'/>
        <target dev='vnet7'/>
        <model type='virtio'/>
      </interface>
      <interface type='hostdev' managed='yes'>
        <mac address='52:54:00:aa:00:02'/>
      </interface>
    </devices>
  </domain>
</domstatus>
`;

const wrap = (name: string, devices = "") =>
  `<domain><name>${name}</name><devices>${devices}</devices></domain>`;

describe("a domain", () => {
  test("of a status file has its name and its interfaces, and nothing of what looks like them", () => {
    expect(parseDomain(STATUS)).toEqual({
      name: "web",
      interfaces: [
        { target: "vnet7", mac: "52:54:00:aa:00:01" },
        { target: null, mac: "52:54:00:aa:00:02" },
      ],
    });
  });

  const rows: [what: string, xml: string, name: string, interfaces: LibvirtInterface[]][] = [
    ["without devices", "<domain><name>a</name></domain>", "a", []],
    ["as virsh prints it", `<?xml version="1.0"?>\n${wrap("a")}`, "a", []],
    ["with a byte order mark", `\uFEFF${wrap("a")}`, "a", []],
    ["with entities in its name", wrap("a&amp;b &lt;&#x63;&#100;&gt;"), "a&b <cd>", []],
    ["with an entity that nobody knows", wrap("a&what;"), "a&what;", []],
    ["whose name is character data", wrap("<![CDATA[a<b]]>"), "a<b", []],
    [
      "with double quotes",
      wrap("a", '<interface><target dev="t0"/></interface>'),
      "a",
      [{ target: "t0", mac: null }],
    ],
    [
      "with spaces around the equals sign",
      wrap("a", "<interface ><target  dev = 't0' /></interface >"),
      "a",
      [{ target: "t0", mac: null }],
    ],
    [
      "with a comment in between",
      wrap("a", "<interface><!-- <target dev='x'/> --></interface>"),
      "a",
      [{ target: null, mac: null }],
    ],
    [
      "with a MAC that is none",
      wrap("a", "<interface><mac address='zz'/></interface>"),
      "a",
      [{ target: null, mac: null }],
    ],
    [
      "with > in an attribute",
      wrap("a", "<interface><target dev='a>b'/></interface>"),
      "a",
      [{ target: "a>b", mac: null }],
    ],
    ["with an empty interface", wrap("a", "<interface/>"), "a", [{ target: null, mac: null }]],
  ];
  test.each(rows)("%s", (_, xml, name, interfaces) => {
    expect(parseDomain(xml)).toEqual({ name, interfaces });
  });

  test.each([
    ["nothing", ""],
    ["text", "web"],
    ["another document", "<network><name>default</name></network>"],
    ["a domain without a name", "<domain><devices/></domain>"],
    ["a domain with an empty name", "<domain><name></name></domain>"],
    ["half a file", STATUS.slice(0, STATUS.length / 2)],
    ["tags that do not match", "<domain><name>a</title></domain>"],
    ["a tag too many", `${wrap("a")}</domain>`],
    ["two roots", wrap("a") + wrap("b")],
    ["text behind the root", `${wrap("a")} and more`],
    ["an attribute without quotes", wrap("a", "<interface><target dev=t0/></interface>")],
    ["a tag that does not end", "<domain><name>a</name"],
    ["a comment that does not end", `${wrap("a")}<!-- `],
    ["< in an attribute", wrap("a", "<interface><target dev='a<b'/></interface>")],
  ])("is not read from %s", (_, xml) => {
    expect(parseDomain(xml)).toBeUndefined();
  });

  test("of a large file is read in no time", () => {
    const many = "<interface><mac address='52:54:00:00:00:01'/><target dev='t'/></interface>".repeat(20_000);
    expect(parseDomain(wrap("a", many))?.interfaces).toHaveLength(20_000);
    expect(parseDomain(`<domain ${"a".repeat(200_000)}`)).toBeUndefined();
    expect(parseDomain(`<domain ${"a='b' ".repeat(50_000)}`)).toBeUndefined();
  });
});

describe("the running domains", () => {
  let directory: string;
  beforeAll(() => {
    directory = mkdtempSync(join(tmpdir(), "lasthop-libvirt-"));
    writeFileSync(join(directory, "web.xml"), STATUS);
    writeFileSync(join(directory, "broken.xml"), "<domstatus>");
    writeFileSync(join(directory, "web.pid"), "4711\n");
    mkdirSync(join(directory, "dir.xml"));
  });
  afterAll(() => rmSync(directory, { recursive: true }));

  test("are those whose files can be read; the others are named", () => {
    const { domains, unreadable } = readDomains(directory);
    expect(domains.map(({ name }) => name)).toEqual(["web"]);
    expect(unreadable).toEqual([
      { path: join(directory, "broken.xml"), why: "it is not the status of a domain" },
      { path: join(directory, "dir.xml"), why: expect.stringContaining("EISDIR") },
    ]);
  });

  test("are none where libvirt does not run", () => {
    expect(readDomains(join(directory, "nowhere"))).toEqual({ domains: [], unreadable: [] });
  });

  test("are looked for where LASTHOP_LIBVIRT says", () => {
    process.env.LASTHOP_LIBVIRT = directory;
    try {
      expect(readDomains().domains).toHaveLength(1);
    } finally {
      delete process.env.LASTHOP_LIBVIRT;
    }
  });
});
