// SPDX-License-Identifier: Apache-2.0
// What the typed tables and the lists over them must do, whatever the maps are made of.

import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { encode, joinLastHop, type StructInput } from "../../src/abi/codec.ts";
import {
  FLOW_FLAG,
  FLOW_STATE,
  LAST_HOP_KIND,
  LAST_HOPS_MAX,
  ORIGIN,
  REASON,
  ROLE,
} from "../../src/abi/layout.gen.ts";
import { parseAddress, parseMac } from "../../src/addresses.ts";
import { flowEntries, flowLines, removeFlows } from "../../src/ops/flows.ts";
import { FlowView } from "../../src/ops/flowView.ts";
import { lastHopEntries } from "../../src/ops/lastHops.ts";
import { verdictCounts } from "../../src/ops/stats.ts";
import { findFlow, flowNotFound } from "../../src/ops/tupleKeys.ts";
import type { FlowEntry, FlowFilter } from "../../src/ops/types.ts";
import { decodeFlowKey, encodeFlowKey, type FlowKey, Tables, type Tier } from "../../src/tables/index.ts";
import { parseTuple } from "../../src/tuple.ts";
import { PLAIN_PLACE } from "./entries.ts";
import type { TestSource } from "./tableSource.ts";

const UPLINK_A = 11;
const UPLINK_B = 12;
const TAP = 13;
const [HOP_A, HOP_B, HOP_ALIAS, HOP_DOWN] = [1, 2, 3, 4];
const ESTABLISHED = FLOW_STATE.ESTABLISHED;

interface Wanted {
  remote: string;
  local: string;
  remotePort?: number;
  localPort?: number;
  proto?: number;
  zone?: number;
  tier?: Tier;
}

function flowKey({
  remote,
  local,
  remotePort = 40_000,
  localPort = 443,
  proto = 6,
  zone = 0,
}: Wanted): FlowKey {
  const [remoteBytes, localBytes] = [parseAddress(remote)!, parseAddress(local)!];
  const family = remoteBytes.length === 4 ? 4 : 6;
  return { family, remote: remoteBytes, local: localBytes, remotePort, localPort, proto, zone };
}

function put(tables: Tables, wanted: Wanted, value: StructInput<"flow">): void {
  const key = flowKey(wanted);
  const tier = wanted.tier ?? "established";
  const bytes = tier === "established" ? encode("flow", value) : encode("embryo", { flow: value });
  tables.flows.table(key.family, tier).map.update(encodeFlowKey(key), bytes);
}

function putLastHop(
  tables: Tables,
  index: number,
  fields: StructInput<"last_hop">,
  target: number | "route" = index,
) {
  const record = { kind: LAST_HOP_KIND.ETHERNET, generation: 7, slot: 1, ...fields };
  tables.lastHops.records.set(index, record);
  tables.lastHops.setAlias(index, record.generation, target);
  tables.lastHops.keys.set({ ifindex: record.ifindex ?? 0, mac: record.mac ?? Buffer.alloc(6) }, index);
}

function remoteOf(entries: Iterable<FlowEntry>): string[] {
  return [...entries].map((entry) => entry.remote_address).sort();
}

/** Numbers that look random and are the same each time. */
function randomBytes(seed: number): (length: number) => Buffer {
  let state = seed;
  const next = () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state >>> 24;
  };
  return (length) => Buffer.from(Array.from({ length }, next));
}

function lines(tables: Tables, filter: FlowFilter, view: FlowView): { text: string[]; flows: number } {
  let flows = 0;
  const chunks: string[] = [];
  for (const chunk of flowLines(tables, filter, view)) {
    flows += chunk.flows;
    chunks.push(chunk.lines.toString());
  }
  return { text: chunks.join("").split("\n").slice(0, -1), flows };
}

