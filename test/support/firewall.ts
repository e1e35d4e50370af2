// SPDX-License-Identifier: Apache-2.0
// A strictly stateful firewall: a connection exists only if its SYN came by, everything else is
// dropped and counted. Answers that come here without their request are what lasthop is about.

import type { Namespace } from "./lab.ts";

/** The interface towards the VMs; every other one is outside. */
export const INSIDE = "in";

/** `loose` accepts TCP from the middle, as a peer with synchronised state would. */
export function ruleset(loose: boolean): string {
  return `
table inet firewall {
  set carried { typeof iifname . meta nfproto . meta l4proto; size 256; flags dynamic; counter; }
  set dropped { typeof iifname . meta nfproto . meta l4proto; size 256; flags dynamic; counter; }
  chain carry { add @carried { iifname . meta nfproto . meta l4proto } accept; }
  chain discard { add @dropped { iifname . meta nfproto . meta l4proto } drop; }
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state invalid goto discard
    ct state established,related goto carry
    ${loose ? "meta l4proto tcp ct state new goto carry" : ""}
    tcp flags & (fin | syn | rst | ack) == syn ct state new goto carry
    iifname != "${INSIDE}" meta l4proto { udp, sctp, icmp, ipv6-icmp } ct state new goto carry
    iifname "${INSIDE}" udp dport 53 ct state new goto carry
    iifname "${INSIDE}" icmp type echo-request ct state new goto carry
    iifname "${INSIDE}" icmpv6 type echo-request ct state new goto carry
    goto discard
  }
}
`;
}

export interface Count {
  /** `request` came from outside, `reply` from the VMs. */
  direction: "request" | "reply";
  family: 4 | 6;
  protocol: string;
  packets: number;
  bytes: number;
}

type Filter = Partial<Pick<Count, "direction" | "family" | "protocol">>;

/** Counts of one firewall at one moment. */
export class Counts {
  readonly carried: readonly Count[];
  readonly dropped: readonly Count[];

  constructor(carried: readonly Count[], dropped: readonly Count[]) {
    this.carried = carried;
    this.dropped = dropped;
  }

  packets(of: "carried" | "dropped", filter: Filter = {}): number {
    return this[of].filter((count) => matches(count, filter)).reduce((sum, count) => sum + count.packets, 0);
  }

  bytes(of: "carried" | "dropped", filter: Filter = {}): number {
    return this[of].filter((count) => matches(count, filter)).reduce((sum, count) => sum + count.bytes, 0);
  }
}

function matches(count: Count, filter: Filter): boolean {
  return Object.entries(filter).every(([key, value]) => count[key as keyof Filter] === value);
}

interface NftElement {
  elem: { val: { concat: [string, string, string | number] }; counter: { packets: number; bytes: number } };
}

const PROTOCOLS: Record<string, string> = { "ipv6-icmp": "icmp" };

export class Firewall {
  readonly name: string;
  readonly namespace: Namespace;
  readonly mac: string;
  /** Its addresses inside, the VMs' or the host's gateway. */
  readonly address: { 4: string; 6: string };

  constructor(name: string, namespace: Namespace, mac: string, address: { 4: string; 6: string }) {
    this.name = name;
    this.namespace = namespace;
    this.mac = mac;
    this.address = address;
  }

  async counts(): Promise<Counts> {
    return new Counts(await this.#set("carried"), await this.#set("dropped"));
  }

  async reset(): Promise<void> {
    await this.namespace.must(["nft", "flush set inet firewall carried; flush set inet firewall dropped"]);
  }

  /** Stops forwarding, as a dead one does. */
  async halt(): Promise<void> {
    await this.namespace.must(["sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0"]);
  }

  async resume(): Promise<void> {
    await this.namespace.must(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]);
  }

  async #set(name: string): Promise<Count[]> {
    const text = await this.namespace.must(["nft", "-j", "list", "set", "inet", "firewall", name]);
    const parsed = JSON.parse(text) as { nftables: { set?: { elem?: NftElement[] } }[] };
    const elements = parsed.nftables.flatMap((item) => item.set?.elem ?? []);
    return elements.map(({ elem }) => {
      const [interfaceName, family, protocol] = elem.val.concat;
      return {
        direction: interfaceName === INSIDE ? "reply" : "request",
        family: family === "ipv4" ? 4 : 6,
        protocol: PROTOCOLS[protocol] ?? String(protocol),
        ...elem.counter,
      };
    });
  }
}
