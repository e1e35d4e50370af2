// SPDX-License-Identifier: Apache-2.0
// The other end of a tunnel by the kernel's own drivers, as far as the running kernel has them.

import type { Namespace } from "./lab.ts";
import { overhead, type TunnelSpec, VXLAN_PORT } from "./tunnelByHand.ts";

/** What follows `ip link add NAME type`. */
function driver(spec: TunnelSpec): string {
  const six = spec.local.includes(":");
  const ends = `local ${spec.local} remote ${spec.remote}`;
  switch (spec.type) {
    case "vxlan":
      // Over IPv6 our frames have no UDP checksum, which its end has to allow.
      return `vxlan id ${spec.id} ${ends} dstport ${spec.port ?? VXLAN_PORT} dev ${spec.underlay}${six ? " udp6zerocsumrx" : ""}`;
    case "nvgre":
      return `${six ? "ip6gretap" : "gretap"} ${ends}${spec.id === undefined ? "" : ` key ${spec.id << 8}`} dev ${spec.underlay}`;
    case "gre":
      return `${six ? "ip6gre" : "gre"} ${ends}${spec.id === undefined ? "" : ` key ${spec.id}`} dev ${spec.underlay}`;
    case "ipip":
      return six
        ? `ip6tnl mode any ${ends} dev ${spec.underlay}`
        : `sit mode any ${ends} dev ${spec.underlay}`;
    case "mpls":
      throw new Error("MPLS has routes, no netdev");
  }
}

async function hasLabels(namespace: Namespace): Promise<boolean> {
  // Where they are no modules there is nothing to load, and where they are none the sysctl stays away.
  await namespace.run(["modprobe", "-a", "mpls_router", "mpls_iptunnel"]);
  return (await namespace.run(["sysctl", "-n", "net.mpls.platform_labels"])).status === 0;
}

/** Whether the running kernel has what the far end of this tunnel needs. */
export async function hasKernelDriver(namespace: Namespace, spec: TunnelSpec): Promise<boolean> {
  if (spec.type === "mpls") return hasLabels(namespace);
  const name = "probe";
  const made = await namespace.run(["sh", "-c", `ip link add name ${name} type ${driver(spec)}`]);
  if (made.status === 0) {
    await namespace.ip(`link del dev ${name}`);
    return true;
  }
  if (/Unknown device type|Operation not supported/.test(made.stderr)) return false;
  throw new Error(`ip link add type ${driver(spec)}: ${made.stderr}`);
}

export class KernelEnd {
  readonly #namespace: Namespace;

  constructor(namespace: Namespace) {
    this.#namespace = namespace;
  }

  /** `inner`: per family the other end's address and, second, this one's. */
  async add(
    name: string,
    spec: TunnelSpec,
    inner: Readonly<Record<4 | 6, readonly [string, string]>>,
  ): Promise<void> {
    if (spec.type === "mpls") return this.#addLabels(spec, inner);
    await this.#namespace.ip(
      `link add name ${name} type ${driver(spec)}`,
      `link set dev ${name} mtu ${1500 - overhead(spec)} up`,
      `addr add ${inner[4][1]}/24 dev ${name}`,
      `addr add ${inner[6][1]}/64 dev ${name} nodad`,
    );
  }

  async #addLabels(
    spec: TunnelSpec,
    inner: Readonly<Record<4 | 6, readonly [string, string]>>,
  ): Promise<void> {
    const { request, reply } = spec.labels!;
    const mtu = 1500 - overhead(spec);
    await this.#namespace.must([
      ...["sysctl", "-qw", "net.mpls.platform_labels=1000", `net.mpls.conf.${spec.underlay}.input=1`],
    ]);
    const six = spec.underlay;
    await this.#namespace.ip(
      `addr add ${inner[4][1]}/32 dev lo`,
      `addr add ${inner[6][1]}/128 dev lo nodad`,
      `neigh replace fd77:7::1 lladdr ${spec.nextHop} dev ${six}`,
      `route add ${inner[4][0]} mtu ${mtu} encap mpls ${reply.join("/")} via inet ${spec.remote} dev ${six} src ${inner[4][1]}`,
      `route add ${inner[6][0]} mtu ${mtu} encap mpls ${reply.join("/")} via inet6 fd77:7::1 dev ${six} onlink src ${inner[6][1]}`,
    );
    await this.#namespace.must(["ip", "-f", "mpls", "route", "add", `${request.join("/")}`, "dev", "lo"]);
  }

  async remove(name: string, spec: TunnelSpec): Promise<void> {
    if (spec.type !== "mpls") {
      await this.#namespace.ip(`link del dev ${name}`);
      return;
    }
    await this.#namespace.must(["ip", "-f", "mpls", "route", "flush"]);
    await this.#namespace.must([
      "sh",
      "-c",
      "ip route flush table main proto boot; ip -6 route flush proto boot; ip addr flush dev lo scope global",
    ]);
  }
}
