// SPDX-License-Identifier: Apache-2.0

import { describe, expect, test } from "vitest";
import { attachDecided, decideHook, type HookFacts } from "../../src/controller/hook.ts";
import { LasthopError } from "../../src/errors.ts";
import type { Hook, Mode } from "../../src/ops/types.ts";

const NIC: HookFacts = {
  name: "eth0",
  role: "uplink",
  kind: null,
  ethernet: true,
  external: false,
  hardware: true,
  xdp: null,
  ownXdpProgramId: null,
  vlanStripping: [],
  services: false,
  tcx: true,
};
const FOREIGN = { mode: "native", programId: 77 };

describe("auto chooses", () => {
  const rows: [what: string, facts: Partial<HookFacts>, hook: Hook, reason: RegExp][] = [
    ["native XDP on hardware", {}, "xdp_native", /hardware/],
    ["TC on a veth", { hardware: false, kind: "veth" }, "tcx", /veth/],
    ["TC on a tun in tap mode", { hardware: false, kind: "tun" }, "tcx", /tun/],
    ["TC where a foreign XDP program is", { xdp: FOREIGN }, "tcx", /77/],
    ["TC where that has no id", { xdp: { mode: "multi", programId: null } }, "tcx", /somebody else/],
    ["native XDP where the program is ours", { xdp: FOREIGN, ownXdpProgramId: 77 }, "xdp_native", /hardware/],
    ["TC where tags are stripped", { vlanStripping: ["rx-vlan-hw-parse"] }, "tcx", /strips/],
    ["TC where that is not known", { vlanStripping: null }, "tcx", /does not say/],
    ["TC where services hand frames to taps", { services: true }, "tcx", /services/],
    ["TC for a tap that is hardware", { role: "tap" }, "tcx", /tap/],
    ["clsact on an older kernel", { hardware: false, tcx: false }, "clsact", /not hardware/],
    ["TC without a link layer", { hardware: false, ethernet: false, kind: "gre" }, "tcx", /gre/],
    ["TC on a shared tunnel device", { hardware: false, external: true, kind: "vxlan" }, "tcx", /vxlan/],
    ["clsact for a tap there", { role: "tap", tcx: false }, "clsact", /tap/],
  ];
  test.each(rows)("%s", (_, facts, hook, reason) => {
    const decision = decideHook({ ...NIC, ...facts }, "auto");
    expect(decision.hook).toBe(hook);
    expect(decision.reason).toMatch(reason);
    // Only what was not asked for may be given up when the driver refuses.
    expect(decision.fallback).toBe(hook === "xdp_native" ? "tcx" : null);
  });
});

describe("what was asked for", () => {
  const rows: [mode: Mode, facts: Partial<HookFacts>, hook: Hook][] = [
    ["native", {}, "xdp_native"],
    ["native", { hardware: false, kind: "veth" }, "xdp_native"],
    ["native", { xdp: { mode: "generic", programId: 5 }, ownXdpProgramId: 5 }, "xdp_native"],
    ["native", { vlanStripping: null }, "xdp_native"],
    ["native", { services: true }, "xdp_native"],
    ["generic", {}, "xdp_generic"],
    ["tc", {}, "tcx"],
    ["tc", { tcx: false }, "clsact"],
    ["tc", { xdp: FOREIGN, vlanStripping: ["rx-vlan-hw-parse"] }, "tcx"],
    ["tc", { role: "tap" }, "tcx"],
  ];
  test.each(rows)("%s with %o is %s", (mode, facts, hook) => {
    expect(decideHook({ ...NIC, ...facts }, mode)).toMatchObject({ hook, fallback: null });
  });
});

describe("refused", () => {
  const stripping = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];
  const rows: [mode: Mode, facts: Partial<HookFacts>, code: string, message: string, hint: string][] = [
    ["native", { role: "tap" }, "E_MODE", "tap", "--mode tc"],
    ["generic", { role: "tap" }, "E_MODE", "tap", "--mode tc"],
    ["native", { xdp: FOREIGN }, "E_FOREIGN", "XDP program 77", "bpftool prog show id 77"],
    ["generic", { xdp: FOREIGN }, "E_FOREIGN", "XDP program 77", "--mode tc"],
    ["native", { xdp: FOREIGN, ownXdpProgramId: 5 }, "E_FOREIGN", "77", "--mode tc"],
    [
      "native",
      { vlanStripping: stripping },
      "E_MODE",
      "strips VLAN tags",
      "ethtool -K eth0 rx-vlan-hw-parse off rx-vlan-stag-hw-parse off",
    ],
    [
      "generic",
      { vlanStripping: ["rx-vlan-hw-parse"] },
      "E_MODE",
      "strips",
      "ethtool -K eth0 rx-vlan-hw-parse off",
    ],
    [
      "native",
      { ethernet: false, hardware: false, kind: "gre" },
      "E_MODE",
      "no Ethernet header",
      "--mode tc",
    ],
    [
      "generic",
      { ethernet: false, hardware: false, kind: "tun" },
      "E_MODE",
      "no Ethernet header",
      "--mode tc",
    ],
    ["generic", { external: true, hardware: false, kind: "vxlan" }, "E_MODE", "many tunnels", "--mode tc"],
    ["native", { hardware: false, kind: "vlan" }, "E_MODE", "a vlan has no native XDP", "--mode tc"],
  ];
  test.each(rows)("%s with %o", (mode, facts, code, message, hint) => {
    const refusal = (): unknown => decideHook({ ...NIC, ...facts }, mode);
    expect(refusal).toThrow(LasthopError);
    expect(refusal).toThrow(
      expect.objectContaining({
        code,
        message: expect.stringContaining(message),
        hint: expect.stringContaining(hint),
      }),
    );
  });
});

describe("what the driver refuses", () => {
  const native = { hook: "xdp_native", reason: "it is hardware", fallback: "tcx" } as const;
  const attempt = (hook: Hook, reason: string): string => {
    if (hook === "xdp_native") throw new Error("no native XDP");
    return `${hook}, since ${reason}`;
  };

  test("is replaced by the fallback, which says why", () => {
    const attached = attachDecided(native, attempt, () => "the driver refuses");
    expect(attached).toEqual({ hook: "tcx", result: "tcx, since the driver refuses" });
  });

  test("is an error without a fallback, or if something else failed", () => {
    expect(() => attachDecided({ ...native, fallback: null }, attempt, () => "the driver refuses")).toThrow(
      "no native XDP",
    );
    expect(() => attachDecided(native, attempt, () => null)).toThrow("no native XDP");
  });

  test("is not tried again when it works", () => {
    expect(attachDecided({ ...native, hook: "tcx" }, attempt, () => null).hook).toBe("tcx");
  });
});
