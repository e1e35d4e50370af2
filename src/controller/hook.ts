// SPDX-License-Identifier: Apache-2.0
// Which hook an interface gets, and why: pure.

import { LasthopError } from "../errors.ts";
import type { Hook, Mode, Role } from "../ops/types.ts";

export interface HookFacts {
  name: string;
  role: Role;
  /** `veth`, `tun`, `bridge`, …; null for hardware. */
  kind: string | null;
  /** Its packets begin with an Ethernet header. */
  ethernet: boolean;
  /** Many tunnels share it. */
  external: boolean;
  /** There is a bus device behind it. */
  hardware: boolean;
  xdp: { mode: string; programId: number | null } | null;
  /** Of our own XDP program on it. */
  ownXdpProgramId: number | null;
  /** The features, as ethtool names them, that take tags out of received frames; null if unknown. */
  vlanStripping: readonly string[] | null;
  /** Its zone has services. */
  services: boolean;
  /** TCX rather than clsact. */
  tcx: boolean;
}

export interface HookDecision {
  hook: Hook;
  /** A clause: "it is not hardware (veth)". */
  reason: string;
  /** What to attach if the driver refuses `hook`; null if that is an error. */
  fallback: Hook | null;
}

/** Throws E_MODE or E_FOREIGN when the mode that was asked for does not work there. */
export function decideHook(facts: HookFacts, mode: Mode): HookDecision {
  const tc: Hook = facts.tcx ? "tcx" : "clsact";
  if (facts.role === "tap") {
    if (mode === "native" || mode === "generic") throw noXdpOnTap(facts.name, mode);
    return { hook: tc, reason: "a tap is always attached by TC", fallback: null };
  }
  switch (mode) {
    case "tc":
      return { hook: tc, reason: "TC was asked for", fallback: null };
    case "native":
    case "generic":
      refuseXdp(facts, mode);
      return { hook: `xdp_${mode}`, reason: `${mode} XDP was asked for`, fallback: null };
    case "auto": {
      const against = againstNative(facts);
      if (against !== null) return { hook: tc, reason: against, fallback: null };
      return { hook: "xdp_native", reason: "it is hardware and strips no VLAN tags", fallback: tc };
    }
  }
}

/** Why `auto` does not choose native XDP, null if it does. */
function againstNative(facts: HookFacts): string | null {
  if (!facts.hardware) return `it is not hardware${facts.kind ? ` (${facts.kind})` : ""}`;
  const foreign = foreignXdp(facts);
  if (foreign !== null) return `XDP program ${foreign} of somebody else is on it`;
  if (facts.vlanStripping === null) return "it does not say whether it strips VLAN tags";
  if (facts.vlanStripping.length > 0) return "it strips VLAN tags, which native XDP cannot see then";
  if (facts.services) return "its zone has services, and native XDP cannot hand frames to every tap";
  return null;
}

function foreignXdp(facts: HookFacts): number | string | null {
  if (!facts.xdp) return null;
  if (facts.xdp.programId !== null && facts.xdp.programId === facts.ownXdpProgramId) return null;
  return facts.xdp.programId ?? "(of unknown id)";
}

/** Have no driver of XDP's own; the others are asked. */
const NO_NATIVE_XDP: readonly (string | null)[] = [
  "bridge",
  "erspan",
  "geneve",
  "gretap",
  "ip6erspan",
  "ip6gretap",
  "ipvlan",
  "macvlan",
  "team",
  "vlan",
  "vxlan",
];

/** Why XDP does not work there at all; null if it may. */
function noXdp({ ethernet, external, kind }: HookFacts, mode: Mode): string | null {
  if (!ethernet) return "its packets have no Ethernet header, and XDP's programs begin with one";
  if (external) return "many tunnels share it, and XDP does not see of which a packet came";
  return mode === "native" && NO_NATIVE_XDP.includes(kind) ? `a ${kind} has no native XDP` : null;
}

function refuseXdp(facts: HookFacts, mode: Mode): void {
  const { name } = facts;
  const never = noXdp(facts, mode);
  if (never !== null) {
    throw new LasthopError("E_MODE", `cannot attach ${name} in mode ${mode}: ${never}`, {
      hint: `Leave --mode out, or use --mode tc: \`lasthop attach ${name} --role uplink --mode tc\`.`,
    });
  }
  const foreign = foreignXdp(facts);
  if (foreign !== null) {
    throw new LasthopError(
      "E_FOREIGN",
      `cannot attach ${name} in mode ${mode}: XDP program ${foreign} of somebody else is on it`,
      {
        hint:
          `Use --mode tc, which works beside it; or see whose it is with \`bpftool prog show id ${foreign}\` ` +
          `and have its owner remove it (\`ip link set dev ${name} xdp off\` if it is not held by a link).`,
      },
    );
  }
  const stripping = facts.vlanStripping ?? [];
  if (stripping.length > 0) {
    throw new LasthopError(
      "E_MODE",
      `cannot attach ${name} in mode ${mode}: it strips VLAN tags (${stripping.join(", ")}), and XDP would not see them`,
      {
        hint: `Turn it off with \`ethtool -K ${name} ${stripping.map((feature) => `${feature} off`).join(" ")}\`, or use --mode tc.`,
      },
    );
  }
}

function noXdpOnTap(name: string, mode: Mode): LasthopError {
  return new LasthopError(
    "E_MODE",
    `cannot attach ${name} in mode ${mode}: a tap is attached by TC only, since XDP breaks a guest's unfinished checksums and large segments`,
    { hint: "Leave --mode out, or use --mode tc." },
  );
}

/**
 * Attaches as decided; if the driver refuses what `auto` chose, attaches the fallback. Returns what `attempt` did
 * and the hook that it became.
 */
export function attachDecided<T>(
  decision: HookDecision,
  attempt: (hook: Hook, reason: string) => T,
  refusal: (error: unknown) => string | null,
): { hook: Hook; result: T } {
  try {
    return { hook: decision.hook, result: attempt(decision.hook, decision.reason) };
  } catch (error) {
    const why = decision.fallback === null ? null : refusal(error);
    if (decision.fallback === null || why === null) throw error;
    return { hook: decision.fallback, result: attempt(decision.fallback, why) };
  }
}
