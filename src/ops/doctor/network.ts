// SPDX-License-Identifier: Apache-2.0
// Who else has a hand in the traffic of this host: packet filters and network managers.

import { POLICY_NAMES } from "../../abi/codec.ts";
import { ROLE } from "../../abi/layout.gen.ts";
import {
  type BypassWarning,
  bridgeNetfilter,
  bypassWarnings,
  possiblePaths,
  replyPaths,
} from "../../kernel/bypass.ts";
import type { HostFacts } from "../../kernel/coexistence.ts";
import { type Ruleset, readIfThere } from "../../kernel/netfilter.ts";
import type { Link } from "../../kernel/rtnetlink.ts";
import type { InterfaceEntry } from "../../tables/index.ts";
import type { DoctorCheck } from "../types.ts";
import { check, type Finding, ok, warn, warnings } from "./finding.ts";
import { routedUplinks } from "./ways.ts";

/** rp_filter: the route back to the source must leave by the interface of arrival. */
const STRICT = "1";
/** A host may have hundreds of chains; the first ones name what is attached. */
const CHAINS_SHOWN = 8;

export interface Surroundings {
  /** Empty if they cannot be read. */
  links: readonly Link[];
  attached: readonly InterfaceEntry[];
  ruleset: Ruleset;
  host: HostFacts;
}

export function networkChecks(around: Surroundings): DoctorCheck[] {
  const lost = bypassWarnings(around.ruleset, pathsOf(around));
  const only = (kind: BypassWarning["kind"]) => lost.filter((item) => item.kind === kind);
  return [
    check("netfilter", () => filterCheck(only("filter"), around.ruleset)),
    check("connection state", () => filterCheck(only("stateful"), around.ruleset)),
    check("nat", () => filterCheck(only("nat"), around.ruleset)),
    check("rp_filter", () => rpFilterCheck(around.attached)),
    check("bridge-nf", bridgeNetfilterCheck),
    check("libvirt", () => libvirtCheck(around)),
    check("networkmanager", () => networkManagerCheck(around)),
    check("networkd", () => networkdCheck(around)),
    check("openvswitch", () => openvswitchCheck(around)),
  ];
}

function pathsOf({ links, attached }: Surroundings) {
  const bridged = bridgeNetfilter();
  // A tap that only observes may be told to enforce.
  const interfaces = attached
    .filter(({ policy }) => POLICY_NAMES[policy] !== "off")
    .map(({ ifindex, role, zone }) => ({
      ifindex,
      role: role === ROLE.TAP ? ("tap" as const) : ("uplink" as const),
      zone,
    }));
  const paths = replyPaths(links, interfaces, bridged);
  // As long as no reply can be redirected, everything is possible.
  return paths.length > 0 ? paths : possiblePaths(bridged);
}

function filterCheck(lost: readonly BypassWarning[], { unknown }: Ruleset): Finding {
  if (lost.length === 0) {
    if (unknown.length === 0) return ok("no rules that a redirected reply would go past");
    return warn(
      `cannot be checked: ${unknown.join("; ")}`,
      "Install what is missing, or look for rules that see only one direction of a VM's traffic yourself.",
    );
  }
  const names = lost.slice(0, CHAINS_SHOWN).map(chainText);
  if (lost.length > names.length) names.push(`${lost.length - names.length} more`);
  return warn([...names, ...unknown].join(", "), lost[0]!.hint);
}

function chainText({ chain, owners, interfaces }: BypassWarning): string {
  const more = [...owners.map((owner) => `of ${owner}`), ...interfaces.map((name) => `names ${name}`)];
  return more.length === 0 ? chain : `${chain}: ${more.join(", ")}`;
}

