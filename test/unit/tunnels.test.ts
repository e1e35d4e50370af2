// SPDX-License-Identifier: Apache-2.0
// Tunnels without a kernel: what may stand in the configuration, what the tables get, and what is planned.

import { describe, expect, test } from "vitest";
import { LABELS_MAX, TUNNEL_FLAG, TUNNEL_KIND } from "../../src/abi/layout.gen.ts";
import { tunnelsText, tunnelText } from "../../src/cli/commands/tunnels.ts";
import { ConfigError, parseConfig } from "../../src/config/load.ts";
import type { TunnelConfig } from "../../src/config/tunnels.ts";
import { builtinChanges, type TunnelChange } from "../../src/controller/tunnelChanges.ts";
import type { ObservedTunnels, TunnelSight } from "../../src/controller/tunnelObserve.ts";
import { planTunnels } from "../../src/controller/tunnelPlan.ts";
import { keysOf, macOf, mtuOf, overhead, placesOf, rowOf } from "../../src/controller/tunnelSpec.ts";
import { withTunnels } from "../../src/controller/tunnels.ts";
import { whyNotAttachable } from "../../src/kernel/coexistence.ts";
import { decodeDetails, newLinkRequest, setLinkRequest, vethPeer } from "../../src/kernel/linkCreate.ts";
import { decodeAttributes } from "../../src/kernel/netlinkMessage.ts";
import type { Link } from "../../src/kernel/rtnetlink.ts";
import { deviceOf, fitsType } from "../../src/kernel/tunnelDevice.ts";
import { hiddenName, isHiddenEnd, tunnelNames } from "../../src/kernel/tunnelNames.ts";
import { tunnelsCheck } from "../../src/ops/doctor/instance.ts";
import type { TunnelDetails } from "../../src/ops/types.ts";
import type { TunnelRow } from "../../src/tables/index.ts";
import { TunnelTables } from "../../src/tables/tunnels.ts";
import { host, link } from "../support/planModel.ts";
import { memorySource } from "../support/tableSource.ts";

function problemsOf(entries: string): string[] {
  try {
    parseConfig(entries, "F");
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return error.problems.map(({ line, column, path, message }) => `${line}:${column} ${path}: ${message}`);
  }
  return [];
}

const one = (keys: string): TunnelConfig => parseConfig(`tunnels: [{${keys}}]`, "F").tunnels[0]!;
const VXLAN = "name: a, type: vxlan, local: 192.0.2.1, remote: 192.0.2.2, id: 5, underlay: eth0";
const MPLS =
  "name: m, type: mpls, underlay: eth0, next_hop: 02:00:00:00:00:01, labels: {request: [100, 200], reply: [300]}";

