// SPDX-License-Identifier: Apache-2.0
// Which of the host's filters a redirected reply goes past, and what that does to requests: pure.
//
//   const ruleset = await readRuleset();                                        // netfilter.ts
//   const paths = replyPaths(netlink.links(), attached, bridgeNetfilter());
//   const warnings = bypassWarnings(ruleset, paths);                            // [] if nothing is lost
//
// The order of hooks is that of __netif_receive_skb_core and __dev_queue_xmit (net/core/dev.c): XDP, TC ingress,
// netfilter ingress, then bridge or stack. What TC ingress redirects skips netfilter's egress hook too (nf_skip_egress).

import { type Chain, type NameTest, type Rule, type Ruleset, readIfThere } from "./netfilter.ts";
import type { Link } from "./rtnetlink.ts";

type IpFamily = "ip" | "ip6";

/** How replies of some taps would go to some uplinks if lasthop did not redirect them. */
export interface ReplyPath {
  /** `switched`: by Open vSwitch, past netfilter. */
  kind: "bridged" | "routed" | "switched";
  taps: readonly string[];
  /** The bridge of the taps and the VLAN interfaces on it; empty if they are no ports. */
  tapBridge: readonly string[];
  uplinks: readonly string[];
  uplinkBridge: readonly string[];
  /** Whose hooks it passes: both if it is routed, those of bridge-nf-call-* if it is bridged. */
  stack: readonly IpFamily[];
}

export interface AttachedInterface {
  ifindex: number;
  role: "uplink" | "tap";
  zone: number;
}

export interface BypassWarning {
  /**
   * `stateful`: rules that see requests without replies, and so take them for invalid; `filter`: rules that replies
   * do not pass; `nat`: translations that flows do not get and be sent back at once.
   */
  kind: "stateful" | "filter" | "nat";
  /** `inet guard fw (forward)`. */
  chain: string;
  /** What its rules do there: `drop`, `log`, `masquerade`, … */
  effects: readonly string[];
  /** Whose chain it seems to be: firewalld, libvirt, Docker, …; empty if it cannot be told. */
  owners: readonly string[];
  /** Attached interfaces that its rules name. */
  interfaces: readonly string[];
  /** One line for people, without what to do. */
  text: string;
  /** What to do. */
  hint: string;
}

/** The families whose IP hooks bridged frames pass in this network namespace. */
export function bridgeNetfilter(): IpFamily[] {
  return (["ip", "ip6"] as const).filter(
    (family) => readIfThere(`/proc/sys/net/bridge/bridge-nf-call-${family}tables`) === "1",
  );
}

/** One path for those pairs of tap and uplink that only their own names tell apart. */
export function replyPaths(
  links: readonly Link[],
  attached: readonly AttachedInterface[],
  bridged: readonly IpFamily[],
): ReplyPath[] {
  const byIndex = new Map(links.map((link) => [link.ifindex, link]));
  const ends = (role: AttachedInterface["role"]) =>
    attached.flatMap((item) => {
      const link = item.role === role ? byIndex.get(item.ifindex) : undefined;
      return link ? [{ link, zone: item.zone, bridge: bridgeNames(links, link) }] : [];
    });
  const stack: Readonly<Record<ReplyPath["kind"], readonly IpFamily[]>> = {
    routed: ["ip", "ip6"],
    bridged,
    switched: [],
  };
  const uplinks = ends("uplink");
  type Group = Omit<ReplyPath, "taps" | "uplinks"> & { taps: Set<string>; uplinks: Set<string> };
  const groups = new Map<string, Group>();
  for (const tap of ends("tap")) {
    for (const uplink of uplinks.filter(({ zone }) => zone === tap.zone)) {
      const kind = pathKind(tap.link, uplink.link);
      const key = [kind, tap.zone, tap.bridge, uplink.bridge].join("\n");
      const group: Group = groups.get(key) ?? {
        kind,
        taps: new Set(),
        tapBridge: tap.bridge,
        uplinks: new Set(),
        uplinkBridge: uplink.bridge,
        stack: stack[kind],
      };
      group.taps.add(tap.link.name);
      group.uplinks.add(uplink.link.name);
      groups.set(key, group);
    }
  }
  return [...groups.values()].map((group) => ({
    ...group,
    taps: [...group.taps],
    uplinks: [...group.uplinks],
  }));
}

