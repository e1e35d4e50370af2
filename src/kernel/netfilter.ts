// SPDX-License-Identifier: Apache-2.0
// The host's packet filters as far as they can be read: nftables by `nft -j`, the older iptables and ebtables by their
// `-save` commands. What they mean for a redirected reply is in bypass.ts.

import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { promisify } from "node:util";

/** Which interfaces a rule takes: exact names, or a prefix with * at its end. */
export interface NameTest {
  direction: "input" | "output";
  names: readonly string[];
  negated: boolean;
}

export interface Jump {
  target: string;
  /** More tests than those of the rule: the key of a verdict map. */
  tests: readonly NameTest[];
}

export interface Rule {
  tests: readonly NameTest[];
  /** Nothing but interface names is tested. */
  plain: boolean;
  /** It looks at the state of a tracked connection. */
  connectionState: boolean;
  /** What it does beside going elsewhere: `drop`, `log`, `masquerade`, … */
  effects: readonly string[];
  /** It ends the chain for what it takes, and nothing is done to it. */
  accepts: boolean;
  jumps: readonly Jump[];
}

export interface BaseChain {
  hook: string;
  type: string;
  policy: string;
  /** Of an ingress or egress hook; null if nft does not say. */
  devices: readonly string[] | null;
}

export interface Chain {
  family: string;
  table: string;
  name: string;
  /** Of a chain that the kernel calls itself, otherwise null. */
  base: BaseChain | null;
  rules: readonly Rule[];
}

export interface Ruleset {
  chains: readonly Chain[];
  /** What is there and could not be read, one sentence each. */
  unknown: readonly string[];
}

const TIMEOUT_MS = 5_000;
const OUTPUT_BYTES = 64 * 1024 * 1024;

// nftables

type Json = string | number | null | readonly Json[] | { readonly [key: string]: Json };
type JsonObject = { readonly [key: string]: Json };
interface NftItem {
  chain?: NftChain;
  rule?: { family: string; table: string; chain: string; expr: JsonObject[] };
  set?: NftSet;
  map?: NftSet;
}
interface NftChain {
  family: string;
  table: string;
  name: string;
  hook?: string;
  type?: string;
  policy?: string;
  dev?: string | string[];
}
interface NftSet {
  family: string;
  table: string;
  name: string;
  elem?: Json[];
}

const INPUT_KEYS = ["iif", "iifname", "ibrname", "sdifname"];
const OUTPUT_KEYS = ["oif", "oifname", "obrname"];
/** Statements that change nothing about a packet or who sees it. */
const WITHOUT_EFFECT = ["accept", "return", "continue", "jump", "goto", "match", "vmap", "counter"];

/**
 * The chains of `nft -j list ruleset`. `listing` is what `nft -t list ruleset` says: some versions leave the devices of
 * ingress and egress hooks out of their JSON. Throws SyntaxError for what is not JSON.
 */
export function parseRuleset(json: string, listing = ""): Chain[] {
  const items = (JSON.parse(json) as { nftables: NftItem[] }).nftables;
  const sets = new Map<string, readonly Json[]>();
  for (const item of items) {
    const set = item.set ?? item.map;
    if (set) sets.set(`${set.family} ${set.table} @${set.name}`, set.elem ?? []);
  }
  const rules = new Map<string, Rule[]>();
  for (const { rule } of items) {
    if (!rule) continue;
    const table = `${rule.family} ${rule.table}`;
    const key = `${table} ${rule.chain}`;
    const lookUp = (name: string) => sets.get(`${table} ${name}`) ?? [];
    rules.set(key, [...(rules.get(key) ?? []), nftRule(rule.expr, lookUp)]);
  }
  const devices = listedDevices(listing);
  return items.flatMap(({ chain }) => {
    if (!chain) return [];
    const { family, table, name } = chain;
    const key = `${family} ${table} ${name}`;
    return [{ family, table, name, base: nftBase(chain, devices.get(key)), rules: rules.get(key) ?? [] }];
  });
}

function nftBase(chain: NftChain, listed: readonly string[] | undefined): BaseChain | null {
  if (chain.hook === undefined) return null;
  const devices = chain.dev === undefined ? listed : [chain.dev].flat();
  const { hook, type = "filter", policy = "accept" } = chain;
  return { hook, type, policy, devices: devices ?? null };
}

