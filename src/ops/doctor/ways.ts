// SPDX-License-Identifier: Apache-2.0
// What replies need of the host beside lasthop: forwarding, rules for marks, IPsec where its packets can be seen, and
// an MTU that is known.

import { HOOK_NAMES } from "../../abi/codec.ts";
import { INTERFACE_FLAG, ROLE } from "../../abi/layout.gen.ts";
import type { LabelStacks } from "../../controller/labelStacks.ts";
import { readIfThere } from "../../kernel/netfilter.ts";
import { type IpsecPolicy, type MarkRule, meetsRule } from "../../kernel/policyRouting.ts";
import type { Link } from "../../kernel/rtnetlink.ts";
import type { InterfaceEntry } from "../../tables/index.ts";
import type { DoctorCheck } from "../types.ts";
import { check, type Finding, ok, warn } from "./finding.ts";

export interface WaysAround {
  links: readonly Link[];
  attached: readonly InterfaceEntry[];
  labelStacks: LabelStacks;
  /** Asked for only where something depends on it. */
  rules(): readonly MarkRule[];
  policies(): readonly IpsecPolicy[];
  /** A sysctl below net; undefined if there is none. */
  sysctl(path: string): string | undefined;
}

export function wayChecks(around: WaysAround): DoctorCheck[] {
  return [
    check("forwarding", () => forwardingCheck(around)),
    check("marks", () => markCheck(around)),
    check("ipsec", () => ipsecCheck(around)),
    check("mtu", () => mtuCheck(around)),
  ];
}

export const readSysctl = (path: string): string | undefined => readIfThere(`/proc/sys/net/${path}`);

const isUplink = ({ role }: InterfaceEntry): boolean => role === ROLE.UPLINK;
const has = ({ flags }: InterfaceEntry, flag: number): boolean => (flags & flag) !== 0;

/** Uplinks that lead through the host's routing, on the way in or on the way out. */
export function routedUplinks({ attached }: Pick<WaysAround, "attached">): InterfaceEntry[] {
  const { NO_LINK_LAYER, VIA_STACK } = INTERFACE_FLAG;
  return attached.filter((entry) => isUplink(entry) && has(entry, NO_LINK_LAYER | VIA_STACK));
}

export function forwardingCheck(around: WaysAround): Finding {
  const { attached, labelStacks, links, sysctl } = around;
  const uplinks = routedUplinks(around);
  const isStack = labelStacks.size > 0 || uplinks.some((entry) => has(entry, INTERFACE_FLAG.VIA_STACK));
  // What comes in there is forwarded: requests of such uplinks, and replies that go by the stack.
  const taps = isStack ? attached.filter(({ role }) => role === ROLE.TAP) : [];
  const bare = uplinks.filter((entry) => has(entry, INTERFACE_FLAG.NO_LINK_LAYER));
  const devices = new Set([...bare, ...taps].map(({ l3_ifindex }) => l3_ifindex));
  if (devices.size === 0) return ok("not needed: nothing goes through the host's routing");
  const names = links.filter(({ ifindex }) => devices.has(ifindex)).map(({ name }) => name);
  const off = (["ipv4", "ipv6"] as const).flatMap((family) =>
    names
      .filter((name) => sysctl(`${family}/conf/${name}/forwarding`) === "0")
      .map((name) => ({ family, name })),
  );
  if (off.length === 0) return ok(`on for ${names.join(", ")}`);
  return warn(
    `off for ${off.map(({ family, name }) => `${name} (${family === "ipv4" ? "IPv4" : "IPv6"})`).join(", ")}`,
    "Uplinks without a link layer, `via: stack` and label stacks need the host to forward: " +
      `${off.map(({ family, name }) => `\`sysctl -w net.${family}.conf.${name}.forwarding=1\``).join(", ")}, for the families that VMs have.`,
  );
}

/** The mark of an uplink may be for an IPsec policy; that of `via: stack` and of labels is for a rule. */
export function markCheck({ attached, labelStacks, rules, policies }: WaysAround): Finding {
  const stack = attached.filter((entry) => isUplink(entry) && has(entry, INTERFACE_FLAG.VIA_STACK));
  const marks = new Set(
    [...stack.map(({ mark }) => mark), ...labelStacks.values()].filter((mark) => mark !== 0),
  );
  if (marks.size === 0) return ok("none is used");
  const known = rules();
  const missing = [...marks].flatMap((mark) => {
    const families = ([4, 6] as const).filter(
      (family) => !known.some((rule) => rule.family === family && meetsRule(rule, mark)),
    );
    return families.length === 0 ? [] : [{ mark, families }];
  });
  const texts = [...marks].map((mark) => `0x${mark.toString(16)}`);
  if (missing.length === 0) return ok(`there is a rule for ${texts.join(", ")}`);
  const first = `0x${missing[0]!.mark.toString(16)}`;
  const ipsec = policies().length > 0 ? " A mark that an IPsec policy selects by needs none." : "";
  return warn(
    missing
      .map(({ mark, families }) => {
        const where = families.length === 2 ? "" : ` for IPv${families[0]}`;
        return `no rule${where} for mark 0x${mark.toString(16)}`;
      })
      .join("; "),
    `Without one such replies take the main table: \`ip rule add fwmark ${first} table N\` (\`ip -6\` for IPv6), and a route in that table.${ipsec}`,
  );
}

/** What a policy without an interface of its own decrypts appears on the NIC a second time, past XDP. */
export function ipsecCheck({ attached, policies }: WaysAround): Finding {
  const own = policies().filter(({ interfaceId }) => interfaceId === 0);
  if (own.length === 0) return ok("no policies without an interface of their own");
  const xdp = attached.filter((entry) => isUplink(entry) && HOOK_NAMES[entry.hook]?.startsWith("xdp"));
  if (xdp.length === 0)
    return ok("there are policies without an interface of their own, and no uplink is on XDP");
  const names = xdp.map(({ name }) => name);
  return warn(
    `there are IPsec policies, and ${names.join(", ")} ${names.length === 1 ? "is" : "are"} on XDP, which never sees what they decrypt`,
    `If tunnels end there: ${names.map((name) => `\`lasthop attach ${name} --role uplink --mode tc\``).join(", ")}, or \`mode: tc\` in the configuration.`,
  );
}

/** Not wrong: the programs see to it. */
export function mtuCheck({ attached, links }: WaysAround): Finding {
  const taps = attached.flatMap((entry) => {
    const link = entry.role === ROLE.TAP ? links.find(({ ifindex }) => ifindex === entry.ifindex) : undefined;
    return link ? [{ zone: entry.zone, name: link.name, mtu: link.mtu }] : [];
  });
  const narrow = attached.filter(isUplink).flatMap((entry) => {
    const wider = taps.filter((tap) => tap.zone === entry.zone && tap.mtu > entry.mtu && entry.mtu !== 0);
    return wider.length === 0 ? [] : [{ entry, wider }];
  });
  if (narrow.length === 0) return ok("no uplink is narrower than a tap");
  const text = narrow.map(({ entry, wider }) => {
    const clamps = has(entry, INTERFACE_FLAG.CLAMP_MSS) ? "TCP is clamped to it" : "TCP is not clamped to it";
    const names = wider.map(({ name, mtu }) => `${name} (${mtu})`).join(", ");
    return `${entry.name} (${entry.mtu}) is narrower than ${names}: ${clamps}, larger replies are answered with an ICMP error`;
  });
  return ok(text.join("; "));
}