function pathKind(tap: Link, uplink: Link): ReplyPath["kind"] {
  if (tap.master === null || tap.master !== uplink.master) return "routed";
  return tap.masterKind === "openvswitch" ? "switched" : "bridged";
}

function bridgeNames(links: readonly Link[], port: Link): string[] {
  const bridge =
    port.masterKind === "bridge" ? links.find((link) => link.ifindex === port.master) : undefined;
  if (!bridge) return [];
  const vlans = links.filter((link) => link.kind === "vlan" && link.lower === bridge.ifindex);
  return [bridge.name, ...vlans.map((link) => link.name)];
}

/** Stands for whatever may be attached. */
const ANY = "*";

/** What there could be where nothing is attached yet. */
export function possiblePaths(bridged: readonly IpFamily[]): ReplyPath[] {
  const ends = { taps: [ANY], tapBridge: [ANY], uplinks: [ANY], uplinkBridge: [ANY] };
  return [
    { ...ends, kind: "bridged", stack: bridged },
    { ...ends, kind: "routed", stack: ["ip", "ip6"] },
  ];
}

/** By kind; chains whose rules name attached interfaces come first. Empty if nothing is lost. */
export function bypassWarnings(ruleset: Ruleset, paths: readonly ReplyPath[]): BypassWarning[] {
  const untracked = paths.map((path) => isUntracked(path, ruleset));
  const warnings = ruleset.chains.flatMap((chain) => {
    if (!chain.base) return [];
    const table = ruleset.chains.filter(
      (other) => other.family === chain.family && other.table === chain.table,
    );
    const losses = paths.flatMap((path, index) => lossesOf(chain, table, path, untracked[index]!));
    return (["stateful", "filter", "nat"] as const).flatMap((kind) => {
      const same = losses.filter((loss) => loss.kind === kind);
      return same.length === 0 ? [] : [warningOf(chain, kind, same)];
    });
  });
  const rank = ({ kind, interfaces }: BypassWarning) =>
    ["stateful", "filter", "nat"].indexOf(kind) * 2 + (interfaces.length > 0 ? 0 : 1);
  return warnings.toSorted((a, b) => rank(a) - rank(b));
}

interface Loss {
  kind: BypassWarning["kind"];
  effects: readonly string[];
  interfaces: readonly string[];
}

function lossesOf(
  chain: Chain,
  table: readonly Chain[],
  path: ReplyPath,
  isRequestUntracked: boolean,
): Loss[] {
  const base = chain.base!;
  const reply = visit(chain, table, replyEnds(chain, path));
  const request = visit(chain, table, turned(replyEnds(chain, path)));
  const interfaces = (found: Found) =>
    [...path.taps, ...path.uplinks].filter((name) => found.named.has(name));
  if (base.type === "nat") {
    const effects = passesRequest(chain, path) ? request.effects : new Set<string>();
    return effects.size === 0
      ? []
      : [{ kind: "nat", effects: [...effects], interfaces: interfaces(request) }];
  }
  const losses: Loss[] = [];
  const policy = base.policy === "accept" ? [] : [base.policy];
  const effects = new Set([...reply.effects, ...(reply.ended ? [] : policy)]);
  if (passesReply(chain, path) && effects.size > 0) {
    losses.push({ kind: "filter", effects: [...effects], interfaces: interfaces(reply) });
  }
  const drops = [...request.effects, ...(request.ended ? [] : policy)].some(isDrop);
  if (passesRequest(chain, path) && request.connectionState && drops && !isRequestUntracked) {
    losses.push({ kind: "stateful", effects: ["drop"], interfaces: interfaces(request) });
  }
  return losses;
}

const isDrop = (effect: string): boolean => effect === "drop" || effect === "reject";
const FORWARDING = ["prerouting", "forward", "postrouting"];

