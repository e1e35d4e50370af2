// SPDX-License-Identifier: Apache-2.0
// Many namespaces, devices, addresses and rulesets, made by one shell.

import type { Namespace } from "./lab.ts";

/** Devices get indices that differ everywhere: with equal ones the kernel delays link-up by a second. */
let nextIndex = 100;

export function newIndex(): number {
  return nextIndex++;
}

/** What one shell does in one go; a namespace costs a few milliseconds that way. */
export class Plan {
  readonly links: string[] = [];
  readonly commands = new Map<Namespace, string[]>();
  readonly rulesets = new Map<Namespace, string>();
  readonly sysctls = new Map<Namespace, string[]>();

  add(namespace: Namespace, ...lines: string[]): void {
    const list = this.commands.get(namespace) ?? [];
    list.push(...lines);
    this.commands.set(namespace, list);
  }

  veth(
    a: { namespace: Namespace; name: string; mac: string },
    b: { namespace: Namespace; name: string; mac: string },
  ) {
    const end = (at: typeof a) =>
      `name ${at.name} index ${newIndex()} address ${at.mac} netns ${at.namespace.name}`;
    this.links.push(`link add ${end(a)} type veth peer ${end(b)}`);
  }

  script(created: Namespace[]): string {
    const batch = (ip: string, lines: string[]) => `${ip} -batch - <<'END'\n${lines.join("\n")}\nEND`;
    const set = (namespace: Namespace, values: string[]) =>
      `nsenter --net=${namespace.path} sysctl -qw ${values.join(" ")}`;
    return [
      "set -e",
      ...(created.length > 0
        ? [
            batch(
              "ip",
              created.map((namespace) => `netns add ${namespace.name}`),
            ),
          ]
        : []),
      ...created.map((namespace) => set(namespace, BASE_SYSCTLS)),
      batch("ip", this.links),
      ...[...this.commands].map(([namespace, lines]) => batch(`ip -n ${namespace.name}`, lines)),
      // Rules first: they load nf_conntrack where it is a module, and with it its sysctls.
      ...[...this.rulesets].map(
        ([namespace, text]) => `nsenter --net=${namespace.path} nft -f - <<'END'\n${text}\nEND`,
      ),
      ...[...this.sysctls]
        .filter(([, values]) => values.length > 0)
        .map(([namespace, values]) => set(namespace, values)),
    ].join("\n");
  }
}

/** Addresses are usable at once, ICMP errors are not rationed, and no route filter helps or hinders. */
const BASE_SYSCTLS = [
  "net.ipv4.conf.all.rp_filter=0",
  "net.ipv4.conf.default.rp_filter=0",
  "net.ipv4.conf.default.send_redirects=0",
  "net.ipv4.conf.all.send_redirects=0",
  "net.ipv4.conf.default.accept_redirects=0",
  "net.ipv6.conf.default.accept_redirects=0",
  "net.ipv6.conf.default.accept_dad=0",
  "net.ipv6.conf.default.accept_ra=0",
  "net.ipv6.conf.default.router_solicitations=0",
  "net.ipv4.icmp_ratelimit=0",
  "net.ipv6.icmp.ratelimit=0",
];
export const FORWARDING = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"];
