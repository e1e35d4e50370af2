// SPDX-License-Identifier: Apache-2.0
/*
 * Tunnels as the configuration has them: made, changed, kept and removed, before interfaces are attached, since
 * `uplinks` may name them.
 *
 * A netdev is made under a name that only we use while we make it, and gets its own when all is right. So whoever is
 * killed leaves one of these, and the next understands each:
 *
 *  - a netdev of that name, with or without tables and programs: it is removed;
 *  - a tunnel that nothing arriving leads to yet: that is entered;
 *  - a row without a netdev, pinned links of one that is gone: forgotten;
 *  - a program on an underlay that no tunnel needs: taken away.
 */

import { formatMac, parseAddress } from "../addresses.ts";
import type { TunnelConfig } from "../config/tunnels.ts";
import { LasthopError } from "../errors.ts";
import { createLink, deleteLink, vethPeer } from "../kernel/linkCreate.ts";
import { NetlinkError } from "../kernel/netlink.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { deviceOf } from "../kernel/tunnelDevice.ts";
import { tunnelNames } from "../kernel/tunnelNames.ts";
import { ERRNO } from "../libc/index.ts";
import type { Applied } from "./apply.ts";
import type { RunSteps } from "./attachInterface.ts";
import { failure } from "./failure.ts";
import { type HostFacts, hostFacts } from "./hostFacts.ts";
import type { Surroundings } from "./observe.ts";
import { runSteps, type Step } from "./steps.ts";
import { builtinChanges, macBytes, type TunnelChange } from "./tunnelChanges.ts";
import { tunnelSight } from "./tunnelObserve.ts";
import { requireFitUnderlay, type TunnelAction } from "./tunnelPlan.ts";
import { endsOf, macOf, mtuOf, rowOf } from "./tunnelSpec.ts";
import { changeStep, removalSteps, strayStep } from "./tunnelSteps.ts";

/** All of it, or nothing of it and a failure. The caller has the lock. */
export function applyTunnel(around: Surroundings, action: TunnelAction, run: RunSteps = runSteps): Applied {
  try {
    return { done: applyOne(around, action, run), failed: [] };
  } catch (error) {
    return { done: [], failed: [failure(action.object, action.config, error)] };
  }
}

function applyOne(around: Surroundings, action: TunnelAction, run: RunSteps): string[] {
  switch (action.kind) {
    case "tunnel-add":
      return [add(around, action.tunnel, run)];
    case "tunnel-change":
      run(action.changes.map((change) => changeStep(around, change)));
      return [action.text];
    case "tunnel-replace":
      run(removalSteps(around, action.remains));
      return [add(around, action.tunnel, run)];
    case "tunnel-remove":
      run(removalSteps(around, action.remains));
      return [action.text];
    case "tunnel-repair":
      run([strayStep(around, action.stray)]);
      return [action.text];
  }
}

/** Returns what was done, for people. */
function add(around: Surroundings, tunnel: TunnelConfig, run: RunSteps): string {
  const { encap, type, name } = tunnel;
  const underlay = underlayOf(around, tunnel);
  if (encap !== "builtin" && type !== "mpls") {
    try {
      addDevice(around, tunnel, underlay, run);
      return `tunnel ${name}: made, by the kernel's driver (${deviceOf(endsOf(tunnel, null)).kind})`;
    } catch (error) {
      if (!isWithoutDriver(error)) throw error;
      requireBuiltinChosen(tunnel, error);
    }
  }
  addBuiltin(around, tunnel, underlay, run);
  return `tunnel ${name}: made, by lasthop's own programs`;
}

function underlayOf({ netlink }: Surroundings, { name, underlay }: TunnelConfig): Link | undefined {
  if (underlay === undefined) return undefined;
  const link = netlink.link(underlay);
  if (link) return link;
  throw new LasthopError(
    "E_NO_INTERFACE",
    `cannot make the tunnel ${name}: there is no interface ${underlay}`,
    {
      hint: "It was to be made before: see what was reported of it.",
    },
  );
}

function isWithoutDriver(error: unknown): boolean {
  return error instanceof NetlinkError && error.errno === ERRNO.EOPNOTSUPP;
}

/** Throws E_TUNNEL where lasthop is not to encapsulate itself, or cannot. */
function requireBuiltinChosen({ name, type, encap, underlay }: TunnelConfig, cause: unknown): void {
  if (encap === "auto" && underlay !== undefined) return;
  const hint =
    encap === "device"
      ? "With `encap: builtin` lasthop's own programs encapsulate; or use a kernel that has the driver."
      : "Give it an `underlay`, so that lasthop's own programs can encapsulate.";
  const text = `cannot make the tunnel ${name}: this kernel has no driver for ${type}`;
  throw new LasthopError("E_TUNNEL", text, { cause, hint });
}

// An interface of the kernel's driver

function addDevice(
  around: Surroundings,
  tunnel: TunnelConfig,
  underlay: Link | undefined,
  run: RunSteps,
): void {
  const { netlink, instance } = around;
  const { alias, making } = tunnelNames(instance.pinRoot);
  const { kind, data } = deviceOf(endsOf(tunnel, underlay?.ifindex ?? null));
  const isEthernet = tunnel.type === "vxlan" || tunnel.type === "nvgre";
  const mac = isEthernet ? macOf(tunnel, underlay) : undefined;
  const make = (): number => createLink(netlink, { name: making.tunnel, kind, data, ...(mac && { mac }) });
  const finish = (link: Link): TunnelChange[] => {
    const mtu = mtuOf(tunnel, underlay ?? routeDevice(around, tunnel)) ?? link.mtu;
    const row = rowOf(tunnel, {
      ifindex: link.ifindex,
      peer: 0,
      underlay: underlay?.ifindex ?? 0,
      mac: macBytes(link.mac),
      underlayMac: macBytes(underlay?.mac ?? null),
      mtu,
    });
    const set = (to: Extract<TunnelChange, { kind: "link" }>["to"]): TunnelChange => {
      return { kind: "link", link, to, back: {}, text: null };
    };
    return [
      set({ alias }),
      ...(link.mtu === mtu ? [] : [set({ mtu })]),
      { kind: "row", row, old: around.tables.tunnels.rows.get(link.ifindex), text: null },
      set({ name: tunnel.name, up: true }),
    ];
  };
  makeAndFinish(around, make, finish, run);
}

