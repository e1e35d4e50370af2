// SPDX-License-Identifier: Apache-2.0
// The pure parts of attaching.

import { describe, expect, test } from "vitest";
import { INTERFACES_MAX } from "../../src/abi/layout.gen.ts";
import { VMS_PER_TAP } from "../../src/config/defaults.ts";
import { chooseSlot } from "../../src/controller/slots.ts";
import { runSteps, type Step, UndoError } from "../../src/controller/steps.ts";
import { vmMacs } from "../../src/controller/vms.ts";
import { whyNotAttachable } from "../../src/kernel/coexistence.ts";
import type { FdbEntry, Link, Neighbour } from "../../src/kernel/rtnetlink.ts";
import { parseCapabilities } from "../../src/libc/capabilities.ts";

const TAP: Link = {
  ifindex: 7,
  name: "tap0",
  mac: "fe:54:00:00:00:01",
  mtu: 1500,
  ethernet: true,
  flags: { up: true, running: true, loopback: false },
  kind: "tun",
  lower: null,
  master: 3,
  masterKind: "bridge",
  parentDevice: null,
  portState: "forwarding",
  linkNetns: null,
  xdp: null,
  txQueues: 1,
};

describe("steps", () => {
  const log: string[] = [];
  const step = (name: string, fails?: "do" | "undo"): Step => ({
    done: name === "quiet" ? null : `${name} done`,
    do: () => {
      log.push(`do ${name}`);
      if (fails === "do") throw new Error(`${name} failed`);
    },
    undo: () => {
      log.push(`undo ${name}`);
      if (fails === "undo") throw new Error(`undo of ${name} failed`);
    },
  });
  const run = (...steps: Step[]): string[] => {
    log.length = 0;
    return runSteps(steps);
  };

  test("run in order, and say what was done", () => {
    expect(run(step("a"), step("quiet"), step("b"))).toEqual(["a done", "b done"]);
    expect(log).toEqual(["do a", "do quiet", "do b"]);
  });

  test("are undone in reverse when one fails, without that one", () => {
    expect(() => run(step("a"), step("b"), step("c", "do"), step("d"))).toThrow("c failed");
    expect(log).toEqual(["do a", "do b", "do c", "undo b", "undo a"]);
  });

  test("are all undone even if that fails, and both errors are told", () => {
    const error = (() => {
      try {
        run(step("a"), step("b", "undo"), step("c", "do"));
        return undefined;
      } catch (thrown) {
        return thrown;
      }
    })();
    expect(log).toEqual(["do a", "do b", "do c", "undo b", "undo a"]);
    expect(error).toBeInstanceOf(UndoError);
    expect((error as UndoError).errors.map((each: Error) => each.message)).toEqual([
      "c failed",
      "undo of b failed",
    ]);
  });
});

describe("a slot", () => {
  const slots = (...numbers: number[]): Set<number> => new Set(numbers);
  const all = Array.from({ length: INTERFACES_MAX - 1 }, (_, index) => index + 1);

  test("is the interface's former one", () => {
    expect(chooseSlot(5, slots(1, 2), slots(5, 6))).toBe(5);
  });

  test("is not the former one when another interface has it", () => {
    expect(chooseSlot(2, slots(1, 2), slots(2))).toBe(3);
  });

  test("is one that no last hop names", () => {
    expect(chooseSlot(undefined, slots(1), slots(2, 3))).toBe(4);
  });

  test("is one that last hops name when there is no other", () => {
    expect(chooseSlot(undefined, slots(1), slots(...all))).toBe(2);
  });

  test("is never 0, nor out of the table", () => {
    expect(chooseSlot(0, slots(), slots())).toBe(1);
    expect(chooseSlot(INTERFACES_MAX, slots(), slots())).toBe(1);
    expect(() => chooseSlot(undefined, slots(...all), slots())).toThrow(
      expect.objectContaining({ code: "E_INTERFACE" }),
    );
  });
});

