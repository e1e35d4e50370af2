// SPDX-License-Identifier: Apache-2.0
// Others who have a hand in this host's interfaces: which of their interfaces cannot be attached and why, and what
// NetworkManager, systemd-networkd, libvirt, Open vSwitch and SR-IOV say of themselves in files. docs/coexistence.md
// has the whole table.

import { existsSync, readdirSync, readFileSync, readlinkSync, statSync } from "node:fs";
import { basename, join } from "node:path";
import type { AttachmentRole } from "./attachment.ts";
import { walk } from "./libvirt.ts";
import { netnsInode } from "./probe.ts";
import type { Link } from "./rtnetlink.ts";
import { isHiddenEnd } from "./tunnelNames.ts";
import { followsInterfaceIds, isSharedXfrm } from "./xfrmObject.ts";

export interface Refusal {
  /** A clause: "it is the loopback interface". */
  why: string;
  hint: string;
}

interface LinkLookup {
  link(ifindex: number): Link | undefined;
}

/** Null for an interface that can be attached; without a role, for one that can be attached in some role. */
export function whyNotAttachable(links: LinkLookup, link: Link, role?: AttachmentRole): Refusal | null {
  return refuseByMaster(links, link) ?? refuseByKind(link) ?? (role ? refuseByRole(links, link, role) : null);
}

function refuseByMaster(links: LinkLookup, link: Link): Refusal | null {
  if (link.masterKind !== "bond" && link.masterKind !== "team") return null;
  const master = (link.master !== null && links.link(link.master)?.name) || `its ${link.masterKind}`;
  return { why: `it is a slave of ${master}`, hint: `Attach ${master} instead.` };
}

const NO_MAC = "00:00:00:00:00:00";

function refuseByKind(link: Link): Refusal | null {
  if (isHiddenEnd(link)) {
    return {
      why: "it is the hidden end of a tunnel that lasthop made",
      hint: "Attach the tunnel's own interface: `lasthop tunnels list` shows them.",
    };
  }
  if (link.flags.loopback) {
    return {
      why: "it is the loopback interface",
      hint: "Attach the interface towards the devices, or that of a VM.",
    };
  }
  if (!link.ethernet && !link.bareIp) {
    return {
      why: "its packets begin neither with an Ethernet header nor with an IP header",
      hint: "Ethernet interfaces can be attached, and IP tunnels (tun, GRE, IP-in-IP, XFRM, WireGuard).",
    };
  }
  if (link.anyRemote) {
    return {
      why: `it is a ${link.kind} tunnel without a remote end, and replies would go to nobody`,
      hint: `Give it one (\`ip tunnel change ${link.name} remote ADDRESS\`), or make it for many tunnels (\`external\`).`,
    };
  }
  switch (link.kind) {
    case "vrf":
      return {
        why: "it is a VRF, and packets come in by the interfaces in it",
        hint: `Attach those: \`ip -brief link show vrf ${link.name}\` lists them.`,
      };
    case "ifb":
      return {
        why: "it is an ifb: what is led through it comes in by another interface",
        hint: "Attach the interface whose packets are led through it.",
      };
    case "dummy":
      return {
        why: "it is a dummy, and nothing ever comes in by it",
        hint: "Attach the interface towards the devices.",
      };
    case "erspan":
    case "ip6erspan":
      return link.external
        ? {
            why: "it is a shared ERSPAN device, which sends nothing without options that requests do not tell",
            hint: "Use `type gretap external`.",
          }
        : null;
    case "xfrm":
      return isSharedXfrm(link) && !followsInterfaceIds()
        ? {
            why: "it is a shared XFRM interface, and this kernel does not tell programs its interface ids",
            hint: "Linux 6.2 and later do; else make one for each: `ip link add … type xfrm if_id N`.",
          }
        : null;
    case "openvswitch":
      return {
        why: "it is Open vSwitch's own, and most frames never reach it",
        hint: "Attach the ports: `ovs-vsctl list-ports BRIDGE` lists them.",
      };
    case "macvtap":
    case "ipvtap":
      return {
        why: `it is ${link.kind === "ipvtap" ? "an" : "a"} ${link.kind}, and what its guest sends does not come in on it but leaves by the interface below at once`,
        hint: "Give the guest a tap on a bridge (libvirt: `<interface type='bridge'>`), and attach that.",
      };
    case "netkit":
      return link.mac === null || link.mac === NO_MAC
        ? {
            why: "it is a netkit in mode l3, without MAC addresses to tell devices by",
            hint: "Make it with `type netkit mode l2`.",
          }
        : null;
    default:
      return null;
  }
}

function refuseByRole(links: LinkLookup, link: Link, role: AttachmentRole): Refusal | null {
  return role === "tap" ? refuseAsTap(links, link) : refuseAsUplink(link);
}