export function describeTables(label: string, makeSource: () => TestSource): void {
  describe(label, () => {
    let source: TestSource;
    let tables: Tables;

    beforeEach(() => {
      source = makeSource();
      tables = new Tables(source);
      tables.interfaces.set(UPLINK_A, { name: "uplink-a", role: ROLE.UPLINK, slot: 1 });
      tables.interfaces.set(UPLINK_B, { name: "uplink-b", role: ROLE.UPLINK, slot: 2, zone: 5 });
      tables.interfaces.set(TAP, { name: "tap", role: ROLE.TAP, slot: 3 });
      putLastHop(tables, HOP_A, { ifindex: UPLINK_A, mac: parseMac("02:00:00:00:0a:01")! });
      const tags = [
        { proto: 0x88a8, vid: 100 },
        { proto: 0x8100, vid: 7 },
      ];
      putLastHop(tables, HOP_B, { ifindex: UPLINK_B, mac: parseMac("02:00:00:00:0b:01")!, tags });
      putLastHop(tables, HOP_ALIAS, { ifindex: 99, mac: parseMac("02:00:00:00:0c:01")! }, HOP_A);
      putLastHop(tables, HOP_DOWN, { ifindex: UPLINK_A, mac: parseMac("02:00:00:00:0d:01")! }, "route");
      tables.vms.set({ mac: parseMac("02:00:00:00:01:01")! }, { id: 21 });
    });

    afterEach(() => source.close());

    it("shows a flow with everything that it refers to", () => {
      const now = new FlowView(tables).now;
      put(
        tables,
        { remote: "198.51.100.7", local: "10.0.0.5", zone: 5 },
        {
          last_hop: joinLastHop(7, HOP_B),
          last_seen: now,
          vm: 21,
          state: ESTABLISHED,
          flags: FLOW_FLAG.PICKUP | FLOW_FLAG.FIN_LOCAL,
        },
      );
      expect([...flowEntries(tables, {})]).toEqual([
        {
          protocol: "tcp",
          zone: 5,
          remote_address: "198.51.100.7",
          remote_port: 40_000,
          local_address: "10.0.0.5",
          local_port: 443,
          icmp_id: null,
          tier: "established",
          state: "established",
          origin: "remote",
          flags: ["pickup", "fin_local"],
          last_hop: {
            index: HOP_B,
            generation: 7,
            mac: "02:00:00:00:0b:01",
            interface: "uplink-b",
            tags: [
              { protocol: "802.1ad", vid: 100 },
              { protocol: "802.1q", vid: 7 },
            ],
            ...PLAIN_PLACE,
            labels: [],
          },
          stale: false,
          vm: null,
          vm_mac: "02:00:00:00:01:01",
          idle_seconds: expect.closeTo(0, 0),
        },
      ]);
    });

    it("shows each flow once, whatever its tier and family", () => {
      const value = { last_hop: joinLastHop(7, HOP_A), state: ESTABLISHED };
      put(tables, { remote: "198.51.100.1", local: "10.0.0.5" }, value);
      put(
        tables,
        { remote: "198.51.100.1", local: "10.0.0.5", tier: "embryonic" },
        { ...value, state: FLOW_STATE.SYN },
      );
      put(tables, { remote: "198.51.100.2", local: "10.0.0.5", tier: "embryonic" }, value);
      put(tables, { remote: "2001:db8::1", local: "2001:db8:1::5" }, value);
      put(tables, { remote: "2001:db8::1", local: "2001:db8:1::5", tier: "embryonic" }, value);
      put(tables, { remote: "2001:db8::2", local: "2001:db8:1::5", tier: "embryonic" }, value);
      const entries = [...flowEntries(tables, {})];
      expect(remoteOf(entries)).toEqual(["198.51.100.1", "198.51.100.2", "2001:db8::1", "2001:db8::2"]);
      expect(
        entries
          .filter((entry) => entry.tier === "embryonic")
          .map((entry) => entry.remote_address)
          .sort(),
      ).toEqual(["198.51.100.2", "2001:db8::2"]);
    });

    const references: {
      name: string;
      value: StructInput<"flow">;
      last_hop: object | null;
      stale: boolean;
    }[] = [
      {
        name: "one that is aliased",
        value: { last_hop: joinLastHop(7, HOP_ALIAS) },
        last_hop: { mac: "02:00:00:00:0c:01", interface: "if99" },
        stale: false,
      },
      {
        name: "one that is down",
        value: { last_hop: joinLastHop(7, HOP_DOWN) },
        last_hop: { mac: "02:00:00:00:0d:01" },
        stale: false,
      },
      { name: "another generation", value: { last_hop: joinLastHop(6, HOP_A) }, last_hop: null, stale: true },
      {
        name: "an index that was never used",
        value: { last_hop: joinLastHop(7, 200) },
        last_hop: null,
        stale: true,
      },
      { name: "an index beyond the table", value: { last_hop: 0xffff_ffff }, last_hop: null, stale: true },
      { name: "nothing at all", value: { last_hop: 0 }, last_hop: null, stale: true },
      {
        name: "nothing, of local origin",
        value: { last_hop: 0, flags: FLOW_FLAG.LOCAL_ORIGIN },
        last_hop: null,
        stale: false,
      },
    ];
    for (const { name, value, last_hop, stale } of references) {
      it(`a last hop: ${name}`, () => {
        put(tables, { remote: "198.51.100.1", local: "10.0.0.5" }, value);
        const [entry] = flowEntries(tables, {});
        if (last_hop === null) expect(entry!.last_hop).toBeNull();
        else expect(entry!.last_hop).toMatchObject(last_hop);
        expect(entry!.stale).toBe(stale);
        expect(entry!.origin).toBe(value.flags ? "local" : "remote");
      });
    }

    it("echo has an identifier, whoever asked", () => {
      put(tables, { remote: "198.51.100.1", local: "10.0.0.5", proto: 1, remotePort: 77, localPort: 0 }, {});
      put(
        tables,
        { remote: "2001:db8::1", local: "2001:db8:1::5", proto: 58, remotePort: 0, localPort: 78 },
        {},
      );
      const shown = [...flowEntries(tables, {})].map((entry) => [
        entry.protocol,
        entry.icmp_id,
        entry.remote_port,
        entry.local_port,
      ]);
      expect(shown).toEqual([
        ["icmp", 77, 0, 0],
        ["icmp", 78, 0, 0],
      ]);
      expect(findFlow(tables, parseTuple("icmp 198.51.100.1 10.0.0.5 77"), 0)).toBeDefined();
      expect(findFlow(tables, parseTuple("icmp 2001:db8::1 2001:db8:1::5 78"), 0)).toBeDefined();
      expect(findFlow(tables, parseTuple("icmp 198.51.100.1 10.0.0.5 78"), 0)).toBeUndefined();
    });

    describe("filters", () => {
      beforeEach(() => {
        const a = { last_hop: joinLastHop(7, HOP_A), state: ESTABLISHED };
        const b = { last_hop: joinLastHop(7, HOP_B), state: FLOW_STATE.HALF_CLOSED };
        put(tables, { remote: "198.51.100.1", local: "10.0.0.5" }, a);
        put(tables, { remote: "198.51.100.2", local: "10.0.0.6" }, b);
        put(
          tables,
          { remote: "203.0.113.3", local: "10.0.0.5", zone: 5, tier: "embryonic" },
          { ...a, state: FLOW_STATE.SYN },
        );
        put(
          tables,
          { remote: "203.0.113.4", local: "10.0.0.5" },
          { flags: FLOW_FLAG.LOCAL_ORIGIN, state: ESTABLISHED },
        );
        put(tables, { remote: "2001:db8::5", local: "2001:db8:1::5", zone: 5 }, b);
      });

      const cases: { filter: FlowFilter; remotes: string[] }[] = [
        {
          filter: {},
          remotes: ["198.51.100.1", "198.51.100.2", "2001:db8::5", "203.0.113.3", "203.0.113.4"],
        },
        { filter: { zone: 5 }, remotes: ["2001:db8::5", "203.0.113.3"] },
        { filter: { state: "established" }, remotes: ["198.51.100.1", "203.0.113.4"] },
        { filter: { state: "SYN" }, remotes: ["203.0.113.3"] },
        { filter: { device_mac: "02-00-00-00-0A-01" }, remotes: ["198.51.100.1", "203.0.113.3"] },
        { filter: { interface: "uplink-b" }, remotes: ["198.51.100.2", "2001:db8::5"] },
        { filter: { interface: "tap" }, remotes: [] },
        { filter: { interface: "if99" }, remotes: [] },
        { filter: { address: "10.0.0.5" }, remotes: ["198.51.100.1", "203.0.113.3", "203.0.113.4"] },
        { filter: { address: "198.51.100.0/30" }, remotes: ["198.51.100.1", "198.51.100.2"] },
        { filter: { address: "198.51.100.0/31" }, remotes: ["198.51.100.1"] },
        {
          filter: { address: "0.0.0.0/0" },
          remotes: ["198.51.100.1", "198.51.100.2", "203.0.113.3", "203.0.113.4"],
        },
        { filter: { address: "::/0" }, remotes: ["2001:db8::5"] },
        { filter: { address: "2001:db8:1::/48" }, remotes: ["2001:db8::5"] },
        {
          filter: { zone: 5, device_mac: "02:00:00:00:0b:01", address: "2001:db8::/33" },
          remotes: ["2001:db8::5"],
        },
        { filter: { zone: 5, state: "established" }, remotes: [] },
        { filter: { limit: 0 }, remotes: [] },
      ];
      for (const { filter, remotes } of cases) {
        it(`list and flush ${JSON.stringify(filter)}`, () => {
          expect(remoteOf(flowEntries(tables, filter))).toEqual(remotes);
          const all = remoteOf(flowEntries(tables, {}));
          expect(removeFlows(tables, filter)).toBe(remotes.length);
          expect(remoteOf(flowEntries(tables, {}))).toEqual(
            all.filter((remote) => !remotes.includes(remote)),
          );
        });
      }

      it("a limit counts over all tables", () => {
        for (const limit of [1, 3, 4, 5, 100])
          expect([...flowEntries(tables, { limit })]).toHaveLength(Math.min(limit, 5));
      });

      it("flush removes both tiers", () => {
        put(tables, { remote: "198.51.100.1", local: "10.0.0.5", tier: "embryonic" }, {});
        expect(removeFlows(tables, { address: "198.51.100.1" })).toBe(2);
        expect(remoteOf(flowEntries(tables, { address: "198.51.100.1" }))).toEqual([]);
      });

      const bad: { filter: FlowFilter; code: string; message: RegExp }[] = [
        {
          filter: { zone: 65_536 },
          code: "E_USAGE",
          message: /^zone 65536 is not a number from 0 to 65535$/,
        },
        { filter: { state: "open" }, code: "E_USAGE", message: /^a flow has no state "open"$/ },
        { filter: { device_mac: "02:00" }, code: "E_USAGE", message: /^"02:00" is not a MAC address$/ },
        {
          filter: { address: "10.0.0.0/33" },
          code: "E_USAGE",
          message: /^"10.0.0.0\/33" is not an address or prefix$/,
        },
        { filter: { limit: -1 }, code: "E_USAGE", message: /^limit -1 is not a whole number$/ },
        { filter: { interface: "uplink-x" }, code: "E_NO_INTERFACE", message: /^uplink-x is not attached$/ },
      ];
      for (const { filter, code, message } of bad) {
        it(`refuses ${JSON.stringify(filter)}, and flushes nothing`, () => {
          const expected = expect.objectContaining({ code, message: expect.stringMatching(message) });
          expect(() => [...flowEntries(tables, filter)]).toThrow(expected);
          expect(() => removeFlows(tables, filter)).toThrow(expected);
          expect([...flowEntries(tables, {})]).toHaveLength(5);
        });
      }
    });

    it("JSON lines are the entries, also of garbage", () => {
      const bytes = randomBytes(1);
      for (const table of tables.flows.all) {
        for (let index = 0; index < 700; index++) {
          const key = bytes(table.keySize);
          const value = bytes(table.valueSize);
          // Half of them with protocols and last hops that exist.
          if (index % 2) {
            const proto = [6, 17, 132, 1, 58, 47][index % 6]!;
            Object.assign(
              key,
              encodeFlowKey({ ...decodeFlowKey(table.family, key), proto, zone: index % 3 }),
            );
            value.writeUInt32LE(joinLastHop(7, 1 + (index % 5)), 0);
          }
          table.map.update(key, value);
        }
      }
      const view = new FlowView(tables);
      const entries = [...flowEntries(tables, {}, view)];
      const { text, flows } = lines(tables, {}, view);
      expect(flows).toBe(entries.length);
      expect(entries).toHaveLength(2800);
      expect(text).toEqual(entries.map((entry) => JSON.stringify(entry)));
    });

    it("JSON lines have the shortest and the longest of everything", () => {
      const value = { last_hop: joinLastHop(7, HOP_A), state: ESTABLISHED, vm: 21 };
      put(tables, { remote: "0.0.0.0", local: "255.255.255.255", remotePort: 0, localPort: 65_535 }, value);
      put(tables, { remote: "1.10.100.200", local: "9.99.199.9", remotePort: 9, localPort: 10 }, value);
      put(tables, { remote: "1.10.100.200", local: "9.99.199.9", remotePort: 99, localPort: 100 }, value);
      put(tables, { remote: "1.10.100.200", local: "9.99.199.9", remotePort: 999, localPort: 1000 }, value);
      put(
        tables,
        { remote: "1.10.100.200", local: "9.99.199.9", remotePort: 9999, localPort: 10_000 },
        value,
      );
      put(tables, { remote: "::", local: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" }, value);
      const view = new FlowView(tables);
      const entries = [...flowEntries(tables, {}, view)];
      expect(lines(tables, {}, view).text).toEqual(entries.map((entry) => JSON.stringify(entry)));
    });

    it("finds a flow by its five-tuple, and says in which zone else", () => {
      const tuple = parseTuple("tcp 198.51.100.7:40000 10.0.0.5:443");
      put(
        tables,
        { remote: "198.51.100.7", local: "10.0.0.5", zone: 5, tier: "embryonic" },
        { state: FLOW_STATE.SYN },
      );
      expect(findFlow(tables, tuple, 0)).toBeUndefined();
      expect(flowNotFound(tables, tuple, 0)).toMatchObject({
        code: "E_NOT_FOUND",
        message: "no flow tcp 198.51.100.7:40000 -> 10.0.0.5:443 in zone 0",
        hint: "there is one in zone 5: add --zone 5",
      });
      expect(findFlow(tables, tuple, 5)).toMatchObject({
        tier: "embryonic",
        value: { state: FLOW_STATE.SYN },
      });
      put(tables, { remote: "198.51.100.7", local: "10.0.0.5", zone: 5 }, { state: ESTABLISHED });
      expect(findFlow(tables, tuple, 5)).toMatchObject({
        tier: "established",
        value: { state: ESTABLISHED },
      });
    });

    it("lists last hops with their flows and traffic", () => {
      const cpus = source.map("last_hop_stats").valueBytes / 40;
      const rows = Array.from({ length: cpus }, (_, cpu) =>
        encode("last_hop_stats", {
          request_packets: 1 + cpu,
          request_bytes: 100,
          reply_packets: 2,
          reply_bytes: 2 ** 40,
          last_seen: 5 + cpu,
        }),
      );
      const key = Buffer.alloc(4);
      key.writeUInt32LE(HOP_A);
      source.map("last_hop_stats").update(key, Buffer.concat(rows));
      for (const remote of ["198.51.100.1", "198.51.100.2"]) {
        put(tables, { remote, local: "10.0.0.5" }, { last_hop: joinLastHop(7, HOP_A) });
      }
      put(
        tables,
        { remote: "198.51.100.3", local: "10.0.0.5", tier: "embryonic" },
        { last_hop: joinLastHop(7, HOP_DOWN) },
      );
      put(tables, { remote: "198.51.100.4", local: "10.0.0.5" }, { last_hop: joinLastHop(6, HOP_A) });
      put(tables, { remote: "198.51.100.5", local: "10.0.0.5" }, { flags: FLOW_FLAG.LOCAL_ORIGIN });
      // One without a key, that only a flow still names; and one that nothing names.
      putLastHop(tables, 8, {
        ifindex: UPLINK_A,
        mac: parseMac("02:00:00:00:0e:01")!,
        origin: ORIGIN.MANUAL,
      });
      tables.lastHops.keys.delete({ ifindex: UPLINK_A, mac: parseMac("02:00:00:00:0e:01")! });
      put(tables, { remote: "2001:db8::1", local: "2001:db8::2" }, { last_hop: joinLastHop(7, 8) });
      putLastHop(tables, 9, { ifindex: UPLINK_A, mac: parseMac("02:00:00:00:0f:01")! });
      tables.lastHops.keys.delete({ ifindex: UPLINK_A, mac: parseMac("02:00:00:00:0f:01")! });
      const entries = lastHopEntries(tables, []);
      expect(
        entries.map(({ index, state, origin, flows, interface: name }) => [
          index,
          state,
          origin,
          flows,
          name,
        ]),
      ).toEqual([
        // There is no such netdev here.
        [HOP_A, "gone", "learned", 2, "uplink-a"],
        [HOP_B, "gone", "learned", 0, "uplink-b"],
        [HOP_ALIAS, "alias", "learned", 0, "if99"],
        [HOP_DOWN, "route", "learned", 1, "uplink-a"],
        [8, "gone", "manual", 1, "uplink-a"],
      ]);
      expect(entries[0]).toMatchObject({
        mac: "02:00:00:00:0a:01",
        generation: 7,
        ifindex: UPLINK_A,
        request_packets: (cpus * (cpus + 1)) / 2,
        request_bytes: cpus * 100,
        reply_packets: cpus * 2,
        reply_bytes: cpus * 2 ** 40,
        idle_seconds: expect.any(Number),
      });
      expect(entries[1]).toMatchObject({
        request_packets: 0,
        idle_seconds: null,
        tags: [{ vid: 100 }, { vid: 7 }],
      });
    });

    it("gives an index back once", () => {
      tables.lastHops.aliases.set(HOP_A, 0);
      expect(tables.lastHops.giveBack(HOP_A)).toBe(true);
      expect(tables.lastHops.records.get(HOP_A)).toMatchObject({
        kind: LAST_HOP_KIND.NONE,
        generation: 8,
        ifindex: UPLINK_A,
      });
      expect(tables.lastHops.giveBack(HOP_A)).toBe(false);
      putLastHop(tables, HOP_A, { generation: 4095 });
      tables.lastHops.giveBack(HOP_A);
      expect(tables.lastHops.records.get(HOP_A)!.generation).toBe(1);
    });

    it("clears one half of the counts of references", () => {
      for (const index of [0, 255, LAST_HOPS_MAX, LAST_HOPS_MAX + 255]) tables.lastHops.refs.set(index, 5);
      tables.allocations.set(0, { last_hops: 256 });
      expect([...tables.lastHops.clearRefs(LAST_HOPS_MAX)]).toHaveLength(1);
      const left = [...tables.lastHops.refs.entries()].filter(([, count]) => count > 0);
      expect(left.map(([index]) => index)).toEqual([0, 255]);
    });

    it("keeps a key that is there", () => {
      const key = { ifindex: UPLINK_A, mac: parseMac("02:00:00:00:0a:01")! };
      expect(tables.lastHops.keys.insert(key, 77)).toBe(false);
      expect(tables.lastHops.keys.get(key)).toBe(HOP_A);
      tables.lastHops.keys.delete(key);
      expect(tables.lastHops.keys.insert(key, 77)).toBe(true);
      expect(tables.lastHops.keys.get(key)).toBe(77);
    });

    it("counts verdicts by interface and reason over all CPUs", () => {
      const cpus = source.map("verdicts").valueBytes / 16;
      const count = (slot: number, reason: number) => {
        const key = Buffer.alloc(4);
        key.writeUInt32LE(slot * Object.keys(REASON).length + reason);
        const rows = Array.from({ length: cpus }, () => encode("verdict_count", { packets: 3, bytes: 200 }));
        source.map("verdicts").update(key, Buffer.concat(rows));
      };
      count(1, REASON.LEARN);
      count(3, REASON.REDIRECT);
      count(3, REASON.DEVICE_DROP);
      count(0, REASON.NOT_ATTACHED);
      count(5, REASON.LEARN);
      const sum = { packets: 3 * cpus, bytes: 200 * cpus };
      expect(verdictCounts(tables)).toEqual([
        {
          interface: "uplink-a",
          ifindex: UPLINK_A,
          role: "uplink",
          reason: "learn",
          verdict: "pass",
          ...sum,
        },
        { interface: "tap", ifindex: TAP, role: "tap", reason: "redirect", verdict: "redirect", ...sum },
        { interface: "tap", ifindex: TAP, role: "tap", reason: "device_drop", verdict: "drop", ...sum },
        {
          interface: "(not attached)",
          ifindex: 0,
          role: null,
          reason: "not_attached",
          verdict: "pass",
          ...sum,
        },
      ]);
      tables.verdicts.clear(3);
      expect(verdictCounts(tables).map((entry) => entry.interface)).toEqual(["uplink-a", "(not attached)"]);
    });

    it("refuses maps of another layout", () => {
      const wrong = { map: (name: string) => source.map(name === "vms" ? "traces" : name) };
      expect(() => new Tables(wrong)).toThrow(expect.objectContaining({ code: "E_ABI" }));
    });
  });
}