function rpFilterCheck(attached: readonly InterfaceEntry[]): Finding {
  const all = readIfThere("/proc/sys/net/ipv4/conf/all/rp_filter");
  const uplinks = attached.filter((entry) => entry.role === ROLE.UPLINK);
  const names = uplinks.length > 0 ? uplinks.map((entry) => entry.name) : ["default"];
  // The greater of the two counts.
  const strict = names.filter((name) => {
    const own = readIfThere(`/proc/sys/net/ipv4/conf/${name}/rp_filter`);
    return (own === STRICT || all === STRICT) && own !== "2" && all !== "2";
  });
  if (strict.length === 0) return ok("not strict");
  const routed = routedUplinks({ attached }).filter(({ name }) => strict.includes(name));
  const always =
    routed.length === 0
      ? ""
      : `; what comes by ${routed.map(({ name }) => name).join(", ")} is always routed, so requests are lost there`;
  return warn(
    `strict on ${strict.join(", ")}${always}`,
    "On a routed host it drops requests whose client is routed by another interface: " +
      `${strict.map((name) => `\`sysctl -w net.ipv4.conf.${name}.rp_filter=2\``).join(", ")}.`,
  );
}

function bridgeNetfilterCheck(): Finding {
  const on = ["arp", "ip", "ip6"].filter(
    (family) => readIfThere(`/proc/sys/net/bridge/bridge-nf-call-${family}tables`) === "1",
  );
  if (on.length === 0) return ok("off");
  return warn(
    `bridged frames pass ${on.map((family) => `${family}tables`).join(", ")}`,
    "The host's connection tracking sees requests of bridged VMs but not their redirected replies: " +
      "`sysctl -w net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0`, unless it is needed.",
  );
}

// Managers

interface Named {
  link: Link;
  role: "uplink" | "tap";
}

function attachedLinks({ links, attached }: Surroundings): Named[] {
  return attached.flatMap((entry) => {
    const link = links.find(({ ifindex }) => ifindex === entry.ifindex);
    return link ? [{ link, role: entry.role === ROLE.TAP ? "tap" : "uplink" }] : [];
  });
}

export function libvirtCheck(around: Surroundings): Finding {
  const { libvirt } = around.host;
  const found = [
    ...filteredTaps(around),
    ...natNetworks(around),
    ...invisibleGuests(around),
    ...hookScripts(around),
  ];
  return warnings(found, libvirt.running ? "running, and nothing of it is in the way" : "not running");
}

function filteredTaps(around: Surroundings): { found: string; hint: string }[] {
  return attachedLinks(around).flatMap(({ link, role }) => {
    const filter = around.host.libvirt.filters.get(link.name);
    if (role !== "tap" || filter === undefined) return [];
    return {
      found: `nwfilter ${filter} on ${link.name}`,
      hint:
        "What an nwfilter says of packets from the guest does not hold for redirected replies; what it says of packets " +
        "to the guest, and of connections that the guest opens, holds as before.",
    };
  });
}

function natNetworks(around: Surroundings): { found: string; hint: string }[] {
  const { networks } = around.host.libvirt;
  return attachedLinks(around).flatMap(({ link, role }) => {
    const bridge = around.links.find(({ ifindex }) => ifindex === link.master)?.name;
    const network = networks.find((item) => item.bridge === bridge && item.forward === "nat");
    if (role !== "tap" || !network) return [];
    return {
      found: `${link.name} is in the network ${network.name} (${network.bridge}), which libvirt translates`,
      hint:
        "Connections to a VM behind NAT have another address on its tap, so they pass as before: give the VM a network " +
        "with `<forward mode='route'/>`, or a bridge with the uplink in it.",
    };
  });
}

function invisibleGuests(around: Surroundings): { found: string; hint: string }[] {
  const uplinks = attachedLinks(around).filter(({ role }) => role === "uplink");
  return around.host.libvirt.interfaces.flatMap(({ domain, type, target, source }) => {
    const below = uplinks.some(({ link }) => link.name === source);
    if (type === "direct" && below) {
      return {
        found: `${domain} has a macvtap (${target ?? "?"}) on ${source}`,
        hint: "What a guest sends by a macvtap does not come by the host: its replies go as the guest routes them. Give it a tap on a bridge.",
      };
    }
    if (type === "hostdev") {
      return {
        found: `${domain} has a virtual function of a network card`,
        hint: "What a guest sends by its own function of a network card does not come by the host. Give it a tap on a bridge.",
      };
    }
    return [];
  });
}

/** A line of packaging/libvirt/qemu: that one keeps to what the hint says. */
const OWN_HOOK = "# libvirt's hook for guests that start, stop and move.";

function hookScripts({ host }: Surroundings): { found: string; hint: string }[] {
  const ours = host.libvirt.hooks
    .filter(({ text }) => /\blasthop\b/.test(text) && !text.includes(OWN_HOOK))
    .map(({ path }) => path);
  if (ours.length === 0) return [];
  return [
    {
      found: `${ours.join(", ")} calls lasthop`,
      hint: "`lasthop run` attaches taps when they appear: the hook is not needed beside it, and a hook must never call virsh.",
    },
  ];
}

export function networkManagerCheck(around: Surroundings): Finding {
  const { running, managed } = around.host.networkManager;
  if (!running) return ok("not running");
  const taps = attachedLinks(around).filter(({ link, role }) => role === "tap" && managed.has(link.ifindex));
  if (taps.length === 0) return ok("running, and no attached tap is managed by it");
  const names = taps.map(({ link }) => link.name);
  return warn(
    `manages ${names.join(", ")}: it may take a tap from its bridge, or give it addresses`,
    `In /etc/NetworkManager/conf.d/lasthop.conf: [keyfile] unmanaged-devices=${names.map((name) => `interface-name:${name}`).join(";")} ` +
      "(patterns as vnet* do), then `nmcli general reload`.",
  );
}

export function networkdCheck(around: Surroundings): Finding {
  const { networkd } = around.host;
  if (networkd.size === 0) return ok("not running");
  const taps = attachedLinks(around).filter(({ link, role }) => {
    const state = networkd.get(link.ifindex);
    return role === "tap" && state !== undefined && state !== "unmanaged";
  });
  if (taps.length === 0) return ok("running, and no attached tap is managed by it");
  return warn(
    `manages ${taps.map(({ link }) => link.name).join(", ")}: it may take a tap from its bridge, or give it addresses`,
    "In /etc/systemd/network/05-vm-taps.network: [Match] Name=vnet* [Link] Unmanaged=yes, then `networkctl reload`.",
  );
}

export function openvswitchCheck(around: Surroundings): Finding {
  const ports = attachedLinks(around).filter(({ link }) => link.masterKind === "openvswitch");
  if (ports.length === 0) {
    const running =
      around.host.openvswitch.running || around.links.some(({ kind }) => kind === "openvswitch");
    return ok(running ? "running, and none of its ports is attached" : "not running");
  }
  return warn(
    `${ports.map(({ link }) => link.name).join(", ")} are ports of it: redirected replies pass none of its flows`,
    "Security groups, meters and mirrors of Open vSwitch must not depend on replies. Ports of the kernel's datapath " +
      "work; those of the user-space datapath (DPDK) are not seen by the host at all.",
  );
}