describe("VMs known behind a tap", () => {
  const entry = (mac: string, more: Partial<FdbEntry> = {}): FdbEntry => ({
    ifindex: 7,
    master: 3,
    mac,
    vlan: null,
    local: false,
    ...more,
  });
  const neighbour = (mac: string | null, more: Partial<Neighbour> = {}): Neighbour => ({
    ifindex: 7,
    family: 4,
    address: "10.0.0.5",
    mac,
    state: "reachable",
    ...more,
  });
  const HOST = "02:00:00:00:00:fe";

  test("come from the bridge, once each", () => {
    const fdb = [
      entry("52:54:00:00:00:01"),
      entry("52:54:00:00:00:01", { vlan: 10 }),
      entry("52:54:00:00:00:02"),
    ];
    expect(vmMacs(TAP, HOST, fdb, [])).toEqual(["52:54:00:00:00:01", "52:54:00:00:00:02"]);
  });

  test("are not those of other ports, the tap itself, or the host", () => {
    const fdb = [
      entry("52:54:00:00:00:09", { ifindex: 8 }),
      entry(TAP.mac!, { local: true }),
      entry(TAP.mac!),
      entry(HOST),
      entry("33:33:00:00:00:01", { master: null }),
      entry("33:33:00:00:00:01"),
      entry("00:00:00:00:00:00"),
    ];
    expect(vmMacs(TAP, HOST, fdb, [])).toEqual([]);
  });

  test("come from the neighbour table, unless it only guesses", () => {
    const neighbours = [
      neighbour("52:54:00:00:00:01"),
      neighbour("52:54:00:00:00:02", { state: "stale", family: 6 }),
      neighbour("52:54:00:00:00:03", { state: "failed" }),
      neighbour("52:54:00:00:00:04", { ifindex: 9 }),
      neighbour("33:33:00:00:00:16", { state: "noarp" }),
      neighbour(null, { state: "incomplete" }),
    ];
    expect(vmMacs(TAP, HOST, [], neighbours)).toEqual(["52:54:00:00:00:01", "52:54:00:00:00:02"]);
  });

  test("are no more than a tap may enter by itself", () => {
    const fdb = Array.from({ length: VMS_PER_TAP + 10 }, (_, index) =>
      entry(
        `52:54:00:00:${(index >> 8).toString(16).padStart(2, "0")}:${(index & 255).toString(16).padStart(2, "0")}`,
      ),
    );
    expect(vmMacs(TAP, HOST, fdb, [])).toHaveLength(VMS_PER_TAP);
  });
});

describe("an interface that cannot be attached", () => {
  const links = { link: () => ({ ...TAP, name: "bond7" }) };
  const why = (more: Partial<Link>) => whyNotAttachable(links, { ...TAP, ...more });

  test("is told apart from one that can", () => {
    expect(why({})).toBeNull();
    expect(why({ flags: { up: true, running: true, loopback: true } })?.why).toContain("loopback");
    expect(why({ kind: "vrf" })?.hint).toContain("ip -brief link show vrf tap0");
    expect(why({ ethernet: false })?.why).toContain("Ethernet");
  });

  test.each(["bond", "team"])("is a slave of a %s, which is to be attached instead", (masterKind) => {
    expect(why({ masterKind })).toEqual({ why: "it is a slave of bond7", hint: "Attach bond7 instead." });
  });
});

test("capabilities are read from the status of the process", () => {
  const status = (mask: string): string => `Name:\tnode\nCapInh:\t0000000000000000\nCapEff:\t${mask}\n`;
  expect(parseCapabilities(status("000001ffffffffff"))).toContain("CAP_BPF");
  expect([...parseCapabilities(status("000000c000001000"))].sort()).toEqual([
    "CAP_BPF",
    "CAP_NET_ADMIN",
    "CAP_PERFMON",
  ]);
  expect(parseCapabilities(status("0000000000000000")).size).toBe(0);
});