/** By which the outer packets leave: the driver of VXLAN does not look for itself. */
function routeDevice({ netlink }: Surroundings, { local, remote }: TunnelConfig): Link | undefined {
  try {
    const { outIfindex } = netlink.routeGet({ destination: remote!, source: local! });
    return outIfindex === null ? undefined : netlink.link(outIfindex);
  } catch (error) {
    // There is no route yet.
    if (error instanceof NetlinkError) return undefined;
    throw error;
  }
}

// A pair of our own

function addBuiltin(
  around: Surroundings,
  tunnel: TunnelConfig,
  underlay: Link | undefined,
  run: RunSteps,
): void {
  const { netlink, instance } = around;
  const { making } = tunnelNames(instance.pinRoot);
  requireFitUnderlay(tunnel, underlay!);
  const make = (): number =>
    createLink(netlink, {
      name: making.tunnel,
      kind: "veth",
      mac: macOf(tunnel, underlay),
      data: vethPeer({ name: making.hidden }),
    });
  const finish = (link: Link): TunnelChange[] => {
    const hidden = netlink.link(link.lower ?? making.hidden);
    if (!hidden)
      throw new LasthopError("E_TUNNEL", `the hidden end of the tunnel ${tunnel.name} went at once`);
    // Keys of its index are those of a netdev that had it before: they were removed with that.
    return builtinChanges(tunnel, { tunnel: link, hidden, underlay }, tunnelSight(around));
  };
  makeAndFinish(around, make, finish, run);
}

/** Makes a netdev, and then what it takes to be a tunnel; if that fails, there is none. */
function makeAndFinish(
  { netlink, ...around }: Surroundings,
  make: () => number,
  finish: (link: Link) => TunnelChange[],
  run: RunSteps,
): void {
  let ifindex = 0;
  const remove = (): void => {
    if (ifindex !== 0) deleteLink(netlink, ifindex, tunnelNames(around.instance.pinRoot).making.tunnel);
  };
  const first: Step = {
    done: null,
    do: () => {
      ifindex = make();
    },
    undo: remove,
  };
  run([first]);
  try {
    const link = netlink.link(ifindex);
    if (!link) throw new LasthopError("E_TUNNEL", "the interface that was made for it went at once");
    run(finish(link).map((change) => changeStep({ netlink, ...around }, change)));
  } catch (error) {
    remove();
    throw error;
  }
}

/** Tunnels whose own end no interface of this host has: nobody answers for it there. */
export function strangeEnds(tunnels: readonly TunnelConfig[], netlink: Surroundings["netlink"]): string[] {
  if (tunnels.every(({ local }) => local === undefined)) return [];
  const bytes = (address: string): string => parseAddress(address)?.toString("hex") ?? address;
  const own = new Set(netlink.addresses().map(({ address }) => bytes(address)));
  return tunnels.flatMap(({ name, local }) =>
    local === undefined || own.has(bytes(local))
      ? []
      : [`tunnel ${name}: no interface of this host has its address ${local}`],
  );
}

// Plans without doing

/** Indices that no netdev has, for those that a plan would make. */
const PLANNED_IFINDEX = 0x7fff_0000;

/** The host as it will be, as far as that can be told, so that a plan shows how tunnels will be attached. */
export function withTunnels(host: HostFacts, actions: readonly TunnelAction[]): HostFacts {
  const gone = new Set<number>();
  const made: Link[] = [];
  for (const action of actions) {
    const goes = action.kind === "tunnel-replace" || action.kind === "tunnel-remove";
    if (goes && action.remains.link) gone.add(action.remains.ifindex);
    if (action.kind !== "tunnel-add" && action.kind !== "tunnel-replace") continue;
    made.push(plannedLink(action.tunnel, PLANNED_IFINDEX + made.length, host));
  }
  if (gone.size === 0 && made.length === 0) return host;
  const isGone = ({ ifindex }: { ifindex: number }) => gone.has(ifindex);
  return hostFacts({
    links: [...host.links.filter((link) => !isGone(link)), ...made],
    fdb: () => host.fdb,
    neighbours: () => host.neighbours,
    addresses: () => host.addresses,
    libvirt: () => host.libvirt,
  });
}

function plannedLink(tunnel: TunnelConfig, ifindex: number, host: HostFacts): Link {
  const underlay = host.links.find(({ name }) => name === tunnel.underlay);
  const isBuiltin = tunnel.encap === "builtin" || tunnel.type === "mpls";
  return {
    ifindex,
    name: tunnel.name,
    mac: formatMac(macOf(tunnel, underlay)),
    mtu: mtuOf(tunnel, underlay) ?? 1500,
    ethernet: true,
    flags: { up: true, running: true, loopback: false },
    kind: isBuiltin ? "veth" : deviceOf(endsOf(tunnel, null)).kind,
    lower: null,
    master: null,
    masterKind: null,
    parentDevice: null,
    portState: null,
    linkNetns: null,
    xdp: null,
    txQueues: 1,
  };
}