function refuseAsUplink({ kind, routesItself }: Link): Refusal | null {
  if (kind !== "ipvlan" || !routesItself) return null;
  return {
    why: "it is an ipvlan that routes by itself (mode l3), whatever MAC address a reply has",
    hint: "Attach the interface below, or make the ipvlan with `mode l2`.",
  };
}

function refuseAsTap(links: LinkLookup, link: Link): Refusal | null {
  if (!link.ethernet) {
    return {
      why: "its packets have no Ethernet header, and VMs are told apart by their MAC addresses",
      hint: "As an uplink it can be attached; a VM needs a tap (a tun device in `mode tap`) or a veth.",
    };
  }
  if (link.kind === "bridge") {
    return {
      why: "it is a bridge, and most frames never reach a bridge's own interface",
      hint: `Attach its ports: \`ip -brief link show master ${link.name}\` lists them.`,
    };
  }
  if (link.kind === "macvlan" || link.kind === "ipvlan") {
    const lower = (link.lower !== null && links.link(link.lower)?.name) || "the interface below";
    return {
      why: `it is ${link.kind === "ipvlan" ? "an" : "a"} ${link.kind}: what comes in on it is what ${lower} received, not what a VM sent`,
      hint: "As an uplink it can be attached; a VM needs a tap or veth of its own.",
    };
  }
  return null;
}

// What others say of themselves

export interface LibvirtInterface {
  domain: string;
  /** `bridge`, `network`, `direct` (macvtap), `hostdev` (a VF), `ethernet`, … */
  type: string;
  /** Name of the host's interface; null if it has none. */
  target: string | null;
  /** The bridge, network or lower interface. */
  source: string | null;
}

export interface LibvirtNetwork {
  name: string;
  bridge: string;
  /** `nat`, `route`, `open`, `bridge`, …; null for an isolated one. */
  forward: string | null;
}

export interface HostFacts {
  /** By ifindex; empty if it is not running. */
  networkManager: { running: boolean; managed: ReadonlySet<number> };
  /** Administrative state by ifindex, as `networkctl` shows it: `configured`, `unmanaged`, … */
  networkd: ReadonlyMap<number, string>;
  libvirt: {
    running: boolean;
    /** Names of filters by the name of the interface. */
    filters: ReadonlyMap<string, string>;
    networks: readonly LibvirtNetwork[];
    interfaces: readonly LibvirtInterface[];
    /** Scripts that libvirt runs when domains start and stop. */
    hooks: readonly { path: string; text: string }[];
  };
  openvswitch: { running: boolean };
}

const NOTHING: HostFacts = {
  networkManager: { running: false, managed: new Set() },
  networkd: new Map(),
  libvirt: { running: false, filters: new Map(), networks: [], interfaces: [], hooks: [] },
  openvswitch: { running: false },
};

/**
 * Whether this is the network namespace of process 1, which the host's managers are in. Where process 1 may not be
 * looked at: whether /sys shows the interfaces that netlink does.
 */
export function isHostNetns(links: readonly Link[], root = "/"): boolean {
  const inode = unlessSilent(() => statSync(join(root, "proc/1/ns/net")).ino);
  if (inode !== undefined) return inode === netnsInode();
  return links.every(
    ({ name, ifindex }) => readText(join(root, "sys/class/net", name, "ifindex"))?.trim() === String(ifindex),
  );
}

/**
 * Reads what the managers of this host leave below /run and /etc; nothing in a network namespace that is not
 * theirs. `root` stands for /.
 */
export function readHost(hostNetns: boolean, root = "/"): HostFacts {
  if (!hostNetns) return NOTHING;
  const run = join(root, "run");
  return {
    networkManager: readNetworkManager(join(run, "NetworkManager")),
    networkd: readNetworkd(join(run, "systemd/netif/links")),
    libvirt: readLibvirt(join(run, "libvirt"), join(root, "etc/libvirt/hooks")),
    openvswitch: { running: existsSync(join(run, "openvswitch/db.sock")) },
  };
}

/** devices/IFINDEX is a key file (nm-config.c, nm_config_device_state_write). */
function readNetworkManager(directory: string): HostFacts["networkManager"] {
  const managed = new Set<number>();
  for (const [name, text] of filesIn(join(directory, "devices"))) {
    if (/^managed=true$/m.test(text)) managed.add(Number(name));
  }
  return { running: existsSync(directory), managed };
}

/** IFINDEX is a list of assignments (networkd, link_save). */
function readNetworkd(directory: string): HostFacts["networkd"] {
  return new Map(
    filesIn(directory).flatMap(([name, text]) => {
      const state = /^ADMIN_STATE=(\S+)$/m.exec(text)?.[1];
      return state === undefined ? [] : [[Number(name), state] as const];
    }),
  );
}

