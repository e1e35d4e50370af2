// SPDX-License-Identifier: Apache-2.0
// Events from bytes, and what follows from them.

import { describe, expect, test } from "vitest";
import type { TapConfig } from "../../src/config/schema.ts";
import { HostView, Watcher, type WatcherOptions } from "../../src/daemon/watch.ts";
import { decodeEvent, type NetlinkEvent, type NetlinkEventHandlers } from "../../src/kernel/netlinkEvents.ts";
import { decodeMessages, NLMSG_DONE } from "../../src/kernel/netlinkMessage.ts";
import {
  type Address,
  decodeBridge,
  decodeFdbEntry,
  type FdbEntry,
  type Link,
  type Neighbour,
  refreshFdbRequest,
} from "../../src/kernel/rtnetlink.ts";
import { DATAGRAMS } from "./fixtures/netlinkDatagrams.ts";

/** The kernel's answers have the form of its events; a removal differs in the type. */
function events(name: keyof typeof DATAGRAMS, options: { removed?: boolean; family?: number } = {}) {
  const messages = decodeMessages(Buffer.from(DATAGRAMS[name], "hex"));
  return messages
    .filter((message) => message.type !== NLMSG_DONE)
    .map(({ payload, type, ...rest }) => {
      const copy = Buffer.from(payload);
      if (options.family !== undefined) copy.writeUInt8(options.family, 0);
      return decodeEvent({ ...rest, payload: copy, type: options.removed ? type + 1 : type });
    });
}

const AF_BRIDGE = 7;

describe("an event is decoded", () => {
  test.each([false, true])("of a link (gone: %s)", (removed) => {
    expect(events("vethWithXdp", { removed })).toEqual([
      { kind: "link", gone: removed, link: expect.objectContaining({ ifindex: 3, name: "va" }) },
    ]);
  });

  test.each([false, true])("of a bridge's port, which is not gone though it is no port (%s)", (removed) => {
    expect(events("bridgePort", { removed, family: AF_BRIDGE })).toEqual([
      { kind: "port", gone: removed, ifindex: 2 },
    ]);
  });

  test.each([false, true])("of an address (gone: %s)", (removed) => {
    const address = { ifindex: 3, family: 4, address: "192.0.2.1", prefixLength: 24 };
    expect(events("addresses", { removed })).toContainEqual({ kind: "address", gone: removed, address });
  });

  test.each([false, true])("of a neighbour (gone: %s)", (removed) => {
    expect(events("neighbours", { removed })).toContainEqual({
      kind: "neighbour",
      gone: removed,
      neighbour: expect.objectContaining({ address: "192.0.2.254", state: "permanent" }),
    });
  });

  test.each([false, true])("of a forwarding entry (gone: %s)", (removed) => {
    expect(events("fdb", { removed })).toContainEqual({
      kind: "fdb",
      gone: removed,
      entry: { ifindex: 2, master: 4, vlan: null, mac: "02:00:00:00:00:0a", local: false, ages: true },
    });
  });

  test("of nothing that we follow is none", () => {
    expect(events("route4")).toEqual([null]);
  });
});

describe("a forwarding entry", () => {
  const refresh = (vlan: number | null) =>
    decodeMessages(refreshFdbRequest(5, { ifindex: 9, mac: "02:00:00:00:00:0a", vlan }))[0]!;

  test("is refreshed as if a frame had come in, and asks for an answer", () => {
    // NLM_F_REQUEST, ACK, REPLACE and CREATE, as `bridge fdb replace MAC dev PORT master use` has them.
    const message = refresh(null);
    expect([message.type, message.flags]).toEqual([28, 0x505]);
    const family = "07000000";
    const [ifindex, stateFlagsType] = ["09000000", "02000500"];
    const address = "0a00020002000000000a0000";
    expect(message.payload.toString("hex")).toBe(family + ifindex + stateFlagsType + address);
  });

  test("is refreshed in its VLAN", () => {
    expect(refresh(7).payload.toString("hex").slice(48)).toBe("0600050007000000");
    expect(decodeFdbEntry(refresh(7).payload)).toMatchObject({ vlan: 7, mac: "02:00:00:00:00:0a" });
  });

  test("of nonsense is refused", () => {
    expect(() => refreshFdbRequest(1, { ifindex: 9, mac: "nonsense", vlan: null })).toThrow(RangeError);
  });

  test.each([
    ["learned", 0x02, 0, true],
    ["stale", 0x04, 0, true],
    ["static", 0x40, 0, undefined],
    ["the port's own", 0x80, 0, undefined],
    ["made by a switch's driver", 0x02, 0x10, undefined],
  ])("that is %s ages: %s %s %s", (_, state, flags, ages) => {
    const { payload } = refresh(null);
    payload.writeUInt16LE(state, 8);
    payload.writeUInt8(flags, 10);
    expect(decodeFdbEntry(payload)?.ages).toBe(ages);
  });
});