describe("a bad tunnel", () => {
  const BAD: [keys: string, problem: string][] = [
    ["", "1:11 tunnels[0].type: is missing"],
    ["name: abcdefghijklmnop", "tunnels[0].name: expected the name of an interface"],
    ["name: a b", "tunnels[0].name: expected the name of an interface"],
    ["name: fw*", "tunnels[0].name: expected the name of an interface"],
    ["name: 'fw%d'", "tunnels[0].name: expected the name of an interface"],
    ["name: lh-12", "tunnels[0].name: expected the name of an interface"],
    ["name: '..'", "tunnels[0].name: expected the name of an interface"],
    ["name: a, type: geneve", "1:27 tunnels[0].type: expected vxlan, nvgre, gre, ipip or mpls"],
    ["name: a, type: vxlam", 'did you mean "vxlan"?'],
    ["name: a, type: vxlan", "1:11 tunnels[0]: a tunnel of type vxlan needs local, remote and id"],
    ["name: a, type: gre", "tunnels[0]: a tunnel of type gre needs local and remote"],
    ["name: a, type: ipip, local: 192.0.2.1", "tunnels[0]: a tunnel of type ipip needs remote"],
    ["name: a, type: mpls", "tunnels[0]: a tunnel of type mpls needs underlay, next_hop and labels"],
    [`${VXLAN}, encap: kernel`, "tunnels[0].encap: expected auto, device or builtin"],
    [
      "name: a, type: ipip, local: 192.0.2.1, remote: '2001:db8::1'",
      "is not of the same IP version as 192.0.2.1",
    ],
    ["name: a, type: ipip, local: 192.0.2.1, remote: 192.0.2.1", "tunnels[0].remote: 192.0.2.1 is local too"],
    ["name: a, type: ipip, local: '2001:db8::1', remote: '2001:db8:0::1'", "is local too"],
    [
      "name: a, type: ipip, local: 224.0.0.1, remote: 192.0.2.1",
      "tunnels[0].local: 224.0.0.1 is not the address of one",
    ],
    [VXLAN.replace("id: 5", "id: 16777216"), "tunnels[0].id: 16777216 is no VNI: it has 24 bits"],
    [VXLAN.replace("vxlan", "nvgre").replace("id: 5", "id: 16777216"), "16777216 is no VSID: it has 24 bits"],
    [
      VXLAN.replace("vxlan", "gre").replace("id: 5", "id: 4294967296"),
      "tunnels[0].id: expected a whole number",
    ],
    [VXLAN.replace("id: 5", "id: -1"), "tunnels[0].id: expected a whole number"],
    [`${VXLAN}, port: 0`, "tunnels[0].port: expected a port from 1 to 65535"],
    [`${VXLAN.replace("vxlan", "gre")}, port: 4789`, "tunnels[0].port: a tunnel of type gre has no port"],
    [VXLAN.replace("vxlan", "ipip"), "tunnels[0].id: a tunnel of type ipip has no id"],
    [
      `${VXLAN}, labels: {request: [16], reply: [16]}`,
      "tunnels[0].labels: a tunnel of type vxlan has no labels",
    ],
    [`${VXLAN}, next_hop: 02:00:00:00:00:01`, "tunnels[0].next_hop: a tunnel of type vxlan has no next_hop"],
    [`${VXLAN}, ttl_model: pipe`, "tunnels[0].ttl_model: a tunnel of type vxlan has no ttl_model"],
    [`${VXLAN}, ttl: 0`, "tunnels[0].ttl: expected a whole number from 1 to 255"],
    [`${VXLAN}, ttl: 256`, "tunnels[0].ttl: expected a whole number from 1 to 255"],
    [`${VXLAN}, tos: 3`, "tunnels[0].tos: 3 is not a multiple of 4"],
    [`${VXLAN}, tos: 256`, "tunnels[0].tos: expected a whole number from 0 to 252"],
    [`${VXLAN}, mtu: 100`, "tunnels[0].mtu: expected a whole number from 576 to 65535"],
    [`${VXLAN}, mtu: 65536`, "tunnels[0].mtu: expected a whole number from 576 to 65535"],
    [`${VXLAN}, zone: red`, "tunnels[0].zone: unknown key"],
    [
      `${VXLAN.replace(", underlay: eth0", "")}, encap: builtin`,
      "tunnels[0].encap: where lasthop encapsulates it needs",
    ],
    [VXLAN.replace("eth0", "a"), 'tunnels[0].underlay: "a" is the tunnel itself'],
    [VXLAN.replace("eth0", "'eth*'"), "tunnels[0].underlay: expected the name of an interface"],
    [`${MPLS}, encap: device`, "tunnels[0].encap: the kernel has no interface for MPLS"],
    [`${MPLS}, local: 192.0.2.1`, "tunnels[0].local: a tunnel of type mpls has no local"],
    [`${MPLS}, tos: 8`, "tunnels[0].tos: 8 is no traffic class of MPLS"],
    [MPLS.replace("[300]", "[]"), "tunnels[0].labels.reply: expected at least 1 label"],
    [
      MPLS.replace("[300]", "[15]"),
      "tunnels[0].labels.reply[0]: expected a label from 16 to 1048575, not 15",
    ],
    [MPLS.replace("[300]", "[1048576]"), "expected a label from 16 to 1048575, not 1048576"],
    [MPLS.replace("[300]", "[20, 21, 22, 23, 24]"), "expected at most 4 labels"],
    [MPLS.replace("{request: [100, 200], reply: [300]}", "{reply: [300]}"), "labels.request: is missing"],
    [MPLS.replace("02:00:00:00:00:01", "01:00:5e:00:00:01"), "is not the address of one network card"],
  ];

  test.each(BAD)("{%s}", (keys, problem) => {
    expect(problemsOf(`tunnels: [{${keys}}]`).join("\n")).toContain(problem);
  });

  test.each([
    [
      "the same name twice",
      `{${VXLAN}}, {${MPLS.replace("name: m", "name: a")}}`,
      '"a" is tunnels[0] already',
    ],
    [
      "the same packets",
      `{${VXLAN}}, {${VXLAN.replace("name: a", "name: b")}}`,
      "could be tunnels[0]'s as well",
    ],
    [
      "the same packets, a default written out",
      `{${VXLAN}}, {${VXLAN.replace("name: a", "name: b")}, port: 4789}`,
      "could be tunnels[0]'s as well",
    ],
    [
      "the same labels",
      `{${MPLS}}, {${MPLS.replace("name: m", "name: n")}}`,
      "could be tunnels[0]'s as well",
    ],
    [
      "one of ours within another",
      `{${VXLAN}}, {${VXLAN.replace("name: a", "name: b").replace("eth0", "a")}, encap: builtin, port: 1}`,
      '"a" is a tunnel itself',
    ],
    [
      "each within the other",
      `{${VXLAN.replace("eth0", "b")}}, {${VXLAN.replace("name: a", "name: b").replace("eth0", "a")}, port: 1}`,
      '"b" leads back to this tunnel',
    ],
  ])("%s", (_, entries, problem) => {
    const problems = problemsOf(`tunnels: [${entries}]`);
    expect(problems.join("\n")).toContain(problem);
    expect(problems.every((text) => /^\d+:\d+ /.test(text))).toBe(true);
  });

  test("that is a tap", () => {
    expect(problemsOf(`taps: [{name: a}]\ntunnels: [{${VXLAN}}]`)).toEqual([
      '2:18 tunnels[0].name: "a" is taps[0]: a tunnel leads to devices',
    ]);
  });
});