function readLibvirt(run: string, hooks: string): HostFacts["libvirt"] {
  const status = (directory: string) =>
    filesIn(join(run, directory)).flatMap(([name, text]) =>
      name.endsWith(".xml") ? [{ name: basename(name, ".xml"), elements: elementsOf(text) }] : [],
    );
  const filters = status("nwfilter-binding").map(
    ({ name, elements }) => [name, attributeOf(elements, "filterref", "filter") ?? "?"] as const,
  );
  return {
    running: ["libvirt-sock", "virtqemud-sock"].some((socket) => existsSync(join(run, socket))),
    filters: new Map(filters),
    networks: status("network").flatMap(({ name, elements }) => {
      const bridge = attributeOf(elements, "bridge", "name");
      if (bridge === null) return [];
      // A network without <forward> is isolated, <forward/> without a mode means NAT.
      const forwards = elements.some(({ path }) => path.endsWith("/forward"));
      const forward = forwards ? (attributeOf(elements, "forward", "mode") ?? "nat") : null;
      return [{ name, bridge, forward }];
    }),
    interfaces: status("qemu").flatMap(({ name, elements }) => domainInterfaces(name, elements)),
    hooks: ["qemu", "qemu.d"].flatMap((name) => scriptsAt(join(hooks, name))),
  };
}

function scriptsAt(path: string): { path: string; text: string }[] {
  const text = readText(path);
  if (text !== undefined) return [{ path, text }];
  return filesIn(path).map(([name, script]) => ({ path: join(path, name), text: script }));
}

interface Element {
  path: string;
  attributes: ReadonlyMap<string, string>;
}

/** In the order of the document; none of one that is not well-formed. */
function elementsOf(xml: string): Element[] {
  const elements: Element[] = [];
  const wellFormed = walk(xml, {
    element: (path, attributes) => elements.push({ path, attributes }),
    text: () => undefined,
  });
  return wellFormed ? elements : [];
}

/** Of the first element of that name. */
function attributeOf(elements: readonly Element[], name: string, attribute: string): string | null {
  return elements.find(({ path }) => path.endsWith(`/${name}`))?.attributes.get(attribute) ?? null;
}

function domainInterfaces(domain: string, elements: readonly Element[]): LibvirtInterface[] {
  const interfaces: LibvirtInterface[] = [];
  for (const { path, attributes } of elements) {
    const below = /(?:^|\/)domain\/devices\/interface(\/\w+)?$/.exec(path);
    const last = interfaces.at(-1);
    if (below && below[1] === undefined) {
      interfaces.push({ domain, type: attributes.get("type") ?? "?", target: null, source: null });
    } else if (last && below?.[1] === "/target") {
      last.target = attributes.get("dev") ?? null;
    } else if (last && below?.[1] === "/source") {
      last.source = attributes.get("bridge") ?? attributes.get("dev") ?? attributes.get("network") ?? null;
    }
  }
  return interfaces;
}

// Hardware

export interface Sriov {
  /** Virtual functions that are there. */
  functions: number;
  /** How many of them a guest has (driver vfio-pci). */
  passedThrough: number;
  /** It is itself a virtual function. */
  isFunction: boolean;
}

/** Of the bus device behind an interface; null for what is no PCI device with or of virtual functions. */
export function readSriov(parentDevice: string | null, root = "/"): Sriov | null {
  if (parentDevice === null || parentDevice.includes("/")) return null;
  const device = join(root, "sys/bus/pci/devices", parentDevice);
  const isFunction = existsSync(join(device, "physfn"));
  const functions = namesIn(device).filter((name) => /^virtfn\d+$/.test(name));
  if (functions.length === 0 && !isFunction) return null;
  const passedThrough = functions.filter(
    (name) => linkTarget(join(device, name, "driver")) === "vfio-pci",
  ).length;
  return { functions: functions.length, passedThrough, isFunction };
}

/** What sysfs knows of an interface beside netlink; false everywhere in a namespace that /sys does not show. */
export function readPort(name: string, root = "/"): { wireless: boolean; representor: boolean } {
  const device = join(root, "sys/class/net", name);
  const port = readText(join(device, "phys_port_name")) ?? "";
  return { wireless: existsSync(join(device, "phy80211")), representor: /^(c\d+)?pf\d+[vs]f\d+/.test(port) };
}

// Files of others: gone, unreadable or odd ones say nothing

function filesIn(directory: string): [name: string, text: string][] {
  return namesIn(directory).flatMap((name) => {
    const text = readText(join(directory, name));
    return text === undefined ? [] : [[name, text]];
  });
}

const SILENT = ["ENOENT", "ENOTDIR", "EISDIR", "EACCES", "EPERM", "EINVAL", "ENOTSUP", "ENXIO"];

function unlessSilent<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (SILENT.includes((error as NodeJS.ErrnoException).code ?? "")) return undefined;
    throw error;
  }
}

const namesIn = (directory: string): string[] => unlessSilent(() => readdirSync(directory).sort()) ?? [];
const readText = (path: string): string | undefined => unlessSilent(() => readFileSync(path, "utf8"));

function linkTarget(path: string): string | undefined {
  const target = unlessSilent(() => readlinkSync(path));
  return target === undefined ? undefined : basename(target);
}