function passesReply(chain: Chain, path: ReplyPath): boolean {
  const { hook, devices } = chain.base!;
  const on = (names: readonly string[]) =>
    devices === null || devices.some((device) => names.some((name) => name === ANY || name === device));
  const routed = path.kind === "routed";
  if (hook === "ingress") return on(routed ? [...path.taps, ...path.tapBridge] : path.taps);
  if (hook === "egress") return on(routed ? [...path.uplinks, ...path.uplinkBridge] : path.uplinks);
  if (chain.family === "bridge" && routed) {
    const intoHost = path.tapBridge.length > 0 && ["prerouting", "input"].includes(hook);
    return intoHost || (path.uplinkBridge.length > 0 && ["output", "postrouting"].includes(hook));
  }
  return passesRequest(chain, path);
}

/** In the stack or the bridge, where connections are tracked. */
function passesRequest({ family, base }: Chain, path: ReplyPath): boolean {
  if (!FORWARDING.includes(base!.hook)) return false;
  return family === "bridge" ? path.kind === "bridged" : inStack(family, path);
}

function inStack(family: string, path: ReplyPath): boolean {
  return family === "inet" ? path.stack.length > 0 : path.stack.some((name) => name === family);
}

/** Names by which a rule may know where a packet comes from and goes to. */
interface Ends {
  input: readonly string[];
  output: readonly string[];
}

/** Every packet has one of `usual`; only `-m physdev` and `ibrname` know the others. */
interface PathEnds {
  all: Ends;
  usual: Ends;
}

function replyEnds({ family }: Chain, path: ReplyPath): PathEnds {
  const inBridge = family === "bridge" || family === "netdev";
  const usual = (ports: readonly string[], bridge: readonly string[]) =>
    inBridge || bridge.length === 0 ? ports : bridge;
  return {
    all: { input: [...path.taps, ...path.tapBridge], output: [...path.uplinks, ...path.uplinkBridge] },
    usual: { input: usual(path.taps, path.tapBridge), output: usual(path.uplinks, path.uplinkBridge) },
  };
}

function turned({ all, usual }: PathEnds): PathEnds {
  const turn = ({ input, output }: Ends) => ({ input: output, output: input });
  return { all: turn(all), usual: turn(usual) };
}

interface Found {
  effects: Set<string>;
  /** Interfaces of the path that rules name. */
  named: Set<string>;
  connectionState: boolean;
  /** Everything on the path was accepted before the end, so the policy is not asked. */
  ended: boolean;
}

/** What the rules of a chain, and of those that it leads to, do to packets of these ends. */
function visit(chain: Chain, table: readonly Chain[], ends: PathEnds): Found {
  const found: Found = { effects: new Set(), named: new Set(), connectionState: false, ended: false };
  const seen = new Set<string>();
  const visitRules = (at: Chain, these: Ends): boolean => {
    // A chain that several rules lead to is looked at once, with the names of the first.
    const key = `${at.name}\n${these.input}\n${these.output}`;
    if (seen.has(key)) return false;
    seen.add(key);
    for (const rule of at.rules) {
      const rest = taken(rule.tests, these, found.named);
      if (!rest) continue;
      for (const effect of rule.effects) found.effects.add(effect);
      found.connectionState ||= rule.connectionState;
      const takesAll = rule.plain && includesAll(rest, ends.usual);
      if (rule.accepts && takesAll) return true;
      for (const jump of rule.jumps) {
        const further = taken(jump.tests, rest, found.named);
        const target = further && table.find(({ name }) => name === jump.target);
        if (target && visitRules(target, further) && takesAll && includesAll(further, ends.usual))
          return true;
      }
    }
    return false;
  };
  found.ended = visitRules(chain, ends.all);
  return found;
}

function includesAll(rest: Ends, usual: Ends): boolean {
  const all = (names: readonly string[], wanted: readonly string[]) =>
    wanted.every((name) => name !== ANY && names.includes(name));
  return all(rest.input, usual.input) && all(rest.output, usual.output);
}

