// SPDX-License-Identifier: Apache-2.0
// What explain says will happen is what happens, however interfaces are attached, detached and set.

import { describe, expect, it } from "vitest";
import type { Explanation } from "../../src/ops/types.ts";
import { attachAll, bracket, useSite } from "../support/fixture.ts";
import { repositoryPath } from "../support/paths.ts";

const PORT = 41_000;

describe.each(["bridged", "routed"] as const)("explain on a %s host", (host) => {
  const ground = useSite({ host, vms: 1 }, attachAll);

  const tuple = (port = PORT): string[] => {
    const { client, vm } = ground.site;
    return ["udp", `${bracket(client.address[4])}:${port}`, `${bracket(vm.address[4])}:7`];
  };

  /** One datagram and its echo; the code of the error if that did not come. UDP repeats nothing by itself. */
  const echo = (): Promise<string | undefined> => {
    const { client, vm } = ground.site;
    const target = { host: vm.address[4], port: 7, localPort: PORT, text: "explained", timeoutMs: 300 };
    return client.agent.failure("udp", target);
  };

  const explain = (...more: string[]): Promise<Explanation> =>
    ground.lasthop.json<Explanation>("explain", ...tuple(), ...more);

  /** What it says, and that the next reply is counted for that reason. */
  async function proven(reason: string): Promise<Explanation> {
    const { site, lasthop } = ground;
    const said = await explain();
    expect(said.reason).toBe(reason);
    expect(said.conclusion).toMatch(/^A reply (is|passes)/);
    const before = await lasthop.packets(reason, site.vm.tap);
    await echo();
    expect(await lasthop.packets(reason, site.vm.tap)).toBeGreaterThan(before);
    return said;
  }

  it("nothing was learned yet", async () => {
    expect(await explain()).toMatchObject({
      flow: null,
      verdict: "pass",
      reason: "no_flow",
      service: null,
      delivery: null,
    });
  });

  it("a reply is redirected to where the request came from", async () => {
    const { site } = ground;
    for (let round = 0; round < 2; round++) expect(await echo()).toBeUndefined();
    const said = await proven("redirect");
    expect(said).toMatchObject({
      host,
      verdict: "redirect",
      flow: { vm_mac: site.vm.mac, state: "established" },
    });
    expect(said.conclusion).toContain(`${site.a.mac} on ${site.uplinkOf("a")}`);
    if (host === "bridged") {
      expect(said.route).toBeNull();
      expect(said.notes.join()).toContain("the guest's own route");
    } else {
      expect(said.route).toMatchObject({ interface: site.uplinkOf("b"), gateway: site.b.address[4] });
      expect(said.conclusion).toContain(`not via ${site.b.address[4]}`);
      expect(said.notes.join()).toContain("TTL");
    }
  });

  it("the same sides the other way round, or in another zone, get a note", async () => {
    const [protocol, remote, local] = tuple();
    const exchanged = await ground.lasthop.json<Explanation>("explain", protocol!, local!, remote!);
    expect(exchanged.notes.join()).toContain("exchanged");
    const elsewhere = await explain("--zone", "8");
    expect(elsewhere).toMatchObject({ zone: 8, reason: "not_attached" });
    expect(elsewhere.notes.join()).toContain("zone 0");
  });

  it("bypass", async () => {
    await ground.lasthop.must("bypass", "on");
    await proven("bypass");
    await ground.lasthop.must("bypass", "off");
  });

  it.each([
    ["off", "off"],
    ["observe", "observe_change"],
    ["enforce", "redirect"],
  ] as const)("policy %s", async (policy, reason) => {
    await ground.lasthop.attach(ground.site.vm.tap, "tap", { policy });
    await proven(reason);
  });

  it("an uplink that is detached, and attached again", async () => {
    const { site, lasthop } = ground;
    const uplink = site.uplinkOf("a");
    const states = async () =>
      (await lasthop.lastHops()).filter((item) => item.mac === site.a.mac).map((item) => item.state);
    await lasthop.must("detach", uplink);
    expect(await states()).toEqual(["route"]);
    expect(await proven("device_down")).toMatchObject({ verdict: "pass" });
    await lasthop.attach(uplink, "uplink");
    expect(await states()).toEqual(["up"]);
    await proven("redirect");
    expect(await echo()).toBeUndefined();
  });

  it("a connection that the VM opened", async () => {
    const { site, lasthop } = ground;
    const target = { host: site.client.address[4], port: 9, localPort: 7_001, timeoutMs: 300 };
    await site.vm.agent.failure("open", { key: "own", ...target });
    const [, remote, local] = tuple(9);
    const said = await lasthop.json<Explanation>("explain", "tcp", remote!, local!.replace(/7$/, "7001"));
    expect(said).toMatchObject({ verdict: "pass", reason: "local_origin", flow: { origin: "local" } });
  });

  it("an uplink that is gone", async () => {
    const { site } = ground;
    await site.host.ip(`link del ${site.uplinkOf("a")}`);
    expect(await explain()).toMatchObject({ verdict: "pass", reason: "interface_gone" });
  });

  it("no tap", async () => {
    const { site, lasthop } = ground;
    await lasthop.must("detach", site.vm.tap);
    expect(await explain()).toMatchObject({ verdict: "pass", reason: "not_attached" });
  });
});

describe("explain of a VM that forwards what it gets unchanged, with both sides in one zone", () => {
  const ground = useSite({ vms: 2 }, attachAll);

  it("says that each side needs a zone of its own", async () => {
    const { site, lasthop, lab } = ground;
    // What the two taps leave behind: the request's flow, and the forwarded packet's, which the forwarder began.
    const program = `
      import { openInstance } from "${repositoryPath("dist/kernel/instance.js")}";
      import { encode } from "${repositoryPath("dist/abi/codec.js")}";
      import { encodeFlowKey, Tables } from "${repositoryPath("dist/tables/index.js")}";
      const tables = new Tables(openInstance(${JSON.stringify(lab.pinRoot)}));
      const [client, server] = [Buffer.from([198, 51, 100, 7]), Buffer.from([10, 0, 0, 5])];
      const base = { family: 4, zone: 0, proto: 6 };
      const { map } = tables.flows.table(4, "embryonic");
      const enter = (key, flow) => map.update(encodeFlowKey({ ...base, ...key }), encode("embryo", { flow }));
      enter({ local: server, localPort: 443, remote: client, remotePort: 4000 }, {});
      enter({ local: client, localPort: 4000, remote: server, remotePort: 443 }, { flags: 1 });
    `;
    await site.host.must([process.execPath, "--input-type=module", "-e", program]);
    const said = await lasthop.json<Explanation>("explain", "tcp", "198.51.100.7:4000", "10.0.0.5:443");
    expect(said.notes.join()).toContain("a zone of its own");
    const other = await lasthop.json<Explanation>("explain", "tcp", "10.0.0.5:443", "198.51.100.7:4000");
    expect(other).toMatchObject({ reason: "local_origin" });
    expect(other.notes.join()).toContain("a zone of its own");
  });
});