describe("a bridge's ageing time", () => {
  const attribute = (type: number, value: Buffer): Buffer => {
    const padded = Buffer.alloc((value.length + 3 + 4) & ~3);
    padded.writeUInt16LE(4 + value.length, 0);
    padded.writeUInt16LE(type, 2);
    value.copy(padded, 4);
    return padded;
  };
  const u32 = (value: number): Buffer => Buffer.from(Uint32Array.of(value).buffer);
  const bridge = (kind: string, ageing: number, forwardDelay: number, stp: number): Buffer => {
    const data = Buffer.concat([
      attribute(1, u32(forwardDelay)),
      attribute(4, u32(ageing)),
      attribute(5, u32(stp)),
    ]);
    const info = Buffer.concat([attribute(1, Buffer.from(`${kind}\0`)), attribute(2, data)]);
    const header = Buffer.alloc(16);
    header.writeInt32LE(4, 4);
    return Buffer.concat([header, attribute(18, info)]);
  };

  test.each([
    [30_000, 1500, 0, 300],
    [400, 0, 0, 4],
    // The time to which spanning tree shortens it.
    [30_000, 1500, 1, 15],
    [1000, 1500, 1, 10],
  ])("%i, with a forward delay of %i and spanning tree %i: %i s", (ageing, delay, stp, ageingSeconds) => {
    expect(decodeBridge(bridge("bridge", ageing, delay, stp))).toEqual({ ifindex: 4, ageingSeconds });
  });

  test("is that of a bridge only", () => {
    expect(decodeBridge(bridge("bond", 400, 0, 0))).toBeNull();
    expect(decodeBridge(Buffer.alloc(16))).toBeNull();
  });
});

function link(more: Partial<Link> = {}): Link {
  return {
    ifindex: 7,
    name: "vnet0",
    mac: "fe:54:00:00:00:01",
    mtu: 1500,
    ethernet: true,
    flags: { up: true, running: true, loopback: false },
    kind: "tun",
    lower: null,
    master: null,
    masterKind: null,
    parentDevice: null,
    portState: null,
    linkNetns: null,
    xdp: null,
    txQueues: 1,
    ...more,
  };
}
const linkEvent = (more: Partial<Link> = {}, gone = false): NetlinkEvent => ({
  kind: "link",
  gone,
  link: link(more),
});
const fdbEvent = (more: Partial<FdbEntry> = {}, gone = false): NetlinkEvent => ({
  kind: "fdb",
  gone,
  entry: { ifindex: 7, master: 3, mac: "52:54:00:00:00:01", vlan: null, local: false, ages: true, ...more },
});
const taps = (...some: Partial<TapConfig>[]) => ({ taps: some as TapConfig[] });