/** By "family table chain". */
function listedDevices(listing: string): Map<string, string[]> {
  const found = new Map<string, string[]>();
  let table = "";
  let chain = "";
  for (const line of listing.split("\n")) {
    table = /^table (\S+ \S+) \{/.exec(line)?.[1] ?? table;
    chain = /^\s*chain (\S+) \{/.exec(line)?.[1] ?? chain;
    const names = /^\s*type .* devices? (?:= )?(\{[^}]*\}|\S+) /.exec(line)?.[1];
    if (names !== undefined) found.set(`${table} ${chain}`, names.match(/[^\s{},"]+/g) ?? []);
  }
  return found;
}

function nftRule(expressions: readonly JsonObject[], lookUp: (set: string) => readonly Json[]): Rule {
  const tests: NameTest[] = [];
  const jumps: Jump[] = [];
  const effects: string[] = [];
  let plain = true;
  let connectionState = false;
  let accepts = false;
  for (const expression of expressions) {
    const [statement = "", value = null] = Object.entries(expression)[0] ?? [];
    if (statement === "match") {
      const { left, right, op } = value as { left: JsonObject; right: Json; op: string };
      const direction = directionOf(left);
      if (direction) tests.push({ direction, names: namesOf(right, lookUp), negated: op === "!=" });
      else plain = false;
      connectionState ||= isConnectionState(left);
    } else if (statement === "vmap") {
      const { key, data } = value as { key: JsonObject; data: Json };
      connectionState ||= isConnectionState(key);
      if (!directionOf(key)) plain = false;
      const found = verdictMap(key, data, lookUp);
      jumps.push(...found.jumps);
      effects.push(...found.effects);
    } else if (statement === "jump" || statement === "goto") {
      jumps.push({ target: (value as { target: string }).target, tests: [] });
    } else if (statement === "xt") {
      const { type, name } = value as { type: string; name: string };
      // Of matches of iptables nft knows the name only.
      connectionState ||= name === "conntrack" || name === "state";
      if (type === "target") effects.push(name.toLowerCase());
      else plain = false;
    } else if (!WITHOUT_EFFECT.includes(statement)) {
      effects.push(statement);
    }
    accepts ||= statement === "accept";
  }
  // Beside a verdict it says only how often that was given.
  const statements = expressions.filter((expression) => !("match" in expression));
  if (statements.length > 0 && statements.every((statement) => "counter" in statement))
    effects.push("counter");
  return { tests, plain, connectionState, effects, accepts, jumps };
}

function verdictMap(
  key: JsonObject,
  data: Json,
  lookUp: (set: string) => readonly Json[],
): { jumps: Jump[]; effects: string[] } {
  const direction = directionOf(key);
  const jumps: Jump[] = [];
  const effects: string[] = [];
  for (const element of elementsOf(data, lookUp)) {
    if (!Array.isArray(element)) continue;
    const [name, verdict] = element as [Json, JsonObject];
    const target = ((verdict.jump ?? verdict.goto ?? null) as { target: string } | null)?.target;
    const names = namesOf(name, lookUp);
    if (target !== undefined) {
      jumps.push({ target, tests: direction ? [{ direction, names, negated: false }] : [] });
    } else if ("drop" in verdict) {
      effects.push("drop");
    }
  }
  return { jumps, effects };
}

function directionOf(left: JsonObject): NameTest["direction"] | null {
  const key = String((left.meta as { key?: string } | undefined)?.key);
  if (INPUT_KEYS.includes(key)) return "input";
  return OUTPUT_KEYS.includes(key) ? "output" : null;
}

function isConnectionState(left: JsonObject): boolean {
  const key = (left.ct as { key?: string } | undefined)?.key;
  return key === "state" || key === "status";
}

function elementsOf(value: Json, lookUp: (set: string) => readonly Json[]): readonly Json[] {
  if (typeof value === "string" && value.startsWith("@")) return lookUp(value);
  const set = (value as { set?: readonly Json[] } | null)?.set;
  return set ?? [value];
}

function namesOf(value: Json, lookUp: (set: string) => readonly Json[]): string[] {
  return elementsOf(value, lookUp).flatMap((element) => {
    // An element with a comment or a timeout is wrapped.
    const wrapped = (element as { elem?: { val?: Json } } | null)?.elem?.val;
    const name = wrapped ?? element;
    return typeof name === "string" ? [name] : [];
  });
}

// iptables and ebtables before nftables

const BUILT_IN: Readonly<Record<string, string>> = {
  BROUTING: "prerouting",
  PREROUTING: "prerouting",
  INPUT: "input",
  FORWARD: "forward",
  OUTPUT: "output",
  POSTROUTING: "postrouting",
};
const LEGACY_WITHOUT_EFFECT = ["ACCEPT", "RETURN", "CONTINUE"];

/** The chains of `iptables-legacy-save` and of its like for IPv6 and bridges. */
export function parseSaved(family: "ip" | "ip6" | "bridge", saved: string): Chain[] {
  const chains: Chain[] = [];
  let table = "";
  let own = new Map<string, Rule[]>();
  for (const line of saved.split("\n")) {
    if (line.startsWith("*")) {
      table = line.slice(1).trim();
      own = new Map();
    }
    const [, name, policy] = /^:(\S+) (\S+)/.exec(line) ?? [];
    if (name !== undefined && policy !== undefined) {
      const rules: Rule[] = [];
      own.set(name, rules);
      const base = savedBase(table, name, policy);
      chains.push({ family, table: `${table} (legacy)`, name, base, rules });
    }
    const [, chain = "", words = ""] = /^-A (\S+)(.*)$/.exec(line) ?? [];
    own.get(chain)?.push(savedRule(words, own));
  }
  return chains;
}

function savedBase(table: string, name: string, policy: string): BaseChain | null {
  const hook = BUILT_IN[name];
  if (hook === undefined) return null;
  return { hook, type: table === "nat" ? "nat" : "filter", policy: policy.toLowerCase(), devices: null };
}

const SAVED_TESTS: Readonly<Record<string, NameTest["direction"]>> = {
  "-i": "input",
  "--logical-in": "input",
  "--physdev-in": "input",
  "-o": "output",
  "--logical-out": "output",
  "--physdev-out": "output",
};

function savedRule(text: string, chains: ReadonlyMap<string, unknown>): Rule {
  const words = text.match(/"(?:[^"\\]|\\.)*"|\S+/g) ?? [];
  const tests: NameTest[] = [];
  let target: string | undefined;
  let others = 0;
  words.forEach((word, index) => {
    const direction = SAVED_TESTS[word];
    const value = words[index + 1] ?? "";
    // Both `! -i NAME` and, of ebtables, `-i ! NAME`.
    const negated = words[index - 1] === "!" || value === "!";
    const name = value === "!" ? (words[index + 2] ?? "") : value;
    if (direction) tests.push({ direction, names: [name.replace(/\+$/, "*")], negated });
    else if (word === "-j" || word === "-g") target = value;
    else if (word.startsWith("-")) others++;
  });
  const elsewhere = target !== undefined && chains.has(target);
  return {
    tests,
    plain: others === 0,
    connectionState: /--(ctstate|state|ctstatus)\b/.test(text),
    effects:
      target === undefined || elsewhere || LEGACY_WITHOUT_EFFECT.includes(target)
        ? []
        : [target.toLowerCase()],
    accepts: target === "ACCEPT",
    jumps: target !== undefined && elsewhere ? [{ target, tests: [] }] : [],
  };
}

// Reading

/** All filters of this network namespace. What cannot be read is named in `unknown`. */
export async function readRuleset(): Promise<Ruleset> {
  const unknown: string[] = [];
  const chains: Chain[] = [];
  try {
    chains.push(...(await readNftables()));
  } catch (error) {
    unknown.push(failure("nft", error));
  }
  for (const [family, command, tables] of legacyTables()) {
    try {
      chains.push(...parseSaved(family, await output(command, [])));
    } catch (error) {
      unknown.push(`the older ${family} tables ${tables.join(", ")}: ${failure(command, error)}`);
    }
  }
  return { chains, unknown };
}

async function readNftables(): Promise<Chain[]> {
  const json = await output("nft", ["-j", "list", "ruleset"]);
  const chains = parseRuleset(json);
  const unclear = chains.some(
    ({ base }) => (base?.hook === "ingress" || base?.hook === "egress") && base.devices === null,
  );
  return unclear ? parseRuleset(json, await output("nft", ["-t", "list", "ruleset"])) : chains;
}

async function output(command: string, words: readonly string[]): Promise<string> {
  const options = { timeout: TIMEOUT_MS, maxBuffer: OUTPUT_BYTES };
  return (await promisify(execFile)(command, words, options)).stdout;
}

function failure(command: string, error: unknown): string {
  const { code, stderr = "", message } = error as NodeJS.ErrnoException & { stderr?: string };
  if (code === "ENOENT") return `${command} is not installed`;
  return `${command} failed: ${stderr.trim().split("\n")[0] || message}`;
}

type Legacy = [family: "ip" | "ip6" | "bridge", command: string, tables: string[]];

/** Tables of the older kind that exist. Only then are they listed: the command would make them. */
function legacyTables(): Legacy[] {
  const names = (family: string) =>
    (readIfThere(`/proc/net/${family}_tables_names`) ?? "").split("\n").filter(Boolean);
  const bridge = ["broute", "filter", "nat"].filter(
    (table) => readIfThere(`/sys/module/ebtable_${table}/refcnt`) !== undefined,
  );
  const all: Legacy[] = [
    ["ip", "iptables-legacy-save", names("ip")],
    ["ip6", "ip6tables-legacy-save", names("ip6")],
    ["bridge", "ebtables-legacy-save", bridge],
  ];
  return all.filter(([, , tables]) => tables.length > 0);
}

/** A file of /proc or /sys, without white space around it; undefined if this kernel does not have it. */
export function readIfThere(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8").trim();
  } catch (error) {
    if (["ENOENT", "EACCES", "EPERM"].includes((error as NodeJS.ErrnoException).code ?? "")) return undefined;
    throw error;
  }
}