describe("a good tunnel", () => {
  test.each([
    VXLAN,
    MPLS,
    VXLAN.replace("vxlan", "gre").replace("id: 5", "id: 4294967295"),
    "name: a, type: nvgre, local: '2001:db8::1', remote: '2001:db8::2'",
    "name: a, type: ipip, local: 192.0.2.1, remote: 192.0.2.2, mtu: 1400, tos: 252, ttl: 255",
  ])("{%s}", (keys) => {
    expect(problemsOf(`tunnels: [{${keys}}]`)).toEqual([]);
  });

  test("two that differ in what arrives: VNI, port, key, kind, underlay of labels", () => {
    const variants = [
      VXLAN,
      VXLAN.replace("id: 5", "id: 6"),
      `${VXLAN}, port: 8472`,
      VXLAN.replace("vxlan", "gre"),
      VXLAN.replace("vxlan", "gre").replace("id: 5, ", ""),
      VXLAN.replace("vxlan", "nvgre"),
      MPLS,
      MPLS.replace("eth0", "eth1"),
      MPLS.replace("[100, 200]", "[100]"),
    ];
    const entries = variants.map((keys, index) => `{${keys.replace(/name: \w+/, `name: t${index}`)}}`);
    expect(problemsOf(`tunnels: [${entries.join(", ")}]`)).toEqual([]);
  });

  test("may be within another that the kernel makes", () => {
    const inner = VXLAN.replace("name: a", "name: b").replace("eth0", "a").replace("id: 5", "id: 6");
    expect(problemsOf(`tunnels: [{${inner}, encap: device}, {${VXLAN}}]`)).toEqual([]);
  });
});

