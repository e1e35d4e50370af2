// SPDX-License-Identifier: Apache-2.0

import { expect, test } from "vitest";
import { bypassedChains, parseRuleset } from "../../src/kernel/netfilter.ts";

const chain = (family: string, name: string, more: object = {}): object => ({
  chain: { family, table: "t", name, handle: 1, ...more },
});
const base = (family: string, name: string, hook: string, more: object = {}): object =>
  chain(family, name, { type: "filter", hook, prio: 0, policy: "accept", ...more });
const rule = (family: string, name: string): object => ({
  rule: { family, table: "t", chain: name, handle: 9, expr: [{ accept: null }] },
});

// As `nft -j list ruleset` of nftables 1.0.6 prints it.
const RULESET = JSON.stringify({
  nftables: [
    { metainfo: { version: "1.0.6", release_name: "Lester Gooch #5", json_schema_version: 1 } },
    { table: { family: "inet", name: "t", handle: 1 } },
    base("inet", "fwd", "forward", { policy: "drop" }),
    chain("inet", "jumped"),
    rule("inet", "jumped"),
    base("inet", "in", "input"),
    rule("inet", "in"),
    base("bridge", "fwd", "forward"),
    rule("bridge", "fwd"),
    rule("bridge", "fwd"),
    base("ip", "nat", "postrouting", { type: "nat" }),
    rule("ip", "nat"),
    base("ip6", "empty", "forward"),
    base("netdev", "in", "ingress", { dev: "tap0" }),
    rule("netdev", "in"),
    base("netdev", "out", "egress", { dev: "eth0" }),
    rule("netdev", "out"),
  ],
});

test("chains count that do something", () => {
  const chains = parseRuleset(RULESET);
  expect(chains.map(({ family, name, rules }) => `${family} ${name} ${rules}`)).toEqual([
    "inet fwd 0",
    "inet in 1",
    "bridge fwd 2",
    "ip nat 1",
    "netdev in 1",
    "netdev out 1",
  ]);
  expect(chains[0]).toMatchObject({ policy: "drop", hook: "forward", type: "filter" });
});

test("a redirect goes past those between the tap and the uplink", () => {
  const names = bypassedChains(parseRuleset(RULESET)).map(({ family, name }) => `${family} ${name}`);
  expect(names).toEqual(["inet fwd", "bridge fwd", "ip nat", "netdev in"]);
});