describe("what follows from events", () => {
  test("a link that is new", () => {
    expect(new HostView().consequences(linkEvent())).toEqual({ reconcile: true, newTap: true, link: link() });
    expect(new HostView().consequences(linkEvent({ kind: "bridge" })).newTap).toBeUndefined();
  });

  test("a link of which nothing that matters changed: nothing", () => {
    const view = new HostView();
    view.consequences(linkEvent());
    expect(view.consequences(linkEvent())).toEqual({});
    expect(view.consequences(linkEvent({ txQueues: 4 }))).toEqual({});
  });

  test.each<[string, Partial<Link>]>([
    ["name", { name: "vnet1" }],
    ["MAC", { mac: "fe:54:00:00:00:02" }],
    ["MTU", { mtu: 9000 }],
    ["state", { flags: { up: true, running: false, loopback: false } }],
    ["bridge", { master: 3 }],
    ["port's state", { portState: "blocking" }],
    ["XDP program", { xdp: { mode: "native", programId: 5 } }],
  ])("a link with another %s", (_, change) => {
    const view = new HostView();
    view.consequences(linkEvent());
    expect(view.consequences(linkEvent(change))).toEqual({ reconcile: true, link: link(change) });
  });

  test("a link that went, and came back", () => {
    const view = new HostView();
    view.consequences(linkEvent());
    const gone = view.consequences(linkEvent({}, true));
    expect(gone).toEqual({
      reconcile: true,
      link: link({ flags: { up: false, running: false, loopback: false } }),
    });
    expect(view.consequences(linkEvent())).toMatchObject({ reconcile: true, newTap: true });
  });

  test("a port of a bridge", () => {
    expect(new HostView().consequences({ kind: "port", gone: true, ifindex: 7 })).toEqual({
      reconcile: true,
    });
  });

  test("an address that is new or went, but not one whose lifetime was renewed", () => {
    const address: Address = { ifindex: 3, family: 6, address: "2001:db8::1", prefixLength: 64 };
    const view = new HostView();
    expect(view.consequences({ kind: "address", gone: false, address })).toEqual({
      addresses: true,
      reconcile: true,
    });
    expect(view.consequences({ kind: "address", gone: false, address })).toEqual({});
    expect(view.consequences({ kind: "address", gone: true, address })).toEqual({
      addresses: true,
      reconcile: true,
    });
    expect(view.consequences({ kind: "address", gone: false, address })).toEqual({
      addresses: true,
      reconcile: true,
    });
  });

  test("a neighbour is for the devices, never for the interfaces", () => {
    const neighbour: Neighbour = {
      ifindex: 3,
      family: 4,
      address: "192.0.2.254",
      mac: "02:00:00:00:00:fe",
      state: "reachable",
    };
    const view = new HostView();
    expect(view.consequences({ kind: "neighbour", gone: false, neighbour })).toEqual({ neighbour });
    expect(view.consequences({ kind: "neighbour", gone: true, neighbour })).toEqual({
      neighbour: { ...neighbour, mac: null, state: "none" },
    });
  });

  test("a forwarding entry matters for a guest that is given by its MAC, when it is somewhere else", () => {
    const view = new HostView();
    expect(view.consequences(fdbEvent())).toEqual({});
    view.configure(taps({ name: "vnet*" }, { guest_mac: "52:54:00:00:00:01" }));
    expect(view.consequences(fdbEvent({ mac: "52:54:00:00:00:02" }))).toEqual({});
    expect(view.consequences(fdbEvent({ master: null }))).toEqual({});
    expect(view.consequences(fdbEvent())).toEqual({ reconcile: true });
    expect(view.consequences(fdbEvent({ vlan: 5 }))).toEqual({});
    expect(view.consequences(fdbEvent({}, true))).toEqual({});
    expect(view.consequences(fdbEvent({ ifindex: 8 }))).toEqual({ reconcile: true });
    view.configure(taps({ guest_mac: "52-54-00-00-00-01" }));
    expect(view.consequences(fdbEvent({ ifindex: 8 }))).toEqual({});
  });

  test("after an overrun everything may be new", () => {
    const view = new HostView();
    view.configure(taps({ guest_mac: "52:54:00:00:00:01" }));
    view.consequences(linkEvent());
    view.consequences(fdbEvent());
    view.forget();
    expect(view.consequences(linkEvent())).toMatchObject({ reconcile: true });
    expect(view.consequences(fdbEvent())).toMatchObject({ reconcile: true });
  });
});

describe("the watcher", () => {
  function watching() {
    const calls: string[] = [];
    let handlers: NetlinkEventHandlers | undefined;
    let opened = 0;
    let refuse = false;
    const options: WatcherOptions = {
      reconcile: () => calls.push("reconcile"),
      neighbourChanged: ({ address }) => calls.push(`neighbour ${address}`),
      linkChanged: ({ name }) => calls.push(`link ${name}`),
      vxlanChanged: ({ mac }, gone) => calls.push(`vxlan ${mac}${gone ? " gone" : ""}`),
      addressesChanged: () => calls.push("addresses"),
      overrun: () => calls.push("overrun"),
      onError: (error) => calls.push(`error ${(error as Error).message}`),
      open: (given) => {
        if (refuse) throw new Error("no socket");
        opened++;
        handlers = given;
        return { close: () => calls.push("close") };
      },
      reopenMs: 5,
    };
    const watcher = new Watcher(options);
    watcher.configure(taps());
    watcher.start();
    return {
      watcher,
      calls,
      handlers: () => handlers!,
      opened: () => opened,
      refuse: (value: boolean) => {
        refuse = value;
      },
    };
  }
  const settle = () => new Promise((resolve) => setTimeout(resolve, 40));

  test("hands on what follows", () => {
    const { watcher, calls, handlers } = watching();
    handlers().event(linkEvent());
    handlers().overrun();
    watcher.stop();
    expect(calls).toEqual(["link vnet0", "reconcile", "overrun", "reconcile", "close"]);
  });

  test("opens its socket again when it failed, and looks at everything", async () => {
    const { watcher, calls, handlers, opened, refuse } = watching();
    refuse(true);
    handlers().failed(new Error("broken"));
    await settle();
    refuse(false);
    await settle();
    watcher.stop();
    expect(opened()).toBe(2);
    expect(calls.slice(0, 2)).toEqual(["error broken", "error no socket"]);
    expect(calls.slice(-3)).toEqual(["overrun", "reconcile", "close"]);
  });

  test("looks again for a while after a tap came, if taps are given by their domain", async () => {
    const { watcher, calls, handlers } = watching();
    watcher.configure(taps({ domain: "web" }));
    handlers().event(linkEvent());
    await new Promise((resolve) => setTimeout(resolve, 250));
    watcher.stop();
    expect(calls.filter((call) => call === "reconcile").length).toBe(3);
    await settle();
    expect(calls.filter((call) => call === "reconcile").length).toBe(3);
  });
});