describe("what goes around a packet", () => {
  const SIX = "local: '2001:db8::1', remote: '2001:db8::2'";
  test.each([
    [VXLAN, 50],
    [VXLAN.replace("local: 192.0.2.1, remote: 192.0.2.2", SIX), 70],
    [VXLAN.replace("vxlan", "nvgre"), 42],
    [VXLAN.replace("vxlan", "nvgre").replace("id: 5, ", ""), 38],
    [VXLAN.replace("vxlan", "gre"), 28],
    [VXLAN.replace("vxlan", "gre").replace("id: 5, ", ""), 24],
    [`name: a, type: ipip, ${SIX}`, 40],
    [MPLS, 4],
  ])("{%s}: %i bytes", (keys, bytes) => {
    const config = one(keys);
    expect(overhead(config)).toBe(bytes);
    expect(mtuOf(config, { mtu: 1500 })).toBe(1500 - bytes);
    expect(mtuOf({ ...config, mtu: 1234 }, { mtu: 1500 })).toBe(1234);
    expect(mtuOf(config, undefined)).toBeNull();
  });

  const made = {
    ifindex: 7,
    peer: 8,
    underlay: 3,
    mac: Buffer.from("020000000007", "hex"),
    underlayMac: Buffer.from("020000000003", "hex"),
    mtu: 1450,
  };

  test("VXLAN: row, key and places", () => {
    const row = rowOf(one(VXLAN), made);
    expect(row).toMatchObject({ kind: TUNNEL_KIND.VXLAN, family: 4, id: 5, port: 4789, flags: 0, name: "a" });
    expect(Buffer.from(row.local!).toString("hex")).toBe("00000000000000000000ffffc0000201");
    const [key, ...more] = keysOf(row);
    expect(more).toEqual([]);
    expect(key).toMatchObject({ kind: TUNNEL_KIND.VXLAN, id: 5, port: 4789, underlay: 0, flags: 0 });
    expect(placesOf(row)).toEqual([
      { ifindex: 7, program: "tunnel_out" },
      { ifindex: 3, program: "tunnel_in" },
    ]);
    expect(keysOf({ ...row, underlay: 0 })).toEqual([]);
  });

  test("GRE: key 0 is another than none", () => {
    const none = rowOf(one(VXLAN.replace("vxlan", "gre").replace("id: 5, ", "")), made);
    const zero = rowOf(one(VXLAN.replace("vxlan", "gre").replace("id: 5", "id: 0")), made);
    expect([none.flags, zero.flags]).toEqual([0, TUNNEL_FLAG.KEY_PRESENT]);
    expect(keysOf(none)[0]!.flags).toBe(0);
    expect(keysOf(zero)[0]!.flags).toBe(TUNNEL_FLAG.KEY_PRESENT);
  });

  test("MPLS: a key by which packets arrive, and one by which they leave", () => {
    const row = rowOf(one(MPLS), made);
    expect(row).toMatchObject({
      kind: TUNNEL_KIND.MPLS,
      family: 0,
      label_count: 1,
      flags: TUNNEL_FLAG.TTL_UNIFORM,
    });
    expect(row.labels).toHaveLength(LABELS_MAX);
    expect(keysOf(row).map(({ underlay, labels }) => [underlay, labels])).toEqual([
      [8, [0, 0, 0, 0]],
      [3, [100, 200, 0, 0]],
    ]);
    expect(placesOf(row)[0]).toEqual({ ifindex: 8, program: "tunnel_out_labels" });
    expect(rowOf({ ...one(MPLS), ttl_model: "pipe" }, made).flags).toBe(0);
  });

  test("a MAC that is the same each time, and another for each tunnel and host", () => {
    const mac = macOf(one(VXLAN), undefined);
    expect(macOf(one(VXLAN), undefined)).toEqual(mac);
    expect(mac[0]! & 3).toBe(2);
    const others = [VXLAN.replace("name: a", "name: b"), VXLAN.replace("192.0.2.1", "192.0.2.9")];
    for (const keys of others) expect(macOf(one(keys), undefined)).not.toEqual(mac);
    expect(macOf(one(MPLS), { mac: "02:00:00:00:00:03" })).not.toEqual(macOf(one(MPLS), { mac: null }));
  });
});

