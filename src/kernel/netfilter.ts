// SPDX-License-Identifier: Apache-2.0
// Which netfilter chains a redirected reply goes past, as far as this host can tell.

import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { promisify } from "node:util";

export interface BaseChain {
  family: string;
  table: string;
  name: string;
  hook: string;
  type: string;
  policy: string;
  rules: number;
}

const NFT_TIMEOUT_MS = 5_000;
const NFT_OUTPUT_BYTES = 64 * 1024 * 1024;

/** Where a frame would have passed on its way through the bridge or the stack. TC ingress comes before all. */
const BYPASSED: Readonly<Record<string, readonly string[]>> = {
  netdev: ["ingress"],
  bridge: ["prerouting", "forward", "postrouting"],
  inet: ["ingress", "prerouting", "forward", "postrouting"],
  ip: ["prerouting", "forward", "postrouting"],
  ip6: ["prerouting", "forward", "postrouting"],
};

interface NftItem {
  chain?: { family: string; table: string; name: string; hook?: string; type?: string; policy?: string };
  rule?: { family: string; table: string; chain: string };
}

/** Base chains that do anything, from `nft -j list ruleset`. */
export function parseRuleset(json: string): BaseChain[] {
  const items = (JSON.parse(json) as { nftables: NftItem[] }).nftables;
  const rules = new Map<string, number>();
  for (const { rule } of items) {
    if (!rule) continue;
    const chain = `${rule.family} ${rule.table} ${rule.chain}`;
    rules.set(chain, (rules.get(chain) ?? 0) + 1);
  }
  return items.flatMap(({ chain }) => {
    if (chain?.hook === undefined) return [];
    const { family, table, name, hook, type = "filter", policy = "accept" } = chain;
    const count = rules.get(`${family} ${table} ${name}`) ?? 0;
    return count > 0 || policy !== "accept"
      ? [{ family, table, name, hook, type, policy, rules: count }]
      : [];
  });
}

/** Those that a redirect from a tap to an uplink goes past. */
export function bypassedChains(chains: readonly BaseChain[]): BaseChain[] {
  return chains.filter((chain) => BYPASSED[chain.family]?.includes(chain.hook));
}

/** Null with the reason when it cannot be told. */
export async function readChains(): Promise<BaseChain[] | { unknown: string }> {
  try {
    const { stdout } = await promisify(execFile)("nft", ["-j", "list", "ruleset"], {
      timeout: NFT_TIMEOUT_MS,
      maxBuffer: NFT_OUTPUT_BYTES,
    });
    return parseRuleset(stdout);
  } catch (error) {
    const { code, stderr = "", message } = error as NodeJS.ErrnoException & { stderr?: string };
    if (code === "ENOENT") return { unknown: "nft is not installed" };
    return { unknown: `nft failed: ${stderr.trim().split("\n")[0] || message}` };
  }
}

/** Tables of the older iptables, which nft does not show. Their presence says nothing about rules. */
export function legacyTables(): string[] {
  return ["ip", "ip6"].flatMap((family) => {
    const names = readIfThere(`/proc/net/${family}_tables_names`);
    return (names ?? "")
      .split("\n")
      .filter(Boolean)
      .map((name) => `${family} ${name}`);
  });
}

/** A file of /proc; undefined if this kernel does not have it. */
export function readIfThere(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8").trim();
  } catch (error) {
    if (["ENOENT", "EACCES", "EPERM"].includes((error as NodeJS.ErrnoException).code ?? "")) return undefined;
    throw error;
  }
}