/** The ends that pass the tests, null if none does; adds those that are named to `named`. */
function taken(tests: Rule["tests"], { input, output }: Ends, named: Set<string>): Ends | null {
  const rest = { input, output };
  for (const test of tests) {
    const names = rest[test.direction].filter((name) => passes(test, name));
    if (names.length === 0) return null;
    rest[test.direction] = names;
  }
  for (const { direction, negated } of tests) {
    for (const name of negated ? [] : rest[direction]) if (name !== ANY) named.add(name);
  }
  return rest;
}

function passes({ names, negated }: NameTest, name: string): boolean {
  if (name === ANY) return true;
  const matches = names.some(
    (pattern) => pattern === name || (pattern.endsWith("*") && name.startsWith(pattern.slice(0, -1))),
  );
  return matches !== negated;
}

/** Whether the requests of all its uplinks are kept out of connection tracking. */
function isUntracked(path: ReplyPath, ruleset: Ruleset): boolean {
  const untracked = new Set<string>();
  for (const chain of ruleset.chains) {
    if (chain.base?.hook !== "prerouting") continue;
    for (const { effects, tests } of chain.rules) {
      if (!effects.some((effect) => effect === "notrack" || effect === "ct")) continue;
      taken(tests, { input: [...path.uplinks, ...path.uplinkBridge], output: [ANY] }, untracked);
    }
  }
  const usual = path.uplinkBridge.length > 0 ? path.uplinkBridge : path.uplinks;
  return usual.every((name) => name !== ANY && untracked.has(name));
}

const OWNERS: readonly (readonly [pattern: RegExp, owner: string])[] = [
  [/firewalld/, "firewalld"],
  [/libvirt/i, "libvirt"],
  [/docker/i, "Docker"],
  [/\bufw6?-/, "ufw"],
  [/KUBE-|kube-proxy/, "Kubernetes"],
];

function ownersOf({ table, name, rules }: Chain): string[] {
  const targets = rules.flatMap((rule) => rule.jumps.map((jump) => jump.target));
  const text = [table, name, ...targets].join(" ");
  return OWNERS.flatMap(([pattern, owner]) => (pattern.test(text) ? [owner] : []));
}

function warningOf(chain: Chain, kind: BypassWarning["kind"], losses: readonly Loss[]): BypassWarning {
  const name = `${chain.family} ${chain.table} ${chain.name} (${chain.base!.hook})`;
  const all = <T>(lists: readonly (readonly T[])[]) => [...new Set(lists.flat())];
  const effects = all(losses.map((loss) => loss.effects));
  const interfaces = all(losses.map((loss) => loss.interfaces));
  const owners = ownersOf(chain);
  const by = owners.length > 0 ? `, of ${owners.join(" and ")},` : "";
  const names = interfaces.length > 0 ? `; its rules name ${interfaces.join(", ")}` : "";
  const text = {
    stateful: `${name}${by} drops by connection state, but sees requests only${names}`,
    filter: `redirected replies do not pass ${name}${by} (${effects.join(", ")})${names}`,
    nat: `flows that ${name}${by} translates (${effects.join(", ")}) are not sent back to their device${names}`,
  }[kind];
  return { kind, chain: name, effects, owners, interfaces, text, hint: HINTS[kind] };
}

const HINTS: Readonly<Record<BypassWarning["kind"], string>> = {
  stateful:
    "Connection tracking takes a TCP connection whose replies it does not see for invalid after the first packet. " +
    "Accept what comes in by the uplinks before the rules that look at the state, or keep it out of tracking " +
    "(`notrack` in a prerouting chain of priority raw); docs/coexistence.md has both.",
  filter:
    "A reply that lasthop redirects passes neither the bridge nor these: what they filter, log or count " +
    "must not depend on replies. `policy off` leaves a VM to them.",
  nat:
    "A flow that this host translates has another key on the tap: its replies pass and are translated back as before. " +
    "Attach interfaces whose traffic is not translated, or translate on the devices.",
};