describe("netlink", () => {
  test("asks for a veth pair, and the kernel's drivers, in its own words", () => {
    const pair = newLinkRequest(1, {
      name: "x",
      kind: "veth",
      mac: Buffer.from("020000000001", "hex"),
      data: vethPeer({ name: "p" }),
    });
    expect(pair.readUInt16LE(4)).toBe(16);
    expect(pair.includes(Buffer.from("veth\0"))).toBe(true);
    expect(pair.includes(Buffer.from("p\0"))).toBe(true);
    const ends = {
      local: Buffer.from([192, 0, 2, 1]),
      remote: Buffer.from([192, 0, 2, 2]),
      ...{ id: 5, port: 4789, underlay: 3, ttl: 64, tos: 0 },
    };
    const six = { ...ends, local: Buffer.alloc(16, 1), remote: Buffer.alloc(16, 2) };
    const kinds = (["vxlan", "nvgre", "gre", "ipip"] as const).map((type) => [
      deviceOf({ ...ends, type }).kind,
      deviceOf({ ...six, type }).kind,
    ]);
    expect(kinds).toEqual([
      ["vxlan", "vxlan"],
      ["gretap", "ip6gretap"],
      ["gre", "ip6gre"],
      ["sit", "ip6tnl"],
    ]);
    const key = deviceOf({ ...ends, type: "nvgre" }).data.find(({ type }) => type === 4)?.value;
    expect(key).toEqual(Buffer.from([0, 0, 5, 0]));
    expect(fitsType("ipip", "ipip")).toBe(true);
    expect(fitsType("vxlan", "veth")).toBe(false);
    expect(fitsType("mpls", null)).toBe(false);
  });

  test("changes only what is given", () => {
    const request = setLinkRequest(1, 9, { up: true });
    expect(request.readInt32LE(20)).toBe(9);
    expect([request.readUInt32LE(24), request.readUInt32LE(28)]).toEqual([1, 1]);
    const down = setLinkRequest(1, 9, { up: false, noArp: true, mtu: 1400, name: "n", alias: "l" });
    expect([down.readUInt32LE(24), down.readUInt32LE(28)]).toEqual([0x80, 0x81]);
    expect([...decodeAttributes(down.subarray(32)).keys()].sort((a, b) => a - b)).toEqual([3, 4, 20]);
  });

  test("a netdev that says nothing of IPv6 or traffic", () => {
    const { noArp, ipv6LinkLocal, traffic } = decodeDetails(Buffer.alloc(16));
    expect([noArp, ipv6LinkLocal, traffic.sent_bytes]).toEqual([false, null, 0]);
  });

  test("names: whose, and who is hidden", () => {
    const names = tunnelNames("/sys/fs/bpf/lasthop");
    expect(names.making.tunnel.length).toBeLessThanOrEqual(15);
    expect(tunnelNames("/sys/fs/bpf/other").making).not.toEqual(names.making);
    expect(tunnelNames("x".repeat(5000)).alias.length).toBeLessThan(256);
    expect(hiddenName(4_294_967_295).length).toBeLessThanOrEqual(15);
    expect(isHiddenEnd({ alias: names.hiddenAlias })).toBe(true);
    expect(isHiddenEnd({ alias: names.alias })).toBe(false);
    expect(isHiddenEnd({})).toBe(false);
    const hidden = link(5, "lh-4", { alias: names.hiddenAlias });
    expect(whyNotAttachable(host([hidden]), hidden)?.why).toContain("hidden end");
  });
});

// Plans

const NAMES = tunnelNames("/p");
const ETH0 = link(3, "eth0", { kind: null });
const X = link(7, "a", { alias: NAMES.alias, lower: 8, mtu: 1450 });
const P = link(8, "lh-7", { alias: NAMES.hiddenAlias, lower: 7, mtu: 65_535 });

interface Given {
  rows?: TunnelRow[];
  more?: Partial<TunnelSight>;
  attachments?: ObservedTunnels["attachments"];
}

/** As if all programs were where they should be. */
function observed(links: Link[], { rows = [], more = {}, attachments = [] }: Given = {}): ObservedTunnels {
  const keys = rows.flatMap((row) => keysOf(row).map((key) => [key, row.ifindex] as const));
  const text = (key: (typeof keys)[number][0]) => JSON.stringify(key);
  const index = new Map(keys.map(([key, to]) => [text(key), to]));
  return {
    host: host(links),
    rows,
    xfrm: [],
    keys,
    attachments,
    sight: {
      names: NAMES,
      tcx: true,
      followed: true,
      row: (ifindex) => rows.find((row) => row.ifindex === ifindex),
      target: (key) => index.get(text(key)),
      keysOf: (ifindex) => keys.filter(([, to]) => to === ifindex).map(([key]) => key),
      isCounted: () => rows.length > 0,
      programId: () => 1,
      attachmentAt: (place) => ({ ...place, hook: "tcx", programId: 1, alive: true }),
      details: (ifindex) => ({ noArp: ifindex === 8, ipv6LinkLocal: ifindex !== 8, traffic: {} as never }),
      sendOffloads: () => [],
      ...more,
    },
  };
}

/** What the tables have of the tunnel `a` when all is right. */
function rowFor(config: TunnelConfig, more: Partial<Parameters<typeof rowOf>[1]> = {}): TunnelRow {
  const tables = new TunnelTables(memorySource());
  const mac = (text: string | null) => Buffer.from((text ?? "").replaceAll(":", ""), "hex");
  const made = {
    ifindex: 7,
    peer: 8,
    underlay: 3,
    mac: mac(X.mac),
    underlayMac: mac(ETH0.mac),
    mtu: 1450,
    ...more,
  };
  tables.rows.set(7, rowOf(config, made));
  return tables.rows.get(7)!;
}

const kinds = (plan: ReturnType<typeof planTunnels>) =>
  plan.actions.map(({ kind, object }) => `${kind} ${object}`);

