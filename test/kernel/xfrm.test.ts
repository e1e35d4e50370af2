// SPDX-License-Identifier: Apache-2.0
// A shared XFRM interface, as the hot path sees it: interface ids come and go in skb->cb (bpf/xfrm.h). The programs that
// put them there and take them out need a kernel module: test/net/xfrm.test.ts has them on the wire.

import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { ENCAPSULATION_FLAG, INTERFACE_FLAG, LAST_HOP_KIND } from "../../src/abi/layout.gen.ts";
import { createDevices, enterPrivateNamespace, IFINDEX, PORTS } from "./support/devices.ts";
import { ipOf } from "./support/packet.ts";
import { FAMILIES, type Family } from "./support/scene.ts";
import * as talk from "./support/talk.ts";
import { c, v } from "./support/talk.ts";
import { type Run, World } from "./support/world.ts";

const MARK = 0x6c687866;
const { TUNNEL, XFRM } = ENCAPSULATION_FLAG;

let world: World;

beforeAll(() => {
  enterPrivateNamespace();
  createDevices();
  world = new World();
});
afterAll(() => world?.close());
beforeEach(() => {
  world.reset();
  world.changeInterface("uplink_a", { flags: INTERFACE_FLAG.NO_LINK_LAYER | INTERFACE_FLAG.XFRM_ID });
});

/** Its source address has the EtherType where a test run looks for it, see rows/linkLayer.ts. */
const client = (f: Family): string => (f.version === 4 ? "8.0.100.10" : "2001:db8:86dd::10");
const tuple = (f: Family) => ({ ...talk.tcpTuple(f), local: f.routedVm, remote: client(f) });

function request(f: Family, flags: string, cb: readonly number[]): Run {
  const frame = { source: client(f), destination: f.routedVm };
  return world.run("learn_tc", IFINDEX.uplink_a, ipOf(c(f, flags, { frame })), { cb });
}

function answer(f: Family, flags: string, cb: readonly number[] = []): Run {
  const frame = { to: PORTS.tap_1.mac, source: f.routedVm, destination: client(f) };
  return world.run("reply_tc", IFINDEX.tap_1, v(f, flags, { frame }), { cb });
}

const reasons = ({ counts }: Run) => counts.map(({ reason }) => reason);

describe.each(Object.entries(FAMILIES))("a shared XFRM interface, %s", (_, f) => {
  test("a request's interface id is part of its last hop, and the reply has it", () => {
    expect(reasons(request(f, "S", [MARK, 7]))).toEqual(["learn"]);
    const { flow } = world.flow(tuple(f))!;
    expect(world.lastHop(flow.last_hop)).toMatchObject({
      kind: LAST_HOP_KIND.IP,
      encapsulated: TUNNEL | XFRM,
      encapsulation: { tunnel: { id: 7, remote: Buffer.alloc(16), flags: 0 } },
    });
    const run = answer(f, "SA", [1, 2, 3, 4, 5]);
    expect(reasons(run)).toEqual(["redirect"]);
    expect(run.verdict).toBe("redirect");
    // What somebody else has there stays.
    expect(run.cb).toEqual([MARK, 7, 3, 4, 5]);
    expect(reasons(request(f, "A", [MARK, 7]))).toEqual(["promote"]);
  });

  test("another id is another last hop, and the flow follows", () => {
    request(f, "S", [MARK, 7]);
    answer(f, "SA");
    request(f, "A", [MARK, 7]);
    expect(reasons(request(f, "PA", [MARK, 0xffff_fff0]))).toEqual(["relearn"]);
    expect(answer(f, "PA").cb.slice(0, 2)).toEqual([MARK, 0xffff_fff0]);
    expect(new Set(world.lastHopKeys().map((key) => key.tunnel_id))).toEqual(new Set([7, 0xffff_fff0]));
  });

  test.each([
    ["no mark", [0, 7]],
    ["what a driver left there", [0xdead_beef, 7, 1, 2, 3]],
    ["nothing", []],
  ])("%s: there is no id, and the reply claims none", (_, cb) => {
    expect(reasons(request(f, "S", cb))).toEqual(["learn"]);
    const { flow } = world.flow(tuple(f))!;
    expect(world.lastHop(flow.last_hop)).toMatchObject({ kind: LAST_HOP_KIND.IP, encapsulated: 0 });
    const run = answer(f, "SA", [1, 2, 3, 4, 5]);
    expect(reasons(run)).toEqual(["redirect"]);
    expect(run.cb).toEqual([1, 2, 3, 4, 5]);
  });

  test("id 0 is an IPsec policy without an interface: the reply goes through the host's routing", () => {
    world.changeInterface("uplink_a", { mark: 9 });
    expect(reasons(request(f, "S", [MARK, 0]))).toEqual(["learn"]);
    expect(world.lastHop(world.flow(tuple(f))!.flow.last_hop)).toMatchObject({
      ...{ kind: LAST_HOP_KIND.STACK, encapsulated: ENCAPSULATION_FLAG.IPSEC, mark: 9 },
    });
    const run = answer(f, "SA", [1, 2]);
    expect(reasons(run)).toEqual(["stack"]);
    expect(run).toMatchObject({ verdict: "pass", mark: 9, cb: [1, 2, 0, 0, 0] });
    expect(reasons(request(f, "A", [MARK, 0]))).toEqual(["promote"]);
    expect(reasons(request(f, "PA", [MARK, 0]))).toEqual(["refresh"]);
  });

  test("elsewhere the mark means nothing", () => {
    world.changeInterface("uplink_a", { flags: INTERFACE_FLAG.NO_LINK_LAYER });
    request(f, "S", [MARK, 7]);
    expect(world.lastHop(world.flow(tuple(f))!.flow.last_hop).encapsulated).toBe(0);
  });
});