describe("a plan", () => {
  const config = one(VXLAN);
  const right = () => observed([ETH0, X, P], { rows: [rowFor(config)] });

  test("makes what is not there, and shows it to the plan of interfaces", () => {
    const plan = planTunnels([config], observed([ETH0]));
    expect(kinds(plan)).toEqual(["tunnel-add a"]);
    expect(plan.actions[0]).toMatchObject({ config: "tunnels[0]", text: expect.stringContaining("id 5") });
    const after = withTunnels(host([ETH0]), plan.actions);
    expect(after.links.find(({ name }) => name === "a")).toMatchObject({ mtu: 1450, kind: "vxlan" });
  });

  test("does nothing when all is right", () => {
    expect(planTunnels([config], right())).toEqual({ actions: [], failed: [] });
  });

  test("says that the underlay is missing, unless it is a tunnel that comes", () => {
    const { actions, failed } = planTunnels([config], observed([]));
    expect(actions).toEqual([]);
    expect(failed).toEqual([expect.objectContaining({ code: "E_NO_INTERFACE", object: "a" })]);
    const inner = one(VXLAN.replace("name: a", "name: b").replace("eth0", "a").replace("id: 5", "id: 6"));
    expect(kinds(planTunnels([inner, config], observed([ETH0])))).toEqual(["tunnel-add a", "tunnel-add b"]);
  });

  const DRIFT: [
    what: string,
    links: Link[],
    more: Partial<TunnelSight>,
    change: TunnelChange["kind"],
    text: string,
  ][] = [
    ["its MTU", [ETH0, { ...X, mtu: 1500 }, P], {}, "link", "MTU 1450 instead of 1500"],
    ["the underlay's MTU", [{ ...ETH0, mtu: 9000 }, X, P], {}, "link", "MTU 8950 instead of 1450"],
    ["the hidden end's MTU", [ETH0, X, { ...P, mtu: 1500 }], {}, "link", "hidden end: MTU 65535"],
    ["the hidden end's name", [ETH0, X, { ...P, name: "veth9" }], {}, "link", "called lh-7"],
    [
      "an underlay that is down",
      [{ ...ETH0, flags: { ...ETH0.flags, running: false } }, X, P],
      {},
      "link",
      "carries nothing, since eth0 is down",
    ],
    ["an underlay that is gone", [X, P], {}, "row", "its underlay is gone"],
    [
      "offloads",
      [ETH0, X, P],
      { sendOffloads: (name) => (name === "lh-7" ? ["tx-gso-list"] : []) },
      "offloads",
      "offloads off",
    ],
    [
      "a missing program",
      [ETH0, X, P],
      { attachmentAt: () => undefined },
      "program",
      "program tunnel_in on eth0",
    ],
    [
      "programs of another build",
      [ETH0, X, P],
      { programId: () => 2 },
      "program",
      "the pinned program tunnel_out",
    ],
    ["a missing key", [ETH0, X, P], { target: () => undefined }, "key", "known by what arrives"],
    ["a missing count", [ETH0, X, P], { isCounted: () => false }, "count", "entered again"],
  ];
  test.each(DRIFT)("repairs %s", (_, links, more, change, text) => {
    const { actions } = planTunnels([config], observed(links, { rows: [rowFor(config)], more }));
    expect(actions).toHaveLength(1);
    const [action] = actions;
    if (action?.kind !== "tunnel-change") throw new Error(action?.kind);
    expect(action.changes.map(({ kind }) => kind)).toContain(change);
    expect(action.text).toContain(text);
  });

  test("tells what the configuration changes, and lets packets in last", () => {
    const moved = one(VXLAN.replace("192.0.2.2", "192.0.2.3"));
    const { actions } = planTunnels([moved], right());
    expect(actions.map(({ text }) => text)).toEqual([
      "tunnel a: to 192.0.2.3 instead of 192.0.2.2, known by what arrives for it",
    ]);
    const [action] = actions;
    if (action?.kind !== "tunnel-change") throw new Error(action?.kind);
    expect(action.changes.map(({ kind }) => kind)).toEqual(["row", "key", "key"]);
  });

  test("without a daemon an underlay that is down counts as up", () => {
    const down = { ...ETH0, flags: { ...ETH0.flags, up: false, running: false } };
    const sight = { ...right().sight, followed: false };
    expect(builtinChanges(config, { tunnel: X, hidden: P, underlay: down }, sight)).toEqual([]);
  });

  test("makes anew what has lost its hidden end, or is encapsulated otherwise", () => {
    expect(kinds(planTunnels([config], observed([ETH0, X], { rows: [rowFor(config)] })))).toEqual([
      "tunnel-replace a",
    ]);
    const gre = one(VXLAN.replace("vxlan", "gre"));
    expect(kinds(planTunnels([gre], right()))).toEqual(["tunnel-replace a"]);
    const device = one(`${VXLAN}, encap: device`);
    expect(kinds(planTunnels([device], right()))).toEqual(["tunnel-replace a"]);
    const kernel = { ...X, kind: "vxlan", lower: 3 };
    const row = rowFor(config, { peer: 0 });
    expect(kinds(planTunnels([device], observed([ETH0, kernel], { rows: [row] })))).toEqual([]);
    expect(kinds(planTunnels([config], observed([ETH0, kernel], { rows: [row] })))).toEqual([]);
    const other = one(VXLAN.replace("id: 5", "id: 6"));
    expect(kinds(planTunnels([other], observed([ETH0, kernel], { rows: [row] })))).toEqual([
      "tunnel-replace a",
    ]);
    const builtin = one(`${VXLAN}, encap: builtin`);
    expect(kinds(planTunnels([builtin], observed([ETH0, kernel], { rows: [row] })))).toEqual([
      "tunnel-replace a",
    ]);
  });

  test("leaves alone what somebody else made: uses it, or says why not", () => {
    const { alias: _, ...foreign } = { ...X, kind: "vxlan", lower: null };
    const used = planTunnels([config], observed([ETH0, foreign]));
    expect(used.actions.map(({ text }) => text)).toEqual([
      "tunnel a: uses the vxlan interface that is there",
    ]);
    const veth = planTunnels([config], observed([ETH0, { ...foreign, kind: "veth" }]));
    expect(veth.failed[0]?.message).toContain("is of the kind veth, not a tunnel of type vxlan");
    const builtin = planTunnels([one(`${VXLAN}, encap: builtin`)], observed([ETH0, foreign]));
    expect(builtin.failed[0]?.message).toContain("lasthop did not make it");
    const theirs = planTunnels([config], observed([ETH0, { ...X, alias: "lasthop /other" }]));
    expect(theirs.failed[0]?.message).toContain("another instance of lasthop made it");
  });

  test.each([
    ["without a link layer", { ethernet: false }, "eth0 is no Ethernet interface"],
    ["that is a port of a bridge", { master: 9, masterKind: "bridge" }, "eth0 is a port of a bridge"],
    ["that is a slave of a bond", { master: 9, masterKind: "bond" }, "eth0 is a slave of a bond"],
    ["that is a tunnel of ours", { kind: "veth", alias: "lasthop /other" }, "eth0 is a tunnel itself"],
  ])("refuses an underlay %s", (_, more, text) => {
    const links = [{ ...ETH0, ...more }, X, P];
    const { failed } = planTunnels([config], observed(links, { rows: [rowFor(config)] }));
    expect(failed).toEqual([expect.objectContaining({ code: "E_TUNNEL", config: "tunnels[0]" })]);
    expect(failed[0]!.message).toContain(text);
  });

  test("removes what is no longer configured, and only what lasthop made", () => {
    const gone = planTunnels([], right());
    expect(kinds(gone)).toEqual(["tunnel-remove a"]);
    expect(gone.actions[0]).toMatchObject({ remains: { link: X, ifindex: 7 } });
    const { alias: _, ...foreign } = { ...X, kind: "vxlan", lower: null };
    const kept = planTunnels([], observed([ETH0, foreign], { rows: [rowFor(config, { peer: 0 })] }));
    expect(kept.actions[0]).toMatchObject({
      text: "tunnel a: no longer looked after",
      remains: { link: undefined },
    });
  });

  test("removes what an interrupted change left", () => {
    const half = [link(20, NAMES.making.tunnel, { lower: 21 }), link(21, NAMES.making.hidden, { lower: 20 })];
    expect(kinds(planTunnels([], observed([ETH0, ...half])))).toEqual([
      `tunnel-remove ${NAMES.making.tunnel}`,
      `tunnel-remove ${NAMES.making.hidden}`,
    ]);
    expect(kinds(planTunnels([], observed([ETH0], { rows: [rowFor(config)] })))).toEqual(["tunnel-remove a"]);
    const alone = { ...P, lower: null };
    expect(kinds(planTunnels([], observed([ETH0, alone])))).toEqual(["tunnel-remove lh-7"]);
    const others = link(30, "lh-9", { alias: tunnelNames("/other").hiddenAlias, lower: null });
    expect(planTunnels([], observed([ETH0, others])).actions).toEqual([]);
  });

  test("makes again one that was deleted by hand, under whatever index", () => {
    const plan = planTunnels([config], observed([ETH0], { rows: [rowFor(config)] }));
    expect(kinds(plan)).toEqual(["tunnel-remove a", "tunnel-add a"]);
  });

  test("takes programs away where no tunnel needs them", () => {
    const at = (ifindex: number, program: "tunnel_in" | "tunnel_out", alive = true) => {
      return { ifindex, program, hook: "tcx" as const, programId: 1, alive };
    };
    const needed = [at(3, "tunnel_in"), at(7, "tunnel_out")];
    const strays = [at(4, "tunnel_in"), at(9, "tunnel_out", false)];
    const given = { rows: [rowFor(config)], attachments: [...needed, ...strays] };
    const { actions } = planTunnels([config], observed([ETH0, X, P], given));
    expect(actions.map((action) => action.kind === "tunnel-repair" && action.stray)).toEqual(strays);
    const eth1 = link(4, "eth1", { kind: null });
    const moved = one(VXLAN.replace("eth0", "eth1"));
    const present = observed([ETH0, eth1, X, P], { ...given, attachments: needed });
    expect(kinds(planTunnels([moved], present))).toEqual(["tunnel-change a", "tunnel-repair eth0"]);
    expect(kinds(planTunnels([], observed([ETH0, X, P], { ...given, attachments: needed })))).toEqual([
      "tunnel-remove a",
      "tunnel-repair eth0",
    ]);
  });
});

describe("the tables", () => {
  test("have rows by name, and what leads to each", () => {
    const tables = new TunnelTables(memorySource());
    const config = one(VXLAN);
    const row = rowFor(config);
    tables.rows.set(9, { ...row, name: "z", ifindex: 9 });
    tables.rows.set(7, row);
    for (const key of keysOf(row)) tables.index.set(key, 7);
    expect(tables.list().map(({ name }) => name)).toEqual(["a", "z"]);
    expect(tables.keysOf(7)).toEqual(keysOf(row));
    expect(tables.keysOf(9)).toEqual([]);
    expect(tables.isCounted(7)).toBe(false);
    tables.beginCounting(7);
    expect(tables.isCounted(7)).toBe(true);
    expect(tables.traffic(7)).toMatchObject({ received_packets: 0, sent_errors: 0 });
    expect([tables.endCounting(7), tables.endCounting(7)]).toEqual([true, false]);
  });
});

describe("the command", () => {
  const details: TunnelDetails = {
    ...{
      name: "fw-a",
      type: "mpls",
      encapsulation: "builtin",
      ifindex: 7,
      local: null,
      remote: null,
      id: null,
    },
    ...{
      port: null,
      labels: { request: [100, 200], reply: [300] },
      underlay: "eth0",
      mtu: 1496,
      state: "underlay_down",
    },
    ...{
      received_packets: 3,
      received_bytes: 2048,
      received_errors: 1,
      sent_packets: 4,
      sent_bytes: 5,
      sent_errors: 6,
    },
    ...{ kind: "veth", made_by_lasthop: true, mac: null, ttl: 64, tos: 0, ttl_model: "uniform" },
    ...{ next_hop: "02:00:00:00:00:01", hidden_interface: "lh-7" },
    programs: [{ program: "tunnel_in", interface: "eth0", hook: null, program_id: null }],
  };

  test("lists tunnels", () => {
    expect(tunnelsText([])).toBe("there are no tunnels (`tunnels:` in the configuration)\n");
    const [head, line] = tunnelsText([details]).split("\n");
    expect(head).toMatch(/^NAME +TYPE +ENCAP +LOCAL/);
    expect(line).toMatch(
      /^fw-a +mpls +builtin +- +- +100\/200>300 +eth0 +1496 +underlay down +3 +2 KiB +1 +4 +5 B +6$/,
    );
  });

  test("doctor says which are not in order", () => {
    expect(tunnelsCheck([])).toMatchObject({ level: "ok" });
    expect(tunnelsCheck([{ name: "a", state: "ok" }])).toMatchObject({ level: "ok", found: "1, in order" });
    const found = tunnelsCheck([{ name: "a", state: "ok" }, details]);
    expect(found).toMatchObject({ level: "warn", found: "fw-a: underlay down" });
  });

  test("shows one", () => {
    const text = tunnelText(details);
    expect(text).toContain("program             tunnel_in on eth0, missing");
    expect(text).toContain("TTL                 that of the packet");
    expect(text).not.toContain("local");
  });
});
